"""Tables and page of a comparison, each file whole or not at all.

`<name>.csv`: a row per structure and model. `<name>.json`: the same, the tests, every subject's figures, and where all
came from. `<name>.html`: one page with pictures. In CSV an undefined figure is `nan`, and one never measured is empty.
"""

import math
from collections.abc import Mapping
from typing import Any

from tfmuscle.evaluation.comparison import COMPARED, COSTS, LEVEL, Comparison, ModelResult, per_person
from tfmuscle.files import provenance, write_json, write_text
from tfmuscle.metrics import METRICS
from tfmuscle.report import Section, difference_plot, figure_png, html_page, model_boxes
from tfmuscle.tables import csv_text

REFRESH_SECONDS = 30
"""A page that is not complete reloads itself."""
_HEADINGS = {
    "dice": ("Dice", 3),
    "iou": ("IoU", 3),
    "volume_error_ml": ("VError cm³", 2),
    "hausdorff_95": ("HD95 mm", 2),
    "assd": ("ASSD mm", 2),
}
_CLEANING = (
    "Models that follow nnU-Net's plan: only the largest component is kept, of all structures together or of one, where"
    " that raised the Dice of these very predictions and lowered no structure's. The tables above are before cleaning."
)
_RULES = f"""Every subject was segmented by the network of the one fold that had left it out of the training.
The networks of different folds share most of their training scans, so the test is somewhat optimistic too.
Mean ± sd between subjects (n - 1); undefined figures (HD95, ASSD without a surface) are left out and counted.
VError: absolute difference of the volumes. The mean of all structures is taken within each subject first.
Test: Wilcoxon's signed-rank test, two-sided, exact, on each person's mean Dice (both legs of a person averaged),
corrected by Holm for the number of pairs; a difference is claimed where the corrected p is {LEVEL} at most.
Interval of the median difference: order statistics, coverage 95 % or more; none below six persons.
Peak memory: main memory of the process that predicts, TensorFlow included; graphics memory is not counted.
For research use; not a medical device."""


def write_comparison(result: Comparison, name: str, *, title: str, published: Mapping[str, str]) -> None:
    """Writes `<name>.csv`, `<name>.json` and `<name>.html` into `result.out`.

    Args:
        result: what was found.
        name: of the files, without extension.
        title: of the page.
        published: model -> source of the published figures beside ours.
    """
    extra = result.context.items()
    rows = [{**row, **{key: value for key, value in extra if key not in row}} for row in result.table]
    write_text(result.out / f"{name}.csv", csv_text(rows))
    content = {
        "context": dict(result.context),
        "models": {model.name: {**model.varied, **model.about, **model.costs} for model in result.models},
        "table": list(result.table),
        "tests": list(result.tests),
        "cleaning": list(result.cleaning),
        "failures": dict(result.failures),
        "waiting": dict(result.waiting),
        "published": dict(published),
        "columns": {key: METRICS[key].description for key in COMPARED} | COSTS,
        "subjects": [{"model": model.name, **row} for model in result.models for row in model.rows],
        "made_with": provenance(),
    }
    write_json(result.out / f"{name}.json", content)
    reduced = " (reduced)" if result.reduced else ""
    refresh = REFRESH_SECONDS if result.waiting else 0
    write_text(result.out / f"{name}.html", html_page(title + reduced, _sections(result, published), refresh=refresh))


def text_table(result: Comparison) -> str:
    """Returns the main figures as aligned text, one line per structure and model."""
    if not result.table:
        return "no model has predicted anything yet"
    rows = [{key: row[key] for key in row if key not in ("IoU", "failed")} for row in readable_table(result)]
    lines = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return text + "\nreduced: the recipes were cut down" * result.reduced


def readable_table(result: Comparison) -> list[dict[str, Any]]:
    """Returns one row per structure and model with "mean ± sd" as text."""
    varied = dict.fromkeys(key for model in result.models for key in model.varied)
    table = []
    for row in result.table:
        line = {"structure": row["structure"], "model": row["model"]}
        line |= {key: str(row[key]) for key in varied} if len(varied) > 1 else {}
        for metric, (heading, digits) in _HEADINGS.items():
            line[heading] = plus_minus(row[f"{metric}_mean"], row[f"{metric}_sd"], digits)
            if f"published_{metric}_mean" in row:
                theirs = row[f"published_{metric}_mean"], row[f"published_{metric}_sd"]
                line[f"{heading} published"] = plus_minus(*theirs, digits)
        table.append(line | {"subjects": row["n"], "failed": row["n_failed"]})
    columns = dict.fromkeys(key for line in table for key in line)
    return [{key: line.get(key, "") for key in columns} for line in table]


