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

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256, write_json, write_text
from tfmuscle.io import case_id, write_volume
from tfmuscle.io.nifti import write_shares
from tfmuscle.uncertainty.structures import rows_of, scores_of
from tfmuscle.volume import Volume
from tfmuscle.workflows.ensembles import Network
from tfmuscle.workflows.measuring_subject import rounded_csv

FOLDER = "uncertainty"
MADE_BY = "tfmuscle predict --uncertainty"


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

    def is_of(self, labels: Path) -> bool:
        """Whether both files are there, and of just these labels."""
        return self.map.exists() and self.rows.exists() and read_json(self.rows).get("labels_sha256") == sha256(labels)

    def absolute(self) -> "Trust":
        """Returns it with absolute paths."""
        return Trust(self.map.absolute(), self.rows.absolute())


def label_and_judge(
    network: Network,
    image: Volume,
    name: str,
    path: Path,
    trust: Trust,
    *,
    mirror: bool,
    progress: inference.Progress | None = None,
) -> None:
    """Labels a scan and writes map, labels and rows, the rows last.

    Args:
        network: with a calibration.
        image: the scan.
        name: of its subject.
        path: of the labels.
        trust: of the rest.
        mirror: average over mirrored copies.
        progress: called with (windows done, windows in all).

    Raises:
        ValueError: a network without calibration.
    """
    if network.calibration is None:
        raise ValueError("the network was opened without its calibration; open it with uncertainty")
    found = network.uncertain(image, name, mirror=mirror, progress=progress)
    scores = scores_of(found.agreement, found.labels.array, network.runs[0].spec.label_map)
    rows = rows_of(found.labels, found.error.array, scores, network.calibration, slice_axis=found.slice_axis)
    write_shares(trust.map, found.error)
    write_volume(path, found.labels)
    content = {"made_by": MADE_BY, "subject": name, "labels_sha256": sha256(path), "structures": rows}
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


def slices_in_words(slices: Sequence[int], axis: int) -> str:
    """Returns slices as tables name them.

    >>> slices_in_words([12, 14], 2)
    'k = 12, 14'
    """
    return f"{'ijk'[axis]} = {', '.join(map(str, slices))}" if slices else ""
