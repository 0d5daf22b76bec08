"""Before the records: `phantom`, `inspect`, `plan_spec`.

The user has a dataset folder (nnU-Net v2, Decathlon or described by a descriptor), or makes one of phantoms; looks at
what is in it; and decides how its scans become samples. `building.py` makes the records.
"""

import glob
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, atomic_path, read_json, write_json
from tfmuscle.io import VOLUME_SUFFIXES, write_volume
from tfmuscle.io.dicom import holds_dicom, list_series
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import KINDS as PHANTOM_KINDS
from tfmuscle.phantom import make_phantom
from tfmuscle.planning import fingerprint, plan_nnunet, suggest_spec
from tfmuscle.presets import get_preset, reduced_data
from tfmuscle.subjects import Dataset, read_dataset
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.planning import planned_spec, preset_plan

PHANTOM_CHANNELS = {"t1": "T1", "water": "fat-suppressed", "ultrasound": "B-mode"}
"""Contrast of a phantom -> name of its one channel."""


def phantom(
    out: str | Path,
    *,
    subjects: int,
    seed: int = 0,
    kind: str = "bones",
    contrast: str | None = None,
    spacing: tuple[float, float, float] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a dataset of synthetic limbs in nnU-Net's layout, with `volumes.json` of closed-form volumes in ml.

    Args:
        out: folder to make; must not hold another dataset.
        subjects: how many.
        seed: the same seed gives the same voxels.
        kind: one of `phantom.KINDS`.
        contrast: "t1", "water" (fat-suppressed) or "ultrasound"; the kind's own by default.
        spacing: voxel size along x, y, z in mm; the kind's own by default. The field of view stays the same.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        ValueError: an unknown kind, no subject, or a spacing that is not positive.
        DataError: `out` holds something else.
    """
    out = Path(out)
    if kind not in PHANTOM_KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(PHANTOM_KINDS)}")
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}; at least one is needed")
    if contrast == "dixon":
        raise ValueError("contrast is 'dixon', of two channels; phantom datasets have one, choose t1 or water")
    if spacing is not None and not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"spacing is {spacing}; three positive numbers in mm are needed")
    description = {"kind": kind, "seed": seed, "subjects": subjects} | ({"contrast": contrast} if contrast else {})
    description |= {"spacing": list(spacing)} if spacing else {}
    _claim(out, description)
    volumes: dict[str, dict[str, float]] = {}
    with atomic_path(out) as folder:
        for number in range(subjects):
            subject_id = f"{kind}_{number:03d}"
            made = make_phantom(kind, seed=seed * 100_003 + number, spacing=spacing, contrast=contrast)
            write_volume(folder / "imagesTr" / f"{subject_id}_0000.nii.gz", made.image)
            write_volume(folder / "labelsTr" / f"{subject_id}.nii.gz", made.labels)
            volumes[subject_id] = dict(made.volumes_ml)
            if progress is not None:
                progress(number + 1, subjects, subject_id)
        write_json(folder / "volumes.json", volumes)
        about = _phantom_dataset_json(kind, contrast, made.label_map, subjects) | {"phantom": description}
        write_json(folder / "dataset.json", about)
    return out


def _claim(out: Path, description: Mapping[str, Any]) -> None:
    """Refuses a folder that holds anything but the same phantoms, and removes what a killed run left beside it."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; name a folder")
    same = (out / "dataset.json").exists() and read_json(out / "dataset.json").get("phantom") == description
    if out.is_dir() and any(out.iterdir()) and not same:
        raise DataError(f"{out}: holds another dataset or other files; name another folder")
    for leftover in out.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(out.name)}") if out.parent.is_dir() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def _phantom_dataset_json(kind: str, contrast: str | None, label_map: LabelMap, subjects: int) -> dict[str, Any]:
    return {
        "name": f"phantom_{kind}" + (f"_{contrast}" if contrast else ""),
        "description": f"synthetic {kind} limbs made by tfmuscle; no patient",
        "licence": "CC0-1.0",
        "channel_names": {"0": PHANTOM_CHANNELS[contrast or ("ultrasound" if kind == "ultrasound" else "t1")]},
        "labels": label_map.to_dict(),
        "numTraining": subjects,
        "file_ending": ".nii.gz",
    }


