"""Enhanced multi-frame objects and Siemens mosaics, judged by hand, by classic files of the same content, by nibabel's
reader of Siemens headers and by highdicom."""

import warnings

import highdicom
import numpy as np
import pytest
from dicom_files import (
    AXIAL,
    CORONAL,
    OBLIQUE,
    csa_header,
    frame_groups,
    normal,
    refusal,
    sequence,
    stack_of,
    write_enhanced,
    write_mosaic,
    write_series,
)

from tfmuscle.io import read_volume
from tfmuscle.io.dicom import list_series
from tfmuscle.io.dicom.mosaic import csa_values


@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, OBLIQUE])
def test_an_enhanced_object_reads_as_the_classic_series_of_the_same_slices(cosines, tmp_path):
    write_series(tmp_path / "classic", cosines=cosines)
    expected = read_volume(tmp_path / "classic")
    order = [3, 0, 4, 1, 2]  # frames may come in any order
    groups = [frame_groups(k, cosines=cosines) for k in order]
    shared = frame_groups(0, cosines=cosines, shared=True)
    write_enhanced(tmp_path / "e.dcm", stack_of(5)[order], groups, shared=shared)
    volume = read_volume(tmp_path / "e.dcm")
    assert volume.array.dtype == np.int16
    assert (volume.array == expected.array).all()
    assert np.abs(volume.geometry.affine - expected.geometry.affine).max() < 1e-9


def test_an_enhanced_object_agrees_with_highdicom(tmp_path):
    groups = [frame_groups(k, cosines=OBLIQUE) for k in range(5)]
    write_enhanced(tmp_path / "e.dcm", stack_of(5), groups, shared=frame_groups(0, cosines=OBLIQUE, shared=True))
    judge = highdicom.imread(tmp_path / "e.dcm").get_volume(apply_real_world_transform=False)
    volume = read_volume(tmp_path / "e.dcm")
    to_judge = np.linalg.inv(judge.affine) @ np.diag([-1, -1, 1, 1]) @ volume.geometry.affine
    index = np.indices(volume.array.shape).reshape(3, -1).T @ to_judge[:3, :3].T + to_judge[:3, 3]
    assert np.abs(index - np.rint(index)).max() < 1e-6
    assert (judge.array[tuple(np.rint(index).astype(int).T)] == volume.array.reshape(-1)).all()


def test_contrasts_and_scales_of_frames(tmp_path):
    pixels = np.concatenate([stack_of(4), stack_of(4), stack_of(4)])
    groups = []
    for number, (kind, slope) in enumerate([("W", 2.0), ("F", 0.5), ("FAT_FRACTION", 1.0)]):
        for k in range(4):
            group = frame_groups(k)
            group.MRImageFrameTypeSequence = sequence(FrameType=["DERIVED", "PRIMARY", "DIXON", kind])
            group.PixelValueTransformationSequence = sequence(RescaleSlope=slope, RescaleIntercept=-10 * number)
            groups.append(group)
    write_enhanced(tmp_path / "e.dcm", pixels, groups, SeriesNumber=7, SeriesDescription="dixon")
    assert [item.name for item in list_series(tmp_path / "e.dcm")] == [
        "7-dixon-water",
        "7-dixon-fat",
        "7-dixon-fat-fraction",
    ]
    stack = stack_of(4).transpose(2, 1, 0)
    assert (read_volume(tmp_path / "e.dcm", series="7-dixon-water").array == stack * 2.0).all()
    assert (read_volume(tmp_path / "e.dcm", series="7-dixon-fat").array == stack * 0.5 - 10).all()
    assert (read_volume(tmp_path / "e.dcm", series="7-dixon-fat-fraction").array == stack - 20).all()


def test_time_points_and_stacks_of_frames(tmp_path):
    groups = [frame_groups(k, TemporalPositionIndex=t) for t in (1, 2) for k in range(3)]
    write_enhanced(tmp_path / "t.dcm", np.concatenate([stack_of(3), stack_of(3, plus=1000)]), groups)
    assert [item.name for item in list_series(tmp_path / "t.dcm")] == ["MR-time1", "MR-time2"]
    assert read_volume(tmp_path / "t.dcm", series="MR-time2").array[0, 0].tolist() == [1000, 1100, 1200]
    groups = [frame_groups(k) for k in range(3)] + [frame_groups(k + 40) for k in range(3)]
    for group in groups[3:]:
        group.FrameContentSequence[0].StackID = "2"
    write_enhanced(tmp_path / "s.dcm", np.concatenate([stack_of(3), stack_of(3)]), groups)
    assert [item.name for item in list_series(tmp_path / "s.dcm")] == ["MR-stack1", "MR-stack2"]


