"""What a DICOM file says of the patient's identity, so that nothing else is ever called after it.

The words are only compared with names of folders and subjects; they are written and printed nowhere. Accents, letter
case and what stands between the parts of a name or a date make no difference, and a birth date counts in every order
of day, month and year. Parts of less than three letters prove nothing: "Li" is in many words.
"""

import functools
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pydicom

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.sources import is_dicom_file, is_zip_file, open_sources

_TAGS = ["PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "IssuerOfPatientID"]
_FILES_TRIED = 20
"""DICOM files of a folder opened in search of a name: a folder of one scan has it in the first."""
_SHORTEST_WORD = 3
_SHORTEST_ACROSS = 6
"""Letters that must fit when what stands between words is ignored."""


@functools.lru_cache(maxsize=4096)
def identifying_words(path: str | Path) -> frozenset[str]:
    """Returns the words, in small letters, of the patient's names, numbers and birth date in a DICOM file, folder, zip.

    Anything without a DICOM header has none.
    """
    found: set[str] = set()
    for number, file in enumerate(_files(Path(path))):
        if number == _FILES_TRIED or found:
            break
        for content in _opened(file):
            found |= _words(content)
            if found:
                break
    return frozenset(found)


def names_patient(text: str, words: Iterable[str]) -> bool:
    """Whether a name of a file or subject repeats one of the patient's identifying words.

    >>> names_patient("M\u00fcller_left", {"muller"}), names_patient("1957-08-12", {"19570812"})
    (True, True)
    """
    plain = _folded(text)
    joined = re.sub(r"[\W_]+", "", plain)
    return any(
        len(word) >= _SHORTEST_WORD and (word in plain or (len(word) >= _SHORTEST_ACROSS and word in joined))
        for word in words
    )


def _folded(text: str) -> str:
    """Returns small letters without accents; a disk and a scanner may spell the same letter in two ways."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(sign))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        for file in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if file.suffix.lower() in (".dcm", ".ima") or is_dicom_file(file) or is_zip_file(file):
                yield file


def _opened(file: Path) -> Iterator[BinaryIO]:
    """Yields the file, or the first members of a zip."""
    try:
        with open_sources(file) as (sources, _):
            for source in sources[:_FILES_TRIED]:
                with source.open() as content:
                    yield content
    except (DataError, OSError):  # no file, or a damaged one, which the reader names
        return


def _words(file: BinaryIO) -> set[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            values = [_folded(str(header.get(tag) or "")) for tag in _TAGS]
    except Exception:  # no DICOM file, or a damaged one, which the reader names
        return set()
    whole = {re.sub(r"\W+", "", value) for value in values}
    birth = re.fullmatch(r"\d\d(\d\d)(\d\d)(\d\d)", values[2])
    if birth is not None:
        year, month, day = birth.groups()
        century = values[2][:2]
        whole |= {day + month + century + year, month + day + century + year, year + month + day, day + month + year}
    return {word for value in values for word in re.split(r"[\W_]+", value) if word} | whole - {""}
