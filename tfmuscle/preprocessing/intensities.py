"""Scaling of intensities, once for the whole scan and per channel, so that a result does not depend on tiles.

The statistics leave out voxels of exactly zero (padding, masked background); the formula is applied to every voxel.
"""

import numpy as np

from tfmuscle.config import NORMALISATIONS

PERCENTILES = (0.5, 99.5)
"""Lower and upper limit of "percentile", in percent of the non-zero voxels."""
_BLOCK_VOXELS = 1 << 18
"""Voxels worked on at once: enough to outweigh a call, few enough for the processor's cache."""


def normalise(array: np.ndarray, method: str, *, out: np.ndarray | None = None) -> np.ndarray:
    """Scales the intensities of one channel; float32, same shape.

    * `zscore`: (x - mean) / sd, mean and sd of the non-zero voxels; 0 everywhere when they are all alike.
    * `percentile`: clipped to the 0.5 and 99.5 percentile of the non-zero voxels, then `zscore`.
    * `minmax`: (x - min) / (max - min) over all voxels.
    * `none`: unchanged.

    Args:
        array: one channel, of any numeric type.
        method: one of the above.
        out: float32 array of the same shape to write to, which may be `array` itself; without it, a new one is made.

    Returns:
        `out`.

    >>> normalise(np.array([0.0, 1.0, 3.0]), "zscore").tolist()
    [-2.0, -1.0, 1.0]
    >>> normalise(np.array([2, 3, 6]), "minmax").tolist()
    [0.0, 0.25, 1.0]
    """
    if method not in NORMALISATIONS:
        raise ValueError(f"normalisation {method!r} is unknown; choose one of {', '.join(NORMALISATIONS)}")
    scaled = np.empty(array.shape, np.float32) if out is None else out
    if scaled is not array:
        scaled[...] = array
    if method == "none":
        return scaled
    if method == "minmax":
        low, high = float(scaled.min()), float(scaled.max())
        return _shift_and_scale(scaled, low, high - low)
    counted = scaled != 0
    if not counted.any():
        return scaled
    if method == "percentile":
        low, high = np.percentile(scaled[counted], PERCENTILES, overwrite_input=True)
        np.clip(scaled, low, high, out=scaled)
    return _shift_and_scale(scaled, *_mean_and_sd(scaled, counted))


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
