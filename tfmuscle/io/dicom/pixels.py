"""Pixels of a stack, decoded by pydicom and its plugins, a file at a time.

What a header promises is held against the size of the file before anything is allocated: stored pixels cannot be more
than the file, and compressed ones at most `_MAX_COMPRESSION` times as many.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.pixels import get_decoder, iter_pixels

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.frames import Frame
from tfmuscle.io.dicom.headers import AGAIN, CONVERT, integer, uid_name
from tfmuscle.io.dicom.sources import Source

_MAX_COMPRESSION, _FREE_BYTES = 1000, 16 * 2**20


def check_promise(source: Source, header: FileDataset) -> None:
    """Holds what a header promises against the size of its file.

    Raises:
        DataError: too little for the promise; the text does not name the file.
    """
    count, bits = integer(header, "NumberOfFrames", 1), integer(header, "BitsAllocated", 8)
    pixels = integer(header, "Rows", 0) * integer(header, "Columns", 0) * count
    promised = pixels * integer(header, "SamplesPerPixel", 1) * max(bits, 1) // 8
    syntax = header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    is_plain = syntax in pydicom.uid.UncompressedTransferSyntaxes and not syntax.is_deflated
    limit = source.size if is_plain else max(_FREE_BYTES, _MAX_COMPRESSION * source.size)
    if source.size == 0:
        raise DataError(f"no pixels in it, only their description; {AGAIN}")
    if promised > limit:
        raise DataError(f"{promised:,} bytes of pixels are promised, {source.size:,} are there (cut off?); {AGAIN}")


def check_decoder(header: FileDataset) -> None:
    """Looks for a decoder of the file's compression.

    Raises:
        DataError: there is none; the text does not name the file.
    """
    syntax = header.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    try:
        is_readable = get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        is_readable = False
    if not is_readable:
        raise DataError(
            f"compressed as {uid_name(syntax) or 'something unknown'}, which cannot be read here; {CONVERT}"
        )


def is_lossy(header: FileDataset) -> bool:
    """Whether the pixels went through a compression that changed them."""
    name = str(getattr(header.file_meta.get("TransferSyntaxUID"), "name", ""))
    stated = str(header.get("LossyImageCompression") or "").strip() == "01"
    return stated or any(word in name for word in ("Baseline", "Extended", "Near-lossless", "Near-Lossless"))


def read_pixels(frames: Sequence[Frame]) -> np.ndarray:
    """Reads slices into `(I, J, K)`, rescaled to float32 where the files ask for it.

    Raises:
        DataError: pixels that cannot be read; the text begins with the name of the file.
    """
    rows, columns = frames[0].shape
    identity = all(frame.scale == (1.0, 0.0) for frame in frames)
    by_file: dict[str, list[int]] = {}
    for place, frame in enumerate(frames):
        by_file.setdefault(frame.source.name, []).append(place)
    array = np.empty((0, 0, 0), np.float32)
    for places in by_file.values():
        images = _stored_pixels(frames[places[0]].source, sorted({frames[place].index for place in places}))
        kind = next(iter(images.values())).dtype if identity else np.dtype(np.float32)
        if not array.size:
            array = np.empty((len(frames), rows, columns), kind)
        array = array.astype(np.promote_types(array.dtype, kind), copy=False)
        for place in places:
            slope, intercept = frames[place].scale
            image = _cut(frames[place], images[frames[place].index])
            array[place] = image if identity else image * slope + intercept
    return array.transpose(2, 1, 0)


def _cut(frame: Frame, image: np.ndarray) -> np.ndarray:
    """Returns a frame's pixels `(rows, columns)`: the whole image, or its tile."""
    top, left = frame.tile or (0, 0)
    image = image[top : top + frame.shape[0], left : left + frame.shape[1]]
    if image.shape != frame.shape:
        raise DataError(f"{frame.source.name}: pixels of shape {image.shape}, {frame.shape} are promised; {AGAIN}")
    return image


def _stored_pixels(source: Source, indices: list[int]) -> dict[int, np.ndarray]:
    """Returns some frames of a file by their number, cut to the bits in use and with their sign."""
    try:
        with source.open() as file:
            dataset = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = _plain_syntax(bool(implicit), bool(little))
        whole = [np.asarray(image) for image in iter_pixels(dataset, indices=indices, raw=True)]
        return {index: _bits_in_use(dataset, image) for index, image in zip(indices, whole, strict=True)}
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    except Exception as error:  # a damaged file can make pydicom and its plugins raise anything
        reason = type(error).__name__
        raise DataError(f"{source.name}: its pixels cannot be read ({reason}); copy the series again") from error


def _plain_syntax(implicit: bool, little: bool) -> pydicom.uid.UID:
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _bits_in_use(dataset: FileDataset, image: np.ndarray) -> np.ndarray:
    stored = integer(dataset, "BitsStored", 8 * image.dtype.itemsize)
    if integer(dataset, "HighBit", stored - 1) != stored - 1 and image.dtype.kind in "iu":
        raise DataError(f"the bits of a pixel do not begin at the lowest (HighBit); {CONVERT}")
    unused: Any = 8 * image.dtype.itemsize - stored
    if image.dtype.kind in "iu" and unused > 0:  # pydicom 3 does so for stored pixels; not all its plugins do
        image = (image << unused) >> unused
    return image.astype(image.dtype.newbyteorder("="), copy=False)
