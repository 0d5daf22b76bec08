"""From scans to records: `phantom`, `inspect`, `build_records`.

The user has a dataset folder (nnU-Net v2, Decathlon or described by a descriptor). The data goes subject by subject:
read and checked -> preprocessed -> cut into samples -> one shard. A shard is written whole or not at all, with a note
of what it was made from beside it; a rerun keeps the shards whose note still holds, so that a killed build goes on
where it was and ends with the same bytes.
"""

import concurrent.futures
import contextlib
import glob
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle import records
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, atomic_path, read_json, write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import KINDS as PHANTOM_KINDS
from tfmuscle.phantom import make_phantom
from tfmuscle.planning import fingerprint, suggest_spec
from tfmuscle.preprocessing import preprocess
from tfmuscle.presets import get_preset, reduced_data
from tfmuscle.quiet import start_worker
from tfmuscle.sampling import cut
from tfmuscle.subjects import Dataset, Subject, assign_folds, read_dataset

Progress = Callable[[int, int, str], None]


def phantom(
    out: str | Path, *, subjects: int, seed: int = 0, kind: str = "bones", progress: Progress | None = None
) -> Path:
    """Writes a dataset of synthetic limbs in nnU-Net's layout, with `volumes.json` of closed-form volumes in ml.

    Args:
        out: folder to make; must not hold another dataset.
        subjects: how many.
        seed: the same seed gives the same voxels.
        kind: one of `phantom.KINDS`.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        ValueError: an unknown kind or no subject.
        DataError: `out` holds something else.
    """
    out = Path(out)
    if kind not in PHANTOM_KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(PHANTOM_KINDS)}")
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}; at least one is needed")
    description = {"kind": kind, "seed": seed, "subjects": subjects}
    _claim(out, description)
    volumes: dict[str, dict[str, float]] = {}
    with atomic_path(out) as folder:
        for number in range(subjects):
            subject_id = f"{kind}_{number:03d}"
            made = make_phantom(kind, seed=seed * 100_003 + number)
            write_volume(folder / "imagesTr" / f"{subject_id}_0000.nii.gz", made.image)
            write_volume(folder / "labelsTr" / f"{subject_id}.nii.gz", made.labels)
            volumes[subject_id] = dict(made.volumes_ml)
            if progress is not None:
                progress(number + 1, subjects, subject_id)
        write_json(folder / "volumes.json", volumes)
        about = _phantom_dataset_json(kind, made.label_map, subjects) | {"phantom": description}
        write_json(folder / "dataset.json", about)
    return out


def _claim(out: Path, description: Mapping[str, Any]) -> None:
    """Refuses a folder that holds anything but the same phantoms, and removes what a killed run left beside it."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    same = (out / "dataset.json").exists() and read_json(out / "dataset.json").get("phantom") == description
    if out.is_dir() and any(out.iterdir()) and not same:
        raise DataError(f"{out}: holds another dataset or other files; name another folder")
    for leftover in out.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(out.name)}") if out.parent.is_dir() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def _phantom_dataset_json(kind: str, label_map: LabelMap, subjects: int) -> dict[str, Any]:
    return {
        "name": f"phantom_{kind}",
        "description": f"synthetic {kind} limbs made by tfmuscle; no patient",
        "licence": "CC0-1.0",
        "channel_names": {"0": "B-mode" if kind == "ultrasound" else "T1"},
        "labels": label_map.to_dict(),
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }


def inspect(dataset: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Checks every scan of a dataset and returns its fingerprint; `problems` lists what is wrong, one line each."""
    found = fingerprint(read_dataset(dataset), progress=progress)
    return found | {"problems": [problem for subject in found["subjects"] for problem in subject["problems"]]}


def plan_spec(
    dataset: Dataset, settings: Mapping[str, Any], *, preset: str | None = None, scale: str = "full", progress=None
) -> DataSpec:
    """Decides how scans become samples: the user's settings, then the preset, then a plan from the fingerprint.

    Args:
        dataset: an indexed dataset.
        settings: fields of `DataSpec` the user gave.
        preset: name of a recipe.
        scale: "laptop" cuts the sample down.
        progress: of the fingerprint.
    """
    chosen = dict(get_preset(preset).data) if preset else {}
    if settings.get("kind", chosen.get("kind")) != chosen.get("kind"):
        chosen = {key: value for key, value in chosen.items() if key not in ("kind", "depth", "size")}
    kind = settings.get("kind") or chosen.get("kind") or "slices"
    needed = {"size", "spacing", "depth"} if kind in ("volumes", "sequences") else {"size", "spacing"}
    if needed <= set(chosen) | set(settings):
        plan: dict[str, Any] = {"label_map": dataset.label_map, "name": dataset.name, "channels": dataset.channels}
    else:
        suggested = _suggestion(dataset, kind, progress)
        plan = {name: getattr(suggested, name) for name in DataSpec.__dataclass_fields__}
    plan |= chosen | {"preset": preset, "kind": kind}
    if scale == "laptop":
        plan = reduced_data(plan)
    return DataSpec(**plan | dict(settings) | {"scale": scale})


