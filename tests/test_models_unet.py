"""The U-Net: sizes by hand, blocks, norms, poolings."""

import itertools
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.models import blocks
from tfmuscle.models._pooling import poolings

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SMALL = {"unet": {"filters": 4, "levels": 3}}


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


def conv_size(kernel, fan_in, filters):
    return kernel * fan_in * filters + filters


def test_unet_size_by_hand():
    # 3D, 1 channel, 4 and 8 filters, 3 classes; a normalisation has 2 numbers per filter
    encoder = conv_size(27, 1, 4) + conv_size(27, 4, 4) + 4 * 4 + conv_size(27, 4, 8) + conv_size(27, 8, 8) + 4 * 8
    decoder = conv_size(8, 8, 4) + conv_size(27, 8, 4) + conv_size(27, 4, 4) + 4 * 4 + conv_size(1, 4, 3)
    model = models.build("unet", (16, 16, 16, 1), 3, filters=4, levels=2)
    assert count(model.weights) == count(model.trainable_weights) == encoder + decoder


def test_unet_has_the_size_of_nnunet():
    # the published plan for isotropic volumes: 128³, 6 stages, about 31.2 million
    assert models.describe("unet")["parameters"] == pytest.approx(31.2e6, rel=0.002)


def test_filters_double_up_to_the_limit():
    model = models.build("unet", (64, 64, 1), 2, filters=8, levels=4, max_filters=20)
    assert [model.get_layer(f"encoder{level}_conv1").filters for level in range(4)] == [8, 16, 20, 20]


@pytest.mark.parametrize("block", list(blocks.BLOCKS))
@pytest.mark.parametrize("norm", blocks.NORMS)
def test_unet_blocks_in_3d(block, norm, tmp_path):
    model = models.build("unet", (8, 16, 8, 2), 3, filters=4, levels=2, block=block, norm=norm, dropout=0.2)
    images = noise(2, 8, 16, 8, 2)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(images, np.zeros((2, 8, 16, 8, 1)))
    probabilities = model(images).numpy()
    assert probabilities.shape == (2, 8, 16, 8, 3)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(models.load(tmp_path / "model.keras")(images).numpy(), probabilities)


@pytest.mark.parametrize("block", list(blocks.BLOCKS))
def test_every_weight_of_a_block_matters(block):
    model = models.build("unet", (16, 16, 1), 3, filters=4, levels=2, block=block, norm="batch")
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(noise(2, 16, 16, 1), training=True) ** 2)
    gradients = tape.gradient(value, model.trainable_variables)
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


def test_a_residual_block_starts_as_its_shortcut():
    image = keras.Input((4, 4, 4))
    block = blocks.residual_block(image, 4, strides=(1, 1), norm="none", name="block")
    model = keras.Model(image, block)
    model.set_weights([np.zeros(weight.shape) for weight in model.weights])
    images = noise(1, 4, 4, 4)
    # act(0 + x) with slope 0.01
    np.testing.assert_allclose(model(images), np.where(images > 0, images, 0.01 * images), rtol=1e-6)


def test_dense_block_has_the_filters_of_a_plain_one():
    model = models.build("unet", (16, 16, 1), 2, filters=8, levels=2, block="dense")
    assert model.get_layer("encoder1_maps").output.shape == (None, 8, 8, 16)
    # layer n of four sees the input and n maps of 16/4: 8, 12, 16, 20 channels
    seen = [model.get_layer(f"encoder1_conv{n}").input.shape[-1] for n in range(4)]
    assert seen == [8, 12, 16, 20]


def test_defaults_are_those_of_the_references():
    model = models.build("unet", (32, 32, 1), 2, filters=64, levels=2, norm="batch")
    assert model.get_layer("encoder0_act0").negative_slope == 0.01
    norm = model.get_layer("encoder0_norm0")
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)
    # He for slope 0.01: sd sqrt(2 / (1.0001 · 9 · 64)); 36,864 draws know their sd within 0.4 % (one sigma)
    kernel = model.get_layer("encoder0_conv1").kernel.numpy()
    assert kernel.std() == pytest.approx(math.sqrt(2 / (1.0001 * 9 * 64)), rel=0.02)


