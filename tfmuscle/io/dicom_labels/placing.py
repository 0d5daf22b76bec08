"""Where frames lie, and how masks get from their own grid onto another.

Frames of a label object need not fill a stack: empty slices are left out, and their order is free. The grid is found
from the places alone: parallel frames whose depths along the normal are whole multiples of one step. The step is
`SpacingBetweenSlices` when the places agree with it, else the smallest distance between frames, else the slice
thickness.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels.objects import AGAIN, LPS_TO_RAS
from tfmuscle.volume import Geometry

_COSINE_TOLERANCE = 1e-3
"""Directions that differ by less (0.06 degrees) are one direction: above rounding in headers."""
_STEP_TOLERANCE = 0.05
"""Frames may lie off their slice by this share of the slice distance."""
_ASIDE_TOLERANCE = 0.1
"""Frames may lie aside of the line through the stack by this share of a pixel."""
_SAME_DEPTH_MM = 1e-3
_PLAUSIBLE_MM = (1e-3, 1e3)
"""Distances of pixels and slices outside these are damage, and would not survive the arithmetic."""
_MAX_SLICES = 10_000
_SEPARABLE = 0.01
"""Axes count as parallel when, over the whole grid, they part by less than this share of a voxel."""
_TIE = 1e-3
"""A position this close to the middle between two voxels goes to the first, so that rounding cannot decide."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where frames lie in DICOM's LPS mm.

    Attributes:
        positions: centre of the first pixel of every frame, `(F, 3)`.
        cosines: directions of the column and the row index of every frame, `(F, 6)`.
        spacings: mm between rows and between columns of every frame, `(F, 2)`.
        step: stated mm from slice to slice, or None.
        thickness: stated slice thickness in mm, or None.
    """

    positions: np.ndarray
    cosines: np.ndarray
    spacings: np.ndarray
    step: float | None = None
    thickness: float | None = None


def stack(path: Path, places: Places, shape: tuple[int, int]) -> tuple[Geometry, np.ndarray]:
    """Returns the grid that holds all frames of `shape` (rows, columns), and the slice of every frame, `(F,)`.

    Raises:
        DataError: the frames are no parallel, evenly spaced stack.
    """
    cosines, spacing = places.cosines[0], places.spacings[0]
    if np.abs(places.cosines - cosines).max() > _COSINE_TOLERANCE:
        raise DataError(f"{path}: frames of different orientation; one stack is needed, {AGAIN}")
    if not _PLAUSIBLE_MM[0] <= places.spacings.min() <= places.spacings.max() <= _PLAUSIBLE_MM[1]:
        raise DataError(f"{path}: no plausible PixelSpacing; {AGAIN}")
    if np.abs(places.spacings / spacing - 1).max() > _COSINE_TOLERANCE:
        raise DataError(f"{path}: frames of different pixel size; one stack is needed, {AGAIN}")
    column, row = cosines[:3], cosines[3:]
    if np.abs([column @ column - 1, row @ row - 1, column @ row]).max() > 10 * _COSINE_TOLERANCE:
        raise DataError(f"{path}: ImageOrientationPatient is no pair of directions; {AGAIN}")
    column, row = column / np.linalg.norm(column), row / np.linalg.norm(row)
    normal = np.cross(column, row)
    depths = places.positions @ normal
    step, slices = _slices(path, places, depths - depths.min())
    first = places.positions[np.argmin(depths)]
    last = places.positions[np.argmax(depths)]
    direction = (last - first) / slices.max() if slices.max() else normal * step
    aside = np.linalg.norm(places.positions - first - slices[:, None] * direction, axis=1)
    if aside.max() > _ASIDE_TOLERANCE * min(*spacing, step):
        raise DataError(f"{path}: frames do not lie on one line (tiles?); one stack of whole slices is needed, {AGAIN}")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = column * spacing[1], row * spacing[0], direction
    affine[:3, 3] = first
    affine[:3] *= LPS_TO_RAS[:, None]
    try:
        return Geometry((shape[1], shape[0], int(slices.max()) + 1), affine), slices
    except ValueError as error:
        raise DataError(f"{path}: the headers give no usable grid; {AGAIN}") from error


def _slices(path: Path, places: Places, depths: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the step in mm and the slice number of every depth."""
    distinct = np.unique(depths)
    gaps = np.diff(distinct)
    gaps = gaps[gaps > _SAME_DEPTH_MM]
    smallest = float(gaps.min()) if len(gaps) else None
    for step in (places.step, smallest, places.thickness):
        if step is None or not _PLAUSIBLE_MM[0] <= step <= _PLAUSIBLE_MM[1]:
            continue
        if depths.max() / step >= _MAX_SLICES:
            continue
        slices = np.rint(depths / step).astype(np.int64)
        if slices.max():
            step = float(depths.max() / slices.max())
        elif smallest is not None:
            continue
        if np.abs(depths - slices * step).max() <= _STEP_TOLERANCE * step:
            return step, slices
    if smallest is None:
        raise DataError(f"{path}: one slice without SpacingBetweenSlices or SliceThickness has no volume; {AGAIN}")
    raise DataError(
        f"{path}: frames at {len(gaps) + 1} depths, {gaps.min():.3f} to {gaps.max():.3f} mm apart, are on no evenly "
        f"spaced stack; {AGAIN}"
    )


