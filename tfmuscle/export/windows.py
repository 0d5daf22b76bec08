"""Windows of a preprocessed scan through networks and blended, as TensorFlow operations: `sampling` and its `Stitcher`.

Windows stand on a grid of starts, and their blending weights are a product over the axes, so that blending works axis
by axis: first the windows beside each other in a row, then the rows, then the slabs along the limb. A *slab* is what
the windows that start at one slice cover. Slabs of one slice go through the network several at a time; thicker ones
overlap, and are held one window depth at a time. What is final goes into a list of slices, and that list is the
probabilities of the whole scan: the graph holds `(D, H, W, C)` float32 once.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.inference.volumes import WINDOW_BUDGET_VOXELS
from tfmuscle.sampling import SIGMA_PER_WINDOW, SMALLEST_PROBABILITY, label_window, window_steps

Network = Callable[[tf.Tensor], tf.Tensor]


def probabilities_of(volume: tf.Tensor, network: Network, spec: DataSpec) -> tf.TensorArray:
    """Returns the class probabilities of a scan, slice by slice.

    Args:
        volume: preprocessed, `(D, H, W, C)` float32.
        network: maps samples `(B, *spec.input_shape)` to `(B, *spec.label_shape, num_classes)`.
        spec: what a sample is, and what is averaged.

    Returns:
        D slices `(H, W, num_classes)`.
    """
    shape, window = tf.shape(volume)[:3], label_window(spec)
    steps = window_steps(spec)
    starts = [_starts(shape[axis], window[axis], steps[axis]) for axis in range(3)]
    bells = [_bell(length, some) for length, some in zip(window, starts, strict=True)]
    at = _padded(volume, window)

    def row(slabs: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Returns the windows of one row of some slabs, blended: `(W, slabs, d, h, classes)`."""
        places = tf.stack(tf.meshgrid(slabs, first, starts[2], indexing="ij"), axis=-1)
        said = _said(tf.reshape(places, (-1, 3)), at, network, spec)
        said = tf.reshape(said, (tf.size(slabs), tf.size(starts[2]), *window, spec.num_classes))
        return _blended(tf.transpose(said, (1, 4, 0, 2, 3, 5)), starts[2], bells[2], shape[2])

    def blocks_of(slabs: tf.Tensor) -> tf.Tensor:
        """Returns some slabs `(slabs, d, H, W, classes)`."""
        signature = tf.TensorSpec((None, None, *window[:2], spec.num_classes), tf.float32)
        found = tf.map_fn(lambda first: row(slabs, first), starts[1], fn_output_signature=signature)
        planes = _blended(tf.transpose(found, (0, 4, 1, 2, 3, 5)), starts[1], bells[1], shape[1])
        return tf.transpose(planes, (2, 3, 0, 1, 4))

    if window[0] == 1:
        return _slice_by_slice(blocks_of, shape, spec)
    return _along_the_limb(blocks_of, starts[0], bells[0], shape, spec)


