"""Geometry judged by nibabel and SimpleITK; intensities by hand."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing import (
    ANTIALIAS_FACTOR,
    crop_to_nonzero,
    normalise,
    preprocess,
    reorient,
    resample_image,
    resample_labels,
)
from tfmuscle.volume import Geometry, Volume

MAP = LabelMap({1: "femur_left", 2: "femur_right", 5: "hip"}, ignore=9)
LPS = np.diag([-1.0, -1.0, 1.0])


def rotation(degrees, axis):
    i, j = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cos, -sin, sin, cos
    return matrix


def affine_of(directions, spacing, origin=(12.5, -30.0, 7.0)):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, dtype=float) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


OBLIQUE = rotation(20, 0) @ rotation(-15, 2) @ rotation(8, 1)
GRIDS = {
    "RAS": Geometry((9, 11, 7), affine_of(np.eye(3), (1, 1, 1))),
    "LPS": Geometry((9, 11, 7), affine_of(np.diag([-1, -1, 1]), (1.2, 0.8, 3))),
    "LAS": Geometry((9, 11, 7), affine_of(np.diag([-1, 1, 1]), (0.8, 0.8, 5))),
    "PIR": Geometry((9, 11, 7), affine_of(np.eye(3)[:, [2, 0, 1]] @ np.diag([-1, -1, 1]), (1, 2, 3))),
    "oblique": Geometry((9, 11, 7), affine_of(OBLIQUE, (0.9, 1.1, 4))),
    "oblique flipped": Geometry((9, 11, 7), affine_of(OBLIQUE @ np.diag([-1, 1, -1]), (2, 1, 1.5))),
    "one slice": Geometry((9, 11, 1), affine_of(OBLIQUE, (1, 1, 8))),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def noise(grid, seed=0):
    return np.random.default_rng(seed).normal(100, 30, grid.shape).astype(np.float32)


def ramp(points):
    """A linear function of the place in the patient."""
    return 3.0 + points @ np.array([0.5, -1.25, 2.0])


def world_of(grid):
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))


def to_sitk(volume):
    """The same image for SimpleITK: index order reversed, world turned from RAS to LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    spacing = np.array(volume.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((LPS @ volume.geometry.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ volume.geometry.affine[:3, 3]).tolist())
    return image


def resampled_by_sitk(volume, grid, interpolator, outside=0.0):
    reference = to_sitk(Volume(np.zeros(grid.shape, np.float32), grid))
    found = sitk.Resample(to_sitk(volume), reference, sitk.Transform(), interpolator, outside)
    return sitk.GetArrayFromImage(found).transpose(2, 1, 0)


def spec(**changes):
    settings = {"label_map": MAP, "kind": "slices", "size": (16, 16), "normalisation": "none"}
    return DataSpec(**(settings | changes))


# ---------------------------------------------------------------- reorient


@every_grid
def test_reorient_to_ras_equals_nibabel(grid):
    volume = Volume(noise(grid), grid)
    expected = nib.as_closest_canonical(nib.Nifti1Image(volume.array, grid.affine))
    found = reorient(volume, "RAS")
    np.testing.assert_array_equal(found.array, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(found.geometry.affine, expected.affine, atol=1e-9)


@every_grid
@pytest.mark.parametrize("orientation", ["SPL", "LSP", "PIR", "RAS"])
def test_reorient_keeps_every_voxel_at_its_place(grid, orientation):
    # each voxel holds its own world position: after reorienting it must still stand there
    places = world_of(grid)
    for axis in range(3):
        moved = reorient(Volume(places[..., axis], grid), orientation)
        assert moved.geometry.orientation == orientation
        np.testing.assert_allclose(moved.array, world_of(moved.geometry)[..., axis], atol=1e-9)


def test_reorient_without_patient_coordinates_reverses_axes():
    grid = GRIDS["oblique"]
    volume = Volume(noise(grid), grid)
    np.testing.assert_array_equal(reorient(volume, None).array, volume.array.transpose(2, 1, 0))


# ---------------------------------------------------------------- resample


TARGETS = {
    "finer": lambda grid: grid.resampled([0.7 * size for size in grid.spacing]),
    "coarser": lambda grid: grid.resampled([1.4 * size for size in grid.spacing]),
    "isotropic": lambda grid: grid.resampled([max(grid.spacing) / 1.3] * 3),
    "other axes": lambda grid: Volume(np.zeros(grid.shape), grid).reoriented("SPL").geometry.resampled((1.3, 1.3, 1.3)),
    "oblique": lambda grid: _turned(grid, (6, 7, 5), rotation(10, 2)),
    "steep": lambda grid: _turned(grid, (8, 8, 8), rotation(33, 1) @ rotation(-50, 0)),
}


def _turned(grid, shape, directions):
    """A grid of other voxels about the centre of `grid`, turned."""
    affine = affine_of(directions, (1.3, 0.9, 1.2))
    centre = grid.world((np.array(grid.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


def inside(source, target, margin=0.0):
    """Where the voxel centres of `target` lie between voxel centres of `source`, `margin` more on each side."""
    index = source.index(world_of(target))
    return ((index >= -margin - 1e-6) & (index <= np.array(source.shape) - 1 + margin + 1e-6)).all(axis=-1)


def _is_blurred(grid, target):
    factors = np.abs(np.linalg.inv(grid.affine) @ target.affine)[:3, :3].max(axis=1)
    return (factors[np.array(grid.shape) > 1] > ANTIALIAS_FACTOR).any()


UNBLURRED = {
    f"{name} to {title}": (grid, make(grid))
    for name, grid in GRIDS.items()
    for title, make in TARGETS.items()
    if not _is_blurred(grid, make(grid))
}


@pytest.mark.parametrize(("grid", "target"), UNBLURRED.values(), ids=UNBLURRED.keys())
def test_linear_resampling_equals_simpleitk(grid, target):
    volume = Volume((noise(grid) - 100) / 30, grid)
    found = resample_image(volume, target)
    assert found.array.dtype == np.float32 and found.geometry.same_grid(target)
    judged = inside(grid, target)
    assert judged.any() or 1 in grid.shape
    expected = resampled_by_sitk(volume, target, sitk.sitkLinear)
    np.testing.assert_allclose(found.array[judged], expected[judged], atol=1e-4)


@every_grid
@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_nearest_resampling_equals_simpleitk(grid, make):
    target = make(grid)
    labels = Volume(np.random.default_rng(1).choice([0, 1, 2, 5, 9], grid.shape).astype(np.uint8), grid)
    found = resample_labels(labels, target)
    expected = resampled_by_sitk(labels, target, sitk.sitkNearestNeighbor)
    # halves may be rounded either way by two programs; everything else must be equal
    index = grid.index(world_of(target))
    clear = (np.abs(np.abs(index - np.round(index)) - 0.5) > 1e-4).all(axis=-1)
    assert clear.mean() > 0.3
    np.testing.assert_array_equal(found.array[clear], expected[clear])
    assert found.array.dtype == np.uint8


def test_beyond_the_field_of_view():
    # source 2 x 1 x 1 voxels of 1 mm at x = 0, 1; target at x = -2 .. 3
    source = Geometry((2, 1, 1), np.eye(4))
    target = Geometry((6, 1, 1), affine_of(np.eye(3), (1, 1, 1), (-2, 0, 0)))
    image = resample_image(Volume(np.array([10.0, 20.0]).reshape(2, 1, 1), source), target)
    labels = resample_labels(Volume(np.array([1, 2]).reshape(2, 1, 1), source), target)
    assert image.array.ravel().tolist() == [10, 10, 10, 20, 20, 20]
    assert labels.array.ravel().tolist() == [0, 0, 1, 2, 0, 0]


def test_same_grid_is_left_alone():
    grid = GRIDS["oblique"]
    image, labels = Volume(noise(grid), grid), Volume(np.ones(grid.shape, np.uint8), grid)
    assert resample_image(image, Geometry(grid.shape, grid.affine.copy())).array is image.array
    assert resample_labels(labels, grid).array is labels.array


@every_grid
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_ramp_stays_the_same_ramp_in_the_world(grid, factor):
    volume = Volume(ramp(world_of(grid)).astype(np.float32), grid)
    turned = reorient(volume, "SPL")
    spacing = zip(turned.spacing, turned.geometry.shape, strict=True)  # one slice says nothing about its neighbours
    target = turned.geometry.resampled([factor * size if count > 1 else size for size, count in spacing])
    found = resample_image(turned, target)
    judged = inside(turned.geometry, target)
    assert judged.any()
    np.testing.assert_allclose(
        found.array[judged], ramp(world_of(target))[judged], atol=1e-4 * np.ptp(volume.array) + 1e-4
    )


def test_ramp_survives_blurring_away_from_the_border():
    # factor 3: sigma 1 old voxel, so the kernel reaches 4 old voxels; a symmetric kernel leaves a straight line alone
    grid = Geometry((60, 4, 4), affine_of(OBLIQUE, (1, 1, 1)))
    target = grid.resampled((3, 1, 1))
    assert target.shape == (20, 4, 4)
    found = resample_image(Volume(ramp(world_of(grid)).astype(np.float32), grid), target)
    np.testing.assert_allclose(found.array[2:-2], ramp(world_of(target))[2:-2], atol=1e-3)
    assert abs(found.array[0, 0, 0] - ramp(target.world((0, 0, 0)))) > 1e-3  # the bent border that the docstring admits


def test_blurring_stops_aliasing_and_spares_finer_axes():
    # stripes one voxel wide along axis 0, three voxels to one: without a blur the stripes turn into other stripes
    grid = Geometry((60, 6, 6), np.eye(4))
    stripes = np.zeros(grid.shape, np.float32)
    stripes[::2] = 1.0
    found = resample_image(Volume(stripes, grid), grid.resampled((3, 1, 1))).array[3:-3]
    assert found.std() < 0.01 and abs(found.mean() - 0.5) < 0.01  # exp(-pi^2 / 2) = 0.0072 of the contrast is left
    across = resample_image(
        Volume(stripes.transpose(1, 0, 2).copy(), Geometry((6, 60, 6), np.eye(4))), _coarser_first()
    )
    assert across.array[:, ::2].min() == 1.0 and across.array[:, 1::2].max() == 0.0


def _coarser_first():
    return Geometry((6, 60, 6), np.eye(4)).resampled((3, 1, 1))


def test_channels_are_resampled_one_by_one():
    grid = GRIDS["LPS"]
    target = grid.resampled((1, 1, 1))
    both = resample_image(Volume(np.stack([noise(grid, 1), noise(grid, 2)], axis=-1), grid), target)
    for channel in range(2):
        alone = resample_image(Volume(noise(grid, channel + 1), grid), target)
        np.testing.assert_array_equal(both.array[..., channel], alone.array)


# ---------------------------------------------------------------- crop


def test_crop_keeps_what_is_not_zero_in_any_channel_with_and_without_labels():
    grid = GRIDS["oblique"]
    array = np.zeros((*grid.shape, 2), np.float32)
    array[2, 3, 4, 0], array[5, 6, 4, 1] = -1.0, 2.0
    labels = np.zeros(grid.shape, np.uint8)
    labels[4, 5, 4] = labels[4, 8, 5] = 1  # the second lies in the margin
    image, cut = crop_to_nonzero(Volume(array, grid), Volume(labels, grid))
    assert image.geometry.shape == cut.geometry.shape == (4, 4, 1)  # i 2..5, j 3..6, k 4
    np.testing.assert_allclose(image.geometry.world((0, 0, 0)), grid.world((2, 3, 4)))
    assert image.array[0, 0, 0, 0] == -1.0 and cut.array[2, 2, 0] == cut.array.sum() == 1
    assert crop_to_nonzero(Volume(array, grid))[0].geometry.shape == (4, 4, 1)


def test_crop_of_nothing_and_of_everything():
    grid = GRIDS["RAS"]
    empty = Volume(np.zeros(grid.shape), grid)
    assert crop_to_nonzero(empty) == (empty, None)
    assert crop_to_nonzero(Volume(np.ones(grid.shape), grid))[0].geometry.same_grid(grid)


# ---------------------------------------------------------------- normalise


def test_zscore_leaves_out_zeros_in_the_statistics_only():
    # 2, 4, 6: mean 4, population sd sqrt(8/3); the zero becomes -4 / sd
    sd = np.sqrt(8 / 3)
    found = normalise(np.array([[0, 2], [4, 6]], np.int16), "zscore")
    np.testing.assert_allclose(found, np.array([[-4, -2], [0, 2]]) / sd, rtol=1e-6)
    assert found.dtype == np.float32


def test_percentile_clips_first():
    values = np.arange(1, 1002, dtype=np.float32)  # 0.5 and 99.5 percent of 1..1001 are 6 and 996
    values[-1] = 1e6
    found = normalise(values, "percentile")
    clipped = np.clip(values, 6, 996)
    np.testing.assert_allclose(found, (clipped - clipped.mean()) / clipped.std(), atol=1e-5)


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax"])
@pytest.mark.parametrize("value", [0.0, 7.25, -3e6])
def test_constant_image_becomes_finite(method, value):
    np.testing.assert_array_equal(normalise(np.full((2, 3, 4), value), method), np.zeros((2, 3, 4)))


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax"])
def test_scaling_does_not_depend_on_the_scanner_gain(method):
    array = noise(GRIDS["RAS"])
    np.testing.assert_allclose(normalise(array * 1000, method), normalise(array, method), atol=1e-4)


def test_normalise_never_touches_its_input_and_refuses_unknown_methods():
    array = noise(GRIDS["RAS"])
    before = array.copy()
    for method in ("zscore", "percentile", "minmax", "none"):
        assert not np.shares_memory(normalise(array, method), array)
        np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(normalise(array, "none"), array)
    with pytest.raises(ValueError, match="normalisation 'histogram' is unknown; choose one of zscore, zscore_all,"):
        normalise(array, "histogram")


# ---------------------------------------------------------------- all together


@every_grid
@pytest.mark.parametrize("spacing", [None, (2.5, 1.0, 1.0)])
def test_preprocess_keeps_places_labels_and_ignored_voxels(grid, spacing):
    ids = np.random.default_rng(5).choice(np.array([0, 1, 2, 5, 9], np.uint8), grid.shape)
    image, labels = preprocess(Volume(noise(grid), grid), Volume(ids, grid), spec(spacing=spacing))
    assert image.geometry.orientation == "SPL" and labels.geometry is image.geometry
    assert image.array.shape == (*labels.array.shape, 1)
    assert image.array.dtype == np.float32 and labels.array.dtype == np.int16
    assert set(np.unique(labels.array)) == {IGNORE, 0, 1, 2, 3}
    assert spacing is None or image.spacing == pytest.approx(spacing)
    # naive judge: the id of the nearest voxel of the scan, at every place that is not halfway between two
    index = grid.index(world_of(labels.geometry))
    clear = (np.abs(np.abs(index - np.round(index)) - 0.5) > 1e-4).all(axis=-1)
    nearest = ids[tuple(np.moveaxis(np.round(index).astype(int), -1, 0))]
    expected = np.array([0, 1, 2, -99, -99, 3, -99, -99, -99, IGNORE])[nearest]
    assert clear.any()
    np.testing.assert_array_equal(labels.array[clear], expected[clear])


def test_preprocess_crops_image_and_labels_together():
    grid = GRIDS["LPS"]
    array, ids = np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8)
    array[2:6, 3:8, 1:4], ids[3, 4, 2] = 50, 5
    image, labels = preprocess(Volume(array, grid), Volume(ids, grid), spec(crop_nonzero=True))
    assert image.array.shape == (3, 5, 4, 1)
    place = np.argwhere(labels.array == 3)[0]
    np.testing.assert_allclose(labels.geometry.world(place), grid.world((3, 4, 2)))


def test_preprocess_normalises_each_channel_and_leaves_its_input_alone():
    grid = GRIDS["oblique"]
    array = np.stack([noise(grid, 1), 50 * noise(grid, 2)], axis=-1)
    before = array.copy()
    volume = Volume(array, grid)
    image, labels = preprocess(volume, None, spec(channels=("fat", "water"), normalisation="zscore"))
    assert labels is None
    np.testing.assert_allclose(image.array.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(image.array.std(axis=(0, 1, 2)), 1, atol=1e-4)
    np.testing.assert_array_equal(array, before)


def test_preprocess_of_a_sweep_without_orientation():
    grid = GRIDS["RAS"]
    image, _ = preprocess(Volume(noise(grid), grid), None, spec(orientation=None))
    np.testing.assert_array_equal(image.array[..., 0], noise(grid).transpose(2, 1, 0))


def test_preprocess_refuses_a_grid_that_no_memory_holds():
    grid = Geometry((8, 8, 8), np.diag([1, 1, 1e5, 1]))  # a header that says 100 m for 0.1 mm
    with pytest.raises(DataError, match=r"scan.nii.gz: 8 x 8 x 8 voxels of 1e\+05 x 1 x 1 mm become 800000 x 8 x 8 of"):
        preprocess(Volume(noise(grid), grid, "scan.nii.gz"), None, spec(spacing=(1, 1, 1)))
    thick = Geometry((8, 8, 2), np.diag([0.5, 0.5, 100, 1]))  # 100 times as many slices are allowed
    assert preprocess(Volume(noise(thick), thick), None, spec(spacing=(1, 0.5, 0.5)))[0].array.shape == (200, 8, 8, 1)


def test_preprocess_refuses_other_channels_and_labels_elsewhere():
    grid, other = GRIDS["RAS"], GRIDS["LPS"]
    image = Volume(noise(grid), grid, "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan.nii.gz: 1 channels, 2 \(fat, water\) needed; add or remove files"):
        preprocess(image, None, spec(channels=("fat", "water")))
    with pytest.raises(ValueError, match="are not on the image's grid"):
        preprocess(image, Volume(np.zeros(other.shape, np.uint8), other), spec())


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS"])
def test_the_same_scan_in_three_orientations_gives_the_same_samples(code):
    base = Geometry((9, 11, 7), affine_of(OBLIQUE, (1, 1, 3)))
    image, labels = Volume(noise(base), base), Volume(np.random.default_rng(2).choice([0, 1, 5], base.shape), base)
    settings = spec(spacing=(2, 1.5, 1.5), normalisation="zscore")
    expected = preprocess(image, labels, settings)
    found = preprocess(image.reoriented(code), labels.reoriented(code), settings)
    np.testing.assert_allclose(found[0].array, expected[0].array, atol=1e-5)
    np.testing.assert_array_equal(found[1].array, expected[1].array)
    np.testing.assert_allclose(found[0].geometry.affine, expected[0].geometry.affine, atol=1e-9)
