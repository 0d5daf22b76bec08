"""Scaling of intensities as TensorFlow operations: what `preprocessing.intensities.normalise` does to a whole scan.

Sums are taken in float64, slice by slice, so that no second copy of the scan is needed. `zscore_masked` has holes
of the body filled, which TensorFlow has no operation for; `segment.why_not` refuses it.
"""

from collections.abc import Callable

import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.preprocessing.intensities import PERCENTILES


def normalise(volume: tf.Tensor, spec: DataSpec) -> tf.Tensor:
    """Scales each channel of `(D, H, W, C)` float32 as the spec says."""
    channels = []
    for number in range(len(spec.channels)):
        channel = volume[..., number]
        match spec.normalisation:
            case "none":
                scaled = channel
            case "div255":
                scaled = channel / 255.0
            case "minmax":
                low, high = tf.reduce_min(channel), tf.reduce_max(channel)
                scaled = _shift_and_scale(channel, low, high - low)
            case "ct":
                mean, sd, low, high = (spec.statistics or ())[number]
                scaled = _shift_and_scale(tf.clip_by_value(channel, low, high), tf.constant(mean), tf.constant(sd))
            case _:
                scaled = _standardised(channel, spec.normalisation)
        channels.append(scaled)
    return tf.stack(channels, axis=-1)


def _standardised(channel: tf.Tensor, method: str) -> tf.Tensor:
    counted = tf.ones_like(channel, tf.bool) if method == "zscore_all" else channel != 0
    if method == "percentile":
        low, high = _percentiles(tf.boolean_mask(channel, counted))
        channel = tf.clip_by_value(channel, low, high)
    count = tf.maximum(_sum(lambda _, keep: tf.cast(keep, tf.float64), channel, counted), 1)
    mean = _sum(lambda values, keep: tf.where(keep, values, 0), channel, counted) / count
    square = _sum(lambda values, keep: tf.where(keep, (values - mean) ** 2, 0), channel, counted) / count
    scaled = _shift_and_scale(channel, tf.cast(mean, tf.float32), tf.cast(tf.sqrt(square), tf.float32))
    return tf.cond(tf.reduce_any(counted), lambda: scaled, lambda: channel)


def _sum(what: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], channel: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """Adds up over the slices in float64."""

    def one(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(what(tf.cast(pair[0], tf.float64), pair[1]))

    return tf.reduce_sum(tf.map_fn(one, (channel, counted), fn_output_signature=tf.float64))


def _percentiles(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the lower and upper percentile, linear between neighbours as NumPy's."""
    count = tf.size(values)

    def found() -> tuple[tf.Tensor, tf.Tensor]:
        place = (100 - PERCENTILES[1]) / 100 * tf.cast(count - 1, tf.float64)  # from either end, as they are symmetric
        lower = tf.cast(tf.floor(place), tf.int32)
        share = tf.cast(place - tf.floor(place), tf.float32)
        num = tf.minimum(lower + 2, count)
        highest, lowest = tf.math.top_k(values, num).values, -tf.math.top_k(-values, num).values
        low, high = (some[lower] + share * (some[num - 1] - some[lower]) for some in (lowest, highest))
        return low, high

    return tf.cond(count > 0, found, lambda: (tf.constant(0.0), tf.constant(0.0)))


def _shift_and_scale(channel: tf.Tensor, centre: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    return tf.where(width > 0, (channel - centre) / tf.where(width > 0, width, 1.0), 0.0)
