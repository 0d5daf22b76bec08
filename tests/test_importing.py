"""A lab's folder becomes a dataset: labels judged voxel by voxel against arrays made here, files by nibabel."""

import gzip
import json

import nibabel as nib
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import write_mesh
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Mesh
from tfmuscle.workflows.data import inspect
from tfmuscle.workflows.importing import import_folder
from tfmuscle.workflows.pairing import Layout

SHAPE = (12, 14, 8)
OBLIQUE = np.array([[0.8, 0.1, 0.0, -20.0], [-0.1, 0.8, 0.2, 5.0], [0.0, -0.2, 3.0, 40.0], [0, 0, 0, 1]])
FEMUR, TIBIA = (slice(2, 6), slice(3, 9), slice(1, 7)), (slice(5, 10), slice(4, 8), slice(2, 5))


def box(where, value=1):
    array = np.zeros(SHAPE, np.uint8)
    array[where] = value
    return array


def save(path, array, affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array.astype(np.int32) if array.dtype == np.int64 else array
    nib.save(nib.Nifti1Image(array, affine), path)


def turned(array, affine, codes):
    """The same voxels in another order of axes, by nibabel."""
    image = nib.Nifti1Image(array, affine)
    transform = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes)))
    image = image.as_reoriented(transform)
    return np.asarray(image.dataobj), image.affine


def subject(root, name, *, femur=True, tibia=True, codes=None):
    folder = root / name
    scan = np.random.default_rng(len(name)).integers(1, 900, SHAPE).astype(np.int16)
    save(folder / "T1.nii.gz", scan)
    for structure, where, wanted in (("femur_left", FEMUR, femur), ("tibia_left", TIBIA, tibia)):
        if wanted:
            array, affine = turned(box(where), OBLIQUE, codes) if codes else (box(where), OBLIQUE)
            save(folder / "masks" / f"{structure}.nii.gz", array, affine)
    return scan


def labels_of(out, name):
    return np.asarray(nib.load(out / "labelsTr" / f"{name}.nii.gz").dataobj)


def merged():
    """femur 1, tibia 2, and 0 where both claim a voxel: not 1 + 2 = 3, nor the later one."""
    return np.where(box(FEMUR) + box(TIBIA) == 1, box(FEMUR) + 2 * box(TIBIA), 0)


