"""Real DICOM of many makers, judged by the NIfTI that dcm2niix and dicom2nifti made of it, and by SimpleITK."""

import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import by_simpleitk, refusal

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume
from tfmuscle.io.dicom import list_series, read_dicom

OFFSET_MM = 1e-3  # converters write float32 affines; 1e-4 mm is what they reach


def compare(volume, array, affine):
    """Largest difference between voxels at the same world place, and how far centres are apart in mm."""
    to_index = np.linalg.inv(affine) @ volume.geometry.affine
    index = np.indices(volume.array.shape).reshape(3, -1).T @ to_index[:3, :3].T + to_index[:3, 3]
    nearest = np.round(index).astype(int)
    assert (nearest >= 0).all()
    assert (nearest < array.shape).all()
    assert volume.array.size == array.size
    values = array[tuple(nearest.T)].reshape(volume.array.shape)
    return np.abs(values - volume.array).max(), np.abs((index - nearest) @ affine[:3, :3].T).max()


DCM2NIIX = [
    ("dcm_qa_mosaic/In/ep2d_Asc_2", "dcm_qa_mosaic/Ref/2_ep2d_Asc.nii", 6),
    ("dcm_qa_mosaic/In/cmrr_Int_8", "dcm_qa_mosaic/Ref/8_cmrr_Int.nii", 6),
    ("dcm_qa_nih/In/20180918Si/mr_0003", "dcm_qa_nih/Ref/EPI_PE=AP_3.nii", 2),
    ("dcm_qa_nih/In/20180918Si/mr_0006", "dcm_qa_nih/Ref/EPI_PE=LR_6.nii", 2),
    ("dcm_qa_enh/In/Siemens/XA10", "dcm_qa_enh/Ref/Siemens_REST1_w_SMS_PF7-8_6.nii", 4),
    ("dcm_qa_nih/In/20180918GE/mr_0004", "dcm_qa_nih/Ref/DCM2NIIX_regression_test_4.nii", 10),
]


@pytest.mark.parametrize(("folder", "reference", "times"), DCM2NIIX)
def test_time_series_agree_with_dcm2niix(folder, reference, times, data_dir):
    path, image = data_dir / "dicom" / folder, nib.load(data_dir / "dicom" / reference)
    series = list_series(path)
    assert len(series) == times == image.shape[3]
    for time in (1, times):
        (item,) = [item for item in series if item.name.endswith(f"time{time}")]
        volume = read_dicom(path, series=item.name)
        difference, offset = compare(volume, image.get_fdata()[..., time - 1], image.affine)
        assert difference == 0
        assert offset < OFFSET_MM


SINGLE = [f"dcm_qa_ts/In/{n}.dcm dcm_qa_ts/Ref/{n}.nii" for n in range(1, 10)] + [
    "dcm_qa_12bit/In/12bitUnsigned.dcm dcm_qa_12bit/Ref/2.nii",
    "dcm_qa_12bit/In/12bitUnsigned_0x0F0F.dcm dcm_qa_12bit/Ref/3.nii",
    "dcm_qa_12bit/In/12bitSigned_0x0F0F.dcm dcm_qa_12bit/Ref/4.nii",
]


@pytest.mark.parametrize("pair", SINGLE)
def test_transfer_syntaxes_and_12_bits_agree_with_dcm2niix(pair, data_dir):
    path, reference = (data_dir / "dicom" / name for name in pair.split())
    image = nib.load(reference)
    difference, offset = compare(read_volume(path), image.get_fdata(), image.affine)
    assert difference == 0
    assert offset < OFFSET_MM


def test_philips_enhanced_field_map_agrees_with_dcm2niix_up_to_the_scale(data_dir):
    folder = data_dir / "dicom" / "dcm_qa_enh"
    reference = nib.load(folder / "Ref" / "Philips_WIP_B0_NS_801_e1.nii")
    volume = read_dicom(folder / "In" / "Philips", series="801-B0_NS-magnitude")
    # display value = stored * 1.27985...; dcm2niix: stored / 8.44864e-06 (private scale slope, in a float32 header)
    scaled = volume.with_array(volume.array / (1.27985347985347 * 8.448640073766e-06))
    difference, offset = compare(scaled, reference.get_fdata(), reference.affine)
    assert difference < 1e-5 * reference.get_fdata().max()
    assert offset < OFFSET_MM
    reference = nib.load(folder / "Ref" / "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii")
    volume = read_dicom(folder / "In" / "Philips", series="801-B0_NS-field-map")
    difference, offset = compare(volume, reference.get_fdata(), reference.affine)
    assert difference < 0.006  # dcm2niix's slope 0.24420166 against 0.24420024 in the file, times 4095
    assert offset < OFFSET_MM


DICOM2NIFTI = [
    "anatomical/001",
    "anatomical/001_implicit",
    "ge/anatomical/001",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "hitachi/anatomical/001",
    "philips/anatomical/001",
    "siemens/anatomical/001_implicit",
]
MULTI_FRAME = [
    "hyperfine/anatomical/001",
    "philips_enhanced/anatomical/001",
    "philips_enhanced/anatomical/001_implicit",
    "siemens_multiframe/anatomical/001",
]


