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
LARGEST_BYTES = 4 << 30
"""Slices are held in memory."""


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
        ValueError: a preset without pre-training, or a setting that cannot be.
    """
    chosen = get_preset(preset)
    if not chosen.pretraining:
        raise ValueError(f"preset {preset} has no pre-training; {PRESET} has")
    if like is not None:
        spec = load_spec(like)
        if spec.is_volumetric or spec.prior:
            raise DataError(f"{like}: holds {spec.kind}; pre-training is for slices and stacks of scans alone")
        spec = dataclasses.replace(spec, label_map=LabelMap({}), **dict(data or {}))
    else:
        _, name, channels = _scans(Path(source))
        values = dict(chosen.data) | ({"scale": "laptop"} if scale == "laptop" else {})
        if scale == "laptop":
            values = reduced_data(values, chosen.laptop.get("data"))
        spec = DataSpec(LabelMap({}), **values | {"name": name, "channels": channels} | dict(data or {}))
    own = dict(chosen.pretraining)
    if scale == "laptop":
        own = reduced_training(own, chosen.laptop.get("pretraining"))
    own |= {"preset": preset} | dict(training or {})
    supervised = Supervised(**{"augmentation": "positional", "selection": "loss"} | dict(recipe or {}))
    return PretrainPlan(spec, TrainConfig(**own | {"recipe": supervised}), Pretraining(**dict(method or {})))


def _scans(source: Path) -> tuple[tuple[Subject, ...], str, tuple[str, ...]]:
    if (source / "dataset.json").exists():
        dataset = read_dataset(source)
        return dataset.subjects, dataset.name, dataset.channels
    return read_scans(source, ("image",)), source.resolve().name, ("image",)


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
    subjects = [subject for subject in _scans(source)[0] if subject.subject_id not in leave_out]
    if not subjects:
        raise DataError(f"{source}: every scan is left out; give others")
    slices, about, used, failures = _slices(subjects, plan.spec, progress)
    if not slices:
        raise DataError(f"{source}: no scan could be used; the first: {next(iter(failures.values()))}")
    contrastive.pretrain(
        np.stack(slices),
        np.array(about, np.float32),
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
) -> tuple[list[np.ndarray], list[tuple[int, float, int]], list[str], dict[str, str]]:
    """Returns slices, what is known of each, the subjects they are of, and who could not be used and why."""
    slices: list[np.ndarray] = []
    about: list[tuple[int, float, int]] = []
    used, failures = [], {}
    for number, subject in enumerate(subjects, start=1):
        try:
            scan, _ = preprocess(subject.read_image(), None, spec)
            depth = scan.geometry.shape[0]
            for sample in cut(scan.array, None, spec):
                index = sample["start"][0]
                about.append((len(slices), position(index, depth), quarter(index, depth)))
                slices.append(sample["image"].astype(np.float16))
            used.append(subject.subject_id)
        except DataError as error:
            failures[subject.subject_id] = str(error)
        if slices and len(slices) * slices[0].nbytes > LARGEST_BYTES:
            raise DataError(
                f"{subject.images[0]}: slices of {number} scans take more than {LARGEST_BYTES >> 30} GB of memory; use"
                " a smaller --size, or fewer scans"
            )
        if progress is not None:
            progress(number, len(subjects), f"slices of {subject.subject_id}")
    return slices, about, used, failures
