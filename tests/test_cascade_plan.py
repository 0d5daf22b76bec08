"""The plan of a cascade: which networks, where each looks, on which grid."""

import json
from dataclasses import replace

import cascades
import numpy as np
import pytest

from tfmuscle.cascade import Box, CascadePlan, Observation, make_plan, observe, structures_of
from tfmuscle.config import Cascade, DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import MUSCLE_GROUPS, SIDES, LabelMap
from tfmuscle.volume import Geometry

SETTINGS = Cascade(coarse_voxels=8000, fine_voxels=4000, bias_field=False, folds=2)
BASE = DataSpec(cascades.LABEL_MAP, kind="volumes", patches="whole", spacing=None)
SPLIT = {"train": ["a"], "validation": [], "test": []}
TURN = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
GRID = Geometry((100, 60, 80), TURN)  # SPL: slices of 5 mm upwards, rows to the back, columns to the left


def plan_of(boxes, settings=SETTINGS, base=BASE):
    return make_plan(settings, base, {"a": Observation(GRID, boxes)}, SPLIT, {"a": 0})


def pair(muscle, left, right):
    return {f"{muscle}_left": left, f"{muscle}_right": right}


THIGH = pair("rectus_femoris", Box((50, 10, 50), (80, 20, 60)), Box((50, 10, 10), (80, 20, 20)))
CALF = pair("soleus", Box((10, 30, 50), (30, 50, 60)), Box((10, 30, 10), (30, 50, 20)))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SPL", "AIR", "PSR"])
def test_boxes_are_seen_alike_in_every_orientation(orientation):
    _, labels = cascades.legs(0)
    expected = observe(labels, cascades.LABEL_MAP)
    seen = observe(labels.reoriented(orientation), cascades.LABEL_MAP)
    assert seen.boxes == expected.boxes
    assert seen.geometry.same_grid(expected.geometry)


def test_a_left_structure_lies_where_the_last_axis_grows_to_the_left():
    _, labels = cascades.legs(0)
    seen = observe(labels, cascades.LABEL_MAP)  # slice, row to the back, column to the left
    assert seen.boxes["soleus_left"].start[2] > seen.boxes["soleus_right"].stop[2]
    world = seen.geometry.world(seen.boxes["soleus_left"].edges.mean(axis=0))
    assert world[0] < 0  # RAS: x grows to the right


def test_networks_of_groups_and_of_muscles():
    plan = plan_of(THIGH | CALF)
    assert [group.muscles for group in plan.groups] == [("rectus_femoris",), ("soleus",)]
    assert [muscle.name for muscle in plan.muscles] == ["rectus_femoris", "soleus"]
    assert plan.groups[0].spec.label_map.structures == ("rectus_femoris_left", "rectus_femoris_right")
    assert plan.group_of("soleus").name == "group_02"
    assert plan.muscle("soleus").spec.patches == "boxes"


def test_a_region_is_where_training_legs_have_the_group_and_a_margin():
    # Slices count from below: 50..80 of 100 are 0.2 to 0.5 from the top, a margin of 0.1 at both ends.
    assert plan_of(THIGH | CALF).groups[0].region == pytest.approx((0.1, 0.6))
    assert plan_of(THIGH | CALF).groups[1].region == pytest.approx((0.6, 1.0))  # 0.7 to 0.9


def test_the_other_regions():
    thirds = plan_of(THIGH | CALF, replace(SETTINGS, regions="thirds"))
    assert [group.region for group in thirds.groups] == [(0.20, 0.76), (0.56, 1.0)]
    assert plan_of(CALF, replace(SETTINGS, regions="scan")).groups[0].region == (0.0, 1.0)


def test_grids_keep_their_budget_and_their_multiples():
    plan = plan_of(THIGH | CALF, replace(SETTINGS, regions="scan", coarse_voxels=70_000, fine_voxels=12_000))
    for network in plan.networks:
        budget, multiple = (12_000, 4) if network.spec.patches == "boxes" else (70_000, 8)
        assert np.prod(network.spec.window) <= budget or min(network.spec.window) == 4 * multiple  # a thin axis
        assert all(edge % multiple == 0 and edge >= 4 * multiple for edge in network.spec.window)


def test_a_muscle_that_fits_the_budget_is_seen_at_the_scans_own_spacing():
    # 30 x 10 x 10 voxels, 1.4 times: 42 x 14 x 14 = 8232 voxels, rounded to multiples of 4.
    own = plan_of(THIGH, replace(SETTINGS, fine_voxels=20_000)).muscles[0].spec
    assert (own.window, own.spacing) == ((44, 16, 16), (5.0, 1.0, 1.0))
    large = {"soleus_left": Box((10, 10, 10), (60, 50, 60))}  # 50 x 40 x 50, 1.4 times: 70 x 56 x 70
    coarse = plan_of(large, replace(SETTINGS, fine_voxels=30_000)).muscles[0].spec
    # 350 x 56 x 70 mm: pixels grow before slices do, to 70 x 20 x 24 (or so) voxels of 5 x 2.9 x 2.9 mm.
    assert coarse.spacing[0] == 5.0 and coarse.spacing[1] == coarse.spacing[2] > 2
    assert coarse.window[0] in (68, 72) and np.prod(coarse.window) <= 30_000


