"""Boxes around one muscle as samples (`DataSpec.patches == "boxes"`): cutting and resizing inside TensorFlow.

A shard holds one leg: image and labels of a part of the scan around the muscle, large enough for every enlargement of
its tight box, so that clipping to the array is clipping to the scan. A sample is an enlargement of the tight box,
resized to `DataSpec.window`; `cascade.boxes` says how boxes grow and round, `cascade.resizing` how they are resized.
The same is written here as tensors, because a pipeline that calls Python can wait for ever when the process ends. The
tight box is found from the labels at every reading: three passes over them cost less than inflating them.

The one sample that validation sees is deterministic: every edge is moved by the mean ratio. `mean_sample` gives it as
arrays, `load_boxes` as tensors.

Interpolation is one small dense matrix an axis: from a box of 140 x 140 x 56 voxels to a window of 96 x 96 x 96 that is
0.2 thousand million multiplications, tens of milliseconds on one core and far below a training step.
"""

from typing import Any

import tensorflow as tf

from tfmuscle.cascade.boxes import INPUT_MARGIN, largest_enlargement, tight_box
from tfmuscle.cascade.resizing import resized_labels, resized_linear
from tfmuscle.config import DataSpec
from tfmuscle.records.scans import MUSCLE, Scan, load_scans, no_muscle

_ROUNDING = 1e-6
"""Voxels by which an edge may miss a whole number before it counts as beyond it, as in `cascade.boxes`."""
_INDEX_SCALE = 1e6
"""Indices are rounded to 1e-6 before the nearest voxel is taken, as in `preprocessing.grid`."""


def mean_sample(scan: Scan, spec: DataSpec) -> dict[str, Any]:
    """Returns the deterministic sample of a leg: `image` float32, `labels` int16, `start` (0, 0, 0) and `subject_id`.

    Raises:
        DataError: the leg has no voxel of the muscle.
    """
    tight = tight_box(scan.labels, MUSCLE)
    if tight is None:
        raise no_muscle(scan.subject_id, spec)
    box = largest_enlargement(tight, scan.labels.shape, high=INPUT_MARGIN)
    image = resized_linear(scan.image, box, spec.window)
    labels = resized_labels(scan.labels, box, spec.window)
    return {"image": image, "labels": labels, "start": (0, 0, 0), "subject_id": scan.subject_id}


def load_boxes(paths: tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Yields `(image, labels)` of `mean_sample`, float32 and int32, one a leg; `paths` is a string tensor."""
    ratios = tf.fill((2, 3), tf.constant(INPUT_MARGIN, tf.float64))
    return load_scans(paths, spec).map(lambda scan: box_sample(scan, ratios, spec))


def box_sample(scan: dict[str, tf.Tensor], ratios: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns an enlargement of a leg's tight box, resized: float32 `spec.input_shape`, int32 `spec.label_shape`.

    Args:
        scan: from `load_scans`; it must hold a voxel of the muscle.
        ratios: `(2, 3)` float64, of starts and stops, 1 or more.
        spec: the window to resize to.
    """
    edges = grown(tight_edges(scan["labels"]), tf.shape(scan["labels"], tf.int64), ratios)
    start, size = edges[0], edges[1] - edges[0]
    image = tf.slice(scan["image"], tf.concat([start, [0]], 0), tf.concat([size, [spec.num_channels]], 0))
    image, labels = tf.cast(image, tf.float32), tf.slice(scan["labels"], start, size)
    for axis, new in enumerate(spec.window):
        places = _places(size[axis], new)
        image = tf.tensordot(image, _linear_weights(places, size[axis]), [[0], [1]])  # the next axis is now the first
        labels = tf.gather(labels, _nearest(places, size[axis]), axis=axis)
    image = tf.transpose(image, (1, 2, 3, 0))
    return tf.reshape(image, spec.input_shape), tf.reshape(tf.cast(labels, tf.int32), spec.label_shape)


def tight_edges(labels: tf.Tensor) -> tf.Tensor:
    """Returns start and stop of the tight box of the muscle in `(D, H, W)` labels, `(2, 3)` int64."""
    muscle = tf.equal(labels, MUSCLE)
    occupied = [tf.where(tf.reduce_any(muscle, axes))[:, 0] for axes in ((1, 2), (0, 2), (0, 1))]
    return tf.stack([[places[0] for places in occupied], [places[-1] + 1 for places in occupied]])


def grown(edges: tf.Tensor, shape: tf.Tensor, ratios: tf.Tensor) -> tf.Tensor:
    """Returns `edges` `(2, 3)` moved outward by `(ratio - 1) * size / 2`, rounded outward and clipped to `shape`."""
    size = tf.cast(edges[1] - edges[0], tf.float64)
    growth = tf.cast(tf.math.ceil((ratios - 1) * size / 2 - _ROUNDING), tf.int64)
    return tf.stack([tf.maximum(edges[0] - growth[0], 0), tf.minimum(edges[1] + growth[1], shape)])


def _places(size: tf.Tensor, new: int) -> tf.Tensor:
    """Returns where the voxels of an axis resized from `size` to `new` lie, as indices of the old ones; float64."""
    scale = tf.cast(size, tf.float64) / new
    return scale * tf.range(new, dtype=tf.float64) + (scale - 1) / 2


def _linear_weights(places: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns what each of `size` old voxels gives to each new one, `(new, size)` float32; rows sum to one."""
    last = tf.cast(size - 1, tf.float64)
    distance = tf.abs(tf.clip_by_value(places, 0, last)[:, tf.newaxis] - tf.range(last + 1, dtype=tf.float64))
    return tf.cast(tf.maximum(1 - distance, 0), tf.float32)


def _nearest(places: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the old voxel nearest to each place; halves go up."""
    index = tf.floor(tf.round(places * _INDEX_SCALE) / _INDEX_SCALE + 0.5)
    return tf.clip_by_value(tf.cast(index, tf.int64), 0, size - 1)
