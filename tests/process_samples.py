"""Work for the processes of test_comparing.py, in a file that a new process imports quickly."""

import atexit
import os
import signal
import threading
import time
from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.workflows.processes import claimed, claimed_in_turn


def add(one, other, *, progress=None):
    """Adds, and tells about it."""
    if progress is not None:
        progress(1, 1, "added")
    return one + other


def fail(kind, *, progress=None):
    """Raises an error, or is killed."""
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"data": DataError, "value": ValueError, "bug": KeyError, "memory": MemoryError}[kind]("leg 3 is broken")


def linger(seconds, *, progress=None):
    """Leaves a thread at work, and an end of the interpreter that crashes."""
    threading.Thread(target=time.sleep, args=(seconds,)).start()
    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return "done"


def process_number(*, progress=None):
    """Returns who does the work."""
    return os.getpid()


def hold(folder, seconds, *, progress=None):
    """Claims a folder, says so and keeps it."""
    with claimed(Path(folder)) as other:
        progress(1, 1, other)
        time.sleep(seconds)
    return other


def count_up(path, times, *, progress=None):
    """Adds one to the number in a file, each time under a claim: a lost update would show that two held it."""
    path = Path(path)
    for _ in range(times):
        with claimed_in_turn(path.parent / "work", seconds=0.002):
            number = int(path.read_text(encoding="utf-8"))
            time.sleep(0.002)
            path.write_text(str(number + 1))
