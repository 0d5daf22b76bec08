"""DICOM SEG: synthetic ones judged by hand and by highdicom's own reader, real ones by NRRD and highdicom."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.seg import SegmentDescription, segread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tfmuscle.errors import DataError
from tfmuscle.io.dicom_labels import label_object_kind, read_segmentation, write_segmentation
from tfmuscle.io.dicom_labels.names import sided_name
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

PATIENT, NUMBER = "Müller^Zebulon", "PAT-4711-X"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
FLIPPED = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0))  # columns to the front, rows downwards
OBLIQUE = ((0.8, 0.6, 0.0), (-0.168, 0.224, 0.96))
ORIGIN = np.array([-20.25, 31.5, -400.0])
LEGS = LabelMap({1: "soleus_left", 7: "soleus_right", 300: "femur_left"})
POSITION_TOLERANCE_MM = 1e-3  # decimal text of 16 characters


def write_series(folder, *, shape=(7, 5, 4), cosines=AXIAL, gap=2.5, **tags):
    """Writes a stack of `shape` (columns, rows, slices), last slice first; returns its RAS+ grid."""
    folder.mkdir(parents=True)
    normal = np.cross(*cosines)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SpecificCharacterSet = "ISO_IR 100"
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.PatientName, slice_.PatientID, slice_.Modality = PATIENT, NUMBER, "MR"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Columns, slice_.Rows, slice_.InstanceNumber = shape[0], shape[1], k + 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 8
        slice_.HighBit, slice_.PixelRepresentation = 7, 0
        slice_.PixelSpacing, slice_.ImageOrientationPatient = [0.75, 0.5], [*cosines[0], *cosines[1]]
        slice_.ImagePositionPatient = [round(float(x), 8) for x in ORIGIN + k * gap * normal]
        slice_.PixelData = bytes(shape[0] * shape[1] + shape[0] * shape[1] % 2)
        for keyword, value in tags.items():
            setattr(slice_, keyword, value)
        slice_.save_as(folder / f"{shape[2] - k:03d}.dcm", enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = 0.5 * np.array(cosines[0]), 0.75 * np.array(cosines[1]), gap * normal
    affine[:3, 3] = ORIGIN
    return Geometry(shape, np.diag([-1.0, -1, 1, 1]) @ affine)


def random_labels(geometry, seed=0):
    array = np.random.default_rng(seed).choice([0, 1, 7, 300], geometry.shape).astype(np.int16)
    return Volume(array, geometry, "labels.nii.gz")


def written(tmp_path, labels=None, **series):
    """Writes a series and labels on it as SEG; returns (path, labels)."""
    geometry = write_series(tmp_path / "series", **series)
    labels = labels or random_labels(geometry)
    write_segmentation(tmp_path / "seg.dcm", labels, LEGS, series=tmp_path / "series")
    return tmp_path / "seg.dcm", labels


def changed(path, change):
    """Rewrites a file after `change(dataset)`."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


def refusal(call, match):
    """Calls, expects one refusing line that names nobody."""
    with pytest.raises(DataError, match=match) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message
    assert not any(secret in message for secret in ("ller", "Zebulon", "4711"))


def by_highdicom(path):
    """Stored values `(column, row, slice)` and RAS+ grid as highdicom reads them, slices in its order."""
    dataset = segread(path)
    volume = dataset.get_volume(rescale_fractional=False) if dataset.segmentation_type.value != "LABELMAP" else None
    volume = volume or dataset.get_volume(combine_segments=False)
    array = volume.array.transpose(2, 1, 0, 3)
    return array, volume.get_affine("RAS")[:, [2, 1, 0, 3]]


