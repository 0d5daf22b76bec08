"""Pictures of what was measured: areas along the limb, and the slices where something looks wrong.

Curves: a panel a structure, left and right in one, from the foot (0 %) to the head (100 % of the limb), so that panels
can be compared; a dot marks the largest area. A figure has as many panels as a printed page.

Slices: those where most of the gravest flags point. Only structures that are in doubt there are filled, because whole
labels hide what is below them; without an image everything is filled, as there is nothing below.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfmuscle.labels import LabelMap, without_side
from tfmuscle.measuring import Flag, Structure
from tfmuscle.report.figures import plain
from tfmuscle.report.overlays import overlay_slices
from tfmuscle.volume import Volume

MOST_SLICES = 8
"""Slices drawn at most."""
_COLUMNS, _ROWS = 4, 6
_COLOURS = {"left": "#1f5f99", "right": "#d9730d", "": "#444444"}
_STYLES: dict[str, Literal["-", "--"]] = {"left": "-", "right": "--", "": "-"}
_NAMES_IN_CAPTION = 2
_GAP = 0.35
"""Axes of a panel reach this far beyond 0 and 100 % only if something is there."""


def area_figures(structures: Sequence[Structure], *, title: str = "") -> list[Figure]:
    """Draws the area of every structure along its limb; several figures if there are many."""
    panels: dict[str, list[Structure]] = {}
    for one in structures:
        panels.setdefault(without_side(one.name), []).append(one)
    names, per_figure = list(panels), _COLUMNS * _ROWS
    figures = []
    for first in range(0, len(names), per_figure):
        shown = names[first : first + per_figure]
        rows = -(-len(shown) // _COLUMNS)
        figure = Figure(figsize=(11.0, 1.65 * rows + 0.8), layout="constrained")
        for number, name in enumerate(shown, start=1):
            axes = figure.add_subplot(rows, _COLUMNS, number)
            _draw_curves(axes, panels[name])
            axes.set_title(plain(name), fontsize=8)
            last_in_column = number + _COLUMNS > len(shown)
            axes.set_xlabel(_unit(panels[name]) if last_in_column else "", fontsize=7)
            axes.set_ylabel("cm²" if (number - 1) % _COLUMNS == 0 else "", fontsize=7)
        _legend(figure, [one for name in shown for one in panels[name]])
        part = f" ({first // per_figure + 1} of {-(-len(names) // per_figure)})" if len(names) > per_figure else ""
        figure.suptitle(plain(title + part), fontsize=10)
        figures.append(figure)
    return figures


def _unit(structures: Sequence[Structure]) -> str:
    return "% of the limb, from below" if all(one.limb_mm for one in structures) else "mm along the limb"


def _draw_curves(axes: Axes, structures: Sequence[Structure]) -> None:
    in_percent = all(one.limb_mm for one in structures)
    for one in structures:
        profile = one.profile
        where = np.array([one.percent(at, one.limb_mm) for at in profile.position_mm])
        where = where if in_percent else profile.position_mm
        style = "o" if len(where) == 1 else _STYLES[one.side]
        axes.plot(where, profile.area_cm2, style, color=_COLOURS[one.side], linewidth=1.2, markersize=3)
        largest = profile.largest
        axes.plot(where[largest], profile.area_cm2[largest], "o", color=_COLOURS[one.side], markersize=3.5)
    if in_percent:
        low, high = axes.get_xlim()
        axes.set_xlim(min(0.0, low + _GAP * 10), max(100.0, high - _GAP * 10))
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=6.5)
    axes.grid(alpha=0.25)


def _legend(figure: Figure, structures: Sequence[Structure]) -> None:
    sides = sorted({one.side for one in structures} - {""})
    handles = [Line2D([], [], color=_COLOURS[side], linestyle=_STYLES[side], label=side) for side in sides]
    handles.append(Line2D([], [], marker="o", linestyle="", color="#444444", markersize=3.5, label="largest area"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def slices_to_look_at(flags: Sequence[Flag], *, most: int = MOST_SLICES) -> dict[int, list[Flag]]:
    """Chooses slices for the flags, the gravest first: slice -> flags that point there. One axis only.

    >>> a, b = Flag("soleus", "pieces", "2 pieces", (7, 3)), Flag("psoas", "cut", "touches", (3,))
    >>> {index: [flag.structure for flag in there] for index, there in slices_to_look_at([a, b], most=1).items()}
    {7: ['soleus']}
    """
    pointing = [flag for flag in flags if flag.slices]
    pointing = [flag for flag in pointing if flag.axis == pointing[0].axis]
    chosen: dict[int, list[Flag]] = {}
    for flag in pointing:
        first = flag.slices[0]
        if first in chosen or len(chosen) < most:
            chosen.setdefault(first, []).append(flag)
    return dict(sorted(chosen.items()))


def flagged_slices(
    image: Volume | None, labels: Volume, flags: Sequence[Flag], *, label_map: LabelMap, title: str = ""
) -> Figure | None:
    """Draws the slices to which flags point; None when they point nowhere."""
    chosen = slices_to_look_at(flags)
    if not chosen:
        return None
    axis = next(iter(chosen.values()))[0].axis
    shown = labels
    if image is not None:  # a copy of a few slices, the rest stays empty
        array = np.zeros_like(labels.array)
        for index, there in chosen.items():
            place = (slice(None),) * axis + (index,)
            ids = [label_map.id_of(flag.structure) for flag in there]
            array[place] = np.where(np.isin(labels.array[place], ids), labels.array[place], 0)
        shown = labels.with_array(array)
    captions = {index: _caption(there) for index, there in chosen.items()}
    return overlay_slices(image, shown, captions, axis=axis, label_map=label_map, title=title)


def _caption(flags: Sequence[Flag]) -> str:
    kinds: dict[str, list[str]] = {}
    for flag in flags:
        kinds.setdefault(flag.kind, []).append(flag.structure)
    parts = []
    for kind, names in kinds.items():
        more = len(names) - _NAMES_IN_CAPTION
        parts.append(f"{kind}: " + " ".join(names[:_NAMES_IN_CAPTION]) + (f" and {more} more" if more > 0 else ""))
    return "; ".join(parts)


def overview(image: Volume | None, labels: Volume, structures: Sequence[Structure], *, label_map: LabelMap) -> Figure:
    """Draws four slices along what is labelled."""
    axis = structures[0].axis.slice_axis
    along = [int(index) for one in structures if one.axis.slice_axis == axis for index in one.profile.slices]
    low, high = min(along), max(along)
    wanted = {low + math.floor((high - low + 1) * share) for share in (0.12, 0.37, 0.62, 0.87)}
    return overlay_slices(image, labels, dict.fromkeys(wanted, ""), axis=axis, label_map=label_map)


def cohort_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the volume of every structure of every subject over the structure's median; rings are cut structures.

    Args:
        rows: one a subject and structure, with `structure`, `side`, `volume_ml` and `cut`.
    """
    names = sorted({without_side(str(row["structure"])) for row in rows})
    figure = Figure(figsize=(8.5, 1.3 + 0.23 * len(names)), layout="constrained")
    axes, ticks = figure.add_subplot(), []
    for place, name in enumerate(names):
        own = [row for row in rows if without_side(str(row["structure"])) == name]
        median = float(np.median([row["volume_ml"] for row in own]))
        ticks.append(plain(f"{name} ({median:.3g} ml)"))
        for row in own:
            side = LabelMap.side(str(row["structure"])) or ""
            at = place + {"left": -0.15, "right": 0.15, "": 0.0}[side]
            face = "none" if row["cut"] else _COLOURS[side]
            axes.plot(row["volume_ml"] / median, at, "o", color=_COLOURS[side], markerfacecolor=face, markersize=4)
    axes.set_yticks(range(len(names)), ticks, fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(1, color="#999999", linewidth=0.8, zorder=0)
    axes.set_xlabel("volume over the median of the structure (both sides together)")
    axes.grid(axis="x", alpha=0.3)
    sides = sorted({LabelMap.side(str(row["structure"])) or "" for row in rows})
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[side], label=side or "no side") for side in sides
    ]
    ring = Line2D([], [], marker="o", linestyle="", color="#444444", markerfacecolor="none", label="cut by the scan")
    figure.legend(handles=[*handles, ring], loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
