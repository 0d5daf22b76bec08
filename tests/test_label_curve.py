"""label-curve: who trains and who tests, going on. Training is stubbed but once; the stub writes what `fit` and
`predict` leave."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle import models
from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.folds import person_of
from tfmuscle.labels import LabelMap
from tfmuscle.training import transfer
from tfmuscle.workflows import label_curve as workflow
from tfmuscle.workflows import label_curve_plan
from tfmuscle.workflows.label_curve import label_curve
from tfmuscle.workflows.label_curve_plan import CurveOptions
from tfmuscle.workflows.pretraining import plan_pretraining, pretrain
from tfmuscle.workflows.processes import claimed

LABELS = LabelMap({1: "tibia", 2: "femur"})
PERSONS = ("p0", "p1", "p2", "p3", "p4", "p5_left", "p5_right")
OPTIONS = {"filters": 2, "levels": 2, "norm": "batch", "pooling": "max"}
SMALL = CurveOptions(sizes=(1, 2), seeds=1, test=2, settings={"epochs": 1, "steps": 1, "batch_size": 4})


def write_scans(folder, names):
    """Noise with two bright boxes, 12 slices of 12 x 12 voxels; labels beside them."""
    array = np.zeros((12, 12, 12), np.uint8)
    array[1:5, 1:5, 2:6], array[7:9, 7:9, 2:10] = 1, 2
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).normal(100, 10, array.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(noise + 50 * array, np.eye(4)), folder / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    about = {"channel_names": {"0": "T1"}, "labels": LABELS.to_dict(), "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {"name": folder.name, "numTraining": len(names), **about})
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Seven legs of six persons."""
    return write_scans(tmp_path_factory.mktemp("data") / "legs", PERSONS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder that learned from two other persons."""
    folder = tmp_path_factory.mktemp("encoder")
    scans = write_scans(folder / "unlabelled", ("u0", "u1"))
    training = {"epochs": 1, "batch_size": 8, "model_options": OPTIONS}
    plan = plan_pretraining(scans, data={"size": (16, 16)}, training=training)
    return pretrain(scans, folder / "encoder", plan).run


def here(function, *arguments, progress=None):
    """Stands for `run_apart`, in this process."""
    return function(*arguments, progress=progress)


class Stub:
    """Stands for training and test; remembers what it was asked to train, and measures a Dice that is known."""

    def __init__(self):
        self.trained, self.fail, self.failures = [], {}, {}

    def __call__(self, function, *arguments, progress=None):
        if progress is not None:
            progress(1, 2, "half")
        ours = {"train_network": self.train, "measure_network": self.measure, "check_models": lambda wanted: None}
        return ours.get(function.__name__, function)(*arguments)

    def train(self, records, run, config, start):
        key = ("random" if start is None else "ssl", config.subjects, config.seed)
        self.trained.append(key)
        if error := self.fail.get(key):
            raise error
        write_json(run / "train.json", config.to_dict())

    def measure(self, folder, dataset):
        subjects = TrainConfig.load(folder / "run" / "train.json").subjects
        dice = subjects / 10 + (0.1 if folder.name.startswith("ssl") else 0.0)
        rows = [{"subject_id": name, "structure": "femur", "dice": dice} for name in ("t0", "t1")]
        write_json(folder / "result.json", {"rows": rows, "failures": self.failures, "hardware": "two cores"})


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    for module in (workflow, label_curve_plan):
        monkeypatch.setattr(module, "run_apart", made)
    return made


def test_a_threshold_that_is_not_used_is_refused(dataset):
    with pytest.raises(ValueError, match="threshold is 0.2, which method gcl does not use; leave it out, or use pcl"):
        plan_pretraining(dataset, method={"method": "gcl", "threshold": 0.2})


def test_only_the_start_of_a_path_is_left_out(tmp_path):
    data, job = SimpleNamespace(root=Path("data/legs")), label_curve_plan.CurveJob
    job = job(data, Path("encoder"), tmp_path / "o", SMALL, None, None, (), (), ())
    told = {"a": f"{tmp_path}/o/x.json: x{tmp_path}/o/y, data/legs/z and mydata/legs ./w"}
    assert workflow._shortened(job, told) == {"a": f"x.json: x{tmp_path}/o/y, legs/z and mydata/legs ./w"}


class TestWorkflow:
    def test_all_are_trained_once_and_the_figures_are_right(self, dataset, encoder, tmp_path, stub):
        seen, said = [], []
        asked = dataclasses.replace(SMALL, seeds=2)
        result = label_curve(
            dataset, tmp_path / "o", encoder, asked, progress=lambda *told: seen.append(told), say=said.append
        )
        assert not said and stub.trained == [
            (arm, size, seed) for seed in (0, 1) for size in (1, 2) for arm in ("ssl", "random")
        ]
        assert not result.failures and [line["difference"] for line in result.table] == pytest.approx([0.1, 0.1])
        assert [line["ssl_mean"] for line in result.table] == pytest.approx([0.2, 0.3])
        told = [one for one in seen if "labelled" in one[2]]
        assert [done for done, *_ in told] == sorted(done for done, *_ in told) and told[-1][0] == told[-1][1]
        assert {path.suffix for path in (tmp_path / "o").glob("curve.*")} == {".csv", ".json", ".html", ".png"}
        page = (tmp_path / "o" / "curve.html").read_text(encoding="utf-8")
        assert "Casali" in page and str(tmp_path) not in page and str(encoder.parent) not in page
        about = read_json(tmp_path / "o" / "about.json")
        assert len(about["order"]["0"]) == 4 and sorted(about["order"]["0"]) == sorted(about["order"]["1"])
        assert DataSpec.load(tmp_path / "o/records/spec.json").size == (16, 16)  # the encoder's
        label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(asked, sizes=(1, 2, 4)))
        assert [key[1] for key in stub.trained[8:]] == [4] * 4  # more may be asked for; what is done is done
        result = label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, sizes=(2,)))
        assert [line["subjects"] for line in result.table] == [1, 2, 4] and "ssl_seed_1" in result.table[0]
        assert (result.context["seeds"], result.context["networks"]) == ("0, 1", "12 of 12 done")

    def test_a_network_of_which_a_test_scan_failed_is_tested_again(self, dataset, encoder, tmp_path, stub):
        stub.failures = {"t1": "no memory"}
        result = label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, sizes=(1,)))
        assert result.failures["ssl, 1 labelled, seed 0, t1"] == "no memory"
        assert result.context["networks"] == "0 of 2 done"
        stub.failures = {}
        result = label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, sizes=(1,)))
        assert not result.failures and result.context["networks"] == "2 of 2 done"

    def test_subjects_that_cannot_be_used_are_in_neither_test_nor_pool(self, encoder, tmp_path, stub):
        data = write_scans(tmp_path / "legs", (*PERSONS, "x0", "x1"))
        (data / "labelsTr/x0.nii.gz").unlink()  # x1 has no labels that can be read
        (data / "labelsTr/x1.nii.gz").write_bytes(b"damaged")
        asked = dataclasses.replace(SMALL, sizes=(5,), test=2)
        with pytest.raises(ValueError, match="subjects is 5; the pool has 4 persons, and 2 are held out"):
            label_curve(data, tmp_path / "o", encoder, asked)
        assert not stub.trained
        result = label_curve(data, tmp_path / "o", encoder, dataclasses.replace(asked, sizes=(1,)))
        assert list(result.failures) == ["x1, records"] and "4 labelled persons in the pool" in result.context["data"]
        assert "x1" not in read_json(tmp_path / "o/about.json")["order"]["0"]
        scan = data / "imagesTr/p0_0000.nii.gz"
        scan.write_bytes((data / "imagesTr/p1_0000.nii.gz").read_bytes())
        with pytest.raises(DataError, match="files of 1 subjects have changed .*, e.g. those of p0; name another"):
            label_curve(data, tmp_path / "o", encoder, asked)

    def test_a_failure_is_reported_and_an_interrupt_goes_on(self, dataset, encoder, tmp_path, stub):
        stub.fail = {("ssl", 1, 0): DataError("the disk\nis full"), ("random", 2, 0): RuntimeError("Bug: x")}
        result = label_curve(dataset, tmp_path / "o", encoder, SMALL)
        assert result.failures == {
            "ssl, 1 labelled, seed 0": "the disk is full",
            "random, 2 labelled, seed 0": f"Bug: x (see {tmp_path / 'o/seed_0/random_002/error.txt'})",
        }
        page = (tmp_path / "o" / "curve.html").read_text(encoding="utf-8")
        assert "(see seed_0/random_002/error.txt)" in page and str(tmp_path) not in page
        assert len(stub.trained) == 4 and math.isnan(result.table[0]["difference"])
        stub.fail = {("ssl", 1, 0): KeyboardInterrupt()}
        with pytest.raises(KeyboardInterrupt):
            label_curve(dataset, tmp_path / "o", encoder, SMALL)
        stub.fail = {}
        assert not label_curve(dataset, tmp_path / "o", encoder, SMALL).failures
        assert stub.trained[4:] == [("ssl", 1, 0)] * 2 + [("random", 2, 0)]
        assert not list((tmp_path / "o").rglob("claim-*")) and not list((tmp_path / "o").rglob("error.txt"))

    def test_a_network_another_process_is_at_is_left_to_it(self, dataset, encoder, tmp_path, stub):
        (tmp_path / "o").mkdir()
        label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, sizes=(1,)))
        with claimed(tmp_path / "o/seed_0/ssl_002"):
            result = label_curve(dataset, tmp_path / "o", encoder, SMALL)
        assert list(result.waiting) == ["ssl, 2 labelled, seed 0"] and ("ssl", 2, 0) not in stub.trained

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sizes": (1, 5)}, "subjects is 5; the pool has 4 persons, and 2 are held out"),
            ({"sizes": (0,)}, "subjects is 0"),
            ({"seeds": 0}, "seeds is 0; at least one"),
            ({"test": 0}, "test is 0; a number of persons"),
            ({"preset": "demo"}, "preset demo has no pre-training; casali_pcl has"),
            ({"test": 50}, r"test is 50; there are 6 labelled persons.*hold out fewer \(--test\)"),
            ({"test": 1.5}, "test is 1.5; a number of persons"),
            ({"settings": {"seed": 3}}, "seed is no setting here; --seeds decides it"),
            ({"settings": {"subjects": 3}}, r"subjects is no setting here; -n \(--subjects\) decides it"),
            ({"settings": {"model": "attention_unet"}}, "model is 'attention_unet', and 'unet' in the encoder; leave"),
            ({"settings": {"model_options.filters": 4}}, "model_options.filters is 4, and 2 in the encoder"),
            ({"settings": {"epoch": 3}}, "did you mean 'epochs'"),
        ],
    )
    def test_what_cannot_be_asked_for(self, dataset, encoder, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, **changes))
        assert not (tmp_path / "o").exists()

    def test_a_folder_is_of_one_curve(self, dataset, encoder, tmp_path, stub):
        label_curve(dataset, tmp_path / "o", encoder, SMALL)
        for changes, message in (
            ({"test": 1}, "about.json: the test had other subjects than now"),
            ({"settings": {"epochs": 2}}, "about.json: settings was .* and is .* now; name another folder"),
        ):
            with pytest.raises(DataError, match=message):
                label_curve(dataset, tmp_path / "o", encoder, dataclasses.replace(SMALL, **changes))
        (tmp_path / "o/seed_0/ssl_001/result.json").write_text('{"rows": [{}]}', encoding="utf-8")
        result = label_curve(dataset, tmp_path / "o", encoder, SMALL)
        assert "is damaged ('subject_id'); remove it" in result.failures["ssl, 1 labelled, seed 0"]
        assert len(result.table) == 2 and len(stub.trained) == 4  # the others are shown, nothing is trained
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "letter.txt").touch()
        with pytest.raises(DataError, match="is not empty and holds no label curve"):
            label_curve(dataset, tmp_path / "letters", encoder, SMALL)

    def test_an_encoder_that_cannot_be_used(self, dataset, encoder, tmp_path, stub):
        label_curve(dataset, tmp_path / "o", encoder, SMALL)
        about = read_json(tmp_path / "o" / "about.json")
        test, pool = about["test"], about["pool"]
        other = tmp_path / "other"
        other.mkdir()
        with pytest.raises(DataError, match="other: holds no best.keras to start from"):
            label_curve(dataset, tmp_path / "p", other, SMALL)
        for name in ("best.keras", "spec.json", "train.json"):
            (other / name).write_bytes((encoder / name).read_bytes())
        with pytest.raises(DataError, match="other: holds no encoder; give a run folder that 'tfmuscle pretrain' made"):
            label_curve(dataset, tmp_path / "p", other, SMALL)
        write_json(other / "pretraining.json", read_json(encoder / "pretraining.json"))
        with pytest.raises(DataError, match="other: pre-training has not finished"):
            label_curve(dataset, tmp_path / "p", other, SMALL)
        write_json(other / "about.json", read_json(encoder / "about.json"))
        write_json(other / "split.json", {"train": [test[0], pool[0]]})
        said = []
        result = label_curve(dataset, tmp_path / "q", other, SMALL, say=said.append)
        assert len(said) == 1 and f"these names in unlabelled: {test[0]}; if they are the same scans" in said[0]
        assert result.context["note"] == said[0]
        write_json(other / "spec.json", read_json(other / "spec.json") | {"name": "legs", "scale": "laptop"})
        with pytest.raises(DataError, match=f"learned from {test[0]}, whom the test needs.*--leave-out {test[0]}$"):
            label_curve(dataset, tmp_path / "p", other, SMALL)
        write_json(other / "split.json", {"train": [f"{person_of(test[0])}_left"]})  # another leg of that person
        with pytest.raises(DataError, match="whom the test needs"):
            label_curve(dataset, tmp_path / "p", other, SMALL)
        assert not (tmp_path / "p").exists()
        write_json(other / "split.json", {"train": [pool[0]]})
        said = []
        assert label_curve(dataset, tmp_path / "p", other, SMALL, say=said.append).reduced
        assert said == ["the encoder has seen scans of 1 of the 4 persons of the pool, without their labels"]
        (other / "best.keras").write_bytes(b"another")
        with pytest.raises(DataError, match="about.json: encoder was .* and is .* now"):
            label_curve(dataset, tmp_path / "p", other, SMALL)

    def test_the_command(self, dataset, encoder, tmp_path, stub):
        words = ["label-curve", "-i", dataset, "-o", tmp_path / "o", "--from", encoder, "-n", 1, "--seeds", 1]
        words = [str(word) for word in [*words, "--test", 2, "--set", "epochs=1", "--set", "size=[24,24]"]]
        result = CliRunner().invoke(tfmuscle_group, words)
        assert result.exit_code == 0, result.output
        assert "+0.100" in result.output and "Note: " in result.stderr and "size is (16, 16) there" in result.stderr
        stub.fail = {("ssl", 2, 0): DataError("no memory")}
        result = CliRunner().invoke(tfmuscle_group, [*words, "-n", "2"])
        assert result.exit_code == 1 and "Failed: ssl, 2 labelled, seed 0: no memory" in result.stderr
        result = CliRunner().invoke(tfmuscle_group, [*words, "-n", "9"])
        assert result.exit_code == 2 and "the pool has 4 persons" in result.stderr


def test_real_trainings_and_tests(dataset, encoder, tmp_path, monkeypatch):
    """One step of training for each of four networks, for real but in this process."""
    first = {}
    made = transfer.take_weights

    def take_weights(model, source, **options):
        found = made(model, source, **options)
        first["encoder"] = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
        return found

    for module in (workflow, label_curve_plan):
        monkeypatch.setattr(module, "run_apart", here)
    monkeypatch.setattr(transfer, "take_weights", take_weights)
    out = tmp_path / "o"
    result = label_curve(dataset, out, encoder, SMALL)
    assert not result.failures and [line["subjects"] for line in result.table] == [1, 2]
    folders = {(arm, size): out / f"seed_0/{arm}_{size:03d}" for arm in ("ssl", "random") for size in (1, 2)}
    splits = {key: read_json(folder / "run/split.json") for key, folder in folders.items()}
    test = set(read_json(out / "about.json")["test"])
    for (arm, size), split in splits.items():
        assert set(split["test"]) == test and test.isdisjoint(split["train"]) and not split["validation"]
        assert len(set(map(person_of, split["train"]))) == size
        assert split == splits["ssl" if arm == "random" else "random", size]
        assert {one["subject_id"] for one in read_json(folders[arm, size] / "result.json")["rows"]} == test
        assert (folders[arm, size] / "run/transfer.json").exists() == (arm == "ssl")
    assert set(splits["ssl", 1]["train"]) < set(splits["ssl", 2]["train"])
    note = read_json(folders["ssl", 1] / "run/transfer.json")
    assert read_json(folders["ssl", 1] / "result.json")["layers_taken"] == len(note["layers_taken"])
    assert read_json(folders["random", 1] / "result.json")["layers_taken"] == 0
    assert note["layers_taken"] and all(name.startswith("encoder") for name in note["layers_taken"])
    source = models.load(encoder / "best.keras")
    for name in note["layers_taken"]:
        for mine, theirs in zip(first["encoder"][name], source.get_layer(name).get_weights(), strict=True):
            assert np.array_equal(mine, theirs)
    assert len({(folders[arm, 1] / "run/train.json").read_bytes() for arm in ("ssl", "random")}) == 1  # one recipe
    content = json.loads((out / "curve.json").read_text(encoding="utf-8"))
    assert len(content["networks"]) == 4 and content["published"]["dice"]["ssl"]["1"] == 0.631
    times = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = label_curve(dataset, out, encoder, SMALL)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == times
    assert str(again.table) == str(result.table)  # NaN is not equal to itself