@pytest.mark.parametrize("cosines", [AXIAL, FLIPPED, OBLIQUE], ids=["axial", "flipped", "oblique"])
@pytest.mark.parametrize("orientation", ["LPS", "SPL", "RAI", "ASR"])
def test_what_is_written_is_read_again_whatever_the_axes(tmp_path, cosines, orientation):
    geometry = write_series(tmp_path / "series", cosines=cosines)
    labels = random_labels(geometry).reoriented(orientation)
    write_segmentation(tmp_path / "seg.dcm", labels, LEGS, series=tmp_path / "series")
    masks, grid = read_segmentation(tmp_path / "seg.dcm", reference=labels.geometry)
    assert grid is labels.geometry
    assert list(masks) == list(LEGS.structures)
    for key, name in list(LEGS.names.items())[1:]:
        assert (masks[name] == (labels.array == key)).all()
    own, own_grid = read_segmentation(tmp_path / "seg.dcm")  # every slice holds something: the whole scan
    assert own_grid.same_grid(geometry, tolerance_mm=POSITION_TOLERANCE_MM)
    assert (own["femur_left"] == (random_labels(geometry).array == 300)).all()


def test_highdicom_reads_the_same_and_finds_the_source_of_every_frame(tmp_path):
    path, labels = written(tmp_path, cosines=OBLIQUE)
    array, affine = by_highdicom(path)
    for segment, key in enumerate((1, 7, 300)):
        for i, j, k in np.argwhere(labels.array == key):
            world = labels.geometry.world((i, j, k))
            column, row, place = np.rint(np.linalg.inv(affine) @ [*world, 1])[:3].astype(int)
            assert array[column, row, place, segment] == 1
    assert array.sum() == (labels.array > 0).sum()
    dataset = segread(path)
    sources = {item.stem: str(pydicom.dcmread(item).SOPInstanceUID) for item in (tmp_path / "series").iterdir()}
    for k in range(4):  # the file of slice k is called 4 - k
        frames = dataset.get_pixels_by_source_instance([sources[f"{4 - k:03d}"]])
        assert ((labels.array[:, :, k] == 7) == frames[0, :, :, 1].T).all()


def test_what_a_clinic_needs_is_in_the_file(tmp_path):
    path, _ = written(tmp_path)
    dataset, source = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "series" / "001.dcm")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
        assert dataset[keyword].value == source[keyword].value
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    first, second, third = dataset.SegmentSequence
    assert first.SegmentAlgorithmName.startswith("tfmuscle ")
    assert [segment.SegmentNumber for segment in (first, second, third)] == [1, 2, 3]
    codes_of = [item.SegmentedPropertyTypeCodeSequence[0] for item in (first, second, third)]
    assert [code.CodeMeaning for code in codes_of] == ["Skeletal muscle", "Skeletal muscle", "Bone"]
    sides = [code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for code in codes_of]
    assert sides == ["Left", "Right", "Left"]


def test_empty_slices_and_empty_structures(tmp_path):
    geometry = write_series(tmp_path / "series", shape=(4, 3, 9))
    array = np.zeros(geometry.shape, np.uint8)
    array[1, 2, 2], array[1, 2, 7] = 1, 1  # two of nine slices: the step is not to be seen from the frames
    write_segmentation(
        tmp_path / "seg.dcm", Volume(array, geometry), LabelMap({1: "a", 2: "b"}), series=tmp_path / "series"
    )
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames == 2
    masks, grid = read_segmentation(tmp_path / "seg.dcm")
    assert grid.shape == (4, 3, 6)
    assert np.argwhere(masks["a"]).tolist() == [[1, 2, 0], [1, 2, 5]]
    assert not masks["b"].any()
    placed, _ = read_segmentation(tmp_path / "seg.dcm", reference=geometry)
    assert (placed["a"] == (array == 1)).all()


def test_nothing_at_all_round_trips(tmp_path):
    geometry = write_series(tmp_path / "series")
    path, labels = tmp_path / "seg.dcm", Volume(np.zeros(geometry.shape, np.int16), geometry)
    write_segmentation(path, labels, LEGS, series=tmp_path / "series")
    masks, _ = read_segmentation(path, reference=geometry)
    assert list(masks) == list(LEGS.structures)
    assert not any(mask.any() for mask in masks.values())


