"""A scan, its labelled slices and networks trained on them, if any, say which slices to label next: `suggest`.

Every network labels the scan by itself (an ensemble's mean would hide what they disagree about), and the shapes between
the labelled slices are one more opinion. What disagreement is, what follows from it, and how slices are chosen says
`disagreement.py`.

    FOLDER/suggested.csv      the slices to label, the most useful first
    FOLDER/disagreement.csv   all slices, in all and structure by structure
    FOLDER/suggested.png      the curve along the scan, and the opinions on the suggested slices
    FOLDER/labels_1/ ...      the labels of each network
    FOLDER/suggest.json       of which scan and which networks those labels are

A call that was interrupted goes on with the labels that are there; those of another scan or other networks go.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle import inference
from tfmuscle.disagreement import Opinion, choose_slices, probable_error, slice_disagreement
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, read_json, sha256, write_json, write_text
from tfmuscle.interpolation import expected_error, interpolate_slices
from tfmuscle.io import read_label_image
from tfmuscle.io.label_tables import plain_name
from tfmuscle.labelled_slices import FEWEST, LabelledSlices, find_slices
from tfmuscle.labels import LabelMap, distinct, relabel
from tfmuscle.report import figure_png
from tfmuscle.report.suggestions import suggestion_figure
from tfmuscle.tables import csv_text
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.predicting import PREDICTIONS_FILE, PredictOptions, PredictResult, predict
from tfmuscle.workflows.slice_labels import SliceLabels, one_scan, read_slice_labels

INTERPOLATION = "interpolation"
_ABOUT = "suggest.json"
_PLACE = ("slice", "x_mm", "y_mm", "z_mm")
_AREAS = ("probable_error_mm2", "disagreement_mm2")


@dataclass(frozen=True)
class SuggestResult:
    """What `suggest` found.

    Attributes:
        rows: of `suggested.csv`.
        slices: those that are labelled.
        runs: name of an opinion -> run folder.
        notes: what the user should know.
        reduced: whether a recipe was cut down.
    """

    rows: list[dict[str, Any]]
    slices: LabelledSlices
    runs: dict[str, Path]
    notes: tuple[str, ...]
    reduced: bool


def suggest(
    source: SliceLabels,
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    count: int = 3,
    progress: Progress | None = None,
) -> SuggestResult:
    """Names the next slices worth labelling: where interpolated shapes are probably wrong.

    That they are is told by networks which disagree with them, and by labelled slices that are left out.

    Args:
        source: scan and labelled slices.
        runs: run folders, or folders of cross-validation; each run is an opinion. Without any the labelled slices tell.
        out: folder to write.
        count: slices wanted.
        progress: called with (steps done, steps in all, note), for each network anew.

    Raises:
        ValueError: a count below 1.
        DataError: files that cannot be used or do not fit, or a network of other structures.
    """
    if count < 1:
        raise ValueError(f"{count} slices are wanted; ask for 1 at least")
    out, scan = Path(out), one_scan(source.scan).read_image()
    labels, label_map = read_slice_labels(source.labels, source.names)
    if not labels.geometry.same_grid(scan.geometry):
        raise DataError(f"{source.labels}: not on the grid of {source.scan}; resample it by nearest neighbour")
    try:
        slices = find_slices(labels, label_map, axis=source.axis, listed=source.listed)
        shapes = interpolate_slices(labels, label_map, slices)
    except ValueError as error:
        raise DataError(f"{source.labels}: {error}") from error
    folders = [folder for run in runs for folder in inference.run_folders(run)]
    _claim(out, scan, folders)
    options = PredictOptions(resume=True)
    found = [
        predict(one, source.scan, out / f"labels_{n}", options=options, progress=progress)
        for n, one in enumerate(folders, 1)
    ]
    opinions = [Opinion(f"network {n}", _in_ids_of(label_map, one, source.labels)) for n, one in enumerate(found, 1)]
    opinions.append(Opinion(INTERPOLATION, shapes, (slices.indices[0], slices.indices[-1])))
    differing = slice_disagreement(opinions, label_map, slices.axis)
    expected = expected_error(labels, label_map, slices).sum(axis=0)
    if not folders and len(slices.indices) < FEWEST:
        labelled = f"{len(slices.indices)} labelled slices"
        raise DataError(f"{source.labels}: {labelled}; label {FEWEST} or more, or give a run (-m)")
    score = probable_error(differing.sum(axis=0), expected, slices.indices)
    chosen = choose_slices(score, slices.indices, count)
    rows = _rows(scan, differing, score, label_map, slices)
    suggested = [{"rank": rank, "axis": slices.axis} | rows[index] for rank, index in enumerate(chosen, start=1)]
    write_text(out / "suggested.csv", csv_text(suggested, ("rank", "axis", *_PLACE, *_AREAS, "structure")))
    areas = map(_column, label_map.structures)
    write_text(out / "disagreement.csv", csv_text(rows, (*_PLACE, "labelled", *_AREAS, *areas)))
    reduced = any(one.reduced for one in found)
    title = f"Where the shapes between drawn slices are probably wrong: {len(opinions)} opinions" + (
        " (reduced)" if reduced else ""
    )
    shown = {opinion.name: opinion.labels for opinion in opinions}
    figure = suggestion_figure(scan, shown, score, axis=slices.axis, drawn=slices.indices, chosen=chosen, title=title)
    with atomic_path(out / "suggested.png") as path:
        path.write_bytes(figure_png(figure))
    warnings = (note for one in found for note in one.warnings)
    notes = (*warnings, *slices.notes(), *_notes(score, slices, len(chosen), count, networks=len(found)))
    return SuggestResult(suggested, slices, dict(zip(shown, folders, strict=False)), notes, reduced)


def _claim(out: Path, scan: Volume, runs: Sequence[Path]) -> None:
    """Removes labels of another scan or of other networks, and notes of which those are that follow."""
    path = out / _ABOUT
    weights = [run / inference.WEIGHTS_FILE for run in runs]
    about = {
        "scan": {"grid": scan.geometry.to_dict(), "sha256": hashlib.sha256(scan.array.tobytes()).hexdigest()},
        "weights": [sha256(one) if one.is_file() else "" for one in weights],
    }
    if path.exists() and read_json(path) == about:
        return
    for folder in out.glob("labels_*"):
        if folder.name.removeprefix("labels_").isdecimal() and (folder / PREDICTIONS_FILE).is_file():
            shutil.rmtree(folder)
    write_json(path, about)


def _in_ids_of(label_map: LabelMap, found: PredictResult, drawn: Path) -> Volume:
    """Returns a network's labels in the ids of the drawn ones; structures that are not drawn become background."""
    if found.failures:
        raise DataError("; ".join(found.failures.values()))
    (path,) = found.written.values()
    theirs = LabelMap.from_dict(read_json(path.parent / PREDICTIONS_FILE)["labels"])
    ids = {plain_name(name): key for key, name in theirs.names.items() if key}
    if missing := [name for name in label_map.structures if plain_name(name) not in ids]:
        raise DataError(
            f"{drawn}: shows {', '.join(missing)}, but the network knows {', '.join(theirs.structures)}; give the run"
            " that was trained on these labels, or name them alike (--names)"
        )
    labels = read_label_image(path)
    table = dict.fromkeys(map(int, distinct(labels.array)), 0)
    table |= {ids[plain_name(name)]: label_map.id_of(name) for name in label_map.structures}
    return labels.with_array(relabel(labels.array, table))


