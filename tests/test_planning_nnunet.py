"""nnU-Net's rules: by hand, by published plans, and by figures that nnU-Net itself gave.

Figures marked "nnU-Net 2.8.1" were read off `ExperimentPlanner.plan_experiment` of that version, run on the same
spacings and shapes.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.planning import plan_nnunet
from tfmuscle.planning.nnunet import slice_axis_first, target_spacing
from tfmuscle.planning.plan_file import spec_of
from tfmuscle.planning.topology import BUDGETS, Budget, Topology, fit_patch, network_cost, topology_of
from tfmuscle.subjects import Dataset, Subject

FULL = BUDGETS["full", 3]


def plan(spacing, shape, *, subjects=7, structures=4, channels=("T1",), share=1.0, orientation="SPL", **options):
    """Plans for subjects that are all alike, or have a spacing each."""
    spacings = spacing if isinstance(spacing[0], tuple) else [spacing] * subjects
    entry = {"shape": list(shape), "shape_after_cropping": list(shape), "share_after_cropping": share}
    entry |= {"orientation": orientation, "problems": [], "volumes_ml": {}}
    found = {
        "subjects": [entry | {"subject_id": str(n), "spacing": list(mm)} for n, mm in enumerate(spacings)],
        "problems": [],
        "summary": {"foreground_intensities": [{"mean": 5.0, "sd": 2.0, "p0_5": 1.0, "p99_5": 9.0}] * len(channels)},
    }
    label_map = LabelMap({number: f"structure {number}" for number in range(1, structures + 1)})
    scans = tuple(Subject(str(n), (Path("unused"),)) for n in range(len(spacings)))
    return plan_nnunet(found, Dataset(Path("legs"), "legs", label_map, channels, scans), **options)


def figures(configuration):
    data, training = configuration["data"], configuration["training"]
    depth = [data["depth"]] if data["kind"] == "volumes" else []
    return [*depth, *data["size"]], training["batch_size"]


def halvings(configuration):
    strides = np.array(configuration["training"]["model_options"]["strides"])
    return (strides > 1).sum(axis=0).tolist()


# ---------------------------------------------------------------- published and computed plans


def test_hippocampus():
    # 5 % of 260 x 36 x 50 x 35 voxels are 9.1 patches of 40 x 56 x 40, or 366 slices of 56 x 40
    found = plan((1, 1, 1), (36, 50, 35), subjects=260, structures=2)["configurations"]
    assert list(found) == ["2d", "3d_fullres"]
    assert figures(found["3d_fullres"]) == ([40, 56, 40], 9) and figures(found["2d"]) == ([56, 40], 366)
    assert found["3d_fullres"]["notes"]["widths"] == [32, 64, 128, 256]


def test_large_isotropic_scans():
    found = plan((1, 1, 1), (400, 500, 500))["configurations"]
    fullres = found["3d_fullres"]
    assert figures(fullres) == ([128, 128, 128], 2) and halvings(fullres) == [5, 5, 5]
    assert fullres["notes"]["widths"] == [32, 64, 128, 256, 320, 320]
    assert found["2d"]["notes"]["widths"] == [32, 64, 128, 256, 512, 512, 512, 512]


def test_bone_scans_need_a_cascade():
    # nnU-Net 2.8.1; 3 x 0.9375 x 0.9375 mm, 145 x 512 x 512 voxels, 7 subjects, 5 classes
    found = plan((3, 0.9375, 0.9375), (145, 512, 512))["configurations"]
    assert figures(found["2d"]) == ([512, 512], 12)
    assert figures(found["3d_fullres"]) == ([56, 192, 192], 2)
    assert found["3d_fullres"]["training"]["model_options"]["kernels"] == [[1, 3, 3]] + [[3, 3, 3]] * 5
    coarse = found["3d_lowres"]
    assert figures(coarse) == ([80, 192, 160], 2) and coarse["notes"]["median_shape"] == [125, 275, 275]
    # x 1.03 for the finest edges while they are below half of the others, then for all
    assert coarse["data"]["spacing"] == pytest.approx([3.47782, 1.74403, 1.74403], abs=1e-5)
    cascade = found["3d_cascade_fullres"]
    assert cascade["data"] == found["3d_fullres"]["data"] | {"prior": True}
    assert cascade["training"] == found["3d_fullres"]["training"]
    dice = {name: content["recipe"].get("loss_options", {}).get("batch_dice") for name, content in found.items()}
    assert dice == {"2d": None, "3d_fullres": True, "3d_lowres": None, "3d_cascade_fullres": True}


def test_thick_slices():
    # nnU-Net 2.8.1; 512 x 512 x 16 voxels of 0.8 x 0.8 x 24 mm in the reader's order, 12 subjects and classes
    found = plan((0.8, 0.8, 24.0), (512, 512, 16), subjects=12, structures=11)["configurations"]
    assert found["2d"]["data"]["orientation"] == "LSP"
    assert figures(found["2d"]) == ([512, 512], 10)
    assert figures(found["3d_fullres"]) == ([12, 384, 320], 2) and halvings(found["3d_fullres"]) == [1, 6, 6]
    kernels = found["3d_fullres"]["training"]["model_options"]["kernels"]
    assert kernels == [[1, 3, 3]] * 4 + [[3, 3, 3]] * 3


def test_spacings_that_vary():
    # nnU-Net 2.8.1; the 10th percentile of the slice distances is 4.9 mm
    spacings = [(float(mm), 0.7, 0.7) for mm in (4, 5, 6, 8, 8, 8, 10, 10, 10, 10)]
    found = plan(spacings, (20, 300, 300), structures=3)
    fullres = found["configurations"]["3d_fullres"]
    assert fullres["data"]["spacing"] == [4.9, 0.7, 0.7] and fullres["notes"]["median_shape"] == [33, 300, 300]
    assert figures(fullres) == ([28, 256, 256], 2) and figures(found["configurations"]["2d"]) == ([320, 320], 15)
    assert found["remarks"] == ["slices lie 4 to 10 mm apart; nnU-Net's 2D leaves that alone, here all become 4.9 mm"]


@pytest.mark.parametrize(("edge", "stages"), [(190, False), (260, True)])
def test_the_coarse_stage_comes_with_size(edge, stages):
    # a patch of 128³ is a quarter of 203³; the coarse stage must then have half the voxels or fewer
    names = plan((1, 1, 1), (edge, edge, edge))["configurations"]
    assert ("3d_lowres" in names) == stages and ("3d_cascade_fullres" in names) == stages


def test_a_coarse_stage_of_little_gain_is_dropped():
    assert math.prod((128,) * 3) / 210**3 < 0.25
    assert "3d_lowres" not in plan((1, 1, 1), (210, 210, 210))["configurations"]


def test_single_slices_have_no_3d():
    found = plan((1, 1, 1), (400, 500, 1))["configurations"]
    assert list(found) == ["2d"] and found["2d"]["data"]["orientation"] == "LSP"
    assert figures(found["2d"])[0] == [400 + 48, 512]  # both padded to multiples of 64


# ---------------------------------------------------------------- rules by hand


def test_topology_of_an_anisotropic_patch():
    # mm:    4 1 1 -> 4 2 2 (the coarse axis waits) -> 4 4 4 (2 < 2 x 2 is false: waits once more) -> 8 8 8
    # voxel: 16 96 96 -> 16 48 48 -> 16 24 24 -> 8 12 12 -> 4 6 6; then all are below 8
    found = topology_of((16, 96, 96), (4.0, 1.0, 1.0))
    assert found.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.divisors == (4, 16, 16) and found.patch == (16, 96, 96)


def test_an_axis_alone_needs_twelve_voxels():
    assert topology_of((6, 11), (1.0, 1.0)).strides == ((1, 1),)
    assert topology_of((6, 12), (1.0, 1.0)).strides == ((1, 1), (1, 2))


def test_a_kernel_waits_for_all_axes_not_only_those_that_are_halved():
    # the first axis is too short to halve, but its 1 mm voxels keep the others' 2.5 mm at kernel 1
    assert topology_of((4, 64, 64), (1.0, 2.5, 2.5)).kernels[0] == (3, 1, 1)


def test_the_deepest_kernels_are_3_everywhere():
    found = topology_of((4, 16, 16), (100.0, 1.0, 1.0))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3)) and found.divisors == (1, 4, 4)


def test_patches_are_enlarged_to_multiples():
    found = topology_of((36, 50, 35.5), (1.0, 1.0, 1.0))
    assert found.divisors == (8, 8, 8) and found.patch == (40, 56, 40)


def test_cost_counts_feature_maps():
    # 8 x 16 x 16 voxels, 4 x 8 x 8 below; 2 convolutions down, 3 up, the deepest stage has no way up
    topology = Topology((8, 16, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))
    assert network_cost(topology, FULL, num_classes=5) == 2048 * (5 * 32 + 5) + 256 * 2 * 64


def test_batches_hold_five_percent_and_at_least_two():
    whole = fit_patch((1, 1, 1), (40, 56, 40), FULL, num_classes=3, dataset_voxels=1e12)
    assert whole.batch == round(5.6e8 / whole.cost * 2)
    few = fit_patch((1, 1, 1), (40, 56, 40), FULL, num_classes=3, dataset_voxels=40 * 56 * 40)
    assert few.batch == 2


def test_a_patch_is_shrunk_to_one_voxel_at_most():
    nothing = Budget(voxels=64**2, cost=1.0, batch=2, filters=8, max_filters=80)
    found = fit_patch((1.0, 1.0), (30, 30), nothing, num_classes=5, dataset_voxels=1e6)
    assert found.topology.patch == (1, 1) and found.cost > 1


@pytest.mark.parametrize(("spacing", "shape"), [((1, 1, 1), (300, 300, 300)), ((24, 0.8, 0.8), (16, 512, 512))])
def test_laptop_follows_the_same_rules_with_less(spacing, shape):
    large, small = (plan(spacing, shape, scale=scale)["configurations"] for scale in ("full", "laptop"))
    for name in ("2d", "3d_fullres"):
        patches = [math.prod(figures(found[name])[0]) for found in (large, small)]
        assert patches[1] < patches[0] / 4
        limit = BUDGETS["laptop", 2 if name == "2d" else 3]
        notes, options = small[name]["notes"], small[name]["training"]["model_options"]
        assert notes["memory_cost"] / limit.batch * 2 <= limit.cost and options["filters"] <= 16


def test_target_spacing_never_goes_below_the_other_axes():
    # the 10th percentile of 1, 9, 9, 9 is 3.4 mm; the others have 2.9 mm, so 3.4 stays, and of 1, 1, 9, 9, 9 it is 1
    shapes = np.array([[20, 200, 200]] * 5)
    spacings = np.array([[9, 2.9, 2.9]] * 3 + [[1, 2.9, 2.9]])
    assert target_spacing(spacings, shapes[:4]) == pytest.approx([3.4, 2.9, 2.9])
    assert target_spacing(np.array([*spacings, [1, 2.9, 2.9]]), shapes) == pytest.approx([2.9 + 1e-5, 2.9, 2.9])


def test_the_first_axis_of_equals_is_the_slice_axis():
    assert slice_axis_first(np.ones(3), np.array([36, 50, 35])) == [0, 1, 2]
    assert slice_axis_first(np.array([1.0, 5.0, 1.0]), np.array([36, 50, 35])) == [1, 0, 2]


def test_stored_axes_are_put_in_order():
    # R 0.9 x A 0.8 x S 5 is S 5, P 0.8, L 0.9; sagittal slices: L 5 first
    axial = plan((0.9, 0.8, 5.0), (100, 200, 40), orientation="RAS")["configurations"]["2d"]["data"]
    assert (axial["orientation"], axial["spacing"]) == ("SPL", [5.0, 0.8, 0.9])
    sagittal = plan((0.9, 0.8, 5.0), (100, 200, 40), orientation="SPR")["configurations"]["2d"]["data"]
    assert (sagittal["orientation"], sagittal["spacing"]) == ("LSP", [5.0, 0.9, 0.8])


# ---------------------------------------------------------------- intensities, modes, errors


@pytest.mark.parametrize(
    ("channels", "share", "expected"),
    [
        (("T1", "T2"), 1.0, "zscore_all"),
        (("T1",), 0.75, "zscore_all"),  # less than 3/4 must be left
        (("T1",), 0.74, "zscore_masked"),
        (("ct",), 0.5, "ct"),
        (("noNorm",), 1.0, "none"),
        (("CT", "PET"), 1.0, "zscore_all"),
    ],
)
def test_normalisation_follows_the_channel(channels, share, expected):
    found = plan((1, 1, 1), (36, 50, 35), channels=channels, share=share)
    data = found["configurations"]["2d"]["data"]
    assert data["normalisation"] == expected
    assert data.get("statistics") == ([[5.0, 2.0, 1.0, 9.0]] if expected == "ct" else None)
    assert any("each channel its own way (CT ct, PET zscore_all)" in text for text in found["remarks"]) == (
        channels == ("CT", "PET")
    )


def test_seed002_pools_by_maximum():
    both = [plan((1, 1, 1), (300, 300, 300), mode=mode)["configurations"] for mode in ("nnunet_v2", "seed002")]
    for first, second in zip(both[0].values(), both[1].values(), strict=True):
        assert second["training"]["model_options"].pop("pooling") == "max"
        assert first == second


def test_a_plan_is_json_and_becomes_settings():
    found = plan((3, 0.9375, 0.9375), (145, 512, 512), subjects=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    label_map = LabelMap({1: "tibia"})
    for content in found["configurations"].values():
        spec = spec_of(content, label_map=label_map, name="legs", channels=("T1",))
        assert isinstance(spec, DataSpec) and spec.resampling == "nnunet" and spec.patches == "random"
        assert spec.blend == "logits" and spec.crop_nonzero and spec.folds == 3
        assert TrainConfig.from_dict(content["training"]).batch_size == content["training"]["batch_size"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "v1"}, "mode is 'v1'; choose one of nnunet_v2, seed002"),
        ({"scale": "small"}, "scale is 'small'; choose one of full, laptop"),
    ],
)
def test_unknown_modes_and_scales(options, message):
    with pytest.raises(ValueError, match=message):
        plan((1, 1, 1), (36, 50, 35), **options)


def test_without_labels_there_is_no_plan():
    entry = {"subject_id": "a", "shape": [9, 9, 9], "problems": []}
    dataset = Dataset(Path("legs"), "legs", LabelMap({1: "tibia"}), ("T1",), (Subject("a", (Path("unused"),)),))
    with pytest.raises(DataError, match="legs: no subject has labels; a plan is made for labelled scans"):
        plan_nnunet({"subjects": [entry], "problems": []}, dataset)
