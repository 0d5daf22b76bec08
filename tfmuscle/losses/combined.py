"""Weighted sums of the other losses, as published recipes use them."""

from typing import Any

import keras

from tfmuscle.losses.distance import kervadec_loss
from tfmuscle.losses.overlap import dice_loss, tversky_loss
from tfmuscle.losses.shape import boundary_band_loss, small_object_loss
from tfmuscle.losses.targets import checked, prepare
from tfmuscle.losses.voxelwise import cross_entropy_loss, focal_loss

WEIGHTS = {"band": (1.0, 0.5, 0.5, 0.5, 0.1), "kervadec": (1.0, 0.5, 1.0, 0.5, 0.1)}
"""Weights of the terms of `Composite`, by its boundary term; those of `kervadec` are multiplied by the `ramp`."""
RAMP_STEP, RAMP_FLOOR = 0.01, 0.1


def ramp(epoch: int) -> tuple[float, float]:
    """Returns what multiplies the regional terms and the boundary loss of Kervadec in an epoch, counted from 0.

    `max(0.1, 1 - 0.01 e)` and `0.01 (e + 1)`, as in the scripts of the authors (LIVIAETS/boundary-loss, scheduler.py).

    >>> [tuple(round(factor, 2) for factor in ramp(epoch)) for epoch in (0, 50, 200)]
    [(1.0, 0.01), (0.5, 0.51), (0.1, 2.01)]
    """
    return max(RAMP_FLOOR, 1 - RAMP_STEP * epoch), RAMP_STEP * (epoch + 1)


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
    """Dice, cross-entropy, boundary band, Tversky and small objects in one weighted sum, for few labelled slices.

    `boundary="kervadec"` takes the boundary loss on distances instead of the band. The weights then follow the epoch:
    training calls `at_epoch`; until then, and in a model that is loaded, they are those of the first epoch.
    """

    source = "Mehrabi & Handsfield (the five terms); formulas and weights ours"
    formula = (
        "1.0 dice (per sample, ε 1) + 0.5 cross_entropy + 0.5 boundary_band + 0.5 tversky + 0.1 small_object; with"
        " boundary kervadec 0.01 (e + 1) kervadec, e the epoch from 0, and max(0.1, 1 - 0.01 e) times the other four"
    )

    def __init__(self, *, weights=None, boundary="band", name="composite"):
        super().__init__(name=name, dtype="float32")
        if boundary not in WEIGHTS:
            raise ValueError(f"boundary is {boundary!r}; choose one of {', '.join(WEIGHTS)}")
        weights = WEIGHTS[boundary] if weights is None else weights
        if len(weights) != 5:
            raise ValueError(f"{len(weights)} weights; five are needed: {self.formula}")
        self.options = {"weights": [float(checked("weight", weight)) for weight in weights], "boundary": boundary}
        self._ramp = None
        if self.is_ramped:  # a number of Python would be frozen into the compiled training step
            self._ramp = keras.Variable(ramp(0), dtype="float32", trainable=False, autocast=False)

    @property
    def is_ramped(self) -> bool:
        """Whether the weights follow the epoch, so that losses of two epochs do not compare."""
        return self.options["boundary"] == "kervadec"

    def at_epoch(self, epoch: int) -> None:
        """Sets the weights of an epoch, counted from 0; without a ramp nothing changes.

        TensorFlow's compiled training step follows; one that JAX compiled before keeps the weights it was traced with.
        """
        if self._ramp is not None:
            self._ramp.assign(ramp(epoch))

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        g, p, labelled = prepare(y_true, y_pred)
        weights = self.options["weights"]
        if self._ramp is None:
            boundary = boundary_band_loss(g, p, labelled, size=5)
        else:
            boundary = kervadec_loss(g, p, labelled)
            regional, rising = self._ramp[0], self._ramp[1]
            dice, entropy, bound, tversky, small = weights
            weights = [dice * regional, entropy * regional, bound * rising, tversky * regional, small * regional]
        terms = (
            dice_loss(g, p, batch_dice=False, smooth=1.0),
            cross_entropy_loss(g, p, labelled),
            boundary,
            tversky_loss(g, p, alpha=0.7, beta=0.3, smooth=1.0),
            small_object_loss(g, p, labelled, size=7),
        )
        return sum(weight * term for weight, term in zip(weights, terms, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
