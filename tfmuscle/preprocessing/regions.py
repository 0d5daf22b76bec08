"""Which part of the patient a scan is cut to: below the hip, one part of the leg, one leg.

Terms. *Superior* is the patient's head end; slices run along the grid axis nearest to it, whatever the file's
orientation. The *hip start* is the first (most superior) slice in which a pelvis label would lie, the top of the iliac
crest. *Left* and *right* are the patient's: in RAS+ left is the smaller x.

How the hip is found. Legs are apart, the trunk is one: the height where the legs join (the crotch) shows in every
contrast, also where fat thighs touch (see `body.py`). The crest lies `CREST_ABOVE_CROTCH_MM` higher. That is the height
of a hip bone, 211 mm in the Visible Human Female's two, whose lower end is about as high as the crotch; adults differ
by some 10 mm. A view of a single limb shows the join by the trunk reaching the side of the view. What is not in view is
not guessed: without the join, or with less than `PELVIS_MM` above it, there is no hip start but a reason. A view that
ends between join and crest starts inside the pelvis, so that its first slice is the hip start.

One leg alone has no side: a scanner's origin is where the table was, not the patient's middle.

The fractions of `LEG_PARTS` are of the scanned length, as Ni et al. 2019 cut trunk-to-ankle scans; a scan of another
extent needs fractions of its own. Rejected: proportions of the whole leg for the hip (needs the ankle in view).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from tfmuscle.labels import SIDES
from tfmuscle.preprocessing.body import Body, find_body
from tfmuscle.volume import Geometry, Volume

CREST_ABOVE_CROTCH_MM = 210.0
"""Height of the iliac crest above the place where the legs join."""
PELVIS_MM = 30.0
"""A view that reaches this far above the join shows pelvis: the lower ends of both hip bones."""
APART = 0.35
"""Separation from which a slice shows two legs."""
TRUNK_CONTACT = 0.65
"""A single limb's slice shows trunk when body of this share of its greatest thickness touches one side of the view."""
CLEAR = 0.2
"""Least confidence of a hip start: below, separation hardly changes where the legs are said to join."""
NEIGHBOURHOOD_MM = 60.0
"""Slices this near to the join decide how clear it is."""
MARGIN_SLICES = 50
"""Slices kept above the hip start where no label says better: the published pipeline's tolerance."""
LEG_PARTS: Mapping[str, tuple[float, float]] = {"abdomen": (0.0, 0.40), "upper": (0.20, 0.76), "lower": (0.56, 1.0)}
"""Overlapping parts as fractions of the scanned length, from superior to inferior."""
MIDLINE_SPREAD_MM = 40.0
"""A valley farther than this from the median of all slices' lies beside a leg cut by the edge of an oblique view."""
_MEDIAN_SLICES = 5


@dataclass(frozen=True)
class HipStart:
    """Where the pelvis begins in a scan.

    Attributes:
        index: slice along `superior_axis`, or None when it cannot be known.
        position_mm: world z of the iliac crest, which may lie above the view; None without an index.
        confidence: 0 to 1, how clearly the legs join: separation below less separation above.
        reason: how it was found, or why it was not.
    """

    index: int | None
    position_mm: float | None
    confidence: float
    reason: str


def superior_axis(geometry: Geometry) -> tuple[int, bool]:
    """Returns the grid axis along the patient, and whether its index grows towards the head.

    >>> superior_axis(Geometry((4, 5, 6), np.diag([1.0, 1.0, -3.0, 1.0])))
    (2, False)
    """
    for axis, letter in enumerate(geometry.orientation):
        if letter in "SI":
            return axis, letter == "S"
    raise ValueError(f"orientation {geometry.orientation!r} has no superior axis")


def hip_start(image: Volume) -> HipStart:
    """Estimates the first slice with pelvis from the silhouette; `image` is `(I, J, K)` or `(I, J, K, C)`."""
    body = find_body(image)
    filled = np.isfinite(body.separation)
    if not filled.any():
        return _unknown("no body stands out from the air")
    height = body.height_mm[filled]
    apart = body.separation[filled]
    how, trust = "the legs join", 1.0
    if not (apart >= APART).any():
        apart = _single_limb(body)[filled]
        how, trust = "the trunk of a single limb begins", 0.5
        if not (apart >= APART).any() or (apart >= APART).all():
            return _unknown("two legs are nowhere apart, and no trunk begins beside a single limb")
    elif (apart >= APART).all():
        return _unknown("the legs are apart in every slice: the view ends below the hip")
    join, contrast = _join(height, apart)
    top = float(height[-1] + body.geometry.spacing[2] / 2)
    if contrast < CLEAR:
        return _unknown("the legs join nowhere clearly")
    if top - join < PELVIS_MM:
        return _unknown(f"{how} less than {PELVIS_MM:g} mm below the end of the view")
    crest = join + CREST_ABOVE_CROTCH_MM
    index = _slice_at(image.geometry, crest)
    reason = f"{how} {CREST_ABOVE_CROTCH_MM:g} mm below"
    if crest > top:
        reason = f"{how} {top - join:.0f} mm below the end of the view, so that its first slice shows pelvis"
    return HipStart(index, crest, round(trust * contrast, 3), reason)