def _rows(
    scan: Volume, differing: np.ndarray, score: np.ndarray, label_map: LabelMap, slices: LabelledSlices
) -> list[dict[str, Any]]:
    """Returns a row of the table for every slice."""
    centre = (np.array(scan.geometry.shape) - 1) / 2
    rows = []
    for index, column in enumerate(differing.T):
        centre[slices.axis] = index
        place = dict(zip(_PLACE[1:], (round(float(x), 3) for x in scan.geometry.world(centre)), strict=True))
        areas = {name: round(float(area), 2) for name, area in zip(label_map.structures, column, strict=True)}
        most = max(areas, key=lambda name: areas[name]) if column.sum() > 0 else ""
        both = (score[index], column.sum())
        whole: dict[str, Any] = {name: round(float(area), 2) for name, area in zip(_AREAS, both, strict=True)}
        whole["structure"] = most
        shares: dict[str, Any] = {_column(name): area for name, area in areas.items()}
        rows.append(shares | {"slice": index, "labelled": int(index in slices.indices)} | place | whole)
    return rows


def _column(structure: str) -> str:
    return f"{structure} (mm2)"  # so that no structure is called like another column


def _notes(score: np.ndarray, slices: LabelledSlices, found: int, count: int, *, networks: int) -> list[str]:
    notes = []
    if np.isnan(score).any():
        notes.append(
            f"beyond slices {slices.indices[0]} and {slices.indices[-1]} {'only one' if networks else 'no'} network has"
            " an opinion, so that nothing is suggested there; give several runs (-m), e.g. those of cross-validation"
        )
    if found < count:
        notes.append(
            f"{found} slices could be suggested of the {count} asked for; the others are labelled, or see above"
        )
    return notes
