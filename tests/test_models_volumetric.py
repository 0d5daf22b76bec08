"""The networks of Ni et al. 2019: sizes of the U-Net, and the comparators FCN-8s and SegNet."""

import math

import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from tfmuscle import models
from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.models import blocks
from tfmuscle.models.fcn8s import interpolation_kernel
from tfmuscle.models.segnet import maximum_places, unpool

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
COMPARATORS = ("fcn8s", "segnet")


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def count(weights):
    return sum(math.prod(weight.shape) for weight in weights)


def conv_size(kernel, fan_in, filters):
    return kernel * fan_in * filters + filters


# the U-Net


@pytest.mark.parametrize(
    ("levels", "filters", "total", "trainable"),
    [(3, 96, 12_196_226, 12_192_386), (4, 96, 50_399_234, None), (4, 32, 5_605_378, None)],
)
def test_the_unet_has_the_sizes_of_the_design(levels, filters, total, trainable):
    # two 3x3x3 convolutions with bias and batch norm a level, 2x2x2 deconvolutions, 1x1x1 head, two classes, computed
    # below from these words; the figures in the table are those of methods.md 3.4
    widths = [filters * 2**level for level in range(levels)]
    size, averages, fan_in = 0, 0, 1
    for width in widths:
        size += conv_size(27, fan_in, width) + conv_size(27, width, width) + 2 * 2 * width
        averages, fan_in = averages + 2 * 2 * width, width
    for deep, width in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
        size += conv_size(8, deep, width) + conv_size(27, 2 * width, width) + conv_size(27, width, width) + 4 * width
        averages += 4 * width
    size += conv_size(1, filters, 2)
    assert (size + averages, trainable or size) == (total, size)
    options = {"levels": levels, "filters": filters, "max_filters": widths[-1], "norm": "batch", "pooling": "max"}
    model = models.build("unet", (32, 32, 32, 1), 2, **options)
    assert (count(model.weights), count(model.trainable_weights)) == (total, size)


def test_residual_block_by_its_formula():
    # y = act(F(x) + P x), P = 1x1x1 where the widths differ
    image = keras.Input((4, 4, 4, 2))
    model = keras.Model(image, blocks.residual_block(image, 3, strides=(1, 1, 1), norm="none", name="block"))
    x = noise(1, 4, 4, 4, 2)

    def step(name, data):
        return model.get_layer(f"block_{name}")(data)

    through = step("conv1", step("act0", step("conv0", x))).numpy()
    projected = x @ model.get_layer("block_shortcut_conv").kernel.numpy()[0, 0, 0]
    expected = through + projected
    # float32 sums of 54 products
    np.testing.assert_allclose(model(x), np.where(expected > 0, expected, 0.01 * expected), atol=1e-5)


def test_layers_of_dense_blocks_drop_when_told():
    options = {"filters": 4, "levels": 2, "block": "dense", "norm": "none"}
    model = models.build("unet", (16, 16, 16, 1), 2, **options, dense_dropout=0.2)
    rates = {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}
    blocks_seen = ("encoder0", "encoder1", "decoder0")
    assert rates == {f"{block}_dropout{n}": 0.2 for block in blocks_seen for n in range(4)}
    plain = models.build("unet", (16, 16, 16, 1), 2, **options)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in plain.layers)
    with pytest.raises(ValueError, match="dense_dropout is 0.2; only dense blocks have it, from 0 to below 1"):
        models.build("unet", (16, 16, 16, 1), 2, levels=2, dense_dropout=0.2)
    with pytest.raises(ValueError, match="dense_dropout is 1; only dense blocks"):
        models.build("unet", (16, 16, 16, 1), 2, **options, dense_dropout=1)


def test_dense_block_by_its_definition():
    # layer n sees the input and the maps of all layers before; the four new maps make the plain block's filters
    image = keras.Input((4, 4, 4, 2))
    model = keras.Model(image, blocks.dense_block(image, 8, strides=(1, 1, 1), norm="none", name="block"))
    x = noise(1, 4, 4, 4, 2)
    known, new = x, []
    for n in range(4):
        active = np.where(known > 0, known, 0.01 * known)
        new.append(model.get_layer(f"block_conv{n}")(active).numpy())
        known = np.concatenate([known, new[-1]], axis=-1)
    assert new[0].shape[-1] == 2
    np.testing.assert_allclose(model(x), np.concatenate(new, axis=-1), atol=1e-5)


