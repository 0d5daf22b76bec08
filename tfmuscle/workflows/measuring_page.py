"""The page of one subject: what is doubtful first, then numbers, curves and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmuscle.io import read_volume
from tfmuscle.measuring import Structure
from tfmuscle.measuring.flags import KINDS
from tfmuscle.measuring.population import FEWEST_PEOPLE
from tfmuscle.report import Section, html_page, rendering
from tfmuscle.report.doubts import doubt_figure
from tfmuscle.report.measurements import area_figures, flagged_slices, overview
from tfmuscle.workflows.measuring_subject import MeasureOptions, Measures, flag_rows
from tfmuscle.workflows.trusting import slices_in_doubt

TITLE = "tfmuscle: measures"
_AXES = {
    "slices": "the normal of the slices",
    "patient": "foot-head of the patient",
    "labels": "the long axis of the labels of each side",
}
_SHAPE = {
    "structure": "structure",
    "volume ml": ("volume_ml", 2),
    "inner ml": ("inner_ml", 2),
    "outer ml": ("outer_ml", 2),
    "length mm": ("length_mm", 1),
    "largest area cm²": ("max_area_cm2", 2),
    "in slice": ("max_area_slice", 0),
    "at % of its length": ("max_area_percent", 0),
    "at % of the limb": ("max_area_limb_percent", 0),
    "mean area cm²": ("mean_area_cm2", 2),
    "pieces": ("pieces", 0),
    "cut at": "cut",
}
_FAT = {
    "structure": "structure",
    "FF % (mean of voxels)": ("ff_mean", 1),
    "sd": ("ff_sd", 1),
    "median": ("ff_median", 1),
    "FF % (ratio of sums)": ("ff_of_sums", 1),
    "% with signal": ("ff_with_signal_percent", 1),
    "noise floor %": ("ff_floor", 1),
}
RULES = """\
Volume: voxels times their volume. Inner: without the voxels that have a face towards something else. Outer: with all \
voxels besides that touch the structure with a face. The edge of the scan is no surface.
Length: from end to end along the limb's axis. Area: volume of a slab across that axis over its thickness; where \
slices lie across the axis, a slab is a slice. Slices are counted from 0, as in the file.
Limb: 0 % is its lower end, 100 % its upper end.
Asymmetry: 100 (left - right) / mean of both, in %, positive when the left side is larger (Robinson et al. 1987); of \
fat fractions the difference in percentage points.
For research use; not a medical device."""
_FAT_RULES = """\
Fat fraction of a voxel: 100 F / (W + F) of the magnitudes of fat and water, where W + F is above 5 % of its bright \
end (99th percentile). Mean of voxels: over those; ratio of sums: fat over water and fat, summed over all voxels of \
the structure.
It is a fraction of signal, not PDFF, unless the scanner corrected the images. Noise makes magnitudes positive: the \
noise floor is the fraction that noise alone would show in the structure's fat channel; values near it are too high. \
Without a floor, air was set to 0 in the images."""

_OTHERS = """\
Dice with each of the other labellings, and the range of volumes of all of them. A range is no interval of confidence: \
labellings that were made alike are wrong alike."""

_WORTH = """\
Of labels that predict --uncertainty made: the Dice to expect, learnt from labelled scans that the networks had not \
seen, and the range in which nine in ten of those lay. Scans unlike those may be worse. The map is the probability \
that a voxel's label is wrong."""


def page(measures: Measures, options: MeasureOptions, files: Mapping[str, str]) -> str:
    """Returns the page.

    Args:
        measures: of one subject.
        options: with which it was measured.
        files: role -> name of what was read.
    """
    read, label_map = measures.read, measures.read.label_map
    sections = [_about(measures, options, files), _doubts(measures)]
    sections.append(Section("Size", table=[_chosen(row, _SHAPE) for row in measures.rows]))
    if read.images.fat is not None:
        sections.append(Section("Fat fraction", text=_FAT_RULES, table=[_chosen(row, _FAT) for row in measures.rows]))
    if read.images.named:
        sections.append(Section("Intensities", table=_intensities(measures)))
    if measures.pairs:
        sections.append(Section("Left against right", table=_pairs(measures.pairs)))
    if read.worth:
        sections.append(_worth(measures))
    if measures.others:
        sections.append(Section("Beside other labellings", text=_OTHERS, table=_others(measures.others)))
    curves = {f"Area across the limb, {n}": figure for n, figure in enumerate(area_figures(measures.structures), 1)}
    sections.append(Section("Area along the limb", pictures=curves))
    overlay = overview(read.picture, read.labels, measures.structures, label_map=label_map)
    sections.append(Section("Slices", pictures={"Four slices along the labels": overlay}))
    body = rendering(read.labels, label_map=label_map)
    sections.append(Section("From outside", pictures={"Labels from the front and from the back": body}))
    sections.append(Section("How it was measured", text=RULES))
    return html_page(f"{TITLE}, {read.subject}", sections)


