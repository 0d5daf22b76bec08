"""What a pre-trained encoder is worth: Dice against the number of labelled subjects, beside a random start.

The user has made an encoder with `pretrain` and has a dataset of labelled subjects. Some persons are held out for the
test, the others are the pool. For every seed the pool has one order, and S labelled subjects are its first S persons,
so that fewer are always among more. For every seed and S one network starts from the encoder ("ssl") and one at random,
with the same settings, subjects and seed; all are tested on the same persons.

    OUT/about.json               what must not change between calls, the subjects' files included
    OUT/records/                 samples of pool and test, one fold: nothing validates
    OUT/seed_0/ssl_005/          run, predictions, report, result.json (written last: the network is done)
    OUT/curve.csv .json .html .png

The encoder may have seen scans of the pool, but of nobody in the test: that is an error, by the names, if it learned
from the same dataset; where the datasets differ it is told, for only the user knows whether the scans do.

The same call again goes on where the last one was, and more sizes or seeds may be asked for. A network of which a test
scan failed is tested again, not trained. Several processes may work on one folder, as in `comparing.py`. Tables and
picture are written whenever a network is done, and hold every network of the folder, whichever call asked for it.
"""

import dataclasses
import functools
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.evaluation.label_curve import ARMS, PUBLISHED, PUBLISHED_SOURCE, curve_table, persons_of_networks
from tfmuscle.files import atomic_path, provenance, read_json, write_json, write_text
from tfmuscle.folds import person_of, persons_in_order
from tfmuscle.inference.runs import DONE_FILE, PRETRAINING_FILE, SPEC_FILE
from tfmuscle.records import INDEX_FILE, read_index
from tfmuscle.report import figure_png, html_page
from tfmuscle.report.label_curve import label_curve_figure, label_curve_sections
from tfmuscle.tables import csv_text
from tfmuscle.training.batches import epoch_steps
from tfmuscle.training.transfer import TRANSFER_FILE
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.fold_jobs import RESULT_FILE
from tfmuscle.workflows.label_curve_plan import (
    CurveJob,
    CurveOptions,
    Network,
    decide,
    note_of_shared_names,
    notes_of,
    settle,
    tested_networks,
)
from tfmuscle.workflows.learning import fit
from tfmuscle.workflows.predicting import predict
from tfmuscle.workflows.processes import claimed, claimed_in_turn, run_apart

_NO_RECORDS = "records"
_ROW_KEYS = ("subject_id", "structure", "dice", "note")


@dataclass(frozen=True)
class LabelCurve:
    """What was found.

    Attributes:
        table: one row per number of labelled subjects, see `evaluation.label_curve.curve_table`.
        failures: what failed -> reason in one line.
        waiting: networks that another process is at -> which.
        context: where the figures come from.
        out: folder of the tables and of the page.
    """

    table: tuple[dict[str, Any], ...]
    failures: Mapping[str, str]
    waiting: Mapping[str, str]
    context: Mapping[str, str]
    out: Path

    @property
    def reduced(self) -> bool:
        """Whether a recipe had been cut down."""
        return self.context["scale"].startswith("reduced")


