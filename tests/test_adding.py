"""One labelled scan more for a dataset: `add_case` and its command; what lies in the dataset is read by nibabel."""

import json

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from gui_pages import AFFINE, write_leg

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import read_label_image
from tfmuscle.subjects import check_subject, read_dataset
from tfmuscle.workflows.adding import add_case
from tfmuscle.workflows.slice_labels import SliceLabels


@pytest.fixture
def leg(tmp_path):
    """Ids 3 on slices 3 to 7 and 70 on slices 2 to 4 of twelve, oblique and flipped."""
    ids = write_leg(tmp_path)
    return tmp_path, ids


def source(folder, scan="leg.nii.gz", labels="labels/leg.nii.gz", **more):
    return SliceLabels(folder / scan, folder / labels, **more)


def write_labels(folder, name, ids, table):
    nib.save(nib.Nifti1Image(ids.astype(np.uint8), AFFINE), folder / "labels" / f"{name}.nii.gz")
    (folder / "labels" / f"{name}.json").write_text(json.dumps({"labels": table}))


def write_scan(folder, name, seed):
    image = np.random.default_rng(seed).integers(0, 900, (20, 24, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name}.nii.gz")


def stored(path):
    return np.asarray(nib.load(path).dataobj)


def test_a_dataset_begins_with_one_case_and_opens(leg):
    folder, ids = leg
    done = add_case(source(folder), folder / "data")
    assert (done.subject_id, done.cases, done.unknown, done.replaced) == ("leg", 1, 0.0, False)
    dataset = read_dataset(folder / "data")
    (subject,) = dataset.subjects
    assert dataset.name == "data" and dict(dataset.label_map.names)[70] == "tibia_left"
    assert check_subject(subject, dataset) == []
    for path, original in ((subject.images[0], "leg.nii.gz"), (subject.labels, "labels/leg.nii.gz")):
        assert np.array_equal(stored(path), stored(folder / original))
        assert np.allclose(nib.load(path).affine, AFFINE, atol=1e-4)
    assert stored(subject.images[0]).dtype == np.int16


def test_other_ids_become_the_datasets(leg):
    folder, ids = leg
    add_case(source(folder), folder / "data")
    write_scan(folder, "other", 9)
    write_labels(
        folder, "other", (ids == 3) * 2 + (ids == 70) * 5, {"background": 0, "soleus_left": 2, "tibia_left": 5}
    )
    assert add_case(source(folder, "other.nii.gz", "labels/other.nii.gz"), folder / "data").cases == 2
    assert np.array_equal(stored(folder / "data/labelsTr/other.nii.gz"), ids)
    assert json.loads((folder / "data/dataset.json").read_text())["numTraining"] == 2
    assert [one.subject_id for one in read_dataset(folder / "data").subjects] == ["leg", "other"]


def test_slices_nobody_drew_stay_unknown(leg):
    folder, ids = leg
    done = add_case(source(folder), folder / "data", partly=True)
    expected = np.full(ids.shape, 255)
    expected[..., 2:8] = ids[..., 2:8]
    assert np.array_equal(stored(folder / "data/labelsTr/leg.nii.gz"), expected)
    assert read_dataset(folder / "data").label_map.ignore == 255 and done.unknown == pytest.approx(0.5)


def test_only_the_listed_slices_are_known(leg):
    folder, ids = leg
    add_case(source(folder, axis=2, listed=(4, 9)), folder / "data", partly=True)  # nothing is drawn on slice 9
    found = stored(folder / "data/labelsTr/leg.nii.gz")
    assert np.array_equal(found[..., [4, 9]], ids[..., [4, 9]])
    assert (np.delete(found, [4, 9], axis=2) == 255).all()


def test_a_whole_case_joins_partly_drawn_ones_and_the_other_way_round(leg):
    folder, ids = leg
    add_case(source(folder), folder / "data")
    write_scan(folder, "other", 9)
    unknown = np.where(ids == 70, 9, ids)
    write_labels(folder, "other", np.where(unknown == 9, 70, np.where(unknown == 0, 200, unknown)),
                 {"background": 0, "soleus_left": 3, "tibia_left": 70, "ignore": 200})  # fmt: skip
    add_case(source(folder, "other.nii.gz", "labels/other.nii.gz"), folder / "data")
    dataset = read_dataset(folder / "data")
    assert dataset.label_map.ignore == 255  # 200 there, 255 here
    assert np.array_equal(stored(folder / "data/labelsTr/other.nii.gz"), np.where(ids == 0, 255, ids))
    assert np.array_equal(stored(folder / "data/labelsTr/leg.nii.gz"), ids)


def test_new_labels_of_a_scan_replace_the_old_when_asked(leg):
    folder, ids = leg
    add_case(source(folder), folder / "data")
    ids[0, 0, 0] = 70
    write_labels(folder, "leg", ids, {"background": 0, "soleus_left": 3, "tibia_left": 70})
    with pytest.raises(DataError, match=r"has labels of leg already; replace them \(--replace\)"):
        add_case(source(folder), folder / "data")
    assert stored(folder / "data/labelsTr/leg.nii.gz")[0, 0, 0] == 0
    done = add_case(source(folder), folder / "data", replace=True)
    assert done.replaced and done.cases == 1 and stored(folder / "data/labelsTr/leg.nii.gz")[0, 0, 0] == 70


def test_another_scan_of_that_name_is_never_replaced(leg):
    folder, _ = leg
    add_case(source(folder), folder / "data")
    write_scan(folder, "leg", 8)
    with pytest.raises(DataError, match="has another scan called leg; give this one a name of its own"):
        add_case(source(folder), folder / "data", replace=True)
    assert add_case(source(folder), folder / "data", subject_id="leg-2").cases == 2


def test_an_interrupted_case_is_completed(leg):
    folder, ids = leg
    add_case(source(folder), folder / "data")
    (folder / "data/labelsTr/leg.nii.gz").unlink()  # image and table were written, then the power went
    assert not add_case(source(folder), folder / "data").replaced
    assert np.array_equal(stored(folder / "data/labelsTr/leg.nii.gz"), ids)


FULL = {"background": 0, "soleus_left": 3, "tibia_left": 70}
LAYOUT = {"channel_names": {"0": "T1"}, "labels": FULL}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (FULL | {"femur_left": 4}, r"more: femur_left; fewer: none"),
        ({"background": 0, "soleus_left": 3, "fibula_left": 70}, r"more: fibula_left; fewer: tibia_left"),
    ],
)
def test_other_structures_than_the_datasets_are_refused(leg, table, reason):
    folder, ids = leg
    add_case(source(folder), folder / "data")
    write_scan(folder, "other", 9)
    write_labels(folder, "other", ids, table)
    with pytest.raises(DataError, match=reason):
        add_case(source(folder, "other.nii.gz", "labels/other.nii.gz"), folder / "data")
    assert not (folder / "data/imagesTr/other_0000.nii.gz").exists()


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (LAYOUT | {"channel_names": {"0": "water", "1": "fat"}}, "2 channels, a scan has one"),
        (LAYOUT | {"dataset": {}}, "lists its cases itself"),
        ({"labels": FULL}, "not in nnU-Net's layout"),
        ([], "an object in braces is needed"),
        (LAYOUT | {"labels": {"background": 0, "a": 1, "b": 1}}, "share one id"),
        (None, "holds other files and no dataset.json"),
    ],
)
def test_folders_that_are_no_such_dataset_stay_as_they_are(leg, about, reason):
    folder, _ = leg
    (folder / "data").mkdir()
    (folder / "data" / "notes.txt").write_text("mine")
    if about is not None:
        (folder / "data" / "dataset.json").write_text(json.dumps(about))
    before = sorted(path.name for path in (folder / "data").iterdir())
    with pytest.raises(DataError, match=reason):
        add_case(source(folder), folder / "data")
    assert sorted(path.name for path in (folder / "data").iterdir()) == before


