import json
import math
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.models import _segmentation_models

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

ENCODERS = sorted(set(models.available()) - {"unet"})
SMALL = {"unet": {"filters": 4, "levels": 3}}
ONE_BONE = LabelMap({1: "femur"})


def build_small(name, input_shape, num_classes=3, **options):
    return models.build(name, input_shape, num_classes, **SMALL.get(name, {}), **options)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def count(weights):
    return sum(math.prod(weight.shape) for weight in weights)


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("name", models.available())
class TestEveryModel:
    def test_contract(self, name, tmp_path):
        model = build_small(name, (32, 64, 1))
        assert [tensor.name for tensor in model.inputs] == ["image"]
        assert model.output_names == ["probabilities"]
        assert model.name == name
        images = noise(2, 32, 64, 1)
        probabilities = model(images).numpy()
        assert probabilities.shape == (2, 32, 64, 3)
        assert probabilities.dtype == np.float32
        # a float32 softmax of three terms
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
        assert probabilities.std() > 0
        model.save(tmp_path / "model.keras")
        again = models.load(tmp_path / "model.keras")
        np.testing.assert_array_equal(again(images).numpy(), probabilities)

    def test_float32_under_mixed_precision(self, name, policy):
        policy("mixed_float16")
        model = build_small(name, (32, 32, 1))
        probabilities = model(noise(1, 32, 32, 1)).numpy()
        assert probabilities.dtype == np.float32
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
        assert any(layer.compute_dtype == "float16" for layer in model.layers)

    def test_any_size(self, name):
        model = build_small(name, (None, None, 1))
        assert model(noise(1, 64, 32, 1)).shape == (1, 64, 32, 3)
        assert model(noise(1, 32, 96, 1)).shape == (1, 32, 96, 3)

    def test_describes_itself(self, name):
        about = models.describe(name)
        assert about["name"] == name
        assert about["source"]
        assert 0 < about["trainable_parameters"] <= about["parameters"]
        json.dumps(about)

    def test_takes_what_the_check_lets_pass(self, name):
        for height, width in ((32, 64), (48, 40), (33, 32)):
            spec = DataSpec(ONE_BONE, size=(height, width))
            options = SMALL.get(name, {})
            try:
                models.check_spec(name, spec, **options)
            except ValueError:
                with pytest.raises(ValueError, match="multiples of"):
                    models.build(name, spec.input_shape, spec.num_classes, **options)
            else:
                assert models.build(name, spec.input_shape, 2, **options).output_shape == (None, height, width, 2)

    def test_bad_arguments(self, name):
        with pytest.raises(ValueError, match=rf"{name} has no option 'filter_count'; "):
            models.build(name, (32, 32, 1), 3, filter_count=3)
        with pytest.raises(ValueError, match="num_classes is 1; at least 2 are needed, background included"):
            models.build(name, (32, 32, 1), 1)
        with pytest.raises(ValueError, match=r"input_shape \(32, 1\): .* spatial axes and channels"):
            models.build(name, (32, 1), 3)


