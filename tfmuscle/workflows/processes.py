"""Work in a process of its own, and claims on folders that several processes share.

`run_apart` gives a piece of work a fresh process: what it allocates is gone when it ends, its peak memory is its own,
and if the system kills it, the caller goes on. Progress and outcome come back through a pipe. The process is spawned,
not forked (TensorFlow does not survive a fork), so a script that calls this needs `if __name__ == "__main__":`, as
with every use of `multiprocessing`. It ends with its parent. This file imports nothing heavy, so that the process is
silent before TensorFlow starts.

`claimed` says who works in a folder. Claims are numbered files, each made with O_EXCL and holding host, process and the
process's start: the highest number holds the folder, unless that process is dead; then the next number is made, which
only one process can. (Removing a stale file and making it anew could remove the claim of a quicker rival.) The claim of
a process on another host is believed, for nobody can tell from here whether it lives.
"""

import contextlib
import json
import multiprocessing
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.quiet import start_worker

try:
    import resource as _resource
except ImportError:  # Windows
    _resource = None  # type: ignore[assignment]

Progress = Callable[[int, int, str], None]
_BEING_WRITTEN_SECONDS = 10.0
"""A claim without content is being written, for this long."""
_JOIN_SECONDS = 30.0
_SMALLEST_INTERVAL_SECONDS = 0.1
"""Progress is told this often at most."""


def run_apart(function: Callable[..., Any], *arguments: Any, progress: Progress | None = None) -> Any:
    """Calls `function(*arguments, progress=...)` in a process of its own and returns its result.

    Args:
        function: of a module; it, the arguments and the result travel by pickle.
        *arguments: its arguments.
        progress: told here what the function tells there.

    Raises:
        DataError: what the function raised, or the process was killed.
        ValueError: what the function raised.
        RuntimeError: any other exception of the function, with its traceback as a note.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    there.close()
    try:
        here.send((function, arguments, progress is not None))
        while True:
            kind, content = here.recv()
            if kind == "result":
                return content
            if kind == "error":
                raise _rebuilt(*content)
            if progress is not None:
                progress(*content)
    except (EOFError, ConnectionError):
        process.join(_JOIN_SECONDS)
        code = process.exitcode
        how = "was killed" if code is None or code < 0 else "ended"
        raise DataError(f"its process {how} (exit code {code}; out of memory?); run again, which repeats it") from None
    except BaseException:
        process.terminate()  # a result would be of no use any more
        raise
    finally:
        here.close()
        process.join(_JOIN_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Connection) -> None:
    start_worker()
    try:
        function, arguments, wants_progress = connection.recv()
        result = function(*arguments, progress=_relay(connection) if wants_progress else None)
        connection.send(("result", result))
    except MemoryError:
        connection.send(("error", ("DataError", "not enough memory; close other programs or use smaller samples", "")))
    except Exception as error:
        name = "DataError" if isinstance(error, DataError) else type(error).__name__
        connection.send(("error", (name, str(error), traceback.format_exc())))
    _leave()


def _leave() -> None:
    """Ends the process at once: all has been told, and TensorFlow's threads may crash if the interpreter is taken down.

    Skipped are `atexit`, the finalisers of `multiprocessing` and the wait for threads; files are closed by whoever
    wrote them, and workers of this process end with their parent.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, broken or closed
            stream.flush()
    os._exit(0)


def _relay(connection: Connection) -> Progress:
    last = -1.0

    def progress(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _SMALLEST_INTERVAL_SECONDS:
            last = now
            connection.send(("progress", (done, total, note)))

    return progress


def _rebuilt(name: str, text: str, trace: str) -> Exception:
    if name == "DataError":
        return DataError(text)
    error = ValueError(text) if name == "ValueError" else RuntimeError(f"{name}: {text}")
    error.add_note(trace)
    return error


@contextlib.contextmanager
def claimed(folder: Path, *, name: str = "claim") -> Iterator[str]:
    """Yields "" while the folder is this process's to work in, or who works in it.

    Args:
        folder: made if it is not there.
        name: of the claim, where different work in one folder is claimed apart.

    Raises:
        DataError: the folder cannot be written to.
    """
    path, other = _take(Path(folder), name)
    try:
        yield other
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed_in_turn(
    folder: Path, *, name: str = "claim", seconds: float = 1.0, tell: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Waits until nobody else works in the folder, then holds it.

    Args:
        folder: to work in.
        name: of the claim.
        seconds: between two looks.
        tell: called with who is waited for, at each look.
    """
    while True:
        with claimed(folder, name=name) as other:
            if not other:
                yield
                return
        if tell is not None:
            tell(other)
        time.sleep(seconds)


def holder_of(folder: Path, *, name: str = "claim") -> str:
    """Returns who works in a folder, "" when nobody does; nothing is claimed."""
    highest = _highest(folder, name) if folder.is_dir() else -1
    return _living_holder(folder / f"{name}-{highest}.json") if highest >= 0 else ""


def _highest(folder: Path, name: str) -> int:
    """Returns the highest number of a claim on the folder, -1 without any."""
    pattern = re.compile(re.escape(name) + r"-(\d+)\.json")
    return max((int(found[1]) for path in folder.iterdir() if (found := pattern.fullmatch(path.name))), default=-1)


def _take(folder: Path, name: str) -> tuple[Path | None, str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        highest = _highest(folder, name)
        if highest >= 0 and (holder := _living_holder(folder / f"{name}-{highest}.json")):
            return None, holder
        path = folder / f"{name}-{highest + 1}.json"
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            mine = {"host": socket.gethostname(), "process": os.getpid(), "started": _start_of(os.getpid())}
            os.write(handle, json.dumps(mine).encode())
        finally:
            os.close(handle)
    except FileExistsError:
        return None, "another process that was quicker"
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another output") from error
    return path, ""


def _living_holder(path: Path) -> str:
    """Returns who holds the folder by this claim; "" when that process is dead."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        host, process, started = str(content["host"]), int(content["process"]), content["started"]
    except FileNotFoundError:
        return "another process that has just ended"
    except (ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _BEING_WRITTEN_SECONDS:
                return "another process that has just begun"
        return ""
    if host != socket.gethostname():
        return f"process {process} on {host}; if it is dead, remove {path}"
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except OSError:
        pass  # it lives, under another user
    return f"process {process} on this machine" if started in (None, _start_of(process)) else ""


def _start_of(process: int) -> str | None:
    """Returns when a process began, for numbers are used again; None where the system does not say."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def peak_memory_mb() -> float | None:
    """Returns the most main memory this process has held, in MiB; None where the system does not say.

    Linux tells it of this program alone in /proc; the maximum that `resource` gives there may be that of the parent,
    which a process inherits when it starts.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        return _peak_of_other_systems()


def _peak_of_other_systems() -> float | None:
    if _resource is None:
        return None
    bytes_per_unit = 1 if os.uname().sysname == "Darwin" else 1024
    return _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**20
