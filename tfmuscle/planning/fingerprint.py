"""What a dataset is like: every subject read once, measured and judged.

`fingerprint` records grids, intensities, volumes and everything that is wrong, without stopping at the first. Its
result is plain JSON. Problems make a subject useless for training; warnings are for a look: a structure far larger on
one side, intensities that differ a hundredfold between subjects.

Left and right. In world coordinates x grows to the patient's right, so the centre of `femur_left` has the smaller x
of the two. When it has not, the labels or the header are mirrored, which no picture shows and no metric finds. PNG and
TIFF files have no patient coordinates and are not checked.

For nnU-Net's rules (`nnunet.py`) it also records the shape that is left when the margin of zeros is cut away, and the
intensities under the labels over the whole dataset. Those are samples, as in nnU-Net: the same number from every
subject, drawn with replacement so that small structures count as much as large ones, with a fixed seed, and few enough
to stay within 40 MB a channel however many subjects there are. Unlabelled voxels (`LabelMap.ignore`) are left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing.grid import crop_to_nonzero
from tfmuscle.subjects import Dataset, read_checked
from tfmuscle.volume import Volume

SIDE_RATIO = 2.0
"""Left and right of one person seldom differ more than this in volume."""
INTENSITY_RATIO = 100.0
"""Medians that differ more than this between subjects come from different scales or scanners."""
FOREGROUND_SAMPLES = 10_000
"""Intensities drawn from the structures of each subject and channel."""
FOREGROUND_TOTAL = 10_000_000
"""Intensities kept over all subjects, per channel; with more than 1000 subjects each gives fewer."""
_FOREGROUND_SEED = 1234
_PERCENTILES = {"p0_5": 0.5, "median": 50.0, "p99_5": 99.5}
_WITHOUT_COORDINATES = (".png", ".tif", ".tiff")
_LINES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_LIMITS = ("min", "median", "max")


def fingerprint(dataset: Dataset, *, progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """Measures every subject of a dataset and finds what is wrong with it.

    Args:
        dataset: the subjects.
        progress: called with (subjects done, subjects in all, subject id).

    Returns:
        JSON-ready: `name`; `subjects`, one dict each (id, grid, grid without the margin of zeros, intensities, volumes
        in ml, problems, warnings); `summary` over all of them; and `problems`, every problem in one list, empty when
        the dataset is fine.
    """
    subjects = []
    samples: list[np.ndarray] = []
    for done, subject in enumerate(dataset.subjects, start=1):
        image, labels, problems = read_checked(subject, dataset)
        entry: dict[str, Any] = {"subject_id": subject.subject_id, "problems": problems, "warnings": []}
        if image is not None:
            entry |= _measure_image(image)
        if labels is not None:
            entry |= _measure_labels(labels, dataset.label_map)
            entry["warnings"] = _side_warnings(entry["volumes_ml"], dataset.label_map)
            problems += _exchanged_sides(labels, entry.pop("centres"), dataset.label_map)
        if image is not None and labels is not None and not problems:
            samples.append(_foreground_samples(image, labels, dataset))
        subjects.append(entry)
        if progress is not None:
            progress(done, len(dataset.subjects), subject.subject_id)
    everything = [problem for entry in subjects for problem in entry["problems"]]
    return {
        "name": dataset.name,
        "subjects": subjects,
        "summary": _summarise(subjects, dataset) | {"foreground_intensities": _foreground(samples)},
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
    kept = crop_to_nonzero(image)[0].geometry.shape
    place = {"shape": list(grid.shape), "spacing": list(grid.spacing), "orientation": grid.orientation}
    place |= {"shape_after_cropping": list(kept), "share_after_cropping": float(np.prod(kept) / np.prod(grid.shape))}
    return place | {"intensities": channels}


def _foreground_samples(image: Volume, labels: Volume, dataset: Dataset) -> np.ndarray:
    """Draws intensities `(number, channels)` under the structures, with replacement; the seed is fixed."""
    structure = labels.array > 0
    if dataset.label_map.ignore is not None:
        structure &= labels.array != dataset.label_map.ignore
    number = max(1, min(FOREGROUND_SAMPLES, FOREGROUND_TOTAL // len(dataset.subjects)))
    chosen = np.random.default_rng(_FOREGROUND_SEED).integers(np.count_nonzero(structure), size=number)
    return np.stack([channel[structure][chosen] for channel in np.moveaxis(image.array, 3, 0)], axis=1)


def _foreground(samples: list[np.ndarray]) -> list[dict[str, float]]:
    """Mean, sd and percentiles of each channel over all subjects; [] when no subject is labelled."""
    found = []
    for channel in np.concatenate(samples).T if samples else ():
        numbers = np.percentile(channel, list(_PERCENTILES.values()))
        values = [channel.mean(dtype=np.float64), channel.std(dtype=np.float64), *numbers]
        found.append({name: float(value) for name, value in zip(["mean", "sd", *_PERCENTILES], values, strict=True)})
    return found


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
        summary |= {"share_after_cropping": float(np.median([entry["share_after_cropping"] for entry in seen]))}
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


def usable_subjects(found: dict[str, Any], dataset: Dataset) -> list[dict[str, Any]]:
    """Returns the subjects of a fingerprint that are free of problems.

    Raises:
        DataError: there is none.
    """
    usable = [entry for entry in found["subjects"] if "shape" in entry and not entry["problems"]]
    if not usable:
        first = next(iter(found["problems"]), "it is empty")
        raise DataError(f"{dataset.root}: no subject is free of problems; mend the files, first {first}")
    return usable


def along(entry: dict[str, Any], key: str, orientation: str = "SPL") -> list[float]:
    """Returns what a subject's fingerprint says of each axis, in the order of `orientation`.

    >>> along({"shape": [35, 50, 36], "orientation": "RAS"}, "shape")
    [36, 50, 35]
    """
    axes = [_LINES[letter] for letter in entry["orientation"]]
    return [entry[key][axes.index(_LINES[letter])] for letter in orientation]
