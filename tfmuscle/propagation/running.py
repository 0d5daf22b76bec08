"""A scan is filled, stretch by stretch: `fill_stretch`, `labels_of`.

Between two anchors both ways speak of every slice. Their probabilities are averaged with weights that are linear in
the distance to the anchors; where only one way comes it is believed. A pixel belongs to the structure of the largest
probability, if that is a half at least (of equal ones the first): structures that were carried independently meet
there.

Rejected, on the phantoms of `flow.py` with three drawn slices (Dice between them; 0.973 as it is): blending the signed
distances of both ways (0.970 to 0.973), and weights that also say how well each way arrived (0.971).
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.propagation.carriers import carry
from tfmuscle.propagation.methods import Method
from tfmuscle.propagation.storing import Filled, WayStore, load_filled, save_filled
from tfmuscle.propagation.stretches import Stretch, Way, way_of

DIRECTIONS = ("both", "forward", "backward")
Tick = Callable[[int], None]
_HALF = 127.5


@dataclass(frozen=True, eq=False)
class Job:
    """What all stretches of a scan have in common.

    Attributes:
        method: fills them.
        images: returns the images `(N, H, W)`; called when something is to be done.
        drawn: `(N, H, W)` ids; only drawn slices are looked at.
        keys: ids of the structures.
        scan: digest of the scan.
        folder: where results are kept.
        direction: one of `DIRECTIONS`; methods that fill know "both" only.
        fuse: of windows, see `carriers.py`.
    """

    method: Method
    images: Callable[[], np.ndarray]
    drawn: np.ndarray
    keys: tuple[int, ...]
    scan: str
    folder: Path
    direction: str = "both"
    fuse: str = "first"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction is {self.direction!r}; choose one of {', '.join(DIRECTIONS)}")
        if self.direction != "both" and self.method.carrier is None:
            raise ValueError(
                f"direction is {self.direction}, but {self.method.name} looks at both ends at once; leave it out"
            )


def work(job: Job, stretch: Stretch) -> int:
    """Returns how many slices are to be gone through for a stretch."""
    if job.method.carrier is None:
        return len(stretch.slices)
    return sum(way.wanted for way in _ways(job, stretch).values())


def path_of(job: Job, stretch: Stretch) -> Path:
    """Returns where the result of a stretch is kept."""
    ends = []
    for anchor, near in ((stretch.before, -1), (stretch.after, 1)):
        if anchor is not None:
            starts = 1 if job.method.carrier is None else job.method.carrier.starts
            slices = range(anchor.first, anchor.last + 1)
            used = list(slices[-starts:] if near == -1 else slices[:starts])
            planes = np.ascontiguousarray(job.drawn[used].astype(np.int64))
            ends.append([near, used, hashlib.sha256(planes.tobytes()).hexdigest()])
    about = {
        "scan": job.scan, "method": job.method.name, "settings": dict(job.method.about), "keys": job.keys,
        "direction": job.direction, "fuse": job.fuse, "slices": [stretch.first, stretch.last], "ends": ends,
    }  # fmt: skip
    return job.folder / f"{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]}.npz"


def fill_stretch(job: Job, stretch: Stretch, tick: Tick | None = None) -> Filled:
    """Returns what the method makes of a stretch, from its file if it was made before.

    Args:
        job: method, images and drawn slices.
        stretch: to be filled.
        tick: called with the number of slices that were gone through since the last call.
    """
    path, say = path_of(job, stretch), tick or (lambda count: None)
    if (found := load_filled(path)) is not None:
        say(work(job, stretch))
        return found
    filled = _filled(job, stretch, say) if job.method.carrier is None else _carried(job, stretch, path, say)
    save_filled(path, filled)
    for way in ("forward", "backward"):
        shutil.rmtree(path.with_name(f"{path.stem}_{way}"), ignore_errors=True)
    return filled


def _filled(job: Job, stretch: Stretch, tick: Tick) -> Filled:
    before, after = stretch.before, stretch.after
    first, last = stretch.first - (before is not None), stretch.last + (after is not None)
    ends = [None if one is None else _known(job, job.drawn[place]) for one, place in ((before, first), (after, last))]
    if job.method.fill is None:
        raise ValueError(f"method {job.method.name} does not fill")
    ids = job.method.fill(job.images()[first : last + 1], *ends)
    tick(len(stretch.slices))
    return Filled(ids)


def _known(job: Job, plane: np.ndarray) -> np.ndarray:
    return np.where(np.isin(plane, job.keys), plane, 0)


def _ways(job: Job, stretch: Stretch) -> dict[str, Way]:
    if job.method.carrier is None:
        return {}
    wanted = ("forward", "backward") if job.direction == "both" else (job.direction,)
    ways = {name: way_of(stretch, job.method.carrier, len(job.drawn), forward=name == "forward") for name in wanted}
    return {name: way for name, way in ways.items() if way is not None}


def _carried(job: Job, stretch: Stretch, path: Path, tick: Tick) -> Filled:
    ways = _ways(job, stretch)
    stores = {name: _gone(job, way, path.with_name(f"{path.stem}_{name}"), tick) for name, way in ways.items()}
    shape, kind = job.drawn.shape[1:], np.min_scalar_type(max(job.keys, default=0))
    ids = np.zeros((len(stretch.slices), *shape), kind)
    opinions = {name: np.zeros_like(ids) for name in ways}
    for place, index in enumerate(stretch.slices):
        masks = {}
        for name, way in ways.items():
            there = way.starts + (place if name == "forward" else len(stretch.slices) - 1 - place)
            masks[name] = stores[name][there].astype(np.float32)
            opinions[name][place] = labels_of(masks[name], job.keys)
        if len(masks) == 1:
            ids[place] = opinions[next(iter(masks))][place]
        elif masks:
            share = stretch.share(index)
            ids[place] = labels_of((1 - share) * masks["forward"] + share * masks["backward"], job.keys)
    arrived = {
        name: labels_of(stores[name][way.starts + way.wanted - 1], job.keys)
        for name, way in ways.items()
        if way.arrives
    }
    return Filled(ids, opinions, arrived)


def _gone(job: Job, way: Way, folder: Path, tick: Tick) -> WayStore:
    """Goes a way to its end, from where an interrupted call left it."""
    store, needed = WayStore(folder), way.starts + way.wanted
    tick(min(way.wanted, max(0, len(store) - way.starts)))
    if len(store) >= needed or job.method.carrier is None:
        return store
    images = _along(job.images(), way)
    drawn = masks_of(job.drawn[list(way.slices[: way.starts])], job.keys)
    try:
        for masks, state in carry(job.method.carrier, images, drawn, fuse=job.fuse, state=store.state):
            before = len(store)
            store.append(masks, state)
            tick(max(0, min(needed, len(store)) - max(way.starts, before)))
            if len(store) >= needed:
                break
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            store.flush()
    return store


def _along(images: np.ndarray, way: Way) -> np.ndarray:
    """Returns the images of a way: a view of the scan, unless the last one is repeated."""
    slices = np.array(way.slices)
    steps = set(np.diff(slices).tolist())
    if len(steps) != 1 or 0 in steps:
        return images[slices]
    return images[slices[0] :][: len(slices)] if slices[0] < slices[-1] else images[slices[0] :: -1][: len(slices)]


def masks_of(ids: np.ndarray, keys: Sequence[int]) -> np.ndarray:
    """Returns a mask 0 or 1 for each structure, `(..., S)` float32.

    >>> masks_of(np.array([0, 5, 7]), (5, 7)).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    return np.stack([ids == key for key in keys], axis=-1).astype(np.float32)


def labels_of(masks: np.ndarray, keys: Sequence[int]) -> np.ndarray:
    """Returns the ids that masks `(..., S)`, 0 to 255, make: the largest has the pixel, if it is a half at least.

    >>> labels_of(np.array([[0, 128], [200, 200], [127, 90]]), (5, 7)).tolist()
    [7, 5, 0]
    """
    table = np.array([*keys, 0], np.min_scalar_type(max(keys, default=0)))
    if not len(keys):
        return np.zeros(masks.shape[:-1], table.dtype)
    best = masks.argmax(axis=-1)
    return table[np.where(masks.max(axis=-1) >= _HALF, best, len(keys))]
