"""What carries masks from slice to slice, and the loop that leads it along a way: `Carrier`, `carry`.

A *way* is a row of slices that begins with drawn ones. A window of w slices moves along it, one slice a step. At each
place the carrier sees the images of the window and the masks of the window before, and says the masks of this one:

    images:     t .. t+w-1
    masks fed:  the drawn slices at t = 0, later the result of window t-1, position by position (one slice behind)
    result:     masks of t .. t+w-1

Slice t takes position 0 of window t (`fuse="first"`), the last window gives all its slices; `fuse="mean"` averages the
windows that saw a slice. Where the first window lies on drawn slices its result is replaced by them before it is fed
on: they are known, and networks learn it so. No later drawn slice is ever looked at: what arrives at one is a finding.

All that going on needs is a `State`, so that a way can be left after any window and taken up again to the last bit.

Registration has w = 2 and one drawn slice: its result is (masks[1], masks[1] moved from image t to image t+1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From images `(w, H, W)` of a window and the masks fed `(w, H, W, S)` to the masks `(w, H, W, S)` of that window."""
FUSIONS = ("first", "mean")


@dataclass(frozen=True)
class Carrier:
    """Carries masks from slice to slice. Images and masks are float32, masks 0 to 1, one channel a structure.

    Attributes:
        window: slices that a step sees, w.
        starts: drawn slices it can start from, at most; 1 to w.
        begin: called with the images `(w, H, W)` and the masks `(w, H, W, S)` a way begins with, each time a way is
            begun or taken up again; returns the step.
    """

    window: int
    starts: int
    begin: Callable[[np.ndarray, np.ndarray], Step]

    def __post_init__(self) -> None:
        if self.window < 1 or not 1 <= self.starts <= self.window:
            raise ValueError(f"a window of {self.window} slices that starts from {self.starts}: needed is 1 to window")


@dataclass(frozen=True, eq=False)
class State:
    """How far a way was gone.

    Attributes:
        windows: done so far.
        masks: `(w, H, W, S)` to feed to the next window.
        sums: `(w, H, W, S)` of all results of the slices from the next window on; None unless they are averaged.
    """

    windows: int
    masks: np.ndarray
    sums: np.ndarray | None = None


def window_count(slices: int, window: int) -> int:
    """Returns how many windows lie on a way.

    Raises:
        ValueError: the way is shorter than the window.

    >>> window_count(1400, 3)
    1398
    """
    if slices < window:
        raise ValueError(f"{slices} slices, but a window needs {window}; take a longer way or a smaller window")
    return slices - window + 1


def starting_masks(carrier: Carrier, drawn: np.ndarray) -> np.ndarray:
    """Returns the masks `(w, H, W, S)` of the first window: the drawn slices, the last one repeated.

    Args:
        carrier: says how many are needed.
        drawn: `(n, H, W, S)`, the first slices of the way.

    Raises:
        ValueError: none is drawn, or more than the carrier starts from.
    """
    if not 1 <= len(drawn) <= carrier.starts:
        raise ValueError(f"{len(drawn)} drawn slices; 1 to {carrier.starts} can be started from")
    return np.concatenate([drawn, np.repeat(drawn[-1:], carrier.window - len(drawn), axis=0)]).astype(np.float32)


def carry(
    carrier: Carrier, images: np.ndarray, drawn: np.ndarray, *, fuse: str = "first", state: State | None = None
) -> Iterator[tuple[np.ndarray, State]]:
    """Carries masks along a way; yields after every window what is settled, and where to go on.

    What is yielded are the masks `(k, H, W, S)` of the next k slices, from the first of the way on: one slice after
    each window, w after the last.

    Args:
        carrier: what carries them.
        images: `(T, H, W)` of the way; read window by window, so that it may lie on disk.
        drawn: `(n, H, W, S)` masks of its first slices.
        fuse: one of `FUSIONS`.
        state: where to go on; from the start if not given.

    Raises:
        ValueError: fewer slices than a window has, an unknown fusion, or a step that returns another shape.
    """
    if fuse not in FUSIONS:
        raise ValueError(f"fuse is {fuse!r}; choose one of {', '.join(FUSIONS)}")
    width, count = carrier.window, window_count(len(images), carrier.window)
    start = starting_masks(carrier, drawn)
    step = carrier.begin(_floats(images[:width]), start)
    state = State(0, start, np.zeros_like(start) if fuse == "mean" else None) if state is None else state
    for place in range(state.windows, count):
        found = np.asarray(step(_floats(images[place : place + width]), state.masks), dtype=np.float32)
        if found.shape != start.shape:
            raise ValueError(f"a step returned masks of shape {found.shape}; it was given {start.shape}")
        settled, sums = _settled(found, state.sums, place, is_last=place == count - 1)
        known = max(0, len(drawn) - place)
        masks = np.concatenate([start[place : place + known], found[known:]]) if known else found
        state = State(place + 1, masks, sums)
        yield settled, state


def _settled(
    found: np.ndarray, sums: np.ndarray | None, place: int, *, is_last: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the masks of slices that no later window sees, and the sums of the others."""
    if sums is None:
        return (found if is_last else found[:1]), None
    sums = sums + found
    width = len(found)
    windows = np.minimum(place + 1, width - np.arange(width)).reshape(-1, 1, 1, 1)  # that saw each slice, so far
    settled = sums / windows if is_last else sums[:1] / windows[:1]
    return settled.astype(np.float32), np.concatenate([sums[1:], np.zeros_like(sums[:1])])


def _floats(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images, dtype=np.float32)
