"""From tracked frames to a volume, and from labels drawn on frames to labels of the volume.

The user swept a probe over a limb; every frame knows where it was. Every pixel is put where it was seen and adds to the
voxels around it (`linear`: to eight of them, by nearness; `nearest`: to one). That forward direction is right because
pixels (0.1 mm) are finer than voxels (0.5 mm or more): no pixel is lost, and a voxel averages all it was seen by.

* `mean` averages all pixels by weight; `max` and `latest` average within a frame and then keep the brightest or the
  last frame, as one wants for bone surfaces or when the limb moved.
* Between frames stay gaps. A gap is bridged along the shortest of 13 straight lines between two seen voxels on either
  side, at most `bridge_mm` long, and its value is interpolated between them. Nothing is invented outside the sweep:
  filling by the nearest voxel would let it grow on all sides, and volumes with it.
* Labels are voted for by the pixels, with the same weights; equal votes go to the smaller id. Voxels that nobody saw
  get the ignore id: unknown is not background.

Frames are taken one at a time, and sums are over a box around the frame: memory is that of the volume and of one frame,
and the result does not depend on anything but the input. Sums are in float64 and rounded once, at the end.

The scheme is that of PLUS (Lasso et al., IEEE Trans Biomed Eng 61(10), 2014), which rounds its running mean to the
pixels' type after every pixel, so that late pixels that differ little are lost; tests measure how far that leads.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tfmuscle.volume import Geometry, Sweep, Volume

METHODS = ("linear", "nearest")
COMBINATIONS = ("mean", "max", "latest")
LARGEST_GRID = 1 << 28
"""More voxels than this are refused: five arrays of them would not fit into the memory of a workstation."""
_CHUNK = 1 << 18
_LEAST_WEIGHT = 1 / 256  # of one pixel; a voxel with less was only grazed, and its value lies almost a voxel away
_LINES = [step for step in itertools.product((0, 1, -1), repeat=3) if step > (0, 0, 0)]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Compound:
    """A volume made from a sweep.

    Attributes:
        image: `(I, J, K)` in the number type of the frames; 0 where nothing was seen.
        weight: `(I, J, K)` float32, how many pixels each voxel averages; 0 in bridged gaps.
        seen: `(I, J, K)` bool, seen or bridged.
    """

    image: Volume
    weight: np.ndarray
    seen: np.ndarray


def sweep_geometry(sweep: Sweep, spacing: float | tuple[float, float, float]) -> Geometry:
    """Returns the grid of `spacing` mm, along the axes of the frame of reference, that encloses all pixel centres.

    Raises:
        ValueError: the spacing is not positive, or so small that the grid has more than `LARGEST_GRID` voxels.
    """
    step = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    if not (np.isfinite(step) & (step > 0)).all():
        raise ValueError(f"a spacing is positive, in mm, not {spacing}")
    rows, columns = sweep.frames.shape[1:]
    corners = np.array([[row, column, 0, 1] for row in (0, rows - 1) for column in (0, columns - 1)], dtype=np.float64)
    places = (sweep.poses @ corners.T)[:, :3].transpose(0, 2, 1).reshape(-1, 3)
    low, high = places.min(axis=0), places.max(axis=0)
    shape = np.ceil((high - low) / step - 1e-6) + 1
    if shape.prod() > LARGEST_GRID:
        raise ValueError(
            f"{' x '.join(f'{size:,.0f}' for size in shape)} voxels of {' x '.join(f'{mm:g}' for mm in step)} mm; "
            f"at most {LARGEST_GRID:,} are possible, use a larger spacing"
        )
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = low
    return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def compound(
    sweep: Sweep,
    geometry: Geometry,
    *,
    method: str = "linear",
    combine: str = "mean",
    bridge_mm: float = 0.0,
    progress: Progress | None = None,
) -> Compound:
    """Puts every pixel of a sweep into a volume.

    Args:
        sweep: `(T, H, W)` frames and their poses.
        geometry: grid of the volume, e.g. from `sweep_geometry`; what lies outside is dropped.
        method: one of `METHODS`: how a pixel is spread over voxels.
        combine: one of `COMBINATIONS`: what several frames at one place become.
        bridge_mm: longest gap that is bridged, 0 for none; a little more than the distance between frames.
        progress: called with (frames done, frames in all, "").

    Raises:
        ValueError: an unknown method or combination, or a negative gap.
    """
    _check(method, METHODS, "method")
    _check(combine, COMBINATIONS, "combine")
    values, weights = np.zeros(geometry.shape), np.zeros(geometry.shape)
    rows, columns = np.indices(sweep.frames.shape[1:]).reshape(2, -1)
    to_index = np.linalg.inv(geometry.affine)
    for number, (frame, pose) in enumerate(zip(sweep.frames, sweep.poses, strict=True)):
        box, sums, weight = _splat(frame.ravel(), rows, columns, to_index @ pose, geometry.shape, method)
        _combine(values[box], weights[box], sums, weight, combine)
        if progress is not None:
            progress(number + 1, len(sweep.frames), "")
    seen = weights >= _LEAST_WEIGHT
    values[~seen], weights[~seen] = 0, 0
    if combine == "mean":
        np.divide(values, weights, out=values, where=seen)
    weight_map = weights.astype(np.float32)
    for holes, ahead, behind, nearness in _bridges(seen, geometry, bridge_mm):
        values.flat[holes] = nearness * values.flat[ahead] + (1 - nearness) * values.flat[behind]
        weights.flat[holes] = 1
    is_integer = np.issubdtype(sweep.frames.dtype, np.integer)
    image = (np.rint(values) if is_integer else values).astype(sweep.frames.dtype.newbyteorder("="))
    return Compound(Volume(image, geometry, sweep.source), weight_map, weights > 0)


def compound_labels(
    sweep: Sweep,
    labels: np.ndarray,
    geometry: Geometry,
    *,
    ignore: int,
    method: str = "linear",
    bridge_mm: float = 0.0,
    progress: Progress | None = None,
) -> Volume:
    """Puts labels drawn on frames into a volume, by vote.

    Args:
        sweep: the frames the labels were drawn on; only its poses matter.
        labels: `(T, H, W)` ids, one for every pixel of `sweep.frames`.
        geometry: grid of the result.
        ignore: id of voxels nobody saw, and of pixels nobody labelled; the latter do not vote.
        method: one of `METHODS`.
        bridge_mm: longest gap that is bridged, with the label of the nearer end.
        progress: called with (votes done, votes in all, "").

    Raises:
        ValueError: labels of another shape, ids that are no integers, an unknown method, or a negative gap.
    """
    _check(method, METHODS, "method")
    if labels.shape != sweep.frames.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels {labels.dtype} {labels.shape} do not fit {sweep.frames.shape} frames; use integer ids"
        )
    ids = [int(key) for key in np.unique(labels) if key != ignore]
    result = np.full(geometry.shape, ignore, dtype=np.min_scalar_type(max([ignore, *ids])))
    most, total = np.zeros(geometry.shape), np.zeros(geometry.shape)
    to_index = np.linalg.inv(geometry.affine)
    for done, key in enumerate(ids):
        votes = np.zeros(geometry.shape)
        for mask, pose in zip((frame == key for frame in labels), sweep.poses, strict=True):
            rows, columns = np.nonzero(mask)
            box, sums, _ = _splat(np.ones(len(rows)), rows, columns, to_index @ pose, geometry.shape, method)
            votes[box] += sums
        result[votes > most] = key
        np.maximum(most, votes, out=most)
        total += votes
        if progress is not None:
            progress(done + 1, len(ids), "")
    seen = total >= _LEAST_WEIGHT
    result[~seen] = ignore
    for holes, ahead, behind, nearness in _bridges(seen, geometry, bridge_mm):
        result.flat[holes] = np.where(nearness >= 0.5, result.flat[ahead], result.flat[behind])
    return Volume(result, geometry, sweep.source)


def _check(value: str, allowed: tuple[str, ...], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")


def _combine(values: np.ndarray, weights: np.ndarray, sums: np.ndarray, weight: np.ndarray, how: str) -> None:
    """Adds one frame's sums to the volume, in place; `max` and `latest` keep values, `mean` keeps sums."""
    if how == "mean":
        values += sums
    else:
        mean = np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0)
        keep = weight > 0 if how == "latest" else (weight > 0) & ((mean > values) | (weights == 0))
        values[keep] = mean[keep]
    weights += weight


