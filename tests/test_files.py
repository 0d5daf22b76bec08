"""Files are whole or not there."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from tfmuscle.errors import DataError
from tfmuscle.files import (
    TEMPORARY_PREFIX,
    atomic_path,
    check_outputs,
    check_owner,
    read_json,
    sha256,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "deep" / "a.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.name.startswith(TEMPORARY_PREFIX)
        assert temporary.name.endswith("-a.nii.gz")  # image libraries choose the format by the ending
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole"
    assert names(path.parent) == ["a.nii.gz"]


@pytest.mark.parametrize("error", [RuntimeError("our bug"), KeyboardInterrupt(), FileNotFoundError(2, "elsewhere")])
def test_an_error_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_a_folder_replaces_a_folder_or_vanishes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "run") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise RuntimeError
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["old"]
    with atomic_path(tmp_path / "run") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["new"]


def write_and_die(folder):
    with atomic_path(Path(folder) / "a.txt") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(str(tmp_path),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert all(name.startswith(TEMPORARY_PREFIX) for name in names(tmp_path) if name != "a.txt")


def test_a_full_disk_is_said_in_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DataError, match="a.txt: the disk is full .*; free some space and run again") as caught:
            write_text(tmp_path / "a.txt", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written .*; choose another output"):
        write_text(tmp_path / "file" / "a.txt", "x")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "no folder"
    if Path("/proc/self").is_dir():  # a place that says "no such file" where nobody may make one
        with pytest.raises(DataError, match="cannot be written .*; choose another output"):
            write_text("/proc/tfmuscle.txt", "x")


def test_json_keeps_letters_and_turns_nan_into_null(tmp_path):
    content = {"Größe": [1, 2.5, float("nan")], "in": ({"x": float("nan")}, "ü"), "none": None}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == {"Größe": [1, 2.5, None], "in": [{"x": None}, "ü"], "none": None}
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json")["none"] is None  # the old file is still whole


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b"[1,]"])
def test_a_file_that_is_no_json(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json: not valid JSON .*; mend the file or make it anew") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_json_file_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(DataError, match="none.json: there is no such file; check the path"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read .*; check the path"):
        read_json(tmp_path)


def test_sha256_of_known_texts(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    long = bytes(range(256)) * 10_000  # longer than one chunk
    (tmp_path / "b").write_bytes(long)
    assert sha256(tmp_path / "b") == hashlib.sha256(long).hexdigest()


def test_json_must_be_an_object(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match=r"list\.json: holds list, an object in braces is needed"):
        read_json(tmp_path / "list.json")


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_stays(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        pid, host = temporary.name.removeprefix(TEMPORARY_PREFIX).removesuffix("-a.txt").split("-")
        temporary.write_text("first")
    assert pid == str(os.getpid())
    dead, alive = (tmp_path / f".tmp-{number}-{host}-a.txt" for number in (999999999, os.getppid()))
    elsewhere = tmp_path / ".tmp-999999999-another-a.txt"  # on a shared disk it may be alive there
    for path in (dead, alive, elsewhere):
        path.write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    assert not dead.exists() and alive.exists() and elsewhere.exists()
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole"


def test_an_input_is_never_an_output(tmp_path):
    (tmp_path / "scan").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "scan")
    check_outputs([tmp_path / "new", tmp_path / "scan"], [tmp_path / "new", None, tmp_path])
    for name in ("scan", "link", "../" + tmp_path.name + "/scan"):
        with pytest.raises(DataError, match="is an input and would be lost"):
            check_outputs([tmp_path / "new", tmp_path / name], [tmp_path / "none", tmp_path / "scan"])


def test_only_its_own_json_is_replaced(tmp_path):
    check_owner(tmp_path / "a.json", "tfmuscle x")
    write_json(tmp_path / "a.json", {"made_by": "tfmuscle x"})
    check_owner(tmp_path / "a.json", "tfmuscle x")
    with pytest.raises(DataError, match="holds something else and the names would replace it"):
        check_owner(tmp_path / "a.json", "tfmuscle y")
