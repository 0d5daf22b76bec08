"""From a folder of unlabelled scans to an encoder that `fit --from` starts with: `pretrain`.

Scans are cut into slices as those of later records will be: `like` names records whose settings are taken over, so that
the encoder sees what the segmentation will see. Labels are never read. A scan that cannot be used is named and the
others go on.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.config import DataSpec, Pretraining, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.losses.contrastive import position, quarter
from tfmuscle.preprocessing import preprocess
from tfmuscle.presets import get_preset, reduced_data, reduced_training
from tfmuscle.records import load_spec
from tfmuscle.sampling import cut
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.training import contrastive
from tfmuscle.workflows.building import Progress

PRESET = "casali_pcl"
LARGEST_BYTES = 2 << 30
"""Slices are held in memory, twice."""


@dataclass(frozen=True)
class PretrainPlan:
    """What is asked for: how scans become slices, how the encoder is trained, and what counts as alike."""

    spec: DataSpec
    config: TrainConfig
    settings: Pretraining


@dataclass(frozen=True)
class PretrainResult:
    """The run folder, the number of slices, the subjects that could not be used and why."""

    run: Path
    slices: int
    failures: dict[str, str]


def plan_pretraining(
    source: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    method: Mapping[str, Any] | None = None,
    like: str | Path | None = None,
    preset: str = PRESET,
    scale: str = "full",
) -> PretrainPlan:
    """Decides how an encoder is trained: the user's settings, then the preset's, then the defaults.

    Args:
        source: dataset, or folder of scans.
        data: fields of `DataSpec`.
        training: fields of `TrainConfig`.
        recipe: fields of `Supervised`.
        method: fields of `Pretraining`.
        like: records whose samples the slices shall be like.
        preset: a recipe with pre-training.
        scale: "laptop" cuts it down.

    Raises:
        DataError: `like` holds no records, or records of volumes.
        ValueError: a preset without pre-training, a threshold where nothing asks for it, or a setting that cannot be.
    """
    chosen = get_preset(preset)
    if not chosen.pretraining:
        raise ValueError(f"preset {preset} has no pre-training; {PRESET} has")
    if like is not None:
        spec = load_spec(like)
        if spec.is_volumetric or spec.prior:
            raise DataError(f"{like}: holds {spec.kind}; pre-training is for slices and stacks of scans alone")
        name = _scans(Path(source), spec.channels)[1]  # whose scans these are, not whose the records are
        spec = dataclasses.replace(spec, label_map=LabelMap({}), name=name, **dict(data or {}))
    else:
        _, name, channels = _scans(Path(source), None)
        values = dict(chosen.data) | ({"scale": "laptop"} if scale == "laptop" else {})
        if scale == "laptop":
            values = reduced_data(values, chosen.laptop.get("data"))
        spec = DataSpec(LabelMap({}), **values | {"name": name, "channels": channels} | dict(data or {}))
    settings = Pretraining(**dict(method or {}))
    if "threshold" in (method or {}) and settings.method != "pcl":
        raise ValueError(
            f"threshold is {settings.threshold}, which method {settings.method} does not use; leave it out, or use pcl"
        )
    own = dict(chosen.pretraining)
    if scale == "laptop":
        own = reduced_training(own, chosen.laptop.get("pretraining"))
    own |= {"preset": preset} | dict(training or {})
    supervised = Supervised(**{"augmentation": "positional", "selection": "loss"} | dict(recipe or {}))
    return PretrainPlan(spec, TrainConfig(**own | {"recipe": supervised}), settings)


def _scans(source: Path, channels: tuple[str, ...] | None) -> tuple[tuple[Subject, ...], str, tuple[str, ...]]:
    """Returns the scans of a dataset or a folder, its name, and the channels."""
    if (source / "dataset.json").exists():
        dataset = read_dataset(source)
        return dataset.subjects, dataset.name, dataset.channels
    channels = channels or ("image",)
    return read_scans(source, channels), source.resolve().name, channels


def pretrain(
    source: str | Path,
    run: str | Path,
    plan: PretrainPlan,
    *,
    leave_out: Collection[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> PretrainResult:
    """Trains an encoder on all slices of all scans.

    Args:
        source: dataset (its labels are not read), or folder of scans.
        run: run folder to make.
        plan: from `plan_pretraining`.
        leave_out: subjects that are not looked at, such as those of a test.
        resume: go on with an interrupted run.
        progress: called with (steps done, steps in all, note), for the scans first and then the training.

    Raises:
        DataError: no scan can be used, they do not fit into memory, or the folder holds another run.
    """
    source, run = Path(source), Path(run)
    contrastive.check_folder(run, resume=resume)
    everybody = _scans(source, plan.spec.channels)[0]
    if unknown := sorted(set(leave_out) - {subject.subject_id for subject in everybody}):
        raise DataError(
            f"{source}: holds no scan called {', '.join(unknown)}, which shall be left out; check the names"
        )
    subjects = [subject for subject in everybody if subject.subject_id not in leave_out]
    if not subjects:
        raise DataError(f"{source}: every scan is left out; give others")
    slices, about, used, failures = _slices(subjects, plan.spec, progress)
    if not len(slices):
        raise DataError(f"{source}: no scan could be used; the first: {next(iter(failures.values()))}")
    contrastive.pretrain(
        slices,
        about,
        run,
        plan.spec,
        plan.config,
        plan.settings,
        subjects=used,
        resume=resume,
        progress=progress,
    )
    return PretrainResult(run, len(slices), failures)


def _slices(
    subjects: list[Subject], spec: DataSpec, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, str]]:
    """Returns slices `(M, ...)`, what is known of each `(M, 3)`, whose they are, and who could not be used and why."""
    slices: list[np.ndarray] = []
    places: list[tuple[float, int]] = []
    used, failures = [], {}
    for number, subject in enumerate(subjects, start=1):
        try:
            own, known = _slices_of(subject, spec)
        except DataError as error:
            failures[subject.subject_id] = str(error)
        else:
            slices += own
            places += known
            used.append(subject.subject_id)
        if slices and len(slices) * slices[0].nbytes > LARGEST_BYTES:
            raise DataError(
                f"{subject.images[0]}: slices of {number} scans take more than {LARGEST_BYTES >> 30} GB of memory; use"
                " --resize with a smaller --size, a coarser --spacing, or fewer scans"
            )
        if progress is not None:
            progress(number, len(subjects), f"slices of {subject.subject_id}")
    about = np.array([(number, *place) for number, place in enumerate(places)], np.float32)
    return (np.stack(slices) if slices else np.empty(0, np.float16)), about, used, failures


def _slices_of(subject: Subject, spec: DataSpec) -> tuple[list[np.ndarray], list[tuple[float, int]]]:
    scan, _ = preprocess(subject.read_image(), None, spec)
    depth, largest = scan.geometry.shape[0], np.finfo(np.float16).max
    if not np.abs(scan.array).max() <= largest:
        raise DataError(
            f"{subject.images[0]}: scaled intensities beyond {largest:g}; use --like records of another kind"
        )
    samples = list(cut(scan.array, None, spec))
    indices = [sample["start"][0] for sample in samples]
    places = [(position(index, depth), quarter(index, depth)) for index in indices]
    return [sample["image"].astype(np.float16) for sample in samples], places
