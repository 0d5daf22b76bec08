"""Opening a label object without believing it: every tag is damaged until it has been read."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_file_meta_info

from tfmuscle.errors import DataError
from tfmuscle.io.dicom import is_dicom_file

AGAIN = "export the file again from the program that made it"
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    LABELMAP_STORAGE: "segmentation",
    "1.2.840.10008.5.1.4.1.1.481.3": "structure set",
}


def label_object_kind(path: str | Path) -> str | None:
    """Returns "segmentation" or "structure set" by the file's storage class; None for anything else.

    Only the header is read. A file that cannot be read is no label object; the reader it is then given to says why.
    """
    path = Path(path)
    if not path.is_file() or path.name.startswith("."):
        return None
    with contextlib.suppress(Exception), warnings.catch_warnings():  # damaged files can make pydicom raise anything
        warnings.simplefilter("ignore")
        has_magic = is_dicom_file(path)
        storage = read_file_meta_info(path).get("MediaStorageSOPClassUID") if has_magic else None
        if storage is None and (has_magic or path.suffix.lower() == ".dcm"):
            storage = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["SOPClassUID"], force=not has_magic
            ).get("SOPClassUID")
        return _KINDS.get(str(storage))
    return None


@contextlib.contextmanager
def damage_refused(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes pydicom or a decoder raise into one line; silences what quotes values.

    Raises:
        DataError: the file is damaged or asks for more memory than there is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may be a patient's name
            yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path}: asks for more memory than there is; {AGAIN}, or use a larger machine") from error
    except Exception as error:
        raise DataError(f"{path}: a damaged DICOM file ({type(error).__name__}); {AGAIN}") from error


def open_object(path: Path, kind: str) -> FileDataset:
    """Reads a whole label object of the wanted kind; use it inside `damage_refused`.

    Raises:
        DataError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path")
    if label_object_kind(path) != kind:
        raise DataError(f"{path}: no DICOM {kind}; give the file that holds the {kind}")
    return pydicom.dcmread(path, force=True)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Returns the items of a sequence; none when it is missing."""
    return list(dataset.get(keyword) or [])


def numbers(path: Path, dataset: Dataset | None, keyword: str, count: int) -> np.ndarray:
    """Returns `count` finite numbers of one tag, `(count,)`.

    Raises:
        DataError: the tag is missing or holds something else.
    """
    try:
        value: Any = None if dataset is None else dataset.get(keyword)
        found = np.array([float(part) for part in np.atleast_1d(value)], dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise DataError(f"{path}: no usable {keyword}, so that the labels have no place in the patient; {AGAIN}")
    return found


def whole_number(path: Path, dataset: Dataset, keyword: str, *, default: int | None = None) -> int:
    """Returns a number above 0.

    Raises:
        DataError: it is missing without a default, no whole number or below 1.
    """
    value = dataset.get(keyword)
    if value in (None, "") and default is not None:
        return default
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise DataError(f"{path}: no usable {keyword}, a number above 0 is needed; {AGAIN}")
    return number
