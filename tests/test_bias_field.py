"""N4: judged by a field that is known, because the test multiplied it in."""

import numpy as np
import pytest

from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import correct_bias_field, preprocess
from tfmuscle.preprocessing.bias_field import bias_field
from tfmuscle.volume import Geometry, Volume


def smooth_field(shape):
    """A field that differs by a factor of about four over the view, mean 1."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    field = np.exp(0.35 * x - 0.25 * y**2 + 0.3 * z + 0.2 * x * z)
    return (field / field.mean()).astype(np.float32)


def limb(shape=(96, 64, 40), spacing=(2.0, 2.0, 5.0)):
    """Muscle (1) around bone (2) inside fat (3), noise of 2 %: (image, tissue)."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.hypot(x, y)
    tissue = np.select([radius < 0.2, radius < 0.65, radius < 0.85], [2, 1, 3])
    signal = np.choose(tissue, [2.0, 120.0, 300.0, 350.0])
    image = signal * np.random.default_rng(0).normal(1, 0.02, shape)
    return Volume(image.astype(np.float32), Geometry(shape, np.diag([*spacing, 1.0]))), tissue


def variation(array, tissue):
    """Coefficient of variation within each tissue."""
    return np.array([array[tissue == key].std() / array[tissue == key].mean() for key in (1, 2, 3)])


@pytest.mark.parametrize(
    ("shape", "spacing"), [((96, 64, 40), (2.0, 2.0, 5.0)), ((120, 120, 16), (2.0, 2.0, 24.0))], ids=["limb", "thick"]
)
def test_variation_within_tissue_falls_by_half(shape, spacing):
    clean, tissue = limb(shape, spacing)
    seen = clean.with_array(clean.array * smooth_field(shape))
    corrected = correct_bias_field(seen)
    before, after = variation(seen.array, tissue), variation(corrected.array, tissue)
    assert (after <= 0.5 * before).all(), f"{before} -> {after}"
    assert corrected.array.dtype == np.float32 and corrected.geometry.same_grid(seen.geometry)


def test_the_field_is_found_at_full_resolution():
    clean, tissue = limb()
    known = smooth_field(clean.array.shape)
    found = bias_field(clean.with_array(clean.array * known)).array
    ratio = np.log(found / known)[tissue > 0]
    assert ratio.std() < 0.1  # of a field whose logarithm has an sd of 0.3
    steps = np.abs(np.diff(np.log(found), axis=0))[10:-10, 30:34]
    assert (steps > 0).mean() > 0.99  # a coarse field blown up would have steps of 0


def test_channels_have_fields_of_their_own():
    clean, tissue = limb((48, 40, 24))
    seen = clean.with_array(clean.array * smooth_field(clean.array.shape))
    both = correct_bias_field(clean.with_array(np.stack([seen.array, clean.array], axis=-1)))
    for channel, alone in enumerate((seen, clean)):
        np.testing.assert_array_equal(both.array[..., channel], correct_bias_field(alone).array)  # the same bits twice
    assert variation(both.array[..., 1], tissue).max() < 0.06  # N4 finds a field of some percent where there is none


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 3, 3), (40, 30, 1), (1, 40, 30), (40, 30, 2), (5, 4, 7)], ids=str)
def test_tiny_volumes_are_not_blown_up(shape):
    array = np.random.default_rng(1).uniform(50, 150, shape).astype(np.float32)
    field = bias_field(Volume(array, Geometry(shape, np.diag([1.0, 1.0, 24.0, 1.0])))).array
    assert field.shape == shape and 0.4 < field.min() <= field.max() < 2.5
    if min(shape) == max(shape):  # 27 voxels hold no field of 64 control points
        np.testing.assert_array_equal(field, 1)


def test_far_from_the_body_the_field_stays_in_its_range():
    """An uncut spline falls to 0.82 of the least field in the body, in this empty margin."""
    clean, tissue = limb((48, 40, 24))
    seen, margin = clean.array * smooth_field(clean.array.shape), ((40, 120), (40, 120), (0, 60))
    array, body = (np.pad(one, margin) for one in (np.where(tissue > 0, seen, 0), tissue > 0))
    field = bias_field(Volume(array.astype(np.float32), Geometry(array.shape, np.diag([2.0, 2.0, 5.0, 1.0])))).array
    assert field[body].min() * 0.98 <= field.min() and field.max() <= field[body].max() * 1.02


@pytest.mark.parametrize("value", [0, 7, -1000])
def test_constant_images_stay(value):
    volume = Volume(np.full((12, 12, 12), value, np.int16), Geometry((12, 12, 12), np.eye(4)))
    np.testing.assert_array_equal(correct_bias_field(volume).array, volume.array)


def test_preprocessing_corrects_when_the_spec_says_so():
    clean, tissue = limb((48, 40, 24))
    seen = clean.with_array(clean.array * smooth_field(clean.array.shape))
    spec = {"label_map": LabelMap({1: "muscle"}), "orientation": "RAS", "normalisation": "none"}
    plain, _ = preprocess(seen, None, DataSpec(**spec))
    even, _ = preprocess(seen, None, DataSpec(**spec, bias_field=True))
    np.testing.assert_array_equal(plain.array[..., 0], seen.array)
    np.testing.assert_array_equal(even.array[..., 0], correct_bias_field(seen).array)
