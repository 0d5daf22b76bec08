"""How large a structure is, where it ends, and what is odd about its outline.

Volume. The voxels' own, N·V: whoever labels a voxel by its centre errs to either side alike. How far a voxel of doubt
reaches is told by two bounds: *inner* is what is left without the voxels that have a face towards something else, the
part that lies wholly inside; *outer* has all voxels besides that touch the structure with a face. The true surface
lies between them as long as the outline is right to one voxel. The edge of the scan is no surface of the muscle, and
neither is the edge of what somebody labelled: there nothing is taken away or added.

Ends. An end lies midway between the last voxel centre inside, along the limb, and the next centre beyond, among the
voxels that follow the structure slice by slice. On slices across the limb this is half a slice; on an oblique grid,
where centres lie dense along the axis, it is a fraction of that.

Pieces are parts that do not touch even with a corner (26 neighbours), as everywhere in this project.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import cc3d
import numpy as np
from scipy import ndimage

from tfmuscle.measuring.limb import LimbAxis
from tfmuscle.volume import Geometry, Volume

_LARGEST_LISTED_ID = 1 << 16
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_BEYOND = 1e-6
"""Centres closer along the axis than this share of a step are at one position."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """A structure cut out of its scan, one voxel wider where the scan goes on.

    Attributes:
        mask: `(I, J, K)` bool.
        unknown: `(I, J, K)` bool, voxels nobody labelled.
        start: `(3,)` index of the first voxel in the scan.
        grid: the scan's.
    """

    mask: np.ndarray
    unknown: np.ndarray
    start: np.ndarray
    grid: Geometry

    @property
    def box(self) -> tuple[slice, ...]:
        """Where it lies in the scan's arrays."""
        return tuple(slice(int(a), int(a) + n) for a, n in zip(self.start, self.mask.shape, strict=True))


@dataclass(frozen=True)
class Piece:
    """A part that touches no other: volume, centre of mass in the world, first and last slice."""

    volume_ml: float
    centroid_mm: tuple[float, float, float]
    slices: tuple[int, int]


@dataclass(frozen=True)
class Border:
    """A face of the scan that a structure touches: number of voxels, first and last slice of them."""

    voxels: int
    slices: tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """Size and outline of a structure.

    Attributes:
        volume_ml: of its voxels.
        inner_ml: of the voxels wholly inside.
        outer_ml: with all voxels that touch it.
        ends_mm: lower and upper position along the limb.
        centroid_mm: world position of its centre of mass.
        pieces: the largest first.
        borders: side of the patient ("S", "L", ...) -> where it touches that face of the scan.
        unlabelled_contacts: voxels of it beside voxels that nobody labelled.
    """

    volume_ml: float
    inner_ml: float
    outer_ml: float
    ends_mm: tuple[float, float]
    centroid_mm: tuple[float, float, float]
    pieces: tuple[Piece, ...]
    borders: Mapping[str, Border] = field(default_factory=dict)
    unlabelled_contacts: int = 0

    @property
    def length_mm(self) -> float:
        """Way along the limb from end to end."""
        return self.ends_mm[1] - self.ends_mm[0]

    @property
    def outside_largest(self) -> float:
        """Share of the volume that is not in the largest piece, 0..1."""
        return 1 - self.pieces[0].volume_ml / self.volume_ml


def cutouts(labels: Volume, ids: Iterable[int], *, ignore: int | None = None) -> Iterator[tuple[int, Cutout]]:
    """Yields (id, structure) of those ids that are there, one at a time.

    Args:
        labels: `(I, J, K)` ids.
        ids: wanted, without background.
        ignore: id of voxels nobody labelled.
    """
    for key, found in structure_boxes(labels.array, ids).items():
        start = np.maximum([part.start - 1 for part in found], 0)
        stop = np.minimum([part.stop + 1 for part in found], labels.geometry.shape)
        block = labels.array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        unknown = np.zeros(block.shape, bool) if ignore is None else block == ignore
        yield key, Cutout(block == key, unknown, start, labels.geometry)


def structure_boxes(array: np.ndarray, ids: Iterable[int]) -> dict[int, tuple[slice, ...]]:
    """Returns id -> the box around its voxels, of those ids that are there, sorted.

    >>> structure_boxes(np.array([[[0, 7, 7]]]), [7, 8])
    {7: (slice(0, 1, None), slice(0, 1, None), slice(1, 3, None))}
    """
    wanted = sorted(ids)
    compact, numbers = _compact(array, wanted)
    found = ndimage.find_objects(compact)
    boxes = {key: found[n - 1] if n <= len(found) else None for key, n in zip(wanted, numbers, strict=True)}
    return {key: box for key, box in boxes.items() if box is not None}


