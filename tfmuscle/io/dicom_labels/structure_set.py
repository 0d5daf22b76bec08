"""A radiotherapy structure set (RTSTRUCT) as masks: contours in the patient, filled on the grid of the scan.

Every closed contour lies in one slice. The contours of one structure in one slice are filled together by the even-odd
rule: a contour in a contour is a hole, and a keyhole contour, which runs into its hole and back along one line, comes
out right. A voxel belongs to a structure when its centre lies inside or on a contour. On counts as inside because many
programs draw contours through the centres of the outermost voxels; taking one side of the border and not the other
would move such a structure by half a voxel.

Rejected: filling in 3D between the slices, because contours left out may be meant; drawing with an image library's
polygon fill, which rounds corners to whole pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels.names import structure_names
from tfmuscle.io.dicom_labels.objects import AGAIN, LPS_TO_RAS, damage_refused, items, open_object
from tfmuscle.volume import Geometry

PLANE_TOLERANCE = 0.1
"""A contour may lie off its slice, anywhere, by this share of the slice distance."""
ON_CONTOUR = 0.005
"""A voxel's centre this close to a contour, in voxels, is on it: above the rounding of contours to 0.01 mm."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_FARTHEST_MM = 1e5


@dataclass(frozen=True, eq=False)
class _Structure:
    """Closed contours of one structure, each `(N, 3)` in RAS mm, and how many points and open contours it has."""

    contours: list[np.ndarray]
    skipped: int


def read_structure_set(
    path: str | Path, *, reference: Geometry, say: Callable[[str], None] | None = None
) -> tuple[dict[str, np.ndarray], Geometry]:
    """Reads a DICOM RTSTRUCT as bool masks `(I, J, K)` by name on the grid of the scan it was drawn on.

    Contours must lie in slices of `reference`, along whichever of its axes, to within a tenth of the slice distance.
    Slices between contours stay empty. What lies outside the grid is cut. A structure without any closed contour has no
    mask when it has points or open contours, else an empty one. Names are plain words with the side at the end.

    Args:
        path: the file.
        reference: grid of the scan.
        say: called with one line for every structure of which points or open contours are left out.

    Raises:
        DataError: no structure set, a damaged one, or one that was drawn on another grid.
    """
    path = Path(path)
    with damage_refused(path):
        structures = _read(path, open_object(path, "structure set"))
    masks: dict[str, np.ndarray] = {}
    indices = {name: [reference.index(contour) for contour in found.contours] for name, found in structures.items()}
    axis = _slice_axis(path, [contour for contours in indices.values() for contour in contours], reference)
    for name, found in structures.items():
        if found.skipped and say is not None:
            say(f"{path}: {name}: {found.skipped} points or open contours left out; only closed contours are filled")
        if indices[name] or not found.skipped:
            masks[name] = _filled(indices[name], axis, reference.shape)
    if any(indices.values()) and not any(mask.any() for mask in masks.values()):
        raise DataError(f"{path}: lies outside the scan's grid; give the scan that these contours were drawn on")
    return masks, reference


def contour_names(path: Path, dataset: FileDataset) -> list[str]:
    """Returns the names of the structures of an opened RTSTRUCT that have a mask."""
    return [name for name, found in _read(path, dataset).items() if found.contours or not found.skipped]


def _read(path: Path, dataset: FileDataset) -> dict[str, _Structure]:
    rois = items(dataset, "StructureSetROISequence")
    names = structure_names(path, [(int(roi.ROINumber), str(roi.get("ROIName") or ""), None) for roi in rois])
    if not names:
        raise DataError(f"{path}: describes no structure; {AGAIN}")
    structures = {name: _Structure([], 0) for name in names.values()}
    for drawn in items(dataset, "ROIContourSequence"):
        name = names.get(int(drawn.ReferencedROINumber))
        if name is None:
            raise DataError(f"{path}: contours of a structure that is not described; {AGAIN}")
        before = structures[name]
        contours, skipped = _contours(path, items(drawn, "ContourSequence"))
        structures[name] = _Structure(before.contours + contours, before.skipped + skipped)
    return structures


def _contours(path: Path, found: list[Dataset]) -> tuple[list[np.ndarray], int]:
    contours, skipped = [], 0
    for contour in found:
        points = _points(path, contour)
        if contour.get("ContourGeometricType") in _CLOSED:
            contours.append(points)
        else:
            skipped += 1
    return contours, skipped


def _points(path: Path, contour: Dataset) -> np.ndarray:
    """Returns the points `(N, 3)` in RAS mm, straight from the text: pydicom's decimals would take a minute."""
    element: Any = contour.get_item("ContourData")
    value = None if element is None else element.value
    if isinstance(value, bytes):
        value = value.decode("ascii").strip(" \0").split("\\")
    try:
        points = np.array(value, dtype=np.float64).reshape(-1, 3)
        is_usable = bool(len(points)) and bool((np.abs(points) < _FARTHEST_MM).all())
    except (TypeError, ValueError):
        is_usable = False
    promised = contour.get("NumberOfContourPoints")
    if not is_usable or (promised is not None and int(promised) != len(points)):
        raise DataError(f"{path}: a contour without usable points; {AGAIN}")
    return points * LPS_TO_RAS