def test_instance_norm_by_hand():
    # per sample and channel: (x - mean) / sqrt(variance + 1e-5)
    image = keras.Input((4, 6, 5, 3))
    x = 3 * noise(2, 4, 6, 5, 3) + 7
    normal = keras.Model(image, blocks.normalise(image, "instance", name="norm"))(x).numpy()
    axes = (1, 2, 3)
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(normal, expected, atol=1e-5)


def test_instance_norm_survives_bfloat16_in_3d(policy):
    policy("mixed_bfloat16")
    model = models.build("unet", (8, 16, 16, 1), 3, filters=4, levels=2)
    probabilities = model(noise(1, 8, 16, 16, 1)).numpy()
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)


def test_thin_stacks_keep_their_depth():
    model = models.build("unet", (3, 32, 16, 1), 2, filters=4, levels=3)
    assert model.get_layer("encoder2_act1").output.shape == (None, 3, 8, 4, 16)
    assert model(noise(1, 3, 32, 16, 1)).shape == (1, 3, 32, 16, 2)


def test_deep_supervision():
    model = models.build("unet", (8, 32, 32, 1), 3, filters=4, levels=4, deep_supervision=True)
    shapes = {name: tuple(output.shape[1:]) for name, output in model(noise(1, 8, 32, 32, 1)).items()}
    # levels of 8 x 32 x 32, 4 x 16 x 16, 4 x 8 x 8 (depth 4 is not halved); the deepest has no output
    assert shapes == {
        "probabilities": (8, 32, 32, 3),
        "probabilities_1": (4, 16, 16, 3),
        "probabilities_2": (4, 8, 8, 3),
    }
    assert list(shapes)[0] == "probabilities"
    assert model.output_names == list(shapes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "plane"}, "block is 'plane'; choose one of plain, residual, dense"),
        ({"norm": "layer"}, "norm is 'layer'; choose one of instance, batch, none"),
        ({"dropout": 1.0}, "dropout is 1.0; a share from 0 to below 1 is needed"),
        ({"filters": 0}, "give the widths .0, 0, 0.; positive numbers are needed"),
        ({"levels": 0}, "levels is 0; at least 2 are needed"),
        ({"levels": 1}, "levels is 1; at least 2 are needed"),
        ({"block": "dense", "filters": 6}, "must be multiples of 4"),
        ({"levels": 6}, "5 poolings need multiples of 32; use 128 x 128, or levels=4"),
    ],
)
def test_unet_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("unet", (32, 32, 1), 2, **{"levels": 3} | options)


def test_every_suggested_shape_fits():
    refused = 0
    for shape, levels in itertools.product(itertools.product((3, 7, 8, 20, 37, 50, 64, 100), repeat=2), (3, 4, 5)):
        try:
            poolings(shape, levels)
        except ValueError as error:
            refused += 1
            suggested, fewer = re.search(r"use ([\d x]+)(?:, or levels=(\d))?", str(error)).groups()
            assert poolings(tuple(int(edge) for edge in suggested.split(" x ")), levels)
            if fewer:
                assert poolings(shape, int(fewer))
    assert refused > 50


def test_pooling_keeps_four_voxels_and_undoes_exactly():
    for shape, levels in itertools.product(itertools.product((3, 4, 6, 8, 48, 64), repeat=2), (2, 3, 4)):
        try:
            factors = poolings(shape, levels)
        except ValueError:
            continue
        for edge, steps in zip(shape, zip(*factors, strict=True), strict=True):
            assert edge % math.prod(steps) == 0
            assert math.prod(steps) == 1 or edge // math.prod(steps) >= 4
