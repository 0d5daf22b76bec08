"""Frames: two-dimensional images with their place, whatever object they come from.

A classic file is one frame; an enhanced multi-frame file has its places in functional groups, shared by all frames or
given per frame (DICOM PS3.3 C.7.6.16); a mosaic is cut into tiles. `traits` holds what may tell images at one place
apart, `kind` first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.headers import (
    AGAIN,
    GE_KIND,
    PHILIPS_SCALE,
    SIEMENS_B,
    integer,
    number,
    private,
    vector,
    words,
)
from tfmuscle.io.dicom.mosaic import mosaic_layout
from tfmuscle.io.dicom.sources import Source

_KINDS = (
    ("fat-fraction", {"FF", "FAT_FRACTION", "FATFRACTION", "FAT_FRAC"}),
    ("water-fraction", {"WF", "WATER_FRACTION"}),
    ("water", {"W", "WATER"}),
    ("fat", {"F", "FAT"}),
    ("in-phase", {"IP", "IN_PHASE", "INPHASE"}),
    ("opposed-phase", {"OP", "OPP_PHASE", "OUT_PHASE", "OUT_OF_PHASE", "OPPOSED_PHASE", "OUTPHASE"}),
    ("field-map", {"FIELD_MAP", "B0", "B0_MAP", "FIELDMAP"}),
    ("t2star", {"T2_STAR", "T2STAR", "T2_STAR MAP", "T2* MAP"}),
    ("r2star", {"R2_STAR", "R2STAR", "R2_STAR MAP"}),
    ("real", {"R", "REAL"}),
    ("imaginary", {"I", "IMAGINARY"}),
    ("phase", {"P", "PHASE", "PHASE MAP", "SW_P", "VELOCITY"}),
    ("magnitude", {"M", "MAGNITUDE", "SW_M"}),
)
WITHOUT_PLACES = (
    "images in one file without their places (a film, a nuclear or an ultrasound image); choose a series of slices"
)
_GE_KINDS = {0: "magnitude", 1: "phase", 2: "real", 3: "imaginary"}
_PLAIN = {"NONE", "MIXED", "OTHER", "ORIGINAL", "PRIMARY", "DERIVED", "SECONDARY", ""}
_MAX_FRAMES = 200_000


@dataclass(frozen=True, eq=False)
class Frame:
    """One image with its place.

    Attributes:
        source: the file.
        index: its number among the file's frames.
        shape: (rows, columns).
        position: LPS mm of the centre of the first pixel, `(3,)`; NaN if the file gives none.
        cosines: directions of the column index and of the row index, `(6,)`; NaN if the file gives none.
        spacing: mm (between rows, between columns), `(2,)`; NaN if the file gives none.
        thickness: of the slice in mm; None if unknown.
        gap: mm between the centres of neighbouring slices as the file claims; None if unknown.
        scale: (slope, intercept) of the values.
        traits: what may tell images at one place apart.
        order: instance number, or the frame's number.
        uid: identifies the image; "" if the file does not.
        tile: first row and column in a mosaic.
        private_scale: Philips' slope (2005,100E) times the rescale slope.
    """

    source: Source
    index: int
    shape: tuple[int, int]
    position: np.ndarray
    cosines: np.ndarray
    spacing: np.ndarray
    thickness: float | None
    gap: float | None
    scale: tuple[float, float]
    traits: dict[str, Any] = field(default_factory=dict)
    order: int = 0
    uid: str = ""
    tile: tuple[int, int] | None = None
    private_scale: float | None = None

    @property
    def is_placed(self) -> bool:
        """Whether its place in the patient is known."""
        return not np.isnan([*self.position, *self.cosines]).any()


def frames_of(source: Source, header: FileDataset) -> list[Frame]:
    """Returns the frames of one file.

    Raises:
        DataError: the header is broken or does not say where the frames lie; the text does not name the file.
    """
    count = integer(header, "NumberOfFrames", 1)
    shape = (integer(header, "Rows", 0), integer(header, "Columns", 0))
    if min(shape) < 1 or not 1 <= count <= _MAX_FRAMES:
        raise DataError(f"{count} images of {shape[1]}x{shape[0]} pixels are promised; {AGAIN}")
    if "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header:
        return _enhanced(source, header, count, shape)
    if count > 1:
        raise DataError(f"{count} {WITHOUT_PLACES}")
    frame = _frame(source, [header], index=0, shape=shape, order=integer(header, "InstanceNumber", 0))
    return list(_tiles(frame)) if "MOSAIC" in words(header, "ImageType") else [frame]


def _enhanced(source: Source, header: FileDataset, count: int, shape: tuple[int, int]) -> list[Frame]:
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    if len(groups) != count and not (count == 1 and shared):
        raise DataError(f"{count} images are promised and {len(groups)} described; {AGAIN}")
    frames = []
    for index in range(count):
        described = [*([groups[index]] if len(groups) else []), *shared]
        places = [item for group in described for item in _items(group, private=False)]
        hidden = [item for group in described for item in _items(group, private=True)]
        order = index if count > 1 else integer(header, "InstanceNumber", 0)
        frames.append(_frame(source, [*places, header], index=index, shape=shape, order=order, hidden=hidden))
    return frames


def _items(group: Dataset, *, private: bool) -> Iterator[Dataset]:
    """Gives the macros of a functional group, the standard's or a maker's: the first item of every sequence in it."""
    for element in group:
        if element.tag.is_private == private and element.VR == "SQ" and element.value:
            yield element.value[0]


def _frame(
    source: Source,
    places: list[Dataset],
    *,
    index: int,
    shape: tuple[int, int],
    order: int,
    hidden: Sequence[Dataset] = (),
) -> Frame:
    """Makes a frame from the data sets that describe it, the most specific first, the file's own header last."""

    def where(keyword: str) -> Dataset:
        return next((place for place in places if keyword in place), places[-1])

    def length(keyword: str) -> float | None:
        value = number(where(keyword), keyword)
        return value if value is not None and value > 0 else None

    makers = [*hidden, *places]
    philips = next((value for place in makers if (value := private(place, PHILIPS_SCALE)) is not None), None)
    scale = _scale(where("RescaleSlope"), where("RescaleIntercept"))
    return Frame(
        source=source,
        index=index,
        shape=shape,
        position=vector(where("ImagePositionPatient"), "ImagePositionPatient", 3),
        cosines=vector(where("ImageOrientationPatient"), "ImageOrientationPatient", 6),
        spacing=vector(where("PixelSpacing"), "PixelSpacing", 2),
        thickness=length("SliceThickness"),
        gap=length("SpacingBetweenSlices"),
        scale=scale,
        traits=_traits(makers, where),
        order=order,
        uid=str(places[-1].get("SOPInstanceUID") or ""),
        private_scale=float(philips) * scale[0] if isinstance(philips, int | float) and philips else None,
    )