def _splat(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], method: str
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """Spreads pixels over the voxels around them.

    Args:
        values: `(N,)` what the pixels hold.
        rows: `(N,)` where they are in the frame.
        columns: `(N,)` where they are in the frame.
        matrix: from (row, column, 0, 1) to voxel indices.
        shape: of the grid; what falls outside is dropped.
        method: one of `METHODS`.

    Returns:
        the box of voxels they touch, and in it the sums of weight times value and of weight.
    """
    place = matrix[:3, :1] * rows + matrix[:3, 1:2] * columns + matrix[:3, 3:]
    base = np.floor(place if method == "linear" else place + 0.5).astype(np.int64)
    size = np.array(shape)[:, np.newaxis]
    touches = ((base >= -1) & (base < size)).all(axis=0)
    base, place, values = base[:, touches], place[:, touches], values[touches]
    start = np.clip(base.min(axis=1, initial=shape[0] + shape[1] + shape[2]), 0, np.array(shape) - 1)
    box = np.clip(base.max(axis=1, initial=0) + 2, start + 1, shape) - start
    corners = list(np.ndindex(2, 2, 2)) if method == "linear" else [(0, 0, 0)]
    near, share = np.zeros((len(corners), len(values)), np.int64), np.ones((len(corners), len(values)))
    for number, corner in enumerate(corners):
        for axis in range(3):
            voxel = base[axis] + corner[axis]
            if method == "linear":
                share[number] *= np.maximum(0, 1 - np.abs(place[axis] - voxel))
            share[number] *= (voxel >= 0) & (voxel < shape[axis])
            near[number] = near[number] * box[axis] + np.clip(voxel - start[axis], 0, box[axis] - 1)
    weights = np.bincount(near.ravel(), share.ravel(), box.prod()).reshape(box)
    share *= values
    sums = np.bincount(near.ravel(), share.ravel(), box.prod()).reshape(box)
    return tuple(slice(a, a + n) for a, n in zip(start, box, strict=True)), sums, weights


