"""Folders as they come: patients in names, files that must not be lost, ids that are one, grids that differ."""

import csv
import json
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from test_importing import FEMUR, OBLIQUE, SHAPE, box, dicom_series, save, subject

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io.identity import identifying_words, names_patient
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.data import inspect
from tfmuscle.workflows.importing import import_folder, pair, preview
from tfmuscle.workflows.pairing import Layout

ERIKA = {"name": "Muster^Erika", "number": "PAT4711", "birth": "19570812"}


def test_a_zip_that_names_the_patient(tmp_path):
    dicom_series(tmp_path / "mr", **ERIKA)
    (tmp_path / "lab" / "Erika_links").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "lab" / "Erika_links" / "scan.zip", "w") as archive:
        for path in sorted((tmp_path / "mr").iterdir()):
            archive.write(path, path.name)
    assert [one.subject_id for one in pair(tmp_path / "lab", Layout()).pairs] == ["subject_001"]


def test_labels_that_name_the_patient(tmp_path):
    subject(tmp_path / "lab", "erika_links", tibia=False)
    dicom_series(tmp_path / "mr", **ERIKA)
    found = pair(tmp_path / "lab", Layout())
    assert [one.subject_id for one in found.pairs] == ["erika_links"]  # no file says who that is
    shutil.copy(sorted((tmp_path / "mr").iterdir())[0], tmp_path / "lab" / "erika_links" / "masks" / "a.dcm")
    mask = tmp_path / "lab" / "erika_links" / "masks" / "a.dcm"
    found = pair(tmp_path / "lab", Layout(scans=("{id}/T1.nii.gz",), masks=("{id}/masks/*",)))
    assert [one.subject_id for one in found.pairs] == ["subject_001"] and mask in found.pairs[0].labels


def test_a_patient_who_cannot_be_imported_stays_unnamed(tmp_path):
    for place in ("a", "b"):
        dicom_series(tmp_path / "lab" / "Muster_Erika" / place, **ERIKA)
    dicom_series(tmp_path / "lab" / "P2", name="Doe^Jane", number="X99", birth="19700101")
    for command in (["--dry-run"], [], ["--dry-run", "--scan", "{id}/*"]):
        out = str(tmp_path / "out")
        outcome = CliRunner().invoke(tfmuscle_group, ["import", str(tmp_path / "lab"), "-o", out, *command])
        assert outcome.exit_code == 1 and "Failed: subject_00" in outcome.output
        assert "muster" not in outcome.output.lower() and "erika" not in outcome.output.lower()


def test_a_preview_names_nobody(tmp_path):
    dicom_series(tmp_path / "lab" / "Muster_Erika" / "mr", **ERIKA)
    lines, failures = preview(tmp_path / "lab", Layout(), key=tmp_path / "key.csv")
    assert not failures and "subject_001/mr" in lines[1] and "erika" not in " ".join(lines).lower()
    assert "Muster_Erika" in (tmp_path / "key.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    ["M\u00fcller", "mu\u0308ller", "MULLER_knee", "1957-08-12", "12.08.1957", "08121957", "570812_a", "pat-4711"],
)
def test_names_are_recognised_however_they_are_spelt(name, tmp_path):
    dicom_series(tmp_path / "mr", name="M\u00fcller^Erika", number="PAT4711", birth="19570812")
    words = identifying_words(tmp_path / "mr")
    assert names_patient(name, words) and not names_patient("P2_left_1958", words)


def test_a_key_replaces_nothing_but_a_key(tmp_path):
    subject(tmp_path / "lab", 'P"1,x')
    table = tmp_path / "table.csv"
    table.write_text("subject,scan,masks\nP1,a,b\n")
    with pytest.raises(DataError, match="table.csv: is there and is no key of an import"):
        import_folder(tmp_path / "lab", tmp_path / "out", Layout(), key=table)
    assert table.read_text(encoding="utf-8").startswith("subject,scan,masks\n")
    for _ in range(2):
        import_folder(tmp_path / "lab", tmp_path / "out", Layout(), key=tmp_path / "key.csv")
    with (tmp_path / "key.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["subject", "scan"], ['P"1,x', str(tmp_path / "lab" / 'P"1,x' / "T1.nii.gz")]]
    assert (tmp_path / "key.csv").stat().st_mode & 0o077 == 0


def test_ids_that_are_one_file_on_many_disks(tmp_path):
    for name in ("Leg1", "leg1", "Leg2"):
        save(tmp_path / name / "T1.nii.gz", box(FEMUR))
    found = pair(tmp_path, Layout())
    assert [one.subject_id for one in found.pairs] == ["Leg2"] and set(found.failures) == {"Leg1", "leg1"}
    assert "Leg1 and leg1 are one name on many disks" in found.failures["Leg1"]


def test_a_subject_without_masks_beside_others(tmp_path):
    subject(tmp_path / "lab", "P1")
    subject(tmp_path / "lab", "P2", femur=False, tibia=False)
    result = import_folder(tmp_path / "lab", tmp_path / "out", Layout())
    assert not result.problems and not result.failures
    labelled = {one.subject_id: one.labels is not None for one in read_dataset(tmp_path / "out").subjects}
    assert labelled == {"P1": True, "P2": False} and inspect(tmp_path / "out")["problems"] == []
    assert json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["numTraining"] == 2


def test_only_what_lies_outside_is_called_outside(tmp_path):
    """Two masks on a grid of 2 mm over a scan of 1 mm: one wholly inside, one with a plane of four beyond the edge."""
    save(tmp_path / "lab" / "P1" / "T1.nii.gz", np.ones((12, 12, 12), np.int16), np.eye(4))
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    inside, beyond = np.zeros((8, 6, 6), np.uint8), np.zeros((8, 6, 6), np.uint8)
    inside[1:3, 1, 1], beyond[3:7, 3, 3] = 1, 1  # centres at 6, 8, 10 and 12 mm; the last voxel ends at 11.5
    for name, mask in (("one", inside), ("two", beyond)):
        save(tmp_path / "lab" / "P1" / "masks" / f"{name}.nii.gz", mask, coarse)
    notes = import_folder(tmp_path / "lab", tmp_path / "out", Layout()).notes["P1"]
    assert any(note.startswith("one: ") and "outside" not in note for note in notes)
    assert any(note.startswith("two: ") and note.endswith("25% of it lies outside the scan") for note in notes)


def test_one_image_is_no_dataset(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), OBLIQUE), tmp_path / "leg.nii.gz")
    with pytest.raises(DataError, match="is one image; give the dataset's folder"):
        inspect(tmp_path / "leg.nii.gz")
