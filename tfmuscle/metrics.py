"""Numbers that compare one mask with another: overlap, distance between surfaces, volume.

Terms. A *prediction* S is judged against a *reference* G; both are bool arrays on one grid, and TP, FP, FN count their
voxels. Axes are taken to be orthogonal, and lengths come from a *required* keyword `spacing` in mm, in the order of the
array axes: that of the grid on which the voxels are counted. `mask` marks valid voxels; the others (those nobody
labelled) are removed from both.

The *surface* of a mask is the mask minus its 6-connected erosion, what lies outside the image being background; an axis
of length one is no axis, so that a single slice has an outline. Voxels nobody labelled count as inside for the erosion:
the edge of the labelled region is no surface of the muscle. Distances are exact Euclidean distances between voxel
centres, found with a k-d tree (a distance transform agrees to rounding, at five times the time and with more memory).

When masks are empty. Both: Dice, IoU and 2D Dice are 1.0 and `measure` notes it; one: Dice and IoU are 0; a surface
figure is NaN in either case. Any other 0/0 is NaN. NaN means "undefined": it is excluded from means, and counted.

Adding a metric takes a function and a line of `METRICS`. Sources: Ni et al. 2019, Cheena (VError), Al Chanti et al.
(IFSS-Net; its released Hausdorff distance treats image rows as points and is not followed), Mehrabi & Handsfield (2D
and 3D Dice). Ni's eq. (1) prints the IoU under the name of Dice; the Dice of the literature is meant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

SURFACE_DICE_TOLERANCE_MM = 2.0
"""Default tolerance of the surface Dice: about the voxel of a clinical limb scan."""
THICK_SLICE_RATIO = 1.5
"""An axis whose spacing exceeds the others' by this factor is the one the scanner cut slices along."""
_ROUNDING_MM = 1e-6
_SLICE_AXIS_LETTERS = "SI"

BOTH_EMPTY = "both empty"
PREDICTION_EMPTY = "prediction empty"
REFERENCE_EMPTY = "reference empty"


def _counts(prediction: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> tuple[int, int, int]:
    prediction, reference = _pair(prediction, reference, mask)
    both = int(np.count_nonzero(prediction & reference))
    return both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(reference)) - both


