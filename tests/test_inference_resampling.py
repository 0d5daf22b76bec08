"""Probabilities resampled onto the grid of the scan, judged by SimpleITK, SciPy and hand arithmetic."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import SimpleITK

from tfmuscle.inference.resampling import RIM_VOXELS, align, labels_on_grid
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURN = scipy.spatial.transform.Rotation.from_euler("xyz", [11, -17, 23], degrees=True).as_matrix()


def scan_grid(shape, spacing=(1.0, 1.0, 1.0), *, orientation="RAS", oblique=False):
    """A grid with the given axis codes and spacing, turned by some degrees if oblique."""
    base = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), np.eye(4))).reoriented(orientation).geometry
    direction = np.sign(np.round(base.affine[:3, :3]))
    affine = np.eye(4)
    affine[:3, :3] = (TURN if oblique else np.eye(3)) @ direction * spacing
    affine[:3, 3] = [-31.5, 12.25, 4.0]
    return Geometry(shape, affine)


def smooth_probabilities(shape, classes, seed=0):
    """Random, smooth, positive fields that sum to one over the classes."""
    noise = np.random.default_rng(seed).normal(size=(*shape, classes))
    fields = scipy.ndimage.gaussian_filter(noise, (1.2, 1.2, 1.2, 0), mode="nearest")
    fields = np.exp(8 * fields)
    return (fields / fields.sum(-1, keepdims=True)).astype(np.float32)


def in_blocks(probabilities, depths=(3, 1, 5)):
    """Cuts slices into blocks of uneven depth, as a stitcher may."""
    first = 0
    for depth in itertools.cycle(depths):
        if first >= len(probabilities):
            return
        yield first, probabilities[first : first + depth]
        first += depth


def as_itk(array, affine):
    """A SimpleITK image of an `(i, j, k)` array."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = LPS_FROM_RAS @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(0))
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


GRIDS = {
    "identity": (scan_grid((9, 12, 11), (1, 1, 1), orientation="SPL"), (1, 1, 1)),
    "ras": (scan_grid((13, 12, 9), (1, 1, 1)), (1.6, 0.8, 1.3)),
    "lps": (scan_grid((13, 12, 9), (1, 1, 1), orientation="LPS"), (1.6, 0.8, 1.3)),
    "las": (scan_grid((13, 12, 9), (0.7, 0.7, 3.0), orientation="LAS"), (2.0, 1.1, 1.1)),
    "oblique": (scan_grid((13, 12, 9), (0.9, 1.2, 2.5), orientation="LPS", oblique=True), (1.0, 1.0, 1.0)),
    "coarser network": (scan_grid((20, 21, 19), (1, 1, 1), oblique=True), (4.0, 2.5, 3.0)),
    "one slice": (scan_grid((16, 15, 1), (1, 1, 5), orientation="LAS", oblique=True), (5.0, 1.5, 1.5)),
    "one slice of a thick network": (scan_grid((16, 15, 1), (1, 1, 1)), (9.0, 1.5, 1.5)),
    "sagittal": (scan_grid((5, 14, 15), (4, 1, 1), orientation="PSR"), (3.0, 1.5, 1.2)),
}