def _compact(array: np.ndarray, ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """Returns labels with small ids, and the number each wanted id has there: boxes are listed up to the largest."""
    if not ids or array.max() < _LARGEST_LISTED_ID:
        return array, ids
    compact = np.zeros(array.shape, np.uint16)
    known = np.array(ids)
    for slab, before in zip(compact, array, strict=True):
        place = np.minimum(np.searchsorted(known, before), len(known) - 1)
        slab[...] = np.where(known[place] == before, place + 1, 0)
    return compact, list(range(1, len(ids) + 1))


def measure_shape(cutout: Cutout, axis: LimbAxis) -> Shape:
    """Measures one structure."""
    voxel = cutout.grid.voxel_volume_ml
    inner, outer = _layers(cutout)
    count = int(np.count_nonzero(cutout.mask))
    lines = [cutout.mask.sum(axis=tuple(b for b in range(3) if b != a), dtype=np.int64) for a in range(3)]
    centre = [float(line @ np.arange(len(line))) / count for line in lines] + cutout.start
    x, y, z = (float(value) for value in cutout.grid.world(centre))
    contacts = cutout.mask & _touching(cutout.unknown) if cutout.unknown.any() else np.zeros(1, bool)
    return Shape(
        volume_ml=count * voxel,
        inner_ml=int(np.count_nonzero(inner)) * voxel,
        outer_ml=int(np.count_nonzero(outer)) * voxel,
        ends_mm=_ends(cutout, axis),
        centroid_mm=(x, y, z),
        pieces=_pieces(cutout, axis),
        borders=_borders(cutout, axis),
        unlabelled_contacts=int(np.count_nonzero(contacts)),
    )


def _shifted(padded: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the six neighbours by a face of an array padded by one voxel."""
    for axis in range(3):
        for shift in (0, 2):
            place = [slice(1, -1)] * 3
            place[axis] = slice(shift, padded.shape[axis] - 2 + shift)
            yield padded[tuple(place)]


def _layers(cutout: Cutout) -> tuple[np.ndarray, np.ndarray]:
    """Returns the voxels wholly inside, and those inside or touching; beyond the scan everything goes on as it is."""
    inside = np.pad(cutout.mask | cutout.unknown, 1, mode="edge")
    inner = cutout.mask.copy()
    for neighbour in _shifted(inside):
        inner &= neighbour
    return inner, cutout.mask | (_touching(cutout.mask) & ~cutout.unknown)


def _touching(mask: np.ndarray) -> np.ndarray:
    """Returns the voxels with a face towards a voxel of the mask."""
    touching = np.zeros(mask.shape, bool)
    for neighbour in _shifted(np.pad(mask, 1)):
        touching |= neighbour
    return touching


def _ends(cutout: Cutout, axis: LimbAxis) -> tuple[float, float]:
    """Finds both ends by the first and last voxel of each line of voxels along the slice axis."""
    along = axis.slice_axis
    lines = np.moveaxis(cutout.mask, along, 2)
    filled = np.argwhere(lines.any(axis=2))
    lines = lines[filled[:, 0], filled[:, 1]]
    outermost = []
    for place in (lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)):
        index = np.insert(filled, along, place, axis=1) + cutout.start
        outermost.append(axis.position(index))
    step, least = axis.step_mm, _BEYOND * axis.step_mm
    bottom, top = sorted(outermost, key=lambda positions: float(positions.sum()))
    low, high = float(bottom.min()), float(top.max())
    below, above = bottom - step, top + step
    below, above = below[below < low - least].max(), above[above > high + least].min()
    return (low + float(below)) / 2, (high + float(above)) / 2


def _pieces(cutout: Cutout, axis: LimbAxis) -> tuple[Piece, ...]:
    parts = cc3d.connected_components(cutout.mask, connectivity=26, binary_image=True)
    found = cc3d.statistics(parts)
    along, pieces = axis.slice_axis, []
    for number in np.argsort(-found["voxel_counts"][1:].astype(np.int64), kind="stable") + 1:
        x, y, z = cutout.grid.world(found["centroids"][number] + cutout.start).tolist()
        span = found["bounding_boxes"][number][along]
        slices = (int(cutout.start[along]) + span.start, int(cutout.start[along]) + span.stop - 1)
        pieces.append(Piece(int(found["voxel_counts"][number]) * cutout.grid.voxel_volume_ml, (x, y, z), slices))
    return tuple(pieces)


def _borders(cutout: Cutout, axis: LimbAxis) -> dict[str, Border]:
    """Returns where the structure touches faces of the scan; an axis of one voxel has no faces."""
    found, along = {}, axis.slice_axis
    for side, letter in enumerate(cutout.grid.orientation):
        size, start = cutout.grid.shape[side], int(cutout.start[side])
        ends = {_OPPOSITE[letter]: -start, letter: size - 1 - start}
        for name, place in ends.items():
            if size == 1 or not 0 <= place < cutout.mask.shape[side]:
                continue
            face = cutout.mask[(slice(None),) * side + (slice(place, place + 1),)]
            if not face.any():
                continue
            slices = np.flatnonzero(face.any(axis=tuple(b for b in range(3) if b != along))) + cutout.start[along]
            at = (start + place,) * 2 if side == along else (int(slices[0]), int(slices[-1]))
            found[name] = Border(int(np.count_nonzero(face)), at)
    return found
