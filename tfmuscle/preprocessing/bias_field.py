"""Receive-field inhomogeneity: a coil hears near tissue louder, so one muscle is brighter here than there.

N4 (Tustison et al. 2010, IEEE Trans. Med. Imaging 29:1310) models scan = true image x smooth field and finds the field,
a cubic B-spline of log intensity, that sharpens the histogram. The settings are the defaults of its authors' program:
4 levels of at most 50 iterations, stopping below a change of 0.001, histogram of 200 bins, bias of 0.15 full width,
Wiener noise 0.01, 4 control points per axis. The field is fitted on a grid `SHRINK` times coarser, inside Otsu's mask,
and evaluated at full resolution from its control points, never by interpolating a coarse image.

The shrinking stops where an axis would have fewer than `MIN_NODES` voxels: 16 thick slices are fitted whole. An axis
with fewer slices than that is repeated at its ends for the fit. The mean log field in the mask is 0, so that brightness
as a whole stays, and far from the mask the field is held within its range there: a spline without data beneath it may
run to any height. Where nothing can be fitted (a constant or empty image, a handful of voxels), the field is 1. Values
of zero or below hold no logarithm: they are not fitted, and CT, which has no receive field, should not come here.

Channels are corrected one by one: water and fat images of one Dixon scan share the coil but not their noise. Their
ratio, the fat fraction, needs no correction at all and should be made from the images as they are.
"""

import numpy as np
import SimpleITK as sitk

from tfmuscle.volume import Volume

SHRINK = 4
"""How much coarser than the scan the grid of the fit is, along each axis."""
MIN_NODES = 4
"""Fewest voxels along an axis of the fit: as many as control points."""
MIN_FITTED = 128
"""Fewest voxels in the mask of the fit: twice the 4 x 4 x 4 control points of its coarsest level."""
HISTOGRAM_BINS = 200


def bias_field(volume: Volume) -> Volume:
    """Returns the receive field that N4 finds, float32 of the volume's shape, relative and positive.

    Args:
        volume: `(I, J, K)` or `(I, J, K, C)`; every channel gets its own field.
    """
    if volume.array.ndim == 3:
        return volume.with_array(_field(volume.array, volume.spacing))
    array = np.empty(volume.array.shape, np.float32)
    for channel in range(volume.num_channels):
        array[..., channel] = _field(volume.array[..., channel], volume.spacing)
    return volume.with_array(array)


def correct_bias_field(volume: Volume) -> Volume:
    """Divides a scan by its receive field, float32; a volume without a fit keeps its values."""
    corrected = bias_field(volume)
    np.divide(volume.array, corrected.array, out=corrected.array, casting="same_kind", dtype=np.float32)
    return corrected


def _field(array: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Field of one channel `(I, J, K)`."""
    ones = np.ones(array.shape, np.float32)
    padding = [(0, max(0, MIN_NODES - size)) for size in array.shape]
    padded = np.pad(array, padding, mode="edge") if any(more for _, more in padding) else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(padded.T, dtype=np.float32))
    image.SetSpacing(spacing)
    factors = [max(1, min(SHRINK, size // MIN_NODES)) for size in padded.shape]
    small = sitk.Shrink(image, factors)
    values = sitk.GetArrayViewFromImage(small)
    if not values.min() < values.max():
        return ones
    mask = sitk.And(sitk.OtsuThreshold(small, 0, 1, HISTOGRAM_BINS), sitk.Greater(small, 0.0))
    inside = sitk.GetArrayViewFromImage(mask) > 0
    fitted = values[inside]
    if fitted.size < MIN_FITTED or not fitted.min() < fitted.max():
        return ones
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(small, mask)
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    seen = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(small))[inside]
    box = tuple(slice(0, size) for size in array.shape)
    return np.exp(np.clip(log_field[box], seen.min(), seen.max()) - seen.mean(dtype=np.float64), dtype=np.float32)
