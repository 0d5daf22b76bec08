"""Labels over the image, in slices chosen to inform.

A scan is looked at as radiologists do: the slice axis is cut, the patient's right is on the left, anterior or superior
on top, and the letters on the borders say so; pixels keep their proportions in mm. The prediction is filled, the
reference is an outline along voxel edges (a smooth contour would claim what the voxels do not say), and what nobody
labelled is hatched. Slices: the one with most structures, the one with most disagreement, then those farthest from the
chosen ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tfmuscle.labels import LabelMap
from tfmuscle.metrics import slice_axis
from tfmuscle.report.figures import plain, rgb
from tfmuscle.volume import Geometry, Volume

LEGEND_ENTRIES = 24
"""More structures than this are counted, not named, in a legend."""
VIEWS = {"S": "SPL", "I": "IPL", "A": "AIL", "P": "PIL", "R": "RIP", "L": "LIP"}
"""Orientation code in which slices of an axis are looked at, by the side towards which the axis grows."""
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_GREY = "#8a8a8a"
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="black")]
_MARGIN_SHARE, _MARGIN_MM = 0.12, 8.0
_NARROW_INCHES = 3.1
_SCALE_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)


def informative_slices(labels: np.ndarray, reference: np.ndarray | None = None, *, count: int = 4) -> dict[int, str]:
    """Chooses up to `count` slices of axis 0, and says why: index -> reason, by index.

    Args:
        labels: `(D, H, W)` ids of the prediction, 0 where nothing is to be seen.
        reference: `(D, H, W)` ids of the reference.
        count: slices wanted.

    >>> labels = np.zeros((9, 2, 2), dtype=int)
    >>> labels[2:7, 0, 0], labels[5, 1, 1] = 1, 2
    >>> informative_slices(labels, count=2)
    {2: '', 5: 'most structures'}
    """
    seen = labels if reference is None else np.where(reference > 0, reference, labels)
    chosen: dict[int, str] = {}
    extent = np.flatnonzero(seen.any(axis=(1, 2)))
    if len(extent):
        structures = {int(index): (len(np.unique(seen[index])), np.count_nonzero(seen[index])) for index in extent}
        chosen[max(structures, key=lambda index: structures[index])] = "most structures"
    if reference is not None and (wrong := (labels != reference).sum(axis=(1, 2))).any():
        worst = int(wrong.argmax())
        chosen[worst] = f"{chosen[worst]}, largest disagreement" if worst in chosen else "largest disagreement"
    extent = extent if len(extent) else np.arange(len(labels))
    inner = extent[len(extent) // 10 : len(extent) - len(extent) // 10]
    while len(chosen) < min(count, len(set(inner.tolist()) | set(chosen))):
        taken = np.array(list(chosen) or [inner[0] - 1])
        chosen[int(inner[np.abs(inner[:, np.newaxis] - taken).min(axis=1).argmax()])] = ""
    return dict(sorted(list(chosen.items())[:count]))


def overlay(
    image: Volume | None,
    labels: Volume | None,
    reference: Volume | None = None,
    *,
    label_map: LabelMap,
    title: str = "",
    count: int = 4,
    letters: bool = True,
) -> Figure:
    """Draws labels (filled) and a reference (outlined) over the image, in up to `count` informative slices.

    Args:
        image: `(I, J, K)` or `(I, J, K, C)`, of which the first channel is shown; None leaves the background black.
        labels: ids of the prediction, or None.
        reference: ids, or None; its voxels with the ignore id are hatched and count for nothing.
        label_map: names and colours.
        title: above the panels.
        count: most panels to draw.
        letters: whether the grid lies in a patient, so that borders may be called R, L, A, P, S, I.

    Raises:
        ValueError: the volumes lie on different grids, or there is nothing to draw.
    """
    given = [volume for volume in (labels, reference, image) if volume is not None]
    if not given or any(not volume.geometry.same_grid(given[0].geometry) for volume in given):
        raise ValueError("an overlay needs image, labels or reference, all on one grid; resample them first")
    axis = slice_axis(given[0].geometry)
    view = VIEWS[given[0].geometry.orientation[axis]]
    scene = _turn(image, labels, reference, view=view, label_map=label_map)
    slices = informative_slices(scene.labels, scene.reference, count=count)
    whys = slices if len(slices) > 1 else dict.fromkeys(slices, "")
    captions = {index: f"{'ijk'[axis]} = {index}" + (f"  {why}" if why else "") for index, why in whys.items()}
    return _panels(scene, captions, view if letters else "", title)


def overlay_slices(
    image: Volume | None,
    labels: Volume,
    captions: Mapping[int, str],
    *,
    axis: int,
    label_map: LabelMap,
    title: str = "",
    letters: bool = True,
) -> Figure:
    """Draws labels over the image in slices that are known.

    Args:
        image: `(I, J, K)`; None leaves the background black.
        labels: ids.
        captions: slice -> what stands above it, beside its number.
        axis: of the arrays, across which the slices lie.
        label_map: names and colours.
        title: above the panels.
        letters: whether the grid lies in a patient.

    Raises:
        ValueError: no slice, or image and labels on different grids.
    """
    if not captions or (image is not None and not image.geometry.same_grid(labels.geometry)):
        raise ValueError("pictures of slices need at least one slice, and image and labels on one grid")
    wanted = sorted(captions)

    def few(volume: Volume) -> Volume:  # a whole limb need not be turned for a handful of slices
        array = np.stack([volume.array[(slice(None),) * axis + (index,)] for index in wanted], axis=axis)
        return Volume(array, Geometry(array.shape[:3], volume.geometry.affine))

    view = VIEWS[labels.geometry.orientation[axis]]
    scene = _turn(None if image is None else few(image), few(labels), None, view=view, label_map=label_map)
    texts = [f"{'ijk'[axis]} = {index}" + (f"  {captions[index]}" if captions[index] else "") for index in wanted]
    return _panels(scene, dict(enumerate(texts)), view if letters else "", title)


def _turn(
    image: Volume | None, labels: Volume | None, reference: Volume | None, *, view: str, label_map: LabelMap
) -> "_Scene":
    """Turns everything to the view and takes out of the labels what the reference ignores."""
    turned = next(volume.reoriented(view) for volume in (labels, reference, image) if volume is not None)
    empty = np.zeros(turned.geometry.shape, dtype=np.uint8)
    grey = empty if image is None else image.reoriented(view).array
    found = empty if labels is None else labels.reoriented(view).array
    true = None if reference is None else reference.reoriented(view).array
    ignore = -1 if label_map.ignore is None else label_map.ignore
    unknown = np.zeros(empty.shape, dtype=bool) if true is None else true == ignore
    found = np.where(unknown | (found == ignore), 0, found)
    true = None if true is None else np.where(unknown, 0, true)
    return _Scene(grey[..., 0] if grey.ndim == 4 else grey, found, true, unknown, turned.spacing[1:], label_map)


@dataclass(frozen=True, eq=False)
class _Scene:
    """Arrays `(D, H, W)` turned to the view: rows go down, columns to the right; `step` is their spacing in mm."""

    image: np.ndarray
    labels: np.ndarray
    reference: np.ndarray | None
    unknown: np.ndarray
    step: tuple[float, ...]
    label_map: LabelMap

    def box(self) -> tuple[slice, slice]:
        """Returns rows and columns around everything labelled, with a margin; all of them when nothing is."""
        seen = self.labels.any(axis=0)
        seen = seen if self.reference is None else seen | self.reference.any(axis=0)
        if not seen.any():
            return slice(None), slice(None)
        sides = []
        for axis, step in enumerate(self.step):
            where = np.flatnonzero(np.any(seen, axis=1 - axis))
            margin = round(max(_MARGIN_MM / step, _MARGIN_SHARE * (where[-1] - where[0])))
            sides.append(slice(max(0, int(where[0]) - margin), int(where[-1]) + margin + 1))
        return sides[0], sides[1]


def _panels(scene: _Scene, captions: Mapping[int, str], view: str, title: str) -> Figure:
    box = scene.box()
    height, width = (size * step for size, step in zip(scene.image[0][box].shape, scene.step, strict=True))
    columns = min(len(captions), 4 if width < 1.3 * height else 2)
    rows = -(-len(captions) // columns)
    side = min(13.0 / columns, 4.8 * width / height)
    present = {key for index in captions for part in (scene.labels, scene.reference) if part is not None
               for key in np.unique(part[index][box]).tolist()}  # fmt: skip
    handles = _legend_handles(scene, sorted(present - {0}), bool(any(scene.unknown[i].any() for i in captions)))
    across = max(1, min(5, int(max(6.0, side * columns) / 2.4)))
    size = (max(6.0, side * columns), rows * (side * height / width + 0.3) + 0.5 + 0.2 * -(-len(handles) // across))
    figure = Figure(figsize=size, layout="constrained")
    shown = scene.image[list(captions)].astype(np.float32)
    shown = shown[np.isfinite(shown)]
    window = (float(np.percentile(shown, 1)), float(np.percentile(shown, 99))) if shown.size else (0.0, 1.0)
    for number, (index, caption) in enumerate(captions.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw_slice(axes, scene, index, box, window)
        draw_borders(axes, width, height, view)
        narrow = side < _NARROW_INCHES
        axes.set_title(caption.replace("  ", "\n").replace(", ", ",\n") if narrow else caption, fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=8, frameon=False)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _draw_slice(axes: Axes, scene: _Scene, index: int, box: tuple[slice, slice], window: tuple[float, float]) -> None:
    image, labels, unknown = (part[index][box] for part in (scene.image, scene.labels, scene.unknown))
    down, right = scene.step
    extent = (0, image.shape[1] * right, image.shape[0] * down, 0)
    low, high = window[0], max(window[1], window[0] + 1e-6)
    axes.imshow(np.nan_to_num(image.astype(np.float32)), cmap="gray", vmin=low, vmax=high, extent=extent)
    table = np.array([(*scene.label_map.colour(name), 115) for name in scene.label_map.names.values()], dtype=np.uint8)
    table[0] = 0
    axes.imshow(table[scene.label_map.encode(labels)], extent=extent, interpolation="nearest")
    if unknown.any():
        axes.imshow(np.where(unknown[..., None], (150, 150, 150, 130), 0).astype(np.uint8), extent=extent)
        ys, xs = ((np.arange(size) + 0.5) * step for size, step in zip(unknown.shape, scene.step, strict=True))
        if min(unknown.shape) > 1:
            axes.contourf(xs, ys, unknown, levels=[0.5, 1.5], colors="none", hatches=["////"])
    reference = np.zeros_like(labels) if scene.reference is None else scene.reference[index][box]
    for key in np.unique(reference[reference > 0]):
        lines = voxel_edges(reference == key) * (right, down)
        colour = rgb(scene.label_map, scene.label_map.names[int(key)])
        axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=1.4, capstyle="round"))


def voxel_edges(mask: np.ndarray) -> np.ndarray:
    """Returns the voxel edges around a 2D mask, `(N, 2, 2)`: two corners (column, row), in voxels.

    >>> voxel_edges(np.array([[True]])).tolist()
    [[[0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]]]
    """
    padded = np.pad(mask, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1]
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1]
    return np.concatenate([np.stack([upright, upright + (0, 1)], axis=1), np.stack([level, level + (1, 0)], axis=1)])


def draw_borders(axes: Axes, width: float, height: float, view: str) -> None:
    """Draws a scale bar and, if a view is given, the letters of the sides on a slice of `width` times `height` mm."""
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal", facecolor="black")
    style: dict[str, Any] = {"color": "white", "path_effects": _HALO}
    sides = [(0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center")]
    ends = [(0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom")]
    letters = (_OPPOSITE[view[2]], view[2], _OPPOSITE[view[1]], view[1]) if view else ()
    for (x, y, across, along), letter in zip(sides + ends if view else (), letters, strict=True):
        axes.text(x, y, letter, ha=across, va=along, fontsize=10, weight="bold", transform=axes.transAxes, **style)
    bar = max((length for length in _SCALE_BARS_MM if length <= width / 3), default=0)
    if bar:
        clear_of_letter = 0.06 * height if width < 0.5 * height else 0.0
        x, y = 0.04 * width, height - 0.04 * width - clear_of_letter
        axes.plot([x, x + bar], [y, y], linewidth=2.5, **style)
        axes.annotate(f"{bar} mm", (x, y), (0, 4), textcoords="offset points", fontsize=7, **style)


def _legend_handles(scene: _Scene, present: Sequence[int], unknown: bool) -> list[Any]:
    handles: list[Any] = []
    for key in present[:LEGEND_ENTRIES]:
        name = scene.label_map.names[key]
        handles.append(Patch(color=rgb(scene.label_map, name), label=plain(name)))
    if len(present) > LEGEND_ENTRIES:
        handles.append(Patch(color="none", label=f"and {len(present) - LEGEND_ENTRIES} more"))
    if scene.reference is not None:
        handles.append(Patch(facecolor=_GREY, alpha=0.6, label="filled: prediction"))
        handles.append(Line2D([], [], color=_GREY, linewidth=1.4, label="outlined: reference"))
    if unknown:
        handles.append(Patch(facecolor="#bbbbbb", hatch="////", label="hatched: not labelled"))
    return handles