def _slice_axis(path: Path, contours: list[np.ndarray], reference: Geometry) -> int:
    """Returns the axis of the grid along which no contour extends, after checking that all lie in slices."""
    if not contours:
        return 2
    spreads = np.array([np.ptp(contour, axis=0) for contour in contours]).max(axis=0)
    axis = int(spreads.argmin())
    if spreads[axis] > PLANE_TOLERANCE:
        raise DataError(
            f"{path}: contours are not parallel to the slices of the scan (they cross {spreads[axis]:.2f} of the slice"
            " distance); give the scan that they were drawn on"
        )
    planes = np.array([contour[:, axis].mean() for contour in contours])
    off = max(float(np.abs(contour[:, axis] - np.rint(contour[:, axis].mean())).max()) for contour in contours)
    if off > PLANE_TOLERANCE:
        raise DataError(
            f"{path}: contours lie between the slices of the scan ({off * reference.spacing[axis]:.2f} mm off, slices "
            f"are {reference.spacing[axis]:.2f} mm apart); give the scan that they were drawn on"
        )
    steps = np.diff(np.unique(np.rint(planes).astype(np.int64)))
    common = int(np.gcd.reduce(steps)) if len(steps) > 1 else 1
    if common > 1:
        raise DataError(
            f"{path}: contours only in one of {common} slices of the scan, which would leave gaps; "
            "give the scan that they were drawn on"
        )
    return axis


def _filled(contours: list[np.ndarray], axis: int, shape: tuple[int, int, int]) -> np.ndarray:
    slices = np.zeros((shape[axis], *np.delete(shape, axis)), dtype=bool)  # one slice in one piece: much faster to fill
    by_slice: dict[int, dict[bytes, np.ndarray]] = {}
    for contour in contours:
        polygon = np.ascontiguousarray(np.delete(contour, axis, axis=1))
        same_slice = by_slice.setdefault(int(np.rint(contour[:, axis].mean())), {})
        same_slice[polygon.tobytes()] = polygon  # a contour stored twice would cancel itself
    for place, polygons in by_slice.items():
        if 0 <= place < len(slices):
            slices[place] = fill(list(polygons.values()), slices.shape[1:])
    return np.moveaxis(slices, 0, axis)


def fill(polygons: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Returns which pixel centres lie inside (even-odd) or on closed polygons, `(A, B)`.

    A pixel is inside when a ray from its centre towards smaller b crosses an odd number of edges.

    Args:
        polygons: corners `(N, 2)` in pixels, (0, 0) being the centre of the first pixel; the last joins the first.
        shape: pixels along a and b.

    >>> fill([np.array([[0.5, 0.5], [0.5, 2.5], [2.5, 2.5], [2.5, 0.5]])], (4, 4)).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    start = np.concatenate(polygons)
    stop = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)
    lines, edge = _lines(np.minimum(start, stop)[:, 0], np.maximum(start, stop)[:, 0], shape[0])
    low, high = start[edge], stop[edge]
    crossed = low[:, 1] + (lines - low[:, 0]) * (high[:, 1] - low[:, 1]) / (high[:, 0] - low[:, 0])
    first = np.clip(np.ceil(crossed), 0, shape[1]).astype(np.int64)
    np.add.at(crossings, (lines, first), 1)
    inside = np.cumsum(crossings[:, :-1], axis=1) % 2 == 1
    for along in (0, 1):
        _mark_edges(inside, start, stop, along)
    return inside


def _lines(low: np.ndarray, high: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns every whole number in `low <= n < high` of every edge, within 0..size-1, and the edge it belongs to."""
    first = np.clip(np.ceil(low), 0, size).astype(np.int64)
    counts = np.maximum(np.clip(np.ceil(high), 0, size).astype(np.int64) - first, 0)
    edge = np.repeat(np.arange(len(low)), counts)
    before = np.cumsum(counts) - counts
    return first[edge] + np.arange(len(edge)) - before[edge], edge


def _mark_edges(inside: np.ndarray, start: np.ndarray, stop: np.ndarray, along: int) -> None:
    """Marks pixel centres on the edges that run mainly along one axis."""
    across = 1 - along
    run = np.abs(stop - start)
    chosen = run[:, along] >= run[:, across] if along == 0 else run[:, along] > run[:, across]
    start, stop = start[chosen], stop[chosen]
    low = np.minimum(start, stop)[:, along] - ON_CONTOUR
    high = np.maximum(start, stop)[:, along] + ON_CONTOUR
    lines, edge = _lines(low, high, inside.shape[along])
    start, way = start[edge], (stop - start)[edge]
    length = np.where(way[:, along] == 0, 1.0, way[:, along])
    share = np.clip((lines - start[:, along]) / length, 0.0, 1.0)
    place = start[:, across] + share * way[:, across]
    nearest = np.rint(place)
    is_on = (np.abs(place - nearest) <= ON_CONTOUR) & (nearest >= 0) & (nearest < inside.shape[across])
    hit = [lines[is_on], nearest[is_on].astype(np.int64)]
    inside[hit[along], hit[across]] = True