def _unknown(reason: str) -> HipStart:
    return HipStart(None, None, 0.0, reason)


def _single_limb(body: Body) -> np.ndarray:
    """1 where a single limb stands free, 0 where the trunk reaches one side of the view, `(Z,)`.

    Touching both sides, as a trunk in a narrow view, says nothing.
    """
    thickness = body.mask.sum(axis=1)
    columns = np.flatnonzero(body.view.any(axis=(1, 2)))
    sides = thickness[[columns[0], columns[-1]]] / np.maximum(thickness.max(axis=0), 1)
    free = 1.0 - (sides.max(axis=0) >= TRUNK_CONTACT)
    return np.ones_like(free) if (sides.min(axis=0) >= TRUNK_CONTACT).any() else free


def _join(height: np.ndarray, apart: np.ndarray) -> tuple[float, float]:
    """World z where the legs join, and separation in the neighbourhood below less that above.

    The border is where most slices below are apart and most above are not; between its two slices `apart` is linear.
    """
    score = np.where(apart >= APART, 1, -1)
    last = int(np.argmax(np.cumsum(score)[:-1] - np.cumsum(score[::-1])[::-1][1:])) if len(score) > 1 else 0
    above = min(last + 1, len(score) - 1)
    drop = apart[last] - apart[above]
    share = float(np.clip((apart[last] - APART) / drop, 0, 1)) if drop > 0 else 0.5
    join = float(height[last] + share * (height[above] - height[last]))
    low = apart[: last + 1][height[: last + 1] >= height[last] - NEIGHBOURHOOD_MM]
    high = apart[above:][height[above:] <= height[above] + NEIGHBOURHOOD_MM]
    return join, float(low.mean() - high.mean())


def _slice_at(geometry: Geometry, height_mm: float) -> int:
    """Slice whose middle is nearest to a world z, the outermost one beyond the view."""
    axis, _ = superior_axis(geometry)
    middle = (np.array(geometry.shape) - 1) / 2
    rise = geometry.affine[2, axis]
    index = middle[axis] + (height_mm - geometry.world(middle)[2]) / rise
    return int(np.clip(np.rint(index), 0, geometry.shape[axis] - 1))


def below_hip(
    image: Volume,
    labels: Volume | None = None,
    *,
    hip: int | None = None,
    margin: int = MARGIN_SLICES,
    ignore: int | None = None,
) -> tuple[Volume, Volume | None]:
    """Keeps the scan from the hip to its distal end.

    With a given `hip`: from `margin` slices above it. Else with labels: from the first labelled slice. Else from
    `margin` slices above what `hip_start` finds.

    Args:
        image: in any orientation.
        labels: ids on the same grid, cut alike.
        hip: slice of the hip start along `superior_axis`.
        margin: slices kept above; as many as there are.
        ignore: id of voxels nobody labelled, which does not count as a label.

    Raises:
        ValueError: `hip` is outside the scan, `margin` negative, or there is nothing to go by.
    """
    axis, upwards = superior_axis(image.geometry)
    count = image.geometry.shape[axis]
    if margin < 0 or (hip is not None and not 0 <= hip < count):
        raise ValueError(f"hip slice is {hip} and margin {margin}; a slice from 0 to {count - 1} and 0 or more needed")
    first, reach = _first_labelled(labels, ignore) if hip is None else hip, margin if hip is not None else 0
    if first is None:
        found = hip_start(image)
        if found.index is None:
            raise ValueError(f"the hip was not found: {found.reason}; give its slice")
        first, reach = found.index, margin
    start, stop = (0, min(count, first + reach + 1)) if upwards else (max(0, first - reach), count)
    return kept(image, axis, start, stop), None if labels is None else kept(labels, axis, start, stop)


