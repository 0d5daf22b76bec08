"""DICOM series: small synthetic ones judged by hand and by SimpleITK, real ones by other converters' NIfTI."""

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

from tfmuscle.errors import DataError
from tfmuscle.io import is_dicom_folder, read_volume, write_volume
from tfmuscle.io.dicom import read_dicom

POSITION_TOLERANCE_MM = 1e-3  # DICOM writes positions as decimal text of 16 characters, NIfTI as float32
PATIENT, NUMBER = "Quux^Zebulon", "PAT-4711-X"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE = ((0.8, 0.6, 0.0), (-0.168, 0.224, 0.96))  # unit vectors: .64 + .36; .028224 + .050176 + .9216; product 0


def slice_header(path, *, syntax=ExplicitVRLittleEndian, storage=MRImageStorage):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, generate_uid()
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, NUMBER, "MR"
    return dataset


def write_slice(path, pixels, *, position, cosines=AXIAL, series="1.2.3", syntax=ExplicitVRLittleEndian, **tags):
    """Writes one slice; a tag given as None is left out, others are set as they are."""
    dataset = slice_header(path, syntax=syntax)
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = series, "1.2.9", "1.2.8"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.5], 2.5  # between rows, between columns
    dataset.ImageOrientationPatient = [*cosines[0], *cosines[1]]
    dataset.ImagePositionPatient = [round(float(x), 9) for x in position]
    dataset.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)


def normal(cosines):
    return np.cross(*cosines)


def write_series(folder, *, count=5, cosines=AXIAL, gap=2.5, dtype=np.int16, names="IM{:04d}.dcm", **tags):
    """Writes a stack whose voxel value is 100 * slice + 10 * row + column; returns it as `(column, row, slice)`."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.mgrid[0:4, 0:6]
    stack = np.stack([100 * k + 10 * row + column for k in range(count)]).astype(dtype)
    for k in range(count):
        position = np.array([-20.25, 31.5, -400.0]) + k * gap * normal(cosines)
        write_slice(
            folder / names.format(k), stack[k], position=position, cosines=cosines, InstanceNumber=k + 1, **tags
        )
    return stack.transpose(2, 1, 0)


def by_simpleitk(folder):
    """Array `(i, j, k)` and RAS+ affine as SimpleITK reads the series."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def refusal(path, match):
    """Reads, expects one refusing line that names nobody, and returns it."""
    with pytest.raises(DataError, match=match) as caught:
        read_volume(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "; " in message
    for secret in ("Quux", "Zebulon", "4711"):
        assert secret not in message
    return message


def test_an_axial_series_by_hand(tmp_path):
    expected = write_series(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    assert volume.array.dtype == np.int16
    assert (volume.array == expected).all()
    assert volume.array[5, 3, 2] == 235  # column 5, row 3, slice 2
    # columns grow to patient left (RAS: -x) by 0.5 mm, rows to the back (-y) by 0.75 mm, slices upwards by 2.5 mm
    assert np.allclose(
        volume.geometry.affine, [[-0.5, 0, 0, 20.25], [0, -0.75, 0, -31.5], [0, 0, 2.5, -400], [0, 0, 0, 1]]
    )
    assert volume.geometry.orientation == "LPS"


@pytest.mark.parametrize("gap", [2.5, -2.5])  # written along the normal or against it
@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, OBLIQUE])
def test_a_series_agrees_with_simpleitk_and_survives_as_nifti(cosines, gap, tmp_path):
    write_series(tmp_path / "s", cosines=cosines, gap=gap)
    volume = read_dicom(tmp_path / "s")
    array, affine = by_simpleitk(tmp_path / "s")
    assert (volume.array == array).all()
    assert np.abs(volume.geometry.affine - affine).max() < 1e-6
    assert volume.geometry.affine[:3, 2] @ (normal(cosines) * (-1, -1, 1)) == pytest.approx(2.5)
    write_volume(tmp_path / "s.nii.gz", volume)
    image = nib.load(tmp_path / "s.nii.gz")
    assert (np.asarray(image.dataobj) == volume.array).all()
    assert np.abs(image.affine - affine).max() < POSITION_TOLERANCE_MM
    seen = sitk.ReadImage(str(tmp_path / "s.nii.gz"))
    corner = np.array(seen.TransformIndexToPhysicalPoint((5, 3, 4))) * (-1, -1, 1)
    assert np.abs(corner - volume.geometry.world((5, 3, 4))).max() < POSITION_TOLERANCE_MM


