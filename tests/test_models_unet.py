"""The U-Nets: sizes by hand, blocks, norms, poolings, plans."""

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


@pytest.mark.parametrize(
    ("shape", "num_classes", "levels", "options", "size"),
    [
        ((128, 128, 128, 1), 5, 6, {}, 31_198_009),
        ((256, 256, 1), 2, 7, {"max_filters": 512}, 33_471_820),
        ((512, 512, 1), 2, 8, {"max_filters": 512}, 46_324_558),
        ((48, 64, 64, 2), 3, 4, {"filters": 4, "max_filters": 20, "kernels": [[1, 3, 3], [1, 3, 3], 3, 3],
          "strides": [1, [1, 2, 2], 2, [1, 2, 2]]}, 56_793),
    ],
)  # fmt: skip
def test_unet_has_the_size_of_nnunet(shape, num_classes, levels, options, size):
    # counted in PyTorch: PlainConvUNet of dynamic_network_architectures (nnU-Net 2.8.1), two convolutions per stage,
    # biases, affine instance norm, a head at each stage of the decoder
    plan = {"strides": [1] + [2] * (levels - 1), "kernels": [3] * levels} | options
    assert models.build("unet", shape, num_classes, deep_supervision=True, **plan).count_params() == size


def test_strided_windows_are_centred_as_in_pytorch():
    # a kernel whose middle alone is 1 takes every second voxel, beginning with the first
    images = noise(1, 6, 8, 10, 1)
    for kernel, strides in (((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)), ((3, 5, 1), (1, 2, 2))):
        image = keras.Input((6, 8, 10, 1))
        model = keras.Model(image, blocks.convolution(image, 1, kernel=kernel, strides=strides, name="conv"))
        weight = np.zeros((*kernel, 1, 1))
        weight[tuple(edge // 2 for edge in kernel)] = 1
        model.set_weights([weight, np.zeros(1)])
        taken = tuple(slice(None, None, stride) for stride in strides)
        np.testing.assert_array_equal(model(images).numpy(), images[:, *taken])


@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_a_plan_decides_shapes_and_kernels(pooling):
    plan = {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 1]]}
    model = models.build("unet", (6, 16, 16, 1), 3, filters=2, deep_supervision=True, pooling=pooling, **plan)
    found = [model.get_layer(f"encoder{level}_act1").output.shape[1:] for level in range(3)]
    assert found == [(6, 16, 16, 2), (6, 8, 8, 4), (3, 4, 8, 8)]
    for part in ("encoder", "decoder"):
        for level in range(2 if part == "decoder" else 3):
            for number in range(2):
                assert list(model.get_layer(f"{part}{level}_conv{number}").kernel_size) == plan["kernels"][level]
    assert [model.get_layer(f"decoder{level}_up").kernel_size for level in (0, 1)] == [(1, 2, 2), (2, 2, 1)]
    shapes = {name: tuple(output.shape[1:]) for name, output in model(noise(1, 6, 16, 16, 1)).items()}
    assert shapes == {"probabilities": (6, 16, 16, 3), "probabilities_1": (6, 8, 8, 3)}
    strides = [model.get_layer(f"encoder{level}_conv0").strides for level in range(3)]
    pooled = [layer.pool_size for layer in model.layers if isinstance(layer, keras.layers.MaxPooling3D)]
    steps = [(1, 2, 2), (2, 2, 1)]
    assert (strides[1:], pooled) == ((steps, []) if pooling == "stride" else ([(1, 1, 1)] * 2, steps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": 2}, "strides is 2; a list is needed that has, for each level, one positive whole number or 2 of"),
        ({"strides": [1, [2, 2, 2]]}, "strides is .*; a list is needed that has, for each level"),
        ({"strides": [1, 2.0]}, "strides is .*; a list is needed"),
        ({"strides": []}, "strides is empty; one entry per level is needed"),
        ({"strides": [2, 2]}, "strides is .2, 2.; at least two levels are needed, the first all 1 and no other"),
        ({"strides": [1]}, "strides is .1.; at least two levels are needed"),
        ({"strides": [1, [1, 1]]}, "strides is .*; at least two levels are needed, the first all 1 and no other"),
        ({"strides": [1, [2, 3]]}, r"input_shape \(16, 16, 1\): strides need multiples of 2 x 3; use 16 x 15"),
        ({"strides": [1, 2], "levels": 3}, "levels is 3 and strides has 2 levels; leave levels out"),
        ({"strides": [1, 2], "kernels": [3]}, "kernels has 1 levels; 2 are needed, as many as the network has"),
        ({"strides": [1, 2], "kernels": [3, [3, 2]]}, "kernels is .*; odd numbers are needed"),
        ({"strides": [1, 2], "kernels": "33"}, "kernels is '33'; a list is needed"),
        ({"strides": [1, 2], "pooling": "mean"}, "pooling is 'mean'; choose one of stride, max"),
    ],
)
def test_plans_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        models.build("unet", (16, 16, 1), 2, **options)


# the plain 2D U-Net


def test_unet2d_has_the_published_size():
    # methods, five classes; one channel, for with three it would be 1152 = 3 * 3 * 2 * 64 more
    assert models.describe("unet2d")["parameters"] == 31_030_853
    assert models.build("unet2d", (256, 256, 1), 5, up_kernel=3).count_params() == 34_512_453


def test_unet2d_layers():
    model = models.build("unet2d", (32, 48, 1), 3, filters=2)
    widths = [model.get_layer(f"encoder{level}_conv1").output.shape[1:] for level in range(4)]
    assert widths == [(32, 48, 2), (16, 24, 4), (8, 12, 8), (4, 6, 16)]
    assert model.get_layer("bottleneck_conv1").output.shape[1:] == (2, 3, 32)
    assert model.get_layer("dropout").rate == 0.5
    kinds = {type(layer).__name__ for layer in model.layers}
    assert kinds == {"InputLayer", "Conv2D", "MaxPooling2D", "Dropout", "Conv2DTranspose", "Concatenate", "Activation"}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((40, 32, 1), {}, r"input_shape \(40, 32, 1\): H and W must be multiples of 16; use 48 x 32"),
        ((32, 32, 1), {"filters": 0}, "filters is 0; a positive whole number is needed"),
        ((32, 32, 1), {"dropout": 1}, "dropout is 1; a share from 0 to below 1 is needed"),
        ((32, 32, 1), {"up_kernel": 4}, "up_kernel is 4; choose one of 2, 3"),
    ],
)
def test_unet2d_bad_options(shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build("unet2d", shape, 2, **options)


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
