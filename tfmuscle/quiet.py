"""TensorFlow's start-up chatter, kept off the terminal.

It is written to file descriptor 2 past Python's logging and before TensorFlow reads its own log level, so the
descriptor is pointed elsewhere while TensorFlow is imported. Exceptions are unaffected: they travel as Python
objects.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Silences file descriptor 2 for the length of the block."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    terminal = os.dup(2)
    silence()
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def start_worker() -> None:
    """Prepares a worker process: silent, since its errors come back as exceptions, and ended with its parent."""
    silence()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def silence() -> None:
    """Silences file descriptor 2 for good."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
