"""What a structure is made of: its intensities, and its fat.

Definitions. The fat fraction of a voxel is FF = 100·F / (W + F) in percent, of the magnitudes of water and fat that the
scanner's Dixon reconstruction gives (`preprocessing.dixon`). For a structure there are two: the *mean of voxels*, over
voxels with signal, in which each part of the muscle weighs alike; and the *ratio of sums*, 100·ΣF / Σ(W + F) over all
voxels, in which bright parts weigh more, and noise less. Where they differ by points, the muscle is uneven or noisy.

Noise. Magnitudes are never negative: where a channel holds nothing it shows the noise's mean, s·sqrt(pi/2) for Rayleigh
noise of standard deviation s in each part of the complex signal (Gudbjartsson & Patz 1995, doi
10.1002/mrm.1910340618). A lean muscle's FF is then too high, and that of pure fat too low. s is taken from the fat
image where there is no signal, by the median of a Rayleigh distribution, s·sqrt(2 ln 2); the *floor* is the FF that
noise alone would show in the muscle. Air that was set to 0 tells nothing, and there is no floor then.

It is a fraction of signal, not the proton density fat fraction (PDFF), unless the scanner's images are corrected for
T1, T2* and the many lines of fat. Nothing here can correct them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tfmuscle.measuring.shape import Cutout

PERCENTILES = (5, 25, 50, 75, 95)
_RAYLEIGH_MEDIAN, _RAYLEIGH_MEAN = math.sqrt(2 * math.log(2)), math.sqrt(math.pi / 2)
_FEWEST_NOISE_VOXELS = 1000
_MANY = 1 << 20


@dataclass(frozen=True)
class Intensity:
    """Values of an image in a structure; all are NaN where it has no finite value there."""

    mean: float
    sd: float
    percentiles: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class FatImages:
    """Fat of a scan, on the labels' grid.

    Attributes:
        fraction: `(I, J, K)` percent, NaN where there is no signal.
        water: `(I, J, K)`, or None where only a fraction is given.
        fat: `(I, J, K)`, or None.
        noise: mean of the fat image's magnitude where there is nothing, or None.
    """

    fraction: np.ndarray
    water: np.ndarray | None = None
    fat: np.ndarray | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Fat:
    """Fat of a structure, in percent.

    Attributes:
        mean: of the voxels with signal.
        sd: over them.
        median: of them.
        of_sums: fat over water and fat, each summed over all voxels; NaN without these images.
        with_signal: share of the voxels that have signal.
        floor: fraction that noise alone would show; NaN where it is not known.
    """

    mean: float
    sd: float
    median: float
    of_sums: float
    with_signal: float
    floor: float


def intensity(values: np.ndarray) -> Intensity:
    """Sums up values `(N,)`; what is not finite is left out.

    >>> intensity(np.array([1.0, 3.0, np.nan])).mean
    2.0
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return Intensity(math.nan, math.nan, dict.fromkeys(PERCENTILES, math.nan))
    found = np.percentile(values, PERCENTILES).tolist()
    return Intensity(float(values.mean()), float(values.std()), dict(zip(PERCENTILES, found, strict=True)))


def noise_mean(fat: np.ndarray, fraction: np.ndarray) -> float | None:
    """Returns the mean magnitude of a fat image's noise, from voxels without signal; None where air was set to 0.

    Args:
        fat: `(I, J, K)` magnitudes.
        fraction: `(I, J, K)`, NaN where there is no signal.
    """
    empty = np.isnan(fraction)
    step = max(1, int(np.count_nonzero(empty)) // _MANY)
    values = fat[empty][::step]
    values = values[values > 0]
    if len(values) < max(_FEWEST_NOISE_VOXELS, np.count_nonzero(empty) / step / 2):
        return None
    return float(np.median(values)) / _RAYLEIGH_MEDIAN * _RAYLEIGH_MEAN


def fat_of(cutout: Cutout, images: FatImages) -> Fat:
    """Measures the fat of a structure."""
    box, mask = cutout.box, cutout.mask
    inside = images.fraction[box][mask]
    seen = inside[np.isfinite(inside)].astype(np.float64)
    of_sums = floor = math.nan
    if images.water is not None and images.fat is not None:
        fat = float(images.fat[box][mask].sum(dtype=np.float64))
        total = fat + float(images.water[box][mask].sum(dtype=np.float64))
        of_sums = 100 * fat / total if total > 0 else math.nan
        if images.noise is not None and total > 0:
            floor = 100 * images.noise * len(inside) / total
    with_signal = 100 * len(seen) / len(inside)
    if not len(seen):
        return Fat(math.nan, math.nan, math.nan, of_sums, with_signal, floor)
    return Fat(float(seen.mean()), float(seen.std()), float(np.median(seen)), of_sums, with_signal, floor)
