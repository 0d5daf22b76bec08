"""New bodies out of a given label volume: a smooth random displacement and a random scaling, nearest neighbour.

The displacement is a cubic B-spline through control points much farther apart than it is large, so it does not fold.
Scaling is about the centre of the grid. Sampling is backwards: each new voxel takes the id found where it came from,
and background from beyond the grid.
"""

import numpy as np

from tfmuscle.phantom import parameters as p
from tfmuscle.phantom.intensities import smooth_field
from tfmuscle.volume import Volume

MAX_HALVINGS = 8
"""How often the deformation is halved before a structure of a few voxels that keeps getting lost stops it."""
LARGEST_AMPLITUDE = 0.2
"""Largest amplitude (sd) relative to the distance of control points: beyond it the map would fold now and then."""


def deform_labels(labels: Volume, *, seed: int, amplitude_mm: float = p.DEFORMATION_AMPLITUDE_MM) -> Volume:
    """Returns the labels of a similar body on the same grid; every id that was there still is.

    A structure so small that it would vanish between voxels makes the deformation halve until it does not.

    Args:
        labels: ids `(I, J, K)` of any integer type, kept.
        seed: any non-negative integer; the same seed gives the same bits.
        amplitude_mm: sd of the displacement along each axis in mm.

    Raises:
        ValueError: labels with channels, or an amplitude that is negative or could fold the body.
    """
    if labels.array.ndim != 3:
        raise ValueError(f"labels have the shape {labels.array.shape}; one id per voxel (I, J, K) is needed")
    largest = LARGEST_AMPLITUDE * p.DEFORMATION_WAVELENGTH_MM
    if not 0 <= amplitude_mm <= largest:
        raise ValueError(f"amplitude_mm is {amplitude_mm}; use 0 to {largest:g}, more would fold the body")
    rng = np.random.default_rng([seed, 2])
    geometry = labels.geometry
    fields = [
        amplitude_mm / step * smooth_field(geometry.shape, geometry.spacing, p.DEFORMATION_WAVELENGTH_MM, rng)
        for step in geometry.spacing
    ]
    scales = rng.uniform(-p.DEFORMATION_SCALE, p.DEFORMATION_SCALE, 3)
    wanted = np.unique(labels.array)
    for halvings in range(MAX_HALVINGS):
        deformed = _pulled(labels.array, fields, scales, 0.5**halvings)
        if np.isin(wanted, deformed).all():
            return labels.with_array(deformed)
    return labels.with_array(labels.array.copy())


def _pulled(array: np.ndarray, fields: list[np.ndarray], scales: np.ndarray, strength: float) -> np.ndarray:
    """Samples `array` at scaled and displaced positions, slab by slab to spare memory; 0 beyond it."""
    result = np.zeros_like(array)
    centre = (np.array(array.shape) - 1) / 2
    for i in range(array.shape[0]):
        at = np.ogrid[i : i + 1, : array.shape[1], : array.shape[2]]
        source = [
            np.rint(
                centre[k] + (at[k] - centre[k]) * (1 + strength * scales[k]) + strength * fields[k][i : i + 1]
            ).astype(int)
            for k in range(3)
        ]
        inside = np.all([(s >= 0) & (s < size) for s, size in zip(source, array.shape, strict=True)], axis=0)
        index = tuple(np.clip(s, 0, size - 1) for s, size in zip(source, array.shape, strict=True))
        result[i : i + 1] = np.where(inside, array[index], 0)
    return result
