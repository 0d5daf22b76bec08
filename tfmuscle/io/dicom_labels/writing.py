"""Labels as a DICOM SEG that refers to the scan they were made from, through highdicom.

One binary segment a structure, so that every viewer reads it; empty slices are left out. Positions are copied from the
scan's own slices, digit by digit, and every frame names the slice it was made from. Patient and study are the scan's,
as DICOM demands: the file belongs to the same patient. Nothing of that is printed. A scan without a frame of reference,
as some anonymisers leave it, gets one made from its series UID, so that all its SEGs share it.

Rejected: DICOM's label map class, smaller but young and unknown to most viewers; labels on a grid of their own, which
viewers cannot lay over the scan slice by slice.
"""

import importlib.metadata
import io
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.io.dicom import is_dicom_file
from tfmuscle.io.dicom_labels.objects import AGAIN, damage_refused, items, label_object_kind, numbers
from tfmuscle.io.dicom_labels.placing import Places, stack
from tfmuscle.labels import LOWER_LIMB_BONES, LOWER_LIMB_MUSCLES, SIDES, LabelMap, relabel
from tfmuscle.volume import Geometry, Volume

_LONGEST_LABEL = 64
"""Characters of SegmentLabel, a DICOM long string."""
_TYPES = dict.fromkeys(LOWER_LIMB_MUSCLES, codes.SCT.SkeletalMuscle) | dict.fromkeys(LOWER_LIMB_BONES, codes.SCT.Bone)
_CATEGORY = codes.SCT.AnatomicalStructure
_SIDE_CODES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_ALIKE = ("StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
_PLACES = (("PlaneOrientationSequence", "ImageOrientationPatient", 6), ("PixelMeasuresSequence", "PixelSpacing", 2))


@dataclass(frozen=True, eq=False)
class _Scan:
    """The scan as source of a SEG: its grid, and per slice the image (or frame) that shows it.

    Attributes:
        images: one header a slice, or the header of the one multi-frame file.
        geometry: grid of the scan, slices along the normal.
        positions: LPS mm of every slice as the scan writes it, `(K, 3)`.
    """

    images: list[Dataset]
    geometry: Geometry
    positions: np.ndarray


def write_segmentation(
    path: str | Path, labels: Volume, label_map: LabelMap, *, series: str | Path, number: int | None = None
) -> None:
    """Writes labels `(I, J, K)` as a DICOM SEG that refers to their scan, whole or not at all.

    Every structure of the label map is a segment, numbered in class order, with its colour, its side as a laterality
    code and tfmuscle's version as algorithm; a structure without voxels is described and has no frames.
    `read_segmentation(path, reference=labels.geometry)` returns the same voxels.

    Args:
        path: the file to write, usually ending in `.dcm`.
        labels: ids on the scan's grid, in any order and direction of the axes.
        label_map: what the ids mean.
        series: the scan: a folder of DICOM slices, nested or not, or one DICOM file. Of several series in it, the one
            that the labels fit is taken; of several images at one place the first stands for all.
        number: the series number, when the labels fit several series (water and fat).

    Raises:
        ValueError: the labels hold ids that the map does not name, unlabelled voxels, or names too long for DICOM.
        DataError: there is no such scan, none of its series has the labels' grid, or `path` cannot be written.
    """
    path, series = Path(path), Path(series)
    classes = _classes(labels, label_map)
    scan, axes, signs = _fitting_scan(series, labels, number)
    frames = _turned(classes, axes, signs).transpose(2, 1, 0)
    content = io.BytesIO()
    with damage_refused(series):
        _dataset(scan, frames, label_map).save_as(content, enforce_file_format=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _classes(labels: Volume, label_map: LabelMap) -> np.ndarray:
    """Returns segment numbers 0, 1, ... `(I, J, K)`."""
    array = labels.array
    if array.ndim != 3 or array.dtype.kind not in "biu":
        raise ValueError(f"labels of shape {array.shape} and type {array.dtype}; whole numbers (I, J, K) are needed")
    if label_map.ignore is not None and (array == label_map.ignore).any():
        raise ValueError(
            f"id {label_map.ignore} marks voxels nobody labelled, for which DICOM SEG has no place; relabel them first"
        )
    if not label_map.structures:
        raise ValueError("the label map names no structure; a SEG needs at least one")
    for name in label_map.structures:
        if len(name) > _LONGEST_LABEL or not name.isprintable() or "\\" in name:
            raise ValueError(f"{name!r} cannot be a SegmentLabel; use at most {_LONGEST_LABEL} plain characters")
    table = {key: number for number, key in enumerate(label_map.ids)}
    return relabel(array.astype(np.int64), table)


def _fitting_scan(series: Path, labels: Volume, number: int | None) -> tuple[_Scan, np.ndarray, np.ndarray]:
    """Returns the one series that has the labels' voxels, and how the labels' axes are turned onto it."""
    found = [headers for headers in _headers(series) if number in (None, headers[0].get("SeriesNumber"))]
    if not found:
        raise DataError(f"{series}: holds no series with the number {number}; give another or none")
    shapes, fitting, refused = [], [], None
    for headers in found:
        try:
            with damage_refused(series):
                scan = _scan(series, headers)
        except DataError as error:
            refused = error
            continue
        shapes.append(str(scan.geometry.shape))
        turned = _axes(labels.geometry, scan.geometry)
        if turned is not None:
            fitting.append((scan, *turned))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"{series}: {len(fitting)} series have the labels' grid; give the series number of one")
    if refused is not None and not shapes:
        raise refused
    raise DataError(
        f"{series}: its grid {', '.join(shapes)} is not that of the labels {labels.source} {labels.geometry.shape}; "
        "give the series that they were predicted from"
    )


def _axes(own: Geometry, other: Geometry) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (axis of `own`, its sign) for every axis of `other` when both have the same voxels, else None."""
    mapping = np.linalg.inv(own.affine[:3, :3]) @ other.affine[:3, :3]
    axes = np.abs(mapping).argmax(axis=0)
    if sorted(axes) != [0, 1, 2]:
        return None
    signs = np.sign(mapping[axes, range(3)]).astype(int)
    affine = own.affine.copy()
    affine[:3, :3] = own.affine[:3, axes] * signs
    affine[:3, 3] = own.world((np.array(own.shape) - 1) * (signs[np.argsort(axes)] < 0))
    turned = Geometry((own.shape[axes[0]], own.shape[axes[1]], own.shape[axes[2]]), affine)
    return (axes, signs) if turned.same_grid(other) else None


def _turned(array: np.ndarray, axes: np.ndarray, signs: np.ndarray) -> np.ndarray:
    return array.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]


def _headers(series: Path) -> list[list[Dataset]]:
    """Returns the headers of the images, one list a series; a multi-frame file is a series of its own."""
    if series.is_dir():
        files = sorted(item for item in series.rglob("*") if item.is_file() and not item.name.startswith("."))
    elif series.is_file():
        files = [series]
    else:
        raise DataError(f"{series}: there is no such file or folder; check the path")
    found: dict[str, list[Dataset]] = {}
    for file in files:
        if not (is_dicom_file(file) or file.suffix.lower() in (".dcm", ".ima")) or label_object_kind(file):
            continue
        with damage_refused(file):
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            if "Rows" not in header:
                continue
            key = str(file) if "PerFrameFunctionalGroupsSequence" in header else str(header.get("SeriesInstanceUID"))
            found.setdefault(key, []).append(header)
    if not found:
        raise DataError(f"{series}: no DICOM image among {len(files)} files; give the folder that holds the series")
    return list(found.values())


def _scan(series: Path, headers: list[Dataset]) -> _Scan:
    """Returns grid and source images of one series; of several images at one place the first stands for all."""
    missing = [keyword for keyword in _NEEDED if not headers[0].get(keyword)]
    if missing:
        raise DataError(f"{series}: has no {missing[0]}, to which a SEG must refer; {AGAIN}")
    for keyword in _ALIKE:
        if len({str(header.get(keyword)) for header in headers}) > 1:
            raise DataError(f"{series}: images that differ in {keyword}; a SEG needs one series, {AGAIN}")
    is_multi_frame = "PerFrameFunctionalGroupsSequence" in headers[0]
    if not is_multi_frame:
        headers = sorted(headers, key=lambda header: int(header.get("InstanceNumber") or 0))
    groups = _frame_groups(headers[0]) if is_multi_frame else [[header] for header in headers]
    positions = np.array([_value(series, group, "ImagePositionPatient", 3) for group in groups])
    places = Places(
        positions,
        np.array([_value(series, group, "ImageOrientationPatient", 6) for group in groups]),
        np.array([_value(series, group, "PixelSpacing", 2) for group in groups]),
        _optional(groups[0], "SpacingBetweenSlices") if is_multi_frame else None,
        _optional(groups[0], "SliceThickness"),
    )
    geometry, slices = stack(series, places, (int(headers[0].Rows), int(headers[0].Columns)))
    present, first = np.unique(slices, return_index=True)
    if len(present) != geometry.shape[2]:
        raise DataError(f"{series}: {geometry.shape[2] - len(present)} slices are missing; {AGAIN}")
    images = [headers[0]] if is_multi_frame else [headers[index] for index in first]
    for image in images:
        _complete(image, groups[0], geometry.spacing[2])
    return _Scan(images, geometry, positions[first])


def _frame_groups(header: Dataset) -> list[list[Dataset]]:
    """Returns for every frame the items that may hold its place: its own first, then the shared ones."""
    shared = items(header, "SharedFunctionalGroupsSequence")[:1]
    keywords = [pair[0] for pair in _PLACES] + ["PlanePositionSequence"]
    return [
        [item for holder in [frame, *shared] for keyword in keywords for item in items(holder, keyword)]
        for frame in items(header, "PerFrameFunctionalGroupsSequence")
    ]


def _value(series: Path, group: list[Dataset], keyword: str, count: int) -> np.ndarray:
    holder = next((item for item in group if keyword in item), None)
    return numbers(series, holder, keyword, count)


def _optional(group: list[Dataset], keyword: str) -> float | None:
    value = next((item.get(keyword) for item in group if item.get(keyword) is not None), None)
    return None if value is None else float(value)


def _complete(header: Dataset, group: list[Dataset], step: float) -> None:
    """Puts in what highdicom asks for: tags that may be empty, slice distances, a shared place of the frames."""
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference", str(header.SeriesInstanceUID)])
    measures = header
    if "PerFrameFunctionalGroupsSequence" in header:
        header.SharedFunctionalGroupsSequence = items(header, "SharedFunctionalGroupsSequence") or [Dataset()]
        shared = header.SharedFunctionalGroupsSequence[0]
        for sequence, keyword, _ in _PLACES:
            if sequence not in shared:
                setattr(shared, sequence, [next(item for item in group if keyword in item)])
        measures = shared.PixelMeasuresSequence[0]
    distance = DSfloat(step, auto_format=True)
    measures.SpacingBetweenSlices = distance  # the stated one may be another thing, or wrong; this is measured
    measures.SliceThickness = measures.get("SliceThickness") or distance


def _dataset(scan: _Scan, frames: np.ndarray, label_map: LabelMap) -> Segmentation:
    """Returns the SEG of `frames` `(K, rows, columns)`."""
    places = [highdicom.PlanePositionSequence("PATIENT", position.tolist()) for position in scan.positions]
    source = scan.images[0]
    return Segmentation(
        source_images=scan.images,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=_descriptions(label_map),
        series_instance_uid=generate_uid(),
        series_number=1000 + max(0, min(int(source.get("SeriesNumber") or 0), 1_000_000)),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="tfmuscle",
        manufacturer_model_name="tfmuscle",
        software_versions=_version(),
        device_serial_number="0",
        plane_positions=places,
        content_label="SEGMENTATION",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="tfmuscle segmentation",
        specific_character_set="ISO_IR 192",
    )


def _version() -> str:
    return importlib.metadata.version("tfmuscle")


def _descriptions(label_map: LabelMap) -> list[SegmentDescription]:
    descriptions = []
    for number, name in enumerate(label_map.structures, start=1):
        side = label_map.side(name)
        base = "_".join(word for word in name.split("_") if word not in SIDES)
        description = SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_CATEGORY,
            segmented_property_type=_TYPES.get(base, _CATEGORY),
            algorithm_type="AUTOMATIC",
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name=f"tfmuscle {_version()}", family=codes.DCM.ArtificialIntelligence, version=_version()
            ),
            display_color=CIELabColor.from_rgb(*label_map.colour(name)),
        )
        if side is not None:
            modifier = CodedConcept.from_code(_SIDE_CODES[side])
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        descriptions.append(description)
    return descriptions
