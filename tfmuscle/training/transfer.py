"""A training that starts from the weights of another run.

The user names a run folder; every layer that the new network has under the same name and with the same shapes starts
with that run's weights, the others anew: the stem for another number of channels, the head for other structures. Name
and shape are all that counts, so the other network may be another stage, scale or training method of ours. Where
structures differ the head starts anew even if it has the right shape: its classes mean something else.

Before the first step the other network is tried as it is on the new validation fold (zero-shot): Dice per structure
that both label maps name, the mean over the subjects, on the grid and windows of the records. `transfer.json` keeps
whose weights these were (SHA-256), what was taken and that figure. Records made by other settings (voxel size,
intensities) are allowed, since adapting to them is what the training is for, and the differences are told.

The weights go into the network once, before its first epoch; a resumed run has its own. A run that was interrupted
before its first epoch ended takes them again from the folder that `transfer.json` names.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256, write_json
from tfmuscle.inference.runs import DONE_FILE, PRETRAINING_FILE, SPEC_FILE, WEIGHTS_FILE, Run, load_run
from tfmuscle.labels import IGNORE
from tfmuscle.training.batches import validation_batches
from tfmuscle.training.callbacks import flat_layers
from tfmuscle.training.deep_supervision import model_options

TRANSFER_FILE = "transfer.json"
SHOWN = 6
"""Names that a sentence lists at most; `transfer.json` has all layers."""
_NOT_COMPARED = {"label_map", "name", "overlap", "patches", "folds", "test", "seed", "preset", "scale", "blend"}

Say = Callable[[str], None]


def identify(start: Path) -> dict[str, str]:
    """Returns where the weights of a run are (`from`) and their checksum (`weights`).

    Raises:
        DataError: the folder holds no weights.
    """
    path = Path(start) / WEIGHTS_FILE
    if not path.is_file():
        raise DataError(f"{start}: holds no {WEIGHTS_FILE} to start from; give the run folder that 'tfmuscle fit' made")
    return {"from": str(Path(start).resolve()), "weights": sha256(path)}


def begin(
    model: keras.Model,
    run: Path,
    spec: DataSpec,
    config: TrainConfig,
    *,
    validation: Mapping[str, tuple[Path, int]],
    say: Say,
) -> None:
    """Gives `model` the weights that the run's `transfer.json` names, and completes that file.

    Args:
        model: the new network.
        run: its run folder.
        spec: how its samples were made.
        config: its settings.
        validation: subject -> shard and number of samples, of the validation fold.
        say: called with what the user should know, one sentence each.

    Raises:
        DataError: the other run is gone or has changed, or no layer fits.
    """
    note = read_json(run / TRANSFER_FILE)
    if not all(isinstance(note.get(key), str) for key in ("from", "weights")):
        raise DataError(f"{run / TRANSFER_FILE}: says no longer which run to start from; remove {run} and begin anew")
    start = Path(note["from"])
    if identify(start)["weights"] != note["weights"]:
        raise DataError(
            f"{start / WEIGHTS_FILE}: has changed since {run} began; restore it, or name another run folder"
        )
    if (start / PRETRAINING_FILE).exists():
        _begin_with_encoder(model, start, run, spec, say)
        return
    source = load_run(start)
    if source.warning:
        say(source.warning)
    same_classes = source.spec.label_map.structures == spec.label_map.structures
    taken, new = take_weights(model, source.model, anew=() if same_classes else head_layers(model))
    if not taken:
        raise DataError(
            f"{start / WEIGHTS_FILE}: no layer fits {config.model}; train the same architecture, see --model"
        )
    say(f"{len(taken)} of {len(taken) + len(new)} layers start with the weights of {start}" + _anew(new))
    unlike = differences(source.spec, spec)
    if unlike:
        say(f"{start} was trained on other records: {'; '.join(unlike)}")
    note |= {"layers_taken": taken, "layers_new": new, "differences": unlike, "validation": list(validation)}
    if "zero_shot" not in note:
        note["zero_shot"] = _tried(source, spec, config, validation, say)
    write_json(run / TRANSFER_FILE, note)


def _begin_with_encoder(model: keras.Model, start: Path, run: Path, spec: DataSpec, say: Say) -> None:
    """Gives `model` the encoder that `pretrain` made; nothing of it can be tried as it is."""
    taken, new = take_weights(model, models.load(start / WEIGHTS_FILE))
    if not taken:
        raise DataError(f"{start / WEIGHTS_FILE}: no layer fits {model.name}; train a unet with the same options")
    if not (start / DONE_FILE).exists():
        say(f"{start}: pre-training has not finished; the best weights so far are used")
    say(f"{len(taken)} of {len(taken) + len(new)} layers start with the encoder of {start}" + _anew(new))
    before = dataclasses.replace(DataSpec.load(start / SPEC_FILE), label_map=spec.label_map)
    if unlike := differences(before, spec):
        say(f"{start} was trained on other samples: {'; '.join(unlike)}")
    write_json(run / TRANSFER_FILE, read_json(run / TRANSFER_FILE) | {"layers_taken": taken, "layers_new": new})


def begin_with_layers(model: keras.Model, run: Path) -> str:
    """Gives `model` what fits of the network that the run's `transfer.json` names; returns what the user should know.

    For networks whose two classes are any structure and the rest: what the other's classes meant does not matter.

    Raises:
        DataError: the other run is gone or has changed, or no layer fits.
    """
    note = read_json(run / TRANSFER_FILE)
    start = Path(note.get("from", ""))
    if identify(start)["weights"] != note.get("weights"):
        raise DataError(
            f"{start / WEIGHTS_FILE}: has changed since {run} began; restore it, or name another run folder"
        )
    taken, new = take_weights(model, models.load(start / WEIGHTS_FILE))
    if not taken:
        raise DataError(f"{start / WEIGHTS_FILE}: no layer fits {model.name}; its encoder is that of seg_net_fs")
    write_json(run / TRANSFER_FILE, note | {"layers_taken": taken, "layers_new": new})
    return f"{len(taken)} of {len(taken) + len(new)} layers start with the weights of {start}" + _anew(new)


def take_weights(model: keras.Model, source: keras.Model, *, anew: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Copies the weights of all layers with the same name and shapes, but for those in `anew`.

    A name that stands for several layers of a network (in models within it) is no name.

    Returns:
        Names of the layers that got weights, and of those that kept their own.
    """
    here, there = _by_name(model), _by_name(source)
    taken, new = [], []
    for layer in _weighted(model):
        name = layer.name
        if name not in anew and name in here and name in there and _shapes(layer) == _shapes(there[name]):
            layer.set_weights(there[name].get_weights())
            taken.append(name)
        else:
            new.append(name)
    return taken, new


