"""Between boxes of any size and the one size that a network sees, in NumPy.

Both ways follow one rule, that of `Geometry.resized`: the outer faces stay. Along an axis resized from `size` to `new`
voxels, new voxel `n` lies at old index

    (n + 1/2) * size / new - 1/2,

clipped to the centres of the outermost voxels of the box. Images and probabilities are interpolated linearly between
the voxels of the box, labels are those of the nearest voxel (halves go up); what lies outside the box is never looked
at, so that a box can be cut out before.

The data decides the size of a box, the user that of the network (`fitting_grid`). Nothing is blurred where a box is
larger than the network's grid, unlike in `preprocessing.grid`: a blur would depend on the box, and the same muscle
would look different in each of its boxes. Ni et al. 2019 do not blur either. The factor is small, for the grid is
planned for the mean box, and what is cut from is already on a grid of about that spacing.

Training does the same inside TensorFlow (`records/boxes.py`).
"""

import numpy as np

from tfmuscle.cascade.boxes import Box
from tfmuscle.preprocessing.grid import apply_weights, linear_weights, nearest_index


def resized_linear(array: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a box of an image, interpolated linearly onto a grid of `shape`: `(d, h, w, C)` float32.

    Args:
        array: `(D, H, W, C)`, numbers of any type.
        box: part of the array, inside it.
        shape: voxels of the new grid along the three axes.

    Raises:
        ValueError: an array without channels, a shape without voxels, or a box that reaches outside the array.

    >>> ramp = np.arange(4.0).reshape(1, 1, 4, 1)
    >>> resized_linear(ramp, Box((0, 0, 0), (1, 1, 4)), (1, 1, 2)).ravel().tolist()
    [0.5, 2.5]
    """
    if array.ndim != 4:
        raise ValueError(f"an image has shape {array.shape}; (D, H, W, C) is needed")
    _check(array, box, shape)
    axes = zip(box.size, shape, strict=True)
    weights = [linear_weights(size / new, _first(size, new), size, new) for size, new in axes]
    resized = np.empty((*shape, array.shape[3]), np.float32)
    for channel in range(array.shape[3]):
        apply_weights(array[(*box.slices, channel)].astype(np.float32), weights, resized[..., channel])
    return resized


def resized_labels(labels: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a box of labels on a grid of `shape`, of each new voxel the label of the nearest; type kept.

    Args:
        labels: `(D, H, W)`.
        box: part of the labels, inside them.
        shape: voxels of the new grid along the three axes.

    Raises:
        ValueError: labels with channels, a shape without voxels, or a box that reaches outside the labels.

    >>> resized_labels(np.array([[[0, 1, 2, 3]]]), Box((0, 0, 1), (1, 1, 4)), (1, 1, 2)).ravel().tolist()
    [1, 3]
    """
    if labels.ndim != 3:
        raise ValueError(f"labels have shape {labels.shape}; (D, H, W) is needed")
    _check(labels, box, shape)
    axes = zip(box.size, shape, strict=True)
    nearest = [nearest_index(size / new * np.arange(new) + _first(size, new)) for size, new in axes]
    inside = [np.clip(index, 0, size - 1) for index, size in zip(nearest, box.size, strict=True)]
    return labels[box.slices][np.ix_(*inside)]


def resized_back(probability: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Returns what a network said of a box, interpolated linearly onto the `size` voxels of that box; float32.

    Args:
        probability: `(d, h, w)`, on the network's grid.
        size: `Box.size` of the box that was resized.

    Raises:
        ValueError: a probability with channels, or a size without voxels.

    >>> resized_back(np.array([[[0.25, 0.75]]]), (1, 1, 4)).ravel().tolist()
    [0.25, 0.375, 0.625, 0.75]
    """
    if probability.ndim != 3 or not probability.size:
        raise ValueError(f"a probability has shape {probability.shape}; (d, h, w) is needed")
    a, b, c = probability.shape
    return resized_linear(probability[..., np.newaxis], Box((0, 0, 0), (a, b, c)), size)[..., 0]


def _first(size: int, new: int) -> float:
    """Returns where the first new voxel lies, as an index of the old ones."""
    return (size / new - 1) / 2


def _check(array: np.ndarray, box: Box, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a box is resized to three positive sizes, not {tuple(shape)}")
    a, b, c = array.shape[:3]
    if min(a, b, c) < 1 or not Box((0, 0, 0), (a, b, c)).contains(box):
        raise ValueError(f"box {box.start}..{box.stop} reaches outside the array {(a, b, c)}; clip it first")
