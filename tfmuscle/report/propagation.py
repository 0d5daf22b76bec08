"""How a propagation went: area in dispute and drift along the scan, and what each way says of some slices.

Structures have their colours in the curves; in the slices a colour is an opinion, as in `suggestions.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfmuscle.labels import LabelMap
from tfmuscle.report.figures import plain, rgb
from tfmuscle.report.overlays import draw_borders
from tfmuscle.report.suggestions import box_around, draw_opinions, opinion_colour

_MARKERS = {"forward": ">", "backward": "<", "left out": "o"}
_WORST = 0.02
"""Room below the smallest Dice."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice.

    Attributes:
        caption: above it.
        image: `(H, W)` grey values.
        opinions: name -> ids `(H, W)`; the same names in all panels of a figure, as far as they speak.
    """

    caption: str
    image: np.ndarray
    opinions: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Look:
    """How slices lie.

    Attributes:
        step: spacing of rows and columns, mm.
        view: orientation code of (slices, rows, columns) for the letters on the borders; empty for none.
        letter: of the slice axis in the file.
    """

    step: tuple[float, float]
    view: str
    letter: str


def propagation_figure(
    disputed: Mapping[str, np.ndarray],
    drift: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel],
    *,
    label_map: LabelMap,
    drawn: Sequence[int],
    look: Look,
    title: str = "",
) -> Figure:
    """Draws two curves along the scan, and the panels.

    Args:
        disputed: structure -> area in dispute on every slice, mm².
        drift: rows with `slice`, `structure`, `way` and `dice`.
        panels: slices to be shown.
        label_map: gives the colours.
        drawn: drawn slices.
        look: how the slices of the panels lie.
        title: above the figure.
    """
    box = box_around(
        [ids > 0 for panel in panels for ids in panel.opinions.values()], panels[0].image.shape, look.step
    ) if panels else (slice(None), slice(None))  # fmt: skip
    height, width = (
        (size * one for size, one in zip(panels[0].image[box].shape, look.step, strict=True)) if panels else (1, 1)
    )
    columns = min(3, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    tall = min(4.0, 10.0 / columns * height / width)
    figure = Figure(figsize=(10.0, 5.2 + rows * (tall + 0.3)), layout="constrained")
    grid = figure.add_gridspec(rows + 2, columns, height_ratios=[2.2, 2.2, *[tall] * rows])
    curve = figure.add_subplot(grid[0, :])
    _draw_dispute(curve, disputed, drawn, label_map)
    _draw_drift(figure.add_subplot(grid[1, :], sharex=curve), drift, label_map, look.letter)
    names = list(dict.fromkeys(name for panel in panels for name in panel.opinions))
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(grid[2 + number // columns, number % columns])
        draw_opinions(
            axes,
            panel.image[box],
            {
                name: panel.opinions[name][box] if name in panel.opinions else np.zeros_like(panel.image[box], np.uint8)
                for name in names
            },
            look.step,
        )
        draw_borders(axes, width, height, look.view)
        axes.set_title(plain(panel.caption), fontsize=9)
    lines = [Line2D([], [], color=opinion_colour(n), linewidth=2, label=plain(name)) for n, name in enumerate(names)]
    figure.legend(handles=lines, loc="outside lower center", ncols=max(1, len(lines)), fontsize=8, frameon=False)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _draw_dispute(axes: Axes, disputed: Mapping[str, np.ndarray], drawn: Sequence[int], label_map: LabelMap) -> None:
    count = 0
    for name, areas in disputed.items():
        count = len(areas)
        axes.plot(np.arange(count), areas, "-", color=rgb(label_map, name), linewidth=1.3, label=plain(name))
    axes.plot(list(drawn), [0.0] * len(drawn), "|", color="black", markersize=12, label="drawn", clip_on=False)
    axes.set(ylabel="in dispute (mm²)", xlim=(-0.5, max(1, count) - 0.5))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=5, frameon=False)


def _draw_drift(axes: Axes, drift: Sequence[Mapping[str, Any]], label_map: LabelMap, letter: str) -> None:
    for row in drift:
        if np.isfinite(row["dice"]):
            colour = rgb(label_map, row["structure"])
            axes.plot(row["slice"], row["dice"], _MARKERS[row["way"]], color=colour, markeredgecolor="#333333")
    lowest = min((row["dice"] for row in drift if np.isfinite(row["dice"])), default=0.0)
    axes.set(xlabel=f"slice {letter}", ylabel="Dice of what arrives", ylim=(max(0.0, lowest - _WORST) - 0.02, 1.02))
    axes.grid(alpha=0.25)
    ways = [way for way in _MARKERS if any(row["way"] == way for row in drift)]
    handles = [
        Line2D([], [], marker=_MARKERS[way], label=way, linestyle="", color="#bbbbbb", markeredgecolor="#333333")
        for way in ways
    ]
    if handles:
        axes.legend(handles=handles, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    else:
        axes.text(0.5, 0.5, "nothing arrives at a drawn slice", transform=axes.transAxes, ha="center", va="center")
