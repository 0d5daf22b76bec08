"""The process that runs one job: `python -m tfmuscle.gui.worker JOB_FOLDER`.

It starts the command, waits, and writes how it ended into `exit.json`, so that this is known even when the server that
started it is gone. It is the head of a process group of its own: an interrupt to the group reaches the command, which
then ends as at a terminal, and passes this process by; a kill ends both, and leaves no `exit.json`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tfmuscle.files import PROGRESS_VARIABLE, read_json, write_json

RUN = "from tfmuscle.cli import main; main()"


def run_job(folder: Path) -> int:
    """Runs the command of a job folder; returns its exit code."""
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler, not "ignore", which the command would inherit
    words = read_json(folder / "job.json")["words"]
    environment = os.environ | {PROGRESS_VARIABLE: str(folder / "progress.json"), "PYTHONUNBUFFERED": "1"}
    with open(folder / "log.txt", "ab") as log:
        command = [sys.executable, "-c", RUN, *words]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        code = process.wait()
    write_json(folder / "exit.json", {"code": code, "ended": time.time()})
    return code


if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1])))
