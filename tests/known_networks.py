"""Networks whose answer is known, and scans on straight, flipped and oblique grids, for tests of prediction."""

import keras
import numpy as np
import scipy.spatial

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.inference import Run
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

TURN = scipy.spatial.transform.Rotation.from_euler("xyz", [11, -17, 23], degrees=True).as_matrix()
FEMUR_SIDES = LabelMap({3: "femur_left", 7: "femur_right"})


def scan_grid(shape, spacing=(1.0, 1.0, 1.0), *, orientation="RAS", oblique=False):
    """A grid with the given axis codes and spacing, turned by some degrees if oblique."""
    base = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), np.eye(4))).reoriented(orientation).geometry
    direction = np.sign(np.round(base.affine[:3, :3]))
    affine = np.eye(4)
    affine[:3, :3] = (TURN if oblique else np.eye(3)) @ direction * spacing
    affine[:3, 3] = [-31.5, 12.25, 4.0]
    return Geometry(shape, affine)


THRESHOLDS = LabelMap({4: "muscle", 9: "bone"}, ignore=255)
KINDS = {
    "slices": {"size": (8, 8)},
    "stacks": {"size": (8, 8), "depth": 5},
    "sequences": {"size": (8, 8), "depth": 3},
    "volumes": {"size": (8, 8), "depth": 4},
    "volumes larger than the scan": {"kind": "volumes", "size": (24, 24), "depth": 24},
    "slices larger than the scan": {"kind": "slices", "size": (24, 24)},
}
SCANS = {
    "ras": scan_grid((11, 12, 9)),
    "lps": scan_grid((11, 12, 9), (0.8, 0.8, 4.0), orientation="LPS"),
    "las": scan_grid((11, 12, 9), orientation="LAS"),
    "oblique": scan_grid((11, 12, 9), (0.7, 1.1, 3.0), orientation="LPS", oblique=True),
    "one slice": scan_grid((11, 12, 1), (1.0, 1.0, 8.0), orientation="LAS", oblique=True),
    "one sagittal slice": scan_grid((1, 11, 12), (8.0, 1.0, 1.0), orientation="PSR"),
}


def make_spec(kind="slices", *, label_map=THRESHOLDS, **changes):
    settings = {"normalisation": "none", "spacing": None, "size": (8, 8)}
    return DataSpec(label_map, **(settings | {"kind": kind.split()[0]} | KINDS.get(kind, {}) | changes))


def make_run(model, spec, **recipe):
    return Run(model, spec, TrainConfig(recipe=Supervised(**recipe)), path=None)


def linear_network(spec, kernel, bias):
    """Softmax of `kernel * intensity + bias` at every voxel; of a stack, of its middle slice."""
    image = keras.Input(spec.input_shape, name="image")
    dense = keras.layers.Dense(spec.num_classes)
    outputs = keras.layers.Softmax(name="probabilities", dtype="float32")(dense(image))
    weights = np.zeros((spec.input_shape[-1], spec.num_classes), np.float32)
    weights[spec.input_shape[-1] // 2] = kernel
    dense.set_weights([weights, np.array(bias, np.float32)])
    return keras.Model(image, outputs)


def threshold_network(spec):
    """Background below 1, class 1 from 1 to 2, class 2 above: logits 0, 8 (x - 1), 16 (x - 1.5), which cross there."""
    return linear_network(spec, [0, 8, 16], [0, -8, -24])


def random_network(spec, *, filters=6, seed=1):
    """A convolutional network with random weights, so without any symmetry."""
    convolution = keras.layers.Conv3D if spec.is_volumetric else keras.layers.Conv2D
    image = keras.Input(spec.input_shape, name="image")
    seeds = [keras.initializers.RandomNormal(0, 0.6, seed=seed + n) for n in range(2)]
    hidden = convolution(filters, 3, padding="same", activation="relu", kernel_initializer=seeds[0])(image)
    logits = convolution(spec.num_classes, 3, padding="same", kernel_initializer=seeds[1])(hidden)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(logits))


def random_scan(geometry, *, seed=0, high=3.0):
    return Volume(np.random.default_rng(seed).uniform(0, high, (*geometry.shape, 1)).astype(np.float32), geometry)


def thresholded(array):
    return np.select([array < 1, array < 2], [0, 4], 9)
