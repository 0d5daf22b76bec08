"""Short ways that begin with a wrong mask: how a network learns that the answer is in the image.

Fed the mask of the slice before, a network is nearly right if it hands that mask on, for a muscle changes little from
one slice to the next (a Dice of 0.985 on phantoms); and so it learns to copy, and carries its own errors along. Here
the mask that a way begins with is *spoilt*: taken from a drawn slice up to `away` slices away, moved, scaled and bent.
It still says which structure is meant, but no longer where it ends. The windows that follow are fed what the network
made of that, its own errors among it. (MaskTrack, Perazzi et al. 2017, and RGMP, Oh et al. 2018, spoil masks too.)

An epoch goes `parts` times through `slices` slices of every scan, about a drawn slice that is drawn by chance. Unlike
a whole way no slice but those that the schedule draws is looked at. All structures that the mask shows go side by side:
the same images, other masks, other answers.
"""

import numpy as np
from scipy import ndimage

from tfmuscle.config import DataSpec, Propagation
from tfmuscle.inference.propagation import framed
from tfmuscle.labels import IGNORE
from tfmuscle.records import Scan
from tfmuscle.training.annotation import drawn_slices
from tfmuscle.training.propagation_ways import Way

_SHIFT, _SCALE, _BEND = 0.06, 0.2, 0.05
"""Standard deviations at full strength: shift, in edges; logarithm of the scale; the largest bend, in edges."""
_KNOTS = 6
"""Knots of a bend along either axis."""


def part_of(
    scan: Scan,
    spec: DataSpec,
    settings: Propagation,
    classes: tuple[int, ...] | list[int],
    *,
    subject: int,
    rng: np.random.Generator,
) -> Way | None:
    """Returns a short way through a scan, or None where its mask shows no structure.

    Args:
        scan: from `records.read_scan`.
        spec: of the windows.
        settings: which slices count as drawn, how many make a way, and how far its first mask is from the truth.
        classes: the structures to follow.
        subject: number in the order of decreasing drawn slices.
        rng: draws all that is left to chance.
    """
    labelled = np.array([(plane != IGNORE).all() for plane in scan.labels])
    drawn = drawn_slices(len(labelled), subject, settings) & labelled
    known = np.flatnonzero(drawn)
    length = min(max(settings.slices, spec.depth), len(labelled))
    if not len(known):
        return None
    first = int(rng.choice(known)) - int(rng.integers(length))
    first = min(max(first, 0), len(labelled) - length)
    slices = np.arange(first, first + length)
    slices = slices[::-1] if rng.random() < settings.reverse else slices
    off = round(settings.away * rng.uniform(-1, 1) * rng.random())
    nearest = known[np.abs(known - (slices[: spec.depth, None] + off)).argmin(axis=1)]
    turn = slice(None, None, -1 if rng.random() < settings.mirror else 1)
    sources = framed(scan.labels[nearest][..., turn], spec.size, 0)
    shown = [number for number in classes if (sources == number).sum(axis=(1, 2)).max() > settings.smallest]
    if not shown:
        return None
    begun = np.stack([spoilt((sources == number).astype(np.float32), settings.spoil, rng) for number in shown])
    images, labels = (array[slices][..., turn] for array in (scan.image[..., 0], scan.labels))
    none = (0,) * len(shown)
    windows = length - spec.depth + 1
    return Way(images, labels, tuple(shown), none, none, drawn[slices], windows, begun[..., np.newaxis])


def spoilt(masks: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Returns masks moved, scaled about their middle and bent, all slices alike.

    Args:
        masks: `(w, H, W)` float32.
        strength: from 0, nothing, to 1.
        rng: draws how much.
    """
    if not strength or not masks.any():
        return masks
    edges = np.array(masks.shape[1:])
    middle = np.array(ndimage.center_of_mass(masks.sum(axis=0)))
    shift, scale = rng.normal(0, strength * _SHIFT, 2) * edges, np.exp(rng.normal(0, strength * _SCALE, 2))
    bend = strength * _BEND * rng.random() * edges
    where = []
    for axis, grid in enumerate(np.mgrid[: edges[0], : edges[1]].astype(np.float32)):
        knots = ndimage.zoom(rng.normal(size=(_KNOTS, _KNOTS)), np.ceil(edges / _KNOTS), order=3)
        field = bend[axis] * knots[: edges[0], : edges[1]]
        where.append((grid - middle[axis] - shift[axis]) / scale[axis] + middle[axis] + field)
    return np.stack([ndimage.map_coordinates(mask, where, order=1) for mask in masks]).astype(np.float32)
