"""The command line on good and bad input: one line naming file, problem and remedy, exit 1, nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.cli.base import parse_options
from tfmuscle.cli.data import PHANTOM_KINDS, sample_settings
from tfmuscle.files import TEMPORARY_PREFIX, read_json
from tfmuscle.phantom import KINDS
from tfmuscle.workflows.learning import plan_training


def run(*words, code=0):
    """Runs a command and returns its result; a traceback of ours fails the test."""
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def one_error_line(result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith(("Error:", "Failed:"))]
    assert len(lines) == 1, result.output
    return lines[0]


def no_leftovers(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]


@pytest.fixture
def dataset(phantom_dataset, tmp_path):
    return Path(shutil.copytree(phantom_dataset, tmp_path / "scans"))


def first(dataset, folder):
    return sorted((dataset / folder).iterdir())[0]


def rewrite(path, change):
    """Replaces an image by `change(array, affine)`."""
    image = nib.load(path)
    array, affine = change(np.asanyarray(image.dataobj).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)


def truncate(dataset):
    path = first(dataset, "imagesTr")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def move_labels(dataset):
    path = first(dataset, "labelsTr")
    rewrite(path, lambda array, affine: (array, affine + [[0, 0, 0, 5], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    return path


def unknown_label(dataset):
    path = first(dataset, "labelsTr")
    rewrite(path, lambda array, affine: (np.where(array == array.max(), 77, array).astype(np.uint8), affine))
    return path


def plant_nan(dataset):
    path = first(dataset, "imagesTr")
    rewrite(path, lambda array, affine: (np.where(array == array.max(), np.nan, array).astype(np.float32), affine))
    return path


def empty_mask(dataset):
    path = first(dataset, "labelsTr")
    rewrite(path, lambda array, affine: (np.zeros_like(array), affine))
    return path


def second_channel(dataset):
    path = first(dataset, "imagesTr")
    other = path.with_name(path.name.replace("_0000", "_0001"))
    shutil.copy(path, other)
    return Path("bones_000_000")  # either file of the two may be named


def remove_image(dataset):
    path = first(dataset, "imagesTr")
    path.unlink()
    return path


DAMAGES = {
    truncate: "truncated|damaged|broken|corrupt",
    move_labels: "on another grid",
    unknown_label: "label ids 77",
    plant_nan: "NaN",
    empty_mask: "nothing is labelled",
    second_channel: "2 channels|channels",
    remove_image: "no such file|missing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_inspect_and_build_records_name_the_damaged_file_and_go_on(dataset, tmp_path, damage):
    path = damage(dataset)
    found = json.loads(run("inspect", dataset, "--json", code=1).stdout)
    assert path.name in json.dumps(found["problems"])
    table = run("inspect", dataset, code=1)
    assert path.name in table.output
    words = ("--spacing", 16, 8, 8, "--size", 32, 32, "--folds", 2)
    line = one_error_line(run("build-records", "-i", dataset, "-o", tmp_path / "records", *words, code=1))
    assert path.name in line
    assert any(word in line for word in DAMAGES[damage].split("|")), line
    index = read_json(tmp_path / "records" / "index.json")
    assert "failed" in json.dumps(index) and len(list((tmp_path / "records").glob("shard-*.tfrecord"))) == 4
    assert no_leftovers(tmp_path)


def test_inspect_of_a_sound_dataset_exits_0(phantom_dataset):
    assert json.loads(run("inspect", phantom_dataset, "--json").stdout)["problems"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "nowhere"), "nowhere: there is no such folder; check the path"),
        (("build-records", "-i", "nowhere", "-o", "records"), "nowhere: there is no such folder"),
        (("fit", "-i", "nowhere", "-o", "run"), "nowhere: there is no such folder; give records"),
        (("predict", "-m", "nowhere", "-i", "scan.nii.gz", "-o", "out"), "nowhere"),
        (("evaluate", "-i", "nowhere", "-r", "nowhere", "-o", "out"), "nowhere: there is no such folder"),
    ],
)
def test_a_missing_path_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in one_error_line(run(*words, code=1))
    assert list(tmp_path.iterdir()) == []


def test_fit_refuses_records_that_do_not_fit_the_model_naming_the_field(tiny_records, tmp_path):
    words = ("fit", "-i", tiny_records, "-o", tmp_path / "run")
    line = one_error_line(run(*words, "--model", "resnet34_unet", code=1))
    assert "spec.json" in line and "size" in line and "32" in line
    assert "fold 9" in one_error_line(run(*words, "--fold", 9, code=1))
    assert "use --left-out" in one_error_line(run(*words, "--left-out", 9, code=1))
    assert "unett" in run(*words, "--model", "unett", code=1).stderr
    assert "no loss is called 'dise'" in run(*words, "--loss", "dise", code=2).stderr
    assert not (tmp_path / "run").exists()


def test_predict_names_a_scan_with_the_wrong_number_of_channels(tiny_run, phantom_dataset, tmp_path):
    image = nib.load(first(phantom_dataset, "imagesTr"))
    both = np.stack([np.asanyarray(image.dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(both, image.affine), tmp_path / "both.nii.gz")
    line = one_error_line(
        run("predict", "-m", tiny_run, "-i", tmp_path / "both.nii.gz", "-o", tmp_path / "out", code=1)
    )
    assert "both.nii.gz" in line and "channel" in line
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_predict_goes_on_after_a_broken_scan(tiny_run, dataset, tmp_path):
    broken = truncate(dataset)
    result = run("predict", "-m", tiny_run, "-i", dataset / "imagesTr", "-o", tmp_path / "out", "--no-mirror", code=1)
    assert broken.name in one_error_line(result)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 4
    report = run("evaluate", "-i", tmp_path / "out", "-r", dataset, "-o", tmp_path / "report", code=1)
    assert "bones_000" in one_error_line(report)  # a failed subject never hides
    assert "bones_000" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_is_one_line_and_nothing_half_written(phantom_dataset, tmp_path):
    """A limit on file size stands in for the full disk: the write fails in the same place."""
    records = tmp_path / "records"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from tfmuscle.cli import main; main()"
    )
    words = ["build-records", "-i", phantom_dataset, "-o", records, "--spacing", "8", "4", "4", "--size", "48", "48"]
    command = [sys.executable, "-c", code, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if "disk is full" in line], result.stderr
    assert not list(records.glob("*.tfrecord")) and no_leftovers(tmp_path)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_build_records_killed_at_any_moment_ends_with_the_same_records(phantom_dataset, tiny_records, tmp_path):
    words = ["--kind", "slices", "--size", "48", "48", "--spacing", "8", "4", "4", "--folds", "2", "--test", "1"]
    words = ["build-records", "-i", str(phantom_dataset), "-o", str(tmp_path / "records"), *words]
    command = [sys.executable, "-c", "from tfmuscle.cli import main; main()", *words]
    kills = 0
    for shards in (1, 3):  # killed twice, after the first and after the third shard began
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "records").glob("*shard-*"))) < shards:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    run(*words)
    for shard in tiny_records.glob("shard-*.tfrecord"):
        assert (tmp_path / "records" / shard.name).read_bytes() == shard.read_bytes()
    assert len(list((tmp_path / "records").glob("shard-*.tfrecord"))) == 5
    assert "crop_nonzero" in one_error_line(run(*words, "--crop-nonzero", code=1))  # other settings are another dataset


def test_two_workers_write_the_same_bytes(phantom_dataset, tiny_records, tmp_path):
    words = ["--size", 48, 48, "--spacing", 8, 4, 4, "--folds", 2, "--test", 1, "--workers", 2]
    run("build-records", "-i", phantom_dataset, "-o", tmp_path / "records", "--kind", "slices", *words)
    for shard in tiny_records.glob("shard-*.tfrecord"):
        assert (tmp_path / "records" / shard.name).read_bytes() == shard.read_bytes()


def test_the_same_seed_makes_the_same_phantoms(phantom_dataset, tmp_path):
    run("phantom", tmp_path / "again", "--subjects", 2, "--seed", 11, "--kind", "bones")
    for path in sorted((tmp_path / "again" / "labelsTr").iterdir()):
        mine, other = (np.asanyarray(nib.load(p).dataobj) for p in (path, phantom_dataset / "labelsTr" / path.name))
        assert np.array_equal(mine, other)
    assert "holds another dataset" in one_error_line(run("phantom", tmp_path / "again", "--seed", 12, code=1))
    assert PHANTOM_KINDS == KINDS


def test_a_second_cohort_of_phantoms(tmp_path):
    words = ("--subjects", 1, "--kind", "child-bones", "--contrast", "water")
    run("phantom", tmp_path / "second", *words)
    about = json.loads((tmp_path / "second" / "dataset.json").read_text(encoding="utf-8"))
    assert about["channel_names"] == {"0": "fat-suppressed"} and about["labels"]["pelvis"] == 4


def test_phantoms_at_a_spacing_of_ones_own(tmp_path):
    run("phantom", tmp_path / "a", "--subjects", 1, "--kind", "ultrasound", "--spacing", 4.8, 4.8, 7.5)
    made = nib.load(tmp_path / "a/imagesTr/ultrasound_000_0000.nii.gz")
    assert made.shape == (32, 32, 20) and made.header.get_zooms() == pytest.approx(
        (4.8, 4.8, 7.5)
    )  # of 153.6 mm, 150 mm
    out = run("phantom", tmp_path / "b", "--spacing", 0, 1, 1, code=2).output
    assert "spacing is (0.0, 1.0, 1.0); three positive numbers in mm are needed" in out


def test_fit_takes_a_dataset_and_laptop_scale_says_reduced(phantom_dataset, tmp_path):
    assert "5 subjects, 2 held out, do not fill 4 folds" in one_error_line(
        run("fit", "-i", phantom_dataset, "-o", tmp_path / "run", "--preset", "demo", code=1)
    )
    words = ("--preset", "slices", "--scale", "laptop", "--epochs", 1, "--steps", 2, "--batch-size", 2)
    result = run("fit", "-i", phantom_dataset, "-o", tmp_path / "run", *words)
    assert "(reduced)" in result.output
    predict = (
        "predict",
        "-m",
        tmp_path / "run",
        "-i",
        phantom_dataset,
        "--split",
        "validation",
        "-o",
        tmp_path / "out",
        "--no-mirror",
    )
    run(*predict)
    run("evaluate", "-i", tmp_path / "out", "-r", phantom_dataset, "-o", tmp_path / "report")
    assert "reduced" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"stack": 7}, {"kind": "stacks", "depth": 7}),
        ({"kind": "stacks"}, {"kind": "stacks", "depth": 5}),
        ({"patch": (32, 64, 48)}, {"kind": "volumes", "depth": 32, "size": (64, 48)}),
        ({"window": 4}, {"kind": "sequences", "depth": 4}),
        ({"kind": "sequences"}, {"kind": "sequences", "depth": 3}),
        ({"orientation": "none"}, {"orientation": None}),
        ({"kind": None, "patch": (), "size": ()}, {}),
    ],
)
def test_stack_patch_and_window_imply_the_kind(options, settings):
    assert sample_settings(options, None) == settings


def test_options_that_contradict_each_other_are_usage_errors():
    for options, message in (
        ({"stack": 5, "window": 3}, "--stack and --window exclude each other"),
        ({"kind": "slices", "stack": 5}, "--stack goes with --kind stacks, not slices"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_settings(options, None)
    with pytest.raises(ValueError, match="is not NAME=VALUE"):
        parse_options(("filters",))


def test_predict_resumes_only_with_the_same_weights(tiny_run, dataset, tmp_path):
    words = ("predict", "-m", tiny_run, "-i", dataset, "--split", "test", "-o", tmp_path / "out")
    run(*words, "--no-mirror")
    (path,) = (tmp_path / "out").glob("*.nii.gz")
    time_before = path.stat().st_mtime_ns
    run(*words, "--no-mirror", "--resume")
    assert path.stat().st_mtime_ns == time_before
    assert "other mirror" in one_error_line(run(*words, "--resume", code=1))


def test_references_that_nobody_predicted_are_counted(phantom_dataset, tmp_path):
    folder = Path(shutil.copytree(phantom_dataset / "labelsTr", tmp_path / "out"))
    first(tmp_path, "out").unlink()
    run("evaluate", "-i", folder, "-r", phantom_dataset, "-o", tmp_path / "report")
    assert "references without a prediction" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_predict_never_overwrites_the_scan(tiny_run, dataset, tmp_path):
    scan = shutil.copy(first(dataset, "imagesTr"), tmp_path / "scan.nii.gz")
    before = Path(scan).read_bytes()
    for out in (tmp_path, tmp_path / "scan.nii.gz"):
        line = one_error_line(run("predict", "-m", tiny_run, "-i", scan, "-o", out, code=1))
        assert "is the scan itself" in line
    assert Path(scan).read_bytes() == before
    line = one_error_line(run("predict", "-m", tiny_run, "-i", scan, "-o", tmp_path / "labels.png", code=1))
    assert "labels are written as .nii.gz" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--option", "levels=x"), "spec.json"),
        (("--option", "deep_supervision=true"), "leave deep_supervision out"),
        (("--option", "filterz=4"), "did you mean 'filters'"),
    ],
)
def test_a_model_option_that_cannot_be_is_one_line(tiny_records, tmp_path, words, message):
    assert message in one_error_line(run("fit", "-i", tiny_records, "-o", tmp_path / "run", *words, code=1))
    assert not (tmp_path / "run").exists()


def test_predictions_json_edited_to_nonsense_is_one_line(phantom_dataset, tmp_path):
    folder = Path(shutil.copytree(phantom_dataset / "labelsTr", tmp_path / "out"))
    for content in ("[]", '{"labels": {"a": "b"}}', '{"labels": {"a": 1}, "subjects": 5}'):
        (folder / "predictions.json").write_text(content)
        line = one_error_line(run("evaluate", "-i", folder, "-r", phantom_dataset, "-o", tmp_path / "report", code=1))
        assert "predictions.json" in line


def test_another_label_map_is_refused(tiny_run, phantom_dataset, dataset, tmp_path):
    run("predict", "-m", tiny_run, "-i", dataset, "--split", "test", "-o", tmp_path / "out", "--no-mirror")
    content = read_json(dataset / "dataset.json")
    content["labels"] |= {"femur": content["labels"]["tibia"], "tibia": content["labels"]["femur"]}
    (dataset / "dataset.json").write_text(json.dumps(content))
    line = one_error_line(run("evaluate", "-i", tmp_path / "out", "-r", dataset, "-o", tmp_path / "report", code=1))
    assert "label map" in line and "relabel one of them" in line


def test_what_a_kill_leaves_behind_is_cleared_away(phantom_dataset, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / ".tmp-99-spec.json").write_text("{")
    (tmp_path / "records" / ".tmp-99-shard-00000.tfrecord").write_text("half")
    words = ("--size", 32, 32, "--spacing", 16, 8, 8, "--folds", 2)
    run("build-records", "-i", phantom_dataset, "-o", tmp_path / "records", *words)
    (tmp_path / ".tmp-99-scans" / "imagesTr").mkdir(parents=True)
    run("phantom", tmp_path / "scans", "--subjects", 1)
    assert no_leftovers(tmp_path)


def test_what_the_user_says_beats_the_preset_and_the_preset_the_defaults():
    plan = plan_training({"epochs": 3}, recipe={"mirror": False}, preset="demo")
    assert (plan.epochs, plan.batch_size, plan.recipe.mirror) == (3, 4, False)
    assert plan.model_options["filters"] == 12
    other = plan_training({"model": "resnet34_unet"}, recipe={}, preset="demo", scale="laptop")
    assert (other.model, other.model_options, other.scale) == ("resnet34_unet", {}, "laptop")  # unet's are not its own
    assert plan_training({}, recipe={}, scale="laptop").model_options == {"filters": 16}
    assert plan_training({}, recipe={"loss": "focal"}, preset="slices").recipe.loss == "focal"
    with pytest.raises(ValueError, match="has no option 'gama'; did you mean 'gamma'"):
        plan_training({}, recipe={"loss": "focal", "loss_options": {"gama": 1}})


def test_lists_of_models_and_losses_as_json():
    models = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert models["resnet34_unet"]["parameters"] == 24_456_734
    assert {"unet", "resnet50_unet", "vgg19_unet", "mobilenetv2_unet"} <= set(models)
    losses = {row["name"] for row in json.loads(run("losses", "--json").stdout)}
    assert {"dice", "dice_cross_entropy", "dice_focal", "composite"} <= losses


def test_convolutions_are_onednn_unless_the_user_says_otherwise():
    for given, found in ((None, "1"), ("0", "0")):
        environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
        environment |= {} if given is None else {"TF_ENABLE_ONEDNN_OPTS": given}
        words = [sys.executable, "-c", "import os, tfmuscle; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found
