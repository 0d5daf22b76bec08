"""V-Net, 3D U-Net and DAF3D: sizes by formula, what is kept of a few slices, sums and interpolation by hand."""

import keras
import numpy as np
import pytest

from tfmuscle import models
from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.models.daf3d import _resized
from tfmuscle.models.vnet import _stage

TINY = {"filters": 4, "blocks": (1, 1, 1, 1)}


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


# V-Net


def test_size_of_vnet():
    """5x5x5 convolutions with batch norm (4 numbers a filter) and a slope a filter, 1x2x2 between stages; by hand."""

    def conv(voxels, before, after):
        return voxels * before * after + after + 4 * after

    def stage(width, number):
        return number * (conv(125, width, width) + width)

    size = conv(125, 1, 16) + 16
    for level, number in ((1, 2), (2, 3), (3, 3), (4, 3)):
        width = 16 * 2**level
        size += conv(4, width // 2, width) + width + stage(width, number)
    for level, number in ((3, 3), (2, 3), (1, 2), (0, 1)):
        width = 16 * 2**level
        deeper = 256 if level == 3 else 4 * width  # both halves of the stage below
        size += conv(4, deeper, width) + width + stage(2 * width, number)
    model = models.build("vnet", (3, 64, 64, 1), 2)
    assert model.count_params() == size + 32 * 2 + 2


def test_a_stage_adds_its_input():
    for channels in (1, 4):
        x = keras.Input((2, 6, 6, channels))
        model = keras.Model(x, _stage(x, 4, 1, kernel=3, norm="none", name="stage"))
        for layer in model.layers:
            if layer.name.startswith("stage_conv"):
                layer.set_weights([0 * array for array in layer.get_weights()])
        image = noise(1, 2, 6, 6, channels)
        expected = np.broadcast_to(np.where(image > 0, image, 0.25 * image), (1, 2, 6, 6, 4))
        np.testing.assert_allclose(model(image), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["vnet", "unet3d"])
def test_three_slices_are_kept_and_thick_blocks_are_halved(name):
    for shape, deepest in (((3, 32, 64, 1), (3, 8, 16)), ((16, 16, 32, 1), (4, 4, 8))):
        model = models.build(name, shape, 3, filters=2, levels=3)
        layer = "encoder2_act" if name == "vnet" else "encoder2_1_act"
        assert model.get_layer(layer).output.shape[1:4] == deepest
        assert model.output_shape == (None, *shape[:3], 3)


@pytest.mark.parametrize("name", ["vnet", "unet3d"])
def test_levels_decide_what_fits(name):
    """The check knows how deep each of them is when nothing is said."""
    levels = {"vnet": 5, "unet3d": 4}[name]
    for edge in (2**levels, 3 * 2 ** (levels - 1) * 3):
        spec = DataSpec(LabelMap({1: "SOL"}), kind="sequences", depth=3, size=(edge, edge))
        try:
            models.check_spec(name, spec)
        except ValueError as error:
            with pytest.raises(ValueError) as again:
                models.build(name, spec.input_shape, 2, filters=2)
            assert str(error).split("poolings")[1] == str(again.value).split("poolings")[1]
        else:
            assert models.build(name, spec.input_shape, 2, filters=2).output_shape[2] == edge
    with pytest.raises(ValueError, match=rf"size \(3, 50, 50\): {name} with levels={levels}: {levels - 1} poolings"):
        models.check_spec(name, DataSpec(LabelMap({1: "SOL"}), kind="sequences", depth=3, size=(50, 50)))


# 3D U-Net: its count is published and checked where every network describes itself


def test_filters_double_before_pooling():
    model = models.build("unet3d", (8, 16, 16, 1), 2, filters=2, levels=3)
    widths = [layer.filters for layer in model.layers if type(layer).__name__.startswith("Conv3D")]
    assert widths == [2, 4, 4, 8, 8, 16, 16, 8, 8, 8, 4, 4, 2]
    skips = [model.get_layer(f"decoder{level}_skip").output.shape[-1] for level in (1, 0)]
    assert skips == [8 + 16, 4 + 8]
    assert not model.get_layer("decoder0_up").use_bias


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vnet", {"kernel": 4}, "kernel is 4; a positive odd number is needed"),
        ("vnet", {"filters": 0}, "filters is 0; a positive whole number is needed"),
        ("vnet", {"norm": "group"}, "norm is 'group'; choose one of instance, batch, none"),
        ("unet3d", {"levels": 1}, "levels is 1; at least 2 are needed"),
        ("unet3d", {"levels": 6}, r"input_shape \(4, 64, 64, 1\): 5 poolings"),
        ("daf3d", {"blocks": (3, 4, 6)}, r"blocks is \(3, 4, 6\); 4 positive whole numbers of blocks are needed"),
        ("daf3d", {"filters": -1}, "filters is -1; a positive whole number is needed"),
        ("daf3d", {"dilation_scale": 0.0}, "dilation_scale is 0.0; a positive number is needed"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, (4, 64, 64, 1), 2, **options)


def test_shapes_daf3d_does_not_take():
    with pytest.raises(ValueError, match=r"input_shape \(3, 36, 32, 1\): H and W must be multiples of 8; use 40 x 32"):
        models.build("daf3d", (3, 36, 32, 1), 2)


# DAF3D: 28,918,390 parameters are checked where every network describes itself


@pytest.fixture(scope="module")
def supervised():
    return models.build("daf3d", (3, 32, 40, 1), 2, deep_supervision=True, **TINY)


def test_nine_outputs_on_the_grid_of_the_image(supervised):
    places = [f"probabilities_{kind}{number}" for kind in ("level", "refined") for number in range(1, 5)]
    found = supervised(noise(1, 3, 32, 40, 1))
    assert list(found) == ["probabilities", *places] == list(models.output_weights("daf3d"))
    for probabilities in found.values():
        assert probabilities.shape == (1, 3, 32, 40, 2)
        np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, atol=1e-6)
    # the heads of four levels of 8 maps and of four of 4, one logit each, are all that is not there otherwise
    plain = models.build("daf3d", (3, 32, 40, 1), 2, **TINY)
    assert supervised.count_params() - plain.count_params() == 4 * (8 + 1) + 4 * (4 + 1)
    several = models.build("daf3d", (3, 32, 40, 1), 4, **TINY)
    assert several.count_params() - plain.count_params() == 3 * (4 + 1)


