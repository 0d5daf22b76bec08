"""NRRD, MetaImage, TIFF and PNG files through SimpleITK.

SimpleITK speaks LPS and orders arrays `(k, j, i)`; both end here: the affine is `diag(-1, -1, 1, 1)` times SimpleITK's,
and arrays are `(I, J, K)`. A direction with negative determinant is kept as it is, never made right-handed.

NRRD and MetaImage files must say how large a voxel is. A TIFF or PNG has no place in the patient: it lies at the origin
with pixels of 1 mm, a 2D image is one slice of 1 mm. Its dots per inch are ignored, because they are what some program
wrote for printing and differ between an image and its own mask. Grey values stored as red = green = blue are grey.

The checksum of a compressed MetaImage is verified here: ITK does not look at it and returns damaged voxels.
"""

import math
import re
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.io.nifti import chosen_channel, one_line, storable
from tfmuscle.volume import Geometry, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_NRRD_VOXEL_SIZE = rb"(?im)^(spacings|space directions)\s*:"
_META_VOXEL_SIZE = rb"(?im)^(ElementSpacing|ElementSize)\s*="
_VOXEL_SIZE = {
    ".nrrd": _NRRD_VOXEL_SIZE,
    ".nhdr": _NRRD_VOXEL_SIZE,
    ".mha": _META_VOXEL_SIZE,
    ".mhd": _META_VOXEL_SIZE,
}
_META_BYTES = {b"CHAR": 1, b"UCHAR": 1, b"SHORT": 2, b"USHORT": 2, b"INT": 4, b"UINT": 4, b"FLOAT": 4, b"DOUBLE": 8}


def read_simpleitk(path: str | Path, *, channel: int | None = None) -> Volume:
    """Reads a 2D or 3D image, or one channel of a colour, vector or 4D one, as `(I, J, K)` with its affine in mm.

    Args:
        path: a `.nrrd`, `.nhdr`, `.mha`, `.mhd`, `.tif`, `.tiff` or `.png` file.
        channel: which component or time point to take from an image that has several.

    Raises:
        DataError: the file is missing, damaged, no image, says no voxel size, or has several channels, none chosen.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path")
    _check_header(path)
    try:
        array, affine = _read(path, channel)
    except (RuntimeError, MemoryError) as error:
        reason = one_line(RuntimeError(_reason(error)))
        raise DataError(f"{path}: not a readable image ({reason}); export or copy it again") from error
    try:
        return Volume(array, Geometry(array.shape, affine), str(path))
    except ValueError as error:
        raise DataError(f"{path}: no usable place in space ({one_line(error)}); export it again") from error


def _check_header(path: Path) -> None:
    """Refuses a header without voxel size, and what ITK would not notice in the data of a MetaImage."""
    pattern = _VOXEL_SIZE.get(path.suffix.lower())
    if pattern is None:
        return
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if not re.search(pattern, header):
        raise DataError(f"{path}: no voxel size in its header, or no such image; export it again with its spacing")
    if path.suffix.lower() in (".mha", ".mhd"):
        _check_meta_image(path, header)


def _check_meta_image(path: Path, header: bytes) -> None:
    """Refuses what ITK crashes on (axes that do not match) or does not notice (damaged or missing voxels)."""
    data = re.search(rb"(?im)^ElementDataFile[ \t]*=[ \t]*(\S+)[ \t]*\r?\n?", header)
    header = header[: data.start()] if data else header
    found = re.findall(rb"(?m)^[ \t]*(\w+)[ \t]*=[ \t]*([^\r\n]*)", header)
    fields = {key.decode("latin-1").lower(): value.split() for key, value in found}
    axes = int(fields["ndims"][0]) if re.fullmatch(rb"\d", b" ".join(fields.get("ndims", []))) else 0
    lengths = dict.fromkeys(("dimsize", "elementspacing", "elementsize", "offset", "position", "origin"), axes)
    lengths |= dict.fromkeys(("transformmatrix", "rotation", "orientation"), axes * axes) | {"centerofrotation": axes}
    wrong = [key for key, length in lengths.items() if len(fields.get(key, [b""] * length)) != length]
    if not 2 <= axes <= 4 or wrong or not all(size.isdigit() and int(size) for size in fields.get("dimsize", [b""])):
        raise DataError(f"{path}: a header of {axes} axes that does not fit itself; export it again")
    if data is None or data.group(1).upper() != b"LOCAL":
        return
    if fields.get("compresseddata", [b""])[0].lower() == b"true":
        is_whole = _is_whole_zlib(path, data.end())
    else:
        is_whole = path.stat().st_size - data.end() >= _meta_image_bytes(fields)
    if not is_whole:
        raise DataError(f"{path}: damaged or cut off; copy or export it again")


def _is_whole_zlib(path: Path, offset: int) -> bool:
    """Whether a zlib or gzip stream that starts at `offset` ends with its right checksum."""
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(offset)
        try:
            while not stream.eof and (chunk := file.read(_CHUNK_BYTES)):
                while chunk and not stream.eof:
                    stream.decompress(chunk, _CHUNK_BYTES)
                    chunk = stream.unconsumed_tail
        except zlib.error:
            return False
    return stream.eof


def _meta_image_bytes(fields: dict[str, list[bytes]]) -> int:
    """Returns how many bytes of voxels a MetaImage header promises, at least one for a type it does not know."""
    kind = b"".join(fields.get("elementtype", [])).upper().removeprefix(b"MET_").removesuffix(b"_ARRAY")
    channels = b"".join(fields.get("elementnumberofchannels", [b"1"]))
    width = _META_BYTES.get(kind, 1) * (int(channels) if channels.isdigit() else 1)
    return math.prod(map(int, fields["dimsize"])) * width


def _read(path: Path, channel: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns one channel `(I, J, K)` and its RAS+ affine; ITK's warnings are kept off the terminal meanwhile."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    shows_warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        size, components, times = reader.GetSize(), reader.GetNumberOfComponents(), math.prod(reader.GetSize()[3:])
        if components > 1 and times > 1:
            raise DataError(f"{path}: {times} time points of {components} values each; split the file")
        if "complex" in (kind := sitk.GetPixelIDValueAsString(reader.GetPixelID())):
            raise DataError(f"{path}: voxels of type {kind}; one real number per voxel is needed, convert the image")
        is_picture = path.suffix.lower() not in _VOXEL_SIZE
        affine = _LPS_TO_RAS if is_picture else _affine(reader)
        if not (is_picture and components == 3 and channel is None):
            number = chosen_channel(path, components * times, channel)
            array = sitk.GetArrayFromImage(reader.Execute())
        else:
            array, number = sitk.GetArrayFromImage(reader.Execute()), 0
            if (array != array[..., :1]).any():
                raise DataError(f"{path}: a colour image; choose a channel or convert it to grey values")
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shows_warnings)
    return _one_channel(array, size, components, number), affine


def _reason(error: Exception) -> str:
    """Returns the last line of an ITK message, which holds the cause; those before hold addresses and sources."""
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
