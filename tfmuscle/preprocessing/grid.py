"""Changes of grid: reorient, crop, resample.

Images are interpolated linearly, labels by the nearest voxel, never otherwise: an average of two ids is a third
structure. Both use voxel centres, so that a linear ramp stays the same ramp in world coordinates.

When an axis becomes coarser by more than `ANTIALIAS_FACTOR`, the image alone is first blurred along it by a Gaussian of
sigma = (factor - 1) / 2 old voxels, as scikit-image does; otherwise thin structures would twinkle in and out. Beyond
the field of view an image repeats its outermost voxels and labels are background; `preprocess` never looks there.

Preprocessing never rotates, so blur and interpolation together are one sparse matrix per axis. Slice by slice, the two
in-plane matrices are applied once to every old slice that is needed, and a new slice is the weighted sum of those: ten
times as fast as `affine_transform`, the same to 1e-6 of the intensity range. Grids that are turned against each other
(a second scan brought onto the grid of the first) take SciPy's general way.

Memory: the image on the new grid in float32 and a few slices; one more copy of the old grid where a turned grid is
blurred. Rejected: OpenCV's resize, whose grid keeps the outer faces and so cannot place ours; its remap and warpAffine,
which round places to 1/32 voxel; dense matrices, a hundred times the multiplications.
"""

from collections.abc import Iterator

import numpy as np
import scipy.ndimage
import scipy.sparse

from tfmuscle.volume import Geometry, Volume

ANTIALIAS_FACTOR = 1.5
"""An axis is blurred before it becomes coarser by more than this: below, linear interpolation blurs enough."""
BLUR_SIGMAS = 4
"""The Gaussian is cut off this many sigma from its centre."""
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
    occupied = [np.zeros(size, bool) for size in array.shape[:3]]
    for index, slab in enumerate(array):
        mask = (slab if array.ndim == 3 else slab[..., 0]) != 0
        for channel in range(1, array.shape[3] if array.ndim == 4 else 1):
            mask |= slab[..., channel] != 0
        occupied[1] |= mask.any(axis=1)
        occupied[2] |= mask.any(axis=0)
        occupied[0][index] = mask.any()
    return occupied


def resample_image(volume: Volume, geometry: Geometry) -> Volume:
    """Interpolates an image linearly onto `geometry`, blurring first where it becomes much coarser; float32.

    The blur repeats the outermost voxels, so that a ramp is bent within 4 sigma of the border of a blurred axis.
    """
    if volume.geometry.same_grid(geometry):
        return Volume(volume.array.astype(np.float32, copy=False), geometry, volume.source)
    matrix = _index_map(volume.geometry, geometry)
    channels = [volume.array] if volume.array.ndim == 3 else list(np.moveaxis(volume.array, 3, 0))
    array = np.empty((*geometry.shape, *volume.array.shape[3:]), np.float32)
    targets = [array] if array.ndim == 3 else list(np.moveaxis(array, 3, 0))
    if _is_separable(matrix, geometry):
        axes = zip(np.diag(matrix[:3, :3]), matrix[:3, 3], volume.array.shape[:3], geometry.shape, strict=True)
        weights = [_weights(*axis) for axis in axes]
        for channel, target in zip(channels, targets, strict=True):
            apply_weights(channel, weights, target)
        return Volume(array, geometry, volume.source)
    for channel, target in zip(channels, targets, strict=True):
        channel = _blurred(channel, np.abs(matrix[:3, :3]).max(axis=1))
        target[...] = scipy.ndimage.affine_transform(
            channel, matrix[:3, :3], matrix[:3, 3], geometry.shape, output=np.float32, order=1, mode="nearest"
        )
    return Volume(array, geometry, volume.source)


def linear_weights(scale: float, shift: float, size: int, new_size: int) -> scipy.sparse.csr_array:
    """Returns what each old voxel of an axis gives to each new one, `(new_size, size)`; rows sum to one.

    New voxel `n` lies at `scale * n + shift` old ones.
    """
    place = np.clip(scale * np.arange(new_size) + shift, 0, size - 1)
    lower = np.floor(place).astype(np.int64)
    upper = np.minimum(lower + 1, size - 1)
    weights = _sparse([lower, upper], [1 - (place - lower), place - lower], size)
    weights.eliminate_zeros()
    return weights


