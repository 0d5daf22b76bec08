"""IFSS-Net, Seg-Net-FS and PG-Net: published counts, shared weights, what sees what."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.losses.parametric import ParametricTversky
from tfmuscle.models._ifss import encoder, recurrence
from tfmuscle.models.ifss_net import correlation_fusion

SMALL = {"filters": 5, "dropout": 0.0, "recurrent_dropout": 0.0, "outer_dropout": 0.0}
SHAPE = (3, 32, 32, 1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def carried(shape=SHAPE, count=1):
    return {"image": noise(count, *shape), "mask": np.random.default_rng(1).random((count, *shape)).astype("float32")}


def weights_of(model, prefix):
    return sum(layer.count_params() for layer in model.layers if layer.name.startswith(prefix))


@pytest.fixture(scope="module")
def published():
    return models.build("ifss_net", (3, 512, 512, 1), 2)


def test_published_structure(published):
    assert published.count_params() == 6_217_186
    assert published.get_layer("fusion_sum").output.shape == (None, 3, 16, 16, 120)
    assert published.get_layer("recurrence_sum").output.shape == (None, 3, 16, 16, 120)
    assert published.output_shape == (None, 3, 512, 512, 2)
    # conv 27 c w, scale and offset 2 w, two 1x1x1 branches w (w/5) each, three dilated ones 27 w (w/5) each
    assert weights_of(published, "encoder") == 1_225_350
    levels = ((1, 30), (30, 30), (30, 60), (60, 120), (120, 120))
    for number, (channels, width) in enumerate(levels):
        pyramid = (2 + 3 * 27) * width * width // 5
        assert weights_of(published, f"encoder{number}") == 27 * channels * width + 2 * width + pyramid
    assert weights_of(published, "recurrence") == 115_680  # 4 gates, each 120 (120 + 120) + 120
    assert weights_of(published, "probabilities") == 2  # of the loss


def test_encoder_and_recurrence_exist_once_and_are_used_twice(published):
    kinds = [type(layer).__name__ for layer in published.layers]
    assert kinds.count("ConvLSTM2D") == 1
    assert sum(layer.name.startswith("encoder") and layer.name.endswith("_conv") for layer in published.layers) == 5
    shared = [layer for layer in published.layers if layer.weights and layer.name.startswith(("enc", "rec"))]
    assert len(shared) == 5 * 7 + 1
    assert {len(layer._inbound_nodes) for layer in shared} == {2}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"aggregate": False}, 6_217_186),
        ({"dilate_depth": True, "temporal": "uni"}, 6_217_186),
        ({"clstm_kernel": 3}, 7_138_786),
        ({"fusion": "gfm"}, 7_283_146),
        ({"fusion": "gfm", "clstm_kernel": 3}, 8_204_746),
        ({"temporal": "none", "tversky": None}, 6_217_186 - 115_680 - 2),
        # nine maps more into 120 of 3x3x3, and no gates of 120 (120 + 1) each
        ({"fusion": "concat_xcorr"}, 6_217_186 + 27 * 9 * 120 - 2 * 120 * 121),
        # decoder by hand: (27 s + 27 (c + w)) w + 2 w for skips s, inputs c and widths w instead of 4,065,576
        ({"refine": "pinheiro"}, 6_217_186 - 4_065_576 + 2 * 1_166_640 + 388_920 + 243_120 + 45_824),
    ],
)
def test_counts_of_the_variants(options, count):
    assert models.build("ifss_net", SHAPE, 2, **options).count_params() == count


def test_every_weight_learns():
    keras.utils.set_random_seed(0)
    for options in ({}, {"aggregate": False, "fusion": "concat_xcorr", "refine": "pinheiro"}):
        model = models.build("ifss_net", SHAPE, 2, **SMALL | options)
        truth = np.random.default_rng(2).integers(0, 2, (2, *SHAPE[:3]))
        with tf.GradientTape() as tape:
            probabilities = model(carried(count=2), training=True)
            loss = model.get_layer("probabilities").loss(truth, probabilities)
        slopes = tape.gradient(loss, model.trainable_variables)
        still = {
            variable.path
            for variable, slope in zip(model.trainable_variables, slopes, strict=True)
            if slope is None or not np.any(slope)
        }
        assert not still


def test_rates_along_the_slices_are_dead_weight():
    """Of three slices a rate of 6 in depth reaches none, so its outer taps never get a slope."""
    alive = {}
    for dilate_depth in (False, True):
        image = x = keras.Input(SHAPE)
        levels = encoder(filters=5, dilate_depth=dilate_depth, dilation_scale=1.0, dropout=0.0)
        for level in levels:
            x = level(x)
        model = keras.Model(image, x)
        kernel, first = model.get_layer("encoder0_dilated0").kernel, model.get_layer("encoder0_pyramid").output
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(keras.Model(image, first)(noise(1, *SHAPE)) ** 2)
        alive[dilate_depth] = [bool(np.any(tap)) for tap in tape.gradient(value, kernel.value).numpy()]
        rates = [model.get_layer(f"encoder{level}_dilated2").dilation_rate for level in range(5)]
        depth = (18, 18, 8, 6, 6) if dilate_depth else (1,) * 5
        assert rates == [(z, r, r) for z, r in zip(depth, (18, 18, 8, 6, 6), strict=True)]
    assert alive == {False: [True, True, True], True: [False, True, False]}


def test_scale_of_rates_and_widths():
    model = models.build("ifss_net", SHAPE, 2, filters=10, dilation_scale=0.25)
    rates = [[model.get_layer(f"encoder{level}_dilated{n}").dilation_rate[1] for n in range(3)] for level in range(5)]
    assert rates == [[2, 3, 4], [2, 3, 4], [1, 2, 2], [1, 1, 2], [1, 1, 2]]  # halves to the even side
    widths = [model.get_layer(f"encoder{level}_pyramid").output.shape[-1] for level in range(5)]
    assert widths == [10, 10, 20, 40, 40]
    ends = [model.get_layer(f"decoder{step}_fusion_sum").output.shape[-1] for step in range(5)]
    assert ends == [40, 40, 20, 20, 16]


def test_skips_come_from_the_mask_stream_when_streams_are_added():
    """Without aggregation the mask is seen at the bottleneck only; with it, finest skip and all."""
    for aggregate in (False, True):
        model = models.build("ifss_net", SHAPE, 2, aggregate=aggregate, **SMALL)
        finest = model.get_layer("decoder4_fusion_both").output  # decoder beside skip, 5 maps
        both, inputs = keras.Model(model.inputs, [finest, model.output]), carried()
        before, answer = both(inputs)
        for name, other in (("mask", 1 - inputs["mask"]), ("image", -inputs["image"])):
            after, changed = both(inputs | {name: other})
            assert np.any(answer != changed)
            assert bool(np.any(before[..., -5:] != after[..., -5:])) is (aggregate or name == "image")


@pytest.mark.parametrize("temporal", ["bi", "uni", "none"])
def test_how_the_slices_are_read(temporal):
    sequence = keras.Input((5, 4, 4, 3))
    style = {"kernel": 3, "recurrent_dropout": 0.3, "outer_dropout": 0.4}
    model = keras.Model(sequence, recurrence(sequence, temporal, **style))
    x = noise(1, 5, 4, 4, 3)
    y = x.copy()
    y[:, 3] += 1  # what changes in slice 3 is seen from there on, or everywhere, or there
    changed = np.any(model(x).numpy() != model(y).numpy(), axis=(0, 2, 3, 4))
    assert (
        changed.tolist()
        == {"bi": [True] * 5, "uni": [False] * 3 + [True] * 2, "none": [False] * 3 + [True, False]}[temporal]
    )
    if temporal == "bi":
        np.testing.assert_allclose(model(x[:, ::-1])[:, ::-1], model(x), atol=1e-6)


def test_correlation_finds_the_shift():
    x = noise(1, 2, 6, 6, 8)
    for row, column in ((0, 0), (1, -1), (-1, 0)):
        here, there = keras.Input(x.shape[1:]), keras.Input(x.shape[1:])
        model = keras.Model([here, there], correlation_fusion(here, there, 4, name="fusion"))
        maps = keras.Model(model.inputs, model.get_layer("fusion_both").output)
        found = maps([x, np.roll(x, (row, column), axis=(2, 3))])[0, :, 1:-1, 1:-1, 16:].numpy()
        best = 3 * (row + 1) + column + 1
        np.testing.assert_allclose(found[..., best], 1, atol=1e-5)
        assert np.delete(found, best, axis=-1).max() < 0.999


def test_windows_of_any_length():
    model = models.build("ifss_net", (None, 32, 32, 1), 2, **SMALL)
    for window in (1, 3, 10):
        assert model(carried((window, 32, 32, 1))).shape == (1, window, 32, 32, 2)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 40, 32, 1), {}, r"input_shape \(3, 40, 32, 1\): H and W must be multiples of 32; use 32 x 32"),
        ((3, None, 32, 1), {}, "H and W are needed, only the number of slices may be None"),
        ((3, 32, 32, 2), {}, "ifss_net takes one channel, for image and mask alike"),
        (SHAPE, {"filters": 8}, "filters is 8; a positive multiple of 5 is needed"),
        (SHAPE, {"clstm_kernel": 2}, "clstm_kernel is 2; a positive odd number is needed"),
        (SHAPE, {"dilation_scale": 0}, "dilation_scale is 0; a positive number is needed"),
        (SHAPE, {"outer_dropout": 1}, "outer_dropout is 1; a share from 0 to below 1 is needed"),
        (SHAPE, {"fusion": "sum"}, "fusion is 'sum'; choose one of ffm, gfm, concat_xcorr"),
        (SHAPE, {"temporal": "no"}, "temporal is 'no'; choose one of bi, uni, none"),
        (SHAPE, {"refine": "gfm"}, "refine is 'gfm'; choose one of ffm, pinheiro"),
        (SHAPE, {"tversky": "free"}, "tversky is 'free'; choose one of learned, fixed, ascent, None"),
    ],
)
def test_bad_arguments(shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build("ifss_net", shape, 2, **options)


def test_one_structure_at_a_time():
    for name, shape in (("ifss_net", SHAPE), ("pg_net", (32, 32, 1))):
        with pytest.raises(ValueError, match=f"num_classes is 3; {name} needs 2, .* carry each structure by itself"):
            models.build(name, shape, 3)


# Seg-Net-FS


def test_segmenting_has_no_mask_and_no_gates():
    model = models.build("seg_net_fs", SHAPE, 4)
    assert models.inputs("seg_net_fs") == ("image",)
    assert not any("gate" in layer.name or "fusion_sum" in layer.name for layer in model.layers)
    assert model.count_params() == 4_120_362 - 2 + 2 * 9  # two classes more: 8 + 1 weights each
    assert models.build("seg_net_fs", SHAPE, 2, fuse="ffm", tversky="learned").count_params() == 5_410_186
    assert [model.get_layer(f"decoder{step}_fusion_both").output.shape[-1] for step in range(5)] == [
        120 + 120,
        120 + 120,
        60 + 60,
        60 + 30,
        16 + 30,
    ]


def test_segmenting_learns_with_any_loss():
    keras.utils.set_random_seed(0)
    truth = np.zeros((2, 3, 32, 32), "int32")
    truth[0, :, 4:20, 4:20] = truth[1, :, 12:30, 8:24] = 1
    image = (truth + 0.1 * noise(*truth.shape))[..., None].astype("float32")
    model = models.build("seg_net_fs", SHAPE, 2, dilation_scale=0.1, **SMALL)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", run_eagerly=True)
    losses = [float(model.train_on_batch(image, truth)) for _ in range(3)]
    assert losses[-1] < 0.8 * losses[0]


def test_segmenting_may_hold_the_weights_of_its_loss():
    held = models.build("seg_net_fs", SHAPE, 2, tversky="fixed", **SMALL)
    assert isinstance(held.get_layer("probabilities"), ParametricTversky)
    with pytest.raises(ValueError, match="temporal is 'both'; choose one of bi, uni, none"):
        models.build("seg_net_fs", SHAPE, 2, temporal="both")
    with pytest.raises(ValueError, match="fuse is 'sum'; choose one of concat, ffm"):
        models.build("seg_net_fs", SHAPE, 2, fuse="sum")


# PG-Net


def test_size_of_the_reference_network():
    """ResNet-18 of widths 64 to 512 on two stems, large kernels, three refinements, head; by hand."""

    def conv(voxels, before, after):
        return voxels * before * after + after

    def block(before, after):
        norms, shortcut = 4 * after, (before * after + 2 * after) * (before != after)
        return conv(9, before, after) + conv(9, after, after) + norms + shortcut

    encoder = 49 * 64 + conv(49, 1, 64) + 2 * 64
    encoder += sum(block(before, w) + block(w, w) for before, w in ((64, 64), (64, 128), (128, 256), (256, 512)))
    join = 2 * (conv(7, 2 * 512, 256) + conv(7, 256, 256)) + 2 * conv(9, 256, 256)
    refine = sum(conv(9, skip, 256) + 4 * conv(9, 256, 256) for skip in (256, 128, 64))
    model = models.build("pg_net", (32, 32, 1), 2)
    assert model.get_layer("encoder").count_params() == encoder
    assert model.count_params() == encoder + join + refine + conv(9, 256, 2)


def test_frame_and_reference_share_one_encoder():
    tiny = {"filters": 2, "features": 4, "blocks": (1, 1, 1, 1)}
    model = models.build("pg_net", (64, 64, 2), 2, **tiny)
    assert [layer.name for layer in model.layers if isinstance(layer, keras.Model)] == ["encoder"]
    assert model.input_shape == [(None, 64, 64, channels) for channels in (2, 1, 2, 1)]
    sizes = [tensor.shape[1] for tensor in model.get_layer("encoder").outputs]
    assert sizes == [16, 8, 4, 2]
    inputs = {tensor.name: noise(1, *tensor.shape[1:], seed=n) for n, tensor in enumerate(model.inputs)}
    before = model(inputs).numpy()
    for name, array in inputs.items():
        assert np.abs(model(inputs | {name: -array}) - before).max() > 1e-6, name


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((40, 32, 1), {}, r"input_shape \(40, 32, 1\): H and W must be multiples of 32; use 32 x 32"),
        ((32, 32, 1), {"features": 0}, "features is 0; a positive whole number is needed"),
        ((32, 32, 1), {"filters": 2.5}, "filters is 2.5; a positive whole number is needed"),
        ((32, 32, 1), {"blocks": (1, 2)}, r"blocks is \(1, 2\); 4 positive whole numbers of blocks are needed"),
        ((32, 32, 1), {"norm": "group"}, "norm is 'group'; choose one of instance, batch, none"),
    ],
)
def test_bad_arguments_of_the_reference_network(shape, options, message):
    with pytest.raises(ValueError, match=message):
        models.build("pg_net", shape, 2, **options)
