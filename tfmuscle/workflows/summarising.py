"""From finished folds to one table: predictions collected, cleaning chosen, candidates compared.

Everything here is made from the files of finished folds, so that any process that ends sees what all have done.
"""

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.evaluation.comparison import Comparison, ModelResult, comparison_table, paired_tests, per_subject, sd
from tfmuscle.evaluation.comparison_page import plus_minus, write_comparison
from tfmuscle.evaluation.published import Published
from tfmuscle.evaluation.results import ALL_STRUCTURES, mean
from tfmuscle.files import atomic_path, read_json, sha256, write_json
from tfmuscle.folds import TEST
from tfmuscle.postprocessing import CLEANING_FILE
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.deciding import CHOOSING_FOLDS, Job, Planned, person_of
from tfmuscle.workflows.fold_jobs import choose_and_measure_cleaning, read_result
from tfmuscle.workflows.processes import run_apart

PREDICTIONS = "predictions"
CLEANING_TABLE = "cleaning.json"


def summarise(
    job: Job,
    planned: Sequence[Planned],
    *,
    failures: Mapping[str, str],
    waiting: Mapping[str, str],
    published: Mapping[str, Published],
    progress: Progress | None = None,
) -> Comparison:
    """Compares what the finished folds have measured, and writes tables and page.

    Args:
        job: what all candidates share.
        planned: every candidate.
        failures: of this call so far -> reason; failures of subjects are added.
        waiting: what other processes are at.
        published: preset -> figures to show beside ours.
        progress: told about the choice of cleaning.
    """
    failures = dict(failures)
    models, cleaning, facts = [], [], {}
    for item in planned:
        read = {number: read_result(item.fold(number)) for number in job.chosen}
        found = {number: content for number, content in read.items() if content is not None}
        if not found:
            continue
        name = item.candidate.name
        for number, content in found.items():
            failures |= {f"{name}, fold {number}, {key}": reason for key, reason in content["failures"].items()}
        predictions = collect(item, found) if job.dataset else {}
        models.append(_model(job, item, found, published.get(item.candidate.preset or "")))
        facts[name] = {key: [content[key] for content in found.values()] for key in ("epochs", "hardware")}
        if item.candidate.plan and len(found) == job.folds:
            cleaning += _cleaning(job, item, predictions, failures, progress)
    failures = {key: _without_folders(job, reason) for key, reason in failures.items()}
    sources = {
        model.name: published[preset].source
        for model in models
        if (preset := model.name) in published and model.published
    }
    table = comparison_table(models) if models else []
    context = _context(job, facts)
    out = job.out
    result = Comparison(
        tuple(models), tuple(table), tuple(paired_tests(models)), failures, dict(waiting), context, tuple(cleaning), out
    )
    title = {"comparison": "tfmuscle: comparison of models", "study": "tfmuscle: study of settings"}[job.name]
    write_comparison(result, job.name, title=title, published=sources)
    return result


def _without_folders(job: Job, text: str) -> str:
    """Returns a message without the folders above output and dataset, for a page is sent around."""
    for folder in (job.out, job.out.resolve(), job.source.parent, job.source.parent.resolve()):
        text = text.replace(f"{folder}/", "")
    return text


def _model(job: Job, item: Planned, found: Mapping[int, Mapping[str, Any]], paper: Published | None) -> ModelResult:
    rows = [row for result in found.values() for row in result["rows"]]
    expected = sum(fold in found for fold in job.split.values())
    results = list(found.values())
    memory = [result["peak_memory_mb"] for result in results if result["peak_memory_mb"] is not None]
    costs = {
        "parameters": results[0]["parameters"],
        "trainable_parameters": results[0]["trainable_parameters"],
        "training_seconds": mean([result["training_seconds"] for result in results]),
        "seconds_per_scan": mean([seconds for result in results for seconds in result["seconds_per_scan"].values()]),
        "peak_memory_mb": max(memory) if memory else None,
    }
    about: dict[str, Any] = {"architecture": item.config.model, "epochs": _span([r["epochs"] for r in results])}
    about["folds done"] = f"{len(found)} of {len(job.chosen)}"
    if paper is not None:
        about |= {f"published {key.replace('_', ' ')}": f"{value:g}" for key, value in paper.costs.items()}
    return ModelResult(
        item.candidate.name,
        tuple(rows),
        varied=dict(item.candidate.varied),
        about=about,
        costs=costs,
        published=_published(rows, paper),
        failed=expected - len({row["subject_id"] for row in rows}),
    )


