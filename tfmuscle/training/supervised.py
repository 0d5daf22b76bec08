"""Supervised training: records and settings in, a run folder out.

The user names records and an architecture; the data of all folds but one train (or of as many persons among them as
`subjects` says), that fold validates, and subjects of the test set, and of a fold that is `left_out`, are never read.
The run folder holds everything prediction needs and says how it came about:

    spec.json  train.json  split.json   what was decided, and which subject had which part
    records.json                        where the records are
    transfer.json                       whose weights the network started with, if it did (`transfer.py`)
    best.keras                          the model of the epoch that `selection` prefers
    history.csv  curves.png             one row an epoch, and the picture of it
    report.html                         the page of the run, written again as epochs end (`live_page.py`)
    postprocessing.json                 how predictions are cleaned, if the recipe says so
    about.json                          versions, hardware, seconds, best epoch; written last: the run is complete
    state/  tensorboard/                backup of the newest epoch (removed at the end), logs
"""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, atomic_path, provenance, read_json, write_json
from tfmuscle.folds import PARTS, TEST, person_of, persons_in_order
from tfmuscle.inference.runs import MAIN_OUTPUT, RECORDS_FILE
from tfmuscle.losses import get_loss
from tfmuscle.losses.parametric import ParametricTversky
from tfmuscle.losses.voxelwise import DATASET_WEIGHTS, inverse_frequencies
from tfmuscle.postprocessing import CLEANING_FILE, recipe_cleaning
from tfmuscle.records import RecordIndex, check_shard, load_spec, read_index
from tfmuscle.report import figure_png, training_curves
from tfmuscle.training import distribution
from tfmuscle.training.batches import epoch_steps, training_batches, validation_batches
from tfmuscle.training.callbacks import (
    Backup,
    ForegroundDice,
    RampLoss,
    Recorder,
    check_comparable,
    newest_backup,
    read_history,
    tensorboard,
    write_history,
)
from tfmuscle.training.deep_supervision import model_options, output_shapes, output_shares, with_coarse_labels
from tfmuscle.training.live_page import Examples, LivePage, examples_of, write_page
from tfmuscle.training.optimisers import make_optimiser
from tfmuscle.training.schedule import best_epoch, curves, should_stop
from tfmuscle.training.transfer import TRANSFER_FILE, begin, identify

ABOUT_FILE = "about.json"
"""Says that a run is complete, and how it came about."""
STAGES_FOLDER = "stages"
"""Folder in a run for the trainings that went before it (`workflows.staging`)."""

Say = Callable[[str], None]


def fit(
    records: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    start: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    say: Say | None = None,
) -> Path:
    """Trains one model on one fold and returns the run folder.

    Args:
        records: folder made by `build-records`.
        run: folder to make; with `resume`, one that an interrupted run left.
        config: architecture, optimisation, fold and seed.
        start: run whose weights the network starts with, as far as they fit; a resumed run remembers it.
        resume: go on at the epoch that was interrupted; a run that is complete is left as it is.
        progress: called with (batches done, batches in all, note); what it raises ends the training, and the run can be
            resumed.
        say: called with what the user should know about `start`, one sentence each.

    Raises:
        ValueError: the model does not take these records, naming the field, or the fold does not exist.
        DataError: the records are incomplete, the run folder holds another run, or `start` does not fit.
    """
    records, run = Path(records), Path(run)
    spec, index = load_spec(records), read_index(records)
    models.check_spec(config.model, spec, **model_options(config))
    check_comparable(config, num_folds=spec.folds)
    split = split_of(index, spec, config)
    strategy = distribution.strategy_of(config.devices)
    distribution.check_shares(config, strategy)
    check_shards(index, spec, split["train"] + split["validation"])
    is_chief = distribution.is_chief(strategy)
    if not is_chief:
        if resume and (run / ABOUT_FILE).exists():
            return run
    elif prepare(run, spec, config, split, start=None if start is None else Path(start), resume=resume):
        return run
    else:
        write_json(run / RECORDS_FILE, {"records": str(records.resolve())})
        if cleaning := recipe_cleaning(config.recipe.postprocessing, spec.label_map):
            cleaning.save(run / CLEANING_FILE)
    keras.utils.set_random_seed(config.seed)
    shards = {part: _shards(index, split[part]) for part in ("train", "validation")}
    with distribution.naming_lost_machines(config.devices):
        with strategy.scope():
            model = _compiled(spec, config, _dataset_weights(index, split["train"]))
            history = restore(model, run)
            if not history and (run / TRANSFER_FILE).exists():
                begin(model, run, spec, config, validation=shards["validation"], say=say or _silent)
        with contextlib.nullcontext(run) if is_chief else tempfile.TemporaryDirectory() as kept:
            _train(model, Path(kept), spec, config, shards=shards, history=history, progress=progress)
    return run


