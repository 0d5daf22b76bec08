"""Supervised training: records and settings in, a run folder out.

The user names records and an architecture; the data of all folds but one train, that fold validates, and subjects of
the test set are never read. The run folder holds everything prediction needs and says how it came about:

    spec.json  train.json  split.json   what was decided, and which subject had which part
    best.keras                          the model of the epoch with the best validation Dice
    history.csv  curves.png             one row an epoch, and the picture of it
    about.json                          versions, hardware, seconds, best epoch; written last: the run is complete
    state/  tensorboard/                backup of the newest epoch (removed at the end), logs
"""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, atomic_path, provenance, read_json, write_json
from tfmuscle.folds import TEST
from tfmuscle.losses import get_loss
from tfmuscle.records import RecordIndex, check_shard, load_spec, read_index
from tfmuscle.report import figure_png, training_curves
from tfmuscle.training.batches import epoch_steps, training_batches, validation_batches
from tfmuscle.training.callbacks import (
    Backup,
    ForegroundDice,
    Recorder,
    newest_backup,
    read_history,
    tensorboard,
    write_history,
)
from tfmuscle.training.schedule import best_epoch, curves, should_stop

SGD_MOMENTUM = 0.99
"""Nesterov momentum of plain SGD (nnU-Net)."""
GRADIENT_NORM = 12.0
"""Gradients are clipped to this global norm (nnU-Net)."""


