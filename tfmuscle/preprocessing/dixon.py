"""Water and fat images of a Dixon acquisition, and the fat fraction they make.

Fat fraction = 100 * fat / (water + fat) percent of signal. Where water + fat is below `NOISE_SHARE` of its bright end
(its 99th percentile) there is no signal to share out: air, compact bone, tendon. There the fraction is NaN, not 0:
unknown is not lean. It is not clipped, because clipping noise on one side only would move a mean.

Files rarely say which of the two images is which. Under the skin lies fat, deeper lies muscle, so the fat image has the
larger share of the signal in the rim of the body (`RIM_MM`) than deep inside (`DEEP_MM`). Marrow is fat too, but little
of the volume; a wasted thigh, all fat, leaves little difference, and the confidence says so.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from tfmuscle.preprocessing.body import find_body, on_grid
from tfmuscle.volume import Volume

NOISE_SHARE = 0.05
"""Signal below this share of the bright end is noise."""
BRIGHT_PERCENTILE = 99.0
RIM_MM = (3.0, 9.0)
"""Depth below the body's surface where fat under the skin is looked for; above it lies skin."""
DEEP_MM = 18.0
"""Depth from which muscle is expected."""


@dataclass(frozen=True)
class WaterFat:
    """Which of two images is water.

    Attributes:
        water: index, 0 or 1, of the water image; `fat` is the other.
        confidence: 0 to 1, the difference of the fat image's share of signal between rim and depth.
    """

    water: int
    confidence: float

    @property
    def fat(self) -> int:
        """Index of the fat image."""
        return 1 - self.water


def fat_fraction(water: Volume, fat: Volume) -> Volume:
    """Returns 100 * fat / (water + fat) in percent, float32, NaN where there is no signal.

    Args:
        water: `(I, J, K)`.
        fat: `(I, J, K)` on the same grid.

    Raises:
        ValueError: several channels, or different grids.
    """
    _check(water, fat)
    total = np.add(water.array, fat.array, dtype=np.float32)
    noise = max(NOISE_SHARE * float(np.percentile(total, BRIGHT_PERCENTILE)), 0.0)
    fraction = np.full(total.shape, np.nan, np.float32)
    np.divide(fat.array, total, out=fraction, where=total > noise, casting="unsafe", dtype=np.float32)
    fraction *= 100
    return water.with_array(fraction)


def identify_water_fat(one: Volume, other: Volume) -> WaterFat:
    """Says which of two images of one Dixon scan is water, by the fat under the skin.

    Args:
        one: `(I, J, K)`, index 0 of the answer.
        other: `(I, J, K)` on the same grid, index 1.

    Raises:
        ValueError: several channels, different grids, or a body too thin to have a rim and a depth.
    """
    _check(one, other)
    arrays = [np.maximum(volume.array, 0).astype(np.float32, copy=False) for volume in (one, other)]
    body = find_body(one.with_array(arrays[0] + arrays[1]))
    first, second = (on_grid(array, one.geometry, body.geometry) for array in arrays)
    both = first + second
    step = body.geometry.spacing[:2]
    depth = np.stack([scipy.ndimage.distance_transform_edt(m, sampling=step) for m in np.moveaxis(body.mask, 2, 0)], 2)
    signal = body.mask & (both > NOISE_SHARE * np.percentile(both, BRIGHT_PERCENTILE))
    rim, deep = signal & (depth >= RIM_MM[0]) & (depth <= RIM_MM[1]), signal & (depth >= DEEP_MM)
    if not rim.any() or not deep.any():
        raise ValueError("the body is too thin to tell fat under the skin from muscle; say which image is water")
    difference = float(first[rim].sum() / both[rim].sum() - first[deep].sum() / both[deep].sum())
    return WaterFat(1 if difference > 0 else 0, round(min(abs(difference), 1.0), 3))


def _check(one: Volume, other: Volume) -> None:
    if one.array.ndim != 3 or other.array.ndim != 3:
        raise ValueError(f"water and fat are one channel each, not {one.num_channels} and {other.num_channels}")
    if not one.geometry.same_grid(other.geometry):
        raise ValueError(
            f"water {one.geometry.shape} and fat {other.geometry.shape} are on different grids; resample one of them"
        )