def _train(
    model: keras.Model,
    run: Path,
    spec: DataSpec,
    config: TrainConfig,
    *,
    shards: dict[str, dict[str, tuple[Path, int]]],
    history: list[dict[str, float]],
    progress: Callable[[int, int, str], None] | None,
) -> None:
    paths = {part: [path for path, _ in shards[part].values()] for part in shards}
    samples = {part: sum(count for _, count in shards[part].values()) for part in shards}
    steps, strategy = epoch_steps(samples["train"], config), distribution.strategy_of(config.devices)
    batches = training_batches(
        paths["train"],
        spec,
        config,
        first_epoch=len(history),
        steps=steps,
        machine=distribution.machine(strategy),
    )
    batches = with_coarse_labels(batches, model, spec)
    distribution.ready(model, batches, strategy)
    validation = _validation(model, paths["validation"], spec, config, samples["validation"])
    train_epochs(
        model,
        batches,
        Recorder(run, config, history, steps=steps, progress=progress),
        validation=validation,
        examples=None if validation is None else examples_of(validation, spec),
    )


def train_epochs(
    model: keras.Model,
    batches: tf.data.Dataset,
    recorder: Recorder,
    *,
    validation: tf.data.Dataset | None = None,
    examples: Examples | None = None,
) -> None:
    """Trains the epochs that are left and completes the run folder.

    Args:
        model: compiled, with the weights of the epochs that are done.
        batches: those of all epochs that are left, one after another.
        recorder: knows the run folder, its settings and the epochs that are done.
        validation: what every epoch ends with, if there is anything.
        examples: samples that the page of the run shows.
    """
    run, config, history = recorder.run, recorder.config, recorder.history
    recipe, started = config.recipe, time.monotonic()
    page = LivePage(run, config, history, examples)
    stopped = should_stop(history, recipe.patience, recipe.patience_of)  # killed between the last epoch and the end
    model.fit(
        batches,
        validation_data=validation,
        initial_epoch=len(history),
        epochs=len(history) if stopped else config.epochs,
        steps_per_epoch=recorder.steps,
        shuffle=False,
        callbacks=[recorder, Backup(run / "state"), RampLoss(), page, *tensorboard(run)],
        verbose=0,
    )
    seconds = time.monotonic() - started
    finish(run, model, config, history, seconds=seconds, steps=recorder.steps, picture=page.picture())


def _silent(sentence: str) -> None:
    """Says nothing."""


def _shards(index: RecordIndex, subjects: list[str]) -> dict[str, tuple[Path, int]]:
    """Returns subject -> shard and number of its samples."""
    return {subject: (index.folder / index.path_of(subject), index.samples_of(subject)) for subject in subjects}


def _dataset_weights(index: RecordIndex, subjects: list[str]) -> list[float]:
    """Returns the class weights that `class_weights="dataset"` stands for."""
    counts = [index.usable[subject]["class_voxels"] for subject in subjects]
    return inverse_frequencies([sum(column) for column in zip(*counts, strict=True)])


def check_shards(index: RecordIndex, spec: DataSpec, subjects: list[str]) -> None:
    """Refuses shards that are damaged, or made for other classes (DataError)."""
    for subject in subjects:
        entry = index.usable[subject]
        if problem := check_shard(index.folder / entry["file"], entry):
            raise DataError(problem)
        if (count := len(entry["class_voxels"])) != spec.num_classes:
            raise DataError(
                f"{index.folder / 'spec.json'}: names {spec.num_classes} classes, the shards hold {count};"
                " restore it, or build the records anew"
            )


def split_of(index: RecordIndex, spec: DataSpec, config: TrainConfig) -> dict[str, list[str]]:
    """Returns the subjects of every part, or says which fold or sample is missing."""
    if (highest := max(config.fold, config.left_out)) >= spec.folds:
        raise ValueError(f"fold {highest} does not exist: the records have {spec.folds} folds, 0 to {spec.folds - 1}")
    part_of = {config.left_out: "left_out", TEST: "test"}  # with none left out its number is that of the test subjects
    if spec.folds > 1:
        part_of[config.fold] = "validation"
    split: dict[str, list[str]] = {part: [] for part in PARTS if part != "unused"}  # which most trainings do not have
    for subject, fold in index.folds.items():
        split[part_of.get(fold, "train")].append(subject)
    if config.subjects:
        labelled = [subject for subject in split["train"] if index.samples_of(subject)]
        persons = persons_in_order(labelled, seed=config.seed)
        if config.subjects > len(persons):
            raise ValueError(f"subjects is {config.subjects}; there are {len(persons)} persons to train on")
        used = set(persons[: config.subjects])
        split["unused"] = [subject for subject in split["train"] if person_of(subject) not in used]
        split["train"] = [subject for subject in split["train"] if person_of(subject) in used]
    if not any(index.samples_of(subject) for subject in split["train"]):
        raise DataError(f"{index.folder}: no labelled sample is left for training; add subjects or use fewer folds")
    return split


