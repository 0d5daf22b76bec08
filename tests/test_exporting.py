"""Bundles: written, proven, opened again without Keras, and refused when one byte has changed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tfmuscle.errors import DataError
from tfmuscle.export import parity
from tfmuscle.export.bundle import open_bundle, versions
from tfmuscle.inference import Run
from tfmuscle.io import read_volume
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.exporting import ExportOptions, export
from tfmuscle.workflows.predicting import PredictOptions, predict

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
CONVERTED = ("onnx", "openvino", "litert")


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory):
    """A bundle of every format."""
    out = tmp_path_factory.mktemp("saved_models") / "bones"
    results = {name: export([tiny_run], out, name) for name in ("saved_model", *CONVERTED)}
    return out, results


@pytest.fixture(scope="module")
def scan(phantom_dataset):
    return read_dataset(phantom_dataset).subjects[0].images[0]


@pytest.fixture(scope="module")
def expected(tiny_run, scan, tmp_path_factory):
    """Labels by Keras."""
    out = tmp_path_factory.mktemp("keras") / "labels.nii.gz"
    predict(tiny_run, scan, out)
    return read_volume(out)


def test_all_formats_share_one_version_and_are_proven(bundle):
    out, results = bundle
    assert versions(out) == [1]
    assert open_bundle(out).formats == ("saved_model", *CONVERTED)
    for name, result in results.items():
        assert result.path == out / "1" and result.parity.problem == "" and result.parity.windows > 1
        assert result.parity.largest_difference <= parity.TOLERANCE[name]
    assert results["saved_model"].parity.equal_scan_labels >= parity.SHARE
    assert results["onnx"].parity.equal_scan_labels is None  # raw scans are for the SavedModel


@pytest.mark.parametrize("engine", ["keras", "saved_model", *CONVERTED])
def test_a_bundle_labels_as_keras_does(bundle, scan, expected, engine, tmp_path):
    result = predict(bundle[0], scan, tmp_path / "labels.nii.gz", options=PredictOptions(engine=engine))
    assert not result.failures
    labels = read_volume(tmp_path / "labels.nii.gz")
    assert labels.geometry.same_grid(expected.geometry)
    assert (labels.array == expected.array).mean() >= parity.SHARE


def test_the_saved_model_needs_neither_keras_nor_tfmuscle(bundle, scan, expected, tmp_path):
    image = read_volume(scan)
    np.savez(
        tmp_path / "scan.npz", volume=image.array[..., np.newaxis].astype(np.float32), affine=image.geometry.affine
    )
    code = f"""
import sys
import numpy as np, tensorflow as tf
sys.modules["keras"] = None
scan = np.load({str(tmp_path / "scan.npz")!r}, allow_pickle=False)
segment = tf.saved_model.load({str(bundle[0] / "1")!r}).signatures["segment"]
labels = segment(volume=tf.constant(scan["volume"]), affine=tf.constant(scan["affine"]))["labels"].numpy()
assert not [name for name in sys.modules if name.startswith("tfmuscle")]
np.save({str(tmp_path / "labels.npy")!r}, labels)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (np.load(tmp_path / "labels.npy") == expected.array).mean() >= parity.SHARE


def test_the_card_says_what_the_files_say_and_what_nobody_told(bundle, tiny_run):
    text = (bundle[0] / "1" / "MODEL_CARD.md").read_text(encoding="utf-8")
    dice = json.loads((tiny_run / "about.json").read_text())["best_validation_dice"]
    assert "not for diagnosis" in text and "femur" in text and f"{dice:.3f}" in text
    assert "Licence of the weights:** not stated" in text and "too good for new scans" in text
    about = open_bundle(bundle[0]).about
    assert about["identity"]["weights"][0] in text


@pytest.mark.parametrize("name", ["saved_model.pb", "spec.json", "onnx/network.onnx", "bundle.json", "MODEL_CARD.md"])
def test_one_changed_byte_is_refused(bundle, scan, name, tmp_path):
    file = bundle[0] / "1" / name
    before = file.read_bytes()
    place = len(before) // 2
    file.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    try:
        with pytest.raises(DataError, match=f"{name.rpartition('/')[2]}.*(changed|valid JSON)"):
            predict(bundle[0], scan, tmp_path / "labels.nii.gz")
    finally:
        file.write_bytes(before)


