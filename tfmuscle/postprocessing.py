"""Cleaning of predicted labels: what the user may ask for, what cross-validation may choose, and how it is done.

The user, a recipe or `choose_cleaning` decides a `Cleaning`, which is stored as `postprocessing.json`; `clean` applies
it to labels on the scan's own grid. The data decides the rest: which axis slices follow each other along, how large a
structure is in a slice, where the midline lies.

Terms. A *component* is a connected part of one structure: 26 neighbours in 3D (nnU-Net's rule, scikit-image's default),
8 in a slice. A *hole* of a structure is a part of a slice (4 neighbours, the complement of 8) that the structure keeps
from the slice's border. Voxels of the ignore id are nobody's: they are never changed, and never filled.

The steps, each only if wanted, in this order:

1. `side`: components whose centroid lies beyond the midline go (Cheena's networks saw labels on one leg only).
2. `largest_foreground`, then `largest`: what is not the largest component of all structures together, or of the
   structure itself, goes (nnU-Net). Of several equally large ones all stay.
3. `denoise`: slice by slice, components below max(5 pixels, 0.15 of the structure's area in the slice) go, never the
   largest. `fill_holes`: background that lies in a hole of a structure and touches it becomes that structure (of
   several, the one with the lowest id). The share and the pixels are our choice; the thesis names neither.

Denoising and filling are repeated until nothing changes, because filling enlarges the area that the threshold is a
share of: once through would not be idempotent. It ends: each round removes a component, and no step makes a new one,
which is why only background that touches the structure is filled. What lies behind another structure stays background.

Pixels are counted on the grid given, that of the scan; a network's own smaller grid would count fewer.

Rejected: closing gaps by dilation (moves borders), filling in 3D (a marrow cavity open at the end of the scan is no
hole), thresholds in mm² (the source's rule is a share of the area), the middle of the body from the labels alone (a
prediction on one leg has its middle in that leg).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import cc3d
import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import SIDES, LabelMap, distinct
from tfmuscle.preprocessing import Midline
from tfmuscle.volume import Geometry, Volume

CLEANING_FILE = "postprocessing.json"
"""Name of the file in a run or a folder of cross-validation."""
SMALLEST_PIXELS = 5
"""A component of fewer pixels in a slice is noise."""
SMALLEST_SHARE = 0.15
"""So is one with a smaller share of its structure's area in the slice."""
_ROUNDING = 1e-9
"""Keeps a component of exactly the share."""
_SLAB = 16
"""Slices copied at once, so that a slice axis that is the last in memory is read in cache lines."""


