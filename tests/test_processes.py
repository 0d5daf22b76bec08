"""Work in other processes, and claims: really other processes, some of them killed."""

import json
import os
import socket
import threading
import time

import process_samples
import pytest

from tfmuscle.errors import DataError
from tfmuscle.workflows.processes import claimed, claimed_in_turn, peak_memory_mb, run_apart


def test_work_is_done_in_another_process():
    told = []
    assert run_apart(process_samples.add, 1, 2, progress=lambda *note: told.append(note)) == 3
    assert told == [(1, 1, "added")]
    assert run_apart(process_samples.process_number) != os.getpid()
    assert peak_memory_mb() > 10


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("data", DataError, "leg 3 is broken"),
        ("value", ValueError, "leg 3 is broken"),
        ("bug", RuntimeError, "KeyError: 'leg 3 is broken'"),
        ("memory", DataError, "not enough memory"),
        ("killed", DataError, r"was killed \(exit code -9; out of memory\?\); run again"),
    ],
)
def test_what_goes_wrong_there_is_told_here(kind, error, message):
    with pytest.raises(error, match=message) as caught:
        run_apart(process_samples.fail, kind)
    assert kind != "bug" or "Traceback" in caught.value.__notes__[0]


def test_what_is_still_at_work_there_is_not_waited_for():
    started = time.monotonic()
    assert run_apart(process_samples.linger, 600) == "done"
    assert time.monotonic() - started < 25  # after 30 s it would be killed


def test_a_claim_holds_until_it_is_given_back(tmp_path):
    with claimed(tmp_path) as other:
        assert other == ""
        with claimed(tmp_path) as second:
            assert second == f"process {os.getpid()} on this machine"
        with claimed(tmp_path, name="other") as third:
            assert third == ""
    with claimed(tmp_path) as other:
        assert other == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "free"),
    [
        ({"host": socket.gethostname(), "process": 2**22 + 1, "started": None}, True),  # no such process
        (
            {"host": socket.gethostname(), "process": os.getpid(), "started": "another time"},
            True,
        ),  # number used again
        ({"host": "elsewhere", "process": 2**22 + 1, "started": None}, False),
        ({"host": socket.gethostname(), "process": os.getpid(), "started": None}, False),
        ({}, False),  # is being written
    ],
)
def test_stale_claims_are_taken_over(tmp_path, content, free):
    (tmp_path / "claim-0.json").write_text(json.dumps(content) if content else "")
    with claimed(tmp_path) as other:
        assert (other == "") == free
    if not content:
        os.utime(tmp_path / "claim-0.json", (1, 1))  # never was
        with claimed(tmp_path) as other:
            assert other == ""


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path):
    begun = threading.Event()

    def told(done, total, note):
        begun.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_apart(process_samples.hold, str(tmp_path), 60, progress=told)
    assert begun.is_set() and list(tmp_path.iterdir())  # it died with the claim in hand
    with claimed_in_turn(tmp_path, seconds=0.01):
        pass


def test_two_processes_never_hold_one_folder(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    (tmp_path / "work").mkdir()
    dead = {"host": socket.gethostname(), "process": 2**22 + 1, "started": None}
    (tmp_path / "work" / "claim-0.json").write_text(json.dumps(dead))  # both find a stale claim first
    threads = [threading.Thread(target=run_apart, args=(process_samples.count_up, str(path), 25)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text(encoding="utf-8") == "50"


def test_the_folder_must_be_writable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), claimed(tmp_path / "file" / "cv"):
        pass
