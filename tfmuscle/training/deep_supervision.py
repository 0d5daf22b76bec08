"""Deep supervision: the coarser levels of a decoder answer too, and learn from the same labels made coarser.

Weights of the outputs are nnU-Net's: 1, 1/2, 1/4, ... from fine to coarse, the coarsest 0; or those an architecture was
published with (DAF3D); divided by their sum. The labels of a coarse cell are those of the voxel at its middle
(`floor((i + 1/2) s)`, which is where a strided convolution looks as well), so that unlabelled voxels stay unlabelled
and no class is invented between two others. All figures (Dice, the kept epoch) are those of the full-resolution output;
the loss is the weighted sum.
"""

import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.inference.runs import MAIN_OUTPUT


def model_options(config: TrainConfig) -> dict:
    """Returns the options a run's architecture is built with."""
    return dict(config.model_options) | ({"deep_supervision": True} if config.recipe.deep_supervision else {})


def output_shapes(model: keras.Model) -> dict[str, tuple[int, ...]]:
    """Returns the spatial shape of every output by name, the finest first; empty for a model with a single tensor."""
    outputs = model.output
    if not isinstance(outputs, Mapping):
        return {}
    shapes = {name: tuple(tensor.shape[1:-1]) for name, tensor in outputs.items()}
    return dict(sorted(shapes.items(), key=lambda item: -math.prod(item[1])))


def output_weights(num_outputs: int) -> list[float]:
    """Returns the share of every output in the loss, the finest first.

    >>> [round(weight, 4) for weight in output_weights(5)]
    [0.5333, 0.2667, 0.1333, 0.0667, 0.0]
    >>> output_weights(1)
    [1.0]
    """
    weights = [0.5**level for level in range(num_outputs)]
    if num_outputs > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def output_shares(model: keras.Model) -> dict[str, float]:
    """Returns the share of every output in the loss by name; empty for a model with a single tensor."""
    outputs = list(output_shapes(model))
    published = models.output_weights(model.name) if model.name in models.available() else {}
    if outputs and published:
        return {name: published[name] / sum(published.values()) for name in outputs}
    return dict(zip(outputs, output_weights(len(outputs)), strict=True)) if outputs else {}


def coarse_labels(labels: tf.Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> tf.Tensor:
    """Returns labels `(B, *after, 1)`, each taken from the voxel of `(B, *before, 1)` at the middle of its cell."""
    for axis, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        if old != new:
            middles = np.floor((np.arange(new) + 0.5) * old / new).astype(np.int32)
            labels = tf.gather(labels, middles, axis=axis)
    return labels


def with_coarse_labels(batches: tf.data.Dataset, model: keras.Model, spec: DataSpec) -> tf.data.Dataset:
    """Gives every output of a model labels of its own size; a model with a single tensor gets the batches as they are.

    Yields:
        `image` and a dict, output name -> labels `(B, *spatial, 1)`.
    """
    shapes = output_shapes(model)
    if not shapes:
        return batches
    return batches.map(
        lambda image, labels: (
            image,
            {name: coarse_labels(labels, spec.label_shape, shape) for name, shape in shapes.items()},
        )
    )


def main_figures(logs: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures of an epoch without those of single outputs; those of the main output lose its name.

    >>> main_figures({"loss": 1.0, "probabilities_1_loss": 2.0, "val_probabilities_dice": 0.5})
    {'loss': 1.0, 'val_dice': 0.5}
    """
    renamed = {key.replace(f"{MAIN_OUTPUT}_dice", "dice"): float(value) for key, value in logs.items()}
    return {key: value for key, value in renamed.items() if not key.removeprefix("val_").startswith(MAIN_OUTPUT)}
