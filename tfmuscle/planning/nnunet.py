"""nnU-Net v2's plan: from a dataset's fingerprint to samples and networks, by fixed rules.

The user asks for a plan, may edit it (`plan_file.py`), and builds records and trains with one of its configurations:

* `2d`: slices across the coarsest axis;
* `3d_fullres`: sub-volumes at the median voxel size;
* `3d_lowres`, only where a patch shows less than a quarter of a scan: sub-volumes of coarser voxels; and then
* `3d_cascade_fullres`: as `3d_fullres`, with the labels of `3d_lowres` as further channels.

Rules (Isensee et al. 2021; MIC-DKFZ/nnUNet, `default_experiment_planner.py`). Everything is measured after cutting away
the margin of zeros. The *target voxel size* is the median along each axis; along an axis whose voxels are more than 3
times the others and that has more than 3 times fewer of them, it is the 10th percentile, but not below the others'.
The coarsest axis comes first (`DataSpec.orientation`). Intensities of CT are clipped and scaled by the foreground of
the whole dataset, all others by mean and sd of their scan, within the non-zero voxels alone if cropping has left less
than 3/4 of the scans. Patch, batch and network: `topology.py`. The coarse voxels of `3d_lowres` are found by enlarging
them 3 % at a time, the finest edges first until all are within a factor of 2, until a patch shows a quarter of a scan;
it is dropped when that leaves more than half of the voxels.

Modes. `nnunet_v2` is the above; `seed002` the same with max-pooling instead of strided convolutions, as Cheena
describes nnU-Net. Scales: `laptop` has the smaller budgets of `topology.BUDGETS`.

Where this differs from nnU-Net. Scans are turned to a common orientation first, so that the same axis means the same
direction in all of them. All channels are normalised alike (`DataSpec.normalisation`); where nnU-Net would treat them
differently, all are z-scored and a remark says so. Slices of the 2D configuration are resampled along the limb as well,
where nnU-Net leaves their distance alone; a remark says so where the distances differ. Unlabelled voxels are no
foreground.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmuscle.config import SCALES
from tfmuscle.errors import DataError
from tfmuscle.planning.fingerprint import along, usable_subjects
from tfmuscle.planning.suggestion import SLICE_ORIENTATIONS
from tfmuscle.planning.topology import BUDGETS, Fit, fit_patch, widths
from tfmuscle.subjects import Dataset

FORMAT = "tfmuscle-plan"
MODES = ("nnunet_v2", "seed002")
ANISOTROPY = 3.0
"""Voxels longer than this times the others, and this many times fewer, make an axis coarse."""
COARSE_PERCENT = 10.0
"""Percentile of the voxel sizes that is taken along a coarse axis."""
MASKED_BELOW = 0.75
"""Share of the voxels left by cropping below which intensities are scaled within the non-zero voxels."""
LOWRES_SHARE = 0.25
"""A second, coarser stage is planned when a patch shows less of the median scan than this."""
LOWRES_STEP = 1.03
LOWRES_GAIN = 2.0
"""The coarser stage is dropped when it has not at least this many times fewer voxels."""
FOLDS = 5
_SPACING_DIGITS = 5
"""Voxel sizes are rounded to 1e-5 mm, so that the float32 of a header does not decide whether 1 mm is twice 0.5 mm."""
_SHARED = {"resampling": "nnunet", "crop_nonzero": True, "patches": "random", "blend": "logits", "overlap": 0.5}
_NORMALISATIONS = {"ct": "ct", "nonorm": "none", "rescale_to_0_1": "minmax", "rgb_to_0_1": "div255"}
"""nnU-Net's names of channels that choose a normalisation; any other is z-scored."""


@dataclass(frozen=True)
class _Plan:
    """What all configurations share: fields of `DataSpec`, the median scan, and the sizes that set the budget."""

    data: dict[str, Any]
    spacing: np.ndarray
    median_shape: np.ndarray
    subjects: int
    num_classes: int
    mode: str
    scale: str


