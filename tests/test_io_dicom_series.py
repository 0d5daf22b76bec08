"""What is in a folder: stacks told apart, named, judged and chosen, in folders, DICOMDIR and zip."""

import json
import shutil
import zipfile

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from dicom_files import AXIAL, CORONAL, SAGITTAL, refusal, slice_header, write_series, write_slice
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.sequence import Sequence
from pydicom.uid import RTStructureSetStorage

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import is_dicom_folder, read_volume
from tfmuscle.io.dicom import list_series, read_dicom

DIXON = {"W": "water", "F": "fat", "IP": "in-phase", "OP": "opposed-phase"}


def names_of(path):
    return [item.name for item in list_series(path)]


def test_dixon_contrasts_of_one_series_are_chosen_by_name(tmp_path):
    expected = {}
    for k, (code, name) in enumerate(DIXON.items()):
        tags = {"ImageType": ["DERIVED", "PRIMARY", code, code], "SeriesNumber": 7, "SeriesDescription": "mDIXON thigh"}
        expected[name] = write_series(tmp_path / "s", names=code + "{}.dcm", plus=1000 * k, **tags)
    found = list_series(tmp_path / "s")
    assert sorted(item.name for item in found) == sorted(f"7-mDIXON_thigh-{name}" for name in expected)
    for item in found:
        name = item.name.removeprefix("7-mDIXON_thigh-")
        assert (item.number, item.modality, item.shape, item.orientation) == (7, "MR", (6, 4, 5), "LPS")
        assert item.spacing == (0.5, 0.75, 2.5)
        assert item.contrast == name
        assert (item.num_files, item.num_images, item.fitness, item.kind) == (5, 5, "usable", "image")
        assert (read_dicom(tmp_path / "s", series=item.name.upper()).array == expected[name]).all()
    message = refusal(tmp_path / "s", "4 series can be read; choose one by name, of ")
    assert "7-mDIXON_thigh-water (6x4x5)" in message
    refusal(tmp_path / "s", "no one series is called '7'; choose one by name", series="7")
    refusal(tmp_path / "s", "no one series is called 'T2'; choose one by name", series="T2")


def test_echoes_inversions_and_b_values_are_told_apart(tmp_path):
    for k, time in enumerate([4.92, 2.46, 7.38]):
        write_series(tmp_path / "e", names=f"{k}-{{}}.dcm", plus=1000 * k, EchoTime=time, SeriesNumber=3)
    assert names_of(tmp_path / "e") == ["3-MR-echo2", "3-MR-echo1", "3-MR-echo3"]  # numbered by their times
    assert read_volume(tmp_path / "e", series="3-MR-echo1").array[0, 0, 0] == 1000
    for k, time in enumerate([150, 2200]):
        write_series(tmp_path / "i", names=f"{k}-{{}}.dcm", InversionTime=time, SeriesNumber=4)
    assert sorted(names_of(tmp_path / "i")) == ["4-MR-ti150", "4-MR-ti2200"]
    for k, value in enumerate([0.0, 800.0]):
        write_series(tmp_path / "b", names=f"{k}-{{}}.dcm", DiffusionBValue=value, SeriesNumber=5)
    assert sorted(names_of(tmp_path / "b")) == ["5-MR-b0", "5-MR-b800"]


def test_two_properties_at_once(tmp_path):
    for kind in "MP":
        for echo in (2.0, 4.0):
            tags = {"ImageType": ["ORIGINAL", "PRIMARY", kind], "EchoTime": echo, "SeriesNumber": 1}
            write_series(tmp_path / "s", names=f"{kind}{echo}-{{}}.dcm", **tags)
    expected = {f"1-MR-{kind}-echo{n}" for kind in ("magnitude", "phase") for n in (1, 2)}
    assert set(names_of(tmp_path / "s")) == expected


def test_time_points_are_numbered_by_whatever_orders_them(tmp_path):
    for time in range(3):
        tags = {"SeriesNumber": 2, "TriggerTime": 7.0 * time}
        write_series(tmp_path / "a", names=f"{time}-{{}}.dcm", plus=1000 * time, first=1 + 5 * time, **tags)
        write_series(tmp_path / "b", names=f"{2 - time}-{{}}.dcm", plus=1000 * time, first=1 + 5 * time, SeriesNumber=2)
    for folder in ("a", "b"):  # b: nothing but the instance number
        assert sorted(names_of(tmp_path / folder)) == [f"2-MR-time{n}" for n in (1, 2, 3)]
        for n in (1, 2, 3):
            assert read_volume(tmp_path / folder, series=f"2-MR-time{n}").array[0, 0, 0] == 1000 * (n - 1)


