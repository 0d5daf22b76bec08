"""From the frames of one series to stacks, each fit for use or with the reason why not.

What always splits: image size, orientation, pixel size, the stack number of enhanced objects, and blocks of slices side
by side (a leg in several coronal stations). What splits only where several images lie at one place: the traits, one
after the other, each if it differs there and has no more values than there are images at one place; last the order of
the instance numbers, if every place has equally many images.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.frames import Frame
from tfmuscle.io.dicom.headers import CONVERT
from tfmuscle.volume import Geometry

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COSINE_TOLERANCE = 1e-3
"""Directions that differ by less (0.06 degrees) are one direction: above rounding in headers."""
_GAP_TOLERANCE = 0.02
"""Slices may lie off their even place by this share of the slice distance: far below a missing slice."""
_GAP_TOLERANCE_MM = 0.01
_PLANE_ANGLE = np.cos(np.radians(30))
LOCALISER_SLICES = 20
"""A series of several planes with at most so many slices in each is a localiser."""
TIME = ("time", "time identifier", "trigger", "acquisition", "acquisition time", "order")


@dataclass(frozen=True)
class Stack:
    """The frames of one volume.

    Attributes:
        frames: in the order of the slices, if it is fit for use.
        parts: what set it apart from the rest of its series: (property, value), in the order of splitting.
        affine: from index to RAS+ mm, if it is fit for use.
        problem: why it is not, in plain words; "" if it is.
        kind: "image", "localiser", or "other" if it has no place in the patient.
        notes: what else a user should know.
    """

    frames: tuple[Frame, ...]
    parts: tuple[tuple[str, Hashable], ...] = ()
    affine: np.ndarray | None = None
    problem: str = ""
    kind: str = "image"
    notes: tuple[str, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The grid `(columns, rows, slices)`; only for a stack without a problem."""
        rows, columns = self.frames[0].shape
        if self.affine is None:
            raise ValueError(f"a stack with a problem has no grid: {self.problem}")
        return Geometry((columns, rows, len(self.frames)), self.affine)


def make_stacks(frames: list[Frame]) -> list[Stack]:
    """Splits the frames of one series into stacks and judges each."""
    frames, dropped = _without_copies(frames)
    notes = (f"{dropped} identical copies of images left out",) if dropped else ()
    placed = [frame for frame in frames if frame.is_placed]
    lost = len(frames) - len(placed)
    stacks = [_judged(group) for group in _split(placed)]
    stacks = _localisers(stacks)
    if lost:
        nowhere = tuple(frame for frame in frames if not frame.is_placed)
        stacks.append(Stack(nowhere, problem=_no_place(nowhere, len(frames)), kind="image" if placed else "other"))
    return [replace(stack, notes=notes + stack.notes) for stack in stacks]


def _no_place(frames: tuple[Frame, ...], count: int) -> str:
    tags = {"ImagePositionPatient": "position", "ImageOrientationPatient": "cosines"}
    missing = [tag for tag, name in tags.items() if any(np.isnan(getattr(frame, name)[0]) for frame in frames)]
    if len(missing) == 2 and len(frames) == count:
        return "no place in the patient (a projection, a photograph, a screenshot?); choose a series of slices"
    return f"no usable {' and '.join(missing)} in {len(frames)} of {count} images; {CONVERT}"


def _without_copies(frames: list[Frame]) -> tuple[list[Frame], int]:
    """Leaves out images that are there twice, byte by byte, under one number."""
    known: dict[tuple[str, int], Frame] = {}
    kept = []
    for frame in frames:
        key = (frame.uid, frame.index)
        if not frame.uid or key not in known:
            known[key] = frame
            kept.append(frame)
        elif _digest(frame) != _digest(known[key]):
            kept.append(frame)
    return kept, len(frames) - len(kept)


def _digest(frame: Frame) -> bytes:
    with frame.source.open() as file:
        return hashlib.sha256(file.read()).digest()


def _split(frames: list[Frame]) -> list[Stack]:
    groups = [Stack(tuple(frames))] if frames else []
    groups = _by(groups, "size", lambda frame: f"{frame.shape[1]}x{frame.shape[0]}")
    groups = _by_closeness(groups, "plane", lambda frame: frame.cosines, lambda _: _COSINE_TOLERANCE)
    groups = _by_closeness(
        groups, "pixel", lambda frame: frame.spacing, lambda spacing: _COSINE_TOLERANCE * spacing.max()
    )
    groups = _by(groups, "stack", lambda frame: frame.traits["stack"])
    groups = [part for group in groups for part in _by_block(group)]
    return [part for group in groups for part in _by_traits(group)]


