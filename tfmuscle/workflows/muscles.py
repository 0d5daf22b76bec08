"""The figures of Ni et al. 2019 from one's own predictions: `muscle_figures`.

    OUT/muscles.csv .json               Dice of each muscle beside the published one; where the figures come from
    OUT/histogram_volume_error.png      how often which error of the volume
    OUT/histogram_surface_distance.png  how often which mean distance between the surfaces
    OUT/renderings/<subject>.png        predicted labels from the front and from the back
    OUT/report.html                     all of it on one page

The input is the folder of an evaluation: nothing is measured anew, so that a page can never disagree with it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tfmuscle.errors import DataError
from tfmuscle.evaluation.muscles import (
    PUBLISHED,
    PUBLISHED_MEANS,
    SOURCE,
    SURFACE_DISTANCE,
    VOLUME_ERROR,
    Measured,
    muscle_table,
    overall,
    pooled_name,
    read_measured,
    remarks,
)
from tfmuscle.evaluation.reading import one_line, read_labels
from tfmuscle.evaluation.results import mean
from tfmuscle.evaluation.writing import file_names
from tfmuscle.files import atomic_path, check_outputs, check_owner, provenance, read_json, write_json, write_text
from tfmuscle.io import case_id, volume_files
from tfmuscle.labels import LabelMap
from tfmuscle.report import Section, figure_png, histogram, html_page, rendering
from tfmuscle.tables import csv_text

Progress = Callable[[int, int, str], None]
_MADE_BY = "tfmuscle muscle-figures"
_TITLE = "tfmuscle: muscles beside Ni et al. 2019"
_HISTOGRAMS = {
    "histogram_volume_error.png": (VOLUME_ERROR, "volume error, without sign", "%"),
    "histogram_surface_distance.png": (SURFACE_DISTANCE, "mean distance to the reference's surface", "mm"),
}
_RULES = f"""\
Left and right are pooled: a subject's Dice is the mean of its sides. Mean ± sd (n - 1) is between subjects.
A muscle that was drawn and not found counts with Dice 0; a side without reference is left out, and counted.
Volume error: difference of the volumes, without sign, in % of the reference's. Distance: from the prediction's surface.
Published: {SOURCE}. They were measured on other scans: a hint, no target.
For research use; not a medical device."""


@dataclass(frozen=True)
class MuscleFigures:
    """What `muscle_figures` made.

    Attributes:
        table: one row per muscle or other structure, see `muscle_table`.
        means: over the paper's muscles that have a Dice here, see `overall`.
        remarks: sentences about muscles and subjects that are missing.
        failures: subject id -> reason, of those that could not be rendered.
        out: folder of the figures.
        reduced: whether the recipe had been cut down.
    """

    table: tuple[dict[str, Any], ...]
    means: dict[str, float]
    remarks: tuple[str, ...]
    failures: dict[str, str]
    out: Path
    reduced: bool

    def readable(self) -> list[dict[str, str]]:
        """Returns the table as text: the paper's muscles, their mean, other structures."""
        muscles = [_readable(line) for line in self.table if line["structure"] in PUBLISHED]
        others = [_readable(line) for line in self.table if line["structure"] not in PUBLISHED]
        return [*muscles, *_mean_line(self.means), *others]


def muscle_figures(
    evaluation: str | Path,
    out: str | Path,
    *,
    predictions: str | Path | None = None,
    renderings: int = 3,
    progress: Progress | None = None,
) -> MuscleFigures:
    """Writes table, histograms and renderings of an evaluation of muscles beside the published figures.

    Args:
        evaluation: folder that `evaluate` wrote.
        out: folder to write; one that this command wrote is written anew.
        predictions: folder of the predicted labels, for the renderings; without it there are none.
        renderings: most subjects to render, the first ones of the evaluation.
        progress: called with (subjects rendered, subjects in all, subject id).

    Raises:
        ValueError: a negative number of renderings.
        DataError: a folder is missing or damaged, or `out` holds something else.
    """
    if renderings < 0:
        raise ValueError(f"renderings is {renderings}; a number of subjects, 0 or more, is needed")
    evaluation, out = Path(evaluation), Path(out)
    check_outputs([out], [evaluation, predictions])
    if (out / "report.html").exists() and not (out / "muscles.json").exists():
        raise DataError(f"{out}: holds the report of something else; choose a new folder")
    check_owner(out / "muscles.json", _MADE_BY)
    measured = read_measured(evaluation)
    files = _label_files(Path(predictions), measured) if predictions and renderings else {}
    table = muscle_table(measured)
    said, reduced = tuple(remarks(measured, table)), bool(measured.reduced)
    made = MuscleFigures(tuple(table), overall(table), said, {}, out, reduced)
    _write_tables(made, measured)
    pictures = {name: figure_png(_histogram(measured, *about)) for name, about in _HISTOGRAMS.items()}
    for name, picture in pictures.items():
        with atomic_path(out / name) as path:
            path.write_bytes(picture)
    chosen = {key: files.get(key) for key in measured.subjects[:renderings]} if files else {}
    rendered, failures = _render(measured, chosen, out, progress)
    made = dataclasses.replace(made, failures=failures)
    sections = _sections(made, measured, pictures, rendered)
    write_text(out / "report.html", html_page(_TITLE + measured.reduced, sections))
    return made


