"""Losses that look at one voxel at a time: cross-entropy, weighted cross-entropy, focal."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfmuscle.losses.targets import SMALLEST_PROBABILITY, checked, log_of, prepare, sum_axes

DATASET_WEIGHTS = "dataset"
"""Class weights that training fills in: `inverse_frequencies` of its subjects."""


def inverse_frequencies(voxels: Sequence[int]) -> list[float]:
    """Returns a weight per class, inverse to its number of voxels, with mean 1 over the classes that occur; else 0.

    >>> inverse_frequencies([300, 100, 0])
    [0.5, 1.5, 0.0]
    """
    inverse = [1 / count if count else 0.0 for count in voxels]
    mean = sum(inverse) / max(sum(count > 0 for count in voxels), 1)
    return [value / mean if mean else 0.0 for value in inverse]


def cross_entropy_loss(g, p, labelled):
    """Returns the mean over the labelled voxels of the batch of -Σ_c g log p."""
    return -ops.sum(g * log_of(p)) / ops.maximum(ops.sum(labelled), 1.0)


def weighted_cross_entropy_loss(g, p, *, class_weights: Sequence[float] | str | None):
    """Returns Σ w_c g (-log p) / Σ w_c g over the batch; weights None are 1/Σg, 0 for absent classes.

    Raises:
        ValueError: not one weight per class.
    """
    if isinstance(class_weights, str):
        raise ValueError(f"class weights {class_weights!r} are filled in by training; give a number per class here")
    axes = sum_axes(p, batch=True)
    size, surprise = ops.sum(g, axis=axes), -ops.sum(g * log_of(p), axis=axes)
    if class_weights is None:
        weight = ops.where(size > 0, 1 / ops.maximum(size, SMALLEST_PROBABILITY), 0.0)
    elif len(class_weights) != p.shape[-1]:
        raise ValueError(f"{len(class_weights)} class weights for {p.shape[-1]} classes; give one per class")
    else:
        weight = ops.convert_to_tensor(class_weights, dtype="float32")
    return ops.sum(weight * surprise) / ops.maximum(ops.sum(weight * size), SMALLEST_PROBABILITY)


def focal_loss(g, p, labelled, *, gamma: float, alpha: float):
    """Returns the mean over labelled voxels and classes of -α g (1 - p)^γ log p."""
    # (1 - p)^γ has no finite slope at p = 1 for γ < 1, hence the floor.
    modulation = ops.power(ops.maximum(1 - p, SMALLEST_PROBABILITY), gamma)
    return -alpha * ops.sum(g * modulation * log_of(p)) / (p.shape[-1] * ops.maximum(ops.sum(labelled), 1.0))


@keras.saving.register_keras_serializable(package="tfmuscle")
class CrossEntropy(keras.losses.Loss):
    """Voxelwise cross-entropy."""

    source = "standard; Ni et al. 2019"
    formula = "mean of -Σ_c g log p over the labelled voxels of the batch"

    def __init__(self, *, name="cross_entropy"):
        super().__init__(name=name, dtype="float32")

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        return cross_entropy_loss(*prepare(y_true, y_pred))

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name}


@keras.saving.register_keras_serializable(package="tfmuscle")
class WeightedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with a weight per class; without weights every class present in the batch weighs alike.

    `class_weights="dataset"` has training take `inverse_frequencies` of the voxels of its subjects.
    """

    source = "H-DenseUNet (Li et al. 2018)"
    formula = "Σ w_c g (-log p) / Σ w_c g over the batch; default w_c = 1/Σg, or of the whole dataset"

    def __init__(self, *, class_weights=None, name="weighted_cross_entropy"):
        super().__init__(name=name, dtype="float32")
        if isinstance(class_weights, str) and class_weights != DATASET_WEIGHTS:
            raise ValueError(f"class_weights is {class_weights!r}; give a number per class, or {DATASET_WEIGHTS!r}")
        if class_weights is not None and class_weights != DATASET_WEIGHTS:
            class_weights = [float(checked("class weight", weight)) for weight in class_weights]
        self.options = {"class_weights": class_weights}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, _ = prepare(y_true, y_pred)
        return weighted_cross_entropy_loss(g, p, **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options


@keras.saving.register_keras_serializable(package="tfmuscle")
class Focal(keras.losses.Loss):
    """Categorical focal loss: voxels that are right already count less."""

    source = "Lin et al. 2017, form of segmentation-models (Cheena)"
    formula = "mean of -α g (1 - p)^γ log p over labelled voxels and classes; α 0.25, γ 2"

    def __init__(self, *, gamma=2.0, alpha=0.25, name="focal"):
        super().__init__(name=name, dtype="float32")
        self.options = {"gamma": checked("gamma", gamma), "alpha": checked("alpha", alpha)}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        return focal_loss(*prepare(y_true, y_pred), **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
