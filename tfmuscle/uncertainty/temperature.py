"""One number that makes probabilities honest (Guo et al., ICML 2017), and the error that tells whether it did.

With a temperature T the probabilities p of a voxel become

    q_c = p_c^(1/T) / sum over k of p_k^(1/T)

T above 1 flattens what a network was too sure of, T below 1 sharpens. The largest class stays the largest. T is the
maximum of the likelihood of the true classes, which is concave in 1/T: there is one, and no starting point to choose.
"""

import math

import numpy as np
import scipy.optimize

SMALLEST_PROBABILITY = 1e-12
"""Probabilities count as this much at least, so that a class the network excluded costs much, and not everything."""
TEMPERATURES = (0.1, 10.0)
"""Between these T is sought."""
BINS = 15
_AT_ONCE = 1 << 16


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns probabilities `(..., C)` sharpened or flattened; 1 changes nothing.

    Raises:
        ValueError: a temperature that is not positive.

    >>> with_temperature(np.array([0.8, 0.2]), 2.0).round(3).tolist()
    [0.667, 0.333]
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature is a positive number, not {temperature}")
    if temperature == 1:
        return probabilities
    powers = np.maximum(probabilities, SMALLEST_PROBABILITY) ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """Returns the temperature under which the true classes are the likeliest; 1 where there is nothing to learn from.

    Args:
        probabilities: `(N, C)`.
        classes: `(N,)` indices of the true classes.

    Raises:
        ValueError: shapes that do not fit.
    """
    if probabilities.ndim != 2 or classes.shape != probabilities.shape[:1]:
        raise ValueError(
            f"probabilities have shape {probabilities.shape} and classes {classes.shape}; (N, C) and (N,) are needed"
        )
    if not len(classes):
        return 1.0
    logarithms = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    logarithms -= logarithms.max(axis=1, keepdims=True)
    true = float(logarithms[np.arange(len(classes)), classes].sum(dtype=np.float64))

    def cost(slope: float) -> float:
        parts = (logarithms[first : first + _AT_ONCE] for first in range(0, len(logarithms), _AT_ONCE))
        sums = (np.log(np.exp(slope * part).sum(axis=1)).sum(dtype=np.float64) for part in parts)
        return (float(sum(sums)) - slope * true) / len(classes)

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    found = scipy.optimize.minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return 1 / float(found.x)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """Returns the expected calibration error: how far confidence and share of correct answers are apart, 0..1.

    The mean over bins of equal width of |share correct - mean confidence|, weighted by how many are in the bin (Naeini
    et al., AAAI 2015); NaN for nothing.

    Args:
        confidence: `(N,)`, 0..1.
        correct: `(N,)` whether the answer was right.
        bins: number of bins.

    >>> calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, False, False])).__round__(3)
    0.4
    """
    if not len(confidence):
        return math.nan
    number = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    apart = np.bincount(number, np.asarray(correct, np.float64) - confidence, bins)
    return float(np.abs(apart).sum() / len(confidence))
