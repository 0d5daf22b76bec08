"""Any scan, any labels, as a NIfTI file that the page can load.

A NIfTI scan that NiiVue reads as this library does is sent as it is; anything else (DICOM, NRRD, two disagreeing
affines, several channels, rare number types) is converted once, uncompressed, into `.tfmuscle/series/`, which is also
what commands are given for a series of a DICOM folder. What was converted is known by path, size and time of its
source; the oldest go when there are too many.

Surfaces travel as PLY in RAS mm, read by `tfmuscle.io`, which knows what a file says of its space.

Labels travel as *indices*: 1, 2, ... in the order of a table of ids, names and colours that travels beside them, one
byte a voxel on exactly the scan's grid. The brush of the page knows 255 colours, ids know no limit.
"""

import hashlib
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, read_json, write_json
from tfmuscle.gui.workspace import Workspace, plain_stem
from tfmuscle.io import read_label_image, read_mesh, read_volume, write_mesh, write_volume
from tfmuscle.io.dicom import SeriesInfo, holds_dicom, list_series
from tfmuscle.io.label_tables import names_of
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.preprocessing.regions import hip_start, superior_axis
from tfmuscle.volume import Geometry, Volume

MAX_STRUCTURES = 254
"""Of a label image in the page: a byte less background, and one to spare."""
MAX_ID = 1 << 20
KEPT_BYTES = 8 << 30
"""Of converted scans and label images; the oldest go."""
_SENT_AS_IT_IS = ("uint8", "int16", "int32", "float32", "float64", "uint16")
_PIECE = 1 << 22
_MORE_BYTES = 1 << 16
_IGNORE_COLOUR = (128, 128, 128)


@dataclass(frozen=True)
class Scan:
    """What the page has open: a file, or one series of a DICOM folder or zip."""

    path: Path
    series: str | None = None

    @property
    def stem(self) -> str:
        """Name for what is made of it."""
        return plain_stem(self.path if self.series is None else Path(f"{self.series}.nii"))


@dataclass(frozen=True)
class Structure:
    """One structure of labels in the page: index there, id in the file, name, RGB colour, volume now."""

    index: int
    id: int
    name: str
    colour: tuple[int, int, int]
    volume_ml: float = 0.0


@dataclass(frozen=True, eq=False)
class LabelView:
    """Labels as the page sees them: `volume` of indices on the scan's grid, and what they mean."""

    volume: Volume
    structures: tuple[Structure, ...]
    ignore: int | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as plain values."""
        return {"structures": [asdict(one) for one in self.structures]}


class Volumes:
    """Converts for the page; one conversion at a time, because they take much memory."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace, self._lock = workspace, threading.RLock()

    def scan_file(self, scan: Scan) -> Path:
        """Returns a NIfTI file of the scan, its own or a converted one.

        Raises:
            DataError: it cannot be read, or several series are in it and none is named.
        """
        if scan.series is None and _is_plain_nifti(scan.path):
            return scan.path
        folder = self._folder("scan", scan.path, scan.series)
        out = folder / f"{scan.stem}.nii"
        with self._lock:
            if not out.exists():
                channel = 0 if scan.path.is_file() and not holds_dicom(scan.path) else None
                write_volume(out, read_volume(scan.path, channel=channel, series=scan.series))
                self._forget(keep=out)
        return out

    def series(self, path: Path) -> list[SeriesInfo]:
        """Lists the series of a DICOM folder or zip."""
        return list_series(path)

    def grid(self, scan: Scan) -> Geometry:
        """Returns the scan's grid; of a NIfTI file only the header is read."""
        image = _opened(self.scan_file(scan))
        return _grid(image)

    def about(self, scan: Scan) -> dict[str, Any]:
        """Returns what the page tells of a scan."""
        image = _opened(self.scan_file(scan))
        grid = _grid(image)
        spacing = [round(step, 4) for step in grid.spacing]
        about = {"shape": list(grid.shape), "spacing": spacing, "orientation": grid.orientation, "stem": scan.stem}
        return about | {"type": str(image.get_data_dtype()), "affine": grid.affine.tolist()}

    def hip(self, scan: Scan) -> dict[str, Any]:
        """Proposes the first slice with pelvis, and says along which axis it counts.

        Raises:
            DataError: the scan has no axis along the patient.
        """
        try:
            axis, upwards = superior_axis(self.grid(scan))
            found = hip_start(read_volume(self.scan_file(scan)))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{scan.path.name}: {error}; a hip is looked for in scans of legs") from error
        where = {"axis": axis, "upwards": upwards, "slices": self.grid(scan).shape[axis]}
        return where | {"slice": found.index, "confidence": found.confidence, "reason": found.reason}

    def labels(self, path: Path, scan: Scan) -> LabelView:
        """Reads labels as indices on the scan's grid.

        Raises:
            DataError: no labels, on another grid, or too many structures for the page.
        """
        volume, grid = read_label_image(path), self.grid(scan)
        if volume.geometry.orientation != grid.orientation:
            volume = volume.reoriented(grid.orientation)
        if not volume.geometry.same_grid(grid):
            shape, other = (" x ".join(map(str, one.shape)) for one in (volume.geometry, grid))
            raise DataError(f"{path.name}: {shape} voxels, not on the grid of the scan ({other}); choose its own scan")
        return view(volume, names_of(path), path.name)

    def label_file(self, path: Path, scan: Scan) -> tuple[Path, dict[str, Any]]:
        """Returns a NIfTI file of the labels' indices on the scan's grid, and their table."""
        folder = self._folder("labels", path, str(scan.path), scan.series, *_table_times(path))
        out, table = folder / "indices.nii", folder / "table.json"
        with self._lock:
            if not (out.exists() and table.exists()):
                seen = self.labels(path, scan)
                write_volume(out, seen.volume)
                write_json(table, seen.to_dict())
                self._forget(keep=out)
        return out, read_json(table)

    def surface_file(self, path: Path) -> Path:
        """Returns a binary PLY file of a surface, in RAS mm whatever its own space.

        Raises:
            DataError: it cannot be read.
        """
        out = self._folder("surface", path) / "surface.ply"
        with self._lock:
            if not out.exists():
                write_mesh(out, read_mesh(path))
                self._forget(keep=out)
        return out

    def _folder(self, *of: Any) -> Path:
        """Returns the folder of what is made of these; paths count with size and time."""
        digest = hashlib.sha256()
        for one in of:
            digest.update(repr(one if not isinstance(one, Path) else (str(one), _signature(one))).encode())
        return self._workspace.hidden / "series" / digest.hexdigest()[:16]

    def _forget(self, keep: Path) -> None:
        """Removes the oldest conversions beyond `KEPT_BYTES`."""
        folders = [folder for folder in (self._workspace.hidden / "series").iterdir() if folder != keep.parent]
        sizes = {folder: _size(folder.iterdir()) for folder in folders if folder.is_dir()}
        total = sum(sizes.values()) + keep.stat().st_size
        for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
            if total <= KEPT_BYTES:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]


