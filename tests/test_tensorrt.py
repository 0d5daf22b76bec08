"""TensorRT but for TensorRT: what the library does around it, with stand-ins for NVIDIA's two libraries."""

import gc
import json
import sys

import numpy as np
import pytest
from known_networks import make_run, make_spec, random_network
from tensorrt_stand_in import Machine
from test_engines import save_run, scan

from tfmuscle.errors import DataError
from tfmuscle.export import formats
from tfmuscle.export.bundle import open_bundle
from tfmuscle.inference import load_run, predict_probabilities, tensorrt, with_engine
from tfmuscle.inference.conversion import onnx_of
from tfmuscle.inference.engines import batches_of, can_run, onnx_session
from tfmuscle.io import read_volume
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.exporting import ExportOptions, check_options, export
from tfmuscle.workflows.predicting import PredictOptions, predict

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
BATCHES = tensorrt.Batches(2, 3)
SPEC = make_spec("slices", size=(8, 8))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return onnx_of(make_run(random_network(SPEC), SPEC).forward, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where engines are kept, of every test its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfmuscle" / "tensorrt"


@pytest.fixture
def machine(monkeypatch):
    """A machine with stand-ins for TensorRT 11 and CUDA."""
    return Machine().install(monkeypatch)


def images(count):
    return np.random.default_rng(count).normal(size=(count, *SPEC.input_shape)).astype(np.float32)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_an_engine_is_built_strongly_typed_with_a_free_batch(monkeypatch, network, version, tmp_path):
    machine = Machine(version).install(monkeypatch)
    infer = tensorrt.start(network, BATCHES, tmp_path)
    found = infer(images(7))
    np.testing.assert_allclose(found, onnx_session(network)(images(7)), atol=1e-6)
    assert [shape[0] for shape, _ in machine.made("execute")] == [3, 3, 1]
    assert machine.made("create_network") == [(2,)]  # 1 << STRONGLY_TYPED
    assert machine.made("set_shape") == [("image", (1, 8, 8, 1), (2, 8, 8, 1), (3, 8, 8, 1))]
    ((flags, parsed),) = machine.made("build")
    assert not flags and parsed == network  # TF32 is off


def test_memory_of_the_gpu_is_given_back(machine, network, tmp_path):
    infer = tensorrt.start(network, BATCHES, tmp_path)
    assert sorted(map(len, machine.memory.values())) == [4 * 3 * 64, 4 * 3 * 64 * SPEC.num_classes]
    del infer
    gc.collect()
    assert not machine.memory


def test_an_engine_is_kept_for_one_gpu_version_network_and_batch(monkeypatch, network, cache, tmp_path):
    def builds(batches=BATCHES, asked=network, **about):
        machine = Machine(**about).install(monkeypatch)
        tensorrt.start(asked, batches, tmp_path)
        return len(machine.made("build"))

    assert builds() == 1 and builds() == 0
    assert builds(gpu="NVIDIA A10") == 1 and builds(capability=(8, 9)) == 1 and builds(version="11.5.0.1") == 1
    assert builds(tensorrt.Batches(1, 3)) == 1
    other = onnx_of(make_run(random_network(SPEC, seed=5), SPEC).forward, tmp_path)
    assert builds(asked=other) == 1 and builds(asked=other) == 0 and builds() == 0
    assert len(list(cache.iterdir())) == 6


def test_an_engine_of_another_gpu_or_a_changed_one_is_built_again(monkeypatch, network, cache, tmp_path):
    Machine(gpu="NVIDIA A10").install(monkeypatch)
    tensorrt.start(network, BATCHES, tmp_path)
    machine = Machine().install(monkeypatch)
    (theirs,) = cache.iterdir()
    facts = tensorrt.described(tensorrt.libraries(), network, BATCHES)
    ours = cache / tensorrt._file_name(facts)
    theirs.rename(ours)  # as if it were for this one
    tensorrt.start(network, BATCHES, tmp_path)
    assert len(machine.made("build")) == 1 and list(cache.iterdir()) == [ours]
    content = ours.read_bytes()
    for place in (5, len(content) // 2, len(content) - 1):
        ours.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert tensorrt.kept(ours, facts) is None
        tensorrt.start(network, BATCHES, tmp_path)
        assert ours.read_bytes() == content


def test_an_engine_that_tensorrt_does_not_open_is_built_again(monkeypatch, network, cache, tmp_path):
    machine = Machine().install(monkeypatch)
    tensorrt.start(network, BATCHES, tmp_path)
    facts = tensorrt.described(tensorrt.libraries(), network, BATCHES)
    path = cache / tensorrt._file_name(facts)
    tensorrt.keep(path, facts, json.dumps({"for": "another driver"}).encode() + b"\n")
    tensorrt.start(network, BATCHES, tmp_path)
    assert len(machine.made("build")) == 2


def test_a_disk_that_keeps_nothing_is_no_obstacle(machine, network, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tensorrt.start(network, BATCHES, tmp_path)(images(1)).shape == (1, 8, 8, SPEC.num_classes)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_without_the_libraries_it_says_where_they_are(network, tmp_path, monkeypatch):
    for name in ("tensorrt", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    install = r"pip install tensorrt cuda-python --extra-index-url https://pypi\.nvidia\.com"
    with pytest.raises(DataError, match=f"cannot be loaded .*; on a machine with an NVIDIA GPU: {install}"):
        tensorrt.start(network, BATCHES, tmp_path)
    with pytest.raises(DataError, match=rf"format tensorrt needs tensorrt, cuda; .*\[engines\]' and {install}"):
        formats.check_libraries("tensorrt")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"version": "9.3.0"}, "version 9.3.0 is not known, 10 and 11 are; pip install"),
        ({"has_gpu": False}, r"the GPU does not answer \(no CUDA-capable device is detected\)"),
        ({"unknown_operation": "Einsum"}, r"cannot read the network \(no importer for Einsum\); use --format onnx"),
        ({"can_build": False}, "could not build an engine, .*; a smaller --batch needs less memory"),
    ],
)
def test_what_is_wrong_is_one_line(monkeypatch, network, about, message, tmp_path):
    Machine(**about).install(monkeypatch)
    with pytest.raises(DataError, match=message) as caught:
        tensorrt.start(network, BATCHES, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [(0, 4), (5, 4), (-1, -1)])
