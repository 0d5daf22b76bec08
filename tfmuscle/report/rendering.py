"""A look at labels from outside: each structure in its colour, from the front and from the back.

Rays run through the volume side by side, one per pixel, and stop at the first labelled voxel; what they hit and how
deep it lay are a picture of ids and a map of depths. Rays are straight in world coordinates, so that oblique, flipped
and anisotropic grids show the limb as it stands. Memory is that of the picture: no voxel is copied.

Light falls from above, to the left of the viewer. The surface's slope comes from differences of depth between
neighbouring pixels, cut off where one muscle stands before another, and smoothed over half the thickest voxel, which
takes the terraces of thick slices out of the shading. Thin dark lines part the structures.

The views are those of a person who stands before the patient, or behind: seen from the front the patient's right is on
the left of the picture, as radiologists look at it; seen from the back it is on the right. Letters say so.

Rejected: a surface mesh of each structure (a minute for 70 of them); OpenGL (no display on servers); resampling the
volume onto an isotropic grid first (oblique scans take ten times as long, and hundreds of MB).
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter

from tfmuscle.labels import LabelMap, distinct
from tfmuscle.report.figures import plain, rgb
from tfmuscle.volume import Volume

VIEWS = {"front": "PIL", "back": "AIR"}
"""View -> the sides towards which depth, rows and columns of its picture grow."""
LONGEST_SIDE = 900
"""Most pixels of a picture's longer side."""
_SEEN_FROM = {"front": "anterior", "back": "posterior"}
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
_OPPOSITE = {"L": "R", "R": "L"}
_LIGHT = np.array([0.80, -0.45, -0.40])
"""Towards the light: to the viewer, downwards, to the right of the picture."""
_AMBIENT, _LINE = 0.38, 0.62
_STEEPEST = 3.0
_HALF = 0.5 + 1e-4
"""Halves between two voxels fall one way, whatever the rounding of single precision."""
_SCALE_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)
_TALLEST_INCHES, _WIDEST_INCHES, _MARGIN = 8.4, 6.2, 0.035
_ROOM_INCHES = 0.055
"""Radius of the circle that a number of two digits needs."""
_HALO = [patheffects.withStroke(linewidth=1.6, foreground="black")]


@dataclass(frozen=True, eq=False)
class Projection:
    """What is seen along parallel rays.

    Attributes:
        labels: `(H, W)` id of the first labelled voxel of each ray, 0 where there is none.
        depth_mm: `(H, W)` distance of that voxel from the plane before all labels; NaN where there is none.
        step_mm: side of a pixel.
        thickest_mm: largest spacing of the voxels.
    """

    labels: np.ndarray
    depth_mm: np.ndarray
    step_mm: float
    thickest_mm: float


def project(labels: Volume, view: str, *, ignore: int | None = None, step_mm: float | None = None) -> Projection:
    """Looks at labels from `view` and returns which structure is seen where, and how deep it lies.

    Args:
        labels: `(I, J, K)` ids on any grid.
        view: a name in `VIEWS`.
        ignore: id of voxels nobody labelled; they are looked through.
        step_mm: side of a pixel and way between two samples of a ray; by default the finest spacing, or more where the
            picture would be longer than `LONGEST_SIDE`.

    Raises:
        ValueError: an unknown view, or a step that is no length.
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}; choose from {', '.join(VIEWS)}")
    if step_mm is not None and not 0 < step_mm < np.inf:
        raise ValueError(f"step_mm is {step_mm}; a length in mm is needed")
    grid, box = labels.geometry, _box(labels.array, ignore)
    if box is None:
        nothing = np.zeros((1, 1), labels.array.dtype)
        return Projection(nothing, np.full((1, 1), np.nan, np.float32), step_mm or 1.0, max(grid.spacing))
    start, stop = box
    directions = np.array([_DIRECTIONS[letter] for letter in VIEWS[view]], dtype=np.float64).T
    corners = grid.world(np.where(np.indices((2, 2, 2)).reshape(3, -1).T, stop - 0.5, start - 0.5)) @ directions
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    step = step_mm or max(min(grid.spacing), extent[1:].max() / LONGEST_SIDE)
    shape = np.maximum(1, np.ceil(extent / step - 1e-6)).astype(int)
    first = grid.index(directions @ (low + step / 2)) - start
    per_step = np.linalg.inv(grid.affine[:3, :3]) @ directions * step
    block = labels.array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    found, depth = _march(block, first, per_step, shape, ignore)
    return Projection(found, depth * np.float32(step), float(step), max(grid.spacing))


def _box(array: np.ndarray, ignore: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns start and stop of the labelled voxels, or None; slab by slab in the order of memory."""
    order = np.argsort(np.abs(array.strides))[::-1]
    turned = array.transpose(order)
    occupied = [np.zeros(size, bool) for size in turned.shape]
    for index, slab in enumerate(turned):
        mask = slab != 0 if ignore is None else (slab != 0) & (slab != ignore)
        occupied[1] |= mask.any(axis=1)
        occupied[2] |= mask.any(axis=0)
        occupied[0][index] = mask.any()
    if not occupied[0].any():
        return None
    start, stop = np.zeros((2, 3), dtype=int)
    for axis, line in zip(order, occupied, strict=True):
        start[axis], stop[axis] = line.argmax(), len(line) - line[::-1].argmax()
    return start, stop


