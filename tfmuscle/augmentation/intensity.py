"""Changing intensities; labels are untouched, and no value is clipped to a fixed range.

`axes` are the spatial axes of `image`. Statistics (mean, minimum, ...) are those of each channel, the last axis; a
factor, an exponent or a deviation is one number, or one for each channel.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_SMALLEST_RANGE = 1e-7
"""A channel that spans less than this is constant: it has no contrast to change."""


def add_noise(image: tf.Tensor, *, seed: tf.Tensor, sd: tf.Tensor | float) -> tf.Tensor:
    """Adds Gaussian noise of standard deviation `sd`."""
    return image + tf.random.stateless_normal(tf.shape(image), seed) * tf.cast(sd, image.dtype)


def adjust_brightness(image: tf.Tensor, *, factor: tf.Tensor | float) -> tf.Tensor:
    """Multiplies intensities by `factor`."""
    return image * tf.cast(factor, image.dtype)


def adjust_contrast(image: tf.Tensor, *, factor: tf.Tensor | float) -> tf.Tensor:
    """Moves intensities away from their mean by `factor`, within their own range: `mean + (x - mean) · factor`."""
    axes = _all_but_channels(image)
    mean = tf.reduce_mean(image, axis=axes, keepdims=True)
    low, high = tf.reduce_min(image, axis=axes, keepdims=True), tf.reduce_max(image, axis=axes, keepdims=True)
    return tf.clip_by_value(mean + (image - mean) * tf.cast(factor, image.dtype), low, high)


def adjust_gamma(image: tf.Tensor, *, gamma: tf.Tensor | float, invert: tf.Tensor | bool = False) -> tf.Tensor:
    """Raises intensities, scaled to 0..1, to the power `gamma`, and gives them back their mean and standard deviation.

    Args:
        image: `(..., C)`.
        gamma: above 1 darkens the middle.
        invert: work on the negative image, so that the bright end is stretched (nnU-Net).
    """
    axes = _all_but_channels(image)
    sign = tf.where(invert, -1.0, 1.0)
    signed = image * sign
    low, high = tf.reduce_min(signed, axis=axes, keepdims=True), tf.reduce_max(signed, axis=axes, keepdims=True)
    span = tf.maximum(high - low, _SMALLEST_RANGE)
    powered = tf.pow((signed - low) / span, tf.cast(gamma, image.dtype))
    mean, variance = tf.nn.moments(signed, axes, keepdims=True)
    new_mean, new_variance = tf.nn.moments(powered, axes, keepdims=True)
    ratio = tf.sqrt(variance) / tf.maximum(tf.sqrt(new_variance), _SMALLEST_RANGE)
    return sign * tf.where(high - low < _SMALLEST_RANGE, signed, (powered - new_mean) * ratio + mean)


def gaussian_blur(image: tf.Tensor, *, sigma: tf.Tensor | float, axes: Sequence[int]) -> tf.Tensor:
    """Blurs along `axes` with a Gaussian of `sigma` voxels, one number or one for each of `axes`.

    At the border over the voxels that are there.

    One matrix product per axis with rows `exp(-(i - j)² / 2σ²)` that sum to one; a constant image stays constant.
    """
    sigmas = tf.broadcast_to(tf.cast(sigma, tf.float32), [len(axes)])
    precisions = tf.unstack(-0.5 / tf.maximum(tf.square(sigmas), _SMALLEST_RANGE))
    for axis, precision in zip(axes, precisions, strict=True):
        index = np.arange(image.shape[axis], dtype=np.float32)
        distance = tf.constant((index[:, np.newaxis] - index[np.newaxis, :]) ** 2)
        image = _along(tf.nn.softmax(distance * precision, axis=-1), image, axis)
    return image


def simulate_low_resolution(image: tf.Tensor, *, zoom: tf.Tensor | float, axes: Sequence[int]) -> tf.Tensor:
    """Samples the image at `zoom` times its resolution (nearest voxel) and brings it back linearly.

    Args:
        image: `(..., C)`.
        zoom: at most 1; 1 leaves the image as it is.
        axes: spatial axes that lose resolution.
    """
    for axis in axes:
        size = image.shape[axis]
        coarse_size = tf.maximum(1.0, tf.round(size * tf.cast(zoom, tf.float32)))
        step = size / coarse_size
        position = tf.clip_by_value((tf.range(size, dtype=tf.float32) + 0.5) / step - 0.5, 0.0, coarse_size - 1)
        floor = tf.floor(position)
        fraction = tf.reshape(position - floor, [-1 if other == axis else 1 for other in range(image.shape.rank)])
        below = tf.gather(image, _nearest(floor, step, size), axis=axis)
        above = tf.gather(image, _nearest(tf.minimum(floor + 1, coarse_size - 1), step, size), axis=axis)
        image = below + (above - below) * fraction
    return image


def _nearest(coarse: tf.Tensor, step: tf.Tensor, size: int) -> tf.Tensor:
    """Returns the index of the fine voxel at the centre of each coarse voxel."""
    return tf.clip_by_value(tf.cast(tf.floor((coarse + 0.5) * step), tf.int32), 0, size - 1)


def _along(matrix: tf.Tensor, image: tf.Tensor, axis: int) -> tf.Tensor:
    """Multiplies one axis of `image` by `matrix` `(n, n)`."""
    last = image.shape.rank - 1
    product = tf.tensordot(image, matrix, [[axis], [1]])  # the new axis comes last
    return tf.transpose(product, [*range(axis), last, *range(axis, last)])


def _all_but_channels(image: tf.Tensor) -> list[int]:
    return list(range(image.shape.rank - 1))
