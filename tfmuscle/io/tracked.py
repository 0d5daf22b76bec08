"""Tracked ultrasound: sequences of frames with a pose each, as PLUS and 3D Slicer store them (`.mha`, `.mhd`).

The user has a sequence file and, for most probes, the XML file of its calibration. The header holds matrices by name
for every frame (`Seq_Frame0007_ProbeToTrackerTransform`) and whether each is to be trusted (`...Status = OK`); the
calibration holds those that never change (`ImageToProbe`). A name `AToB` says that the matrix leads from A to B, so the
way from `Image` to the wanted frame of reference is looked for among all of them, along a matrix or against it.

Conventions:

* The frame of reference is `Reference` (a sensor fixed to the body) where there is one, else `Tracker`. It is no
  patient: left and right are unknown, distances and volumes are true.
* A MetaImage's world is LPS, and PLUS writes its volumes so (`AnatomicalOrientation = RAI` in its header); here it
  becomes RAS+ as everywhere, a turn by 180 degrees about z. A compounded volume then lies on PLUS's own in any viewer.
* PLUS calibrates in MF order: columns grow to the marked side of the probe, rows away from it. Frames stored otherwise
  (UF, MN, UN) are turned to it; others are refused. Pixels are counted from 0 at their centre.
* Frames whose image or pose is not OK are left out: a pose that was lost would put the frame in a wrong place.

Pixels are unpacked frame by frame into the frames that are kept. A header that promises more than its file can hold is
refused before memory is taken for it. The XML is read by expat with every document type declaration refused, so that no
entity can be expanded or fetched.

`.nrrd` sequences are not read: save them as `.mha` in 3D Slicer or with PLUS's EditSequenceFile.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.volume import Sweep

FRAMES_OF_REFERENCE = ("Reference", "Tracker", "World")
"""Where positions are measured, in order of preference, when the user names none."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ROWS_FIRST = np.eye(4)[:, [1, 0, 2, 3]]
_HEADER_BYTES, _LINE_BYTES, _CHUNK_BYTES, _XML_BYTES = 1 << 26, 1 << 16, 1 << 20, 1 << 24
_MOST_DEFLATED = 1040  # zlib packs at most 1032 bytes into one: https://zlib.net/zlib_tech.html
_TYPES = {
    "UCHAR": "u1", "CHAR": "i1", "USHORT": "u2", "SHORT": "i2",
    "UINT": "u4", "INT": "i4", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_FRAME_FIELD = re.compile(r"Seq_Frame(\d{1,9})_(\w+)")
_TRANSFORM = re.compile(r"([A-Z]\w*?)To([A-Z]\w*)")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What stays the same during a sweep.

    Attributes:
        transforms: name such as "ImageToProbe" -> 4x4 matrix in mm; Image is (column, row, 0, 1) in pixels, MF order.
        clip: first row, first column, rows and columns of the part of a frame that shows ultrasound; None is all.
        spacing: voxel size in mm that the file proposes for a volume.
    """

    transforms: Mapping[str, np.ndarray]
    clip: tuple[int, int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class SweepHeader:
    """What a sequence file says about itself.

    Attributes:
        num_frames: stored frames, valid or not.
        rows: height of a frame in pixels.
        columns: width of a frame in pixels.
        orientation: UltrasoundImageOrientation, e.g. "MF"; "" when the file says nothing.
        transforms: names of the matrices that frames carry.
        seconds: time from the first to the last frame, NaN without time stamps.
    """

    num_frames: int
    rows: int
    columns: int
    orientation: str
    transforms: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Header:
    """Parsed fields, and where the pixels are."""

    fields: dict[str, str]
    frames: dict[int, dict[str, str]]
    shape: tuple[int, int, int]
    dtype: np.dtype
    data: Path
    offset: int


def read_sweep(path: str | Path, *, calibration: Calibration | str | Path | None = None, frame: str = "") -> Sweep:
    """Reads the trustworthy frames of a sequence `(T, H, W)` with their poses in mm (RAS+).

    Args:
        path: a `.mha` or `.mhd` sequence with a pose for every frame.
        calibration: the constant matrices, or the XML file that holds them; needed unless frames carry their own way
            from `Image` to the frame of reference.
        frame: the frame of reference, e.g. "Reference", "Tracker", "Phantom"; the first reachable one of
            `FRAMES_OF_REFERENCE` by default.

    Raises:
        DataError: the file is missing, damaged, no sequence, in an unknown layout, without a valid frame, or no chain
            of matrices leads from `Image` to `frame`.
    """
    path = Path(path)
    if isinstance(calibration, str | Path):
        calibration = read_calibration(calibration)
    calibration = calibration or Calibration({})
    header = _read_header(path)
    poses = _poses(path, header, calibration, frame)
    if not poses:
        raise DataError(f"{path}: none of its {header.shape[0]} frames has a valid image and pose; record it again")
    rows, columns = _clip(path, header, calibration)
    try:
        frames = np.empty((len(poses), rows.stop - rows.start, columns.stop - columns.start), header.dtype)
        kept = iter(range(len(poses)))
        for number, pixels in enumerate(_stored_frames(path, header)):
            if number in poses:
                frames[next(kept)] = _turned(path, pixels, header)[rows, columns]
    except MemoryError as error:
        raise DataError(f"{path}: {header.shape} pixels do not fit into memory; cut the sweep into parts") from error
    moved = np.eye(4)
    moved[:2, 3] = rows.start, columns.start
    return Sweep(frames, np.stack([poses[number] @ moved for number in sorted(poses)]), str(path))


def describe_sweep(path: str | Path) -> SweepHeader:
    """Reads the header of a sequence alone.

    Raises:
        DataError: the file is missing or no sequence.
    """
    header = _read_header(Path(path))
    times = [_number(fields.get("Timestamp", "")) for fields in header.frames.values()]
    orientation = header.fields.get("ultrasoundimageorientation", "")
    seconds = max(times) - min(times) if all(map(math.isfinite, times)) else math.nan
    return SweepHeader(*header.shape, orientation, tuple(sorted(_matrix_names(header))), seconds)


def read_calibration(path: str | Path) -> Calibration:
    """Reads the matrices, the clip rectangle and the proposed spacing of a PLUS configuration file (XML).

    Raises:
        DataError: the file is missing, no XML, declares a document type, or holds no usable matrix.
    """
    path = Path(path)
    elements = _xml_elements(path)
    transforms = {}
    for name, attributes in elements:
        if name == "Transform" and {"From", "To", "Matrix"} <= set(attributes):
            key = f"{attributes['From']}To{attributes['To']}"
            transforms[key] = _matrix(attributes["Matrix"], f"{path}: {key}")
    if not transforms:
        raise DataError(
            f"{path}: holds no Transform with From, To and Matrix; give the device set file of the recording"
        )
    settings = next((attributes for name, attributes in elements if name == "VolumeReconstruction"), {})
    origin, size = (_numbers(settings.get(f"ClipRectangle{part}", ""), 2) for part in ("Origin", "Size"))
    clip = (int(origin[1]), int(origin[0]), int(size[1]), int(size[0])) if origin and size else None
    spacing = _numbers(settings.get("OutputSpacing", ""), 3)
    if clip and (min(clip) < 0 or min(clip[2:]) < 1) or spacing and min(spacing) <= 0:
        raise DataError(f"{path}: clip rectangle or spacing is not positive; mend VolumeReconstruction in it")
    return Calibration(transforms, clip, (spacing[0], spacing[1], spacing[2]) if spacing else None)


def _xml_elements(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Returns (name, attributes) of all elements, in order."""
    elements: list[tuple[str, dict[str, str]]] = []

    def refuse(*_: Any) -> None:
        raise DataError(f"{path}: declares a document type, which is refused; remove the DOCTYPE line")

    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: elements.append((name, attributes))
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            content = file.read(_XML_BYTES + 1)
        if len(content) > _XML_BYTES:
            raise DataError(f"{path}: larger than {_XML_BYTES >> 20} MiB, no calibration; give the device set file")
        parser.Parse(content, True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except expat.ExpatError as error:
        raise DataError(f"{path}: not valid XML ({error}); give the device set file of the recording") from error
    return elements


def _read_header(path: Path) -> _Header:
    fields: dict[str, str] = {}
    frames: dict[int, dict[str, str]] = {}
    try:
        with path.open("rb") as file:
            for line in _header_lines(path, file):
                key, _, value = (part.strip() for part in line.decode("latin-1").partition("="))
                if match := _FRAME_FIELD.fullmatch(key):
                    frames.setdefault(int(match.group(1)), {})[match.group(2)] = value
                else:
                    fields[key.lower()] = value
            offset = file.tell()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not frames:
        raise DataError(f"{path}: no Seq_Frame lines in its header, no tracked sequence; give the recorded frames")
    data, offset = _data_file(path, fields["elementdatafile"], offset)
    header = _Header(fields, frames, _shape(path, fields), _pixel_type(path, fields), data, offset)
    _check_size(path, header)
    return header


def _header_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yields `key = value` lines up to the one that says where the pixels are."""
    while file.tell() < _HEADER_BYTES:
        line = file.readline(_LINE_BYTES)
        if b"=" not in line:
            break
        yield line
        if line.split(b"=")[0].strip().lower() == b"elementdatafile":
            return
    raise DataError(f"{path}: no whole MetaImage header (it ends with ElementDataFile); give a .mha or .mhd sequence")


def _data_file(path: Path, name: str, offset: int) -> tuple[Path, int]:
    if name.upper() == "LOCAL":
        return path, offset
    if not name or Path(name).name != name or "\\" in name or not (path.parent / name).is_file():
        raise DataError(f"{path}: its pixels are said to be in {name!r}; a file beside it is needed, put it there")
    return path.parent / name, 0


def _shape(path: Path, fields: dict[str, str]) -> tuple[int, int, int]:
    """Returns (frames, rows, columns); a third axis of one, which newer files have, is passed over."""
    sizes = fields.get("dimsize", "").split()
    if len(sizes) == 4 and sizes[2] == "1":
        del sizes[2]
    if len(sizes) != 3 or not all(size.isdigit() and 0 < int(size) < 1 << 31 for size in sizes):
        raise DataError(f"{path}: DimSize is {fields.get('dimsize', 'missing')!r}; columns, rows and frames are needed")
    return int(sizes[2]), int(sizes[1]), int(sizes[0])


def _pixel_type(path: Path, fields: dict[str, str]) -> np.dtype:
    kind = fields.get("elementtype", "").upper().removeprefix("MET_")
    if kind not in _TYPES or fields.get("elementnumberofchannels", "1") != "1":
        raise DataError(f"{path}: pixels of type {kind or 'unknown'} or in colour; save grey B-mode frames")
    if fields.get("binarydata", "true").lower() != "true":
        raise DataError(f"{path}: pixels as text; save the sequence as binary")
    is_big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "false")).lower() == "true"
    return np.dtype((">" if is_big else "<") + _TYPES[kind])


def _check_size(path: Path, header: _Header) -> None:
    promised = math.prod(header.shape) * header.dtype.itemsize
    held = header.data.stat().st_size - header.offset
    if promised > held * (_MOST_DEFLATED if _is_compressed(header) else 1):
        raise DataError(
            f"{path}: promises {promised:,} bytes of pixels and holds {held:,}; copy it again, it is cut off"
        )


def _is_compressed(header: _Header) -> bool:
    return header.fields.get("compresseddata", "false").lower() == "true"


def _poses(path: Path, header: _Header, calibration: Calibration, frame: str) -> dict[int, np.ndarray]:
    """Returns frame number -> pose of the frames that can be trusted, in order of recording."""
    chain = _chain(path, _matrix_names(header) | set(calibration.transforms), frame)
    poses = {}
    for number in range(header.shape[0]):
        fields = header.frames.get(number, {})
        moving = [name for name, _ in chain if name not in calibration.transforms or f"{name}Transform" in fields]
        known = all(f"{name}Transform" in fields for name in moving)
        status = [fields.get(f"{name}TransformStatus", "OK") for name in moving] + [fields.get("ImageStatus", "OK")]
        if not known or set(status) != {"OK"}:
            continue
        pose = np.eye(4)
        for name, is_forward in chain:
            text = fields.get(f"{name}Transform")
            where = f"{path}: {name} of frame {number}"
            matrix = calibration.transforms[name] if text is None else _matrix(text, where)
            pose = (matrix if is_forward else np.linalg.inv(matrix)) @ pose
        poses[number] = _LPS_TO_RAS @ pose @ _ROWS_FIRST
    return poses


def _matrix_names(header: _Header) -> set[str]:
    names = (name.removesuffix("Transform") for fields in header.frames.values() for name in fields)
    return {name for name in names if _TRANSFORM.fullmatch(name) and not name.endswith("TransformStatus")}


def _chain(path: Path, names: set[str], frame: str) -> list[tuple[str, bool]]:
    """Finds the shortest way from Image: (name, whether along it) of each matrix."""
    edges: dict[str, list[tuple[str, str, bool]]] = {}
    for name in sorted(names):
        if match := _TRANSFORM.fullmatch(name):
            start, stop = match.groups()
            edges.setdefault(start, []).append((stop, name, True))
            edges.setdefault(stop, []).append((start, name, False))
    ways: dict[str, list[tuple[str, bool]]] = {"Image": []}
    queue = ["Image"]
    for here in queue:
        for there, name, is_forward in edges.get(here, []):
            if there not in ways:
                ways[there] = [*ways[here], (name, is_forward)]
                queue.append(there)
    targets = (frame,) if frame else FRAMES_OF_REFERENCE
    for target in targets:
        if target in ways and target != "Image":
            return ways[target]
    known = ", ".join(sorted(names))
    remedy = "name another frame of reference" if frame and len(ways) > 1 else "give the calibration (ImageToProbe)"
    raise DataError(f"{path}: no way from Image to {' or '.join(targets)} by {known or 'no matrix'}; {remedy}")


def _clip(path: Path, header: _Header, calibration: Calibration) -> tuple[slice, slice]:
    _, rows, columns = header.shape
    top, left, height, width = calibration.clip or (0, 0, rows, columns)
    if top >= rows or left >= columns:
        raise DataError(
            f"{path}: frames of {rows} x {columns} end before the clip rectangle of the calibration; mend it"
        )
    return slice(top, min(rows, top + height)), slice(left, min(columns, left + width))


def _stored_frames(path: Path, header: _Header) -> Iterator[np.ndarray]:
    """Yields `(H, W)` of every stored frame, one at a time, and checks the end of the data."""
    num_frames, rows, columns = header.shape
    size = rows * columns * header.dtype.itemsize
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS) if _is_compressed(header) else None
    with header.data.open("rb") as file:
        file.seek(header.offset)
        try:
            for _ in range(num_frames):
                content = file.read(size) if stream is None else _inflated(file, stream, size)
                if len(content) < size:
                    raise DataError(f"{path}: ends before its last frame; copy or export it again")
                yield np.frombuffer(content, header.dtype).reshape(rows, columns)
            if stream is not None and (_inflated(file, stream, 1) or not stream.eof):
                raise DataError(f"{path}: its pixels do not end where its header says; copy or export it again")
        except zlib.error as error:
            raise DataError(f"{path}: damaged pixels ({error}); copy or export it again") from error


def _inflated(file: BinaryIO, stream: Any, size: int) -> bytes:
    """Returns the next `size` bytes, fewer at the end."""
    parts, waiting = [], stream.unconsumed_tail
    while size > 0 and not stream.eof:
        part = stream.decompress(waiting, size)
        waiting = stream.unconsumed_tail
        parts.append(part)
        size -= len(part)
        if not part and not waiting and not (waiting := file.read(_CHUNK_BYTES)):
            break
    return b"".join(parts)


def _turned(path: Path, pixels: np.ndarray, header: _Header) -> np.ndarray:
    """Turns a frame to MF order."""
    orientation = header.fields.get("ultrasoundimageorientation", "").upper() or "MF"
    if not re.fullmatch("[MU][FN][AD]?", orientation):
        raise DataError(f"{path}: frames in {orientation} order; MF, UF, MN or UN is needed, convert the sequence")
    return pixels[:: -1 if orientation[1] == "N" else 1, :: -1 if orientation[0] == "U" else 1]


def _matrix(text: str, where: str) -> np.ndarray:
    numbers = _numbers(text, 16)
    matrix = np.array(numbers or np.zeros(16)).reshape(4, 4)
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-12 or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise DataError(f"{where} is no 4x4 matrix of a place in space; record or export it again")
    return matrix


def _numbers(text: str, count: int) -> list[float]:
    """Returns `count` finite numbers, or none."""
    numbers = [_number(word) for word in text.split()]
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else []


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
