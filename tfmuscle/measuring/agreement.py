"""Two labellings of one scan, structure by structure: another model's, another reader's, a fold's."""

from dataclasses import dataclass

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.measuring.shape import structure_boxes
from tfmuscle.volume import Volume

WORST_SLICES = 3


@dataclass(frozen=True)
class Agreement:
    """How far two labellings of a structure agree.

    Attributes:
        structure: its name.
        dice: 0..1; 0 where only one has it.
        volume_ml: of this one and the other one.
        worst: slices with the largest area that only one gives to the structure, the worst first.
    """

    structure: str
    dice: float
    volume_ml: tuple[float, float]
    worst: tuple[int, ...]


def agreement(labels: Volume, label_map: LabelMap, other: Volume, other_map: LabelMap, axis: int) -> list[Agreement]:
    """Compares structures that both maps name, if one of the labellings has them; matched by name.

    Voxels that either calls unknown count for nothing.

    Args:
        labels: `(I, J, K)` ids.
        label_map: their names.
        other: `(I, J, K)` ids on the same grid.
        other_map: their names.
        axis: of the arrays, along which slices follow each other.

    Raises:
        ValueError: the grids differ.
    """
    if not labels.geometry.same_grid(other.geometry):
        raise ValueError("the two labellings lie on different grids; resample one onto the other by nearest")
    shared = [name for name in label_map.structures if name in other_map.structures]
    first = structure_boxes(labels.array, [label_map.id_of(name) for name in shared])
    second = structure_boxes(other.array, [other_map.id_of(name) for name in shared])
    voxel, found = labels.geometry.voxel_volume_ml, []
    for name in shared:
        one, two = label_map.id_of(name), other_map.id_of(name)
        boxes = [box for box in (first.get(one), second.get(two)) if box is not None]
        if not boxes:
            continue
        box = tuple(slice(min(s.start for s in d), max(s.stop for s in d)) for d in zip(*boxes, strict=True))
        a, b = labels.array[box], other.array[box]
        unknown = np.zeros(a.shape, bool)
        for array, ignore in ((a, label_map.ignore), (b, other_map.ignore)):
            unknown |= np.False_ if ignore is None else array == ignore
        mine, theirs = (a == one) & ~unknown, (b == two) & ~unknown
        counts = [int(np.count_nonzero(part)) for part in (mine, theirs, mine & theirs)]
        dice = 2 * counts[2] / (counts[0] + counts[1]) if counts[0] + counts[1] else 1.0
        apart = (mine ^ theirs).sum(axis=tuple(side for side in range(3) if side != axis))
        worst = [int(k) + box[axis].start for k in np.argsort(-apart, kind="stable")[:WORST_SLICES] if apart[k]]
        found.append(Agreement(name, dice, (counts[0] * voxel, counts[1] * voxel), tuple(worst)))
    return found
