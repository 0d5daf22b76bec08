"""From a preprocessed volume to samples and back: `cut` and `stitch` share a file because each must undo the other.

Terms. A *window* is the box `(depth, height, width)` that one sample covers on the preprocessed grid; its *start* is
the index of its first voxel. Windows of one axis are evenly spaced, the first begins at 0 and the last ends at the
end (the rule of nnU-Net). Where the volume is smaller than the window, the single window is centred on it and starts
at a negative index: image voxels outside take the channel's minimum (air), labels outside are `IGNORE`, and `stitch`
drops what lies outside.

The user chooses kind, size, depth and overlap in the `DataSpec`; the data decides how many windows there are.
`slices` take every slice; `stacks` too, with the neighbours as further channels, slice-major (slice 0 channel 0,
slice 0 channel 1, slice 1 channel 0, ...) and clamped at the ends; `sequences` move by one slice; `volumes` move by
`1 - overlap` along all axes. In-plane, every kind moves by `1 - overlap`. The start of a slice or stack is that of
its *labelled* slice.

Records of random patches hold whole scans, and training draws a new start for each sample (`training/patches.py`); the
grid decides what validation sees.

Overlapping predictions are averaged with Gaussian weights, for a network knows least at the border of its window. With
`blend="logits"` the logarithms of the probabilities are averaged and the softmax of that is handed out, as nnU-Net does
with the outputs before its softmax: these are the logarithms up to a number that all classes of a voxel share, and a
softmax does not see it. One window that is sure then outvotes several that hesitate.
Stitching is a stream: rows of axis 0 that no later window touches are handed out at once, so that memory holds one
window depth, however long the limb. Padding the whole volume first was rejected, because it copies the volume.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE

SIGMA_PER_WINDOW = 1 / 8
"""Standard deviation of the blending weights as a share of the window (nnU-Net)."""
SMALLEST_PROBABILITY = 1e-7
"""Probabilities below this count as this much where logarithms are averaged: about what float32 can tell from zero."""
_ROUNDING = 1e-9
"""Keeps 10 * (1 - 0.9) from becoming 0.9999..."""
_BLOCK_SLICES = 4
"""Slices handed over at once by a `Stitcher`."""


def window_starts(size: int, window: int, step: int) -> list[int]:
    """Returns the first voxels of evenly spaced windows that cover an axis.

    `ceil((size - window) / step) + 1` windows, spaced evenly and rounded, so that the first begins at 0, the last
    ends at `size` and neighbours are at most `step` voxels apart (after rounding); `[0]` when one window covers the
    axis. Isensee et al. 2021.

    Raises:
        ValueError: a size, window or step below one voxel.

    >>> window_starts(110, 64, 32)
    [0, 23, 46]
    """
    if min(size, window, step) < 1:
        raise ValueError(f"size {size}, window {window} and step {step} must be at least 1 voxel")
    if size <= window:
        return [0]
    gaps = math.ceil((size - window) / step)
    return [round((size - window) * number / gaps) for number in range(gaps + 1)]


def window_origins(shape: tuple[int, ...], spec: DataSpec) -> list[tuple[int, int, int]]:
    """Returns the start `(d, h, w)` of every sample of a volume `(D, H, W)`, in the order of `cut`.

    A start is negative by half the padding where the volume is smaller than the window.
    """
    slices, rows, columns = _axis_starts(shape, spec)
    return list(itertools.product(slices, rows, columns))


def cut(image: np.ndarray, labels: np.ndarray | None, spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the samples of a preprocessed volume, ordered by start.

    Args:
        image: `(D, H, W, C)`.
        labels: class indices `(D, H, W)` with `IGNORE`, or None when nothing is known (prediction).
        spec: kind, size, depth and overlap of the samples.

    Yields:
        `image` float32 of `spec.input_shape`; `labels` int16 of `spec.label_shape`, if given; `start` `(d, h, w)`.

    Raises:
        ValueError: the arrays do not fit each other or the spec.
    """
    if image.ndim != 4 or image.shape[3] != spec.num_channels:
        prior = " and the prior's structures" if spec.prior else ""
        raise ValueError(
            f"image has shape {image.shape}; (D, H, W, {spec.num_channels}) is needed for {spec.channels}{prior}"
        )
    if labels is not None and labels.shape != image.shape[:3]:
        raise ValueError(f"labels have shape {labels.shape}; the image needs {image.shape[:3]}")
    return _cut(image, labels, spec)


