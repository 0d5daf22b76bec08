"""Both limbs under one name: parted into left and right where the labels are fewest.

Programs and readers often give both thighs' sartorius one number. Along the patient's left-right axis the labelled
voxels of two limbs make two heaps; the middle is the threshold between them (Otsu 1979: largest variance between the
two), moved to the emptiest place near it. Voxels on the patient's left of it become `<name>_left`. Structures that have
a side by name stay as they are and count for the middle, too.

With one limb in view there is one heap, and no emptiest place: then nothing is parted.
"""

from collections.abc import Iterator

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.volume import Volume

EMPTIEST = 0.2
"""At the middle there are at most this share of the labelled voxels at the lower of both heaps' peaks."""
_BIN_MM = 2.0
_NEAR_MM = 30.0
"""The emptiest place is looked for this far from the threshold."""


def split_sides(labels: Volume, label_map: LabelMap) -> tuple[Volume, LabelMap]:
    """Returns labels in which every structure has a side: left ones keep their ids, right ones follow the largest.

    Raises:
        ValueError: all structures have sides already, or two limbs cannot be told.
    """
    names = {key: name for key, name in label_map.names.items() if key}
    both = [key for key, name in names.items() if LabelMap.side(name) is None]
    if not both:
        raise ValueError("all structures have a side by name; there is nothing to split")
    first = max(*label_map.ids, label_map.ignore or 0) + 1
    right = {key: first + number for number, key in enumerate(both)}
    middle = _middle(labels, label_map)
    array = labels.array.astype(np.min_scalar_type(first + len(both)))
    table = np.arange(first, dtype=array.dtype)
    for key, new in right.items():
        table[key] = new
    for plane, x in zip(array, _x_of_planes(labels), strict=True):
        other = (x > middle) & (plane > 0)
        plane[other] = table[plane[other]]
    names |= {key: f"{names[key]}_left" for key in both} | {right[key]: f"{names[key]}_right" for key in both}
    return labels.with_array(array), LabelMap(names, ignore=label_map.ignore)


def _x_of_planes(labels: Volume) -> Iterator[np.ndarray]:
    """Yields the world x of every voxel, plane by plane of the first axis."""
    a, b, c, origin = labels.geometry.affine[0].tolist()
    count, rows, columns = labels.geometry.shape
    first = origin + b * np.arange(rows)[:, None] + c * np.arange(columns)
    yield from (first + a * plane for plane in range(count))


def _middle(labels: Volume, label_map: LabelMap) -> float:
    """Returns the world x between the limbs."""
    found = [x[_labelled(plane, label_map)] for plane, x in zip(labels.array, _x_of_planes(labels), strict=True)]
    low, high = min(x.min() for x in found if len(x)), max(x.max() for x in found if len(x))
    edges = np.arange(low - _BIN_MM, high + 2 * _BIN_MM, _BIN_MM)
    counts = np.array([np.histogram(x, edges)[0] for x in found], dtype=np.float64).sum(axis=0)
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = counts.cumsum(), counts.sum()
    mass, whole = (counts * centres).cumsum(), float(counts @ centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * (total - below) * (mass / below - (whole - mass) / (total - below)) ** 2
    threshold = edges[1:][np.nanargmax(between)]
    near = np.flatnonzero(np.abs(centres - threshold) <= _NEAR_MM)
    empty = near[counts[near] == counts[near].min()]
    place = int(empty[len(empty) // 2])
    peak = min(counts[: place + 1].max(), counts[place:].max())
    if counts[place] > EMPTIEST * peak or peak == 0:
        raise ValueError(
            "left and right limb cannot be told, since the labels lie in one heap; leave the sides as they are"
        )
    return float(centres[place])


def _labelled(plane: np.ndarray, label_map: LabelMap) -> np.ndarray:
    return (plane > 0) if label_map.ignore is None else (plane > 0) & (plane != label_map.ignore)
