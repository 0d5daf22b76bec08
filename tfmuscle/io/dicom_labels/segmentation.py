"""A DICOM SEG as masks: binary, fractional or label map (PS3.3 C.8.20).

Where a frame lies is read from the functional groups, shared or per frame, never from the series it refers to: that
series may be elsewhere, and the SEG says it all. A segment without frames is an empty mask: it was looked for and not
found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels import iter_pixels

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels.names import coded_side, structure_names
from tfmuscle.io.dicom_labels.objects import (
    AGAIN,
    LABELMAP_STORAGE,
    damage_refused,
    items,
    numbers,
    open_object,
    whole_number,
)
from tfmuscle.io.dicom_labels.placing import Places, on_grid, stack
from tfmuscle.volume import Geometry

FRACTION = 0.5
"""A voxel of a fractional segment belongs to it from this share (probability or occupancy) on."""
_MAX_MASK_BYTES = 1 << 36


@dataclass(frozen=True, eq=False)
class _Segmentation:
    """What a SEG says of itself; `segments` holds the number of every frame's segment, None for a label map."""

    names: dict[int, str]
    segments: list[int] | None
    places: Places
    shape: tuple[int, int]
    threshold: float


def read_segmentation(path: str | Path, *, reference: Geometry | None = None) -> tuple[dict[str, np.ndarray], Geometry]:
    """Reads a DICOM SEG as bool masks `(I, J, K)` by name, and their grid in mm (RAS+).

    Fractional segments are cut at 0.5, the voxel included. Segments may overlap. Names are plain words with the side at
    the end, each one once.

    Args:
        path: the file.
        reference: the scan's grid. Without it the grid is the SEG's own, from its first to its last slice, which is
            shorter than the scan when empty slices were left out. With it the masks come on this grid: exactly when the
            voxels are the same, whatever the order of the axes, else by the nearest voxel; what lies outside is cut.

    Raises:
        DataError: no SEG, a damaged one, one without a place in the patient, or nothing of it lies on `reference`.
    """
    path = Path(path)
    with damage_refused(path):
        dataset = open_object(path, "segmentation")
        content = _content(path, dataset)
    geometry, slices = stack(path, content.places, content.shape)
    masks = _masks(path, dataset, content, geometry, slices)
    if reference is None:
        return masks, geometry
    with damage_refused(path):
        return on_grid(path, masks, geometry, reference), reference


def segment_names(path: Path, dataset: FileDataset) -> list[str]:
    """Returns the names of the segments of an opened SEG."""
    is_label_map = str(dataset.get("SOPClassUID")) == LABELMAP_STORAGE or dataset.get("SegmentationType") == "LABELMAP"
    return list(_names(path, dataset, is_label_map).values())


def _content(path: Path, dataset: FileDataset) -> _Segmentation:
    shape = whole_number(path, dataset, "Rows"), whole_number(path, dataset, "Columns")
    frames = items(dataset, "PerFrameFunctionalGroupsSequence")
    promised = whole_number(path, dataset, "NumberOfFrames", default=1)
    if not frames:
        raise DataError(f"{path}: frames without a place in the patient cannot be put on a scan; {AGAIN}")
    if promised != len(frames):
        raise DataError(f"{path}: {promised} frames are promised, {len(frames)} are described; {AGAIN}")
    shared = (items(dataset, "SharedFunctionalGroupsSequence") or [Dataset()])[0]
    is_label_map = str(dataset.get("SOPClassUID")) == LABELMAP_STORAGE or dataset.get("SegmentationType") == "LABELMAP"
    threshold = 0.5
    if dataset.get("SegmentationType") == "FRACTIONAL":
        threshold = FRACTION * whole_number(path, dataset, "MaximumFractionalValue")
    elif not is_label_map and dataset.get("SegmentationType") != "BINARY":
        raise DataError(f"{path}: SegmentationType is not BINARY, FRACTIONAL or LABELMAP; {AGAIN}")
    _check_stored(path, dataset, shape, promised)
    names = _names(path, dataset, is_label_map)
    segments = None if is_label_map else [_segment(path, frame, shared, names) for frame in frames]
    return _Segmentation(names, segments, _places(path, shared, frames), shape, threshold)


def _check_stored(path: Path, dataset: FileDataset, shape: tuple[int, int], frames: int) -> None:
    """Refuses pixels that are too few for the promised size before anything of that size is made."""
    bits = whole_number(path, dataset, "BitsAllocated")
    if bits not in (1, 8, 16) or whole_number(path, dataset, "SamplesPerPixel", default=1) != 1:
        raise DataError(f"{path}: {bits} bits a pixel; segments have one value of 1, 8 or 16 bits, {AGAIN}")
    if "PixelData" not in dataset:
        raise DataError(f"{path}: has no pixels; {AGAIN}")
    needed = shape[0] * shape[1] * frames * bits
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated and 8 * len(dataset.PixelData) < needed:
        size = f"{frames} frames of {shape[1]}x{shape[0]}"
        raise DataError(f"{path}: too few pixels for {size} (cut short?); {AGAIN}")


