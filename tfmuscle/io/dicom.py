"""A folder of single-frame DICOM files as one volume, through pydicom.

DICOM's world is LPS and ends here. `ImageOrientationPatient` gives the directions in which the column index and the row
index grow; the array is `(I, J, K)` = (column, row, slice), so the affine's first two columns are those directions
times the pixel size, and the third is the step from slice to slice. Slices are sorted by their position along the
normal of the image plane, never by file name or instance number, which scanners and archives rewrite.

A series is refused rather than guessed at: two series in a folder, several images at one place (echoes, time points),
missing slices, uneven spacing, gantry tilt, colour. Multi-frame files and Siemens mosaics are not read yet.

No message names a patient: pydicom's own warnings, which may quote any value, are silenced, only the tags named below
are read, and a series description that repeats the patient's name or number is withheld.
"""

import re
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.pixels import get_decoder
from pydicom.uid import MediaStorageDirectoryStorage

from tfmuscle.errors import DataError
from tfmuscle.volume import Geometry, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAGIC_OFFSET, _MAGIC = 128, b"DICM"
_TAGS = [
    "SOPClassUID",
    "ImageType",
    "Modality",
    "SeriesInstanceUID",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ModalityLUTSequence",
]
_PIXEL_TAGS = ["BitsStored", "RescaleSlope", "RescaleIntercept"]
_COSINE_TOLERANCE = 1e-3
"""Directions that differ by less (0.06 degrees) are one direction: above rounding in headers."""
_GAP_TOLERANCE = 0.02
"""Slices may lie off their even place by this share of the slice distance: far below a missing slice."""
_GAP_TOLERANCE_MM = 0.01
_CONVERT = "convert the series with dcm2niix and use the NIfTI"


def is_dicom_file(path: str | Path) -> bool:
    """Whether the file starts as DICOM files do: 128 bytes, then `DICM`."""
    path = Path(path)
    if not path.is_file() or path.name.startswith("."):
        return False
    with path.open("rb") as file:
        return file.read(_MAGIC_OFFSET + len(_MAGIC))[_MAGIC_OFFSET:] == _MAGIC


def read_dicom(path: str | Path) -> Volume:
    """Reads one single-frame series, a folder or a single file, as `(I, J, K)` with its affine in mm (RAS+).

    Stored numbers keep their type when every rescale slope is 1 and every intercept 0, else they become float32. A
    series of one slice takes its thickness as spacing.

    Raises:
        DataError: no series, more than one, or one that is no evenly spaced stack of grey images.
    """
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may be a patient's name
        headers = _read_headers(path)
        _check_one_series(path, headers)
        for header in headers:
            _check_supported(path, header)
        _check_alike(path, headers)
        headers, affine = _arrange(path, headers)
        array = _read_pixels(path, headers)
    try:
        return Volume(array, Geometry(array.shape, affine), str(path))
    except ValueError as error:
        raise DataError(f"{path}: the headers give no usable grid; {_CONVERT}") from error


def _read_headers(path: Path) -> list[FileDataset]:
    """Reads the headers of the images among the files; other files and other DICOM objects are left out."""
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: there is no such file or folder; check the path")
    headers = [_read_header(file) for file in files if is_dicom_file(file) or _is_named_dicom(file)]
    images = [header for header in headers if header.get("Rows") is not None]
    if images:
        return images
    folders = sum(item.is_dir() for item in path.iterdir()) if path.is_dir() else 0
    advice = f"give one of its {folders} folders" if folders else "give the folder that holds the series"
    raise DataError(f"{path}: no DICOM image among {len(files)} files; {advice}")


def _is_named_dicom(file: Path) -> bool:
    return file.suffix.lower() in (".dcm", ".ima")


def _read_header(file: Path, *, pixels: bool = False) -> FileDataset:
    """Reads a file's tags, with its pixels or only those needed to place it."""
    try:
        tags = None if pixels else _TAGS
        header = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=tags, force=True)
        for keyword in _TAGS + _PIXEL_TAGS:  # pydicom reads a value when it is asked for, and only then finds it broken
            header.get(keyword)
        list(header.file_meta)
    except Exception as error:  # a damaged file can make pydicom raise anything
        raise DataError(f"{file}: a damaged DICOM file ({type(error).__name__}); copy the series again") from error
    is_directory = header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    if is_directory or file.name.upper() == "DICOMDIR":
        header.Rows = None
    elif not is_dicom_file(file) and "SOPClassUID" not in header:
        raise DataError(f"{file}: called a DICOM file but it is none; copy the series again or remove the file")
    return header


