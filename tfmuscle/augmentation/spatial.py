"""Moving voxels: where each output voxel comes from, and fetching it.

A transform is a list of coordinates, one tensor per axis: `coordinates[a][o]` is the input index along axis `a` of
output voxel `o`. An affine map and an elastic displacement add up to one list, so that voxels are interpolated once.
`move` compiles that by XLA, which fuses coordinates, indices and interpolation into one pass over the voxels. The
operation of TensorFlow for projective maps was rejected: it knows neither 3D nor elastic maps, and was no faster in 2D.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmuscle.labels import IGNORE

CONTROL_POINTS = 5
"""Control points of an elastic deformation along each axis, over the window."""
_HALF_VOXEL = 0.5


def affine_matrix(
    angles: Sequence[tf.Tensor | float],
    *,
    scale: tf.Tensor | float = 1.0,
    shear: tf.Tensor | float = 0.0,
    spacing: Sequence[float] | None = None,
) -> tf.Tensor:
    """Returns the matrix `(rank, rank)` from output to input offsets in voxels, about the centre.

    In mm, `offset_in = R · H · offset_out / scale`: R rotates rigidly, H shears the last axis along the one before it
    by `shear`; in voxels, `diag(1 / spacing) · R · H · diag(spacing) / scale`.

    Args:
        angles: degrees; for two axes one, for three the rotation about axis 0 (in-plane), axis 1 and axis 2.
        scale: above 1 enlarges what is seen.
        shear: tangent of the shear angle.
        spacing: mm per voxel of each axis; None for isotropic voxels.
    """
    rank = 2 if len(angles) == 1 else 3
    radians = [tf.cast(angle, tf.float32) * (math.pi / 180.0) for angle in angles]
    matrix = _identity_with(rank, rank - 2, rank - 1, tf.cast(shear, tf.float32))
    planes = [(rank - 2, rank - 1)] if rank == 2 else [(1, 2), (0, 2), (0, 1)]
    for angle, (first, second) in zip(radians, planes, strict=True):
        matrix = _rotation(rank, first, second, angle) @ matrix
    mm = tf.constant(spacing if spacing is not None else (1.0,) * rank, tf.float32)
    return matrix * mm[tf.newaxis, :] / mm[:, tf.newaxis] / tf.cast(scale, tf.float32)


def _identity_with(rank: int, row: int, column: int, value: tf.Tensor) -> tf.Tensor:
    place = np.zeros((rank, rank), np.float32)
    place[row, column] = 1.0
    return tf.eye(rank) + value * place


def _rotation(rank: int, first: int, second: int, angle: tf.Tensor) -> tf.Tensor:
    diagonal, turn = np.zeros((rank, rank), np.float32), np.zeros((rank, rank), np.float32)
    diagonal[first, first] = diagonal[second, second] = 1.0
    turn[first, second], turn[second, first] = -1.0, 1.0
    return tf.eye(rank) + (tf.cos(angle) - 1.0) * diagonal + tf.sin(angle) * turn


def affine_coordinates(matrix: tf.Tensor, shape: Sequence[int], *, offset: tf.Tensor | None = None) -> list[tf.Tensor]:
    """Returns the coordinates of an affine map about the centre of the grid: `centre + offset + matrix · (o - centre)`.

    Args:
        matrix: from output to input offsets.
        shape: the grid, with as many axes as `matrix`.
        offset: voxels along each axis by which the window moves; none by default.
    """
    centre = [(size - 1) / 2 for size in shape]
    coordinates = []
    for row in range(len(shape)):
        total = tf.constant(centre[row], tf.float32) + (0.0 if offset is None else offset[row])
        for axis, size in enumerate(shape):
            line = tf.constant(np.arange(size, dtype=np.float32) - centre[axis])
            view = tf.reshape(matrix[row, axis] * line, [-1 if other == axis else 1 for other in range(len(shape))])
            total = total + view
        coordinates.append(total)
    return coordinates


def elastic_displacement(
    shape: Sequence[int], *, seed: tf.Tensor, amplitude: float, control_points: int = CONTROL_POINTS
) -> list[tf.Tensor]:
    """Returns a smooth random displacement in voxels, one tensor of `shape` per axis.

    Displacements uniform in ±`amplitude` x the distance of control points, on a coarse grid, spread by cubic B-splines.
    Below 0.4 nothing folds, whatever is drawn (Choi & Lee 2000), so that structures keep their neighbours.

    Args:
        shape: the grid.
        seed: pair of int32.
        amplitude: share of the distance of two control points.
        control_points: along each axis, over the grid.
    """
    rank = len(shape)
    bases = [_spline_basis(size, control_points) for size in shape]
    random = tf.random.stateless_uniform([rank] + [basis.shape[1] for basis in bases], seed, -1.0, 1.0)
    displacement = []
    for axis in range(rank):
        distance = (shape[axis] - 1) / (control_points - 1)
        field = random[axis] * (amplitude * distance)
        for basis in bases:  # spreads the leading axis and moves it to the back; after `rank` turns all are in place
            field = tf.tensordot(field, tf.constant(basis), [[0], [1]])
        displacement.append(field)
    return displacement


def noise_displacement(
    shape: Sequence[int], *, seed: tf.Tensor, amplitude: tf.Tensor | float, sigma: tf.Tensor | float
) -> list[tf.Tensor]:
    """Returns uniform noise in ±1, smoothed by a Gaussian of `sigma` voxels, times `amplitude`; one tensor per axis.

    The form of Simard et al. 2003. Of the noise, smoothing leaves in 2D a deviation of `sqrt(1/3) / (2σ sqrt(π))`:
    amplitude 200 and sigma 15 move a voxel by about 2. Outside the grid the noise is 0.

    Args:
        shape: the grid.
        seed: pair of int32.
        amplitude: voxels.
        sigma: voxels.
    """
    rank = len(shape)
    sigma = tf.cast(sigma, tf.float32)
    field = tf.random.stateless_uniform([rank, *shape], seed, -1.0, 1.0)
    for size in shape:  # smooths the axis after the first and moves it to the back; after `rank` turns all are in place
        index = np.arange(size, dtype=np.float32)
        distance = tf.constant((index[:, np.newaxis] - index[np.newaxis, :]) ** 2)
        kernel = tf.exp(-0.5 * distance / tf.square(sigma)) / (sigma * math.sqrt(2 * math.pi))
        field = tf.tensordot(field, kernel, [[1], [0]])
    return tf.unstack(field * tf.cast(amplitude, tf.float32))


def _spline_basis(size: int, control_points: int) -> np.ndarray:
    """Returns the cubic B-spline weights `(size, control_points + 2)` of each voxel; rows sum to one."""
    position = np.arange(size) * ((control_points - 1) / max(size - 1, 1))
    distance = np.abs(position[:, np.newaxis] - np.arange(-1, control_points + 1))
    inner, outer = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, inner, outer).astype(np.float32)


def spatial_transform(
    image: tf.Tensor, labels: tf.Tensor, coordinates: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Fetches each voxel from where it comes from, the image linearly and the labels from the nearest voxel.

    A voxel centre further than half a voxel outside the grid is unknown: the channel's minimum, and `IGNORE`.

    Args:
        image: `(*shape, ..., C)` float32, the first axes those of `coordinates`.
        labels: `(*shape, ...)` integers.
        coordinates: input index along each axis, tensors of `shape`.
    """
    rank, shape = len(coordinates), image.shape[: len(coordinates)]
    strides = [math.prod(shape[axis + 1 :]) for axis in range(rank)]
    low, high, fractions, nearest, known = [], [], [], 0, []
    for size, stride, coordinate in zip(shape, strides, coordinates, strict=True):
        clipped = tf.clip_by_value(coordinate, 0.0, size - 1.0)
        floor = tf.floor(clipped)
        fraction, index = clipped - floor, tf.cast(floor, tf.int32)
        low.append(index * stride)
        high.append(tf.minimum(index + 1, size - 1) * stride)
        fractions.append(fraction)
        nearest = nearest + (index + tf.cast(fraction >= _HALF_VOXEL, tf.int32)) * stride
        known.append(tf.abs(coordinate - clipped) <= _HALF_VOXEL)
    inside = functools.reduce(tf.logical_and, known)
    fill = tf.reduce_min(image, axis=list(range(image.shape.rank - 1)))
    moved = _interpolate(_flattened(image, rank), low, high, fractions)
    moved = tf.where(inside[..., tf.newaxis], moved, tf.tile(fill, [moved.shape[-1] // image.shape[-1]]))
    found = tf.gather(_flattened(labels, rank), nearest)
    found = tf.where(inside[..., tf.newaxis], found, tf.constant(IGNORE, labels.dtype))
    return tf.reshape(moved, image.shape), tf.reshape(found, labels.shape)


@tf.function(jit_compile=True)
def move(
    image: tf.Tensor,
    labels: tf.Tensor,
    matrix: tf.Tensor,
    offset: tf.Tensor,
    displacement: list[tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves a sample by an affine map, and by a displacement in voxels added to it; compiled once for each shape.

    Args:
        image: as for `spatial_transform`.
        labels: as for `spatial_transform`.
        matrix: from `affine_matrix`.
        offset: voxels along each axis.
        displacement: one tensor per axis, or None.
    """
    coordinates = affine_coordinates(matrix, image.shape[: matrix.shape[0]], offset=offset)
    if displacement is not None:
        coordinates = [straight + bent for straight, bent in zip(coordinates, displacement, strict=True)]
    return spatial_transform(image, labels, coordinates)


def _flattened(array: tf.Tensor, rank: int) -> tf.Tensor:
    return tf.reshape(array, (math.prod(array.shape[:rank]), math.prod(array.shape[rank:])))


def _interpolate(
    voxels: tf.Tensor,
    low: list[tf.Tensor],
    high: list[tf.Tensor],
    fractions: list[tf.Tensor],
    index: tf.Tensor | int = 0,
) -> tf.Tensor:
    """Returns the linear mean of the corners, one axis at a time: `a + (b - a) · fraction`."""
    if not low:
        return tf.gather(voxels, index)
    below = _interpolate(voxels, low[1:], high[1:], fractions[1:], index + low[0])
    above = _interpolate(voxels, low[1:], high[1:], fractions[1:], index + high[0])
    return below + (above - below) * fractions[0][..., tf.newaxis]
