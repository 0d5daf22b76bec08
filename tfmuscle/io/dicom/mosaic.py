"""Siemens mosaics: all slices of a volume as tiles of one image.

`ImagePositionPatient` is that of a single huge slice with the mosaic's size; the first tile's own corner lies half the
difference of the sizes further along both directions. How many tiles there are is in the private tag (0019,100A), the
direction from tile to tile in the CSA header (0029,1010), which may run against the cross product of the image's
directions (feet first or head first). Sources: Siemens' DICOM conformance statements; the layout of the CSA header as
documented by nibabel ("Siemens format DICOM with CSA header"): `SV10`, four bytes, the number of tags, 77; then for
every tag its name (64 bytes), multiplicity, type, number of items, and items of 16 bytes of lengths and padded text.
"""

import struct

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.sources import Source

_MAX_TILES, _MAX_TAGS, _MAX_ITEMS = 1024, 2048, 4096
_ANONYMISED = "export the series without removing private tags, or not as a mosaic"


def mosaic_layout(source: Source) -> tuple[int, np.ndarray]:
    """Returns the number of tiles of a mosaic and the unit vector `(3,)`, LPS, from tile to tile.

    Raises:
        DataError: the private tags are missing or broken; the text does not name the file.
    """
    try:
        with source.open() as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        content = header.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value
        found = csa_values(bytes(content), ("NumberOfImagesInMosaic", "SliceNormalVector"))
        count = _count(header, found.get("NumberOfImagesInMosaic", []))
        normal = np.array([float(value) for value in found["SliceNormalVector"]])
        length = float(np.linalg.norm(normal))
    except Exception as error:  # private tags can hold anything
        raise DataError(f"a Siemens mosaic without the maker's private tags on its slices; {_ANONYMISED}") from error
    if not 1 <= count <= _MAX_TILES or normal.shape != (3,) or not abs(length - 1) < 0.01:
        raise DataError(f"a Siemens mosaic with broken private tags on its slices; {_ANONYMISED}")
    return count, normal / length


def _count(header: Dataset, values: list[str]) -> int:
    try:
        return int(header.private_block(0x0019, "SIEMENS MR HEADER")[0x0A].value)
    except KeyError:
        return int(values[0])


def csa_values(content: bytes, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Returns the values of some tags of a Siemens CSA header as text.

    Raises:
        ValueError: this is no such header, or it is broken.
        struct.error: it is cut off.
    """
    if content[:4] != b"SV10":
        raise ValueError("no CSA header of the second kind")
    num_tags, found, place = struct.unpack_from("<I", content, 8)[0], {}, 16
    if num_tags > _MAX_TAGS:
        raise ValueError("too many tags")
    for _ in range(num_tags):
        name, _, _, _, num_items, _ = struct.unpack_from("<64si4siii", content, place)
        place += 84
        if not 0 <= num_items <= _MAX_ITEMS:
            raise ValueError("too many items")
        values = []
        for _ in range(num_items):
            length = struct.unpack_from("<4i", content, place)[1]
            if not 0 <= length <= len(content) - place - 16:
                raise ValueError("an item that leaves the header")
            values.append(content[place + 16 : place + 16 + length].split(b"\0")[0].decode("latin-1").strip())
            place += 16 + (length + 3) // 4 * 4
        key = name.split(b"\0")[0].decode("latin-1")
        if key in names:
            found[key] = [value for value in values if value]
    return found