def describe(number, label, **tags):
    segment = SegmentDescription(number, label, codes.SCT.Tissue, codes.SCT.Muscle, "MANUAL")
    for keyword, value in tags.items():
        setattr(segment, keyword, value)
    return segment


def by_highdicom_written(path, series, array, descriptions, kind="BINARY"):
    images = sorted((pydicom.dcmread(item) for item in series.iterdir()), key=lambda image: image.InstanceNumber)
    for image in images:
        image.SliceThickness, image.SpacingBetweenSlices = 2.5, 2.5
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(image, keyword, "")
    hd.seg.Segmentation(
        images, array.transpose(2, 1, 0, *range(3, array.ndim)), kind, descriptions, generate_uid(), 1, generate_uid(),
        1, "m", "m", "1", "1", max_fractional_value=200,
    ).save_as(path)  # fmt: skip
    return path


def test_fractional_segments_are_cut_at_one_half(tmp_path):
    write_series(tmp_path / "s")
    array = np.zeros((7, 5, 4), np.float32)
    array[:, 0, 0] = [0.0, 0.1, 0.49, 0.5, 0.51, 1.0, 0.0]  # of 200: 0, 20, 98, 100, 102, 200, 0
    array[0, 0, 3] = 1.0
    masks, _ = read_segmentation(
        by_highdicom_written(tmp_path / "f", tmp_path / "s", array, [describe(1, "x y")], "FRACTIONAL")
    )
    assert masks["x_y"][:, 0, 0].tolist() == [False, False, False, True, True, True, False]
    assert masks["x_y"].sum() == 4


def test_segments_that_overlap_and_label_maps(tmp_path):
    write_series(tmp_path / "s")
    both = np.random.default_rng(1).random((7, 5, 4, 2)) < 0.6
    descriptions = [describe(1, "one"), describe(2, "two")]
    masks, _ = read_segmentation(
        by_highdicom_written(tmp_path / "b", tmp_path / "s", both.astype(np.uint8), descriptions)
    )
    assert (masks["one"] & masks["two"]).any()
    assert (masks["one"] == both[..., 0]).all()
    assert (masks["two"] == both[..., 1]).all()
    labels = np.random.default_rng(2).integers(0, 3, (7, 5, 4)).astype(np.uint8)
    path = by_highdicom_written(tmp_path / "l", tmp_path / "s", labels, descriptions, "LABELMAP")
    masks, _ = read_segmentation(path)
    assert label_object_kind(path) == "segmentation"
    assert list(masks) == ["one", "two"]
    assert (masks["one"] + 2 * masks["two"].astype(int) == labels).all()


@pytest.mark.parametrize("turn", [False, True], ids=["finer", "oblique"])
def test_another_grid_takes_the_nearest_voxel(tmp_path, turn):
    path, labels = written(tmp_path)
    affine = labels.geometry.affine @ np.diag([0.713, 0.617, 0.431, 1.0])  # no ties
    if turn:
        affine[:3, :3] = [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]] @ affine[:3, :3]
    reference = Geometry((9, 8, 7), affine)
    masks, _ = read_segmentation(path, reference=reference)
    for index in np.ndindex(reference.shape):
        place = np.floor(labels.geometry.index(reference.world(index)) + 0.5).astype(int)
        inside = (place >= 0).all() and (place < labels.geometry.shape).all()
        assert masks["soleus_right"][index] == (inside and labels.array[tuple(place)] == 7)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Vastus lateralis (left)", "vastus_lateralis_left"), ("Left femur", "femur_left"), ("R_tibia", "tibia_right"),
        ("Lt Lung", "lung_left"), ("L4", "l4"), ("L 4", "l_4"), ("left/right", "left_right"), ("left", "left"),
        ("../../etc/passwd", "etc_passwd"), ("a\nb\x00c", "a_b_c"), ("FemurLeft", "femur_left"), ("", "structure"),
    ],
)  # fmt: skip
def test_names_are_plain_and_end_in_their_side(text, name):
    assert sided_name(text) == name


