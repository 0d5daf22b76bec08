"""phantom -> records -> fit -> predict -> evaluate, on grids as scanners write them; judged by nibabel and
SimpleITK."""

import datetime
import re

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.io import read_volume
from tfmuscle.workflows import demo as demo_workflow
from tfmuscle.workflows.demo import demo
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.predicting import predict


def oblique(affine, degrees=17.0):
    """The affine turned about the world's x axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def reorder(image, codes):
    return image.as_reoriented(nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def scan(phantom_dataset):
    """One phantom as int16, so that DICOM can hold it exactly."""
    image = nib.load(phantom_dataset / "imagesTr" / "bones_000_0000.nii.gz")
    array = np.asanyarray(image.dataobj).astype(np.float64)
    array = np.round(1000 * (array - array.min()) / np.ptp(array)).astype(np.int16)
    return nib.Nifti1Image(array, image.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "ASL"])
@pytest.mark.parametrize("turned", [False, True], ids=["straight", "oblique"])
def test_predictions_overlay_the_scan_in_nibabel_and_simpleitk(tiny_run, scan, tmp_path, codes, turned):
    image = reorder(scan, codes)
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), oblique(image.affine) if turned else image.affine)
    nib.save(image, tmp_path / "scan.nii.gz")
    predict(tiny_run, tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", mirror=False)
    labels = nib.load(tmp_path / "labels.nii.gz")
    assert labels.shape == image.shape and np.allclose(labels.affine, image.affine, atol=1e-4)
    one, two = sitk.ReadImage(tmp_path / "scan.nii.gz"), sitk.ReadImage(tmp_path / "labels.nii.gz")
    for corner in ((0, 0, 0), tuple(size - 1 for size in one.GetSize())):
        assert np.allclose(
            one.TransformIndexToPhysicalPoint(corner), two.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )
    # the same body part gets the same label whatever the storage order: compare in RAS
    nib.save(scan, tmp_path / "ras.nii.gz")
    if not turned:
        predict(tiny_run, tmp_path / "ras.nii.gz", tmp_path / "ras_labels.nii.gz", mirror=False)
        reference = reorder(nib.load(tmp_path / "ras_labels.nii.gz"), "RAS")
        mine = reorder(labels, "RAS")
        assert (np.asanyarray(mine.dataobj) == np.asanyarray(reference.dataobj)).mean() > 0.999


def test_one_slice_and_anisotropic_scans_come_back_on_their_grid(tiny_run, scan, tmp_path):
    array = np.asanyarray(scan.dataobj)
    thin = nib.Nifti1Image(array[:, :, array.shape[2] // 2 :][:, :, :1], scan.affine)
    thick = nib.Nifti1Image(array[:, :, ::4], scan.affine @ np.diag([1, 1, 4, 1]))
    for name, image in (("thin", thin), ("thick", thick)):
        nib.save(image, tmp_path / f"{name}.nii.gz")
        predict(tiny_run, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_labels.nii.gz", mirror=False)
        labels = nib.load(tmp_path / f"{name}_labels.nii.gz")
        assert labels.shape == image.shape and np.allclose(labels.affine, image.affine, atol=1e-4)


def write_dicom(folder, image):
    """Writes an LPS-ordered int16 NIfTI image as one file a slice, in shuffled order."""
    folder.mkdir()
    array, to_lps = np.asanyarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = to_lps @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    series, study = generate_uid(), generate_uid()
    for number, k in enumerate(np.random.default_rng(0).permutation(array.shape[2])):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.SeriesInstanceUID, slice_.StudyInstanceUID, slice_.Modality = series, study, "MR"
        slice_.ContentDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
        slice_.InstanceNumber = number + 1
        slice_.ImagePositionPatient = [f"{value:.9g}" for value in (affine @ [0, 0, k, 1])[:3]]
        slice_.ImageOrientationPatient = [
            f"{value:.12g}" for axis in (0, 1) for value in affine[:3, axis] / spacing[axis]
        ]
        slice_.PixelSpacing = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"]
        slice_.SliceThickness = f"{spacing[2]:.9g}"
        slice_.Rows, slice_.Columns = array.shape[1], array.shape[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<i2").tobytes()
        pydicom.dcmwrite(folder / f"IM{number:04d}", slice_, enforce_file_format=True)


def test_dicom_and_nifti_of_one_scan_give_the_same_labels(tiny_run, scan, tmp_path):
    image = reorder(scan, "LPS")
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), oblique(image.affine))
    nib.save(image, tmp_path / "scan.nii.gz")
    write_dicom(tmp_path / "series", image)
    predict(tiny_run, tmp_path / "series", tmp_path / "from_dicom.nii.gz")
    predict(tiny_run, tmp_path / "scan.nii.gz", tmp_path / "from_nifti.nii.gz")
    one, two = read_volume(tmp_path / "from_dicom.nii.gz"), read_volume(tmp_path / "from_nifti.nii.gz")
    two = two.reoriented(one.geometry.orientation)
    assert one.geometry.same_grid(two.geometry)
    # pixel spacing has nine digits in DICOM: a voxel on a boundary may fall either way
    assert (one.array != two.array).mean() < 1e-4
    assert len(np.unique(one.array)) > 1


def test_two_series_in_one_folder_are_refused_in_one_line(tiny_run, scan, tmp_path):
    write_dicom(tmp_path / "series", reorder(scan, "LPS"))
    write_dicom(tmp_path / "other", reorder(scan, "LPS"))
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / "series" / f"second_{path.name}")
    result = predict(tiny_run, tmp_path / "series", tmp_path / "out")
    (reason,) = result.failures.values()
    assert "series" in reason and "\n" not in reason and not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_dataset_evaluates_against_itself_as_perfect(phantom_dataset, tmp_path):
    result = evaluate(
        phantom_dataset / "labelsTr", phantom_dataset, tmp_path / "report", observer2=phantom_dataset / "labelsTr"
    )
    assert not result.failures
    summary = read_json(tmp_path / "report" / "summary.json")
    assert "1.0" in str(summary)
    assert (tmp_path / "report" / "report.html").exists() and len(
        list((tmp_path / "report" / "overlays").glob("*.png"))
    ) == 5


def test_the_demo_leaves_a_report_and_starts_anew_a_second_time(tmp_path, monkeypatch):
    said = []
    report = demo(tmp_path / "demo", subjects=6, epochs=1, say=said.append)
    page = report.read_text(encoding="utf-8")
    # training curves, box plot and two overlays, all inside the page
    assert page.count("data:image/png;base64") >= 4
    assert not re.search(r"(src|href)=.https?:", page)
    assert len(said) == 5

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_workflow, "fit", stop)
    before = (tmp_path / "demo" / "records" / "index.json").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "demo", subjects=6, epochs=1, say=said.append)
    assert len(said) == 8 and (tmp_path / "demo" / "records" / "index.json").stat().st_mtime_ns > before
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.json", "dataset", "records"}
    with pytest.raises(DataError, match="is no earlier demo, and would be overwritten"):
        demo(tmp_path)
