"""Scans and surfaces in files.

`read_volume` finds the format: a folder or a zip holds DICOM, a file is what its name says, and a file with an unknown
name is DICOM if it starts like one. Everything that comes out is a `Volume` on its grid in RAS+ millimetres, `(I, J,
K)`, in the number type of the file; everything that goes in is written whole or not at all.
"""

from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io.dicom import holds_dicom, is_dicom_file, read_dicom
from tfmuscle.io.mesh import read_mesh, write_mesh
from tfmuscle.io.nifti import chosen_channel, read_nifti, write_nifti
from tfmuscle.io.simpleitk import read_simpleitk, write_simpleitk
from tfmuscle.volume import Volume

__all__ = [
    "VOLUME_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "case_files",
    "case_id",
    "check_suffix",
    "holds_dicom",
    "is_dicom_folder",
    "read_label_image",
    "read_mesh",
    "read_volume",
    "volume_files",
    "write_mesh",
    "write_volume",
]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".png")
_NIFTI_SUFFIXES = (".nii.gz", ".nii")
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_LARGEST_ID = (1 << 32) - 1


def read_volume(path: str | Path, *, channel: int | None = None, series: str | None = None) -> Volume:
    """Reads an image file or one DICOM series as `(I, J, K)` on its grid in mm (RAS+).

    Args:
        path: a file whose name ends in one of `VOLUME_SUFFIXES`, a DICOM file, or a folder, DICOMDIR or zip of them.
        channel: which channel to take from an image that has several; without it such an image is refused.
        series: which DICOM series to take where there are several, by the name that `list_series` gives it.

    Raises:
        DataError: the file is missing, damaged, of an unknown format, or several channels or series are in it and none
            was chosen.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    suffix = _suffix(path)
    if path.is_file() and suffix:
        if series is not None:
            raise DataError(f"{path}: has no DICOM series; leave the series out")
        read = read_nifti if suffix in _NIFTI_SUFFIXES else read_simpleitk
        return read(path, channel=channel)
    if path.is_dir() or holds_dicom(path):
        chosen_channel(path, 1, channel)
        return read_dicom(path, series=series)
    raise DataError(f"{path}: not a known image; use {', '.join(VOLUME_SUFFIXES)} or a folder of DICOM files")


def read_label_image(path: str | Path) -> Volume:
    """Reads labels `(I, J, K)` as ids in the smallest unsigned type; whole numbers stored as floats are ids too.

    Raises:
        DataError: as `read_volume`, or a value is no whole number from 0 on.
    """
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; give one label image")
    volume = read_volume(path)
    array = volume.array
    is_whole = array.dtype.kind in "bui" or (np.isfinite(array).all() and (array == np.rint(array)).all())
    if not is_whole or array.min() < 0 or array.max() > _LARGEST_ID:
        raise DataError(
            f"{path}: labels must be whole numbers from 0 on; give a label image, resampled by nearest, no grey values"
        )
    return volume.with_array(array.astype(np.min_scalar_type(int(array.max())), copy=False))


def write_volume(path: str | Path, volume: Volume) -> None:
    """Writes a volume as `.nii.gz`, `.nii`, `.nrrd` or `.mha`, whole or not at all, at its place in space.

    Raises:
        ValueError: the name ends otherwise.
        DataError: the disk is full or the folder cannot be written to.
    """
    check_suffix(path)
    write = write_nifti if _suffix(path) in _NIFTI_SUFFIXES else write_simpleitk
    write(path, volume)


def check_suffix(path: str | Path) -> None:
    """Raises ValueError for a name that `write_volume` cannot write, so that long work need not start."""
    if _suffix(path) not in WRITTEN_SUFFIXES:
        raise ValueError(f"{path}: volumes are written as {', '.join(WRITTEN_SUFFIXES)}; choose one of these endings")


def volume_files(folder: str | Path) -> list[Path]:
    """Returns the image files of a folder, sorted by name; hidden and half-written ones are left out.

    Raises:
        DataError: the folder is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if _suffix(path))


def case_files(folder: str | Path) -> dict[str, Path]:
    """Returns case id -> image file of a folder, sorted by id.

    Raises:
        DataError: the folder is missing, or two of its files have one name but for their endings.
    """
    files: dict[str, Path] = {}
    for path in volume_files(folder):
        if (key := case_id(path)) in files:
            raise DataError(f"{path}: {files[key].name} is {key!r} too; keep one of them")
        files[key] = path
    return dict(sorted(files.items()))


def case_id(path: str | Path) -> str:
    """Returns the name of a scan without its ending.

    >>> case_id("scans/thigh.01_0000.nii.gz"), case_id("scans/dicom_series_7")
    ('thigh.01_0000', 'dicom_series_7')
    """
    name = Path(path).name
    suffix = _suffix(path) or next((one for one in (".dcm", ".zip") if name.lower().endswith(one)), "")
    return name[: len(name) - len(suffix)]


def is_dicom_folder(path: str | Path) -> bool:
    """Whether the folder itself, not a folder in it, holds DICOM files."""
    path = Path(path)
    if not path.is_dir():
        return False
    return any(is_dicom_file(item) for item in sorted(path.iterdir()) if not _suffix(item))


def _suffix(path: str | Path) -> str:
    name = Path(path).name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), "")