def plan_nnunet(
    found: dict[str, Any], dataset: Dataset, *, mode: str = "nnunet_v2", scale: str = "full"
) -> dict[str, Any]:
    """Plans samples and networks by nnU-Net's rules.

    Args:
        found: what `fingerprint` returned.
        dataset: the same dataset.
        mode: one of `MODES`.
        scale: one of `config.SCALES`.

    Returns:
        JSON-ready: `format`, `mode`, `scale`, `dataset` (its name), `fingerprint` (what the plan rests on), `remarks`,
        and `configurations`: name -> `data` (fields of `DataSpec`), `training` (of `TrainConfig`), `recipe` (of
        `Supervised`) and `notes` (figures for the reader).

    Raises:
        ValueError: an unknown mode or scale.
        DataError: no subject is labelled and free of problems.
    """
    for name, value, choices in (("mode", mode, MODES), ("scale", scale, SCALES)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    subjects = [entry for entry in usable_subjects(found, dataset) if "volumes_ml" in entry]
    if not subjects:
        raise DataError(f"{dataset.root}: no subject has labels; a plan is made for labelled scans")
    spacings = np.round([along(entry, "spacing") for entry in subjects], _SPACING_DIGITS)
    shapes = np.array([along(entry, "shape_after_cropping") for entry in subjects])
    target = target_spacing(spacings, shapes)
    median_shape = np.median(np.round(shapes * spacings / target), axis=0)
    order = slice_axis_first(target, median_shape)
    share = float(np.median([entry["share_after_cropping"] for entry in subjects]))
    intensities = found["summary"]["foreground_intensities"]
    normalisation, remarks = _normalisation(dataset.channels, share, intensities)
    remarks += _slice_remarks(spacings[:, order[0]], target[order[0]])
    data = {"orientation": SLICE_ORIENTATIONS[order[0]], "folds": min(FOLDS, len(subjects))} | normalisation
    num_classes = dataset.label_map.num_classes + (dataset.label_map.ignore is not None)  # all names of dataset.json
    plan = _Plan(data | _SHARED, target[order], median_shape[order], len(subjects), num_classes, mode, scale)
    summary = {
        "subjects": len(subjects),
        "left_out": {entry["subject_id"]: entry["problems"][0] for entry in found["subjects"] if entry["problems"]},
        "median_spacing": np.median(spacings, axis=0)[order].tolist(),
        "median_shape": np.median(shapes, axis=0)[order].tolist(),
        "share_after_cropping": share,
        "foreground_intensities": intensities,
    }
    about = {"format": FORMAT, "mode": mode, "scale": scale, "dataset": dataset.name, "fingerprint": summary}
    return about | {"remarks": remarks, "configurations": _configurations(plan)}


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Returns the voxel size to resample to, in mm, along the axes of its arguments.

    Args:
        spacings: voxel sizes `(subjects, 3)` in mm.
        shapes: shapes `(subjects, 3)` in voxels.

    >>> target_spacing(np.array([[5, 1, 1], [10, 1, 1], [10, 1, 1]]), np.array([[12, 200, 200]] * 3)).tolist()
    [6.0, 1.0, 1.0]
    >>> target_spacing(np.array([[5, 1, 1], [10, 1, 1], [10, 1, 1]]), np.array([[120, 200, 200]] * 3)).tolist()
    [10.0, 1.0, 1.0]
    """
    target, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != coarse]
    widest = target[others].max()
    if target[coarse] > ANISOTROPY * widest and size[coarse] * ANISOTROPY < size[others].min():
        percentile = np.percentile(spacings[:, coarse], COARSE_PERCENT)
        target[coarse] = percentile if percentile >= widest else widest + 1e-5
    return target


def slice_axis_first(spacing: np.ndarray, shape: np.ndarray) -> list[int]:
    """Returns the axes with the coarsest one first and the others in order; an axis of one voxel is the coarsest.

    >>> slice_axis_first(np.array([1.0, 1.0, 4.0]), np.array([300, 200, 20]))
    [2, 0, 1]
    """
    first = int(np.argmax(np.where(shape == 1, np.inf, spacing)))
    return [first, *(axis for axis in range(3) if axis != first)]


def _normalisation(
    channels: tuple[str, ...], share: float, intensities: list[dict[str, float]]
) -> tuple[dict[str, Any], list[str]]:
    zscore = "zscore_masked" if share < MASKED_BELOW else "zscore_all"
    wanted = [_NORMALISATIONS.get(name.casefold(), zscore) for name in channels]
    if len(set(wanted)) > 1:
        each = ", ".join(f"{name} {method}" for name, method in zip(channels, wanted, strict=True))
        return {"normalisation": zscore}, [f"nnU-Net would scale each channel its own way ({each}); here all {zscore}"]
    if wanted[0] != "ct":
        return {"normalisation": wanted[0]}, []
    statistics = [[entry[key] for key in ("mean", "sd", "p0_5", "p99_5")] for entry in intensities]
    return {"normalisation": "ct", "statistics": statistics}, []


def _slice_remarks(distances: np.ndarray, target: float) -> list[str]:
    if np.ptp(distances) <= 0.01 * target:
        return []
    spread = f"{distances.min():.4g} to {distances.max():.4g} mm"
    return [f"slices lie {spread} apart; nnU-Net's 2D leaves that alone, here all become {target:.4g} mm"]


def _configurations(plan: _Plan) -> dict[str, Any]:
    voxels = float(plan.median_shape.prod()) * plan.subjects
    planned = {"2d": _configuration(plan, plan.spacing, _fit(plan, plan.spacing[1:], plan.median_shape[1:], voxels))}
    if plan.median_shape[0] == 1:
        return planned
    full = _fit(plan, plan.spacing, plan.median_shape, voxels)
    planned["3d_fullres"] = fullres = _configuration(plan, plan.spacing, full)
    if (coarse := _lowres(plan, full)) is not None:
        planned["3d_lowres"] = _configuration(plan, *coarse)
        fullres["recipe"] = {"loss_options": {"batch_dice": True}}
        planned["3d_cascade_fullres"] = cascade = copy.deepcopy(fullres)
        cascade["data"]["prior"] = True
    return planned


def _fit(plan: _Plan, spacing: np.ndarray, shape: np.ndarray, voxels: float) -> Fit:
    budget = BUDGETS[plan.scale, len(spacing)]
    return fit_patch(
        spacing.tolist(), shape.tolist(), budget, num_classes=plan.num_classes, dataset_voxels=float(voxels)
    )


def _lowres(plan: _Plan, full: Fit) -> tuple[np.ndarray, Fit] | None:
    """Returns voxel size and network of the coarser stage, or None where one stage does."""
    spacing, found, voxels = plan.spacing.copy(), full, float(plan.median_shape.prod())
    while np.prod(found.topology.patch) / voxels < LOWRES_SHARE:
        fine = spacing.max() / spacing > 2
        spacing[fine if fine.any() else slice(None)] *= LOWRES_STEP
        shape = plan.spacing / spacing * plan.median_shape
        voxels = float(shape.prod())
        found = _fit(plan, spacing, np.round(shape), voxels * plan.subjects)
    return None if found is full or plan.median_shape.prod() / voxels < LOWRES_GAIN else (spacing, found)


def _configuration(plan: _Plan, spacing: np.ndarray, found: Fit) -> dict[str, Any]:
    topology, dim = found.topology, len(found.topology.patch)
    budget = BUDGETS[plan.scale, dim]
    options: dict[str, Any] = {"filters": budget.filters, "max_filters": budget.max_filters}
    options |= {"strides": [list(level) for level in topology.strides]}
    options |= {"kernels": [list(level) for level in topology.kernels]}
    options |= {"pooling": "max"} if plan.mode == "seed002" else {}
    sample: dict[str, Any] = {
        "kind": "volumes" if dim == 3 else "slices",
        "depth": topology.patch[0] if dim == 3 else 1,
    }
    sample |= {"size": list(topology.patch[-2:]), "spacing": [round(mm, _SPACING_DIGITS) for mm in spacing.tolist()]}
    shape = np.round(plan.spacing / spacing * plan.median_shape).astype(int)
    return {
        "data": sample | plan.data,
        "training": {"model_options": options, "batch_size": found.batch},
        "recipe": {},
        "notes": {
            "median_shape": shape.tolist(),
            "widths": widths(len(topology.strides), budget),
            "memory_cost": found.cost,
            "memory_limit": budget.cost,
            "memory_limit_batch": budget.batch,
        },
    }
