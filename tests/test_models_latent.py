"""The latent-feature residual U-Net: every pixel hears of the whole stack."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
SHAPE = (32, 48, 5)


def build(**options):
    keras.utils.set_random_seed(1)
    return models.build("latent_unet", SHAPE, 2, **({"filters": 4, "latent": 8} | options))


def stacks(count=2):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def size_of(kernel, fan_in, filters):
    return kernel * fan_in * filters + filters


def block(fan_in, filters):
    """Two 3x3 convolutions and their norms; a 1x1 shortcut without bias and its norm where the width changes."""
    shortcut = fan_in * filters + 4 * filters if fan_in != filters else 0
    return size_of(9, fan_in, filters) + size_of(9, filters, filters) + 8 * filters + shortcut


@pytest.mark.parametrize("latent_levels", ["bottleneck", "all"])
def test_the_size_is_that_of_the_design(latent_levels):
    widths = [32, 64, 128, 256, 512]
    size, fan_in = 0, 5
    for width in widths:
        size, fan_in = size + block(fan_in, width), width
    size += size_of(49, 5, 32) + 4 * 32  # stem and its norm
    for fan_in, width in zip([32, 32, 64, 128], [32, 64, 128, 256], strict=True):
        size += block(fan_in, width)
    size += size_of(1, 256, 128)  # the layer `latent`
    size += size_of(1, 512 + 128, 512)  # features and vector side by side, 1x1
    extra = 32 if latent_levels == "all" else 0
    for deep, width in zip([512, 256, 128, 64], [256, 128, 64, 32], strict=True):
        size += size_of(4, deep, width) + block(2 * width + extra, width)
        size += size_of(1, 128, 32) if extra else 0
    size += size_of(1, 32, 2)
    model = models.build("latent_unet", (256, 256, 5), 2, latent_levels=latent_levels)
    assert sum(math.prod(weight.shape) for weight in model.weights) == size


@pytest.mark.parametrize("latent_levels", ["bottleneck", "all"])
def test_probabilities_of_the_middle_slice(latent_levels):
    found = build(latent_levels=latent_levels).predict(stacks(), verbose=0)
    assert found.shape == (2, *SHAPE[:2], 2)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("latent_levels", ["bottleneck", "all"])
def test_without_the_kernel_of_latent_nothing_comes_from_its_branch(latent_levels):
    model = build(latent_levels=latent_levels)
    before = model.predict(stacks(), verbose=0)
    dense = model.get_layer("latent")
    dense.set_weights([np.zeros_like(dense.kernel), dense.bias])
    silent = model.predict(stacks(), verbose=0)
    assert not np.allclose(before, silent, atol=1e-6)  # the branch was heard before
    stem = model.get_layer("latent_stem")
    stem.set_weights([5 * np.ones_like(stem.kernel), stem.bias])
    assert np.array_equal(silent, model.predict(stacks(), verbose=0))


@pytest.mark.parametrize("latent_levels", ["bottleneck", "all"])
def test_the_gradient_reaches_the_latent_encoder(latent_levels):
    model = build(latent_levels=latent_levels, dropout=0.0)
    wanted = [weight for weight in model.trainable_variables if weight.path.startswith("latent")]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(stacks(), training=True)[..., 1]))
    gradients = tape.gradient(loss, [weight.value for weight in wanted])
    kernels = [(w.path, g) for w, g in zip(wanted, gradients, strict=True) if w.path.endswith("kernel")]
    assert len(kernels) == 1 + 4 * 2 + 3 + 1  # stem, two a unit, three shortcuts, the vector
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for _, gradient in kernels)


def test_the_expansion_is_a_convolution_of_features_and_vector_side_by_side():
    model = build()
    inside = keras.Model(
        model.input,
        [model.get_layer(name).output for name in ("dropout", "latent", "expansion")],
    )
    features, vector, found = (np.asarray(part) for part in inside(stacks()))
    conv, dense = model.get_layer("expansion_conv"), model.get_layer("expansion_latent")
    kernel = np.concatenate([np.asarray(conv.kernel)[0, 0], np.asarray(dense.kernel)])
    tiled = np.broadcast_to(vector[:, np.newaxis, np.newaxis], (*features.shape[:3], vector.shape[-1]))
    expected = np.concatenate([features, tiled], axis=-1) @ kernel + np.asarray(conv.bias)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_ablation_has_no_branch():
    model = build(latent=0)
    assert not any(layer.name.startswith(("latent", "expansion")) for layer in model.layers)
    assert model.predict(stacks(), verbose=0).shape == (2, *SHAPE[:2], 2)


@pytest.mark.parametrize("latent_levels", ["bottleneck", "all"])
def test_a_saved_network_is_the_same_network(tmp_path, latent_levels):
    model = build(latent_levels=latent_levels)
    model.save(tmp_path / "model.keras")
    again = models.load(tmp_path / "model.keras")
    assert np.array_equal(model.predict(stacks(), verbose=0), again.predict(stacks(), verbose=0))


def test_any_size():
    model = models.build("latent_unet", (None, None, 5), 3, filters=2, latent=4, latent_levels="all")
    assert model.predict(stacks(), verbose=0).shape == (2, *SHAPE[:2], 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": 0}, "filters is 0"),
        ({"latent": -1}, "latent is -1"),
        ({"latent_levels": "some"}, "latent_levels is 'some'; choose one of bottleneck, all"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("size", [(16, 16), (80, 48), (112, 144)])
def test_any_multiple_of_16_does(size):
    model = models.build("latent_unet", (*size, 5), 2, filters=2, latent=4, latent_levels="all")
    assert model.output_shape == (None, *size, 2)
    latent = keras.Model(model.input, model.get_layer("latent").output)
    assert np.isfinite(latent.predict(np.ones((1, *size, 5), "float32"), verbose=0)).all()


def test_sizes_that_cannot_be_halved():
    with pytest.raises(ValueError, match="multiples of 16; use 48 x 32"):
        models.build("latent_unet", (40, 32, 5), 2)