def _file(header: FileDataset) -> Path:
    return Path(str(header.filename))


def _check_one_series(path: Path, headers: list[FileDataset]) -> None:
    series: dict[str, list[FileDataset]] = {}
    for header in headers:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(header)
    if len(series) > 1:
        parts = [f"{len(files)} files {_description(files[0])}" for files in series.values()]
        more = f" and {len(parts) - 8} more" if len(parts) > 8 else ""
        listed = ", ".join(parts[:8]) + more
        raise DataError(f"{path}: {len(series)} series: {listed}; give each series a folder of its own")


def _description(header: FileDataset) -> str:
    """Returns modality and description of a series, withheld when it repeats what names the patient."""
    text = " ".join(str(header.get("SeriesDescription") or "no description").split())
    names = re.split(r"\W+", f"{header.get('PatientName', '')} {header.get('PatientID', '')}".lower())
    if any(len(name) > 2 and name in text.lower() for name in names):
        text = "description withheld"
    return f"({header.get('Modality') or 'no modality'}, {text[:40]})"


def _check_supported(path: Path, header: FileDataset) -> None:
    """Refuses what this reader would get wrong, by the file's own header."""
    kind = getattr(header.get("SOPClassUID"), "name", "")
    if _integer(header, "NumberOfFrames", 1) > 1 or "Enhanced" in kind or "Multi-frame" in kind:
        raise DataError(f"{path}: multi-frame DICOM is not supported yet; {_CONVERT}")
    if "MOSAIC" in [str(word).upper() for word in header.get("ImageType") or []]:
        raise DataError(f"{path}: Siemens mosaic images are not supported yet; {_CONVERT}")
    if _integer(header, "SamplesPerPixel", 1) != 1 or not str(
        header.get("PhotometricInterpretation", "MONOCHROME2")
    ).startswith("MONOCHROME"):
        raise DataError(f"{path}: colour images; grey values are needed, choose the series without colour")
    if header.get("ModalityLUTSequence"):
        raise DataError(f"{path}: values come through a look-up table, which is not supported; {_CONVERT}")
    syntax = header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    try:
        is_readable = not syntax.is_compressed or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        is_readable = False
    if not is_readable:
        raise DataError(f"{path}: compressed as {syntax.name}, which cannot be read here; {_CONVERT}")


def _integer(header: FileDataset, keyword: str, default: int) -> int:
    value = header.get(keyword)
    try:
        return default if value in (None, "") else int(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_file(header)}: {keyword} is not a number; copy or export the series again") from error


