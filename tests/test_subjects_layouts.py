"""Datasets in the layouts of nnU-Net, the Decathlon and of descriptors, and dataset.json that are none."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.subjects import (
    Subject,
    check_subject,
    read_dataset,
)

BONES = {"background": 0, "femur": 1, "tibia": 2}
SHAPE = (4, 5, 6)
DESCRIPTORS = sorted((Path(__file__).parents[1] / "datasets").glob("*/dataset.json"))


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


def describe(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"label_map": BONES} | content))
    return root


def ids_of(subjects):
    return [subject.subject_id for subject in subjects]


# ---------------------------------------------------------------- layouts


def test_nnunet_folder_is_read_without_optional_keys(tmp_path):
    dataset = read_dataset(write_nnunet(tmp_path, channels=("T1", "T2")))
    assert (dataset.name, dataset.channels, ids_of(dataset.subjects)) == (tmp_path.name, ("T1", "T2"), ["a", "b"])
    image, labels = dataset.subjects[0].read(dataset.label_map)
    assert image.array.dtype == np.float32 and labels.array.dtype == np.uint8
    for channel in range(2):
        np.testing.assert_array_equal(image.array[..., channel], image_array(channel))
    np.testing.assert_array_equal(labels.array, label_array(1, 2))
    assert image.spacing == (1.0, 2.0, 3.0)


def test_nnunet_folder_in_nrrd_with_ignore_and_leftover_training_list(tmp_path):
    for folder, name, array in (("imagesTr", "x_0000", image_array()), ("labelsTr", "x", label_array(1, 9))):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), tmp_path / folder / f"{name}.nrrd")
    (tmp_path / "imagesTr" / "._x_0000.nrrd").write_text("left by macOS")
    content = {"channel_names": {"0": "US"}, "labels": BONES | {"ignore": 9}, "file_ending": ".nrrd", "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path / "dataset.json")
    assert ids_of(dataset.subjects) == ["x"] and dataset.label_map.ignore == 9
    assert check_subject(dataset.subjects[0], dataset) == []


def test_nnunet_explicit_file_list(tmp_path):
    save(tmp_path / "scans" / "one.nii.gz", image_array())
    entry = {"images": ["scans/one.nii.gz"], "label": "masks/one.nii.gz"}
    content = {"channel_names": ["T1"], "labels": BONES, "dataset": {"first": entry}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    subject = read_dataset(tmp_path).subjects[0]
    assert subject == Subject("first", (tmp_path / "scans/one.nii.gz",), tmp_path / "masks/one.nii.gz")


def test_nnunet_folder_without_labels_is_unlabelled(tmp_path):
    save(tmp_path / "imagesTr" / "a_0000.nii.gz", image_array())
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": BONES}))
    dataset = read_dataset(tmp_path)
    assert dataset.subjects[0].labels is None
    assert dataset.subjects[0].read(dataset.label_map)[1] is None
    assert check_subject(dataset.subjects[0], dataset) == []
    with pytest.raises(DataError, match="subject a has no labels; add a label file"):
        dataset.subjects[0].read_labels(dataset.label_map)


def decathlon(root, entries, modality=None):
    content = {"modality": modality or {"0": "FLAIR", "1": "T1"}, "labels": {"0": "background", "1": "femur"}}
    content |= {"name": "Task", "training": entries, "licence": "CC0", "reference": "someone"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_channels_are_the_fourth_axis(tmp_path):
    array = image_array(shape=(*SHAPE, 2))
    save(tmp_path / "imagesTr" / "brain_1.nii.gz", array)
    save(tmp_path / "labelsTr" / "brain_1.nii.gz", label_array(1))
    entry = {"image": "./imagesTr/brain_1.nii.gz", "label": ".\\labelsTr\\brain_1.nii.gz"}
    dataset = read_dataset(decathlon(tmp_path, [entry]))
    image, labels = dataset.subjects[0].read(dataset.label_map)
    np.testing.assert_array_equal(image.array, array)
    assert labels.array.sum() == 5 * 6
    assert (dataset.name, dataset.licence, dataset.citation) == ("Task", "CC0", "someone")


@pytest.mark.parametrize(("stored", "match"), [(3, "has 3 channels, 2 are declared"), (1, "channel 1 was asked for")])
def test_decathlon_wrong_channel_count_is_found(tmp_path, stored, match):
    shape = SHAPE if stored == 1 else (*SHAPE, stored)
    save(tmp_path / "a.nii.gz", image_array(shape=shape))
    dataset = read_dataset(decathlon(tmp_path, [{"image": "a.nii.gz"}]))
    with pytest.raises(DataError, match=match):
        dataset.subjects[0].read_image()


def test_descriptor_with_one_pattern_per_channel_and_repeated_id(tmp_path):
    for key in ("01", "02"):
        for name in ("T1w", "T2w", "T1w_seg"):
            array = label_array(1) if name.endswith("seg") else image_array(len(name))
            save(tmp_path / f"sub-{key}" / "anat" / f"sub-{key}_{name}.nii.gz", array)
    save(tmp_path / "sub-03" / "anat" / "sub-04_T1w.nii.gz", image_array())  # the two ids disagree: no subject
    images = [f"sub-{{id}}/anat/sub-{{id}}_{name}.nii.gz" for name in ("T1w", "T2w")]
    describe(tmp_path, images=images, labels="sub-{id}/anat/sub-{id}_T1w_seg.nii.gz", channels=["T1", "T2"])
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset.subjects) == ["01", "02"]
    assert all(check_subject(subject, dataset) == [] for subject in dataset.subjects)


def test_descriptor_gives_a_file_to_the_longer_pattern(tmp_path):
    for name in ("a", "a_seg", "b", "b_seg"):
        save(tmp_path / "data" / f"{name}.nii.gz", image_array())
    elsewhere = describe(tmp_path / "kept", images="{id}.nii.gz", labels="{id}_seg.nii.gz")
    dataset = read_dataset(tmp_path / "data", descriptor=elsewhere / "dataset.json")
    assert ids_of(dataset.subjects) == ["a", "b"]
    assert dataset.subjects[1].labels == tmp_path / "data" / "b_seg.nii.gz"


@pytest.mark.parametrize("path", DESCRIPTORS, ids=lambda path: path.parent.name)
def test_shipped_descriptors_can_be_read(path, tmp_path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {"name", "title", "licence", "citation", "channels", "label_map", "images"} <= set(content)
    assert content["name"] == path.parent.name
    patterns = [content["images"]] if isinstance(content["images"], str) else content["images"]
    for pattern in [*patterns, content["labels"]]:
        save(tmp_path / pattern.replace("{id}", "case_1"), image_array())
    dataset = read_dataset(tmp_path, descriptor=path)
    assert ids_of(dataset.subjects) == ["case_1"] and len(dataset.channels) == len(content["channels"])
    assert dataset.label_map.structures


def test_shipped_descriptors_exist():
    assert "hippocampus" in [path.parent.name for path in DESCRIPTORS]


def test_hippocampus_is_read_both_ways(data_dir):
    folder = data_dir / "hippocampus"
    as_it_is = read_dataset(folder)
    described = read_dataset(folder, descriptor=DESCRIPTORS[[p.parent.name for p in DESCRIPTORS].index("hippocampus")])
    assert len(as_it_is.subjects) == 200 and as_it_is.channels == ("MRI",)
    assert set(as_it_is.subjects) == set(described.subjects)
    for subject in as_it_is.subjects[::40]:
        image, labels = subject.read(as_it_is.label_map)
        expected = np.asarray(nib.load(subject.images[0]).dataobj)
        np.testing.assert_allclose(image.array[..., 0], expected, rtol=1e-6)
        assert set(np.unique(labels.array)) == {0, 1, 2}


# ---------------------------------------------------------------- bad dataset.json


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], r"dataset\.json: holds list, an object in braces is needed"),
        ({"labels": [1]}, "has no 'labels'"),
        ({"images": "{id}.nii"}, "has no 'label_map'"),
        ({"labels": BONES}, r"channel names are None; write"),
        ({"labels": BONES, "channel_names": {"1": "T1"}}, r"channel names are \{'1': 'T1'\}; write"),
        ({"labels": BONES, "channel_names": ["T1"]}, "there is no folder .*imagesTr; put the images there"),
        ({"labels": {"whole": [1, 2]}, "training": [{"image": "a.nii"}]}, "regions are not supported"),
        ({"labels": BONES, "training": []}, "no scan found; check the folder"),
        ({"labels": BONES, "training": "x"}, "the entry 'x' of .* names no image; write"),
        ({"labels": BONES, "training": [{"image": "/etc/a.nii"}]}, r"path '/etc/a.nii' leaves the dataset folder"),
        ({"labels": BONES, "training": [{"image": "x/../../a.nii"}]}, "leaves the dataset folder"),
        ({"labels": BONES, "training": [{"image": "..\\a.nii"}]}, "leaves the dataset folder"),
        ({"labels": BONES, "training": [{"image": "C:\\a.nii"}]}, "leaves the dataset folder"),
        ({"labels": BONES, "training": [{"image": "a.nii", "label": 3}]}, "path 3 leaves the dataset folder"),
        ({"labels": BONES, "training": [{"image": "a.nii"}, {"image": "x/a.nii"}]}, "subjects a are there twice"),
        ({"labels": BONES, "channel_names": ["T1"], "dataset": {"../x": {"images": ["a.nii"]}}}, "no plain file name"),
        ({"labels": BONES, "channel_names": ["T1"], "dataset": {"x": {"images": []}}}, "of x names no image"),
        ({"label_map": BONES, "images": ["{id}.nii"], "channels": ["a", "b"]}, "for 2 channels; give one, or a list"),
        ({"label_map": BONES, "images": "scan.nii"}, "does not say where the subject id stands; write {id} there"),
        ({"label_map": BONES, "images": "../{id}.nii"}, "leaves the dataset folder"),
        ({"label_map": BONES, "images": "{id}.nii"}, "no scan found"),
    ],
)
def test_bad_dataset_json_is_named(tmp_path, content, match):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=match) as caught:
        read_dataset(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "dataset.json")) and "\n" not in str(caught.value)


def test_folder_without_dataset_json_or_missing(tmp_path):
    with pytest.raises(DataError, match="holds no dataset.json; write one"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="there is no such folder; check the path"):
        read_dataset(tmp_path / "nowhere")


def test_nnunet_image_without_channel_number(tmp_path):
    write_nnunet(tmp_path)
    save(tmp_path / "imagesTr" / "c.nii.gz", image_array())
    with pytest.raises(DataError, match="c.nii.gz lacks its channel number; name it c_0000.nii.gz"):
        read_dataset(tmp_path)


def test_subject_without_image_or_with_a_bad_id():
    with pytest.raises(ValueError, match="subject a has no image; give at least one"):
        Subject("a", ())
    for bad in ("", ".hidden", "a/b", "a\\b", "a\nb"):
        with pytest.raises(ValueError, match="is no plain file name"):
            Subject(bad, (Path("a.nii"),))
