"""A run folder opened for prediction.

`fit` leaves `spec.json` (how scans become samples), `train.json` (how the network was trained) and `best.keras` (the
weights with the best validation Dice), and at the very end `about.json`. Prediction needs the first three and no
settings of its own. A run that has not ended is allowed, because the best weights so far are often worth a look;
`Run.warning` says so.

The compiled forward pass belongs to the run, so that a folder of scans traces the network once. It has a free batch
axis, so that the last, smaller batch of a scan does not trace it again. `engines` may put a converted network in its
place.

An *ensemble* is several runs whose probabilities are averaged: a tuple of them, given as their folders or as a folder
of cross-validation (`fold_0/run`, `fold_1/run`, ...). They must see one and the same input, so that every setting that
decides what a sample is has to agree; architecture and training may differ.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.inference.engines import Engine

SPEC_FILE = "spec.json"
CONFIG_FILE = "train.json"
WEIGHTS_FILE = "best.keras"
DONE_FILE = "about.json"
RECORDS_FILE = "records.json"
"""Where the records were; `export` takes samples of them to compare on."""
PRETRAINING_FILE = "pretraining.json"
"""What a run folder of `pretrain` holds: its network has no probabilities."""
PROPAGATION_FILE = "propagation.json"
"""What the run folder of a network holds that carries masks from drawn slices (`inference.propagation`)."""
MAIN_OUTPUT = "probabilities"
FOLD_RUNS = "fold_*/run"
"""Where a folder of cross-validation keeps its runs."""
NOT_SHARED = ("name", "patches", "folds", "test", "seed", "preset", "scale")
"""Fields of a `DataSpec` that runs of an ensemble need not share: they decide training, not what a sample is."""


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network with the settings it was trained under.

    Attributes:
        model: network with an input `image` and an output `probabilities`.
        spec: how a scan becomes samples.
        config: how the network was trained.
        path: the run folder, for messages.
        warning: what the user should know before trusting the result; empty when all is well.
        engine: converted network that answers in place of `model`, from `engines.with_engine`.
    """

    model: keras.Model
    spec: DataSpec
    config: TrainConfig
    path: Path
    warning: str = ""
    engine: Engine | None = None

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Maps images `(B, *spec.input_shape)` float32 to probabilities `(B, *label_shape, num_classes)` float32."""
        return self.forward(tf.constant(images)).numpy() if self.engine is None else self.engine(images)

    @functools.cached_property
    def forward(self) -> Any:
        """Maps images `(B, *spec.input_shape)` to probabilities `(B, *label_shape, num_classes)`, compiled once."""
        signature = tf.TensorSpec((None, *self.spec.input_shape), tf.float32)

        @tf.function(input_signature=[signature], autograph=False)
        def forward(images: tf.Tensor) -> tf.Tensor:
            return tf.cast(main_output(self.model, self.model(images, training=False)), tf.float32)

        return forward


def main_output(model: keras.Model, outputs: Any) -> Any:
    """Returns the output called `probabilities`, else the first one (full resolution under deep supervision)."""
    if isinstance(outputs, dict):
        return outputs[MAIN_OUTPUT] if MAIN_OUTPUT in outputs else next(iter(outputs.values()))
    if isinstance(outputs, list | tuple):
        names = list(getattr(model, "output_names", ()))
        return outputs[names.index(MAIN_OUTPUT) if MAIN_OUTPUT in names else 0]
    return outputs


def load_run(run: str | Path) -> Run:
    """Opens the run folder that `fit` wrote.

    Raises:
        DataError: no such folder, not a run, no weights yet, or weights that do not fit the stored settings.
    """
    path = Path(run)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; give the run folder that 'tfmuscle fit -o' wrote")
    missing = [name for name in (SPEC_FILE, CONFIG_FILE) if not (path / name).is_file()]
    if missing:
        raise DataError(
            f"{path}: not a run folder ({', '.join(missing)} missing); give the one 'tfmuscle fit -o' wrote"
        )
    if (path / PRETRAINING_FILE).is_file():
        raise DataError(
            f"{path}: was pre-trained and segments nothing; start from it with 'tfmuscle fit --from {path}'"
        )
    if (path / PROPAGATION_FILE).is_file():
        raise DataError(
            f"{path}: carries masks from drawn slices and labels no scan by itself; use 'tfmuscle propagate -m {path}'"
        )
    spec, config = DataSpec.load(path / SPEC_FILE), TrainConfig.load(path / CONFIG_FILE)
    if not (path / WEIGHTS_FILE).is_file():
        raise DataError(
            f"{path}: {WEIGHTS_FILE} is missing, no epoch has ended yet; continue with 'tfmuscle fit --resume'"
        )
    unfinished = f"{path}: training has not finished; the best weights so far are used, 'tfmuscle fit --resume' goes on"
    warning = "" if (path / DONE_FILE).is_file() else unfinished
    loaded = Run(models.load(path / WEIGHTS_FILE), spec, config, path, warning)
    _check_fit(loaded)
    return loaded


def run_folders(path: str | Path) -> list[Path]:
    """Returns the run folders that a path stands for: itself, or those of a cross-validation.

    Raises:
        DataError: the folder holds the cross-validations of several presets.
    """
    path = Path(path)
    if (path / SPEC_FILE).exists():
        return [path]
    folds = sorted(path.glob(FOLD_RUNS), key=lambda run: (len(run.parent.name), run.parent.name))
    if not folds and (several := sorted({run.parents[1].name for run in path.glob(f"*/{FOLD_RUNS}")})):
        raise DataError(f"{path}: holds cross-validations of {', '.join(several)}; give one of these folders")
    return folds or [path]


def load_ensemble(paths: Sequence[str | Path]) -> tuple[Run, ...]:
    """Opens one or several runs, or folders of cross-validation, as one ensemble.

    Raises:
        DataError: as `load_run`, or two runs that do not see the same input; the setting is named.
    """
    runs = tuple(load_run(folder) for path in paths for folder in run_folders(path))
    first = runs[0].spec.to_dict()
    for run in runs[1:]:
        for key, value in run.spec.to_dict().items():
            if key not in NOT_SHARED and value != first[key]:
                raise DataError(
                    f"{run.path / SPEC_FILE}: {key} is {value}, but {first[key]} in {runs[0].path / SPEC_FILE}; runs of"
                    " an ensemble need records of the same settings"
                )
    return runs


def _check_fit(run: Run) -> None:
    expected = (*run.spec.label_shape, run.spec.num_classes)
    try:
        received = tuple(run.forward.get_concrete_function().output_shapes)[1:]
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{run.path / WEIGHTS_FILE}: does not take samples of shape {run.spec.input_shape} as {SPEC_FILE} says"
            f" ({reason}); train again or restore both files of one run"
        ) from error
    if received != expected:
        raise DataError(
            f"{run.path / WEIGHTS_FILE}: returns {received} where {SPEC_FILE} needs {expected};"
            " train again or restore both files of one run"
        )
