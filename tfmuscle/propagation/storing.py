"""What is kept of a propagation, so that nothing is done twice: filled stretches, and ways on which one is.

    <state>/<key>.npz        a filled stretch: its labels, each opinion of it, and what arrived at its ends
    <state>/<key>_forward/   a way that is not yet at its end: its masks in chunks, and where to go on
    <state>/<key>_backward/

A key stands for all that a result follows from: the scan, the method, the drawn slices at the ends. So a call after an
interruption and a call after a correction are one thing: what has its file is there, the rest is to be done. Masks are
kept in 8 bits, cut to where they are not 0; the masks that are fed on are kept as they are, so that an interruption
changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.propagation.carriers import State

CHUNK = 50
"""Slices of a way that are written at once."""


@dataclass(frozen=True, eq=False)
class Filled:
    """What was made of a stretch.

    Attributes:
        ids: `(n, H, W)` of its slices.
        opinions: direction -> the ids `(n, H, W)` that way alone gives; empty for methods that fill.
        arrived: direction -> the ids `(H, W)` that arrived at the drawn slice at the end of that way.
    """

    ids: np.ndarray
    opinions: Mapping[str, np.ndarray] = field(default_factory=dict)
    arrived: Mapping[str, np.ndarray] = field(default_factory=dict)


def save_filled(path: Path, filled: Filled) -> None:
    """Writes a filled stretch, whole or not at all."""
    arrays = {"ids": filled.ids}
    arrays |= {f"opinion_{name}": array for name, array in filled.opinions.items()}
    arrays |= {f"arrived_{name}": array for name, array in filled.arrived.items()}
    packed = {}
    for name, array in arrays.items():
        packed[name], packed[f"{name}_box"] = _packed(array)
    _write(path, **packed)


def load_filled(path: Path) -> Filled | None:
    """Reads a filled stretch; None if it is not there, or damaged."""
    arrays = _read(path)
    if arrays is None:
        return None
    whole = {name: _unpacked(array, arrays[f"{name}_box"]) for name, array in arrays.items() if name[-4:] != "_box"}
    parts = [
        {name.removeprefix(kind): array for name, array in whole.items() if name.startswith(kind)}
        for kind in ("opinion_", "arrived_")
    ]
    return Filled(whole["ids"], *parts)


class WayStore:
    """The masks of one way on disk, slice by slice.

    Args:
        folder: to hold it; what an interrupted call left there is gone on with.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chunks: list[int] = []
        self._waiting: list[np.ndarray] = []
        self._state: State | None = None
        self._open: tuple[int, np.ndarray] | None = None
        found = _read(folder / "state.npz")
        if found is not None:
            self._chunks = found["chunks"].tolist()
            sums = found["sums"] if len(found["sums"]) else None
            self._state = State(int(found["windows"]), found["masks"], sums)

    def __len__(self) -> int:
        return sum(self._chunks) + sum(map(len, self._waiting))

    @property
    def state(self) -> State | None:
        """Where to go on."""
        return self._state

    def append(self, masks: np.ndarray, state: State) -> None:
        """Adds the masks `(k, H, W, S)`, 0 to 1, of the next slices, and where to go on after them."""
        self._waiting.append(np.rint(masks * 255).astype(np.uint8))
        self._state = state
        if sum(map(len, self._waiting)) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if not self._waiting or self._state is None:
            return
        masks = np.concatenate(self._waiting)
        array, box = _packed(masks)
        _write(self._folder / f"{len(self._chunks):05d}.npz", masks=array, masks_box=box)
        sums = np.zeros(0, np.float32) if self._state.sums is None else self._state.sums
        chunks = np.array([*self._chunks, len(masks)])
        _write(
            self._folder / "state.npz", chunks=chunks, windows=np.array(self._state.windows), masks=self._state.masks,
            sums=sums,
        )  # fmt: skip
        self._chunks.append(len(masks))
        self._waiting = []

    def __getitem__(self, place: int) -> np.ndarray:
        """Returns the masks `(H, W, S)` uint8 of a slice that is written; neighbours are read with it."""
        ends = np.cumsum(self._chunks)
        number = int(np.searchsorted(ends, place, side="right"))
        if self._open is None or self._open[0] != number:
            found = _read(self._folder / f"{number:05d}.npz")
            if found is None:
                raise DataError(f"{self._folder}: {number:05d}.npz is damaged; remove this folder and run again")
            self._open = number, _unpacked(found["masks"], found["masks_box"])
        return self._open[1][place - int(ends[number]) + self._chunks[number]]


def _write(path: Path, **arrays: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Reads arrays; None if there are none, or they cannot be read: then they are to be made anew."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None


def _packed(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is not 0, and where it lies: shape, then the first and last place of every axis."""
    box = []
    for axis in range(array.ndim):
        where = np.flatnonzero(array.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        box.append((int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0))
    part = array[tuple(slice(first, stop) for first, stop in box)]
    return part, np.array([array.shape, *zip(*box, strict=True)])


def _unpacked(part: np.ndarray, box: np.ndarray) -> np.ndarray:
    shape, first, stop = box
    array = np.zeros(shape, part.dtype)
    array[tuple(slice(a, b) for a, b in zip(first, stop, strict=True))] = part
    return array