def fit(
    records: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """Trains one model on one fold and returns the run folder.

    Args:
        records: folder made by `build-records`.
        run: folder to make; with `resume`, one that an interrupted run left.
        config: architecture, optimisation, fold and seed.
        resume: go on at the epoch that was interrupted; a run that is complete is left as it is.
        progress: called with (batches done, batches in all, note).
        cancel: asked after every batch; True stops, and the run can be resumed.

    Raises:
        ValueError: the model does not take these records, naming the field, or the fold does not exist.
        DataError: the records are incomplete, or the run folder holds another run.
    """
    records, run = Path(records), Path(run)
    spec, index = load_spec(records), read_index(records)
    models.check_spec(config.model, spec, **config.model_options)
    split = _split(index, spec, config)
    _check_shards(index, spec, split["train"] + split["validation"])
    if _prepare(run, spec, config, split, resume=resume):
        return run
    keras.utils.set_random_seed(config.seed)
    model = _compiled(spec, config)
    history = _restore(model, run)
    paths = {part: [records / index.path_of(subject) for subject in split[part]] for part in ("train", "validation")}
    samples = {part: sum(index.samples_of(subject) for subject in split[part]) for part in paths}
    steps = epoch_steps(samples["train"], config)
    recorder = Recorder(run, config, history, steps=steps, progress=progress, cancel=cancel)
    started = time.monotonic()
    stopped = should_stop(history, config.recipe.patience)  # killed between the last epoch and the end
    model.fit(
        training_batches(paths["train"], spec, config, first_epoch=len(history), steps=steps),
        validation_data=_validation(paths["validation"], spec, config, samples["validation"]),
        initial_epoch=len(history),
        epochs=len(history) if stopped else config.epochs,
        steps_per_epoch=steps,
        shuffle=False,
        callbacks=[recorder, Backup(run / "state", recorder), *tensorboard(run)],
        verbose=0,
    )
    if not recorder.cancelled:
        _finish(run, model, history, seconds=time.monotonic() - started, steps=steps)
    return run


def _check_shards(index: RecordIndex, spec: DataSpec, subjects: list[str]) -> None:
    for subject in subjects:
        entry = index.usable[subject]
        if problem := check_shard(index.folder / entry["file"], entry):
            raise DataError(problem)
        if (count := len(entry["class_voxels"])) != spec.num_classes:
            raise DataError(
                f"{index.folder / 'spec.json'}: names {spec.num_classes} classes, the shards hold {count};"
                " restore it, or build the records anew"
            )


def _split(index: RecordIndex, spec: DataSpec, config: TrainConfig) -> dict[str, list[str]]:
    if config.fold >= spec.folds:
        raise ValueError(
            f"fold {config.fold} does not exist: the records have {spec.folds} folds, 0 to {spec.folds - 1}"
        )
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for subject, fold in index.folds.items():
        part = "test" if fold == TEST else "validation" if fold == config.fold and spec.folds > 1 else "train"
        split[part].append(subject)
    if not any(index.samples_of(subject) for subject in split["train"]):
        raise DataError(f"{index.folder}: no labelled sample is left for training; add subjects or use fewer folds")
    return split


def _prepare(run: Path, spec: DataSpec, config: TrainConfig, split: dict[str, list[str]], *, resume: bool) -> bool:
    """Makes the run folder, or checks that the one there is this run; returns whether it is already complete."""
    wanted = {"spec.json": spec.to_dict(), "train.json": config.to_dict(), "split.json": split}
    if (run / "train.json").exists():
        if not resume:
            raise DataError(f"{run}: holds a run already; add --resume to go on with it, or name another folder")
        for name, content in wanted.items():
            before = read_json(run / name) if (run / name).exists() else content
            for key in content:
                if before.get(key) != content[key]:
                    raise DataError(
                        f"{run / name}: {key} was {before.get(key)!r} when the run began and is {content[key]!r} now; "
                        "resume with the same settings, or name another folder"
                    )
        if (run / "about.json").exists():
            return True
    elif run.exists() and not (run.is_dir() and all(_is_ours(path) for path in run.iterdir())):
        raise DataError(f"{run}: is not empty and holds no run; name another folder")
    for name, content in reversed(wanted.items()):
        write_json(run / name, content)
    return False


def _is_ours(path: Path) -> bool:
    """Whether a fit that was killed before its settings were complete may have left this."""
    return path.name.startswith(TEMPORARY_PREFIX) or path.name in ("split.json", "spec.json")


def _validation(paths: list[Path], spec: DataSpec, config: TrainConfig, num_samples: int) -> tf.data.Dataset | None:
    return validation_batches(paths, spec, config.batch_size, num_samples=num_samples) if paths else None


def _compiled(spec: DataSpec, config: TrainConfig) -> keras.Model:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        model = models.build(config.model, spec.input_shape, spec.num_classes, **config.model_options)
    finally:
        keras.config.set_dtype_policy(before)
    model.compile(
        optimizer=_optimiser(config),
        loss=get_loss(config.recipe.loss, **config.recipe.loss_options),
        metrics=[ForegroundDice(spec.num_classes)],
    )
    return model


def _optimiser(config: TrainConfig) -> keras.optimizers.Optimizer:
    rate = config.learning_rate
    if config.optimiser == "sgd":
        return keras.optimizers.SGD(rate, momentum=SGD_MOMENTUM, nesterov=True, global_clipnorm=GRADIENT_NORM)
    if config.optimiser == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=GRADIENT_NORM)
    return keras.optimizers.Adam(rate, global_clipnorm=GRADIENT_NORM)


def _restore(model: keras.Model, run: Path) -> list[dict[str, float]]:
    """Loads the newest backup into the model and returns the rows of the epochs it contains."""
    backup = newest_backup(run / "state")
    if backup is None:
        return []
    path, epochs = backup
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    history = read_history(run / "history.csv")[:epochs]
    if len(history) != epochs:
        raise DataError(
            f"{run / 'history.csv'}: has {len(history)} rows for {epochs} epochs; remove {run} and fit again"
        )
    return history


def _finish(run: Path, model: keras.Model, history: list[dict[str, float]], *, seconds: float, steps: int) -> None:
    best = best_epoch(history)
    figure = training_curves(curves(history))
    with atomic_path(run / "curves.png") as temporary:
        temporary.write_bytes(figure_png(figure))
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
    write_json(run / "about.json", about)
    shutil.rmtree(run / "state", ignore_errors=True)