def test_one_changed_byte_of_any_file_of_any_format_is_refused(bundle):
    folder = bundle[0] / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = {"saved_model.pb", "network.onnx", "network.xml", "network.bin", "network.tflite", "train_0.json"}
    assert kinds <= {path.name for path in files} and any("variables.data" in path.name for path in files)
    for file in files:
        before = file.read_bytes()
        for place in {0, len(before) - 1} if before else ():
            file.write_bytes(before[:place] + bytes([before[place] ^ 32]) + before[place + 1 :])
            with pytest.raises(DataError, match=f"{file.name}.*(changed|valid JSON)"):
                open_bundle(bundle[0])
        file.write_bytes(before)
    open_bundle(folder)


def test_an_export_that_fails_leaves_the_version_as_it_was(bundle, tiny_run, scan, monkeypatch):
    honest = Run.probabilities
    monkeypatch.setattr(Run, "probabilities", lambda run, images: honest(run, images)[..., ::-1])
    with pytest.raises(DataError, match="says something else than Keras"):
        export([tiny_run], bundle[0], "onnx", options=ExportOptions(scans=scan, licence="another"))
    assert open_bundle(bundle[0]).formats == ("saved_model", *CONVERTED)
    assert not list(bundle[0].glob(".tmp-*"))


def test_a_strange_file_and_a_missing_one_are_refused(bundle):
    strange = bundle[0] / "1" / "strange.py"
    strange.write_text("")
    try:
        with pytest.raises(DataError, match=r"strange\.py: was not exported with this bundle"):
            open_bundle(bundle[0])
    finally:
        strange.unlink()
    with pytest.raises(DataError, match="holds no bundle"):
        open_bundle(bundle[0].parent)


def test_other_settings_become_the_next_version(bundle, tiny_run):
    out, _ = bundle
    result = export([tiny_run], out, "onnx", options=ExportOptions(mirror=False, licence="CC BY 4.0"))
    assert result.path == out / "2" and versions(out) == [1, 2]
    assert "CC BY 4.0" in (out / "2" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert open_bundle(out).path == out / "2" and open_bundle(out / "1").formats[0] == "saved_model"


def test_a_network_that_says_something_else_is_no_success(tiny_run, scan, tmp_path, monkeypatch):
    honest = Run.probabilities
    monkeypatch.setattr(Run, "probabilities", lambda run, images: honest(run, images)[..., ::-1])
    with pytest.raises(DataError, match="the exported onnx says something else than Keras: a probability differs by"):
        export([tiny_run], tmp_path / "wrong", "onnx", options=ExportOptions(scans=scan))
    assert not (tmp_path / "wrong").exists() or not any((tmp_path / "wrong").iterdir())


def test_a_run_whose_records_are_gone_asks_for_scans(tiny_run, tmp_path, scan):
    note = tiny_run / "records.json"
    before = note.read_text()
    note.write_text(json.dumps({"records": str(tmp_path / "gone")}))
    try:
        with pytest.raises(DataError, match="no longer there; give scans to compare on with -i"):
            export([tiny_run], tmp_path / "bundle", "onnx")
        assert export([tiny_run], tmp_path / "bundle", "onnx", options=ExportOptions(scans=scan)).parity.windows > 1
    finally:
        note.write_text(before)


def test_a_cascade_and_a_network_that_carries_masks_are_refused_by_name(tiny_run, tmp_path):
    (tmp_path / "cascade.json").write_text("{}")
    with pytest.raises(DataError, match="is a cascade, whose boxes come from .*; label scans .* 'tfmuscle predict -m"):
        export([tmp_path], tmp_path / "bundle", "saved_model")
    carrying = tmp_path / "carrying"
    carrying.mkdir()
    for name in ("spec.json", "train.json"):
        (carrying / name).write_text((tiny_run / name).read_text())
    (carrying / "propagation.json").write_text("{}")
    with pytest.raises(DataError, match="carries masks from drawn slices .*; use 'tfmuscle propagate -m"):
        export([carrying], tmp_path / "bundle", "onnx")


def test_engines_of_bundles_are_refused_for_runs(tiny_run, scan, tmp_path):
    with pytest.raises(DataError, match="engine saved_model is for bundles, which 'tfmuscle export' makes"):
        predict(tiny_run, scan, tmp_path / "labels.nii.gz", options=PredictOptions(engine="saved_model"))
    with pytest.raises(ValueError, match="format is 'caffe'; choose one of saved_model"):
        export([tiny_run], tmp_path / "bundle", "caffe")
