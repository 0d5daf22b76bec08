"""Scaling of intensities, resizing of slices and priors: by hand, by closed forms and by relations."""

import numpy as np
import pytest

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.inference.resampling import labels_on_grid
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing import body_mask, normalise, preprocess
from tfmuscle.volume import Geometry, Volume

MAP = LabelMap({1: "tibia", 2: "femur", 3: "fibula"}, ignore=9)
LPS = np.diag([-0.9375, -0.9375, 3.0, 1.0])
GAIN = {"statistics": ((40.0, 10.0, -20.0, 80.0),)}


def spec(**changes):
    return DataSpec(MAP, **({"kind": "slices", "size": (16, 16), "normalisation": "none"} | changes))


def prepared(array, **changes):
    return preprocess(Volume(array, Geometry(array.shape[:3], LPS), "scan.nii.gz"), None, spec(**changes))[0]


# ---------------------------------------------------------------- intensities


def test_zscore_all_counts_zeros_too():
    # 0, 2, 4, 6: mean 3, population sd sqrt(5)
    found = normalise(np.array([[0, 2], [4, 6]], np.int16), "zscore_all")
    np.testing.assert_allclose(found, np.array([[-3, -1], [1, 3]]) / np.sqrt(5), rtol=1e-6)
    assert found.dtype == np.float32


def test_zscore_masked_counts_holes_and_leaves_zero_outside():
    # a 3 x 3 x 3 body of 9s with a hole of 0 in its middle: mean 26 * 9 / 27, sd = 9 * sqrt(26 / 27 / 27)
    array = np.zeros((5, 5, 5), np.int16)
    array[1:4, 1:4, 1:4] = 9
    array[2, 2, 2] = 0
    found = normalise(array, "zscore_masked")
    mean, sd = 9 * 26 / 27, 9 * np.sqrt(26) / 27
    assert found[2, 2, 2] == pytest.approx(-mean / sd, rel=1e-5)
    assert found[1, 1, 1] == pytest.approx((9 - mean) / sd, rel=1e-4)
    outside = np.ones(array.shape, bool)
    outside[1:4, 1:4, 1:4] = False
    assert (found[outside] == 0).all()


def test_a_hole_is_closed_by_any_channel():
    array = np.zeros((5, 5, 5, 2), np.float32)
    array[1:4, 1:4, 1:4, 0] = 1
    array[2, 2, 1:4, 0] = 0  # a tunnel to the outside in channel 0 ...
    assert body_mask(array).sum() == 24
    array[2, 2, 3, 1] = -5  # ... closed on one side only, so that it is still open
    assert body_mask(array).sum() == 25
    array[2, 2, 1, 1] = -5
    assert body_mask(array).sum() == 27


def test_the_mask_is_shared_by_the_channels_of_a_scan():
    rng = np.random.default_rng(0)
    array = np.zeros((6, 12, 12, 2), np.float32)
    array[:, 2:10, 2:10] = rng.normal([300, 50], [20, 5], (6, 8, 8, 2))
    array[:, 4:8, 4:8, 1] = 0  # an empty stripe of channel 1 belongs to the body, for channel 0 has something there
    found = prepared(array, normalisation="zscore_masked", channels=("water", "fat")).array
    inside = found != 0
    assert inside[..., 0].sum() == inside[..., 1].sum() == 6 * 8 * 8
    for channel in range(2):
        values = found[..., channel][inside[..., channel]]
        assert abs(values.mean()) < 1e-5 and values.std() == pytest.approx(1, abs=1e-5)


def test_ct_clips_and_uses_the_statistics_of_the_dataset():
    array = np.array([-1000.0, -20, 40, 80, 3000]).reshape(5, 1, 1)
    found = prepared(array, normalisation="ct", **GAIN).array
    assert sorted(found.ravel().tolist()) == [-6, -6, 0, 4, 4]
    two = DataSpec(
        MAP, channels=("a", "b"), size=(4, 4), normalisation="ct", statistics=((0, 1, -5, 5), (10, 2, 0, 20))
    )
    grid = Geometry((1, 1, 1), LPS)
    image, _ = preprocess(Volume(np.array([3.0, 30.0]).reshape(1, 1, 1, 2), grid), None, two)
    assert image.array.ravel().tolist() == [3, 5]
    with pytest.raises(ValueError, match="normalisation 'ct' has no statistics; give mean, sd, lower and upper limit"):
        normalise(array, "ct")


def test_div255_is_for_bytes():
    found = prepared(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1), normalisation="div255").array
    np.testing.assert_allclose(sorted(found.ravel().tolist()), [0, 0.2, 1], rtol=1e-6)
    for value, words in ((256, "from 0 to 256"), (-1, "from -1 to 0")):
        with pytest.raises(DataError, match=f"scan.nii.gz: intensities {words}; div255 is for 0 to 255, choose minmax"):
            prepared(np.array([0, value]).reshape(2, 1, 1), normalisation="div255")


@pytest.mark.parametrize("method", ["zscore_all", "zscore_masked"])
@pytest.mark.parametrize("value", [0.0, 7.25])
def test_constant_images_become_zero(method, value):
    np.testing.assert_array_equal(normalise(np.full((2, 3, 4), value), method), np.zeros((2, 3, 4)))


