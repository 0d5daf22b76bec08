"""One fold of one candidate: trained, predicted and measured, each step in a process of its own.

    fold_2/run           what `fit` leaves; an interrupted training goes on at its last epoch
    fold_2/predictions   labels of the subjects this fold left out; made anew when interrupted, so that times are whole
    fold_2/report        what `evaluate` leaves
    fold_2/result.json   every subject's figures and what they cost; written last: the fold is finished
    fold_2/error.txt     of a failure that is a mistake of ours: the traceback

Training and prediction are apart because the peak memory of a process is that of all it ever did.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle import models, training
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.evaluation.reading import on_grid, read_labels
from tfmuscle.files import read_json, write_json, write_text
from tfmuscle.inference import find_in_box, load_run
from tfmuscle.inference.runs import DONE_FILE
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.metrics import METRICS, dice, measure
from tfmuscle.postprocessing import CLEANING_FILE, Cleaning, choose_cleaning, clean
from tfmuscle.records import read_index, read_scan
from tfmuscle.training.callbacks import check_comparable
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.learning import fit
from tfmuscle.workflows.predicting import PredictOptions, predict
from tfmuscle.workflows.processes import peak_memory_mb, run_apart
from tfmuscle.workflows.staging import stages_of

RESULT_FILE = "result.json"
UNLABELLED = 255
"""Id of voxels nobody labelled, where the labels of a record are measured."""
_RESULT_KEYS = (
    "failures",
    "predicted",
    "seconds_per_scan",
    "training_seconds",
    "peak_memory_mb",
    "parameters",
    "trainable_parameters",
    "epochs",
    "hardware",
)
PREDICTION_SHARE = 0.1
"""Part of a fold's progress that prediction takes, besides the 1 of training."""


def check_models(wanted: Sequence[tuple[str, DataSpec, TrainConfig]], *, progress: Progress | None = None) -> None:
    """Builds every network once, so that a setting that cannot be is refused before anything is trained.

    Args:
        wanted: name, samples and training of each candidate.
        progress: called with (candidates done, candidates in all, name).

    Raises:
        ValueError: naming the candidate, the setting and what it needs.
    """
    for number, (name, spec, config) in enumerate(wanted, start=1):
        try:
            for stage in stages_of(config):
                options = training.model_options(stage)
                models.check_spec(stage.model, spec, **options)
                models.build(stage.model, spec.input_shape, spec.num_classes, **options)
                check_comparable(stage, num_folds=spec.folds)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from error
        if progress is not None:
            progress(number, len(wanted), name)


def make_records(
    dataset: Path, out: Path, spec: DataSpec, workers: int, prior: Path | None, *, progress: Progress | None = None
) -> None:
    """Builds records; `prior` holds the labels of an earlier network, for a spec that asks for them."""
    build_records(dataset, out, spec, workers=workers, prior=prior, progress=progress)


def run_fold(
    folder: Path,
    records: Path,
    dataset: Path,
    config: TrainConfig,
    *,
    prior: Path | None = None,
    progress: Progress | None = None,
) -> str:
    """Trains, predicts and measures a fold; what is finished already is not done again.

    Args:
        folder: of the fold.
        records: samples of all folds.
        dataset: the scans and references; the records themselves where they are boxes around a muscle.
        config: what to train; names the fold.
        prior: labels of an earlier network, for one that looks at them.
        progress: called with (steps done, steps in all, note).

    Returns:
        Why it failed, in one line, or "".
    """
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        train_apart(records, folder / "run", config, progress=_part(progress, 0.0, 1.0))
        measured = _part(progress, 1.0, PREDICTION_SHARE)
        if dataset == records:
            run_apart(measure_boxes, folder, records, progress=measured)
        else:
            run_apart(predict_and_measure, folder, dataset, prior, progress=measured)
    except DataError as error:
        return " ".join(str(error).split())
    except Exception as error:  # of one network among many: the others go on
        write_text(folder / "error.txt", "\n".join([str(error), *getattr(error, "__notes__", ())]))
        return " ".join(str(error).split())[:300] + f" (see {folder / 'error.txt'})"
    return ""


def _part(progress: Progress | None, start: float, length: float) -> Progress | None:
    if progress is None:
        return None
    scale, whole = 1_000_000, round(1_000_000 * (1 + PREDICTION_SHARE))
    return lambda done, total, note: progress(round(scale * (start + length * done / max(1, total))), whole, note)


def train_apart(records: Path, run: Path, config: TrainConfig, *, progress: Progress | None = None) -> None:
    """Trains in a process of its own, or goes on with what was interrupted.

    A process that dies after its run is complete (TensorFlow's threads may crash while they are taken down) has done
    its work; what it left is whole, because `about.json` is written last.

    Raises:
        DataError: as `fit`, or the process was killed before that.
    """
    try:
        run_apart(train, records, run, config, progress=progress)
    except DataError:
        if not (run / DONE_FILE).exists():
            raise


def train(records: Path, run: Path, config: TrainConfig, *, progress: Progress | None = None) -> None:
    """Trains, or goes on with what was interrupted."""
    fit(records, run, config, resume=True, progress=progress)


