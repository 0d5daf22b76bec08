"""The tags of one DICOM file, read without its pixels and without believing them.

Only the tags named here are read, so that nothing about the patient can reach a message; the patient's name and number
are compared with the description and go no further.
"""

import re
import struct
import zlib
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom._uid_dict import UID_dictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.sources import Source

AGAIN = "copy or export the series again"
CONVERT = "convert the series with dcm2niix and use the NIfTI"
PHILIPS_SCALE, GE_KIND, SIEMENS_B = (0x2005, 0x0E), (0x0043, 0x2F), (0x0019, 0x0C)
_CREATORS = {0x2005: "Philips MR Imaging DD 001", 0x0043: "GEMS_PARM_01", 0x0019: "SIEMENS MR HEADER"}
_PRIVATE = [
    tag
    for group, element in (PHILIPS_SCALE, GE_KIND, SIEMENS_B)
    for block in range(0x10, 0x18)  # archives may move a maker's block of tags
    for tag in (group << 16 | block, group << 16 | block << 8 | element)
]
_TAGS: list[Any] = [
    "SOPClassUID", "SOPInstanceUID", "ImageType", "Modality", "Manufacturer", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "StudyDate", "SeriesDescription", "ProtocolName", "PatientName",
    "PatientID", "OtherPatientIDs", "PatientBirthDate", "InstanceNumber", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices",
    "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "EchoTime", "EchoNumbers", "InversionTime",
    "RepetitionTime", "FlipAngle", "DiffusionBValue", "TriggerTime", "AcquisitionTime", "AcquisitionNumber",
    "TemporalPositionIdentifier", "ContentTime", "LossyImageCompression", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "MRAcquisitionType", "ConvolutionKernel", "ComplexImageComponent",
]  # fmt: skip
_META_START, _MAX_META = 128 + 4 + 12, 2**16
_INFLATED_FREE, _INFLATED_RATIO = 256 * 2**20, 50


def read_header(source: Source) -> tuple[Source, FileDataset]:
    """Reads the tags of a file, not its pixels; the source returned knows how many bytes are left for them.

    Raises:
        DataError: the file is damaged, is no DICOM, or inflates without end; the text does not name the file.
    """
    try:
        with source.open() as file:
            _check_inflation(file, source.size)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*_TAGS, *_PRIVATE], force=True)
            left = source.size - file.tell()
        for element in header:  # pydicom reads a value when it is asked for, and only then finds it broken
            _ = element.value
        list(header.file_meta)
    except DataError:
        raise
    except Exception as error:  # a damaged file can make pydicom raise anything
        raise DataError(f"a damaged DICOM file ({type(error).__name__}); {AGAIN}") from error
    if "SOPClassUID" not in header and "Rows" not in header and not _has_meta(header):
        raise DataError("called a DICOM file but it is none; copy the series again or remove the file")
    deflated = header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    return source if deflated else replace(source, size=max(0, left)), header


def _has_meta(header: FileDataset) -> bool:
    return "MediaStorageSOPClassUID" in header.file_meta or header.preamble is not None


def _check_inflation(file: BinaryIO, size: int) -> None:
    """Refuses a deflated file that grows without bound, before pydicom inflates it in one piece.

    The data set follows the meta header, whose length is its first element (DICOM PS3.10, 7.1).
    """
    head = file.read(_META_START)
    length = struct.unpack_from("<I", head, _META_START - 4)[0] if len(head) == _META_START else 0
    meta = file.read(min(length, _MAX_META))
    if str(DeflatedExplicitVRLittleEndian).encode() in meta[:_MAX_META]:
        inflater, total, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, max(_INFLATED_FREE, _INFLATED_RATIO * size)
        pending = file.read(2**16)
        while pending:
            total += len(inflater.decompress(pending, 2**20))
            if total > limit:
                raise DataError(f"grows to more than {limit >> 20} MiB when unpacked; {AGAIN}")
            pending = inflater.unconsumed_tail or (b"" if inflater.eof else file.read(2**16))
    file.seek(0)


def is_directory(header: FileDataset) -> bool:
    """Whether the file is a DICOMDIR, whatever its name."""
    return header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def words(header: Dataset, keyword: str) -> list[str]:
    """Returns the values of a tag of words, in capitals and without blanks at the ends; empty if it is missing.

    >>> dataset = Dataset()
    >>> dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    >>> words(dataset, "ImageType"), words(dataset, "Modality")
    (['ORIGINAL', 'PRIMARY', 'M'], [])
    """
    value = header.get(keyword)
    if value in (None, ""):
        return []
    values = [value] if isinstance(value, str) else list(value)
    return [str(item).strip().upper() for item in values]


def modality_of(header: Dataset) -> str:
    """Returns the modality in at most sixteen capitals and digits, "" without one; a damaged one may be any text."""
    return re.sub(r"[^A-Z0-9]+", "", "".join(words(header, "Modality")[:1]))[:16]


def uid_name(value: Any) -> str:
    """Returns the name of an identifier of the standard, or its digits; "" for what is no identifier (damaged text).

    >>> uid_name("1.2.840.10008.1.2.4.70"), uid_name("Quux^Zebulon")
    ('JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])', '')
    """
    text = str(value)
    return UID_dictionary[text][0] if text in UID_dictionary else text if re.fullmatch(r"[\d.]{1,64}", text) else ""


def integer(header: Dataset, keyword: str, default: int) -> int:
    """Returns a whole number, or `default` where the tag is missing or empty.

    Raises:
        DataError: the value is no number.
    """
    value = header.get(keyword)
    try:
        return default if value in (None, "") else int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{keyword} is not a number; {AGAIN}") from error


def number(header: Dataset, keyword: str) -> float | None:
    """Returns a finite number, the first of several; None where there is none."""
    value = header.get(keyword)
    try:
        value = value[0] if isinstance(value, list | pydicom.multival.MultiValue) else value
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, IndexError):
        return None
    return found if np.isfinite(found) else None


def vector(header: Dataset, keyword: str, count: int) -> np.ndarray:
    """Returns `count` finite numbers, or as many NaN where there are none."""
    try:
        values = np.array([float(value) for value in header[keyword].value], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    return values if values.shape == (count,) and np.isfinite(values).all() else np.full(count, np.nan)


def private(header: Dataset, tag: tuple[int, int]) -> Any:
    """Returns a maker's private value, wherever an archive has moved its block; None if it was removed."""
    group, element = tag
    try:
        return header.private_block(group, _CREATORS[group])[element].value
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def description(header: Dataset) -> str:
    """Returns the description of a series in one line, withheld when it repeats what names the patient.

    >>> dataset = Dataset()
    >>> dataset.PatientName, dataset.SeriesDescription = "Quux^Zebulon", "t1 axial"
    >>> description(dataset)
    't1 axial'
    >>> dataset.SeriesDescription = "ZEBULON follow-up"
    >>> description(dataset)
    'description withheld'
    """
    text = " ".join(str(header.get("SeriesDescription") or header.get("ProtocolName") or "").split())
    text = "".join(letter for letter in text if letter.isprintable())[:64]
    keywords = ("PatientName", "PatientID", "OtherPatientIDs", "PatientBirthDate")
    names = re.split(r"[\W_]+", " ".join(str(header.get(keyword) or "") for keyword in keywords).lower())
    plain = re.sub(r"[\W_]+", "", text.lower())
    if any(len(name) > 2 and (name in text.lower() or name in plain) for name in names):
        return "description withheld"
    return text
