"""One scan and labels of it, as several workflows take them; TensorFlow is not loaded for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.io import case_id, read_label_image
from tfmuscle.io.label_tables import names_of, read_label_table
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.subjects import read_scans
from tfmuscle.volume import Volume


@dataclass(frozen=True)
class SliceLabels:
    """A few labels of one scan: where they come from, and what is known of them.

    Attributes:
        scan: image file or DICOM folder.
        labels: label image on the scan's grid.
        names: table of names; the one beside the labels by default.
        axis: of the label array, along which slices follow each other; found by default.
        listed: labelled slices, where the structure is absent from some of them.
    """

    scan: Path
    labels: Path
    names: Path | None = None
    axis: int | None = None
    listed: tuple[int, ...] | None = None


def one_scan(path: Path) -> Any:
    """Returns the one scan at `path` as a subject.

    Raises:
        DataError: it holds none or several.
    """
    subjects = read_scans(path, ("image",))
    if len(subjects) != 1:
        raise DataError(f"{path}: holds {len(subjects)} scans; give the one whose slices are labelled")
    return subjects[0]


def read_slice_labels(path: Path, names: Path | None) -> tuple[Volume, LabelMap]:
    """Returns labels of a few slices, and their names: of the table given, the one beside them, or their file.

    Raises:
        DataError: the labels cannot be read, or an id has no name.
    """
    labels = read_label_image(path)
    label_map = read_label_table(names) if names else names_of(path)
    ids = distinct(labels.array)
    found = [key for key in map(int, ids) if key]
    if label_map is None:
        own = case_id(path)
        label_map = LabelMap({key: own if len(found) == 1 else f"label_{key}" for key in found})
    if unknown := label_map.unknown_ids(ids):
        raise DataError(f"{path}: ids {list(unknown)} have no name; give a table that names them (--names)")
    return labels, label_map
