"""Probability slabs on the network's grid become labels on the scan's grid, without ever holding classes x voxels.

Terms. The *grid* is where the network spoke (after preprocessing), the *target* is the scan's own. Preprocessing
permutes, flips, crops and rescales axes but never rotates, so each target axis runs along exactly one grid axis, and
linear interpolation is separable: `coordinate = scale * index + shift` on each axis. Slabs arrive along grid axis 0; a
target slice is made as soon as the two grid slices around it are there: interpolate between them, interpolate in-plane
(one sparse matrix with four weights per pixel, applied to all classes at once), take the largest class. Labels are the
class of the largest *interpolated probability*, never interpolated labels; of equal classes, the first.

The rim. A target voxel whose centre lies beyond the last grid centre takes the value of that last voxel (edge clamping:
the grid voxel is there, only its centre is not) up to `RIM_VOXELS` grid voxels; farther out it was cropped away and is
background. `RIM_VOXELS` is half a voxel for the voxel's own extent plus a quarter, because `Geometry.resampled` rounds
the shape and may lose a quarter of a voxel at each face.

Rejected: `map_coordinates` per class (reads the whole field once per class), dense matrix products (512 times more
multiplications), general rotations (nothing produces them).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry

RIM_VOXELS = 0.75
"""Farthest a target voxel may lie beyond the last grid centre, in grid voxels, and still get its label."""
SNAP_VOXELS = 1e-5
"""Coordinates this near to a grid centre are on it: rounding of affines, far below any visible shift."""
ROTATION_VOXELS = 1e-2
"""Largest drift across the whole target, in grid voxels, that still counts as parallel axes."""


@dataclass(frozen=True, eq=False)
class _Axis:
    """How one grid axis is sampled: voxel n of `inside` lies `weight[n]` of the way from `lower[n]` to the next one."""

    size: int
    inside: slice
    lower: np.ndarray
    weight: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether every target voxel falls on a grid voxel."""
        return not self.weight.any()

    def matrix(self) -> scipy.sparse.csr_array:
        """Returns the interpolation as a float32 matrix `(targets, size)`."""
        rows = np.arange(len(self.lower))
        upper = np.minimum(self.lower + 1, self.size - 1)
        values = np.concatenate([1.0 - self.weight, self.weight]).astype(np.float32)
        places = (np.concatenate([rows, rows]), np.concatenate([self.lower, upper]))
        return scipy.sparse.csr_array(scipy.sparse.coo_array((values, places), shape=(len(rows), self.size)))


def align(grid: Geometry, target: Geometry) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """Finds which target axis runs along each grid axis, and where.

    Returns:
        `axes`, `scale` and `shift` in grid voxels: grid coordinate `a` of a target voxel is
        `scale[a] * index[axes[a]] + shift[a]`.

    Raises:
        ValueError: the grids are rotated against each other.

    >>> scan = Geometry((4, 5, 6), np.eye(4))
    >>> flipped = Geometry((6, 5, 4), np.array([[0, 0, 1, 0], [0, -1, 0, 4], [2, 0, 0, 0], [0, 0, 0, 1.0]]))
    >>> axes, scale, shift = align(flipped, scan)
    >>> axes, scale.tolist(), shift.tolist()
    ((2, 1, 0), [0.5, -1.0, 1.0], [0.0, 4.0, 0.0])
    """
    matrix = np.linalg.inv(grid.affine) @ target.affine
    axes = np.abs(matrix[:3, :3]).argmax(axis=1)
    scale = matrix[np.arange(3), axes]
    drift = matrix[:3, :3].copy()
    drift[np.arange(3), axes] = 0.0
    if len(set(axes)) != 3 or (np.abs(drift) @ np.array(target.shape)).max() > ROTATION_VOXELS:
        raise ValueError("the two grids are rotated against each other; resample the image onto parallel axes first")
    return tuple(int(axis) for axis in axes), scale, matrix[:3, 3]


def _sample(size: int, coordinates: np.ndarray) -> _Axis:
    nearest = np.round(coordinates)
    coordinates = np.where(np.abs(coordinates - nearest) < SNAP_VOXELS, nearest, coordinates)
    reach = RIM_VOXELS + SNAP_VOXELS
    inside = np.flatnonzero((coordinates >= -reach) & (coordinates <= size - 1 + reach))
    first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    clamped = np.clip(coordinates[first:last], 0, size - 1)
    lower = np.floor(clamped).astype(np.intp)
    return _Axis(size, slice(first, last), lower, (clamped - lower).astype(np.float32))


