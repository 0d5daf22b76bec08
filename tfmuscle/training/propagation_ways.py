"""A training scan as a way from slice to slice: what each window sees, and which of its slices count as drawn.

A structure is followed from the first slice on which it is drawn and has more than `smallest` pixels: of an empty mask
a network that knows no classes could not tell what it shall find. The next slices, as many as a window has, are drawn
too if they are labelled; where they are not, the last drawn one stands for them. From there every structure goes to the
end of the scan, also where it has ended before: that it ends is to be learned. With mode `tbptt` a structure begins
with the first chunk of windows that begins on it.

A slice counts as labelled when no voxel of it has the ignore id. Images and labels stay as they are in the record, in
16 bits; only windows are cut to size and made float32.

Several scans can be gone through side by side: their structures are further samples of the same batch, and a shorter
one ends with the last whole chunk it has. Windows of one scan after another are much alike; of several they are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec, Propagation
from tfmuscle.errors import DataError
from tfmuscle.inference.propagation import framed
from tfmuscle.labels import IGNORE
from tfmuscle.records import Scan
from tfmuscle.training.annotation import drawn_slices
from tfmuscle.training.propagation_steps import Chunk, Windows


@dataclass(frozen=True, eq=False)
class Way:
    """A scan and what is known of it.

    Attributes:
        images: `(N, H, W)`.
        labels: `(N, H, W)` class indices with `IGNORE`.
        classes: structures, in the order in which they begin.
        starts: the slice each begins on.
        references: how many slices each begins with are drawn, 1 to w.
        drawn: `(N,)` bool, slices drawn besides those.
        windows: from the first start to the end.
        begun: `(S, w, H, W, 1)` float32 masks of the windows' size to begin with, if not those that are drawn.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[int, ...]
    starts: tuple[int, ...]
    references: tuple[int, ...]
    drawn: np.ndarray
    windows: int
    begun: np.ndarray | None = None

    def active(self, chunk: Chunk) -> int:
        """Returns how many structures have begun; none when fewer windows are left than the chunk has."""
        if chunk.first + chunk.count > self.windows:
            return 0
        return sum(start <= self.starts[0] + chunk.first for start in self.starts)


def way_of(
    scan: Scan,
    spec: DataSpec,
    settings: Propagation,
    classes: Sequence[int],
    *,
    subject: int,
    draws: Sequence[float] = (1.0, 1.0, 0.0),
) -> Way | None:
    """Returns the way through a scan, or None where none of the structures is on it.

    Whatever part of a scan is gone through, and whichever way, the same slices are drawn.

    Args:
        scan: from `records.read_scan`.
        spec: of the windows.
        settings: which slices count as drawn.
        classes: the structures to follow.
        subject: number in the order of decreasing drawn slices.
        draws: three numbers from 0 to below 1, for `reverse`, `mirror` and the first of `slices`.

    Raises:
        DataError: fewer slices than a window has.
    """
    count, width = len(scan.labels), spec.depth
    if count < width:
        raise DataError(
            f"{scan.subject_id}: {count} slices, but a window has {width}; leave the scan out, or build records with a"
            " smaller --window"
        )
    part, turn = _part(count, settings, draws), slice(None, None, -1 if draws[1] < settings.mirror else 1)
    images, labels = (array[part][..., turn] for array in (scan.image[..., 0], scan.labels))
    labelled = np.array([(plane != IGNORE).all() for plane in labels])
    drawn = drawn_slices(count, subject, settings)[part] & labelled
    count = len(labels)
    areas = np.array([[np.count_nonzero(plane == number) for plane in labels] for number in classes])
    begins = (areas > settings.smallest) & labelled
    begins = begins[:, : count - width + 1]
    if not begins.any():
        return None
    first = int(begins.any(axis=0).argmax())
    pace = settings.through if settings.mode == "tbptt" else 1
    begun = sorted(
        (first + pace * int(row[first::pace].argmax()), number)
        for number, row in zip(classes, begins, strict=True)
        if row[first::pace].any()
    )
    starts = tuple(start for start, _ in begun)
    references = tuple(int(np.cumprod(labelled[start : start + width]).sum()) for start in starts)
    windows = count - width + 1 - starts[0]
    return Way(images, labels, tuple(number for _, number in begun), starts, references, drawn, windows)


