"""Layers of our own: what they compute, and that a saved network has them again."""

import keras
import numpy as np
import pytest

from tfmuscle import models
from tfmuscle.layers import Coordinates

pytestmark = pytest.mark.filterwarnings(
    # NumPy 2.4 about TensorFlow 2.21 variables, whenever Keras writes them; ends with TensorFlow's support of `copy`.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.mark.parametrize("size", [(4, 6), (2, 5, 3)])
def test_every_voxel_is_told_where_it_lies(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    found = np.asarray(Coordinates()(x))
    assert found.shape == (2, *size, 3 + len(size))
    assert np.array_equal(found[..., :3], x)
    for axis, count in enumerate(size):
        expected = np.linspace(-1 + 1 / count, 1 - 1 / count, count)  # centres between faces at -1 and 1
        for other in np.moveaxis(found[..., 3 + axis], axis + 1, -1).reshape(-1, count):
            np.testing.assert_allclose(other, expected, atol=1e-6)


def test_axes_of_any_size():
    image = keras.Input((None, 8, None, 1))
    network = keras.Model(image, Coordinates()(image))
    assert network.output_shape == (None, None, 8, None, 4)
    assert network.predict(np.zeros((1, 3, 8, 5, 1), "float32"), verbose=0).shape == (1, 3, 8, 5, 4)


def test_a_network_with_coordinates_tells_a_left_voxel_from_a_right_one(tmp_path):
    keras.utils.set_random_seed(0)
    options = {"filters": 2, "levels": 2, "norm": "batch", "coordinates": True}
    model = models.build("unet", (8, 8, 16, 1), 2, **options)
    plain = models.build("unet", (8, 8, 16, 1), 2, **options | {"coordinates": False})
    extra = model.count_params() - plain.count_params()
    assert extra == 27 * 3 * 2  # three more channels into the first convolution
    image = np.ones((1, 8, 8, 16, 1), "float32")
    found = model.predict(image, verbose=0)
    assert not np.allclose(found, found[..., ::-1, :], atol=1e-4)  # an even image, and yet the sides differ
    model.save(tmp_path / "model.keras")
    assert np.array_equal(models.load(tmp_path / "model.keras").predict(image, verbose=0), found)
