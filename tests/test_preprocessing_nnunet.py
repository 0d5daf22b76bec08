"""nnU-Net's changes of grid, judged by scikit-image on whole arrays, by hand, and by relations."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
from skimage.transform import resize

from tfmuscle.config import DataSpec
from tfmuscle.inference.resampling import labels_on_grid
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing import (
    coarse_axis,
    nnunet_shape,
    normalise,
    preprocess,
    resample_image_nnunet,
    resample_labels_nnunet,
)
from tfmuscle.volume import Geometry, Volume

MAP = LabelMap({1: "femur", 2: "tibia", 5: "hip"}, ignore=9)
TURN = scipy.spatial.transform.Rotation.from_euler("xyz", [11, -17, 23], degrees=True).as_matrix()
CASES = {  # shape, spacing, new spacing, axis that is resampled by itself
    "in one go": ((12, 21, 17), (1.0, 1.0, 1.0), (1.3, 0.8, 1.1), None),
    "coarser without blur": ((12, 21, 17), (1.0, 1.0, 1.0), (1.0, 2.7, 2.7), None),
    "thick slices stay": ((7, 22, 19), (5.0, 0.7, 0.7), (5.0, 1.1, 0.9), 0),
    "thick slices become thin": ((7, 22, 19), (5.0, 0.7, 0.7), (2.0, 1.0, 1.0), 0),
    "thick along the last axis": ((19, 16, 8), (0.7, 0.7, 4.0), (1.0, 0.9, 3.0), 2),
    "thick along the second axis": ((15, 6, 16), (0.5, 4.0, 0.5), (0.9, 2.2, 0.6), 1),
    "slices become thick": ((16, 12, 14), (1.0, 1.0, 1.0), (4.2, 0.9, 0.9), 0),
    "two thick axes": ((20, 9, 8), (0.24, 1.25, 1.25), (0.5, 1.0, 1.0), None),
    "one slice": ((1, 20, 20), (3.0, 1.0, 1.0), (3.0, 0.7, 0.7), 0),
}
every_case = pytest.mark.parametrize(("shape", "old", "new", "axis"), CASES.values(), ids=CASES)


def grids(shape, old, new):
    before = Geometry(shape, np.diag([*old, 1.0]))
    return before, before.resized(nnunet_shape(before, new))


def blobs(shape, ids=(0, 1, 2, 5, 9), seed=0):
    fields = np.random.default_rng(seed).normal(size=(len(ids), *shape))
    return np.array(ids, np.uint8)[scipy.ndimage.gaussian_filter(fields, (0, 1, 1, 1)).argmax(0)]


def by_skimage(array, shape, order, axis):
    """scikit-image on the whole array, or slice by slice and then the nearest slice."""
    if axis is None:
        return resize(array.astype(float), shape, order, mode="edge", anti_aliasing=False)
    slices, plane = np.moveaxis(array, axis, 0).astype(float), [n for a, n in enumerate(shape) if a != axis]
    resized = np.stack([resize(one, plane, order, mode="edge", anti_aliasing=False) for one in slices])
    place = (np.arange(shape[axis]) + 0.5) * len(slices) / shape[axis]  # in which old slice the new centre lies
    return np.moveaxis(resized[np.floor(np.round(place, 6)).astype(int)], 0, axis)


@pytest.mark.parametrize("shape", [(3, 4, 5), (7, 2, 5), (9, 12, 20), (1, 1, 1)])
def test_resized_keeps_the_outer_faces(shape):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([-2.0, 0.9, 3.0])
    affine[:3, 3] = 12, -30, 7
    old = Geometry((6, 8, 5), affine)
    new = old.resized(shape)
    assert new.shape == shape
    for corner in itertools.product((0, 1), repeat=3):
        faces = [np.array(corner) * grid.shape - 0.5 for grid in (old, new)]
        np.testing.assert_allclose(new.world(faces[1]), old.world(faces[0]), atol=1e-9)
    assert new.spacing == pytest.approx([s * n / m for s, n, m in zip(old.spacing, old.shape, shape, strict=True)])
    assert old.resized(old.shape).same_grid(old, tolerance_mm=1e-9)


def test_resized_refuses_no_voxels():
    with pytest.raises(ValueError, match=r"a grid has three positive sizes, not \(3, 0, 2\)"):
        Geometry((2, 2, 2), np.eye(4)).resized((3, 0, 2))


def test_shapes_by_hand():
    grid = Geometry((10, 101, 3), np.diag([5.0, 0.5, 0.4, 1.0]))
    # 10 * 5 / 2 = 25; 101 * 0.5 / 1 = 50.5, whose even neighbour is 50; 3 * 0.4 / 4 = 0.3, at least one voxel
    assert nnunet_shape(grid, (2.0, 1.0, 4.0)) == (25, 50, 1)


@every_case
def test_the_thick_axis_by_hand(shape, old, new, axis):
    assert coarse_axis(old, new) == axis


def test_thick_means_more_than_three_times():
    assert coarse_axis((3.0, 1.0, 1.0), (1.0, 1.0, 1.0)) is None
    assert coarse_axis((3.01, 1.0, 1.0), (1.0, 1.0, 1.0)) == 0
    assert coarse_axis((0.9375, 0.9375, 3.0), (0.9375, 0.9375, 3.0)) == 2
    assert (
        coarse_axis((1.0, 4.0, 4.0 + 1e-6), (9.0, 1.0, 1.0)) is None
    )  # the scan is decided first, and has no one axis


@every_case
def test_images_equal_scikit_image(shape, old, new, axis):
    before, after = grids(shape, old, new)
    array = np.random.default_rng(1).normal(300, 200, (*shape, 2)).astype(np.float32)
    found = resample_image_nnunet(Volume(array, before), after, axis)
    assert found.array.dtype == np.float32 and found.geometry is after
    for channel in range(2):
        expected = by_skimage(array[..., channel], after.shape, 3, axis)
        # both in float64; rounding to float32 and weights below 1e-9 are left, relative to values up to 1000
        np.testing.assert_allclose(found.array[..., channel], expected, rtol=0, atol=1e-4)
    alone = resample_image_nnunet(Volume(array[..., 0], before), after, axis)
    np.testing.assert_array_equal(alone.array, found.array[..., 0])


@every_case
def test_labels_equal_the_largest_of_one_hot_images(shape, old, new, axis):
    before, after = grids(shape, old, new)
    ids = blobs(shape)
    found = resample_labels_nnunet(Volume(ids, before), after, axis).array
    names = np.unique(ids)
    shares = np.stack([by_skimage(ids == name, after.shape, 1, axis) for name in names])
    lead = np.diff(np.sort(shares, axis=0)[-2:], axis=0)[0]
    clear = lead > 1e-9  # elsewhere two labels have equal shares but for rounding
    assert clear.mean() > 0.8 and found.dtype == np.uint8
    np.testing.assert_array_equal(found[clear], names[shares.argmax(0)][clear])
    best = np.take_along_axis(shares, np.searchsorted(names, found)[None], 0)[0]
    np.testing.assert_allclose(best, shares.max(0), atol=1e-9)  # of equal ones, it is one of them


def test_of_two_equal_labels_the_nearest_wins():
    # four voxels become two: the new centres lie midway, at 0.5 and 2.5; "nearest" rounds halves up, to voxels 1 and 3
    ids = np.array([5, 1, 1, 2], np.uint8).reshape(1, 1, 4)
    grid = Geometry((1, 1, 4), np.eye(4))
    assert resample_labels_nnunet(Volume(ids, grid), grid.resized((1, 1, 2)), None).array.ravel().tolist() == [1, 2]
    # 2 x 2 voxels become one: 5 has half of it, though the nearest voxel (1, 1) says 2
    ids = np.array([[5, 5], [1, 2]], np.uint8)[None]
    grid = Geometry((1, 2, 2), np.eye(4))
    assert resample_labels_nnunet(Volume(ids, grid), grid.resized((1, 1, 1)), None).array.ravel().tolist() == [5]


def test_the_same_shape_is_left_alone():
    before = Geometry((10, 12, 8), np.diag([1.0, 1.0, 1.0, 1.0]))
    after = before.resized(nnunet_shape(before, (1.01, 0.99, 1.0)))
    assert after.same_grid(before)
    ids, array = blobs(before.shape), np.ones(before.shape, np.float32)
    assert resample_image_nnunet(Volume(array, before), after, None).array is array
    assert resample_labels_nnunet(Volume(ids, before), after, None).array is ids


def test_memory_is_a_few_slices_for_many_labels():
    before = Geometry((40, 64, 64), np.diag([1.0, 1.0, 1.0, 1.0]))
    ids = blobs(before.shape, ids=range(30))
    after = before.resized((30, 60, 60))
    tracemalloc.start()
    resample_labels_nnunet(Volume(ids, before), after, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    plane = 60 * 60 * 8
    assert peak < 30 * 60 * 60 + 4 * 30 * plane + 1e6  # the result, 30 labels of up to four slices; all: 900 planes


# ---------------------------------------------------------------- the whole pipeline


def spec(**changes):
    settings = {"kind": "volumes", "size": (8, 8), "depth": 8, "normalisation": "zscore_all", "resampling": "nnunet"}
    return DataSpec(MAP, **(settings | changes))


def scan(shape=(14, 20, 18), spacing=(0.8, 1.0, 1.0), seed=3):
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    grid = Geometry(shape, affine)
    return Volume(np.random.default_rng(seed).normal(100, 30, shape), grid), Volume(blobs(shape), grid)


def test_intensities_are_scaled_before_the_grid_changes():
    image, labels = scan()
    found, classes = preprocess(image, labels, spec(spacing=(1.4, 1.3, 1.2)))
    turned = image.reoriented("SPL")
    scaled = turned.with_array(normalise(turned.array, "zscore_all"))
    grid = turned.geometry.resized(nnunet_shape(turned.geometry, (1.4, 1.3, 1.2)))
    np.testing.assert_allclose(found.array[..., 0], resample_image_nnunet(scaled, grid, None).array, atol=1e-5)
    assert found.geometry.same_grid(grid) and classes.geometry.same_grid(grid)
    after = preprocess(image, None, spec(spacing=(1.4, 1.3, 1.2), resampling="linear"))[0]
    assert after.array.std() > 1.1 * found.array.std()  # scaled afterwards, resampled noise would have an sd of 1
    assert set(np.unique(classes.array)) == {IGNORE, 0, 1, 2, 3}


def test_outside_the_body_stays_zero_and_does_not_count():
    array = np.zeros((10, 24, 24), np.float32)
    array[:, 4:20, 4:20] = np.random.default_rng(0).normal(500, 40, (10, 16, 16))
    volume = Volume(array, Geometry(array.shape, np.diag([-1.0, -1.0, 1.0, 1.0])).resized(array.shape))
    found = preprocess(volume, None, spec(spacing=(1.0, 0.7, 1.0), normalisation="zscore_masked", orientation="LPS"))[0]
    # a spline rings about the rim and dies away by 0.27 a voxel: 4 sd * 0.27**3.4 of it are left after 3.4 voxels
    assert np.abs(found.array[:, :2]).max() < 0.05
    assert abs(found.array[:, 9:20, 8:16].mean()) < 0.2


@pytest.mark.parametrize(("kind", "slices"), [("slices", 18), ("stacks", 18), ("volumes", 36)])
def test_slices_keep_their_distance_in_two_dimensions(kind, slices):
    image, labels = scan(spacing=(1.0, 1.0, 3.0))
    depth = {"slices": 1, "stacks": 3, "volumes": 8}[kind]
    found, _ = preprocess(image, labels, spec(kind=kind, depth=depth, spacing=(1.5, 2.0, 2.0)))
    assert found.array.shape == (slices, 10, 7, 1)
    assert found.spacing == pytest.approx((3.0 * 18 / slices, 2.0, 2.0))


@pytest.mark.parametrize("settings", [{"spacing": (2.0, 1.3, 0.7)}, {"spacing": (1.0, 0.6, 1.9)}], ids=str)
@pytest.mark.parametrize("thick", [1.0, 5.0])
def test_labels_come_back_on_the_grid_of_the_scan(settings, thick):
    image, _ = scan(spacing=(0.8, 1.0, thick))
    shape = image.geometry.shape
    distance = np.linalg.norm((np.indices(shape).T - np.array(shape) / 2) / np.array(shape), axis=-1).T
    for ids, least in ((np.where(distance < 0.35, 2, 0), 0.9), (np.full(shape, 5), 1.0)):
        labels = Volume(ids.astype(np.uint8), image.geometry)
        _, classes = preprocess(image, labels, spec(**settings))
        probabilities = np.eye(MAP.num_classes, dtype=np.float32)[classes.array]
        back = labels_on_grid([(0, probabilities)], classes.geometry, image.geometry, MAP)
        assert back.shape == shape
        both, either = np.logical_and(back > 0, ids > 0).sum(), (back > 0).sum() + (ids > 0).sum()
        assert 2 * both / either >= least and set(np.unique(back)) <= set(np.unique(ids))
