"""Tables and page of an evaluation, each file whole or not at all.

Files are named with their last folder only, for a report is sent around. In CSV an undefined figure is `nan`, and one
that was never measured is empty.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tfmuscle.evaluation.results import ALL_STRUCTURES, Evaluation, EvaluationOptions, mean, summary_table
from tfmuscle.files import atomic_path, provenance, write_json, write_text
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import METRICS
from tfmuscle.report import Section, box_plot, figure_png, html_page, training_curves
from tfmuscle.tables import csv_text

OVERLAYS_ON_PAGE = 12
"""The page shows at most this many overlays, from the worst subject to the best; the folder holds all."""
_TITLE = "tfmuscle: evaluation"
_RULES = """Dice, IoU: 1 when both masks are empty, 0 when one is. Surface figures are undefined when a mask is empty.
Undefined figures are left out of means and counted. Voxels that nobody labelled (ignore id) count for nothing.
The mean of all foreground structures is taken within each subject first; sd is between subjects (n - 1).
Within human variability: the method's mean Dice is not below the mean Dice between the two observers.
For research use; not a medical device."""


def file_names(subject_ids: Sequence[str]) -> dict[str, str]:
    """Returns subject id -> name of its overlay: safe on every disk, and one of its own.

    >>> file_names(["leg 1", "leg_1", "../x"])
    {'leg 1': 'leg_1.png', 'leg_1': 'leg_1-2.png', '../x': '_._x.png'}
    """
    names: dict[str, str] = {}
    for subject_id in subject_ids:
        base = re.sub(r"^\.", "_", re.sub(r"[^A-Za-z0-9._-]", "_", subject_id))[:100]
        candidates = (f"{base}{suffix}.png" for suffix in ("", *(f"-{n}" for n in range(2, len(subject_ids) + 2))))
        names[subject_id] = next(name for name in candidates if name not in names.values())
    return names


def write_all(
    result: Evaluation,
    files: Mapping[str, Sequence[Path]],
    label_map: LabelMap,
    options: EvaluationOptions,
    overlays: Mapping[str, Path],
) -> None:
    """Writes tables, box plot and page of `result`.

    Args:
        result: what was measured.
        files: subject id -> the files that were compared.
        label_map: ids and names.
        options: of the evaluation.
        overlays: subject id -> picture, of the subjects that have one.
    """
    failures = {key: _without_folders(reason, files) for key, reason in result.failures.items()}
    about = {
        "context": dict(options.context),
        "label_map": label_map.to_dict(),
        "surface_dice_tolerance_mm": options.tolerance_mm,
        "failures": failures,
        "unused_predictions": list(result.unused),
        "made_with": provenance(),
    }
    metrics = {name: {"unit": m.unit, "better": m.better, "description": m.description} for name, m in METRICS.items()}
    names = {key: [_short(path) for path in paths] for key, paths in sorted(files.items())}
    write_json(result.out / "metrics.json", about | {"files": names, "metrics": metrics, "rows": list(result.rows)})
    write_json(result.out / "summary.json", about | {"summary": list(result.summary)})
    rows = [*result.rows, *({"subject_id": key, "note": f"failed: {reason}"} for key, reason in failures.items())]
    columns = ("subject_id", "structure", "note")
    write_text(result.out / "metrics.csv", _csv(rows, columns, {"scale": "reduced"} if result.reduced else {}))
    write_text(result.out / "summary.csv", _csv(result.summary, (), options.context))
    picture = figure_png(_boxes(result, label_map, options))
    with atomic_path(result.out / "boxplot.png") as path:
        path.write_bytes(picture)
    sections = _sections(result, failures, picture, overlays, options)
    write_text(result.out / "report.html", html_page(_TITLE + options.reduced, sections))


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _without_folders(text: str, files: Mapping[str, Sequence[Path]]) -> str:
    for path in sorted({path for paths in files.values() for path in paths}, key=lambda path: -len(str(path))):
        text = text.replace(str(path), _short(path))
    return text


def _csv(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...], context: Mapping[str, str]) -> str:
    """Returns a table with the columns of all rows; the context, the same in every row, comes last."""
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    return csv_text([{**row, **context} for row in rows], [*names, *context])


def _boxes(result: Evaluation, label_map: LabelMap, options: EvaluationOptions) -> Figure:
    lines = {line["structure"]: line for line in result.summary if line["metric"] == "dice"}
    lines.pop(ALL_STRUCTURES)
    second = options.observer2 is not None
    return box_plot(
        result.rows,
        label_map=label_map,
        observers={name: line["observers_mean"] for name, line in lines.items()} if second else None,
        marked=[name for name, line in lines.items() if line.get("within_human_variability") == "yes"],
        title=f"{len({row['subject_id'] for row in result.rows})} subjects{options.reduced}",
    )


def _sections(
    result: Evaluation,
    failures: Mapping[str, str],
    picture: bytes,
    overlays: Mapping[str, Path],
    options: EvaluationOptions,
) -> list[Section]:
    sections = [Section("Where these figures come from", table=_origin(result, options))]
    if options.reduced:
        text = "The recipe was cut down to run on a small machine. These figures say nothing about the full recipe."
        sections.insert(0, Section("Reduced", text, notice=True))
    if failures:
        table = [{"what": key, "reason": reason} for key, reason in failures.items()]
        sections.append(Section(f"Failed: {len(failures)}", table=table, notice=True))
    sections.append(Section("Results, mean ± sd over subjects", table=summary_table(result.summary)))
    sections.append(
        Section("Dice of every subject", pictures={"Boxes: quartiles and median; points: subjects": picture})
    )
    if options.history:
        sections.append(Section("Training", pictures={"Training curves": training_curves(options.history)}))
    sections += options.sections
    shown = _spread(_ranking(result, overlays))
    text = f"{len(shown)} of {len(overlays)} subjects, lowest Dice first; all of them are in the folder overlays."
    pictures = {key: overlays[key].read_bytes() for key in shown}
    sections.append(Section("Overlays", text, pictures=pictures))
    sections.append(Section("Every subject and structure", table=_readable(result.rows), folded=True))
    metrics = [
        {"metric": name, "unit": m.unit, "better": m.better, "what": m.description} for name, m in METRICS.items()
    ]
    return [*sections, Section("How it was measured", _RULES, table=metrics, folded=True)]


def _origin(result: Evaluation, options: EvaluationOptions) -> list[dict[str, Any]]:
    made = provenance()
    facts = {key: str(value) for key, value in options.context.items()}
    facts["subjects measured"] = str(len({row["subject_id"] for row in result.rows}))
    facts["failures"] = str(len(result.failures))
    if result.unused:
        facts["predictions without reference, left out"] = ", ".join(result.unused)
    facts["surface Dice tolerance"] = f"{options.tolerance_mm:g} mm"
    facts["measured with"] = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [{"what": key, "value": value} for key, value in facts.items()]


def _ranking(result: Evaluation, overlays: Mapping[str, Path]) -> list[str]:
    score = {key: mean([row["dice"] for row in result.rows if row["subject_id"] == key]) for key in overlays}
    return sorted(score, key=lambda key: score[key])


def _spread(ranked: Sequence[str]) -> list[str]:
    """Chooses at most `OVERLAYS_ON_PAGE`, the first and the last among them."""
    if len(ranked) <= OVERLAYS_ON_PAGE:
        return list(ranked)
    step = (len(ranked) - 1) / (OVERLAYS_ON_PAGE - 1)
    return [ranked[round(index * step)] for index in range(OVERLAYS_ON_PAGE)]


def _readable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    units = {name: metric.unit for name, metric in METRICS.items()}
    heading = {name: name.replace("_", " ") + (f" {unit}" if unit == "mm" else "") for name, unit in units.items()}
    return [{heading.get(name, name.replace("_", " ")): value for name, value in row.items()} for row in rows]
