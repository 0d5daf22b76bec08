"""Classic DICOM stacks: place, order and values, judged by hand and by SimpleITK."""

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    by_simpleitk,
    normal,
    refusal,
    slice_header,
    write_series,
    write_slice,
)
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
)

from tfmuscle.io import read_volume, write_volume
from tfmuscle.io.dicom import read_dicom

POSITION_TOLERANCE_MM = 1e-3  # DICOM writes positions as decimal text of 16 characters, NIfTI as float32


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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_plain_encoding_is_read(syntax, tmp_path):
    expected = write_series(tmp_path / "s")
    for path in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array
        list(dataset)  # reads all values, so that they are written anew
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = (pixels if syntax.is_little_endian else pixels.astype(">i2")).tobytes()
        dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
        pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    assert (read_volume(tmp_path / "s").array == expected).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_files_are_read(syntax, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 64, 48), dtype=np.uint16)
    for k in range(3):
        path = tmp_path / f"{k}.dcm"
        write_slice(path, pixels[k], position=(0, 0, k), BitsStored=12, HighBit=11)
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    assert (read_volume(tmp_path).array == pixels.transpose(2, 1, 0)).all()


def test_positions_rounded_in_the_header_are_no_gap(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    for k in range(20):  # 1/3 mm apart, written with two decimals: gaps of 0.33 and 0.34 mm
        write_slice(folder / f"{k}.dcm", np.full((2, 2), k, np.int16), position=(0, 0, round(k / 3, 2)))
    volume = read_volume(folder)
    assert volume.spacing[2] == pytest.approx(6.33 / 19)
    assert volume.array[0, 0].tolist() == list(range(20))
