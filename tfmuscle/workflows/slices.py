"""One scan and a few labelled slices: `slices_dataset` and `fit_slices`.

A scan whose slices are labelled in part becomes a dataset of several *subjects* that share the scan and differ in the
slices of which their labels speak; in all others every voxel has the ignore id. So records, losses, metrics, figures
and folds need to know nothing new: folds of subjects are folds of slices.

    slices_dataset(alone=True)    one subject for each labelled slice: cross-validation of slices, leave one slice out
    slices_dataset(alone=False)   `<scan>_training_slices`, and `<scan>` with the slices that validate

    RUN_slices/   that dataset          RUN_records/  its samples
    RUN/          the trained network   RUN_labels/   labels of the whole scan
    RUN_report/   what `evaluate` says of the slices that validate

What validates lies in the same scan as what trains. `fit_slices` says how many mm apart; figures of such slices tell
how well the network fills in between slices of this scan, and nothing about another person.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, read_json, write_json
from tfmuscle.folds import assign_folds
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.labelled_slices import LabelledSlices, find_slices, free_id, only
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import METRICS
from tfmuscle.presets import get_preset
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.data import plan_spec
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.learning import fit
from tfmuscle.workflows.predicting import PredictOptions, predict
from tfmuscle.workflows.slice_labels import SliceLabels, one_scan, read_slice_labels

TRAINING_SUFFIX = "_training_slices"
ORIENTATIONS = {"SI": "SPL", "AP": "PSL", "RL": "LSP"}
"""Axes of the samples when slices follow each other from foot to head, from front to back, and from side to side."""
LARGEST_EDGE, MULTIPLE = 256, 32
"""A sample has at most so many pixels along an edge, in multiples that networks can halve."""
_METRICS = ("dice_2d_mean", "dice", "iou")


@dataclass(frozen=True)
class SlicesResult:
    """What `fit_slices` made.

    Attributes:
        labels: segmentation of the whole scan.
        figures: structure -> `dice_2d_mean`, `dice` (3D) and `iou` over the slices that validate, of those on them.
        slices: all labelled slices.
        validating: those that validate.
        reduced: whether the recipe was cut down.
        absent: structures that are on none of the slices that validate, neither drawn nor found.
    """

    labels: Path
    figures: dict[str, dict[str, float]]
    slices: LabelledSlices
    validating: tuple[int, ...]
    reduced: bool
    absent: tuple[str, ...] = ()


def slices_dataset(source: SliceLabels, out: str | Path, *, alone: bool) -> LabelledSlices:
    """Writes a scan with a few labelled slices as a dataset.

    Args:
        source: scan and labels.
        out: folder to make; one that was made from the same slices stays as it is.
        alone: every labelled slice that shows something is a subject; else there are two, who train and who validate.

    Raises:
        DataError: files that cannot be used or do not fit, too few slices, or a folder that holds something else.
    """
    out = Path(out)
    subject = one_scan(source.scan)
    labels, label_map = read_slice_labels(source.labels, source.names)
    image = subject.read_image()
    if not labels.geometry.same_grid(image.geometry):
        raise DataError(f"{source.labels}: not on the grid of {source.scan}; resample it by nearest neighbour")
    try:
        slices = find_slices(labels, label_map, axis=source.axis, listed=source.listed)
        groups = _groups(subject.subject_id, slices, alone=alone)
    except ValueError as error:
        raise DataError(f"{source.labels}: {error}") from error
    ignore = free_id(label_map)
    known = dataclasses.replace(label_map, ignore=ignore)
    note = {
        "axis": slices.axis,
        "labelled": list(slices.indices),
        "groups": {key: list(indices) for key, indices in groups.items()},
        "labels": known.to_dict(),
        "grid": image.geometry.to_dict(),
        "sha256": [hashlib.sha256(volume.array.tobytes()).hexdigest() for volume in (image, labels)],
    }
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        if not (out / "dataset.json").exists() or read_json(out / "dataset.json").get("slices") != note:
            raise DataError(
                f"{out}: holds something else, or was made of other labels or another scan; name another output"
            )
        return slices
    with atomic_path(out) as folder:
        name = f"imagesTr/{subject.subject_id}_0000.nii.gz"
        write_volume(folder / name, image.with_array(image.array[..., 0]))
        entries = {}
        for key, indices in groups.items():
            path = f"labelsTr/{key}.nii.gz"
            write_volume(folder / path, only(labels, slices, indices, ignore))
            entries[key] = {"images": [name], "label": path}
        about: dict[str, Any] = {
            "name": f"{subject.subject_id}_slices",
            "channel_names": {"0": "image"},
            "labels": known.to_dict(),
        }
        about |= {"file_ending": ".nii.gz", "numTraining": len(entries), "dataset": entries, "slices": note}
        write_json(folder / "dataset.json", about)
    return slices


def _groups(name: str, slices: LabelledSlices, *, alone: bool) -> dict[str, tuple[int, ...]]:
    if alone:
        shown = [index for index in slices.indices if index not in slices.empty]
        if len(shown) < 2:
            raise ValueError(f"{len(shown)} labelled slice(s) to compare; 2 are needed at least")
        return {f"{name}_slice_{index:04d}": (index,) for index in shown}
    validating = slices.validating()
    return {name: validating, f"{name}{TRAINING_SUFFIX}": tuple(i for i in slices.indices if i not in validating)}


def fit_slices(
    source: SliceLabels,
    run: str | Path,
    config: TrainConfig,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> SlicesResult:
    """Trains on a few slices of one scan, labels the whole scan and measures the slices that validated.

    Args:
        source: scan and labels.
        run: run folder to make; the other folders stand beside it.
        config: how to train; its fold is decided here.
        settings: fields of `DataSpec` that go before the preset's.
        resume: go on with an interrupted run.
        progress: called with (steps done, steps in all, note).
        say: called with what the user should know.

    Raises:
        DataError: as `slices_dataset`, or records that do not fit the model.
        ValueError: a preset that learns from whole scans.
    """
    preset = get_preset(config.preset) if config.preset else None
    if preset is not None and (preset.plan or preset.networks or preset.propagation):
        raise ValueError(f"preset {config.preset} learns from whole scans; choose another, such as mehrabi_latent")
    run = Path(run)
    home, records, labels, report = (_beside(run, part) for part in ("slices", "records", "labels", "report"))
    if not home.exists() and (run / "train.json").exists():
        raise DataError(f"{run}: was trained on labels that {home} held, which is gone; name another output")
    slices = slices_dataset(source, home, alone=False)
    dataset, validating = read_dataset(home), slices.validating()
    name = one_scan(source.scan).subject_id
    if say is not None:
        for sentence in (_leakage(slices, validating), *slices.notes()):
            say(sentence)
    asked = sample_settings(slices, dataset.subjects[0].read_image()) | {"folds": 2, "test": 0}
    if preset is None or "kind" not in preset.data:
        asked |= {"kind": "stacks", "depth": 5}
    spec = plan_spec(dataset, asked | dict(settings or {}), preset=config.preset, scale=config.scale, progress=progress)
    if failures := build_records(dataset, records, spec, progress=progress).failures:
        raise DataError("; ".join(failures.values()))
    fold = assign_folds([s.subject_id for s in dataset.subjects], folds=2, seed=spec.seed)[name]
    fit(records, run, dataclasses.replace(config, fold=fold), resume=resume, progress=progress, say=say)
    options = PredictOptions(resume=resume)
    result = predict(run, home, labels, part="validation", options=options, progress=progress)
    if result.failures:
        raise DataError("; ".join(result.failures.values()))
    evaluate(labels, home, report, progress=progress)
    truth = next(s for s in dataset.subjects if s.subject_id == name).read_labels(dataset.label_map)
    figures = _figures(read_label_image(result.written[name]), truth, dataset.label_map, slices)
    absent = tuple(structure for structure in dataset.label_map.structures if structure not in figures)
    return SlicesResult(result.written[name], figures, slices, validating, result.reduced, absent)


def sample_settings(slices: LabelledSlices, scan: Volume) -> dict[str, Any]:
    """Returns fields of `DataSpec` for samples along the labelled slices: nothing is resampled, for there is one scan.

    Args:
        slices: which are labelled, along which axis.
        scan: the scan.
    """
    letter = scan.geometry.orientation[slices.axis]
    orientation = next(codes for letters, codes in ORIENTATIONS.items() if letter in letters)
    _, height, width = scan.reoriented(orientation).geometry.shape
    fitting = [min(LARGEST_EDGE, MULTIPLE * -(-edge // MULTIPLE)) for edge in (height, width)]
    return {"orientation": orientation, "spacing": None, "size": (fitting[0], fitting[1])}


def _figures(found: Volume, truth: Volume, label_map: LabelMap, slices: LabelledSlices) -> dict[str, dict[str, float]]:
    """Returns structure -> figures over the slices of which `truth` speaks; 2D means slices as they were drawn.

    A structure that is neither drawn nor found there has none: two empty masks agree, and measure nothing.
    """
    mask = truth.array != label_map.ignore
    figures = {}
    for structure in label_map.structures:
        one, other = (volume.array == label_map.id_of(structure) for volume in (found, truth))
        if not (mask & (one | other)).any():
            continue
        extra = {"dice_2d_mean": {"axis": slices.axis}}
        figures[structure] = {
            name: float(METRICS[name].function(one, other, mask=mask, **extra.get(name, {}))) for name in _METRICS
        }
    return figures


def _beside(run: Path, part: str) -> Path:
    return run.with_name(f"{run.name}_{part}")


def _leakage(slices: LabelledSlices, validating: Sequence[int]) -> str:
    shown = ", ".join(map(str, validating))
    apart = f"{slices.apart_mm(validating):g} mm from slices that train, in the same person"
    return (
        f"slices {shown} of {len(slices.indices)} labelled ones along axis {slices.axis} validate and choose the epoch;"
        f" they lie {apart}: their Dice says how well this scan is filled in, not how another scan would fare"
    )