def on_grid(path: Path, masks: dict[str, np.ndarray], own: Geometry, reference: Geometry) -> dict[str, np.ndarray]:
    """Returns the masks on another grid: every voxel takes the nearest voxel of the mask's own grid, none outside it.

    Exact when the grids have the same voxels, whatever the order and direction of their axes. `masks` is emptied on the
    way, so that every mask is held once.

    Raises:
        DataError: there is something in the masks and nothing of it on the other grid.
    """
    had_voxels, placed = False, {}
    pick = _picker(own, reference)
    for name in list(masks):
        mask = masks.pop(name)
        had_voxels |= bool(mask.any())
        placed[name] = pick(mask)
    if had_voxels and not any(mask.any() for mask in placed.values()):
        raise DataError(f"{path}: lies outside the scan's grid; give the scan that these labels were drawn on")
    return placed


def _picker(own: Geometry, reference: Geometry) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that takes a mask from `own` to `reference`."""
    mapping = np.linalg.inv(own.affine) @ reference.affine
    extent = np.array(reference.shape) - 1
    source = np.abs(mapping[:3, :3] * np.maximum(extent, 1)).argmax(axis=1)  # own axis -> axis of the reference
    others = np.abs(mapping[:3, :3] * extent).sum(axis=1) - np.abs(mapping[range(3), source] * extent[source])
    if sorted(source) == [0, 1, 2] and others.max() <= _SEPARABLE:
        return lambda mask: _picked_along_axes(mask, mapping, source, reference.shape)
    return lambda mask: _picked_point_by_point(mask, mapping, reference.shape)


def _nearest(position: np.ndarray) -> np.ndarray:
    return np.ceil(position - 0.5 - _TIE).astype(np.int64)


def _picked_along_axes(mask: np.ndarray, mapping: np.ndarray, source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    rows, kept = [], [np.empty(0, dtype=np.int64)] * 3
    for axis in range(3):
        index = _nearest(mapping[axis, source[axis]] * np.arange(shape[source[axis]]) + mapping[axis, 3])
        inside = (index >= 0) & (index < mask.shape[axis])
        rows.append(index[inside])
        kept[source[axis]] = np.flatnonzero(inside)
    placed = np.zeros(shape, dtype=bool)
    placed[np.ix_(*kept)] = mask[np.ix_(*rows)].transpose(np.argsort(source))
    return placed


def _picked_point_by_point(mask: np.ndarray, mapping: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    placed = np.zeros(shape, dtype=bool)
    plane = np.indices(shape[1:]).reshape(2, -1)
    for number in range(shape[0]):
        points = mapping[:3, 1:3] @ plane + (mapping[:3, 0] * number + mapping[:3, 3])[:, None]
        index = _nearest(points)
        inside = ((index >= 0) & (index < np.array(mask.shape)[:, None])).all(axis=0)
        values = np.zeros(plane.shape[1], dtype=bool)
        values[inside] = mask[tuple(index[:, inside])]
        placed[number] = values.reshape(shape[1:])
    return placed