def side_code(value):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", "side"
    return [code]


def test_names_from_codes_patients_and_twins(tmp_path):
    def change(dataset):
        first, second, third = dataset.SegmentSequence
        first.SegmentLabel = "Soleus"  # coded left
        second.SegmentLabel = "Soleus left"
        del second.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence
        third.SegmentLabel = "femur of zebulon"

    path = changed(written(tmp_path)[0], change)
    assert list(read_segmentation(path)[0]) == ["soleus_left", "soleus_left_2", "structure_3_left"]
    changed(path, lambda dataset: setattr(dataset.SegmentSequence[0], "SegmentLabel", "Background right"))
    refusal(lambda: read_segmentation(path), "structure 1 is called right but coded as left; correct")


def first_frame(dataset):
    return dataset.PerFrameFunctionalGroupsSequence[0]


BROKEN = {
    "no usable ImagePositionPatient": lambda d: setattr(
        first_frame(d).PlanePositionSequence[0], "ImagePositionPatient", [1, 2]
    ),
    "no evenly spaced stack": lambda d: setattr(
        first_frame(d).PlanePositionSequence[0], "ImagePositionPatient", [-20.25, 31.5, -401.1]
    ),
    "do not lie on one line": lambda d: setattr(
        first_frame(d).PlanePositionSequence[0], "ImagePositionPatient", [-20.25, 41.5, -400]
    ),
    "belongs to a segment that is not described": lambda d: setattr(
        first_frame(d).SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9
    ),
    "two structures have the number 1": lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1),
    "without a SegmentNumber": lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 0),
    "describes no segment": lambda d: setattr(d, "SegmentSequence", []),
    "SegmentationType is not": lambda d: setattr(d, "SegmentationType", "VAGUE"),
    "has no pixels": lambda d: delattr(d, "PixelData"),
    "too few pixels for 12 frames of 7x5": lambda d: setattr(d, "PixelData", b"\0\0"),
    "13 frames are promised, 12 are described": lambda d: setattr(d, "NumberOfFrames", 13),
    "without a place in the patient": lambda d: setattr(d, "PerFrameFunctionalGroupsSequence", []),
    "no usable Rows": lambda d: setattr(d, "Rows", 0),
    "3 bits a pixel": lambda d: setattr(d, "BitsAllocated", 3),
    "of a microscopy slide": lambda d: setattr(first_frame(d), "PlanePositionSlideSequence", [Dataset()]),
    "no plausible PixelSpacing": lambda d: setattr(
        d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [1e30, 1]
    ),
    "no pair of directions": lambda d: setattr(
        d.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]
    ),
}


@pytest.mark.parametrize("match", BROKEN)
def test_a_broken_segmentation_is_one_line(tmp_path, match):
    path = changed(written(tmp_path)[0], BROKEN[match])
    refusal(lambda: read_segmentation(path), match)


