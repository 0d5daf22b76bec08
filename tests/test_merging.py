"""Binary masks to labels: judged voxel by voxel in a loop, and by hand."""

import itertools

import numpy as np
import pytest

from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import merge_masks

NAMES = ("tibia", "femur", "fibula", "pelvis")
BONES = LabelMap(dict(enumerate(NAMES, start=1)))


def test_a_tibia_and_a_femur_are_no_fibula():
    ids, overlaps = merge_masks({"tibia": np.ones((1, 1, 2)), "femur": np.array([[[1, 0]]])}, BONES)
    assert ids.tolist() == [[[0, 1]]] and overlaps == {("tibia", "femur"): 1}


def test_against_a_naive_loop():
    rng = np.random.default_rng(3)
    masks = {name: rng.random((5, 6, 7)) < 0.3 for name in NAMES}
    ids, overlaps = merge_masks(masks, BONES)
    for index in np.ndindex(5, 6, 7):
        held = [key for key, name in BONES.names.items() if key and masks[name][index]]
        assert ids[index] == (held[0] if len(held) == 1 else 0)
    for one, other in itertools.combinations(NAMES, 2):
        assert overlaps.get((one, other), 0) == np.count_nonzero(masks[one] & masks[other])


def test_the_order_of_masks_does_not_matter_and_masks_stay():
    rng = np.random.default_rng(4)
    masks = {name: rng.random((4, 4, 4)) < 0.4 for name in NAMES}
    kept = {name: mask.copy() for name, mask in masks.items()}
    forward, _ = merge_masks(masks, BONES)
    backward, _ = merge_masks(dict(reversed(masks.items())), BONES)
    np.testing.assert_array_equal(forward, backward)
    assert all((masks[name] == kept[name]).all() for name in NAMES)


def test_many_masks_at_one_voxel_do_not_wrap_around():
    names = {key: f"m{key}" for key in range(1, 301)}  # 256 + 1 in one byte would count as one
    ids, overlaps = merge_masks({name: np.ones((1, 1, 1)) for name in list(names.values())[:257]}, LabelMap(names))
    assert ids.item() == 0 and len(overlaps) == 257 * 256 // 2 and ids.dtype == np.uint16


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "no mask to merge"),
        ({"skull": np.ones((2, 2, 2))}, "no label is called 'skull'"),
        ({"tibia": np.ones((2, 2, 2)), "femur": np.ones((2, 2, 3))}, r"'femur' has shape \(2, 2, 3\), 'tibia'"),
    ],
)
def test_what_cannot_be_merged(masks, message):
    with pytest.raises(ValueError, match=message):
        merge_masks(masks, BONES)
