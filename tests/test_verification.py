"""`verify` and `verify-records`: every changed bit of a records folder is found and its file is named."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_records import SPEC, flip_byte, make_folder

from tfmuscle import records
from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.files import sha256


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


def test_every_changed_bit_of_every_file_is_found_by_verify(folder):
    """Shards by their checksums, spec and description by those in the index, index and notes by their seals."""
    rng = np.random.default_rng(0)
    files = sorted(folder.iterdir())
    assert len(files) == 3 + 3 + 4  # shards, notes, spec, index and two for TensorFlow Datasets
    for path in files:
        whole = path.read_bytes()
        for position in {0, len(whole) - 1, *rng.integers(0, len(whole), 6).tolist()}:
            content = bytearray(whole)
            content[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
            problems = records.verify(folder).problems
            assert any(str(path) in problem for problem in problems), f"byte {position} of {path.name}: {problems}"
            assert not any(other.name in problem for problem in problems for other in files if other != path), problems
        path.write_bytes(whole)
    assert records.verify(folder).problems == []


def test_what_was_broken_before_its_checksum_was_taken_is_found_too(folder):
    """A shard whose record is damaged or missing, though index and note agree with its bytes."""
    path = folder / "shard-00001.tfrecord"
    whole = path.read_bytes()
    first = 12 + int.from_bytes(whole[:8], "little") + 4  # length, its checksum, the record, its checksum
    altered = bytearray(whole)
    altered[first + 40] ^= 1
    for content, words in ((altered, "a record is damaged"), (whole[:first], "holds 1 samples instead of 6")):
        path.write_bytes(content)
        entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"]
        entries[1] |= {"bytes": len(content), "sha256": sha256(path)}
        note = {key: value for key, value in entries[1].items() if key != "fold"}
        records.write_sealed(path.with_suffix(".json"), note)
        records.write_index(folder, entries, SPEC)
        found = records.verify(folder)
        assert len(found.problems) == 1 and f"shard-00001.tfrecord: {words}; delete the shard" in found.problems[0]
        assert (found.shards, found.samples) == (2, 12)


def test_shards_are_checked_by_their_notes_when_the_index_is_gone(folder):
    (folder / "index.json").unlink()
    flip_byte(folder / "shard-00002.tfrecord", 77)
    found = records.verify(folder)
    assert len(found.problems) == 2 and found.shards == 2
    assert "index.json: there is no such file; check the path; run build-records again" in found.problems[0]
    assert "shard-00002.tfrecord: the content has changed" in found.problems[1]


def test_a_disk_that_cannot_be_read_is_a_problem_of_its_shard(folder, monkeypatch):
    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(records.checking, "check_shard", lambda path, entry: broken(path))
    problems = records.verify(folder).problems
    assert len(problems) == 3
    assert "shard-00000.tfrecord: cannot be read (Input/output error); run build-records again" in problems[0]


def test_strays_and_missing_companions_are_found(folder):
    (folder / "shard-00007.tfrecord").write_bytes(b"")
    (folder / "dataset_info.json").unlink()
    (folder / "shard-00002.json").unlink()
    records.write_sealed(folder / "shard-00000.json", {"file": "shard-00000.tfrecord"})
    problems = "\n".join(records.verify(folder).problems)
    assert len(problems.splitlines()) == 4
    for words in (
        "shard-00007.tfrecord: is not in index.json; run build-records again, which removes it",
        "dataset_info.json: the file is missing; run build-records again",
        "shard-00002.json: there is no such file; check the path; run build-records again",
        "shard-00000.json: says something else than index.json; run build-records again",
    ):
        assert words in problems


def test_an_index_that_was_edited_is_refused(folder):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    index["shards"][0]["fold"] = 1
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")
    with pytest.raises(DataError, match="index.json: has changed since it was written; run build-records again"):
        records.read_index(folder)
    with pytest.raises(DataError, match="index.json: has changed since it was written"):
        records.read_sealed(folder / "index.json")


def test_verify_tells_how_far_it_is_and_what_is_sound(folder):
    seen = []
    found = records.verify(folder, progress=lambda *what: seen.append(what))
    assert seen == [(number + 1, 3, f"shard-0000{number}.tfrecord") for number in range(3)]
    size = sum(path.stat().st_size for path in folder.glob("*.tfrecord"))
    assert (found.shards, found.samples, found.bytes) == (3, 18, size)


def test_the_command_prints_each_problem_and_exits_1(folder):
    result = CliRunner().invoke(tfmuscle_group, ["verify-records", "-i", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0 and "3 shards with 18 samples" in result.stdout
    flip_byte(folder / "shard-00001.tfrecord", 77)
    flip_byte(folder / "spec.json", 5)
    result = CliRunner().invoke(tfmuscle_group, ["verify-records", "-i", str(folder)], catch_exceptions=False)
    lines = result.stderr.splitlines()
    assert result.exit_code == 1 and len(lines) == 2
    assert (
        lines[0].startswith("Damaged: ") and "spec.json: has changed since it was written; put the original" in lines[0]
    )
    assert "shard-00001.tfrecord: the content has changed since it was written; run build-records again" in lines[1]
    assert "2 shards with 12 samples" in result.stdout
    result = CliRunner().invoke(tfmuscle_group, ["verify-records", "-i", str(folder / "none")], catch_exceptions=False)
    assert result.exit_code == 1 and "index.json: there is no such file" in result.stderr
