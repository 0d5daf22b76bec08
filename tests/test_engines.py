"""Converted networks, judged by the Keras network they were made from and by ONNX Runtime and OpenVINO themselves."""

import dataclasses
import os

import keras
import numpy as np
import pytest

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import sha256
from tfmuscle.inference import Run, conversion, engines, load_run, predict_probabilities, predict_volume, with_engine
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
LABELS = LabelMap({1: "tibia", 2: "femur"})
CONVERTED = ("onnx", "openvino")


def scan(shape=(32, 32, 5), seed=0):
    array = np.random.default_rng(seed).uniform(0, 3, shape).astype(np.float32)
    return Volume(array, Geometry(shape, np.eye(4)), "scan.nii.gz")


def network(spec, *, deep_supervision=False):
    """A little U-Net with random weights, of the layers that the architectures are made of."""
    axes = "3D" if spec.is_volumetric else "2D"
    convolution, transposed = (getattr(keras.layers, f"Conv{axes}{end}") for end in ("", "Transpose"))
    image = keras.Input(spec.input_shape, name="image")
    fine = keras.layers.LeakyReLU(0.01)(keras.layers.GroupNormalization(-1)(convolution(4, 3, padding="same")(image)))
    coarse = keras.layers.BatchNormalization()(convolution(8, 3, strides=2, padding="same", activation="relu")(fine))
    joined = keras.layers.Concatenate()([transposed(4, 2, strides=2)(coarse), fine])
    heads = [keras.layers.Softmax(dtype="float32")(convolution(spec.num_classes, 1)(x)) for x in (joined, coarse)]
    outputs = {"probabilities": heads[0], "probabilities_1": heads[1]}
    return keras.Model(image, outputs if deep_supervision else heads[0])


