"""Fingerprints against hand counts, left and right, and the settings they lead to."""

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.planning import PATCH_VOXELS, fingerprint, fingerprint_table, suggest_spec
from tfmuscle.subjects import Dataset, Subject, read_dataset

LEGS = LabelMap({1: "femur_left", 2: "femur_right", 7: "sacrum"}, ignore=9)
RAS = np.diag([1.0, 2.0, 5.0, 1.0])
LPS = np.diag([-1.0, -2.0, 5.0, 1.0])


def save(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_subject(folder, key, *, labels=None, affine=RAS, image=None):
    shape = (12, 6, 4) if labels is None else labels.shape
    array = np.random.default_rng(1).integers(1, 50, shape).astype(np.int16) if image is None else image
    where = None if labels is None else save(folder / f"{key}_labels.nii.gz", labels, affine)
    return Subject(key, (save(folder / f"{key}.nii.gz", array, affine),), where)


def make_dataset(folder, *subjects, label_map=LEGS, channels=("T1",)):
    return Dataset(folder, "legs", label_map, channels, subjects)


def legs(*, left_first=True):
    """Two boxes, at i = 1..3 and i = 8..10; 3 x 2 x 2 = 12 voxels each, and 5 voxels of the ignore id."""
    labels = np.zeros((12, 6, 4), np.uint8)
    labels[1:4, 1:3, 1:3] = 1 if left_first else 2
    labels[8:11, 1:3, 1:3] = 2 if left_first else 1
    labels[:5, 5, 3] = 9
    return labels


def entry(shape, spacing, orientation="RAS", key="a"):
    return {"subject_id": key, "shape": shape, "spacing": spacing, "orientation": orientation, "problems": []}


def suggest(*entries, kind=None, channels=("T1",)):
    subjects = tuple(Subject(str(number), ("unused",)) for number in range(len(entries)))
    return suggest_spec({"subjects": list(entries)}, make_dataset(None, *subjects, channels=channels), kind=kind)


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_measures_grid_volumes_and_intensities(tmp_path):
    image = np.zeros((12, 6, 4), np.float32)
    image[0, 0] = 1, 2, 3, 6  # the statistics leave out the zeros: median 2.5, mean 3, sd sqrt(14 / 4)
    dataset = make_dataset(tmp_path, make_subject(tmp_path, "a", labels=legs(), image=image))
    found = fingerprint(dataset)
    (subject,) = found["subjects"]
    assert (subject["shape"], subject["spacing"], subject["orientation"]) == ([12, 6, 4], [1.0, 2.0, 5.0], "RAS")
    # 12 voxels of 1 x 2 x 5 mm are 120 mm3 = 0.12 ml
    assert subject["volumes_ml"] == pytest.approx({"femur_left": 0.12, "femur_right": 0.12, "sacrum": 0.0})
    assert subject["ignored_share"] == pytest.approx(5 / (12 * 6 * 4))
    (numbers,) = subject["intensities"]
    assert (numbers["median"], numbers["mean"]) == (2.5, 3.0)
    assert numbers["sd"] == pytest.approx(np.sqrt(14 / 4))
    assert found["summary"]["structures"]["sacrum"] == {"subjects": 0, "volume_ml": None, "missing": ["a"]}
    assert subject["problems"] == [] and subject["warnings"] == []


def test_fingerprint_is_json_and_reports_progress(tmp_path):
    calls = []
    dataset = make_dataset(tmp_path, *(make_subject(tmp_path, key, labels=legs()) for key in "ab"))
    found = fingerprint(dataset, progress=lambda *call: calls.append(call))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert calls == [(1, 2, "a"), (2, 2, "b")]


def test_bad_subjects_do_not_hide_the_others(tmp_path):
    broken = make_subject(tmp_path, "broken", labels=legs())
    broken.images[0].write_bytes(broken.images[0].read_bytes()[:100])
    empty = make_subject(tmp_path, "empty", labels=np.zeros((12, 6, 4), np.uint8))
    dataset = make_dataset(tmp_path, broken, empty, make_subject(tmp_path, "good", labels=legs()))
    found = fingerprint(dataset)
    assert [len(subject["problems"]) for subject in found["subjects"]] == [1, 1, 0] and len(found["problems"]) == 2
    summary = found["summary"]
    assert (summary["subjects"], summary["labelled"], summary["with_problems"]) == (3, 2, 2)
    assert summary["orientations"] == {"RAS": 2}
    table = fingerprint_table(found)
    assert f"problem: {tmp_path}/broken.nii.gz: " in table and f"problem: {tmp_path}/empty_labels.nii.gz: " in table
    assert suggest_spec(found, dataset).folds == 1


def test_all_subjects_broken(tmp_path):
    dataset = make_dataset(tmp_path, Subject("gone", (tmp_path / "gone.nii.gz",)))
    found = fingerprint(dataset)
    assert "there is no such file" in fingerprint_table(found)
    with pytest.raises(
        DataError, match="no subject is free of problems; mend the files, first .*gone.nii.gz: there is no"
    ):
        suggest_spec(found, dataset)


@pytest.mark.parametrize(
    ("affine", "left_first", "exchanged"),
    # in RAS the index grows to the right, so the left femur comes first; in LPS it grows to the left
    [(RAS, True, False), (RAS, False, True), (LPS, False, False), (LPS, True, True)],
    ids=["RAS", "RAS exchanged", "LPS", "LPS exchanged"],
)
def test_exchanged_sides_are_found(tmp_path, affine, left_first, exchanged):
    subject = make_subject(tmp_path, "a", labels=legs(left_first=left_first), affine=affine)
    problems = fingerprint(make_dataset(tmp_path, subject))["subjects"][0]["problems"]
    assert bool(problems) == exchanged
    if exchanged:
        assert "a_labels.nii.gz: left and right look exchanged (femur_left on the patient's right" in problems[0]
        assert "; check the header's orientation or exchange the labels" in problems[0]


def test_sides_are_not_judged_from_one_leg(tmp_path):
    exchanged = legs(left_first=False)
    one_leg = np.where(exchanged == 2, 0, exchanged)
    found = fingerprint(make_dataset(tmp_path, make_subject(tmp_path, "a", labels=one_leg)))
    assert found["summary"]["with_problems"] == 0


@pytest.mark.parametrize(("ending", "problems"), [("png", 0), ("mha", 1)])
def test_sides_are_not_judged_in_pictures(tmp_path, ending, problems):
    # column 2 is left, column 9 right: exchanged if columns grow to the left, as in .mha; a picture has no left
    columns = np.zeros((6, 12), np.uint8)
    columns[2, 2], columns[2, 9] = 1, 2
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(columns), path)
    found = fingerprint(make_dataset(tmp_path, Subject("a", (path,), path)))
    assert len(found["subjects"][0]["problems"]) == problems