def test_listing_and_checking_do_not_import_tensorflow():
    code = (
        "import sys; from tfmuscle import models\n"
        "from tfmuscle.config import DataSpec; from tfmuscle.labels import LabelMap\n"
        "for name in models.available(): models.check_spec(name, DataSpec(LabelMap({1: 'femur'})))\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_available():
    assert models.available() == ["mobilenetv2_unet", "resnet34_unet", "resnet50_unet", "unet", "vgg19_unet"]
    with pytest.raises(ValueError, match="no model is called 'resnet34'; did you mean 'resnet34_unet'"):
        models.build("resnet34", (32, 32, 1), 2)
    with pytest.raises(ValueError, match="no model is called 'blocks'; there are mobilenetv2_unet, "):
        models.describe("blocks")


# segmentation-models


def test_resnet34_counts():
    # methods: encoder and decoder of the published pipeline, frozen except batch normalisation
    frozen = models.build("resnet34_unet", (256, 256, 3), 5, freeze_encoder=True)
    assert count(frozen.weights) == 24_456_734
    assert count(frozen.trainable_weights) == 3_167_640
    assert count(frozen.non_trainable_weights) == 21_289_094
    free = models.build("resnet34_unet", (256, 256, 3), 5)
    assert count(free.trainable_weights) == 24_439_384
    about = models.describe("resnet34_unet")
    assert (about["parameters"], about["trainable_parameters"]) == (24_456_734, 3_167_640)


def test_grey_is_replicated_and_other_channels_are_mixed():
    model = models.build("resnet34_unet", (32, 32, 1), 5)
    assert count(model.weights) == 24_456_734
    grey = noise(1, 32, 32, 1)
    rgb = keras.Model(model.input, model.get_layer("rgb").output)(grey).numpy()
    np.testing.assert_array_equal(rgb, np.repeat(grey, 3, axis=-1))
    # a 1x1 convolution from five channels to three
    assert count(models.build("resnet34_unet", (32, 32, 5), 5).weights) == 24_456_734 + 5 * 3 + 3


def test_frozen_convolutions_stay_through_saving_and_training(tmp_path):
    models.build("resnet34_unet", (32, 32, 1), 2, freeze_encoder=True).save(tmp_path / "model.keras")
    model = models.load(tmp_path / "model.keras")
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    frozen = [layer for layer in model.layers if layer.weights and not layer.trainable]
    normal = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    kernels, shift = [layer.get_weights()[0] for layer in frozen], normal.get_weights()[0]
    model.train_on_batch(noise(2, 32, 32, 1), np.ones((2, 32, 32, 1)))
    assert len(frozen) == 37  # the first convolution, 16 units of two, and 4 shortcuts
    for layer, kernel in zip(frozen, kernels, strict=True):
        np.testing.assert_array_equal(layer.get_weights()[0], kernel)
    assert (normal.get_weights()[0] != shift).any()


def write_keras2_weights(path, name):
    """Writes random weights of an encoder in the layout of Keras 2's `save_weights`; returns them by layer."""
    options = {key: getattr(tf.keras, key) for key in ("backend", "layers", "models", "utils")}
    factory = _segmentation_models.segmentation_models.Backbones
    encoder = factory.get_backbone(
        name.removesuffix("_unet"), input_shape=(32, 32, 3), weights=None, include_top=False, **options
    )
    random, values = np.random.default_rng(7), {}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in encoder.layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.1.6"
        for layer in encoder.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [weight_name.encode() for weight_name in names]
            values[layer.name] = [random.normal(size=weight.shape).astype("float32") for weight in layer.weights]
            for weight_name, value in zip(names, values[layer.name], strict=True):
                group.create_dataset(weight_name, data=value)
    return {layer: arrays for layer, arrays in values.items() if arrays}


@pytest.mark.parametrize("name", ENCODERS)
def test_local_imagenet_weights_and_freezing(name, tmp_path):
    values = write_keras2_weights(tmp_path / "imagenet.h5", name)
    model = models.build(name, (32, 32, 1), 2, encoder_weights=tmp_path / "imagenet.h5", freeze_encoder=True)
    for layer, arrays in values.items():
        for received, expected in zip(model.get_layer(layer).get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(received, expected)
    assert len(values) >= 16  # convolutions of VGG19, the smallest number
    trained = {type(layer).__name__ for layer in model.layers if layer.weights and layer.trainable}
    frozen = {layer.name for layer in model.layers if layer.weights and not layer.trainable}
    normal = {layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert trained == {"Conv2D", "BatchNormalization"}
    assert frozen == set(values) - normal


def test_weight_files_that_do_not_fit(tmp_path):
    remedy = r"download https://\S+resnet34_imagenet_1000_no_top\.h5"

    def build(path):
        models.build("resnet34_unet", (32, 32, 1), 2, encoder_weights=path)

    with pytest.raises(DataError, match=rf"absent\.h5: there is no such weight file; {remedy}"):
        build(tmp_path / "absent.h5")
    (tmp_path / "weights.pth").write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"weights\.pth: not a Keras 2 weight file \(\.h5\); {remedy}"):
        build(tmp_path / "weights.pth")
    (tmp_path / "garbage.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=rf"garbage\.h5: not the ImageNet weights of resnet34 .*; {remedy}") as error:
        build(tmp_path / "garbage.h5")
    assert "\n" not in str(error.value)
    write_keras2_weights(tmp_path / "vgg19.h5", "vgg19_unet")
    with pytest.raises(DataError, match=rf"vgg19\.h5: not the ImageNet weights of resnet34 \(.*16 saved.*; {remedy}"):
        build(tmp_path / "vgg19.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(DataError, match=rf"empty\.h5: not the ImageNet weights of resnet34 .*; {remedy}"):
        build(tmp_path / "empty.h5")


def test_describe_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tfmuscle.models.resnet34_unet", None)
    about = models.describe("resnet34_unet")
    assert about["parameters"] is None
    assert "resnet34_unet" in about["problem"]


# what fits which records


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        (
            "unet",
            {"size": (100, 100)},
            {},
            r"size \(100, 100\): unet: 4 poolings .* 16; use 96 x 96, or levels=3",
        ),
        ("unet", {"kind": "volumes", "depth": 37}, {}, r"depth and size \(37, 256, 256\): .* use 32 x 256 x 256"),
        ("unet", {"kind": "sequences", "depth": 3, "size": (16, 16)}, {"levels": 5}, "use 3 x 64 x 64, or levels=3"),
        ("unet", {"size": (32, 32)}, {"levels": 6}, "unet with levels=6: 5 poolings"),
        (
            "vgg19_unet",
            {"size": (100, 96)},
            {},
            r"size \(100, 96\): vgg19_unet needs multiples of 32; use --size 96 96",
        ),
        (
            "vgg19_unet",
            {"kind": "volumes", "depth": 32},
            {},
            r"kind 'volumes': vgg19_unet takes slices or stacks; .* \(unet\)",
        ),
        ("unet", {"label_map": LabelMap({})}, {}, "label_map {'background': 0}: names no structure"),
        ("unit", {}, {}, "no model is called 'unit'; did you mean 'unet'"),
    ],
)
def test_specs_that_do_not_fit(name, fields, options, message):
    with pytest.raises(ValueError, match=message):
        models.check_spec(name, DataSpec(**{"label_map": ONE_BONE} | fields), **options)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"kind": "volumes", "depth": 48, "size": (64, 48)}, {"levels": 4}),
        ({"kind": "stacks", "depth": 5, "size": (96, 96)}, {}),
        ({"kind": "sequences", "depth": 3, "size": (64, 64)}, {"levels": 5}),
        ({"size": (32, 32)}, {"levels": 3}),
    ],
)
def test_specs_that_fit(fields, options):
    spec = DataSpec(ONE_BONE, **fields)
    models.check_spec("unet", spec, **options)
    assert models.build("unet", spec.input_shape, 2, filters=2, **options).output_shape[1:-1] in (
        spec.window,
        spec.size,
    )


