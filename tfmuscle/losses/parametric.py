"""Tversky loss whose two weights are learned with the network (Al Chanti et al. 2021, IFSS-Net).

(α, β) = softmax(θ), θ starting at (0.5, 0.5), which is Dice with linear denominators. The formula is `tversky_loss` of
`overlap.py`; what is special are the weights, and those belong to a layer: it is the last of the network, passes the
probabilities on, and so θ is trained, counted, saved and resumed with all other weights, and a run's file says which α
and β it ended with. A `keras.losses.Loss` was rejected: an optimiser never sees weights of a loss.

∂L/∂θ_α = αβ (TP + s)(FP - FN) / D²: descent lowers the weight of whichever error is larger, the reverse of what the
authors say it does, and can run away. So α and β are held within 0.1 to 0.9, and the mode is a choice: `learned` is
theirs, `ascent` turns the gradient of θ round, `fixed` keeps 0.5. The limit is a constraint on θ after each step
rather than a clipped α alone, whose gradient would vanish: a weight at the limit may come back. Weight decay is not for
θ.
"""

import math
from typing import Any

import keras
from keras import ops

from tfmuscle.losses.overlap import tversky_loss
from tfmuscle.losses.targets import checked, prepare

MODES = ("learned", "fixed", "ascent")
LOWEST = 0.1
"""Of α and β; the highest is 1 less it."""


@keras.saving.register_keras_serializable(package="tfmuscle")
class WithinLimits(keras.constraints.Constraint):
    """Moves θ no farther apart than α = 0.9 and β = 0.1 need, and leaves their mean."""

    def __call__(self, theta: Any) -> Any:
        """Returns the nearest θ within the limits."""
        farthest, middle = math.log((1 - LOWEST) / LOWEST) / 2, ops.mean(theta)
        return middle + ops.clip(theta - middle, -farthest, farthest)


@keras.saving.register_keras_serializable(package="tfmuscle")
class ParametricTversky(keras.layers.Layer):
    """The output of a network, with the weights α of false and β of missed foreground for its loss.

    >>> layer = ParametricTversky()
    >>> p = layer(keras.ops.array([[[[0.25, 0.75], [1.0, 0.0]]]]))  # as they are
    >>> truth = keras.ops.array([[[1, 0]]])
    >>> round(float(layer.loss(truth, p)), 4)  # 1 - (0.75 + 1) / (0.75 + 0.25 / 2 + 1)
    0.0667
    """

    def __init__(self, mode: str = "learned", *, smooth: float = 1.0, **options: Any):
        super().__init__(**{"dtype": "float32"} | options)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose one of {', '.join(MODES)}")
        self.mode, self.smooth = mode, checked("smooth", smooth, positive=True)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes θ."""
        self.theta = self.add_weight(
            name="theta",
            shape=(2,),
            initializer=keras.initializers.Constant(0.5),
            constraint=WithinLimits(),
            trainable=self.mode != "fixed",
        )

    def call(self, probabilities: Any) -> Any:
        """Returns the probabilities as they are."""
        return probabilities

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        return input_shape

    @property
    def weighting(self) -> Any:
        """α and β, each from 0.1 to 0.9."""
        theta = ops.convert_to_tensor(self.theta)
        if self.mode == "ascent":
            theta = 2 * ops.stop_gradient(theta) - theta  # the same value; its slope is -1
        shares = ops.softmax(theta)
        return shares + ops.stop_gradient(ops.clip(shares, LOWEST, 1 - LOWEST) - shares)

    @property
    def alpha(self) -> float:
        """α, the weight of false positives, as a number for logs."""
        return float(self.weighting[0])

    @property
    def beta(self) -> float:
        """β, the weight of false negatives, as a number for logs."""
        return float(self.weighting[1])

    def loss(self, y_true: Any, y_pred: Any) -> Any:
        """Returns 1 - mean over samples and foreground of (TP + s) / (TP + α FP + β FN + s).

        Args:
            y_true: class indices, or one-hot or soft `(B, ..., C)`, zeros or -1 where nobody labelled.
            y_pred: probabilities `(B, ..., C)`, background first.
        """
        g, p, _ = prepare(y_true, y_pred)
        shares = self.weighting
        return tversky_loss(g, p, alpha=shares[0], beta=shares[1], smooth=self.smooth)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return super().get_config() | {"mode": self.mode, "smooth": self.smooth}
