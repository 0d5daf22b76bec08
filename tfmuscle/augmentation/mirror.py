"""Mirroring samples: which axes may be, and what becomes of left and right.

A mirror along the left/right axis exchanges partners among the labels. A sided structure without partner, or sides
without a known orientation, rule mirrors out along every axis: a left leg in any mirror is a right leg.
"""

from collections.abc import Sequence

import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE


def sample_axes(spec: DataSpec) -> tuple[int, ...]:
    """Returns the axes of the preprocessed volume that a sample moves along: in-plane, for volumes all three."""
    return (0, 1, 2) if spec.kind == "volumes" else (1, 2)


def mirrored_axes(spec: DataSpec) -> tuple[int, ...]:
    """Returns the axes of the preprocessed volume along which samples may be mirrored without left becoming right.

    In-plane for slices, stacks and sequences, all three for volumes. None at all when a sided structure lacks its
    partner: a left leg mirrored along any axis is a right leg, seen from elsewhere. None either when structures have
    sides but no axis is known to be left/right.
    """
    if spec.label_map.flip_permutation() is None or (spec.orientation is None and is_sided(spec)):
        return ()
    return sample_axes(spec)


def mirror_axes(
    image: tf.Tensor,
    labels: tf.Tensor,
    *,
    flips: Sequence[tf.Tensor | bool],
    spec: DataSpec,
    axes: Sequence[int] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors a sample and, for the left/right axis, exchanges the partners among its labels; `IGNORE` stays.

    Args:
        image: `spec.input_shape`.
        labels: `spec.label_shape`, class indices; a sided one without partner keeps its name.
        flips: whether to mirror, for each of `axes`.
        spec: kind, orientation and label map.
        axes: axes of the preprocessed volume; by default `mirrored_axes(spec)`.
    """
    for axis, flip in zip(mirrored_axes(spec) if axes is None else axes, flips, strict=True):
        here = axis if spec.is_volumetric else axis - 1
        sides = axis == side_axis(spec) and is_sided(spec)
        mirrored = _mirror(
            image, labels, here, _partners(spec) if sides else None, channel_order(spec) if sides else None
        )
        image, labels = tf.cond(tf.cast(flip, tf.bool), mirrored, lambda pair=(image, labels): pair)
    return image, labels


def channel_order(spec: DataSpec) -> tuple[int, ...] | None:
    """Returns where each channel of a sample comes from when left and right change places; None when nowhere else.

    Only the channels of a prior do: each is one structure, and a mirrored left one is a right one.
    """
    if not spec.prior:
        return None
    first = len(spec.channels)
    voxel = [*range(first), *(first + partner - 1 for partner in _partners(spec)[1:])]
    slices = spec.depth if spec.kind == "stacks" else 1
    return tuple(n * len(voxel) + channel for n in range(slices) for channel in voxel)


def _partners(spec: DataSpec) -> tuple[int, ...]:
    """Returns the class of each class's partner, its own where it has none."""
    names = list(spec.label_map.names.values())
    return tuple(names.index(spec.label_map.partner(name) or name) for name in names)


def _mirror(
    image: tf.Tensor, labels: tf.Tensor, axis: int, table: tuple[int, ...] | None, channels: tuple[int, ...] | None
):
    def mirrored() -> tuple[tf.Tensor, tf.Tensor]:
        turned = tf.reverse(labels, [axis])
        if table is not None:
            partner = tf.gather(tf.constant(table, labels.dtype), tf.cast(tf.maximum(turned, 0), tf.int32))
            turned = tf.where(turned == IGNORE, turned, partner)
        reversed_image = tf.reverse(image, [axis])
        return reversed_image if channels is None else tf.gather(reversed_image, channels, axis=-1), turned

    return mirrored


def is_sided(spec: DataSpec) -> bool:
    """Returns whether the name of any structure has a side."""
    return any(spec.label_map.side(name) for name in spec.label_map.structures)


def side_axis(spec: DataSpec) -> int | None:
    """Returns the left/right axis of the preprocessed volume, None when unknown."""
    if spec.orientation is None:
        return None
    return next(axis for axis, letter in enumerate(spec.orientation.upper()) if letter in "LR")