def _weighted(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in flat_layers(model) if layer.weights]


def _by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers with weights whose name stands for no other."""
    layers = _weighted(model)
    names = [layer.name for layer in layers]
    return {layer.name: layer for layer in layers if names.count(layer.name) == 1}


def _shapes(layer: keras.layers.Layer) -> list[tuple[str, tuple[int, ...]]]:
    return [(weight.name, tuple(weight.shape)) for weight in layer.weights]


def head_layers(model: keras.Model) -> set[str]:
    """Returns the names of the last layers with weights before the outputs, whose channels stand for the classes."""
    found, waiting = set(), list(model.outputs)
    while waiting:
        operation, node, _ = waiting.pop()._keras_history
        if getattr(operation, "weights", None):
            found.add(operation.name)
        else:
            waiting += operation._inbound_nodes[node].input_tensors
    return found


def differences(old: DataSpec, new: DataSpec) -> list[str]:
    """Returns in words how two families of records differ in what a network sees.

    >>> from tfmuscle.labels import LabelMap
    >>> bone = DataSpec(LabelMap({1: "femur"}))
    >>> differences(bone, dataclasses.replace(bone, spacing=(3.0, 1.0, 1.0)))
    ['spacing is None there and (3.0, 1.0, 1.0) here']
    """
    found = []
    if old.label_map.structures != new.label_map.structures:
        found.append(f"structures are {_listed(old.label_map.structures)} there")
    for item in dataclasses.fields(DataSpec):
        before, now = getattr(old, item.name), getattr(new, item.name)
        if item.name not in _NOT_COMPARED and before != now:
            found.append(f"{item.name} is {before!r} there and {now!r} here")
    return found


def zero_shot(
    source: Run, spec: DataSpec, validation: Mapping[str, tuple[Path, int]], *, batch_size: int
) -> dict[str, float]:
    """Returns the Dice of another run's network on samples of `spec`, for every structure that both name.

    Dice is `2 TP / (2 TP + FP + FN)` over the labelled voxels of a subject's samples, then the mean over the subjects
    in whose labels or predictions the structure occurs; NaN where it occurs in none. What the network finds and `spec`
    does not name counts as background.

    Raises:
        ValueError: the network cannot take these samples.
    """
    forward = _on_samples_of(source, spec).forward
    here = {name: index for index, name in enumerate(spec.label_map.structures, start=1)}
    shared = [name for name in source.spec.label_map.structures if name in here]
    class_of = tf.constant([0, *(here.get(name, 0) for name in source.spec.label_map.structures)], tf.int32)
    scores: dict[str, list[float]] = {name: [] for name in shared}
    for path, num_samples in validation.values():
        overlap, total = np.zeros(spec.num_classes), np.zeros(spec.num_classes)
        for image, labels in validation_batches([path], spec, batch_size, num_samples=num_samples):
            found = tf.gather(class_of, tf.argmax(forward(image), axis=-1)).numpy()
            truth = labels.numpy()[..., 0]
            truth, found = truth[truth != IGNORE], found[truth != IGNORE]
            overlap += np.bincount(truth[truth == found], minlength=spec.num_classes)
            total += np.bincount(np.concatenate([truth, found]), minlength=spec.num_classes)
        for name in shared:
            if total[here[name]]:
                scores[name].append(2 * overlap[here[name]] / total[here[name]])
    return {name: float(np.mean(values)) if values else math.nan for name, values in scores.items()}


def _on_samples_of(source: Run, spec: DataSpec) -> Run:
    """Returns the run with its network for samples of `spec`'s size."""
    if source.spec.input_shape == spec.input_shape:
        return source
    config = source.config
    model = models.build(config.model, spec.input_shape, source.spec.num_classes, **model_options(config))
    _, new = take_weights(model, source.model)
    if new:
        raise ValueError(f"its {new[0]} does not take samples of shape {spec.input_shape}")
    return dataclasses.replace(source, model=model, spec=spec)


