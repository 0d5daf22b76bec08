"""Comparisons in folders that somebody has been at: folds thrown away, damaged results, settings that cannot be.

The dataset and the stub of training are those of `test_comparing.py`.
"""

# ruff: noqa: F401, F811 - fixtures

import shutil

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from test_comparing import SAMPLES, compare, dataset, stub

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.folds import assign_folds
from tfmuscle.records import RecordIndex
from tfmuscle.workflows import comparing, deciding


def labels_in(folder):
    return {path.name: np.asanyarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def test_a_fold_done_again_replaces_the_collected_labels(dataset, tmp_path, stub):
    out = tmp_path / "cv"
    compare(dataset, out, "slices")
    before = labels_in(out / "slices" / "predictions")
    shutil.rmtree(out / "slices" / "fold_1")
    stub.shift = {"slices": 1}
    compare(dataset, out, "slices")
    after, again = (
        labels_in(out / "slices" / "predictions"),
        set(read_json(out / "slices/fold_1/result.json")["predicted"]),
    )
    assert len(again) in (3, 4) and before.keys() == after.keys()
    for name, array in after.items():
        assert np.array_equal(array, np.roll(before[name], name.removesuffix(".nii.gz") in again, axis=0)), name


def test_cleaning_is_chosen_anew_on_other_labels_or_when_thrown_away(dataset, tmp_path, stub, monkeypatch):
    plan = {"mode": "nnunet_v2", "configurations": {"2d": {"data": {}, "training": {}}}}
    monkeypatch.setattr(deciding, "preset_plan", lambda *_, **__: plan)
    made = deciding.plan_spec
    monkeypatch.setattr(deciding, "plan_spec", lambda *a, plan, preset, **b: made(*a, preset="slices", **b))
    folder = tmp_path / "cv" / "nnunet_2d"
    assert compare(dataset, tmp_path / "cv", "nnunet_2d").cleaning[0]["Dice before"] == "1.000 ± 0.000"
    (folder / "postprocessing.json").unlink()
    compare(dataset, tmp_path / "cv", "nnunet_2d")
    assert read_json(folder / "postprocessing.json")["largest"] == []
    for number in (0, 1):
        shutil.rmtree(folder / f"fold_{number}")
    stub.shift = {"nnunet_2d": 1}
    # a tibia of four voxels moved by one: 2 * 48 / (64 + 64)
    assert compare(dataset, tmp_path / "cv", "nnunet_2d").cleaning[0]["Dice before"] == "0.750 ± 0.000"


@pytest.mark.parametrize("content", [{}, {"rows": [{"dice": 1}]}, {"rows": 3}, {"rows": []}])
def test_a_damaged_result_is_named(dataset, tmp_path, stub, content):
    compare(dataset, tmp_path / "cv", "slices")
    write_json(tmp_path / "cv" / "slices" / "fold_1" / "result.json", content)
    with pytest.raises(DataError, match=r"fold_1/result\.json: is damaged \(.*\); remove it, and the fold is measured"):
        compare(dataset, tmp_path / "cv", "slices")


@pytest.mark.parametrize("test", [True, float("nan"), -1, float("inf"), None])
def test_who_is_held_out_must_be_a_number(dataset, tmp_path, stub, test):
    with pytest.raises(ValueError, match=f"test is {test}; a number of persons, or a share below 1, is needed"):
        compare(dataset, tmp_path / "cv", "slices", settings=SAMPLES | {"test": test})
    assert not (tmp_path / "cv").exists()


def test_other_persons_held_out_is_another_comparison(dataset, tmp_path, stub):
    compare(dataset, tmp_path / "cv", "slices")
    with pytest.raises(DataError, match="other subjects or folds than now; the dataset or the setting test"):
        compare(dataset, tmp_path / "cv", "slices", settings=SAMPLES | {"test": 1})


@pytest.mark.parametrize("folds", ["²", "five", "-1", "2.5", ""])
def test_folds_that_are_no_number(dataset, tmp_path, folds):
    words = ["cross-validate", "-i", str(dataset), "-o", str(tmp_path / "cv"), "--preset", "slices", "--folds", folds]
    result = CliRunner().invoke(tfmuscle_group, words)
    assert result.exit_code == 2 and f"--folds {folds} is neither a number nor loocv" in result.stderr


def test_what_could_not_be_leaves_no_claim_on_the_folder(dataset, tmp_path, stub):
    stub.checks = True
    with pytest.raises(ValueError, match="unet has no option 'filtres'"):
        compare(dataset, tmp_path / "cv", "slices", settings=SAMPLES | {"model_options.filtres": 8}, seed=1)
    assert not compare(dataset, tmp_path / "cv", "slices").failures
    with pytest.raises(DataError, match="seed was 0 and is 1 now"):
        compare(dataset, tmp_path / "cv", "slices", seed=1)


def test_folders_that_are_none_of_ours(dataset, tmp_path, stub):
    write_json(tmp_path / "run" / "about.json", {"seconds": 3})
    with pytest.raises(DataError, match="made_by was None and is 'tfmuscle cross-validate' now; name another folder"):
        compare(dataset, tmp_path / "run", "slices")
    (tmp_path / "letter.txt").touch()
    with pytest.raises(DataError, match="letter.txt: is a file; name a folder"):
        compare(dataset, tmp_path / "letter.txt", "slices")
    assert not stub.trained


class Damaged:
    """The stub's index, with subjects that have no records."""

    def __init__(self, stub, *damaged):
        self.stub, self.damaged = stub, damaged

    def __call__(self, folder):
        index = self.stub.index(folder)
        failed = {"status": "failed", "error": "p: not a readable image; export it again"}
        entries = [entry | (failed if entry["subject_id"] in self.damaged else {}) for entry in index.entries]
        return RecordIndex(folder, tuple(entries))


def test_of_a_fold_without_a_sound_subject_nothing_is_trained_and_none_is_chosen_by_it(
    dataset,
    tmp_path,
    stub,
    monkeypatch,
):
    split = assign_folds(read_json(tmp_path / "split.json"), folds=6)
    write_json(tmp_path / "split.json", split)
    (damaged,) = [key for key, fold in split.items() if fold == 2]  # a person of one leg
    monkeypatch.setattr(comparing, "read_index", Damaged(stub, damaged))
    result = compare(dataset, tmp_path / "cv", "slices", folds="loocv")
    assert stub.choosing == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 0)]
    assert result.failures[f"{damaged}, records of slices"].startswith("p: not a readable image")
    assert result.failures["slices, fold 2"] == f"no record of {damaged}, whom it leaves out: nothing to measure"
    assert result.context["kept epoch"].startswith("chosen by the fold after the one left out")
    assert {line["folds done"] for line in result.table} == {"5 of 6"}


def test_too_few_sound_folds_to_choose_and_to_train(dataset, tmp_path, stub, monkeypatch):
    split = assign_folds(read_json(tmp_path / "split.json"), folds=6)
    write_json(tmp_path / "split.json", split)
    damaged = [key for key, fold in split.items() if fold not in (0, 3)]
    monkeypatch.setattr(comparing, "read_index", Damaged(stub, *damaged))
    result = compare(dataset, tmp_path / "cv", "slices", folds=6)
    assert stub.choosing == [] and not result.table
    assert (
        result.failures["slices, fold 0"] == "only 2 folds have records; 3 are needed: to train, to choose, to measure"
    )
