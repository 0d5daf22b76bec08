"""The plan on its way: command, records, training; who beats whom, and what is refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import planning as cli_planning
from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.planning import MODES
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.data import inspect, plan_spec
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.planning import keep_plan, make_plan, preset_plan, read_plan, save_plan, training_plan


def run(*words, code=0):
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four scans of 16 x 24 x 20 voxels of 2 x 1 x 1 mm along S, P and L, the outer third of S is zero."""
    root = tmp_path_factory.mktemp("plans") / "scans"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(3)
    for number in range(4):
        image = rng.normal(100, 10, (20, 24, 16)).astype(np.float32)
        image[:, :, 10:] = 0
        labels = np.zeros(image.shape, np.uint8)
        labels[5:15, 5:15, 2:8] = 1
        image[labels == 1] += 50
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(image, affine), root / "imagesTr" / f"leg{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / f"leg{number}.nii.gz")
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "bone": 1}, "file_ending": ".nii.gz"}
    write_json(root / "dataset.json", about)
    return root


@pytest.fixture(scope="module")
def plan(dataset):
    return make_plan(dataset, scale="laptop")


def test_choices_of_the_command():
    assert cli_planning.MODES == MODES


# ---------------------------------------------------------------- fingerprint


def test_what_the_plan_rests_on(dataset):
    found = inspect(dataset)
    (subject, *_) = found["subjects"]
    assert subject["shape"] == [20, 24, 16] and subject["shape_after_cropping"] == [20, 24, 10]
    assert subject["share_after_cropping"] == pytest.approx(10 / 16)
    (numbers,) = found["summary"]["foreground_intensities"]
    # 40,000 draws of N(150, 10): means within 5 standard errors, the 0.5 percentile 2.576 sd below
    assert numbers["mean"] == pytest.approx(150, abs=2.5) and numbers["sd"] == pytest.approx(10, abs=0.5)
    assert numbers["p0_5"] == pytest.approx(150 - 25.8, abs=3) and numbers["p99_5"] == pytest.approx(175.8, abs=3)
    data = found["plan"]["configurations"]["3d_fullres"]["data"]
    assert data["normalisation"] == "zscore_masked" and data["orientation"] == "SPL"  # 10/16 < 3/4
    assert found["plan"]["fingerprint"]["median_shape"] == [10, 24, 20]
    assert inspect(dataset) == found  # drawn with a fixed seed


def test_unlabelled_voxels_are_no_foreground(dataset, tmp_path):
    root = shutil.copytree(dataset, tmp_path / "scans")
    about = read_json(root / "dataset.json")
    about["labels"]["ignore"] = 7
    write_json(root / "dataset.json", about)
    for path in (root / "labelsTr").iterdir():
        image = nib.load(path)
        labels = np.asarray(image.dataobj).copy()
        labels[labels == 0] = 7
        nib.save(nib.Nifti1Image(labels, image.affine), path)
    with_ignored = inspect(root)["summary"]["foreground_intensities"]
    assert with_ignored == inspect(dataset)["summary"]["foreground_intensities"]


def test_without_labels_inspect_has_no_plan(dataset, tmp_path):
    root = shutil.copytree(dataset, tmp_path / "scans")
    shutil.rmtree(root / "labelsTr")
    found = inspect(root)
    assert found["plan"] is None and found["summary"]["foreground_intensities"] == []


# ---------------------------------------------------------------- the command


def test_plan_command(dataset, tmp_path, plan):
    out = tmp_path / "plan.json"
    shown = run("plan", "-i", dataset, "-o", out, "--scale", "laptop")
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:3] == ["configuration", "spacing", "(mm)"] and lines[1].startswith("2d  ")
    assert lines[-1] == f"{out}: planned from 4 subjects (reduced)"
    assert read_plan(out) == plan
    run("plan", "-i", dataset, "-o", out, "--scale", "laptop")  # the same again is fine
    other = run("plan", "-i", dataset, "-o", out, "--mode", "seed002", code=1)
    assert f"{out}: holds something else, perhaps edits of yours; name another file" in other.stderr
    assert f"{tmp_path}: is a folder; name a file" in run("plan", "-i", dataset, "-o", tmp_path, code=1).stderr


