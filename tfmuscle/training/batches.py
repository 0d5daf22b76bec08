"""Records to batches: which samples an epoch sees, in which order, with which random transforms.

Order and transforms of epoch `e` depend on (seed, e) alone, never on what was drawn before, so that a run resumed at
epoch `e` sees exactly what an uninterrupted one would have seen. Samples are transformed side by side on all cores and
handed on in order; the next chunk is read, and the next batches are made, while the network works on this one
(benchmarks/input_pipeline.md).

Samples of the grid (`patches="grid"`) are read from the shards, each once an epoch, mixed within chunks.

Whole parts of scans (`patches="whole"`) are samples like these, one a subject.

Random boxes (`patches="boxes"`) are cut from the array of a leg, see `boxes.py`; an epoch is `steps` batches, or one
box a leg. Validation takes the mean box of each leg.

Random patches (`patches="random"`) are drawn from whole scans, see `patches.py`; an epoch is `steps` batches, or as
many patches as the grid has windows. Validation takes the windows of the grid, one scan at a time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.augmentation import augment, get_recipe
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.labels import IGNORE
from tfmuscle.records import load_samples
from tfmuscle.training.boxes import random_boxes
from tfmuscle.training.patches import SEED_LIMIT, random_patches, seed_of

CHUNK_BYTES, CHUNK_SAMPLES = 128 << 20, 2048
"""Samples are mixed within chunks of this size; the order of files is mixed too. `Dataset.shuffle` is not used, because
its seed cannot depend on the epoch, and a resumed run would see the samples in another order."""
BATCHES_AHEAD = 4
"""Batches that are ready before the network asks for them: enough for an uneven mix of cheap and dear transforms."""
_DRAWN = {"random": random_patches, "boxes": random_boxes}
"""Samples that are drawn anew from arrays, by `DataSpec.patches`."""
_Samples = Callable[[tf.Tensor], tf.data.Dataset]


def epoch_steps(num_samples: int, config: TrainConfig) -> int:
    """Returns the number of batches of an epoch: `config.steps`, or enough to see every sample once.

    >>> epoch_steps(10, TrainConfig(batch_size=4))
    3
    """
    return config.steps or -(-num_samples // config.batch_size)


def training_batches(
    paths: Sequence[Path],
    spec: DataSpec,
    config: TrainConfig,
    *,
    first_epoch: int = 0,
    steps: int,
    machine: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns the batches of all epochs from `first_epoch` on, one after the other, `steps` each.

    Args:
        paths: shards.
        spec: how scans became samples.
        config: batch size, seed, transforms.
        first_epoch: epochs that are done.
        steps: batches of an epoch.
        machine: of several, the number of this one and how many there are: it makes its part of every batch, and as
            many parts as there are machines follow each other in what is called a batch here.

    Yields:
        `image` `(B, *spec.input_shape)` float32 and `labels` `(B, *spec.label_shape, 1)` int32.
    """
    recipe, mirrored = config.recipe.augmentation, config.recipe.mirror
    by_scan = _by_scan(config)
    source = _DRAWN.get(spec.patches, _mixed_samples)
    samples_of = source(paths, spec, config, count=steps * config.batch_size)

    index, machines = machine
    part = config.batch_size // machines

    def is_ours(number: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return number % config.batch_size // part == index

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        def transformed(number: tf.Tensor, image: tf.Tensor, labels: tf.Tensor, scan: tf.Tensor):
            scan_seed = seed_of(config, epoch, SEED_LIMIT // 2 + scan) if by_scan else None
            image, labels = augment(
                image, labels, seed=seed_of(config, epoch, number), recipe=recipe, spec=spec, mirrored=mirrored,
                scan_seed=scan_seed,
            )  # fmt: skip
            return image, labels[..., None]

        samples = samples_of(epoch).enumerate()
        samples = samples.filter(is_ours) if machines > 1 else samples
        return samples.map(lambda n, parts: transformed(n, *parts), num_parallel_calls=tf.data.AUTOTUNE)

    epochs = tf.data.Dataset.range(first_epoch, config.epochs + 1)  # one more than is drawn: Keras warns of an end
    batches = epochs.flat_map(one_epoch).batch(config.batch_size).prefetch(BATCHES_AHEAD)
    return batches.with_options(_sharing(tf.data.experimental.AutoShardPolicy.OFF))


def _sharing(policy: tf.data.experimental.AutoShardPolicy) -> tf.data.Options:
    """How batches are shared out among machines: not at all, because they are parts already, or part by part."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return options


def _by_scan(config: TrainConfig) -> bool:
    """Whether all samples of a scan move alike."""
    amounts = get_recipe(config.recipe.augmentation)
    return amounts is not None and amounts.whole_scan


def _mixed_samples(paths: Sequence[Path], spec: DataSpec, config: TrainConfig, *, count: int) -> _Samples:
    """Returns what makes `(image, labels, scan)` of an epoch: `count` samples of the grid in a random order."""
    chunk = max(1, min(CHUNK_SAMPLES, CHUNK_BYTES // (4 * int(np.prod(spec.input_shape)))))
    names = tf.constant([str(path) for path in paths])

    def samples_of(epoch: tf.Tensor) -> tf.data.Dataset:
        def mixed(number: tf.Tensor, *samples: tf.Tensor) -> tf.data.Dataset:
            seed = seed_of(config, epoch, ~number)
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(samples[0])[0]), seed)
            return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(part, order) for part in samples))

        files = tf.random.experimental.stateless_shuffle(names, seed_of(config, epoch, tf.constant(-1, tf.int64)))
        samples = _samples_and_scans(files, spec) if _by_scan(config) else _numbered(files, spec, 0)
        chunks = samples.batch(chunk).prefetch(1).enumerate()
        samples = chunks.flat_map(lambda number, parts: mixed(number, *parts))
        return samples.repeat().take(count)  # the last batch is filled up from the start

    return samples_of


def _samples_and_scans(files: tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Yields `(image, labels, scan)`, the number of the scan in `files` with each of its samples."""
    scans = tf.data.Dataset.from_tensor_slices(files).enumerate()
    return scans.flat_map(lambda scan, file: _numbered(file[tf.newaxis], spec, scan))


def _numbered(files: tf.Tensor, spec: DataSpec, scan: tf.Tensor | int) -> tf.data.Dataset:
    return load_samples(files, spec).map(lambda image, labels: (image, labels, tf.cast(scan, tf.int64)))


def validation_batches(
    paths: Sequence[Path], spec: DataSpec, batch_size: int, *, num_samples: int, full: bool = False
) -> tf.data.Dataset:
    """Returns the samples of `paths` once, in order, never augmented; `num_samples` tells Keras where they end.

    With `full` the last batch is filled up with samples of unknown labels, which count nowhere, so that it can be
    shared out like the others.
    """
    samples = load_samples([str(path) for path in paths], spec)
    if full:
        missing = -num_samples % batch_size
        unknown = samples.map(lambda image, labels: (image, tf.fill(tf.shape(labels), tf.cast(IGNORE, labels.dtype))))
        samples = samples.concatenate(unknown.take(1).repeat(missing))
    batches = samples.map(lambda image, labels: (image, labels[..., None])).batch(batch_size).prefetch(2)
    batches = batches.with_options(_sharing(tf.data.experimental.AutoShardPolicy.DATA))
    return batches.apply(tf.data.experimental.assert_cardinality(-(-num_samples // batch_size)))