def _label_files(folder: Path, measured: Measured) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    note = folder / "predictions.json"
    if note.exists() and read_json(note).get("orientation", True) is None:
        raise DataError(f"{folder}: these scans lie in no patient and have no front; leave the predictions out")
    files = {case_id(path): path for path in volume_files(folder)}
    if not set(files) & set(measured.subjects):
        shown = ", ".join(measured.subjects[:3])
        raise DataError(f"{folder}: holds no label image of the evaluated subjects {shown}; give their predictions")
    return files


def _write_tables(made: MuscleFigures, measured: Measured) -> None:
    about = {
        "made_by": _MADE_BY,
        "context": measured.context,
        "source": SOURCE,
        "subjects": list(measured.subjects),
        "failures": measured.failures,
        "remarks": list(made.remarks),
    }
    errors = {name: {"mean": mean(_values(measured, name)), "paper": paper} for name, paper in PUBLISHED_MEANS.items()}
    content = {"muscles": list(made.table), "mean": made.means, "errors": errors, "made_with": provenance()}
    write_json(made.out / "muscles.json", about | content)
    rows = [measured.context | line for line in made.table]
    write_text(made.out / "muscles.csv", csv_text(rows, list(made.table[0] | measured.context)))


def _values(measured: Measured, metric: str) -> list[float]:
    return [row[metric] for row in measured.compared]


def _histogram(measured: Measured, metric: str, quantity: str, unit: str) -> Figure:
    rows = measured.compared
    is_muscle = pooled_name(rows[0]["structure"]) in PUBLISHED if rows else False
    subjects = len({row["subject_id"] for row in rows})
    return histogram(
        _values(measured, metric),
        quantity=quantity,
        unit=unit,
        published=PUBLISHED_MEANS[metric] if is_muscle else None,
        counted="muscles (left and right are two)" if is_muscle else "structures",
        title=f"{subjects} subject{'s' * (subjects != 1)}{measured.reduced}, ",
    )


