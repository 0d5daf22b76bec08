"""Changes of grid as TensorFlow operations: what `volume.Geometry`, `preprocessing.grid` and `inference.resampling` do.

An exported network meets scans whose size, spacing and orientation it learns only when it is called, without Python.
So the rules are here once more, as operations; tests hold them against the NumPy code and against nibabel, and every
export against `predict`. Axes of a scan are permuted, flipped, cropped and rescaled, never rotated, so that each axis
of the network's grid is one line: grid voxel `n` lies at `scale * n + shift` on the reoriented, cropped scan (`Axis`).

Interpolation is a dense matrix for each axis, because the sizes are small (a few hundred) and a matrix product is what
TensorFlow does fastest; where an axis stays as it is nothing is multiplied. Coordinates are float64 as in NumPy.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.inference.resampling import RIM_VOXELS, SNAP_VOXELS
from tfmuscle.preprocessing.grid import ANTIALIAS_FACTOR, BLUR_SIGMAS
from tfmuscle.volume import HALF_VOXEL_TOLERANCE, SPACING_TOLERANCE_MM

_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter of an orientation -> axis of the world, and the direction in which it grows."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of the network's grid on the reoriented, cropped scan: voxel `n` lies at `scale * n + shift` there."""

    old_size: tf.Tensor
    size: tf.Tensor
    scale: tf.Tensor
    shift: tf.Tensor


