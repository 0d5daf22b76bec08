"""What happens at the end of an epoch: the history is written, the best model kept, the state backed up.

Keras' `BackupAndRestore` writes weights and epoch number as two files in place; a kill between them repeats an epoch on
later weights, a kill within them leaves a broken file. `Backup` writes one file, `epoch-0007.weights.h5`, under a
temporary name and renames it: whatever moment the process dies, the newest file that is there is whole.
"""

import csv
import importlib.util
import io
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import keras

from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, atomic_path, write_text
from tfmuscle.labels import IGNORE
from tfmuscle.losses import get_loss
from tfmuscle.losses.combined import Composite
from tfmuscle.training.deep_supervision import main_figures
from tfmuscle.training.schedule import best_epoch, learning_rate, should_stop

BACKUP_PATTERN = re.compile(r"epoch-(\d+)\.weights\.h5")


@keras.saving.register_keras_serializable(package="tfmuscle")
class ForegroundDice(keras.metrics.Metric):
    """Mean Dice of the foreground classes, pooled over all samples of the epoch, of the arg-max labels.

    Dice of a class is `2 TP / (2 TP + FP + FN)` over every labelled voxel seen; a class absent from reference and
    prediction does not count. It steers training; the figures of a report come from `metrics.py`, per scan.
    """

    def __init__(self, num_classes: int, name: str = "dice", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.overlap = self.add_weight(name="overlap", shape=(num_classes,), initializer="zeros")
        self.total = self.add_weight(name="total", shape=(num_classes,), initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch: class indices `(B, ..., 1)` and probabilities `(B, ..., C)`."""
        truth = keras.ops.reshape(keras.ops.cast(y_true, "int32"), (-1,))
        found = keras.ops.cast(keras.ops.reshape(keras.ops.argmax(y_pred, axis=-1), (-1,)), "int32")
        labelled = truth != IGNORE
        truth_hot = keras.ops.one_hot(keras.ops.where(labelled, truth, -1), self.num_classes)
        found_hot = keras.ops.one_hot(keras.ops.where(labelled, found, -1), self.num_classes)
        self.overlap.assign_add(keras.ops.sum(truth_hot * found_hot, axis=0))
        self.total.assign_add(keras.ops.sum(truth_hot + found_hot, axis=0))

    def result(self):
        """Returns the mean over the foreground classes that occurred; NaN when none did."""
        overlap, total = self.overlap[1:], self.total[1:]
        present = keras.ops.cast(total > 0, "float32")
        dice = 2 * overlap / keras.ops.maximum(total, 1.0)
        return keras.ops.sum(dice * present) / keras.ops.sum(present)

    def get_config(self) -> dict:
        """Returns what rebuilds the metric."""
        return super().get_config() | {"num_classes": self.num_classes}


class Recorder(keras.callbacks.Callback):
    """Writes `history.csv` and `best.keras`, sets the learning rate, stops early, reports progress.

    Args:
        run: run folder.
        config: the run's settings.
        history: rows of the epochs already done; grows by one row an epoch.
        steps: batches per epoch, for the progress.
        progress: called with (batches done, batches in all, note); what it raises ends the run at once, resumable from
            the last whole epoch.
    """

    def __init__(
        self,
        run: Path,
        config: TrainConfig,
        history: list[dict[str, float]],
        *,
        steps: int,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        super().__init__()
        self.run, self.config, self.history, self.steps = run, config, history, steps
        self.progress = progress
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Sets the learning rate that follows from the history."""
        self.model.optimizer.learning_rate = learning_rate(self.config, self.history)
        self._started = time.monotonic()
        # Dropout must not depend on how often it was drawn before, or a resumed run would differ.
        layers = flat_layers(self.model)
        for number, layer in enumerate(layers):
            if isinstance(layer, keras.layers.Dropout) and layer.rate > 0:  # one that drops nothing draws nothing
                layer.seed_generator.state.assign([self.config.seed, epoch * len(layers) + number])

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        """Reports progress, and ends a run that diverged."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise DataError(
                f"{self.run}: the loss became {loss} in epoch {len(self.history) + 1}; train anew with a lower"
                " --learning-rate, or in float32"
            )
        if self.progress is not None:
            done = len(self.history) * self.steps + batch + 1
            self.progress(done, self.config.epochs * self.steps, f"epoch {len(self.history) + 1} loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Adds a row to the history and keeps the model if it is the best so far."""
        recipe = self.config.recipe
        row = {"epoch": epoch + 1, "seconds": round(time.monotonic() - self._started, 2)} | main_figures(logs or {})
        row["learning_rate"] = float(learning_rate(self.config, self.history))
        self.history.append(row)
        if best_epoch(self.history, recipe.selection) == len(self.history) - 1:
            with atomic_path(self.run / "best.keras") as temporary:
                self.model.save(temporary)
        write_history(self.run / "history.csv", self.history)
        if should_stop(self.history, recipe.patience, recipe.patience_of):
            self.model.stop_training = True


class Backup(keras.callbacks.Callback):
    """Saves weights and optimiser state after every epoch, as one file that is whole or not there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Writes `epoch-NNNN.weights.h5`, NNNN epochs being done, and removes older ones."""
        newest = self.folder / f"epoch-{epoch + 1:04d}.weights.h5"
        with atomic_path(newest) as temporary:
            self.model.save_weights(temporary)
        for old in self.folder.iterdir():
            if old != newest and (BACKUP_PATTERN.fullmatch(old.name) or old.name.startswith(TEMPORARY_PREFIX)):
                old.unlink()


class RampLoss(keras.callbacks.Callback):
    """Gives a loss whose weights follow the epoch those of this epoch; they depend on its number alone."""

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Sets the weights; training and validation of an epoch have the same."""
        for loss in keras.tree.flatten(self.model.loss):  # one for each output
            loss = getattr(loss, "inner", loss)  # of several devices
            if isinstance(loss, Composite):
                loss.at_epoch(epoch)


def check_comparable(config: TrainConfig, *, num_folds: int) -> None:
    """Refuses a training that would compare the losses of epochs although their weights differ.

    Raises:
        ValueError: naming the settings that look at the loss.
    """
    loss = get_loss(config.recipe.loss, **config.recipe.loss_options)
    if not (isinstance(loss, Composite) and loss.is_ramped):
        return
    recipe, cure = config.recipe, []
    if recipe.selection == "loss":
        cure.append("selection dice")
    if recipe.patience and recipe.patience_of == "loss":
        cure.append("patience_of dice")
    if config.schedule == "plateau":
        cure.append("a schedule other than plateau")
    if num_folds == 1:
        cure.append("records with two folds or more, for without validation the loss alone tells epochs apart")
    if cure:
        raise ValueError(
            "boundary is 'kervadec', whose weights change from epoch to epoch, so that losses do not compare; choose "
            + ", ".join(cure)
        )


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model, those of models inside it in their place."""
    inner = [flat_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for layers in inner for layer in layers]


def newest_backup(folder: Path) -> tuple[Path, int] | None:
    """Returns the newest backup and the number of epochs that were done, or None."""
    found = [(int(m.group(1)), path) for path in folder.glob("*") if (m := BACKUP_PATTERN.fullmatch(path.name))]
    if not found:
        return None
    epochs, path = max(found)
    return path, epochs


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes the history as CSV, one row an epoch, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    """Reads `history.csv`; a missing file is an empty history, a damaged one a `DataError`."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        return [row | {"epoch": int(row["epoch"])} for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is no training history ({error}); restore it or train anew") from error


def tensorboard(run: Path) -> list[keras.callbacks.Callback]:
    """Returns the TensorBoard callback when TensorBoard is installed, else nothing."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    return [keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False)]