def _bridges(
    seen: np.ndarray, geometry: Geometry, bridge_mm: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields, in pieces, holes between two seen voxels: flat positions of hole and both ends, nearness to the first.

    The shortest line wins, the first of `_LINES` among equals; nearness is 1 at the first end and 0 at the second.
    """
    if not 0 <= bridge_mm < np.inf:
        raise ValueError(f"a gap of {bridge_mm} mm cannot be bridged; use 0 or a positive length")
    lengths = [float(np.linalg.norm(geometry.affine[:3, :3] @ line)) for line in _LINES]
    reach = int(bridge_mm / min(lengths) + 1e-6)
    if reach < 2:
        return
    nearby = ndimage.maximum_filter(seen, size=2 * reach - 1, mode="constant") & ~seen
    all_holes = np.flatnonzero(nearby)
    for first in range(0, len(all_holes), _CHUNK):
        holes = all_holes[first : first + _CHUNK]
        shortest = np.full(len(holes), np.inf)
        ends = np.zeros((2, len(holes)), np.int64)
        nearness = np.zeros(len(holes))
        for line, length in zip(_LINES, lengths, strict=True):
            steps = int(bridge_mm / length + 1e-6)
            ahead, to_ahead = _first_seen(seen, holes, np.array(line), steps - 1)
            behind, to_behind = _first_seen(seen, holes, -np.array(line), steps - 1)
            total = to_ahead + to_behind
            better = (total <= steps) & (total * length < shortest - 1e-9)
            shortest[better] = total[better] * length
            ends[:, better] = ahead[better], behind[better]
            nearness[better] = to_behind[better] / total[better]
        found = np.isfinite(shortest)
        yield holes[found], ends[0, found], ends[1, found], nearness[found]


def _first_seen(seen: np.ndarray, holes: np.ndarray, line: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the flat position of the first seen voxel along a line, and after how many steps (infinite: none)."""
    place = np.stack(np.unravel_index(holes, seen.shape))
    found, distance = np.zeros(len(holes), np.int64), np.full(len(holes), np.inf)
    waiting = np.arange(len(holes))
    for step in range(1, steps + 1):
        there = place[:, waiting] + step * line[:, np.newaxis]
        inside = ((there >= 0) & (there < np.array(seen.shape)[:, np.newaxis])).all(axis=0)
        waiting, there = waiting[inside], there[:, inside]
        flat = np.ravel_multi_index(tuple(there), seen.shape)
        hit = seen.flat[flat]
        found[waiting[hit]], distance[waiting[hit]] = flat[hit], step
        waiting = waiting[~hit]
    return found, distance
