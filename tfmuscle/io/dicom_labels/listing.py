"""Names of the structures in a label object, before a scan is there to put them on."""

from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels.objects import damage_refused, label_object_kind, open_object
from tfmuscle.io.dicom_labels.segmentation import segment_names
from tfmuscle.io.dicom_labels.structure_set import contour_names


def label_object_names(path: str | Path) -> list[str]:
    """Returns the names that `read_segmentation` or `read_structure_set` would give the masks of a file.

    Raises:
        DataError: a damaged file, or no label object.
    """
    path = Path(path)
    kind = label_object_kind(path)
    if kind is None:
        raise DataError(f"{path}: no DICOM SEG or RTSTRUCT; give the file that holds the labels")
    with damage_refused(path):
        dataset = open_object(path, kind)
        return segment_names(path, dataset) if kind == "segmentation" else contour_names(path, dataset)
