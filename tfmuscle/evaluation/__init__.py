"""How good a set of predictions is: tables per subject and structure, figures, one page to read.

`evaluate` compares label files on one grid each and writes into a folder: `metrics.csv` and `metrics.json` (a row per
subject and structure), `summary.csv` and `summary.json` (mean, sd, median over subjects), `boxplot.png`,
`overlays/<id>.png` and `report.html`. A subject that failed is named in all tables and in `Evaluation.failures`; the
others go on.

`reading.py`: files to label volumes on one grid. `results.py`: what comes out, and its statistics. `writing.py`: tables
and page.

Rejected: resampling a prediction onto the reference. It would hide a misplaced file behind a plausible figure.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.evaluation.reading import on_grid, one_line, read_labels
from tfmuscle.evaluation.results import ALL_STRUCTURES, OBSERVER_DICE, Evaluation, EvaluationOptions, mean, summarise
from tfmuscle.evaluation.writing import file_names, write_all
from tfmuscle.files import atomic_path
from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import dice, measure
from tfmuscle.report import figure_png, overlay
from tfmuscle.volume import Volume

__all__ = ["ALL_STRUCTURES", "OBSERVER_DICE", "Evaluation", "EvaluationOptions", "evaluate"]


def evaluate(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    label_map: LabelMap,
    out: Path,
    *,
    options: EvaluationOptions | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Compares predicted with reference labels and writes tables, figures and a page.

    Args:
        predictions: subject id -> label file.
        references: subject id -> label file; every one of them is accounted for.
        label_map: ids and names of both.
        out: folder of the report; its `overlays` are replaced.
        options: images, a second annotator, where the figures come from.
        progress: called with (subjects done, subjects in all, subject id).

    Raises:
        ValueError: there are no references or no structures.
        DataError: `out` cannot be written to, or the disk is full.
    """
    options, whole = options or EvaluationOptions(), label_map
    if options.structures:
        asked = {label_map.id_of(name): name for name in options.structures}
        label_map = LabelMap(asked, ignore=label_map.ignore)
    job = _Job(predictions, references, label_map, options, whole)
    if not references or not label_map.structures:
        raise ValueError("an evaluation needs one reference and one structure at least")
    failures: dict[str, str] = {}
    overlays = Path(out) / "overlays"
    with atomic_path(overlays) as folder:
        folder.mkdir()
        rows = _measure_all(job, folder, failures, progress)
    if job.options.observer2 is not None and not set(job.options.observer2) & set(references):
        failures["observer2"] = "no file of the second annotator is named like a reference; check the folder"
    summary = summarise(rows, label_map, sum(key in failures for key in job.subjects), job.options)
    unused = tuple(sorted(set(predictions) - set(references)))
    result = Evaluation(tuple(rows), tuple(summary), failures, unused, Path(out), bool(job.options.reduced))
    measured = dict.fromkeys(row["subject_id"] for row in rows)
    pictures = {key: overlays / name for key, name in file_names(job.subjects).items() if key in measured}
    write_all(result, job.files(), label_map, job.options, pictures)
    return result


@dataclass(frozen=True)
class _Job:
    predictions: Mapping[str, Path]
    references: Mapping[str, Path]
    label_map: LabelMap
    options: EvaluationOptions
    whole: LabelMap

    def read(self, path: Path) -> Volume:
        """Reads labels; structures that were not asked for become background."""
        labels = read_labels(path, self.whole)
        if self.whole == self.label_map:
            return labels
        kept = [key for key in (*self.label_map.ids, self.label_map.ignore) if key is not None]
        return labels.with_array(labels.array * np.isin(labels.array, kept))

    @property
    def subjects(self) -> list[str]:
        return sorted({*self.references, *self.options.failures})

    def files(self) -> dict[str, list[Path]]:
        """Returns subject id -> all files that belong to it."""
        given = (self.references, self.predictions, self.options.images or {}, self.options.observer2 or {})
        return {key: [Path(part[key]) for part in given if key in part] for key in self.subjects}


def _measure_all(
    job: _Job, folder: Path, failures: dict[str, str], progress: Callable[[int, int, str], None] | None
) -> list[dict[str, Any]]:
    """Measures and draws subject after subject; adds to `failures` what could not be done."""
    rows: list[dict[str, Any]] = []
    for number, (subject_id, name) in enumerate(file_names(job.subjects).items(), start=1):
        try:
            prediction, reference = _read_pair(subject_id, job)
        except DataError as error:
            failures[subject_id] = one_line(error)
        else:
            measured = _measure_subject(subject_id, prediction, reference, job, failures)
            rows += measured
            image = _read_image(subject_id, reference, job.options, failures)
            title = f"{subject_id}   Dice {mean([row['dice'] for row in measured]):.3f}{job.options.reduced}"
            letters = job.options.letters
            figure = overlay(image, prediction, reference, label_map=job.label_map, title=title, letters=letters)
            (folder / name).write_bytes(figure_png(figure))
        if progress is not None:
            progress(number, len(job.subjects), subject_id)
    return rows


def _read_pair(subject_id: str, job: _Job) -> tuple[Volume, Volume]:
    if subject_id in job.options.failures:
        raise DataError(job.options.failures[subject_id])
    if subject_id not in job.predictions:
        raise DataError(f"{job.references[subject_id]}: has no prediction; predict its scan or give the right folder")
    reference = job.read(job.references[subject_id])
    return on_grid(job.read(job.predictions[subject_id]), reference), reference


def _measure_subject(
    subject_id: str, prediction: Volume, reference: Volume, job: _Job, failures: dict[str, str]
) -> list[dict[str, Any]]:
    rows = measure(prediction, reference, job.label_map, tolerance_mm=job.options.tolerance_mm)
    if job.options.observer2 is None:
        return [{"subject_id": subject_id, **row} for row in rows]
    between = dict.fromkeys(job.label_map.structures, math.nan)
    path = job.options.observer2.get(subject_id)
    try:
        other = None if path is None else on_grid(job.read(path), reference)
    except DataError as error:
        failures[f"observer2 of {subject_id}"] = one_line(error)
    else:
        between = between if other is None else _dice_between(other, reference, job.label_map)
    return [{"subject_id": subject_id, **row, OBSERVER_DICE: between[row["structure"]]} for row in rows]


def _dice_between(other: Volume, reference: Volume, label_map: LabelMap) -> dict[str, float]:
    """Returns structure -> Dice of two annotators; voxels that either of them ignored are left out."""
    known = np.ones(reference.geometry.shape, dtype=bool)
    for volume in (other, reference):
        if label_map.ignore is not None:
            known &= volume.array != label_map.ignore
    ids = {name: label_map.id_of(name) for name in label_map.structures}
    return {name: dice(other.array == key, reference.array == key, mask=known) for name, key in ids.items()}


def _read_image(
    subject_id: str, reference: Volume, options: EvaluationOptions, failures: dict[str, str]
) -> Volume | None:
    path = (options.images or {}).get(subject_id)
    try:
        return None if path is None else on_grid(read_volume(path, channel=0), reference)
    except DataError as error:
        failures[f"image of {subject_id}"] = one_line(error)
        return None
