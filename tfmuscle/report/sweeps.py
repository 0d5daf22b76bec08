"""Figures about ways to label sweeps: errors per participant, quality along the slices, error on the surface."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import ndimage

from tfmuscle.metrics import METRICS, surface
from tfmuscle.report.figures import plain
from tfmuscle.report.rendering import VIEWS, project, shade
from tfmuscle.volume import Volume

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#555555")
_MARKERS = "osD^vP*"
_LINES = ("-", "--", ":")
_LEVELS = 64
"""Steps of the colour scale of a surface."""
_MAP = "YlOrRd"


def participants_plot(
    values: Mapping[str, Mapping[str, float]], *, metric: str = "hausdorff", title: str = ""
) -> Figure:
    """Draws a metric of every participant, a mark per way; a participant without a figure has none.

    Args:
        values: way -> participant -> value.
        metric: name in `METRICS`, for the axis.
        title: above the plot.
    """
    people = sorted({person for own in values.values() for person in own})
    figure = Figure(figsize=(max(7.0, 1.5 + 0.6 * len(people)), 4.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.7 / max(1, len(values))
    for number, (name, own) in enumerate(values.items()):
        places = np.arange(len(people)) + (number - (len(values) - 1) / 2) * width
        heights = [own.get(person, np.nan) for person in people]
        axes.plot(places, heights, label=plain(name), **_style(number), linestyle="")
    axes.set_xticks(range(len(people)), [plain(person) for person in people], rotation=45, ha="right", fontsize=8)
    axes.set_xlim(-0.6, max(1, len(people)) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(_heading(metric))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=min(4, max(1, len(values))))
    axes.set_title(plain(title), fontsize=10)
    return figure


def slices_plot(profiles: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str = "") -> Figure:
    """Draws Dice and ASD along the slices, a row of panels per structure and a line per way.

    Args:
        profiles: way -> rows of `structure`, `slice`, `dice`, `mean_surface_distance`; a slice that is not there
            leaves a gap.
        title: above the panels.
    """
    structures = list(dict.fromkeys(row["structure"] for rows in profiles.values() for row in rows))
    figure = Figure(figsize=(11, 1.2 + 2.3 * max(1, len(structures))), layout="constrained")
    for row, structure in enumerate(structures):
        for column, metric in enumerate(("dice", "mean_surface_distance")):
            axes = figure.add_subplot(len(structures), 2, 2 * row + column + 1)
            for number, (name, rows) in enumerate(profiles.items()):
                own = {line["slice"]: line[metric] for line in rows if line["structure"] == structure}
                _draw_line(axes, own, number, plain(name) if row + column == 0 else None)
            axes.set_title(plain(structure.replace("_", " ")), fontsize=9)
            axes.set_ylabel(_heading(metric), fontsize=8)
            axes.set_ylim(0, 1.02 if column == 0 else None)
            axes.grid(alpha=0.3)
            if row == len(structures) - 1:
                axes.set_xlabel("slice")
    figure.legend(fontsize=8, loc="outside lower center", ncols=min(4, max(1, len(profiles))))
    figure.suptitle(plain(title), fontsize=10)
    return figure


def _draw_line(axes: Axes, own: Mapping[int, float], number: int, label: str | None) -> None:
    colour, line = _COLOURS[number % len(_COLOURS)], _LINES[number // len(_COLOURS) % len(_LINES)]
    slices = np.arange(min(own), max(own) + 1) if own else np.arange(0)
    axes.plot(
        slices,
        [own.get(int(index), np.nan) for index in slices],
        label=label,
        linewidth=1.3,
        color=colour,
        linestyle=line,
    )


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}


def _heading(metric: str) -> str:
    about = METRICS[metric]
    return {"dice": "Dice", "mean_surface_distance": "ASD mm"}.get(metric, f"{about.description}, {about.unit}")


def error_colours(distances: np.ndarray, largest: float) -> np.ndarray:
    """Returns red, green, blue uint8 `(V, 3)` of distances from 0 to `largest` mm; what lies beyond has the last."""
    share = np.clip(np.asarray(distances) / max(largest, 1e-9), 0, 1)
    return np.rint(255 * np.asarray(matplotlib.colormaps[_MAP](share))[:, :3]).astype(np.uint8)


def surface_error_figure(
    prediction: Volume, reference: Volume, *, largest: float, lie_in_patient: bool = True, title: str = ""
) -> Figure:
    """Draws a predicted structure from the front and from the back, coloured by its distance to the true surface.

    Distances are between surface voxels; the mesh beside the figure has finer ones.

    Args:
        prediction: bool `(I, J, K)`.
        reference: bool on the same grid.
        largest: mm of the last colour.
        lie_in_patient: whether front and back may be called so; else they are the ends of axis 1.
        title: above the panels.
    """
    edges = np.zeros(reference.array.shape, bool)
    edges[tuple(surface(reference.array).T)] = True
    if edges.any():
        away = ndimage.distance_transform_edt(~edges, sampling=reference.spacing)
    else:
        away = np.full(edges.shape, np.inf)
    level = 1 + np.minimum(_LEVELS - 1, away / max(largest, 1e-9) * _LEVELS).astype(np.uint8)
    levels = prediction.with_array(np.where(prediction.array, level, 0).astype(np.uint8))
    scale = matplotlib.colormaps[_MAP]
    colours = np.asarray(scale((np.arange(_LEVELS + 1) - 0.5) / _LEVELS))[:, :3]
    figure = Figure(figsize=(7.5, 6.0), layout="constrained")
    for number, view in enumerate(VIEWS, start=1):
        axes = figure.add_subplot(1, len(VIEWS), number)
        look = project(levels, view)
        light = shade(dataclasses.replace(look, labels=(look.labels > 0).astype(np.uint8)), {1: (1.0, 1.0, 1.0)})
        axes.imshow(light * np.where(look.labels[..., None] > 0, colours[look.labels], 1.0))
        axes.set_axis_off()
        axes.set_title(view if lie_in_patient else f"axis 1, from its {('end', 'start')[number - 1]}", fontsize=9)
    bar = ScalarMappable(Normalize(0, largest), _MAP)
    figure.colorbar(bar, ax=figure.axes, label="distance to the reference's surface, mm", shrink=0.7)
    figure.suptitle(plain(title), fontsize=10)
    return figure
