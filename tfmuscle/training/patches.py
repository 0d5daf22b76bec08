"""Random patches of whole scans, drawn anew at each step by nnU-Net's rules.

Each patch comes from a random scan. Of a batch of B those from number `round(B * (1 - foreground))` on are *forced*:
the patch is centred on a random voxel of a random structure of the scan. The others lie anywhere, every start at which
they are inside being equally likely, or on a random labelled voxel where a scan is labelled in parts. For slices and
stacks a patch is one slice. Where the scan is smaller than the patch, the missing voxels are shared out: half on each
side, of an odd number the last one on either. A forced patch is moved back when it begins before the first of these
starts, and may reach beyond the end. Outside the scan lies air of unknown label.

Everything follows from (seed, epoch, number of the patch), so that a resumed run sees what an uninterrupted one would.

nnU-Net cuts a larger patch, moves it (rotation, scale) and cuts out the middle; here the patch itself is moved, and
what comes in at its border is unknown. Most patches are not moved, so that this is the same; the others see less.

A *visit* reads a scan and draws several patches from it, because reading costs more than drawing; several scans are
open at a time and take turns, so that the patches of a batch come from different ones (`visits`). Memory:
`SCANS_BYTES`, or two scans if they are larger, and two more of its size while one is read. Rejected: drawing in Python,
which can leave the process waiting for itself when it ends.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.labels import IGNORE
from tfmuscle.records import load_scans, sample_of
from tfmuscle.sampling import label_window

SCANS_BYTES = 2 << 30
"""Scans that are open at a time, together."""
MOST_OPEN = 32
"""More open scans than this would mix a batch no better."""
VISIT_SHARE, MOST_PATCHES = 4, 64
"""A visit draws patches of a quarter of the scan's voxels, 64 patches at most."""
SEED_LIMIT = 2**31 - 1
_ORDER = -2
"""Number of a draw that is no sample: the order of the scans."""


def seed_of(config: TrainConfig, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns the seed, two int32, of the `number`-th draw of an epoch."""
    number = tf.cast(number, tf.int64)
    return tf.cast(tf.stack([config.seed * 7919 + epoch, number]) % SEED_LIMIT, tf.int32)


def random_patches(
    paths: Sequence[Path], spec: DataSpec, config: TrainConfig, *, count: int
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns what makes `(image, labels, scan)` of an epoch: `count` patches, `scan` being a number in `paths`."""
    num_open, per_visit = visits(paths, spec)
    first_forced = round(config.batch_size * (1 - config.recipe.foreground))
    num_visits = num_open * -(-count // (num_open * per_visit))
    names = tf.constant([str(path) for path in paths])

    def patches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.stateless_uniform((num_visits,), seed_of(config, epoch, _ORDER), 0, len(paths), tf.int64)

        def visit(number: tf.Tensor) -> tf.data.Dataset:
            before = number // num_open * (num_open * per_visit) + number % num_open

            def patch(scan: dict[str, tf.Tensor], turn: tf.Tensor) -> tuple[tf.Tensor, ...]:
                place = before + turn * num_open  # number of the patch in the epoch
                seed = tf.random.fold_in(seed_of(config, epoch, place), 1)  # the seed itself is that of the transforms
                start = draw_start(scan, spec, seed, place % config.batch_size >= first_forced)
                return *sample_of(scan, start, spec), order[number]

            scans = load_scans(names[order[number]][tf.newaxis], spec)
            turns = tf.data.Dataset.range(per_visit)
            return scans.flat_map(lambda scan: turns.map(lambda turn: patch(scan, turn)))

        return tf.data.Dataset.range(num_visits).interleave(visit, cycle_length=num_open, block_length=1).take(count)

    return patches_of


def visits(paths: Sequence[Path], spec: DataSpec) -> tuple[int, int]:
    """Returns how many scans are open at a time, and how many patches each gives before it is closed."""
    labels_share = 1 / spec.num_channels  # as many bytes as one channel; on disk they are deflated to almost nothing
    sizes = [Path(path).stat().st_size * (1 + labels_share) for path in paths]
    num_open = min(max(2, int(SCANS_BYTES // max(sizes))), len(paths), MOST_OPEN)
    patch_bytes = 2 * (spec.num_channels + 1) * int(np.prod(spec.window))
    return num_open, int(np.clip(np.mean(sizes) / (VISIT_SHARE * patch_bytes), 1, MOST_PATCHES))


def draw_start(scan: dict[str, tf.Tensor], spec: DataSpec, seed: tf.Tensor, forced: tf.Tensor) -> tf.Tensor:
    """Returns the start of a random patch, three int32.

    Args:
        scan: from `records.load_scans`.
        spec: what a sample is.
        seed: two int32.
        forced: centred on a voxel of a structure, every structure of the scan being equally likely.
    """
    classes, shape, length = scan["places"][:, 0], tf.shape(scan["labels"]), tf.constant(label_window(spec))
    chances = tf.random.stateless_uniform((5,), seed, dtype=tf.float64)
    structures = tf.unique(tf.boolean_mask(classes, classes != IGNORE))[0]
    forced = tf.logical_and(forced, tf.size(structures) > 0)
    wanted = tf.cond(forced, lambda: structures[_below(tf.size(structures), chances[3])], lambda: tf.constant(IGNORE))
    places = tf.boolean_mask(scan["places"][:, 1:], classes == wanted)
    missing = (tf.maximum(length - shape, 0) + 1) // 2
    first, last = -missing, shape + missing - length
    return tf.cond(
        tf.shape(places)[0] > 0,
        lambda: tf.maximum(first, places[_below(tf.shape(places)[0], chances[4])] - length // 2),
        lambda: first + _below(last - first + 1, chances[:3]),
    )


def _below(count: tf.Tensor, chance: tf.Tensor) -> tf.Tensor:
    """Returns a whole number from 0 to below `count`, from a number between 0 and 1."""
    return tf.cast(tf.floor(chance * tf.cast(count, tf.float64)), tf.int32)