def test_grids_of_the_levels(supervised):
    shapes = [supervised.get_layer(f"stage{stage}_block0_sum").output.shape[1:] for stage in range(4)]
    assert shapes == [(3, 8, 10, 16), (3, 4, 5, 32), (3, 4, 5, 64), (3, 4, 5, 128)]  # dilated, not strided
    dilations = [supervised.get_layer(f"stage{stage}_block0_conv1").dilation_rate for stage in range(4)]
    assert dilations == [(1, 1, 1), (1, 1, 1), (1, 2, 2), (1, 2, 2)]
    thick = models.build("daf3d", (5, 32, 40, 1), 2, thin=False, deep_supervision=True, **TINY)
    assert thick.count_params() == supervised.count_params()
    assert thick.get_layer("stage0_block0_sum").output.shape[1:4] == (3, 8, 10)
    assert thick.get_layer("stage2_block0_conv1").dilation_rate == (2, 2, 2)
    assert {output.shape for output in thick.outputs} == {(None, 5, 32, 40, 2)}


def test_slopes_are_single_and_shared_in_a_block(supervised):
    slopes = [layer for layer in supervised.layers if type(layer).__name__ == "PReLU"]
    assert {layer.count_params() for layer in slopes} == {1}
    within = [layer for layer in slopes if layer.name.startswith("stage")]
    assert len(within) == 4 and {len(layer._inbound_nodes) for layer in within} == {3}
    groups = [layer.groups for layer in supervised.layers if type(layer).__name__ == "GroupNormalization"]
    assert set(groups) == {4, 8, 16, 32}  # all 32 from the published 64 filters on


@pytest.mark.parametrize(
    ("before", "after"), [((2, 3, 4), (5, 6, 12)), ((3, 4, 4), (3, 16, 16)), ((2, 3, 4), (2, 3, 4))]
)
def test_linear_interpolation_by_axis(before, after):
    """Voxel i of n lies at (i + 1/2) N/n - 1/2 of the N before; beyond the outer middles is their value."""
    x = noise(1, *before, 2)
    expected = x
    for axis, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        at = (np.arange(new) + 0.5) * old / new - 0.5
        expected = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, expected)
    np.testing.assert_allclose(_resized(keras.ops.convert_to_tensor(x), after), expected, atol=1e-5)