def view(volume: Volume, label_map: LabelMap | None, name: str) -> LabelView:
    """Turns ids into indices; ids without a name are called `label_<id>`.

    Raises:
        DataError: more structures than the page can show.
    """
    present = [int(key) for key in distinct(volume.array)]
    names = dict(label_map.names) if label_map else {}
    ignore = label_map.ignore if label_map else None
    names |= {key: f"label_{key}" for key in present if key not in names and key != ignore}
    ids = [key for key in sorted(names) if key] + ([ignore] if ignore is not None else [])
    if len(ids) > MAX_STRUCTURES:
        raise DataError(f"{name}: {len(ids)} structures; the page shows {MAX_STRUCTURES} at most, merge some")
    if max(ids, default=0) > MAX_ID:
        raise DataError(f"{name}: the id {max(ids)}; the page shows ids up to {MAX_ID:,}, relabel it")
    colours = LabelMap({key: text for key, text in names.items() if key})
    table = np.zeros(max([*present, *ids, 0]) + 1, np.uint8)
    table[ids] = np.arange(1, len(ids) + 1)
    indices = table[volume.array]
    flat = indices.ravel(order="K")
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]  # bincount makes 8 bytes of one
    counts = np.sum([np.bincount(one, minlength=len(ids) + 1) for one in pieces], axis=0)
    volumes_ml = counts * volume.geometry.voxel_volume_ml
    structures = []
    for index, key in enumerate(ids, start=1):
        text = "ignore" if key == ignore else names[key]
        colour = _IGNORE_COLOUR if key == ignore else colours.colour(text)
        structures.append(Structure(index, key, text, colour, round(float(volumes_ml[index]), 3)))
    return LabelView(volume.with_array(indices), tuple(structures), ignore)


def _opened(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise DataError(f"{path.name}: not a NIfTI image but {type(image).__name__}; convert it to NIfTI")
    return image


def _grid(image: nib.Nifti1Image) -> Geometry:
    width, height, depth = (*image.shape, 1, 1, 1)[:3]
    return Geometry((width, height, depth), image.affine)


def _is_plain_nifti(path: Path) -> bool:
    """Whether NiiVue sees in the file what this library sees: three axes, a common type, one place, one whole piece."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return False
    try:
        image = _opened(path)
        header = image.header
        plain = image.get_data_dtype().name in _SENT_AS_IT_IS
        plain = plain and len(image.shape) == 3 and header["sform_code"] > 0
        plain = plain and (path.suffix == ".nii" or _is_one_piece(path, image))
        return bool(plain and header["sform_code"] >= header["qform_code"])
    except Exception:  # whatever is wrong with it, reading it for the conversion says so in words
        return False


def _is_one_piece(path: Path, image: nib.Nifti1Image) -> bool:
    """Whether a packed file says at its end that all of it is in one piece; browsers unpack the first piece only."""
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")  # of the last piece, unpacked
    needed = int(image.header["vox_offset"]) + math.prod(image.shape) * image.get_data_dtype().itemsize
    return needed <= size < needed + _MORE_BYTES  # of a file that was cut these bytes say anything


def _signature(path: Path) -> list[tuple[str, int, int]]:
    """Returns names, sizes and times of the file, or of the files in the folder."""
    files: Iterable[Path] = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(one), stat.st_size, stat.st_mtime_ns) for one in files if one.is_file() and (stat := one.stat())]


def _table_times(path: Path) -> list[Any]:
    """Returns sizes and times of tables that may name these labels."""
    stem = re.sub(r"(\.nii)?\.\w+$", "", path.name)
    near = [*path.parent.glob(f"{stem}.*"), path.parent / "dataset.json", path.parent / "predictions.json"]
    near.append(path.parent.parent / "dataset.json")
    return [_signature(one) for one in sorted(near) if one.is_file() and not one.name.startswith(TEMPORARY_PREFIX)]


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
