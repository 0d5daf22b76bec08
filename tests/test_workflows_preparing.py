"""`prepare`, `fat-fraction` and `merge-masks` as users run them: on datasets, folders and broken files."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import make_phantom
from tfmuscle.preprocessing import correct_bias_field, leg_parts
from tfmuscle.subjects import check_subject, read_dataset
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.fat import fat_fraction
from tfmuscle.workflows.merging import merge_masks
from tfmuscle.workflows.preparing import PrepareOptions, prepare


def run(*words):
    return CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def legs(tmp_path_factory):
    """Two lower limbs with labels, one of them stored upside down."""
    folder = tmp_path_factory.mktemp("legs") / "dataset"
    for number, orientation in enumerate(("RAS", "LPI")):
        made = make_phantom("lower-limb", seed=300 + number, scale=4)
        write_volume(folder / f"imagesTr/leg{number}_0000.nii.gz", made.image.reoriented(orientation))
        write_volume(folder / f"labelsTr/leg{number}.nii.gz", made.labels.reoriented(orientation))
    about = {"channel_names": {"0": "T1"}, "labels": made.label_map.to_dict(), "licence": "CC0-1.0"}
    (folder / "dataset.json").write_text(json.dumps(about | {"file_ending": ".nii.gz"}), encoding="utf-8")
    return folder


def test_a_part_of_every_subject_is_a_dataset_again(legs, tmp_path):
    result = prepare(legs, tmp_path / "out", PrepareOptions(part="upper"))
    before, after = read_dataset(legs), read_dataset(result.folder)
    assert result.failures == {} and list(result.notes) == ["leg0", "leg1"]
    assert (after.label_map, after.channels, after.licence) == (before.label_map, before.channels, "CC0-1.0")
    for old, new in zip(before.subjects, after.subjects, strict=True):
        assert check_subject(new, after) == []
        (image, labels), (cut, cut_labels) = old.read(before.label_map), new.read(after.label_map)
        wanted = leg_parts(image)["upper"]
        assert cut.geometry.same_grid(wanted.geometry)
        np.testing.assert_array_equal(cut.array, wanted.array)
        np.testing.assert_array_equal(cut_labels.array, leg_parts(labels)["upper"].array)
        assert (result.folder / f"pictures/{new.subject_id}.png").stat().st_size > 5000


def test_legs_become_subjects_with_their_own_labels(legs, tmp_path):
    result = prepare(legs, tmp_path / "out", PrepareOptions(below_hip=True, side="both-separately"))
    after = read_dataset(result.folder)
    assert [s.subject_id for s in after.subjects] == ["leg0_left", "leg0_right", "leg1_left", "leg1_right"]
    for subject in after.subjects:
        present = [after.label_map.names[key] for key in np.unique(subject.read_labels(after.label_map).array) if key]
        assert {LabelMap.side(name) for name in present} == {subject.subject_id.split("_")[1]}


def test_bias_field_comes_first(legs, tmp_path):
    prepare(legs, tmp_path / "out", PrepareOptions(bias_field=True))
    old, new = read_dataset(legs).subjects[0], read_dataset(tmp_path / "out").subjects[0]
    np.testing.assert_allclose(new.read_image().array, correct_bias_field(old.read_image()).array, rtol=1e-6)


def test_a_rerun_keeps_finished_subjects_and_makes_changed_ones_anew(legs, tmp_path):
    out, options = tmp_path / "out", PrepareOptions(side="left")
    prepare(legs, out, options)
    files = sorted((out / "imagesTr").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    seen = []
    prepare(legs, out, options, progress=lambda done, total, note: seen.append((done, total, note)))
    assert seen == [(1, 2, "leg0"), (2, 2, "leg1")]
    assert files[0].stat().st_mtime_ns == times[0] and files[1].stat().st_mtime_ns > times[1]
    with pytest.raises(DataError, match="other scans or settings were prepared there"):
        prepare(legs, out, PrepareOptions(side="right"))


def test_scans_without_labels_and_one_that_fails(tmp_path):
    made = make_phantom("lower-limb", seed=310, scale=2.5, contrast="dixon").image
    for channel in range(2):
        write_volume(tmp_path / f"scans/whole_000{channel}.nii.gz", made.with_array(made.array[..., channel]))
    shank = made.cropped((0, 0, 0), (*made.geometry.shape[:2], 40))
    write_volume(tmp_path / "scans/shank.nii.gz", shank.with_array(shank.array[..., 1]))
    (tmp_path / "scans/broken.nii.gz").write_bytes(b"no image")
    result = run("prepare", "-i", tmp_path / "scans", "-o", tmp_path / "out", "--below-hip", "--margin", 3)
    assert result.exit_code == 1 and "whole: hip found at slice" in result.output
    assert "shank" in result.output and "the hip was not found: the legs are apart in every slice" in result.output
    assert "Failed: broken" in result.output and "2 failed" in result.output
    names = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert names == ["whole_0000.nii.gz", "whole_0001.nii.gz"]
    cut = read_volume(tmp_path / "out/whole_0000.nii.gz")
    assert 0 < made.geometry.shape[2] - cut.geometry.shape[2] < 10
    forced = run("prepare", "-i", tmp_path / "scans", "-o", tmp_path / "two", "--below-hip", "--hip-slice", 30)
    assert "shank: below hip slice 30, slices 0 to 39 kept" in forced.output


def test_one_leg_has_no_side(tmp_path):
    write_volume(tmp_path / "one/leg.nii.gz", make_phantom("bones", seed=1, scale=2).image)
    result = run("prepare", "-i", tmp_path / "one", "-o", tmp_path / "out", "--side", "left")
    assert result.exit_code == 1 and "one leg alone cannot be told left from right" in result.output


def test_a_part_without_labels_is_no_subject(legs, tmp_path):
    data = tmp_path / "data"
    made = make_phantom("thigh", seed=4, scale=3)
    empty_top = np.where(np.arange(made.labels.array.shape[2]) < 6, made.labels.array, 0).astype(np.uint8)
    write_volume(data / "imagesTr/t_0000.nii.gz", made.image)
    write_volume(data / "labelsTr/t.nii.gz", made.labels.with_array(empty_top))
    about = {"channel_names": {"0": "T1"}, "labels": made.label_map.to_dict(), "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(DataError, match="none of 1 subjects could be prepared; .*nothing is labelled in t;"):
        prepare(data, tmp_path / "out", PrepareOptions(part="abdomen"))
    right = [key for key, name in made.label_map.names.items() if LabelMap.side(name) == "right"]
    only_left = np.where(np.isin(made.labels.array, right), 0, made.labels.array)
    write_volume(data / "labelsTr/t.nii.gz", made.labels.with_array(only_left))
    with pytest.raises(DataError, match="nothing is labelled in t_right;"):  # the folder holds nothing yet: it is free
        prepare(data, tmp_path / "out", PrepareOptions(side="both-separately"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prepare.json"]  # no left leg of a failed subject


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to prepare"),
        ({"part": "arm"}, "part is 'arm'; choose one of abdomen"),
        ({"side": "middle"}, "side is 'middle'; choose one of left"),
        ({"part": "upper", "below_hip": True}, "use one of them"),
        ({"below_hip": True, "margin": -1}, "margin -1 must not be negative"),
        ({"hip_slice": 3, "bias_field": True}, "no cut below the hip"),
        ({"fractions": (0.0, 0.5), "bias_field": True}, "but no part"),
        ({"fractions": (0.5, 0.5), "part": "upper"}, "two numbers from 0 to 1 in order"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareOptions(**options)


def test_misuse_and_foreign_folders(legs, tmp_path):
    assert run("prepare", "-i", legs, "-o", tmp_path / "x").exit_code == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds nothing prepared"):
        prepare(legs, tmp_path / "full", PrepareOptions(side="left"))


@pytest.fixture
def dixon(tmp_path):
    """Water and fat of 20 x 20 x 2 voxels of 2 x 2 x 5 mm: 10 % fat in label 1, 60 % in label 2."""
    grid = Geometry((20, 20, 2), np.diag([2.0, 2.0, 5.0, 1.0]))
    labels = np.zeros(grid.shape, np.uint8)
    labels[:10], labels[10:] = 1, 2
    fat = np.where(labels == 1, 10, 60).astype(np.int16)
    fat[0, 0] = 0
    water = np.where(labels == 1, 90, 40).astype(np.int16)
    water[0, 0] = 0
    for name, array in (("water", water), ("fat", fat), ("labels", labels)):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(array, grid))
    (tmp_path / "names.json").write_text('{"labels": {"background": 0, "soleus": 1, "tibialis": 2}}')
    return tmp_path


def test_fat_fraction_per_structure(dixon):
    words = [f"--{name}={dixon / name}.nii.gz" for name in ("water", "fat", "labels")]
    result = run("fat-fraction", *words, "-o", dixon / "out/ff.nii.gz", "--names", dixon / "names.json")
    assert result.exit_code == 0 and "soleus" in result.output
    with open(dixon / "out/ff.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure"] for row in rows] == ["soleus", "tibialis"]
    assert [float(row["volume_ml"]) for row in rows] == [8, 8]  # 400 voxels of 0.02 ml
    assert [float(row["fat_fraction_mean"]) for row in rows] == [10, 60]
    assert float(rows[0]["with_signal_percent"]) == 99.5  # 2 of 400 voxels are air
    written = read_volume(dixon / "out/ff.nii.gz").array
    assert written[0, 0, 0] == 0 and written[5, 5, 0] == 10


def test_exchanged_images_are_noticed(tmp_path):
    made = make_phantom("thigh", seed=6, contrast="dixon", scale=2).image
    for name, channel in (("water", 0), ("fat", 1)):
        write_volume(tmp_path / f"{name}.nii.gz", made.with_array(made.array[..., channel]))
    right = fat_fraction(tmp_path / "water.nii.gz", tmp_path / "fat.nii.gz", tmp_path / "a.nii.gz")
    wrong = fat_fraction(tmp_path / "fat.nii.gz", tmp_path / "water.nii.gz", tmp_path / "b.nii.gz")
    assert right.warning == "" and "are the two exchanged?" in wrong.warning
    assert right.rows[0]["structure"] == "all with signal"


def test_fat_fraction_refuses(dixon):
    grid = Geometry((3, 3, 2), np.eye(4))
    write_volume(dixon / "small.nii.gz", Volume(np.ones((3, 3, 2), np.uint8), grid))
    half = read_volume(dixon / "labels.nii.gz")
    write_volume(dixon / "half.nii.gz", half.with_array(half.array * np.float32(0.5)))
    water, fat, out = dixon / "water.nii.gz", dixon / "fat.nii.gz", dixon / "o.nii.gz"
    write_volume(dixon / "nan.nii.gz", half.with_array(np.full(half.array.shape, np.nan, np.float32)))
    with pytest.raises(DataError, match=r"nan.nii.gz: holds NaN"):
        fat_fraction(dixon / "nan.nii.gz", fat, out)
    for inputs in ({"labels": dixon / "labels.nii.gz"}, {}):
        with pytest.raises(DataError, match="is an input and would be lost"):
            fat_fraction(water, fat, inputs.get("labels", water), **inputs)
    with pytest.raises(DataError, match="is given as water and as fat"):
        fat_fraction(water, water, out)
    with pytest.raises(ValueError, match="volumes are written as"):
        fat_fraction(water, fat, dixon / "o.txt")
    with pytest.raises(DataError, match="small.nii.gz: .*different grids"):
        fat_fraction(water, dixon / "small.nii.gz", out)
    with pytest.raises(DataError, match="labels are on another grid"):
        fat_fraction(water, fat, out, labels=dixon / "small.nii.gz")
    with pytest.raises(DataError, match="labels must be whole numbers"):
        fat_fraction(water, fat, out, labels=dixon / "half.nii.gz")


def test_merge_masks_tells_overlaps(tmp_path):
    grid = Geometry((4, 1, 1), np.diag([10.0, 10.0, 10.0, 1.0]))
    for name, values in (("tibia", [1, 1, 0, 0]), ("femur", [0, 255, 255, 0])):
        write_volume(tmp_path / f"masks/{name}.nii.gz", Volume(np.array(values, np.uint8).reshape(4, 1, 1), grid))
    result = run("merge-masks", "-i", tmp_path / "masks", "-o", tmp_path / "all.nii.gz")
    assert result.exit_code == 0 and "femur and tibia share 1 voxels" in result.output
    assert read_volume(tmp_path / "all.nii.gz").array.ravel().tolist() == [2, 0, 1, 0]  # femur 1, tibia 2 by name
    assert json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["labels"] == {
        "background": 0,
        "femur": 1,
        "tibia": 2,
    }
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "tibia": 1, "femur": 2}}')
    named = merge_masks(tmp_path / "masks", tmp_path / "named.nii.gz", names=tmp_path / "dataset.json")
    assert named.volumes_ml == pytest.approx({"femur": 1.0, "tibia": 1.0}) and named.overlaps == {("femur", "tibia"): 1}
    assert read_volume(tmp_path / "named.nii.gz").array.ravel().tolist() == [1, 0, 2, 0]


def test_merge_masks_refuses(tmp_path):
    folder, out = tmp_path / "masks", tmp_path / "o.nii.gz"
    folder.mkdir()
    with pytest.raises(DataError, match="holds no mask"):
        merge_masks(folder, out)
    write_volume(folder / "a.nii.gz", Volume(np.ones((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4))))
    (tmp_path / "t.json").write_text('{"labels": {"background": 0, "b": 1}}')
    with pytest.raises(DataError, match="no label is called 'a'"):
        merge_masks(folder, out, names=tmp_path / "t.json")
    write_volume(folder / "b.nii.gz", Volume(np.ones((2, 2, 3), np.uint8), Geometry((2, 2, 3), np.eye(4))))
    with pytest.raises(DataError, match="b.nii.gz: on another grid"):
        merge_masks(folder, out)
    write_volume(folder / "b.nii.gz", Volume(np.full((2, 2, 2), 3, np.uint8), Geometry((2, 2, 2), np.eye(4))))
    with pytest.raises(DataError, match="b.nii.gz: is no binary mask"):
        merge_masks(folder, out)
    (folder / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="lies among the masks and would be taken for one"):
        merge_masks(folder, folder / "labels.nii.gz")
    (tmp_path / "dataset.json").write_text('{"mine": 1}')
    with pytest.raises(DataError, match=r"dataset.json: holds something else"):
        merge_masks(folder, tmp_path / "dataset.nii.gz")
    with pytest.raises(ValueError, match="volumes are written as"):
        merge_masks(folder, tmp_path / "labels.txt")
    one = read_volume(folder / "a.nii.gz")
    write_volume(folder / "a.nrrd", one)
    with pytest.raises(DataError, match=r"a.nrrd: a.nii.gz is 'a' too; keep one of them"):
        merge_masks(folder, out)
    (folder / "a.nrrd").unlink()
    write_volume(folder / "A.nrrd", one)
    with pytest.raises(DataError, match=r"is 'a' too; keep one of them"):
        merge_masks(folder, out)
    (folder / "A.nrrd").rename(folder / "background.nrrd")
    with pytest.raises(DataError, match="background"):
        merge_masks(folder, out)


def test_masks_are_named_as_words(tmp_path):
    mask = Volume(np.ones((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)))
    write_volume(tmp_path / "masks/Vastus Lateralis.nii.gz", mask)
    (tmp_path / "t.json").write_text('{"labels": {"background": 0, "Vastus lateralis": 7}}')
    made = merge_masks(tmp_path / "masks", tmp_path / "o.nii.gz", names=tmp_path / "t.json")
    assert made.label_map.names[7] == "vastus_lateralis" and (read_volume(tmp_path / "o.nii.gz").array == 7).all()
