"""A bundle with a real network where servers load it: TensorFlow's C API without its Python, and both protocols."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from c_api_session import __file__ as C_API
from click.testing import CliRunner
from known_networks import SCANS, make_run, make_spec, random_network, random_scan, scan_grid
from model_server import GrpcServer, Model, RestServer
from served_bundles import write_made_bundle

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.export.formats import Wanted, write_saved_model
from tfmuscle.export.segment import Segmenter
from tfmuscle.inference import predict_volume
from tfmuscle.io import read_volume, write_volume
from tfmuscle.workflows.predicting import PredictOptions, predict

LIBRARY = Path(tf.__file__).parent / "libtensorflow_cc.so.2"
TOLERANCE = 1e-5
"""Of a probability, as `export` allows for SavedModels."""
SHARE = 0.9999
"""Of the voxels have the same label; the rest lie where two classes are equally likely to the last digits."""


def write_network(run, *, segment=True):
    """Writes the SavedModel of a run."""
    return lambda folder: write_saved_model(Segmenter([run], mirror=True), folder, Wanted(segment=segment))


@pytest.fixture(scope="module")
def run():
    """A network of windows that are mirrored and blended, on another grid than the scan's."""
    spec = make_spec("slices", spacing=(1.2, 0.9, 1.0), normalisation="zscore")
    return make_run(random_network(spec), spec)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved_models") / "bones"
    write_made_bundle(out / "1", run.spec, config=run.config, write=write_network(run))
    return out


@pytest.fixture(scope="module")
def model(bundle):
    return Model.of(bundle / "1", "bones", 1)


@pytest.fixture(params=[GrpcServer, RestServer])
def server(request, model):
    made = request.param(model)
    yield made
    made.stop()


def options(server, **changes):
    return PredictOptions(**{"server": f"{server.scheme}://127.0.0.1:{server.port}/bones", "patience": 120.0} | changes)


def through_c(bundle, model, name, arrays, tmp_path):
    """What a signature says through the C API, in a process without TensorFlow's Python."""
    definition = model.signatures[name]
    asked = {definition.inputs[key].name: value for key, value in arrays.items()}
    (wanted,) = [info.name for info in definition.outputs.values()]
    np.savez(tmp_path / "asked.npz", outputs=np.array([wanted]), **asked)
    words = [C_API, LIBRARY, bundle / "1", tmp_path / "asked.npz", tmp_path / "answer.npz"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "answer.npz", allow_pickle=False) as content:
        return content["output_0"]


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"this TensorFlow has no {LIBRARY.name}")
def test_the_c_loader_gives_the_probabilities_of_keras(bundle, model, run, tmp_path):
    images = np.random.default_rng(2).normal(size=(3, *run.spec.input_shape)).astype(np.float32)
    found = through_c(bundle, model, "serving_default", {"image": images}, tmp_path)
    assert np.abs(found - run.probabilities(images)).max() <= TOLERANCE


@pytest.mark.skipif(not LIBRARY.exists(), reason=f"this TensorFlow has no {LIBRARY.name}")
def test_the_c_loader_segments_a_raw_oblique_scan(bundle, model, run, tmp_path):
    image = random_scan(SCANS["oblique"])
    arrays = {"volume": image.array, "affine": image.geometry.affine}
    found = through_c(bundle, model, "segment", arrays, tmp_path)
    expected = predict_volume(run, image).array
    assert found.dtype == expected.dtype and (found == expected).mean() >= SHARE and len(np.unique(found)) > 1


GRIDS = ("ras", "las", "oblique")


@pytest.fixture(scope="module")
def here(bundle, tmp_path_factory):
    """Folder of scans on straight, flipped and oblique grids, and their labels by `predict -m BUNDLE`."""
    folder = tmp_path_factory.mktemp("scans")
    for name in GRIDS:
        write_volume(folder / "scans" / f"{name}.nii.gz", random_scan(SCANS[name]))
    result = predict(bundle, folder / "scans", folder / "labels")
    return folder / "scans", {name: read_volume(path) for name, path in result.written.items()}


@pytest.fixture(scope="module")
def copy(bundle, tmp_path_factory):
    """What a client needs of the bundle: its JSON files."""
    folder = tmp_path_factory.mktemp("client") / "1"
    folder.mkdir()
    for path in (bundle / "1").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("send", ["auto", "windows"])
def test_a_served_bundle_labels_as_the_bundle_does(copy, server, run, here, send, tmp_path):
    server.faults.asked.clear()
    scans, expected = here
    result = predict(copy, scans, tmp_path / "labels", options=options(server, send=send))
    assert not result.failures and not result.warnings
    assert {name for name, _ in server.faults.asked} == {"segment" if send == "auto" else "serving_default"}
    for name in GRIDS:
        found = read_volume(result.written[name])
        assert found.geometry.same_grid(expected[name].geometry) and found.array.dtype == expected[name].array.dtype
        assert (found.array == expected[name].array).mean() >= SHARE and len(np.unique(found.array)) > 1
        keras = predict_volume(run, read_volume(scans / f"{name}.nii.gz")).array
        assert (found.array == keras).mean() >= SHARE


def test_the_same_weights_are_believed_and_others_of_the_same_shape_found_out(bundle, run, model, here, tmp_path):
    server = GrpcServer(model)
    result = predict(bundle, here[0] / "ras.nii.gz", tmp_path / "labels.nii.gz", options=options(server))
    assert not result.failures and [name for name, _ in server.faults.asked] == ["serving_default", "segment"]
    other = make_run(random_network(run.spec, seed=5), run.spec)
    write_made_bundle(tmp_path / "bones" / "1", run.spec, config=run.config, write=write_network(other, segment=False))
    with pytest.raises(DataError, match=r"serves another network than .*: on made samples \d+% of the voxels differ"):
        predict(tmp_path / "bones", tmp_path, tmp_path / "out", options=options(server))
    server.stop()


def test_a_scan_whose_probabilities_are_too_large_for_the_graph_is_refused_in_its_words(copy, server, tmp_path):
    geometry = scan_grid((6, 5, 4), (400.0, 400.0, 400.0))  # 1667 x 2223 x 2000 voxels at the model's size
    write_volume(tmp_path / "scan.nii.gz", random_scan(geometry))
    result = predict(copy, tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", options=options(server, send="scan"))
    assert "its probabilities would take more than 8 GB" in result.failures["scan"]


def test_a_changed_byte_is_refused_before_the_server_is_asked(bundle, tmp_path):
    file = bundle / "1" / "saved_model.pb"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        words = [
            "predict",
            "-m",
            bundle,
            "-i",
            tmp_path,
            "-o",
            tmp_path / "out",
            "--server",
            "grpc://127.0.0.1:1/bones",
        ]
        result = CliRunner().invoke(tfmuscle_group, list(map(str, words)))
        assert result.exit_code == 1 and "has changed since it was exported; copy the bundle again" in result.output
    finally:
        file.write_bytes(before)
