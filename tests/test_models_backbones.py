"""U-Nets on ImageNet encoders: counts, freezing, weight files."""

import math

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.errors import DataError
from tfmuscle.models import _segmentation_models

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

ENCODERS = ("mobilenetv2_unet", "resnet34_unet", "resnet50_unet", "vgg19_unet")


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def count(weights):
    return sum(math.prod(weight.shape) for weight in weights)


def test_resnet34_counts():
    # methods: encoder and decoder of the published pipeline, frozen except batch normalisation
    about = models.describe("resnet34_unet")
    assert (about["parameters"], about["trainable_parameters"]) == (24_456_734, 3_167_640)
    assert about["parameters"] - about["trainable_parameters"] == 21_289_094


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


OLD_NAMES = {"kernel": "W", "bias": "b"}


def write_keras2_weights(path, name):
    """Writes random weights of an encoder in the layout of the published files; returns them by layer.

    The published VGG19 file is of Keras 1: no version, weights called `_W_1` and `_b_1`. The others are of Keras 2.
    """
    options = {key: getattr(tf.keras, key) for key in ("backend", "layers", "models", "utils")}
    factory = _segmentation_models.segmentation_models.Backbones
    encoder = factory.get_backbone(
        name.removesuffix("_unet"), input_shape=(32, 32, 3), weights=None, include_top=False, **options
    )
    random, values = np.random.default_rng(7), {}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in encoder.layers]
        if name != "vgg19_unet":
            file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.1.6"
        for layer in encoder.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            if name == "vgg19_unet":
                names = [f"{layer.name}_{OLD_NAMES[weight.name]}_1:0" for weight in layer.weights]
            group.attrs["weight_names"] = [weight_name.encode() for weight_name in names]
            values[layer.name] = [random.normal(size=weight.shape).astype("float32") for weight in layer.weights]
            for weight_name, value in zip(names, values[layer.name], strict=True):
                group.create_dataset(weight_name, data=value)
    return {layer: arrays for layer, arrays in values.items() if arrays}


@pytest.mark.parametrize("name", ENCODERS)
def test_local_imagenet_weights_freeze_unless_told_otherwise(name, tmp_path):
    values = write_keras2_weights(tmp_path / "imagenet.h5", name)
    model = models.build(name, (32, 32, 1), 2, encoder_weights=tmp_path / "imagenet.h5")
    for layer, arrays in values.items():
        for received, expected in zip(model.get_layer(layer).get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(received, expected)
    assert len(values) >= 16  # convolutions of VGG19, the smallest number
    trained = {type(layer).__name__ for layer in model.layers if layer.weights and layer.trainable}
    frozen = {layer.name for layer in model.layers if layer.weights and not layer.trainable}
    normal = {layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert trained == {"Conv2D", "BatchNormalization"}
    assert frozen == set(values) - normal
    with pytest.raises(DataError, match=r"absent\.h5: there is no such weight file; download https://\S+\.h5"):
        models.build(name, (32, 32, 1), 2, encoder_weights=tmp_path / "absent.h5")
    with h5py.File(tmp_path / "imagenet.h5", "a") as file:
        file.attrs["layer_names"] = file.attrs["layer_names"][:-4]  # a file that was made for a shorter network
    with pytest.raises(
        DataError, match=rf"imagenet\.h5: not the ImageNet weights of {name[:-5]} .*; download https://"
    ):
        models.build(name, (32, 32, 1), 2, encoder_weights=tmp_path / "imagenet.h5")


def test_when_the_encoder_is_frozen(tmp_path):
    path = tmp_path / "imagenet.h5"
    write_keras2_weights(path, "resnet34_unet")
    for options, trainable in (
        ({}, 24_439_384),
        ({"encoder_weights": path}, 3_167_640),
        ({"encoder_weights": path, "freeze_encoder": False}, 24_439_384),
    ):
        assert count(models.build("resnet34_unet", (32, 32, 3), 5, **options).trainable_weights) == trainable


@pytest.mark.parametrize(("name", "last"), [("resnet34_unet", "conv2"), ("resnet50_unet", "conv3")])
def test_layers_come_in_the_order_of_keras_2(name, last):
    # Weight files are read by order. Keras 2 sorted layers by depth, and those of equal depth by the first way to them
    # from the output: the last convolution of a unit is the first input of its sum, the shortcut the second.
    names = [layer.name for layer in models.build(name, (32, 32, 3), 2).layers if layer.weights]
    for stage in range(1, 5):
        place = names.index(f"stage{stage}_unit1_{last}")
        assert names[place + 1] == f"stage{stage}_unit1_sc"


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


def test_the_momentum_of_the_norms_is_an_option_that_survives_a_save(tmp_path):
    for given, found in (({}, 0.99), ({"norm_momentum": 0.9}, 0.9)):
        model = models.build("mobilenetv2_unet", (32, 32, 1), 2, **given)
        model.save(tmp_path / "model.keras")
        again = models.load(tmp_path / "model.keras")
        norms = [layer for layer in again.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert norms and {layer.momentum for layer in norms} == {found}
    with pytest.raises(ValueError, match="norm_momentum is 1; a number from 0 to below 1"):
        models.build("mobilenetv2_unet", (32, 32, 1), 2, norm_momentum=1)