def test_masks_are_merged_whatever_their_axes(tmp_path):
    scan = subject(tmp_path / "lab", "P1")
    subject(tmp_path / "lab", "P2", codes="PIR")
    result = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    assert not result.failures and not result.problems
    for name in ("P1", "P2"):
        assert np.array_equal(labels_of(tmp_path / "out", name), merged())
        assert any("femur_left and tibia_left overlap in 12 voxels" in note for note in result.notes[name])
    image = nib.load(tmp_path / "out" / "imagesTr" / "P1_0000.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), scan) and np.allclose(image.affine, OBLIQUE, atol=1e-5)
    assert read_dataset(tmp_path / "out").label_map.structures == ("femur_left", "tibia_left")
    assert (tmp_path / "out" / "pictures" / "P1.png").stat().st_size > 5000
    assert inspect(tmp_path / "out")["problems"] == []


def test_a_structure_that_others_have(tmp_path):
    subject(tmp_path / "lab", "P1")
    subject(tmp_path / "lab", "P2", tibia=False)
    refused = import_folder(tmp_path / "lab", tmp_path / "refused", Layout())
    assert "tibia_left not drawn here" in refused.failures["P2"] and list(refused.notes) == ["P1"]
    assert not (tmp_path / "refused" / "imagesTr" / "P2_0000.nii.gz").exists()
    background = import_folder(tmp_path / "lab", tmp_path / "background", Layout(), missing="background")
    assert not background.failures and np.array_equal(labels_of(tmp_path / "background", "P2"), box(FEMUR))
    unknown = import_folder(tmp_path / "lab", tmp_path / "unknown", Layout(), missing="ignore")
    assert unknown.label_map.ignore == 3
    assert np.array_equal(labels_of(tmp_path / "unknown", "P2"), np.where(box(FEMUR), 1, 3))
    assert np.array_equal(labels_of(tmp_path / "unknown", "P1"), merged())


def test_another_tools_label_map_and_its_table(tmp_path):
    save(tmp_path / "lab" / "a.nii.gz", np.random.default_rng(0).integers(1, 9, SHAPE).astype(np.int16))
    save(tmp_path / "lab" / "a_seg.nii.gz", box(FEMUR, 7) + 2 * (box(FEMUR) == 0) * box(TIBIA))
    layout = Layout(scans=("{id}.nii.gz",), masks=("{id}_seg.nii.gz",))
    with pytest.raises(DataError, match="2 labels without names.*--labels"):
        import_folder(tmp_path / "lab", tmp_path / "out", layout)
    (tmp_path / "table.csv").write_text("id,name\n7,femur\n2,tibia\n5,fibula\n")
    result = import_folder(tmp_path / "lab", tmp_path / "out", layout, labels=tmp_path / "table.csv")
    assert list(np.unique(labels_of(tmp_path / "out", "a"))) == [0, 2, 7]
    assert result.label_map.names[5] == "fibula"  # in the table: its program looked for it and found none
    (tmp_path / "lab" / "a_seg.json").write_text(json.dumps({"7": "femur", "2": "tibia"}))
    beside = import_folder(tmp_path / "lab", tmp_path / "beside", layout)
    assert beside.label_map.names == {0: "background", 1: "femur", 2: "tibia"}


def test_grids_that_differ(tmp_path):
    subject(tmp_path / "lab", "fine")
    subject(tmp_path / "lab", "beside")
    coarse = OBLIQUE @ np.diag([2.0, 2.0, 1.0, 1.0])
    coarse[:3, 3] = (OBLIQUE @ [0.5, 0.5, 0, 1])[:3]
    save(tmp_path / "lab" / "fine" / "masks" / "femur_left.nii.gz", box(FEMUR)[::2, 1::2][:, :6], coarse)
    away = OBLIQUE.copy()
    away[:3, 3] += 500
    save(tmp_path / "lab" / "beside" / "masks" / "femur_left.nii.gz", box(FEMUR), away)
    result = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    assert "lies beside the scan" in result.failures["beside"]
    assert any(note.startswith("femur_left: on another grid") for note in result.notes["fine"])


def sphere(centre, radius):
    """An octahedron subdivided five times: 8192 outward triangles."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    corners = vertices[np.array(faces)]
    for _ in range(5):
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        ab, bc, ca = a + b, b + c, c + a
        corners = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
        corners /= np.linalg.norm(corners, axis=2, keepdims=True)
    points, index = np.unique(corners.reshape(-1, 3).round(9), axis=0, return_inverse=True)
    return Mesh(points * radius + centre, index.reshape(-1, 3))


def test_surfaces_become_labels(tmp_path):
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    save(tmp_path / "lab" / "P1" / "T1.nii.gz", np.arange(50 * 50 * 25, dtype=np.int32).reshape(50, 50, 25), affine)
    write_mesh(tmp_path / "lab" / "P1" / "femur.ply", sphere((-25, -25, 24), 15), space="lps")
    result = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    volume = labels_of(tmp_path / "out", "P1").sum() * 2.0
    assert not result.failures
    assert volume == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.02)  # 2 mm slices; a voxel layer would be 20 %


def dicom_series(folder, *, name, number, birth):
    folder.mkdir(parents=True)
    series = generate_uid()
    for index in range(4):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.PatientBirthDate = name, number, birth
        data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", series, 1
        data.StudyInstanceUID, data.FrameOfReferenceUID, data.InstanceNumber = series, series, index + 1
        data.SeriesDescription = f"leg of {name}"
        data.Rows, data.Columns, data.PixelSpacing, data.SliceThickness = 6, 5, [1, 1], 2
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * index]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelData = np.arange(30, dtype="<u2").tobytes()
        pydicom.dcmwrite(folder / f"{index}.dcm", data, enforce_file_format=True)


def test_who_the_patient_is_stays_behind(tmp_path):
    lab = tmp_path / "lab"
    dicom_series(lab / "Muster_Erika_19570812" / "mr", name="Muster^Erika", number="PAT4711", birth="19570812")
    dicom_series(lab / "P02" / "mr", name="Doe^Jane", number="X99", birth="19700101")
    (lab / "Muster_Erika_19570812" / "femur.ply").write_bytes(b"ply\nnot a surface")
    words = ("muster", "erika", "pat4711", "19570812", "jane", "x99", "19700101", "doe")
    outcome = CliRunner().invoke(tfmuscle_group, ["import", str(lab), "-o", str(tmp_path / "out")])
    assert outcome.exit_code == 1 and "Failed: subject_001" in outcome.output and "femur.ply" in outcome.output
    (lab / "Muster_Erika_19570812" / "femur.ply").unlink()
    key = tmp_path / "key.csv"
    outcome = CliRunner().invoke(
        tfmuscle_group, ["import", str(lab), "-o", str(tmp_path / "out"), "--key", str(key)], catch_exceptions=False
    )
    assert outcome.exit_code == 0, outcome.output
    assert "Muster" in key.read_text(encoding="utf-8") and key.stat().st_mode & 0o077 == 0
    told = outcome.output.lower()
    for path in sorted((tmp_path / "out").rglob("*")):
        told += path.relative_to(tmp_path).as_posix().lower()
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            told += content.decode("latin-1").lower() if path.suffix != ".png" else ""
    assert not [word for word in words if word in told]
    assert sorted(s.subject_id for s in read_dataset(tmp_path / "out").subjects) == ["P02", "subject_001"]


def test_a_table_must_not_call_a_subject_after_the_patient(tmp_path):
    dicom_series(tmp_path / "lab" / "a", name="Muster^Erika", number="PAT4711", birth="19570812")
    (tmp_path / "table.csv").write_text("subject,scan\npat4711_left,a\n")
    with pytest.raises(DataError, match="row 1 is called after the patient"):
        import_folder(tmp_path / "lab", tmp_path / "out", Layout(table=tmp_path / "table.csv"))


def test_a_rerun_keeps_what_is_done(tmp_path):
    for name in ("P1", "P2"):
        subject(tmp_path / "lab", name)
    (tmp_path / "lab" / "P3").mkdir()
    (tmp_path / "lab" / "P3" / "T1.nii.gz").write_bytes(b"no image")
    first = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    assert list(first.failures) == ["P3"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    save(tmp_path / "lab" / "P2" / "masks" / "tibia_left.nii.gz", box(TIBIA) * (box(FEMUR) == 0))
    second = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    changed = {path.name for path in times if path.stat().st_mtime_ns != times[path]}
    assert changed == {"P2.nii.gz", "P2_0000.nii.gz"} and list(second.failures) == ["P3"]
    assert np.array_equal(labels_of(tmp_path / "out", "P2"), np.where(box(FEMUR), 1, 2 * box(TIBIA)))
    with pytest.raises(DataError, match="is not empty and holds no import"):
        import_folder(tmp_path / "lab", tmp_path / "lab", Layout())


def test_masks_that_are_none(tmp_path):
    subject(tmp_path / "lab", "P1")
    save(tmp_path / "lab" / "P1" / "masks" / "femur_left.nii.gz", box(FEMUR) * np.float32(0.4))
    with pytest.raises(DataError, match="labels must be whole numbers"):
        import_folder(tmp_path / "lab", tmp_path / "out", Layout())


def test_dry_run_shows_and_writes_nothing(tmp_path):
    subject(tmp_path / "lab", "P1")
    result = CliRunner().invoke(
        tfmuscle_group, ["import", str(tmp_path / "lab"), "-o", str(tmp_path / "out"), "--dry-run"]
    )
    assert result.exit_code == 0 and "P1: 1 scan" in result.output and "femur_left.nii.gz" in result.output
    assert not (tmp_path / "out").exists()


def test_real_label_map_of_another_tool(data_dir, tmp_path):
    lab = tmp_path / "lab"
    for name, scan, labels in (("ct", "example_ct_sm", "labels_model_output"),):
        (lab / name / "segmentations").mkdir(parents=True)
        (lab / name / "scan.nii.gz").symlink_to(data_dir / "pelvis_ct" / f"{scan}.nii.gz")
        (lab / name / "segmentations" / "all.nii.gz").symlink_to(data_dir / "pelvis_ct" / f"{labels}.nii.gz")
    result = import_folder(lab, tmp_path / "out", Layout())
    assert not result.failures and len(result.label_map.structures) == 41
    before = nib.load(data_dir / "pelvis_ct" / "labels_model_output.nii.gz")
    after = nib.load(tmp_path / "out" / "labelsTr" / "ct.nii.gz")
    names = {name: key for key, name in result.label_map.names.items()}
    assert np.allclose(before.affine, after.affine, atol=1e-4)
    assert np.array_equal(np.asarray(before.dataobj) == 2, np.asarray(after.dataobj) == names["kidney_right"])
