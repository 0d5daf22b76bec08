"""Changing intensities, and outlines of structures."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from augmentation_samples import (
    make_spec,
    single,
    variants,
)

from tfmuscle import augmentation
from tfmuscle.augmentation import FULL, LIGHT, Magnitudes
from tfmuscle.labels import IGNORE


def test_blur_agrees_with_scipy_and_keeps_a_constant():
    image = np.random.default_rng(0).normal(size=(20, 22, 24, 2)).astype(np.float32)
    blurred = single(augmentation.gaussian_blur, image, sigma=0.9, axes=(0, 1, 2))
    expected = scipy.ndimage.gaussian_filter(image, (0.9, 0.9, 0.9, 0), truncate=6)
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=1e-5)
    constant = np.full((5, 4, 1), -3.0, np.float32)
    np.testing.assert_allclose(single(augmentation.gaussian_blur, constant, sigma=1.0, axes=(0, 1)), -3.0, atol=1e-5)


def test_noise_has_the_asked_deviation():
    image = np.full((40, 50, 20, 1), 7.0, np.float32)
    noise = single(augmentation.add_noise, image, seed=tf.constant([3, 4]), sd=0.5) - image
    # 40,000 draws: the mean is known to 0.5 / 200 = 0.0025, the deviation to 0.5 / sqrt(80000) = 0.0018
    assert abs(noise.mean()) < 0.0125 and abs(noise.std() - 0.5) < 0.009


def test_brightness_and_contrast_by_hand():
    image = np.array([-2.0, 0.0, 1.0, 5.0], np.float32)[:, None]  # mean 1
    assert single(augmentation.adjust_brightness, image, factor=1.5)[:, 0].tolist() == [-3.0, 0.0, 1.5, 7.5]
    assert single(augmentation.adjust_contrast, image, factor=0.5)[:, 0].tolist() == [-0.5, 0.5, 1.0, 3.0]
    # 2x: -5, -1, 1, 9, kept within -2..5
    assert single(augmentation.adjust_contrast, image, factor=2.0)[:, 0].tolist() == [-2.0, -1.0, 1.0, 5.0]


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_mean_deviation_and_order(invert):
    image = np.random.default_rng(0).normal(-3, 2, (30, 30, 2)).astype(np.float32)
    new = single(augmentation.adjust_gamma, image, gamma=1.5, invert=invert)
    np.testing.assert_allclose(new.mean((0, 1)), image.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(new.std((0, 1)), image.std((0, 1)), rtol=1e-4)
    order = np.argsort(image[..., 0].ravel())
    assert (np.diff(new[..., 0].ravel()[order]) >= -1e-5).all()
    skewed = ((new - new.mean()) ** 3).mean() - ((image - image.mean()) ** 3).mean()
    assert skewed < 0 if invert else skewed > 0  # above 1 stretches the bright end, on the negative the dark end


def test_gamma_by_hand_and_of_a_constant():
    image = np.array([0.0, 1.0, 2.0], np.float32)[:, None]
    new = single(augmentation.adjust_gamma, image, gamma=2.0)[:, 0]
    # (0, 1/4, 1): mean 5/12, variance 13/72; times sqrt((2/3) / (13/72)) = 1.9215, around 1
    np.testing.assert_allclose(new, 1 + (np.array([0, 0.25, 1]) - 5 / 12) * np.sqrt(48 / 13), atol=1e-5)
    constant = np.full((4, 4, 1), -2.5, np.float32)
    np.testing.assert_array_equal(single(augmentation.adjust_gamma, constant, gamma=1.4), constant)


def test_low_resolution_by_hand():
    image = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], np.float32)[:, None]
    # zoom 1/3: two coarse voxels at fine 1 and 4; fine centres lie at (i + 0.5) / 3 - 0.5 = -.33, 0, .33, .67, 1, 1.33
    new = single(augmentation.simulate_low_resolution, image, zoom=1 / 3, axes=(0,))[:, 0]
    np.testing.assert_allclose(new, [1, 1, 2, 3, 4, 4], atol=1e-5)
    np.testing.assert_array_equal(single(augmentation.simulate_low_resolution, image, zoom=1.0, axes=(0,)), image)
    one = single(augmentation.simulate_low_resolution, image, zoom=0.01, axes=(0,))
    assert (one == 3.0).all()  # at least one voxel is left


def test_dilation_and_erosion_by_hand():
    labels = np.array([
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 2, 0],
        [0, 1, 1, 1, 2, IGNORE],
        [0, 1, 1, 1, 2, 2],
        [0, 0, 0, 0, IGNORE, 0],
    ])  # fmt: skip
    dilated = np.array([
        [0, 1, 1, 1, 2, 0],
        [1, 1, 1, 1, 2, 2],
        [1, 1, 1, 1, 2, IGNORE],
        [1, 1, 1, 1, 2, 2],
        [0, 1, 1, 1, IGNORE, 2],
    ])  # fmt: skip
    eroded = np.array([
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 2, IGNORE],
        [0, 0, 0, 0, 2, 0],
        [0, 0, 0, 0, IGNORE, 0],
    ])  # fmt: skip
    change = augmentation.dilate_or_erode_labels
    np.testing.assert_array_equal(single(change, labels, dilate=True), dilated)
    np.testing.assert_array_equal(single(change, labels, dilate=False), eroded)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("dilate", [True, False])
def test_masks_change_at_borders_only_and_agree_with_scipy(dilate, radius):
    mask = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 40)), 4) > 0.02
    labels = mask.astype(np.int32)
    labels[:, 30:] = IGNORE
    new = single(augmentation.dilate_or_erode_labels, labels, dilate=dilate, radius=radius)
    np.testing.assert_array_equal(new == IGNORE, labels == IGNORE)
    known = mask[:, :30]
    if dilate:
        expected = scipy.ndimage.binary_dilation(known, iterations=radius)
    else:
        expected = scipy.ndimage.binary_erosion(known, iterations=radius, border_value=1)
    np.testing.assert_array_equal(new[:, :30] == 1, expected)
    assert (new != labels).any()


def test_both_strengths_leave_outlines_alone():
    assert LIGHT.morphology == FULL.morphology == 0
    spec = make_spec("volumes")
    labels = np.zeros(spec.label_shape, np.int32)
    labels[4:12, 6:18, 5:15] = 3
    thicker = Magnitudes(morphology=1.0)
    image = np.zeros(spec.input_shape, np.float32)
    counts = {int((new == 3).sum()) for _, new in variants(image, labels, spec, count=12, recipe=thicker, mirror=False)}
    # 8 slices of 12 x 10 = 120 pixels; dilated by one pixel in-plane 120 + 2 · 22, eroded 10 x 8
    assert counts == {8 * 164, 8 * 80}
