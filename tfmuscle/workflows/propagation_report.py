"""What `propagate` tells beside the labels: a JSON of everything, drift as a table, a picture.

    <name>.json   names, SHA-256 of the labels, method, drawn and corrected slices, volumes, drift, slices to redraw
    <name>.csv    drift: a row for every structure on every drawn slice at which something arrived
    <name>.png    area in dispute and drift along the scan; what each way says of the slices to redraw

Slices are numbered as in the file, from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfmuscle.disagreement import choose_slices
from tfmuscle.files import atomic_path, write_json, write_text
from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import LabelMap
from tfmuscle.propagation.findings import Findings, disputed, opinions_of, volume_range
from tfmuscle.propagation.frames import Frame
from tfmuscle.propagation.running import Job
from tfmuscle.propagation.stretches import stretches_of
from tfmuscle.report import figure_png
from tfmuscle.report.propagation import Look, Panel, propagation_figure
from tfmuscle.tables import csv_text
from tfmuscle.volume import Volume
from tfmuscle.workflows.corrections import MADE_BY, Place

_PANELS = 6
_RANGE = ("volume", "low", "high")
_COLUMNS = ("slice", "structure", "way", "dice", "slices_apart", "arrived_mm2", "drawn_mm2")


@dataclass(frozen=True)
class Told:
    """What else the report says.

    Attributes:
        method: its name.
        label_map: names the ids.
        slices: drawn ones.
        corrected: those of them that were corrected in the labels.
        count: slices to name for redrawing.
        reduced: whether the network's recipe was cut down.
    """

    method: str
    label_map: LabelMap
    slices: LabelledSlices
    corrected: tuple[int, ...]
    count: int
    reduced: bool


@dataclass(frozen=True)
class Report:
    """What the report says.

    Attributes:
        volumes_ml: structure -> volume, smallest and largest that is held possible.
        drift: rows of the table.
        redraw: slices to redraw, the most useful first.
    """

    volumes_ml: dict[str, tuple[float, float, float]]
    drift: list[dict[str, Any]]
    redraw: list[dict[str, Any]]


def write_report(place: Place, job: Job, findings: Findings, frame: Frame, scan: Volume, told: Told) -> Report:
    """Writes table and picture, puts the labels in their place, and writes the JSON last."""
    drawn = sorted(map(frame.index, told.slices.indices))
    names = [told.label_map.names[key] for key in job.keys]
    area = scan.geometry.voxel_volume_ml * 1000 / told.slices.step_mm
    doubt = disputed(findings, drawn) * area
    chosen = choose_slices(doubt.sum(axis=0), drawn, told.count)
    report = Report(_volumes(findings, drawn, names, scan), _drift(findings, frame, told, area), [
        {"slice": frame.index(index), "disputed_mm2": round(float(doubt[:, index].sum()), 2),
         "structure": names[int(doubt[:, index].argmax())] if doubt[:, index].any() else ""}
        for index in chosen
    ])  # fmt: skip
    write_text(place.beside(".csv"), _csv(report.drift))
    along = doubt[:, ::-1] if frame.is_flipped else doubt
    figure = propagation_figure(
        dict(zip(names, along, strict=True)), report.drift, _panels(job, frame, scan, drawn, report.redraw[:_PANELS]),
        label_map=told.label_map, drawn=told.slices.indices, look=_look(frame, scan),
        title=f"{place.labels.name}: {told.method}" + (" (reduced)" if told.reduced else ""),
    )  # fmt: skip
    with atomic_path(place.beside(".png")) as path:
        path.write_bytes(figure_png(figure))
    digest = place.publish()
    about: dict[str, Any] = {"made_by": MADE_BY, "labels": replace(told.label_map, ignore=None).to_dict()}
    about |= {"files": {place.labels.name: digest}, "method": told.method, "axis": told.slices.axis}
    about |= {"drawn": told.slices.indices, "corrected": told.corrected, "reduced": told.reduced}
    about |= {"volumes_ml": {name: dict(zip(_RANGE, row, strict=True)) for name, row in report.volumes_ml.items()}}
    write_json(place.beside(".json"), about | {"drift": report.drift, "redraw": report.redraw})
    return report


def _volumes(
    findings: Findings, drawn: Sequence[int], names: Sequence[str], scan: Volume
) -> dict[str, tuple[float, float, float]]:
    voxels = volume_range(findings, drawn) * scan.geometry.voxel_volume_ml
    return {name: (float(row[0]), float(row[1]), float(row[2])) for name, row in zip(names, voxels, strict=True)}


def _drift(findings: Findings, frame: Frame, told: Told, area: float) -> list[dict[str, Any]]:
    rows = [
        {
            "slice": frame.index(one.index),
            "structure": told.label_map.names[one.key],
            "way": frame.way(one.way),
            "dice": round(one.dice, 4),
            "slices_apart": one.distance,
            "arrived_mm2": round(one.arrived * area, 2),
            "drawn_mm2": round(one.drawn * area, 2),
        }
        for one in findings.drift
    ]
    return sorted(rows, key=lambda row: row["slice"])


def _csv(rows: list[dict[str, Any]]) -> str:
    return csv_text((row if np.isfinite(row["dice"]) else row | {"dice": ""} for row in rows), _COLUMNS)


def _panels(job: Job, frame: Frame, scan: Volume, drawn: Sequence[int], rows: list[dict[str, Any]]) -> list[Panel]:
    turned = frame.turned(scan).array
    grey = turned[..., 0] if turned.ndim == 4 else turned
    stretches, panels = stretches_of(drawn, len(grey)), []
    for row in rows:
        index = frame.index(row["slice"])
        stretch = next(stretch for stretch in stretches if index in stretch.slices)
        planes = opinions_of(job, drawn, stretch)
        opinions = {frame.way(name): ids[index - stretch.first] for name, ids in planes.items()}
        caption = f"{row['slice']}: {row['disputed_mm2']:.0f} mm² in dispute"
        panels.append(Panel(caption, np.array(grey[index]), opinions))
    return panels


def _look(frame: Frame, scan: Volume) -> Look:
    spacing = frame.turned(scan).spacing
    return Look((spacing[1], spacing[2]), frame.orientation or "", "ijk"[frame.axis])
