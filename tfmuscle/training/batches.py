"""Records to batches: which samples an epoch sees, in which order, with which random transforms.

Order and transforms of epoch `e` depend on (seed, e) alone, never on what was drawn before, so that a run resumed at
epoch `e` sees exactly what an uninterrupted one would have seen. Samples are transformed side by side on all cores and
handed on in order; the next chunk is read, and the next batches are made, while the network works on this one
(benchmarks/input_pipeline.md).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.augmentation import augment, get_recipe
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.records import load_samples

CHUNK_BYTES, CHUNK_SAMPLES = 128 << 20, 2048
"""Samples are mixed within chunks of this size; the order of files is mixed too. `Dataset.shuffle` is not used, because
its seed cannot depend on the epoch, and a resumed run would see the samples in another order."""
BATCHES_AHEAD = 4
"""Batches that are ready before the network asks for them: enough for an uneven mix of cheap and dear transforms."""
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
    chunk = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // (4 * int(np.prod(spec.input_shape)))))
    names = tf.constant([str(path) for path in paths])
    recipe, mirrored = config.recipe.augmentation, config.recipe.mirror
    amounts = get_recipe(recipe)
    by_scan = amounts is not None and amounts.whole_scan

    def seed_of(epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """A pair of int32 for the `number`-th draw of an epoch."""
        return tf.cast(tf.stack([config.seed * 7919 + epoch, number]) % _SEED_LIMIT, tf.int32)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        def mixed(number: tf.Tensor, *samples: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(samples[0])[0]), seed_of(epoch, ~number))
            return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(part, order) for part in samples))

        def transformed(number: tf.Tensor, image: tf.Tensor, labels: tf.Tensor, *scan: tf.Tensor):
            scan_seed = seed_of(epoch, _SEED_LIMIT // 2 + scan[0]) if scan else None
            image, labels = augment(
                image, labels, seed=seed_of(epoch, number), recipe=recipe, spec=spec, mirrored=mirrored,
                scan_seed=scan_seed,
            )  # fmt: skip
            return image, labels[..., None]

        files = tf.random.experimental.stateless_shuffle(names, seed=seed_of(epoch, tf.constant(-1, tf.int64)))
        samples = _samples_and_scans(files, spec) if by_scan else load_samples(files, spec)
        chunks = samples.batch(chunk).prefetch(1).enumerate()
        samples = chunks.flat_map(lambda n, parts: mixed(n, *parts))
        samples = samples.repeat().take(steps * config.batch_size)  # the last batch is filled up from the start
        return samples.enumerate().map(lambda n, parts: transformed(n, *parts), num_parallel_calls=tf.data.AUTOTUNE)

    epochs = tf.data.Dataset.range(first_epoch, config.epochs + 1)  # one more than is drawn: Keras warns of an end
    return epochs.flat_map(one_epoch).batch(config.batch_size).prefetch(BATCHES_AHEAD)


def _samples_and_scans(files: tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Yields `(image, labels, scan)`, the number of the scan in `files` with each of its samples."""

    def of_one(scan: tf.Tensor, file: tf.Tensor) -> tf.data.Dataset:
        return load_samples(file[tf.newaxis], spec).map(lambda image, labels: (image, labels, scan))

    return tf.data.Dataset.from_tensor_slices(files).enumerate().flat_map(of_one)


def validation_batches(paths: Sequence[Path], spec: DataSpec, batch_size: int, *, num_samples: int) -> tf.data.Dataset:
    """Returns the samples of `paths` once, in order, never augmented; `num_samples` tells Keras where they end."""
    samples = load_samples([str(path) for path in paths], spec)
    batches = samples.map(lambda image, labels: (image, labels[..., None])).batch(batch_size).prefetch(2)
    return batches.apply(tf.data.experimental.assert_cardinality(-(-num_samples // batch_size)))
