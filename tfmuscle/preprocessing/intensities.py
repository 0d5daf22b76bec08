"""Scaling of intensities, once for the whole scan and per channel, so that a result does not depend on tiles.

The statistics of `zscore` and `percentile` leave out voxels of exactly zero (padding, masked background), while the
formula is applied to every voxel. `zscore_all`, `zscore_masked` and `ct` are nnU-Net's schemes: the first counts every
voxel; the second counts and changes only the body, that is what is not zero with its holes filled, and leaves zero
around it; the third takes the statistics of the structures over the whole dataset, for CT numbers mean the same in
every scan.
"""

import numpy as np
import scipy.ndimage

from tfmuscle.config import NORMALISATIONS

PERCENTILES = (0.5, 99.5)
"""Lower and upper limit of "percentile", in percent of the non-zero voxels."""
_BLOCK_VOXELS = 1 << 18
"""Voxels worked on at once: enough to outweigh a call, few enough for the processor's cache."""


def normalise(
    array: np.ndarray,
    method: str,
    *,
    mask: np.ndarray | None = None,
    statistics: tuple[float, float, float, float] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Scales the intensities of one channel; float32, same shape.

    * `zscore`: (x - mean) / sd, mean and sd of the non-zero voxels; 0 everywhere when they are all alike.
    * `zscore_all`: the same, mean and sd of all voxels.
    * `zscore_masked`: the same within `mask`, 0 outside.
    * `percentile`: clipped to the 0.5 and 99.5 percentile of the non-zero voxels, then `zscore`.
    * `ct`: clipped to the lower and upper limit of `statistics`, then their mean and sd.
    * `minmax`: (x - min) / (max - min) over all voxels.
    * `div255`: x / 255.
    * `none`: unchanged.

    Isensee et al. 2021 for `zscore_all`, `zscore_masked` and `ct`.

    Args:
        array: one channel, of any numeric type.
        method: one of the above.
        mask: for `zscore_masked`, where to count; without it, `body_mask` of this channel.
        statistics: for `ct`, mean, sd, lower and upper limit of this channel over the dataset.
        out: float32 array of the same shape to write to, which may be `array` itself; without it, a new one is made.

    Returns:
        `out`.

    Raises:
        ValueError: an unknown method, or `ct` without statistics.

    >>> normalise(np.array([0.0, 1.0, 3.0]), "zscore").tolist()
    [-2.0, -1.0, 1.0]
    >>> normalise(np.array([2, 3, 6]), "minmax").tolist()
    [0.0, 0.25, 1.0]
    >>> normalise(np.array([-2000, 50, 90]), "ct", statistics=(40.0, 10.0, -20.0, 80.0)).tolist()
    [-6.0, 1.0, 4.0]
    """
    if method not in NORMALISATIONS:
        raise ValueError(f"normalisation {method!r} is unknown; choose one of {', '.join(NORMALISATIONS)}")
    if method == "ct" and statistics is None:
        raise ValueError("normalisation 'ct' has no statistics; give mean, sd, lower and upper limit of the channel")
    scaled = np.empty(array.shape, np.float32) if out is None else out
    if scaled is not array:
        scaled[...] = array
    if method == "none":
        return scaled
    if method == "div255":
        return _shift_and_scale(scaled, 0.0, 255.0)
    if method == "minmax":
        low, high = float(scaled.min()), float(scaled.max())
        return _shift_and_scale(scaled, low, high - low)
    if method == "ct" and statistics is not None:
        mean, sd, low, high = statistics
        np.clip(scaled, low, high, out=scaled)
        return _shift_and_scale(scaled, mean, sd)
    return _standardised(scaled, method, mask)


def body_mask(array: np.ndarray) -> np.ndarray:
    """Returns where `(D, H, W)` or `(D, H, W, C)` is not zero in some channel, holes filled; `(D, H, W)` bool.

    A hole is whatever the outside does not reach through faces of voxels, as in nnU-Net.
    """
    occupied = array != 0
    return scipy.ndimage.binary_fill_holes(occupied.any(axis=3) if array.ndim == 4 else occupied)


def _standardised(array: np.ndarray, method: str, mask: np.ndarray | None) -> np.ndarray:
    """Subtracts the mean and divides by the sd of the voxels that count, in place."""
    if method == "zscore_all":
        counted = np.ones((1,) * array.ndim, bool)
    elif method == "zscore_masked":
        counted = body_mask(array) if mask is None else mask
    else:
        counted = array != 0
    counted = np.broadcast_to(counted, array.shape)
    if not counted.any():
        return array
    if method == "percentile":
        low, high = np.percentile(array[counted], PERCENTILES, overwrite_input=True)
        np.clip(array, low, high, out=array)
    _shift_and_scale(array, *_mean_and_sd(array, counted))
    if method == "zscore_masked":
        array *= counted
    return array


def _shift_and_scale(array: np.ndarray, centre: float, width: float) -> np.ndarray:
    array -= np.float32(centre)
    array /= np.float32(width) if width > 0 else np.float32(np.inf)
    return array


def _mean_and_sd(array: np.ndarray, counted: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation where `counted`, in float64 but block by block to save memory."""
    step = max(1, _BLOCK_VOXELS // array[0].size)
    blocks = [(array[n : n + step], counted[n : n + step]) for n in range(0, len(array), step)]
    count = np.count_nonzero(counted)
    mean = sum(float(block.sum(where=keep, dtype=np.float64)) for block, keep in blocks) / count
    squares = sum(float(np.square(block - mean, dtype=np.float64).sum(where=keep)) for block, keep in blocks)
    return mean, float(np.sqrt(squares / count))