# loading


def test_load_in_a_fresh_process(tmp_path):
    model = models.build("unet", (16, 16, 1), 3, filters=4, levels=2, block="residual")
    model.save(tmp_path / "model.keras")
    images = noise(1, 16, 16, 1)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy; from tfmuscle import models; import tfmuscle.models.resnet34_unet; folder = sys.argv[1]\n"
        "model = models.load(folder + '/model.keras')\n"
        "numpy.save(folder + '/found.npy', model(numpy.load(folder + '/images.npy')).numpy())"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert result.stdout == ""  # segmentation-models prints when it is imported, which would spoil `--json`
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), model(images).numpy(), atol=1e-6)


def rewritten(source, target, change):
    """Copies a model file with its configuration changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.namelist():
            content = old.read(item)
            new.writestr(item, change(content.decode()).encode() if item == "config.json" else content)
    return target


def test_files_that_are_no_model(tmp_path):
    good = tmp_path / "good.keras"
    models.build("unet", (16, 16, 1), 3, filters=4, levels=2).save(good)
    with pytest.raises(DataError, match=r"absent\.keras: there is no such model file; give the \.keras file of a run"):
        models.load(tmp_path / "absent.keras")
    (tmp_path / "garbage.keras").write_bytes(b"garbage" * 99)
    (tmp_path / "cut.keras").write_bytes(good.read_bytes()[:-2000])
    (tmp_path / "model.h5").write_bytes(good.read_bytes())
    for name in ("garbage.keras", "cut.keras", "model.h5"):
        with pytest.raises(
            DataError, match=rf"{name}: not a Keras model file \(\.keras\), or cut short; copy it again"
        ):
            models.load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as file:
        file.writestr("readme.txt", "no model")
    rewritten(good, tmp_path / "json.keras", lambda text: text[:-40])
    rewritten(good, tmp_path / "config.keras", lambda text: text.replace('"Conv2D"', '"Conv9D"'))
    rewritten(good, tmp_path / "shape.keras", lambda text: text.replace('"filters": 8', '"filters": 9'))
    for name in ("other.keras", "json.keras", "config.keras", "shape.keras"):
        with pytest.raises(
            DataError, match=rf"{name}: cannot be loaded \(.+\); use a model that tfmuscle wrote"
        ) as error:
            models.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_hostile_files_run_nothing(tmp_path):
    image = keras.Input((4, 4, 1), name="image")
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(tmp_path / "lambda.keras")
    with pytest.raises(DataError, match=r"lambda\.keras: cannot be loaded"):
        models.load(tmp_path / "lambda.keras")
    keras.Model(image, keras.layers.Activation("relu")(image)).save(tmp_path / "good.keras")
    mark = tmp_path / "was_here"

    def call_system(text):
        content = json.loads(text)
        for layer in content["config"]["layers"]:
            if layer["class_name"] == "Activation":
                attack = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
                layer["config"]["activation"] = attack
                layer["config"]["name"] = f"touch {mark}"
        return json.dumps(content)

    with pytest.raises(DataError, match=r"system\.keras: cannot be loaded"):
        models.load(rewritten(tmp_path / "good.keras", tmp_path / "system.keras", call_system))
    assert not mark.exists()
