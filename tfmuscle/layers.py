"""Layers that Keras does not have; registered, so that model files load in safe mode once this is imported."""

from typing import Any

import keras
from keras import layers, ops


@keras.saving.register_keras_serializable(package="tfmuscle")
class Coordinates(layers.Layer):
    """Appends where each voxel lies: one channel per axis, from -1 to 1 between the outer faces of the grid.

    For networks that always see the same part of the body, such as those that find groups of muscles in a region of the
    leg: convolutions alone learn late where they are, and which leg they see. Liu et al. 2018, "CoordConv".

    >>> Coordinates()(keras.ops.zeros((1, 2, 4, 1)))[0, 0, :, 1:].shape
    TensorShape([4, 2])
    """

    def call(self, x: Any) -> Any:
        """Returns `(B, ..., C + axes)` from `(B, ..., C)`."""
        everywhere, shape, axes = ops.ones_like(x[..., :1]), ops.shape(x), len(x.shape) - 2
        found = [x]
        for axis in range(axes):
            count = shape[axis + 1]
            place = (2 * ops.cast(ops.arange(count), x.dtype) + 1) / ops.cast(count, x.dtype) - 1
            found.append(everywhere * ops.reshape(place, [1, *(-1 if a == axis else 1 for a in range(axes)), 1]))
        return ops.concatenate(found, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the result."""
        return (*input_shape[:-1], (input_shape[-1] or 0) + len(input_shape) - 2)
