"""Label maps: ids, sides, mirror images, merging."""

import numpy as np
import pytest

from tfmuscle.labels import (
    IGNORE,
    LOWER_LIMB_BONES,
    LOWER_LIMB_MUSCLES,
    MUSCLE_GROUPS,
    LabelMap,
    lower_limb,
    mirrored_name,
    relabel,
)

LEGS = LabelMap({7: "femur_right", 3: "femur_left", 200: "spine"}, ignore=255)


def test_classes_follow_the_ids_with_background_first():
    assert LEGS.ids == (0, 3, 7, 200)
    assert LEGS.num_classes == 4
    assert LEGS.structures == ("femur_left", "femur_right", "spine")
    assert LEGS.id_of("spine") == 200
    with pytest.raises(ValueError, match="no label is called 'hip'; there are femur_left, femur_right, spine"):
        LEGS.id_of("hip")


def test_encode_and_decode_undo_each_other():
    ids = np.array([[0, 3, 255], [7, 200, 0]], np.uint8)
    indices = LEGS.encode(ids)
    assert indices.dtype == np.int16
    assert indices.tolist() == [[0, 1, IGNORE], [2, 3, 0]]
    assert LEGS.decode(indices).dtype == np.uint8
    assert LEGS.decode(indices).tolist() == ids.tolist()
    assert LabelMap({300: "a"}).decode(np.array([1])).dtype == np.uint16
    assert LabelMap({1: "a"}).decode(np.array([IGNORE, 1])).tolist() == [0, 1]  # no ignore id to write
    assert LEGS.encode(np.zeros((0, 3), int)).shape == (0, 3)


def test_unknown_ids_are_named():
    labels = np.array([0, 3, 4, 9, 255])
    assert LEGS.unknown_ids(labels) == (4, 9)
    with pytest.raises(ValueError, match=r"label ids \[4, 9\] are not in the label map \[0, 3, 7, 200\]"):
        LEGS.encode(labels)
    assert LabelMap({3: "a"}).unknown_ids(np.array([255])) == (255,)  # ignore only where it is declared


