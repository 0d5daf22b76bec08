"""Records of whole scans, built from a dataset: the same bytes everywhere, read by others, and with a prior."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfmuscle import records
from tfmuscle.errors import DataError
from tfmuscle.files import write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import IGNORE
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.building import build_records
from tfmuscle.workflows.data import plan_spec


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four small scans in nnU-Net's layout."""
    root = tmp_path_factory.mktemp("dataset")
    for number in range(4):
        rng = np.random.default_rng(number)
        ids = np.zeros((20, 24 + number, 12), np.uint8)
        ids[4:14, 6:20, 2:11], ids[8:12, 10:16, 3:9] = 1, 2
        grid = Geometry(ids.shape, np.diag([-1.0, -1.0, 2.0, 1.0]))
        image = Volume(rng.normal(100 + 50 * ids, 10).astype(np.float32), grid)
        write_volume(root / f"imagesTr/leg{number}_0000.nii.gz", image)
        write_volume(root / f"labelsTr/leg{number}.nii.gz", Volume(ids, grid))
    labels = {"background": 0, "muscle": 1, "bone": 2}
    write_json(root / "dataset.json", {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nii.gz"})
    return root


SETTINGS = {"kind": "volumes", "size": (16, 16), "depth": 8, "spacing": (2.5, 1.2, 1.2), "folds": 2, "test": 1,
            "patches": "random", "resampling": "nnunet"}  # fmt: skip


def built(dataset, out, settings=SETTINGS, **how):
    return build_records(dataset, out, plan_spec(read_dataset(dataset), settings), **how)


def test_another_process_writes_the_same_whole_scans_and_verify_finds_them_sound(dataset, tmp_path):
    result = built(dataset, tmp_path / "here")
    there = [str(dataset), str(tmp_path / "there")]
    tests = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {tests!r}); import test_patches_building as t; t.built(*{there})"
    environment = os.environ | {"PYTHONHASHSEED": "7", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    for path in sorted((tmp_path / "here").iterdir()):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name
    found = records.verify(tmp_path / "here")
    assert found.problems == [] and found.shards == 4 and found.samples == result.samples
    index, spec = records.read_index(tmp_path / "here"), records.load_spec(tmp_path / "here")
    scan = records.read_scan(tmp_path / "here" / index.path_of("leg1"), spec)
    assert scan.labels.shape == (10, 21, 17)  # 12 * 2 / 2.5 = 9.6, 25 / 1.2 = 20.8, 20 / 1.2 = 16.7
    counts = np.bincount(scan.labels.ravel(), minlength=3)
    assert index.usable["leg1"]["class_voxels"] == counts.tolist() and counts.min() > 0


# tensorflow-datasets 4.9.10 asks protobuf for the label of a field in the old way; ends when it stops
@pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
def test_tensorflow_datasets_reads_whole_scans(dataset, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is in the extra 'test'")
    built(dataset, tmp_path / "out")
    index, spec = records.read_index(tmp_path / "out"), records.load_spec(tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out")
    examples = list(tfds.as_numpy(builder.as_dataset(split="fold_0+fold_1+test")))
    assert sorted(example["subject_id"].decode() for example in examples) == ["leg0", "leg1", "leg2", "leg3"]
    for example in examples:
        scan = records.read_scan(tmp_path / "out" / index.path_of(example["subject_id"].decode()), spec)
        assert example["image"].dtype == np.float16 and example["labels"].dtype == np.int16
        np.testing.assert_array_equal(example["image"], scan.image)
        np.testing.assert_array_equal(example["labels"], scan.labels)


@pytest.mark.parametrize("drawn_from", ["grid", "random"])
def test_a_prior_makes_its_shards_and_makes_them_stale(dataset, tmp_path, drawn_from):
    settings = SETTINGS | {"prior": True, "patches": drawn_from}
    subjects = read_dataset(dataset).subjects
    (tmp_path / "prior").mkdir()
    for subject in subjects[:3]:
        shutil.copy(subject.labels, tmp_path / "prior" / f"{subject.subject_id}.nii.gz")
    result = built(dataset, tmp_path / "out", settings, prior=tmp_path / "prior")
    assert list(result.failures) == ["leg3"] and "prior/leg3.nii.gz: " in result.failures["leg3"]
    spec = records.load_spec(tmp_path / "out")
    for sample in records.read_shard(tmp_path / "out" / "shard-00000.tfrecord", spec):
        assert sample["image"].shape == (8, 16, 16, 3)
        known = sample["labels"] != IGNORE  # the prior is the labels themselves, resampled by another rule
        agree = [(sample["image"][..., n] > 0) == (sample["labels"] == n) for n in (1, 2)]
        assert np.mean([one[known].mean() for one in agree]) > 0.9
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.tfrecord")}
    _, labels = subjects[1].read(spec.label_map)
    write_volume(tmp_path / "prior" / "leg1.nii.gz", labels.with_array(0 * labels.array))  # it found nothing
    built(dataset, tmp_path / "out", settings, prior=tmp_path / "prior")
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.name for path in before if before[path] != after[path]] == ["shard-00001.tfrecord"]
    for sample in records.read_shard(tmp_path / "out" / "shard-00001.tfrecord", spec):
        assert not sample["image"][..., 1:].any()


def test_a_prior_that_is_missing_or_not_asked_for_is_named(dataset, tmp_path):
    with pytest.raises(DataError, match="these records need the labels of an earlier network; .* with --prior"):
        built(dataset, tmp_path / "out", SETTINGS | {"prior": True})
    with pytest.raises(ValueError, match="but the spec asks for none; leave it out, or set prior in the spec"):
        built(dataset, tmp_path / "out", prior=tmp_path)
    with pytest.raises(DataError, match="nowhere: there is no such folder; name the folder of an earlier network's"):
        built(dataset, tmp_path / "out", SETTINGS | {"prior": True}, prior=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
