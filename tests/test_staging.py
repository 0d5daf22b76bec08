"""Stages: one training after the other, resumable, and in the end one run like any other."""

import dataclasses

import pytest

from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256
from tfmuscle.inference import load_run
from tfmuscle.presets import PRESETS, Preset
from tfmuscle.training.callbacks import read_history
from tfmuscle.workflows.learning import fit, plan_training
from tfmuscle.workflows.staging import stages_of

STEPS, EPOCHS = 2, 2


@pytest.fixture
def staged(monkeypatch):
    """A preset of three stages; the second has another head of coarser outputs, the third another rate."""
    preset = Preset(
        about="a test's",
        training={"model": "unet", "epochs": EPOCHS, "steps": STEPS, "batch_size": 32, "seed": 3},
        stages=({"model_options": {"norm": "instance"}}, {"model_options": {"norm": "none"}}, {"learning_rate": 1e-4}),
    )
    monkeypatch.setitem(PRESETS, "staged", preset)
    return plan_training({"model_options": {"filters": 4, "levels": 2}}, recipe={}, preset="staged")


class Interrupted(Exception):
    """What a user's progress raises to end a training."""


def test_stages_change_what_they_name_and_nothing_else(staged):
    one, two, three = stages_of(staged)
    assert one == dataclasses.replace(staged, model_options=staged.model_options | {"norm": "instance"})
    assert two.model_options == {"filters": 4, "levels": 2, "norm": "none"}
    assert three == dataclasses.replace(staged, learning_rate=1e-4)


def test_who_gives_what_stages_decide_wants_one_training(staged):
    for single in (
        dataclasses.replace(staged, model_options={"norm": "none"}),
        dataclasses.replace(staged, model="resnet34_unet"),
        dataclasses.replace(staged, preset=None),
        TrainConfig(preset="demo"),
    ):
        assert stages_of(single) == [single]


def test_the_stages_of_hdenseunet():
    config = plan_training({"epochs": 2}, recipe={}, preset="hdenseunet")
    assert [stage.model_options["stage"] for stage in stages_of(config)] == ["slices", "volume", "both"]
    assert all(stage.epochs == 2 for stage in stages_of(config))


def test_a_staged_run_hands_weights_on_and_resumes_to_the_same_end(staged, tiny_records, tmp_path):
    seen, said = [], []
    run = fit(
        tiny_records,
        tmp_path / "run",
        staged,
        say=said.append,
        progress=lambda done, total, note: seen.append((done, total)),
    )
    of_all = 3 * EPOCHS * STEPS
    assert seen == [(done, of_all) for done in range(1, of_all + 1)]
    assert said[0] == f"stage 1 of 3 -> {run / 'stages' / '1'}"
    for folder, before in ((run / "stages" / "2", run / "stages" / "1"), (run, run / "stages" / "2")):
        assert read_json(folder / "transfer.json")["weights"] == sha256(before / "best.keras")
    assert not (run / "stages" / "1" / "transfer.json").exists()
    assert read_json(run / "train.json")["learning_rate"] == 1e-4 and load_run(run).warning == ""
    with pytest.raises(DataError, match="holds a run already; add --resume"):
        fit(tiny_records, run, staged)
    whole = [read_history(folder / "history.csv") for folder in (run / "stages" / "1", run / "stages" / "2", run)]

    cut = tmp_path / "cut"
    for batch in (3, 5, 11):  # in stage 1, at the first step of stage 2, and in the last epoch of the run

        def progress(done, total, note, batch=batch):
            if done == batch:
                raise Interrupted

        with pytest.raises(Interrupted):
            fit(tiny_records, cut, staged, resume=True, progress=progress)
    complete = (cut / "stages" / "1" / "history.csv").stat().st_mtime_ns
    fit(tiny_records, cut, staged, resume=True)
    assert (cut / "stages" / "1" / "history.csv").stat().st_mtime_ns == complete  # a finished stage is not repeated
    for rows, folder in zip(whole, (cut / "stages" / "1", cut / "stages" / "2", cut), strict=True):
        found = read_history(folder / "history.csv")
        for key in ("loss", "val_loss"):  # float32 sums in another order, over twelve steps
            assert [row[key] for row in found] == pytest.approx([row[key] for row in rows], rel=2e-3)


def test_a_folder_that_holds_something_else_is_refused_before_the_first_stage(staged, tiny_records, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and holds no run"):
        fit(tiny_records, tmp_path / "run", staged)
    assert not (tmp_path / "run" / "stages").exists()