@pytest.mark.parametrize(
    ("names", "ignore", "message"),
    [
        ({-1: "a"}, None, "label id -1 is negative"),
        ({1: "a", 2: "a"}, None, r"label names \['a'\] stand for several ids"),
        ({1: "background"}, None, "stand for several ids"),
        ({1: "a"}, 1, "ignore id 1 is also the label 'a'"),
        ({1: "a"}, 0, "ignore id 0 is also the label 'background'"),
    ],
)
def test_maps_that_are_none(names, ignore, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(names, ignore=ignore)


@pytest.mark.parametrize(
    ("name", "side", "other"),
    [
        ("femur_left", "left", "femur_right"),
        ("Right femur", "right", "Left femur"),
        ("SOLEUS_LEFT", "left", "SOLEUS_RIGHT"),
        ("soleus_L", "left", "soleus_R"),
        ("r.tibia", "right", "l.tibia"),
        ("vastus lateralis (l)", "left", "vastus lateralis (r)"),
        ("muscle_left_head_long", "left", "muscle_right_head_long"),
        ("gastrocnemius_lateral_head", None, "gastrocnemius_lateral_head"),
        ("upright", None, "upright"),  # a token, not a syllable
        ("leftover", None, "leftover"),
        ("a_l_b", None, "a_l_b"),  # single letters count at the ends only
        ("L", None, "L"),  # nothing left to have a side
        ("", None, ""),
    ],
)
def test_sides_are_read_from_names(name, side, other):
    assert LabelMap.side(name) == side
    assert mirrored_name(name) == other
    assert mirrored_name(other) == name


def test_a_mirror_image_swaps_partners():
    assert LEGS.partner("femur_left") == "femur_right"
    assert LEGS.partner("spine") is None
    assert LEGS.flip_permutation() == (0, 2, 1, 3)
    assert LabelMap({1: "spine"}).flip_permutation() == (0, 1)


@pytest.mark.parametrize("names", [{1: "femur_left"}, {1: "femur_left", 2: "tibia_right"}, {1: "a_l", 2: "a_right"}])
def test_a_side_without_partner_forbids_mirroring(names):
    label_map = LabelMap(names)
    assert label_map.flip_permutation() is None
    assert all(label_map.partner(name) is None for name in label_map.structures)


def test_the_lower_limb():
    assert len(LOWER_LIMB_MUSCLES) == len(set(LOWER_LIMB_MUSCLES)) == 35
    assert sorted(name for group in MUSCLE_GROUPS for name in group) == list(LOWER_LIMB_MUSCLES)
    assert len(MUSCLE_GROUPS) == 10
    assert all(LabelMap.side(name) is None for name in LOWER_LIMB_MUSCLES + LOWER_LIMB_BONES)
    both, one = lower_limb(), lower_limb(bones=False, sides=("left",))
    assert both.num_classes == 1 + 2 * (35 + 5)
    assert one.num_classes == 36
    assert one.flip_permutation() is None
    permutation = np.array(both.flip_permutation())
    assert (permutation[permutation] == np.arange(81)).all()  # twice mirrored is as before
    assert (permutation[1:] != np.arange(1, 81)).all()  # every structure but background has a side


def test_colours_are_fixed_and_tell_sides_apart():
    both = lower_limb()
    colours = [both.colour(name) for name in both.structures]
    assert both.colour("background") == (0, 0, 0)
    assert len(set(colours)) == len(colours)
    assert all(0 <= value <= 255 for colour in colours for value in colour)
    assert max(both.colour("soleus_right")) < max(both.colour("soleus_left"))


def test_merging_and_relabelling():
    parts = LabelMap({1: "vastus_l_head", 2: "vastus_m_head", 5: "femur", 6: "skin"}, ignore=9)
    merged, table = parts.merged({"vasti": ["vastus_l_head", "vastus_m_head"], "bone": ["femur"]})
    assert merged.names == {0: "background", 1: "vasti", 2: "bone"}
    assert merged.ignore == 9
    assert table == {0: 0, 1: 1, 2: 1, 5: 2, 6: 0, 9: 9}
    assert relabel(np.array([[1, 2], [5, 9]]), table).tolist() == [[1, 1], [2, 9]]
    assert relabel(np.array([6, 6]), table).dtype == np.uint8
    assert relabel(np.array([1]), {1: 1000}).dtype == np.uint16
    assert relabel(np.zeros((0, 2), int), table).shape == (0, 2)
    with pytest.raises(ValueError, match=r"label ids \[7\] have no entry in the table"):
        relabel(np.array([0, 7]), table)
    with pytest.raises(ValueError, match="no label is called 'tendon'"):
        parts.merged({"x": ["tendon"]})


def test_both_dictionary_forms_are_read():
    assert LabelMap.from_dict(LEGS.to_dict()) == LEGS
    assert LEGS.to_dict() == {"background": 0, "femur_left": 3, "femur_right": 7, "spine": 200, "ignore": 255}
    decathlon = LabelMap.from_dict({"0": "background", "2": "Posterior", "1": "Anterior"})
    assert decathlon.names == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert LabelMap.from_dict({}).num_classes == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"whole": [1, 2]}, r"label 'whole' has the id \[1, 2\]; one integer is needed"),
        ({"a": "1"}, "label 'a' has the id '1'"),
        ({"a": True}, "label 'a' has the id True"),
        ({"a": 1.0}, "label 'a' has the id 1.0"),
        ({"a": 1, "ignore": None}, "label 'ignore' has the id None"),
        ({"a": 1, "b": 1}, "two label names share one id"),
        ({"a": -2}, "label id -2 is negative"),
    ],
)
def test_dictionaries_that_are_no_map(content, message):
    with pytest.raises(ValueError, match=message):
        LabelMap.from_dict(content)
