"""DenseUNet and H-DenseUNet: sizes by formula, the order of slices, stages, saving."""

import math

import keras
import numpy as np
import pytest

from tfmuscle import models
from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.models import hdenseunet
from tfmuscle.models._dense import slices_branch

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

TINY = {"blocks_2d": (1, 2, 1, 1), "growth_2d": 6, "blocks_3d": (1, 1, 2, 1), "growth_3d": 2}


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def trainable(layers):
    return sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights)


def tiny(stage, num_classes=3, channels=1, **options):
    return models.build("hdenseunet", (4, 32, 32, channels), num_classes, stage=stage, **TINY, **options)


def dense_size(channels, blocks, growth, stem, *, small, stem_voxels):
    """Widths of stem and blocks, and trainable weights of a DenseNet's convolutions and normalisations."""
    size, width, widths = stem_voxels * channels * stem + 2 * stem, stem, [stem]
    for number, num_layers in enumerate(blocks):
        if number:
            size += 2 * width + width * (width // 2)
            width //= 2
        for _ in range(num_layers):
            size += 2 * width + width * 4 * growth + 2 * 4 * growth + small * 4 * growth * growth
            width += growth
        widths.append(width)
    return size + 2 * width, widths


def steps_size(start, widths, voxels):
    """Trainable weights of the decoder's convolutions and normalisations."""
    pairs = zip([start, *widths[:-1]], widths, strict=True)
    return sum(voxels * before * after + after + 2 * after for before, after in pairs)


def test_published_sizes():
    model = models.build("hdenseunet", (8, 224, 224, 1), 5)
    flat = [layer for layer in model.layers if layer.name.startswith("slices_")]
    decoder = [layer for layer in flat if layer.name.startswith(("slices_up", "slices_logits"))]
    # torchvision's DenseNet-161 has 28,681,000 weights, 2208 * 1000 + 1000 of them in the classifier
    assert trainable(flat) - trainable(decoder) == 28_681_000 - 2_209_000
    size, widths = dense_size(3, (6, 12, 36, 24), 48, 96, small=9, stem_voxels=49)
    assert (size, widths) == (26_472_000, [96, 384, 768, 2112, 2208])
    # 1x1 convolution from 2112 to 2208, steps of the published widths, head
    expected = 2112 * 2208 + 2208 + steps_size(2208, (768, 384, 96, 96, 64), 9) + 64 * 5 + 5
    assert trainable(decoder) == expected
    # our variant, without scale layers; DenseUNet-161 alone has the same 2D layers, see below
    assert trainable(flat) == size + expected == 49_527_973
    # 3D: image and five logits; published widths of the decoder
    thick, widths = dense_size(1 + 5, (3, 4, 12, 8), 32, 96, small=27, stem_voxels=343)
    assert widths == [96, 192, 224, 496, 504]
    thick += steps_size(504, (504, 224, 192, 96, 64), 27)
    fusion = steps_size(64, (64,), 27) + 64 * 5 + 5
    assert trainable(model.layers) == size + expected + thick + fusion == 65_682_210
    assert model.count_params() == 65_931_778  # moving averages besides


def test_decoder_adds_the_maps_of_the_encoder():
    model = models.build("denseunet", (32, 64, 3), 4, blocks=(1, 2, 1, 1), growth=6)
    sums = [model.get_layer(f"slices_up{step}_sum").output.shape[1:] for step in range(4)]
    # stem 12 maps; blocks 12 + 6 = 18; 9 + 12 = 21; 10 + 6 = 16; 8 + 6 = 14: each step has the width of its skip
    assert sums == [(2, 4, 14), (4, 8, 21), (8, 16, 18), (16, 32, 12)]
    assert [model.get_layer(f"slices_up{step}_conv").filters for step in range(5)] == [21, 18, 12, 12, 8]
    assert model.get_layer("slices_dropout").rate == 0.3


def test_neighbours_of_slices():
    # slice z holds 10z in channel 0 and 10z + 1 in channel 1
    volume = np.zeros((1, 4, 2, 2, 2), "float32")
    volume += 10 * np.arange(4)[:, None, None, None] + np.arange(2)
    image = keras.Input((4, 2, 2, 2))
    found = keras.Model(image, hdenseunet.neighbours(image))(volume).numpy()[0, :, 1, 1]
    np.testing.assert_array_equal(
        found, [[0, 1, 0, 1, 10, 11], [0, 1, 10, 11, 20, 21], [10, 11, 20, 21, 30, 31], [20, 21, 30, 31, 30, 31]]
    )


def test_each_slice_gets_what_the_2d_network_says_of_it():
    model, volume = tiny("slices"), noise(2, 4, 32, 32, 1)
    image = keras.Input((32, 32, 3), name="image")
    _, logits = slices_branch(image, 3, blocks=TINY["blocks_2d"], growth=TINY["growth_2d"], dropout=0.0)
    flat = keras.Model(image, keras.layers.Softmax()(logits))
    for layer in flat.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights() if layer.weights else [])
    found = model(volume).numpy()
    assert np.abs(found[:, 1] - found[:, 2]).max() > 1e-3  # slices can be told apart
    for z, (before, after) in enumerate([(0, 1), (0, 2), (1, 3), (2, 3)]):
        stack = np.concatenate([volume[:, before], volume[:, z], volume[:, after]], axis=-1)
        # the same float32 sums in another batch: rounding only
        np.testing.assert_allclose(found[:, z], flat(stack).numpy(), atol=1e-5)


