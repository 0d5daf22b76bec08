"""Where the body is, and how far the legs are apart, at every height: what `regions.py` decides by.

The scan is looked at on a coarse grid along the patient's axes (x to the right, y to the front, z up), so that the
orientation of the file, flips and tilts no longer matter. The body is what is brighter than air: every slice is scaled
by its own bright end, because coils fade towards the ends of a scan; square roots are taken before Otsu's threshold, so
that dark muscle in a fat image stays on the body's side; holes are filled and small components (hands, forearms, the
couch) dropped.

*Thickness* is the length of body along y in each column x, in mm. *Separation* is how deep the thickness falls between
two legs: 1 - valley / lower of the two peaks beside it. It is 1 when there is air between the legs, and stays high when
the thighs only touch, where connected components see one body; a trunk has a low one.

Rejected: connected components alone (fat thighs touch down to the knee); a network (there is nothing to train it on);
image intensities of bone (differ between T1, water, fat and CT).
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import SimpleITK as sitk

from tfmuscle.volume import Geometry, Volume

GRID_MM = 4.0
"""Voxel size of the coarse grid; along the patient slices thicker than this keep their thickness."""
SLICE_FLOOR = 0.1
"""A slice is scaled by at least this share of the brightest slice's bright end: an empty slice stays empty."""
LARGEST_VIEW_MM = 10_000.0
"""No scanner sees farther; a header whose voxel size is wrong would ask for terabytes."""
BRIGHT_PERCENTILE = 99.0
KEPT_COMPONENT = 0.4
"""Least area of a component of a slice, as a share of the largest one's: the other leg has it, a hand does not."""
EMPTY_SHARE = 0.05
"""A slice with less than this share of the largest slice's area holds no body."""
LEG_SHARE = 0.3
"""Each of two legs has at least this share of their slice's area."""


@dataclass(frozen=True, eq=False)
class Body:
    """Silhouette of a scan along the patient's axes.

    Attributes:
        mask: `(X, Y, Z)` bool, body.
        view: `(X, Y, Z)` bool, what the scan covers.
        geometry: their grid, axes along x, y, z.
        separation: `(Z,)` 0..1, nan in slices without body.
        valley_mm: `(Z,)` world x of the deepest place between the legs, nan where there are no two.
    """

    mask: np.ndarray
    view: np.ndarray
    geometry: Geometry
    separation: np.ndarray
    valley_mm: np.ndarray

    @property
    def height_mm(self) -> np.ndarray:
        """World z of the slices, `(Z,)`."""
        return self.geometry.affine[2, 3] + self.geometry.spacing[2] * np.arange(self.geometry.shape[2])


def find_body(image: Volume) -> Body:
    """Finds body and separation of the legs; `image` is `(I, J, K)` or `(I, J, K, C)` in any orientation.

    Raises:
        ValueError: the view is longer than `LARGEST_VIEW_MM`.
    """
    grid = _coarse_grid(image.geometry)
    channels = [image.array] if image.array.ndim == 3 else list(np.moveaxis(image.array, 3, 0))
    bright = np.zeros(grid.shape, np.float32)
    for channel in channels:
        bright += _scaled_slices(on_grid(channel, image.geometry, grid))
    view = on_grid(np.ones(image.geometry.shape, np.uint8), image.geometry, grid) > 0.5
    mask = _cleaned(_above_air(bright, view))
    separation, valley = np.full(grid.shape[2], np.nan), np.full(grid.shape[2], np.nan)
    for k in range(grid.shape[2]):
        thickness = mask[:, :, k].sum(axis=1) * grid.spacing[1]
        if thickness.any():
            separation[k], column = _valley(thickness)
            valley[k] = grid.affine[0, 3] + grid.spacing[0] * column
    return Body(mask, view, grid, separation, valley)


