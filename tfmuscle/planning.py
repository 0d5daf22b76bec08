"""What a dataset is like, and the settings that suit it.

`fingerprint` reads every subject once and records grids, intensities, volumes and everything that is wrong, without
stopping at the first. Its result is plain JSON. Problems make a subject useless for training; warnings are for a look:
a structure far larger on one side, intensities that differ a hundredfold between subjects.

Left and right. In world coordinates x grows to the patient's right, so the centre of `femur_left` has the smaller x
of the two. When it has not, the labels or the header are mirrored, which no picture shows and no metric finds. PNG and
TIFF files have no patient coordinates and are not checked.

`suggest_spec` derives what one would choose by hand: the median voxel size; the slice axis along the coarsest axis, or
along the body when no axis is clearly coarser; a sample that covers 95 % of the subjects, so that a small organ fits
one patch; sizes that can be halved often enough. Of nnU-Net's planning only the budget of 128³ voxels is kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.subjects import Dataset, read_checked
from tfmuscle.volume import Volume

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
SIDE_RATIO = 2.0
"""Left and right of one person seldom differ more than this in volume."""
INTENSITY_RATIO = 100.0
"""Medians that differ more than this between subjects come from different scales or scanners."""
_PERCENTILES = {"p0_5": 0.5, "median": 50.0, "p99_5": 99.5}
_WITHOUT_COORDINATES = (".png", ".tif", ".tiff")
_SLICE_ORIENTATIONS = ("SPL", "PSL", "LSP")
_LIMITS = ("min", "median", "max")
_DEPTHS = {"slices": 1, "stacks": 5, "sequences": 3}


def fingerprint(dataset: Dataset, *, progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """Measures every subject of a dataset and finds what is wrong with it.

    Args:
        dataset: the subjects.
        progress: called with (subjects done, subjects in all, subject id).

    Returns:
        JSON-ready: `name`; `subjects`, one dict each (id, grid, intensities, volumes in ml, problems, warnings);
        `summary` over all of them; and `problems`, every problem in one list, empty when the dataset is fine.
    """
    subjects = []
    for done, subject in enumerate(dataset.subjects, start=1):
        image, labels, problems = read_checked(subject, dataset)
        entry: dict[str, Any] = {"subject_id": subject.subject_id, "problems": problems, "warnings": []}
        if image is not None:
            entry |= _measure_image(image)
        if labels is not None:
            entry |= _measure_labels(labels, dataset.label_map)
            entry["warnings"] = _side_warnings(entry["volumes_ml"], dataset.label_map)
            problems += _exchanged_sides(labels, entry.pop("centres"), dataset.label_map)
        subjects.append(entry)
        if progress is not None:
            progress(done, len(dataset.subjects), subject.subject_id)
    everything = [problem for entry in subjects for problem in entry["problems"]]
    return {
        "name": dataset.name,
        "subjects": subjects,
        "summary": _summarise(subjects, dataset),
        "problems": everything,
    }


def _measure_image(image: Volume) -> dict[str, Any]:
    channels = []
    for channel in np.moveaxis(image.array, 3, 0):
        values = channel[channel != 0]
        values = channel.ravel() if values.size == 0 else values
        mean, sd = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        numbers = np.percentile(values, list(_PERCENTILES.values()))
        found = zip([*_PERCENTILES, "mean", "sd"], [*numbers, mean, sd], strict=True)
        channels.append({name: float(value) for name, value in found})
    grid = image.geometry
    place = {"shape": list(grid.shape), "spacing": list(grid.spacing), "orientation": grid.orientation}
    return place | {"intensities": channels}


def _measure_labels(labels: Volume, label_map: LabelMap) -> dict[str, Any]:
    """Volumes in ml, share of unlabelled voxels, and centres in world mm (taken out again before writing)."""
    ids = np.array(label_map.ids)
    counts, sums, ignored = np.zeros(len(ids)), np.zeros((len(ids), 3)), 0
    for i, slab in enumerate(labels.array):
        j, k = np.nonzero(slab)
        values = slab[j, k]
        known = values != (-1 if label_map.ignore is None else label_map.ignore)
        ignored += int(np.count_nonzero(~known))
        classes = np.searchsorted(ids, values[known])
        found = np.bincount(classes, minlength=len(ids))
        counts += found
        sums[:, 0] += i * found
        for axis, index in ((1, j), (2, k)):
            sums[:, axis] += np.bincount(classes, weights=index[known], minlength=len(ids))
    volumes, centres = {}, {}
    for number, name in enumerate(label_map.structures, start=1):
        volumes[name] = float(counts[number] * labels.geometry.voxel_volume_ml)
        if counts[number]:
            centres[name] = labels.geometry.world(sums[number] / counts[number])
    return {"volumes_ml": volumes, "ignored_share": ignored / labels.array.size, "centres": centres}


def _pairs(names: Iterable[str], label_map: LabelMap) -> list[tuple[str, str]]:
    present = list(names)
    lefts = [name for name in present if label_map.side(name) == "left"]
    return [(left, right) for left in lefts if (right := label_map.partner(left)) in present and right is not None]


def _exchanged_sides(labels: Volume, centres: dict[str, np.ndarray], label_map: LabelMap) -> list[str]:
    if labels.source.lower().endswith(_WITHOUT_COORDINATES):
        return []
    wrong = [left for left, right in _pairs(centres, label_map) if centres[left][0] >= centres[right][0]]
    if not wrong:
        return []
    where = f"{', '.join(wrong[:5])} on the patient's right of the partner"
    remedy = "check the header's orientation or exchange the labels"
    return [f"{labels.source}: left and right look exchanged ({where}); {remedy}"]


def _side_warnings(volumes_ml: dict[str, float], label_map: LabelMap) -> list[str]:
    warnings = []
    for left, right in _pairs([name for name, volume in volumes_ml.items() if volume > 0], label_map):
        smaller, larger = sorted((volumes_ml[left], volumes_ml[right]))
        if larger > SIDE_RATIO * smaller:
            warnings.append(f"{left} has {volumes_ml[left]:.3g} ml, {right} {volumes_ml[right]:.3g} ml; look at both")
    return warnings


def _spread(values: Any) -> dict[str, Any]:
    table = np.array(values, dtype=np.float64)
    limits = {"min": table.min(axis=0), "median": np.median(table, axis=0), "max": table.max(axis=0)}
    return {name: limit.tolist() for name, limit in limits.items()}


def _summarise(subjects: list[dict[str, Any]], dataset: Dataset) -> dict[str, Any]:
    seen = [entry for entry in subjects if "shape" in entry]
    labelled = [entry for entry in subjects if "volumes_ml" in entry]
    summary: dict[str, Any] = {
        "subjects": len(subjects),
        "labelled": len(labelled),
        "with_problems": sum(bool(entry["problems"]) for entry in subjects),
        "channels": list(dataset.channels),
        "orientations": dict(Counter(entry["orientation"] for entry in seen)),
        "structures": {},
        "warnings": [],
    }
    if seen:
        summary |= {"shape": _spread([entry["shape"] for entry in seen])}
        summary |= {"spacing": _spread([entry["spacing"] for entry in seen])}
        summary["warnings"] = _intensity_warnings(seen, dataset.channels)
    for name in dataset.label_map.structures if labelled else ():
        present = [entry["volumes_ml"][name] for entry in labelled if entry["volumes_ml"][name] > 0]
        missing = [entry["subject_id"] for entry in labelled if entry["volumes_ml"][name] == 0]
        volumes = _spread(present) if present else None
        summary["structures"][name] = {"subjects": len(present), "volume_ml": volumes, "missing": missing}
    return summary


def _intensity_warnings(seen: list[dict[str, Any]], channels: tuple[str, ...]) -> list[str]:
    warnings = []
    for number, name in enumerate(channels):
        medians = [entry["intensities"][number]["median"] for entry in seen if number < len(entry["intensities"])]
        low, high = min(map(abs, medians), default=0.0), max(map(abs, medians), default=0.0)
        if high > INTENSITY_RATIO * low > 0:
            warnings.append(
                f"{name}: medians from {low:.3g} to {high:.3g} between subjects; normalise every scan by itself"
            )
    return warnings


def fingerprint_table(found: dict[str, Any]) -> str:
    """Returns a fingerprint as plain text: summary, structures, then problems and warnings."""
    summary = found["summary"]
    lines = [f"{found['name']}: {summary['subjects']} subjects, {summary['labelled']} labelled, "]
    lines[0] += f"{summary['with_problems']} with problems"
    lines.append("channels: " + ", ".join(summary["channels"]))
    if "shape" in summary:
        lines.append("orientations: " + ", ".join(f"{code} {n}" for code, n in summary["orientations"].items()))
        lines.append(f"{'':24}{'minimum':>22}{'median':>22}{'maximum':>22}")
        for title, key, digits in (("shape (voxels)", "shape", 4), ("spacing (mm)", "spacing", 3)):
            cells = [" x ".join(f"{value:.{digits}g}" for value in summary[key][limit]) for limit in _LIMITS]
            lines.append(f"{title:24}" + "".join(f"{cell:>22}" for cell in cells))
    if summary["structures"]:
        lines += ["", f"{'structure (ml)':24}{'subjects':>10}{'minimum':>12}{'median':>12}{'maximum':>12}"]
    for name, entry in summary["structures"].items():
        cells = [f"{entry['volume_ml'][limit]:.4g}" if entry["volume_ml"] else "-" for limit in _LIMITS]
        lines.append(f"{name:24}{entry['subjects']:>10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines + _remarks(found))


def _remarks(found: dict[str, Any]) -> list[str]:
    lines = [f"problem: {problem}" for problem in found["problems"]]
    lines += [f"warning: {warning}" for warning in found["summary"]["warnings"]]
    lines += [f"warning: {entry['subject_id']}: {text}" for entry in found["subjects"] for text in entry["warnings"]]
    for name, entry in found["summary"]["structures"].items():
        if entry["missing"]:
            shown = ", ".join(entry["missing"][:5]) + (", ..." if len(entry["missing"]) > 5 else "")
            lines.append(f"warning: {name} is missing in {len(entry['missing'])} subjects ({shown})")
    return ["", *lines] if lines else []


def suggest_spec(found: dict[str, Any], dataset: Dataset, *, kind: str | None = None) -> DataSpec:
    """Derives settings from a fingerprint.

    Args:
        found: what `fingerprint` returned.
        dataset: the same dataset.
        kind: what a sample is; by default volumes, or slices where voxels are thick or there are few.

    Raises:
        DataError: no subject of the dataset is free of problems.
    """
    usable = [entry for entry in found["subjects"] if "shape" in entry and not entry["problems"]]
    if not usable:
        first = next(iter(found["problems"]), "it is empty")
        raise DataError(f"{dataset.root}: no subject is free of problems; mend the files, first {first}")
    spacings, fields_of_view = zip(*(_in_order(entry, "SPL") for entry in usable), strict=True)
    median = np.median(spacings, axis=0)
    coarse = int(np.argmax(median))
    orientation = _SLICE_ORIENTATIONS[coarse if median[coarse] > COARSE_FACTOR * np.sort(median)[1] else 0]
    order = ["SPL".index(letter) for letter in orientation]
    spacing = np.round(median[order], 4)
    extents = np.array(fields_of_view)[:, order] / spacing
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


def _in_order(entry: dict[str, Any], orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Spacing and field of view in mm along the axes of `orientation`."""
    letters = ["SPL".index({"I": "S", "A": "P", "R": "L"}.get(letter, letter)) for letter in entry["orientation"]]
    axes = [letters.index("SPL".index(letter)) for letter in orientation]
    spacing = np.array(entry["spacing"])[axes]
    return spacing, spacing * np.array(entry["shape"])[axes]


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
