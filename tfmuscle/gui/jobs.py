"""Commands that the page has asked for: one after the other, each in a process of its own, all known from files.

    .tfmuscle/jobs/<id>/job.json        the command, its title and output, when it was asked for
                        lock            held by the worker as long as it lives
                        started.json    process number, which is the process group's, and when
                        log.txt         what the command printed
                        progress.json   how far it is
                        cancel.json     when the user wanted it stopped
                        exit.json       exit code, written by the worker

A job's state is read off these files and nowhere else kept, so that a page may be loaded again and a server may die: a
worker goes on without the server, and the next server finds it running, finished, or, when the whole machine went
down, lost. Whether a worker lives is told by its lock, which the system takes away with the process; process numbers
are used again. Two servers on one folder start no two jobs at once, because starting is done under a lock too.

A job is cancelled as at a terminal, by an interrupt, after which the command keeps what is finished; one that does not
stop within `GRACE_SECONDS` is killed.
"""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.gui.commands import Command
from tfmuscle.gui.workspace import Workspace

GRACE_SECONDS = 10.0
LOG_BYTES = 64 << 10
"""The end of a log that the page gets."""
MAX_LISTED = 100
MAX_WAITING = 50
_TICK_SECONDS = 0.3
_ID = re.compile(r"[0-9]{19}-[0-9a-f]{6}")
ACTIVE = ("queued", "running", "cancelling")


class Jobs:
    """The queue of a workspace.

    Args:
        workspace: whose jobs these are.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._folder = workspace, workspace.hidden / "jobs"
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begins to work, with what an earlier server left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._wake.set()
        self._thread.start()

    def stop(self) -> None:
        """Stops starting jobs; one that runs goes on."""
        self._end.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, command: Command) -> str:
        """Puts a command at the end of the queue; returns its id.

        Raises:
            DataError: too many are waiting.
        """
        if sum(self._state(folder) == "queued" for folder in self._folders()) >= MAX_WAITING:
            raise DataError(f"{MAX_WAITING} jobs are waiting; wait, or cancel some")
        job = f"{time.time_ns():019d}-{secrets.token_hex(3)}"
        output = None if command.output is None else self._workspace.name(command.output)
        content = {"words": list(command.words), "title": command.title, "output": output, "asked": time.time()}
        write_json(self._folder / job / "job.json", content)
        self._wake.set()
        return job

    def listed(self) -> list[dict[str, Any]]:
        """Returns the latest jobs, newest first."""
        return [self._about(folder) for folder in reversed(self._folders()[-MAX_LISTED:])]

    def log(self, job: str) -> str:
        """Returns the end of a job's log."""
        path = self._of(job) / "log.txt"
        if not path.exists():
            return ""
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", errors="replace")

    def cancel(self, job: str) -> None:
        """Takes a job out of the queue, or interrupts it; one that has ended stays as it is."""
        folder = self._of(job)
        with self._locked():
            state = self._state(folder)
            if state in ACTIVE and not (folder / "cancel.json").exists():
                write_json(folder / "cancel.json", {"asked": time.time()})
            if state == "running":
                self._signal(folder, signal.SIGINT)
        self._wake.set()

    def _work(self) -> None:
        """Starts what waits and kills what does not stop, as long as there is something; sleeps else."""
        while not self._end.is_set():
            self._wake.wait()
            self._wake.clear()
            while not self._end.is_set():
                with contextlib.suppress(OSError, DataError):  # a full disk must not end the queue; it is tried again
                    if not self._step():
                        break
                time.sleep(_TICK_SECONDS)

    def _step(self) -> bool:
        """Does what is due; returns whether anything is active."""
        with self._locked():
            states = {folder: self._state(folder) for folder in self._folders()}
            for folder in (folder for folder, state in states.items() if state == "cancelling"):
                if time.time() - read_json(folder / "cancel.json")["asked"] > GRACE_SECONDS:
                    self._signal(folder, signal.SIGKILL)
            if not {"running", "cancelling"} & set(states.values()):
                queued = [folder for folder, state in states.items() if state == "queued"]
                if queued:
                    self._start(queued[0])
        return any(state in ACTIVE for state in states.values())

    def _start(self, folder: Path) -> None:
        """Starts a worker, which inherits the lock that says it lives."""
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            process = subprocess.Popen(
                [sys.executable, "-m", "tfmuscle.gui.worker", str(folder)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, pass_fds=(lock,), cwd=self._workspace.root,
            )  # fmt: skip
            threading.Thread(target=process.wait, daemon=True).start()  # so that its end is taken note of
            write_json(folder / "started.json", {"process": process.pid, "started": time.time()})
        finally:
            os.close(lock)

    def _signal(self, folder: Path, number: int) -> None:
        """Sends a signal to a job's process group; the held lock says that the number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if _is_held(folder / "lock"):
                os.killpg(read_json(folder / "started.json")["process"], number)

    def _state(self, folder: Path) -> str:
        """Reads a job's state off its files."""
        cancelled = (folder / "cancel.json").exists()
        if (folder / "exit.json").exists():
            code = read_json(folder / "exit.json").get("code")
            return "done" if code == 0 else "cancelled" if cancelled else "failed"
        if _is_held(folder / "lock"):
            return "cancelling" if cancelled else "running"
        if (folder / "exit.json").exists():  # written between the two looks
            return self._state(folder)
        if cancelled:
            return "cancelled"
        return "lost" if (folder / "started.json").exists() else "queued"

    def _about(self, folder: Path) -> dict[str, Any]:
        about: dict[str, Any] = {"id": folder.name, "state": self._state(folder)}
        job = read_json(folder / "job.json")
        about |= {key: job.get(key) for key in ("title", "output", "asked")} | {"command": job["words"][0]}
        for name, keys in (("started", ("started",)), ("exit", ("code", "ended")), ("progress", _PROGRESS)):
            with contextlib.suppress(DataError):
                content = read_json(folder / f"{name}.json")
                about |= {key: content.get(key) for key in keys}
        if about["state"] in ("failed", "lost"):
            about["reason"] = _last_line(self.log(folder.name)) or "ended without a word"
        return about

    def _folders(self) -> list[Path]:
        folders = [path for path in self._folder.iterdir() if _ID.fullmatch(path.name)]
        return sorted(path for path in folders if (path / "job.json").exists())

    def _of(self, job: str) -> Path:
        folder = self._folder / job
        if not _ID.fullmatch(job) or not (folder / "job.json").exists():
            raise DataError(f"{job[:40]!r}: there is no such job; load the page again")
        return folder

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the queue, against threads of this server and against others on this folder."""
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


_PROGRESS = ("done", "total", "note")


def _is_held(path: Path) -> bool:
    """Whether a worker holds the lock; asked with a shared one, so that two who ask do not see each other."""
    try:
        lock = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
