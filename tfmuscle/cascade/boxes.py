"""Boxes around muscles: where they lie, how they grow, how they change grids, and which sizes networks see.

Terms. A *box* is a range of voxels of one grid, half-open as in `array[start:stop]`; its *edges* are the outer faces of
its outermost voxels, at `start - 1/2` and `stop - 1/2` in index coordinates, where voxel `i` is centred on `i`. A box
does not carry its grid: it is used beside the `Volume` or `Geometry` it was made on. A *tight* box holds every voxel of
a structure and no empty outer plane.

The user chooses voxel budgets, that is memory. The data decides the rest: native spacing, mean extents of a muscle.

Rounding is always outward, so that a box never loses what it held. On the way from the coarse grid to the native one
the eight corners of the edges are mapped and their hull is taken: exact on grids that are flipped, permuted or finer,
generous on oblique ones. Mapping a mask instead was rejected: it costs a volume for six numbers.

The grids of both stages come from one rule, `fitting_grid`: cubes, as fine as the budget allows, but nowhere finer than
the scan; so slices of 5 mm stay and pixels of 1 mm grow to meet them. One factor for all axes, which keeps the form of
the scan's voxels, was rejected: voxels of 27 x 5 x 5 mm lose a thin muscle that lies across the limb, and
networks that halve all axes alike reach five times as far along one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage

from tfmuscle.volume import Geometry

LOW, HIGH = 1.0, 1.8
"""Ratios between which each edge of a box is moved: Ni et al. 2019."""
INPUT_MARGIN = 1.4
"""Mean ratio of a random enlargement, hence of what a network sees to the muscle in it."""
_ROUNDING = 1e-6
"""Voxels by which an edge may miss a whole number before it counts as beyond it: above float32's rounding in headers of
small grids, far below what matters."""


@dataclass(frozen=True)
class Box:
    """A range of voxels, `start` to `stop` (excluded) along the three axes of a grid; it may reach outside the grid.

    >>> box = Box((2, 0, 4), (5, 1, 6))
    >>> box.size, box.num_voxels, box.union(Box((0, 0, 5), (1, 1, 9)))
    ((3, 1, 2), 6, Box(start=(0, 0, 4), stop=(5, 1, 9)))
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            given = getattr(self, name)
            if len(given) != 3 or any(int(edge) != edge for edge in given):
                raise ValueError(f"{name} of a box is {given}; three whole numbers of voxels are needed")
            object.__setattr__(self, name, tuple(int(edge) for edge in given))
        if any(first >= last for first, last in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box {self.start}..{self.stop} is empty; each stop must lie beyond its start")

    @classmethod
    def around(cls, low: Any, high: Any) -> "Box":
        """Returns the smallest box whose edges enclose `low` to `high`, `(3,)` fractional indices; at least one voxel.

        >>> Box.around((-0.5, 0.2, 3.0), (1.5, 0.2, 3.6))
        Box(start=(0, 0, 3), stop=(2, 1, 5))
        """
        start = np.floor(np.asarray(low) + 0.5 + _ROUNDING).astype(int)
        stop = np.maximum(np.ceil(np.asarray(high) + 0.5 - _ROUNDING).astype(int), start + 1)
        return cls((int(start[0]), int(start[1]), int(start[2])), (int(stop[0]), int(stop[1]), int(stop[2])))

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        a, b, c = (last - first for first, last in zip(self.start, self.stop, strict=True))
        return a, b, c

    @property
    def num_voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.size)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the box in an array of its grid; a box that reaches outside must be `clipped` first."""
        a, b, c = (slice(first, last) for first, last in zip(self.start, self.stop, strict=True))
        return a, b, c

    @property
    def edges(self) -> np.ndarray:
        """Outer faces `(2, 3)` in index coordinates: half a voxel beyond the centres of the outermost voxels."""
        return np.array([self.start, self.stop], dtype=np.float64) - 0.5

    def union(self, *others: "Box") -> "Box":
        """Returns the smallest box that holds this one and the others."""
        start = np.min([box.start for box in (self, *others)], axis=0)
        stop = np.max([box.stop for box in (self, *others)], axis=0)
        return Box(tuple(start), tuple(stop))

    def overlap(self, other: "Box") -> "Box | None":
        """Returns what both boxes hold, None when they share no voxel."""
        start = np.maximum(self.start, other.start)
        stop = np.minimum(self.stop, other.stop)
        return Box(tuple(start), tuple(stop)) if (start < stop).all() else None

    def contains(self, other: "Box") -> bool:
        """Whether every voxel of `other` is in this box."""
        return self.union(other) == self

    def clipped(self, shape: tuple[int, ...]) -> "Box":
        """Returns the part inside a grid of `shape`.

        Raises:
            ValueError: the box lies wholly outside.
        """
        inside = self.overlap(_whole(shape))
        if inside is None:
            raise ValueError(f"box {self.start}..{self.stop} lies wholly outside the grid {tuple(shape)}; leave it out")
        return inside

    def moved(self, origin: tuple[int, ...]) -> "Box":
        """Returns the same voxels as seen from a grid, or a larger box, that begins at `origin`.

        >>> Box((5, 5, 5), (8, 8, 8)).moved((5, 4, 0))
        Box(start=(0, 1, 5), stop=(3, 4, 8))
        """
        return Box(tuple(np.subtract(self.start, origin)), tuple(np.subtract(self.stop, origin)))


def tight_box(labels: np.ndarray, key: int) -> Box | None:
    """Returns the tight box of the voxels with the id `key` in `(I, J, K)` labels, None without any.

    >>> tight_box(np.array([[[0, 3, 3, 0]]]), 3)
    Box(start=(0, 0, 1), stop=(1, 1, 3))
    """
    return tight_boxes(labels, (key,)).get(key)


def tight_boxes(labels: np.ndarray, keys: Iterable[int]) -> dict[int, Box]:
    """Returns the tight boxes of many ids in one pass; ids without a voxel have no entry.

    Args:
        labels: `(I, J, K)`, whole numbers or bool.
        keys: ids, 1 or more; 0 is background.

    Raises:
        ValueError: labels that are no ids on a grid, or an id below 1.
    """
    wanted = list(keys)
    if labels.ndim != 3 or labels.dtype.kind not in "bui":
        raise ValueError(f"labels are {labels.dtype} of shape {labels.shape}; whole numbers (I, J, K) are needed")
    if min(wanted, default=1) < 1:
        raise ValueError(f"id {min(wanted)} has no box; ids of structures begin at 1")
    seen = labels.view(np.uint8) if labels.dtype == bool else labels
    found = scipy.ndimage.find_objects(seen, max_label=max(wanted, default=1))
    ranges = {key: found[key - 1] for key in wanted}
    return {
        key: Box(tuple(axis.start for axis in three), tuple(axis.stop for axis in three))
        for key, three in ranges.items()
        if three is not None
    }


def enlarged(
    box: Box, shape: tuple[int, ...], random: np.random.Generator, *, low: float = LOW, high: float = HIGH
) -> Box:
    """Returns a random enlargement that holds the whole box.

    Along an axis of size `l = stop - start`, with `r1, r2 ~ U(low, high)` drawn independently:
    `start - (r1 - 1) l / 2` and `stop + (r2 - 1) l / 2`, rounded outward and clipped. Ni et al. 2019.

    Args:
        box: inside the grid.
        shape: the grid.
        random: six numbers are drawn, whatever the box, so that a seed gives one sequence.
        low: smallest ratio, at least 1.
        high: largest ratio.

    Raises:
        ValueError: ratios below 1 or out of order, or a box that reaches outside the grid.
    """
    _check_enlargement(box, shape, low, high)
    return _grown(box, shape, random.uniform(low, high, size=(2, 3)))


def largest_enlargement(box: Box, shape: tuple[int, ...], *, high: float = HIGH) -> Box:
    """Returns the union of all boxes that `enlarged` can return: what must be known of a scan to sample from it.

    >>> largest_enlargement(Box((10, 10, 0), (20, 15, 1)), (100, 100, 100))
    Box(start=(6, 8, 0), stop=(24, 17, 2))
    """
    _check_enlargement(box, shape, LOW, high)
    return _grown(box, shape, np.full((2, 3), high))


def _check_enlargement(box: Box, shape: tuple[int, ...], low: float, high: float) -> None:
    if not 1 <= low <= high < math.inf:
        raise ValueError(f"a box is enlarged {low} to {high} times; two ratios from 1 on in order are needed")
    if not _whole(shape).contains(box):
        raise ValueError(f"box {box.start}..{box.stop} reaches outside the grid {tuple(shape)}; clip it first")


def _grown(box: Box, shape: tuple[int, ...], ratios: np.ndarray) -> Box:
    """Moves the edges outward by `(ratio - 1) * size / 2`; `ratios` is `(2, 3)`, of starts and stops."""
    growth = np.ceil((ratios - 1) * np.array(box.size) / 2 - _ROUNDING).astype(int)
    return Box(tuple(np.subtract(box.start, growth[0])), tuple(np.add(box.stop, growth[1]))).clipped(shape)


def mapped(box: Box, from_geometry: Geometry, to_geometry: Geometry, *, grow_voxels: float = 1.0) -> Box:
    """Returns the box of another grid that holds a box of this one, grown first by `grow_voxels` of its own voxels.

    Args:
        box: voxels of `from_geometry`, usually of the coarse grid.
        from_geometry: may be flipped, permuted or turned against the other.
        to_geometry: the grid of the result, to which it is clipped.
        grow_voxels: how far all six faces move outward before mapping; a coarse voxel hides where within it a muscle
            ends.

    Raises:
        ValueError: nothing of the box lies in the other grid.

    >>> coarse, native = Geometry((4, 4, 4), np.diag([2.0, 2, 2, 1])), Geometry((8, 8, 8), np.eye(4))
    >>> mapped(Box((1, 1, 1), (2, 3, 2)), coarse, native, grow_voxels=0)
    Box(start=(1, 1, 1), stop=(4, 6, 4))
    """
    edges = box.edges + np.array([[-grow_voxels], [grow_voxels]])
    corners = np.stack(np.meshgrid(*edges.T, indexing="ij"), axis=-1).reshape(8, 3)
    there = to_geometry.index(from_geometry.world(corners))
    return Box.around(there.min(axis=0), there.max(axis=0)).clipped(to_geometry.shape)


def fitting_grid(
    size_mm: Any, spacing: tuple[float, ...], *, voxel_budget: int, multiple: int
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Returns shape and spacing in mm of the finest grid over a field of view that holds no more voxels than a budget.

    The spacing is `s` along each axis, or the scan's own where that is coarser; `s` is the smallest at which the axes,
    rounded to the nearest multiple, fit. So the field of view is met within half a multiple of voxels.

    Args:
        size_mm: `(3,)` the field of view.
        spacing: of the scan, mm.
        voxel_budget: most voxels of the grid.
        multiple: of which every axis is a multiple, at least one: what a network can halve.

    Raises:
        ValueError: numbers that are not positive, or a budget below `multiple³`.

    >>> fitting_grid((400, 120, 160), (5.0, 1.0, 1.0), voxel_budget=2_000_000, multiple=8)
    ((80, 120, 160), (5.0, 1.0, 1.0))
    >>> fitting_grid((400, 120, 160), (5.0, 1.0, 1.0), voxel_budget=100_000, multiple=4)[0]
    (80, 28, 40)
    """
    size, native = np.asarray(size_mm, dtype=np.float64), np.asarray(spacing, dtype=np.float64)
    if size.shape != (3,) or native.shape != (3,) or not ((size > 0).all() and (native > 0).all()):
        raise ValueError(
            f"a field of view of {size_mm} mm and spacing {spacing}; three positive numbers each are needed"
        )
    if multiple < 1 or voxel_budget < multiple**3:
        raise ValueError(
            f"{voxel_budget} voxels do not hold one multiple of {multiple} along each axis; at least {multiple**3} are "
            "needed"
        )
    steps = size / multiple  # a shape changes only where an axis, in multiples, passes a half: all of these are tried
    most = steps / native
    finenesses = np.concatenate(
        [[0.0], *(np.arange(1.5, m + _ROUNDING) / step for m, step in zip(most, steps, strict=True))]
    )
    finenesses = np.sort(np.append(finenesses, (1 / native).max()))
    reached = np.minimum(finenesses[:, np.newaxis], 1 / native)
    shapes = multiple * np.maximum(np.floor(reached * steps + 0.5 + _ROUNDING), 1).astype(int)
    best = np.flatnonzero(shapes.prod(axis=1) <= voxel_budget)[-1]  # every axis grows with fineness
    with np.errstate(divide="ignore"):
        a, b, c = np.maximum(np.minimum(1 / finenesses[best], size.max()), native).tolist()
    i, j, k = shapes[best].tolist()
    return (i, j, k), (a, b, c)


def _whole(shape: tuple[int, ...]) -> Box:
    return Box((0, 0, 0), (shape[0], shape[1], shape[2]))
