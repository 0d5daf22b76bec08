"""Uncertainty from networks whose answer is known: maps, agreement, `calibrate` and `predict --uncertainty`."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from known_networks import (
    FEMUR_SIDES,
    KINDS,
    THRESHOLDS,
    linear_network,
    make_run,
    make_spec,
    random_network,
    random_scan,
    scan_grid,
    threshold_network,
    thresholded,
)

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json, write_text
from tfmuscle.inference import predict_probabilities, predict_uncertain, predict_volume
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.postprocessing import CLEANING_FILE, Cleaning
from tfmuscle.report.doubts import doubt_figure
from tfmuscle.uncertainty import CALIBRATION_FILE, Calibration
from tfmuscle.volume import Volume
from tfmuscle.workflows.calibrating import VOXELS, calibrate, voxels_to_ask
from tfmuscle.workflows.measuring import MeasureOptions, measure
from tfmuscle.workflows.predicting import PredictOptions, predict
from tfmuscle.workflows.trusting import read_rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
OBLIQUE = scan_grid((11, 12, 9), (0.7, 1.1, 3.0), orientation="LPS", oblique=True)
ASKED = PredictOptions(uncertainty=True)


def blind_to_bone(spec):
    """As `threshold_network`, but it calls bone muscle: the last class never wins."""
    return linear_network(spec, [0, 8, 8], [0, -8, -24])


# --- one scan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_prediction_and_the_map_is_what_is_left(kind):
    spec, image = make_spec(kind), random_scan(OBLIQUE)
    runs = [make_run(random_network(spec, seed=seed), spec) for seed in (1, 5)]
    found = predict_uncertain(runs, image, temperature=2.5)
    np.testing.assert_array_equal(found.labels.array, predict_volume(runs, image).array)
    probabilities = predict_probabilities(runs, image)
    powers = probabilities.array ** (1 / 2.5)
    onto = Volume(powers.max(axis=-1) / powers.sum(axis=-1), probabilities.geometry).reoriented("LPS")
    assert onto.geometry.same_grid(found.error.geometry) and found.error.geometry is image.geometry
    np.testing.assert_allclose(found.error.array, 1 - onto.array, atol=1e-5)
    assert found.error.array.dtype == np.float32 and found.slice_axis == 2


def test_the_map_is_high_exactly_where_one_of_the_members_is_corrupted():
    # Two members see bone from 2 on, the third never does. Away from the thresholds all are sure: where there is bone
    # the mean gives it 2/3, so that the map is 1/3 there, and 0 everywhere else.
    spec = make_spec("volumes")
    image = random_scan(OBLIQUE)
    image.array[...] = np.floor(image.array) + 0.5
    image.array[image.array > 2] = 3.5
    runs = [make_run(model(spec), spec) for model in (threshold_network, threshold_network, blind_to_bone)]
    found = predict_uncertain(runs, image)
    bone = thresholded(image.array[..., 0]) == 9
    np.testing.assert_array_equal(found.labels.array, thresholded(image.array[..., 0]))
    np.testing.assert_allclose(found.error.array[bone], 1 / 3, atol=2e-3)
    assert bone.any() and found.error.array[~bone].max() < 0.05
    # Of the three pairs one agrees about bone, two share nothing: 1/3.
    assert found.agreement[2] == pytest.approx(1 / 3) and found.agreement[1] < 1
    same = predict_uncertain(runs[:2], image)
    np.testing.assert_allclose(same.agreement[1:], 1)  # perfect members


def test_a_temperature_by_hand_and_the_voxels_asked_for():
    # Everywhere 0.2, 0.5, 0.3; with a temperature of 1/2 they are squared: 0.25 / (0.04 + 0.25 + 0.09).
    spec, image = make_spec(), random_scan(OBLIQUE)
    run = make_run(linear_network(spec, [0, 0, 0], np.log([0.2, 0.5, 0.3])), spec)
    asked = np.full(OBLIQUE.shape, -1, np.int16)
    asked[3, 4, 5], asked[0, 0, 0] = 2, 0
    found = predict_uncertain(run, image, temperature=0.5, asked=asked)
    np.testing.assert_allclose(found.error.array, 1 - 0.25 / 0.38, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, [[0.2, 0.5, 0.3]] * 2, atol=1e-6)
    assert sorted(found.classes) == [0, 2]
    with pytest.raises(ValueError, match="a temperature is a positive number, not -1"):
        predict_uncertain(run, image, temperature=-1)


def test_one_network_is_asked_in_its_mirrors_or_with_other_contrast(monkeypatch):
    image = random_scan(OBLIQUE)
    spec = make_spec("volumes")
    run = make_run(random_network(spec), spec)
    found = predict_uncertain(run, image)
    assert (found.agreement[1:] < 0.95).all()  # a random network is without symmetry
    pointwise = predict_uncertain(make_run(threshold_network(spec), spec), image)
    np.testing.assert_allclose(pointwise.agreement[1:], 1)  # and this one does not know where it is
    # A left femur alone has no mirror. Contrast and brightness move values by up to a tenth of the spread (or of the
    # distance to the mean), so that some labels of a pointwise network change, and few.
    femur = make_spec("volumes", label_map=dataclasses.replace(FEMUR_SIDES, names={0: "background", 3: "femur_left"}))
    single = make_run(linear_network(femur, [0, 8], [0, -8]), femur)
    changed = predict_uncertain(single, image)
    assert 0.85 < changed.agreement[1] < 1
    np.testing.assert_array_equal(changed.labels.array, np.where(image.array[..., 0] > 1, 3, 0))


# --- folders ----------------------------------------------------------------------------------------------------------


def save_run(folder, model, spec, parts):
    folder.mkdir(parents=True)
    spec.save(folder / "spec.json")
    TrainConfig(recipe=Supervised()).save(folder / "train.json")
    model.save(folder / "best.keras")
    write_json(folder / "about.json", {"seconds": 1.0, "epochs": 1})
    write_json(folder / "split.json", parts)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """24 subjects of 4 folds, 2 more of the test set: muscle and bone by thresholds, some noise drawn the other way."""
    root = tmp_path_factory.mktemp("data") / "limbs"
    for number in range(26):
        image = random_scan(scan_grid((9, 8, 5), (1.0, 1.0, 2.0), oblique=True), seed=number)
        labels = thresholded(image.array[..., 0]).astype(np.uint8)
        worse = np.random.default_rng(number).random(labels.shape) < number / 60
        labels[worse & (labels > 0)] = 0
        write_volume(root / f"imagesTr/s{number:02}_0000.nii.gz", Volume(image.array[..., 0], image.geometry))
        write_volume(root / f"labelsTr/s{number:02}.nii.gz", Volume(labels, image.geometry))
    names = {"background": 0, "muscle": 4, "bone": 9, "ignore": 255}
    about = {"name": "limbs", "channel_names": {"0": "MRI"}, "labels": names, "numTraining": 26}
    write_json(root / "dataset.json", about | {"file_ending": ".nii.gz"})
    return root


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A cross-validation of four folds: two networks by thresholds, two that are a little off."""
    folder, spec = tmp_path_factory.mktemp("cv") / "thresholds", make_spec("volumes", name="limbs", channels=("MRI",))
    in_fold = [[f"s{number:02}" for number in range(24) if number % 4 == fold] for fold in range(4)]
    for fold in range(4):
        after = (fold + 1) % 4
        parts = {"left_out": in_fold[fold], "validation": in_fold[after], "test": ["s24", "s25"]}
        parts["train"] = [name for other in {0, 1, 2, 3} - {fold, after} for name in in_fold[other]]
        model = linear_network(spec, [0, 8, 16], [0, -8 - fold % 2, -24 - 2 * (fold % 2)])
        save_run(folder / f"fold_{fold}/run", model, spec, parts)
    return folder


