"""Scaling of intensities, once for the whole scan and per channel, so that a result does not depend on tiles.

The statistics leave out voxels of exactly zero (padding, masked background); the formula is applied to every voxel.
"""

import numpy as np

from tfmuscle.config import NORMALISATIONS

PERCENTILES = (0.5, 99.5)
"""Lower and upper limit of "percentile", in percent of the non-zero voxels."""


def normalise(array: np.ndarray, method: str) -> np.ndarray:
    """Scales the intensities of one channel; float32, same shape.

    * `zscore`: (x - mean) / sd, mean and sd of the non-zero voxels; 0 everywhere when they are all alike.
    * `percentile`: clipped to the 0.5 and 99.5 percentile of the non-zero voxels, then `zscore`.
    * `minmax`: (x - min) / (max - min) over all voxels.
    * `none`: unchanged.

    Returns:
        A new array.

    >>> normalise(np.array([0.0, 1.0, 3.0]), "zscore").tolist()
    [-2.0, -1.0, 1.0]
    >>> normalise(np.array([2, 3, 6]), "minmax").tolist()
    [0.0, 0.25, 1.0]
    """
    if method not in NORMALISATIONS:
        raise ValueError(f"normalisation {method!r} is unknown; choose one of {', '.join(NORMALISATIONS)}")
    scaled = np.array(array, dtype=np.float32, order="C")
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
    """Mean and standard deviation where `counted`, in float64 but slab by slab to save memory."""
    total = sum(float(slab.sum(where=keep, dtype=np.float64)) for slab, keep in zip(array, counted, strict=True))
    mean = total / np.count_nonzero(counted)
    squares = 0.0
    for slab, keep in zip(array, counted, strict=True):
        squares += float(np.square(slab - mean, dtype=np.float64).sum(where=keep))
    return mean, float(np.sqrt(squares / np.count_nonzero(counted)))