def predict_and_measure(
    folder: Path, dataset: Path, prior: Path | None = None, *, progress: Progress | None = None
) -> None:
    """Segments the subjects that the fold left out, compares them with their references and writes `result.json`."""
    run, predictions = folder / "run", folder / "predictions"
    shutil.rmtree(predictions, ignore_errors=True)
    options = PredictOptions(prior=prior)
    result = predict(run, dataset, predictions, part=_measured_part(run), options=options, progress=progress)
    memory = peak_memory_mb()
    if not result.written:
        raise DataError("; ".join(result.failures.values()))
    measured = evaluate(predictions, dataset, folder / "report")
    seconds = read_json(predictions / "predictions.json")["seconds"]
    times = {key: seconds[key] for key in sorted(result.written)}
    _write_result(folder, list(measured.rows), times, result.failures | measured.failures, memory)


def measure_boxes(folder: Path, records: Path, *, progress: Progress | None = None) -> None:
    """Finds a muscle in the true boxes of the legs that the fold left out, and writes `result.json`.

    Every leg is measured on the grid of its record; the box is the mean enlargement of the true one, so that figures
    say what this network can do, not where stage 1 looks for the muscle.
    """
    run, index = load_run(folder / "run"), read_index(records)
    subjects = read_json(folder / "run" / "split.json")[_measured_part(folder / "run")]
    label_map = dataclasses.replace(run.spec.label_map, ignore=UNLABELLED)
    rows: list[dict[str, Any]] = []
    times: dict[str, float] = {}
    for number, subject in enumerate(subjects, start=1):
        leg, start = read_scan(index.folder / index.path_of(subject), run.spec), time.monotonic()
        found = find_in_box(run, leg)
        times[subject] = round(time.monotonic() - start, 3)
        up, back, left = run.spec.spacing or (1.0, 1.0, 1.0)
        turn = np.array([[0, 0, -left, 0], [0, -back, 0, 0], [up, 0, 0, 0], [0, 0, 0, 1]])  # SPL, as legs are stored
        geometry = Geometry(found.shape, turn)
        truth = np.where(leg.labels == IGNORE, UNLABELLED, leg.labels)
        measured = measure(Volume(found, geometry), Volume(truth.astype(np.uint8), geometry), label_map)
        rows += [{"subject_id": subject} | row for row in measured]
        if progress is not None:
            progress(number, len(subjects), subject)
    _write_result(folder, rows, times, {}, peak_memory_mb())


def _measured_part(run: Path) -> str:
    return "validation" if TrainConfig.load(run / "train.json").left_out < 0 else "left_out"


def _write_result(
    folder: Path,
    rows: list[dict[str, Any]],
    seconds: Mapping[str, float],
    failures: Mapping[str, str],
    memory: float | None,
) -> None:
    run = folder / "run"
    abouts = [read_json(path) for path in [*sorted((run / "stages").glob("*/about.json")), run / "about.json"]]
    network = load_run(run).model
    content = {
        "rows": rows,
        "failures": dict(failures),
        "predicted": sorted(seconds),
        "seconds_per_scan": dict(seconds),
        "training_seconds": sum(about["seconds"] for about in abouts),
        "peak_memory_mb": memory,
        "parameters": network.count_params(),
        "trainable_parameters": sum(math.prod(weight.shape) for weight in network.trainable_weights),
        "epochs": sum(about["epochs"] for about in abouts),
        "hardware": str(abouts[-1].get("hardware", "unknown")),
    }
    write_json(folder / RESULT_FILE, content)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Returns what a finished fold measured, undefined figures as NaN; None when it is not finished.

    Raises:
        DataError: `result.json` is damaged.
    """
    if not (folder / RESULT_FILE).exists():
        return None
    content = read_json(folder / RESULT_FILE)
    try:
        for row in content["rows"]:
            row |= {name: math.nan for name in METRICS if row[name] is None}
        if missing := [key for key in _RESULT_KEYS if key not in content]:
            raise KeyError(missing[0])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / RESULT_FILE}: is damaged ({error}); remove it, and the fold is measured anew"
        ) from error
    return content


def choose_and_measure_cleaning(
    folder: Path,
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    label_map: LabelMap,
    *,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Chooses nnU-Net's cleaning by out-of-fold predictions and writes it as `postprocessing.json` into `folder`.

    Args:
        folder: of the candidate.
        predictions: subject -> predicted labels.
        references: subject -> reference labels.
        label_map: ids and names.
        progress: called with (subjects measured, subjects in all, subject).

    Returns:
        One row per subject and structure: `subject_id`, `structure`, `before`, `after` (Dice), `cleaning` in words.
    """

    def pair(key: str) -> tuple[Any, Any]:
        reference = read_labels(references[key], label_map)
        return on_grid(read_labels(predictions[key], label_map), reference), reference

    chosen = choose_cleaning((pair(key) for key in predictions), label_map)
    rows = []
    for number, key in enumerate(predictions, start=1):
        prediction, reference = pair(key)
        cleaned = clean(prediction, chosen, label_map)
        known = reference.array != (-1 if label_map.ignore is None else label_map.ignore)
        for name in label_map.structures:
            true = reference.array == label_map.id_of(name)
            row: dict[str, Any] = {"subject_id": key, "structure": name}
            for when, labels in (("before", prediction), ("after", cleaned)):
                row[when] = dice(labels.array == label_map.id_of(name), true, mask=known)
            rows.append(row | {"cleaning": _in_words(chosen, name)})
        if progress is not None:
            progress(number, len(predictions), key)
    chosen.save(folder / CLEANING_FILE)
    return rows


def _in_words(cleaning: Cleaning, structure: str) -> str:
    steps = ["largest component of all structures"] if cleaning.largest_foreground else []
    steps += ["largest component of this structure"] if structure in cleaning.largest else []
    return ", then ".join(steps) or "none"