def inspect(path: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Checks every scan of a dataset and returns its fingerprint; of DICOM without a dataset, lists the series.

    `problems` says what is wrong, one line each: for a dataset every problem of a scan, for DICOM every damaged file,
    and that nothing can be used if so.

    Args:
        path: a dataset folder, or a DICOM file, nested folder, DICOMDIR or zip.
        progress: called with (subjects or files done, in all, subject).

    Returns:
        The fingerprint and nnU-Net's `plan` (None without labelled scans), or
        `{"series": [SeriesInfo.to_dict(), ...]}`; and `problems`.

    Raises:
        DataError: there is neither.
    """
    path = Path(path)
    if path.suffix.lower() != ".json" and not (path / "dataset.json").is_file() and holds_dicom(path):
        series = list_series(path, progress=progress)
        problems = [item.fitness for item in series if item.kind == "damaged"]
        if not any(item.is_usable for item in series):
            problems.append(f"{path}: no series can be used; see why in the list")
        return {"series": [item.to_dict() for item in series], "problems": problems}
    if path.name.lower().endswith(VOLUME_SUFFIXES) and path.is_file():
        raise DataError(f"{path}: is one image; give the dataset's folder, or a folder of DICOM")
    dataset = read_dataset(path)
    found = fingerprint(dataset, progress=progress)
    found["problems"] = [problem for subject in found["subjects"] for problem in subject["problems"]]
    try:
        return found | {"plan": plan_nnunet(found, dataset)}
    except DataError:  # nothing is labelled and sound, which `problems` or `summary` say
        return found | {"plan": None}


def plan_spec(
    dataset: Dataset,
    settings: Mapping[str, Any],
    *,
    preset: str | None = None,
    scale: str = "full",
    plan: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> DataSpec:
    """Decides how scans become samples: the user's settings, then the preset, then a plan from the fingerprint.

    Args:
        dataset: an indexed dataset.
        settings: fields of `DataSpec` the user gave.
        preset: name of a recipe.
        scale: "laptop" cuts the sample down.
        plan: for a preset that follows nnU-Net's plan; made when none is given.
        progress: of the fingerprint.
    """
    if preset is not None and get_preset(preset).plan:
        plan = plan or preset_plan(dataset, preset, scale=scale, progress=progress)
        return planned_spec(dataset, settings, plan or {}, preset=preset, scale=scale)
    chosen = dict(get_preset(preset).data) if preset else {}
    if (patches := settings.get("patches", chosen.get("patches"))) in ("whole", "boxes"):
        raise DataError(
            f"{dataset.root}: patches {patches!r} are samples of a cascade, which 'tfmuscle fit --preset ni_cascade'"
            " makes, and 'tfmuscle study -i RUN_records/MUSCLE' varies; or choose another preset"
        )
    if settings.get("kind", chosen.get("kind")) != chosen.get("kind"):
        chosen = {key: value for key, value in chosen.items() if key not in ("kind", "depth", "size")}
    kind = settings.get("kind") or chosen.get("kind") or "slices"
    needed = {"size", "spacing", "depth"} if kind in ("volumes", "sequences") else {"size", "spacing"}
    if needed <= set(chosen) | set(settings):
        values: dict[str, Any] = {"label_map": dataset.label_map, "name": dataset.name, "channels": dataset.channels}
    else:
        suggested = _suggestion(dataset, kind, progress)
        values = {name: getattr(suggested, name) for name in DataSpec.__dataclass_fields__}
    values |= chosen | {"preset": preset, "kind": kind}
    if scale == "laptop":
        values = reduced_data(values, get_preset(preset).laptop.get("data") if preset else None)
    return DataSpec(**values | dict(settings) | {"scale": scale})


def _suggestion(dataset: Dataset, kind: str, progress: Progress | None) -> DataSpec:
    try:
        return suggest_spec(fingerprint(dataset, progress=progress), dataset, kind=kind)
    except ValueError as error:
        raise DataError(f"{dataset.root}: {error}") from error