def test_warnings_for_unequal_sides_and_unequal_intensities(tmp_path):
    labels = legs()
    labels[1:2, 1:3, 1:3] = 0
    labels[2:3, 1:3, 1:3] = 0  # 4 voxels left against 12: a third
    quiet = make_subject(tmp_path, "a", labels=labels)
    loud = make_subject(tmp_path, "b", labels=legs(), image=np.random.default_rng(0).normal(1e6, 1e5, (12, 6, 4)))
    found = fingerprint(make_dataset(tmp_path, quiet, loud))
    assert found["subjects"][0]["warnings"] == ["femur_left has 0.04 ml, femur_right 0.12 ml; look at both"]
    assert found["subjects"][1]["warnings"] == []
    (warning,) = found["summary"]["warnings"]
    assert warning.startswith("T1: medians from ") and "e+0" in warning
    table = fingerprint_table(found)
    assert "warning: a: femur_left has" in table and "warning: T1: medians" in table
    assert "warning: sacrum is missing in 2 subjects (a, b)" in table


def test_table_shows_the_numbers(tmp_path):
    dataset = make_dataset(tmp_path, *(make_subject(tmp_path, key, labels=legs()) for key in "ab"))
    lines = fingerprint_table(fingerprint(dataset)).splitlines()
    assert lines[0] == "legs: 2 subjects, 2 labelled, 0 with problems"
    assert "orientations: RAS 2" in lines
    assert [line for line in lines if line.startswith("shape")][0].count("12 x 6 x 4") == 3
    assert [line for line in lines if line.startswith("femur_left")][0].split() == ["femur_left", "2", *["0.12"] * 3]


# ---------------------------------------------------------------- suggest_spec


