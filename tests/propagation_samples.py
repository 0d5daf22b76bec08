"""A tiny network that carries masks, and scans whose windows can be written down."""

import keras
import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.losses.parametric import ParametricTversky
from tfmuscle.records import Scan

SPEC = DataSpec(
    LabelMap({1: "first", 2: "second"}), kind="sequences", depth=3, size=(4, 4), spacing=None, orientation=None,
    patches="random",
)  # fmt: skip


def tiny(spec, config=None):
    """A network of 39 weights, and the two of the loss."""
    image, mask = (keras.Input((spec.depth, *spec.size, 1), name=name) for name in ("image", "mask"))
    both = keras.layers.Concatenate()([image, mask])
    x = keras.layers.Conv3D(2, (1, 3, 3), padding="same", name="conv")(both)
    x = keras.layers.Softmax(name="softmax")(x)
    return keras.Model([image, mask], ParametricTversky(name="probabilities")(x))


def scan_of(labels, images=None):
    labels = np.array(labels, np.int16)
    images = np.zeros(labels.shape, np.float16) if images is None else images
    return Scan(images[..., None].astype(np.float16), labels, np.zeros(1, np.float32), {}, "a")
