"""The acceptance data of the cascade: made-up legs of a few voxels, and the real ones at a coarse spacing.

Made-up legs: muscle n of 35 is a block of 4 x 4 x 20 mm at column n % 5, row n // 5, blocks touch; the femur is a
plate in front of them. So every count is 4 * 4 * 20 at 1 mm, and every place is known.
"""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tfmuscle.cascade import Leg, Neighbours, tight_box
from tfmuscle.errors import DataError
from tfmuscle.labels import LOWER_LIMB_MUSCLES, SIDES
from tfmuscle.subjects import check_subject, read_dataset
from tfmuscle.volume import Geometry, Volume

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
legs = importlib.import_module("legs")

BLOCK, MARGIN = (4, 4, 20), 5
MISSING = "biceps_femoris_long_head"
NUMBERS = {name: number for number, name in enumerate(LOWER_LIMB_MUSCLES, start=1)}
REMARKS = {"external_rotators": "external rotators (gemelli)"}


def blocks():
    """A right leg `(30, 44, 30)`: lateral is at large x."""
    array = np.zeros((30, 44, 30), np.uint8)
    for number in range(35):
        start = np.array([MARGIN + 4 * (number % 5), MARGIN + 4 * (number // 5), MARGIN])
        array[tuple(slice(a, a + size) for a, size in zip(start, BLOCK, strict=True))] = number + 1
    array[MARGIN : MARGIN + 20, MARGIN + 28 : MARGIN + 32, MARGIN : MARGIN + 20] = 36
    return array


def write_leg(folder, name, array, origin, left_out=()):
    affine = np.eye(4)
    affine[:3, 3] = origin
    names = {number: REMARKS.get(muscle, muscle.replace("_", " ")) for muscle, number in NUMBERS.items()}
    names = {str(number): text for number, text in names.items() if number not in left_out} | {"36": "femur"}
    array = np.where(np.isin(array, left_out), 0, array).astype(np.uint8)
    nib.save(nib.Nifti1Image(array, affine), folder / f"{name}_labels_1mm.nii.gz")
    (folder / f"{name}_labels_1mm.json").write_text(json.dumps({"labels": names}), encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """VHF: the right leg is the left one's mirror image, 3.25 mm higher, without one muscle. VHM: a left leg alone."""
    folder = tmp_path_factory.mktemp("source")
    write_leg(folder, "VHF_Left", blocks()[::-1], (100.0, 50.0, 10.0))
    write_leg(folder, "VHF_Right", blocks(), (130.0, 50.0, 13.25), left_out=(NUMBERS[MISSING],))
    write_leg(folder, "VHM_Left", blocks()[::-1], (-300.0, 0.0, 0.0))
    return folder


def arguments(source, out, *more):
    return ["--data", str(source), "-o", str(out), "--spacing", "1", "1", "2", *map(str, more)]


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "legs"
    legs.main(arguments(source, out, "--train", 2, "--test", 2))
    return out


def load(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def known(array):
    return {int(key): int(count) for key, count in zip(*np.unique(array, return_counts=True), strict=True)}


def block_of(muscle, side, body):
    """World faces `(2, 3)` of a block of VHF, by hand from where the leg was written."""
    number = NUMBERS[muscle] - 1
    x = MARGIN + 4 * (number % 5)
    x = 30 - x - 4 if side == "left" else x
    low = np.array([x, MARGIN + 4 * (number // 5), MARGIN]) - 0.5
    low = low + ((100.0, 50.0, 10.0) if side == "left" else (130.0, 50.0, 13.25))
    return body.geometry.index(np.array([low, low + BLOCK]))


def test_datasets_share_one_label_map_sorted_by_name(made):
    abouts = [json.loads((made / part / "dataset.json").read_text(encoding="utf-8")) for part in ("train", "test")]
    labels = abouts[0]["labels"]
    muscles = [name for name in labels if name not in ("background", "ignore")]
    assert labels == abouts[1]["labels"]
    assert muscles == sorted(f"{muscle}_{side}" for muscle in LOWER_LIMB_MUSCLES for side in SIDES)
    assert [labels[name] for name in muscles] == list(range(1, 71)) and labels["ignore"] == 255
    assert [about["numTraining"] for about in abouts] == [2, 2]
    for part, names in (("train", ["vhf_00", "vhf_01"]), ("test", ["vhm_00", "vhm_01"])):
        dataset = read_dataset(made / part)
        assert [subject.subject_id for subject in dataset.subjects] == names
        assert [check_subject(subject, dataset) for subject in dataset.subjects] == [[], []]


def test_the_undeformed_subject_has_every_block_and_its_mirror_image(made):
    array, affine = load(made / "test" / "labelsTr" / "vhm_00.nii.gz")
    per_block = 4 * 4 * 20 // 2  # slices are 2 mm thick
    assert known(array[array > 0]) == dict.fromkeys(range(1, 71), per_block)
    np.testing.assert_allclose(np.abs(np.diag(affine)[:3]), [1, 1, 2])
    x = {key: affine[0, 0] * np.nonzero(array == key)[0].mean() + affine[0, 3] for key in range(1, 71)}
    middles = {(x[key] + x[key + 1]) / 2 for key in range(1, 71, 2)}  # left and right of one muscle
    assert max(middles) - min(middles) < 1e-3  # one plane for all: float32 in the header
    assert all(x[key] < x[key + 1] for key in range(1, 71, 2))
    ends = [np.nonzero(np.isin(array, keys))[0] for keys in (range(1, 71, 2), range(2, 71, 2))]
    assert ends[1].min() - ends[0].max() - 1 == legs.GAP_MM


def test_bones_are_seen_but_not_labelled(made):
    array, _ = load(made / "test" / "labelsTr" / "vhm_00.nii.gz")
    image, _ = load(made / "test" / "imagesTr" / "vhm_00_0000.nii.gz")
    assert image.dtype == np.int16 and image.shape == array.shape
    box = np.array([(sides.min(), sides.max()) for sides in np.nonzero(np.isin(array, range(1, 71, 2)))])
    (x0, x1), (_, y1), (z0, z1) = box
    femur = np.s_[x0 : x1 + 1, y1 + 1 : y1 + 5, z0 : z1 + 1]
    assert not array[femur].any()
    # compact bone is 3 mm thick and black, the plate 4: against muscle 0.36 and fat 1
    assert image[femur].mean() < 0.6 * image[array > 0].mean()


def test_a_muscle_nobody_outlined_is_unknown_and_looks_like_muscle(source, made):
    key = legs.LABELS.id_of(f"{MISSING}_right")
    body = legs.make_body(source, "VHF")
    place = np.rint(block_of(MISSING, "right", body.labels) + 0.5).astype(int)
    guess = np.argwhere(body.labels.array == key)
    np.testing.assert_array_equal([guess.min(axis=0), guess.max(axis=0) + 1], place)
    assert len(guess) == np.prod(BLOCK) and body.unknown == (key,)
    rim = body.labels.array == legs.IGNORE_ID
    away = np.linalg.norm(np.maximum(place[0] - np.argwhere(rim), np.argwhere(rim) - place[1] + 1).clip(0), axis=1)
    assert 9 < away.max() <= legs.RIM_MM
    for number in range(2):
        array, _ = load(made / "train" / "labelsTr" / f"vhf_{number:02d}.nii.gz")
        assert set(known(array)) == set(range(71)) - {key} | {255}
    image, labels = legs.make_subject(body, (1.0, 1.0, 1.0), np.random.default_rng(3), is_deformed=False)
    shown = legs.resample_labels(body.labels, labels.geometry).array == key
    assert (labels.array[shown] == 255).all()
    muscle = image.array[(labels.array > 0) & (labels.array < 255)].mean()
    assert image.array[shown].mean() == pytest.approx(muscle, rel=0.15)  # fat is nearly three times as bright


def test_the_place_agrees_with_neighbours_of_the_cascade(source):
    """The box of the guess is the one that `Neighbours` gives, which learned from the other leg."""
    body = legs.make_body(source, "VHF").labels
    found = {
        side: {muscle: tight_box(body.array, legs.PAINTED.id_of(f"{muscle}_{side}")) for muscle in LOWER_LIMB_MUSCLES}
        for side in SIDES
    }
    guess = found["right"].pop(MISSING)
    learned = Neighbours.fit([Leg(found["left"], body.geometry, "left")])
    assert learned.predict(MISSING, Leg(found["right"], body.geometry, "right"), margin=0) == guess


def test_legs_keep_their_heights_and_are_moved_apart_only_if_they_overlap(source, tmp_path):
    left, right = legs.read_leg(source, "VHF_Left", "left"), legs.read_leg(source, "VHF_Right", "right")
    kept, note = legs.beside(left, right, None)
    assert "moved by 0.0 mm" in note and "10.0 mm from" in note  # 130 + 5 - (100 + 25)
    np.testing.assert_array_equal(kept.geometry.affine, right.geometry.affine)
    near = legs.transformed(right, np.array([[1, 0, 0, -12], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    apart, note = legs.beside(left, near, None)
    assert "moved by 2.0 mm" in note and "0.0 mm from" in note
    np.testing.assert_allclose(apart.geometry.affine[:3, 3], [120, 50, 13.25])
    for one in (kept, apart):
        body = legs.joined(left, one)
        assert known(body.array) == {**known(left.array), **known(one.array), 0: int((body.array == 0).sum())}
        np.testing.assert_allclose(legs.world_edges(body)[1, 2], 13.25 + 24.5, atol=0.5)  # half a voxel


def test_a_body_grows_by_girth_and_length(source, monkeypatch):
    """Without deformation the extents are the body's times one factor for x and y, another for z."""
    monkeypatch.setattr(legs, "deform_labels", lambda labels, seed: labels)
    monkeypatch.setattr(legs, "image_from_labels", lambda labels, *_, **__: labels)  # not looked at
    body = legs.make_body(source, "VHM")
    before = np.ptp(legs.world_edges(body.labels, range(1, 71)), axis=0)
    seen = []
    for seed in range(4):
        _, labels = legs.make_subject(body, (0.5, 0.5, 0.5), np.random.default_rng(seed), is_deformed=True)
        seen.append(np.ptp(legs.world_edges(labels, range(1, 71)), axis=0) / before)
    tolerance = 1.0 / before.min()  # one new voxel at each end
    np.testing.assert_allclose([factor[0] for factor in seen], [factor[1] for factor in seen], atol=tolerance)
    assert np.std([factor[0] for factor in seen]) > 0.03 and np.std([factor[2] for factor in seen]) > 0.01
    assert all(1 / 1.25 - tolerance < factor[0] < 1.25 + tolerance for factor in seen)
    assert all(1 / 1.1 - tolerance < factor[2] < 1.1 + tolerance for factor in seen)


def test_a_rerun_keeps_subjects_and_makes_the_missing_one_alike(source, made, tmp_path, capsys):
    kept, lost = (made / "train" / "labelsTr" / f"vhf_0{number}.nii.gz" for number in range(2))
    before, voxels = kept.stat().st_mtime_ns, load(lost)[0]
    lost.unlink()
    legs.main(arguments(source, made, "--train", 2, "--test", 1))
    printed = capsys.readouterr().out
    assert "train 1/2 vhf_00: kept" in printed and "train 2/2 vhf_01: kept" not in printed
    assert "adductor_brevis | " in printed and "peak memory" in printed
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(load(lost)[0], voxels)
    assert json.loads((made / "train" / "dataset.json").read_text(encoding="utf-8"))["numTraining"] == 2
    assert not np.array_equal(load(kept)[0], voxels)


def test_other_settings_and_foreign_folders_are_refused(source, made, tmp_path):
    with pytest.raises(SystemExit, match="train: was made with .*'seed': 0.*name another folder"):
        legs.main(arguments(source, made, "--seed", 1))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="train: holds other files"):
        legs.main(arguments(source, tmp_path))
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "train").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="train: is a file"):
        legs.main(arguments(source, tmp_path / "file"))


def test_damaged_sources_are_named(source, tmp_path):
    with pytest.raises(SystemExit, match=r"VHF_Left_labels_1mm.json: there is no such file"):
        legs.main(arguments(tmp_path, tmp_path / "out"))
    write_leg(tmp_path, "VHF_Left", blocks()[::-1], (0, 0, 0), left_out=(NUMBERS[MISSING],))
    with pytest.raises(DataError, match=f"no {MISSING}, and none in the other leg"):
        legs.make_body(tmp_path, "VHF")
    names = tmp_path / "VHF_Left_labels_1mm.json"
    names.write_text('{"labels": {"1": "adductor brevis"}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"ids \[2, 3, .* are not named"):
        legs.read_leg(tmp_path, "VHF_Left", "left")
    names.write_text('{"labels": {"1": "biceps brachii"}}', encoding="utf-8")
    with pytest.raises(DataError, match="'biceps brachii' is none of the 35 muscles"):
        legs.read_leg(tmp_path, "VHF_Left", "left")
    names.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r'1mm.json: needs "labels"'):
        legs.read_leg(tmp_path, "VHF_Left", "left")
    empty = Volume(np.zeros((2, 2, 2), np.uint8), Geometry((2, 2, 2), np.eye(4)), "leg.nii.gz")
    with pytest.raises(DataError, match=r"leg.nii.gz: no voxel of the structures"):
        legs.world_edges(empty)


@pytest.mark.parametrize("wrong", [("--train", "-1"), ("--spacing", "1", "1", "0")])
def test_wrong_options_are_refused(source, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        legs.main(arguments(source, tmp_path, *wrong))
    assert "0 or more" in capsys.readouterr().err or wrong[0] == "--spacing"


@pytest.mark.slow
def test_real_legs_have_their_sides_names_and_volumes(data_dir, tmp_path):
    """The man as he is at 4 x 4 x 8 mm, left and right, against the volumes beside the label volume."""
    source = data_dir / "visible_human"
    options = ["--data", str(source), "-o", str(tmp_path), "--train", "0", "--test", "1", "--spacing", "4", "4", "8"]
    legs.main(options)
    array, affine = load(tmp_path / "test" / "labelsTr" / "vhm_00.nii.gz")
    names = json.loads((tmp_path / "test" / "dataset.json").read_text(encoding="utf-8"))["labels"]
    about = json.loads((source / "VHM_Left_labels_1mm.json").read_text(encoding="utf-8"))
    volumes = {legs.house_name(name): three[2] for name, three in about["volume_cm3_mesh_overlap_final"].items()}
    for muscle in LOWER_LIMB_MUSCLES:
        left, right = (array == names[f"{muscle}_{side}"] for side in SIDES)
        x = [affine[0] @ [*np.argwhere(mask).mean(axis=0), 1] for mask in (left, right)]
        assert x[0] < x[1]
        for mask in (left, right):
            # a lattice count errs by about the root of the number of voxels on the surface, some 6 N^(2/3) of N
            num_voxels = volumes[muscle] / 0.128
            assert mask.sum() == pytest.approx(num_voxels, abs=2 * np.sqrt(6 * num_voxels ** (2 / 3))), muscle
