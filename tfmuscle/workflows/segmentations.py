"""Labels back into the hospital's world: `write_seg`.

The user has labels on a scan's grid, predicted or drawn, and the DICOM series they belong to. The labels become a DICOM
SEG that refers to the series slice by slice, so that a clinical viewer shows them on it. Patient and study are taken
over from the series, as DICOM demands: the file belongs where the series belongs.
"""

from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.files import check_outputs
from tfmuscle.io import read_label_image
from tfmuscle.io.dicom_labels import write_segmentation
from tfmuscle.io.label_tables import names_of, read_label_table
from tfmuscle.labels import LabelMap


def write_seg(
    labels: str | Path,
    series: str | Path,
    out: str | Path,
    *,
    names: str | Path | None = None,
    number: int | None = None,
) -> LabelMap:
    """Writes a label image as a DICOM SEG of its series, whole or not at all; returns what the ids mean.

    Args:
        labels: label image on the series' grid, in any order of its axes.
        series: folder of the DICOM series.
        out: the file to write.
        names: `dataset.json`, a run's `spec.json` or another label table; without it the one beside the labels.
        number: series number, when several series have the labels' grid.

    Raises:
        DataError: a file is missing or damaged, ids have no names, no series has the labels' grid, or `out` is one of
            the files read.
    """
    labels, out = Path(labels), Path(out)
    if out.is_dir():
        raise DataError(f"{out}: is a folder; name the file to write, e.g. {out / 'labels.dcm'}")
    series = Path(series)
    slices = [path for path in series.rglob("*") if path.is_file()] if series.is_dir() else [series]
    check_outputs([out], [labels, names, *slices] if out.exists() else [])
    volume = read_label_image(labels)
    label_map = read_label_table(names) if names is not None else names_of(labels)
    if label_map is None:
        raise DataError(f"{labels}: no names beside it; give a dataset.json or a run's spec.json with --labels")
    try:
        write_segmentation(out, volume, label_map, series=series, number=number)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{labels}: {error}") from error
    return label_map
