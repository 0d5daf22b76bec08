"""Samples, specs and recipes that the tests of augmentation share."""

import numpy as np
import tensorflow as tf

from tfmuscle.augmentation import Magnitudes, augment
from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE, LabelMap

BOTH = LabelMap({1: "femur_left", 2: "femur_right", 3: "bladder"})
ONE_SIDE = LabelMap({1: "femur_left", 2: "bladder"})
NO_SIDE = LabelMap({1: "muscle", 2: "bone"})
KINDS = {
    "slices": {"size": (24, 20)},
    "stacks": {"size": (24, 20), "depth": 3},
    "volumes": {"size": (24, 20), "depth": 16},
    "sequences": {"size": (24, 20), "depth": 3},
}
ALWAYS = Magnitudes(
    spatial=1.0, rotation=30, tilt=30, scale=(0.7, 1.4), shear=0.1, elastic=1.0, elastic_amplitude=0.25,
    morphology=1.0, noise=1.0, noise_variance=0.1, blur=1.0, blur_sigma=(0.5, 1.0),
    brightness=1.0, brightness_factor=(0.75, 1.25), contrast=1.0, contrast_factor=(0.75, 1.25),
    low_resolution=1.0, zoom=(0.5, 1.0), gamma=1.0, gamma_inverted=1.0, exponent=(0.7, 1.5),
)  # fmt: skip
NOTHING = Magnitudes(spatial=1.0, elastic=1.0, noise=1.0, blur=1.0, brightness=1.0, contrast=1.0,
                     low_resolution=1.0, gamma=1.0, gamma_inverted=1.0)  # fmt: skip
MOVE_ONLY = Magnitudes(spatial=1.0, rotation=30, tilt=30, scale=(0.7, 1.4), shear=0.1, elastic=1.0,
                       elastic_amplitude=0.25)  # fmt: skip


def make_spec(kind, label_map=BOTH, **changes):
    return DataSpec(label_map, kind=kind, **KINDS[kind] | changes)


def make_sample(spec, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=spec.input_shape).astype(np.float32)
    return image, rng.integers(IGNORE, spec.num_classes, spec.label_shape).astype(np.int32)


def variants(image, labels, spec, *, count, recipe, mirror=True):
    """`count` variants with seeds (0, 7), (1, 7), ... made in a tf.data graph."""

    def one(number):
        return augment(image, labels, seed=tf.stack([number, 7]), recipe=recipe, spec=spec, mirrored=mirror)

    numbers = tf.data.Dataset.range(count, output_type=tf.int32)
    return [(image.numpy(), labels.numpy()) for image, labels in numbers.map(one)]


def single(function, *arrays, **options):
    """Runs an eager transform on NumPy arrays."""
    result = function(*(tf.constant(array) for array in arrays), **options)
    return tuple(part.numpy() for part in result) if isinstance(result, tuple) else result.numpy()
