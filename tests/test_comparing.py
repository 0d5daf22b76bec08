"""cross-validate and study: folds, going on, failures, two processes. Training is stubbed but once; the stub writes
what `fit` and `predict` leave, with labels whose figures are known."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.folds import assign_folds
from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import measure
from tfmuscle.records import RecordIndex
from tfmuscle.workflows import comparing, deciding, fold_jobs, summarising
from tfmuscle.workflows.comparing import cross_validate, study
from tfmuscle.workflows.processes import claimed

LABELS = LabelMap({1: "tibia", 2: "femur"})
SAMPLES = {"spacing": [4, 4, 4], "size": [32, 32], "kind": "slices"}


def truth(number):
    """A tibia of 4x4x4 voxels and a femur of 2x2x8."""
    array = np.zeros((12, 12, 12), np.uint8)
    array[1:5, 1:5, 2:6], array[7:9, 7:9, 2:10] = 1, 2
    return np.roll(array, number % 2, axis=2)


@pytest.fixture
def dataset(tmp_path):
    """Seven legs of six persons; the last one has both."""
    root = tmp_path / "legs"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    names = [f"p{number}" for number in range(5)] + ["p5_left", "p5_right"]
    for number, name in enumerate(names):
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        noise = np.random.default_rng(number).normal(100, 10, (12, 12, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise + 50 * truth(number), affine), root / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(truth(number), affine), root / "labelsTr" / f"{name}.nii.gz")
    about = {"channel_names": {"0": "T1"}, "labels": LABELS.to_dict(), "numTraining": 7, "file_ending": ".nii.gz"}
    write_json(root / "dataset.json", {"name": "legs", **about})
    return root


class Stub:
    """Stands for training and prediction, in this process; remembers what it was asked to do."""

    def __init__(self, dataset):
        self.dataset, self.trained, self.fail, self.made, self.checks = dataset, [], {}, 0, False
        self.choosing = []
        """Of each training the fold left out and the one that chooses the epoch."""
        self.priors = set()
        self.shift = {}
        """preset -> voxels by which its predictions are off."""

    def __call__(self, function, *arguments, progress=None):
        if progress is not None:
            progress(1, 2, "half")
        ours = {"check_models": self.check, "make_records": self.records}
        ours |= {"train": self.train, "predict_and_measure": self.predict}
        return ours.get(function.__name__, function)(*arguments)  # the choice of cleaning is the real one

    def check(self, wanted):
        if self.checks:
            fold_jobs.check_models(wanted)

    def records(self, root, folder, spec, workers, prior):
        self.made += 1
        self.priors.add(prior)
        write_json(folder / "index.json", {})

    def index(self, folder):
        assert (folder / "index.json").exists()
        entries = [{"subject_id": path.name[:-7], "status": "ok", "samples": 12, "file": ""} for path in self.legs()]
        return RecordIndex(folder, tuple(entries))

    def legs(self):
        return sorted((self.dataset / "labelsTr").iterdir())

    def train(self, records, run, config):
        left_out = config.fold if config.left_out < 0 else config.left_out
        self.choosing.append((left_out, config.fold))
        self.trained.append((config.preset, dict(config.model_options), config.learning_rate, left_out))
        if error := self.fail.get((config.preset, left_out)):
            raise error
        write_json(run / "train.json", config.to_dict())

    def predict(self, folder, dataset, prior):
        config = read_json(folder / "run" / "train.json")
        split = read_json(dataset.parent / "split.json")
        left_out = config["fold"] if config["left_out"] < 0 else config["left_out"]
        ours = sorted(key for key, fold in split.items() if fold == left_out)
        shift, rows = self.shift.get(config["preset"], 0), []
        for key in ours:
            image = nib.load(dataset / "labelsTr" / f"{key}.nii.gz")
            array = np.roll(np.asanyarray(image.dataobj), shift, axis=0)
            (folder / "predictions").mkdir(exist_ok=True)
            path = folder / "predictions" / f"{key}.nii.gz"
            nib.save(nib.Nifti1Image(array, image.affine), path)
            found = measure(read_volume(path), read_volume(dataset / "labelsTr" / f"{key}.nii.gz"), LABELS)
            rows += [{"subject_id": key, **row} for row in found]
        note = {"labels": LABELS.to_dict(), "subjects": ours, "failures": {}, "seconds": dict.fromkeys(ours, 2.0)}
        write_json(folder / "predictions" / "predictions.json", note)
        costs = {"parameters": 30, "trainable_parameters": 20, "training_seconds": 60.0}
        costs |= {"peak_memory_mb": 500.0 + config["fold"], "epochs": 4, "hardware": "two cores"}
        costs |= {"seconds_per_scan": note["seconds"], "predicted": ours, "failures": {}}
        write_json(folder / fold_jobs.RESULT_FILE, {"rows": rows, **costs})


@pytest.fixture
def stub(dataset, tmp_path, monkeypatch):
    made = Stub(dataset)
    for module in (comparing, deciding, fold_jobs, summarising):
        monkeypatch.setattr(module, "run_apart", made)
    monkeypatch.setattr(comparing, "read_index", made.index)
    write_json(tmp_path / "split.json", assign_folds([path.name[:-7] for path in made.legs()], folds=2))
    return made


def compare(dataset, out, *presets, **options):
    return cross_validate(dataset, out, presets, **{"folds": 2, "scale": "laptop", "settings": SAMPLES} | options)


class TestCrossValidation:
    def test_every_subject_is_segmented_once_by_each_and_the_table_is_right(self, dataset, tmp_path, stub):
        stub.shift = {"slices": 1}
        seen = []
        out = tmp_path / "cv"
        result = compare(dataset, out, "slices", "cheena_unet2d", progress=lambda *told: seen.append(told))
        assert not result.failures and not result.waiting and result.reduced
        table = {(line["structure"], line["model"]): line for line in result.table}
        # shifted by one of four voxels: 2*48/(2*64); by one of two: 1/2. The other model is perfect
        assert table["tibia", "slices"]["dice_mean"] == pytest.approx(0.75)
        assert table["femur", "slices"]["dice_mean"] == pytest.approx(0.5)
        assert table["femur", "slices"]["hausdorff_95_mean"] == pytest.approx(4.0)
        assert table["tibia", "cheena_unet2d"]["dice_mean"] == 1.0
        assert table["tibia", "cheena_unet2d"]["published_dice_mean"] == 0.78
        first = table["tibia", "slices"]
        assert (first["n"], first["n_failed"], first["parameters"], first["trainable_parameters"]) == (7, 0, 30, 20)
        assert (first["training_seconds"], first["seconds_per_scan"], first["peak_memory_mb"]) == (60, 2, 501)
        # six persons, all with the same difference of .375: p = 2/64, and no correction for a single pair
        (test,) = result.tests
        assert (test["n"], test["p_holm"], test["median_difference"]) == (6, 2 / 64, -0.375)
        assert test["verdict"] == "cheena_unet2d is better"
        assert result.context["split"] == "2 folds by person, seed 0" and result.context["hardware"] == "two cores"
        assert result.context["data"] == "legs: 7 subjects of 6 persons"
        for name in ("slices", "cheena_unet2d"):
            assert len(list((out / name / "predictions").glob("*.nii.gz"))) == 7
            assert len(read_json(out / name / "predictions" / "predictions.json")["subjects"]) == 7
        assert {path.suffix for path in out.glob("comparison.*")} == {".csv", ".json", ".html"}
        assert str(tmp_path) not in (out / "comparison.html").read_text(encoding="utf-8")
        trainings = [told for told in seen if "fold" in told[2]]
        assert [done for done, *_ in trainings] == sorted(done for done, *_ in trainings)
        assert trainings[-1][0] == trainings[-1][1]

    def test_both_legs_of_a_person_are_left_out_together(self, dataset, tmp_path, stub):
        compare(dataset, tmp_path / "cv", "slices")
        folds = [set(read_json(path)["predicted"]) for path in (tmp_path / "cv").glob("slices/fold_*/result.json")]
        assert sorted(map(len, folds)) == [3, 4] and any({"p5_left", "p5_right"} <= fold for fold in folds)

    def test_records_are_made_once_for_equal_samples(self, dataset, tmp_path, stub):
        compare(dataset, tmp_path / "cv", "cheena_unet2d", "cheena_resnet34", settings={"size": [32, 32]})
        assert stub.made == 1 and len(list((tmp_path / "cv").glob("records-*/index.json"))) == 1

    def test_a_finished_fold_is_never_repeated(self, dataset, tmp_path, stub):
        first = compare(dataset, tmp_path / "cv", "slices")
        page = (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")
        shutil.rmtree(next((tmp_path / "cv").glob("records-*")))  # finished folds need none
        second = compare(dataset, tmp_path / "cv", "slices")
        assert len(stub.trained) == 2 and stub.made == 1 and first.table == second.table
        assert (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8") == page

    def test_a_failing_fold_is_reported_and_done_when_asked_again(self, dataset, tmp_path, stub):
        stub.fail = {("slices", 0): DataError("legs: the disk\nis full"), ("cheena_unet2d", 1): RuntimeError("Bug: x")}
        result = compare(dataset, tmp_path / "cv", "slices", "cheena_unet2d")
        assert len(stub.trained) == 4
        assert result.failures["slices, fold 0"] == "legs: the disk is full"
        assert result.failures["cheena_unet2d, fold 1"] == "Bug: x (see cheena_unet2d/fold_1/error.txt)"
        assert {line["folds done"] for line in result.table} == {"1 of 2"}
        assert "the disk is full" in (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")
        stub.fail = {}
        result = compare(dataset, tmp_path / "cv", "slices", "cheena_unet2d")
        assert not result.failures and len(stub.trained) == 6
        assert not list((tmp_path / "cv").rglob("error.txt"))

    def test_an_interrupt_leaves_a_folder_that_goes_on(self, dataset, tmp_path, stub, monkeypatch):
        stub.fail = {("slices", 1): KeyboardInterrupt()}
        monkeypatch.setattr(comparing, "PAGE_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            compare(dataset, tmp_path / "cv", "slices")
        page = (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")  # of what was done so far
        assert "slices, fold 1" in page and "to do" in page and 'http-equiv="refresh" content="30"' in page
        stub.fail = {}
        result = compare(dataset, tmp_path / "cv", "slices")
        assert [fold for *_, fold in stub.trained] == [0, 1, 1] and result.table[0]["n"] == 7
        assert "refresh" not in (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")
        assert not list((tmp_path / "cv").rglob("claim-*"))

    def test_a_fold_another_process_is_at_is_left_to_it(self, dataset, tmp_path, stub):
        compare(dataset, tmp_path / "cv", "cheena_unet2d")
        with claimed(tmp_path / "cv" / "slices" / "fold_1"):
            result = compare(dataset, tmp_path / "cv", "slices")
        assert [fold for *_, fold in stub.trained] == [0, 1, 0]
        assert result.waiting == {"slices, fold 1": "in work: process " + str(os.getpid()) + " on this machine"}
        assert "Not in the tables yet" in (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")

    def test_leave_one_person_out(self, dataset, tmp_path, stub):
        write_json(tmp_path / "split.json", assign_folds(read_json(tmp_path / "split.json"), folds=6))
        result = compare(dataset, tmp_path / "cv", "slices", folds="loocv")
        assert len(stub.trained) == 6 and result.context["split"] == "leave one person out, seed 0"
        assert stub.choosing == [(fold, (fold + 1) % 6) for fold in range(6)]  # the measured person chooses nothing
        assert result.context["kept epoch"].startswith("chosen by the fold after the one left out")

    def test_of_few_folds_the_one_left_out_chooses_and_the_page_says_so(self, dataset, tmp_path, stub):
        write_json(tmp_path / "split.json", assign_folds(read_json(tmp_path / "split.json"), folds=3))
        result = compare(dataset, tmp_path / "cv", "slices", folds=3)
        assert stub.choosing == [(0, 0), (1, 1), (2, 2)] and "optimistic" in result.context["kept epoch"]
        assert "somewhat optimistic" in (tmp_path / "cv" / "comparison.html").read_text(encoding="utf-8")

    def test_subjects_held_out_are_never_touched(self, dataset, tmp_path, stub):
        write_json(tmp_path / "split.json", assign_folds(read_json(tmp_path / "split.json"), folds=2, test=2))
        result = compare(dataset, tmp_path / "cv", "slices", settings=SAMPLES | {"test": 2})
        assert "held out of everything" in result.context["split"] and result.table[0]["n"] < 7
        spec = DataSpec.from_dict(read_json(tmp_path / "cv" / "slices" / "settings.json")["spec"])
        assert spec.test == 2 and spec.preset is None

    def test_cleaning_is_chosen_on_predictions_of_plans(self, dataset, tmp_path, stub, monkeypatch):
        plan = {"mode": "nnunet_v2", "configurations": {"2d": {"data": {}, "training": {}}}}
        monkeypatch.setattr(deciding, "preset_plan", lambda *_, **__: plan)
        made = deciding.plan_spec
        monkeypatch.setattr(deciding, "plan_spec", lambda *a, plan, preset, **b: made(*a, preset="slices", **b))
        result = compare(dataset, tmp_path / "cv", "nnunet_2d")
        assert [line["structure"] for line in result.cleaning] == [
            "tibia",
            "femur",
            "mean of all foreground structures",
        ]
        assert result.cleaning[0] == {
            "model": "nnunet_2d",
            "structure": "tibia",
            "Dice before": "1.000 ± 0.000",
            "Dice after": "1.000 ± 0.000",
            "cleaning": "none",
        }
        assert read_json(tmp_path / "cv" / "nnunet_2d" / "postprocessing.json")["largest"] == []
        (records,) = (tmp_path / "cv").glob("records-*")
        assert read_json(records / "plan.json") == plan == read_json(tmp_path / "cv" / "plan.json")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"folds": 1}, ValueError, "folds is 1; 2 or more"),
            ({"folds": 9}, DataError, "do not fill 9 folds"),
            ({"settings": {"learningrate": 1}}, ValueError, "no setting is called 'learningrate'.*'learning_rate'"),
            ({"settings": {"test": "two"}}, ValueError, "test is 'two'; a number of persons"),
            ({"settings": SAMPLES | {"model_options.filtres": 8}}, ValueError, "slices: unet has no option 'filtres'"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_trained(
        self, dataset, tmp_path, stub, options, error, message
    ):
        stub.checks = True
        with pytest.raises(error, match=message):
            compare(dataset, tmp_path / "cv", "slices", **options)
        assert not stub.trained and not stub.made

    @pytest.mark.parametrize(
        ("presets", "message"),
        [
            ([], "no preset is given"),
            (["slice"], "no preset is called 'slice'; did you mean 'slices'"),
            (["slices", "slices"], "'slices' is given twice"),
            (["nnunet_3d_cascade"], "name preset nnunet_3d_lowres as well"),
        ],
    )
    def test_presets_are_checked(self, dataset, tmp_path, presets, message):
        with pytest.raises(ValueError, match=message):
            compare(dataset, tmp_path / "cv", *presets)

    def test_a_folder_keeps_its_split_and_its_settings(self, dataset, tmp_path, stub):
        out = tmp_path / "cv"
        compare(dataset, out, "slices")
        with pytest.raises(DataError, match=r"about.json: seed was 0 and is 1 now; name another folder"):
            compare(dataset, out, "slices", seed=1)
        with pytest.raises(DataError, match=r"settings.json: was begun with .*remove .*slices"):
            compare(dataset, out, "slices", settings=SAMPLES | {"epochs": 3})
        for path in (dataset / "labelsTr" / "p0.nii.gz", dataset / "imagesTr" / "p0_0000.nii.gz"):
            path.unlink()
        with pytest.raises(DataError, match=r"other subjects or folds than now"):
            compare(dataset, out, "slices")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "letter.txt").touch()
        with pytest.raises(DataError, match="is not empty and holds no comparison"):
            compare(dataset, tmp_path / "other", "slices")

    def test_a_damaged_settings_file_is_named(self, dataset, tmp_path, stub):
        compare(dataset, tmp_path / "cv", "slices")
        path = tmp_path / "cv" / "slices" / "settings.json"
        write_json(path, {"asked": read_json(path)["asked"]})
        with pytest.raises(DataError, match="settings.json: 'spec'; remove .*trained anew"):
            compare(dataset, tmp_path / "cv", "slices")

    def test_a_cascade_sees_the_out_of_fold_labels_of_its_first_stage(self, dataset, tmp_path, stub, monkeypatch):
        parts = {"3d_lowres": False, "3d_cascade_fullres": True}
        configurations = {name: {"data": {}, "training": {}} for name in parts}
        plan = {"mode": "nnunet_v2", "configurations": configurations}
        monkeypatch.setattr(deciding, "preset_plan", lambda *_, **__: plan)
        made = deciding.plan_spec

        def plan_spec(root, settings, *, preset, **about):
            prior = preset.endswith("cascade")
            return made(root, settings | {"prior": prior}, preset="slices", scale="laptop")

        monkeypatch.setattr(deciding, "plan_spec", plan_spec)
        stub.fail = {("nnunet_3d_lowres", 1): DataError("no memory")}
        result = compare(dataset, tmp_path / "cv", "nnunet_3d_cascade", "nnunet_3d_lowres")
        assert result.failures["nnunet_3d_cascade"] == "its first stage has folds that are not done"
        stub.fail = {}
        result = compare(dataset, tmp_path / "cv", "nnunet_3d_cascade", "nnunet_3d_lowres")
        assert not result.failures and stub.priors == {None, tmp_path / "cv" / "nnunet_3d_lowres" / "predictions"}

    def test_a_dataset_without_labels_is_refused(self, dataset, tmp_path):
        shutil.rmtree(dataset / "labelsTr")
        with pytest.raises(DataError, match="no subject has labels; models are compared on labelled scans"):
            compare(dataset, tmp_path / "cv", "slices")


class TestStudy:
    def test_all_combinations_are_rows_with_the_varied_values(self, dataset, tmp_path, stub):
        vary = {"model_options.filters": [8, 16], "learning_rate": [1e-3, 1e-4]}
        options = {"preset": "slices", "vary": vary, "folds": 2, "fold": 1, "settings": SAMPLES}
        result = study(dataset, tmp_path / "study", **options)
        assert [(o["filters"], rate) for _, o, rate, _ in stub.trained] == list(
            itertools.product([8, 16], [1e-3, 1e-4])
        )
        assert {fold for *_, fold in stub.trained} == {1} and stub.made == 1
        first = result.table[0]
        assert (first["model_options.filters"], first["learning_rate"]) == ("8", "0.001")
        assert first["model"] == "filters=8, learning_rate=0.001" and "only fold 1" in result.context["split"]
        assert {path.suffix for path in (tmp_path / "study").glob("study.*")} == {".csv", ".json", ".html"}
        assert "learning_rate" in (tmp_path / "study" / "study.csv").read_text(encoding="utf-8").splitlines()[0].split(
            ","
        )
        with pytest.raises(ValueError, match="fold is 2; there are folds 0 to 1"):
            study(dataset, tmp_path / "study", **options | {"fold": 2})


class TestCommands:
    def run(self, *words, code):
        result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    def test_a_failing_fold_ends_with_one_and_the_table_is_printed(self, dataset, tmp_path, stub):
        stub.fail = {("slices", 1): DataError("no memory")}
        samples = [word for key, value in SAMPLES.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        words = ["-i", dataset, "-o", tmp_path / "cv", "--folds", 2, "--scale", "laptop", *samples]
        text = self.run("cross-validate", *words, "--preset", "slices", "--preset", "cheena_unet2d", code=1)
        assert "Failed: slices, fold 1: no memory" in text and "reduced" in text and "too few persons" in text
        stub.fail = {}
        text = self.run("study", *words[:2], "-o", tmp_path / "s", *words[4:], "--vary", "epochs=1,2", code=0)
        assert "epochs=2" in text and "study.html" in text

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["cross-validate", "--preset", "slices", "--folds", "many"], "neither a number nor loocv"),
            (["cross-validate", "--preset", "slices", "--set", "epochs"], "is not FIELD=VALUE"),
            (["study", "--vary", "epoch=1,2"], "did you mean 'epochs'"),
            (["study", "--vary", "epochs"], "is not FIELD=A,B"),
        ],
    )
    def test_misuse(self, dataset, tmp_path, words, message):
        text = self.run(words[0], "-i", dataset, "-o", tmp_path / "cv", *words[1:], code=2)
        assert message in " ".join(text.split())


def test_real_training_and_prediction_of_one_fold(dataset, tmp_path, monkeypatch):
    """One step of training, for real but in this process."""

    def here(function, *arguments, progress=None):
        return function(*arguments, progress=progress)

    for module in (comparing, deciding, fold_jobs, summarising):
        monkeypatch.setattr(module, "run_apart", here)
    settings = SAMPLES | {"epochs": 1, "steps": 1, "model_options.filters": 4, "model_options.levels": 2}
    options = {"preset": "slices", "vary": {"loss": ["dice"]}, "folds": 4, "fold": 3, "scale": "laptop"}
    started = time.monotonic()
    result = study(dataset, tmp_path / "cv", **options, settings=settings)
    fold = tmp_path / "cv" / "loss=dice" / "fold_3"
    assert not result.failures
    measured, split = read_json(fold / "result.json"), read_json(fold / "run" / "split.json")
    parts = [set(split[part]) for part in ("train", "validation", "left_out")]
    assert set(measured["predicted"]) == parts[2] and all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == 7  # no leg stands in two parts
    assert 0 < measured["training_seconds"] <= time.monotonic() - started
    assert measured["parameters"] >= measured["trainable_parameters"] > 100
    assert measured["epochs"] == 1 and measured["peak_memory_mb"] > 50
    assert all(0 < seconds < 600 for seconds in measured["seconds_per_scan"].values())
    assert result.table[0]["n"] == len(split["left_out"]) and Path(fold / "report" / "report.html").exists()
    before = (fold / "result.json").stat().st_mtime_ns
    study(dataset, tmp_path / "cv", **options, settings=settings)
    assert (fold / "result.json").stat().st_mtime_ns == before