def save_run(folder, kind="slices", **options):
    """A run with random weights."""
    spec = DataSpec(LABELS, kind=kind, size=(16, 16), depth=16 if kind == "volumes" else 1, normalisation="none")
    keras.utils.set_random_seed(3)
    folder.mkdir()
    spec.save(folder / "spec.json")
    TrainConfig().save(folder / "train.json")
    network(spec, **options).save(folder / "best.keras")
    (folder / "about.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Run of 2D slices, converted once for the tests that share it."""
    return save_run(tmp_path_factory.mktemp("engines") / "run")


def needs(engine):
    for library in engines.LIBRARIES.get(engine, ()):
        pytest.importorskip(library)


@pytest.mark.parametrize("engine", ["xla", *CONVERTED])
def test_an_engine_says_what_keras_says(run_folder, engine):
    needs(engine)
    run = load_run(run_folder)
    other = with_engine(run, engine)
    assert not other.engine.proven
    expected = predict_probabilities(run, scan()).array
    found = predict_probabilities(other, scan(), batch_size=7).array  # the last batch is smaller
    assert other.engine.proven and (other.engine.name, other.engine.note) == (engine, "")
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 sums in another order
    assert found.shape == expected.shape and np.abs(found.sum(-1) - 1).max() < 1e-5
    assert (predict_volume(other, scan()).array != predict_volume(run, scan()).array).mean() < 1e-3  # ties
    assert run.engine is None


def test_the_converted_network_is_kept_for_these_weights_only(run_folder, tmp_path):
    needs("onnx")
    with_engine(load_run(run_folder), "onnx")
    (file,) = (run_folder / "engines").iterdir()
    assert file.name == sha256(run_folder / "best.keras") + ".onnx"
    made = file.stat().st_mtime_ns
    with_engine(load_run(run_folder), "onnx")
    assert file.stat().st_mtime_ns == made
    file.write_bytes(b"no network")
    with pytest.raises(DataError, match=r"\.onnx: onnx cannot run it \(.*\); remove it, or use --engine keras"):
        with_engine(load_run(run_folder), "onnx")
    assert with_engine(load_run(run_folder), "auto").engine is not None
    file.unlink()


def test_a_run_folder_that_cannot_be_written_to_is_no_obstacle(run_folder, monkeypatch):
    monkeypatch.setattr(engines, "to_onnx", lambda run: b"a network")
    folder = run_folder / "engines"
    for file in folder.glob("*"):
        file.unlink()
    folder.exists() and folder.rmdir()
    folder.write_text("a file where the folder should be")
    assert engines._converted(load_run(run_folder), folder / "weights.onnx") == b"a network"
    assert folder.is_file()
    folder.unlink()


def test_three_axes_deep_supervision_and_mixed_precision(tmp_path):
    needs("openvino")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run = load_run(save_run(tmp_path / "run", "volumes", deep_supervision=True))
    finally:
        keras.config.set_dtype_policy(policy)
    assert {layer.compute_dtype for layer in run.model.layers} == {"bfloat16", "float32"}
    single = dataclasses.replace(run, model=conversion.plain(run.model))
    assert {layer.compute_dtype for layer in single.model._flatten_layers()} == {"float32"}
    for one, other in zip(single.model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    images = np.random.default_rng(1).normal(size=(2, *run.spec.input_shape)).astype(np.float32)
    expected, found = single.probabilities(images), with_engine(run, "openvino").probabilities(images)
    assert found.shape == (2, 16, 16, 16, 3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(run.probabilities(images) - expected).max() > 1e-4  # it was bfloat16 before


# --- the proof --------------------------------------------------------------------------------------------------------


def made(infer, reference, **options):
    return engines.Engine("onnx", infer, reference, "runs/one", **options)


def softly(margin):
    """Answers with two classes that differ by `margin`."""
    return lambda images: np.stack([0.5 + margin / 2 + 0 * images, 0.5 - margin / 2 + 0 * images], axis=-1)


IMAGES = np.zeros((2, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("infer", "reference", "message"),
    [
        (softly(0.3), softly(0.2), r"onnx differs from Keras by 0.05 \(0.005 is allowed\) and in 0 clear labels"),
        (softly(-0.006), softly(0.006), "onnx differs from Keras by 0.006 .* and in 32 clear labels"),
        (lambda images: softly(0.2)(images) * np.nan, softly(0.2), "onnx differs from Keras by nan"),
        (lambda images: images, softly(0.2), r"onnx returns the shape \(2, 4, 4\), Keras \(2, 4, 4, 2\)"),
    ],
)
def test_an_engine_that_differs_is_refused_or_replaced(infer, reference, message):
    refused = made(infer, reference, must_be=True)
    for _ in range(2):  # for every scan anew
        with pytest.raises(DataError, match=f"runs/one: {message}.*; use --engine keras"):
            refused.prove(IMAGES)
    replaced = made(infer, reference, must_be=False)
    replaced.prove(IMAGES)
    assert replaced.name == "keras" and replaced.note.endswith("; Keras is used instead")
    np.testing.assert_array_equal(replaced(IMAGES), reference(IMAGES))


def test_labels_within_the_tolerance_may_differ():
    engine = made(softly(-0.002), softly(0.002), must_be=True)
    engine.prove(IMAGES)
    assert engine.proven and engine.name == "onnx"


def test_a_proof_on_the_first_scan_stops_the_prediction(run_folder):
    run = load_run(run_folder)
    wrong = made(lambda images: run.probabilities(images)[..., ::-1], run.probabilities, must_be=True)
    with pytest.raises(DataError, match="onnx differs from Keras"):
        predict_volume(dataclasses.replace(run, engine=wrong), scan())


# --- choice and errors ------------------------------------------------------------------------------------------------


def test_missing_libraries_are_named_in_one_line(run_folder, monkeypatch):
    run = load_run(run_folder)
    found = {"onnx", "onnxruntime"}
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name in found or None)
    with pytest.raises(DataError, match=r"engine openvino needs openvino, tf2onnx; .* 'tfmuscle\[engines\]'") as caught:
        with_engine(run, "openvino")
    assert "\n" not in str(caught.value)
    assert with_engine(run, "auto") is run  # nothing faster is there


def test_automatic_is_the_fastest_that_is_installed(run_folder, monkeypatch):
    run, found = load_run(run_folder), {"onnx", "onnxruntime", "tf2onnx"}
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name in found or None)
    monkeypatch.setattr(engines, "_STARTS", {name: lambda run: run.probabilities for name in CONVERTED})
    assert with_engine(run, "auto").engine.name == "onnx"
    found.add("openvino")
    assert with_engine(run, "auto").engine.name == "openvino"
    volumes = dataclasses.replace(run, spec=dataclasses.replace(run.spec, kind="volumes", depth=8))
    assert with_engine(volumes, "auto") is volumes  # converted 3D networks are slower
    monkeypatch.setattr(engines.tf.config, "list_physical_devices", lambda kind: ["one"])
    assert with_engine(run, "auto") is run  # a graphics processor is better used by Keras


def test_a_network_that_cannot_be_converted_is_predicted_by_keras(run_folder, monkeypatch):
    needs("onnx")

    def refuse(*args, **kwargs):
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr("tf2onnx.tfonnx.process_tf_graph", refuse)
    run = load_run(run_folder)
    with pytest.raises(DataError, match=r"run: cannot be converted to ONNX \(no such operation\); use --engine keras"):
        with_engine(run, "onnx")
    other = with_engine(run, "auto")
    assert other.engine.name == "keras" and other.engine.note.endswith("use --engine keras; Keras is used instead")
    np.testing.assert_array_equal(predict_volume(other, scan()).array, predict_volume(run, scan()).array)


def test_an_unknown_engine_is_refused(run_folder):
    with pytest.raises(ValueError, match="engine is 'tvm'; choose one of keras, auto, xla, onnx, openvino, tensorrt"):
        with_engine(load_run(run_folder), "tvm")


def test_instance_normalisation_is_rebuilt_on_the_axes_of_its_input():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 8, 8, 4), name="image")
    layers = [keras.layers.GroupNormalization(-1, epsilon=0.1), keras.layers.GroupNormalization(2)]
    flat = keras.Model(image, layers[1](layers[0](image)))
    flat.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in flat.get_weights()])
    again = conversion.plain(flat)
    assert [type(layer).__name__ for layer in again.layers[1:]] == ["_InstanceNormalization", "GroupNormalization"]
    images = np.random.default_rng(2).normal(3, 2, size=(2, 6, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(again(images), flat(images), atol=1e-5)


def test_grouped_convolutions_of_three_axes_are_converted(tmp_path):
    needs("onnx")
    keras.utils.set_random_seed(0)
    spec = DataSpec(LABELS, kind="volumes", size=(8, 8), depth=4, channels=("a", "b", "c", "d"))
    image = keras.Input(spec.input_shape, name="image")
    hidden = keras.layers.Conv3D(6, 3, groups=2, padding="same")(image)
    run = Run(
        keras.Model(image, keras.layers.Conv3D(3, 1, activation="softmax")(hidden)), spec, TrainConfig(), tmp_path
    )
    images = np.random.default_rng(2).normal(size=(2, *spec.input_shape)).astype(np.float32)
    for start in (engines.onnx_session, engines.openvino_session):
        np.testing.assert_allclose(start(engines.to_onnx(run))(images), run.probabilities(images), atol=1e-5)


def test_all_cores_are_used():
    assert 1 <= engines._num_threads() <= os.cpu_count()