def reorientation(affine: tf.Tensor, orientation: str | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds which axis of a scan becomes which, as `Volume.reoriented` does.

    Args:
        affine: `(4, 4)` float64, RAS+ in mm.
        orientation: axis codes wanted, or None for reversed axes.

    Returns:
        `axes` `(3,)` int32, the scan's axis that becomes axis a, and `flips` `(3,)` bool.
    """
    if orientation is None:
        return tf.constant([2, 1, 0]), tf.constant([False, False, False])
    world, signs = _nearest_axes(affine)
    wanted = [_WORLD[letter] for letter in orientation]
    axes = tf.stack([tf.argmax(world == axis, output_type=tf.int32) for axis, _ in wanted])
    return axes, tf.gather(signs, axes) != tf.constant([sign for _, sign in wanted], tf.float64)


def _nearest_axes(affine: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns for each axis of a scan the axis of the world nearest to it `(3,)` int32, and its direction `(3,)`, ±1.

    nibabel's rule (`io_orientation`): of the rotation nearest to the affine, the strongest axis chooses first.
    """
    columns = affine[:3, :3]
    _, left, right = tf.linalg.svd(columns / tf.sqrt(tf.reduce_sum(columns**2, axis=0)))
    rotation = tf.matmul(left, right, transpose_b=True)
    order = tf.argsort(tf.reduce_min(-(rotation**2), axis=0), stable=True)
    free, world, signs = tf.ones((3, 1), tf.float64), tf.zeros(3, tf.int32), tf.zeros(3, tf.float64)
    for turn in range(3):
        axis = order[turn]
        column = (rotation * free)[:, axis]
        nearest = tf.argmax(tf.abs(column), output_type=tf.int32)
        world += tf.one_hot(axis, 3, dtype=tf.int32) * nearest
        signs += tf.one_hot(axis, 3, dtype=tf.float64) * tf.cast(tf.where(column[nearest] < 0, -1, 1), tf.float64)
        free *= 1 - tf.one_hot(nearest, 3, dtype=tf.float64)[:, tf.newaxis]
    return world, signs


def reoriented(volume: tf.Tensor, axes: tf.Tensor, flips: tf.Tensor) -> tf.Tensor:
    """Returns `(I, J, K, C)` with permuted and flipped axes."""
    volume = tf.transpose(volume, tf.concat([axes, [3]], axis=0))
    for axis in range(3):
        volume = tf.cond(flips[axis], lambda v=volume, a=axis: tf.reverse(v, [a]), lambda v=volume: v)
    return volume


def crop_to_nonzero(volume: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts away the margin in which every channel is zero; an empty scan stays whole.

    Returns:
        The volume, and the index of its first voxel in the old one `(3,)` int32.
    """
    occupied = tf.reduce_any(volume != 0, axis=3)
    shape, first, last = tf.shape(occupied), [], []
    for axis in range(3):
        along = tf.reduce_any(occupied, axis=[other for other in range(3) if other != axis])
        first.append(tf.argmax(along, output_type=tf.int32))
        last.append(shape[axis] - tf.argmax(along[::-1], output_type=tf.int32))
    empty = tf.logical_not(tf.reduce_any(occupied))
    start = tf.where(empty, tf.zeros(3, tf.int32), tf.stack(first))
    stop = tf.where(empty, shape, tf.stack(last))
    return volume[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]], start


def grid_axes(shape: tf.Tensor, spacing: tf.Tensor, spec: DataSpec) -> list[Axis]:
    """Returns the axes of the grid that a reoriented, cropped scan is resampled to.

    Args:
        shape: `(3,)` int32 of the scan.
        spacing: `(3,)` float64 of the scan, mm.
        spec: `spacing` and `resize` decide, as in `preprocessing.pipeline`.
    """
    found = []
    for number in range(3):
        size, own = shape[number], spacing[number]
        scale, shift, new = tf.constant(1.0, tf.float64), tf.constant(0.0, tf.float64), size
        if spec.spacing is not None and not (spec.resize and number):
            new, scale, shift = _resampled(size, own, spec.spacing[number])
        if spec.resize and number:
            exact = spec.size[number - 1]
            factor = tf.cast(new, tf.float64) / exact
            scale, shift, new = scale * factor, shift + scale * (factor - 1) / 2, tf.constant(exact)
        found.append(Axis(size, new, scale, shift))
    return found


def _resampled(size: tf.Tensor, own: tf.Tensor, wanted: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns size, scale and shift of an axis of another spacing: `Geometry.resampled`."""
    goal = tf.constant(wanted, tf.float64)
    scale = tf.where(tf.abs(goal - own) < SPACING_TOLERANCE_MM, own, goal) / own
    extent = tf.cast(size, tf.float64) / scale
    new = tf.maximum(1, tf.cast(tf.math.ceil(extent - 0.5 - HALF_VOXEL_TOLERANCE), tf.int32))
    return new, scale, (tf.cast(size - 1, tf.float64) - tf.cast(new - 1, tf.float64) * scale) / 2


def resample(volume: tf.Tensor, axes: list[Axis]) -> tf.Tensor:
    """Interpolates `(I, J, K, C)` float32 linearly, blurred before along axes that become much coarser."""
    for number, axis in enumerate(axes):
        stays = tf.logical_and(axis.scale == 1, tf.logical_and(axis.shift == 0, axis.size == axis.old_size))

        def multiplied(v: tf.Tensor = volume, n: int = number, a: Axis = axis) -> tf.Tensor:
            order = [*range(1, n + 1), 0, *range(n + 1, 4)]
            return tf.transpose(tf.tensordot(tf.cast(_weights(a), tf.float32), v, [[1], [n]]), order)

        volume = tf.cond(stays, lambda v=volume: v, multiplied)
    return tf.ensure_shape(volume, (None, None, None, volume.shape[3]))


def _weights(axis: Axis) -> tf.Tensor:
    """Returns what each old voxel gives to each new one `(size, old_size)` float64."""
    last = tf.cast(axis.old_size - 1, tf.float64)
    place = tf.clip_by_value(axis.scale * tf.range(tf.cast(axis.size, tf.float64)) + axis.shift, 0.0, last)
    lower = tf.floor(place)
    share = (place - lower)[:, tf.newaxis]
    first = tf.one_hot(tf.cast(lower, tf.int32), axis.old_size, dtype=tf.float64)
    second = tf.one_hot(tf.cast(tf.minimum(lower + 1, last), tf.int32), axis.old_size, dtype=tf.float64)
    weights = (1 - share) * first + share * second
    blurs = tf.logical_and(axis.scale > ANTIALIAS_FACTOR, axis.old_size > 1)
    return tf.cond(blurs, lambda: tf.matmul(weights, _blur(axis)), lambda: weights)


def _blur(axis: Axis) -> tf.Tensor:
    """Returns the matrix `(old_size, old_size)` of a Gaussian that repeats the outermost voxels."""
    sigma, size = (axis.scale - 1) / 2, axis.old_size
    reach = tf.cast(tf.round(BLUR_SIGMAS * sigma), tf.int32)
    steps = tf.range(-reach, reach + 1)
    bell = tf.exp(-0.5 * (tf.cast(steps, tf.float64) / sigma) ** 2)
    rows, columns = tf.meshgrid(tf.range(size), steps, indexing="ij")
    places = tf.stack([rows, tf.clip_by_value(rows + columns, 0, size - 1)], axis=-1)
    return tf.scatter_nd(places, tf.broadcast_to(bell / tf.reduce_sum(bell), tf.shape(rows)), (size, size))


@dataclass(frozen=True, eq=False)
class Sampling:
    """Where the scan's voxels lie along one axis of the grid: `weight` of the way from `lower` to the next voxel."""

    lower: tf.Tensor
    upper: tf.Tensor
    weight: tf.Tensor
    inside: tf.Tensor


def back_onto_scan(axis: Axis, size: tf.Tensor, flip: tf.Tensor, cropped: tf.Tensor) -> Sampling:
    """Returns where the `size` voxels of the scan's own axis lie on the grid: `inference.resampling`.

    Args:
        axis: of the grid.
        size: voxels of the scan along it, before it was cropped.
        flip: whether the scan's axis was flipped.
        cropped: voxels that were cut away before its first one.
    """
    index = tf.range(tf.cast(size, tf.float64))
    index = tf.where(flip, tf.cast(size - 1, tf.float64) - index, index)
    place = (index - tf.cast(cropped, tf.float64) - axis.shift) / axis.scale
    nearest, last = tf.round(place), tf.cast(axis.size - 1, tf.float64)
    place = tf.where(tf.abs(place - nearest) < SNAP_VOXELS, nearest, place)
    reach = RIM_VOXELS + SNAP_VOXELS
    inside = tf.logical_and(place >= -reach, place <= last + reach)
    place = tf.clip_by_value(place, 0.0, last)
    lower = tf.floor(place)
    upper = tf.minimum(lower + 1, last)
    return Sampling(tf.cast(lower, tf.int32), tf.cast(upper, tf.int32), tf.cast(place - lower, tf.float32), inside)


def spacing_of(affine: tf.Tensor) -> tf.Tensor:
    """Returns the distance of neighbouring voxels along each axis, mm, `(3,)` float64."""
    return tf.sqrt(tf.reduce_sum(affine[:3, :3] ** 2, axis=0))


def check_affine(affine: tf.Tensor) -> list[tf.Operation]:
    """Returns operations that refuse an affine no scan can have."""
    finite = tf.reduce_all(tf.math.is_finite(affine))
    safe = tf.where(tf.math.is_finite(affine), affine, tf.zeros_like(affine))
    solid = tf.abs(tf.linalg.det(safe[:3, :3])) > np.finfo(np.float32).tiny
    say = "affine: a finite, invertible 4 x 4 matrix is needed, from voxel index to RAS+ millimetres"
    return [tf.debugging.Assert(tf.logical_and(finite, solid), [say, affine])]
