"""The gradient of windows of a sweep, and when the optimiser moves (IFSS-Net).

A *chunk* is a number of windows through which a gradient goes back: one, except for mode `tbptt`. What a window learns
from is, slice by slice, the drawn mask where there is one, and else what the window before said: of the slice at the
same position, which is one slice behind (`alignment="window"`, as published), or of the same slice, of which the
newest then teaches nothing (`alignment="slice"`); or drawn slices alone teach (`alignment="drawn"`). No gradient goes
into that.

Between two steps of the optimiser gradients are added up, each divided by the number of windows, so that the step is
that of the mean; memory is that of one chunk. Since nothing flows back through masks that are fed, this is exact.

All structures of the scans that go side by side are samples of one batch. Where a structure has ended the index of its
window is (0 + s) / (α FP + s), and flat once a few voxels are wrong: that it ends is hardly learned. With `pooled` all
samples have one index, their voxels added up, and a wrong voxel costs the same wherever it is. The loss is that of the
network's own `ParametricTversky` output; a network without one learns with both weights 1/2.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import keras
import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec, Propagation
from tfmuscle.inference.propagation import answer
from tfmuscle.losses.overlap import tversky_loss
from tfmuscle.losses.parametric import ParametricTversky
from tfmuscle.losses.targets import prepare

EVEN_WEIGHTS = {"alpha": 0.5, "beta": 0.5, "smooth": 1.0}


@dataclass(frozen=True)
class Chunk:
    """Windows `first` to `first + count - 1` of a sweep, by what their losses are divided, and whether a step follows.

    >>> [(chunk.first, chunk.divisor, chunk.steps) for chunk in chunks_of(5, Propagation())]
    [(0, 3, False), (1, 3, False), (2, 3, True), (3, 2, False), (4, 2, True)]
    """

    first: int
    count: int
    divisor: int
    steps: bool


def chunks_of(windows: int, settings: Propagation) -> list[Chunk]:
    """Returns the chunks of a sweep of so many windows; of an odd number the first half has one more."""
    if settings.mode == "halves":
        half = (windows + 1) // 2
        ends = {half - 1, windows - 1}
        return [Chunk(t, 1, half if t < half else windows - half, t in ends) for t in range(windows)]
    length = settings.through if settings.mode == "tbptt" else 1
    counts = [min(length, windows - first) for first in range(0, windows, length)]
    return [Chunk(number * length, count, count, True) for number, count in enumerate(counts)]


@dataclass(frozen=True, eq=False)
class Windows:
    """What a chunk of k windows is learned from, S structures side by side.

    Attributes:
        images: `(k, S, w, H, W, 1)` float32.
        truth: `(k, S, w, H, W, 1)` float32 masks; counts where drawn.
        drawn: `(k, S, w)` bool, slices with a drawn mask.
        kept: `(k, S, w)` bool, slices whose drawn mask is put in before masks are fed to the next window.
        first_images: `(S, w, H, W, 1)` float32 of the window each structure begins with.
        first_masks: `(S, w, H, W, 1)` float32, the masks it begins with.
    """

    images: np.ndarray
    truth: np.ndarray
    drawn: np.ndarray
    kept: np.ndarray
    first_images: np.ndarray
    first_masks: np.ndarray


class Stepper:
    """Adds up gradients of a network and moves it.

    Args:
        model: takes `image` and `mask`, returns two classes.
        optimiser: built for the model's trainable weights.
        spec: of its windows.
        settings: alignment, feedback and the factor of the squared weights.
    """

    def __init__(
        self, model: keras.Model, optimiser: keras.optimizers.Optimizer, spec: DataSpec, settings: Propagation
    ) -> None:
        self.model, self.optimiser, self.spec, self.settings = model, optimiser, spec, settings
        held = [layer for layer in model.layers if isinstance(layer, ParametricTversky)]
        self.tversky = held[0] if held else None
        theta = [] if self.tversky is None else [id(self.tversky.theta)]
        self._decays = [id(weight) not in theta for weight in model.trainable_variables]
        self.gradients = [tf.Variable(tf.zeros(w.shape), trainable=False) for w in model.trainable_variables]
        self._gradient = functools.cache(self._traced)

    @property
    def weighting(self) -> dict[str, float]:
        """α and β of the loss, for the history."""
        if self.tversky is None:
            return {}
        return {"alpha": self.tversky.alpha, "beta": self.tversky.beta}

    def add(self, windows: Windows, fed: tf.Tensor, divisor: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Adds the gradient of a chunk; returns the sum of its losses, and the masks to feed to the next window.

        Args:
            windows: the chunk.
            fed: `(S, w, H, W, 1)` masks of the window before, or those drawn.
            divisor: what every loss is divided by.
        """
        parts = [tf.constant(getattr(windows, item.name)) for item in fields(windows)]
        return self._gradient(len(windows.images))(*parts, fed, tf.constant(divisor, tf.float32))

    def _traced(self, count: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        """Returns the compiled gradient of chunks of `count` windows."""
        window = (self.spec.depth, *self.spec.size, 1)
        signature = [
            *[tf.TensorSpec((count, None, *window), tf.float32)] * 2,
            tf.TensorSpec((count, None, self.spec.depth), tf.bool),
            tf.TensorSpec((count, None, self.spec.depth), tf.bool),
            *[tf.TensorSpec((None, *window), tf.float32)] * 3,
            tf.TensorSpec((), tf.float32),
        ]

        @tf.function(input_signature=signature, autograph=False)
        def gradient(images, truth, drawn, kept, first_images, first_masks, fed, divisor):
            with tf.GradientTape() as tape:
                total = tf.constant(0.0)
                for number in range(count):
                    masks = truth[number], drawn[number], kept[number]
                    loss, fed = self.window((images[number], fed, first_images, first_masks), *masks)
                    total += loss
                mean = total / divisor
            found = tape.gradient(mean, [weight.value for weight in self.model.trainable_variables])
            for summed, part in zip(self.gradients, found, strict=True):
                if part is not None:
                    summed.assign_add(part)
            return total, fed

        return gradient

    def window(
        self, given: Sequence[tf.Tensor], truth: tf.Tensor, drawn: tf.Tensor, kept: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of one window, the mean over structures, and the masks to feed to the next."""
        said, fed = answer(self.model, given, training=True), given[1]
        target, known = self._target(truth, drawn, fed)
        both = tf.concat([1 - target, target], axis=-1) * known  # zeros teach nothing
        found = said
        if self.settings.pooled:
            both, found = (tf.reshape(part, (1, -1, *part.shape[2:])) for part in (both, said))
        if self.tversky is None:
            g, p, _ = prepare(both, found)
            loss = tversky_loss(g, p, **EVEN_WEIGHTS)
        else:
            loss = self.tversky.loss(both, found)
        result = fed if self.settings.feedback == "expert" else said[..., 1:]
        return loss, tf.where(_wide(kept), truth, result)

    def _target(self, truth: tf.Tensor, drawn: tf.Tensor, fed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the masks to learn, and 1 for the slices of which something is known, else 0."""
        drawn, before = _wide(drawn), tf.stop_gradient(fed)
        if self.settings.alignment == "window":
            return tf.where(drawn, truth, before), tf.ones_like(truth)
        if self.settings.alignment == "drawn":
            return truth, tf.cast(tf.broadcast_to(drawn, tf.shape(truth)), tf.float32)
        before = tf.concat([before[:, 1:], tf.zeros_like(before[:, :1])], axis=1)
        is_newest = np.arange(self.spec.depth).reshape(-1, 1, 1, 1) == self.spec.depth - 1
        known = tf.broadcast_to(drawn | ~tf.constant(is_newest), tf.shape(truth))
        return tf.where(drawn, truth, before), tf.cast(known, tf.float32)

    def step(self) -> None:
        """Moves the network by the gradients added up, and forgets them."""
        self._moved()

    @functools.cached_property
    def _moved(self) -> Callable[[], None]:
        @tf.function(autograph=False)
        def moved() -> None:
            weights = self.model.trainable_variables
            found = [
                summed + (2 * self.settings.l2 * tf.cast(weight.value, tf.float32) if decays else 0.0)
                for summed, weight, decays in zip(self.gradients, weights, self._decays, strict=True)
            ]
            self.optimiser.apply(found, weights)
            for summed in self.gradients:
                summed.assign(tf.zeros_like(summed))

        return moved


def _wide(slices: tf.Tensor) -> tf.Tensor:
    """Gives `(S, w)` the axes of masks."""
    return slices[..., tf.newaxis, tf.newaxis, tf.newaxis]