# what FCN-8s and SegNet share


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("shape", [(32, 64, 32, 2), (64, 32, 2)])
def test_shapes_probabilities_and_files(name, shape, tmp_path):
    model = models.build(name, shape, 3, filters=2)
    assert ([tensor.name for tensor in model.inputs], model.output_names) == (["image"], ["probabilities"])
    images = noise(2, *shape)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(images, np.zeros((2, *shape[:-1], 1)))
    probabilities = model(images).numpy()
    assert probabilities.shape == (2, *shape[:-1], 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-6)  # a float32 softmax of three terms
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(models.load(tmp_path / "model.keras")(images).numpy(), probabilities)


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize("norm", blocks.NORMS)
def test_every_weight_matters(name, norm):
    model = models.build(name, (32, 32, 64, 1), 2, filters=2, norm=norm)
    before = [weight.numpy() for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", run_eagerly=True)
    rng = np.random.default_rng(1)
    model.train_on_batch(noise(2, 32, 32, 64, 1), rng.integers(0, 2, (2, 32, 32, 64, 1)))
    # a bias before a normalisation does nothing; its gradient is rounding
    moved = [not np.array_equal(a, b.numpy()) for a, b in zip(before, model.trainable_weights, strict=True)]
    idle = [weight.path for weight, has in zip(model.trainable_weights, moved, strict=True) if not has]
    assert all(path.endswith("bias") for path in idle) and (norm != "none" or not idle), idle


@pytest.mark.parametrize("name", COMPARATORS)
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((48, 40, 33, 1), {}, r"\(48, 40, 33, 1\): 5 poolings need multiples of 32; use 64 x 32 x 32"),
        ((32, 32, 1), {"filters": 0}, "filters is 0; a positive number is needed"),
        ((32, 32, 1), {"norm": "layer"}, "norm is 'layer'; choose one of instance, batch, none"),
        ((32, 1), {}, "needs 2 or 3 spatial axes and channels"),
    ],
)
def test_what_is_not_taken(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, shape, 2, **options)


@pytest.mark.parametrize("name", COMPARATORS)
def test_the_check_of_records(name):
    one = LabelMap({1: "soleus"})
    models.check_spec(name, DataSpec(one, kind="volumes", depth=32, size=(64, 32)))
    models.check_spec(name, DataSpec(one, size=(64, 32)))
    with pytest.raises(ValueError, match=r"depth 40: .* multiples of 32; use --depth 32"):
        models.check_spec(name, DataSpec(one, kind="volumes", depth=40, size=(64, 32)))
    with pytest.raises(ValueError, match=r"size \(40, 32\): .* multiples of 32; use --size 32 32"):
        models.check_spec(name, DataSpec(one, size=(40, 32)))


# FCN-8s


def test_fcn8s_size_by_hand():
    # 3D, 1 channel, filters 2 4 8 16 32, 3 classes; batch norm has 2 trained numbers and 2 averages per filter
    widths = (2, 4, 8, 16, 32)
    encoder = sum(
        conv_size(27, fan_in, width) + conv_size(27, width, width) + 2 * 2 * width
        for fan_in, width in zip((1, *widths[:-1]), widths, strict=True)
    )
    heads = sum(conv_size(1, width, 3) for width in (8, 16, 32))
    enlarging = 2 * 4**3 * 9 + 16**3 * 9
    model = models.build("fcn8s", (32, 32, 32, 1), 3, filters=2)
    assert count(model.trainable_weights) == encoder + heads + enlarging
    assert count(model.weights) == encoder + heads + enlarging + 2 * 2 * sum(widths)


@pytest.mark.parametrize(("layer", "factor"), [("up4", 2), ("up3", 2), ("up2", 8)])
@pytest.mark.parametrize("axes", [2, 3])
def test_fcn8s_starts_by_interpolating_linearly(layer, factor, axes):
    model = models.build("fcn8s", (*(64,) * axes, 1), 2, filters=2)
    scores = noise(1, *(4, 5, 6)[:axes], 2)
    enlarged = model.get_layer(layer)(scores).numpy()
    sizes = [size * factor for size in scores.shape[1:-1]]
    assert enlarged.shape == (1, *sizes, 2)
    places = (np.indices(sizes) + 0.5) / factor - 0.5  # voxel centres; the faces of the image stay
    inner = (slice(factor, -factor),) * axes  # at the border half of the kernel sees nothing
    for channel in range(2):
        expected = map_coordinates(scores[0, ..., channel], places, order=1)
        np.testing.assert_allclose(enlarged[0, ..., channel][inner], expected[inner], atol=1e-5)