def _scale(slopes: Dataset, intercepts: Dataset) -> tuple[float, float]:
    values = []
    for dataset, keyword, default in ((slopes, "RescaleSlope", 1.0), (intercepts, "RescaleIntercept", 0.0)):
        values.append(number(dataset, keyword) if keyword in dataset else default)
    if values[0] is None or values[1] is None or values[0] == 0:
        raise DataError("no usable RescaleSlope and RescaleIntercept; export the series again")
    return values[0], values[1]


def _traits(makers: list[Dataset], where: Any) -> dict[str, Any]:
    """Returns what may tell images at one place apart, in the order in which it is tried."""
    echo = number(where("EffectiveEchoTime"), "EffectiveEchoTime")
    echo = number(where("EchoTime"), "EchoTime") if echo is None else echo
    inversion = number(where("InversionTime"), "InversionTime")
    bvalue = number(where("DiffusionBValue"), "DiffusionBValue")
    siemens_b = next((value for place in makers if (value := private(place, SIEMENS_B)) is not None), None)
    time = {
        "time": number(where("TemporalPositionIndex"), "TemporalPositionIndex"),
        "time identifier": number(where("TemporalPositionIdentifier"), "TemporalPositionIdentifier"),
        "trigger": _first_number(where, ("NominalCardiacTriggerDelayTime", "TriggerTime")),
        "acquisition": _first_number(where, ("FrameAcquisitionNumber", "AcquisitionNumber")),
        "acquisition time": number(where("AcquisitionTime"), "AcquisitionTime"),
    }
    return {
        "stack": str(where("StackID").get("StackID") or ""),
        "kind": _kind(makers, where),
        "echo": None if echo is None else round(echo, 3),
        "echo number": number(where("EchoNumbers"), "EchoNumbers"),
        "inversion": None if inversion is None else round(inversion, 1),
        "b": bvalue if bvalue is not None else None if siemens_b is None else str(siemens_b),
        "flip": number(where("FlipAngle"), "FlipAngle"),
        "repetition": number(where("RepetitionTime"), "RepetitionTime"),
    } | time


def _first_number(where: Any, keywords: tuple[str, ...]) -> float | None:
    found = (number(where(keyword), keyword) for keyword in keywords)
    return next((value for value in found if value is not None), None)


def _kind(makers: list[Dataset], where: Any) -> str:
    """Returns what an image shows: a name of `_KINDS`, else the words of its ImageType beyond the first two."""
    types = words(where("FrameType"), "FrameType") or words(where("ImageType"), "ImageType")
    whole = words(makers[-1], "ImageType")
    found = next((kind for kind, names in _KINDS if names & set(types[2:])), "")
    if found in ("", "magnitude"):
        component = words(where("ComplexImageComponent"), "ComplexImageComponent")
        raw = next((value for place in makers if (value := private(place, GE_KIND)) is not None), None)
        named = next((kind for kind, names in _KINDS if names & set(component)), "")
        ge = _GE_KINDS.get(int(raw), "") if isinstance(raw, int | float) else ""
        found = next((kind for kind in (named, ge) if kind not in ("", "magnitude")), found or named or ge)
    derived = "derived " if "DERIVED" in types[:1] and found in ("", "magnitude") else ""
    rest = "" if found else " ".join(word for word in types[2:] or whole[2:] if word not in _PLAIN).lower()
    return f"{derived}{found or rest}".strip()


def _tiles(frame: Frame) -> Iterator[Frame]:
    """Cuts a mosaic; a tile that is not in use has no frame."""
    count, normal = mosaic_layout(frame.source)
    gap = frame.gap or frame.thickness
    if not frame.is_placed or np.isnan(frame.spacing).any() or gap is None:
        raise DataError("a Siemens mosaic without its place in the patient; export the series again")
    side = int(np.ceil(np.sqrt(count)))
    rows, columns = frame.shape[0] // side, frame.shape[1] // side
    if rows * side != frame.shape[0] or columns * side != frame.shape[1]:
        raise DataError(f"a mosaic of {count} slices does not fit {frame.shape[1]}x{frame.shape[0]} pixels; {AGAIN}")
    row, column = frame.cosines[:3], frame.cosines[3:]
    corner = frame.position + row * frame.spacing[1] * (frame.shape[1] - columns) / 2
    corner = corner + column * frame.spacing[0] * (frame.shape[0] - rows) / 2
    for slice_index in range(count):
        yield replace(
            frame,
            uid=f"{frame.uid}/{slice_index}" if frame.uid else "",
            shape=(rows, columns),
            position=corner + normal * gap * slice_index,
            tile=(slice_index // side * rows, slice_index % side * columns),
        )
