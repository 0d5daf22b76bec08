"""Changes of grid by the rules of nnU-Net 2: cubic for images, one class at a time for labels, thick slices apart.

The user chooses `resampling="nnunet"`; the spacings decide the rest. The new shape is `round(old spacing / new spacing
* old shape)` and the outer faces stay, so that the real spacing differs a little from the one asked for.

Images take cubic splines, edge voxels repeated outside, not blurred before, clipped to the range they had. Labels take
linear interpolation of each class by itself, and the largest wins; where two are equal, the nearest voxel decides.
`IGNORE` is a class like the others here. When the voxels are thick along one axis (`coarse_axis`), each slice across it
is resampled by itself and a new slice copies the nearest: a spline through slices 10 mm apart would invent what lies
between them. Isensee et al. 2021; nnU-Net 2.8.1 (`resample_data_or_seg_to_shape`) gives the same numbers.

A spline, too, is one sparse matrix per axis: its column `n` is what becomes of an impulse at voxel `n`, which dies away
by 0.27 a voxel. Slices stream through as in `grid.py`, so that memory holds the new grid and a few slices; for labels,
the classes of three or four old slices. Rejected: `scipy.ndimage.zoom` of the whole scan, which needs three float64
copies of it.
"""

import numpy as np
import scipy.ndimage
import scipy.sparse

from tfmuscle.preprocessing.grid import apply_weights, linear_weights, nearest_index
from tfmuscle.volume import Geometry, Volume

THICK_RATIO = 3.0
"""Largest ratio of two spacings of a grid that is still resampled in one go."""
_SMALLEST_WEIGHT = 1e-9
"""Weights of a spline below this are left out: a hundredth of float32's resolution."""
_SAME_SPACING = 1e-4
"""Relative difference below which two axes are equally thick."""
_SAME_SHARE = 1e-9
"""Shares closer than this are equal: they differ by rounding alone."""


