"""The settings one would choose by hand, from a dataset's fingerprint.

`suggest_spec` takes the median voxel size; the slice axis along the coarsest axis, or along the body when no axis is
clearly coarser; a sample that covers 95 % of the subjects, so that a small organ fits one patch; sizes that can be
halved often enough. Of nnU-Net's planning only the budget of 128³ voxels is kept; the whole of it is in `nnunet.py`.
"""

from typing import Any

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.planning.fingerprint import along, usable_subjects
from tfmuscle.subjects import Dataset

PATCH_VOXELS = 128**3
"""Largest sub-volume suggested, in voxels: nnU-Net's starting patch, which trains in 8 GB."""
PREDICTION_BYTES = 3_000_000_000
"""Memory for the probabilities of one patch depth of slices while a scan is predicted; the whole stays below 8 GB."""
SLICE_CAP = 256
"""Largest height or width suggested for a slice, in voxels; larger images are covered by overlapping windows."""
COVERED_PERCENT = 95.0
"""Share of the subjects that fit one sample, in percent, as long as the caps allow."""
COARSE_FACTOR = 1.5
"""An axis is the slice axis when its voxels are longer than this times the others'."""
THICK_FACTOR = 3.0
"""Voxels longer than this times their width are slices: 2D networks do better there (Isensee et al. 2021)."""
SLICE_ORIENTATIONS = ("SPL", "PSL", "LSP")
"""Orientation after preprocessing, when the slice axis runs along the body, from front to back, or across."""
_DEPTHS = {"slices": 1, "stacks": 5, "sequences": 3}


def suggest_spec(found: dict[str, Any], dataset: Dataset, *, kind: str | None = None) -> DataSpec:
    """Derives settings from a fingerprint.

    Args:
        found: what `fingerprint` returned.
        dataset: the same dataset.
        kind: what a sample is; by default volumes, or slices where voxels are thick or there are few.

    Raises:
        DataError: no subject of the dataset is free of problems.
    """
    usable = usable_subjects(found, dataset)
    spacings = np.array([along(entry, "spacing") for entry in usable])
    fields_of_view = spacings * [along(entry, "shape") for entry in usable]
    median = np.median(spacings, axis=0)
    coarse = int(np.argmax(median))
    orientation = SLICE_ORIENTATIONS[coarse if median[coarse] > COARSE_FACTOR * np.sort(median)[1] else 0]
    order = ["SPL".index(letter) for letter in orientation]
    spacing = np.round(median[order], 4)
    extents = fields_of_view[:, order] / spacing
    size = np.maximum(1, np.ceil(np.percentile(np.round(extents), COVERED_PERCENT, axis=0))).astype(int)
    kind = kind or ("slices" if spacing[0] > THICK_FACTOR * spacing[1:].max() or size[0] < 8 else "volumes")
    if kind == "volumes":
        depth, height, width = _patch(size, spacing)
        depth = _affordable_depth(depth, size, dataset.label_map.num_classes)
    else:
        depth, height, width = _DEPTHS.get(kind, 1), *(_rounded(min(edge, SLICE_CAP), halvings=5) for edge in size[1:])
    return DataSpec(
        label_map=dataset.label_map,
        name=dataset.name,
        channels=dataset.channels,
        kind=kind,
        size=(height, width),
        depth=depth,
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        orientation=orientation,
        normalisation="percentile" if all(name.upper() == "CT" for name in dataset.channels) else "zscore",
        folds=min(5, len(usable)),
    )


def _rounded(size: int, *, halvings: int) -> int:
    """Rounds up to a multiple of the largest power of two that is at most half of `size` and 2**`halvings`.

    >>> [_rounded(size, halvings=4) for size in (1, 3, 10, 35, 50)]
    [1, 3, 12, 48, 64]
    """
    multiple = 2 ** min(halvings, max(0, int(size // 2).bit_length() - 1))
    return -(-int(size) // multiple) * multiple


def _affordable_depth(depth: int, size: np.ndarray, num_classes: int) -> int:
    """Limits the depth of a patch to what prediction can hold of a whole scan's slices, in multiples of 16.

    >>> _affordable_depth(128, np.array([400, 512, 512]), num_classes=71)
    32
    >>> _affordable_depth(40, np.array([40, 56, 40]), num_classes=3)
    40
    """
    affordable = PREDICTION_BYTES // (4 * int(size[1]) * int(size[2]) * num_classes)
    return depth if depth <= affordable else max(16, affordable // 16 * 16)


def _patch(size: np.ndarray, spacing: np.ndarray) -> tuple[int, int, int]:
    """Shortens the longest edge in mm until the patch fits `PATCH_VOXELS`."""
    patch = [_rounded(int(number), halvings=4) for number in size]
    while np.prod(patch) > PATCH_VOXELS:
        longest = int(np.argmax([edge * mm if edge > 16 else 0.0 for edge, mm in zip(patch, spacing, strict=True)]))
        patch[longest] = (patch[longest] - 1) // 16 * 16
    return patch[0], patch[1], patch[2]
