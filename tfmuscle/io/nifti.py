"""NIfTI-1 and NIfTI-2 files through nibabel.

The place in space is the sform if its code is above 0, else the qform, else the voxel sizes as nibabel reads them (axis
0 towards the left, origin in the middle). NIfTI is RAS+ like the world of `volume.py`, so nothing is converted. A file
with neither code nor voxel sizes is refused: nibabel would read it as 1 mm, and every millilitre measured on it would
be made up.

Numbers keep the type of the file as long as its scale is 1 and 0; otherwise they become float32. NaN and infinity are
read as they are: whether they are allowed depends on what the file is for, which `subjects.py` knows.

Written files carry the same affine as sform and qform (code 1, scanner), no scaling, and millimetres. A sheared grid
has no qform (code 0), because a qform cannot hold a shear: programs that need one then refuse the file instead of
misplacing it.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.volume import GRID_TOLERANCE_MM, Geometry, Volume

_GZIP_MAX_RATIO = 1032
"""Deflate cannot shrink more than this, so a header that promises more bytes is a lie or the file is cut off."""
_CHUNK_BYTES = 1 << 20
_READ_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error)


def read_nifti(path: str | Path, *, channel: int | None = None) -> Volume:
    """Reads a 2D or 3D image, or one channel of a 4D one, as `(I, J, K)` with its affine in mm.

    Args:
        path: a `.nii` or `.nii.gz` file.
        channel: which channel (last axis) to take from an image that has several.

    Raises:
        DataError: the file is missing, damaged, no NIfTI, without place in space, or of several channels, none chosen.
    """
    path = Path(path)
    try:
        image = nib.load(path, mmap=False)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except _READ_ERRORS as error:
        raise DataError(f"{path}: not a readable NIfTI image ({one_line(error)}); export or copy it again") from error
    if not isinstance(image, nib.Nifti1Image):
        raise DataError(f"{path}: not a NIfTI image but {type(image).__name__}; convert it to NIfTI")
    _check_promises(path, image)
    array = _read_array(path, image, channel)
    try:
        return Volume(array, Geometry(array.shape, image.affine), str(path))
    except ValueError as error:
        raise DataError(f"{path}: no usable place in space ({one_line(error)}); export it again") from error


def _check_promises(path: Path, image: nib.Nifti1Image) -> None:
    """Refuses what nibabel would silently repair or try to allocate."""
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        kind = "colour" if dtype.fields else str(dtype)
        raise DataError(f"{path}: {kind} voxels; one real number per voxel is needed, convert it to grey values")
    promised = math.prod(image.shape) * dtype.itemsize
    ratio = _GZIP_MAX_RATIO if path.suffix.lower() == ".gz" else 1
    if promised > ratio * path.stat().st_size:
        size = path.stat().st_size
        raise DataError(f"{path}: cut off, {promised} bytes are promised and it has {size}; copy or export it again")
    if image.header["sform_code"] > 0:
        return
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        raw = type(image.header).from_fileobj(file, check=False)
    sizes = [float(raw["pixdim"][axis + 1]) for axis, count in enumerate(image.shape[:3]) if count > 1]
    if not all(math.isfinite(size) and size != 0 for size in sizes):
        raise DataError(f"{path}: no sform, and voxel sizes {sizes} mm; export it again with its place in space")


def _read_array(path: Path, image: nib.Nifti1Image, channel: int | None) -> np.ndarray:
    """Reads the voxels of one channel as `(I, J, K)`."""
    shape = image.shape
    spatial = (*shape, 1, 1, 1)[:3]
    index: list[Any] = [slice(None)] * min(len(shape), 3)
    wide = [axis for axis in range(3, len(shape)) if shape[axis] != 1]
    if len(wide) > 1:
        raise DataError(f"{path}: an image of shape {shape}; at most one axis of channels is supported, split the file")
    number = chosen_channel(path, shape[wide[0]] if wide else 1, channel)
    index += [number if axis in wide else 0 for axis in range(3, len(shape))]
    try:
        array = _sliced(path, image.dataobj, tuple(index))
    except _READ_ERRORS as error:
        raise DataError(f"{path}: damaged or cut off ({one_line(error)}); copy or export it again") from error
    proxy: Any = image.dataobj  # the header forgets its scale once nibabel has handed it to the data
    is_scaled = (proxy.slope, proxy.inter) != (1, 0)
    dtype = np.dtype(np.float32) if is_scaled else array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    return array.astype(dtype, copy=False).reshape(spatial, order="F")


def _sliced(path: Path, proxy: Any, index: tuple[Any, ...]) -> np.ndarray:
    """Returns `proxy[index]`; a gzip file is read to its end, where the checksum is, because nibabel stops before."""
    if path.suffix.lower() != ".gz":
        return np.asarray(proxy[index])
    with _Gzip(path) as file:
        array = np.asarray(
            nib.arrayproxy.ArrayProxy(file, (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter))[index]
        )
        while file.read(_CHUNK_BYTES):
            pass
    return array


class _Gzip(gzip.GzipFile):
    """A gzip file read piece by piece: Python's own holds the voxels three times while it fills one large buffer."""

    def readinto(self, buffer: Any) -> int:
        count, view = 0, memoryview(buffer).cast("B")
        while read := super().readinto(view[count : count + _CHUNK_BYTES]):
            count += read
        return count


