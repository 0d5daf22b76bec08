"""Dice against the number of labelled subjects, in one picture and one page.

Above, both arms: the mean over seeds with its sd, a point for every seed, and the figures of a paper as open markers.
Below, what counts: the paired difference with its interval, and a point for every seed. The scale of subjects is
logarithmic, for the first few labels change most.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfmuscle.report.figures import figure_png, plain
from tfmuscle.report.page import Section

NAMES = {"ssl": "pre-trained encoder", "random": "random start"}
"""Arm -> name in tables and pictures."""
_COLOURS, _MARKERS, _SHIFTS = ("#0072b2", "#d55e00"), ("o", "s"), (0.97, 1.03)
_RULES = """Every network was tested on the same subjects. It had seen none of them, nor had the encoder, by the names.
Subsets are nested: for each seed the persons of the pool stand in one order, and S labelled subjects are the first S.
Both networks of a seed and S were trained on the same subjects with the same settings; only the first weights differ.
Nothing validates: the epoch with the lowest training loss is kept, for both alike.
An epoch of fewer subjects has fewer steps, unless the setting steps fixes them.
Dice: mean of all structures of a person (both legs averaged); then the mean over persons; then mean ± sd over seeds
(n - 1). A structure that was not found counts 0, and so does one found where the reference has none; one that neither
the reference nor the network has is left out.
Difference: of each person, the mean over seeds, pre-trained - random. Interval: Student's t over persons, 95 %; of the
median: order statistics, 95 % or more, none below six persons. It is about other persons, given these seeds; what
depends on who was labelled is seen in the differences of the single seeds.
For research use; not a medical device."""


def label_curve_figure(
    table: Sequence[Mapping[str, Any]], *, published: Mapping[str, Mapping[int, float]], title: str = ""
) -> Figure:
    """Draws the mean Dice of both arms, and the difference, over the number of labelled subjects.

    Args:
        table: rows of `evaluation.label_curve.curve_table`; NaN is left out.
        published: arm -> number of subjects -> Dice, drawn as open markers.
        title: above the plot.
    """
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for number, arm in enumerate(NAMES):
        _draw_arm(above, table, arm, number)
        points = published.get(arm, {})
        above.plot(
            [size * _SHIFTS[number] for size in points],
            list(points.values()),
            _MARKERS[number],
            markerfacecolor="none",
            markeredgecolor=_COLOURS[number],
            markeredgewidth=1.6,
            markersize=9,
            label=f"{NAMES[arm]}: published, other data",
        )
    _draw_difference(below, table)
    sizes = sorted({row["subjects"] for row in table} | {size for points in published.values() for size in points})
    below.set_xscale("log")
    below.set_xticks(sizes, [str(size) for size in sizes])
    below.set_xticks([], minor=True)
    below.set_xlabel("labelled subjects")
    above.set_ylabel("Dice, mean over structures and persons")
    below.set_ylabel("difference of the Dice")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="best")
    above.set_title(plain(title), fontsize=10)
    return figure


def _draw_arm(axes: Axes, table: Sequence[Mapping[str, Any]], arm: str, number: int) -> None:
    rows = [row for row in table if math.isfinite(row[f"{arm}_mean"])]
    colour, shift = _COLOURS[number], _SHIFTS[number]
    places = [row["subjects"] * shift for row in rows]
    spread = [row[f"{arm}_sd"] if math.isfinite(row[f"{arm}_sd"]) else 0.0 for row in rows]
    style = f"{_MARKERS[number]}-"
    label = f"{NAMES[arm]}: mean ± sd over seeds"
    means = [row[f"{arm}_mean"] for row in rows]
    axes.errorbar(places, means, yerr=spread, fmt=style, color=colour, capsize=3, label=label)
    for place, row in zip(places, rows, strict=True):
        for value in _of_seeds(row, arm):
            axes.plot(place, value, ".", color=colour, alpha=0.5, markersize=5)


def _draw_difference(axes: Axes, table: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(0, color="#333333", linewidth=1)
    rows = [row for row in table if math.isfinite(row["difference"])]
    for row in rows:
        for value in _of_seeds(row, "difference"):
            axes.plot(row["subjects"] * _SHIFTS[1], value, ".", color="#56b4e9", markersize=7)
        if math.isfinite(row["low"]):
            axes.plot([row["subjects"]] * 2, [row["low"], row["high"]], "-", color="black", linewidth=2)
    label = "pre-trained - random, same persons and seeds; bar: 95 % interval over persons; points: seeds"
    axes.plot([row["subjects"] for row in rows], [row["difference"] for row in rows], "D", color="black", label=label)


def _of_seeds(row: Mapping[str, Any], what: str) -> list[float]:
    """Returns the figures of the single seeds that there are."""
    return [value for key, value in row.items() if key.startswith(f"{what}_seed_") and math.isfinite(value)]


def readable_curve(
    table: Sequence[Mapping[str, Any]], *, published: Mapping[str, Mapping[int, float]]
) -> list[dict[str, str]]:
    """Returns one row per number of labelled subjects, figures as text, a dash for what is undefined."""
    lines = []
    for row in table:
        line = {"labelled": str(row["subjects"])}
        for arm, name in NAMES.items():
            line[f"{name}, Dice"] = _number(row[f"{arm}_mean"]) + _number(row[f"{arm}_sd"], " ± {:.3f}", "")
        line |= {"difference": _number(row["difference"], "{:+.3f}"), "interval, 95 %": _limits(row, "low", "high")}
        line["of single seeds"] = ", ".join(f"{value:+.3f}" for value in _of_seeds(row, "difference")) or "–"
        line["median difference"] = _number(row["median_difference"], "{:+.3f}")
        line |= {"its interval": _limits(row, "median_low", "median_high"), "persons": str(row["persons"])}
        line["seeds"] = f"{row['ssl_seeds']} and {row['random_seeds']}"
        theirs = [points.get(row["subjects"], math.nan) for points in (published.get(arm, {}) for arm in NAMES)]
        line["published, other data"] = " and ".join(map(_number, theirs)) if any(map(math.isfinite, theirs)) else "–"
        lines.append(line)
    return lines


def _limits(row: Mapping[str, Any], low: str, high: str) -> str:
    return f"{row[low]:+.3f} to {row[high]:+.3f}" if math.isfinite(row[low]) else "–"


def _number(value: float, form: str = "{:.3f}", missing: str = "–") -> str:
    return form.format(value) if math.isfinite(value) else missing


def label_curve_sections(
    table: Sequence[Mapping[str, Any]],
    figure: Figure,
    *,
    context: Mapping[str, str],
    problems: Mapping[str, Mapping[str, str]],
    published: Mapping[str, Mapping[int, float]],
    source: str,
) -> list[Section]:
    """Returns the parts of the page.

    Args:
        table: rows of `evaluation.label_curve.curve_table`.
        figure: the picture of it.
        context: where the figures come from, name -> text.
        problems: heading -> what -> reason, of what failed or is not done.
        published: arm -> number of subjects -> Dice.
        source: of the published figures.
    """
    sections = [Section("Where these figures come from", table=[{"what": k, "value": v} for k, v in context.items()])]
    if context.get("scale", "").startswith("reduced"):
        text = "The recipes were cut down to run on a small machine. These figures say nothing about the full recipes."
        sections.insert(0, Section("Reduced", text, notice=True))
    for heading, reasons in problems.items():
        if reasons:
            listed = [{"what": what, "reason": reason} for what, reason in reasons.items()]
            sections.append(Section(f"{heading}: {len(reasons)}", table=listed, notice=True))
    if not table:
        return [*sections, Section("Results", "No network has been tested yet.")]
    text = f"Published figures, measured on other scans: {source}."
    sections.append(Section("Results", text, table=readable_curve(table, published=published)))
    sections.append(Section("Curve", pictures={"Dice over the number of labelled subjects": figure_png(figure)}))
    return [*sections, Section("How it was measured", _RULES, folded=True)]
