"""The limb's axis, along which lengths are taken and to which areas are perpendicular.

Terms. A *direction* is a unit vector in world mm, from the foot to the head. A *position* is the way along it, in mm;
along the patient's axis it is the z of the scanner. *Slices* are the planes of voxels across the array axis nearest
to the direction, whichever way the scanner cut; they are what the user is sent to.

Three directions, by name:

* "slices": normal to the slices nearest to foot-head. Technicians lay slices across the limb, and what they did with
  an oblique scan is what this takes.
* "patient": foot-head of the patient, whatever the tilt of the slices.
* "labels": the long axis of what is labelled, each side by itself: legs that are spread, or a limb that lies aslant.

Rejected: an axis for each muscle (areas of two muscles in one slice would not add up), and a curved centre line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfmuscle.volume import Geometry

AXES = ("slices", "patient", "labels")
"""Names of directions; see above."""
_ALIGNED = 1e-3
"""Slices whose voxels differ in position by less than this share of a step lie across the axis."""
_EPSILON = 1e-9


@dataclass(frozen=True, eq=False)
class LimbAxis:
    """A direction through a grid.

    Attributes:
        direction: `(3,)` unit vector in world mm, towards the head.
        grid: the scan's.
    """

    direction: np.ndarray
    grid: Geometry

    @property
    def per_voxel(self) -> np.ndarray:
        """Change of the position by one voxel along each array axis, `(3,)` mm."""
        return np.asarray(self.direction @ self.grid.affine[:3, :3], dtype=np.float64)

    @property
    def slice_axis(self) -> int:
        """Array axis nearest to the direction: its planes are the slices."""
        return int(np.argmax(np.abs(self.per_voxel) / np.array(self.grid.spacing)))

    @property
    def step_mm(self) -> float:
        """Way along the direction from one slice to the next."""
        return float(abs(self.per_voxel[self.slice_axis]))

    @property
    def across(self) -> bool:
        """Whether slices are perpendicular to the direction, so that each has one position."""
        others = [axis for axis in range(3) if axis != self.slice_axis]
        tilt = sum(abs(self.per_voxel[axis]) * (self.grid.shape[axis] - 1) for axis in others)
        return bool(tilt <= _ALIGNED * self.step_mm)

    def position(self, index: np.ndarray) -> np.ndarray:
        """Maps indices `(..., 3)` to positions in mm `(...)`."""
        return np.asarray(self.grid.world(index) @ self.direction)


@dataclass(frozen=True, eq=False)
class Moments:
    """Voxels of structures summed up: number, `(3,)` sum and `(3, 3)` sum of products of their indices."""

    count: int
    first: np.ndarray
    second: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.first + other.first, self.second + other.second)


def moments(mask: np.ndarray, start: np.ndarray) -> Moments:
    """Returns the moments of a bool array `(I, J, K)` whose first voxel has the index `start` in its scan."""
    index = [np.arange(size) + first for size, first in zip(mask.shape, start, strict=True)]
    planes = {(a, b): mask.sum(axis=3 - a - b, dtype=np.float64) for a, b in ((0, 1), (0, 2), (1, 2))}
    lines = [planes[0, 1].sum(axis=1), planes[0, 1].sum(axis=0), planes[0, 2].sum(axis=0)]
    second = np.diag([float((line * i**2).sum()) for line, i in zip(lines, index, strict=True)])
    for (a, b), plane in planes.items():
        second[a, b] = second[b, a] = float(index[a] @ plane @ index[b])
    first = np.array([float((line * i).sum()) for line, i in zip(lines, index, strict=True)])
    return Moments(int(lines[0].sum()), first, second)


def limb_axis(how: str, grid: Geometry, labelled: Sequence[Moments] = ()) -> LimbAxis:
    """Returns a direction by name; "labels" takes the long axis of `labelled`, towards the head.

    Raises:
        ValueError: an unknown name, or "labels" without a labelled voxel.

    >>> limb_axis("slices", Geometry((4, 4, 4), np.diag([2.0, 2.0, -5.0, 1.0]))).step_mm
    5.0
    """
    if how == "patient":
        return LimbAxis(np.array([0.0, 0.0, 1.0]), grid)
    if how == "slices":
        return LimbAxis(_towards_head(_normal(grid)), grid)
    if how != "labels":
        raise ValueError(f"the limb's axis is {how!r}; choose from {', '.join(AXES)}")
    if not labelled:
        raise ValueError("nothing is labelled, so that the labels have no long axis; use 'slices' or 'patient'")
    total = sum(labelled[1:], start=labelled[0])
    mean = total.first / total.count
    covariance = total.second / total.count - np.outer(mean, mean)
    matrix = grid.affine[:3, :3]
    _, vectors = np.linalg.eigh(matrix @ covariance @ matrix.T)
    return LimbAxis(_towards_head(vectors[:, -1]), grid)


def _normal(grid: Geometry) -> np.ndarray:
    """Returns the normal of the slices nearest to foot-head, true for sheared grids too."""
    axis = next(axis for axis, letter in enumerate(grid.orientation) if letter in "SI")
    one, other = (grid.affine[:3, i] for i in range(3) if i != axis)
    normal = np.cross(one, other)
    return np.asarray(normal / np.linalg.norm(normal))


def _towards_head(direction: np.ndarray) -> np.ndarray:
    """Turns a direction to the head; one across the body to the front, then to the right."""
    leading = next((value for value in direction[::-1] if abs(value) > _EPSILON), 1.0)
    return direction if leading > 0 else -direction