def chosen_channel(path: Path, count: int, channel: int | None) -> int:
    """Returns the channel to read from a file that has `count` of them, or says why none can be.

    Raises:
        DataError: several channels and none chosen, or one that the file does not have.
    """
    if channel is None and count != 1:
        raise DataError(f"{path}: {count} channels or time points, one is needed; choose a channel or split the file")
    if not 0 <= (channel or 0) < count:
        raise DataError(f"{path}: channel {channel} was asked for, it has {count}; choose from 0 to {count - 1}")
    return channel or 0


def write_nifti(path: str | Path, volume: Volume) -> None:
    """Writes a volume as `.nii` or `.nii.gz`, whole or not at all; labels keep their integer type.

    Raises:
        DataError: the disk is full or the folder cannot be written to.
    """
    array = storable(volume.array)
    _write(path, nib.Nifti1Image(array, volume.geometry.affine, dtype=array.dtype), volume)


def write_shares(path: str | Path, volume: Volume) -> None:
    """Writes values from 0 to 1 as `.nii` or `.nii.gz` in a byte each, in steps of 1/255; readers see 0 to 1.

    Raises:
        ValueError: values beyond 0 to 1, or none.
        DataError: as `write_nifti`.
    """
    least, most = float(volume.array.min()), float(volume.array.max())
    if not 0 <= least <= most <= 1:
        raise ValueError(f"values lie between {least} and {most}; shares from 0 to 1 are needed")
    steps = np.empty(volume.array.shape, np.uint8)
    for slab, shares in zip(steps, volume.array, strict=True):
        slab[...] = np.rint(shares * 255)
    image = nib.Nifti1Image(steps, volume.geometry.affine, dtype=np.uint8)
    image.header.set_slope_inter(1 / 255, 0)  # with a slope set, nibabel stores the array as it is
    _write(path, image, volume)


def _write(path: str | Path, image: nib.Nifti1Image, volume: Volume) -> None:
    affine = volume.geometry.affine
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    corner = np.array([*volume.geometry.shape, 1.0])
    if np.abs((image.get_qform() - affine) @ corner).max() > GRID_TOLERANCE_MM:
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    # opened here because nibabel's own save leaves the file open when the disk is full
    with atomic_path(path) as temporary, ImageOpener(str(temporary), mode="wb") as file:
        image.to_stream(file)  # type: ignore[arg-type]


def storable(array: np.ndarray) -> np.ndarray:
    """Returns `array` in a type that every viewer reads, without changing a value.

    Booleans become uint8, half precision becomes float32, 64-bit integers become int32 or uint32 where they fit.

    >>> storable(np.array([[[True]]])).dtype, storable(np.array([[[300]]])).dtype
    (dtype('uint8'), dtype('int32'))
    """
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        for dtype in (np.int32, np.uint32):
            if array.size == 0 or np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
                return array.astype(dtype)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise ValueError(f"voxels of type {array.dtype} cannot be written; use integers or floating-point numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def one_line(error: Exception, *, length: int = 160) -> str:
    """Returns a library's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."
