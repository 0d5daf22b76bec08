"""The slices between the drawn ones, from their shapes alone: `interpolate_slices`.

The user has drawn every so many slices and wants the others without a network: as a first guess to correct, as what a
network must beat, or as one more opinion.

*Shape interpolation* (Raya and Udupa, "Shape-based interpolation of multidimensional objects", IEEE Transactions on
Medical Imaging 9, 1990). On both drawn slices every pixel gets its signed distance in mm to the outline of the
structure, positive inside; between them the two distances are blended linearly by position, and the structure is where
the blend is not negative. Where several structures claim a pixel, the largest blend has it. The drawn slices stay as
drawn.

What the method leaves open:

* *Muscles that lean.* If the outline moves sideways by more than its width, the blend is negative everywhere and the
  muscle is lost; by less, it is pinched. So the two cross-sections are first put upon each other, centroid upon
  centroid, and the blend is put at the centroid in between: sheared shapes keep their shape. Distances are moved by
  parts of a pixel (linear interpolation); moved by whole pixels most real muscles came out worse than not moved at
  all. This is right only if both slices show the same parts; where one of two parts ends, the centroid jumps. So it is
  done only if the cross-sections overlap more that way than as they were drawn.
* *Muscles that end.* A drawn slice speaks of all structures. One that is on it and not on the next shrinks evenly and
  ends there: after the share t of the way it is where its distance on the first slice is larger than t times that of
  its deepest pixel. A disc becomes a cone. Where between the two it truly ended nobody knows.
* *The outline* runs between pixels: half a pixel's extent is taken off the distance between centres. A pixel on it is
  inside, so that no seam opens between neighbours. The scan's border is no outline, for the muscle goes on beyond it.

Outside the first and the last labelled slice all is background, and so is what the ignore id marks on a drawn slice.

Rejected: blending all structures with one common shift (neighbours slide along each other), and surfaces of the whole
stack (they do not keep the drawn slices).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.volume import Volume

Progress = Callable[[int, int, str], None]
_ON_OUTLINE_MM = 1e-4
"""A distance this close to 0 is 0, whatever the rounding."""


def interpolate_slices(
    labels: Volume, label_map: LabelMap, slices: LabelledSlices, *, progress: Progress | None = None
) -> Volume:
    """Returns labels of every slice from the first to the last labelled one, background beyond.

    Two slices' distances of every structure are held at a time, besides the labels.

    Args:
        labels: `(I, J, K)` ids; only those of the labelled slices are looked at.
        label_map: names the ids.
        slices: which are labelled, along which axis.
        progress: called with (slices done, slices in all, note).

    Raises:
        ValueError: fewer than two labelled slices, or an id without a name.
    """
    if len(slices.indices) < 2:
        raise ValueError(f"{len(slices.indices)} labelled slice(s); 2 are needed at least, to fill what lies between")
    if unknown := label_map.unknown_ids(distinct(labels.array)):
        raise ValueError(f"ids {list(unknown)} have no name; name them in the label map")
    drawn = np.moveaxis(labels.array, slices.axis, 0)
    array = np.zeros(labels.array.shape, np.min_scalar_type(max(label_map.ids)))
    filled = np.moveaxis(array, slices.axis, 0)
    for index in slices.indices:
        filled[index] = np.where(np.isin(drawn[index], label_map.ids), drawn[index], 0)
    step = tuple(size for axis, size in enumerate(labels.spacing) if axis != slices.axis)
    first, last = slices.indices[0], slices.indices[-1]
    for start, stop in itertools.pairwise(slices.indices):
        for index, plane in enumerate(slices_between(filled[start], filled[stop], stop - start - 1, step), start + 1):
            filled[index] = plane
        if progress is not None:
            progress(stop - first, last - first, "")
    return labels.with_array(array)


def expected_error(labels: Volume, label_map: LabelMap, slices: LabelledSlices) -> np.ndarray:
    """Returns by how much interpolation is probably wrong, mm², `(num_structures, num_slices)`.

    The labelled slices tell: each but the outermost is left out, interpolated from its neighbours, and compared with
    what is drawn on it. A straight line between b and c misses a curve of constant bend by a share of (z - b) (c - z).
    So an area E that is wrong on slice m between its neighbours a and c is a bend E / ((m - a) (c - m)); in each gap
    the mean bend of its two ends, or that of the one which has two neighbours, times (z - b) (c - z) is to be expected.

    0 on labelled slices, NaN beyond them, and NaN everywhere but there if fewer than three are labelled.

    Args:
        labels: `(I, J, K)` ids; only those of the labelled slices are looked at.
        label_map: names the ids.
        slices: which are labelled, along which axis.
    """
    drawn = np.moveaxis(np.where(np.isin(labels.array, label_map.ids), labels.array, 0), slices.axis, 0)
    keys = np.array([key for key in label_map.ids if key])[:, np.newaxis, np.newaxis]
    step = tuple(size for axis, size in enumerate(labels.spacing) if axis != slices.axis)
    bends: dict[int, np.ndarray] = {}
    for before, left_out, after in zip(slices.indices, slices.indices[1:], slices.indices[2:], strict=False):
        planes = slices_between(drawn[before], drawn[after], after - before - 1, step)
        guess = next(itertools.islice(planes, left_out - before - 1, None))
        wrong = ((guess == keys) != (drawn[left_out] == keys)).sum(axis=(1, 2)) * float(np.prod(step))
        bends[left_out] = wrong / ((left_out - before) * (after - left_out))
    found = np.full((len(keys), len(drawn)), np.nan)
    found[:, list(slices.indices)] = 0
    for before, after in itertools.pairwise(slices.indices):
        if ends := [bends[end] for end in (before, after) if end in bends]:
            between = np.arange(before + 1, after)
            found[:, between] = np.outer(np.mean(ends, axis=0), (between - before) * (after - between))
    return found


def slices_between(before: np.ndarray, after: np.ndarray, count: int, step: tuple[float, ...]) -> Iterator[np.ndarray]:
    """Yields the ids `(H, W)` of `count` slices between two drawn ones.

    Args:
        before: `(H, W)` ids of the one.
        after: the same of the other.
        count: slices between them.
        step: spacing of rows and columns, mm.
    """
    pairs = tuple(_pairs(before, after, step))
    for number in range(1, count + 1):
        yield _between(pairs, number / (count + 1), before)


@dataclass(frozen=True, eq=False)
class _Pair:
    """One structure on two slices.

    Attributes:
        key: its id.
        box: rows and columns outside which it is nowhere between the slices.
        before: signed distances in mm within the box on the first slice, positive inside.
        after: the same on the second.
        shift: way of the centroid from the first to the second, in pixels; None if they are blended as they lie.
    """

    key: int
    box: tuple[slice, slice]
    before: np.ndarray
    after: np.ndarray
    shift: np.ndarray | None = None

    def blended(self, share: float) -> np.ndarray:
        """Returns the signed distances at `share`, 0 to 1, of the way."""
        before, after = self.before, self.after
        if self.shift is not None:
            before, after = _moved(before, share * self.shift), _moved(after, (share - 1) * self.shift)
        return (1 - share) * before + share * after


def _between(pairs: tuple[_Pair, ...], share: float, background: np.ndarray) -> np.ndarray:
    """Returns the ids of one slice: of every pixel the structure that lies deepest there."""
    ids, deepest = np.zeros_like(background), np.full(background.shape, -_ON_OUTLINE_MM, np.float32)
    for pair in pairs:
        depth = pair.blended(share)
        wins = depth > deepest[pair.box]
        ids[pair.box][wins] = pair.key
        deepest[pair.box][wins] = depth[wins]
    return ids


def _pairs(before: np.ndarray, after: np.ndarray, step: tuple[float, ...]) -> Iterator[_Pair]:
    present = set(np.unique(before).tolist()) | set(np.unique(after).tolist())
    for key in sorted(present - {0}):
        yield _pair(key, before == key, after == key, step)


def _pair(key: int, one: np.ndarray, other: np.ndarray, step: tuple[float, ...]) -> _Pair:
    if not (one.any() and other.any()):
        box = _box(one | other, np.zeros(2))
        depth = signed_distance((one | other)[box], step)
        ended = depth - depth.max()
        return _Pair(key, box, depth, ended) if one.any() else _Pair(key, box, ended, depth)
    shift = np.subtract(ndimage.center_of_mass(other), ndimage.center_of_mass(one))
    box = _box(one | other, shift)
    inside, later = one[box], other[box]
    before, after = signed_distance(inside, step), signed_distance(later, step)
    centred = np.count_nonzero(inside & (_moved(after, -shift) > 0))
    return _Pair(key, box, before, after, shift if centred > np.count_nonzero(inside & later) else None)


def _box(mask: np.ndarray, shift: np.ndarray) -> tuple[slice, slice]:
    """Returns rows and columns that hold the mask moved by up to `shift` either way, and a pixel around it."""
    sides = []
    for axis in range(2):
        where, margin = np.flatnonzero(mask.any(axis=1 - axis)), 1 + int(np.ceil(abs(shift[axis])))
        sides.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + margin + 1))
    return sides[0], sides[1]


def signed_distance(mask: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    """Returns the distance of every pixel centre of a 2D mask to its outline, mm, positive inside, float32.

    The outline is taken to lie half a pixel from the nearest centre on its other side: exact for straight outlines
    along rows or columns. The border of the array is no outline, unless nothing else is.

    Args:
        mask: `(H, W)`, with a pixel inside.
        step: spacing of rows and columns, mm.

    >>> signed_distance(np.array([[False, True, True, False, False]]), (2.0, 2.0)).tolist()
    [[-1.0, 1.0, 1.0, -1.0, -3.0]]
    """
    if mask.all():
        return signed_distance(np.pad(mask, 1), step)[1:-1, 1:-1]
    return np.where(mask, _to_outline(mask, step), -_to_outline(~mask, step)).astype(np.float32)


def _to_outline(mask: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    nearest = ndimage.distance_transform_edt(mask, step, return_distances=False, return_indices=True)
    rows, columns = (way * size for way, size in zip(nearest - np.indices(mask.shape), step, strict=True))
    length = np.hypot(rows, columns)
    pixel = np.hypot(rows * step[0], columns * step[1]) / np.where(mask, length, 1)  # its extent in that direction
    return length - pixel / 2


def _moved(distances: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return ndimage.shift(distances, shift, order=1, mode="nearest", prefilter=False)
