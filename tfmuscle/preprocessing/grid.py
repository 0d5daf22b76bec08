"""Changes of grid: reorient, crop, resample.

Images are interpolated linearly, labels by the nearest voxel, never otherwise: an average of two ids is a third
structure. Both use voxel centres, so that a linear ramp stays the same ramp in world coordinates.

When an axis becomes coarser by more than `ANTIALIAS_FACTOR`, the image alone is first blurred along it by a Gaussian of
sigma = (factor - 1) / 2 old voxels, as scikit-image does; otherwise thin structures would twinkle in and out. Beyond
the field of view an image repeats its outermost voxels and labels are background; `preprocess` never looks there.

Memory: one float32 copy of the image on the new grid, and one of the old grid while blurring. Rejected: OpenCV's
resize, faster by some tenths of a second, whose grid keeps the outer faces and so cannot place ours.
"""

from collections.abc import Iterator

import numpy as np
import scipy.ndimage

from tfmuscle.volume import Geometry, Volume

ANTIALIAS_FACTOR = 1.5
"""An axis is blurred before it becomes coarser by more than this: below, linear interpolation blurs enough."""
_INDEX_DIGITS = 6
"""Voxel indices are rounded to 1e-6 before the nearest is taken, so that halves fall one way along a whole axis."""
_SEPARABLE_TOLERANCE = 1e-4
"""Grids count as parallel when no voxel of one would move by more than this share of a voxel of the other."""


def reorient(volume: Volume, orientation: str | None) -> Volume:
    """Returns the same voxels with axes as in `orientation`, e.g. "SPL"; None only reverses them, see `Volume`."""
    return volume.reoriented(orientation)


def crop_to_nonzero(image: Volume, labels: Volume | None = None) -> tuple[Volume, Volume | None]:
    """Cuts away the margin in which every channel is zero; an empty image stays whole.

    The image alone decides, so that a scan has the same grid in training and in prediction. Labels in the margin go
    with it.
    """
    occupied = _nonzero_per_axis(image.array)
    if not all(axis.any() for axis in occupied):
        return image, labels
    start = tuple(int(axis.argmax()) for axis in occupied)
    stop = tuple(int(len(axis) - axis[::-1].argmax()) for axis in occupied)
    return image.cropped(start, stop), None if labels is None else labels.cropped(start, stop)


def _nonzero_per_axis(array: np.ndarray) -> list[np.ndarray]:
    mask = (array != 0).any(axis=3) if array.ndim == 4 else array != 0
    return [mask.any(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]


def resample_image(volume: Volume, geometry: Geometry) -> Volume:
    """Interpolates an image linearly onto `geometry`, blurring first where it becomes much coarser; float32.

    The blur repeats the outermost voxels, so that a ramp is bent within 4 sigma of the border of a blurred axis.
    """
    if volume.geometry.same_grid(geometry):
        return Volume(volume.array.astype(np.float32, copy=False), geometry, volume.source)
    matrix = _index_map(volume.geometry, geometry)
    channels = [volume.array] if volume.array.ndim == 3 else list(np.moveaxis(volume.array, 3, 0))
    array = np.empty((*geometry.shape, *volume.array.shape[3:]), np.float32)
    for index, channel in enumerate(channels):
        channel = _blurred(channel, np.abs(matrix[:3, :3]).max(axis=1))
        linear = np.diag(matrix[:3, :3]) if _is_separable(matrix, geometry) else matrix[:3, :3]
        target = array if volume.array.ndim == 3 else array[..., index]
        target[...] = scipy.ndimage.affine_transform(
            channel, linear, matrix[:3, 3], geometry.shape, output=np.float32, order=1, mode="nearest"
        )
    return Volume(array, geometry, volume.source)


def _blurred(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    axes = [axis for axis in range(3) if factors[axis] > ANTIALIAS_FACTOR and array.shape[axis] > 1]
    if not axes:
        return array
    blurred = array.astype(np.float32)
    for axis in axes:
        scipy.ndimage.gaussian_filter1d(blurred, (factors[axis] - 1) / 2, axis, output=blurred, mode="nearest")
    return blurred


def resample_labels(volume: Volume, geometry: Geometry) -> Volume:
    """Takes for every voxel of `geometry` the label of the nearest voxel, 0 beyond the field of view; type kept."""
    if volume.geometry.same_grid(geometry):
        return Volume(volume.array, geometry, volume.source)
    matrix = _index_map(volume.geometry, geometry)
    array = np.zeros(geometry.shape, volume.array.dtype)
    if _is_separable(matrix, geometry):
        axes = zip(np.diag(matrix[:3, :3]), matrix[:3, 3], geometry.shape, strict=True)
        nearest = [_nearest(scale * np.arange(size) + shift) for scale, shift, size in axes]
        inside = [(index >= 0) & (index < size) for index, size in zip(nearest, volume.array.shape, strict=True)]
        taken = [index[keep] for index, keep in zip(nearest, inside, strict=True)]
        array[np.ix_(*inside)] = volume.array[np.ix_(*taken)]
        return Volume(array, geometry, volume.source)
    for first, plane in _planes(geometry):
        index = _nearest(plane @ matrix[:3, :3].T + matrix[:3, 3])
        inside_plane = ((index >= 0) & (index < volume.array.shape)).all(axis=-1)
        array[first][inside_plane] = volume.array[tuple(index[inside_plane].T)]
    return Volume(array, geometry, volume.source)


def _planes(geometry: Geometry) -> Iterator[tuple[int, np.ndarray]]:
    plane = np.moveaxis(np.indices((1, *geometry.shape[1:]), dtype=np.float64)[:, 0], 0, -1)
    for first in range(geometry.shape[0]):
        yield first, plane + (first, 0, 0)


def _nearest(index: np.ndarray) -> np.ndarray:
    return np.floor(np.round(index, _INDEX_DIGITS) + 0.5).astype(np.int64)


def _index_map(source: Geometry, target: Geometry) -> np.ndarray:
    """Maps an index on `target` to the index on `source` at the same place, `(4, 4)`."""
    return np.linalg.inv(source.affine) @ target.affine


def _is_separable(matrix: np.ndarray, target: Geometry) -> bool:
    reach = np.abs(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) @ (np.array(target.shape) - 1)
    return bool(reach.max() < _SEPARABLE_TOLERANCE)
