"""Names of structures in DICOM objects: free text that becomes names like `vastus_lateralis_left`.

The side goes to the end, as in TotalSegmentator's and our own names, and comes from a word of the text or from the
segment's laterality code. Text and code that contradict each other are refused: a left leg called right is worse than
no leg. A label that repeats the patient's name, number or birth date is replaced by its number.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from tfmuscle.errors import DataError
from tfmuscle.io.identity import identifying_words
from tfmuscle.io.label_tables import plain_name
from tfmuscle.labels import LOWER_LIMB_BONES, LOWER_LIMB_MUSCLES, SIDES

_SIDE_WORDS = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}
_SIDE_CODES = {"7771000": "left", "G-A101": "left", "24028007": "right", "G-A100": "right"}
"""SNOMED CT and SNOMED RT codes of DICOM's context group 244, laterality."""
_MODIFIERS = ("SegmentedPropertyTypeModifierCodeSequence", "AnatomicRegionModifierSequence")
_RESERVED = ("background", "ignore")
_ANATOMY = {word for name in LOWER_LIMB_MUSCLES + LOWER_LIMB_BONES for word in name.split("_")} | {
    word.lower()
    for context in (codes.cid4, codes.cid4031)
    for name in context.dir()
    for word in re.findall("[A-Z][a-z]+", name)
}
"""Words that name a structure even when a phantom or an anonymised patient is called after it."""


def sided_name(text: str) -> str:
    """Returns plain words joined by underscores, a side at either end spelt out and put last.

    >>> sided_name("Lt Lung"), sided_name("Femur R"), sided_name("RightTibia"), sided_name("L 4"), sided_name("../../x")
    ('lung_left', 'femur_right', 'tibia_right', 'l_4', 'x')
    """
    words = plain_name(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)).split("_")
    whole = [place for place, word in enumerate(words) if word in SIDES]
    ends = [place for place in (0, len(words) - 1) if words[place] in _SIDE_WORDS and not _before_number(words, place)]
    places = whole or ends
    if len(words) < 2 or len({_SIDE_WORDS[words[place]] for place in places}) != 1:
        return "_".join(words)
    side = _SIDE_WORDS[words[places[0]]]
    rest = [word for place, word in enumerate(words) if place not in places]
    return "_".join([*rest, side]) if rest else side


def _before_number(words: list[str], place: int) -> bool:
    return place + 1 < len(words) and words[place + 1].isdigit()


def coded_side(segment: Dataset) -> str | None:
    """Returns the side in a segment's codes: of its property type or of its anatomic region."""
    holders = [segment]
    for keyword in ("SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence"):
        holders += list(segment.get(keyword) or [])
    codes = [code for holder in holders for keyword in _MODIFIERS for code in holder.get(keyword) or []]
    sides = {_SIDE_CODES.get(str(code.get("CodeValue"))) for code in codes} - {None}
    return sides.pop() if len(sides) == 1 else None


def structure_names(path: Path, found: Iterable[tuple[int, str, str | None]]) -> dict[int, str]:
    """Returns number -> plain name, every name once.

    Args:
        path: the DICOM file; what identifies its patient is kept out of the names.
        found: number, free text and coded side of every structure.

    Raises:
        DataError: text and code name opposite sides, or a number is there twice.
    """
    private = {word for word in identifying_words(path) if len(word) > 2}
    names: dict[int, str] = {}
    for number, text, side in found:
        if number in names:
            raise DataError(f"{path}: two structures have the number {number}; export the file again")
        name = sided_name(text)
        words = name.split("_")
        if name == "structure" or _identifies(words, private):
            name = f"structure_{number}"
        if side is not None:
            if words[-1] in SIDES and words[-1] != side:
                raise DataError(
                    f"{path}: structure {number} is called {words[-1]} but coded as {side}; correct one of the two"
                )
            name = name if words[-1] == side and name.endswith(side) else f"{name}_{side}"
        names[number] = _unique(name, {*names.values(), *_RESERVED})
    return names


def _identifies(words: list[str], private: set[str]) -> bool:
    unusual = [word for word in words if word not in _ANATOMY]
    return any(secret in word for word in [*unusual, "".join(unusual)] for secret in private)


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
