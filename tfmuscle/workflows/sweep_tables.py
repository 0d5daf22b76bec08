"""All tables and figures about ways to label sweeps, beside those of IFSS-Net, as one job: `sweep_tables`.

    OUT/methods.csv, methods.json       a row per structure, part, protocol and method
    OUT/hausdorff.png                   Hausdorff distance of every participant
    OUT/slices/<subject>.png            Dice and ASD along the slices
    OUT/surfaces/<subject>/*.ply, *.png predicted surfaces, coloured by their distance to the true ones
    OUT/report.html                     all of it on one page

The input are folders of evaluations: nothing is measured anew for the tables, so that a page can never disagree with
them. Slices and surfaces need the label files as well. There, slices that somebody drew (the ignore id in the
references) are left out of the curves, and count as right on surfaces.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.evaluation.comparison import per_subject
from tfmuscle.evaluation.muscles import read_measured
from tfmuscle.evaluation.published import SWEEPS_NOTES, SWEEPS_SOURCE
from tfmuscle.evaluation.reading import on_grid, one_line, read_labels
from tfmuscle.evaluation.results import ALL_STRUCTURES
from tfmuscle.evaluation.sweeps import Way, profile, published_row, readable, surface_error, sweep_table
from tfmuscle.evaluation.writing import file_names
from tfmuscle.files import atomic_path, check_outputs, check_owner, provenance, write_json, write_text
from tfmuscle.io import case_id, volume_files, write_mesh
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import slice_axis
from tfmuscle.report import Section, figure_png, html_page
from tfmuscle.report.sweeps import error_colours, participants_plot, slices_plot, surface_error_figure
from tfmuscle.tables import csv_text
from tfmuscle.volume import Volume

Progress = Callable[[int, int, str], None]
LARGEST_MM = 5.0
"""Distance of the last colour on surfaces."""
_MADE_BY = "tfmuscle sweep-tables"
_TITLE = "tfmuscle: ways to label sweeps"
_RULES = f"""\
The mean of all structures is taken within each subject first; mean ± sd (n - 1) is over subjects.
mIoU is the intersection over union of a muscle, HD the Hausdorff distance, ASD the mean distance from the predicted to
the true surface, VolErr the difference of the volumes over their mean, at most 200 %.
Slices that were drawn for a method are known to it, and are not measured where the references mark them as unknown.
Published: {SWEEPS_SOURCE}. They were measured on other scans: a hint, no target.
For research use; not a medical device."""


@dataclass(frozen=True)
class SweepTables:
    """What `sweep_tables` made.

    Attributes:
        table: see `evaluation.sweeps.sweep_table`.
        failures: what could not be read or drawn -> reason.
        out: folder of the tables.
        reduced: whether a recipe had been cut down.
    """

    table: tuple[dict[str, Any], ...]
    failures: dict[str, str]
    out: Path
    reduced: bool

    def readable(self, structure: str = ALL_STRUCTURES) -> list[dict[str, Any]]:
        """Returns the rows of a structure as text, each with its published figures below it."""
        rows = []
        for row in (row for row in self.table if row["structure"] == structure):
            below = published_row(row)
            rows += [readable(row), *([below] if below else [])]
        return rows


@dataclass(frozen=True)
class _Labels:
    """Label files of the ways, for curves and surfaces."""

    references: Mapping[str, Path]
    predictions: Mapping[str, Mapping[str, Path]]
    label_map: LabelMap

    def read(self, way: str, subject: str) -> tuple[Volume, Volume]:
        """Returns prediction and reference on one grid."""
        for what, files in ((way, self.predictions[way]), ("references", self.references)):
            if subject not in files:
                raise DataError(f"{subject}: not among the label files of {what}; give the folder that holds it")
        reference = read_labels(self.references[subject], self.label_map)
        return on_grid(read_labels(self.predictions[way][subject], self.label_map), reference), reference


def sweep_tables(
    evaluations: Mapping[str, str | Path],
    out: str | Path,
    *,
    predictions: Mapping[str, str | Path] | None = None,
    references: str | Path | None = None,
    shown: int = 2,
    progress: Progress | None = None,
) -> SweepTables:
    """Writes the table of methods beside the published figures, and shows where they fail.

    Args:
        evaluations: `METHOD` or `METHOD/PROTOCOL` -> folder that `evaluate` wrote.
        out: folder to write; one that this command wrote is written anew.
        predictions: the same names -> folder of predicted labels; without any there are neither curves nor surfaces.
        references: folder of the labels they were compared with.
        shown: most subjects with curves and surfaces, the first ones.
        progress: called with (subjects drawn, subjects in all, subject).

    Raises:
        ValueError: no evaluation, a negative number, predictions without references, or of an unknown name.
        DataError: a folder is missing or damaged, label maps differ, or `out` holds something else.
    """
    out, predictions = Path(out), dict(predictions or {})
    _check(evaluations, predictions, references, shown)
    check_outputs([out], [*evaluations.values(), *predictions.values(), references])
    if (out / "report.html").exists() and not (out / "methods.json").exists():
        raise DataError(f"{out}: holds the report of something else; choose a new folder")
    check_owner(out / "methods.json", _MADE_BY)
    ways = [Way(name, read_measured(Path(folder))) for name, folder in evaluations.items()]
    label_map = _common_map(ways)
    failures = {f"{way.name}, {key}": reason for way in ways for key, reason in way.measured.failures.items()}
    table = sweep_table(ways)
    made = SweepTables(tuple(table), failures, out, any(way.measured.reduced for way in ways))
    _write_tables(made, ways)
    sections = [_hausdorff(ways, out)]
    if predictions and references is not None:
        files = {name: _label_files(Path(folder)) for name, folder in predictions.items()}
        labels = _Labels(_label_files(Path(references)), files, label_map)
        drawn, more = _draw_subjects(labels, ways, out, shown, progress)
        sections += drawn
        made = dataclasses.replace(made, failures=failures | more)
    write_text(out / "report.html", html_page(_TITLE + " (reduced)" * made.reduced, _sections(made, ways, sections)))
    return made


def _check(
    evaluations: Mapping[str, Any], predictions: Mapping[str, Any], references: str | Path | None, shown: int
) -> None:
    if not evaluations:
        raise ValueError("no evaluation is given; one is needed at least")
    if shown < 0:
        raise ValueError(f"shown is {shown}; a number of subjects, 0 or more, is needed")
    if unknown := sorted(set(predictions) - set(evaluations)):
        raise ValueError(
            f"predictions of {', '.join(unknown)} have no evaluation; evaluated are {', '.join(evaluations)}"
        )
    if predictions and references is None:
        raise ValueError("predictions need the references they were compared with; give them")


def _common_map(ways: Sequence[Way]) -> LabelMap:
    first = ways[0].measured.label_map
    for way in ways[1:]:
        if way.measured.label_map.names != first.names:
            raise DataError(
                f"{way.name}: its labels are {way.measured.label_map.to_dict()}, those of {ways[0].name}"
                f" {first.to_dict()}; compare evaluations of the same structures"
            )
    ignores = [way.measured.label_map.ignore for way in ways if way.measured.label_map.ignore is not None]
    return LabelMap(first.names, ignore=ignores[0] if ignores else None)


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    folder = folder / "labelsTr" if (folder / "labelsTr").is_dir() else folder
    if not (files := {case_id(path): path for path in volume_files(folder)}):
        raise DataError(f"{folder}: holds no label image; check the path")
    return files


def _write_tables(made: SweepTables, ways: Sequence[Way]) -> None:
    about = {"made_by": _MADE_BY, "source": SWEEPS_SOURCE, "notes": SWEEPS_NOTES, "failures": made.failures}
    contexts = {way.name: way.measured.context for way in ways}
    content = {"contexts": contexts, "rows": list(made.table), "made_with": provenance()}
    write_json(made.out / "methods.json", about | content)
    columns = dict.fromkeys(key for context in contexts.values() for key in context)
    rows = []
    for row in made.table:
        context = contexts[f"{row['method']}/{row['protocol']}" if row["protocol"] else row["method"]]
        rows.append(row | {f"context {name}": context.get(name, "") for name in columns})
    write_text(made.out / "methods.csv", csv_text(rows))


def _hausdorff(ways: Sequence[Way], out: Path) -> Section:
    values = {
        f"{way.name} ({way.part})" if way.part != "all" else way.name: per_subject(way.measured.rows, "hausdorff")
        for way in ways
    }
    finite = {name: {key: value for key, value in own.items() if math.isfinite(value)} for name, own in values.items()}
    picture = figure_png(participants_plot(finite, title="mean of the structures"))
    with atomic_path(out / "hausdorff.png") as path:
        path.write_bytes(picture)
    return Section("Hausdorff distance of every participant", pictures={"A mark per method, mm": picture})


def _draw_subjects(
    labels: _Labels, ways: Sequence[Way], out: Path, shown: int, progress: Progress | None
) -> tuple[list[Section], dict[str, str]]:
    """Draws curves and surfaces of the first subjects; returns sections of the page, and what failed."""
    subjects = list(
        dict.fromkeys(key for way in ways if way.name in labels.predictions for key in way.measured.subjects)
    )
    curves: dict[str, bytes] = {}
    surfaces: dict[str, bytes] = {}
    failures: dict[str, str] = {}
    with atomic_path(out / "slices") as slices, atomic_path(out / "surfaces") as meshes:
        slices.mkdir()
        meshes.mkdir()
        for number, (subject, name) in enumerate(file_names(subjects[:shown]).items(), start=1):
            profiles = {}
            for way in labels.predictions:
                try:
                    prediction, reference = labels.read(way, subject)
                except DataError as error:
                    failures[f"{way}, curves of {subject}"] = one_line(error)
                    continue
                profiles[way] = profile(prediction, reference, labels.label_map, slice_axis(reference.geometry))
                folder = meshes / name.removesuffix(".png")
                surfaces |= _draw_surfaces(f"{subject}, {way}", prediction, reference, labels.label_map, folder)
            if profiles:
                curves[subject] = figure_png(slices_plot(profiles, title=subject))
                (slices / name).write_bytes(curves[subject])
            if progress is not None:
                progress(number, min(shown, len(subjects)), subject)
    text = f"{len(curves)} of {len(subjects)} subjects. Slices that were drawn are left out."
    meshes_text = f"Vertices of the PLY files hold the distance in mm as `quality`; colours end at {LARGEST_MM:g} mm."
    sections = [
        Section("Dice and ASD along the slices", text, pictures=curves),
        Section("Error on the surface", meshes_text, pictures=surfaces, folded=True),
    ]
    return [section for section in sections if section.pictures], failures


def _draw_surfaces(
    title: str, prediction: Volume, reference: Volume, label_map: LabelMap, folder: Path
) -> dict[str, bytes]:
    """Writes a mesh and a picture of every structure that both hold; returns caption -> picture."""
    pictures = {}
    true = reference.array
    if label_map.ignore is not None:
        true = np.where(true == label_map.ignore, prediction.array, true)
    for structure in label_map.structures:
        found, drawn = (array == label_map.id_of(structure) for array in (prediction.array, true))
        if not (found.any() and drawn.any()):
            continue
        mesh, distances = surface_error(found, drawn, reference.geometry)
        name = file_names([f"{structure}, {title.partition(', ')[2]}"]).popitem()[1].removesuffix(".png")
        colours = error_colours(distances, LARGEST_MM)
        write_mesh(folder / f"{name}.ply", mesh, quality=distances, colours=colours)
        caption = (
            f"{title}: {structure.replace('_', ' ')}, mean {distances.mean():.2f} mm, most {distances.max():.1f} mm"
        )
        volumes = (prediction.with_array(found), reference.with_array(drawn))
        pictures[caption] = figure_png(surface_error_figure(*volumes, largest=LARGEST_MM, title=caption))
        (folder / f"{name}.png").write_bytes(pictures[caption])
    return pictures


def _sections(made: SweepTables, ways: Sequence[Way], drawn: Sequence[Section]) -> list[Section]:
    origin = [{"method": way.name, **way.measured.context} for way in ways]
    columns = dict.fromkeys(key for row in origin for key in row)
    origin = [{key: row.get(key, "") for key in columns} for row in origin]
    sections = [Section("Where these figures come from", table=origin)]
    if made.reduced:
        text = "Recipes were cut down to run on a small machine. These figures say nothing about the full recipes."
        sections.insert(0, Section("Reduced", text, notice=True))
    if made.failures:
        failed = [{"what": key, "reason": reason} for key, reason in made.failures.items()]
        sections.append(Section(f"Failed: {len(failed)}", table=failed, notice=True))
    structures = list(dict.fromkeys(row["structure"] for row in made.table))
    for structure in structures:
        rows = made.readable(structure)
        is_mean = structure == ALL_STRUCTURES
        heading = "All structures, published figures below ours" if is_mean else structure.replace("_", " ")
        sections.append(Section(heading, "\n".join(SWEEPS_NOTES) if is_mean else "", table=rows))
    return [*sections, *drawn, Section("How it was measured", _RULES, folded=True)]
