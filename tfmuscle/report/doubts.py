"""Where labels are probably wrong: the map of `predict --uncertainty` over the image, labels as outlines.

Slices are turned as in `overlays`. The map is seen through where it is small, so that the image stays in sight.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tfmuscle.labels import LabelMap
from tfmuscle.report.figures import plain, rgb
from tfmuscle.report.overlays import VIEWS, draw_borders, voxel_edges
from tfmuscle.volume import Geometry, Volume

MOST_SLICES = 4
_MARGIN_MM = 8.0
_COLOURS, _OPAQUE = "autumn_r", 0.3
"""Error probability from which on the image is hidden most."""


def doubt_figure(
    image: Volume | None, labels: Volume, error: Volume, slices: Sequence[int], *, axis: int, label_map: LabelMap
) -> Figure:
    """Draws the map in some slices, with a scale.

    Args:
        image: `(I, J, K)` or with channels, of which the first is shown; None leaves the background black.
        labels: ids, outlined.
        error: probability that they are wrong, 0..1.
        slices: indices along `axis`; the first `MOST_SLICES` are drawn.
        axis: of the arrays.
        label_map: names and colours.

    Raises:
        ValueError: no slice, or different grids.
    """
    given = [volume for volume in (image, labels, error) if volume is not None]
    if not len(slices) or any(not volume.geometry.same_grid(labels.geometry) for volume in given):
        raise ValueError("a map of doubts needs at least one slice, and image, labels and map on one grid")
    wanted = sorted(list(slices)[:MOST_SLICES])
    view = VIEWS[labels.geometry.orientation[axis]]

    def turned(volume: Volume) -> Volume:  # a whole limb need not be turned for a handful of slices
        array = np.stack([volume.array[(slice(None),) * axis + (index,)] for index in wanted], axis=axis)
        return Volume(array, Geometry(array.shape[:3], volume.geometry.affine)).reoriented(view)

    shown, doubts = turned(labels), turned(error).array
    grey = np.zeros_like(doubts) if image is None else turned(image).array
    grey = (grey[..., 0] if grey.ndim == 4 else grey).astype(np.float32)
    step = shown.spacing[1:]
    box = _box(np.any((shown.array > 0) | (doubts > _OPAQUE), axis=0), step)
    height, width = (size * length for size, length in zip(grey[0][box].shape, step, strict=True))
    side = min(13.0 / len(wanted), 4.8 * width / height)
    figure = Figure(figsize=(max(6.0, side * len(wanted) + 1), side * height / width + 0.8), layout="constrained")
    for place, index in enumerate(wanted):
        axes = figure.add_subplot(1, len(wanted), place + 1)
        here = (grey[place][box], shown.array[place][box], doubts[place][box])
        picture = _draw(axes, *here, step, label_map)
        draw_borders(axes, width, height, view)
        axes.set_title(f"{'ijk'[axis]} = {index}", fontsize=9)
    bar = figure.colorbar(picture, ax=list(figure.axes), shrink=0.8, extend="max")
    bar.set_label(plain("probability that the label is wrong"), fontsize=8)
    return figure


def _box(seen: np.ndarray, step: tuple[float, ...]) -> tuple[slice, slice]:
    """Returns rows and columns around what is seen, with a margin; all of them when nothing is."""
    if not seen.any():
        return slice(None), slice(None)
    sides = []
    for axis, length in enumerate(step):
        where, margin = np.flatnonzero(seen.any(axis=1 - axis)), round(_MARGIN_MM / length)
        sides.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + margin + 1))
    return sides[0], sides[1]


def _draw(
    axes: Axes,
    image: np.ndarray,
    labels: np.ndarray,
    error: np.ndarray,
    step: tuple[float, ...],
    label_map: LabelMap,
) -> AxesImage:
    down, right = step
    extent = (0, image.shape[1] * right, image.shape[0] * down, 0)
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0, 1)
    axes.imshow(np.nan_to_num(image), cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=extent)
    alpha = np.clip(error / _OPAQUE, 0, 1) * 0.85
    picture = axes.imshow(error, cmap=_COLOURS, vmin=0, vmax=0.5, alpha=alpha, extent=extent, interpolation="nearest")
    for key in np.unique(labels[labels > 0]):
        if int(key) in label_map.names:
            lines = voxel_edges(labels == key) * (right, down)
            colour = rgb(label_map, label_map.names[int(key)])
            axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.0, capstyle="round"))
    return picture