def _by(groups: list[Stack], what: str, value: Callable[[Frame], Hashable]) -> list[Stack]:
    """Splits every group by a value; a group with one value stays as it is."""
    result = []
    for group in groups:
        parts: dict[Hashable, list[Frame]] = {}
        for frame in group.frames:
            parts.setdefault(value(frame), []).append(frame)
        if len(parts) == 1:
            result.append(group)
        else:
            result += [
                replace(group, frames=tuple(part), parts=(*group.parts, (what, key))) for key, part in parts.items()
            ]
    return result


def _by_closeness(
    groups: list[Stack], what: str, value: Callable[[Frame], np.ndarray], tolerance: Callable[..., float]
) -> list[Stack]:
    """Splits every group by vectors that count as one when they are close."""
    known: list[np.ndarray] = []
    labels: dict[Frame, Hashable] = {}
    for frame in (frame for group in groups for frame in group.frames):
        vector = value(frame)
        if np.isnan(vector).any():
            labels[frame] = -1
            continue
        near = (i for i, other in enumerate(known) if np.abs(other - vector).max() <= tolerance(other))
        labels[frame] = next(near, len(known))
        if labels[frame] == len(known):
            known.append(vector)
    return _by(groups, what, labels.__getitem__)


def _places(group: Stack) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth along the normal `(N,)` in mm and the number of the place `(N,)` of every frame."""
    cosines = group.frames[0].cosines
    depths = np.array([frame.position for frame in group.frames]) @ np.cross(cosines[:3], cosines[3:])
    order = np.argsort(depths, kind="stable")
    places = np.empty(len(depths), int)
    places[order] = np.concatenate([[0], np.cumsum(np.diff(depths[order]) >= _GAP_TOLERANCE_MM)])
    return depths, places


def _by_block(group: Stack) -> list[Stack]:
    """Splits slices that lie side by side in one plane, more than a pixel apart."""
    if np.isnan(group.frames[0].spacing).any() or len(group.frames) == 1:
        return [group]
    _, places = _places(group)
    cosines = group.frames[0].cosines.reshape(2, 3)
    offsets = np.array([frame.position for frame in group.frames]) @ cosines.T
    pixel = float(group.frames[0].spacing.max())
    aside = [np.ptp(offsets[places == place], axis=0).max() > pixel for place in set(places.tolist())]
    if not any(aside):
        return [group]
    offset_of = dict(zip(group.frames, offsets, strict=True))
    return _by_closeness([group], "block", offset_of.__getitem__, lambda _: pixel)


def _by_traits(group: Stack) -> list[Stack]:
    _, places = _places(group)
    counts = Counter(places.tolist())
    most = max(counts.values())
    if most == 1:
        return [group]
    for trait in (name for name in group.frames[0].traits if name != "stack"):
        values = [frame.traits[trait] for frame in group.frames]
        at_place: dict[int, set[Hashable]] = {}
        for place, value in zip(places.tolist(), values, strict=True):
            at_place.setdefault(place, set()).add(value)
        if trait in TIME and len(counts) == 1:
            return [group]  # one place watched over time: no volume to be had
        if 1 < len(set(values)) <= most and any(len(found) > 1 for found in at_place.values()):
            parts = _by([group], trait, dict(zip(group.frames, values, strict=True)).__getitem__)
            return [part for one in parts for part in _by_traits(one)]
    ranks = _ranks(group, places.tolist()) if set(counts.values()) == {most} and len(counts) > 1 else None
    return [group] if ranks is None else _by([group], "order", ranks.__getitem__)


def _ranks(group: Stack, places: list[int]) -> dict[Frame, int] | None:
    """Numbers the images at each place by instance number; None where two have the same."""
    at_place: dict[int, list[Frame]] = {}
    for frame, place in zip(group.frames, places, strict=True):
        at_place.setdefault(place, []).append(frame)
    if any(len({frame.order for frame in found}) < len(found) for found in at_place.values()):
        return None
    ordered = (sorted(found, key=lambda frame: frame.order) for found in at_place.values())
    return {frame: rank for found in ordered for rank, frame in enumerate(found, start=1)}


def _localisers(stacks: list[Stack]) -> list[Stack]:
    """Marks the stacks of a series with few slices in several planes."""
    normals = [np.cross(stack.frames[0].cosines[:3], stack.frames[0].cosines[3:]) for stack in stacks]
    turned = any(abs(normal @ normals[0]) < _PLANE_ANGLE for normal in normals)
    if len(stacks) < 2 or not turned or max(len(stack.frames) for stack in stacks) > LOCALISER_SLICES:
        return stacks
    planes = len({part for stack in stacks for part in stack.parts if part[0] == "plane"})
    reason = f"a localiser or projections: few slices in {planes} planes; choose a stack of parallel slices"
    return [replace(stack, kind="localiser", problem=reason) for stack in stacks]


def _judged(group: Stack) -> Stack:
    try:
        return _arranged(group)
    except DataError as error:
        monitoring = len({frame.position.tobytes() for frame in group.frames}) == 1 < len(group.frames)
        reason = f"one slice imaged {len(group.frames)} times, no volume; choose a stack of slices"
        return replace(group, problem=reason if monitoring else str(error))


def _arranged(group: Stack) -> Stack:
    """Sorts the slices along the normal and finds the affine.

    Raises:
        DataError: it is no evenly spaced stack; the text names no file.
    """
    first = group.frames[0]
    if not first.spacing.min() > 0:
        raise DataError(f"no usable PixelSpacing; {CONVERT}")
    row, column = first.cosines[:3], first.cosines[3:]
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 10 * _COSINE_TOLERANCE:
        raise DataError(f"ImageOrientationPatient {first.cosines.tolist()} is no pair of directions; {CONVERT}")
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    frames = sorted(group.frames, key=lambda frame: float(frame.position @ normal))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.spacing[1], column * first.spacing[0]
    affine[:3, 2] = _slice_step(frames, normal)
    affine[:3, 3] = frames[0].position
    stack = replace(group, frames=tuple(frames), affine=_LPS_TO_RAS @ affine)
    try:
        stack.geometry  # noqa: B018 - a header may still give no invertible grid
    except ValueError as error:
        raise DataError(f"the headers give no usable grid; {CONVERT}") from error
    return stack


def _slice_step(frames: Sequence[Frame], normal: np.ndarray) -> np.ndarray:
    """Returns the vector in mm from one slice to the next, after checking that all steps are alike."""
    positions = np.array([frame.position for frame in frames])
    count = len(frames)
    if count == 1:
        distance = frames[0].thickness or frames[0].gap
        if distance is None:
            raise DataError(f"one slice without SliceThickness has no volume; {CONVERT}")
        return normal * distance
    gaps = np.diff(positions @ normal)
    if gaps.min() < _GAP_TOLERANCE_MM:
        places = 1 + int((gaps >= _GAP_TOLERANCE_MM).sum())
        raise DataError(
            f"{count} images at {places} places and nothing that tells them apart (duplicates?); "
            "keep one image per place"
        )
    _check_even(positions @ normal, gaps)
    step = (positions[-1] - positions[0]) / (count - 1)
    aside = np.linalg.norm(step - (step @ normal) * normal) / np.linalg.norm(step)
    if aside > 2 * _COSINE_TOLERANCE:
        angle = np.degrees(np.arcsin(aside))
        raise DataError(f"slices are shifted sideways by {angle:.2f}° (tilted gantry); {CONVERT}")
    return step


def _check_even(depths: np.ndarray, gaps: np.ndarray) -> None:
    """Refuses slices that are not evenly spaced, and says which are missing."""
    count, distance = len(depths), float(np.median(gaps))
    even = depths[0] + np.arange(count) * (depths[-1] - depths[0]) / (count - 1)
    if np.abs(depths - even).max() <= max(_GAP_TOLERANCE * distance, _GAP_TOLERANCE_MM):
        return
    smallest = float(gaps.min())
    steps = np.rint(gaps / smallest)
    if np.abs(gaps - steps * smallest).max() <= max(_GAP_TOLERANCE * smallest * steps.max(), _GAP_TOLERANCE_MM):
        whole = np.concatenate([[1], 1 + np.cumsum(steps)]).astype(int)
        missing = sorted(set(range(1, whole[-1] + 1)) - set(whole.tolist()))
        if len(missing) >= count:
            raise DataError(f"only {count} of {whole[-1]} slices are there; export the whole series again")
        listed = ", ".join(map(str, missing[:6])) + (" ..." if len(missing) > 6 else "")
        are = f"slice {listed} of {whole[-1]} is" if len(missing) == 1 else f"slices {listed} of {whole[-1]} are"
        raise DataError(f"{are} missing (counted in order of place); export the whole series again")
    raise DataError(
        f"slices are {gaps.min():.3f} to {gaps.max():.3f} mm apart; an evenly spaced stack is needed, "
        "export the whole series again"
    )
