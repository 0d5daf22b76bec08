"""What a propagation says of itself: drift at drawn slices, where its opinions differ, volumes with an interval.

*Drift*: Dice between what is drawn on a slice and what arrives there from another one; drawn slices are never looked
at before that. Methods that carry masks arrive from either side; methods that look at both ends are run once more with
the drawn slices in question left out. A structure that is neither drawn nor arrives has no figure (NaN).

*Opinions* of a slice are what the ways alone say, forward and backward. Methods that fill have three: what they say,
and what they say without the anchor after the stretch (called forward) and without the one before it (backward).
Where there is one opinion only, nobody differs; the area in dispute is then foreseen: area times distance from the
drawn slice, times what one slice of the way cost where something arrived at a drawn one.

*Interval of a volume*: on every slice the largest difference in area between an opinion and the final labels, or the
area foreseen to be in dispute; their sum over the slices, and the share by which all that arrived at drawn slices is
larger or smaller than what is drawn there (a network that always draws too small agrees with itself; of what was left
out, the part that belongs to the distance of a usual slice), taken off the volume and added to it. It is a range of
opinions and no confidence interval: no probability belongs to it, and all slices are taken to be wrong in one
direction. What it cannot know is where a structure ends beyond the outermost drawn slices. How often it held the truth,
of sweeps it was not chosen on, stands in benchmarks/propagation.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tfmuscle.propagation.running import Job, fill_stretch
from tfmuscle.propagation.storing import Filled
from tfmuscle.propagation.stretches import Anchor, Stretch, anchors_of, without

LEFT_OUT = "left out"
FORWARD, BACKWARD = "forward", "backward"
LABELS = "labels"
"""Name of the final labels among areas."""


@dataclass(frozen=True)
class Drift:
    """What arrived of a structure at a drawn slice.

    Attributes:
        index: the slice; the first of those that were left out together.
        key: id of the structure.
        way: "forward", "backward" or "left out".
        dice: of what arrived and what is drawn.
        distance: slices from the nearest drawn one that it came from.
        arrived: pixels that arrived.
        drawn: pixels that are drawn.
    """

    index: int
    key: int
    way: str
    dice: float
    distance: int
    arrived: int
    drawn: int


@dataclass(frozen=True, eq=False)
class Findings:
    """What is known of a propagation.

    Attributes:
        keys: ids of the structures, in the order of all S.
        drift: of every drawn slice that something arrived at.
        areas: "labels" or an opinion -> pixels `(S, N)` of each structure on each slice, NaN where it does not speak.
        differing: pixels `(S, N)` in dispute, the mean over pairs of opinions; NaN where there are fewer than two.
    """

    keys: tuple[int, ...]
    drift: tuple[Drift, ...]
    areas: dict[str, np.ndarray]
    differing: np.ndarray


def left_out(job: Job, drawn: Sequence[int]) -> dict[Anchor, Stretch]:
    """Returns the stretches to be filled once more, without the anchor in them: none for methods that carry."""
    if job.method.carrier is not None:
        return {}
    found = {anchor: without(anchor, drawn, len(job.drawn)) for anchor in anchors_of(drawn)}
    return {anchor: stretch for anchor, stretch in found.items() if stretch is not None}


def find(
    job: Job,
    drawn: Sequence[int],
    stretches: Sequence[Stretch],
    *,
    each: Callable[[Stretch, Filled], None] | None = None,
) -> Findings:
    """Gathers what the filled stretches say; stretches that were not filled before are filled now.

    Args:
        job: of which they are.
        drawn: all drawn slices.
        stretches: all stretches.
        each: called with every stretch and what it was filled with, once.
    """
    extra = left_out(job, drawn)
    size = (len(job.keys), len(job.drawn))
    areas = {LABELS: np.zeros(size)}
    differing = np.full(size, np.nan)
    drift = [one for anchor, stretch in extra.items() for one in _without_anchor(job, anchor, stretch)]
    for index in drawn:
        areas[LABELS][:, index] = _pixels(job.drawn[index], job.keys)
        differing[:, index] = 0
    for stretch in stretches:
        filled = fill_stretch(job, stretch)
        opinions = _opinions(job, stretch, filled, extra)
        for name, planes in (opinions | {LABELS: filled.ids}).items():
            counts = np.array([_pixels(plane, job.keys) for plane in planes]).T
            areas.setdefault(name, np.full(size, np.nan))[:, stretch.first : stretch.last + 1] = counts
        if len(opinions) > 1:
            for place, index in enumerate(stretch.slices):
                differing[:, index] = _dispute([planes[place] for planes in opinions.values()], job.keys)
        drift += _arrivals(job, stretch, filled)
        if each is not None:
            each(stretch, filled)
    return Findings(job.keys, tuple(sorted(drift, key=lambda one: (one.index, one.key, one.way))), areas, differing)


def disputed(findings: Findings, drawn: Sequence[int]) -> np.ndarray:
    """Returns the pixels `(S, N)` in dispute, foreseen where there is one opinion only.

    Of a structure that was carried d slices far the share min(1, d * rate) is foreseen to be in dispute. The rate is
    that of the drift seen, (1 - Dice) / distance: the mean over the arrivals of the structure; over all arrivals where
    it has none; where nothing arrived anywhere, 1 / N.

    Args:
        findings: what is known.
        drawn: all drawn slices.
    """
    found = findings.differing.copy()
    distance = _distances(findings, drawn)
    rates = {
        key: [(1 - one.dice) / one.distance for one in findings.drift if one.key == key and np.isfinite(one.dice)]
        for key in findings.keys
    }
    general = [rate for own in rates.values() for rate in own] or [1 / found.shape[1]]
    for row, key in enumerate(findings.keys):
        alone = np.isnan(found[row])
        share = np.minimum(1, float(np.mean(rates[key] or general)) * distance[alone])
        found[row, alone] = share * findings.areas[LABELS][row, alone]
    return found


def volume_range(findings: Findings, drawn: Sequence[int]) -> np.ndarray:
    """Returns voxels `(S, 3)` of each structure: of the labels, and the least and the most that are held possible."""
    labels = findings.areas[LABELS]
    apart = np.nanmax([np.abs(areas - labels) for areas in findings.areas.values()], axis=0)
    doubt = np.where(np.isnan(findings.differing), disputed(findings, drawn), apart).sum(axis=1)
    total = labels.sum(axis=1)
    doubt += total * [_bias(findings, key, drawn) for key in findings.keys]
    return np.stack([total, np.maximum(0, total - doubt), total + doubt], axis=1)


def _bias(findings: Findings, key: int, drawn: Sequence[int]) -> float:
    """Returns by which share of the larger one the areas that arrived of a structure differ from those drawn.

    A slice that was left out lies further from the drawn ones than those that are filled; its error is taken to grow
    with the distance. What a method carries has arrived as any slice does, and a network errs from its first window on.
    """
    own = [one for one in findings.drift if one.key == key]
    arrived, there = sum(one.arrived for one in own), sum(one.drawn for one in own)
    share = abs(arrived - there) / max(arrived, there, 1)
    far = [one.distance for one in own if one.way == LEFT_OUT]
    distance = _distances(findings, drawn)
    return share * float(np.minimum(1, distance[distance > 0] / np.mean(far)).mean()) if far else share


def _distances(findings: Findings, drawn: Sequence[int]) -> np.ndarray:
    """Returns how many slices each one is from the nearest drawn one."""
    return np.abs(np.arange(findings.differing.shape[1])[:, np.newaxis] - np.array(sorted(drawn))).min(axis=1)


def opinions_of(job: Job, drawn: Sequence[int], stretch: Stretch) -> dict[str, np.ndarray]:
    """Returns the final labels `(n, H, W)` of a stretch, and every opinion of it, by name."""
    filled = fill_stretch(job, stretch)
    return {LABELS: filled.ids} | _opinions(job, stretch, filled, left_out(job, drawn))


def _opinions(job: Job, stretch: Stretch, filled: Filled, extra: dict[Anchor, Stretch]) -> dict[str, np.ndarray]:
    if job.method.carrier is not None:
        return dict(filled.opinions)
    found = {LABELS: filled.ids}
    for name, anchor in ((FORWARD, stretch.after), (BACKWARD, stretch.before)):
        if anchor is not None and anchor in extra:
            first = stretch.first - extra[anchor].first
            found[name] = fill_stretch(job, extra[anchor]).ids[first : first + len(stretch.slices)]
    return found


def _without_anchor(job: Job, anchor: Anchor, stretch: Stretch) -> list[Drift]:
    ids = fill_stretch(job, stretch).ids
    first = anchor.first - stretch.first
    slices = slice(anchor.first, anchor.last + 1)
    arrived = ids[first : first + anchor.last - anchor.first + 1]
    distance = min(anchor.first - stretch.first, stretch.last - anchor.last) + 1
    return _drifts(job, anchor.first, LEFT_OUT, distance, arrived, job.drawn[slices])


def _arrivals(job: Job, stretch: Stretch, filled: Filled) -> list[Drift]:
    drift: list[Drift] = []
    for way, ids in filled.arrived.items():
        goal = stretch.after if way == "forward" else stretch.before
        if goal is not None:
            index = goal.first if way == "forward" else goal.last
            drift += _drifts(job, index, way, len(stretch.slices) + 1, ids, job.drawn[index])
    return drift


def _drifts(job: Job, index: int, way: str, distance: int, arrived: np.ndarray, drawn: np.ndarray) -> list[Drift]:
    found = []
    for key in job.keys:
        one, other = arrived == key, drawn == key
        sizes = int(one.sum()), int(other.sum())
        dice = 2 * int((one & other).sum()) / sum(sizes) if sum(sizes) else float("nan")
        found.append(Drift(index, key, way, dice, distance, *sizes))
    return found


def _pixels(plane: np.ndarray, keys: Sequence[int]) -> list[int]:
    return [int(np.count_nonzero(plane == key)) for key in keys]


def _dispute(planes: Sequence[np.ndarray], keys: Sequence[int]) -> list[float]:
    """Returns, for each structure, the pixels in which two opinions differ, the mean over all pairs."""
    differs = np.any([plane != planes[0] for plane in planes[1:]], axis=0)
    said = np.stack([plane[differs] for plane in planes])
    pairs = len(planes) * (len(planes) - 1) / 2
    votes = [np.count_nonzero(said == key, axis=0) for key in keys]
    return [float((vote * (len(planes) - vote)).sum() / pairs) for vote in votes]