def nnunet_shape(geometry: Geometry, spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Returns the shape of a grid resampled to `spacing` mm: `round(old spacing / new spacing * shape)`, at least 1.

    >>> nnunet_shape(Geometry((10, 20, 20), np.diag([5.0, 1.0, 1.0, 1.0])), (2.0, 0.8, 0.8))
    (25, 25, 25)
    """
    axes = zip(geometry.spacing, spacing, geometry.shape, strict=True)
    return tuple(max(1, round(old / new * size)) for old, new, size in axes)


def coarse_axis(current: tuple[float, ...], target: tuple[float, ...]) -> int | None:
    """Returns the axis along which slices are resampled by themselves, or None.

    It is the thickest axis of `current` when its voxels are more than `THICK_RATIO` times as long there as along the
    shortest axis, else that of `target` by the same rule; none when two axes are equally thick.

    >>> coarse_axis((5.0, 0.5, 0.5), (1.0, 1.0, 1.0)), coarse_axis((1.0, 1.0, 1.0), (1.0, 1.0, 2.5))
    (0, None)
    """
    for spacing in (current, target):
        if max(spacing) / min(spacing) > THICK_RATIO:
            thick = np.flatnonzero(np.isclose(spacing, max(spacing), rtol=_SAME_SPACING, atol=0))
            return int(thick[0]) if len(thick) == 1 else None
    return None


def resample_image_nnunet(image: Volume, geometry: Geometry, coarse: int | None) -> Volume:
    """Interpolates an image by cubic splines onto a grid with the same outer faces; float32.

    Args:
        image: `(I, J, K)` or `(I, J, K, C)`.
        geometry: grid made by `Geometry.resized`.
        coarse: axis along which the nearest slice is taken, from `coarse_axis`.
    """
    if image.geometry.same_grid(geometry):
        return Volume(image.array.astype(np.float32, copy=False), geometry, image.source)
    array = np.empty((*geometry.shape, *image.array.shape[3:]), np.float32)
    channels = [(image.array, array)]
    if image.array.ndim == 4:
        channels = [(image.array[..., channel], array[..., channel]) for channel in range(array.shape[3])]
    front = coarse or 0
    sizes = _in_front(list(zip(image.geometry.shape, geometry.shape, strict=True)), front)
    weights = [_cubic_weights(*size) for size in sizes]
    for old, new in channels:
        old, new = np.moveaxis(old, front, 0), np.moveaxis(new, front, 0)
        if coarse is None:
            apply_weights(old, weights, new)
            np.clip(new, old.min(), old.max(), out=new)
        else:
            _copy_slices(old, weights[1:], new)
    return Volume(array, geometry, image.source)


def _in_front(axes: list[tuple[int, int]], front: int) -> list[tuple[int, int]]:
    return [axes[front], *axes[:front], *axes[front + 1 :]]


def _cubic_weights(size: int, new_size: int) -> scipy.sparse.csr_array:
    """Returns what each old voxel of an axis gives to each new one, `(new_size, size)`; rows sum to one."""
    if size == new_size:
        return scipy.sparse.csr_array(scipy.sparse.eye_array(size))
    impulses = scipy.ndimage.zoom(np.eye(size), (new_size / size, 1), order=3, mode="nearest", grid_mode=True)
    return scipy.sparse.csr_array(np.where(np.abs(impulses) > _SMALLEST_WEIGHT, impulses, 0))


def _places(size: int, new_size: int) -> np.ndarray:
    """Returns the old voxel nearest to each new one."""
    scale = size / new_size
    return np.clip(nearest_index(scale * np.arange(new_size) + (scale - 1) / 2), 0, size - 1)


def _copy_slices(old: np.ndarray, weights: list[scipy.sparse.csr_array], new: np.ndarray) -> None:
    """Resamples each old slice that is needed in-plane, within its own range, and gives it to its new slices."""
    rows, columns = weights
    places = _places(len(old), len(new))
    for place in np.unique(places):
        plane = rows @ old[place] @ columns.T
        new[places == place] = np.clip(plane, old[place].min(), old[place].max())


def resample_labels_nnunet(labels: Volume, geometry: Geometry, coarse: int | None) -> Volume:
    """Gives each voxel of a grid with the same outer faces the label of the largest interpolated share; type kept.

    The arguments are those of `resample_image_nnunet`.
    """
    if labels.geometry.same_grid(geometry):
        return Volume(labels.array, geometry, labels.source)
    array = np.empty(geometry.shape, labels.array.dtype)
    front = coarse or 0
    old, new = np.moveaxis(labels.array, front, 0), np.moveaxis(array, front, 0)
    sizes = list(zip(old.shape, new.shape, strict=True))
    along, rows, columns = (linear_weights(a / b, (a / b - 1) / 2, a, b) for a, b in sizes)
    if coarse is not None:
        along = scipy.sparse.csr_array(scipy.sparse.eye_array(len(old)))[_places(*sizes[0])]
    nearest = [_places(*size) for size in sizes]
    shares: dict[int, dict[int, np.ndarray]] = {}
    for index, plane in enumerate(new):
        row = slice(along.indptr[index], along.indptr[index + 1])
        needed = dict(zip(along.indices[row].tolist(), along.data[row].tolist(), strict=True))
        shares = {n: shares[n] if n in shares else _shares(old[n], rows, columns) for n in needed}
        favourite = old[nearest[0][index]][np.ix_(nearest[1], nearest[2])]
        plane[...] = _largest([(shares[n], weight) for n, weight in needed.items()], favourite)
    return Volume(array, geometry, labels.source)


def _shares(plane: np.ndarray, rows: scipy.sparse.csr_array, columns: scipy.sparse.csr_array) -> dict[int, np.ndarray]:
    """Returns how much of each label of an old slice there is at each new pixel."""
    return {int(label): rows @ (plane == label).astype(np.float64) @ columns.T for label in np.unique(plane)}


def _largest(slices: list[tuple[dict[int, np.ndarray], float]], favourite: np.ndarray) -> np.ndarray:
    """Returns the label with the largest weighted sum of shares; of equal ones the `favourite`, else the lowest."""
    winner, best = np.zeros_like(favourite), np.full(favourite.shape, -1.0)
    for label in sorted(set().union(*(shares for shares, _ in slices))):
        share = sum((shares[label] * weight for shares, weight in slices if label in shares), np.zeros(()))
        wins = (share > best + _SAME_SHARE) | ((share > best - _SAME_SHARE) & (favourite == label))
        winner[wins] = label
        best = np.maximum(best, share)
    return winner
