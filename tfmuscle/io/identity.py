"""What a DICOM file says of the patient's identity, so that nothing else is ever called after it.

The words are only compared with names of folders and subjects; they are written and printed nowhere.
"""

import functools
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom

_TAGS = ["PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "IssuerOfPatientID"]
_FILES_TRIED = 20
"""Files of a folder opened in search of a DICOM header: a folder of one scan has it in the first."""


@functools.lru_cache(maxsize=4096)
def identifying_words(path: str | Path) -> frozenset[str]:
    """Returns the words, in small letters, of the patient's names, numbers and birth date in a DICOM file or folder.

    Anything without a DICOM header has none.
    """
    path = Path(path)
    found: set[str] = set()
    for number, file in enumerate(_files(path)):
        if number == _FILES_TRIED or found:
            break
        found |= _words(file)
    return frozenset(found)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _words(file: Path) -> set[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            values = [str(header.get(tag) or "") for tag in _TAGS]
    except Exception:  # no DICOM file, or a damaged one, which the reader names
        return set()
    whole = {re.sub(r"\W+", "", value).lower() for value in values}
    return {word for value in values for word in re.split(r"[\W_]+", value.lower()) if word} | whole - {""}
