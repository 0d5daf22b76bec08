"""Plans as files: a good one survives, each bad edit is named with file, key and remedy."""

import copy
import json
from pathlib import Path

import pytest
from test_planning_nnunet import plan

from tfmuscle.errors import DataError
from tfmuscle.planning import load_plan, plan_rows
from tfmuscle.planning.plan_file import check_window

GOOD = plan((3, 0.9375, 0.9375), (145, 512, 512))
CT = plan((1, 1, 1), (36, 50, 35), channels=("CT", "CT"))
FULL = ("configurations", "3d_fullres")
OPTIONS = (*FULL, "training", "model_options")


def saved(folder: Path, content) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(content))
    return path


def edited(*keys, value=None, remove=False):
    content = copy.deepcopy(GOOD)
    place = content
    for key in keys[:-1]:
        place = place[key]
    if remove:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return content


@pytest.mark.parametrize("content", [GOOD, CT], ids=["cascade", "ct"])
def test_a_plan_survives_its_file(tmp_path, content):
    assert load_plan(saved(tmp_path, content)) == content


def test_edits_are_allowed(tmp_path):
    content = edited(*FULL, "training", "batch_size", value=3)
    content["configurations"]["3d_fullres"]["data"] |= {"depth": 24, "size": [128, 128], "bias_field": True}
    del content["configurations"]["3d_lowres"]
    assert load_plan(saved(tmp_path, content)) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (edited("format", value="nnU-Net"), "is no plan of tfmuscle; make one with `tfmuscle plan -i DATASET"),
        (edited("mod", value="seed002"), "mod is unknown; did you mean 'mode'"),
        (edited("mode", value="v1"), "mode is 'v1'; choose one of nnunet_v2, seed002"),
        (edited("scale", remove=True), "scale is None; choose one of full, laptop"),
        (edited("configurations", value={}), "configurations is missing or empty; make the plan anew"),
        (edited(*FULL, value=[1]), r"configurations.3d_fullres is \[1\]; an object with data and training is needed"),
        (
            edited(*FULL, "trainings", value={}),
            "configurations.3d_fullres.trainings is unknown; did you mean 'training'",
        ),
        (edited(*FULL, "data", remove=True), "configurations.3d_fullres.data is missing; make the plan anew"),
        (edited(*FULL, "recipe", value=3), "configurations.3d_fullres.recipe is 3; an object with named settings"),
        (edited(*FULL, "data", "sice", value=[1, 2]), "3d_fullres.data.sice is unknown; did you mean 'size'"),
        (edited(*FULL, "data", "label_map", value={}), "3d_fullres.data.label_map is unknown; remove it"),
        (edited(*FULL, "data", "spacing", value=[1, 2]), r"3d_fullres.data: spacing is \(1, 2\); a list of 3, each"),
        (edited(*FULL, "data", "spacing", value=["1", 2, 3]), "3d_fullres.data: "),
        (edited(*FULL, "data", "spacing", value=None), "3d_fullres.data.spacing is missing"),
        (edited(*FULL, "data", "size", value=192), "3d_fullres.data: "),
        (edited(*FULL, "data", "kind", value="slices"), "3d_fullres.data: depth is 56; slices have depth 1"),
        (edited(*FULL, "training", "batch_size", value=0), "3d_fullres.training: batch_size is 0; a positive number"),
        (edited(*FULL, "recipe", "los", value="dice"), "3d_fullres.recipe.los is unknown; did you mean 'loss'"),
        (edited(*OPTIONS, value=7), "3d_fullres.training: model_options is 7; an object of options"),
        (edited(*OPTIONS, "strides", value=[[1, 1]]), r"model_options.strides is \[\[1, 1\]\]; a list of 3 whole"),
        (edited(*OPTIONS, "kernels", value="3"), "model_options.kernels is '3'; a list of 3 whole numbers a stage"),
        (edited(*OPTIONS, "kernels", value=[[3, 3, 3]] * 2), "model_options: 6 strides and 2 kernels; one of each"),
        (
            edited(*OPTIONS, "strides", value=[[2, 2, 2]] * 6),
            r"strides begins with \[2, 2, 2\]; the first stage has the full resolution, all ones",
        ),
        (
            # halved 3, 5 and 5 times: multiples of 8, 32 and 32
            edited(*FULL, "data", "size", value=[192, 200]),
            "3d_fullres.data: depth and size are 56 x 192 x 200 voxels, but the strides need multiples of 8 x 32 x 32;"
            " use 56 x 192 x 192, or change the strides",
        ),
    ],
)
def test_bad_edits_name_key_and_remedy(tmp_path, content, message):
    path = saved(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_statistics_of_another_number_of_channels(tmp_path):
    content = copy.deepcopy(CT)
    content["configurations"]["2d"]["data"]["statistics"] = None
    with pytest.raises(DataError, match="2d.data: normalisation is 'ct'; statistics of each channel are needed"):
        load_plan(saved(tmp_path, content))


def test_windows_of_slices_have_two_edges():
    options = {"strides": [[1, 1], [2, 2], [2, 1]]}
    check_window((1, 8, 6), options)
    check_window((1, 7, 7), {})
    with pytest.raises(ValueError, match="10 x 5 voxels, but the strides need multiples of 4 x 2; use 8 x 4"):
        check_window((1, 10, 5), options)


def test_rows_of_the_table():
    rows = {row["configuration"]: row for row in plan_rows(GOOD)}
    assert list(rows) == ["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"]
    assert rows["2d"]["patch"] == "512 x 512" and rows["2d"]["stages"] == "8" and rows["2d"]["halvings"] == "7 x 7"
    assert rows["3d_fullres"] == {
        "configuration": "3d_fullres",
        "spacing (mm)": "3 x 0.9375 x 0.9375",
        "median scan": "145 x 512 x 512",
        "patch": "56 x 192 x 192",
        "batch": "2",
        "stages": "6",
        "halvings": "3 x 5 x 5",
        "widths": "32 64 128 256 320 320",
        "normalisation": "zscore_all",
    }
