"""How often an error is how large, with its mean beside a published one.

A few lost muscles have errors of hundreds of per cent. They would squeeze all others into one bar, so what lies beyond
the 95th percentile (or twice the published mean, whichever is more) is gathered in a last bar of its own; the mean is
that of all values.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfmuscle.report.figures import plain

_MOST_BARS = 40
_BLUE, _ORANGE, _GREY = "#1f5f99", "#d9730d", "#9a9a9a"


def histogram(
    values: Sequence[float],
    *,
    quantity: str,
    unit: str,
    published: float | None = None,
    counted: str = "values",
    title: str = "",
) -> Figure:
    """Draws how often errors of 0 and more have which size, their mean, and the mean of a paper.

    Args:
        values: errors; NaN is left out and counted.
        quantity: what they are, for the axis.
        unit: of the values.
        published: mean to mark, in the same unit.
        counted: what one value is, in the plural, for the other axis.
        title: above the plot, before the number of values.
    """
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    width, bars = _bars(finite, published)
    limit = width * bars
    beyond = _draw_bars(axes, finite, width, bars, unit)
    if len(finite):
        centre = float(finite.mean())
        label = f"mean here: {centre:.{1 if centre >= 10 else 2}f} {unit}"
        axes.axvline(centre, color="black", linewidth=2, label=label)
    if published is not None:
        label = f"mean in the paper: {published:g} {unit}"
        axes.axvline(published, color=_ORANGE, linewidth=2, linestyle="--", label=label)
    axes.set_xlim(0, limit + (2 * width if beyond else 0))
    axes.set_xlabel(plain(f"{quantity} ({unit})"))
    axes.set_ylabel(plain(f"number of {counted}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", alpha=0.3)
    undefined = len(array) - len(finite)
    axes.set_title(plain(f"{title}n = {len(finite)}" + f", {undefined} undefined" * (undefined > 0)), fontsize=10)
    if handles := axes.get_legend_handles_labels()[0]:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_bars(axes: Axes, values: np.ndarray, width: float, bars: int, unit: str) -> int:
    """Draws the bars and names their places; returns how many values lie beyond them, in a last bar."""
    limit = width * bars
    near = values[values <= limit]
    edges = [width * bar for bar in range(bars + 1)]
    axes.hist(near, bins=edges, color=_BLUE, alpha=0.75, edgecolor="white", linewidth=0.8)
    beyond = len(values) - len(near)
    last = limit - 2 * width if beyond else limit
    ticks = [tick for tick in MaxNLocator(7).tick_values(0, limit) if 0 <= tick <= last]
    names = [f"{tick:g}" for tick in ticks]
    if beyond:
        label = f"{beyond} above {limit:g} {unit}, up to {values.max():.3g} {unit}"
        axes.bar(limit + width, beyond, width, color=_GREY, hatch="////", edgecolor="white", label=label)
        ticks, names = [*ticks, limit + width], [*names, f"> {limit:g}"]
    axes.set_xticks(ticks, names)
    return beyond


def _bars(values: np.ndarray, published: float | None) -> tuple[float, int]:
    """Returns the width of a bar, 1, 2 or 5 times a power of ten, and the number of bars before the last one."""
    wanted = [2 * published] if published else []
    wanted += [float(np.percentile(values, 95)), 1.05 * float(values.mean())] if len(values) else []
    reach = max(wanted, default=0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(reach / _MOST_BARS))
    width = next(step * power for step in (1, 2, 5, 10) if reach <= _MOST_BARS * step * power)
    return width, max(1, math.ceil(reach / width - 1e-9))