def prepare(
    run: Path, spec: DataSpec, config: TrainConfig, split: dict[str, list[str]], *, start: Path | None, resume: bool
) -> bool:
    """Makes the run folder, or checks that the one there is this run; returns whether it is already complete."""
    wanted: dict[str, dict] = {"spec.json": spec.to_dict(), "train.json": config.to_dict(), "split.json": split}
    if start is not None:
        wanted[TRANSFER_FILE] = identify(start)
    check_folder(run, resume=resume)
    if (run / "train.json").exists():
        for name, content in wanted.items():
            wanted[name] = _unchanged(run / name, content)
        if (run / ABOUT_FILE).exists():
            return True
    elif start is None:
        (run / TRANSFER_FILE).unlink(missing_ok=True)  # of a start that was given up
    for name, content in reversed(wanted.items()):
        write_json(run / name, content)
    return False


def _unchanged(path: Path, content: dict) -> dict:
    """Returns what a settings file of a begun run holds, or says what the user now wants otherwise."""
    before = read_json(path) if path.exists() else {} if path.name == TRANSFER_FILE else content
    for key in content:
        if key != "from" and before.get(key) != content[key]:  # the other run may have been moved
            raise DataError(
                f"{path}: {key} was {before.get(key)!r} when the run began and is {content[key]!r} now; "
                "resume with the same settings, or name another folder"
            )
    return before | content


def check_folder(run: Path, *, resume: bool) -> None:
    """Refuses a folder that no run may be written to.

    Raises:
        DataError: it holds a run and this is no resuming, or it holds something else.
    """
    if (run / "train.json").exists():
        if not resume:
            raise DataError(f"{run}: holds a run already; add --resume to go on with it, or name another folder")
    elif run.exists() and not (run.is_dir() and all(_is_ours(path) for path in run.iterdir())):
        raise DataError(f"{run}: is not empty and holds no run; name another folder")


def _is_ours(path: Path) -> bool:
    """Whether a fit that was killed before its settings were complete may have left this."""
    ours = ("split.json", "spec.json", TRANSFER_FILE, STAGES_FOLDER)
    return path.name.startswith(TEMPORARY_PREFIX) or path.name in ours


def _validation(
    model: keras.Model, paths: list[Path], spec: DataSpec, config: TrainConfig, num_samples: int
) -> tf.data.Dataset | None:
    if not paths:
        return None
    full = config.devices != "one"
    batches = validation_batches(paths, spec, config.batch_size, num_samples=num_samples, full=full)
    return with_coarse_labels(batches, model, spec)


def _compiled(spec: DataSpec, config: TrainConfig, dataset_weights: list[float]) -> keras.Model:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = models.build(config.model, spec.input_shape, spec.num_classes, **model_options(config))
    finally:
        keras.config.set_dtype_policy(before)
    options = dict(config.recipe.loss_options)
    if options.get("class_weights") == DATASET_WEIGHTS:
        options["class_weights"] = dataset_weights
    own = [layer for layer in model.layers if isinstance(layer, ParametricTversky)]  # a loss whose weights are learned
    loss = own[0].loss if own else get_loss(config.recipe.loss, **options)
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        loss = distribution.SharedLoss(loss)
    dice = [ForegroundDice(spec.num_classes)]
    outputs = list(output_shapes(model))
    model.compile(
        optimizer=make_optimiser(config),
        loss=dict.fromkeys(outputs, loss) if outputs else loss,
        loss_weights=output_shares(model) or None,
        metrics={MAIN_OUTPUT: dice} if outputs else dice,
    )
    model.optimizer.build(model.trainable_variables)  # or TensorFlow traces the training step twice to make them
    return model


def restore(model: keras.Model, run: Path) -> list[dict[str, float]]:
    """Loads the newest backup into the model, and returns the rows of the epochs it contains."""
    backup = newest_backup(run / "state")
    if backup is None:
        return []
    path, epochs = backup
    model.load_weights(path)
    history = read_history(run / "history.csv")[:epochs]
    if len(history) != epochs:
        raise DataError(
            f"{run / 'history.csv'}: has {len(history)} rows for {epochs} epochs; remove {run} and fit again"
        )
    return history


def finish(
    run: Path,
    model: keras.Model,
    config: TrainConfig,
    history: list[dict[str, float]],
    *,
    seconds: float,
    steps: int,
    picture: bytes | None = None,
) -> None:
    """Completes a run folder: curves, page, history and `about.json`; the backup goes."""
    best = best_epoch(history, config.recipe.selection)
    drawn = figure_png(training_curves(curves(history)))
    with atomic_path(run / "curves.png") as temporary:
        temporary.write_bytes(drawn)
    write_page(run, config, history, picture=picture, drawn=drawn, finished=True)
    write_history(run / "history.csv", history)
    about = provenance() | {
        "epochs": len(history),
        "steps_per_epoch": steps,
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "seconds_this_session": round(seconds, 1),
        "best_epoch": best + 1,
        "best_validation_dice": history[best].get("val_dice", math.nan),
        "parameters": model.count_params(),
    }
    write_json(run / ABOUT_FILE, about)
    shutil.rmtree(run / "state", ignore_errors=True)