def _pair(prediction: np.ndarray, reference: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    for name, array in (("prediction", prediction), ("reference", reference), ("mask", mask)):
        if array is not None and array.dtype != np.bool_:
            raise ValueError(f"{name} has the type {array.dtype}; a bool mask is needed, e.g. `labels == 3`")
        if array is not None and array.shape != reference.shape:
            raise ValueError(f"{name} has the shape {array.shape}, the reference {reference.shape}; one grid is needed")
    return (prediction, reference) if mask is None else (prediction & mask, reference & mask)


def _voxel_volume_ml(spacing: tuple[float, ...], dimensions: int) -> float:
    if len(spacing) != dimensions or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise ValueError(
            f"spacing {tuple(spacing)} does not fit {dimensions} axes; give one positive length in mm per axis"
        )
    return float(np.prod(spacing)) / 1000.0


def dice(prediction: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Returns the Dice coefficient, 2TP / (2TP + FP + FN), 0..1; 1.0 when both are empty.

    >>> dice(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    both, wrong, missed = _counts(prediction, reference, mask)
    return 2 * both / (2 * both + wrong + missed) if both + wrong + missed else 1.0


def iou(prediction: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Returns intersection over union, TP / (TP + FP + FN), 0..1; 1.0 when both are empty. Dice = 2 IoU / (1 + IoU).

    >>> iou(np.array([True, True, True, False]), np.array([False, True, True, True]))
    0.5
    """
    both, wrong, missed = _counts(prediction, reference, mask)
    return both / (both + wrong + missed) if both + wrong + missed else 1.0


def miou_fgbg(prediction: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Returns the mean IoU of foreground and background, over those present in either mask (IFSS-Net's mIoU).

    Not in `METRICS`: it grows with the empty space around the limb.

    >>> miou_fgbg(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5833333333333333
    """
    valid = np.ones_like(reference) if mask is None else mask
    sides = [(prediction & valid, reference & valid), (~prediction & valid, ~reference & valid)]
    values = [iou(a, b) for a, b in sides if a.any() or b.any()]
    return float(np.mean(values)) if values else math.nan


def precision(prediction: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Returns the share of the prediction that is right, TP / (TP + FP); NaN when nothing was predicted.

    >>> precision(np.array([True, True]), np.array([True, False]))
    0.5
    """
    both, wrong, _ = _counts(prediction, reference, mask)
    return both / (both + wrong) if both + wrong else math.nan


def recall(prediction: np.ndarray, reference: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Returns the share of the reference that was found, TP / (TP + FN); NaN when the reference is empty.

    >>> recall(np.array([True, False]), np.array([True, True]))
    0.5
    """
    both, _, missed = _counts(prediction, reference, mask)
    return both / (both + missed) if both + missed else math.nan


def dice_2d_mean(
    prediction: np.ndarray, reference: np.ndarray, *, axis: int = 0, mask: np.ndarray | None = None
) -> float:
    """Returns the mean of the Dice of each slice across `axis`, over the slices in which either mask has a voxel.

    `dice` pools the voxels of all slices (the "3D Dice"), in which large slices weigh more.

    >>> dice_2d_mean(np.array([[True, True], [True, False]]), np.array([[True, True], [False, True]]))
    0.5
    """
    prediction, reference = _pair(prediction, reference, mask)
    slices = zip(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), strict=True)
    values = [dice(a, b) for a, b in slices if a.any() or b.any()]
    return float(np.mean(values)) if values else 1.0


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances in mm from each surface voxel of one mask to the nearest surface voxel of the other.

    Attributes:
        prediction_to_reference: `(N,)`, one for each surface voxel of the prediction.
        reference_to_prediction: `(M,)`, one for each surface voxel of the reference.

    Both are empty when either mask has no surface.
    """

    prediction_to_reference: np.ndarray
    reference_to_prediction: np.ndarray

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface."""
        return len(self.prediction_to_reference) > 0


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None
) -> SurfaceDistances:
    """Returns the distances in mm between the surfaces of two masks, once for all the figures made of them.

    >>> line = np.eye(4, dtype=bool)[:2]
    >>> surface_distances(line[:1], line[1:], spacing=(1.0, 3.0)).prediction_to_reference.tolist()
    [3.0]
    """
    _pair(prediction, reference, mask)
    _voxel_volume_ml(spacing, reference.ndim)
    points = [surface(side, mask=mask) * np.asarray(spacing, dtype=np.float64) for side in (prediction, reference)]
    if not len(points[0]) or not len(points[1]):
        return SurfaceDistances(np.empty(0), np.empty(0))
    forward, _ = KDTree(points[1], balanced_tree=False).query(points[0])
    backward, _ = KDTree(points[0], balanced_tree=False).query(points[1])
    return SurfaceDistances(forward, backward)


def surface(region: np.ndarray, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Returns the indices `(N, ndim)` of the surface voxels of a bool array: those with a face towards background.

    >>> surface(np.ones((3, 3), dtype=bool)).tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [2, 2]]
    """
    valid = region if mask is None else region & mask
    if not valid.any():
        return np.empty((0, region.ndim), dtype=np.intp)
    start, box = _bounding_box(valid, margin=1)
    valid = valid[box]
    inside = valid if mask is None else valid | ~mask[box]
    neighbours = ndimage.generate_binary_structure(region.ndim, 1)
    for axis in (axis for axis, size in enumerate(region.shape) if size == 1 and max(region.shape) > 1):
        neighbours &= np.moveaxis(np.array([False, True, False]).reshape(3, *[1] * (region.ndim - 1)), 0, axis)
    return np.argwhere(valid & ~ndimage.binary_erosion(inside, neighbours)) + start


def _bounding_box(region: np.ndarray, *, margin: int) -> tuple[np.ndarray, tuple[slice, ...]]:
    (found,) = ndimage.find_objects(region.view(np.uint8))
    box = tuple(slice(max(0, part.start - margin), part.stop + margin) for part in found)
    return np.array([part.start for part in box]), box


def hausdorff(distances: SurfaceDistances) -> float:
    """Returns the Hausdorff distance in mm: the largest distance in either direction."""
    return max(map(float, map(np.max, _both(distances)))) if distances.defined else math.nan


def hausdorff_95(distances: SurfaceDistances) -> float:
    """Returns the 95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles."""
    return max(float(np.percentile(side, 95)) for side in _both(distances)) if distances.defined else math.nan


def mean_surface_distance(distances: SurfaceDistances) -> float:
    """Returns the mean distance in mm from the prediction's surface to the reference's (Ni's MSD, IFSS-Net's ASD)."""
    return float(distances.prediction_to_reference.mean()) if distances.defined else math.nan


def assd(distances: SurfaceDistances) -> float:
    """Returns the average symmetric surface distance in mm: the average of the two directed means."""
    return float(np.mean([side.mean() for side in _both(distances)])) if distances.defined else math.nan


def surface_dice(distances: SurfaceDistances, *, tolerance_mm: float = SURFACE_DICE_TOLERANCE_MM) -> float:
    """Returns the share of both surfaces' voxels within `tolerance_mm` of the other (normalised surface Dice), 0..1.

    Each voxel counts once. Source: Nikolov et al. 2018, arXiv:1809.04430, who weigh it by its area.

    Raises:
        ValueError: a negative tolerance.
    """
    if tolerance_mm < 0:
        raise ValueError(f"tolerance_mm is {tolerance_mm}; a length of 0 mm or more is needed")
    near = [np.count_nonzero(side <= tolerance_mm + _ROUNDING_MM) for side in _both(distances)]
    return float(sum(near) / sum(map(len, _both(distances)))) if distances.defined else math.nan


def _both(distances: SurfaceDistances) -> tuple[np.ndarray, np.ndarray]:
    return distances.prediction_to_reference, distances.reference_to_prediction


def volume_ml(region: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None) -> float:
    """Returns the volume in ml (cm³), N·∏spacing.

    >>> volume_ml(np.ones((10, 10, 10), dtype=bool), spacing=(1.0, 1.0, 2.0))
    2.0
    """
    region, _ = _pair(region, region, mask)
    return int(np.count_nonzero(region)) * _voxel_volume_ml(spacing, region.ndim)


def volume_difference_percent(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None
) -> float:
    """Returns 100·(V_S - V_G) / V_G, positive when too much was predicted (Ni et al.); NaN without reference."""
    found, true = _volumes_ml(prediction, reference, spacing, mask)
    return 100 * (found - true) / true if true else math.nan


def volume_difference_absolute_percent(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None
) -> float:
    """Returns 100·|V_S - V_G| / V_G (Ni et al.), in whose mean too much and too little do not cancel."""
    return abs(volume_difference_percent(prediction, reference, spacing=spacing, mask=mask))


def volume_error_ml(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None
) -> float:
    """Returns |V_S - V_G| in ml (Cheena's VError, in cm³)."""
    found, true = _volumes_ml(prediction, reference, spacing, mask)
    return abs(found - true)


def volume_error_percent(
    prediction: np.ndarray, reference: np.ndarray, *, spacing: tuple[float, ...], mask: np.ndarray | None = None
) -> float:
    """Returns 100·|V_S - V_G| / ((V_S + V_G) / 2), at most 200 (IFSS-Net's VolErr); NaN when both are empty."""
    found, true = _volumes_ml(prediction, reference, spacing, mask)
    return 200 * abs(found - true) / (found + true) if found + true else math.nan


def _volumes_ml(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], mask: np.ndarray | None
) -> tuple[float, float]:
    _pair(prediction, reference, mask)
    return volume_ml(prediction, spacing=spacing, mask=mask), volume_ml(reference, spacing=spacing, mask=mask)


class Metric(NamedTuple):
    """A line of `METRICS`.

    Attributes:
        function: what computes it.
        family: its arguments: "overlap" (prediction, reference, mask=), "slices" (those and axis=), "volume" (those of
            overlap and spacing=) or "surface" (a `SurfaceDistances`).
        unit: "" for a share.
        better: "higher", "lower" (0 is best) or "zero" (signed).
        description: one line for tables.
    """

    function: Callable[..., float]
    family: str
    unit: str
    better: str
    description: str


METRICS: dict[str, Metric] = {
    "dice": Metric(dice, "overlap", "", "higher", "Dice coefficient over all voxels"),
    "dice_2d_mean": Metric(dice_2d_mean, "slices", "", "higher", "mean of the Dice of each slice"),
    "iou": Metric(iou, "overlap", "", "higher", "intersection over union"),
    "precision": Metric(precision, "overlap", "", "higher", "share of the prediction that is right"),
    "recall": Metric(recall, "overlap", "", "higher", "share of the reference that was found"),
    "hausdorff": Metric(hausdorff, "surface", "mm", "lower", "Hausdorff distance"),
    "hausdorff_95": Metric(hausdorff_95, "surface", "mm", "lower", "95 % Hausdorff distance"),
    "assd": Metric(assd, "surface", "mm", "lower", "average symmetric surface distance"),
    "mean_surface_distance": Metric(mean_surface_distance, "surface", "mm", "lower", "mean distance to the reference"),
    "surface_dice": Metric(surface_dice, "surface", "", "higher", "share of the surfaces within the tolerance"),
    "volume_difference_percent": Metric(volume_difference_percent, "volume", "%", "zero", "volume difference, signed"),
    "volume_difference_absolute_percent": Metric(
        volume_difference_absolute_percent, "volume", "%", "lower", "volume difference, without sign"
    ),
    "volume_error_ml": Metric(volume_error_ml, "volume", "ml", "lower", "volume difference, without sign"),
    "volume_error_percent": Metric(
        volume_error_percent, "volume", "%", "lower", "volume difference over the mean of both volumes, at most 200"
    ),
}
"""Name -> function, arguments, unit, direction and description of every metric in the tables."""


def slice_axis(geometry: Geometry) -> int:
    """Returns the axis (0..2) along which slices follow each other.

    It is an axis of length one if there is just one, else the axis of thick slices, else the one nearest to foot-head.

    >>> slice_axis(Geometry((512, 512, 16), np.diag([0.8, 0.8, 24.0, 1.0])))
    2
    """
    single = [axis for axis, size in enumerate(geometry.shape) if size == 1]
    if len(single) == 1:
        return single[0]
    order = np.argsort(geometry.spacing)
    if geometry.spacing[order[2]] > THICK_SLICE_RATIO * geometry.spacing[order[1]]:
        return int(order[2])
    return next(axis for axis, letter in enumerate(geometry.orientation) if letter in _SLICE_AXIS_LETTERS)


def measure(
    prediction: Volume, reference: Volume, label_map: LabelMap, *, tolerance_mm: float = SURFACE_DICE_TOLERANCE_MM
) -> list[dict[str, Any]]:
    """Compares two label volumes of ids on one grid, structure by structure.

    Voxels with the ignore id in the reference are removed from both.

    Returns:
        One row per structure in the order of the map: `structure`, `note` (says when one or both masks are empty),
        `prediction_ml`, `reference_ml` and every name of `METRICS`.

    Raises:
        ValueError: the volumes lie on different grids.
    """
    if not prediction.geometry.same_grid(reference.geometry):
        raise ValueError(
            f"the prediction's grid {prediction.geometry.shape} is not the reference's {reference.geometry.shape}, "
            "or lies elsewhere; resample one onto the other"
        )
    axis, rows = slice_axis(reference.geometry), []
    for key, box in _structure_boxes(prediction.array, reference.array, label_map).items():
        found, true = prediction.array[box] == key, reference.array[box] == key
        mask = np.ones_like(true) if label_map.ignore is None else reference.array[box] != label_map.ignore
        row: dict[str, Any] = {"structure": label_map.names[key], "note": _note(found & mask, true & mask)}
        row["prediction_ml"], row["reference_ml"] = _volumes_ml(found, true, reference.spacing, mask)
        distances = surface_distances(found, true, spacing=reference.spacing, mask=mask)
        extra: dict[str, dict[str, Any]] = {"slices": {"axis": axis}, "volume": {"spacing": reference.spacing}}
        for name, metric in METRICS.items():
            if metric.family == "surface":
                row[name] = metric.function(distances)
            else:
                row[name] = metric.function(found, true, mask=mask, **extra.get(metric.family, {}))
        row["surface_dice"] = surface_dice(distances, tolerance_mm=tolerance_mm)
        rows.append(row)
    return rows


def _note(prediction: np.ndarray, reference: np.ndarray) -> str:
    if prediction.any() and reference.any():
        return ""
    return PREDICTION_EMPTY if reference.any() else REFERENCE_EMPTY if prediction.any() else BOTH_EMPTY


def _structure_boxes(prediction: np.ndarray, reference: np.ndarray, label_map: LabelMap) -> dict[int, tuple]:
    """Finds for every id the box around both masks, one voxel wider, so that no figure needs the whole volume."""
    found = [ndimage.find_objects(array, max_label=max(label_map.ids)) for array in (prediction, reference)]
    boxes: dict[int, tuple] = {}
    for key in label_map.ids[1:]:
        parts = [part[key - 1] for part in found if part[key - 1] is not None]
        sides = list(zip(*parts, strict=True)) if parts else [(slice(0, 1),)] * reference.ndim
        boxes[key] = tuple(slice(max(0, min(s.start for s in d) - 1), max(s.stop for s in d) + 1) for d in sides)
    return boxes
