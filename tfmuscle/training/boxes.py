"""Random boxes around one muscle, drawn anew at each step: Ni et al. 2019, stage 2.

A sample is a leg's tight box of the muscle, enlarged at random and resized to what the network sees: each of the six
edges is moved outward on its own, by a ratio between 1 and 1.8 (`cascade.boxes.enlarged`), so that in prediction a box
that stage 1 found too large, or larger on one side, is nothing new. Transforms of the recipe follow.

Every leg comes once before any comes again, in an order of its own for each round; where the samples of an epoch do
not come out even, the last round is cut short. Everything follows from (seed, epoch, number of the sample), so that a
resumed run sees what an uninterrupted one would.

Legs are read in turn, and several are cut and resized side by side. Memory: one leg for each core. Unlike with random
patches a leg is read for every sample, because a sample is about as large as the leg.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf

from tfmuscle.cascade.boxes import HIGH, LOW
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.records import box_sample, load_scans
from tfmuscle.training.patches import seed_of

_ORDER = -2
"""Number of a draw that is no sample: the order of the legs."""


def random_boxes(
    paths: Sequence[Path], spec: DataSpec, config: TrainConfig, *, count: int
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns what makes `(image, labels, scan)` of an epoch: `count` boxes, `scan` being a number in `paths`."""
    rounds = -(-count // len(paths))
    names = tf.constant([str(path) for path in paths])

    def boxes_of(epoch: tf.Tensor) -> tf.data.Dataset:
        keys = tf.random.stateless_uniform((rounds, len(paths)), seed_of(config, epoch, _ORDER))
        order = tf.reshape(tf.argsort(keys, axis=1), (-1,))[:count]

        def read(number: tf.Tensor, leg: tf.Tensor) -> tf.data.Dataset:
            scans = load_scans(names[leg][tf.newaxis], spec)
            return scans.map(lambda scan: (number, tf.cast(leg, tf.int64), scan))

        def box(number: tf.Tensor, leg: tf.Tensor, scan: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
            seed = tf.random.fold_in(seed_of(config, epoch, number), 1)  # the seed itself is that of the transforms
            ratios = tf.random.stateless_uniform((2, 3), seed, LOW, HIGH, tf.float64)
            return *box_sample(scan, ratios, spec), leg

        legs = tf.data.Dataset.from_tensor_slices(order).enumerate().flat_map(read)
        return legs.map(box, num_parallel_calls=tf.data.AUTOTUNE)

    return boxes_of