def _suggestion(dataset: Dataset, kind: str, progress: Progress | None) -> DataSpec:
    try:
        return suggest_spec(fingerprint(dataset, progress=progress), dataset, kind=kind)
    except ValueError as error:
        raise DataError(f"{dataset.root}: {error}") from error


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
    workers: int = 1,
    progress: Progress | None = None,
) -> BuildResult:
    """Writes the records of every labelled subject, one shard a subject, and `index.json` when all are done.

    A subject that cannot be used is left out, named in `index.json` and in the result; the others go on.

    Args:
        dataset: a dataset folder, or an indexed dataset.
        out: folder of the records; one that an interrupted build left is completed.
        spec: how scans become samples.
        workers: processes; each needs the memory of one scan.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        DataError: `out` holds records of another spec, or no subject could be used.
    """
    out = Path(out)
    dataset = dataset if isinstance(dataset, Dataset) else read_dataset(dataset)
    labelled = [subject for subject in dataset.subjects if subject.labels is not None]
    if not labelled:
        raise DataError(f"{dataset.root}: no subject has labels; records are made from labelled scans")
    folds = assign_folds([s.subject_id for s in labelled], folds=spec.folds, test=spec.test, seed=spec.seed)
    _claim_records(out, spec)
    for leftover in out.glob(f"{TEMPORARY_PREFIX}*"):  # of a build that was killed
        leftover.unlink()
    by_id = {subject.subject_id: subject for subject in labelled}
    jobs = [(by_id[shard.subject_id], out / shard.file, spec) for shard in records.plan_shards(folds)]
    entries = []
    for job, note in zip(jobs, _run(jobs, workers), strict=True):
        entries.append({"fold": folds[job[0].subject_id]} | note)
        if progress is not None:
            progress(len(entries), len(jobs), job[0].subject_id)
    failures = {entry["subject_id"]: entry["error"] for entry in entries if entry["status"] == "failed"}
    if len(failures) == len(entries):
        (out / "spec.json").unlink(missing_ok=True)  # nothing was made: other settings may be tried here
        first = next(iter(failures.values()))
        raise DataError(f"{dataset.root}: none of {len(entries)} subjects could be used; the first: {first}")
    records.write_index(out, entries)
    return BuildResult(out, sum(entry.get("samples", 0) for entry in entries), failures)


def _claim_records(out: Path, spec: DataSpec) -> None:
    if (out / "spec.json").exists():
        before = read_json(out / "spec.json")
        for key, value in spec.to_dict().items():
            if before.get(key) != value:
                raise DataError(
                    f"{out / 'spec.json'}: {key} was {before.get(key)!r} and is {value!r} now; "
                    "name another folder, or remove this one"
                )
        return
    if out.exists() and not (out.is_dir() and all(path.name.startswith(TEMPORARY_PREFIX) for path in out.iterdir())):
        raise DataError(f"{out}: is not empty and holds no records; name another folder")
    spec.save(out / "spec.json")


def _run(jobs: list[tuple[Subject, Path, DataSpec]], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(build_shard, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=start_worker
    ) as pool:
        yield from pool.map(build_shard, jobs)


def build_shard(job: tuple[Subject, Path, DataSpec]) -> dict[str, Any]:
    """Makes one subject's shard, unless a whole one made from the same files is there; returns its index entry.

    Args:
        job: the subject, the shard's path, and the spec.
    """
    subject, path, spec = job
    note_path = path.with_suffix(".json")
    made_from = _made_from(subject)
    with contextlib.suppress(DataError):  # no note, or a damaged one: the shard is made anew
        note = read_json(note_path)
        known = note.get("subject_id") == subject.subject_id and note.get("made_from") == made_from
        if known and "bytes" in note and records.check_shard(path, note) is None:
            return note
    try:
        image, labels = subject.read(spec.label_map)
        image, labels = preprocess(image, labels, spec)
        samples = cut(image.array, labels.array, spec)
        written = records.write_shard(path, samples, spec, subject_id=subject.subject_id)
    except DataError as error:
        return {"file": path.name, "subject_id": subject.subject_id, "status": "failed", "error": str(error)}
    note = {"file": path.name, "subject_id": subject.subject_id, "status": "ok", "made_from": made_from} | written
    write_json(note_path, note)
    return note


def _made_from(subject: Subject) -> list[list[Any]]:
    """Returns name, size and time of every file of a subject: what a shard is stale against."""
    files: list[Path] = []
    for path in [*subject.images, *([subject.labels] if subject.labels else [])]:
        files += sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