def test_batches_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError, match=f"batches {numbers[0]} and {numbers[1]}: give the usual number .* at least 1"):
        tensorrt.Batches(*numbers)


def test_batches_are_those_that_prediction_sends():
    assert batches_of((1, 256, 256)) == tensorrt.Batches(8, 8) and batches_of((128, 128, 128)) == tensorrt.Batches(1, 1)


# --- runs and bundles -------------------------------------------------------------------------------------------------


def test_a_run_is_predicted_by_an_engine(machine, tmp_path):
    run = load_run(save_run(tmp_path / "run"))
    other = with_engine(run, "tensorrt")
    expected = predict_probabilities(run, scan()).array
    np.testing.assert_allclose(predict_probabilities(other, scan()).array, expected, atol=1e-4)
    assert other.engine.proven and other.engine.name == "tensorrt" and machine.made("execute")


def test_automatic_takes_it_only_where_there_is_a_gpu(machine, monkeypatch):
    assert not can_run("tensorrt")
    monkeypatch.setattr("tfmuscle.inference.engines.tf.config.list_physical_devices", lambda kind: ["one"])
    assert can_run("tensorrt")


@pytest.fixture
def one_scan(phantom_dataset):
    return read_dataset(phantom_dataset).subjects[0].images[0]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_bundle_holds_what_an_engine_is_built_from_and_predicts(machine, tiny_run, one_scan, precision, tmp_path):
    options = ExportOptions(scans=one_scan, precision=precision, batch=(2, 4))
    result = export([tiny_run], tmp_path / "bundle", "tensorrt", options=options)
    assert result.parity.problem == "" and result.parity.tolerance == {"float32": 5e-3, "float16": 2e-2}[precision]
    bundle = open_bundle(tmp_path / "bundle")
    held = sorted(path.name for path in (bundle.path / "tensorrt").iterdir())
    assert held == ["engine.json", "network.onnx"]
    assert json.loads((bundle.path / "tensorrt/engine.json").read_text()) == {"precision": precision, "batches": [2, 4]}
    file = bundle.path / "tensorrt/network.onnx"
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(DataError, match=r"network\.onnx: is missing or has changed"):
        open_bundle(tmp_path / "bundle")
    file.write_bytes(before)
    shown = "| tensorrt |" if precision == "float32" else "| tensorrt float16 |"
    assert shown in (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name, model, engine in (("keras", tiny_run, "keras"), ("engine", tmp_path / "bundle", "tensorrt")):
        predict(model, one_scan, tmp_path / f"{name}.nii.gz", options=PredictOptions(engine=engine))
    labels = [read_volume(tmp_path / f"{name}.nii.gz").array for name in ("keras", "engine")]
    assert (labels[0] == labels[1]).mean() > 0.9995
    assert len(machine.made("build")) == 1  # when it was exported; then it was kept


def test_int8_is_measured_on_real_windows_once(machine, tiny_run, one_scan, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("tfmuscle.export.parity.SHARE", 0.9)  # see the next test
    options = ExportOptions(scans=one_scan, precision="int8")
    export([tiny_run], tmp_path / "one", "tensorrt", options=options)
    sizes = json.loads((tmp_path / "one/1/tensorrt/sizes.json").read_text())
    assert sizes["number"] > 10 and all(size > 0 for size in sizes["largest"].values())
    assert [json.loads(path.read_text()) for path in cache.glob("*.sizes.json")] == [sizes]

    def never(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(formats, "measured", never)
    export([tiny_run], tmp_path / "two", "tensorrt", options=options)


def test_a_precision_that_changes_labels_is_no_success(machine, tiny_run, one_scan, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "measured", lambda network, windows: {"nothing": 1.0})
    honest = formats.in_precision
    monkeypatch.setattr(formats, "in_precision", lambda network, *rest: honest(wrong(network), "float32"))

    def wrong(network):
        import onnx
        from onnx import numpy_helper

        model = onnx.load_from_string(network)
        for constant in model.graph.initializer:
            values = numpy_helper.to_array(constant)
            if values.dtype == np.float32 and values.ndim == 4:
                constant.CopyFrom(numpy_helper.from_array(np.round(values * 4) / 4, constant.name))
        return model.SerializeToString()

    with pytest.raises(DataError, match="the exported tensorrt says something else .*; int8 is too coarse for it"):
        export([tiny_run], tmp_path / "out", "tensorrt", options=ExportOptions(scans=one_scan, precision="int8"))
    assert not (tmp_path / "out" / "1").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("onnx", {"precision": "float16"}, "format onnx is float32 and takes any batch; precision and batch are for"),
        ("openvino", {"batch": (1, 2)}, "format openvino is float32 and takes any batch"),
        ("tensorrt", {"precision": "fp8"}, "precision is 'fp8'; choose one of float32, float16, bfloat16, int8"),
        ("tensorrt", {"batch": (4, 2)}, "batches 4 and 2: give the usual number of samples and then the largest"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        check_options(name, ExportOptions(**settings))
