"""Activations of the networks of Ni et al. are ReLU, those of nnU-Net are not."""

import keras
import pytest

from tfmuscle import models
from tfmuscle.presets import PRESETS


def slopes(model):
    return {layer.negative_slope for layer in model.layers if isinstance(layer, keras.layers.LeakyReLU)}


@pytest.mark.parametrize("block", ["plain", "residual", "dense"])
def test_every_activation_of_a_block_has_the_slope(block):
    build = {"filters": 4, "levels": 2, "block": block}
    assert slopes(models.build("unet", (8, 8, 1), 2, **build, slope=0.0)) == {0.0}
    assert slopes(models.build("unet", (8, 8, 1), 2, **build)) == {0.01}


@pytest.mark.parametrize("name", ["fcn8s", "segnet"])
def test_the_comparators_of_the_cascade_have_relu(name):
    assert slopes(models.build(name, (32, 32, 1), 2, filters=2)) == {0.0}


def test_the_cascade_has_relu():
    for name in PRESETS["ni_cascade"].networks:
        assert PRESETS[name].training["model_options"]["slope"] == 0.0


def test_a_slope_that_is_none():
    with pytest.raises(ValueError, match="slope is 1"):
        models.build("unet", (8, 8, 1), 2, levels=2, slope=1)