@pytest.fixture(scope="module")
def calibrated(folds, dataset):
    return calibrate(folds, dataset)


def test_only_networks_that_had_not_seen_a_scan_speak_of_it(calibrated, folds):
    found = calibrated.calibration
    assert calibrated.path == folds / CALIBRATION_FILE and calibrated.failures == {}
    assert found.scans == tuple(f"s{number:02}" for number in range(24)) and found.speaking == 2
    assert found == Calibration.load(calibrated.path) and len(found.members) == 4
    assert set(found.curves) == {"muscle", "bone", "all structures"}
    assert [row["scans"] for row in calibrated.rows()] == ["24", "24"]
    scan = calibrated.scans[20]  # fold 0: left out by run 0, validated on by run 3, which is off
    spec = make_spec("volumes")
    runs = [make_run(linear_network(spec, [0, 8, 16], [0, -8 - off, -24 - 2 * off]), spec) for off in (0, 1)]
    image = random_scan(scan_grid((9, 8, 5), (1.0, 1.0, 2.0), oblique=True), seed=20)
    judge = predict_uncertain(runs, image).agreement
    assert [scan.agreement["muscle"], scan.agreement["bone"]] == pytest.approx(list(judge[1:]), abs=1e-6)


def test_predict_leaves_map_rows_and_table(calibrated, folds, dataset, tmp_path):
    plain = predict(folds, dataset, tmp_path / "plain", part="test")
    result = predict(folds, dataset, tmp_path / "out", part="test", options=ASKED)
    assert plain.worth == () and not (tmp_path / "plain/uncertainty.csv").exists()
    for name in ("s24", "s25"):
        labels, image = (
            nibabel.load(path) for path in (result.written[name], dataset / f"imagesTr/{name}_0000.nii.gz")
        )
        shown = nibabel.load(tmp_path / f"out/uncertainty/{name}.nii.gz")
        np.testing.assert_array_equal(labels.dataobj, nibabel.load(plain.written[name]).dataobj)
        np.testing.assert_allclose(shown.affine, image.affine, atol=1e-5)
        assert shown.shape == image.shape and 0 <= shown.get_fdata().min() <= shown.get_fdata().max() <= 1
    rows = read_rows(tmp_path / "out/uncertainty/s24.json")
    assert [row["structure"] for row in rows] == ["muscle", "bone"]
    assert all(row["dice_low"] <= row["expected_dice"] <= row["dice_high"] for row in rows)
    lines = (tmp_path / "out/uncertainty.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith(
        "subject,structure,id,expected_dice,dice_low,dice_high,agreement,look_"
    )
    assert len(result.worth) == 4 and any("2 of 4 networks a scan" in warning for warning in result.warnings)
    stamp = (tmp_path / "out/s24.nii.gz").stat().st_mtime_ns
    (tmp_path / "out/uncertainty/s25.nii.gz").unlink()  # a map that is missing is made again, the rest is kept
    again = predict(folds, dataset, tmp_path / "out", part="test", options=dataclasses.replace(ASKED, resume=True))
    assert (tmp_path / "out/s24.nii.gz").stat().st_mtime_ns == stamp and again.worth == result.worth
    assert (tmp_path / "out/uncertainty/s25.nii.gz").exists()


