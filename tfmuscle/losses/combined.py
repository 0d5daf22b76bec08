"""Weighted sums of the other losses, as published recipes use them."""

from typing import Any

import keras

from tfmuscle.losses.overlap import dice_loss, tversky_loss
from tfmuscle.losses.shape import boundary_band_loss, small_object_loss
from tfmuscle.losses.targets import checked, prepare
from tfmuscle.losses.voxelwise import cross_entropy_loss, focal_loss


@keras.saving.register_keras_serializable(package="tfmuscle")
class DiceCrossEntropy(keras.losses.Loss):
    """Cross-entropy plus foreground Dice, 1:1; the default of training."""

    source = "nnU-Net (Isensee et al. 2021)"
    formula = "cross_entropy + dice"

    def __init__(self, *, batch_dice=None, name="dice_cross_entropy"):
        super().__init__(name=name, dtype="float32")
        self.options = {"batch_dice": batch_dice}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, labelled = prepare(y_true, y_pred)
        return cross_entropy_loss(g, p, labelled) + dice_loss(g, p, **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options


@keras.saving.register_keras_serializable(package="tfmuscle")
class DiceFocal(keras.losses.Loss):
    """Dice over all classes and the whole batch plus focal loss, 1:1."""

    source = "Cheena, with the formulas of segmentation-models"
    formula = "1 - mean_c (2Σpg + ε) / (Σp + Σg + ε), background too, Σ over the batch; plus focal"

    def __init__(self, *, gamma=2.0, alpha=0.25, name="dice_focal"):
        super().__init__(name=name, dtype="float32")
        self.options = {"gamma": checked("gamma", gamma), "alpha": checked("alpha", alpha)}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, labelled = prepare(y_true, y_pred)
        return dice_loss(g, p, batch_dice=True, background=True) + focal_loss(g, p, labelled, **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options


@keras.saving.register_keras_serializable(package="tfmuscle")
class Composite(keras.losses.Loss):
    """Dice, cross-entropy, boundary band, Tversky and small objects in one weighted sum, for few labelled slices."""

    source = "Mehrabi & Handsfield (the five terms); formulas and weights ours"
    formula = "1.0 dice (per sample, ε 1) + 0.5 cross_entropy + 0.5 boundary_band + 0.5 tversky + 0.1 small_object"

    def __init__(self, *, weights=(1.0, 0.5, 0.5, 0.5, 0.1), name="composite"):
        super().__init__(name=name, dtype="float32")
        if len(weights) != 5:
            raise ValueError(f"{len(weights)} weights; five are needed: {self.formula}")
        self.options = {"weights": [float(checked("weight", weight)) for weight in weights]}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, labelled = prepare(y_true, y_pred)
        terms = (
            dice_loss(g, p, batch_dice=False, smooth=1.0),
            cross_entropy_loss(g, p, labelled),
            boundary_band_loss(g, p, labelled, size=5),
            tversky_loss(g, p, alpha=0.7, beta=0.3, smooth=1.0),
            small_object_loss(g, p, labelled, size=7),
        )
        return sum(weight * term for weight, term in zip(self.options["weights"], terms, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
