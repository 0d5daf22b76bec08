"""From a dataset to records: `build_records`.

The data goes subject by subject: read and checked -> preprocessed -> cut into samples -> one shard. A shard is written
whole or not at all, with a note of what it was made from beside it; a rerun keeps the shards whose note still holds,
so that a build that broke off goes on where it was and ends with the same bytes, whatever the number of workers.

What goes wrong with a subject (its files are damaged, missing or not labelled) fails that subject, and the others go
on. What goes wrong with the output (a full disk, a folder that was removed, a worker that the system killed) would go
wrong with every subject, so it ends the build at once, and what is finished is kept.

For a network that takes the labels of an earlier one (`DataSpec.prior`) these come from a folder of files named by
subject, as `predict` and `cross-validate` write them. For training they must be out-of-fold predictions: what a network
says of subjects it has seen is better than what it will say of new ones. A shard is stale when its subject's file
changes.

A rerun reads every finished shard and compares checksums, for it is also the remedy for damage that verify-records
found. That costs reading the records once, shared by the workers.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tfmuscle
from tfmuscle import records
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX
from tfmuscle.folds import assign_folds
from tfmuscle.preprocessing import preprocess
from tfmuscle.quiet import start_worker
from tfmuscle.sampling import cut
from tfmuscle.subjects import Dataset, Subject, read_dataset
from tfmuscle.workflows.beam import map_on_beam

Progress = Callable[[int, int, str], None]
Job = tuple[Subject, Path, DataSpec]
"""What one call of `build_shard` needs: a subject, the path of its shard, and how it is cut."""
_OF_A_SHARD = re.compile(r"(shard-\d{5,})(\.failed)?\.(tfrecord|json)")


@dataclass(frozen=True)
class BuildResult:
    """What `build_records` did.

    Attributes:
        folder: the records.
        samples: samples written, over all subjects.
        failures: subject -> why it is not in the records.
    """

    folder: Path
    samples: int
    failures: dict[str, str]


def build_records(
    dataset: str | Path | Dataset,
    out: str | Path,
    spec: DataSpec,
    *,
    prior: str | Path | None = None,
    workers: int = 1,
    beam: Sequence[str] = (),
    progress: Progress | None = None,
) -> BuildResult:
    """Writes the records of every labelled subject, one shard a subject, and `index.json` when all are done.

    A subject that cannot be used is left out, named in `index.json` and in the result; the others go on.

    Args:
        dataset: a dataset folder, or an indexed dataset.
        out: folder of the records; one that an interrupted build left is completed.
        spec: how scans become samples.
        prior: folder of labels that an earlier network gave, `<subject>.nii.gz` each; for a spec with `prior`.
        workers: processes; each needs the memory of one scan.
        beam: flags from `beam.pipeline_flags`; without any, processes of this machine do the work.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        DataError: `out` holds records of another spec or cannot be written, no subject could be used, the prior is
            missing or a worker was killed. Finished shards are kept.
        ValueError: a prior that the spec does not ask for.
    """
    out = Path(out)
    dataset = dataset if isinstance(dataset, Dataset) else read_dataset(dataset)
    labelled = _labelled(dataset, spec, prior)
    folds = assign_folds(labelled, folds=spec.folds, test=spec.test, seed=spec.seed)
    _claim_records(out, spec)
    jobs = [(labelled[shard.subject_id], out / shard.file, spec) for shard in records.plan_shards(folds)]
    _remove_leftovers(out, jobs)
    made = _on_beam(jobs, beam, progress) if beam else _here(jobs, workers, progress)
    entries = [{"fold": folds[subject.subject_id]} | made[subject.subject_id] for subject, _, _ in jobs]
    failures = {entry["subject_id"]: entry["error"] for entry in entries if entry["status"] == "failed"}
    if len(failures) == len(entries):
        _give_up(out)
        first = next(iter(failures.values()))
        raise DataError(f"{dataset.root}: none of {len(entries)} subjects could be used; the first: {first}")
    _check_still_there(out, entries, spec)
    records.write_index(out, entries, spec)
    return BuildResult(out, sum(entry.get("samples", 0) for entry in entries), failures)


def _labelled(dataset: Dataset, spec: DataSpec, prior: str | Path | None) -> dict[str, Subject]:
    """Returns the subjects that have labels, each with its prior if the spec asks for one."""
    labelled = {subject.subject_id: subject for subject in dataset.subjects if subject.labels is not None}
    if not labelled:
        raise DataError(f"{dataset.root}: no subject has labels; records are made from labelled scans")
    if prior is None:
        if spec.prior:
            raise DataError(
                f"{dataset.root}: these records need the labels of an earlier network; name the folder of its"
                " out-of-fold predictions with --prior"
            )
        return labelled
    if not spec.prior:
        raise ValueError(f"prior is {prior}, but the spec asks for none; leave it out, or set prior in the spec")
    if not Path(prior).is_dir():
        raise DataError(f"{prior}: there is no such folder; name the folder of an earlier network's predictions")
    return {key: dataclasses.replace(subject, prior=Path(prior) / f"{key}.nii.gz") for key, subject in labelled.items()}


def _claim_records(out: Path, spec: DataSpec) -> None:
    path = out / records.SPEC_FILE
    if path.exists():
        before = DataSpec.load(path).to_dict()  # what an older version did not know takes its default
        for key, value in spec.to_dict().items():
            if before[key] != value:
                raise DataError(
                    f"{path}: {key} was {before[key]!r} and is {value!r} now; name another folder, or remove this one"
                )
        return
    if out.exists() and not (out.is_dir() and all(path.name.startswith(TEMPORARY_PREFIX) for path in out.iterdir())):
        raise DataError(f"{out}: is not empty and holds no records; name another folder")
    spec.save(path)


def _remove_leftovers(out: Path, jobs: list[Job]) -> None:
    """Removes what a killed build left half-written, and shards of subjects that the dataset no longer has."""
    known = {path.stem for _, path, _ in jobs}
    for path in list(out.iterdir()):
        found = _OF_A_SHARD.fullmatch(path.name)
        if path.name.startswith(TEMPORARY_PREFIX) or (found and (found[2] or found[1] not in known)):
            path.unlink(missing_ok=True)


def _give_up(out: Path) -> None:
    """Frees the folder when nothing was made: other settings may be tried there."""
    if not any(out.glob("shard-*.tfrecord")):
        for name in (records.SPEC_FILE, records.INDEX_FILE):
            (out / name).unlink(missing_ok=True)


def _check_still_there(out: Path, entries: list[dict[str, Any]], spec: DataSpec) -> None:
    if not (out / records.SPEC_FILE).exists():
        spec.save(out / records.SPEC_FILE)  # what a rerun knows the folder by
    for entry in entries:
        path = out / entry["file"]
        if entry["status"] == "ok" and not (path.is_file() and path.stat().st_size == entry["bytes"]):
            raise DataError(
                f"{path}: was removed or changed while the records were being made; run again, which makes only what"
                " is missing"
            )


def _here(jobs: list[Job], workers: int, progress: Progress | None) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    workers = min(workers, len(jobs))
    for note in _pool(jobs, workers) if workers > 1 else map(build_shard, jobs):
        made[note["subject_id"]] = note
        if progress is not None:
            progress(len(made), len(jobs), note["subject_id"])
    return made


def _pool(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Yields the notes as they come.

    No more jobs are handed out than there are workers, so that it is known who was in work when a worker died.
    """
    waiting, running = iter(jobs), dict[concurrent.futures.Future[dict[str, Any]], str]()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        try:
            while True:
                for job in itertools.islice(waiting, workers - len(running)):
                    running[pool.submit(build_shard, job)] = job[0].subject_id
                if not running:
                    return
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool:
            names = ", ".join(sorted(running.values())) or "the next subjects"
            raise DataError(
                f"a worker was killed (out of memory?) while {names} were in work; finished shards are kept, run"
                " again, with fewer --workers"
            ) from None


