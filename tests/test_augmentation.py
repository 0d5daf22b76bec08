"""A random sample: image and labels move as one, unknown stays unknown, the seed decides."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from augmentation_samples import (
    ALWAYS,
    KINDS,
    MOVE_ONLY,
    NO_SIDE,
    NOTHING,
    make_sample,
    make_spec,
    variants,
)

from tfmuscle.augmentation import Magnitudes, augment
from tfmuscle.labels import IGNORE, LabelMap


@pytest.mark.parametrize(
    ("kind", "recipe", "dtype"),
    [
        ("slices", ALWAYS, np.int32),
        ("stacks", ALWAYS, np.int16),
        ("sequences", ALWAYS, np.int32),
        ("volumes", ALWAYS, np.int16),
        ("volumes", "light", np.int32),
        ("volumes", "full", np.int32),
    ],
)
def test_shapes_types_and_classes_are_kept(kind, recipe, dtype):
    spec = make_spec(kind, channels=("in", "out"))
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels.astype(dtype), spec, count=4, recipe=recipe):
        assert new_image.shape == spec.input_shape and new_image.dtype == np.float32
        assert new_labels.shape == spec.label_shape and new_labels.dtype == dtype
        assert np.isfinite(new_image).all()
        assert set(np.unique(new_labels)) <= {IGNORE, 0, 1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_none_returns_the_sample_unchanged(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels, spec, count=2, recipe="none"):
        np.testing.assert_array_equal(new_image, image)
        np.testing.assert_array_equal(new_labels, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_amounts_of_zero_change_nothing(kind):
    spec = make_spec(kind, channels=("in", "out"))
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels, spec, count=2, recipe=NOTHING, mirror=False):
        np.testing.assert_allclose(new_image, image, atol=2e-5)  # float32 of the power and back in gamma, twice
        np.testing.assert_array_equal(new_labels, labels)


def test_the_seed_decides_in_a_graph_as_eagerly():
    spec = make_spec("volumes")
    image, labels = make_sample(spec)
    first, again = (variants(image, labels, spec, count=4, recipe=ALWAYS) for _ in range(2))
    for number, (one, two) in enumerate(zip(first, again, strict=True)):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        if number > 1:
            continue
        eager = augment(image, labels, seed=tf.constant([number, 7]), recipe=ALWAYS, spec=spec)
        np.testing.assert_allclose(eager[0], one[0], atol=1e-4)  # other order of float32 operations
        assert (eager[1].numpy() == one[1]).mean() > 0.999  # a voxel at equal distance may round either way
    for number in range(1, 4):
        assert np.abs(first[0][0] - first[number][0]).mean() > 0.1
        assert (first[0][1] != first[number][1]).mean() > 0.1


def test_wrong_arguments_are_refused():
    spec = make_spec("slices")
    image, labels = make_sample(spec)
    with pytest.raises(ValueError, match="recipe is 'strong'; choose one of none, light, full, nnunet, mehrabi"):
        augment(image, labels, seed=[1, 2], recipe="strong", spec=spec)
    with pytest.raises(ValueError, match=r"image have shape \(24, 20\); the spec needs \(24, 20, 1\)"):
        augment(image[..., 0], labels, seed=[1, 2], recipe="light", spec=spec)
    with pytest.raises(ValueError, match=r"labels have shape \(24, 20, 1\); the spec needs \(24, 20\)"):
        augment(image, labels[..., None], seed=[1, 2], recipe="light", spec=spec)


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_labels_move_together(kind):
    spec = make_spec(kind, NO_SIDE)
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 3, [-(-n // 6) for n in spec.label_shape])  # blocks of 6 voxels
    for axis, n in enumerate(spec.label_shape):
        blocks = np.repeat(blocks, 6, axis=axis).take(range(n), axis=axis)
    image = np.repeat(blocks[..., None], spec.depth, -1) if kind == "stacks" else blocks[..., None]
    middle = spec.depth // 2 if kind == "stacks" else 0
    for new_image, new_labels in variants(image.astype(np.float32), blocks, spec, count=12, recipe=MOVE_ONLY):
        known = new_labels != IGNORE
        share = (np.abs(new_image[..., middle] - new_labels) < 0.5)[known].mean()
        # a voxel between unlike blocks is a mean: 2D beside 2 of 6, 3D 3 of 6 voxels may touch another block, and
        # half of those are nearer than 0.5; labels of an unlike place would agree in a third of the voxels
        assert share > 0.8
        assert known.mean() > 0.4
        flat = scipy.ndimage.maximum_filter(new_labels, 3) == scipy.ndimage.minimum_filter(new_labels, 3)
        assert np.abs(new_image[..., middle] - new_labels)[flat & known].max() < 0.5 + 1e-4 or kind == "volumes"


def test_all_slices_of_a_stack_and_of_a_sequence_move_alike():
    plane = np.random.default_rng(0).normal(size=(24, 20, 1)).astype(np.float32)
    for kind, image in (("stacks", np.repeat(plane, 3, -1)), ("sequences", np.repeat(plane[None], 3, 0))):
        spec = make_spec(kind, NO_SIDE)
        slices = -1 if kind == "stacks" else 0
        labels = np.ones(spec.label_shape, np.int32)
        for new_image, new_labels in variants(image, labels, spec, count=4, recipe=MOVE_ONLY):
            assert np.ptp(new_image, axis=slices).max() == 0
            assert kind == "stacks" or np.ptp(new_labels, axis=0).max() == 0


def test_unknown_comes_in_from_outside_and_air_with_it():
    spec = make_spec("volumes", NO_SIDE)
    image = np.full(spec.input_shape, 5.0, np.float32)
    image[8, 12, 10] = -2.0
    smaller = Magnitudes(spatial=1.0, scale=(0.5, 0.50001))
    ((new_image, new_labels),) = variants(
        image, np.ones(spec.label_shape, np.int32), spec, count=1, recipe=smaller, mirror=False
    )
    assert (new_labels[[0, -1]] == IGNORE).all() and (new_image[[0, -1]] == -2.0).all()
    # half the size: 8 of 16, 12 of 24 and 10 of 20 voxels are known
    assert (new_labels == 1).sum() == 8 * 12 * 10
    np.testing.assert_array_equal(new_labels != IGNORE, ndimage_box(spec.label_shape, (8, 12, 10)))


def ndimage_box(shape, size):
    """A centred box of `size` voxels."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice((n - k) // 2, (n + k) // 2) for n, k in zip(shape, size, strict=True))] = True
    return mask


def test_ignore_is_never_averaged_with_labels():
    spec = make_spec("volumes", LabelMap({5: "muscle", 9: "bone"}))
    labels = np.full(spec.label_shape, IGNORE, np.int32)
    labels[:, :, 10:] = 2  # the mean of -1 and 2 would be 0 or 1, neither of which is there
    for _, new_labels in variants(np.zeros(spec.input_shape, np.float32), labels, spec, count=20, recipe=MOVE_ONLY):
        assert set(np.unique(new_labels)) == {IGNORE, 2}


@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_negative_and_large_intensities_survive(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    image = image * 400 - 1000
    for new_image, _ in variants(image, labels, spec, count=6, recipe="full"):
        assert new_image.min() < -1000 and new_image.mean() < -500
