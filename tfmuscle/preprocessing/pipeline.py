"""`preprocess`: the steps of one `DataSpec`, in order, for training and prediction alike."""

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.preprocessing.grid import crop_to_nonzero, reorient, resample_image, resample_labels
from tfmuscle.preprocessing.intensities import normalise
from tfmuscle.volume import Geometry, Volume

GROWTH = 1000
"""Largest number of new voxels per old one: 100 mm slices made 1 mm, both ways in-plane threefold. More is a header
whose voxel size is wrong, or a spacing in the wrong unit."""


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