def _part(count: int, settings: Propagation, draws: Sequence[float]) -> slice:
    """Returns which slices are gone through, and in which direction."""
    length = min(settings.slices or count, count)
    first = int(draws[2] * (count - length + 1))
    if draws[0] < settings.reverse:
        return slice(first + length - 1, first - 1 if first else None, -1)
    return slice(first, first + length)


def windows_of(ways: Sequence[Way], chunk: Chunk, spec: DataSpec, settings: Propagation) -> Windows:
    """Returns what a chunk of windows is learned from: the structures of all ways that are not at their end."""
    parts = [_windows(way, chunk, spec, settings) for way in ways if way.active(chunk)]
    along = {item.name: 0 if item.name.startswith("first") else 1 for item in fields(Windows)}
    return Windows(
        **{name: np.concatenate([getattr(part, name) for part in parts], axis=axis) for name, axis in along.items()}
    )


def _windows(way: Way, chunk: Chunk, spec: DataSpec, settings: Propagation) -> Windows:
    active, first = way.active(chunk), way.starts[0] + chunk.first
    places = range(first, first + chunk.count)
    slices = np.add.outer(np.arange(first, first + chunk.count), np.arange(spec.depth))  # (k, w)
    starts, ends = (np.array(values)[:active] for values in (way.starts, np.add(way.starts, way.references)))
    references = (slices[:, None] >= starts[:, None]) & (slices[:, None] < ends[:, None])
    drawn = references | way.drawn[slices][:, None]
    refreshed = (np.arange(chunk.first, chunk.first + chunk.count) + 1) % settings.refresh == 0
    kept = references if settings.feedback == "predicted" else references | drawn & refreshed[:, None, None]
    return Windows(
        np.stack([np.stack([_seen(way, place, spec)] * active) for place in places]),
        np.stack([_masks(way, place, spec, active) for place in places]),
        drawn,
        kept,
        np.stack([_seen(way, start, spec) for start in starts]),
        np.stack([_begun(way, number, spec) for number in range(active)]),
    )


def fed_to(ways: Sequence[Way], chunk: Chunk, before: Chunk | None, spec: DataSpec, fed: tf.Tensor | None) -> tf.Tensor:
    """Returns the masks `(S, w, H, W, 1)` to feed to a chunk: of the window before, or drawn where a structure begins.

    Args:
        ways: the scans.
        chunk: the next one.
        before: the one before it, if there is one.
        spec: of the windows.
        fed: masks that the chunk before would hand on.
    """
    parts, place = [], 0
    for way in ways:
        had, active = 0 if before is None else way.active(before), way.active(chunk)
        if had and active:
            parts.append(fed[place : place + had])
        if active > had:
            parts.append(tf.constant(np.stack([_begun(way, number, spec) for number in range(had, active)])))
        place += had
    return tf.concat(parts, axis=0)


def _seen(way: Way, place: int, spec: DataSpec) -> np.ndarray:
    images = way.images[place : place + spec.depth].astype(np.float32)
    return framed(images, spec.size, images.min())[..., np.newaxis]


def _begun(way: Way, number: int, spec: DataSpec) -> np.ndarray:
    """Returns the masks `(w, H, W, 1)` that a structure begins with, the last drawn one repeated."""
    if way.begun is not None:
        return way.begun[number]
    masks, drawn = _masks(way, way.starts[number], spec, number + 1)[number], way.references[number]
    masks[drawn:] = masks[drawn - 1]
    return masks


def _masks(way: Way, place: int, spec: DataSpec, active: int) -> np.ndarray:
    labels = framed(way.labels[place : place + spec.depth], spec.size, 0)
    return np.stack([labels == number for number in way.classes[:active]]).astype(np.float32)[..., np.newaxis]