def _published(
    rows: Sequence[Mapping[str, Any]], paper: Published | None
) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    structures = {row["structure"] for row in rows}
    return {} if paper is None else {key: value for key, value in paper.structures.items() if key in structures}


def _span(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _context(job: Job, facts: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, str]:
    used = [key for key, fold in job.split.items() if fold != TEST]
    persons = len({person_of(key) for key in used})
    kind = "leave one person out" if job.folds == persons else f"{job.folds} folds by person"
    left_out = "" if len(job.chosen) == job.folds else f", only fold {', '.join(map(str, job.chosen))} left out"
    held_out = len(job.split) - len(used)
    context = {
        "data": f"{job.title}: {len(used)} subjects of {persons} persons",
        "split": f"{kind}{f', seed {job.seed}' if job.dataset else ''}{left_out}"
        + f"; {held_out} subjects held out of everything" * (held_out > 0),
        "seed": str(job.seed),
        "hardware": ", ".join(sorted({name for fact in facts.values() for name in fact["hardware"]})),
    }
    context["kept epoch"] = (
        "chosen by the fold after the one left out, which is not trained on either"
        if job.folds >= CHOOSING_FOLDS
        else "chosen by the fold left out, for every model alike: figures are somewhat optimistic"
    )
    epochs = {_span(fact["epochs"]) for fact in facts.values()}
    context["epochs"] = epochs.pop() if len(epochs) == 1 else "differ, see each model"
    return context | {"scale": "reduced (laptop)" if job.scale == "laptop" else "full"}


def collect(item: Planned, found: Mapping[int, Mapping[str, Any]]) -> dict[str, Path]:
    """Copies the predictions of all folds into one folder; returns subject -> file.

    A fold that was thrown away and done again has other labels; those there already are compared byte by byte.
    """
    folder, notes = item.folder / PREDICTIONS, []
    collected: dict[str, Path] = {}
    for number, result in found.items():
        notes.append(read_json(item.fold(number) / PREDICTIONS / "predictions.json"))
        for key in result["predicted"]:
            source, collected[key] = item.fold(number) / PREDICTIONS / f"{key}.nii.gz", folder / f"{key}.nii.gz"
            if not collected[key].exists() or not filecmp.cmp(source, collected[key], shallow=False):
                with atomic_path(collected[key]) as temporary:
                    shutil.copyfile(source, temporary)
    merged = {key: value for key, value in notes[0].items() if key not in ("weights", "history", "fold")}
    merged |= {"run": item.candidate.folder, "part": "left out of the training of its fold"}
    merged["subjects"] = sorted(key for note in notes for key in note["subjects"])
    for name in ("failures", "seconds"):
        merged[name] = {key: value for note in notes for key, value in note[name].items()}
    write_json(folder / "predictions.json", merged)
    return dict(sorted(collected.items()))


def _cleaning(
    job: Job,
    item: Planned,
    predictions: Mapping[str, Path],
    failures: dict[str, str],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Chooses the cleaning, once for the same predictions, and returns Dice before and after as a table."""
    path, name = item.folder / CLEANING_TABLE, item.candidate.name
    subjects = job.dataset.subjects if job.dataset else ()
    references = {s.subject_id: s.labels for s in subjects if s.labels is not None}
    labels = {key: sha256(prediction) for key, prediction in predictions.items()}
    chosen = path.exists() and (item.folder / CLEANING_FILE).exists() and read_json(path).get("labels") == labels
    if not chosen:
        try:
            label_map = item.spec.label_map
            rows = run_apart(
                choose_and_measure_cleaning, item.folder, predictions, references, label_map, progress=progress
            )
        except (DataError, ValueError) as error:
            failures[f"{name}, cleaning"] = " ".join(str(error).split())
            return []
        write_json(path, {"labels": labels, "rows": rows})
    rows = read_json(path)["rows"]
    table = []
    for structure in (*dict.fromkeys(row["structure"] for row in rows), ALL_STRUCTURES):
        own = [row for row in rows if structure in (ALL_STRUCTURES, row["structure"])]
        line: dict[str, Any] = {"model": name, "structure": structure}
        for when in ("before", "after"):
            values = per_subject([row | {"dice": row[when]} for row in own]).values()
            line[f"Dice {when}"] = plus_minus(mean(list(values)), sd(list(values)), 3)
        words = dict.fromkeys(row["cleaning"] for row in own)
        table.append(line | {"cleaning": next(iter(words)) if len(words) == 1 else "as each structure says"})
    return table