def label_curve(
    source: str | Path,
    out: str | Path,
    encoder: str | Path,
    options: CurveOptions | None = None,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> LabelCurve:
    """Trains and tests both arms on 1, 2, 5, ... labelled subjects, and draws Dice against their number.

    Args:
        source: dataset folder.
        out: folder to make, or to go on with.
        encoder: run folder made by `pretrain`.
        options: sizes, seeds, test persons and settings.
        progress: called with (steps done, steps in all, note) over all trainings of this call.
        say: called with what the user should know, one sentence each.

    Raises:
        ValueError: an option that cannot be, e.g. more labelled subjects than the pool has; nothing is trained then.
        DataError: the dataset or the encoder cannot be used, or `out` holds something else.
    """
    job = decide(Path(source), Path(out), Path(encoder), options or CurveOptions())
    for note in notes_of(job):
        (say or _silent)(note)
    job, failures = _make_records(job, progress)
    waiting: dict[str, str] = {}
    networks = [network for network in job.networks if not network.is_done and _NO_RECORDS not in failures]
    steps = [sum(_steps(job, network)) for network in networks]
    for place, network in enumerate(networks):
        told = _part(progress, sum(steps[:place]), steps[place], sum(steps), network.name)
        with claimed(network.folder) as other:
            if other:
                waiting[network.name] = f"in work: {other}"
            elif not network.is_done and (problem := _run(job, network, told)):
                failures[network.name] = problem
        if told is not None:
            told(1, 1, "done")
        if network.is_done:
            _summarise(job, failures, waiting)
    return _summarise(job, failures, waiting)


def _silent(sentence: str) -> None:
    """Says nothing."""


def _make_records(job: CurveJob, progress: Progress | None) -> tuple[CurveJob, dict[str, str]]:
    """Builds the samples if there are none; returns the job with whom they leave, and what failed -> why."""
    if all(network.is_done for network in job.networks) and not job.records.exists():
        return job, {}  # records of a finished curve may be thrown away
    tell = None if progress is None else functools.partial(_tell, progress)
    try:
        with claimed_in_turn(job.out, name="claim-records", tell=tell):
            if not (job.records / INDEX_FILE).exists():
                run_apart(build_records, job.dataset, job.records, job.spec, progress=progress)
            failures = read_index(job.records).failures
            return settle(job), {f"{key}, records": reason for key, reason in failures.items()}
    except DataError as error:
        return job, {_NO_RECORDS: " ".join(str(error).split())}


def _tell(progress: Progress, other: str) -> None:
    progress(0, 1, f"waiting for the records of {other}")


def _steps(job: CurveJob, network: Network) -> tuple[int, int]:
    """Returns about how many steps a network takes to train, and its test, in which two forward passes are a step."""
    index = read_index(job.records)
    used = set(persons_in_order(job.pool, seed=network.seed)[: network.size])
    training = sum(index.samples_of(key) for key in index.usable if person_of(key) in used)
    test = sum(index.samples_of(key) for key in index.usable if key in job.test)
    return job.config.epochs * max(1, epoch_steps(training, job.config)), max(1, -(-test // job.config.batch_size))


def _part(progress: Progress | None, before: int, own: int, total: int, name: str) -> Progress | None:
    """Turns the steps of one network into steps of all."""
    if progress is None:
        return None
    return lambda done, of, note: progress(before + min(own, own * done // max(1, of)), total, f"{name}: {note}")


def _run(job: CurveJob, network: Network, progress: Progress | None) -> str:
    """Trains and tests a network, or goes on with it; returns why it failed, or ""."""
    config = dataclasses.replace(job.config, seed=network.seed, subjects=network.size)
    start = job.encoder if network.arm == ARMS[0] else None
    training, test = _steps(job, network)
    total = training + test
    (network.folder / "error.txt").unlink(missing_ok=True)
    try:
        trained = _part(progress, 0, training, total, "training")
        _train_apart(job.records, network.folder / "run", config, start, progress=trained)
        tested = _part(progress, training, test, total, "test")
        run_apart(measure_network, network.folder, job.dataset.root, progress=tested)
    except DataError as error:
        return " ".join(str(error).split())
    except Exception as error:  # of one network among many: the others go on
        write_text(network.folder / "error.txt", "\n".join([str(error), *getattr(error, "__notes__", ())]))
        return " ".join(str(error).split())[:300] + f" (see {network.folder / 'error.txt'})"
    return ""


def _train_apart(
    records: Path, run: Path, config: TrainConfig, start: Path | None, *, progress: Progress | None = None
) -> None:
    try:
        run_apart(train_network, records, run, config, start, progress=progress)
    except DataError:
        if not (run / DONE_FILE).exists():  # else the process died when its work was done
            raise


def train_network(
    records: Path, run: Path, config: TrainConfig, start: Path | None, *, progress: Progress | None = None
) -> None:
    """Trains, or goes on with what was interrupted; `start` is the encoder, or None for a random start."""
    fit(records, run, config, start=start, resume=True, progress=progress)


def measure_network(folder: Path, dataset: Path, *, progress: Progress | None = None) -> None:
    """Segments the test subjects, compares them with their references and writes `result.json`."""
    run, predictions = folder / "run", folder / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)
    found = predict(run, dataset, predictions, part="test", progress=progress)
    if not found.written:
        raise DataError("; ".join(found.failures.values()))
    measured = evaluate(predictions, dataset, folder / "report")
    about, split = read_json(run / DONE_FILE), read_json(run / "split.json")
    begun = read_json(run / TRANSFER_FILE) if (run / TRANSFER_FILE).exists() else {}
    content = {
        "rows": [{key: row[key] for key in _ROW_KEYS} for row in measured.rows],
        "failures": found.failures | measured.failures,
        "trained_on": split["train"],
        "starts_with": begun.get("weights"),
        "layers_taken": len(begun.get("layers_taken", [])),
        "layers_new": len(begun.get("layers_new", [])),
        "training_seconds": about["seconds"],
        "kept_epoch": about["best_epoch"],
        "hardware": str(about.get("hardware", "unknown")),
    }
    write_json(folder / RESULT_FILE, content)


def read_network(folder: Path) -> dict[str, Any] | None:
    """Returns what a network's test found; None when it is not done.

    Raises:
        DataError: `result.json` is damaged.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    content = read_json(path)
    try:
        rows = [
            {key: row[key] for key in ("subject_id", "structure")}
            | {"dice": _number(row["dice"]), "note": str(row.get("note", ""))}
            for row in content["rows"]
        ]
        return content | {"rows": rows, "failures": dict(content["failures"]), "hardware": str(content["hardware"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); remove it, and the network is tested anew") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _summarise(job: CurveJob, failures: Mapping[str, str], waiting: Mapping[str, str]) -> LabelCurve:
    """Reads what is done, by whomever, and writes tables and picture."""
    with claimed_in_turn(job.out, name="claim-curve"):
        found, failures = {}, dict(failures)
        for network in tested_networks(job.out):
            try:
                content = read_network(network.folder)
            except DataError as error:
                failures[network.name] = " ".join(str(error).split())
                continue
            if content is not None:
                found[network] = content
                failures |= {f"{network.name}, {key}": reason for key, reason in content["failures"].items()}
        rows = [
            {"arm": network.arm, "subjects": network.size, "seed": network.seed, **row}
            for network, content in found.items()
            for row in content["rows"]
        ]
        left = {name: who for name, who in waiting.items() if name not in {network.name for network in found}}
        result = LabelCurve(tuple(curve_table(rows)), failures, left, _context(job, found), job.out)
        short = dataclasses.replace(result, failures=_shortened(job, failures), waiting=_shortened(job, left))
        _write(short, rows)
    return result


def _shortened(job: CurveJob, reasons: Mapping[str, str]) -> dict[str, str]:
    """Returns the reasons without the folders that output, dataset and encoder are in: a page is sent around."""
    folders = (job.out, job.dataset.root.parent, job.encoder.parent)
    names = {str(shown) for folder in folders for shown in (folder, folder.resolve()) if shown.name}
    start = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<![^\s'\"(\[,;:=])(?:{start})[/\\]")
    return {key: pattern.sub("", reason) for key, reason in reasons.items()}


def _context(job: CurveJob, found: Mapping[Network, Mapping[str, Any]]) -> dict[str, str]:
    pretraining, settings = TrainConfig.load(job.encoder / "train.json"), read_json(job.encoder / PRETRAINING_FILE)
    scans = len(read_json(job.encoder / "split.json")["train"])
    networks, seeds = {*found, *job.networks}, {*range(job.options.seeds), *(network.seed for network in found)}
    done = sum(not content["failures"] for content in found.values())
    persons, tested = len(persons_in_order(job.pool)), len(persons_in_order(job.test))
    about = {
        "data": f"{job.dataset.name}: {persons} labelled persons in the pool, {tested} held out for the test",
        "encoder": f"{settings['method']}, {scans} scans, {read_json(job.encoder / DONE_FILE)['epochs']} epochs",
        "model": job.config.model,
        "preset": job.options.preset,
        "epochs": str(job.config.epochs) + (f" of {job.config.steps} steps" if job.config.steps else ""),
        "seeds": ", ".join(map(str, sorted(seeds))),
        "networks": f"{done} of {len(networks)} done",
        "hardware": ", ".join(sorted({result["hardware"] for result in found.values()})),
    }
    if note := note_of_shared_names(job):
        about["note"] = note
    scales = (job.spec.scale, job.config.scale, pretraining.scale, DataSpec.load(job.encoder / SPEC_FILE).scale)
    return about | {"scale": "reduced (laptop)" if "laptop" in scales else "full"}


def _write(result: LabelCurve, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `curve.csv`, `.json`, `.png` and `.html`, each whole or not at all."""
    write_text(result.out / "curve.csv", csv_text(row | dict(result.context) for row in result.table))
    networks = [
        {"arm": arm, "subjects": size, "seed": seed, "dice_of_persons": persons}
        for (arm, size, seed), persons in sorted(persons_of_networks(rows).items())
    ]
    published = {"source": PUBLISHED_SOURCE, "dice": {arm: dict(points) for arm, points in PUBLISHED.items()}}
    content = {"context": dict(result.context), "table": list(result.table), "networks": networks}
    content |= {"published": published, "failures": dict(result.failures), "waiting": dict(result.waiting)}
    write_json(result.out / "curve.json", content | {"made_with": provenance()})
    reduced = " (reduced)" if result.reduced else ""
    figure = label_curve_figure(result.table, published=PUBLISHED, title=result.context["data"] + reduced)
    with atomic_path(result.out / "curve.png") as temporary:
        temporary.write_bytes(figure_png(figure))
    problems = {"Failed": result.failures, "In work elsewhere, not in the table": result.waiting}
    sections = label_curve_sections(
        result.table,
        figure,
        context=result.context,
        problems=problems,
        published=PUBLISHED,
        source=PUBLISHED_SOURCE,
    )
    write_text(result.out / "curve.html", html_page(f"tfmuscle: label curve{reduced}", sections))
