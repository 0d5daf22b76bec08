"""Labels as DICOM SEG through the command line; judged by highdicom's reader."""

import json

import highdicom
import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from dicom_files import OBLIQUE, write_series

from tfmuscle.cli import tfmuscle_group
from tfmuscle.io import read_volume


def run(*words):
    return CliRunner().invoke(tfmuscle_group, ["write-seg", *map(str, words)])


@pytest.fixture
def scan(tmp_path):
    write_series(tmp_path / "dicom", count=5, cosines=OBLIQUE)
    volume = read_volume(tmp_path / "dicom")
    ids = np.zeros(volume.array.shape, np.uint8)
    ids[1:4, 1:3, 1:4], ids[4:, :2, 2:] = 1, 2
    image = nib.Nifti1Image(ids, volume.geometry.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PIR"))
    nib.save(image.as_reoriented(turn), tmp_path / "leg.nii.gz")  # other axes than the series
    return tmp_path, ids


def test_labels_come_back_through_highdicom(scan):
    folder, ids = scan
    (folder / "leg.json").write_text(json.dumps({"labels": {"femur_left": 1, "tibia_left": 2}}))
    result = run("-i", folder / "leg.nii.gz", "-s", folder / "dicom", "-o", folder / "seg.dcm")
    assert result.exit_code == 0, result.output
    seg = highdicom.seg.segread(folder / "seg.dcm")
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["femur_left", "tibia_left"]
    for number in (1, 2):
        found = seg.get_volume(segment_numbers=[number], combine_segments=True).array
        assert found.astype(bool).sum() == (ids == number).sum()


def test_every_way_to_go_wrong_is_one_line(scan, tmp_path):
    folder, _ = scan
    labels, series = folder / "leg.nii.gz", folder / "dicom"
    result = run("-i", labels, "-s", series, "-o", folder / "seg.dcm")
    assert result.exit_code == 1 and "no names beside it" in result.output
    (folder / "leg.json").write_text(json.dumps({"labels": {"femur_left": 1}}))
    result = run("-i", labels, "-s", series, "-o", folder / "seg.dcm")
    assert result.exit_code == 1 and "leg.nii.gz" in result.output and not (folder / "seg.dcm").exists()
    (folder / "leg.json").write_text(json.dumps({"labels": {"femur_left": 1, "tibia_left": 2}}))
    result = run("-i", labels, "-s", series, "-o", folder)
    assert result.exit_code == 1 and "is a folder" in result.output
    result = run("-i", labels, "-s", folder / "none", "-o", folder / "seg.dcm")
    assert result.exit_code == 1 and result.output.count("\n") == 1
    source = sorted(series.iterdir())[0]
    before = source.read_bytes()
    for name in (source, labels, folder / "leg.json"):
        result = run("-i", labels, "-s", series, "-o", name, "--labels", folder / "leg.json")
        assert result.exit_code == 1 and "is an input and would be lost" in result.output
    assert source.read_bytes() == before
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 0.5, np.float32), np.eye(4)), folder / "grey.nii.gz")
    result = run("-i", folder / "grey.nii.gz", "-s", series, "-o", folder / "seg.dcm", "--labels", folder / "leg.json")
    assert result.exit_code == 1 and "labels must be whole numbers" in result.output