def _march(
    block: np.ndarray, first: np.ndarray, per_step: np.ndarray, shape: np.ndarray, ignore: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Follows all rays at once; returns ids and depth in steps, `(H, W)` each.

    Args:
        block: `(I, J, K)` ids.
        first: index in `block` of the first sample of the first ray.
        per_step: `(3, 3)` change of that index by a step in depth, row and column.
        shape: number of steps in depth, rows and columns.
        ignore: id to look through.
    """
    rows, columns = np.indices((int(shape[1]), int(shape[2]))).reshape(2, -1)
    rays = (first[:, None] + per_step[:, 1:2] * rows + per_step[:, 2:] * columns + _HALF).astype(np.float32)
    waiting = np.arange(rays.shape[1])
    found = np.zeros(rays.shape[1], block.dtype)
    depth = np.full(rays.shape[1], np.nan, np.float32)
    size = np.array(block.shape, dtype=np.float32)[:, None]
    for step in range(shape[0]):
        place = rays + (per_step[:, :1] * step).astype(np.float32)
        inside = np.flatnonzero(((place >= 0) & (place < size)).all(axis=0))
        ids = block[tuple(place[:, inside].astype(np.intp))]
        seen = ids != 0 if ignore is None else (ids != 0) & (ids != ignore)
        hit = inside[seen]
        found[waiting[hit]], depth[waiting[hit]] = ids[seen], step
        if len(hit):
            going = np.ones(len(waiting), bool)
            going[hit] = False
            rays, waiting = rays[:, going], waiting[going]
    return found.reshape(shape[1:]), depth.reshape(shape[1:])


def shade(projection: Projection, colours: Mapping[int, tuple[float, float, float]]) -> np.ndarray:
    """Returns the picture `(H, W, 3)`, 0..1: each id in its colour (0..1), lit, on white.

    Raises:
        ValueError: an id has no colour.
    """
    seen = projection.labels != 0
    picture = np.ones((*projection.labels.shape, 3))
    for key in np.unique(projection.labels[seen]).tolist():
        if key not in colours:
            raise ValueError(f"id {key} has no colour; there are {sorted(colours)}")
        picture[projection.labels == key] = colours[key]
    down, right = (_slope(projection, seen, axis) for axis in (0, 1))
    light = _LIGHT / np.linalg.norm(_LIGHT)
    lit = (light[0] + light[1] * down + light[2] * right) / np.sqrt(1 + down**2 + right**2)
    brightness = _AMBIENT + (1 - _AMBIENT) * np.clip(lit, 0, 1) / light[0]
    brightness[_parted(projection.labels)] *= _LINE
    return np.where(seen[..., None], np.clip(picture * brightness[..., None], 0, 1), 1.0)


def _slope(projection: Projection, seen: np.ndarray, axis: int) -> np.ndarray:
    """Returns how fast the depth grows along an axis of the picture, smoothed over what is seen; 0 elsewhere."""
    ahead = np.diff(projection.depth_mm.astype(np.float64), axis=axis) / projection.step_mm
    both = np.isfinite(ahead)
    ahead = np.where(both, np.clip(ahead, -_STEEPEST, _STEEPEST), 0.0)
    sums, counts = np.zeros(seen.shape), np.zeros(seen.shape)
    for part in (slice(1, None), slice(None, -1)):
        place = (slice(None),) * axis + (part,)
        sums[place] += ahead
        counts[place] += both
    sigma = max(1.5, 0.5 * projection.thickest_mm / projection.step_mm)
    weights = gaussian_filter(counts, sigma, mode="constant")
    return np.divide(gaussian_filter(sums, sigma, mode="constant"), weights, out=sums, where=weights > 1e-6) * seen


def _parted(labels: np.ndarray) -> np.ndarray:
    """Marks the pixels that have another structure, or nothing, to their right or below."""
    padded = np.pad(labels, ((0, 1), (0, 1)))
    return (labels != padded[1:, :-1]) | (labels != padded[:-1, 1:])


def rendering(
    labels: Volume,
    *,
    label_map: LabelMap,
    views: tuple[str, ...] = tuple(VIEWS),
    shown_as: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Draws labels from outside, a panel per view, with numbers where there is room and the names of what is seen.

    Args:
        labels: ids; those nobody labelled are looked through.
        label_map: names and colours.
        views: names in `VIEWS`.
        shown_as: structure -> name in the legend; structures that share a name share its entry, in the colour of the
            first of them.
        title: above the panels.

    Raises:
        ValueError: an unknown view, or `labels` holds an id that the map does not name.
    """
    looks = {view: project(labels, view, ignore=label_map.ignore) for view in views}
    colours = {label_map.id_of(name): rgb(label_map, name) for name in label_map.structures}
    texts = {label_map.id_of(name): (shown_as or {}).get(name, name) for name in label_map.structures}
    pictures = {view: shade(look, colours) for view, look in looks.items()}
    seen = {texts[key] for look in looks.values() for key in np.unique(look.labels).tolist() if key != 0}
    hidden = sorted({texts[key] for key in distinct(labels.array).tolist() if key in texts} - seen)
    numbers = {text: number for number, text in enumerate(sorted(seen), start=1)}
    figure = _figure(list(looks.values()), len(numbers))
    shown = {key: numbers[text] for key, text in texts.items() if text in numbers}
    for axes, (view, look) in zip(figure.axes, looks.items(), strict=True):
        _draw_panel(axes, look, view, pictures[view])
        _write_numbers(axes, look, shown)
    first = {text: colours[key] for key, text in reversed(texts.items())}
    handles = [Patch(color=first[text], label=plain(f"{number}  {text}")) for text, number in numbers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=_columns(figure), fontsize=8, frameon=False)
    below = textwrap.wrap("not seen from outside: " + ", ".join(hidden), int(14 * figure.get_figwidth()))
    figure.suptitle("\n".join(map(plain, [title, *below] if hidden else [title])), fontsize=10)
    return figure


def _figure(looks: Sequence[Projection], entries: int) -> Figure:
    """Returns a figure with an empty panel per picture, all to one scale, and room for the entries of a legend."""
    height, width = (max(look.labels.shape[axis] * look.step_mm for look in looks) for axis in (0, 1))
    margin = _MARGIN * max(height, width)
    high, wide = height + 2 * margin, width + 2 * margin
    inches = min(_TALLEST_INCHES / high, _WIDEST_INCHES / wide)
    figure = Figure(figsize=(max(len(looks) * wide * inches + 0.3, 7.0), 1.0), layout="constrained")
    figure.set_figheight(high * inches + 1.1 + 0.19 * -(-entries // _columns(figure)))
    for number in range(1, len(looks) + 1):
        axes = figure.add_subplot(1, len(looks), number)
        axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), aspect="equal")
        axes.set_axis_off()
    return figure


def _columns(figure: Figure) -> int:
    return max(2, int(figure.get_figwidth() / 2.25))


def _draw_panel(axes: Axes, look: Projection, view: str, picture: np.ndarray) -> None:
    height, width = (size * look.step_mm for size in look.labels.shape)
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set_title(f"{view} (seen from {_SEEN_FROM[view]})", fontsize=10)
    letter = VIEWS[view][2]
    style: dict[str, Any] = {"fontsize": 13, "weight": "bold", "va": "top", "transform": axes.transAxes}
    axes.text(0.01, 0.99, _OPPOSITE[letter], ha="left", **style)
    axes.text(0.99, 0.99, letter, ha="right", **style)
    bar = max((length for length in _SCALE_BARS_MM if length <= min(width / 2, height / 5)), default=0)
    if bar and look.labels.any():
        y = height + 0.6 * (axes.get_ylim()[0] - height)
        axes.plot([0, bar], [y, y], color="black", linewidth=2.5)
        axes.annotate(f"{bar} mm", (bar, y), (4, 0), textcoords="offset points", fontsize=8, va="center")
    if not look.labels.any():
        axes.text(0.5, 0.5, "nothing is labelled", ha="center", va="center", transform=axes.transAxes)


def _write_numbers(axes: Axes, look: Projection, numbers: Mapping[int, int]) -> None:
    """Writes each number where its structure is seen widest, if there is room."""
    inches_per_mm = min(_TALLEST_INCHES / np.ptp(axes.get_ylim()), _WIDEST_INCHES / np.ptp(axes.get_xlim()))
    keys, ranks = np.unique(look.labels, return_inverse=True)
    for key, box in zip(keys.tolist(), find_objects(ranks.reshape(look.labels.shape) + 1), strict=True):
        if key == 0:
            continue
        inside = distance_transform_edt(np.pad(look.labels[box] == key, 1))
        place = np.unravel_index(int(inside.argmax()), inside.shape)
        if (inside[place] - 0.5) * look.step_mm * inches_per_mm >= _ROOM_INCHES:
            row, column = (index - 0.5 + part.start for index, part in zip(place, box, strict=True))
            at = (column * look.step_mm, row * look.step_mm)
            axes.annotate(
                str(numbers[key]), at, fontsize=6.5, ha="center", va="center", color="white", path_effects=_HALO
            )
