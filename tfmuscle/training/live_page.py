"""The page of a run, `report.html`: written again as epochs end, so that a browser left open shows how training goes.

It says how far training is and how long it will take, draws the curves and, where samples have labels, what the
network makes of a few validation samples, and lists epochs and settings. While training runs the page reloads itself.
It is not written more often than every `SECONDS` seconds, so that a short training does not wait for its pictures, and
it never stops a training: what cannot be drawn is left out.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_text
from tfmuscle.inference.runs import MAIN_OUTPUT
from tfmuscle.labels import IGNORE
from tfmuscle.report import Section, figure_png, html_page, overlay, training_curves
from tfmuscle.training.schedule import best_epoch, curves
from tfmuscle.volume import Geometry, Volume

PAGE_FILE = "report.html"
SECONDS = 15.0
"""Least time between two pages, and after which a page reloads itself."""
SEARCHED, SHOWN = 64, 4
"""Validation samples that are looked through, and slices that are shown."""
_APART = 10.0
"""Slices of different samples lie so many times as far apart as pixels: they are no volume."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Validation samples to show.

    Attributes:
        images: `(N, *input_shape)` float32.
        labels: `(N, *label_shape)` class indices, unlabelled voxels `IGNORE`.
        spec: how they were made.
    """

    images: np.ndarray
    labels: np.ndarray
    spec: DataSpec

    def picture(self, model: keras.Model) -> bytes:
        """Returns a PNG of what a network finds (filled) and of the reference (outlined)."""
        answer = model(self.images, training=False)
        answer = answer[MAIN_OUTPUT] if isinstance(answer, Mapping) else answer
        found = np.argmax(keras.ops.convert_to_numpy(answer), axis=-1)
        image, grid = self._shown()
        names = dataclasses.replace(self.spec.label_map, ignore=None)
        unknown = self.labels == IGNORE
        found = np.where(unknown, 0, found)
        reference = np.where(unknown, 0, self.labels)
        volumes = [Volume(names.decode(part).reshape(grid.shape), grid) for part in (found, reference)]
        return figure_png(overlay(Volume(image, grid), *volumes, label_map=names, count=SHOWN, letters=False))

    def _shown(self) -> tuple[np.ndarray, Geometry]:
        """Returns the first channel of the samples as one volume, and its grid."""
        spec, image = self.spec, self.images
        if image.ndim == 4:  # slices or stacks, of which the middle slice is labelled
            image = image[..., spec.depth // 2 * spec.num_channels if spec.kind == "stacks" else 0]
        else:
            image = image[0, ..., 0]
        spacing = list(spec.spacing or (1.0, 1.0, 1.0))
        if self.images.ndim == 4:
            spacing[0] = _APART * max(spacing[1:])
        return image, Geometry(image.shape, np.diag([*spacing, 1.0]))


def examples_of(batches: tf.data.Dataset, spec: DataSpec) -> Examples | None:
    """Chooses the validation samples with the most structures among the first `SEARCHED`; None if all are empty."""
    first = list(batches.unbatch().take(SEARCHED).as_numpy_iterator())
    in_plane = bool(first) and first[0][0].ndim == 3
    samples = [(image, _finest(labels)[..., 0]) for image, labels in first]
    samples = [(image, labels) for image, labels in samples if labels.shape == tuple(spec.label_shape)]
    ranked = sorted(samples, key=lambda sample: _wealth(sample[1]), reverse=True)[: SHOWN if in_plane else 1]
    if not ranked or _wealth(ranked[0][1]) == (0, 0):
        return None
    return Examples(np.stack([image for image, _ in ranked]), np.stack([labels for _, labels in ranked]), spec)


def _finest(labels: Any) -> np.ndarray:
    return labels[MAIN_OUTPUT] if isinstance(labels, Mapping) else labels


def _wealth(labels: np.ndarray) -> tuple[int, int]:
    """Returns the number of structures and of their voxels."""
    seen = labels[(labels > 0) & (labels != IGNORE)]
    return len(np.unique(seen)), seen.size


class LivePage(keras.callbacks.Callback):
    """Writes the page as epochs end.

    Args:
        run: run folder.
        config: the run's settings.
        history: rows of the epochs that are done; grows.
        examples: what to show.
    """

    def __init__(
        self, run: Path, config: TrainConfig, history: Sequence[dict[str, float]], examples: Examples | None
    ) -> None:
        super().__init__()
        self.run, self.config, self.history, self.examples = run, config, history, examples
        self._written = time.monotonic()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        """Writes the page, if the last one is old enough."""
        if time.monotonic() - self._written >= SECONDS and len(self.history) < self.config.epochs:
            write_page(self.run, self.config, self.history, picture=self.picture())
            self._written = time.monotonic()

    def picture(self) -> bytes | None:
        """Returns what the network finds in the examples; None where it cannot be drawn."""
        with contextlib.suppress(ValueError, tf.errors.OpError):
            return None if self.examples is None else self.examples.picture(self.model)
        return None


def write_page(
    run: Path,
    config: TrainConfig,
    history: Sequence[dict[str, float]],
    *,
    picture: bytes | None = None,
    drawn: bytes | None = None,
    finished: bool = False,
) -> None:
    """Writes the page of a run.

    Args:
        run: run folder.
        config: its settings.
        history: rows of the epochs that are done, at least one.
        picture: PNG of the examples.
        drawn: PNG of the curves, drawn anew by default.
        finished: whether training has ended.
    """
    curve = drawn or figure_png(training_curves(curves(history)))
    pictures = {"Curves of training and validation": curve}
    if picture is not None:
        caption = f"Validation samples after epoch {len(history)}: found by the network (filled), reference (outlined)"
        pictures[caption] = picture
    rows = [{key.replace("_", " "): value for key, value in row.items()} for row in reversed(history)]
    settings = [{"setting": key, "value": str(value)} for key, value in _flat(config.to_dict()).items()]
    sections = [
        Section("How it goes", _status(config, history, finished) + _subjects(run), pictures=pictures),
        Section("Epochs, the newest first", table=rows, folded=True),
        Section("Settings", table=settings, folded=True),
    ]
    title = f"tfmuscle: training of {config.model}" + " (reduced)" * (config.scale == "laptop")
    with contextlib.suppress(DataError):  # a disk that takes no page may still take the weights
        write_text(run / PAGE_FILE, html_page(title, sections, refresh=0 if finished else round(SECONDS)))


def _status(config: TrainConfig, history: Sequence[dict[str, float]], finished: bool) -> str:
    r"""Says how far training is, and which epoch is the best.

    >>> history = [{"epoch": 1, "seconds": 30.0, "val_dice": 0.8, "loss": 1.0}]
    >>> _status(TrainConfig(epochs=5), history, False)
    'Epoch 1 of 5 is done; about 2 min are left.\nBest epoch so far: 1, validation Dice 0.800.'
    """
    done, best = len(history), best_epoch(history, config.recipe.selection)
    dice = history[best].get("val_dice", math.nan)
    told = f"{best + 1}" + (f", validation Dice {dice:.3f}" if math.isfinite(dice) else "")
    if finished:
        return f"Training has ended after {done} epochs, {_minutes(history)}.\nKept epoch: {told}."
    left = sum(row["seconds"] for row in history) / done * (config.epochs - done)
    words = f"about {math.ceil(left / 60)} min are left" if left > 1 else "it is nearly done"
    return f"Epoch {done} of {config.epochs} is done; {words}.\nBest epoch so far: {told}."


def _minutes(history: Sequence[dict[str, float]]) -> str:
    return f"{sum(row['seconds'] for row in history) / 60:.1f} min"


def _subjects(run: Path) -> str:
    """Says how many subjects had which part."""
    path = run / "split.json"
    split = read_json(path) if path.exists() else {}
    parts = [f"{len(names)} {part.replace('_', ' ')}" for part, names in split.items() if names]
    return "\nSubjects: " + ", ".join(parts) + "." if parts else ""


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested settings as one level.

    >>> _flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{before}{key.replace('_', ' ')}"
        flat |= _flat(value, f"{name} ") if isinstance(value, Mapping) and value else {name: value}
    return flat