def test_the_3d_network_sees_the_image_and_the_scaled_logits_in_order():
    model, volume = tiny("both", num_classes=4, channels=2, logit_scale=20.0), noise(2, 4, 32, 32, 2)
    assert model.get_layer("volume_stem_conv").kernel.shape[-2] == 2 + 4
    slices, seen = tiny("slices", num_classes=4, channels=2), model.get_layer("volume_input").output
    for layer in slices.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights() if layer.weights else [])
    received = keras.Model(model.input, seen)(volume).numpy()
    np.testing.assert_array_equal(received[..., :2], volume)
    # softmax undoes the scale: exp(logit) / sum
    scores = np.exp(received[..., 2:] / 20)
    np.testing.assert_allclose(scores / scores.sum(-1, keepdims=True), slices(volume).numpy(), atol=1e-5)
    assert tiny("both").get_layer("volume_logits_scaled").scale == 250


def test_depth_is_halved_twice_and_restored():
    model = tiny("both")
    shapes = [model.get_layer(name).output.shape[1:4] for name in ("volume_stem_conv", "volume_stem_pool")]
    shapes += [model.get_layer(f"volume_transition{n}_pool").output.shape[1:4] for n in range(3)]
    assert shapes == [(2, 16, 16), (1, 8, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)]
    ups = [model.get_layer(f"volume_up{n}_double").output.shape[1:4] for n in range(5)]
    assert ups == [(1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16), (4, 32, 32)]


def test_stages_share_their_layers():
    stages = {stage: tiny(stage) for stage in hdenseunet.STAGES}
    shapes = {
        stage: {
            layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in model.layers if layer.weights
        }
        for stage, model in stages.items()
    }
    assert shapes["volume"] == shapes["both"]
    assert shapes["slices"].items() <= shapes["volume"].items()
    assert set(shapes["slices"]) == {name for name in shapes["both"] if name.startswith("slices_")}
    stacks = models.build("denseunet", (32, 32, 3), 3, blocks=TINY["blocks_2d"], growth=TINY["growth_2d"])
    assert {
        layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in stacks.layers if layer.weights
    } == shapes["slices"]
    dropouts = {
        stage: [layer.name for layer in model.layers if "dropout" in layer.name] for stage, model in stages.items()
    }
    assert dropouts == {"slices": ["slices_dropout"], "volume": ["fusion_dropout"], "both": ["fusion_dropout"]}


@pytest.mark.parametrize("stage", hdenseunet.STAGES)
def test_training_changes_what_the_stage_trains(stage, tmp_path):
    # 64 x 64 leaves 2 x 2 pixels at the deepest level: of a single one batch normalisation would leave nothing
    shape = (4, 64, 64, 1)
    options = TINY | {"blocks_2d": (1, 1, 1, 1), "blocks_3d": (1, 1, 1, 1)}
    models.build("hdenseunet", shape, 3, stage=stage, **options).save(tmp_path / "model.keras")
    model = models.load(tmp_path / "model.keras")
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(noise(2, *shape), np.random.default_rng(1).integers(0, 3, size=(2, *shape)))
    changed = {
        name: any((old != new).any() for old, new in zip(arrays, model.get_layer(name).get_weights(), strict=True))
        for name, arrays in before.items()
    }
    still = {name for name, has_changed in changed.items() if not has_changed}
    assert still == ({name for name in before if name.startswith("slices_")} if stage == "volume" else set())


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 32, 32, 1), {"stage": "2d"}, "stage is '2d'; choose one of slices, volume, both"),
        (
            (4, 32, 32, 1),
            {"blocks_2d": (1, 1)},
            r"blocks_2d is \(1, 1\); 4 positive whole numbers of layers are needed",
        ),
        ((4, 32, 32, 1), {"blocks_3d": (1, 1, 0, 1)}, r"blocks_3d is \(1, 1, 0, 1\); 4 positive whole numbers"),
        ((4, 32, 32, 1), {"growth_3d": 0}, "growth_3d is 0; a positive whole number is needed"),
        ((4, 32, 32, 1), {"growth_2d": 4.0}, "growth_2d is 4.0; a positive whole number is needed"),
        ((4, 32, 32, 1), {"dropout": 1.0}, "dropout is 1.0; a share from 0 to below 1 is needed"),
        ((6, 32, 40, 1), {}, r"input_shape \(6, 32, 40, 1\): multiples of 4 x 32 x 32 are needed; use 8 x 32 x 32"),
        ((4, None, 32, 1), {}, r"input_shape \(4, None, 32, 1\): all sizes are needed, none may be None"),
    ],
)
def test_bad_options(shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build("hdenseunet", shape, 3, **TINY | options)


def test_bad_options_of_the_2d_network():
    with pytest.raises(ValueError, match=r"input_shape \(48, 32, 1\): multiples of 32 x 32 are needed; use 64 x 32"):
        models.build("denseunet", (48, 32, 1), 3)
    with pytest.raises(ValueError, match=r"blocks is 6; 4 positive whole numbers of layers are needed"):
        models.build("denseunet", (32, 32, 1), 3, blocks=6)


def test_records_that_fit():
    femur = LabelMap({1: "femur"})
    models.check_spec("hdenseunet", DataSpec(femur, kind="volumes", depth=8, size=(96, 96)), stage="slices")
    models.check_spec("denseunet", DataSpec(femur, kind="stacks", depth=3, size=(96, 96)))
