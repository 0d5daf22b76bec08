"""Mirrors: left stays left."""

import dataclasses

import numpy as np
import pytest
from augmentation_samples import (
    ALWAYS,
    BOTH,
    KINDS,
    MOVE_ONLY,
    NO_SIDE,
    ONE_SIDE,
    make_sample,
    make_spec,
    single,
    variants,
)

from tfmuscle import augmentation
from tfmuscle.augmentation import Magnitudes
from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE


def side_slices(spec, n):
    """(left, right) halves of the left/right axis, as index ranges; the letter is the side the index grows to."""
    letter = next(letter for letter in spec.orientation if letter in "LR")
    low, high = range(0, n // 2), range(n - n // 2, n)
    return (high, low) if letter == "L" else (low, high)


def two_femurs(spec):
    """A block well inside either half, in the middle of the other axes, brighter on the left."""
    axis = next(axis for axis, letter in enumerate(spec.orientation) if letter in "LR")
    n = spec.window[axis]
    labels = np.zeros(spec.window, np.int32)
    for label, half in zip((1, 2), side_slices(spec, n), strict=True):
        offset = [int(round(m * 7 / 16)) for m in spec.window]
        box = [slice(o, m - o) for o, m in zip(offset, spec.window, strict=True)]
        box[axis] = slice(half.start + n // 8, half.stop - n // 8)
        labels[tuple(box)] = label
    return labels, axis


@pytest.mark.parametrize(
    ("orientation", "recipe"),
    [("SPL", "light"), ("IAR", "full"), ("SPR", ALWAYS)]
    + [(orientation, MOVE_ONLY) for orientation in ("SPL", "IAR", "SPR", "SLP", "IRA", "LPS", "RAI")],
)
def test_left_never_becomes_right_in_a_volume(orientation, recipe):
    spec = DataSpec(BOTH, kind="volumes", size=(24, 24), depth=24, orientation=orientation)
    labels, axis = two_femurs(spec)
    left, right = side_slices(spec, 24)
    image = (labels == 1).astype(np.float32)[..., None]
    for _, new_labels in variants(image, labels, spec, count=40, recipe=recipe):
        assert set(np.where(new_labels == 1)[axis]) <= set(left) and (new_labels == 1).any()
        assert set(np.where(new_labels == 2)[axis]) <= set(right) and (new_labels == 2).any()


@pytest.mark.parametrize("kind", ["slices", "stacks", "volumes"])
def test_a_prior_moves_with_the_labels_and_changes_sides_with_them(kind):
    """The prior says what the labels say; so it must after any transform, but at borders, where it is interpolated."""
    changes = {"size": (24, 24)} | ({"depth": 24} if kind == "volumes" else {})
    spec = make_spec(kind, prior=True, **changes)
    labels, _ = two_femurs(make_spec("volumes", size=(24, 24), depth=24))
    labels = labels if kind == "volumes" else labels[12]
    planes = [labels == 1, labels == 2, labels == 3]
    voxels = np.stack([np.zeros(labels.shape), *planes], axis=-1).astype(np.float32)
    image = np.concatenate([voxels] * (spec.depth if kind == "stacks" else 1), axis=-1)
    mirrored = 0
    everything_but_outlines = dataclasses.replace(ALWAYS, morphology=0.0)
    for new_image, new_labels in variants(image, labels, spec, count=12, recipe=everything_but_outlines):
        last = new_image[..., -3:]
        assert set(np.unique(last)) <= {0.0, 1.0}
        for structure in (1, 2):
            wanted, found = new_labels == structure, last[..., structure - 1] > 0
            assert (wanted & found).sum() >= 0.6 * wanted.sum()  # small blocks: half of their voxels are border
            assert not (found & (new_labels == 3 - structure)).any()
        mirrored += int((new_labels == 1).any())
    assert mirrored == 12


def test_order_of_channels_when_sides_change():
    assert augmentation.channel_order(make_spec("slices")) is None
    assert augmentation.channel_order(make_spec("slices", prior=True)) == (0, 2, 1, 3)
    two = make_spec("stacks", prior=True, channels=("fat", "water"))
    assert augmentation.channel_order(two) == (0, 1, 3, 2, 4, 5, 6, 8, 7, 9, 10, 11, 13, 12, 14)


@pytest.mark.parametrize("orientation", ["SPL", "IAR", "SRP"])
@pytest.mark.parametrize("kind", ["slices", "stacks", "sequences"])
def test_left_never_becomes_right_in_a_slice(kind, orientation):
    spec = DataSpec(BOTH, kind=kind, size=(32, 32), depth=1 if kind == "slices" else 3, orientation=orientation)
    plane_spec = DataSpec(BOTH, kind="sequences", size=(32, 32), depth=3, orientation=orientation)
    planes, axis = two_femurs(plane_spec)
    left, right = side_slices(spec, 32)
    labels = planes if kind == "sequences" else planes[1]
    here = axis if kind == "sequences" else axis - 1
    swapped = 0
    image = np.zeros(spec.input_shape, np.float32)
    marked = planes == 1
    image[...] = np.moveaxis(marked, 0, -1) if kind == "stacks" else labels[..., None] == 1
    for new_image, new_labels in variants(image, labels, spec, count=40, recipe=MOVE_ONLY):
        assert set(np.where(new_labels == 1)[here]) <= set(left) and (new_labels == 1).any()
        assert set(np.where(new_labels == 2)[here]) <= set(right) and (new_labels == 2).any()
        swapped += np.isin(np.where(new_image > 0.9)[here], right).all()  # the bright femur, drawn on the left
    assert 8 <= swapped <= 32  # half of 40 on average; outside with probability 1e-4, and the seeds are fixed


@pytest.mark.parametrize("kind", KINDS)
def test_one_side_is_never_mirrored(kind):
    spec = make_spec(kind, ONE_SIDE, orientation="SPL")
    columns = np.arange(20, dtype=np.float32)  # grows to the left, and must always do so
    image = np.broadcast_to(columns[:, None], (*spec.window, 1)).astype(np.float32)
    image = np.broadcast_to(columns[:, None], spec.input_shape) if not spec.is_volumetric else image
    labels = np.ones(spec.label_shape, np.int32)
    for new_image, new_labels in variants(image, labels, spec, count=24, recipe=Magnitudes()):
        np.testing.assert_array_equal(new_image, image)
        np.testing.assert_array_equal(new_labels, labels)
    assert augmentation.mirrored_axes(spec) == ()


@pytest.mark.parametrize(
    ("kind", "label_map", "orientation", "axes"),
    [
        ("slices", BOTH, "SPL", (1, 2)),
        ("volumes", BOTH, "SPL", (0, 1, 2)),
        ("volumes", ONE_SIDE, "SPL", ()),  # a left leg upside down in a mirror is a right leg
        ("slices", ONE_SIDE, "LPS", ()),
        ("sequences", NO_SIDE, None, (1, 2)),
        ("volumes", NO_SIDE, None, (0, 1, 2)),
        ("sequences", BOTH, None, ()),
        ("volumes", ONE_SIDE, None, ()),
    ],
)
def test_which_axes_may_be_mirrored(kind, label_map, orientation, axes):
    assert augmentation.mirrored_axes(make_spec(kind, label_map, orientation=orientation)) == axes


def test_a_mirror_by_hand():
    spec = DataSpec(BOTH, size=(2, 3))
    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    labels = np.array([[1, 0, 2], [3, IGNORE, 1]])
    new_image, new_labels = single(augmentation.mirror_axes, image, labels, flips=(False, True), spec=spec)
    assert new_image[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert new_labels.tolist() == [[1, 0, 2], [2, IGNORE, 3]]  # left and right exchanged, bladder and unknown kept
    new_image, new_labels = single(augmentation.mirror_axes, image, labels, flips=(True, False), spec=spec)
    assert new_image[..., 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert new_labels.tolist() == [[3, IGNORE, 1], [1, 0, 2]]  # front and back are no sides


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirror_twice_is_nothing(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    flips = [True] * len(augmentation.mirrored_axes(spec))
    once = single(augmentation.mirror_axes, image, labels, flips=flips, spec=spec)
    assert (once[1] != labels).any()
    twice = single(augmentation.mirror_axes, *once, flips=flips, spec=spec)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], labels)


def test_mirror_can_be_switched_off():
    spec = make_spec("volumes")
    image, labels = make_sample(spec)
    for new_image, _ in variants(image, labels, spec, count=8, recipe=Magnitudes(), mirror=False):
        np.testing.assert_array_equal(new_image, image)
    mirrored = variants(image, labels, spec, count=64, recipe=Magnitudes())
    kinds = {new_image.tobytes() for new_image, _ in mirrored}
    assert len(kinds) == 8  # all combinations of three axes, missing one of them has probability 8 · (7/8)^64 = 0.002
