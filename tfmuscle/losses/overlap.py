"""Losses of overlap: Dice, generalised Dice, Tversky."""

from typing import Any

import keras
from keras import ops

from tfmuscle.losses.targets import SMALLEST_PROBABILITY, checked, prepare, sum_axes


def dice_loss(
    g, p, *, batch_dice: bool | None = None, background: bool = False, squared: bool = False, smooth: float = 1e-5
):
    """Returns 1 - mean over classes of (2 Σpg + ε) / (Σp + Σg + ε), or with Σp² and Σg² in the denominator.

    Args:
        g: truth.
        p: probabilities.
        batch_dice: sum over the batch too; None does so for 2D images, as nnU-Net.
        background: count background as a class.
        squared: square in the denominator, as V-Net; the same for probabilities of 0 and 1.
        smooth: ε.
    """
    pooled = len(p.shape) == 4 if batch_dice is None else batch_dice
    axes = sum_axes(p, batch=pooled)
    g, p = (g, p) if background else (g[..., 1:], p[..., 1:])
    overlap = ops.sum(p * g, axis=axes)
    if squared:
        g, p = ops.square(g), ops.square(p)
    total = ops.sum(p, axis=axes) + ops.sum(g, axis=axes)
    return 1 - ops.mean((2 * overlap + smooth) / (total + smooth))


def tversky_loss(g, p, *, alpha: float, beta: float, smooth: float):
    """Returns 1 - mean over samples and foreground of (TP + s) / (TP + α FP + β FN + s)."""
    axes = sum_axes(p, batch=False)
    g, p = g[..., 1:], p[..., 1:]
    overlap = ops.sum(p * g, axis=axes)
    # Unlabelled voxels have p = g = 0, so FP = Σp - TP counts labelled voxels only.
    false_positive, false_negative = ops.sum(p, axis=axes) - overlap, ops.sum(g, axis=axes) - overlap
    return 1 - ops.mean((overlap + smooth) / (overlap + alpha * false_positive + beta * false_negative + smooth))


def generalised_dice_loss(g, p):
    """Returns the mean over samples of 1 - 2 Σ_c w_c Σpg / Σ_c w_c Σ(p + g), w_c = 1/(Σg)², 0 for absent classes."""
    axes = sum_axes(p, batch=False)
    size = ops.sum(g, axis=axes)
    # The ratio does not change when all weights are scaled; relative to the rarest class they cannot underflow.
    rarest = ops.min(ops.where(size > 0, size, float("inf")), axis=-1, keepdims=True)
    weight = ops.where(size > 0, ops.square(rarest / ops.maximum(size, SMALLEST_PROBABILITY)), 0.0)
    overlap = ops.sum(weight * ops.sum(p * g, axis=axes), axis=-1)
    total = ops.sum(weight * (ops.sum(p, axis=axes) + size), axis=-1)
    return ops.mean((total - 2 * overlap) / ops.maximum(total, SMALLEST_PROBABILITY))


@keras.saving.register_keras_serializable(package="tfmuscle")
class Dice(keras.losses.Loss):
    """Soft Dice of the foreground classes; options as `dice_loss`."""

    source = "nnU-Net (Isensee et al. 2021)"
    formula = "1 - mean_c (2Σpg + ε) / (Σp + Σg + ε), c foreground, Σ per sample in 3D and over the batch in 2D"

    def __init__(self, *, batch_dice=None, background=False, squared=False, smooth=1e-5, name="dice"):
        super().__init__(name=name, dtype="float32")
        self.options = {
            "batch_dice": batch_dice,
            "background": background,
            "squared": squared,
            "smooth": checked("smooth", smooth, positive=True),
        }

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, _ = prepare(y_true, y_pred)
        return dice_loss(g, p, **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options


@keras.saving.register_keras_serializable(package="tfmuscle")
class GeneralisedDice(keras.losses.Loss):
    """Generalised Dice over all classes: every class weighs alike, however few voxels it has."""

    source = "Sudre et al. 2017"
    formula = "1 - 2 Σ_c w_c Σpg / Σ_c w_c Σ(p + g), w_c = 1/(Σg)², 0 for absent classes, mean over samples"

    def __init__(self, *, name="generalised_dice"):
        super().__init__(name=name, dtype="float32")

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, _ = prepare(y_true, y_pred)
        return generalised_dice_loss(g, p)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name}


@keras.saving.register_keras_serializable(package="tfmuscle")
class Tversky(keras.losses.Loss):
    """Tversky loss: `alpha` weighs false positives, `beta` false negatives; the default hunts false positives."""

    source = "Salehi et al. 2017; weights of Mehrabi & Handsfield (they hunt false positives, Salehi misses)"
    formula = "1 - mean (TP + s) / (TP + α FP + β FN + s) over samples and foreground; α 0.7, β 0.3, s 1"

    def __init__(self, *, alpha=0.7, beta=0.3, smooth=1.0, name="tversky"):
        super().__init__(name=name, dtype="float32")
        self.options = {"alpha": checked("alpha", alpha), "beta": checked("beta", beta)}
        self.options["smooth"] = checked("smooth", smooth, positive=True)

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, _ = prepare(y_true, y_pred)
        return tversky_loss(g, p, **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
