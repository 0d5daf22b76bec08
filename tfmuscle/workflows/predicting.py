"""From a trained network and scans to labels: `predict`.

`predictions.json` beside the predictions carries the label map, which subjects were asked for, which failed and why,
and where the model came from; `evaluate` reads it, so that a subject that failed cannot go missing from the tables.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, sha256, write_json
from tfmuscle.io import VOLUME_SUFFIXES, write_volume
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.schedule import curves
from tfmuscle.workflows.building import Progress

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats labels are written in."""
PROGRESS_STEPS = 100
"""Steps of the progress per scan."""


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did: files written by subject, failures with their reason, and what to know about the run.

    `reduced` says that the recipe was cut down (`--scale laptop`).
    """

    folder: Path
    written: dict[str, Path]
    failures: dict[str, str]
    warnings: tuple[str, ...] = ()
    reduced: bool = False


def predict(
    run: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    part: str | None = None,
    mirror: bool = True,
    resume: bool = False,
    progress: Progress | None = None,
) -> PredictResult:
    """Segments scans; each output is a label image on exactly its scan's grid.

    Args:
        run: run folder made by `fit`.
        source: a scan, a folder of scans, a DICOM series, a folder of series, or a dataset.
        out: folder for `<subject>.nii.gz`, or for one scan a file name.
        part: only the subjects of the dataset that were "train", "validation" or "test" when the run was trained.
        mirror: average over mirrored copies, exchanging left and right.
        resume: keep predictions that are there.
        progress: called with (steps done, steps in all, subject), `PROGRESS_STEPS` a scan.
    """
    loaded = inference.load_run(Path(run))
    subjects = _sources(Path(source), loaded, part)
    out = Path(out)
    single = out.name.lower().endswith(VOLUME_SUFFIXES)
    if single and not out.name.lower().endswith(WRITTEN_SUFFIXES):
        raise DataError(f"{out}: labels are written as {', '.join(WRITTEN_SUFFIXES)}; choose one of them, or a folder")
    if single and len(subjects) > 1:
        raise DataError(f"{out}: one file name for {len(subjects)} scans; name a folder")
    folder = out.parent if single else out
    description = _description(loaded, part, mirror, [subject.subject_id for subject in subjects])
    if not single:
        _claim_predictions(folder / "predictions.json", description, resume=resume)
    written: dict[str, Path] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, subject in enumerate(subjects):
        path = out if single else folder / f"{subject.subject_id}.nii.gz"
        started = time.monotonic()
        try:
            if path.resolve() in {image.resolve() for image in subject.images}:
                raise DataError(f"{path}: is the scan itself, which the labels would overwrite; name another output")
            if not (resume and path.exists()):
                windows = _within(progress, number, len(subjects), subject.subject_id)
                labels = inference.predict_volume(loaded, subject.read_image(), mirror=mirror, progress=windows)
                write_volume(path, labels)
            written[subject.subject_id] = path
        except DataError as error:
            failures[subject.subject_id] = str(error)
        seconds[subject.subject_id] = round(time.monotonic() - started, 2)
        if progress is not None:
            progress((number + 1) * PROGRESS_STEPS, len(subjects) * PROGRESS_STEPS, subject.subject_id)
    if not single:
        write_json(folder / "predictions.json", description | {"seconds": seconds, "failures": failures})
    warnings = (loaded.warning,) if loaded.warning else ()
    return PredictResult(folder, written, failures, warnings, _is_reduced(loaded))


def _is_reduced(run: inference.Run) -> bool:
    return "laptop" in (run.spec.scale, run.config.scale)


def _within(progress: Progress | None, number: int, total: int, note: str) -> Callable[[int, int], None] | None:
    """Turns the windows of one scan into steps of the whole job."""
    if progress is None:
        return None

    def windows(done: int, of: int) -> None:
        progress(number * PROGRESS_STEPS + PROGRESS_STEPS * done // of, total * PROGRESS_STEPS, note)

    return windows


def _sources(source: Path, run: inference.Run, part: str | None) -> tuple[Subject, ...]:
    is_dataset = (source / "dataset.json").exists()
    if part is None:
        return read_dataset(source).subjects if is_dataset else read_scans(source, run.spec.channels)
    if not is_dataset:
        raise DataError(f"{source}: holds no dataset.json, so its {part} subjects are unknown; give the dataset")
    wanted = read_json(run.path / "split.json")[part]
    found = {subject.subject_id: subject for subject in read_dataset(source).subjects}
    missing = [subject_id for subject_id in wanted if subject_id not in found]
    if missing:
        raise DataError(
            f"{source}: lacks {', '.join(missing[:5])} of the run's {part} subjects; give the run's dataset"
        )
    if not wanted:
        raise DataError(
            f"{run.path / 'split.json'}: the run has no {part} subjects; build records with --test to hold some out"
        )
    return tuple(found[subject_id] for subject_id in wanted)


def _claim_predictions(path: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Notes whose predictions these are before the first is made, and refuses to go on with those of another model."""
    if resume and path.exists():
        before = read_json(path)
        for key in ("weights", "mirror"):
            if before.get(key) != description[key]:
                raise DataError(
                    f"{path}: the predictions there have other {key}; name another folder, or leave out --resume"
                )
    write_json(path, description)


def _description(run: inference.Run, part: str | None, mirror: bool, subjects: list[str]) -> dict[str, Any]:
    about_path = run.path / "about.json"
    about = read_json(about_path) if about_path.exists() else {}
    return {
        "labels": run.spec.label_map.to_dict(),
        "run": run.path.resolve().name,
        "dataset": run.spec.name,
        "part": part or "all scans given",
        "mirror": mirror,
        "model": run.config.model,
        "preset": run.config.preset,
        "orientation": run.spec.orientation,
        "history": curves(read_history(run.path / "history.csv")),
        "scale": "laptop" if _is_reduced(run) else "full",
        "seed": run.config.seed,
        "fold": run.config.fold,
        "epochs": about.get("epochs"),
        "trained_on": about.get("hardware"),
        "training_seconds": about.get("seconds"),
        "made_with": provenance(),
        "weights": sha256(run.path / inference.WEIGHTS_FILE),
        "subjects": subjects,
    }