def test_a_place_for_no_plan_is_refused_before_any_scan_is_read(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("tfmuscle.workflows.planning.fingerprint", None)
    write_json(tmp_path / "train.json", {"epochs": 3})
    for out, message in ((tmp_path, "is a folder; name a file"), (tmp_path / "train.json", "something else, which is")):
        assert f"{out}: " in (told := run("plan", "-i", dataset, "-o", out, code=1).stderr) and message in told
    assert read_json(tmp_path / "train.json") == {"epochs": 3}


def test_subjects_with_problems_are_left_out_and_listed(dataset, tmp_path):
    root = shutil.copytree(dataset, tmp_path / "scans")
    (root / "imagesTr" / "leg1_0000.nii.gz").write_bytes(b"damaged")
    shown = run("plan", "-i", root, "-o", tmp_path / "plan.json", code=1)
    assert "planned from 3 subjects" in shown.stdout
    assert "Failed: leg1: " in shown.stderr and "leg1_0000.nii.gz" in shown.stderr


def test_inspect_json_has_the_plan(dataset):
    found = json.loads(run("inspect", dataset, "--json").stdout)
    assert list(found["plan"]["configurations"]) == ["2d", "3d_fullres"]


# ---------------------------------------------------------------- records and training


def test_records_keep_the_plan_and_training_follows_it(dataset, tmp_path, plan):
    path = save_plan(tmp_path / "mine.json", plan)
    edited = read_json(path)
    edited["configurations"]["3d_fullres"]["training"]["batch_size"] = 3
    write_json(path, edited)
    out = tmp_path / "records"
    words = ("build-records", "-i", dataset, "-o", out, "--preset", "nnunet_3d", "--scale", "laptop")
    run(*words, "--plan", path, "--overlap", 0.25)
    assert read_plan(out / "plan.json") == edited
    spec, data = read_json(out / "spec.json"), plan["configurations"]["3d_fullres"]["data"]
    assert (spec["overlap"], spec["scale"], spec["preset"]) == (0.25, "laptop", "nnunet_3d")  # the user beats the plan
    assert {key: spec[key] for key in data if key != "overlap"} == {k: v for k, v in data.items() if k != "overlap"}
    run("verify-records", "-i", out)
    run(*words, "--overlap", 0.25)  # a rerun goes by the plan that is there
    assert read_plan(out / "plan.json") == edited
    found = training_plan(out, "nnunet_3d", scale="laptop")
    config = plan_training({}, recipe={}, preset="nnunet_3d", scale="laptop", plan=found)
    assert config.batch_size == 3 and config.optimiser == "sgd"
    assert config.model_options == edited["configurations"]["3d_fullres"]["training"]["model_options"]


def test_a_plan_is_made_on_the_way(dataset, plan):
    index = read_dataset(dataset)
    assert preset_plan(index, "nnunet_3d", scale="laptop") == plan
    spec = plan_spec(index, {}, preset="nnunet_2d", scale="laptop", plan=plan)
    assert (spec.kind, list(spec.size)) == ("slices", plan["configurations"]["2d"]["data"]["size"])
    assert training_plan(dataset, "nnunet_2d_seed002")["training"]["model_options"]["pooling"] == "max"


def test_who_beats_whom():
    plan = {"training": {"batch_size": 5, "epochs": 7, "model_options": {"filters": 8, "max_filters": 64}}}
    plan["recipe"] = {"loss_options": {"batch_dice": True}, "augmentation": "none"}
    user = {"model_options": {"max_filters": 32}}
    config = plan_training(user, recipe={"mirror": False}, preset="nnunet_3d", plan=plan)
    assert config.model_options == {"filters": 8, "max_filters": 32}
    assert (config.batch_size, config.epochs) == (5, 1000)  # the preset beats the plan
    assert (config.recipe.loss_options, config.recipe.augmentation) == ({"batch_dice": True}, "nnunet")
    assert plan_training({"batch_size": 1}, recipe={}, preset="nnunet_3d", plan=plan).batch_size == 1
    assert plan_training({"model": "resnet34_unet"}, recipe={}, preset="nnunet_2d", plan=plan).model_options == {}


def test_presets_without_a_plan_need_none(dataset, tmp_path):
    assert preset_plan(read_dataset(dataset), "demo") is None and training_plan(dataset, "demo") is None
    assert training_plan(tmp_path / "nowhere", "nnunet_3d") is None  # fit says so
    keep_plan(None, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="a plan is given, but preset demo follows none; choose one as nnunet_3d"):
        preset_plan(read_dataset(dataset), "demo", path=tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("preset", "scale", "message"),
    [
        (
            "nnunet_3d",
            "full",
            "plan.json: the plan's scale is laptop, but full is needed .*; use --scale laptop, or make",
        ),
        (
            "nnunet_3d_seed002",
            "laptop",
            "plan.json: the plan's mode is nnunet_v2, but seed002 is needed .*--mode seed002",
        ),
        (
            "nnunet_3d_lowres",
            "laptop",
            "plan.json: the plan has no configuration 3d_lowres, .*there are 2d, 3d_fullres",
        ),
    ],
)
def test_plans_that_do_not_suit(dataset, tmp_path, plan, preset, scale, message):
    path = save_plan(tmp_path / "plan.json", plan)
    with pytest.raises(DataError, match=message):
        preset_plan(read_dataset(dataset), preset, scale=scale, path=path)
    write_json(tmp_path / "spec.json", {})
    with pytest.raises(DataError, match=message):
        training_plan(tmp_path, preset, scale=scale)


def test_a_plan_made_on_the_way_may_lack_the_configuration(dataset):
    with pytest.raises(DataError, match="scans: the plan has no configuration 3d_lowres"):
        plan_spec(read_dataset(dataset), {}, preset="nnunet_3d_lowres")


def test_records_without_a_plan(tmp_path):
    write_json(tmp_path / "spec.json", {})
    with pytest.raises(DataError, match="plan.json: there is no plan, which preset nnunet_3d follows; build the"):
        training_plan(tmp_path, "nnunet_3d")


def test_samples_that_contradict_the_plan(dataset, plan):
    index = read_dataset(dataset)
    with pytest.raises(ValueError, match="kind is 'slices', but preset nnunet_3d plans volumes; choose another preset"):
        plan_spec(index, {"kind": "slices"}, preset="nnunet_3d", scale="laptop", plan=plan)
    with pytest.raises(ValueError, match="a sample has .* voxels, but the strides need multiples of"):
        plan_spec(index, {"size": (17, 17)}, preset="nnunet_3d", scale="laptop", plan=plan)
    other = json.loads(json.dumps(plan))
    other["configurations"]["3d_fullres"]["data"] |= {"normalisation": "ct", "statistics": [[0, 1, 0, 1]] * 2}
    with pytest.raises(DataError, match="configurations.3d_fullres.data: normalisation is 'ct'; statistics of each"):
        plan_spec(index, {}, preset="nnunet_3d", scale="laptop", plan=other)
