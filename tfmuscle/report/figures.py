"""Curves over the epochs, boxes over the subjects, and what all figures share.

Every subject is a point beside the box of its structure: with ten subjects the box alone hides more than it shows.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tfmuscle.labels import LabelMap
from tfmuscle.metrics import METRICS

_BLUE, _ORANGE = "#1f5f99", "#d9730d"
_LAST_DRAWABLE = 0x58F


def plain(text: object) -> str:
    r"""Returns text that draws as it stands: no formulas, no glyphs the font lacks, no leading `_` (hidden in legends).

    >>> plain("a$b$"), plain("_left")
    ('a\\$b\\$', ' _left')
    """
    shown = "".join(c if c.isprintable() and ord(c) <= _LAST_DRAWABLE else "?" for c in str(text)).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def rgb(label_map: LabelMap, name: str) -> tuple[float, float, float]:
    """Returns the colour of a structure as matplotlib takes it, 0..1."""
    red, green, blue = label_map.colour(name)
    return red / 255, green / 255, blue / 255


def figure_png(figure: Figure, *, dpi: int = 110) -> bytes:
    """Returns the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def training_curves(history: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Draws every logged quantity over the epochs, `val_x` in the panel of `x`, and marks the best validation value.

    Args:
        history: name -> one value per epoch, as Keras logs it; a column `epoch` is left out, NaN leaves a gap.
        title: above the panels.
    """
    names = list(dict.fromkeys(name.removeprefix("val_") for name in history if name != "epoch"))
    columns = min(3, max(1, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.3 * columns, 3.1 * rows + 0.3), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        for key, label, colour in ((name, "training", _BLUE), (f"val_{name}", "validation", _ORANGE)):
            if values := list(history.get(key, ())):
                style = "o-" if len(values) < 3 else "-"
                axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label, markersize=4)
        _mark_best(axes, name, np.asarray(history.get(f"val_{name}", ()), dtype=float))
        axes.set_title(plain(name.replace("_", " ")), fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        if f"val_{name}" in history:
            axes.legend(fontsize=8)
    if not names:
        figure.add_subplot().text(0.5, 0.5, "no epoch yet", ha="center")
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _mark_best(axes: Axes, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmin(values) if "loss" in name or "error" in name else np.nanargmax(values))
    label = f"best: {values[best]:.3g} (epoch {best + 1})"
    axes.plot([best + 1], [values[best]], "*", color=_ORANGE, markeredgecolor="black", markersize=11, label=label)


def box_plot(
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str = "dice",
    label_map: LabelMap | None = None,
    observers: Mapping[str, float] | None = None,
    marked: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draws one horizontal box per structure, with a point per subject; NaN is left out and counted.

    Args:
        rows: as `metrics.measure` gives them, of any number of subjects.
        metric: name in `METRICS`.
        label_map: gives the colours.
        observers: structure -> mean between two observers, drawn as a diamond.
        marked: structures within human variability.
        title: above the plot.
    """
    structures, ticks = list(dict.fromkeys(row["structure"] for row in rows)), []
    figure = Figure(figsize=(8.5, 1.5 + 0.32 * max(2, len(structures))), layout="constrained")
    axes = figure.add_subplot()
    for position, name in enumerate(structures):
        values = np.array([row[metric] for row in rows if row["structure"] == name], dtype=float)
        finite = values[np.isfinite(values)]
        colour = rgb(label_map, name) if label_map else _BLUE
        _draw_box(axes, finite, position, colour)
        if observers and name in observers and np.isfinite(observers[name]):
            axes.plot(observers[name], position, "D", color="white", markeredgecolor="black", markersize=6, zorder=5)
        missing = f", {len(values) - len(finite)} undefined" if len(finite) < len(values) else ""
        ticks.append(f"{'* ' * (name in marked)}{plain(name)}  (n={len(finite)}{missing})")
    axes.set_yticks(range(len(structures)), ticks, fontsize=8)
    axes.set_ylim(max(1, len(structures)) - 0.4, -0.6)
    unit = f" ({METRICS[metric].unit})" if METRICS[metric].unit else ""
    axes.set_xlabel(METRICS[metric].description + unit)
    axes.grid(axis="x", alpha=0.3)
    _box_legend(figure, bool(observers), bool(marked))
    axes.set_title(plain(title), fontsize=10)
    return figure


def _draw_box(axes: Axes, values: np.ndarray, position: int, colour: Any) -> None:
    if not len(values):
        return
    axes.boxplot(
        [values],
        positions=[position],
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.45},
        medianprops={"color": "black", "linewidth": 1.5},
        manage_ticks=False,
    )
    jitter = 0.18 * np.sin(np.arange(len(values)) * 2.4)  # spread without chance
    axes.plot(values, position + jitter, "o", color=colour, markeredgecolor="#333333", markersize=3.2, linestyle="")


def _box_legend(figure: Figure, observers: bool, marked: bool) -> None:
    diamond = Line2D([], [], marker="D", color="white", markeredgecolor="black", label="mean between observers")
    star = Line2D([], [], linestyle="", label="* within human variability")
    handles = [handle for handle, wanted in ((diamond, observers), (star, marked)) if wanted]
    if handles:
        figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=2, frameon=False)