def _starts(size: tf.Tensor, window: int, step: int) -> tf.Tensor:
    """Returns the first voxels of the windows of an axis: `sampling.window_starts`, centred where it is short."""
    room = tf.cast(size - window, tf.float64)
    gaps = tf.maximum(tf.math.ceil(room / step), 1)
    several = tf.cast(tf.round(room * tf.range(gaps + 1, dtype=tf.float64) / gaps), tf.int32)
    return tf.cond(size > window, lambda: several, lambda: tf.reshape(-((window - size) // 2), (1,)))


def _bell(length: int, starts: tf.Tensor) -> tf.Tensor:
    """Returns the blending weights of a window along one axis, float32: a Gaussian where there are several windows."""
    distance = (tf.range(length, dtype=tf.float64) - (length - 1) / 2) / (length * SIGMA_PER_WINDOW)
    bell = tf.exp(-0.5 * distance**2)
    alone = tf.logical_or(tf.size(starts) == 1, length == 1)
    return tf.cast(tf.where(alone, tf.ones_like(bell), bell / tf.reduce_max(bell)), tf.float32)


def _padded(volume: tf.Tensor, window: tuple[int, int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scan with air around it where it is smaller than the window, and the voxels added before `(3,)`."""
    shape = tf.shape(volume)
    missing = tf.maximum(tf.constant(window) - shape[:3], 0)
    before = missing // 2
    around = tf.concat([tf.stack([before, missing - before], axis=1), [[0, 0]]], axis=0)
    air = tf.reduce_min(volume, axis=(0, 1, 2))
    inside = tf.pad(tf.ones(shape[:3], tf.bool), around[:3])[..., tf.newaxis]
    return tf.where(inside, tf.pad(volume, around), air), before


def _said(places: tf.Tensor, at: tuple[tf.Tensor, tf.Tensor], network: Network, spec: DataSpec) -> tf.Tensor:
    """Returns what the network says of windows that start at `places` `(n, 3)`, `(n, *window, num_classes)`."""
    window, (padded, before) = label_window(spec), at
    at_once = max(1, WINDOW_BUDGET_VOXELS // math.prod(spec.window))
    count = tf.shape(places)[0]
    element = (None, *window, spec.num_classes)
    found = tf.TensorArray(tf.float32, size=(count + at_once - 1) // at_once, element_shape=element, infer_shape=False)

    def sample(place: tf.Tensor) -> tf.Tensor:
        start = place + before
        if spec.kind != "stacks":
            begin = tf.concat([start, [0]], axis=0)
            return tf.reshape(tf.slice(padded, begin, [*window, spec.num_channels]), spec.input_shape)
        neighbours = tf.clip_by_value(tf.range(spec.depth) + place[0] - spec.depth // 2, 0, tf.shape(padded)[0] - 1)
        planes = tf.gather(padded, neighbours)[:, start[1] : start[1] + window[1], start[2] : start[2] + window[2]]
        return tf.reshape(tf.transpose(planes, (1, 2, 0, 3)), spec.input_shape)

    def batch(number: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        some = places[number * at_once : (number + 1) * at_once]
        images = tf.map_fn(sample, some, fn_output_signature=tf.TensorSpec(spec.input_shape, tf.float32))
        said = tf.reshape(network(images), (-1, *window, spec.num_classes))
        return number + 1, found.write(number, said)

    def more(number: tf.Tensor, _: tf.TensorArray) -> tf.Tensor:
        return number * at_once < count

    said = tf.while_loop(more, batch, (0, found), parallel_iterations=1)[1].concat()
    said = tf.ensure_shape(said, element)
    return tf.math.log(tf.maximum(said, SMALLEST_PROBABILITY)) if spec.blend == "logits" else said


def _blended(parts: tf.Tensor, starts: tf.Tensor, bell: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the weighted mean of overlapping parts along one axis: `(n, length, ...)` becomes `(size, ...)`."""
    length, rest = int(bell.shape[0]), tf.shape(parts)[2:]
    places = tf.reshape(starts[:, tf.newaxis] + tf.range(length), (-1,))
    places = tf.where(places < size, places, -1)  # what is negative is left out
    weights = tf.tile(bell, [tf.size(starts)])
    flat = tf.reshape(parts, (-1, tf.reduce_prod(rest))) * weights[:, tf.newaxis]
    total = tf.math.unsorted_segment_sum(flat, places, size)
    share = tf.math.unsorted_segment_sum(weights, places, size)
    return tf.reshape(total / share[:, tf.newaxis], tf.concat([[size], rest], axis=0))


def _list_of_slices(shape: tf.Tensor, spec: DataSpec) -> tf.TensorArray:
    element = (None, None, spec.num_classes)
    return tf.TensorArray(tf.float32, size=shape[0], element_shape=element, clear_after_read=False, infer_shape=False)


def _final(block: tf.Tensor, spec: DataSpec) -> tf.Tensor:
    return tf.nn.softmax(block) if spec.blend == "logits" else block


def _slice_by_slice(blocks_of: Network, shape: tf.Tensor, spec: DataSpec) -> tf.TensorArray:
    """Fills the list from slabs of one slice each, several at a time."""
    at_once = max(1, WINDOW_BUDGET_VOXELS // math.prod(spec.window))

    def some(first: tf.Tensor, slices: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        numbers = tf.range(first, tf.minimum(first + at_once, shape[0]))
        return first + at_once, slices.scatter(numbers, _final(blocks_of(numbers)[:, 0], spec))

    state = (tf.constant(0), _list_of_slices(shape, spec))
    return tf.while_loop(lambda first, _: first < shape[0], some, state, parallel_iterations=1)[1]


def _along_the_limb(
    blocks_of: Network, starts: tf.Tensor, bell: tf.Tensor, shape: tf.Tensor, spec: DataSpec
) -> tf.TensorArray:
    """Fills the list from slabs that overlap: a slice is final when no later slab touches it."""
    depth, count = int(bell.shape[0]), tf.size(starts)
    weights = bell[:, tf.newaxis, tf.newaxis, tf.newaxis]

    def one(
        number: tf.Tensor, total: tf.Tensor, share: tf.Tensor, slices: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.TensorArray]:
        start = starts[number]
        total, share = total + weights * blocks_of(starts[number : number + 1])[0], share + weights
        following = tf.where(number + 1 < count, starts[tf.minimum(number + 1, count - 1)], start + depth)
        first, stop = tf.maximum(start, 0), tf.minimum(following, shape[0])
        block = (total / tf.maximum(share, tf.float32.min))[first - start : stop - start]
        slices = slices.scatter(tf.range(first, stop), _final(block, spec))
        rest = [[0, following - start], [0, 0], [0, 0], [0, 0]]
        return number + 1, tf.pad(total[following - start :], rest), tf.pad(share[following - start :], rest), slices

    zeros = tf.zeros((depth, shape[1], shape[2], spec.num_classes))
    state = (tf.constant(0), zeros, tf.zeros((depth, 1, 1, 1)), _list_of_slices(shape, spec))
    shapes = (
        tf.TensorShape(()),
        tf.TensorShape((None, None, None, spec.num_classes)),
        tf.TensorShape((None, 1, 1, 1)),
        tf.TensorShape(None),
    )
    return tf.while_loop(lambda number, *_: number < count, one, state, shape_invariants=shapes, parallel_iterations=1)[
        3
    ]
