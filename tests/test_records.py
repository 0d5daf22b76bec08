"""Records: what is written comes back, the same bytes every time, and every kind of damage is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import records
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import sha256
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.sampling import cut

TWO = LabelMap({1: "muscle", 2: "bone"}, ignore=255)
SPEC = DataSpec(TWO, kind="volumes", size=(6, 8), depth=4)
KINDS = {
    "slices": {"size": (6, 8)},
    "stacks": {"size": (6, 8), "depth": 3},
    "volumes": {"size": (6, 8), "depth": 4},
    "sequences": {"size": (6, 8), "depth": 3},
}
WRITE_IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, {tests!r})
from test_records import SPEC, write
print(write({path!r}, SPEC)["sha256"])
"""


def make_samples(spec, seed=0, shape=(7, 9, 8)):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(*shape, len(spec.channels))).astype(np.float32)
    labels = rng.integers(IGNORE, spec.num_classes, shape).astype(np.int16)
    return list(cut(image, labels, spec))


def write(path, spec, **changes):
    return records.write_shard(path, make_samples(spec, **changes), spec, subject_id="subject_1")


def make_folder(path):
    """Three subjects in folds 0, 1 and TEST, and one that failed."""
    entries = []
    for shard in records.plan_shards({"a": 0, "b": 1, "c": records.TEST}):
        entry = {"file": shard.file, "subject_id": shard.subject_id, "fold": shard.fold, "status": "ok"}
        entries.append(entry | write(path / shard.file, SPEC, seed=shard.index))
    entries.append({"subject_id": "d", "fold": 0, "status": "failed", "error": "d.nii.gz: cut short"})
    for entry in entries[:3]:
        note = {key: value for key, value in entry.items() if key != "fold"}
        records.write_sealed((path / entry["file"]).with_suffix(".json"), note)
    records.write_index(path, entries, SPEC)
    return path


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_come_back(tmp_path, kind):
    spec = DataSpec(TWO, kind=kind, channels=("in", "out"), **KINDS[kind])
    path, samples = tmp_path / "shard.tfrecord", make_samples(spec)
    written = records.write_shard(path, samples, spec, subject_id="subject_1")
    back, loaded = list(records.read_shard(path, spec)), list(records.load_samples([path], spec))
    assert written["samples"] == len(samples) == len(back) == len(loaded)
    for sample, again, (image, labels) in zip(samples, back, loaded, strict=True):
        # float16 keeps 11 significant bits: half a unit in the last place is 2**-11 of the value
        np.testing.assert_allclose(again["image"], sample["image"], rtol=2**-11, atol=1e-7)
        np.testing.assert_array_equal(again["labels"], sample["labels"])
        assert again["start"] == sample["start"] and again["subject_id"] == "subject_1"
        np.testing.assert_array_equal(image, again["image"])
        np.testing.assert_array_equal(labels, sample["labels"])
        assert image.dtype == tf.float32 and labels.dtype == tf.int32
        assert image.shape == spec.input_shape and labels.shape == spec.label_shape


def test_static_shapes_are_known_to_a_model():
    image, labels = records.load_samples([], SPEC).element_spec
    assert image.shape == SPEC.input_shape and labels.shape == SPEC.label_shape


def test_more_than_255_classes_and_ignore_come_back(tmp_path):
    spec = DataSpec(LabelMap({i: f"structure {i}" for i in range(1, 400)}), size=(20, 20))
    labels = np.arange(400, dtype=np.int16).reshape(20, 20) - 1  # IGNORE, 0, ..., 398
    sample = {"image": np.zeros((20, 20, 1), np.float32), "labels": labels, "start": (0, 0, 0)}
    written = records.write_shard(tmp_path / "s.tfrecord", [sample], spec, subject_id="x")
    (back,) = records.read_shard(tmp_path / "s.tfrecord", spec)
    np.testing.assert_array_equal(back["labels"], labels)
    assert written["class_voxels"] == [1] * 399 + [0]  # class 399 is absent, IGNORE is not counted


def test_whole_numbers_up_to_2048_are_exact(tmp_path):
    image = np.arange(-2048, 2049, dtype=np.float32)[: 64 * 64].reshape(64, 64, 1)
    spec = DataSpec(TWO, size=(64, 64), normalisation="none")
    sample = {"image": image, "labels": np.ones((64, 64), np.int16), "start": (0, 0, 0)}
    records.write_shard(tmp_path / "s.tfrecord", [sample], spec, subject_id="x")
    np.testing.assert_array_equal(next(records.read_shard(tmp_path / "s.tfrecord", spec))["image"], image)


