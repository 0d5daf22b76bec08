"""Building records when things go wrong: nothing finished is lost, one line says what to do, a rerun ends with the
same bytes. What "the same" is, the undisturbed serial build of the fixture `tiny_records` says."""

import os
import resource
import shutil
import signal
import time

import pytest

import tfmuscle
from tfmuscle import records
from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.sampling import cut
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows import building
from tfmuscle.workflows.building import build_records, build_shard

FIRST, SECOND, THIRD, FOURTH, FIFTH = (f"bones_{number:03d}" for number in range(5))


def die_at_third(job):
    """Stands in for `build_shard` in a worker: the system kills it in the midst of the third subject."""
    if job[0].subject_id == THIRD:
        time.sleep(1)  # the other worker finishes something
        os.kill(os.getpid(), signal.SIGKILL)
    return build_shard(job)


@pytest.fixture
def scans(phantom_dataset, tmp_path):
    return shutil.copytree(phantom_dataset, tmp_path / "scans")  # copy2 keeps the times: the origin stays the same


@pytest.fixture
def spec(tiny_records):
    return records.load_spec(tiny_records)


@pytest.fixture
def built(tiny_records, tmp_path):
    """A finished build that a test may damage."""
    return shutil.copytree(tiny_records, tmp_path / "built")


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.tfrecord")}