def _tried(
    source: Run, spec: DataSpec, config: TrainConfig, validation: Mapping[str, tuple[Path, int]], say: Say
) -> dict[str, float]:
    """Returns the zero-shot figure and tells it, or tells why there is none."""
    if not validation:
        say("there is no zero-shot figure: no fold is left for validation")
        return {}
    try:
        found = zero_shot(source, spec, validation, batch_size=config.batch_size)
    except ValueError as error:
        say(f"there is no zero-shot figure: {error}")
        return {}
    if not found:
        say(f"there is no zero-shot figure: {source.path} names none of these structures")
        return {}
    shown = ", ".join(f"{name} {'not there' if math.isnan(dice) else f'{dice:.2f}'}" for name, dice in found.items())
    say(
        f"Dice of {source.path} as it is, on the {len(validation)} validation subject(s): {shown}"
        + _seen(source, spec, validation)
    )
    return found


def _seen(source: Run, spec: DataSpec, validation: Mapping[str, Any]) -> str:
    """Says which validation subjects the other network was trained on, as far as names can tell."""
    path = source.path / "split.json"
    same = (source.spec.name, source.spec.channels) == (spec.name, spec.channels)
    known = read_json(path).get("train", []) if path.exists() and same else []
    seen = [subject for subject in validation if subject in known]
    return f"; it was trained on {len(seen)} of them, so expect less of scans it never saw" if seen else ""


def _anew(new: Sequence[str]) -> str:
    return f", anew: {_listed(new)}" if new else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