def test_the_interpolation_kernel_keeps_constants():
    # the shares of all inputs in an output voxel sum to one: each class of residues of the kernel does
    kernel = interpolation_kernel(8, 3, 2)
    assert kernel.shape == (16, 16, 16, 2, 2)
    sums = kernel.reshape(2, 8, 2, 8, 2, 8, 2, 2).sum(axis=(0, 2, 4))
    np.testing.assert_allclose(sums, np.broadcast_to(np.eye(2), sums.shape), atol=1e-6)


def test_fcn8s_adds_the_scores_of_three_levels():
    model = models.build("fcn8s", (32, 32, 64, 1), 2, filters=2)
    shapes = {name: model.get_layer(name).output.shape[1:] for name in ("score2", "score3", "score4", "up2")}
    # an 8th, a 16th and a 32nd of the image
    assert shapes == {"score2": (4, 4, 8, 2), "score3": (2, 2, 4, 2), "score4": (1, 1, 2, 2), "up2": (32, 32, 64, 2)}
    images = noise(1, 32, 32, 64, 1)
    whole = model(images).numpy()
    for name in ("score2", "score3", "score4"):
        kernel, bias = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([0 * kernel, bias])
        assert np.abs(model(images).numpy() - whole).max() > 1e-4, name
        model.get_layer(name).set_weights([kernel, bias])


# SegNet


def test_segnet_size_by_hand():
    # 3D, 1 channel, filters 2 4 8 16 32, 3 classes; the second convolution of a decoder level narrows
    widths = (2, 4, 8, 16, 32)
    before, after = (1, *widths[:-1]), (2, *widths[:-1])
    encoder = sum(
        conv_size(27, a, width) + conv_size(27, width, width) for a, width in zip(before, widths, strict=True)
    )
    decoder = sum(conv_size(27, width, width) + conv_size(27, width, b) for width, b in zip(widths, after, strict=True))
    normed = 3 * sum(widths) + sum(after)
    model = models.build("segnet", (32, 32, 32, 1), 3, filters=2)
    size = encoder + decoder + 2 * normed + conv_size(1, 2, 3)
    assert (count(model.trainable_weights), count(model.weights)) == (size, size + 2 * normed)


def naive_unpool(x, y):
    """Every value on the places of the maximum in its cell of 2 x 2 x 2, shared by those that tie."""
    out = np.zeros_like(x)
    for cell in np.ndindex(*y.shape):
        block = (cell[0], *(slice(2 * n, 2 * n + 2) for n in cell[1:-1]), cell[-1])
        winners = x[block] == x[block].max()
        out[block] = winners * y[cell] / winners.sum()
    return out


@pytest.mark.parametrize("shape", [(2, 4, 6, 4, 3), (2, 6, 8, 3)])
def test_segnet_unpools_onto_the_maxima(shape):
    factor = (2,) * (len(shape) - 2)
    x = np.random.default_rng(3).integers(0, 4, shape).astype("float32")  # four values, so that many cells tie
    image = keras.Input(shape[1:])
    pooled = blocks.max_pool(image, factor, name="pool")
    places = maximum_places(image, pooled, factor, name="place")
    small = keras.Input(pooled.shape[1:])
    model = keras.Model([image, small], [places, unpool(small, places, factor, name="unpool")])
    y = noise(*model.inputs[1].shape[1:])[None].repeat(2, axis=0)
    shares, found = (output.numpy() for output in model([x, y]))
    np.testing.assert_allclose(found, naive_unpool(x, y), atol=1e-6)
    ties = [len(set(np.round(shares[shares > 0], 6))) > 1, shares.max() == 1]
    assert all(ties)  # both single maxima and ties were seen
    # a value and its shares sum to itself in every cell
    total = found.reshape(2, *(part for edge in shape[1:-1] for part in (edge // 2, 2)), shape[-1])
    np.testing.assert_allclose(total.sum(axis=tuple(range(2, total.ndim - 1, 2))), y, atol=1e-5)
