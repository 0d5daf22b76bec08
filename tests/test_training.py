import math
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import IGNORE
from tfmuscle.postprocessing import CHEENA, Cleaning
from tfmuscle.records import TEST
from tfmuscle.training import fit
from tfmuscle.training.callbacks import ForegroundDice, newest_backup, read_history, write_history
from tfmuscle.training.schedule import best_epoch
from tfmuscle.workflows import learning
from tfmuscle.workflows.building import build_records
from tfmuscle.workflows.data import phantom

TINY = TrainConfig(
    model="unet",
    model_options={"filters": 4, "levels": 2, "norm": "batch"},
    epochs=3,
    steps=2,
    batch_size=4,
    seed=3,
    recipe=Supervised(augmentation="light"),
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    phantom(folder / "dataset", subjects=4, seed=1, kind="bones", spacing=(4.6, 4.6, 29.0))
    spec = DataSpec.load(_write_spec(folder))
    build_records(folder / "dataset", folder / "records", spec)
    return folder / "records"


def _write_spec(folder):
    labels = read_json(folder / "dataset" / "dataset.json")["labels"]
    content = {
        "label_map": labels,
        "kind": "slices",
        "size": [32, 32],
        "spacing": [29.0, 7.0, 7.0],
        "folds": 2,
        "test": 1,
    }
    write_json(folder / "spec.json", content)
    return folder / "spec.json"


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """A run that was never interrupted."""
    return fit(records, tmp_path_factory.mktemp("trained") / "run", TINY)


class Interrupted(Exception):
    """What a user's progress raises to end a training."""


def fit_until(batches, *arguments, **options):
    """Trains until so many batches are done in all, and is then interrupted."""

    def progress(done, total, note):
        if done == batches:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(*arguments, progress=progress, **options)


def test_foreground_dice_by_hand_and_without_ignored_voxels():
    metric = ForegroundDice(3)
    truth = np.array([[1, 1, 2, 0, IGNORE]])[..., None]
    found = np.array([[1, 0, 2, 2, 1]])
    metric.update_state(truth, np.eye(3, dtype="float32")[found])
    # class 1: TP 1, FN 1 -> 2/3; class 2: TP 1, FP 1 -> 2/3; the ignored voxel counts nowhere
    assert float(metric.result()) == pytest.approx(2 / 3)
    absent = ForegroundDice(3)
    absent.update_state(np.zeros((1, 4, 1), int), np.eye(3, dtype="float32")[[[0, 0, 0, 0]]])
    assert math.isnan(float(absent.result()))


def test_history_survives_its_file(tmp_path):
    rows = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": math.nan}]
    write_history(tmp_path / "history.csv", rows)
    again = read_history(tmp_path / "history.csv")
    assert again[0] == rows[0] and math.isnan(again[1]["loss"])
    assert read_history(tmp_path / "none.csv") == []


def test_a_run_folder_says_how_it_came_about(records, tmp_path):
    seen = []
    run = fit(records, tmp_path / "run", TINY, progress=lambda done, total, note: seen.append((done, total)))
    split = read_json(run / "split.json")
    parts = [set(split[part]) for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1, 2, 1] or [len(part) for part in parts] == [2, 1, 1]
    assert len(set.union(*parts)) == 4  # no subject stands in two parts
    assert {path.name for path in run.iterdir()} >= {
        "best.keras",
        "history.csv",
        "curves.png",
        "about.json",
        "spec.json",
    }
    assert not (run / "state").exists()
    history, about = read_history(run / "history.csv"), read_json(run / "about.json")
    assert len(history) == about["epochs"] == 3 and history[-1]["loss"] < history[0]["loss"]
    assert about["versions"]["keras"] and about["best_epoch"] == best_epoch(history) + 1
    assert seen[-1] == (6, 6)
    with pytest.raises(DataError, match="holds a run already; add --resume"):
        fit(records, run, TINY)
    assert fit(records, run, TINY, resume=True) == run  # complete: left as it is
    assert read_json(run / "about.json") == about


def test_the_same_seed_trains_the_same_network(records, run, tmp_path):
    one = read_history(run / "history.csv")
    two = read_history(fit(records, tmp_path / "two", TINY) / "history.csv")
    # float32 sums in another order on several threads: equal to far below one step's change
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)