def _on_beam(jobs: list[Job], flags: Sequence[str], progress: Progress | None) -> dict[str, dict[str, Any]]:
    map_on_beam(_build_and_tell, jobs, flags, watch=functools.partial(_watch, jobs, progress))
    made = {}
    for subject, path, _ in jobs:
        note_path = _failure_path(path) if _failure_path(path).exists() else path.with_suffix(".json")
        made[subject.subject_id] = records.read_sealed(note_path)
        _failure_path(path).unlink(missing_ok=True)
    _watch(jobs, progress)
    return made


def _watch(jobs: list[Job], progress: Progress | None) -> None:
    folder = jobs[0][1].parent
    if progress is not None and folder.is_dir():
        finished = {found[1] for path in folder.glob("shard-*.json") if (found := _OF_A_SHARD.fullmatch(path.name))}
        progress(len(finished), len(jobs), "")


def _build_and_tell(job: Job) -> None:
    """Makes a shard where only files can tell the outcome: a failure, too, is written down."""
    note = build_shard(job)
    if note["status"] == "failed":
        records.write_sealed(_failure_path(job[1]), note)


def _failure_path(shard: Path) -> Path:
    return shard.with_suffix(".failed.json")


def build_shard(job: Job) -> dict[str, Any]:
    """Makes one subject's shard, unless a whole one made from the same files is there; returns its index entry.

    Args:
        job: the subject, the shard's path, and the spec.

    Raises:
        DataError: the shard cannot be written, or memory does not suffice.
    """
    subject, path, spec = job
    note = {"file": path.name, "subject_id": subject.subject_id, "status": "ok"} | origin(subject)
    if (finished := _finished(path, note)) is not None:
        return finished
    try:
        image, labels = subject.read(spec.label_map)
        image, labels = preprocess(image, labels, spec, subject.read_prior(spec.label_map, image))
    except DataError as error:
        return _failed(note, error)
    except MemoryError as error:
        raise DataError(f"{subject.subject_id}: not enough memory; run again, with fewer --workers") from error
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: was removed while the records were being made; run again")
    try:
        records.withdraw_index(path.parent)
        note |= _write(path, image.array, None if labels is None else labels.array, spec, subject.subject_id)
        records.write_sealed(path.with_suffix(".json"), note)
    except DataError as error:
        if isinstance(error.__cause__, OSError):  # the disk, not the subject
            raise
        return _failed(note, error)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); see to its folder and run again") from error
    return note