def _first_labelled(labels: Volume | None, ignore: int | None) -> int | None:
    if labels is None:
        return None
    axis, upwards = superior_axis(labels.geometry)
    planes = np.moveaxis(labels.array, axis, 0)
    labelled = [index for index, plane in enumerate(planes) if ((plane > 0) & (plane != ignore)).any()]
    return None if not labelled else labelled[-1] if upwards else labelled[0]


def kept(volume: Volume, axis: int, start: int, stop: int) -> Volume:
    """Returns slices `start`..`stop` - 1 along one axis."""
    low, high = [0, 0, 0], list(volume.geometry.shape)
    low[axis], high[axis] = start, stop
    return volume.cropped(tuple(low), tuple(high))


def leg_parts(volume: Volume, fractions: Mapping[str, tuple[float, float]] = LEG_PARTS) -> dict[str, Volume]:
    """Cuts a scan, or its labels, into overlapping parts along the patient.

    Args:
        volume: in any orientation.
        fractions: part -> (from, to) as fractions of the scanned length, counted from the superior end.

    Raises:
        ValueError: a fraction outside 0..1, or a part that ends before it starts.
    """
    axis, upwards = superior_axis(volume.geometry)
    count = volume.geometry.shape[axis]
    parts = {}
    for name, (begin, end) in fractions.items():
        if not 0 <= begin < end <= 1:
            raise ValueError(f"part {name!r} goes from {begin} to {end}; two fractions from 0 to 1 in order are needed")
        start, stop = int(np.floor(begin * count + 1e-9)), int(np.ceil(end * count - 1e-9))
        parts[name] = kept(volume, axis, count - stop, count - start) if upwards else kept(volume, axis, start, stop)
    return parts


@dataclass(frozen=True, eq=False)
class Midline:
    """The border between the legs: world x, `(N,)` mm, at heights z, `(N,)` mm, constant beyond them."""

    height_mm: np.ndarray
    x_mm: np.ndarray

    def left_of(self, geometry: Geometry) -> np.ndarray:
        """Which voxels lie on the patient's left, `(I, J, K)` bool."""
        left = np.empty(geometry.shape, bool)
        plane = np.moveaxis(np.indices((1, *geometry.shape[1:]), dtype=np.float64)[:, 0], 0, -1)
        for first in range(geometry.shape[0]):
            world = geometry.world(plane + (first, 0, 0))
            left[first] = world[..., 0] < np.interp(world[..., 2], self.height_mm, self.x_mm)
        return left


def find_midline(image: Volume) -> Midline | None:
    """Finds the border between two legs; None with one leg, or a trunk alone, in view."""
    body = find_body(image)
    apart = (np.nan_to_num(body.separation) >= APART) & np.isfinite(body.valley_mm)
    if apart.sum() < max(1, 0.2 * np.isfinite(body.separation).sum()):
        return None
    height, valley = body.height_mm[apart], body.valley_mm[apart]
    near = np.abs(valley - np.median(valley)) <= MIDLINE_SPREAD_MM
    return Midline(height[near], scipy.ndimage.median_filter(valley[near], _MEDIAN_SLICES, mode="nearest"))


def one_leg(volume: Volume, midline: Midline, side: str, *, fill: float | None = None) -> Volume:
    """Cuts a scan, or its labels, to one side of the midline.

    Args:
        volume: any volume of the patient that `midline` was found in.
        midline: border between the legs.
        side: "left" or "right", the patient's.
        fill: value of the other side's voxels left in the box; the smallest value of each channel by default.
    """
    if side not in SIDES:
        raise ValueError(f"side is {side!r}; choose left or right")
    mine = midline.left_of(volume.geometry)
    if side == SIDES[1]:
        mine = ~mine
    occupied = [np.flatnonzero(mine.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if any(not len(axis) for axis in occupied):
        raise ValueError(f"the {side} side of the midline is outside the view; nothing would be left")
    start, stop = tuple(int(a[0]) for a in occupied), tuple(int(a[-1]) + 1 for a in occupied)
    box = volume.cropped(start, stop)
    theirs = ~mine[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    array = box.array.copy()
    array[theirs] = volume.array.min(axis=(0, 1, 2)) if fill is None else fill
    return box.with_array(array)


def separate_legs(image: Volume) -> dict[str, Volume]:
    """Cuts a scan into "left" and "right", the patient's, by the valley between the legs.

    Works on flipped and oblique grids, and where the legs touch. With one leg in view, or a trunk alone, the whole
    image is returned as "unknown": nothing in it says which side it is.
    """
    midline = find_midline(image)
    if midline is None:
        return {"unknown": image}
    return {side: one_leg(image, midline, side) for side in SIDES}
