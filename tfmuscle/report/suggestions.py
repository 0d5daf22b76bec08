"""Where opinions about a scan differ: a curve along the scan, and the slices worth labelling next.

Outlines run along voxel edges, one colour an opinion, all structures alike: what matters is where the colours part.
Where the outlines of several opinions coincide the last one covers the others; so the lines become thinner one by one,
and the wider ones still show at their sides.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfmuscle.report.figures import plain
from tfmuscle.report.overlays import VIEWS, draw_borders, voxel_edges
from tfmuscle.volume import Volume

MOST_PANELS = 6
"""More suggested slices than this are marked on the curve only."""
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#bbbbbb")
"""Okabe and Ito's, which colour-blind readers can tell apart, those first that show on grey."""
_MARK = "#d55e00"
_MARGIN_MM = 12.0


def suggestion_figure(
    image: Volume,
    opinions: Mapping[str, Volume],
    score: np.ndarray,
    *,
    axis: int,
    drawn: Sequence[int],
    chosen: Sequence[int],
    title: str = "",
) -> Figure:
    """Draws what is probably wrong along the scan, and the opinions on the chosen slices.

    Args:
        image: `(I, J, K)` or `(I, J, K, C)`, of which the first channel is shown.
        opinions: name -> labels on the grid of `image`.
        score: area of every slice that is probably wrong, mm²; NaN leaves a gap.
        axis: of the arrays, along which slices follow each other.
        drawn: labelled slices.
        chosen: suggested ones, the most useful first.
        title: above the figure.
    """
    shown = list(chosen)[:MOST_PANELS]
    view = VIEWS[image.geometry.orientation[axis]]
    turned = image.reoriented(view)
    grey = turned.array[..., 0] if turned.array.ndim == 4 else turned.array
    labels = {name: volume.reoriented(view).array for name, volume in opinions.items()}
    step = turned.spacing[1:]
    box = box_around([array[index] > 0 for array in labels.values() for index in shown], grey.shape[1:], step)
    height, width = (size * one for size, one in zip(grey[0][box].shape, step, strict=True))
    columns = min(3, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    tall = min(5.0, 10.0 / columns * height / width)
    figure = Figure(figsize=(10.0, 3.3 + rows * (tall + 0.3)), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[2.4, *[tall] * rows])
    _draw_curve(figure.add_subplot(grid[0, :]), score, drawn, chosen, "ijk"[axis])
    for number, index in enumerate(shown):
        axes = figure.add_subplot(grid[1 + number // columns, number % columns])
        draw_opinions(axes, grey[index][box], {name: array[index][box] for name, array in labels.items()}, step)
        draw_borders(axes, width, height, view)
        axes.set_title(f"{number + 1}: {'ijk'[axis]} = {index}, {score[index]:.0f} mm²", fontsize=9)
    lines = [Line2D([], [], color=opinion_colour(n), linewidth=2, label=plain(name)) for n, name in enumerate(opinions)]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(4, len(lines)), fontsize=8, frameon=False)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _draw_curve(axes: Axes, score: np.ndarray, drawn: Sequence[int], chosen: Sequence[int], letter: str) -> None:
    axes.plot(np.arange(len(score)), score, ".-", color="#1f5f99", markersize=3, linewidth=1)
    top = float(np.nanmax(score, initial=0.0)) or 1.0
    axes.plot(list(drawn), [0.0] * len(drawn), "|", color="black", markersize=12, label="labelled", clip_on=False)
    for rank, index in enumerate(chosen, start=1):
        axes.axvline(index, color=_MARK, linewidth=1.2, label="suggested" if rank == 1 else None)
        side = (-3, "right") if index > 0.95 * len(score) else (3, "left")
        axes.annotate(str(rank), (index, top), (side[0], 0), ha=side[1], textcoords="offset points", color=_MARK)
    axes.set(xlabel=f"slice {letter}", ylabel="probably wrong (mm²)", xlim=(-0.5, len(score) - 0.5))
    axes.set_ylim(0, 1.12 * top)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def draw_opinions(axes: Axes, image: np.ndarray, labels: Mapping[str, np.ndarray], step: tuple[float, ...]) -> None:
    """Draws a slice `(H, W)` in grey and the outlines of each opinion's ids `(H, W)`; `step` is the spacing in mm."""
    down, right = step
    extent = (0, image.shape[1] * right, image.shape[0] * down, 0)
    values = np.nan_to_num(image.astype(np.float32))
    low, high = np.percentile(values, (1, 99))
    axes.imshow(values, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
    for number, array in enumerate(labels.values()):
        thickness = 1.0 + 0.9 * (len(labels) - 1 - number)
        for key in np.unique(array[array > 0]):
            edges = voxel_edges(array == key) * (right, down)
            axes.add_collection(
                LineCollection(list(edges), colors=[opinion_colour(number)], linewidths=min(thickness, 4.0))
            )


def opinion_colour(number: int) -> str:
    """Returns the colour of an opinion by its place."""
    return _COLOURS[number % len(_COLOURS)]


def box_around(masks: list[np.ndarray], shape: tuple[int, ...], step: tuple[float, ...]) -> tuple[slice, slice]:
    """Returns rows and columns around all that the masks show, with a margin; all of them when that is nothing."""
    seen = np.any(masks, axis=0) if masks else np.zeros(shape, bool)
    if not seen.any():
        return slice(None), slice(None)
    sides = []
    for side, size in enumerate(step):
        where, margin = np.flatnonzero(seen.any(axis=1 - side)), round(_MARGIN_MM / size)
        sides.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + margin + 1))
    return sides[0], sides[1]
