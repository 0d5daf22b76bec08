"""`preprocess`: the steps of one `DataSpec`, in order, for training and prediction alike."""

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing.bias_field import correct_bias_field
from tfmuscle.preprocessing.grid import crop_to_nonzero, reorient, resample_image, resample_labels
from tfmuscle.preprocessing.intensities import normalise
from tfmuscle.volume import Geometry, Volume

GROWTH = 1000
"""Largest number of new voxels per old one: 100 mm slices made 1 mm, both ways in-plane threefold. More is a header
whose voxel size is wrong, or a spacing in the wrong unit."""
_UNKNOWN = IGNORE - 1


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
    image = reorient(correct_bias_field(image) if spec.bias_field else image, spec.orientation)
    labels = None if labels is None else reorient(labels, spec.orientation)
    if spec.crop_nonzero:
        image, labels = crop_to_nonzero(image, labels)
    grid = image.geometry if spec.spacing is None else image.geometry.resampled(spec.spacing)
    _check_growth(image, grid)
    resampled = resample_image(image, grid)
    scaled = _scaled(resampled.array, image.array, spec.normalisation)
    if labels is not None:
        labels = resample_labels(labels, grid)
        labels = labels.with_array(_encoded(labels.array, spec.label_map))
    return resampled.with_array(scaled), labels


def _scaled(array: np.ndarray, original: np.ndarray, method: str) -> np.ndarray:
    """Normalises each channel of `(D, H, W)` or `(D, H, W, C)`, in place unless that is the memory of `original`."""
    array = array if array.ndim == 4 else array[..., np.newaxis]
    out = np.empty(array.shape, np.float32) if np.may_share_memory(array, original) else array
    for channel in range(array.shape[3]):
        normalise(array[..., channel], method, out=out[..., channel])
    return out


def _encoded(ids: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Returns `label_map.encode(ids)`, by a table where the type of `ids` has few values, else slab by slab."""
    indices = np.empty(ids.shape, np.int16)
    if ids.dtype.kind == "u" and ids.dtype.itemsize <= 2:
        table = np.full(np.iinfo(ids.dtype).max + 1, _UNKNOWN, np.int16)
        known = [key for key in (*label_map.ids, label_map.ignore) if key is not None and key < len(table)]
        table[known] = label_map.encode(np.array(known))
        for slab, target in zip(ids, indices, strict=True):  # all at once would need eight bytes per voxel
            np.take(table, slab, out=target, mode="clip")
        if indices.min() > _UNKNOWN:
            return indices
    for slab, target in zip(ids, indices, strict=True):  # encoding sorts, which is slow, but names what is unknown
        target[...] = label_map.encode(slab)
    return indices


def _check_growth(image: Volume, grid: Geometry) -> None:
    before, after = (np.prod(np.array(one.shape, dtype=float)) for one in (image.geometry, grid))
    if after > GROWTH * before:
        shapes = [" x ".join(map(str, one.shape)) for one in (image.geometry, grid)]
        old, new = (" x ".join(f"{size:.4g}" for size in one.spacing) for one in (image.geometry, grid))
        raise DataError(
            f"{image.source or 'image'}: {shapes[0]} voxels of {old} mm become {shapes[1]} of {new} mm; check the voxel"
            " size in its header, or build records of another --spacing"
        )