def test_two_processes_write_the_same_bytes(tmp_path):
    here = write(tmp_path / "here.tfrecord", SPEC)
    code = WRITE_IN_ANOTHER_PROCESS.format(tests=str(Path(__file__).parent), path=str(tmp_path / "there.tfrecord"))
    environment = os.environ | {"PYTHONHASHSEED": "7", "CUDA_VISIBLE_DEVICES": "-1"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.split()[-1] == here["sha256"] == sha256(tmp_path / "there.tfrecord")
    assert here["bytes"] == (tmp_path / "here.tfrecord").stat().st_size


def test_samples_that_nobody_labelled_are_left_out(tmp_path):
    samples = make_samples(DataSpec(TWO, size=(9, 8)))
    samples[2]["labels"][:] = IGNORE
    samples[5]["labels"][:] = IGNORE
    samples[5]["labels"][0, 0] = 0  # known to be background: kept
    spec = DataSpec(TWO, size=(9, 8))
    written = records.write_shard(tmp_path / "s.tfrecord", samples, spec, subject_id="x")
    starts = [sample["start"][0] for sample in records.read_shard(tmp_path / "s.tfrecord", spec)]
    assert starts == [0, 1, 3, 4, 5, 6] and written["samples"] == 6


def test_a_subject_without_any_label_is_refused_and_leaves_nothing(tmp_path):
    samples = make_samples(SPEC)
    for sample in samples:
        sample["labels"][:] = IGNORE
    with pytest.raises(DataError, match="leg_7: no sample has a labelled voxel; label some slices"):
        records.write_shard(tmp_path / "s.tfrecord", samples, SPEC, subject_id="leg_7")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_intensities_beyond_float16_are_refused(tmp_path, value):
    samples = make_samples(SPEC)
    samples[-1]["image"][0, 0, 0, 0] = value
    with pytest.raises(DataError, match="leg_7: an intensity is NaN, infinite or beyond ±65504"):
        records.write_shard(tmp_path / "s.tfrecord", samples, SPEC, subject_id="leg_7")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [3, -2])
def test_unknown_classes_are_the_callers_error(tmp_path, wrong):
    samples = make_samples(SPEC)
    samples[0]["labels"][0, 0, 0] = wrong
    with pytest.raises(ValueError, match=r"subject_1: class indices .* are not in -1..2"):
        records.write_shard(tmp_path / "s.tfrecord", samples, SPEC, subject_id="subject_1")


def test_samples_of_another_shape_are_the_callers_error(tmp_path):
    samples = make_samples(DataSpec(TWO, size=(6, 8)))
    with pytest.raises(
        ValueError, match=r"a sample has shapes \(6, 8, 1\) and \(6, 8\); the spec needs \(4, 6, 8, 1\)"
    ):
        records.write_shard(tmp_path / "s.tfrecord", samples, SPEC, subject_id="x")


def test_a_write_that_breaks_off_leaves_the_old_shard(tmp_path):
    path = tmp_path / "s.tfrecord"
    before = write(path, SPEC)

    def broken():
        yield make_samples(SPEC, seed=5)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_shard(path, broken(), SPEC, subject_id="x")
    assert sha256(path) == before["sha256"] and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on file sizes needs POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    samples = make_samples(SPEC, shape=(40, 40, 40))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(DataError, match="s.tfrecord: the disk is full"):
            records.write_shard(tmp_path / "s.tfrecord", samples, SPEC, subject_id="x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_numbered_by_id_not_by_order():
    shards = records.plan_shards({"b": 1, "c": records.TEST, "a": 0})
    assert shards == records.plan_shards({"a": 0, "b": 1, "c": records.TEST})
    assert [(s.file, s.subject_id, s.fold) for s in shards] == [
        ("shard-00000.tfrecord", "a", 0),
        ("shard-00001.tfrecord", "b", 1),
        ("shard-00002.tfrecord", "c", -1),
    ]


def test_index_round_trip(folder):
    index = records.read_index(folder)
    assert index.folds == {"a": 0, "b": 1, "c": records.TEST}
    assert index.failures == {"d": "d.nii.gz: cut short"}
    assert index.path_of("b") == "shard-00001.tfrecord"
    assert index.paths((0, 1)) == [folder / "shard-00000.tfrecord", folder / "shard-00001.tfrecord"]
    # (7, 9, 8) in windows of (4, 6, 8), steps (2, 3, 4): 3 x 2 x 1
    assert [index.samples_of(subject) for subject in "abc"] == [6, 6, 6]
    labels = [sample["labels"] for path in index.paths((0,)) for sample in records.read_shard(path, SPEC)]
    assert index.class_voxels((0,)) == [int(sum((block == i).sum() for block in labels)) for i in range(3)]
    assert index.class_voxels((3,)) == []
    assert records.verify(folder).problems == []
    assert records.load_spec(folder) == SPEC
    with pytest.raises(ValueError, match="no shard of subject 'd'; there are a, b, c"):
        index.samples_of("d")


def test_a_leftover_temporary_file_does_not_count(folder):
    (folder / ".tmp-123-shard-00003.tfrecord").write_bytes(b"half a shard")
    assert records.verify(folder).problems == []
    assert len(records.read_index(folder).paths((0, 1, records.TEST))) == 3


def test_missing_and_truncated_shards_are_named(folder):
    path = folder / "shard-00001.tfrecord"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=rf"shard-00001.tfrecord: has {len(whole) - 10} bytes instead of {len(whole)}"):
        records.read_index(folder)
    with pytest.raises(DataError, match="shard-00001.tfrecord: the shard is damaged or cut short; run build-records"):
        records.load_samples([folder / "shard-00000.tfrecord", path], SPEC)
    path.unlink()
    with pytest.raises(DataError, match="shard-00001.tfrecord: the shard is missing; run build-records"):
        records.read_index(folder)
    with pytest.raises(DataError, match="shard-00001.tfrecord: the shard is missing"):
        list(records.read_shard(path, SPEC))
    (problem,) = records.verify(folder).problems
    assert "shard is missing" in problem