@pytest.mark.parametrize("target, spacing", GRIDS.values(), ids=GRIDS)
def test_labels_are_those_of_scipy_and_simpleitk(target, spacing):
    classes = 5
    grid = Volume(np.zeros(target.shape), target).reoriented("SPL").geometry.resampled(spacing)
    probabilities = smooth_probabilities(grid.shape, classes)
    label_map = LabelMap({n: f"muscle {n}" for n in range(1, classes)})
    labels = labels_on_grid(in_blocks(probabilities), grid, target, label_map)
    assert labels.shape == target.shape and labels.dtype == np.uint8

    index = grid.index(target.world(np.moveaxis(np.indices(target.shape), 0, -1)))
    where = np.round(np.moveaxis(index, -1, 0), 9)
    fields = [
        scipy.ndimage.map_coordinates(probabilities[..., c], where, order=1, mode="nearest") for c in range(classes)
    ]
    best = np.sort(fields, axis=0)
    clear = best[-1] - best[-2] > 1e-5  # closer is a tie for float32
    assert clear.mean() > 0.999
    assert (labels == np.argmax(fields, axis=0))[clear].all()

    reference = as_itk(np.zeros(target.shape, np.float32), target.affine)
    moved = []
    for c in range(classes):
        image = SimpleITK.Resample(as_itk(probabilities[..., c], grid.affine), reference, SimpleITK.Transform(3, 1))
        moved.append(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    inside = np.sum(moved, axis=0) > 0.5  # SimpleITK gives zeros farther than half a voxel from the last centre
    assert inside.mean() > 0.6
    assert (labels == np.argmax(moved, axis=0))[clear & inside].all()


def test_the_rim_is_clamped_and_what_lies_farther_is_background():
    # One axis of 2 mm voxels with centres at 0, 2, 4 mm; targets every 0.5 mm from -2.5 mm to 6.5 mm.
    grid = Geometry((3, 1, 1), np.diag([2.0, 1.0, 1.0, 1.0]))
    affine = np.diag([0.5, 1.0, 1.0, 1.0])
    affine[0, 3] = -2.5
    target = Geometry((19, 1, 1), affine)
    probabilities = np.zeros((3, 1, 1, 3), np.float32)
    probabilities[..., 1], probabilities[2, ..., 1:] = 1, [0, 1]
    labels = labels_on_grid([(0, probabilities)], grid, target, LabelMap({1: "tibia", 300: "fibula"}))[:, 0, 0]
    # 0.75 voxel of 2 mm is 1.5 mm: background before -1.5 mm and after 5.5 mm; the classes tie at 3 mm, the first wins.
    position = -2.5 + 0.5 * np.arange(19)
    expected = np.where(position <= 3, 1, 300) * ((position >= -1.5) & (position <= 5.5))
    assert RIM_VOXELS == 0.75 and labels.dtype == np.uint16
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize("size, spacing", [(10, 4.0), (10, 3.0), (11, 2.0), (7, 2.0), (5, 2.0), (3, 7.0), (1, 5.0)])
def test_rounding_of_the_shape_costs_no_voxel_at_the_faces(size, spacing):
    target = scan_grid((size, size, size))
    grid = target.resampled((spacing, spacing, spacing))
    ones = np.zeros((*grid.shape, 2), np.float32)
    ones[..., 1] = 1
    assert labels_on_grid([(0, ones)], grid, target, LabelMap({1: "femur"})).all()


def test_a_cropped_margin_is_background():
    target = scan_grid((8, 7, 6), orientation="LPS")
    box = Volume(np.zeros(target.shape), target).cropped((2, 1, 1), (6, 6, 4)).reoriented("SPL").geometry
    ones = np.zeros((*box.shape, 2), np.float32)
    ones[..., 1] = 1
    labels = labels_on_grid([(0, ones)], box, target, LabelMap({1: "femur"}))
    expected = np.zeros(target.shape)
    expected[2:6, 1:6, 1:4] = 1
    assert (labels == expected).all()


def test_a_grid_beside_the_scan_gives_background_only():
    grid, target = Geometry((2, 2, 2), np.eye(4)), scan_grid((2, 3, 4))
    assert not labels_on_grid([(0, np.ones((2, 2, 2, 2), np.float32))], grid, target, LabelMap({1: "femur"})).any()


def test_rotated_grids_are_refused():
    with pytest.raises(ValueError, match="rotated against each other; resample the image"):
        align(scan_grid((9, 9, 9)), scan_grid((9, 9, 9), oblique=True))


def test_probabilities_that_end_early_are_refused():
    grid = scan_grid((4, 2, 2), orientation="SPL")
    with pytest.raises(ValueError, match=r"end before slice 3 of \(4, 2, 2\); give all"):
        labels_on_grid([(0, np.ones((3, 2, 2, 2), np.float32))], grid, grid, LabelMap({1: "femur"}))