def _write(path: Path, image: np.ndarray, labels: np.ndarray | None, spec: DataSpec, subject_id: str) -> dict[str, Any]:
    if spec.patches == "random" and labels is not None:
        return records.write_scan(path, image, labels, spec, subject_id=subject_id)
    return records.write_shard(path, cut(image, labels, spec), spec, subject_id=subject_id)


def _failed(note: dict[str, Any], error: DataError) -> dict[str, Any]:
    return {"file": note["file"], "subject_id": note["subject_id"], "status": "failed", "error": str(error)}


def _finished(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the note of a shard that need not be made again."""
    with contextlib.suppress(DataError):  # no note, or a damaged one: the shard is made anew
        note = records.read_sealed(path.with_suffix(".json"))
        if all(note.get(key) == value for key, value in wanted.items()):
            return None if records.check_shard(path, note) else note
    return None


def origin(subject: Subject) -> dict[str, Any]:
    """Returns what a shard is stale against: tfmuscle's version, and name, size and time of the subject's files."""
    files: list[Path] = []
    for path in filter(None, [*subject.images, subject.labels, subject.prior]):
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    found = []
    for file in files:
        with contextlib.suppress(OSError):  # reading the subject will say that it is gone
            status = file.stat()
            found.append([file.name, status.st_size, status.st_mtime_ns])
    return {"made_with": tfmuscle.__version__, "made_from": found}
