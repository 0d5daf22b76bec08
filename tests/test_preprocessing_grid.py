"""Slice-by-slice resampling judged by SciPy's general functions, one voxel at a time by hand, and by relations."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage

from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE, LabelMap, distinct
from tfmuscle.preprocessing import ANTIALIAS_FACTOR, crop_to_nonzero, normalise, preprocess, resample_image
from tfmuscle.preprocessing.grid import resample_labels
from tfmuscle.volume import Geometry, Volume

SHAPE = (14, 23, 19)
SCALES = {  # new voxel in old voxels along each axis; negative runs the other way, above 1.5 blurs
    "finer": (0.7, 0.6, 0.9),
    "coarser": (1.4, 1.3, 1.5),
    "along the limb only": (0.8, 1.0, 1.0),
    "in-plane only": (1.0, 1.25, 1.25),
    "blurred along the limb": (3.0, 1.0, 1.0),
    "blurred in-plane": (1.0, 2.2, 3.7),
    "blurred everywhere": (2.5, 4.0, 1.6),
    "blur wider than the scan": (9.0, 23.0, 1.0),
    "reversed": (-0.8, 1.2, -2.0),
}


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(300, 200, shape)


def scaled_grid(scales, *, margin=2):
    """A grid over that of `SHAPE` and unit spacing, reaching `margin` voxels beyond it on every side."""
    affine = np.diag([*map(float, scales), 1.0])
    shape = [int((size + 2 * margin) / abs(scale)) for size, scale in zip(SHAPE, scales, strict=True)]
    affine[:3, 3] = [-margin + 0.31 if scale > 0 else size + margin for size, scale in zip(SHAPE, scales, strict=True)]
    return Geometry(tuple(max(size, 1) for size in shape), affine)


def resampled_by_scipy(array, grid):
    array = array.astype(np.float64)
    for axis, scale in enumerate(np.abs(np.diag(grid.affine)[:3])):
        if scale > ANTIALIAS_FACTOR:
            array = scipy.ndimage.gaussian_filter1d(array, (scale - 1) / 2, axis, mode="nearest")
    return scipy.ndimage.affine_transform(
        array, grid.affine[:3, :3], grid.affine[:3, 3], grid.shape, order=1, mode="nearest"
    )


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_image_equals_scipy(scales, kind):
    array, grid = noise(SHAPE).astype(kind), scaled_grid(scales)
    found = resample_image(Volume(array, Geometry(SHAPE, np.eye(4))), grid).array
    assert found.dtype == np.float32
    # both compute in float64; what is left is rounding to float32, 6e-8 of the largest value
    np.testing.assert_allclose(found, resampled_by_scipy(array, grid), rtol=0, atol=1e-6 * np.ptp(array))


@pytest.mark.parametrize("layout", list(itertools.permutations(range(3))), ids=str)
def test_memory_layout_and_channels_do_not_matter(layout):
    array = np.stack([noise(SHAPE, 1), noise(SHAPE, 2)], axis=-1).astype(np.float32)
    grid = scaled_grid((0.8, 2.2, 1.25))
    stored = np.ascontiguousarray(array.transpose(*layout, 3)).transpose(*np.argsort(layout), 3)
    found = resample_image(Volume(stored, Geometry(SHAPE, np.eye(4))), grid).array
    for channel in range(2):
        expected = resampled_by_scipy(array[..., channel], grid)
        np.testing.assert_allclose(found[..., channel], expected, rtol=0, atol=1e-6 * np.ptp(array))


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_a_constant_stays_exactly_constant(scales):
    # else z-scores of an empty channel would be rounding errors blown up to one
    array = np.full(SHAPE, 1234.567, np.float32)
    found = resample_image(Volume(array, Geometry(SHAPE, np.eye(4))), scaled_grid(scales)).array
    assert (found == array[0, 0, 0]).all()


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_labels_equal_a_loop_over_voxels(scales):
    ids = np.random.default_rng(3).integers(0, 200, SHAPE).astype(np.uint8)
    grid = scaled_grid(scales)
    found = resample_labels(Volume(ids, Geometry(SHAPE, np.eye(4))), grid).array
    for index in np.ndindex(*grid.shape):
        place = np.floor(np.round(grid.world(index), 6) + 0.5).astype(int)
        inside = all(0 <= p < n for p, n in zip(place, SHAPE, strict=True))
        assert found[index] == (ids[tuple(place)] if inside else 0)


def test_labels_of_a_grid_beside_the_scan_are_background():
    affine = np.eye(4)
    affine[:3, 3] = (0, 100, 0)
    found = resample_labels(Volume(np.ones(SHAPE, np.uint8), Geometry(SHAPE, np.eye(4))), Geometry(SHAPE, affine))
    assert not found.array.any()


@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=str)
def test_crop_finds_the_same_box_as_argwhere(channels):
    array = np.zeros((*SHAPE, *channels), np.float32)
    places = np.random.default_rng(0).integers((3, 5, 2), (9, 20, 11), (6, 3))
    for number, place in enumerate(places):
        array[(*place, *(number % count for count in channels))] = -1.0
    cropped, _ = crop_to_nonzero(Volume(array, Geometry(SHAPE, np.eye(4))))
    assert cropped.geometry.shape == tuple(np.ptp(places, axis=0) + 1)
    np.testing.assert_array_equal(cropped.geometry.world((0, 0, 0)), places.min(axis=0))


def test_memory_is_the_new_grid_and_a_few_slices():
    array = np.zeros((40, 128, 128), np.float32)
    volume = Volume(array, Geometry(array.shape, np.eye(4)))
    grid = volume.geometry.resampled((2.5, 0.9, 1.1))  # blurred along the limb: a dozen slices are needed at once
    tracemalloc.start()
    found = resample_image(volume, grid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    slice_bytes = 8 * 142 * 128
    assert found.array.nbytes < peak < found.array.nbytes + 25 * slice_bytes


# ---------------------------------------------------------------- in place, and never the caller's array


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax", "none"])
def test_normalise_in_place_equals_a_new_array(method):
    array = noise(SHAPE).astype(np.float32)
    array[2:5] = 0
    channels = np.stack([array, noise(SHAPE, 1).astype(np.float32)], axis=-1)
    expected = normalise(array, method)
    assert normalise(channels[..., 0], method, out=channels[..., 0]).base is channels
    np.testing.assert_array_equal(channels[..., 0], expected)
    np.testing.assert_array_equal(channels[..., 1], noise(SHAPE, 1).astype(np.float32))


@pytest.mark.parametrize("spacing", [None, (1, 1, 1), (1.3, 1, 1)])
@pytest.mark.parametrize("channels", [(), (1,), (2,)], ids=str)
@pytest.mark.parametrize("crop", [False, True])
def test_preprocess_leaves_the_callers_image_untouched(spacing, channels, crop):
    array = noise((*SHAPE, *channels)).astype(np.float32)
    array[:2] = 0
    before = array.copy()
    names = tuple("ab"[: channels[0] if channels else 1])
    spec = DataSpec(LabelMap({1: "femur"}), channels=names, spacing=spacing, crop_nonzero=crop, orientation="RAS")
    image, _ = preprocess(Volume(array, Geometry(SHAPE, np.eye(4))), None, spec)
    np.testing.assert_array_equal(array, before)
    assert not np.shares_memory(image.array, array)


# ---------------------------------------------------------------- ids to classes


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int64, np.float32])
def test_ids_of_every_type_become_the_same_classes(kind):
    label_map = LabelMap({1: "femur", 5: "hip", 120: "tibia"}, ignore=250)
    ids = np.random.default_rng(0).choice([0, 1, 5, 120, 250], SHAPE).astype(kind)
    grid = Geometry(SHAPE, np.eye(4))
    _, labels = preprocess(Volume(noise(SHAPE), grid), Volume(ids, grid), DataSpec(label_map, orientation="RAS"))
    classes = {0: 0, 1: 1, 5: 2, 120: 3, 250: IGNORE}
    expected = np.array([classes[int(key)] for key in ids.ravel()]).reshape(SHAPE)
    assert labels.array.dtype == np.int16
    np.testing.assert_array_equal(labels.array, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_an_id_without_a_name_is_refused(kind):
    ids = np.ones(SHAPE, kind)
    ids[3, 4, 5] = 7
    grid = Geometry(SHAPE, np.eye(4))
    spec = DataSpec(LabelMap({1: "femur", 300: "beyond uint8"}), orientation="RAS")
    with pytest.raises(
        ValueError, match=r"label ids \[7\] are not in the label map \[0, 1, 300\]; name them or remove"
    ):
        preprocess(Volume(noise(SHAPE), grid), Volume(ids, grid), spec)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 7, 200], np.uint8),
        np.array([3, 65535], np.uint16),
        np.array([-2, 0, 9], np.int16),
        np.array([0, 9], np.int32),
        np.array([0, 2**40], np.uint64),
        np.array([0.0, 1.5, 3.0]),
    ],
    ids=lambda values: str(values.dtype),
)
def test_distinct_equals_numpy_unique(values, order):
    labels = np.asarray(np.random.default_rng(0).choice(values, SHAPE), order=order)
    np.testing.assert_array_equal(distinct(labels), np.unique(labels))
    assert distinct(labels).dtype == values.dtype
