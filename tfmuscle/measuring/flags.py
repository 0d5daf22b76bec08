"""What may be wrong with labels, in words, and in which slices to look.

A flag is a suspicion, not a verdict: the user looks at the slices and decides. Each rule is a number that can be read
here. Kinds, the gravest first:

* "side": a structure, or a piece of it, lies on the other side of the body than its name says. The middle is that
  between left and right partners, so that both sides must be in view; whether names and header are both mirrored, no
  rule can tell.
* "missing": the table of names has it, the labels do not.
* "disagreement": another labelling differs (Dice below 0.8).
* "uncertain": the networks that made the labels agree less than on nine in ten labelled scans.
* "population": size or shape are far from other people's.
* "pieces": more than 0.5 % of the volume is not in the largest piece.
* "cut": it touches the edge of the scan, or voxels that nobody labelled: its size is that of a part.
* "fat": hardly above the noise floor, or many voxels without signal.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfmuscle.labels import LabelMap
from tfmuscle.measuring.agreement import Agreement
from tfmuscle.measuring.population import FEATURES, Population
from tfmuscle.measuring.structures import Structure

KINDS = ("side", "missing", "disagreement", "uncertain", "population", "pieces", "cut", "fat")
"""From the gravest on."""
SMALLEST_DICE = 0.8
SMALLEST_OUTSIDE = 0.005
BEYOND_MIDDLE_MM = 10.0
SMALLEST_PIECE_BEYOND = 0.01
NEAR_FLOOR = 2.0
FEWEST_WITH_SIGNAL = 95.0
LIKE_SIZE = 0.5
_PIECES_SHOWN = 3
_FACES = {"S": "upper", "I": "lower", "L": "left", "R": "right", "A": "front", "P": "back"}


@dataclass(frozen=True)
class Flag:
    """A suspicion.

    Attributes:
        structure: name.
        kind: one of `KINDS`.
        what: a sentence with the figures.
        slices: where to look, the most telling first; empty for nowhere.
        axis: array axis of these slices.
    """

    structure: str
    kind: str
    what: str
    slices: tuple[int, ...] = ()
    axis: int = 2


def find_flags(
    structures: Sequence[Structure],
    label_map: LabelMap,
    *,
    subject: str = "",
    population: Population | None = None,
    others: Iterable[tuple[str, Sequence[Agreement]]] = (),
    worth: Iterable[Mapping[str, Any]] = (),
) -> list[Flag]:
    """Returns all flags, the gravest kind first, in the order of structures.

    Args:
        structures: of one scan.
        label_map: all structures that should be there.
        subject: the person, who is not compared with themselves.
        population: measures of other people.
        others: (name, agreement) of other labellings.
        worth: rows of what the labels are worth, from `uncertainty.structures.rows_of`.
    """
    flags = [*_sides(structures), *_missing(structures, label_map)]
    for name, compared in others:
        flags += _disagreements(name, compared, structures)
    flags += _uncertain(worth)
    for one in structures:
        flags += [*_unusual(one, population, subject), *_pieces(one), *_cut(one), *_fat(one)]
    return sorted(flags, key=lambda flag: KINDS.index(flag.kind))


def _flag(one: Structure, kind: str, what: str, slices: Iterable[int]) -> Flag:
    return Flag(one.name, kind, what, tuple(dict.fromkeys(map(int, slices))), one.axis.slice_axis)


def _sides(structures: Sequence[Structure]) -> list[Flag]:
    named = {one.name: one for one in structures}
    if not named:
        return []
    table = LabelMap(dict(enumerate(named, start=1)))
    pairs = [(one, named[str(table.partner(name))]) for name, one in named.items() if table.partner(name)]
    if not pairs:
        return []
    middle = statistics.median((a.shape.centroid_mm[0] + b.shape.centroid_mm[0]) / 2 for a, b in pairs)
    flags = []
    for one in (one for one in structures if one.side):
        sign = 1 if one.side == "left" else -1  # x grows to the right
        beyond = sign * (one.shape.centroid_mm[0] - middle)
        where = [int(one.profile.slices[one.profile.largest])]
        if beyond > BEYOND_MIDDLE_MM:
            what = f"named {one.side}, but its centre lies {beyond:.0f} mm to the other side of the middle"
            flags.append(_flag(one, "side", f"{what}; are names, header or labels mirrored?", where))
            continue
        strays = [
            piece for piece in one.shape.pieces
            if sign * (piece.centroid_mm[0] - middle) > BEYOND_MIDDLE_MM
            and piece.volume_ml > SMALLEST_PIECE_BEYOND * one.shape.volume_ml
        ]  # fmt: skip
        if strays:
            volume = sum(piece.volume_ml for piece in strays)
            what = f"named {one.side}, but {volume:.2f} ml of {one.shape.volume_ml:.2f} ml lie on the other side"
            flags.append(_flag(one, "side", what, (sum(piece.slices) // 2 for piece in strays[:_PIECES_SHOWN])))
    return flags


def _missing(structures: Sequence[Structure], label_map: LabelMap) -> list[Flag]:
    there = {one.name for one in structures}
    absent = [name for name in label_map.structures if name not in there]
    return [Flag(name, "missing", "named, but not a voxel has this label") for name in absent]


def _disagreements(name: str, compared: Sequence[Agreement], structures: Sequence[Structure]) -> list[Flag]:
    axes = {one.name: one.axis.slice_axis for one in structures}
    flags = []
    for line in compared:
        if line.dice < SMALLEST_DICE:
            mine, theirs = line.volume_ml
            what = f"Dice {line.dice:.2f} with {name}: {mine:.1f} ml here, {theirs:.1f} ml there"
            axis = axes.get(line.structure, next(iter(axes.values()), 2))
            flags.append(Flag(line.structure, "disagreement", what, line.worst, axis))
    return flags


def _uncertain(worth: Iterable[Mapping[str, Any]]) -> list[Flag]:
    flags = []
    for row in (row for row in worth if row["look_here"]):
        range_of = f"{row['dice_low']:.2f} to {row['dice_high']:.2f}"
        what = f"networks agree less than on nine in ten labelled scans; Dice {row['expected_dice']:.2f} expected"
        flags.append(
            Flag(row["structure"], "uncertain", f"{what} ({range_of})", tuple(row["slices"]), row["slice_axis"])
        )
    return flags


def _unusual(one: Structure, population: Population | None, subject: str) -> list[Flag]:
    found = [] if population is None else population.unusual(one.row(), subject=subject)
    if not found:
        return []
    parts = [f"{FEATURES[u.feature]} {u.value:.4g}, others {u.median:.4g} (z {u.z:+.1f}, n={u.people})" for u in found]
    slices = one.profile.slices
    return [_flag(one, "population", "; ".join(parts), (slices[one.profile.largest], slices[0], slices[-1]))]


def _pieces(one: Structure) -> list[Flag]:
    pieces, share = one.shape.pieces, one.shape.outside_largest
    if share <= SMALLEST_OUTSIDE:
        return []
    shown = pieces[1 : 1 + _PIECES_SHOWN]
    volumes = ", ".join(f"{piece.volume_ml:.2f} ml" for piece in shown) + ", ..." * (len(pieces) > 1 + _PIECES_SHOWN)
    what = f"{len(pieces)} pieces; {100 * share:.1f} % of it is not in the largest ({volumes})"
    if not one.side and pieces[1].volume_ml > LIKE_SIZE * pieces[0].volume_ml:
        what += "; are both limbs under one name?"
    return [_flag(one, "pieces", what, (sum(piece.slices) // 2 for piece in shown))]


def _cut(one: Structure) -> list[Flag]:
    shape, along = one.shape, one.axis.grid.orientation[one.axis.slice_axis]
    sides: list[str] = []
    slices: list[int] = []
    pairs = (set("SI"), set("LR"), set("AP"))
    ends = next(pair for pair in pairs if along in pair)
    for letter in sorted(shape.borders, key=lambda letter: letter not in ends):
        border = shape.borders[letter]
        sides.append(f"the {_FACES[letter]} edge of the scan")
        slices += [border.slices[0], sum(border.slices) // 2]
    if shape.unlabelled_contacts:
        sides.append("voxels that nobody labelled")
    if not sides:
        return []
    return [_flag(one, "cut", f"touches {' and '.join(sides)}; its size is that of a part", slices)]


def _fat(one: Structure) -> list[Flag]:
    fat = one.fat
    if fat is None:
        return []
    said = []
    if fat.mean < NEAR_FLOOR * fat.floor:
        said.append(f"fat fraction {fat.mean:.1f} %, while noise alone would show up to {fat.floor:.1f} %")
    if fat.with_signal < FEWEST_WITH_SIGNAL:
        said.append(f"{100 - fat.with_signal:.0f} % of its voxels have no signal and no fat fraction")
    where = [one.profile.slices[one.profile.largest]]
    return [_flag(one, "fat", "; ".join(said), where)] if said else []