def _worth(measures: Measures) -> Section:
    """Shows what to expect of the labels, and the map of their errors."""
    read = measures.read
    table = []
    for row in read.worth:
        line = {"structure": str(row["structure"]), "expected Dice": "–", "nine in ten": "–"}
        if row["expected_dice"] is not None:
            low, high = number(row["dice_low"], 2), number(row["dice_high"], 2)
            line |= {"expected Dice": number(row["expected_dice"], 2), "nine in ten": f"{low} to {high}"}
        values = (row["agreement"], row["error_probability"])
        shown = ["–" if value is None else number(value, 3) for value in values]
        line |= {"agreement of networks": shown[0], "mean error probability": shown[1]}
        table.append(line | {"learnt from": str(row["learnt_from"])})
    pictures: dict[str, Figure] = {}
    slices = slices_in_doubt(read.worth)
    if read.doubts is not None and read.doubts.exists() and slices:
        error = read_volume(read.doubts)
        axis = int(read.worth[0]["slice_axis"])
        if error.geometry.same_grid(read.labels.geometry):
            drawn = doubt_figure(read.picture, read.labels, error, slices, axis=axis, label_map=read.label_map)
            pictures["Where the labels may be wrong"] = drawn
    return Section("How far to trust the labels", text=_WORTH, table=table, pictures=pictures)


def _about(measures: Measures, options: MeasureOptions, files: Mapping[str, str]) -> Section:
    read, grid = measures.read, measures.read.labels.geometry
    tilt = max(_tilt(one) for one in measures.structures)
    whole = f"the ends of {options.landmark}" if options.landmark else "the ends of all labels of the side"
    facts = {
        **{role: name for role, name in files.items() if role != "names"},
        "grid": " × ".join(map(str, grid.shape)) + f" voxels of {' × '.join(f'{s:.3g}' for s in grid.spacing)} mm",
        "structures": str(len(measures.structures)),
        "limb's axis": f"{_AXES[options.axis]}, {tilt:.1f}° from the patient's",
        "0 and 100 % of the limb": whole,
    }
    rows = [{"": key, "what": value} for key, value in facts.items()]
    return Section("What was measured", text="\n".join(read.remarks), table=rows)


def _tilt(one: Structure) -> float:
    return math.degrees(math.acos(float(np.clip(abs(one.axis.direction[2]), 0, 1))))


def _doubts(measures: Measures) -> Section:
    flags, read = measures.flags, measures.read
    if not flags:
        text = "Nothing was found to doubt. Rules find some mistakes, not all: look at the slices all the same."
        return Section("Look here", text=text)
    pictures: dict[str, Figure] = {}
    figure = flagged_slices(read.picture, read.labels, flags, label_map=read.label_map)
    if figure is not None:
        pictures["Where the gravest flags point"] = figure
    counts = ", ".join(f"{n} {kind}" for kind in KINDS if (n := sum(flag.kind == kind for flag in flags)))
    text = f"{len(flags)} flags: {counts}. A flag is a suspicion; the slices decide."
    if any(flag.kind == "population" for flag in flags):
        text += (
            f" Population: a robust z that 0.2 % of normal people have, from {FEWEST_PEOPLE} others on, sides together."
        )
    return Section("Look here", text=text, table=_joined(flag_rows(flags)), pictures=pictures, notice=True)


def _joined(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Joins flags that differ in their structure alone."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["what"], row["slices"]), []).append(row["structure"])
    return [
        {"structure": ", ".join(names), "kind": kind, "what": what, "slices": slices}
        for (kind, what, slices), names in groups.items()
    ]


def _chosen(row: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, str]:
    """Returns some columns of a row as text, under other names."""
    shown = {}
    for title, source in columns.items():
        name, digits = source if isinstance(source, tuple) else (source, None)
        shown[title] = str(row[name]) if digits is None else number(row[name], digits)
    return shown


def number(value: float, digits: int) -> str:
    """Returns a number with so many digits behind the point; a dash for an undefined one.

    >>> number(3.14159, 1), number(float("nan"), 1)
    ('3.1', '–')
    """
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _intensities(measures: Measures) -> list[dict[str, str]]:
    rows = []
    for one in measures.structures:
        for image, values in one.intensities.items():
            row = {"structure": one.name, "image": image, "mean": f"{values.mean:.4g}", "sd": f"{values.sd:.4g}"}
            rows.append(row | {f"p{percent}": f"{value:.4g}" for percent, value in values.percentiles.items()})
    return rows


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    titles = {"volume_ml": ("ml", 1, "%"), "max_area_cm2": ("cm²", 1, "%"), "length_mm": ("mm", 0, "%")}
    titles |= {"ff_mean": ("FF %", 1, "points"), "ff_of_sums": ("FF % (sums)", 1, "points")}
    rows = []
    for pair in pairs:
        row = {"structure": str(pair["structure"])}
        for column, (unit, digits, difference) in titles.items():
            if f"{column}_left" in pair:
                row |= {f"{unit} {side}": number(pair[f"{column}_{side}"], digits) for side in ("left", "right")}
                value = pair[f"{column}_asymmetry"]
                row[f"{unit} asymmetry, {difference}"] = f"{value:+.1f}" if math.isfinite(value) else "–"
        rows.append(row | {"cut": str(pair["cut"])})
    return rows


def _others(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    table = []
    for row in rows:
        line = {"structure": str(row["structure"]), "volume ml": number(row["volume_ml"], 2)}
        line |= {key: number(value, 3) for key, value in row.items() if key.startswith("dice ")}
        line |= {"mean Dice": number(row["dice_mean"], 3)}
        low, high = number(row["volume_ml_least"], 2), number(row["volume_ml_most"], 2)
        table.append(line | {"volumes ml, least to most": f"{low} to {high}"})
    return table
