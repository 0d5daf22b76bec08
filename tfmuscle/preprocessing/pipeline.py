"""`preprocess`: the steps of one `DataSpec`, in order, for training and prediction alike.

Orientation, crop, grid and intensities follow one after the other; with `resampling="nnunet"` intensities are scaled
before the grid changes, because a resampled rim of the body would count in the statistics.

The grid. `spacing` decides the size of voxels. With `resize`, each slice becomes exactly `size` instead, whatever its
spacing, and only the slice axis follows `spacing`. With `resampling="nnunet"` slices and stacks keep their own distance
between slices, as nnU-Net's 2D networks do, so that the first number of `spacing` counts for volumes alone.

The labels of an earlier network (`prior`) go the way of labels, by the nearest voxel, and are appended as one channel
per structure, 0 or 1, after the intensities are scaled.
"""

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing.bias_field import correct_bias_field
from tfmuscle.preprocessing.grid import crop_to_nonzero, reorient, resample_image, resample_labels
from tfmuscle.preprocessing.intensities import body_mask, normalise
from tfmuscle.preprocessing.nnunet import coarse_axis, nnunet_shape, resample_image_nnunet, resample_labels_nnunet
from tfmuscle.volume import Geometry, Volume

GROWTH = 1000
"""Largest number of new voxels per old one: 100 mm slices made 1 mm, both ways in-plane threefold. More is a header
whose voxel size is wrong, or a spacing in the wrong unit."""
LARGEST_BYTE = 255
"""Largest intensity that normalisation `div255` takes."""
_UNKNOWN = IGNORE - 1


def preprocess(
    image: Volume, labels: Volume | None, spec: DataSpec, prior: Volume | None = None
) -> tuple[Volume, Volume | None]:
    """Brings a scan and its labels onto the grid and scale of `spec`.

    Args:
        image: `(I, J, K, C)` or `(I, J, K)` of any numeric type; left untouched.
        labels: `(I, J, K)` ids on the same grid, or None.
        spec: orientation, cropping, spacing, normalisation and label map.
        prior: `(I, J, K)` ids that an earlier network gave, on the same grid; for a spec with `prior`.

    Returns:
        Image `(D, H, W, spec.num_channels)` float32, and labels `(D, H, W)` int16 class indices with `IGNORE` for
        unlabelled voxels.

    Raises:
        DataError: the image has not the channels of the spec, far too large voxels for its spacing or intensities that
            its normalisation does not take, or the prior is missing.
        ValueError: labels or prior lie on another grid or hold an id without a name, or a prior that nobody asked for.
    """
    _check_input(image, labels, spec, prior)
    image = reorient(correct_bias_field(image) if spec.bias_field else image, spec.orientation)
    others = [None if other is None else reorient(other, spec.orientation) for other in (labels, prior)]
    if spec.crop_nonzero:
        cropped = crop_to_nonzero(image)[0]
        others = [None if other is None else crop_to_nonzero(image, other)[1] for other in others]
        image = cropped
    labels, prior = others
    grid = _grid(image.geometry, spec)
    _check_growth(image, grid)
    if spec.resampling == "nnunet":
        scaled, labels = _resampled_by_nnunet(image, labels, grid, spec)
    else:
        resampled = resample_image(image, grid)
        scaled = resampled.with_array(_scaled(resampled.array, image.array, spec))
        labels = None if labels is None else resample_labels(labels, grid)
    if labels is not None:
        labels = labels.with_array(_encoded(labels.array, spec.label_map))
    if prior is not None:
        ids = resample_labels(prior, grid).array
        scaled = scaled.with_array(_with_prior(scaled.array, _encoded(ids, spec.label_map), spec))
    return scaled, labels


def _check_input(image: Volume, labels: Volume | None, spec: DataSpec, prior: Volume | None) -> None:
    name = image.source or "image"
    if image.num_channels != len(spec.channels):
        wanted = f"{len(spec.channels)} ({', '.join(spec.channels)})"
        raise DataError(f"{name}: {image.num_channels} channels, {wanted} needed; add or remove files")
    for what, other in (("labels", labels), ("prior", prior)):
        if other is not None and not other.geometry.same_grid(image.geometry):
            raise ValueError(
                f"{what} of shape {other.geometry.shape} are not on the image's grid {image.geometry.shape}"
            )
    if spec.prior and prior is None:
        raise DataError(f"{name}: the labels of an earlier network are needed as further channels; give them as prior")
    if prior is not None and not spec.prior:
        raise ValueError("a prior is given, which the spec does not ask for; leave it out, or set prior in the spec")
    if spec.normalisation == "div255":
        low, high = image.array.min(), image.array.max()
        if low < 0 or high > LARGEST_BYTE:
            raise DataError(
                f"{name}: intensities from {low:g} to {high:g}; div255 is for 0 to {LARGEST_BYTE}, choose minmax"
            )


def _wanted_spacing(geometry: Geometry, spec: DataSpec) -> tuple[float, float, float]:
    own, wanted = geometry.spacing, spec.spacing or geometry.spacing
    if spec.resize:
        return (wanted[0], *own[1:])
    if spec.resampling == "nnunet" and not spec.is_volumetric:
        return (own[0], *wanted[1:])
    return wanted


def _grid(geometry: Geometry, spec: DataSpec) -> Geometry:
    """Returns the grid that a scan on `geometry` is resampled to."""
    spacing = _wanted_spacing(geometry, spec)
    if spec.resampling == "nnunet":
        grid = geometry.resized(nnunet_shape(geometry, spacing))
    else:
        grid = geometry if spec.spacing is None else geometry.resampled(spacing)
    return grid.resized((grid.shape[0], *spec.size)) if spec.resize else grid


def _resampled_by_nnunet(
    image: Volume, labels: Volume | None, grid: Geometry, spec: DataSpec
) -> tuple[Volume, Volume | None]:
    wanted = grid.spacing if spec.resize else _wanted_spacing(image.geometry, spec)
    coarse = coarse_axis(image.spacing, wanted)
    scaled = image.with_array(_scaled(image.array, image.array, spec))
    return (
        resample_image_nnunet(scaled, grid, coarse),
        None if labels is None else resample_labels_nnunet(labels, grid, coarse),
    )


def _scaled(array: np.ndarray, original: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Normalises each channel of `(D, H, W)` or `(D, H, W, C)`, in place unless that is the memory of `original`."""
    array = array if array.ndim == 4 else array[..., np.newaxis]
    out = np.empty(array.shape, np.float32) if np.may_share_memory(array, original) else array
    mask = body_mask(array) if spec.normalisation == "zscore_masked" else None
    statistics = spec.statistics or (None,) * array.shape[3]
    for channel in range(array.shape[3]):
        normalise(
            array[..., channel], spec.normalisation, mask=mask, statistics=statistics[channel], out=out[..., channel]
        )
    return out


def _with_prior(image: np.ndarray, indices: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Appends one channel per structure, 1 where the earlier network found it."""
    both = np.empty((*image.shape[:3], spec.num_channels), np.float32)
    both[..., : image.shape[3]] = image
    for number in range(1, spec.num_classes):
        both[..., image.shape[3] + number - 1] = indices == number
    return both


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