def air_of(image: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Returns what lies outside an image `(D, H, W, C)`, per channel: its minimum; for the prior's channels 0."""
    air = image.min(axis=(0, 1, 2)).astype(np.float32)
    air[len(spec.channels) :] = 0
    return air


def sample_at(
    image: np.ndarray, labels: np.ndarray | None, start: tuple[int, ...], spec: DataSpec, air: np.ndarray
) -> dict[str, Any]:
    """Returns the sample that begins at `start`, which may be negative, as `cut` yields it.

    Args:
        image: `(D, H, W, C)`, of any floating type.
        labels: `(D, H, W)` class indices, or None.
        start: first voxel `(d, h, w)` of the labels' window.
        spec: kind, size and depth of the sample.
        air: what lies outside the image, from `air_of`.
    """
    sample: dict[str, Any] = {"start": start}
    if spec.kind == "stacks":
        sample["image"] = _stack(image, start, spec, air)
    else:
        pixels = _window(image, start, label_window(spec), air)
        sample["image"] = pixels.astype(np.float32, copy=False).reshape(spec.input_shape)
    if labels is not None:
        window = _window(labels, start, label_window(spec), IGNORE, dtype=np.int16)
        sample["labels"] = window.reshape(spec.label_shape)
    return sample


def stitch(shape: tuple[int, ...], spec: DataSpec, num_classes: int) -> "Stitcher":
    """Returns a `Stitcher` that joins the predictions of all samples of a volume `(D, H, W)`."""
    return Stitcher(shape, spec, num_classes)


class Stitcher:
    """Joins windows of probabilities into slabs of slices, in one pass and in the memory of one window depth.

    A class, because it holds what is not yet final: the weighted sum and the weights of the slices that a coming
    window may still touch. Go through the windows in the order of `cut`, take the slices that are final before adding
    each, then close:

        stitcher = stitch(image.shape[:3], spec, spec.num_classes)
        for sample in cut(image, None, spec):
            for first_slice, block in stitcher.until(sample["start"]):
                ...
            stitcher.add(sample["start"], predict(sample["image"]))
        for first_slice, block in stitcher.close():
            ...

    Blocks are a few slices thick, so that handing them over does not need the window depth a second time.
    """

    def __init__(self, shape: tuple[int, ...], spec: DataSpec, num_classes: int) -> None:
        self._shape = tuple(shape)
        self._window = label_window(spec)
        self._logarithms = spec.blend == "logits"
        self._weights = window_weights(shape, spec)
        rows = min(self._window[0], self._shape[0])
        self._sum = np.zeros((rows, *self._shape[1:], num_classes), dtype=np.float32)
        self._weight = np.zeros((rows, *self._shape[1:]), dtype=np.float32)
        self._first = 0  # slice of the volume that row 0 of the sums stands for
        self._last_row = 0

    def add(self, start: tuple[int, int, int], probabilities: np.ndarray) -> None:
        """Adds one window.

        Args:
            start: where the sample began; its slice must not lie before that of an earlier call.
            probabilities: `(*spec.label_shape, num_classes)`.

        Raises:
            ValueError: wrong shape, a window before an earlier one or outside the volume, or slices left without a
            window.
        """
        num_classes = self._sum.shape[-1]
        if probabilities.size != math.prod(self._window) * num_classes or probabilities.shape[-1] != num_classes:
            raise ValueError(
                f"probabilities have shape {probabilities.shape}; {(*self._window, num_classes)} is needed"
            )
        row = max(start[0], 0)
        if row < self._last_row:
            raise ValueError(
                f"window at slice {row} after one at slice {self._last_row}; add windows in the order of cut"
            )
        if any(not -w < s < n for s, w, n in zip(start, self._window, self._shape, strict=True)):
            raise ValueError(f"window at {tuple(start)} lies outside the volume {self._shape}")
        if row > self._first:
            raise ValueError(f"slices {self._first} to {row - 1} are final; take them by until({tuple(start)}) first")
        self._last_row = row
        inside, outside = overlap_of(start, self._window, self._shape)
        target = (slice(inside[0].start - self._first, inside[0].stop - self._first), *inside[1:])
        weights = self._weights[outside]
        values = probabilities.reshape(*self._window, num_classes)[outside]
        if self._logarithms:
            values = np.log(np.maximum(values, SMALLEST_PROBABILITY))
        self._sum[target] += weights[..., np.newaxis] * values
        self._weight[target] += weights

    def until(self, start: tuple[int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields `(first_slice, probabilities (d, H, W, C))` of the slices that windows from `start` on do not touch.

        Raises:
            ValueError: a window before it was never added.
        """
        yield from self._take(max(start[0], 0))

    def close(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the slices that are left.

        Raises:
            ValueError: a window was never added.
        """
        yield from self._take(self._shape[0])

    def _take(self, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the slices from the first one held to `stop` as weighted means, then forgets them."""
        first, count = self._first, stop - self._first
        if count <= 0:
            return
        if count > len(self._sum) or not self._weight[:count].all():
            raise ValueError(
                f"slices {first} to {stop - 1} are not covered by the windows added; add every window of cut"
            )
        for row in range(0, count, _BLOCK_SLICES):
            block = slice(row, min(row + _BLOCK_SLICES, count))
            mean = self._sum[block] / self._weight[block, ..., np.newaxis]
            yield first + row, _softmax(mean) if self._logarithms else mean
        for row in range(count, len(self._sum)):  # row by row, because one overlapping copy would need the memory twice
            self._sum[row - count] = self._sum[row]
            self._weight[row - count] = self._weight[row]
        self._sum[len(self._sum) - count :] = 0
        self._weight[len(self._weight) - count :] = 0
        self._first = stop


def label_window(spec: DataSpec) -> tuple[int, int, int]:
    """Returns the window of a sample's labels: one slice for slices and stacks."""
    return spec.window if spec.is_volumetric else (1, *spec.size)


def window_steps(spec: DataSpec) -> tuple[int, int, int]:
    """Returns by how many voxels neighbouring windows lie apart at most: one slice, unless samples are volumes."""
    steps = [max(1, math.floor(length * (1 - spec.overlap) + _ROUNDING)) for length in label_window(spec)]
    return (steps[0] if spec.kind == "volumes" else 1), steps[1], steps[2]


def window_weights(shape: tuple[int, ...], spec: DataSpec) -> np.ndarray:
    """Returns the blending weight of each voxel of a window of a volume `shape`: `label_window(spec)`, peak 1.

    A product of `exp(-(i - (n - 1) / 2)² / (2 (n / 8)²))` over the axes that have several windows; at least
    `exp(-8)` per axis, so never zero.
    """
    window, starts = label_window(spec), _axis_starts(shape, spec)
    weights = np.ones(window)
    for axis, (length, several) in enumerate(zip(window, starts, strict=True)):
        if len(several) > 1 and length > 1:
            distance = (np.arange(length) - (length - 1) / 2) / (length * SIGMA_PER_WINDOW)
            bell = np.exp(-0.5 * distance**2)
            weights *= (bell / bell.max()).reshape([-1 if other == axis else 1 for other in range(3)])
    return weights.astype(np.float32)


def overlap_of(
    start: tuple[int, ...], window: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], ...]:
    """Returns the part of a window inside the volume: as slices of the volume, and as slices of the window."""
    inside, outside = [], []
    for first, length, size in zip(start, window, shape, strict=True):
        low, high = max(first, 0), min(first + length, size)
        inside.append(slice(low, high))
        outside.append(slice(low - first, high - first))
    return tuple(inside), tuple(outside)


def _axis_starts(shape: tuple[int, ...], spec: DataSpec) -> list[list[int]]:
    """Returns the window starts of each axis, centred on an axis that is smaller than the window."""
    return [
        window_starts(size, length, step) if size >= length else [-((length - size) // 2)]
        for size, length, step in zip(shape, label_window(spec), window_steps(spec), strict=True)
    ]


def _cut(image: np.ndarray, labels: np.ndarray | None, spec: DataSpec) -> Iterator[dict[str, Any]]:
    air = air_of(image, spec)
    for start in window_origins(image.shape[:3], spec):
        yield sample_at(image, labels, start, spec, air)


def _stack(image: np.ndarray, start: tuple[int, ...], spec: DataSpec, air: np.ndarray) -> np.ndarray:
    """Returns the slices around `start[0]` as channels `(H, W, depth * C)`; beyond an end, the end slice."""
    neighbours = np.clip(np.arange(spec.depth) + start[0] - spec.depth // 2, 0, len(image) - 1)
    planes = [_window(image, (int(z), *start[1:]), (1, *spec.size), air)[0] for z in neighbours]
    return np.concatenate(planes, axis=-1).astype(np.float32, copy=False)


def _window(
    array: np.ndarray, start: tuple[int, ...], window: tuple[int, ...], fill: Any, dtype: Any = None
) -> np.ndarray:
    """Returns a copy of `array[start : start + window]`, filled with `fill` where it lies outside."""
    inside, outside = overlap_of(start, window, array.shape[:3])
    result = np.empty((*window, *array.shape[3:]), dtype=dtype or array.dtype)
    result[...] = fill
    result[outside] = array[inside]
    return result


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)