@pytest.mark.parametrize("position", [2, 9, 200, -2])  # length, its checksum, content, the content's checksum
def test_a_corrupted_shard_is_named(tmp_path, position):
    path = tmp_path / "shard-00004.tfrecord"
    write(path, SPEC)
    flip_byte(path, position)
    with pytest.raises(DataError, match="shard-00004.tfrecord: .*; run build-records again"):
        list(records.read_shard(path, SPEC))


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" * 40, b"x"])
def test_a_file_that_is_no_shard_is_named(tmp_path, content):
    (tmp_path / "s.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match="s.tfrecord: the shard is damaged or cut short"):
        list(records.read_shard(tmp_path / "s.tfrecord", SPEC))


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"", tf.train.Example().SerializeToString()])
def test_records_of_something_else_are_named(tmp_path, content):
    with tf.io.TFRecordWriter(str(tmp_path / "s.tfrecord")) as writer:
        writer.write(content)
    with pytest.raises(DataError, match="s.tfrecord: holds something else than samples of tfmuscle"):
        list(records.read_shard(tmp_path / "s.tfrecord", SPEC))


def test_shards_of_another_spec_are_named(tmp_path):
    write(tmp_path / "s.tfrecord", SPEC)
    other = DataSpec(TWO, kind="volumes", size=(8, 8), depth=4)
    with pytest.raises(
        DataError, match=r"s.tfrecord: samples have shapes \(4, 6, 8, 1\) .* the spec says \(4, 8, 8, 1\)"
    ):
        records.load_samples([tmp_path / "s.tfrecord"], other)


def test_another_format_version_is_named(folder, monkeypatch):
    for module in (records.examples, records.index):
        monkeypatch.setattr(module, "VERSION", 2)
    path = folder / "shard-00000.tfrecord"
    with pytest.raises(DataError, match="shard-00000.tfrecord: format version 1; this tfmuscle reads version 2"):
        list(records.read_shard(path, SPEC))
    with pytest.raises(DataError, match="index.json: format version 1; this tfmuscle reads version 2"):
        records.read_index(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(format="other"), "is no index of tfmuscle records"),
        (lambda index: index.update(version="1"), "format version '1'"),
        (lambda index: index.update(shards=None), "an entry is incomplete"),
        (lambda index: index["shards"][1].pop("sha256"), "an entry is incomplete"),
        (lambda index: index["shards"].append("x"), "an entry is incomplete"),
        (lambda index: index["shards"][1].update(file="../secret"), "points outside the folder"),
    ],
)
def test_a_damaged_index_is_named(folder, change, message):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"index.json: .*{message}"):
        records.read_index(folder)
    assert len(records.verify(folder).problems) == 1


def test_an_unfinished_folder_says_what_to_do(folder):
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="index.json: there is no index, the records are incomplete; run build-records"):
        records.read_index(folder)
    with pytest.raises(DataError, match="there is no such file"):
        records.read_index(folder / "elsewhere")
    (folder / "spec.json").unlink()
    with pytest.raises(DataError, match="spec.json: there is no such file"):
        records.load_spec(folder)


def test_load_samples_inside_a_graph_keeps_the_order_of_the_paths(folder):
    paths = records.read_index(folder).paths((0, 1))
    names = tf.constant([str(path) for path in reversed(paths)])
    nested = tf.data.Dataset.range(1).flat_map(lambda _: records.load_samples(names, SPEC))
    expected = [sample for path in reversed(paths) for sample in records.read_shard(path, SPEC)]
    for (image, _), sample in zip(nested, expected, strict=True):
        np.testing.assert_array_equal(image, sample["image"])