def test_a_muscle_of_few_slices_is_seen_finer_than_it_was_scanned():
    thin = {"popliteus_left": Box((10, 10, 10), (14, 38, 38))}  # 4 slices of 5 mm, 1.4 times: 28 mm
    spec = plan_of(thin, replace(SETTINGS, fine_voxels=100_000)).muscles[0].spec
    assert spec.window == (16, 40, 40)  # 28 x 1.4 = 39.2, to the nearest multiple of 4
    assert spec.spacing == pytest.approx((28 / 16, 1.0, 1.0))  # 5.6 slices fit as 4 or 8, which the minimum replaces


def test_a_muscle_seen_on_one_side_only_still_has_both_sides():
    plan = plan_of({"soleus_left": CALF["soleus_left"]})
    assert plan.groups[0].spec.label_map.structures == ("soleus_left", "soleus_right")


def test_labels_without_sides_are_right_legs():
    base = replace(BASE, label_map=LabelMap({1: "soleus"}))
    plan = plan_of({"soleus": CALF["soleus_right"]}, base=base)
    assert structures_of(base.label_map) == {"soleus": {"right": "soleus"}}
    assert plan.neighbours.legs[0]["soleus"].size == (10, 20, 20)  # patient's axes: right, anterior, superior


def test_groups_of_ones_own():
    plan = plan_of(THIGH | CALF, replace(SETTINGS, groups=(("soleus", "rectus_femoris"),)))
    assert plan.groups[0].muscles == ("soleus", "rectus_femoris")
    assert set(plan.left_out) == {f"{m}_{s}" for m in ("popliteus", "vastus_lateralis") for s in SIDES}


def test_what_cannot_be_planned():
    with pytest.raises(DataError, match="no training subject has a labelled muscle of a group, only rectus_femoris"):
        plan_of({})
    with pytest.raises(ValueError, match="one muscle of one side"):
        structures_of(LabelMap({1: "soleus_left", 2: "left soleus"}))
    with pytest.raises(ValueError, match="stand in two groups"):
        Cascade(groups=(("soleus",), ("soleus",)))
    with pytest.raises(ValueError, match="region_margin"):
        Cascade(region_margin=1.5)
    with pytest.raises(ValueError, match="box_seed is -1"):
        Cascade(box_seed=-1)
    with pytest.raises(ValueError, match="the dataset has no biceps; it has rectus_femoris"):
        plan_of(THIGH, replace(SETTINGS, groups=(("biceps", "soleus"),)))
    hostile = replace(BASE, label_map=LabelMap({1: "../soleus"}))
    with pytest.raises(ValueError, match="cannot name a network"):
        plan_of({"../soleus": CALF["soleus_left"]}, replace(SETTINGS, groups=(("../soleus",),)), hostile)
    with pytest.raises(ValueError, match="no network is called sartorius; there are group_01"):
        plan_of(THIGH).named(["sartorius"])


def test_the_standard_groups_hold_all_35_muscles_once():
    sided = [f"{muscle}_{side}" for group in MUSCLE_GROUPS for muscle in group for side in SIDES]
    names = dict(enumerate(sided, start=1))
    boxes = {name: Box((10, 10, 10), (30, 30, 30)) for name in names.values()}
    plan = plan_of(boxes, base=replace(BASE, label_map=LabelMap(names)))
    assert (len(plan.groups), len(plan.muscles)) == (10, 35)
    assert sorted(m for group in plan.groups for m in group.muscles) == sorted(m.name for m in plan.muscles)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = plan_of(THIGH | CALF)
    plan.save(tmp_path / "cascade.json")
    assert CascadePlan.load(tmp_path / "cascade.json").to_dict() == plan.to_dict()


def test_a_damaged_plan_is_named(tmp_path):
    path = tmp_path / "cascade.json"
    plan_of(CALF).save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"groups": [{"name": "x"}]}), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        CascadePlan.load(path)
    hostile = content | {"muscles": [{"name": "../../x", "spec": content["muscles"][0]["spec"]}]}
    path.write_text(json.dumps(hostile), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged .*cannot name a network"):
        CascadePlan.load(path)
    path.write_text(json.dumps({"format": "something"}), encoding="utf-8")
    with pytest.raises(DataError, match="is no plan of a cascade"):
        CascadePlan.load(path)