def test_philips_private_scale_is_noted_not_applied(tmp_path):
    groups = []
    for k in range(3):
        group = frame_groups(k)
        group.PixelValueTransformationSequence = sequence(RescaleSlope=2.0, RescaleIntercept=0)
        hidden = sequence(ImagePositionPatient=[999.0] * 3, PixelSpacing=[9.0, 9.0])  # a copy, in other coordinates
        hidden[0].private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.25)
        group.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", hidden)
        groups.append(group)
    write_enhanced(tmp_path / "e.dcm", stack_of(3), groups)
    (item,) = list_series(tmp_path / "e.dcm")
    assert item.notes == ("Philips: values as displayed; divided by 0.5 they compare between series",)
    volume = read_volume(tmp_path / "e.dcm")
    assert (volume.array == 2.0 * stack_of(3).transpose(2, 1, 0)).all()
    assert volume.geometry.affine[2, 3] == -400
    assert volume.spacing[:2] == (0.5, 0.75)


def test_enhanced_objects_that_promise_too_much(tmp_path):
    write_enhanced(tmp_path / "e.dcm", stack_of(3), [frame_groups(k) for k in range(2)])
    refusal(tmp_path / "e.dcm", "3 images are promised and 2 described")
    write_enhanced(tmp_path / "e.dcm", stack_of(3), [frame_groups(k) for k in range(3)], NumberOfFrames=100_000_000)
    refusal(tmp_path / "e.dcm", r"4,800,000,000 bytes of pixels are promised, 15\d are there")
    groups = [frame_groups(k) for k in range(3)]
    del groups[1].PlanePositionSequence
    write_enhanced(tmp_path / "e.dcm", stack_of(3), groups)
    refusal(tmp_path / "e.dcm", "no usable ImagePositionPatient in 1 of 3 images")


@pytest.mark.parametrize("direction", [1, -1])  # numbered along the normal, or against it
@pytest.mark.parametrize("cosines", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("count", [3, 4, 5])  # 2 x 2 tiles with one to spare, full, 3 x 3
def test_a_mosaic_is_unfolded(count, cosines, direction, tmp_path):
    write_mosaic(tmp_path / "m.dcm", stack_of(count), cosines=cosines, direction=direction)
    volume = read_volume(tmp_path / "m.dcm")
    assert volume.array.shape == (6, 4, count)
    for k in range(count):
        first = np.array([-20.25, 31.5, -400.0]) + 3.0 * k * direction * normal(cosines)
        i, j, depth = np.rint(volume.geometry.index(first * (-1, -1, 1))).astype(int)
        assert np.abs(volume.geometry.world((i, j, depth)) - first * (-1, -1, 1)).max() < 1e-6
        assert (i, j) == (0, 0)
        assert (volume.array[:, :, depth] == stack_of(count)[k].T).all()


def test_mosaics_over_time(tmp_path):
    for t in range(3):
        write_mosaic(tmp_path / f"{t}.dcm", stack_of(4, plus=1000 * t), AcquisitionNumber=t + 1, SeriesNumber=2)
    assert [item.name for item in list_series(tmp_path)] == ["2-MR-time1", "2-MR-time2", "2-MR-time3"]
    assert read_volume(tmp_path, series="2-MR-time3").array[0, 0].tolist() == [2000, 2100, 2200, 2300]


def test_mosaics_that_cannot_be_unfolded_say_why(tmp_path):
    write_mosaic(tmp_path / "m.dcm", stack_of(4), csa=False)
    refusal(tmp_path / "m.dcm", "mosaic without the maker's private tags on its slices; export the series without")
    write_mosaic(tmp_path / "m.dcm", stack_of(4), direction=3)
    refusal(tmp_path / "m.dcm", "mosaic with broken private tags")
    write_mosaic(tmp_path / "m.dcm", stack_of(4), Rows=7)
    refusal(tmp_path / "m.dcm", "a mosaic of 4 slices does not fit 12x7 pixels")


def test_the_siemens_header_reads_as_nibabel_reads_it():
    content = csa_header(NumberOfImagesInMosaic=[36], SliceNormalVector=[0.0, 0.123601, 0.992332], Other=[])
    with warnings.catch_warnings(action="ignore"):  # nibabel calls its DICOM support experimental on import
        from nibabel.nicom import csareader
    judge = csareader.read(content)["tags"]
    found = csa_values(content, ("NumberOfImagesInMosaic", "SliceNormalVector"))
    for name, values in found.items():
        assert [float(value) for value in values] == [float(value) for value in judge[name]["items"]]
    for length in range(0, len(content), 7):
        with pytest.raises(Exception):  # noqa: B017, PT011 - cut off: any error, but no endless loop
            csa_values(content[:length], ())
