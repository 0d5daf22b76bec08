"""Optimisers as the published recipes mean them.

Adam and AdamW are Keras' own. SGD is not: Keras multiplies its momentum buffer by the learning rate of the step that
filled it, and its `weight_decay` is decoupled (it shrinks weights beside the momentum). nnU-Net and H-DenseUNet were
trained with the other form, in which the decay is an L2 term of the gradient and the rate is applied last; under a
falling rate and a momentum of 0.99 the two differ for a hundred steps.
"""

from typing import Any

import keras
from keras import ops

from tfmuscle.config import TrainConfig

GRADIENT_NORM = 12.0
"""Gradients are clipped to this global norm (nnU-Net), before the L2 term is added."""


@keras.saving.register_keras_serializable(package="tfmuscle")
class NesterovSGD(keras.optimizers.SGD):
    """Stochastic gradient descent with Nesterov momentum and an L2 term (Sutskever et al. 2013, PyTorch's form).

    `d = g + λ w`, `v = m v + d`, `w = w - r (d + m v)`, with gradient `g`, L2 term `λ`, momentum `m` and rate `r`.
    Every trained weight decays, biases and normalisations too, as in nnU-Net.
    """

    def __init__(
        self, learning_rate: float = 0.01, *, momentum: float = 0.99, l2: float = 0.0, name: str = "nesterov", **kwargs
    ) -> None:
        super().__init__(learning_rate, momentum=float(momentum), nesterov=True, name=name, **kwargs)
        self.l2 = float(l2)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Moves one variable by one step."""
        step = ops.cast(gradient, variable.dtype) + self.l2 * ops.convert_to_tensor(variable)
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)]
            self.assign(velocity, self.momentum * ops.convert_to_tensor(velocity) + step)
            step = step + self.momentum * ops.convert_to_tensor(velocity)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the optimiser."""
        config = super().get_config() | {"l2": self.l2}
        del config["nesterov"]
        return config


def make_optimiser(config: TrainConfig) -> keras.optimizers.Optimizer:
    """Returns the optimiser of a run, at its initial rate."""
    rate = config.learning_rate
    if config.optimiser == "sgd":
        return NesterovSGD(rate, momentum=config.momentum, l2=config.weight_decay, global_clipnorm=GRADIENT_NORM)
    if config.optimiser == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=GRADIENT_NORM)
    return keras.optimizers.Adam(rate, global_clipnorm=GRADIENT_NORM)
