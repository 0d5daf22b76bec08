"""Thickening and thinning labelled structures: a model of how far two annotators' outlines lie apart."""

from collections.abc import Sequence

import tensorflow as tf

from tfmuscle.labels import IGNORE


def dilate_or_erode_labels(
    labels: tf.Tensor, *, dilate: tf.Tensor | bool, axes: Sequence[int] = (0, 1), radius: int = 1
) -> tf.Tensor:
    """Moves the border between structures and background by `radius` voxels; borders between structures stay.

    Dilation gives a background voxel the largest class among its neighbours along `axes`; erosion makes a structure's
    voxel background when one of them is background. `IGNORE` is neither changed nor counted as background, and the edge
    of the window is no border.

    Args:
        labels: class indices.
        dilate: outward if true, else inward.
        axes: spatial axes to move along; in-plane by default, for a slice is often several voxels thick.
        radius: voxels, in steps of one neighbour.
    """
    return tf.cond(
        tf.cast(dilate, tf.bool), lambda: _dilated(labels, axes, radius), lambda: _eroded(labels, axes, radius)
    )


def _dilated(labels: tf.Tensor, axes: Sequence[int], radius: int) -> tf.Tensor:
    for _ in range(radius):
        largest = labels
        for neighbour in _neighbours(labels, axes):
            largest = tf.maximum(largest, neighbour)
        labels = tf.where(labels == 0, largest, labels)
    return labels


def _eroded(labels: tf.Tensor, axes: Sequence[int], radius: int) -> tf.Tensor:
    for _ in range(radius):
        beside = tf.zeros_like(labels, dtype=tf.bool)
        for neighbour in _neighbours(labels, axes):
            beside = tf.logical_or(beside, neighbour == 0)
        labels = tf.where(tf.logical_and(beside, labels != IGNORE), tf.zeros_like(labels), labels)
    return labels


def _neighbours(labels: tf.Tensor, axes: Sequence[int]) -> list[tf.Tensor]:
    """Returns the labels shifted by one voxel both ways along each axis, the edge repeated."""
    shifted = []
    for axis in axes:
        size = labels.shape[axis]
        index = tf.range(size)
        shifted.append(tf.gather(labels, tf.minimum(index + 1, size - 1), axis=axis))
        shifted.append(tf.gather(labels, tf.maximum(index - 1, 0), axis=axis))
    return shifted
