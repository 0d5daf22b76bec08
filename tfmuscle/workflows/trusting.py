"""What labels are worth, beside them: map, rows of structures, and one table of all scans.

    OUT/<subject>.nii.gz               labels
    OUT/uncertainty/<subject>.nii.gz   probability that each of them is wrong, a byte a voxel, read as 0 to 1
    OUT/uncertainty/<subject>.json     what to expect of each structure, and the checksum of the labels it is about
    OUT/uncertainty.csv                the same of all scans, those to look at first

Maps have a folder of their own, for a folder of labels is read as one (`evaluate`, `measure`). Of one scan with a file
name NAME.nii.gz they are NAME_uncertainty.nii.gz, .json and .csv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256, write_json, write_text
from tfmuscle.io import case_id
from tfmuscle.labels import LabelMap, without_side
from tfmuscle.tables import rounded_csv

FOLDER = "uncertainty"
MADE_BY = "tfmuscle predict --uncertainty"
EXPECTED = ("expected_dice", "dice_low", "dice_high")
"""Columns that tables of measures show too."""


@dataclass(frozen=True)
class Trust:
    """Where the worth of a scan's labels is written.

    Attributes:
        map: of the probability that labels are wrong.
        rows: JSON of structures.
    """

    map: Path
    rows: Path

    @classmethod
    def beside(cls, labels: Path, *, single: bool) -> Self:
        """Returns the files of labels that are one of a folder, or alone."""
        name = case_id(labels)
        place = labels.with_name(f"{name}_{FOLDER}") if single else labels.parent / FOLDER / name
        return cls(Path(f"{place}.nii.gz"), Path(f"{place}.json"))

    @classmethod
    def found(cls, labels: Path) -> "Trust | None":
        """Returns the files that are there of some labels, or None."""
        both = (cls.beside(labels, single=single) for single in (False, True))
        return next((trust for trust in both if trust.rows.is_file()), None)

    def is_of(self, labels: Path) -> bool:
        """Whether both files are there, and of just these labels."""
        return self.map.exists() and self.rows.exists() and read_json(self.rows).get("labels_sha256") == sha256(labels)

    def absolute(self) -> "Trust":
        """Returns it with absolute paths."""
        return Trust(self.map.absolute(), self.rows.absolute())


def write_rows(trust: Trust, name: str, labels: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of a scan, last of its files, with the checksum of its labels."""
    content = {"made_by": MADE_BY, "subject": name, "labels_sha256": sha256(labels), "structures": list(rows)}
    write_json(trust.rows, content)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a scan.

    Raises:
        DataError: the file holds something else.
    """
    content = read_json(path)
    rows = content.get("structures")
    if content.get("made_by") != MADE_BY or not isinstance(rows, list):
        raise DataError(f"{path}: is not of '{MADE_BY}'; make it anew")
    return rows


def named_rows(path: Path, named: LabelMap, label_map: LabelMap) -> list[dict[str, Any]]:
    """Returns the rows of a scan under the names that its reader uses, one for each part of a structure.

    Args:
        path: as for `read_rows`.
        named: names of the ids.
        label_map: names that are measured: the same, or with sides where both limbs had one number.
    """
    rows = []
    for row in read_rows(path):
        name = named.names.get(row["id"], "")
        parts = [name] if name in label_map.structures else [n for n in label_map.structures if without_side(n) == name]
        rows += [row | {"structure": part} for part in parts]
    return rows


def write_table(path: Path, trusts: Mapping[str, Trust]) -> list[dict[str, Any]]:
    """Writes one row a scan and structure, those to look at first, then the lowest expected Dice; returns the rows."""
    rows = [{"subject": name} | row for name, trust in trusts.items() for row in read_rows(trust.rows)]
    rows.sort(key=lambda row: (not row["look_here"], 2.0 if row["expected_dice"] is None else row["expected_dice"]))
    shown = [{key: _shown(key, row) for key in row if key != "slice_axis"} for row in rows]
    write_text(path, rounded_csv(shown))
    return rows


def _shown(key: str, row: Mapping[str, Any]) -> Any:
    if key == "look_here":
        return "yes" if row[key] else ""
    if key == "slices":
        return slices_in_words(row[key], row["slice_axis"])
    return "" if row[key] is None else row[key]


def slices_in_doubt(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the slices to look at, those of structures with the largest mean error probability first.

    >>> slices_in_doubt([{"error_probability": 0.1, "slices": [3]}, {"error_probability": 0.2, "slices": [5, 3]}])
    [5, 3]
    """
    there = [row for row in rows if row["error_probability"] is not None]
    there.sort(key=lambda row: -row["error_probability"])
    return list(dict.fromkeys(index for row in there for index in row["slices"]))


def slices_in_words(slices: Sequence[int], axis: int) -> str:
    """Returns slices as tables name them.

    >>> slices_in_words([12, 14], 2)
    'k = 12, 14'
    """
    return f"{'ijk'[axis]} = {', '.join(map(str, slices))}" if slices else ""