def test_times_of_slices_do_not_number_time_points(tmp_path):
    for time in range(2):
        folder = tmp_path / f"{time}"
        write_series(folder, plus=1000 * time, first=1 + 5 * time, SeriesNumber=2)
        for k, path in enumerate(sorted(folder.iterdir())):  # every slice of every time has a trigger time of its own
            dataset = pydicom.dcmread(path)
            dataset.TriggerTime = 100.0 * time + 7 * k
            dataset.save_as(path)
    assert sorted(names_of(tmp_path)) == ["2-MR-time1", "2-MR-time2"]
    assert read_volume(tmp_path, series="2-MR-time2").array[0, 0].tolist() == [1000, 1100, 1200, 1300, 1400]


def test_properties_that_vary_from_slice_to_slice_split_nothing(tmp_path):
    folder = tmp_path / "s"
    expected = write_series(folder)
    for k, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.TriggerTime, dataset.AcquisitionNumber, dataset.EchoTime = 10.0 * k, k, 2.0 + k % 2
        dataset.AcquisitionTime, dataset.FlipAngle = f"12000{k}", 5 + k
        dataset.save_as(path)
    assert (read_volume(folder).array == expected).all()


def test_a_localiser_is_told_apart_and_does_not_block(tmp_path):
    expected = write_series(tmp_path / "s" / "t1", SeriesNumber=5, SeriesDescription="t1_tse tra")
    for k, cosines in enumerate([AXIAL, CORONAL, SAGITTAL]):
        tags = {"series": "1.2.4", "SeriesNumber": 1}
        write_series(tmp_path / "s" / "loc", names=f"{k}-{{}}", count=3, gap=40, cosines=cosines, **tags)
    tags = {"series": "1.2.5", "SeriesNumber": 2, "SeriesDescription": "Survey_32ch_HeadCoil"}
    write_series(tmp_path / "s" / "survey", names="{}", count=3, **tags)
    assert (read_volume(tmp_path / "s").array == expected).all()
    found = {item.name: item for item in list_series(tmp_path / "s")}
    assert list(found)[-1] == "5-t1_tse_tra"
    planes = [item for item in found.values() if item.number == 1]
    assert {item.name for item in planes} == {"1-MR-axial", "1-MR-coronal", "1-MR-sagittal"}
    assert all(item.kind == "localiser" and "few slices in 3 planes" in item.fitness for item in planes)
    assert found["2-Survey_32ch_HeadCoil"].fitness == "a localiser; choose a stack of slices"
    assert read_volume(tmp_path / "s", series="1-MR-coronal").array.shape == (6, 4, 3)  # by name if one insists
    refusal(tmp_path / "s" / "loc", "few slices in 3 planes")


def test_a_broken_series_beside_a_good_one_is_not_passed_over(tmp_path):
    write_series(tmp_path / "s", SeriesNumber=5)
    write_series(tmp_path / "s", names="b{}.dcm", series="1.2.4", count=6, SeriesNumber=6)
    (tmp_path / "s" / "b2.dcm").unlink()
    message = refusal(tmp_path / "s", "1 series can be read, not 6-MR .slice 3 of 6 is missing")
    assert "choose one by name, of 5-MR (6x4x5)" in message
    assert read_volume(tmp_path / "s", series="5").array.shape == (6, 4, 5)
    refusal(tmp_path / "s", "6-MR: slice 3 of 6 is missing", series="6-MR")


def test_two_series_are_listed_without_naming_the_patient(tmp_path):
    write_series(tmp_path / "s", names="a{}.dcm", SeriesDescription="t1_tse axial", SeriesNumber=1)
    write_series(tmp_path / "s", names="b{}.dcm", series="1.2.4", SeriesDescription="Zebulon_Quux 2", SeriesNumber=2)
    write_series(tmp_path / "s", names="c{}.dcm", series="1.2.5", SeriesDescription="pat4711x", SeriesNumber=3)
    write_series(tmp_path / "s", names="d{}.dcm", series="1.2.6", SeriesDescription="")
    refusal(tmp_path / "s", "4 series can be read; choose one by name, of 1-t1_tse_axial .*, 2-MR .*, 3-MR .*, MR ")
    found = list_series(tmp_path / "s")
    assert [item.description for item in found] == ["t1_tse axial", "description withheld", "description withheld", ""]
    text = json.dumps([item.to_dict() for item in found])
    assert not any(secret in text.lower() for secret in ("quux", "zebulon", "4711"))


def test_names_are_unique(tmp_path):
    for k in range(3):
        write_series(tmp_path / "s", names=f"{k}-{{}}", series=f"1.2.{k}", SeriesNumber=4, SeriesDescription="T1 / w")
    assert names_of(tmp_path / "s") == ["4-T1_w", "4-T1_w-2", "4-T1_w-3"]