def test_what_does_not_fit_is_refused_before_anything_is_written(leg):
    folder, ids = leg
    nib.save(nib.Nifti1Image(ids[:-1], AFFINE), folder / "labels" / "small.nii.gz")
    nib.save(nib.Nifti1Image(0 * ids, AFFINE), folder / "labels" / "empty.nii.gz")
    cases = [
        ({"labels": "labels/small.nii.gz"}, {}, "not on the grid of"),
        ({"labels": "labels/empty.nii.gz"}, {}, "nothing is labelled"),
        ({"listed": (50,)}, {"partly": True}, "has slices 0 to"),
        ({}, {"subject_id": "../leg"}, "is no plain file name"),
    ]
    for files, settings, reason in cases:
        with pytest.raises(DataError, match=reason):
            add_case(source(folder, **files), folder / "data", **settings)
    with pytest.raises(ValueError, match="slices are listed, but all count as labelled"):
        add_case(source(folder, listed=(4,)), folder / "data")
    assert not (folder / "data").exists()


def test_the_command_says_what_it_did(leg):
    folder, _ = leg
    words = ["add-case", "-i", folder / "leg.nii.gz", "--labels", folder / "labels/leg.nii.gz", "-o", folder / "data"]
    result = CliRunner().invoke(tfmuscle_group, [*map(str, words), "--partly"])
    assert result.exit_code == 0 and "leg is added, 50% of it unknown; 1 labelled case(s)" in result.output
    result = CliRunner().invoke(tfmuscle_group, [*map(str, words)])
    assert result.exit_code == 1 and "replace them" in result.output and result.output.count("\n") == 1
    result = CliRunner().invoke(tfmuscle_group, ["add-case", "-i", str(folder), "-o", str(folder / "data")])
    assert result.exit_code == 2 and "--labels is missing" in result.output
    assert read_label_image(folder / "data/labelsTr/leg.nii.gz").geometry.shape == (20, 24, 12)