def _numbers(header: FileDataset, keyword: str, count: int) -> np.ndarray:
    """Returns `count` finite numbers of one tag."""
    try:
        values = np.array([float(value) for value in header[keyword].value], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise DataError(f"{_file(header)}: no usable {keyword}, so the image has no place in the patient; {_CONVERT}")
    return values


def _check_alike(path: Path, headers: list[FileDataset]) -> None:
    """All images must have one size, one pixel size and one orientation."""
    sizes = sorted({(_integer(header, "Columns", 0), _integer(header, "Rows", 0)) for header in headers})
    if len(sizes) > 1:
        listed = " and ".join(f"{columns}x{rows}" for columns, rows in sizes[:4])
        raise DataError(f"{path}: images of different size ({listed}); keep one stack of slices in the folder")
    spacings = np.array([_numbers(header, "PixelSpacing", 2) for header in headers])
    if spacings.min() <= 0 or np.abs(spacings / spacings[0] - 1).max() > _COSINE_TOLERANCE:
        low, high = spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()
        raise DataError(f"{path}: PixelSpacing from {low} to {high} mm; one positive pixel size is needed, {_CONVERT}")
    cosines = np.array([_numbers(header, "ImageOrientationPatient", 6) for header in headers])
    if np.abs(cosines - cosines[0]).max() > _COSINE_TOLERANCE:
        raise DataError(f"{path}: images of different orientation (a localiser?); keep one stack in the folder")
    row, column = cosines[0, :3], cosines[0, 3:]
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 10 * _COSINE_TOLERANCE:
        raise DataError(f"{path}: ImageOrientationPatient {cosines[0].tolist()} is no pair of directions; {_CONVERT}")


def _arrange(path: Path, headers: list[FileDataset]) -> tuple[list[FileDataset], np.ndarray]:
    """Sorts the slices along the normal and returns them with the RAS+ affine."""
    cosines = _numbers(headers[0], "ImageOrientationPatient", 6)
    row, column = cosines[:3] / np.linalg.norm(cosines[:3]), cosines[3:] / np.linalg.norm(cosines[3:])
    normal = np.cross(row, column)
    positions = np.array([_numbers(header, "ImagePositionPatient", 3) for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    headers, positions = [headers[index] for index in order], positions[order]
    row_spacing, column_spacing = _numbers(headers[0], "PixelSpacing", 2)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * column_spacing, column * row_spacing
    affine[:3, 2] = _slice_step(path, headers, positions, normal)
    affine[:3, 3] = positions[0]
    return headers, _LPS_TO_RAS @ affine


def _slice_step(path: Path, headers: list[FileDataset], positions: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Returns the vector in mm from one slice to the next, after checking that all steps are alike."""
    count = len(headers)
    if count == 1:
        return normal * _thickness(headers[0])
    depths = positions @ normal
    gaps = np.diff(depths)
    if gaps.min() < _GAP_TOLERANCE_MM:
        places = 1 + int((gaps >= _GAP_TOLERANCE_MM).sum())
        raise DataError(
            f"{path}: {count} images at {places} positions (echoes or time points?); "
            "keep one image per position in the folder"
        )
    distance = float(np.median(gaps))
    even = depths[0] + np.arange(count) * (depths[-1] - depths[0]) / (count - 1)
    if np.abs(depths - even).max() > max(_GAP_TOLERANCE * distance, _GAP_TOLERANCE_MM):
        raise DataError(
            f"{path}: slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart (slices missing?); "
            "an evenly spaced stack is needed, export the whole series again"
        )
    step = (positions[-1] - positions[0]) / (count - 1)
    aside = np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step)
    if aside > 2 * _COSINE_TOLERANCE:
        angle = np.degrees(np.arcsin(aside))
        raise DataError(f"{path}: slices are shifted sideways by {angle:.2f}° (tilted gantry); {_CONVERT}")
    return step


def _thickness(header: FileDataset) -> float:
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        try:
            value = float(header.get(keyword) or 0)
        except (TypeError, ValueError):
            value = 0.0
        if np.isfinite(value) and value > 0:
            return value
    raise DataError(f"{_file(header)}: one slice without SliceThickness has no volume; {_CONVERT}")


def _read_pixels(path: Path, headers: list[FileDataset]) -> np.ndarray:
    """Reads the slices one by one into `(I, J, K)`, rescaled where the files ask for it."""
    slices, scales = [], []
    for header in headers:
        dataset = _read_header(_file(header), pixels=True)
        slices.append(_stored_pixels(dataset))
        scales.append(_rescale(dataset))
    if all(scale == (1.0, 0.0) for scale in scales) and len({image.dtype for image in slices}) == 1:
        return np.stack(slices).transpose(2, 1, 0)
    array = np.empty((len(slices), *slices[0].shape), dtype=np.float32)
    for index, (image, (slope, intercept)) in enumerate(zip(slices, scales, strict=True)):
        array[index] = image * slope + intercept
        slices[index] = array[index, :0]  # lets go of the stored pixels
    return array.transpose(2, 1, 0)


def _stored_pixels(dataset: FileDataset) -> np.ndarray:
    """Returns the stored numbers `(rows, columns)`, cut to the bits in use and with their sign."""
    expected = (_integer(dataset, "Rows", 0), _integer(dataset, "Columns", 0))
    try:
        image = dataset.pixel_array
    except Exception as error:  # a damaged file can make pydicom raise anything
        reason = type(error).__name__
        raise DataError(f"{_file(dataset)}: its pixels cannot be read ({reason}); copy the series again") from error
    image = image.reshape(image.shape[-2:]) if image.ndim > 2 and image.shape[0] == 1 else image
    if image.shape != expected:
        found = f"pixels of shape {image.shape}, {expected} are promised"
        raise DataError(f"{_file(dataset)}: {found}; copy the series again")
    unused = 8 * image.dtype.itemsize - _integer(dataset, "BitsStored", 8 * image.dtype.itemsize)
    if image.dtype.kind in "iu" and unused > 0:
        image = (image << unused) >> unused
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _rescale(dataset: FileDataset) -> tuple[float, float]:
    try:
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    except (TypeError, ValueError):
        slope = intercept = float("nan")
    if not np.isfinite([slope, intercept]).all():
        raise DataError(f"{_file(dataset)}: no usable RescaleSlope and RescaleIntercept; export the series again")
    return slope, intercept