def test_one_scan_has_them_beside_its_file_and_an_odd_one_is_named(calibrated, folds, dataset, tmp_path):
    # Intensities at the thresholds of one half of the networks: they disagree as on no scan before.
    scan = random_scan(scan_grid((9, 8, 5), oblique=True))
    scan.array[...] = np.where(scan.array > 1.5, 2.06, 1.06)
    write_volume(tmp_path / "odd.nii.gz", Volume(scan.array[..., 0], scan.geometry))
    command = ["predict", "-m", str(folds), "-i", str(tmp_path / "odd.nii.gz"), "-o", str(tmp_path / "out/a.nii.gz")]
    shown = CliRunner().invoke(tfmuscle_group, [*command, "--uncertainty"])
    assert shown.exit_code == 0, shown.output
    scan_called_like_a_map = tmp_path / "odd_uncertainty.nii.gz"
    scan_called_like_a_map.write_bytes((tmp_path / "odd.nii.gz").read_bytes())
    refused = predict(folds, scan_called_like_a_map, tmp_path / "odd.nii.gz", options=ASKED)
    assert "odd_uncertainty.nii.gz: is the scan itself" in refused.failures["odd_uncertainty"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.nii.gz", "a_uncertainty.csv", "a_uncertainty.json", "a_uncertainty.nii.gz"]
    assert "Look at odd, muscle: Dice 0." in shown.output and "are worth a look" in shown.output
    content = read_json(tmp_path / "out/a_uncertainty.json")
    assert content["subject"] == "odd" and all(row["look_here"] for row in content["structures"])


def test_measure_takes_up_what_was_expected(calibrated, folds, tmp_path):
    scan = random_scan(scan_grid((9, 8, 5), oblique=True))
    scan.array[...] = np.where(scan.array > 1.5, 2.06, 1.06)
    write_volume(tmp_path / "scans/odd.nii.gz", Volume(scan.array[..., 0], scan.geometry))
    predict(folds, tmp_path / "scans", tmp_path / "out", options=ASKED)
    labels = tmp_path / "out/odd.nii.gz"
    before = measure(labels, tmp_path / "report", MeasureOptions(scan=tmp_path / "scans/odd.nii.gz"))
    flags = [flag for flag in before.flags if flag["kind"] == "uncertain"]
    rows = read_rows(tmp_path / "out/uncertainty/odd.json")
    assert [flag["structure"] for flag in flags] == ["muscle", "bone"]
    assert flags[0]["slices"] == rows[0]["slices"] and flags[0]["axis"] == 2
    assert f"; Dice {rows[0]['expected_dice']:.2f} expected (" in flags[0]["what"]
    assert before.rows[0]["expected_dice"] == rows[0]["expected_dice"]
    header = (tmp_path / "report/structures.csv").read_text().splitlines()[0]
    assert header.endswith("expected_dice,dice_low,dice_high")
    page = (tmp_path / "report/report.html").read_text()
    assert "How far to trust the labels" in page and "Where the labels may be wrong" in page
    write_text(tmp_path / "names.csv", "id,name\n4,Flesh\n9,os\n")  # matched by id, whatever they are called
    renamed = measure(labels, tmp_path / "renamed", MeasureOptions(names=tmp_path / "names.csv"))
    assert [flag["structure"] for flag in renamed.flags if flag["kind"] == "uncertain"] == ["flesh", "os"]
    corrected = read_volume(labels)
    corrected.array[0] = 0
    write_volume(labels, corrected)
    after = measure(labels, tmp_path / "report")
    assert not [flag for flag in after.flags if flag["kind"] == "uncertain"] and "expected_dice" not in after.rows[0]
    assert any("have changed since predict said what they are worth" in note for note in after.remarks["odd"])


def test_a_map_needs_slices_and_one_grid():
    labels = Volume(np.ones((4, 5, 6), np.uint8), scan_grid((4, 5, 6)))
    error = Volume(np.zeros((4, 5, 6), np.float32), scan_grid((4, 5, 6)))
    for wrong, slices in ((error, []), (Volume(error.array, scan_grid((4, 5, 6), (2, 1, 1))), [1])):
        with pytest.raises(ValueError, match="at least one slice, and image, labels and map on one grid"):
            doubt_figure(None, labels, wrong, slices, axis=2, label_map=LabelMap({1: "a"}))


def test_where_cleaning_changed_a_label_the_map_says_so(calibrated, folds, dataset, tmp_path):
    # A piece of muscle apart from the largest is removed; the networks were sure of it: the map is high there.
    scan = np.zeros((9, 8, 5), np.float32)
    scan[:4], scan[7:, :2, :2] = 1.5, 1.5
    write_volume(tmp_path / "scan.nii.gz", Volume(scan, scan_grid(scan.shape)))
    Cleaning(largest=("muscle",)).save(folds / CLEANING_FILE)
    try:
        predict(folds, tmp_path / "scan.nii.gz", tmp_path / "out/scan.nii.gz", options=ASKED)
    finally:
        (folds / CLEANING_FILE).unlink()
    removed = scan > 0
    removed[:4] = False
    assert not read_volume(tmp_path / "out/scan.nii.gz").array[removed].any()
    doubts = read_volume(tmp_path / "out/scan_uncertainty.nii.gz").array
    assert doubts[removed].min() > 0.9 and doubts[~removed].max() < 0.2


def test_one_run_is_calibrated_by_its_own_scans(folds, dataset, tmp_path):
    run = save_run(tmp_path / "run", random_network(make_spec("volumes", name="limbs")),
                   make_spec("volumes", name="limbs", channels=("MRI",)),
                   {"train": ["s04"], "validation": ["s00", "s01"], "test": ["s24"]})  # fmt: skip
    command = ["calibrate", "-m", str(run), "-i", str(dataset)]
    shown = CliRunner().invoke(tfmuscle_group, command)
    assert shown.exit_code == 0, shown.output
    assert "2 scans, temperature" in shown.output and "too few scans to promise a Dice, 20 are needed" in shown.output
    assert "Warning: calibrated with 2 scans" in shown.output
    result = predict(run, dataset / "imagesTr/s24_0000.nii.gz", tmp_path / "out", options=ASKED)
    assert all(row["expected_dice"] is None and 0 < row["agreement"] < 1 for row in result.worth)
    assert any("of muscle, bone there is the bare agreement" in warning for warning in result.warnings)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_uncertainty_without_its_calibration_is_refused(folds, dataset, tmp_path):
    spec = make_spec("volumes", name="limbs", channels=("MRI",))
    run = save_run(tmp_path / "run", threshold_network(spec), spec, {"train": ["s00"], "test": ["s24"]})
    with pytest.raises(DataError, match=r"run: holds no uncertainty.json, .* 'tfmuscle calibrate -m .*run -i DATASET'"):
        predict(run, dataset, tmp_path / "out", options=ASKED)
    assert not (tmp_path / "out").exists()
    Calibration(("another",), True, THRESHOLDS.to_dict()).save(run / CALIBRATION_FILE)
    with pytest.raises(DataError, match=r"was learnt of other networks \(1 of them\) than the 1 given; make it anew"):
        predict(run, dataset, tmp_path / "out", options=ASKED)
    with pytest.raises(DataError, match="run: every scan that is not of the test set was trained on by all 1 networks"):
        calibrate(run, dataset)


def test_other_mirrors_labels_and_models_are_refused(calibrated, folds, dataset, tmp_path):
    with pytest.raises(DataError, match="calibrated with --mirror; predict so, or calibrate anew with --no-mirror"):
        predict(folds, dataset, tmp_path / "out", part="test", mirror=False, options=ASKED)
    content = read_json(folds / CALIBRATION_FILE)
    (folds / CALIBRATION_FILE).write_text(json.dumps(content | {"labels": {"background": 0, "muscle": 4}}))
    try:
        with pytest.raises(DataError, match="was learnt of other networks"):
            predict(folds, dataset, tmp_path / "out", part="test", options=ASKED)
    finally:
        (folds / CALIBRATION_FILE).write_text(json.dumps(content))
    (tmp_path / "cascade").mkdir()
    (tmp_path / "cascade/cascade.json").write_text("{}")
    with pytest.raises(DataError, match="cascade: is a bundle or a cascade, and uncertainty is of run folders"):
        predict(tmp_path / "cascade", dataset, tmp_path / "out", options=ASKED)
    with pytest.raises(DataError, match="is on a server, and uncertainty is of run folders"):
        predict(folds, dataset, tmp_path / "out", options=dataclasses.replace(ASKED, server="grpc://here:1/a"))
    with pytest.raises(DataError, match="cascade: uncertainty is of run folders; give those that 'tfmuscle fit' wrote"):
        calibrate_cascade(tmp_path)
    assert not (tmp_path / "out").exists()


def calibrate_cascade(folder):
    """A cascade opens as something else than an ensemble; a stand-in, as one takes seconds to make."""
    from unittest import mock

    with mock.patch("tfmuscle.workflows.calibrating.opened", return_value=object()):
        calibrate(folder / "cascade", folder)


def test_another_dataset_or_missing_scans_are_refused(folds, dataset, tmp_path):
    other = tmp_path / "other"
    for part in ("imagesTr", "labelsTr"):
        (other / part).mkdir(parents=True)
        for path in (dataset / part).glob("s0[0-8]*"):
            (other / part / path.name).symlink_to(path)
    about = read_json(dataset / "dataset.json") | {"numTraining": 9}
    write_json(other / "dataset.json", about | {"name": "arms"})
    with pytest.raises(
        DataError, match="other: is dataset 'arms', the networks were trained on 'limbs'; give that one"
    ):
        calibrate(folds, other)
    write_json(other / "dataset.json", about)
    with pytest.raises(DataError, match="other: lacks s09, s10, s11, s12, s13 of the networks' 24 validation scans"):
        calibrate(folds, other)


def test_a_scan_that_cannot_be_read_is_named_and_the_others_go_on(folds, dataset, tmp_path):
    spec = make_spec("volumes", name="limbs", channels=("MRI",))
    parts = {"train": [], "validation": ["s00", "s01"]}
    run = save_run(tmp_path / "run", threshold_network(spec), spec, parts)
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for path in (dataset / part).glob("s0[01]*"):
            (tmp_path / "data" / part / path.name).symlink_to(path)
    write_json(tmp_path / "data/dataset.json", read_json(dataset / "dataset.json") | {"numTraining": 2})
    (tmp_path / "data/imagesTr/s00_0000.nii.gz").unlink()
    (tmp_path / "data/imagesTr/s00_0000.nii.gz").write_bytes(b"broken")
    result = calibrate(run, tmp_path / "data")
    assert list(result.failures) == ["s00"] and result.calibration.scans == ("s01",)
    (tmp_path / "data/imagesTr/s01_0000.nii.gz").unlink()
    (tmp_path / "data/imagesTr/s01_0000.nii.gz").write_bytes(b"broken")
    with pytest.raises(DataError, match="data: no scan could be used: .*s00_0000.nii.gz"):
        calibrate(run, tmp_path / "data")


def test_voxels_are_asked_in_the_box_of_the_structures():
    # 40 x 40 x 40 voxels of 2 mm, a structure of 2 voxels in the middle: 5 voxels of margin on every side.
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[20:22, 20:22, 20:22] = 4
    labels[21, 21, 21] = 255
    asked = voxels_to_ask(Volume(labels, scan_grid(labels.shape, (2.0, 2.0, 2.0))), THRESHOLDS)
    known = asked >= 0
    assert known.sum() == 12**3 - 1 and (asked == 1).sum() == 7 and not known[21, 21, 21]
    assert known[15, 15, 15] and known[26, 26, 26] and not known[14].any() and not known[27].any()
    many = voxels_to_ask(Volume(np.full((40, 40, 40), 9, np.uint8), scan_grid(labels.shape)), THRESHOLDS)
    assert (many >= 0).sum() == VOXELS and set(np.unique(many)) == {-1, 2}