def _names(path: Path, dataset: FileDataset, is_label_map: bool) -> dict[int, str]:
    found = []
    for segment in items(dataset, "SegmentSequence"):
        number = int(segment.get("SegmentNumber", -1))
        if number == 0 and is_label_map:
            continue  # the background, which a label map may describe
        if number < 1:
            raise DataError(f"{path}: a segment without a SegmentNumber above 0; {AGAIN}")
        found.append((number, str(segment.get("SegmentLabel") or ""), coded_side(segment)))
    if not found:
        raise DataError(f"{path}: describes no segment; {AGAIN}")
    return structure_names(path, found)


def _segment(path: Path, frame: Dataset, shared: Dataset, names: dict[int, str]) -> int:
    group = _group(frame, shared, "SegmentIdentificationSequence")
    if group is None and len(names) == 1:
        return next(iter(names))
    number = int(group.get("ReferencedSegmentNumber", -1)) if group is not None else -1
    if number not in names:
        raise DataError(f"{path}: a frame belongs to a segment that is not described; {AGAIN}")
    return number


def _group(frame: Dataset, shared: Dataset, keyword: str) -> Dataset | None:
    found = items(frame, keyword) or items(shared, keyword)
    return found[0] if found else None


def _places(path: Path, shared: Dataset, frames: list[Dataset]) -> Places:
    positions, cosines, spacings = [], [], []
    measures: Dataset | None = None
    for frame in frames:
        if _group(frame, shared, "PlanePositionSlideSequence") is not None:
            raise DataError(f"{path}: labels of a microscopy slide; give the SEG of a scan, slices in a patient")
        measures = _group(frame, shared, "PixelMeasuresSequence")
        position = _group(frame, shared, "PlanePositionSequence")
        orientation = _group(frame, shared, "PlaneOrientationSequence")
        positions.append(numbers(path, position, "ImagePositionPatient", 3))
        cosines.append(numbers(path, orientation, "ImageOrientationPatient", 6))
        spacings.append(numbers(path, measures, "PixelSpacing", 2))
    step, thickness = (_optional(measures, keyword) for keyword in ("SpacingBetweenSlices", "SliceThickness"))
    return Places(np.array(positions), np.array(cosines), np.array(spacings), step, thickness)


def _optional(measures: Dataset | None, keyword: str) -> float | None:
    value: Any = None if measures is None else measures.get(keyword)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _masks(
    path: Path, dataset: FileDataset, content: _Segmentation, geometry: Geometry, slices: np.ndarray
) -> dict[str, np.ndarray]:
    """Fills the masks frame by frame; frames of one segment at one place are joined."""
    size = int(np.prod(geometry.shape, dtype=np.float64)) * len(content.names)
    if size > _MAX_MASK_BYTES:
        raise DataError(f"{path}: {len(content.names)} segments of {geometry.shape} voxels are too large; {AGAIN}")
    with damage_refused(path):
        masks = {number: np.zeros(geometry.shape[::-1], dtype=bool) for number in content.names}  # slice by slice
        for number, frame in enumerate(_frames(path, dataset, content)):
            place = slices[number]
            if content.segments is not None:
                masks[content.segments[number]][place] |= frame >= content.threshold
                continue
            for segment in np.unique(frame[frame > 0]):
                if int(segment) not in masks:
                    raise DataError(f"{path}: holds segment {segment}, which is not described; {AGAIN}")
                masks[int(segment)][place] |= frame == segment
    return {content.names[number]: mask.transpose() for number, mask in masks.items()}


def _frames(path: Path, dataset: FileDataset, content: _Segmentation) -> Iterator[np.ndarray]:
    count = 0
    is_packed = dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated
    for frame in _packed_frames(dataset, content) if is_packed else iter_pixels(dataset, raw=True):
        if frame.shape != content.shape:
            raise DataError(f"{path}: frames of shape {frame.shape}, {content.shape} is promised; {AGAIN}")
        count += 1
        yield frame
    if count != len(content.places.positions):
        raise DataError(f"{path}: {count} frames, {len(content.places.positions)} are promised; {AGAIN}")


def _packed_frames(dataset: FileDataset, content: _Segmentation) -> Iterator[np.ndarray]:
    """Yields frames of one bit a pixel; they follow each other without filling up bytes, which pydicom 3.0 misreads."""
    data = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        data = data[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)  # stored as words
    size = content.shape[0] * content.shape[1]
    for number in range(len(content.places.positions)):
        first, last = number * size, (number + 1) * size
        bits = np.unpackbits(data[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(content.shape)
