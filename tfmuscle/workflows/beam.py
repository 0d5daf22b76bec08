"""The same work on many machines: a function mapped over jobs by Apache Beam.

A machine at home makes records with a pool of processes (`building.py`). For thousands of scans the very same function,
one shard a call, is mapped by Beam: on processes of this machine (`direct`), or on a cluster that runs Flink, Spark or
Google's Dataflow. Each call writes a whole shard or none and leaves a finished one alone, so it does not matter who
calls it, how often or in which order; the bytes are the same. A call returns nothing: what it did stands in the notes
beside the shards. All machines must therefore see the dataset and the records under the same paths (a shared file
system) and have the same tfmuscle installed.

Only `direct` has been run; for `flink`, `spark` and `dataflow` the options of the pipeline are made and tested, the
clusters were never tried.

The pipeline runs in a process of its own, in a process group of its own. When a worker of `direct` is killed, Beam
2.77 reports that in a thread and waits for ever; here that process ends itself instead, which is the sign. The group
lets everything Beam started end with it. Beam's log is kept off the terminal for `direct` and shown for clusters.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.quiet import quiet_start

RUNNERS = {"direct": "DirectRunner", "flink": "FlinkRunner", "spark": "SparkRunner", "dataflow": "DataflowRunner"}
"""Name on the command line -> Beam's name."""
_OWN = ("runner", "direct_running_mode", "direct_num_workers")
_POLL_SECONDS = 0.5
_WORKER_LOST = 70
_HAS_GROUPS = hasattr(os, "killpg")
_ERROR = re.compile(r"DataError: (.+?)(?: \[while running|\\n|\n|$)")


def pipeline_flags(runner: str, *, workers: int = 1, options: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the flags of a Beam pipeline.

    Args:
        runner: one of `RUNNERS`.
        workers: processes, for `direct`; a cluster is told by an option of its own (e.g. `parallelism=8`).
        options: more of Beam's options as `KEY=VALUE`, e.g. `flink_master=host:8081`.

    Raises:
        ValueError: an unknown runner or option, no `KEY=VALUE`, or Beam is not installed.
    """
    if runner not in RUNNERS:
        raise ValueError(f"runner is {runner!r}; choose one of {', '.join(RUNNERS)}")
    if not _HAS_GROUPS:
        raise ValueError("runners need Linux or macOS; leave --runner out and use --workers")
    if importlib.util.find_spec("apache_beam") is None:
        raise ValueError(f"runner {runner} needs Apache Beam; install it with: pip install 'tfmuscle[beam]'")
    given = dict(_option(text) for text in options)
    if given and runner in ("direct", "dataflow"):  # the others also take options that only the cluster knows
        _check_known(given)
    flags = [f"--runner={RUNNERS[runner]}"]
    if runner == "direct":
        flags += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    return (*flags, *(f"--{key}={value}" if value else f"--{key}" for key, value in given.items()))


def _option(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
        raise ValueError(f"runner option {text!r}; KEY=VALUE is needed, e.g. temp_location=gs://bucket/folder")
    if key in _OWN:
        raise ValueError(f"runner option {text!r}; --runner and --workers decide that")
    return key, value


def _check_known(given: Mapping[str, str]) -> None:
    with quiet_start():
        known = _beam()[1].PipelineOptions([]).get_all_options()
    for key in given:
        if key not in known and key.removeprefix("no_") not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"Beam has no option {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _beam() -> tuple[ModuleType, ModuleType]:
    """Beam is an extra; it takes seconds to load."""
    import apache_beam
    from apache_beam.options import pipeline_options

    return apache_beam, pipeline_options


def map_on_beam(
    function: Callable[[Any], object],
    jobs: Sequence[Any],
    flags: Sequence[str],
    *,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Calls `function(job)` for every job somewhere, in any order, perhaps twice; what it returns is dropped.

    Args:
        function: at the top of a module that the workers can import.
        jobs: what it is called with; pickled.
        flags: from `pipeline_flags`.
        watch: called twice a second while the pipeline runs.

    Raises:
        DataError: a job raised one, a worker was killed, or the cluster failed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    name = (function.__module__, function.__qualname__)  # the leading process need not load TensorFlow
    process = context.Process(target=_run_pipeline, args=(theirs, name, list(jobs), tuple(flags)))
    local = f"--runner={RUNNERS['direct']}" in flags
    with quiet_start() if local else contextlib.nullcontext():  # the process inherits where standard error goes
        process.start()
    theirs.close()
    try:
        while not ours.poll(_POLL_SECONDS):
            watch()
        error = ours.recv()
    except EOFError:
        process.join()
        raise DataError(_end_in_words(process.exitcode)) from None
    finally:
        _end(process)
    if error is not None:
        raise DataError(error)


def _end_in_words(exit_code: int | None) -> str:
    if exit_code == _WORKER_LOST or (exit_code or 0) < 0:
        return "a worker was killed (out of memory?); finished shards are kept, run again, with fewer --workers"
    return f"the process that led Apache Beam ended with code {exit_code}; finished shards are kept, run again"


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Ends the pipeline's process and all that it started."""
    process.join(timeout=1)
    if process.pid is not None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _run_pipeline(answer: Connection, name: tuple[str, str], jobs: list[Any], flags: tuple[str, ...]) -> None:
    """Runs in a process of its own; answers None when all is done, or what went wrong."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.excepthook = _end_with_worker
    try:
        beam, pipeline_options = _beam()
        pipeline = beam.Pipeline(options=pipeline_options.PipelineOptions(list(flags)))
        _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(functools.partial(_call, name))
        pipeline.run().wait_until_finish()
    except (Exception, SystemExit) as error:  # Beam and its runners raise anything; they have only the text in common
        answer.send(_in_words(error))
    else:
        answer.send(None)


def _call(name: tuple[str, str], job: Any) -> None:
    getattr(importlib.import_module(name[0]), name[1])(job)


def _in_words(error: BaseException) -> str:
    text = str(error)
    if found := _ERROR.search(text):
        return found.group(1)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return f"Apache Beam failed ({type(error).__name__}: {lines[-1][:300]}); finished shards are kept, run again"


def _end_with_worker(args: threading.ExceptHookArgs) -> None:
    """Ends the process when Beam's thread says that a worker is gone: the pipeline would wait for it for ever."""
    if "Worker subprocess exited" in str(args.exc_value):
        os._exit(_WORKER_LOST)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