def plus_minus(mean: float | None, sd: float | None, digits: int) -> str:
    """Returns "mean ± sd", or a dash for what is undefined.

    >>> plus_minus(0.9, 0.05, 2), plus_minus(0.9, float("nan"), 2), plus_minus(None, None, 2)
    ('0.90 ± 0.05', '0.90', '–')
    """
    if mean is None or not math.isfinite(mean):
        return "–"
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None and math.isfinite(sd) else "")


def _sections(result: Comparison, published: Mapping[str, str]) -> list[Section]:
    facts = [{"what": key, "value": str(value)} for key, value in result.context.items()]
    sections = [Section("Where these figures come from", table=facts)]
    if result.reduced:
        text = "The recipes were cut down to run on a small machine. These figures say nothing about the full recipes."
        sections.insert(0, Section("Reduced", text, notice=True))
    for what, reasons in (
        ("Failed", result.failures),
        ("Not in the tables yet", result.waiting),
    ):
        if reasons:
            table = [{"what": key, "reason": reason} for key, reason in reasons.items()]
            sections.append(Section(f"{what}: {len(reasons)}", table=table, notice=True))
    if not result.models:
        return [*sections, Section("Results", "No model has predicted anything yet.")]
    sections.append(Section("Results, mean ± sd over subjects", _sources(published), table=readable_table(result)))
    caption = "Boxes: quartiles and median; points: subjects"
    sections.append(Section("Dice of every subject", pictures={caption: _boxes(result)}))
    sections.append(Section("What each model costs", table=[_cost(model) for model in result.models]))
    sections.append(_significance(result))
    if result.cleaning:
        sections.append(Section("Cleaning, before and after", _CLEANING, table=result.cleaning))
    every = [{"model": model.name, **_main_figures(row)} for model in result.models for row in model.rows]
    sections.append(Section("Every subject, structure and model", table=every, folded=True))
    return [*sections, Section("How it was measured", _RULES, folded=True)]


def _sources(published: Mapping[str, str]) -> str:
    sources = dict.fromkeys(published.values())
    return "\n".join(f"Published figures, measured on other scans: {source}." for source in sources)


def _boxes(result: Comparison) -> bytes:
    subjects = {row["subject_id"] for model in result.models for row in model.rows}
    title = f"{len(subjects)} subjects, {len(result.models)} models{' (reduced)' * result.reduced}"
    return figure_png(model_boxes({model.name: model.rows for model in result.models}, title=title))


def _cost(model: ModelResult) -> dict[str, Any]:
    def shown(key: str, unit: float, digits: int) -> str:
        value = model.costs.get(key)
        return "–" if value is None else f"{value / unit:.{digits}f}"

    row = {"model": model.name, **{key: str(value) for key, value in model.about.items()}}
    return row | {
        "parameters, million": shown("parameters", 1e6, 2),
        "trainable, million": shown("trainable_parameters", 1e6, 2),
        "training of a fold, s": shown("training_seconds", 1, 0),
        "prediction, s per scan": shown("seconds_per_scan", 1, 1),
        "peak memory of prediction, MiB": shown("peak_memory_mb", 1, 0),
    }


def _significance(result: Comparison) -> Section:
    if len(result.models) < 2:
        return Section("Differences between models", "One model: nothing to compare.")
    scores = {model.name: per_person(model.rows) for model in result.models}
    differences, intervals = {}, {}
    for row in result.tests:
        one, other = scores[row["model_a"]], scores[row["model_b"]]
        pair = f"{row['model_a']} - {row['model_b']}"
        differences[pair] = [one[key] - other[key] for key in sorted(set(one) & set(other))]
        intervals[pair] = (row["median_difference"], row["low"], row["high"])
    caption = "Points: persons; upright line: median; bar: its interval, where there is one"
    picture = figure_png(difference_plot(differences, intervals))
    table = [_readable_test(row) for row in result.tests]
    return Section("Differences between models", table=table, pictures={caption: picture})


def _readable_test(row: Mapping[str, Any]) -> dict[str, Any]:
    interval = f"{row['low']:+.3f} to {row['high']:+.3f}" if math.isfinite(row["low"]) else "–"
    return {
        "pair": f"{row['model_a']} - {row['model_b']}",
        "persons": str(row["n"]),
        "left out": str(row["left_out"]),
        "median difference of Dice": f"{row['median_difference']:+.3f}" if row["n"] else "–",
        "its interval (95 % or more)": interval,
        "p": _p(row["p"]),
        "p (Holm)": _p(row["p_holm"]),
        "verdict": row["verdict"],
    }


def _p(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _main_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {heading: row[metric] for metric, (heading, _) in _HEADINGS.items()}
    return {"subject": row["subject_id"], "structure": row["structure"], **figures, "note": row.get("note", "")}