# ---------------------------------------------------------------- slices of one size


def test_resize_halves_a_slice_and_doubles_its_spacing():
    rng = np.random.default_rng(1)
    blocks = rng.choice([0, 1, 2, 3, 9], (256, 256, 2)).astype(np.uint8)
    ids = np.kron(blocks, np.ones((2, 2, 1), np.uint8))  # every structure is made of 2 x 2 blocks
    grid = Geometry(ids.shape, LPS)
    image, labels = preprocess(
        Volume(rng.normal(size=ids.shape), grid), Volume(ids, grid), spec(size=(256, 256), resize=True)
    )
    assert image.array.shape == (2, 256, 256, 1) and labels.geometry is image.geometry
    assert image.spacing == pytest.approx((3.0, 1.875, 1.875))
    assert set(np.unique(labels.array)) == {IGNORE, 0, 1, 2, 3}
    for number in (1, 2, 3):  # exact block subsampling: a quarter of the voxels, each four times as large
        before = (ids == number).sum() * grid.voxel_volume_ml
        after = (labels.array == number).sum() * image.geometry.voxel_volume_ml
        assert after == pytest.approx(before, rel=1e-9)
    back = labels_on_grid([(0, np.eye(4, dtype=np.float32)[labels.array.clip(0)])], labels.geometry, grid, MAP)
    assert back.shape == ids.shape and (back == ids)[ids != 9].mean() > 0.6  # noise of 2 x 2 blocks, interpolated


@pytest.mark.parametrize("resampling", ["linear", "nnunet"])
@pytest.mark.parametrize("spacing", [None, (1.5, 9.0, 9.0)])
def test_resize_makes_every_slice_the_same_size(resampling, spacing):
    array = np.random.default_rng(2).normal(size=(40, 33, 6))
    image = prepared(array, size=(20, 30), resize=True, resampling=resampling, spacing=spacing)
    slices = 6 if spacing is None else 12  # 6 x 3 mm; in-plane the spacing is that of the size
    assert image.array.shape == (slices, 20, 30, 1)
    assert image.spacing == pytest.approx((18 / slices, 33 * 0.9375 / 20, 40 * 0.9375 / 30))


def test_resize_blurs_before_it_becomes_coarser():
    stripes = np.zeros((64, 64, 1))
    stripes[::2] = 1.0  # two voxels to one at factor 4: exactly half of each new voxel
    found = prepared(stripes, size=(16, 16), resize=True).array
    assert found[:, :, 2:-2].std() < 0.01 and found.mean() == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------- labels of an earlier network


def scan_and_prior():
    rng = np.random.default_rng(3)
    array = np.zeros((18, 16, 10), np.float32)
    array[2:17, 3:15] = rng.normal(300, 30, (15, 12, 10))
    grid = Geometry(array.shape, LPS)
    ids = rng.choice([0, 1, 2, 3], array.shape).astype(np.uint8)
    return Volume(array, grid, "scan.nii.gz"), Volume(ids, grid, "prior.nii.gz")


@pytest.mark.parametrize("resampling", ["linear", "nnunet"])
@pytest.mark.parametrize("spacing", [None, (4.0, 1.3, 1.1)])
def test_a_prior_goes_the_way_of_labels_and_becomes_channels(resampling, spacing):
    image, ids = scan_and_prior()
    settings = {"spacing": spacing, "crop_nonzero": True, "normalisation": "zscore"}
    both, _ = preprocess(image, None, spec(prior=True, resampling=resampling, **settings), ids)
    plain, _ = preprocess(image, None, spec(resampling=resampling, **settings))
    assert both.array.shape == (*plain.array.shape[:3], 4) and both.array.dtype == np.float32
    np.testing.assert_array_equal(both.array[..., :1], plain.array)  # scaled as without
    index = np.round(ids.geometry.index(both.geometry.world(np.moveaxis(np.indices(plain.array.shape[:3]), 0, -1))), 6)
    nearest = ids.array[tuple(np.moveaxis(np.floor(index + 0.5).astype(int), -1, 0))]
    clear = (np.abs(np.abs(index - np.round(index)) - 0.5) > 1e-4).all(axis=-1)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(both.array[..., number][clear], (nearest == number)[clear])


def test_a_prior_that_found_nothing_is_zero():
    image, ids = scan_and_prior()
    found, _ = preprocess(image, None, spec(prior=True), ids.with_array(np.zeros_like(ids.array)))
    assert not found.array[..., 1:].any() and found.array[..., 0].any()


def test_a_prior_is_there_when_it_is_needed_and_only_then():
    image, ids = scan_and_prior()
    with pytest.raises(DataError, match="scan.nii.gz: the labels of an earlier network are needed as further channels"):
        preprocess(image, None, spec(prior=True))
    with pytest.raises(ValueError, match="a prior is given, which the spec does not ask for"):
        preprocess(image, None, spec(), ids)
    elsewhere = Volume(ids.array[:-1], Geometry((17, 16, 10), LPS))
    with pytest.raises(ValueError, match="prior of shape .* are not on the image's grid"):
        preprocess(image, None, spec(prior=True), elsewhere)
