"""Boxes of muscles that the coarse grid lost, placed from the muscles of the same group that were found.

Terms. The *group* of a muscle is the one of `labels.MUSCLE_GROUPS` that it is in, its *mates* are the others in it. A
`Leg` is what is known of one leg: the boxes of its muscles, the grid they lie on and the side. Muscles are named
without a side, for left and right share what is learned.

What is learned. Every training leg is turned to the patient's axes (right, anterior, superior), a left one mirrored to
a right one, so that legs of any orientation and side compare. In each, a muscle has an offset of its centre from the
centre of the union box of its mates, and a size, both in shares of that union's size: millimetres and spacing cancel,
and short and tall people compare. Applied to the union found in a new leg, the mean over training legs is the answer.

The data decides which mates there are. Where several muscles vanished, the union is that of the mates that are left,
in training and in the new leg alike. For this the training legs' boxes are kept rather than one mean for each of the
mates' subsets: some hundred whole numbers a leg, without names of people. Of the training legs, those count that share
most of these mates.

The user chooses `box="muscle"`, or `box="group"`: one box for all muscles of a group, the small ones included, which
Ni et al. 2019 propose for muscles that vanish.

Limits. A mate that the view cuts off makes the union too small. An oblique grid is taken by its nearest axes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tfmuscle.cascade.boxes import Box
from tfmuscle.config import PLACINGS
from tfmuscle.errors import DataError
from tfmuscle.labels import MUSCLE_GROUPS, SIDES
from tfmuscle.volume import Geometry

MARGIN = 0.25
"""Share of its size by which a placed box grows."""
_PATIENT = "RAS"


@dataclass(frozen=True, eq=False)
class Leg:
    """Boxes of the muscles of one leg.

    Attributes:
        boxes: muscle, named without its side -> tight box.
        geometry: the grid of the boxes.
        side: "left" or "right", the patient's.
    """

    boxes: Mapping[str, Box]
    geometry: Geometry
    side: str

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"side is {self.side!r}; choose left or right")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Where muscles lie among their mates; made by `fit`.

    Attributes:
        legs: boxes of each training leg, in the patient's axes and mirrored to the right side. Only their relation to
            each other means anything.
        groups: neighbouring muscles.
    """

    legs: tuple[Mapping[str, Box], ...]
    groups: tuple[tuple[str, ...], ...] = MUSCLE_GROUPS

    @classmethod
    def fit(cls, legs: Iterable[Leg], *, groups: tuple[tuple[str, ...], ...] = MUSCLE_GROUPS) -> Self:
        """Learns from training legs; muscles that are in no group are left out.

        Raises:
            ValueError: no legs, or a muscle in two groups.
        """
        members = [muscle for group in groups for muscle in group]
        if twice := sorted({muscle for muscle in members if members.count(muscle) > 1}):
            raise ValueError(f"{', '.join(twice)} stand in two groups; a muscle has one")
        learned = tuple(
            {muscle: _to_patient(box, leg) for muscle, box in leg.boxes.items() if muscle in members} for leg in legs
        )
        if not learned:
            raise ValueError("no training legs; neighbours are learned from the boxes of at least one")
        return cls(learned, groups)

    def predict(self, muscle: str, leg: Leg, *, margin: float = MARGIN, box: str = "muscle") -> Box:
        """Returns a box for a muscle on `leg.geometry`, clipped to it.

        Per axis of the patient, with centre c and size s of the union of mates, and the means o, q of training:
        centre `c + o s`, size `q s (1 + margin)`.

        Args:
            muscle: named without its side; a box of its own in `leg` does not count for `box="muscle"`.
            leg: what was found.
            margin: share of its size by which the box grows, half of it at each edge.
            box: "muscle", or "group" for the union of all boxes found in the group and of those placed for the others.

        Raises:
            ValueError: an unknown muscle or kind of box, or a negative margin.
            DataError: no mate was found, none was ever seen beside the muscle in training, or the box would lie
                outside the grid.
        """
        if box not in PLACINGS or not margin >= 0:
            raise ValueError(f"box is {box!r} and margin {margin}; choose {' or '.join(PLACINGS)}, and 0 or more")
        group = self._group(muscle)
        wanted = [muscle] if box == "muscle" else [name for name in group if name not in leg.boxes]
        placed = [self._place(name, leg, margin) for name in wanted]
        known = [leg.boxes[name] for name in group if name in leg.boxes] if box == "group" else []
        found = known + [one for one in placed if one is not None]
        if not found:
            raise DataError(self._why_not(muscle, leg))
        whole = Box((0, 0, 0), leg.geometry.shape)
        inside = [part for part in (one.overlap(whole) for one in found) if part is not None]
        if not inside:
            raise DataError(f"{muscle} ({leg.side}) lies outside the scan, by where its group-mates are; leave it out")
        return inside[0].union(*inside[1:])

    def _group(self, muscle: str) -> tuple[str, ...]:
        for group in self.groups:
            if muscle in group:
                return group
        raise ValueError(f"{muscle!r} is in no group; there are {', '.join(m for group in self.groups for m in group)}")

    def _place(self, muscle: str, leg: Leg, margin: float) -> Box | None:
        """Returns a muscle's box from its mates, not clipped; None without a mate that training knows beside it."""
        mates = [mate for mate in self._group(muscle) if mate != muscle and mate in leg.boxes]
        trained = [known for known in self.legs if muscle in known]
        shared = [[mate for mate in mates if mate in known] for known in trained]
        most = max(map(len, shared), default=0)
        if most == 0:
            return None
        centres, sizes = [], []
        for known, common in zip(trained, shared, strict=True):
            if len(common) == most:
                offset, share = _relation(known[muscle], _union(known, common))
                centre, size = _centre_and_size(_union({m: _to_patient(leg.boxes[m], leg) for m in common}, common))
                centres.append(centre + offset * size)
                sizes.append(share * size)
        centre, size = np.mean(centres, axis=0), np.mean(sizes, axis=0) * (1 + margin)
        edges = _from_patient(np.stack([centre - size / 2, centre + size / 2]), leg)
        return Box.around(edges[0], edges[1])

    def _why_not(self, muscle: str, leg: Leg) -> str:
        mates = [mate for mate in self._group(muscle) if mate != muscle]
        if not any(mate in leg.boxes for mate in mates):
            return (
                f"{muscle} ({leg.side}) has no box: none of its group-mates {', '.join(mates)} was found either; at "
                "least one is needed, so leave the muscle out or train stage 1 longer"
            )
        return (
            f"{muscle} ({leg.side}) has no box: no training leg has it beside one of its group-mates that were found; "
            "add a training subject with them, or leave the muscle out"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content."""
        legs = [{muscle: [*box.start, *box.stop] for muscle, box in leg.items()} for leg in self.legs]
        return {"groups": [list(group) for group in self.groups], "legs": legs}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: something else.
        """
        try:
            legs = tuple(
                {str(muscle): Box(tuple(six[:3]), tuple(six[3:])) for muscle, six in leg.items()}
                for leg in content["legs"]
            )
            return cls(legs, tuple(tuple(map(str, group)) for group in content["groups"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"neighbours are damaged ({error!r}); groups, and legs of muscles with six whole numbers, are needed"
            ) from error


def _union(boxes: Mapping[str, Box], names: list[str]) -> Box:
    first, *others = (boxes[name] for name in names)
    return first.union(*others)


def _centre_and_size(box: Box) -> tuple[np.ndarray, np.ndarray]:
    return box.edges.mean(axis=0), np.array(box.size, dtype=np.float64)


def _relation(box: Box, union: Box) -> tuple[np.ndarray, np.ndarray]:
    """Returns offset of centre and size, `(3,)` each, in shares of the union's size."""
    centre, size = _centre_and_size(box)
    middle, whole = _centre_and_size(union)
    return (centre - middle) / whole, size / whole


def _axes(leg: Leg) -> tuple[np.ndarray, np.ndarray]:
    """Returns which grid axis each of the patient's axes is, and its sign; of a left leg, right is left."""
    transform = leg.geometry.transform_to(_PATIENT)
    axes = np.argsort(transform[:, 0])
    signs = transform[axes, 1]
    return axes, signs * np.array([-1 if leg.side == SIDES[0] else 1, 1, 1])


def _to_patient(box: Box, leg: Leg) -> Box:
    axes, signs = _axes(leg)
    edges = np.array([box.start, box.stop])[:, axes] * signs
    return Box(tuple(edges.min(axis=0)), tuple(edges.max(axis=0)))


def _from_patient(edges: np.ndarray, leg: Leg) -> np.ndarray:
    """Returns edges `(2, 3)` in index coordinates of the leg's grid."""
    axes, signs = _axes(leg)
    back = np.empty((2, 3))
    back[:, axes] = (edges + 0.5) * signs - 0.5
    return np.sort(back, axis=0)