def _weights(scale: float, shift: float, size: int, new_size: int) -> scipy.sparse.csr_array:
    """Returns `linear_weights`, blurred before where the axis becomes much coarser."""
    weights = linear_weights(scale, shift, size, new_size)
    if abs(scale) > ANTIALIAS_FACTOR and size > 1:
        sigma = (abs(scale) - 1) / 2
        steps = np.arange(-round(BLUR_SIGMAS * sigma), round(BLUR_SIGMAS * sigma) + 1)
        bell = np.exp(-0.5 * (steps / sigma) ** 2)
        neighbours = [np.clip(np.arange(size) + step, 0, size - 1) for step in steps]
        weights = weights @ _sparse(neighbours, [np.full(size, value) for value in bell / bell.sum()], size)
    weights.eliminate_zeros()
    return weights


def _sparse(columns: list[np.ndarray], values: list[np.ndarray], size: int) -> scipy.sparse.csr_array:
    rows = np.tile(np.arange(len(columns[0])), len(columns))
    places = (rows, np.concatenate(columns))
    return scipy.sparse.coo_array((np.concatenate(values), places), shape=(len(columns[0]), size)).tocsr()


def apply_weights(array: np.ndarray, weights: list[scipy.sparse.csr_array], target: np.ndarray) -> None:
    """Applies a matrix to each axis of `array`; an old slice is resampled in-plane once and kept while it is needed."""
    along, rows, columns = weights
    planes: dict[int, np.ndarray] = {}
    for index, plane in enumerate(target):
        row = slice(along.indptr[index], along.indptr[index + 1])
        needed, shares = along.indices[row].tolist(), along.data[row]
        planes = {n: planes[n] if n in planes else rows @ array[n] @ columns.T for n in needed}
        plane[...] = sum(planes[n] * share for n, share in zip(needed, shares, strict=True))


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
        nearest = [nearest_index(scale * np.arange(size) + shift) for scale, shift, size in axes]
        inside = [np.flatnonzero((n >= 0) & (n < size)) for n, size in zip(nearest, volume.array.shape, strict=True)]
        slabs, rows, columns = (index[keep] for index, keep in zip(nearest, inside, strict=True))
        box = tuple(slice(keep[0], keep[-1] + 1) if len(keep) else slice(0) for keep in inside[1:])
        for first, old in zip(inside[0].tolist(), slabs.tolist(), strict=True):
            array[first][box] = volume.array[old].take(rows, axis=0).take(columns, axis=1)
        return Volume(array, geometry, volume.source)
    for first, plane in _planes(geometry):
        index = nearest_index(plane @ matrix[:3, :3].T + matrix[:3, 3])
        inside_plane = ((index >= 0) & (index < volume.array.shape)).all(axis=-1)
        array[first][inside_plane] = volume.array[tuple(index[inside_plane].T)]
    return Volume(array, geometry, volume.source)


def _planes(geometry: Geometry) -> Iterator[tuple[int, np.ndarray]]:
    plane = np.moveaxis(np.indices((1, *geometry.shape[1:]), dtype=np.float64)[:, 0], 0, -1)
    for first in range(geometry.shape[0]):
        yield first, plane + (first, 0, 0)


def nearest_index(index: np.ndarray) -> np.ndarray:
    """Returns the voxel nearest to a fractional index; halves go up."""
    return np.floor(np.round(index, _INDEX_DIGITS) + 0.5).astype(np.int64)


def _index_map(source: Geometry, target: Geometry) -> np.ndarray:
    """Maps an index on `target` to the index on `source` at the same place, `(4, 4)`."""
    return np.linalg.inv(source.affine) @ target.affine


def _is_separable(matrix: np.ndarray, target: Geometry) -> bool:
    reach = np.abs(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) @ (np.array(target.shape) - 1)
    return bool(reach.max() < _SEPARABLE_TOLERANCE)
