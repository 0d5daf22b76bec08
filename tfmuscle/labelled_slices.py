"""The few labelled slices of one scan: which they are, who validates, and labels that say nothing of the others.

The user has drawn a muscle on some slices of a scan, and saved one label file in which all other slices are empty.
There a voxel without a label means that nobody looked, not that nothing is there: unknown is not background. So labels
are made in which every voxel of the other slices has the ignore id, and each group of slices (those that train, those
that validate, or each slice alone) gets labels of its own.

The slices are found, not asked for: along the axis on which somebody drew every so many slices, labelled planes stand
alone; along the other two they follow each other, but for gaps between muscles. Where no axis has planes that stand
alone it is taken to be the slice axis, which `LabelledSlices.notes` says. Slices on which the muscle has ended look
like slices that nobody drew; they must be named.

Slices of one scan are not independent of each other: what validates lies some mm from what trains.
`LabelledSlices.apart_mm` says how far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.metrics import slice_axis
from tfmuscle.volume import Volume

FEWEST = 3
"""Labelled slices that are needed at least: one between two others validates."""
SLICES_PER_VALIDATION = 5
"""Of so many labelled slices one validates: the 3rd and the 8th of ten."""
ALONE = 2.0
"""Labelled planes stand alone where at most so many follow each other on average."""


@dataclass(frozen=True)
class LabelledSlices:
    """Where somebody drew.

    Attributes:
        axis: of the array, 0 to 2, along which slices follow each other.
        indices: labelled slices, ascending, counted from 0.
        step_mm: distance of neighbouring slices of the scan.
        empty: those of them on which somebody looked and found nothing.
        unlisted: slices that are labelled, but not among those that the user listed; they count as unknown.
        is_assumed: whether the axis was neither given nor found.
    """

    axis: int
    indices: tuple[int, ...]
    step_mm: float
    empty: tuple[int, ...] = ()
    unlisted: tuple[int, ...] = ()
    is_assumed: bool = False

    def notes(self) -> tuple[str, ...]:
        """Returns what the user should know of how the slices were found, a sentence each."""
        notes = []
        if self.is_assumed:
            notes.append(
                f"on no axis do labelled slices stand alone; they are taken to follow along axis {self.axis} of the"
                " array, the slice axis of the image; --axis names another"
            )
        if self.unlisted:
            notes.append(f"{len(self.unlisted)} labelled slices are not listed, and count as unknown")
        return tuple(notes)

    def validating(self) -> tuple[int, ...]:
        """Returns the slices that validate: the middle one of every five, never the first, the last or an empty one.

        Raises:
            ValueError: fewer than three labelled slices that show something.

        >>> LabelledSlices(2, tuple(range(0, 50, 5)), 3.0).validating()
        (10, 35)
        """
        shown = [index for index in self.indices if index not in self.empty]
        count = len(shown)
        if count < FEWEST:
            raise ValueError(
                f"{count} labelled slices; {FEWEST} are needed at least, so that one between others validates"
            )
        groups = np.array_split(np.arange(count), max(1, round(count / SLICES_PER_VALIDATION)))
        return tuple(shown[int(group[(len(group) - 1) // 2])] for group in groups)

    def apart_mm(self, some: Iterable[int]) -> float:
        """Returns the smallest distance between slices of `some` and the other labelled ones, mm."""
        chosen = set(some)
        others = [index for index in self.indices if index not in chosen]
        return min(abs(one - other) for one in chosen for other in others) * self.step_mm


def find_slices(
    labels: Volume, label_map: LabelMap, *, axis: int | None = None, listed: Sequence[int] | None = None
) -> LabelledSlices:
    """Finds the labelled slices.

    Args:
        labels: `(I, J, K)` ids.
        label_map: its ignore id marks voxels that nobody labelled.
        axis: along which slices follow each other; found by their gaps when not given.
        listed: the labelled slices, where empty ones are among them, or others are not to be trusted: those of
            another tool's mask of which only some were corrected.

    Raises:
        ValueError: nothing is labelled, none of the listed slices is, or an axis or slice that is not there.
    """
    known = labels.array != (0 if label_map.ignore is None else label_map.ignore)
    drawn = known & (labels.array != 0)
    if not drawn.any():
        raise ValueError("nothing is labelled; label some slices")
    if axis is not None and axis not in (0, 1, 2):
        raise ValueError(f"axis is {axis}; choose 0, 1 or 2")
    along, is_assumed = _axis(labels, drawn) if axis is None else (axis, False)
    found = _planes(drawn, along)
    step = labels.spacing[along]
    if listed is None:
        return LabelledSlices(along, found, step, is_assumed=is_assumed)
    wanted, count = sorted(set(listed)), labels.array.shape[along]
    if not wanted or wanted[0] < 0 or wanted[-1] >= count:
        raise ValueError(f"slices {wanted} are listed; axis {along} has slices 0 to {count - 1}")
    empty, unlisted = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if len(empty) == len(wanted):
        shown = ", ".join(map(str, found[:10])) + (" ..." if len(found) > 10 else "")
        raise ValueError(
            f"none of the listed slices {wanted} shows a label; along axis {along} those that do are {shown}, counted"
            " from 0; list some of them, or name another axis"
        )
    return LabelledSlices(along, tuple(wanted), step, tuple(empty), tuple(unlisted), is_assumed)


def _axis(labels: Volume, drawn: np.ndarray) -> tuple[int, bool]:
    """Returns the axis along which labelled planes stand alone, and whether it is assumed: where they do on none."""
    lengths = []
    for axis in range(3):
        planes = np.array(_planes(drawn, axis))
        runs = 1 + int((np.diff(planes) > 1).sum())
        lengths.append(len(planes) / runs if runs > 1 else np.inf)
    is_assumed = min(lengths) > ALONE
    return slice_axis(labels.geometry) if is_assumed else int(np.argmin(lengths)), is_assumed


def _planes(drawn: np.ndarray, axis: int) -> tuple[int, ...]:
    others = tuple(other for other in range(3) if other != axis)
    return tuple(np.flatnonzero(drawn.any(axis=others)).tolist())


def free_id(label_map: LabelMap) -> int:
    """Returns the map's ignore id, or one that no structure has."""
    if label_map.ignore is not None:
        return label_map.ignore
    return 255 if 255 not in label_map.names else max(label_map.names) + 1


def only(labels: Volume, slices: LabelledSlices, keep: Iterable[int], ignore: int) -> Volume:
    """Returns the labels of the slices in `keep`, with the id `ignore` in all others."""
    array = np.full(labels.array.shape, ignore, np.min_scalar_type(max(ignore, int(labels.array.max()))))
    for index in keep:
        where = tuple(index if axis == slices.axis else slice(None) for axis in range(3))
        array[where] = labels.array[where]
    return labels.with_array(array)