def test_an_interrupted_run_resumes_to_the_same_end(records, tmp_path):
    # With dropout, whose random numbers are the easiest to lose.
    config = TrainConfig.from_dict(TINY.to_dict() | {"model_options": TINY.model_options | {"dropout": 0.5}})
    whole = read_history(fit(records, tmp_path / "whole", config) / "history.csv")
    cut = tmp_path / "cut"
    fit_until(3, records, cut, config)  # in the second epoch
    assert len(read_history(cut / "history.csv")) == 1 and not (cut / "about.json").exists()
    assert newest_backup(cut / "state")[1] == 1
    fit(records, cut, config, resume=True)
    again = read_history(cut / "history.csv")
    assert [row["epoch"] for row in again] == [1, 2, 3]
    for key in ("loss", "val_dice", "learning_rate"):
        assert [row[key] for row in again] == pytest.approx([row[key] for row in whole], rel=1e-3, abs=1e-5)


def test_a_run_killed_at_any_moment_resumes(records, tmp_path):
    config, run = tmp_path / "train.json", tmp_path / "run"
    TrainConfig.from_dict(TINY.to_dict() | {"epochs": 40}).save(config)
    code = (
        "import sys; from tfmuscle.config import TrainConfig; from tfmuscle.training import fit;"
        "fit(sys.argv[1], sys.argv[2], TrainConfig.load(sys.argv[3]), resume=True)"
    )
    command = [sys.executable, "-c", code, str(records), str(run), str(config)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    deadline = time.monotonic() + 120
    while len(read_history(run / "history.csv")) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read().decode()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    backup, done = newest_backup(run / "state")
    assert done >= 1 and backup.exists()
    before = read_history(run / "history.csv")[:done]
    fit_until(2 * done + 6, records, run, TrainConfig.load(config), resume=True)
    after = read_history(run / "history.csv")
    assert after[:done] == before and len(after) == done + 2  # epochs of two steps, stopped at the end of the third


def test_resuming_with_other_settings_is_refused(records, tmp_path):
    fit_until(2, records, tmp_path / "run", TINY)
    other = TrainConfig.from_dict(TINY.to_dict() | {"learning_rate": 0.5})
    with pytest.raises(DataError, match="learning_rate was 0.001 when the run began and is 0.5 now"):
        fit(records, tmp_path / "run", other, resume=True)


def test_settings_that_cannot_work_are_refused(records, tmp_path):
    with pytest.raises(ValueError, match="fold 2 does not exist: the records have 2 folds"):
        fit(records, tmp_path / "run", TrainConfig.from_dict(TINY.to_dict() | {"fold": 2}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and holds no run"):
        fit(records, tmp_path / "full", TINY)
    assert (tmp_path / "full" / "thesis.txt").read_text(encoding="utf-8") == "precious"


def test_mixed_precision_trains_and_answers_in_float32(records, tmp_path):
    config = TrainConfig.from_dict(TINY.to_dict() | {"precision": "mixed_bfloat16", "epochs": 1})
    run = fit(records, tmp_path / "run", config)
    assert math.isfinite(read_history(run / "history.csv")[0]["loss"])


def test_a_run_killed_before_its_settings_were_written_can_start(records, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text("{}")
    (tmp_path / "run" / ".tmp-123-train.json").write_text("{")
    fit(records, tmp_path / "run", TrainConfig.from_dict(TINY.to_dict() | {"epochs": 1}), resume=True)
    assert (tmp_path / "run" / "about.json").exists()


def test_a_run_killed_after_its_early_stop_does_not_train_on(records, tmp_path):
    recipe = TINY.to_dict()["recipe"] | {"patience": 1}
    config = TrainConfig.from_dict(TINY.to_dict() | {"recipe": recipe, "epochs": 9, "learning_rate": 1e-9})
    run = fit(records, tmp_path / "run", config)
    before = read_history(run / "history.csv")
    assert len(before) < 9  # nothing is learned at that rate, so patience ends soon
    kept = tmp_path / "killed"
    fit_until(2 * len(before), records, kept, config)  # all but the last epoch are done
    fit(records, kept, config, resume=True)
    assert len(read_history(kept / "history.csv")) == len(before)


def test_an_altered_shard_is_named_before_training(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    name = next(e["file"] for e in read_json(records / "index.json")["shards"] if e["fold"] != TEST)
    shard = copy / name
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: the content has changed"):
        fit(copy, tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_a_spec_with_other_labels_than_the_shards_is_refused(records, tmp_path):
    copy = tmp_path / "records"
    shutil.copytree(records, copy)
    content = read_json(copy / "spec.json")
    content["label_map"] = {"background": 0, "femur": 1}
    write_json(copy / "spec.json", content)
    with pytest.raises(DataError, match="names 2 classes, the shards hold 6"):
        fit(copy, tmp_path / "run", TINY)


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(records, tmp_path):
    config = TrainConfig.from_dict(TINY.to_dict() | {"learning_rate": 1e30})
    with pytest.raises(DataError, match="the loss became .* in epoch .*; train anew with a lower --learning-rate"):
        fit(records, tmp_path / "run", config)


def test_a_damaged_history_is_named(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss\nx,1\n")
    with pytest.raises(DataError, match=r"history\.csv: is no training history"):
        read_history(tmp_path / "history.csv")


@pytest.fixture(scope="module")
def of_a_recipe(records, tmp_path_factory):
    """A run whose recipe asks for class weights, another choice of the epoch, and cleaning."""
    recipe = {"loss": "weighted_cross_entropy", "loss_options": {"class_weights": "dataset"}}
    recipe |= {"selection": "loss", "postprocessing": "cheena"}
    config = TrainConfig.from_dict(TINY.to_dict() | {"recipe": recipe})
    return fit(records, tmp_path_factory.mktemp("recipe") / "run", config)


def test_class_weights_of_the_dataset_are_those_of_its_training_subjects(records, of_a_recipe):
    run = of_a_recipe
    entries = {entry["subject_id"]: entry for entry in read_json(records / "index.json")["shards"]}
    voxels = np.sum([entries[subject]["class_voxels"] for subject in read_json(run / "split.json")["train"]], axis=0)
    weights = keras.models.load_model(run / "best.keras").loss.options["class_weights"]
    assert weights == pytest.approx((1 / voxels) / (1 / voxels).mean())


def test_the_kept_epoch_is_the_one_selected_and_the_cleaning_is_written(of_a_recipe):
    run = of_a_recipe
    rows, about = read_history(run / "history.csv"), read_json(run / "about.json")
    assert about["best_epoch"] == 1 + int(np.argmin([row["val_loss"] for row in rows]))
    assert Cleaning.load(run / "postprocessing.json") == CHEENA


def test_tensorboard_gets_a_log_when_it_is_installed(run):
    pytest.importorskip("tensorboard")
    assert list((run / "tensorboard").rglob("events.out.*"))


def test_what_a_recipe_does_to_these_labels_is_said_before_training(tiny_records, tmp_path, monkeypatch):
    monkeypatch.setattr(learning.training, "fit", lambda *arguments, **options: said.append("training"))
    said = []
    config = learning.plan_training({"model_options": {"filters": 8, "levels": 3}}, recipe={"augmentation": "cheena"})
    learning.fit(tiny_records, tmp_path / "run", config, say=said.append)
    assert len(said) == 2 and said[0].startswith("cheena mirrors") and said[1] == "training"