@pytest.mark.parametrize("name", DICOM2NIFTI + MULTI_FRAME)
def test_series_of_many_makers_agree_with_dicom2nifti_and_simpleitk(name, data_dir):
    folder = data_dir / "dicom" / "dicom2nifti" / name
    volume = read_volume(folder)
    image = nib.load(f"{folder}_ground_truth.nii.gz")
    difference, offset = compare(volume, image.get_fdata().reshape(image.shape[:3]), image.affine)
    assert difference <= 1e-6 * max(1, volume.array.max())  # rescaled values are float32 on both sides
    assert offset < OFFSET_MM
    if name in DICOM2NIFTI:
        array, affine = by_simpleitk(folder)
        assert np.allclose(array, volume.array, rtol=1e-6, atol=1e-5)
        assert np.abs(affine - volume.geometry.affine).max() < OFFSET_MM


@pytest.mark.parametrize("name", ["MR_small_bigendian", "MR_small_jp2klossless", "J2K_pixelrep_mismatch", "693_J2KI"])
def test_single_files_agree_with_simpleitk(name, data_dir):
    path = data_dir / "dicom" / "pydicom" / "test_files" / f"{name}.dcm"
    assert (sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0) == read_volume(path).array).all()


def test_a_multi_frame_ct_agrees_with_its_single_frames(data_dir):
    folder = data_dir / "dicom" / "seg_dcmqi" / "data" / "segmentations" / "23x38x3"
    one, many = read_volume(folder / "multiframe"), read_volume(folder / "image")
    assert (one.array == many.array).all()
    assert one.geometry.same_grid(many.geometry, tolerance_mm=1e-6)


def test_time_points_come_in_the_order_of_the_scan(data_dir, tmp_path):
    root = data_dir / "dicom" / "dcm_qa_nih"
    for path in (root / "In" / "20180918GE" / "mr_0005").glob("*.dcm"):
        if int(pydicom.dcmread(path, specific_tags=["InstanceNumber"]).InstanceNumber) <= 15:
            shutil.copy(path, tmp_path)
    image = nib.load(root / "Ref" / "DCM2NIIX_regression_test_5.nii")
    assert compare(read_volume(tmp_path), image.get_fdata()[..., 0], image.affine)[0] == 0


def test_private_tags_renamed_by_an_archive_change_nothing(data_dir):
    folder = data_dir / "dicom" / "dcm_qa_agfa"
    names = [item.name for item in list_series(folder / "Siemens")]
    assert names == [item.name for item in list_series(folder / "Agfa")]
    assert len(names) == 4
    original, archived = (read_dicom(folder / maker, series=names[1]) for maker in ("Siemens", "Agfa"))
    assert (original.array == archived.array).all()
    assert original.geometry.same_grid(archived.geometry, tolerance_mm=0)


REFUSED = [
    ("dicom2nifti/failing/gantrytilting/001", "shifted sideways by 14.00° .tilted gantry"),
    ("dicom2nifti/failing/notavolume/001", "one slice imaged 4 times, no volume"),
    ("dicom2nifti/failing/sliceincrement/001", "slice 4 of 5 is missing"),
    ("dicom2nifti/failing/sliceincrement/002", "slice 4 of 5 is missing"),
    ("dicom2nifti/failing/sliceorientation/001", "2 series can be read; choose one by name, of 202-MR .*, 501-MR "),
    ("dicom2nifti/generic/rgb/001", "colour images"),
    ("rtutils/empty", "labels .contours., not an image"),
    ("seg_dcmqi/data/segmentations/liver.dcm", "labels .a segmentation., not an image"),
    ("pydicom/test_files/dicomdirtests/98892003/MR1", "a localiser; choose a stack of slices"),
    ("pydicom/test_files/MR_truncated.dcm", "bytes of pixels are promised, .* are there .cut off"),
    ("pydicom/test_files/rtdose.dcm", "radiation dose"),
    ("highdicom/data/test_files/sm_image.dcm", "a microscope slide"),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_what_is_no_stack_is_refused_with_its_reason(name, message, data_dir):
    refusal(data_dir / "dicom" / name, message)


def test_dicomdir_and_zip(data_dir):
    folder = data_dir / "dicom" / "pydicom" / "test_files" / "dicomdirtests"
    for name in ("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit"):
        assert read_volume(folder / name, series="5-SmartScore_Gated_0.5_sec").array.shape == (16, 16, 5)
    assert read_volume(data_dir / "dicom/seg_dcmqi/data/paramaps/pm-example-dcm.zip").array.shape == (256, 256, 20)


def test_every_odd_file_ends_in_a_list_or_a_reason(data_dir):
    """Files broken on purpose, of every modality and character set: no other exception, and every reason has advice."""
    root = data_dir / "dicom"
    paths = [path for name in ("pydicom", "highdicom", "dcm4che") for path in (root / name).rglob("*.dcm")]
    assert len(paths) > 100
    for path in paths:
        try:
            found = list_series(path)
        except DataError as error:
            assert "; " in str(error)
        else:
            assert all(item.is_usable or "; " in item.fitness for item in found)
