"""Several models in one picture: boxes of each structure grouped by model, and paired differences.

Boxes show each model by itself; whether one is better is seen in the differences on the same person, which the spread
between persons hides in the boxes. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tfmuscle.metrics import METRICS
from tfmuscle.report.figures import plain

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#555555")
_GROUP = 0.86
"""Share of the height of a structure that its boxes take."""
_ROW_INCHES = 0.2
_MOST_SUBJECTS_AS_POINTS = 60


def model_boxes(rows: Mapping[str, Sequence[Mapping[str, Any]]], *, metric: str = "dice", title: str = "") -> Figure:
    """Draws for every structure one horizontal box per model, with a point per subject; NaN is left out.

    Args:
        rows: model -> rows as `metrics.measure` gives them, of any number of subjects.
        metric: name in `METRICS`.
        title: above the plot.
    """
    structures = list(dict.fromkeys(row["structure"] for own in rows.values() for row in own))
    height = 1.6 + _ROW_INCHES * max(1, len(rows)) * max(1, len(structures)) + 0.12 * len(structures)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    thickness = _GROUP / max(1, len(rows))
    for number, own in enumerate(rows.values()):
        shift = (number - (len(rows) - 1) / 2) * thickness
        for position, name in enumerate(structures):
            values = np.array([row[metric] for row in own if row["structure"] == name], dtype=float)
            _draw(axes, values[np.isfinite(values)], position + shift, thickness, _COLOURS[number % len(_COLOURS)])
    for position in range(1, len(structures)):
        axes.axhline(position - 0.5, color="#bbbbbb", linewidth=0.6)
    axes.set_yticks(range(len(structures)), [plain(name) for name in structures], fontsize=9)
    axes.set_ylim(max(1, len(structures)) - 0.5, -0.5)
    unit = f" ({METRICS[metric].unit})" if METRICS[metric].unit else ""
    axes.set_xlabel(METRICS[metric].description + unit)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(plain(title), fontsize=10)
    handles = [
        Patch(facecolor=_COLOURS[number % len(_COLOURS)], alpha=0.55, label=plain(name))
        for number, name in enumerate(rows)
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=min(4, max(1, len(rows))))
    return figure


def _draw(axes: Axes, values: np.ndarray, position: float, thickness: float, colour: str) -> None:
    if not len(values):
        return
    axes.boxplot(
        [values],
        positions=[position],
        orientation="horizontal",
        widths=0.78 * thickness,
        showfliers=len(values) > _MOST_SUBJECTS_AS_POINTS,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.55},
        medianprops={"color": "black", "linewidth": 1.4},
        manage_ticks=False,
    )
    if len(values) <= _MOST_SUBJECTS_AS_POINTS:
        jitter = 0.22 * thickness * np.sin(np.arange(len(values)) * 2.4)  # spread without chance
        axes.plot(values, position + jitter, "o", color=colour, markeredgecolor="#333333", markersize=3, linestyle="")


def difference_plot(
    differences: Mapping[str, Sequence[float]],
    intervals: Mapping[str, tuple[float, float, float]],
    *,
    title: str = "",
) -> Figure:
    """Draws one line per pair of models: a point per person, the median and its interval, and zero.

    Args:
        differences: "A - B" -> difference of the mean Dice of each person.
        intervals: "A - B" -> median and limits of its interval; NaN where there are none.
        title: above the plot.
    """
    figure = Figure(figsize=(9, 1.3 + 0.42 * max(2, len(differences))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#333333", linewidth=1)
    for position, (pair, values) in enumerate(differences.items()):
        jitter = 0.16 * np.sin(np.arange(len(values)) * 2.4)
        axes.plot(values, position + jitter, "o", color="#56b4e9", markeredgecolor="#333333", markersize=3.5, alpha=0.7)
        median, low, high = intervals[pair]
        if np.isfinite(low):
            axes.plot([low, high], [position, position], "-", color="black", linewidth=2.2)
        axes.plot([median], [position], "|", color="black", markersize=18, markeredgewidth=2.5)
    axes.set_yticks(range(len(differences)), [plain(pair) for pair in differences], fontsize=8)
    axes.set_ylim(max(1, len(differences)) - 0.4, -0.6)
    axes.set_xlabel("difference of the mean Dice of all structures, on the same person")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(plain(title), fontsize=10)
    return figure
