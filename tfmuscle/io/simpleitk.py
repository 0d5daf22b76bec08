"""NRRD, MetaImage, TIFF and PNG files through SimpleITK.

SimpleITK speaks LPS and orders arrays `(k, j, i)`; both end here: the affine is `diag(-1, -1, 1, 1)` times SimpleITK's, and
arrays are `(I, J, K)`. A direction with negative determinant is kept as it is, never made right-handed.

NRRD and MetaImage files must say how large a voxel is. A TIFF or PNG has no place in the patient and is put at the origin
with the pixel size SimpleITK finds in it (1 mm if none); a 2D image is one slice of 1 mm.
"""

import math
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.io.nifti import chosen_channel, one_line, storable
from tfmuscle.volume import Geometry, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 1 << 16
_VOXEL_SIZE = {
    ".nrrd": rb"(?im)^(spacings|space directions)\s*:",
    ".nhdr": rb"(?im)^(spacings|space directions)\s*:",
    ".mha": rb"(?im)^(ElementSpacing|ElementSize)\s*=",
    ".mhd": rb"(?im)^(ElementSpacing|ElementSize)\s*=",
}


def read_simpleitk(path: str | Path, *, channel: int | None = None) -> Volume:
    """Reads a 2D or 3D image, or one channel of a colour, vector or 4D one, as `(I, J, K)` with its affine in mm (RAS+).

    Args:
        path: a `.nrrd`, `.nhdr`, `.mha`, `.mhd`, `.tif`, `.tiff` or `.png` file.
        channel: which component or time point to take from an image that has several.

    Raises:
        DataError: the file is missing, damaged, no image, says no voxel size, or has several channels and none was chosen.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path")
    _check_voxel_size(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        times = math.prod(size[3:])
        if components > 1 and times > 1:
            raise DataError(f"{path}: {times} time points of {components} values each; split the file")
        number = chosen_channel(path, components * times, channel)
        affine = _affine(reader)
        array = sitk.GetArrayFromImage(reader.Execute())
    except (RuntimeError, MemoryError) as error:
        reason = one_line(RuntimeError(_reason(error)))
        raise DataError(f"{path}: not a readable image ({reason}); export or copy it again") from error
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels of type {array.dtype}; one real number per voxel is needed, convert the image")
    array = _one_channel(array, size, components, number)
    try:
        return Volume(array, Geometry(array.shape, affine), str(path))
    except ValueError as error:
        raise DataError(f"{path}: no usable place in space ({one_line(error)}); export it again") from error


def _check_voxel_size(path: Path) -> None:
    pattern = _VOXEL_SIZE.get(path.suffix.lower())
    if pattern is None:
        return
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not re.search(pattern, header):
        raise DataError(f"{path}: the header says no voxel size, or it is no such image; export it again with its spacing")


def _reason(error: Exception) -> str:
    """Returns the last line of an ITK message, which holds the cause; the lines before hold addresses and source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^.*?\(0x[0-9a-f]+\):\s*", "", lines[-1]) if lines else type(error).__name__


def _affine(reader: sitk.ImageFileReader) -> np.ndarray:
    """Returns the RAS+ affine of the first three axes; missing axes get 1 mm."""
    count = reader.GetDimension()
    used = min(count, 3)
    direction = np.array(reader.GetDirection()).reshape(count, count)
    affine = np.eye(4)
    affine[:used, :used] = direction[:used, :used] * np.array(reader.GetSpacing())[:used]
    affine[:used, 3] = reader.GetOrigin()[:used]
    return _LPS_TO_RAS @ affine


def _one_channel(array: np.ndarray, size: tuple[int, ...], components: int, number: int) -> np.ndarray:
    """Takes one channel of SimpleITK's `([t,] [k,] j, i [, c])` and returns `(I, J, K)`."""
    if components > 1:
        array = array[..., number]
    spatial = (*size, 1, 1)[:3]
    return array.reshape(-1, *spatial[::-1])[number if components == 1 else 0].transpose(2, 1, 0)


def write_simpleitk(path: str | Path, volume: Volume) -> None:
    """Writes a volume as `.nrrd` or `.mha` (compressed), whole or not at all; labels keep their integer type.

    Raises:
        DataError: the disk is full or the folder cannot be written to.
    """
    array = storable(volume.array)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    spacing = volume.geometry.spacing
    affine = _LPS_TO_RAS @ volume.geometry.affine
    image.SetSpacing(spacing)
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise DataError(
                f"{path}: cannot be written ({one_line(RuntimeError(_reason(error)))}); check space and permissions"
            ) from error
