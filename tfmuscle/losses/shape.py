"""Losses that look at a neighbourhood: the band around a boundary, and specks.

Dilation is a max-pooling and erosion its mirror image; windows are counted in voxels.
"""

from typing import Any

import keras
from keras import ops

from tfmuscle.losses.targets import SMALLEST_PROBABILITY, log_of, prepare


def boundary_band_loss(g, p, labelled, *, size: int):
    """Returns the mean of each foreground class's binary cross-entropy over its band dilate_k(g) - erode_k(g)."""
    g, p = g[..., 1:], p[..., 1:]
    # erode(g) = 1 - dilate(1 - g); unlabelled voxels count neither as inside nor as outside.
    band = ops.maximum(_dilate(g, size) + _dilate((1 - g) * labelled, size) - 1, 0.0) * labelled
    entropy = -(g * log_of(p) + (1 - g) * log_of(1 - p))
    return ops.sum(band * entropy) / ops.maximum(ops.sum(band), SMALLEST_PROBABILITY)


def small_object_loss(g, p, labelled, *, size: int):
    """Returns the mean over labelled voxels and foreground of t (1 - g), t = relu(p - open_k(p)): the specks."""
    g, p = g[..., 1:], p[..., 1:]
    # Unknown voxels get the benefit of the doubt: an object may go on there.
    eroded = -_dilate(-ops.where(labelled > 0, p, 1.0), size)
    speck = ops.relu(p - _dilate(eroded, size)) * (1 - g) * labelled
    return ops.sum(speck) / (p.shape[-1] * ops.maximum(ops.sum(labelled), 1.0))


def odd_size(size: int) -> int:
    """Returns a window edge in voxels, or raises a ValueError: it must be odd, to have a middle."""
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size is {size!r}; an odd number of voxels from 3 on is needed")
    return int(size)


def _dilate(x, size: int):
    """Maximum over a cube of `size` voxels; the outside never counts. Axis by axis: 3k comparisons, not k³."""
    rank = len(x.shape) - 2
    for axis in range(rank):
        window = tuple(size if n == axis else 1 for n in range(rank))
        x = ops.max_pool(x, window, strides=1, padding="same")
    return x


@keras.saving.register_keras_serializable(package="tfmuscle")
class BoundaryBand(keras.losses.Loss):
    """Binary cross-entropy in a band around each structure's boundary, `size` voxels wide."""

    source = "Mehrabi & Handsfield; formula ours"
    formula = "Σ B·BCE(p, g) / ΣB, band B = dilate_k(g) - erode_k(g) per foreground class, k 5"

    def __init__(self, *, size=5, name="boundary_band"):
        super().__init__(name=name, dtype="float32")
        self.options = {"size": odd_size(size)}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        return boundary_band_loss(*prepare(y_true, y_pred), **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options


@keras.saving.register_keras_serializable(package="tfmuscle")
class SmallObject(keras.losses.Loss):
    """Penalty on specks: what a grey-value opening with a cube of `size` voxels removes from `p` outside the structure.

    A part of a sum: alone it is 0 for an empty prediction.
    """

    source = "Mehrabi & Handsfield; formula ours"
    formula = "mean of relu(p - open_k(p)) (1 - g) over labelled voxels and foreground, k 7"

    def __init__(self, *, size=7, name="small_object"):
        super().__init__(name=name, dtype="float32")
        self.options = {"size": odd_size(size)}

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        return small_object_loss(*prepare(y_true, y_pred), **self.options)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