def _render(
    measured: Measured, files: Mapping[str, Path | None], out: Path, progress: Progress | None
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Writes a picture per subject and returns them, and why some could not be drawn."""
    shown_as = {name: pooled_name(name).replace("_", " ") for name in measured.label_map.structures}
    two_sides = {"left", "right"} <= set(map(LabelMap.side, measured.label_map.structures))
    pictures: dict[str, bytes] = {}
    failures: dict[str, str] = {}
    if not files and not (out / "renderings").exists():
        return pictures, failures
    with atomic_path(out / "renderings") as folder:
        folder.mkdir()
        names = file_names(list(files))
        for number, (subject_id, path) in enumerate(files.items(), start=1):
            try:
                if path is None:
                    raise DataError("no label image of this name among the predictions; predict it")
                labels = read_labels(path, measured.label_map)
            except DataError as error:
                failures[f"rendering of {subject_id}"] = one_line(error)
            else:
                title = f"{subject_id}: predicted{measured.reduced}" + "; right side in darker colours" * two_sides
                figure = rendering(labels, label_map=measured.label_map, shown_as=shown_as, title=title)
                pictures[subject_id] = figure_png(figure)
                (folder / names[subject_id]).write_bytes(pictures[subject_id])
            if progress is not None:
                progress(number, len(files), subject_id)
    return pictures, failures


def _sections(
    made: MuscleFigures, measured: Measured, histograms: Mapping[str, bytes], rendered: Mapping[str, bytes]
) -> list[Section]:
    facts = measured.context or {"predictions": "nothing is known of their origin: they had no predictions.json"}
    facts = facts | {"subjects measured": str(len(measured.subjects)), "published figures": SOURCE}
    sections = [Section("Where these figures come from", table=[{"what": k, "value": v} for k, v in facts.items()])]
    if made.reduced:
        text = "The recipe was cut down to run on a small machine. These figures say nothing about the full recipe."
        sections.insert(0, Section("Reduced", text, notice=True))
    if every := measured.failures | made.failures:
        failed = [{"what": key, "reason": reason} for key, reason in every.items()]
        sections.append(Section(f"Failed: {len(failed)}", table=failed, notice=True))
    if made.remarks:
        sections.append(Section("Missing", "\n".join(made.remarks), notice=True))
    muscles = [line for line in made.table if line["structure"] in PUBLISHED]
    others = [line for line in made.table if line["structure"] not in PUBLISHED]
    if muscles:
        lines = [*map(_readable, muscles), *_mean_line(made.means)]
        sections.append(Section("Dice of each muscle, worst first", _about_means(made.means), table=lines))
    if others:
        lines = [{key: text for key, text in _readable(line).items() if key in _OWN} for line in others]
        sections.append(Section("Other structures, not in the paper", table=lines))
    captions = {f"{about[1]} ({about[2]})": histograms[name] for name, about in _HISTOGRAMS.items()}
    sections.append(Section("How large the errors are", _about_errors(measured), pictures=captions))
    if rendered:
        text = f"{len(rendered)} of {len(measured.subjects)} subjects; the pictures show predictions, not references."
        sections.append(Section("Predicted labels from the front and from the back", text, pictures=rendered))
    return [*sections, Section("How it was measured", _RULES, folded=True)]


_OWN = ("muscle", "Dice", "subjects", "sides", "remark")
"""Columns about our own figures."""


def _readable(line: Mapping[str, Any]) -> dict[str, str]:
    return {
        "muscle": line["structure"].replace("_", " "),
        "Dice": _plus_minus(line["dice_mean"], line["dice_sd"], 3),
        "published": _plus_minus(line["published_mean"], line["published_sd"], 2),
        "observers": _plus_minus(line["observers_mean"], math.nan, 2),
        "difference": f"{round(line['difference'], 3) + 0.0:+.3f}" if math.isfinite(line["difference"]) else "–",
        "subjects": str(line["n_subjects"]),
        "sides": str(line["n_sides"]),
        "remark": line["note"],
    }


def _mean_line(means: Mapping[str, float]) -> list[dict[str, str]]:
    if not means["n_muscles"]:
        return []
    nothing = {"dice_sd": math.nan, "published_sd": math.nan, "n_subjects": "", "n_sides": "", "note": ""}
    line = _readable({**means, **nothing, "structure": f"mean of these {means['n_muscles']} muscles"})
    return [line | {key: f"{means[name]:.3f}" for key, name in _MEAN_COLUMNS.items()}]


_MEAN_COLUMNS = {"published": "published_mean", "observers": "observers_mean"}


def _about_means(means: Mapping[str, float]) -> str:
    if not means["n_muscles"]:
        return "No muscle has a Dice."
    level = f"{means['n_not_below_observers']} of {means['n_muscles']}"
    return (
        "Difference: mean Dice here minus the published one. "
        f"{level} muscles are not below the Dice between the paper's observers."
    )


def _about_errors(measured: Measured) -> str:
    signed = mean(_values(measured, "volume_difference_percent"))
    lines = [f"With sign, the mean difference of the volumes is {signed:+.1f} %: above 0, too much was predicted."]
    undefined = sum(not math.isfinite(value) for value in _values(measured, SURFACE_DISTANCE))
    if undefined:
        lines.append(f"{undefined} were not found: their volume error is 100 %, and they have no surface distance.")
    return "\n".join(lines if math.isfinite(signed) else ["Nothing was drawn in any subject."])


def _plus_minus(value: float, sd: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" + (f" ± {sd:.{digits + (digits < 3)}f}" if math.isfinite(sd) else "")