def test_the_order_comes_from_positions_not_from_names_or_numbers(tmp_path):
    write_series(tmp_path / "s", cosines=OBLIQUE)
    expected = read_dicom(tmp_path / "s")
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for k, (name, number) in enumerate(zip(["b", "e", "a", "d", "c"], [3, 3, 1, 99, -5], strict=True)):  # no extensions
        dataset = pydicom.dcmread(tmp_path / "s" / f"IM{k:04d}.dcm")
        dataset.InstanceNumber, dataset.SliceLocation = number, 10.0 * number
        dataset.save_as(shuffled / name)
    found = read_volume(shuffled)
    assert (found.array == expected.array).all()
    assert np.array_equal(found.geometry.affine, expected.geometry.affine)


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    folder = tmp_path / "s"
    expected = write_series(folder, names="IM{:04d}")
    (folder / "README.txt").write_text("scanned on a rainy day " * 20)
    (folder / ".DS_Store").write_bytes(b"\0" * 300)
    (folder / "._IM0001.dcm").write_bytes(b"\0" * 300)  # what macOS leaves on foreign disks
    (folder / "sub").mkdir()
    structures = slice_header(folder / "rt.dcm", storage=RTStructureSetStorage)
    structures.SeriesInstanceUID = "9.9"
    structures.save_as(folder / "rt.dcm", enforce_file_format=True)
    files = FileSet()
    for k in range(5):
        dataset = pydicom.dcmread(folder / f"IM{k:04d}")
        dataset.SeriesNumber, dataset.StudyID, dataset.StudyDate, dataset.StudyTime = 1, "1", "20200101", "120000"
        files.add(dataset)
    files.write(tmp_path / "set")
    shutil.copy(tmp_path / "set" / "DICOMDIR", folder / "DICOMDIR")
    assert (read_volume(folder).array == expected).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_stored_numbers_keep_type_and_sign(dtype, tmp_path):
    (tmp_path / "s").mkdir()
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for k in range(2):
        write_slice(tmp_path / "s" / str(k), np.array([[low, high], [k, 1]], dtype), position=(0, 0, 3 * k))
    volume = read_volume(tmp_path / "s")
    assert volume.array.dtype == dtype
    assert volume.array[:, :, 1].T.tolist() == [[low, high], [1, 1]]


@pytest.mark.parametrize("signed", [0, 1])
def test_unused_high_bits_are_no_part_of_the_value(signed, tmp_path):
    # 12 of 16 bits are in use; those above hold an overlay, as on old scanners. 0xFFF is 4095, or -1 if signed.
    pixels = np.array([[0x0FFF, 0xF001], [0xA7FF, 0x0800]], np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
    write_slice(tmp_path / "a.dcm", pixels, position=(0, 0, 0), **tags)
    expected = [[-1, 1], [0x7FF, -2048]] if signed else [[4095, 1], [0x7FF, 2048]]
    assert read_volume(tmp_path / "a.dcm").array[:, :, 0].T.tolist() == expected
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.dcm")))[0].tolist() == expected


def test_rescaling_is_applied_slice_by_slice(tmp_path):
    (tmp_path / "s").mkdir()
    for k, (slope, intercept) in enumerate([(1, -1024), (0.5, 3), (1, 0)]):
        pixels = np.array([[10, 20]], np.uint16)
        tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        write_slice(tmp_path / "s" / f"{k}.dcm", pixels, position=(0, 0, k), **tags)
    volume = read_volume(tmp_path / "s")
    assert volume.array.dtype == np.float32
    assert volume.array[:, 0, :].T.tolist() == [[-1014, -1004], [8, 13], [10, 20]]


def test_rescaled_ct_agrees_with_simpleitk(tmp_path):
    write_series(tmp_path / "s", dtype=np.uint16, RescaleSlope=2, RescaleIntercept=-1000)
    volume, (array, _) = read_volume(tmp_path / "s"), by_simpleitk(tmp_path / "s")
    assert volume.array.dtype == np.float32
    assert (volume.array == array).all()


def test_a_single_slice_takes_its_thickness(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(1, 2, 3), cosines=OBLIQUE)
    (tmp_path / "s").mkdir()
    shutil.copy(tmp_path / "a.dcm", tmp_path / "s" / "a")
    for path in (tmp_path / "a.dcm", tmp_path / "s", tmp_path / "s" / "a"):
        volume = read_volume(path)
        assert volume.array.shape == (6, 4, 1)
        assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))
    write_slice(
        tmp_path / "b.dcm", np.ones((4, 6), np.int16), position=(1, 2, 3), SliceThickness=0, SpacingBetweenSlices=4
    )
    assert read_volume(tmp_path / "b.dcm").spacing[2] == 4.0
    write_slice(tmp_path / "c.dcm", np.ones((4, 6), np.int16), position=(1, 2, 3), SliceThickness=None)
    refusal(tmp_path / "c.dcm", "one slice without SliceThickness")


