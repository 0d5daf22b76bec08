"""Every kind of bad input named in one line, scans to segment, folds."""

import gzip
import json
import re
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series

from tfmuscle.errors import DataError
from tfmuscle.folds import TEST, assign_folds
from tfmuscle.labels import LabelMap
from tfmuscle.subjects import (
    Dataset,
    Subject,
    check_subject,
    read_checked,
    read_dataset,
    read_scans,
)

BONES = {"background": 0, "femur": 1, "tibia": 2}
SHAPE = (4, 5, 6)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def image_array(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(1, 100, shape).astype(np.int16)


def label_array(*ids):
    labels = np.zeros(SHAPE, np.uint8)
    for row, key in enumerate(ids):
        labels[row] = key
    return labels


def write_nnunet(root, *, channels=("T1",), subjects=("a", "b"), **extra):
    for key in subjects:
        for channel in range(len(channels)):
            save(root / "imagesTr" / f"{key}_{channel:04d}.nii.gz", image_array(channel))
        save(root / "labelsTr" / f"{key}.nii.gz", label_array(1, 2))
    content = {"channel_names": {str(n): name for n, name in enumerate(channels)}, "labels": BONES} | extra
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def ids_of(subjects):
    return [subject.subject_id for subject in subjects]


# ---------------------------------------------------------------- bad scans, found without stopping


def make_dicom_folder(folder, series):
    """Writes one 4-slice CT-like series through SimpleITK under the given series number."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(4):
        slice_image = sitk.GetImageFromArray((np.arange(30).reshape(5, 6) + 30 * k).astype(np.int16))
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{series}.1.{k + 1}",
            "0020|000d": "1.2.3.9",
            "0020|000e": f"1.2.3.{series}",
            "0020|0011": str(series),
            "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{3 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "3",
            "0028|0030": "1\\1",
        }
        for tag, value in tags.items():
            slice_image.SetMetaData(tag, value)
        writer.SetFileName(folder / f"s{series}_{k}.dcm")
        writer.Execute(slice_image)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_truncated(root):
    noise = np.random.default_rng(3).integers(-9999, 9999, (20, 20, 20)).astype(np.int16)
    truncate(save(root / "imagesTr/a_0000.nii.gz", noise))


def spoil_labels_truncated(root):
    truncate(root / "labelsTr/a.nii.gz")


def spoil_not_gzip(root):
    (root / "imagesTr/a_0000.nii.gz").write_text("this is no image")


def spoil_missing_label(root):
    (root / "labelsTr/a.nii.gz").unlink()


def spoil_missing_channel(root):
    (root / "imagesTr/a_0000.nii.gz").unlink()
    save(root / "imagesTr/a_0001.nii.gz", image_array())


def spoil_extra_channel(root):
    save(root / "imagesTr/a_0001.nii.gz", image_array())


def spoil_grid(root):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[2, 3] = 7.5
    save(root / "labelsTr/a.nii.gz", label_array(1), affine)


def spoil_shape(root):
    save(root / "labelsTr/a.nii.gz", np.ones((4, 5, 7), np.uint8))


def spoil_unknown_ids(root):
    save(root / "labelsTr/a.nii.gz", label_array(1, 7, 8))


def spoil_negative_ids(root):
    save(root / "labelsTr/a.nii.gz", label_array(1).astype(np.int16) - 1)


def spoil_fractions(root):
    save(root / "labelsTr/a.nii.gz", label_array(1).astype(np.float32) / 2)


def spoil_nan_labels(root):
    save(root / "labelsTr/a.nii.gz", np.full(SHAPE, np.nan, np.float32))


def spoil_empty(root):
    save(root / "labelsTr/a.nii.gz", label_array())


def spoil_nan(root):
    array = image_array().astype(np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    save(root / "imagesTr/a_0000.nii.gz", array)


def spoil_overflow(root):
    array = image_array().astype(np.float64)
    array[1, 1, 1] = 1e300  # finite as float64, infinite as float32
    save(root / "imagesTr/a_0000.nii.gz", array)


def spoil_constant(root):
    save(root / "imagesTr/a_0000.nii.gz", np.full(SHAPE, 3, np.int16))


def spoil_4d(root):
    save(root / "imagesTr/a_0000.nii.gz", image_array(shape=(*SHAPE, 2)))


SPOILS = [
    (spoil_truncated, "a_0000.nii.gz", r"; (copy|export)"),
    (spoil_labels_truncated, "labelsTr/a.nii.gz", r"; (copy|export)"),
    (spoil_not_gzip, "a_0000.nii.gz", r"; (copy|export)"),
    (spoil_missing_label, "labelsTr/a.nii.gz", "there is no such file.*; check the path"),
    (spoil_missing_channel, "a_0000.nii.gz", "there is no such file.*; check the path"),
    (spoil_extra_channel, "a_0001.nii.gz", r"2 channels, 1 are declared \(T1\); correct one of them"),
    (spoil_grid, "labelsTr/a.nii.gz", r"another grid than .*corners up to 7.5 mm apart\); resample by nearest"),
    (spoil_shape, "labelsTr/a.nii.gz", r"another grid .*shape \(4, 5, 7\) against \(4, 5, 6\)\); resample by nearest"),
    (spoil_unknown_ids, "labelsTr/a.nii.gz", "label ids 7, 8 are not among 0 background, 1 femur, 2 tibia; name or"),
    (spoil_negative_ids, "labelsTr/a.nii.gz", "label ids -1 are not among"),
    (spoil_fractions, "labelsTr/a.nii.gz", "must be whole numbers, found 0.5; resample by nearest"),
    (spoil_nan_labels, "labelsTr/a.nii.gz", "must be whole numbers, found nan"),
    (spoil_empty, "labelsTr/a.nii.gz", r"nothing is labelled \(empty mask\); label it or leave the subject out"),
    (spoil_nan, "a_0000.nii.gz", "3 voxels are NaN or infinite; replace them by numbers"),
    (spoil_overflow, "a_0000.nii.gz", "1 voxels are NaN or infinite"),
    (spoil_4d, "a_0000.nii.gz", "2 channels .*; choose a channel or split the file"),
]


@pytest.mark.parametrize(("spoil", "file", "match"), SPOILS, ids=[spoil.__name__[6:] for spoil, _, _ in SPOILS])
def test_bad_subject_is_named_and_the_good_one_stays_good(tmp_path, spoil, file, match):
    spoil(write_nnunet(tmp_path))
    dataset = read_dataset(tmp_path)
    bad, good = dataset.subjects
    problems = check_subject(bad, dataset)
    assert any(problem.startswith(f"{tmp_path}/") and file in problem.split(":")[0] for problem in problems)
    assert all("\n" not in problem for problem in problems)
    assert any(re.search(match, problem) for problem in problems), problems
    assert check_subject(good, dataset) == []
    if spoil is not spoil_extra_channel:  # that one is refused by `preprocess`, which knows how many are needed
        with pytest.raises(DataError, match=match):
            bad.read(dataset.label_map)


def test_constant_image_is_reported(tmp_path):
    spoil_constant(write_nnunet(tmp_path))
    dataset = read_dataset(tmp_path)
    (problem,) = check_subject(dataset.subjects[0], dataset)
    assert "a_0000.nii.gz: constant image, every voxel is 3; export it again" in problem


def test_channels_on_different_grids(tmp_path):
    write_nnunet(tmp_path, channels=("T1", "T2"))
    save(tmp_path / "imagesTr/a_0001.nii.gz", image_array(), np.diag([1.0, 2.0, 3.5, 1.0]))
    # the far corner lies 5 voxels of 0.5 mm further out: 2.5 mm
    with pytest.raises(DataError, match=r"a_0001.nii.gz: not on the grid of .*a_0000.*\(corners up to 2.5 mm apart\)"):
        read_dataset(tmp_path).subjects[0].read_image()


def test_all_problems_of_a_subject_are_collected(tmp_path):
    write_nnunet(tmp_path)
    spoil_nan(tmp_path)
    spoil_unknown_ids(tmp_path)
    dataset = read_dataset(tmp_path)
    image, labels, problems = read_checked(dataset.subjects[0], dataset)
    assert image is None and labels is None and len(problems) == 2


def test_folder_with_two_dicom_series(tmp_path):
    make_dicom_folder(tmp_path / "good", 1)
    make_dicom_folder(tmp_path / "two", 1)
    make_dicom_folder(tmp_path / "two", 2)
    good, two = read_scans(tmp_path, ("CT",))
    assert ids_of((good, two)) == ["good", "two"]
    dataset = Dataset(tmp_path, "ct", LabelMap({1: "femur"}), ("CT",), (good, two))
    assert check_subject(good, dataset) == []
    (problem,) = check_subject(two, dataset)
    assert problem.startswith(f"{tmp_path}/two: ") and "series" in problem and "\n" not in problem
    assert good.read_image().array.shape == (6, 5, 4, 1)


def test_float_labels_with_whole_numbers_become_integers(tmp_path):
    write_nnunet(tmp_path, labels=BONES | {"hip": 300})
    save(tmp_path / "labelsTr/a.nii.gz", np.where(label_array(1) == 1, 300.0, 0.0).astype(np.float64))
    dataset = read_dataset(tmp_path)
    labels = dataset.subjects[0].read_labels(dataset.label_map)
    assert labels.array.dtype == np.uint16 and labels.array.max() == 300


def test_labels_that_only_ignore_are_empty(tmp_path):
    write_nnunet(tmp_path, labels=BONES | {"ignore": 9})
    save(tmp_path / "labelsTr/a.nii.gz", label_array(9))
    dataset = read_dataset(tmp_path)
    with pytest.raises(DataError, match="nothing is labelled"):
        dataset.subjects[0].read(dataset.label_map)


def test_gzip_of_an_empty_file(tmp_path):
    write_nnunet(tmp_path)
    (tmp_path / "imagesTr/a_0000.nii.gz").write_bytes(gzip.compress(b""))
    dataset = read_dataset(tmp_path)
    (problem,) = check_subject(dataset.subjects[0], dataset)
    assert "a_0000.nii.gz: " in problem


# ---------------------------------------------------------------- scans to segment


def test_scans_of_one_channel(tmp_path):
    for name in ("b_0000", "a", "frame_0041", "frame_0042"):
        save(tmp_path / f"{name}.nii.gz", image_array())
    (tmp_path / "notes.txt").write_text("no scan")
    assert ids_of(read_scans(tmp_path, ("T1",))) == ["a", "b", "frame_0041", "frame_0042"]
    assert ids_of(read_scans(tmp_path / "b_0000.nii.gz", ("T1",))) == ["b"]
    assert read_scans(tmp_path / "a.nii.gz", ("T1",))[0].images == (tmp_path / "a.nii.gz",)


def test_scans_of_two_channels(tmp_path):
    for name in ("a_0000", "a_0001", "b_0001", "c_0000", "c_0001", "c_0002"):
        save(tmp_path / f"{name}.nii.gz", image_array())
    save(tmp_path / "d.nii.gz", image_array(shape=(*SHAPE, 2)))
    a, b, c, d = read_scans(tmp_path, ("fat", "water"))
    assert [path.name for path in a.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert len(c.images) == 3  # one too many, refused by `preprocess` so that the others go on
    assert d.read_image().array.shape == (*SHAPE, 2)
    with pytest.raises(DataError, match="b_0000.nii.gz: there is no such file"):
        b.read_image()
    assert read_scans(tmp_path / "a_0001.nii.gz", ("fat", "water")) == (a,)


def test_scan_as_a_dicom_folder_and_dicom_folders_beside_files(tmp_path):
    make_dicom_folder(tmp_path / "knee", 1)
    save(tmp_path / "hip.nii.gz", image_array())
    assert ids_of(read_scans(tmp_path / "knee", ("CT",))) == ["knee"]
    assert sorted(ids_of(read_scans(tmp_path, ("CT",)))) == ["hip", "knee"]


def test_scans_that_cannot_be_told_apart_or_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no scan found; check the folder"):
        read_scans(tmp_path, ("T1",))
    with pytest.raises(DataError, match="there is no such file or folder"):
        read_scans(tmp_path / "x.nii.gz", ("T1",))
    for name in ("a.nii.gz", "a.nii"):
        save(tmp_path / name, image_array())
    with pytest.raises(DataError, match="subjects a are there twice"):
        read_scans(tmp_path, ("T1",))
    for name in ("b_0000.nii.gz", "b_0000.nii"):
        save(tmp_path / "more" / name, image_array())
    with pytest.raises(DataError, match="another file has this name and channel; keep one"):
        read_scans(tmp_path / "more", ("T1",))


# ---------------------------------------------------------------- folds


@pytest.mark.parametrize(("test", "held_out"), [(0, 0), (0.2, 5), (0.01, 1), (3, 3), (1, 1)])
def test_folds_are_balanced_complete_and_independent_of_order(test, held_out):
    ids = [f"subject {number}" for number in range(23)]
    folds = assign_folds(ids, folds=5, test=test, seed=4)
    assert folds == assign_folds(reversed(ids), folds=5, test=test, seed=4)
    assert set(folds) == set(ids)
    sizes = [list(folds.values()).count(fold) for fold in range(5)]
    assert list(folds.values()).count(TEST) == held_out  # 0.2 of 23 is 4.6, rounded to 5
    assert sum(sizes) == 23 - held_out and max(sizes) - min(sizes) <= 1


def test_folds_change_with_the_seed_only():
    ids = [str(number) for number in range(40)]
    assert assign_folds(ids, folds=4, seed=1) != assign_folds(ids, folds=4, seed=2)
    assert assign_folds(ids, folds=1) == dict.fromkeys(ids, 0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"folds": 0}, "folds is 0 and test 0.0; give a fold at least"),
        ({"folds": 2, "test": 1.5}, "test as a share or a count"),
        ({"folds": 2, "test": -1}, "test as a share or a count"),
        ({"folds": 3, "test": 1}, "3 subjects, 1 held out, do not fill 3 folds; use fewer folds"),
    ],
)
def test_impossible_folds_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        assign_folds(["a", "b", "c"], **arguments)


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
    save(tmp_path / "two\nlines.nii.gz", image_array())
    with pytest.raises(DataError, match=r"subject id 'two\\nlines' is no plain file name; use letters"):
        read_scans(tmp_path, ("T1",))
    with pytest.raises(ValueError, match=r"subject id 'bad\\udcff' is no plain file name"):
        Subject("bad\udcff", (tmp_path / "bad.nii.gz",))  # how Python shows the byte 0xff of a file name


@pytest.mark.parametrize("read", [read_dataset, lambda path: read_scans(path, ("T1",))])
def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, read):
    write_nnunet(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(DataError, match=r"Permission denied: .*; check its permissions"):
        read(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_both_legs_of_a_person_share_a_fold(seed):
    ids = [f"p{number}_{side}" for number in range(7) for side in ("left", "right")] + ["q_left"]
    folds = assign_folds(ids, folds=3, test=2, seed=seed)
    assert all(folds[f"p{number}_left"] == folds[f"p{number}_right"] for number in range(7))
    persons = {key.rsplit("_", 1)[0]: fold for key, fold in folds.items()}
    assert sorted(list(persons.values()).count(fold) for fold in (-1, 0, 1, 2)) == [2, 2, 2, 2]


def test_scans_are_found_in_nested_folders_and_zips(tmp_path):
    write_series(tmp_path / "scans" / "p1" / "study" / "mr", count=3)
    write_series(tmp_path / "loose", count=3)
    with zipfile.ZipFile(tmp_path / "scans" / "p2.zip", "w") as archive:
        for file in sorted((tmp_path / "loose").iterdir()):
            archive.write(file, f"series/{file.name}")
    (tmp_path / "scans" / "notes").mkdir()
    found = read_scans(tmp_path / "scans", ("T1",))
    assert [one.subject_id for one in found] == ["p1", "p2"]
    assert np.array_equal(found[0].read_image().array, found[1].read_image().array)
    assert read_scans(tmp_path / "scans" / "p2.zip", ("T1",))[0].subject_id == "p2"