def test_small_organ_fits_one_patch_in_spl_order():
    # RAS 35 x 50 x 36 is S 36, P 50, L 35; rounded up to multiples of 16
    spec = suggest(*[entry([35, 50, 36], [1, 1, 1])] * 7)
    assert (spec.kind, spec.window, spec.spacing, spec.orientation) == ("volumes", (48, 64, 48), (1.0, 1.0, 1.0), "SPL")
    assert (spec.folds, spec.normalisation) == (5, "zscore")


def test_thick_slices_are_taken_one_by_one():
    spec = suggest(entry([512, 500, 16], [0.8, 0.8, 24], "LPS"), entry([320, 310, 30], [0.8, 0.8, 24], "LPS"))
    assert (spec.kind, spec.depth, spec.size, spec.spacing) == ("slices", 1, (256, 256), (24.0, 0.8, 0.8))
    assert spec.folds == 2


@pytest.mark.parametrize(
    ("shape", "spacing", "orientation", "expected"),
    [
        ([20, 100, 200], [4.0, 0.5, 0.6], "RAS", ("LSP", (4.0, 0.6, 0.5), (224, 128))),  # sagittal: rows S 200, P 100
        ([100, 20, 200], [0.5, 4.0, 0.6], "LAS", ("PSL", (4.0, 0.6, 0.5), (224, 128))),  # coronal
        ([200, 20, 100], [0.6, 4.0, 0.5], "PIR", ("SPL", (4.0, 0.6, 0.5), (224, 128))),  # axes in another order
    ],
    ids=["sagittal", "coronal", "axial stored otherwise"],
)
def test_slice_axis_follows_the_coarsest_axis(shape, spacing, orientation, expected):
    spec = suggest(entry(shape, spacing, orientation))
    assert (spec.orientation, spec.spacing, spec.size) == expected


def test_big_volumes_are_cut_to_the_budget_in_millimetres():
    spec = suggest(entry([512, 512, 400], [0.5, 0.5, 1.0]))
    assert spec.kind == "volumes"
    assert np.prod(spec.window) <= PATCH_VOXELS and all(edge % 16 == 0 for edge in spec.window)
    extents = np.array(spec.window) * spec.spacing
    assert extents.max() / extents.min() < 1.3  # about a cube in mm
    assert np.prod(spec.window) > PATCH_VOXELS / 2


def test_size_covers_nineteen_of_twenty_subjects():
    entries = [entry([40, 40, size], [1, 1, 1]) for size in [30] * 18 + [47, 200]]
    assert suggest(*entries).depth == 64  # the 95th percentile of [30 x 18, 47, 200] is 54.65, so 64; not 208


@pytest.mark.parametrize(("kind", "depth"), [("slices", 1), ("stacks", 5), ("sequences", 3), ("volumes", 48)])
def test_kind_can_be_chosen(kind, depth):
    spec = suggest(entry([35, 50, 36], [1, 1, 1]), kind=kind)
    assert (spec.kind, spec.depth) == (kind, depth)


def test_pictures_and_thin_slabs_become_slices():
    assert suggest(entry([512, 400, 1], [1, 1, 1])).kind == "slices"
    assert suggest(entry([64, 64, 1], [1, 1, 1]), kind="volumes").window == (1, 64, 64)


def test_ct_is_clipped_to_percentiles():
    assert suggest(entry([35, 50, 36], [1, 1, 1]), channels=("CT",)).normalisation == "percentile"


def test_hippocampus(data_dir):
    dataset = read_dataset(data_dir / "hippocampus")
    found = fingerprint(dataset)
    assert found["summary"]["with_problems"] == 0 and found["summary"]["orientations"] == {"RAS": 200}
    for name, volumes in found["summary"]["structures"].items():  # 1 to 2.5 ml in adults
        assert volumes["volume_ml"]["min"] > 0.9 and volumes["volume_ml"]["max"] < 2.6, name
    spec = suggest_spec(found, dataset)
    assert (spec.kind, spec.spacing, spec.orientation) == ("volumes", (1.0, 1.0, 1.0), "SPL")
    fits = [all(np.array(s["shape"])[[2, 1, 0]] <= spec.window) for s in found["subjects"]]
    assert np.mean(fits) > 0.9 and np.prod(spec.window) <= 64**3
    subject = found["subjects"][0]
    labels = np.asarray(nib.load(dataset.subjects[0].labels).dataobj)
    assert subject["volumes_ml"]["Anterior"] == pytest.approx((labels == 1).sum() / 1000)
