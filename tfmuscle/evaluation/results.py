"""What an evaluation takes and gives, and its statistics.

Means. A structure's figure is the mean over subjects. "Mean of all foreground structures" is taken within each subject
first, so that its sd is between subjects. NaN is left out of means and counted in `n_undefined`; two empty masks agree
(Dice 1) and are counted in `n_both_empty`. The sd is that of a sample (n - 1).

A second annotator is compared with the reference as a prediction would be. A structure lies *within human variability*
when the method's mean Dice is not below the mean Dice between the observers, each over the subjects it has (Ni et al.
compare 13 subjects with the 3 that were drawn twice); both counts stand in the table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.metrics import BOTH_EMPTY, METRICS, SURFACE_DICE_TOLERANCE_MM
from tfmuscle.report import Section

ALL_STRUCTURES = "mean of all foreground structures"
OBSERVER_DICE = "observer_dice"
_VOLUMES = ("prediction_ml", "reference_ml")
_ON_PAGE_ONLY = ("surface Dice", "volume ml", "volume error ml", "both empty", "no surface")
_SHOWN = {
    "hausdorff_95": "HD95 mm",
    "assd": "ASSD mm",
    "surface_dice": "surface Dice",
    "reference_ml": "volume ml",
    "volume_error_ml": "volume error ml",
    "volume_difference_percent": "volume difference %",
}


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation may take besides predictions and references.

    Attributes:
        images: subject id -> scan, for the overlays (first channel).
        observer2: subject id -> labels of a second annotator; subjects may be missing.
        failures: subject id -> reason, of subjects that could not be predicted.
        context: what a table must say about its origin, e.g. data, split, seed, epochs, hardware; shown first.
        history: training log, name -> value per epoch, for the training curves.
        sections: further sections of the page.
        tolerance_mm: of the surface Dice.
        letters: whether the grids lie in a patient, so that overlays may say left and right.
        structures: the only ones to measure, when not all were looked for; all without any.
    """

    images: Mapping[str, Path] | None = None
    observer2: Mapping[str, Path] | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Sequence[float]] | None = None
    sections: tuple[Section, ...] = ()
    tolerance_mm: float = SURFACE_DICE_TOLERANCE_MM
    letters: bool = True
    structures: tuple[str, ...] = ()

    @property
    def reduced(self) -> str:
        """Returns " (reduced)" for a recipe that was cut down, else nothing."""
        return " (reduced)" if any(str(v).lower().startswith("reduced") for v in self.context.values()) else ""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per subject and structure: `subject_id`, `structure`, `note`, volumes, every name of `METRICS`.
        summary: one per structure and metric, the last structure being `ALL_STRUCTURES`.
        failures: subject id (or "image of ...", "observer2 of ...") -> reason in one line.
        unused: predictions without reference.
        out: folder of the report.
        reduced: whether the recipe had been cut down.
    """

    rows: tuple[dict[str, Any], ...]
    summary: tuple[dict[str, Any], ...]
    failures: dict[str, str]
    unused: tuple[str, ...]
    out: Path
    reduced: bool = False

    @property
    def mean_dice(self) -> float:
        """Mean foreground Dice: of the structures within each subject, then of the subjects."""
        return next(
            row["mean"] for row in self.summary if (row["structure"], row["metric"]) == (ALL_STRUCTURES, "dice")
        )

    def table(self) -> str:
        """Returns the main figures as aligned text, one line per structure."""
        rows = [{key: row[key] for key in row if key not in _ON_PAGE_ONLY} for row in summary_table(self.summary)]
        lines = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        table = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return table + "\nreduced: the recipe was cut down" * self.reduced


def mean(values: Sequence[float]) -> float:
    """Returns the mean of the values that are not NaN; NaN when there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def summarise(
    rows: Sequence[Mapping[str, Any]], label_map: LabelMap, failed: int, options: EvaluationOptions
) -> list[dict[str, Any]]:
    """Returns one row per structure and metric: statistics over the subjects, and what was left out."""
    subjects = list(dict.fromkeys(row["subject_id"] for row in rows))
    units = {name: metric.unit for name, metric in METRICS.items()} | dict.fromkeys(_VOLUMES, "ml")
    summary = []
    for structure in (*label_map.structures, ALL_STRUCTURES):
        own = [row for row in rows if structure in (ALL_STRUCTURES, row["structure"])]
        both_empty = sum(row["note"] == BOTH_EMPTY for row in own)
        groups = [[row for row in own if row["subject_id"] == subject_id] for subject_id in subjects]
        for metric, unit in units.items():
            values = [mean([row[metric] for row in group]) for group in groups]
            line = {"structure": structure, "metric": metric, "unit": unit, **_statistics(values)}
            line |= {"n_both_empty": both_empty, "n_failed": failed}
            if options.observer2 is not None:
                between = [mean([row[OBSERVER_DICE] for row in group]) for group in groups]
                line |= _against_observers(line, between)
            summary.append(line)
    return summary


def _statistics(values: Sequence[float]) -> dict[str, float]:
    finite = np.array([value for value in values if math.isfinite(value)])
    some = len(finite) > 0
    return {
        "mean": float(finite.mean()) if some else math.nan,
        "sd": float(finite.std(ddof=1)) if len(finite) > 1 else math.nan,
        "median": float(np.median(finite)) if some else math.nan,
        "minimum": float(finite.min()) if some else math.nan,
        "maximum": float(finite.max()) if some else math.nan,
        "n": len(finite),
        "n_undefined": len(values) - len(finite),
    }


def _against_observers(line: Mapping[str, Any], values: Sequence[float]) -> dict[str, Any]:
    """Returns the columns about a second annotator; they are empty for metrics other than Dice."""
    if line["metric"] != "dice":
        return {"observers_mean": "", "observers_sd": "", "n_observers": "", "within_human_variability": ""}
    between = _statistics(values)
    comparable = line["n"] > 0 and between["n"] > 0
    within = "" if not comparable else "yes" if line["mean"] >= between["mean"] else "no"
    columns = {"observers_mean": between["mean"], "observers_sd": between["sd"], "n_observers": between["n"]}
    return columns | {"within_human_variability": within}


def summary_table(summary: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per structure with its main figures as text, "mean ± sd"."""
    table = []
    for structure in dict.fromkeys(line["structure"] for line in summary):
        lines = {line["metric"]: line for line in summary if line["structure"] == structure}
        overlap = lines["dice"]
        row = {"structure": structure, "Dice": _plus_minus(overlap, 3)}
        if "observers_mean" in overlap:
            between = {"mean": overlap["observers_mean"], "sd": overlap["observers_sd"]}
            row["Dice between observers"] = f"{_plus_minus(between, 3)} (n={overlap['n_observers']})"
            row["within human variability"] = overlap["within_human_variability"] or "–"
        for name, heading in _SHOWN.items():
            row[heading] = _plus_minus(lines[name], 3 if name == "surface_dice" else 2)
        row |= {"subjects": overlap["n"], "failed": overlap["n_failed"], "both empty": overlap["n_both_empty"]}
        table.append(row | {"no surface": lines["assd"]["n_undefined"]})
    return table


def _plus_minus(line: Mapping[str, Any], digits: int) -> str:
    if not math.isfinite(line["mean"]):
        return "–"
    return f"{line['mean']:.{digits}f}" + (f" ± {line['sd']:.{digits}f}" if math.isfinite(line["sd"]) else "")