def assert_same_files(folder, other):
    """Every file byte by byte, index and notes too."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def after(subject_id, action):
    """A `progress` that does something once a subject is done."""

    def progress(done, total, subject):
        if subject == subject_id:
            action()

    return progress


def test_three_workers_write_the_same_files(scans, tmp_path, spec, tiny_records):
    seen = []
    result = build_records(
        scans, tmp_path / "out", spec, workers=3, progress=lambda done, total, _: seen.append((done, total))
    )
    assert_same_files(tmp_path / "out", tiny_records)
    assert seen == [(number, 5) for number in range(1, 6)]
    assert result.failures == {} and result.samples == records.verify(tmp_path / "out").samples


def test_a_killed_worker_is_one_line_and_a_rerun_makes_only_what_is_missing(
    scans, tmp_path, spec, tiny_records, monkeypatch
):
    out = tmp_path / "out"
    monkeypatch.setattr(building, "build_shard", die_at_third)
    with pytest.raises(DataError, match=rf"a worker was killed \(out of memory\?\) while .*{THIRD}.* were in work;"):
        build_records(scans, out, spec, workers=2)
    monkeypatch.undo()
    kept = times(out)
    assert kept and not (out / "index.json").exists()  # the second may still be in work when the third dies
    with pytest.raises(DataError, match="there is no index, the records are incomplete; run build-records again"):
        records.read_index(out)
    build_records(scans, out, spec)
    assert kept.items() <= times(out).items()
    assert_same_files(out, tiny_records)


def test_an_input_removed_meanwhile_fails_that_subject_alone(scans, tmp_path, spec):
    gone = scans / "imagesTr" / f"{THIRD}_0000.nii.gz"
    result = build_records(scans, tmp_path / "out", spec, progress=after(FIRST, gone.unlink))
    assert list(result.failures) == [THIRD] and f"{gone.name}: there is no such file" in result.failures[THIRD]
    index = records.read_index(tmp_path / "out")
    assert list(index.usable) == [FIRST, SECOND, FOURTH, FIFTH]
    assert records.verify(tmp_path / "out").problems == []


def test_an_input_that_comes_back_finds_its_shard_again(scans, built, spec, tiny_records):
    path = scans / "imagesTr" / f"{THIRD}_0000.nii.gz"
    path.rename(scans / "away")
    before = times(built)
    assert list(build_records(scans, built, spec).failures) == [THIRD]
    assert records.verify(built).problems == [] and THIRD not in records.read_index(built).usable
    (scans / "away").rename(path)
    assert build_records(scans, built, spec).failures == {}
    assert times(built) == before
    assert_same_files(built, tiny_records)


def test_a_shard_removed_meanwhile_is_named(scans, tmp_path, spec, tiny_records):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="shard-00001.tfrecord: was removed or changed while .* makes only what"):
        build_records(scans, out, spec, progress=after(FOURTH, (out / "shard-00001.tfrecord").unlink))
    kept = times(out)
    build_records(scans, out, spec)
    assert len(kept) == 4 and kept.items() <= times(out).items()
    assert_same_files(out, tiny_records)


def test_an_output_folder_removed_meanwhile_is_named(scans, tmp_path, spec, tiny_records):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="out: was removed while the records were being made; run again"):
        build_records(scans, out, spec, progress=after(SECOND, lambda: shutil.rmtree(out)))
    assert not out.exists()
    build_records(scans, out, spec)
    assert_same_files(out, tiny_records)


def test_a_folder_that_vanishes_under_the_writer_is_named(scans, tmp_path, spec, monkeypatch):
    out = tmp_path / "out"

    def cut_and_remove(*what):
        shutil.rmtree(out)
        yield from cut(*what)

    monkeypatch.setattr(building, "cut", cut_and_remove)
    with pytest.raises(DataError, match="shard-00000.tfrecord: cannot be written .*; see to its folder and run again"):
        build_records(scans, out, spec)


def test_a_full_disk_ends_the_build_at_once_and_it_resumes(scans, tmp_path, spec, tiny_records):
    """A limit on file size stands in for the full disk: the write fails in the same place."""
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = after(SECOND, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1])))
    try:
        with pytest.raises(DataError, match="shard-00002.tfrecord: the disk is full"):
            build_records(scans, out, spec, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = times(out)
    assert sorted(kept) == ["shard-00000.tfrecord", "shard-00001.tfrecord"]
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp-")]
    build_records(scans, out, spec)
    assert kept.items() <= times(out).items()
    assert_same_files(out, tiny_records)


def test_too_little_memory_ends_the_build(scans, tmp_path, spec, monkeypatch):
    def hungry(*_):
        raise MemoryError

    monkeypatch.setattr(building, "preprocess", hungry)
    with pytest.raises(DataError, match=f"{FIRST}: not enough memory; run again, with fewer --workers"):
        build_records(scans, tmp_path / "out", spec)


def test_a_rerun_touches_nothing_and_mends_what_is_damaged(scans, built, spec, tiny_records):
    before = times(built)
    build_records(scans, built, spec)
    assert times(built) == before
    for name in ("shard-00001.tfrecord", "shard-00003.json", "index.json", "features.json", "dataset_info.json"):
        content = bytearray((built / name).read_bytes())
        content[len(content) // 2] ^= 4
        (built / name).write_bytes(content)
    (built / "shard-00004.tfrecord").unlink()
    build_records(scans, built, spec)
    changed = {name for name, moment in times(built).items() if moment != before[name]}
    assert changed == {f"shard-0000{number}.tfrecord" for number in (1, 3, 4)}
    assert_same_files(built, tiny_records)


def test_a_rebuild_that_breaks_off_leaves_no_list_of_shards_that_changed(scans, built, spec, tiny_records):
    (built / "shard-00001.tfrecord").unlink()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_records(scans, built, spec, progress=after(SECOND, interrupt))
    assert not (built / "index.json").exists() and not (built / "dataset_info.json").exists()
    build_records(scans, built, spec)
    assert_same_files(built, tiny_records)


def test_a_changed_scan_and_another_version_make_shards_anew(scans, built, spec, monkeypatch):
    before = times(built)
    label = scans / "labelsTr" / f"{SECOND}.nii.gz"
    os.utime(label, ns=(1, 1))
    build_records(scans, built, spec)
    assert [name for name, moment in times(built).items() if moment != before[name]] == ["shard-00001.tfrecord"]
    between = times(built)
    monkeypatch.setattr(tfmuscle, "__version__", "99.0")
    build_records(scans, built, spec)
    assert all(moment != between[name] for name, moment in times(built).items())


def test_subjects_and_leftovers_that_are_gone_leave_no_shard(scans, built, spec):
    (built / ".tmp-1-shard-00000.tfrecord").write_bytes(b"half")
    (built / "shard-00000.failed.json").write_text("{}")
    for folder in ("imagesTr", "labelsTr"):
        for path in (scans / folder).glob(f"{FIFTH}*"):
            path.unlink()
    build_records(scans, built, spec)
    assert records.verify(built).problems == []
    assert sorted(path.name for path in built.glob("*shard*")) == [
        f"shard-0000{number}.{ending}" for number in range(4) for ending in ("json", "tfrecord")
    ]


def test_when_no_subject_can_be_used_the_folder_is_free_again(scans, tmp_path, spec):
    for path in (scans / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 5 subjects could be used; the first: .*bones_000"):
        build_records(scans, tmp_path / "out", spec)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_shard_is_one_call(phantom_dataset, tmp_path, spec, tiny_records):
    """What Beam, the pool and the serial build all call, called by hand."""
    subject = next(s for s in read_dataset(phantom_dataset).subjects if s.subject_id == FOURTH)
    spec.save(tmp_path / "spec.json")
    note = build_shard((subject, tmp_path / "shard-00003.tfrecord", spec))
    entry = records.read_index(tiny_records).usable[FOURTH]
    assert {"fold": entry["fold"]} | note == entry == {"fold": entry["fold"]} | read_json_note(tiny_records)


def read_json_note(folder):
    content = read_json(folder / "shard-00003.json")
    content.pop("sha256_of_the_rest")
    return content