@dataclass(frozen=True)
class Cleaning:
    """Which steps clean predicted labels.

    Attributes:
        largest_foreground: keep the largest component of all structures together.
        largest: structures of which only the largest component is kept.
        denoise: remove small components in each slice.
        fill_holes: fill holes in each slice.
        side: keep components of this side of the patient only, "left" or "right"; None keeps both.
    """

    largest_foreground: bool = False
    largest: tuple[str, ...] = ()
    denoise: bool = False
    fill_holes: bool = False
    side: str | None = None

    def __post_init__(self) -> None:
        for name in ("largest_foreground", "denoise", "fill_holes"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; true or false is needed")
        if not isinstance(self.largest, tuple) or not all(isinstance(name, str) for name in self.largest):
            raise ValueError(f"largest is {self.largest!r}; a list of structures is needed")
        if self.side not in (None, *SIDES):
            raise ValueError(f"side is {self.side!r}; choose one of {', '.join(SIDES)}, or none")

    def __bool__(self) -> bool:
        return self != Cleaning()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content."""
        return asdict(self) | {"largest": list(self.largest)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: an unknown step, or a value that is none.

        >>> Cleaning.from_dict({"denoise": True}) == Cleaning(denoise=True)
        True
        """
        known = [item.name for item in fields(cls)]
        for key in content:
            if key not in known:
                raise ValueError(f"unknown step {key!r}; there are {', '.join(known)}")
        largest = content.get("largest", ())
        return cls(**dict(content) | {"largest": tuple(largest) if isinstance(largest, list) else largest})

    def save(self, path: str | Path) -> None:
        """Writes the steps as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the steps from JSON; a bad file is a `DataError` that names it."""
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error


CHEENA = Cleaning(denoise=True, fill_holes=True)
"""The cleaning of Cheena's bone pipeline."""


def recipe_cleaning(name: str, label_map: LabelMap) -> Cleaning:
    """Returns what `Supervised.postprocessing` stands for; "largest" keeps each structure's largest component.

    >>> recipe_cleaning("largest", LabelMap({1: "tibia"})).largest
    ('tibia',)
    """
    return {"none": Cleaning(), "largest": Cleaning(largest=label_map.structures), "cheena": CHEENA}[name]


def clean(
    labels: Volume,
    cleaning: Cleaning,
    label_map: LabelMap,
    *,
    orientation: str | None = "SPL",
    midline: Midline | None = None,
) -> Volume:
    """Removes what a network should not have labelled, and fills holes.

    Args:
        labels: `(I, J, K)` ids on any grid.
        cleaning: which steps.
        label_map: names the ids.
        orientation: `DataSpec.orientation`; its first letter says which axis of the patient slices follow each other
            along. None, for scans without patient coordinates, takes the last axis.
        midline: border between left and right, for `side`; None takes the middle of the view.

    Returns:
        New labels of the same type on the same grid.

    Raises:
        ValueError: an id without a name, or a structure of `cleaning` that the map does not have.
    """
    if unknown := label_map.unknown_ids(distinct(labels.array)):
        raise ValueError(f"label ids {list(unknown)} are not in the label map {list(label_map.ids)}; name them")
    ids = [label_map.id_of(name) for name in cleaning.largest]
    array = labels.array.copy(order="K")
    if cleaning.side is not None:
        _keep_side(array, labels.geometry, cleaning.side, midline, label_map.ignore)
    if cleaning.largest_foreground:
        _keep_largest(array, None, label_map.ignore)
    if ids:
        _keep_largest(array, ids, label_map.ignore)
    if cleaning.denoise or cleaning.fill_holes:
        slices = np.moveaxis(array, _slice_axis(labels.geometry, orientation), 0)
        for first in range(0, len(slices), _SLAB):
            slab = np.ascontiguousarray(slices[first : first + _SLAB])
            for plane in slab:
                _clean_slice(plane, cleaning, label_map.ignore)
            slices[first : first + _SLAB] = slab
    return labels.with_array(array)


def choose_cleaning(pairs: Iterable[tuple[Volume, Volume]], label_map: LabelMap) -> Cleaning:
    """Chooses nnU-Net's cleaning by what it does to predictions on scans that the networks had not seen.

    Keeping only the largest component of all structures is chosen if the mean Dice over structures grows and that of
    none falls; then, on what came out of that, keeping the largest component of a structure if its own Dice grows
    (no other structure's can change). A Dice is the mean over subjects that have the structure in either image; voxels
    of the ignore id do not count. Isensee et al. 2021; nnunetv2/postprocessing/remove_connected_components.py.

    Args:
        pairs: prediction and reference of each subject, each `(I, J, K)` ids on one grid; read once, one at a time.
        label_map: names the ids.

    Raises:
        ValueError: no pairs, a pair on two grids, or an id without a name.
    """
    each = Cleaning(largest=label_map.structures)
    variants = (Cleaning(), Cleaning(True), each, Cleaning(True, label_map.structures))
    found = []
    for prediction, reference in pairs:
        if not prediction.geometry.same_grid(reference.geometry):
            name = prediction.source or "prediction"
            raise ValueError(f"{name}: not on its reference's grid; give labels of one scan")
        cleaned = (clean(prediction, variant, label_map) for variant in variants)
        found.append([_dices(labels.array, reference.array, label_map) for labels in cleaned])
    if not found:
        raise ValueError("no predictions to choose a cleaning by; give those of a cross-validation")
    raw, foreground, raw_each, foreground_each = _means(np.array(found))
    is_better = bool(np.nanmean(foreground) > np.nanmean(raw)) if np.isfinite(raw).any() else False
    together = is_better and not (foreground < raw).any()
    before, after = (foreground, foreground_each) if together else (raw, raw_each)
    chosen = (name for name, old, new in zip(label_map.structures, before, after, strict=True) if new > old)
    return Cleaning(together, tuple(chosen))


def _means(dices: np.ndarray) -> np.ndarray:
    """Returns means over subjects `(variants, structures)` of `(subjects, variants, structures)` without the NaNs."""
    known = np.isfinite(dices)
    total = np.where(known, dices, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _dices(prediction: np.ndarray, reference: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Returns the Dice of each structure, NaN where both are empty."""
    count = label_map.num_classes
    if unknown := label_map.unknown_ids(distinct(reference)):
        raise ValueError(f"label ids {list(unknown)} of a reference are not in the label map {list(label_map.ids)}")
    table = np.full(max(*label_map.ids, label_map.ignore or 0) + 1, count, np.intp)
    table[list(label_map.ids)] = np.arange(count)
    together = np.zeros((count + 1, count + 1), np.int64)  # the last row and column are the ignore id's
    for one, other in zip(prediction, reference, strict=True):
        joined = table[one] * (count + 1) + table[other]
        together += np.bincount(joined.ravel(), minlength=(count + 1) ** 2).reshape(together.shape)
    together = together[:, :count]
    sizes = together.sum(axis=1)[1:count] + together.sum(axis=0)[1:count]
    both = 2.0 * np.diag(together)[1:count]
    return np.divide(both, sizes, out=np.full(count - 1, np.nan), where=sizes > 0)


def _slice_axis(geometry: Geometry, orientation: str | None) -> int:
    """Returns the axis of the scan that slices follow each other along."""
    if orientation is None:
        return 2
    pair = next(pair for pair in ("RL", "AP", "SI") if orientation[0] in pair)
    return next(axis for axis, letter in enumerate(geometry.orientation) if letter in pair)


def _slabs(array: np.ndarray, *others: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields matching slabs along the slowest axis, so that no step makes an index for every voxel at once."""
    axis = int(np.argmax(np.abs(array.strides)))
    moved = [np.moveaxis(one, axis, 0) for one in (array, *others)]
    for first in range(0, len(moved[0]), _SLAB):
        yield tuple(one[first : first + _SLAB] for one in moved)


def _components(array: np.ndarray, ignore: int | None, *, together: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns components `(I, J, K)`, numbered from 1, with their sizes and ids; `together` joins all structures."""
    known = array if ignore is None else np.where(array == ignore, 0, array)
    components, count = cc3d.connected_components(known, connectivity=26, return_N=True, binary_image=together)
    sizes, owners = np.zeros(count + 1, np.int64), np.zeros(count + 1, array.dtype)
    for numbers, ids in _slabs(components, known):
        sizes += np.bincount(numbers.ravel(), minlength=count + 1)
        owners[numbers] = ids
    return components, sizes, owners


def _remove(array: np.ndarray, components: np.ndarray, removed: np.ndarray) -> None:
    for ids, numbers in _slabs(array, components):
        ids[removed[numbers]] = 0


def _keep_largest(array: np.ndarray, ids: list[int] | None, ignore: int | None) -> None:
    """Keeps the largest components of the structures `ids`, or with None of the foreground."""
    components, sizes, owners = _components(array, ignore, together=ids is None)
    removed = np.zeros(len(sizes), bool)
    for key in [None] if ids is None else ids:
        mine = owners != 0 if key is None else owners == key
        mine[0] = False
        removed |= mine & (sizes < sizes[mine].max(initial=0))
    _remove(array, components, removed)


def _keep_side(array: np.ndarray, geometry: Geometry, side: str, midline: Midline | None, ignore: int | None) -> None:
    components, sizes, _ = _components(array, ignore, together=False)
    if len(sizes) == 1:
        return
    centroids = geometry.world(cc3d.statistics(components, no_slice_conversion=True)["centroids"][1:])
    border: Any = geometry.world((np.array(geometry.shape) - 1) / 2)[0]
    if midline is not None:
        border = np.interp(centroids[:, 2], midline.height_mm, midline.x_mm)
    beyond = centroids[:, 0] > border if side == SIDES[0] else centroids[:, 0] < border
    _remove(array, components, np.concatenate([[False], beyond]))


def _clean_slice(plane: np.ndarray, cleaning: Cleaning, ignore: int | None) -> None:
    """Denoises and fills a slice in place, until nothing changes."""
    rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    box = tuple(slice(max(0, where[0] - 1), where[-1] + 2) for where in (rows, columns))  # with a rim that lies outside
    plane = plane[box]
    if cleaning.denoise:
        _denoise(plane, ignore)
    while cleaning.fill_holes and _fill_holes(plane, ignore) and cleaning.denoise and _denoise(plane, ignore):
        pass  # each of the two leaves its own result alone, so that one without work ends it


def _denoise(plane: np.ndarray, ignore: int | None) -> bool:
    """Removes small components of a slice; says whether there were any."""
    known = plane if ignore is None else np.where(plane == ignore, 0, plane)
    components, count = cc3d.connected_components(known, connectivity=8, return_N=True)
    sizes, owners = np.bincount(components.ravel(), minlength=count + 1), np.zeros(count + 1, np.int64)
    owners[components] = known
    areas, largest = np.zeros(owners.max() + 1, np.int64), np.zeros(owners.max() + 1, np.int64)
    np.add.at(areas, owners[1:], sizes[1:])
    np.maximum.at(largest, owners[1:], sizes[1:])
    smallest = np.maximum(SMALLEST_PIXELS, SMALLEST_SHARE * areas[owners] - _ROUNDING)
    removed = (sizes < smallest) & (sizes < largest[owners])
    removed[0] = False
    if not removed.any():
        return False
    plane[removed[components]] = 0
    return True


def _fill_holes(plane: np.ndarray, ignore: int | None) -> bool:
    """Fills the background in holes of a structure that touches it; says whether there was any."""
    gaps, count = cc3d.connected_components(plane == 0, connectivity=4, return_N=True, binary_image=True)
    closed = np.ones(count + 1, bool)
    for edge in (gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]):
        closed[edge] = False
    closed[0] = False
    if not closed.any():
        return False
    candidates, filled = closed[gaps], False
    for key in np.unique(plane[_beside(candidates)]).tolist():
        if key in (0, ignore):
            continue
        mask = plane == key
        touching = np.zeros(count + 1, bool)
        touching[gaps[candidates & _beside(mask)]] = True
        inside = touching[gaps] & _enclosed(mask) & (plane == 0)
        plane[inside] = key
        filled |= bool(inside.any())
    return filled


def _beside(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels with one of their four neighbours in the mask."""
    beside = np.zeros_like(mask)
    beside[1:] |= mask[:-1]
    beside[:-1] |= mask[1:]
    beside[:, 1:] |= mask[:, :-1]
    beside[:, :-1] |= mask[:, 1:]
    return beside


def _enclosed(mask: np.ndarray) -> np.ndarray:
    """Returns what a mask keeps from the border of its slice."""
    outside = cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=4, binary_image=True)
    return (outside != outside[0, 0])[1:-1, 1:-1] & ~mask