def test_missing_slices_are_counted(tmp_path):
    write_series(tmp_path / "s", count=32)
    (tmp_path / "s" / "IM0013.dcm").unlink()
    refusal(tmp_path / "s", "slice 14 of 32 is missing .counted in order of place.; export the whole series again")
    (tmp_path / "s" / "IM0020.dcm").unlink()
    (tmp_path / "s" / "IM0021.dcm").unlink()
    refusal(tmp_path / "s", "slices 14, 21, 22 of 32 are missing")
    for k in range(2, 31):
        (tmp_path / "s" / f"IM{k:04d}.dcm").unlink(missing_ok=True)
    refusal(tmp_path / "s", "only 3 of 32 slices are there")
    uneven = tmp_path / "uneven"
    uneven.mkdir()
    for k, z in enumerate([0, 2.5, 5.2, 7.5]):
        write_slice(uneven / f"{k}.dcm", np.ones((2, 2), np.int16), position=(0, 0, z))
    refusal(uneven, "slices are 2.300 to 2.700 mm apart; an evenly spaced stack is needed")


def test_duplicates(tmp_path):
    expected = write_series(tmp_path / "s" / "a")
    shutil.copytree(tmp_path / "s" / "a", tmp_path / "s" / "b")  # the same export twice: byte by byte
    (item,) = list_series(tmp_path / "s")
    assert item.notes == ("5 identical copies of images left out",)
    assert (read_volume(tmp_path / "s").array == expected).all()
    write_series(tmp_path / "twice", names="a{}.dcm")
    write_series(tmp_path / "twice", names="b{}.dcm", plus=1)  # the same places and numbers, other values
    refusal(tmp_path / "twice", r"10 images at 5 places and nothing that tells them apart \(duplicates\?\); keep one")
    altered = tmp_path / "s" / "b" / "IM0002.dcm"
    altered.write_bytes(altered.read_bytes()[:-2] + b"\7\7")
    refusal(tmp_path / "s", "6 images at 5 places")


def test_one_slice_watched_over_time_is_no_volume(tmp_path):
    for k in range(4):
        write_series(tmp_path / "s", names=f"{k}-{{}}", count=1, first=k, AcquisitionNumber=k)
    refusal(tmp_path / "s", "one slice imaged 4 times, no volume; choose a stack of slices")


def test_a_tilted_gantry_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(4):  # atan(0.5 / 2) = 14.04 degrees
        write_slice(tmp_path / "s" / f"{k}.dcm", np.ones((2, 2), np.int16), position=(0, 0.5 * k, 2 * k))
    refusal(tmp_path / "s", "shifted sideways by 14.04° .tilted gantry.; convert the series with dcm2niix")


def test_stations_side_by_side_are_stacks_of_their_own(tmp_path):
    for block, z in enumerate([0.0, -300.0]):  # two coronal stations of one leg
        for k in range(3):
            position = np.array([0.0, 3.0 * k, z])
            pixels = np.full((4, 6), 10 * block + k, np.int16)
            (tmp_path / "s").mkdir(exist_ok=True)
            write_slice(tmp_path / "s" / f"{block}{k}.dcm", pixels, position=position, cosines=CORONAL, SeriesNumber=1)
    assert names_of(tmp_path / "s") == ["1-MR-block1", "1-MR-block2"]
    volume = read_volume(tmp_path / "s", series="1-MR-block2")
    assert volume.array[0, 0].tolist() == [10, 11, 12]  # along the normal (1, 0, 0) x (0, 0, -1) = (0, 1, 0)
    assert volume.geometry.affine[:3, 3].tolist() == [0, 0, -300]


def test_what_is_no_stack_of_grey_slices_says_what_it_is(tmp_path):
    pixels = np.ones((4, 6), np.int16)
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_slice(tmp_path / "rgb.dcm", np.ones((4, 6, 3), np.uint8), position=(0, 0, 0), **colour)
    refusal(tmp_path / "rgb.dcm", "colour images; grey values are needed")
    write_slice(tmp_path / "palette.dcm", pixels, position=(0, 0, 0), PhotometricInterpretation="PALETTE COLOR")
    refusal(tmp_path / "palette.dcm", "colour images")
    table = Dataset()
    table.LUTExplanation = "curve"
    write_slice(tmp_path / "table.dcm", pixels, position=(0, 0, 0), ModalityLUTSequence=Sequence([table]))
    refusal(tmp_path / "table.dcm", "look-up table, which is not supported")
    no_place = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    write_slice(tmp_path / "photo.dcm", pixels, position=(0, 0, 0), **no_place)
    refusal(tmp_path / "photo.dcm", "no place in the patient .a projection, a photograph, a screenshot")
    write_slice(tmp_path / "film.dcm", np.ones((8, 6), np.int16), position=(0, 0, 0), NumberOfFrames=2, Rows=4)
    refusal(tmp_path / "film.dcm", "2 images in one file without their places")
    for modality, words in {"SEG": "segmentation", "RTSTRUCT": "contours", "RTDOSE": "radiation dose"}.items():
        write_slice(tmp_path / "m.dcm", pixels, position=(0, 0, 0), Modality=modality)
        refusal(tmp_path / "m.dcm", words)
    report = slice_header(tmp_path / "sr.dcm", storage="1.2.840.10008.5.1.4.1.1.88.67")
    report.Modality = "SR"
    report.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    refusal(tmp_path / "sr.dcm", "a dose report, not an image")
    empty = slice_header(tmp_path / "rt.dcm", storage=RTStructureSetStorage)
    empty.save_as(tmp_path / "rt.dcm", enforce_file_format=True)
    refusal(tmp_path / "rt.dcm", "no pixels in it .RT Structure Set Storage.")


