"""Where DICOM files lie: a file, a nested folder, what a DICOMDIR names, a zip.

Zip members are read in memory one at a time, so that nothing is left on the disk and no name can point outside; an
archive that promises far more than it holds (a zip bomb) or has hostile names is refused as a whole. Folders of a zip
inside a folder are not opened: give the zip itself.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from tfmuscle.errors import DataError

_MAGIC_OFFSET, _MAGIC = 128, b"DICM"
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_SUFFIXES = (".dcm", ".ima", ".img")
_JUNK_FOLDERS = ("__MACOSX",)
_HEAD = 1024  # bytes that hold the meta header
_MAX_MEMBERS = 200_000
_MAX_MEMBER_BYTES = 4 * 2**30
_FREE_BYTES = 256 * 2**20
_MAX_RATIO = 100
"""A zip may hold `_FREE_BYTES`, or this many times its own size: slices of black compress well, bombs better."""


@dataclass(frozen=True)
class Source:
    """One DICOM file.

    Attributes:
        name: for messages, relative to what the user named.
        folder: the folder it lies in, relative too.
        size: bytes; once its header was read, those from the pixels on.
        path: the file, or the zip it lies in.
        archive: the open zip, if it lies in one.
        member: its name there.
    """

    name: str
    folder: str
    size: int
    path: Path
    archive: zipfile.ZipFile | None = None
    member: str = ""

    def open(self) -> BinaryIO:
        """Opens the file for reading; a member of a zip is read into memory first."""
        if self.archive is None:
            return self.path.open("rb")
        return io.BytesIO(self.archive.read(self.member))


def is_dicom_file(path: str | Path) -> bool:
    """Whether the file starts as DICOM files do: 128 bytes, then `DICM`."""
    path = Path(path)
    if not path.is_file() or path.name.startswith("."):
        return False
    with path.open("rb") as file:
        return file.read(_MAGIC_OFFSET + len(_MAGIC))[_MAGIC_OFFSET:] == _MAGIC


def is_zip_file(path: str | Path) -> bool:
    """Whether the file starts as a zip does."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in _ZIP_STARTS


def holds_dicom(path: str | Path) -> bool:
    """Whether the file is DICOM or a zip, or a DICOM file lies anywhere below the folder."""
    path = Path(path)
    if path.is_dir():
        return next(_walk(path), None) is not None
    return is_dicom_file(path) or is_zip_file(path) or (path.is_file() and path.suffix.lower() in _SUFFIXES[:2])


@contextlib.contextmanager
def open_sources(path: Path) -> Iterator[tuple[list[Source], list[str]]]:
    """Finds the DICOM files at `path`; gives them and what is wrong with the place itself, one line each.

    Raises:
        DataError: the path is missing, the zip is damaged or hostile, or the DICOMDIR cannot be read.
    """
    if path.is_dir():
        yield list(_walk(path)), []
    elif is_zip_file(path):
        with _open_zip(path) as archive:
            yield _members(path, archive), []
    elif not path.is_file():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    elif (named := _files_of_dicomdir(path)) is not None:
        yield _named_files(path, named)
    else:
        yield [Source(path.name, "", path.stat().st_size, path)], []


def _walk(folder: Path) -> Iterator[Source]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _JUNK_FOLDERS)
        for name in sorted(names):
            path = Path(here, name)
            if name.upper().startswith("DICOMDIR") or name.startswith("."):
                continue
            if path.is_file() and (path.suffix.lower() in _SUFFIXES[:2] or is_dicom_file(path)):
                relative = path.relative_to(folder)
                yield Source(relative.as_posix(), relative.parent.as_posix(), path.stat().st_size, path)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: a damaged zip; copy it again, or unpack it and give the folder") from error


def _members(path: Path, archive: zipfile.ZipFile) -> list[Source]:
    """Returns the DICOM files in a zip, after checking names and promised sizes of all members."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    promised, size = sum(member.file_size for member in members), path.stat().st_size
    largest = max((member.file_size for member in members), default=0)
    if len(members) > _MAX_MEMBERS or promised > max(_FREE_BYTES, _MAX_RATIO * size) or largest > _MAX_MEMBER_BYTES:
        raise DataError(
            f"{path}: {len(members)} files of {promised / 2**30:.1f} GiB are promised by {size / 2**20:.1f} MiB "
            "(a zip bomb?); unpack it yourself if you trust it, and give the folder"
        )
    found = []
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise DataError(f"{path}: a name in it points outside the zip; do not use it, ask for a new one")
        if member.flag_bits & 1:
            raise DataError(f"{path}: encrypted; unpack it with its password and give the folder")
        if name.name.startswith(".") or name.name.upper() == "DICOMDIR" or name.parts[0] in _JUNK_FOLDERS:
            continue
        if name.suffix.lower() in _SUFFIXES[:2] or _member_is_dicom(path, archive, member):
            found.append(Source(str(name), name.parent.as_posix(), member.file_size, path, archive, member.filename))
    return found


def _member_is_dicom(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            return file.read(_MAGIC_OFFSET + len(_MAGIC))[_MAGIC_OFFSET:] == _MAGIC
    except Exception as error:  # damaged members make zipfile, zlib and lzma raise many things
        raise DataError(f"{path}: a damaged zip; copy it again, or unpack it and give the folder") from error


def _files_of_dicomdir(path: Path) -> list[tuple[str, ...]] | None:
    """Returns the file names a DICOMDIR refers to; None if the file is no DICOMDIR."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    is_deflated = str(DeflatedExplicitVRLittleEndian).encode() in head  # never so by the standard, and may be a bomb
    if str(MediaStorageDirectoryStorage).encode() not in head or is_deflated:
        return None
    try:
        with path.open("rb") as file:
            dataset = pydicom.dcmread(file, specific_tags=["DirectoryRecordSequence"], force=True)
            records = dataset.get("DirectoryRecordSequence") or []
            names = [record.get("ReferencedFileID") for record in records]
    except Exception as error:  # a damaged file can make pydicom raise anything
        raise DataError(f"{path}: a damaged DICOMDIR; give the folder it lies in") from error
    return [(name,) if isinstance(name, str) else tuple(map(str, name)) for name in names if name]


def _named_files(path: Path, named: list[tuple[str, ...]]) -> tuple[list[Source], list[str]]:
    """Returns the files a DICOMDIR names, in the letter case they have on this disk, and what is missing."""
    root, found, missing = path.parent, [], 0
    for parts in dict.fromkeys(named):
        if any(part in ("", ".", "..") or "/" in part or "\\" in part or ":" in part for part in parts):
            raise DataError(f"{path}: a name in it points outside its folder; give the folder itself instead")
        file = next(
            (file for file in (root.joinpath(*parts), root.joinpath(*map(str.lower, parts))) if file.is_file()), None
        )
        if file is None:
            missing += 1
        else:
            relative = file.relative_to(root)
            found.append(Source(relative.as_posix(), relative.parent.as_posix(), file.stat().st_size, file))
    problem = f"{missing} of {len(set(named))} files that the DICOMDIR names are missing; copy the whole disc again"
    return found, [problem] if missing else []