def test_implicit_and_run_length_encoded_files_are_read(tmp_path):
    expected = write_series(tmp_path / "s", syntax=ImplicitVRLittleEndian)
    assert (read_volume(tmp_path / "s").array == expected).all()
    for path in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)
    assert (read_volume(tmp_path / "s").array == expected).all()


def test_positions_rounded_in_the_header_are_no_gap(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    for k in range(20):  # 1/3 mm apart, written with two decimals: gaps of 0.33 and 0.34 mm
        write_slice(folder / f"{k}.dcm", np.full((2, 2), k, np.int16), position=(0, 0, round(k / 3, 2)))
    volume = read_volume(folder)
    assert volume.spacing[2] == pytest.approx(6.33 / 19)
    assert volume.array[0, 0].tolist() == list(range(20))


def test_two_series_are_listed_without_naming_the_patient(tmp_path):
    write_series(tmp_path / "s", names="a{}.dcm", SeriesDescription="t1_tse axial")
    write_series(tmp_path / "s", names="b{}.dcm", count=3, series="1.2.4", SeriesDescription="Zebulon Quux follow-up")
    write_series(tmp_path / "s", names="c{}.dcm", count=2, series="1.2.5", SeriesDescription=None or "")
    message = refusal(tmp_path / "s", "3 series: ")
    assert "5 files (MR, t1_tse axial)" in message
    assert "3 files (MR, description withheld)" in message
    assert "2 files (MR, no description)" in message
    assert "give each series a folder of its own" in message


def test_missing_slices_uneven_spacing_and_duplicates(tmp_path):
    write_series(tmp_path / "s", count=6)
    (tmp_path / "s" / "IM0003.dcm").unlink()
    assert "slices are 2.500 to 5.000 mm apart" in refusal(tmp_path / "s", "slices missing")
    uneven = tmp_path / "uneven"
    uneven.mkdir()
    for k, z in enumerate([0, 2.5, 5.2, 7.5]):
        write_slice(uneven / f"{k}.dcm", np.ones((2, 2), np.int16), position=(0, 0, z))
    refusal(uneven, "slices are 2.300 to 2.700 mm apart")
    write_series(tmp_path / "twice", names="a{}.dcm")
    write_series(tmp_path / "twice", names="b{}.dcm")
    refusal(tmp_path / "twice", r"10 images at 5 positions \(echoes or time points\?\); keep one image per position")


def test_a_tilted_gantry_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(4):  # atan(0.5 / 2) = 14.04 degrees
        write_slice(tmp_path / "s" / f"{k}.dcm", np.ones((2, 2), np.int16), position=(0, 0.5 * k, 2 * k))
    refusal(tmp_path / "s", "shifted sideways by 14.04° .tilted gantry.; convert the series with dcm2niix")


def test_images_that_do_not_belong_together(tmp_path):
    def pair(name, pixels=None, **second):
        folder = tmp_path / name
        folder.mkdir()
        write_slice(folder / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
        pixels = np.ones((4, 6), np.int16) if pixels is None else pixels
        write_slice(folder / "b.dcm", pixels, **{"position": (0, 0, 3)} | second)
        return folder

    refusal(pair("size", np.ones((5, 6), np.int16)), "images of different size .6x4 and 6x5.")
    refusal(pair("turned", cosines=CORONAL), "images of different orientation")
    refusal(pair("pixel", PixelSpacing=[0.75, 0.6]), r"PixelSpacing from \[0.75, 0.5\] to \[0.75, 0.6\] mm")


def test_what_is_not_supported_yet_says_so(tmp_path):
    pixels = np.ones((4, 6), np.int16)
    write_series(tmp_path / "mosaic", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    refusal(tmp_path / "mosaic", "Siemens mosaic images are not supported yet; convert the series with dcm2niix")
    write_slice(tmp_path / "frames.dcm", pixels, position=(0, 0, 0), NumberOfFrames=2)
    refusal(tmp_path / "frames.dcm", "multi-frame DICOM is not supported yet; convert the series with dcm2niix")
    write_slice(tmp_path / "enhanced.dcm", pixels, position=(0, 0, 0), SOPClassUID=EnhancedMRImageStorage)
    refusal(tmp_path / "enhanced.dcm", "multi-frame DICOM is not supported yet")
    write_slice(tmp_path / "one.dcm", pixels, position=(0, 0, 0), NumberOfFrames=1, SOPClassUID=CTImageStorage)
    assert read_volume(tmp_path / "one.dcm").array.shape == (6, 4, 1)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_slice(tmp_path / "rgb.dcm", np.ones((4, 6, 3), np.uint8), position=(0, 0, 0), **colour)
    refusal(tmp_path / "rgb.dcm", "colour images; grey values are needed")
    write_slice(tmp_path / "palette.dcm", pixels, position=(0, 0, 0), PhotometricInterpretation="PALETTE COLOR")
    refusal(tmp_path / "palette.dcm", "colour images")
    table = pydicom.Dataset()
    table.LUTExplanation = "curve"
    write_slice(tmp_path / "table.dcm", pixels, position=(0, 0, 0), ModalityLUTSequence=Sequence([table]))
    refusal(tmp_path / "table.dcm", "look-up table, which is not supported")


def test_a_compression_that_cannot_be_read_is_named(tmp_path):
    assert not get_decoder(HTJ2KLossless).is_available  # needs a plugin that is no dependency
    path = tmp_path / "a.dcm"
    write_slice(path, np.ones((4, 6), np.int16), position=(0, 0, 0))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 10])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    refusal(
        path, "compressed as High-Throughput JPEG 2000 .*, which cannot be read here; convert the series with dcm2niix"
    )
    dataset.file_meta.TransferSyntaxUID = "1.2.840.99999.1"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    refusal(path, "compressed as 1.2.840.99999.1, which cannot be read here")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": None}, "no usable ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "no usable ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "is no pair of directions"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "is no pair of directions"),
        ({"PixelSpacing": None}, "no usable PixelSpacing"),
        ({"PixelSpacing": [0, 0]}, r"PixelSpacing from \[0.0, 0.0\]"),
        ({"RescaleSlope": ""}, "no usable RescaleSlope"),
        ({"PixelData": b"\0" * 10}, "its pixels cannot be read"),
        ({"PixelData": None}, "its pixels cannot be read"),
        ({"Rows": 60000, "Columns": 60000}, "its pixels cannot be read"),
    ],
)
def test_broken_headers(tags, message, tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0), **tags)
    refusal(tmp_path / "a.dcm", message)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    content = (tmp_path / "a.dcm").read_bytes()
    for length in range(133, len(content), 11):
        (tmp_path / "b.dcm").write_bytes(content[:length])
        refusal(tmp_path / "b.dcm", "b.dcm: ")