class _Plane:
    """Turns a slice of probabilities into class indices at the target's in-plane positions.

    State, because the sparse matrix is the same for every slice of a scan.
    """

    def __init__(self, rows: _Axis, columns: _Axis) -> None:
        self._pixels = np.ix_(rows.lower, columns.lower)
        self._shape = (len(rows.lower), len(columns.lower))
        self._matrix = None
        if not (rows.exact and columns.exact):
            self._matrix = scipy.sparse.csr_array(scipy.sparse.kron(rows.matrix(), columns.matrix(), format="csr"))

    def classes(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the most probable class `(h, w)` from probabilities `(H, W, C)` by bilinear interpolation."""
        if self._matrix is None:
            return probabilities.argmax(axis=-1)[self._pixels]
        return self.values(probabilities).argmax(axis=-1)

    def values(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns probabilities `(h, w, C)` at the target's positions."""
        if self._matrix is None:
            return probabilities[self._pixels]
        count = probabilities.shape[-1]
        return (self._matrix @ probabilities.reshape(-1, count)).reshape(*self._shape, count)


class Placing:
    """Brings a stream of slabs on a grid to slices of the target; at most one older slice is held beside the block.

    Attributes:
        axes: of the target, that run along each axis of the grid.
        plane: brings a slice of the grid to the target's in-plane positions.
    """

    def __init__(self, grid: Geometry, target: Geometry) -> None:
        self.axes, scale, shift = align(grid, target)
        self._grid = grid
        self._samples = [
            _sample(grid.shape[a], scale[a] * np.arange(target.shape[self.axes[a]]) + shift[a]) for a in range(3)
        ]
        self.plane = _Plane(self._samples[1], self._samples[2])

    def view(self, array: np.ndarray) -> np.ndarray:
        """Returns the part of an array of the target that the grid reaches, its axes those of the grid."""
        return array.transpose(self.axes)[tuple(sample.inside for sample in self._samples)]

    def slices(self, blocks: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields each slice of the view once: its index, in no order, and probabilities `(H, W, C)` for `plane`.

        Raises:
            ValueError: the blocks end early.
        """
        depth = self._samples[0]
        waiting = list(np.argsort(depth.lower + depth.weight, kind="stable")[::-1])
        held: dict[int, np.ndarray] = {}
        for first, block in blocks:
            held |= {first + n: probabilities for n, probabilities in enumerate(block)}
            last = first + len(block) - 1
            while waiting and depth.lower[waiting[-1]] + (depth.weight[waiting[-1]] > 0) <= last:
                index = waiting.pop()
                yield int(index), _between(held, depth.lower[index], depth.weight[index])
            needed = depth.lower[waiting[-1]] if waiting else last + 1
            held = {n: probabilities.copy() for n, probabilities in held.items() if n >= needed}
            del block  # or it would stay beside the next one while that is made
        if waiting:
            raise ValueError(
                f"probabilities end before slice {self._grid.shape[0] - 1} of {self._grid.shape}; give all slices"
            )


def labels_on_grid(
    blocks: Iterable[tuple[int, np.ndarray]], grid: Geometry, target: Geometry, label_map: LabelMap
) -> np.ndarray:
    """Resamples streamed probabilities onto `target` and returns the ids of the most probable classes there.

    At any time only the block at hand and at most one older slice are held.

    Args:
        blocks: pairs of first slice and probabilities `(d, H, W, C)` in rising order along grid axis 0, without gaps.
        grid: where the probabilities live, shape `(D, H, W)`.
        target: where the labels are wanted; parallel to `grid`.
        label_map: names the classes.

    Returns:
        `target.shape` ids in the smallest unsigned type; background where the grid does not reach.

    Raises:
        ValueError: the grids are rotated against each other, or the blocks end early.
    """
    placing = Placing(grid, target)
    labels = np.zeros(target.shape, dtype=label_map.decode(np.zeros(1, dtype=np.intp)).dtype)
    view = placing.view(labels)
    for index, probabilities in placing.slices(blocks):
        view[index] = label_map.decode(placing.plane.classes(probabilities))
    return labels


def _between(held: dict[int, np.ndarray], lower: int, weight: float) -> np.ndarray:
    """Interpolates linearly between two slices `(H, W, C)`."""
    if weight == 0:
        return held[lower]
    mixed = held[lower] * (1 - weight)
    mixed += held[lower + 1] * weight
    return mixed