def test_wrong_files_are_one_line(tmp_path):
    path, labels = written(tmp_path)
    image = tmp_path / "series" / "001.dcm"
    assert label_object_kind(path) == "segmentation"
    assert [label_object_kind(item) for item in (image, tmp_path, tmp_path / "no")] == [None, None, None]
    refusal(lambda: read_segmentation(tmp_path / "no"), "no such file; check")
    refusal(lambda: read_segmentation(image), "no DICOM segmentation; give")
    far = labels.geometry.cropped((100, 0, 0), (5, 5, 5))
    refusal(lambda: read_segmentation(path, reference=far), "outside the scan's grid; give")
    path.write_bytes(path.read_bytes()[:900])
    refusal(lambda: read_segmentation(path), "; export the file again")


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    geometry = write_series(tmp_path / "series")
    labels, out = random_labels(geometry), tmp_path / "out" / "seg.dcm"

    def write(labels=labels, label_map=LEGS, series=tmp_path / "series"):
        write_segmentation(out, labels, label_map, series=series)

    shifted = Volume(labels.array, geometry.cropped((1, 0, 0), geometry.shape), "labels.nii.gz")
    refusal(lambda: write(shifted), "is not that of the labels labels.nii.gz .*; give the series")
    refusal(lambda: write(series=tmp_path / "no"), "no such file or folder; check")
    (tmp_path / "none").mkdir()
    refusal(lambda: write(series=tmp_path / "none"), "no DICOM image among 0 files; give")
    with pytest.raises(ValueError, match="label ids .* have no entry"):
        write(label_map=LabelMap({1: "a"}))
    with pytest.raises(ValueError, match="id 300 marks voxels nobody labelled"):
        write(label_map=LabelMap({1: "a", 7: "b"}, ignore=300))
    with pytest.raises(ValueError, match="whole numbers"):
        write(labels.with_array(labels.array.astype(np.float32)))
    with pytest.raises(ValueError, match="cannot be a SegmentLabel"):
        write(label_map=LabelMap({1: "a" * 65, 7: "b", 300: "c"}))
    write_series(tmp_path / "other")
    for item in (tmp_path / "other").iterdir():
        item.rename(tmp_path / "series" / f"x{item.name}")
    refusal(write, "2 series have the labels' grid; give the series number")
    refusal(
        lambda: write_segmentation(out, labels, LEGS, series=tmp_path / "series", number=8), "no series .* number 8;"
    )
    write_series(tmp_path / "anon", SeriesInstanceUID="")
    refusal(lambda: write(series=tmp_path / "anon"), "has no SeriesInstanceUID, to which")
    assert not out.exists()


@pytest.mark.parametrize("folder", ["23x38x3", "24x38x3"])
def test_dcmqi_segments_equal_their_nrrd_and_round_trip(data_dir, tmp_path, folder):
    base = data_dir / "dicom" / "seg_dcmqi" / "data" / "segmentations" / folder
    image = sitk.ReadImage(str(base / "nrrd" / "label.nrrd"))
    expected = sitk.GetArrayFromImage(image).transpose(2, 1, 0) > 0
    masks, grid = read_segmentation(base / "seg" / "label.seg")
    assert (masks["liver"] == expected).all()
    origin = np.array(image.GetOrigin()) * [-1, -1, 1]
    assert np.allclose(grid.affine[:3, 3], origin, atol=POSITION_TOLERANCE_MM)
    for series in (base / "image", base / "multiframe"):  # single-frame and enhanced
        write_segmentation(
            tmp_path / "s", Volume(expected.astype(np.uint8), grid), LabelMap({1: "liver"}), series=series
        )
        again, _ = read_segmentation(tmp_path / "s", reference=grid)
        assert (again["liver"] == expected).all()


def test_real_segmentations_as_highdicom_reads_them(data_dir):
    compared = 0
    for path in sorted((data_dir / "dicom").rglob("*")):
        if label_object_kind(path) != "segmentation":
            continue
        try:
            masks, grid = read_segmentation(path)
        except DataError:
            continue
        try:
            array, affine = by_highdicom(path)
        except (AttributeError, RuntimeError, ValueError):  # tags that highdicom insists on
            continue
        threshold = 0.5 * int(pydicom.dcmread(path).get("MaximumFractionalValue", 1))
        for number, mask in enumerate(masks.values()):
            places = np.argwhere(array[..., number - len(masks)] >= threshold)  # a label map has its background first
            world = places @ affine[:3, :3].T + affine[:3, 3]
            index = np.rint(grid.index(world)).astype(int)
            assert mask[tuple(index.T)].all()
            assert mask.sum() == len(places)
        compared += 1
    assert compared >= 8
