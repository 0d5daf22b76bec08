"""From the scan's grid to the grid of the samples: reorient, crop, resample, normalise, encode.

Every step returns a new `Volume` with its new geometry; nothing is undone later, for predictions are resampled straight
onto the grid of the scan. Images are interpolated linearly, labels by the nearest voxel, never otherwise: an average of
two ids is a third structure. Both use voxel centres, so that a linear ramp stays the same ramp in world coordinates.

When an axis becomes coarser by more than `ANTIALIAS_FACTOR`, the image alone is first blurred along it by a Gaussian of
sigma = (factor - 1) / 2 old voxels, as scikit-image does; otherwise thin structures would twinkle in and out. Beyond
the field of view an image repeats its outermost voxels and labels are background; `preprocess` never looks there.

Intensities are scaled once for the whole scan and per channel, so that a result does not depend on tiles. The
statistics leave out voxels of exactly zero (padding, masked background); the formula is applied to every voxel.

Memory: one float32 copy of the image on the new grid, and one of the old grid while blurring. Rejected: OpenCV's
resize, faster by some tenths of a second, whose grid keeps the outer faces and so cannot place ours.
"""

from collections.abc import Iterator

import numpy as np
import scipy.ndimage

from tfmuscle.config import NORMALISATIONS, DataSpec
from tfmuscle.errors import DataError
from tfmuscle.volume import Geometry, Volume

ANTIALIAS_FACTOR = 1.5
"""An axis is blurred before it becomes coarser by more than this: below, linear interpolation blurs enough."""
PERCENTILES = (0.5, 99.5)
"""Lower and upper limit of "percentile", in percent of the non-zero voxels."""
GROWTH = 1000
"""Largest number of new voxels per old one: 100 mm slices made 1 mm, both ways in-plane threefold. More is a header
whose voxel size is wrong, or a spacing in the wrong unit."""
_INDEX_DIGITS = 6
"""Voxel indices are rounded to 1e-6 before the nearest is taken, so that halves fall one way along a whole axis."""
_SEPARABLE_TOLERANCE = 1e-4
"""Grids count as parallel when no voxel of one would move by more than this share of a voxel of the other."""


def preprocess(image: Volume, labels: Volume | None, spec: DataSpec) -> tuple[Volume, Volume | None]:
    """Brings a scan and its labels onto the grid and scale of `spec`.

    Args:
        image: `(I, J, K, C)` or `(I, J, K)` of any numeric type; left untouched.
        labels: `(I, J, K)` ids on the same grid, or None.
        spec: orientation, cropping, spacing, normalisation and label map.

    Returns:
        Image `(D, H, W, C)` float32, and labels `(D, H, W)` int16 class indices with `IGNORE` for unlabelled voxels.

    Raises:
        DataError: the image has not the channels of the spec, or far too large voxels for its spacing.
        ValueError: the labels lie on another grid, or hold an id without a name.
    """
    if image.num_channels != len(spec.channels):
        wanted = f"{len(spec.channels)} ({', '.join(spec.channels)})"
        raise DataError(
            f"{image.source or 'image'}: {image.num_channels} channels, {wanted} needed; add or remove files"
        )
    if labels is not None and not labels.geometry.same_grid(image.geometry):
        raise ValueError(f"labels of shape {labels.geometry.shape} are not on the image's grid {image.geometry.shape}")
    image = reorient(image, spec.orientation)
    labels = None if labels is None else reorient(labels, spec.orientation)
    if spec.crop_nonzero:
        image, labels = crop_to_nonzero(image, labels)
    grid = image.geometry if spec.spacing is None else image.geometry.resampled(spec.spacing)
    _check_growth(image, grid)
    image = resample_image(image, grid)
    channels = [image.array] if image.array.ndim == 3 else list(np.moveaxis(image.array, 3, 0))
    scaled = [normalise(channel, spec.normalisation) for channel in channels]
    array = scaled[0][..., np.newaxis] if len(scaled) == 1 else np.stack(scaled, axis=-1)
    if labels is not None:
        labels = resample_labels(labels, grid)
        indices = np.empty(grid.shape, np.int16)
        for index, slab in enumerate(labels.array):  # slab by slab: encoding sorts, which needs eight bytes per voxel
            indices[index] = spec.label_map.encode(slab)
        labels = labels.with_array(indices)
    return image.with_array(array), labels


def _check_growth(image: Volume, grid: Geometry) -> None:
    before, after = (np.prod(np.array(one.shape, dtype=float)) for one in (image.geometry, grid))
    if after > GROWTH * before:
        shapes = [" x ".join(map(str, one.shape)) for one in (image.geometry, grid)]
        old, new = (" x ".join(f"{size:.4g}" for size in one.spacing) for one in (image.geometry, grid))
        raise DataError(
            f"{image.source or 'image'}: {shapes[0]} voxels of {old} mm become {shapes[1]} of {new} mm; check the voxel"
            " size in its header, or build records of another --spacing"
        )


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
