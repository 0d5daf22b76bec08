"""Which slices are worth labelling next: where the shapes between the drawn ones are probably wrong.

The user has labelled a few slices and can spare the time for a few more. Several *opinions* of the whole scan are
there: labels of each network that was trained on the slices, and the shapes interpolated between them. Where all agree
little is to be learnt by drawing; where they differ somebody is wrong.

* `slice_disagreement` measures that in mm² of each slice and structure: the area that one opinion gives to the
  structure and another does not, as the mean over all pairs of opinions (query by committee: Seung et al., COLT 1992).
* `probable_error` asks who is wrong. On a drawn slice the truth is known: what is in dispute there is the networks' own
  mistake, which goes on beside it and is taken off, so that a network which found nothing has nothing to say. Besides,
  the drawn slices tell by themselves where shapes bend (`interpolation.expected_error`). The mean of both it is.
* `choose_slices` lowers that near drawn slices, because a drawn slice settles its neighbours too; it takes the worst
  slice, does the same around it, and takes the worst of what is left.

An opinion may be silent about some slices: interpolation knows nothing beyond the drawn ones. It is then left out of
the pairs. Where fewer than two speak the disagreement is unknown (NaN), not 0, and no slice is suggested.

Rejected, as they did not beat even distances (benchmarks/few_labels.md): disagreement alone, for a network trained on
five slices is wrong more often than interpolation; its opinions with one slice left out each as further opinions.
Entropy of the probabilities (such networks are sure of themselves also where they are wrong, and interpolation has
none), and areas relative to the structure (its thin ends would always win).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.volume import Volume

_TIE = 1e-9
"""Scores that differ by a smaller share are one score."""


@dataclass(frozen=True, eq=False)
class Opinion:
    """Labels of a scan by one method.

    Attributes:
        name: of the method.
        labels: `(I, J, K)` ids.
        span: first and last slice of which it speaks; None for all.
    """

    name: str
    labels: Volume
    span: tuple[int, int] | None = None

    def speaks(self, index: int) -> bool:
        """Whether it has something to say of slice `index`."""
        return self.span is None or self.span[0] <= index <= self.span[1]


def slice_disagreement(opinions: Sequence[Opinion], label_map: LabelMap, axis: int) -> np.ndarray:
    """Returns by how much opinions differ, mm², `(num_structures, num_slices)`; NaN where fewer than two speak.

    Of n opinions of which k give a pixel to the structure, k (n - k) of all n (n - 1) / 2 pairs differ there.

    Args:
        opinions: on one grid.
        label_map: names the structures; all other ids are background.
        axis: of the arrays, along which slices follow each other.

    Raises:
        ValueError: no opinion, or different grids.
    """
    if not opinions or any(not o.labels.geometry.same_grid(opinions[0].labels.geometry) for o in opinions):
        raise ValueError("opinions are needed, all on one grid; resample them first")
    geometry = opinions[0].labels.geometry
    one, other = (geometry.affine[:3, number] for number in range(3) if number != axis)
    area = float(np.linalg.norm(np.cross(one, other)))
    planes = [np.moveaxis(opinion.labels.array, axis, 0) for opinion in opinions]
    keys = [key for key in label_map.ids if key]
    found = np.full((len(keys), geometry.shape[axis]), np.nan)
    for index in range(geometry.shape[axis]):
        said = [plane[index] for plane, opinion in zip(planes, opinions, strict=True) if opinion.speaks(index)]
        if len(said) < 2:
            continue
        differs = np.any([plane != said[0] for plane in said[1:]], axis=0)
        open_pixels = np.stack([plane[differs] for plane in said])
        for row, key in enumerate(keys):
            votes = np.count_nonzero(open_pixels == key, axis=0)
            pairs = int((votes * (len(said) - votes)).sum())
            found[row, index] = area * pairs / (len(said) * (len(said) - 1) / 2)
    return found


def probable_error(differing: np.ndarray, expected: np.ndarray, drawn: Sequence[int]) -> np.ndarray:
    """Returns the area of each slice that the interpolated shapes probably have wrong, mm²; NaN where unknown.

    It is the mean of two estimates: disagreement, less what is in dispute on the drawn slices (between two of them both
    blended by distance) and never below 0; and what slices that are left out tell. Where one is unknown the other
    stands alone.

    Args:
        differing: disagreement of every slice, mm²; NaN where fewer than two opinions speak.
        expected: the error of interpolation as drawn slices tell it, mm²; NaN where they do not.
        drawn: slices that are drawn, ascending.

    Raises:
        ValueError: no drawn slice.

    >>> probable_error(np.array([2.0, 9.0, 2.0]), np.array([0.0, 1.0, 0.0]), [0, 2])
    array([0., 4., 0.])
    """
    if not len(drawn):
        raise ValueError("no slice is drawn; name those that are")
    mistaken = np.interp(np.arange(len(differing)), drawn, np.nan_to_num(differing[list(drawn)]))
    disputed = np.maximum(0, differing - mistaken)
    both = np.where(np.isnan(disputed), expected, (disputed + expected) / 2)
    return np.where(np.isnan(expected), disputed, both)


def choose_slices(score: np.ndarray, drawn: Iterable[int], count: int) -> tuple[int, ...]:
    """Returns up to `count` slices to draw next, the most useful first; never a drawn one.

    One after the other the slice of the largest score is taken. Of equal ones it is the slice farthest from what is
    drawn, then the first. Let it be slice a in the gap between b and c, the nearest slices drawn or taken before (or
    the places just outside the scan). Then the scores between a and b are multiplied by

        hat(z) * |b - a| / (c - b),    hat(z) = min(1, 2 |z - a| / |b - a|)

    and those between a and c likewise: the hat is 0 at a and 1 from the middle on, where half a gap is left that was a
    whole one. At first the scores of every gap are multiplied by the hats of the drawn slices at its ends.

    Args:
        score: of every slice, e.g. `probable_error`; NaN for slices that are not to be suggested.
        drawn: slices that are drawn.
        count: slices wanted.

    Raises:
        ValueError: a count below 1, or a drawn slice that is not there.

    >>> choose_slices(np.ones(17), [0, 16], 3)
    (8, 4, 12)
    """
    left = np.array(score, dtype=np.float64)
    settled = sorted(set(drawn))
    if count < 1:
        raise ValueError(f"{count} slices are wanted; ask for 1 at least")
    if settled and not 0 <= settled[0] <= settled[-1] < len(left):
        raise ValueError(f"slices {settled} are drawn; there are slices 0 to {len(left) - 1}")
    left *= _hats(len(left), settled)
    left[settled] = np.nan
    settled = [-1, *settled, len(left)]
    chosen: list[int] = []
    while len(chosen) < count and not np.isnan(left).all():
        best = np.nanmax(left)
        equal = np.flatnonzero(left >= best - _TIE * abs(best))
        distance = np.abs(equal[:, np.newaxis] - settled).min(axis=1)
        taken = int(equal[np.argmax(distance)])
        before, after = max(s for s in settled if s < taken), min(s for s in settled if s > taken)
        for end in (before, after):
            between = np.arange(min(end, taken) + 1, max(end, taken))
            gap = abs(end - taken)
            left[between] *= np.minimum(1, 2 * np.abs(between - taken) / gap) * gap / (after - before)
        left[taken] = np.nan
        settled.append(taken)
        chosen.append(taken)
    return tuple(chosen)


def _hats(count: int, drawn: Sequence[int]) -> np.ndarray:
    """Returns by how much the drawn slices leave each slice open: 0 beside one of them, 1 in the middle of a gap."""
    hats = np.ones(count)
    for before, after in itertools.pairwise([-1, *drawn, count]):
        between = np.arange(before + 1, after)
        for end in {before, after} & set(drawn):
            hats[between] = np.minimum(hats[between], 2 * np.abs(between - end) / (after - before))
    return hats
