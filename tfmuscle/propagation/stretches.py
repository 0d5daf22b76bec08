"""How a scan falls into pieces of work: drawn slices, the stretches between them, the ways through a stretch.

Slices that are drawn in a row are one *anchor*. A *stretch* is what lies between two anchors, or between an anchor and
an end of the scan. What is made of a stretch follows from the images, from the anchors at its ends and from nothing
else; so after a correction only the stretches beside it are made again.

A carrier goes through a stretch from either anchor (`Way`): it starts on the anchor's slices nearest to the stretch,
and goes on to the nearest slice of the other anchor, to see what arrives there. Windows reach beyond that slice, for
images; masks drawn there are never looked at. At an end of the scan a way that is shorter than a window repeats the
last image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tfmuscle.propagation.carriers import Carrier


@dataclass(frozen=True)
class Anchor:
    """Drawn slices `first` to `last`, in a row."""

    first: int
    last: int


@dataclass(frozen=True)
class Stretch:
    """Slices `first` to `last`, of which none is drawn, and the anchors at their ends (None: the scan ends there)."""

    first: int
    last: int
    before: Anchor | None
    after: Anchor | None

    @property
    def slices(self) -> range:
        """The slices that are to be filled."""
        return range(self.first, self.last + 1)

    def share(self, index: int) -> float:
        """Returns how much the anchor after the stretch has to say of slice `index`, 0 to 1: linear by distance."""
        if self.before is None or self.after is None:
            return 0.0 if self.after is None else 1.0
        return (index - self.before.last) / (self.after.first - self.before.last)


@dataclass(frozen=True)
class Way:
    """Slices in the order in which a carrier goes through them.

    Attributes:
        slices: of the scan; the last one may be repeated.
        starts: how many of them it starts from.
        wanted: how many after those are wanted: the stretch, and the slice at which it arrives, if there is one.
        arrives: whether it ends at a drawn slice.
    """

    slices: tuple[int, ...]
    starts: int
    wanted: int
    arrives: bool


def anchors_of(drawn: Sequence[int]) -> tuple[Anchor, ...]:
    """Returns the runs of slices that follow each other.

    >>> anchors_of([3, 4, 5, 9])
    (Anchor(first=3, last=5), Anchor(first=9, last=9))
    """
    found: list[Anchor] = []
    for index in sorted(set(drawn)):
        if found and index == found[-1].last + 1:
            found[-1] = Anchor(found[-1].first, index)
        else:
            found.append(Anchor(index, index))
    return tuple(found)


def stretches_of(drawn: Sequence[int], count: int) -> tuple[Stretch, ...]:
    """Returns all that is not drawn of `count` slices.

    Raises:
        ValueError: nothing is drawn, or a slice that is not there.

    >>> [(stretch.first, stretch.last) for stretch in stretches_of([2, 3, 7], 8)]
    [(0, 1), (4, 6)]
    """
    anchors = anchors_of(drawn)
    if not anchors or anchors[0].first < 0 or anchors[-1].last >= count:
        raise ValueError(f"slices {sorted(drawn)} are drawn; of 0 to {count - 1} one is needed at least")
    ends = zip((None, *anchors), (*anchors, None), strict=True)
    found = []
    for before, after in ends:
        first = 0 if before is None else before.last + 1
        last = count - 1 if after is None else after.first - 1
        if first <= last:
            found.append(Stretch(first, last, before, after))
    return tuple(found)


def without(anchor: Anchor, drawn: Sequence[int], count: int) -> Stretch | None:
    """Returns the stretch that there would be without an anchor; None unless there is one on either side of it."""
    anchors = anchors_of(drawn)
    place = anchors.index(anchor)
    if not 0 < place < len(anchors) - 1:
        return None
    before, after = anchors[place - 1], anchors[place + 1]
    return Stretch(before.last + 1, after.first - 1, before, after)


def way_of(stretch: Stretch, carrier: Carrier, count: int, *, forward: bool) -> Way | None:
    """Returns the way through a stretch in one direction; None where no anchor is to start from.

    Args:
        stretch: to go through.
        carrier: how many slices it starts from, and sees at a time.
        count: slices of the scan.
        forward: from the anchor before it to the one after it, else the other way.
    """
    start, goal = (stretch.before, stretch.after) if forward else (stretch.after, stretch.before)
    if start is None:
        return None
    starts = min(carrier.starts, start.last - start.first + 1)
    wanted = len(stretch.slices) + (goal is not None)
    step = 1 if forward else -1
    near = start.last if forward else start.first
    last = near + step * (wanted + carrier.window - 1)
    indices = range(near - step * (starts - 1), last + step, step)
    kept = [index for index in indices if 0 <= index < count]
    kept += [kept[-1]] * (max(carrier.window, starts + wanted) - len(kept))
    return Way(tuple(kept), starts, wanted, goal is not None)