def _coarse_grid(geometry: Geometry) -> Geometry:
    """Grid along x, y, z around a scan."""
    corners = geometry.world(np.indices((2, 2, 2)).reshape(3, -1).T * np.array(geometry.shape) - 0.5)
    rise = np.abs(geometry.affine[2, :3])
    step = np.array([GRID_MM, GRID_MM, max(GRID_MM, rise.max())])
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    if extent.max() > LARGEST_VIEW_MM:
        raise ValueError(f"the scan is {extent.max() / 1000:,.0f} m long; check the voxel size in its header")
    shape = np.maximum(1, np.rint(extent / step)).astype(int)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = low + (extent - (shape - 1) * step) / 2
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def on_grid(array: np.ndarray, geometry: Geometry, grid: Geometry) -> np.ndarray:
    """Means of blocks about as large as the coarse voxels, interpolated onto the coarse grid; 0 beyond the scan."""
    factors = [max(1, min(int(GRID_MM / step), size)) for step, size in zip(geometry.spacing, array.shape, strict=True)]
    blocks = _block_means(array, factors)
    scale = np.diag([*map(float, factors), 1.0])
    scale[:3, 3] = (np.array(factors) - 1) / 2
    matrix = np.linalg.inv(geometry.affine @ scale) @ grid.affine
    blocks = np.pad(blocks, 1, mode="edge")  # half a voxel around the outermost centres is still in view
    inner = scipy.ndimage.affine_transform(
        blocks, matrix[:3, :3], matrix[:3, 3] + 1, grid.shape, output=np.float32, order=1, mode="constant"
    )
    index = geometry.index(grid.world(np.moveaxis(np.indices(grid.shape), 0, -1)))
    seen = ((index > -0.5 - 1e-6) & (index < np.array(geometry.shape) - 0.5 + 1e-6)).all(axis=-1)
    return np.where(seen, inner, 0.0)


def _block_means(array: np.ndarray, factors: list[int]) -> np.ndarray:
    """Means of whole blocks, float32, above the smallest value; voxels beyond the last whole block are left out."""
    shape = [size // factor for size, factor in zip(array.shape, factors, strict=True)]
    means = np.empty(shape, np.float32)
    low = min(float(array.min()), 0.0)
    for index in range(shape[0]):
        slab = array[index * factors[0] : (index + 1) * factors[0]].astype(np.float32).mean(axis=0)
        slab = slab[: shape[1] * factors[1], : shape[2] * factors[2]]
        means[index] = slab.reshape(shape[1], factors[1], shape[2], factors[2]).mean(axis=(1, 3)) - low
    return means


def _scaled_slices(array: np.ndarray) -> np.ndarray:
    bright: np.ndarray = np.percentile(array, BRIGHT_PERCENTILE, axis=(0, 1))
    floor = max(SLICE_FLOOR * float(bright.max()), float(np.finfo(np.float32).tiny))
    return np.minimum(array / np.maximum(bright, floor), 1.0).astype(np.float32)


def _above_air(bright: np.ndarray, view: np.ndarray) -> np.ndarray:
    values = np.sqrt(bright[view])
    if not values.size or values.min() == values.max():
        return np.zeros(bright.shape, bool)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(values[np.newaxis]))
    return (np.sqrt(bright) > otsu.GetThreshold()) & view


def _cleaned(mask: np.ndarray) -> np.ndarray:
    """Fills holes and drops small components, slice by slice."""
    cleaned = np.zeros_like(mask)
    cross = scipy.ndimage.generate_binary_structure(2, 1)
    for k in range(mask.shape[2]):
        plane = scipy.ndimage.binary_closing(np.pad(mask[:, :, k], 2), cross, iterations=2)[2:-2, 2:-2] | mask[:, :, k]
        plane = scipy.ndimage.binary_opening(scipy.ndimage.binary_fill_holes(plane), cross)
        numbers, count = scipy.ndimage.label(plane)
        if count:
            areas = np.bincount(numbers.ravel())[1:]
            kept = np.flatnonzero(areas >= KEPT_COMPONENT * areas.max()) + 1
            cleaned[:, :, k] = np.isin(numbers, kept)
    areas = cleaned.sum(axis=(0, 1))
    cleaned[:, :, areas < EMPTY_SHARE * areas.max(initial=0)] = False
    return cleaned


def _valley(thickness: np.ndarray) -> tuple[float, float]:
    """Separation of a slice and the column of its valley, the middle of a wide one; (0, nan) without two legs."""
    left, right = np.maximum.accumulate(thickness), np.maximum.accumulate(thickness[::-1])[::-1]
    peak = np.minimum(left, right)
    share = np.cumsum(thickness) / thickness.sum()
    between = (share >= LEG_SHARE) & (share <= 1 - LEG_SHARE)
    depth = np.where(between, 1 - thickness / np.maximum(peak, 1e-9), -1.0)
    if depth.max() < 0:
        return 0.0, float("nan")
    return float(depth.max()), float(np.flatnonzero(depth >= depth.max() - 1e-9).mean())