def test_images_of_different_size_and_pixel_size_are_stacks_of_their_own(tmp_path):
    write_slice(tmp_path / "a.dcm", np.ones((4, 6), np.int16), position=(0, 0, 0))
    write_slice(tmp_path / "b.dcm", np.ones((5, 6), np.int16), position=(0, 0, 3))
    write_slice(tmp_path / "c.dcm", np.ones((4, 6), np.int16), position=(0, 0, 3), PixelSpacing=[0.75, 0.6])
    assert names_of(tmp_path) == ["MR-6x4-pixel1", "MR-6x4-pixel2", "MR-6x5"]


def test_notes(tmp_path):
    write_series(tmp_path / "s", PhotometricInterpretation="MONOCHROME1", LossyImageCompression="01")
    assert [note.split(":")[0] for note in list_series(tmp_path / "s")[0].notes] == [
        "MONOCHROME1",
        "compressed with loss",
    ]
    assert read_volume(tmp_path / "s").array[5, 3, 2] == 235  # as stored


def test_nested_folders_dicomdir_and_zip_give_the_same(tmp_path):
    expected = write_series(tmp_path / "study" / "1" / "2", names="IM{:04d}")
    files = FileSet()
    for path in (tmp_path / "study").rglob("IM*"):
        dataset = pydicom.dcmread(path)
        dataset.SeriesNumber, dataset.StudyID, dataset.StudyDate, dataset.StudyTime = 1, "1", "20200101", "120000"
        files.add(dataset)
    files.write(tmp_path / "disc")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "disc").rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
        archive.writestr("README.txt", "hello")
        archive.writestr("__MACOSX/._IM0001.dcm", b"\0" * 200)
    before = set(tmp_path.rglob("*"))
    for place in ("study", "disc", "disc/DICOMDIR", "scan.zip"):
        assert (read_volume(tmp_path / place).array == expected).all(), place
    assert set(tmp_path.rglob("*")) == before
    assert not is_dicom_folder(tmp_path / "study")
    next(path for path in sorted((tmp_path / "disc").rglob("*")) if path.is_file() and path.name != "DICOMDIR").unlink()
    assert "1 of 5 files that the DICOMDIR names are missing" in list_series(tmp_path / "disc" / "DICOMDIR")[-1].fitness


def inspect(*words):
    return CliRunner().invoke(tfmuscle_group, ["inspect", *map(str, words)], catch_exceptions=False)


def test_inspect_lists_the_series_of_a_folder(tmp_path):
    write_series(tmp_path / "s" / "t1", SeriesNumber=5, SeriesDescription="t1", EchoTime=10.0, RepetitionTime=600.0)
    write_series(tmp_path / "s" / "loc", names="{}", count=3, series="9", SeriesNumber=1, SeriesDescription="localizer")
    result = inspect(tmp_path / "s")
    assert result.exit_code == 0
    assert result.output.splitlines()[2].split("  ")[0] == "5-t1"
    assert "TE 10 ms, TR 600 ms" in result.output and "6x4x5" in result.output and "0.5x0.75x2.5" in result.output
    found = json.loads(inspect(tmp_path / "s", "--json").output)
    assert [item["name"] for item in found["series"]] == ["1-localizer", "5-t1"]
    assert found["problems"] == []
    (tmp_path / "s" / "t1" / "IM0004.dcm").write_bytes(b"")
    result = inspect(tmp_path / "s", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["problems"][0].startswith("t1/IM0004.dcm: called a DICOM file but it is none")
    assert inspect(tmp_path / "s" / "loc").exit_code == 1  # nothing to use
    assert "Quux" not in result.output + inspect(tmp_path / "s").output


def test_a_series_cannot_be_chosen_from_another_format(tmp_path):
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(DataError, match="a.nii: has no DICOM series; leave the series out"):
        read_volume(tmp_path / "a.nii", series="1")
