"""Records to batches: which samples an epoch sees, in which order, with which random transforms.

Order and transforms of epoch `e` depend on (seed, e) alone, never on what was drawn before, so that a run resumed at epoch
`e` sees exactly what an uninterrupted one would have seen.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.augmentation import augment
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.records import load_samples

SHUFFLE_BYTES = 256 << 20
"""Memory for the shuffle buffer; files are shuffled too, so that a small buffer still mixes subjects."""
_SEED_LIMIT = 2**31 - 1


def epoch_steps(num_samples: int, config: TrainConfig) -> int:
    """Returns the number of batches of an epoch: `config.steps`, or enough to see every sample once.

    >>> epoch_steps(10, TrainConfig(batch_size=4))
    3
    """
    return config.steps or -(-num_samples // config.batch_size)


def training_batches(
    paths: Sequence[Path], spec: DataSpec, config: TrainConfig, *, first_epoch: int = 0, steps: int
) -> tf.data.Dataset:
    """Returns the batches of all epochs from `first_epoch` on, one after the other, `steps` each.

    Yields:
        `image` `(B, *spec.input_shape)` float32 and `labels` `(B, *spec.label_shape, 1)` int32.
    """
    sample_bytes = 4 * int(np.prod(spec.input_shape))
    buffer = max(config.batch_size, min(4096, SHUFFLE_BYTES // sample_bytes))
    names = tf.constant([str(path) for path in paths])
    strength, mirror = config.recipe.augmentation, config.recipe.mirror

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([tf.constant(config.seed % _SEED_LIMIT, tf.int64), epoch])

        def transform(index, image, labels):
            sample_seed = tf.cast(tf.stack([seed[0] * 7919 + epoch, index]) % _SEED_LIMIT, tf.int32)
            image, labels = augment(image, labels, seed=sample_seed, strength=strength, spec=spec, mirror=mirror)
            return image, labels[..., None]

        order = tf.random.experimental.stateless_shuffle(names, seed=seed)
        samples = load_samples(order, spec).repeat()
        samples = samples.shuffle(buffer, seed=seed[0] * 1_000_003 + epoch).take(steps * config.batch_size)
        # A pass that ends mid-batch is cut short: an epoch sees `steps` whole batches.
        return samples.enumerate().map(lambda index, pair: transform(index, *pair), num_parallel_calls=tf.data.AUTOTUNE)

    epochs = tf.data.Dataset.range(first_epoch, config.epochs)
    return epochs.flat_map(one_epoch).batch(config.batch_size).prefetch(2)


def validation_batches(paths: Sequence[Path], spec: DataSpec, batch_size: int) -> tf.data.Dataset:
    """Returns the samples of `paths` once, in order, never augmented."""
    samples = load_samples([str(path) for path in paths], spec)
    return samples.map(lambda image, labels: (image, labels[..., None])).batch(batch_size).prefetch(2)