@pytest.mark.parametrize(
    "place", [b"\x20\x00\x32\x00DS", b"\x28\x00\x30\x00DS", b"\x28\x00\x01\x01US", b"\x02\x00\x02\x00UI"]
)
def test_a_tag_that_pydicom_only_finds_broken_later_is_refused(place, tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(place) == 1
    (tmp_path / "b.dcm").write_bytes(content.replace(place, place[:4] + b"\x55\x39"))  # no such type of value
    refusal(tmp_path / "b.dcm", "b.dcm: a damaged DICOM file")


def test_a_damaged_slice_does_not_shorten_the_stack(tmp_path):
    write_series(tmp_path / "s")
    (tmp_path / "s" / "IM0004.dcm").write_bytes(b"")  # the last one: no gap would tell
    with pytest.raises(DataError, match="IM0004.dcm: called a DICOM file but it is none; copy the series again"):
        read_volume(tmp_path / "s")


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty", "no DICOM image among 0 files; give the folder that holds the series")
    write_series(tmp_path / "study" / "series")
    refusal(tmp_path / "study", "no DICOM image among 0 files; give one of its 1 folders")
    with pytest.raises(DataError, match="none: there is no such file or folder"):
        read_dicom(tmp_path / "none")
    assert not is_dicom_folder(tmp_path / "empty")
    assert not is_dicom_folder(tmp_path / "study")
    assert is_dicom_folder(tmp_path / "study" / "series")
    with pytest.raises(DataError, match="channel 1 was asked for, it has 1"):
        read_volume(tmp_path / "study" / "series", channel=1)


def test_pydicom_warns_nobody_about_the_patient(tmp_path, recwarn):
    write_series(tmp_path / "s")
    for path in (tmp_path / "s").iterdir():  # a value that pydicom would quote in a warning: too long for its type
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.9\0", b"Quux^Z"))
    read_volume(tmp_path / "s")
    assert not recwarn.list


def compare_through_world(volume, image):
    """Largest difference between voxels at the same world place, and how far centres are apart in voxels."""
    to_index = np.linalg.inv(image.affine) @ volume.geometry.affine
    index = np.indices(volume.array.shape).reshape(3, -1).T @ to_index[:3, :3].T + to_index[:3, 3]
    nearest = np.round(index).astype(int)
    assert (nearest >= 0).all()
    assert (nearest < image.shape[:3]).all()
    values = image.get_fdata()[tuple(nearest.T)].reshape(volume.array.shape)
    return np.abs(values - volume.array).max(), np.abs(index - nearest).max()


@pytest.mark.parametrize("number", [4, 5, 6, 7])
def test_real_ge_series_agree_with_dcm2niix(number, data_dir, tmp_path):
    root = data_dir / "dicom" / "dcm_qa_nih"
    files = sorted((root / "In" / "20180918GE" / f"mr_{number:04d}").glob("*.dcm"))
    refusal(files[0].parent, "150 images at 15 positions")  # ten time points
    for path in files:
        if int(pydicom.dcmread(path, specific_tags=["InstanceNumber"]).InstanceNumber) <= 15:
            shutil.copy(path, tmp_path)
    image = nib.load(root / "Ref" / f"DCM2NIIX_regression_test_{number}.nii").slicer[..., 0]
    volume = read_volume(tmp_path)
    assert volume.array.shape == image.shape
    difference, offset = compare_through_world(volume, image)
    assert difference == 0
    assert offset < 1e-3


REAL_SERIES = [
    "anatomical/001",
    "anatomical/001_implicit",
    "ge/anatomical/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed_rle/001",
    "hitachi/anatomical/001",
    "philips/anatomical/001",
    "siemens/anatomical/001_implicit",
]


@pytest.mark.parametrize("name", REAL_SERIES)
def test_real_series_agree_with_dicom2nifti_and_simpleitk(name, data_dir):
    folder = data_dir / "dicom" / "dicom2nifti" / name
    volume = read_volume(folder)
    difference, offset = compare_through_world(volume, nib.load(f"{folder}_ground_truth.nii.gz"))
    assert difference < 1e-5  # rescaled values are float32 on both sides
    assert offset < 1e-3
    array, affine = by_simpleitk(folder)
    assert np.allclose(array, volume.array, rtol=1e-6, atol=1e-5)
    assert np.abs(affine - volume.geometry.affine).max() < POSITION_TOLERANCE_MM


REAL_REFUSALS = [
    ("dicom2nifti/failing/gantrytilting/001", "tilted gantry"),
    ("dicom2nifti/failing/notavolume/001", "4 images at 1 positions"),
    ("dicom2nifti/failing/sliceincrement/001", "slices are 5.000 to 10.000 mm apart"),
    ("dicom2nifti/failing/sliceorientation/001", "PixelSpacing from"),
    ("dicom2nifti/generic/rgb/001", "colour images|compressed as"),
    ("dicom2nifti/philips_enhanced/anatomical/001", "multi-frame"),
    ("dcm_qa_mosaic/In/ep2d_Asc_2", "Siemens mosaic"),
    ("dcm_qa_agfa/Agfa", "multi-frame"),
    ("rtutils/empty", "no DICOM image"),
    ("pydicom/test_files/dicomdirtests/98892003/MR1", "3 series: 1 files .MR, FAST LOCALIZER."),
]


@pytest.mark.parametrize(("name", "message"), REAL_REFUSALS)
def test_real_series_that_are_no_stack_are_refused(name, message, data_dir):
    refusal(data_dir / "dicom" / name, message)
