"""nnU-Net's plan in the jobs: made, kept beside the records, and read again.

The user asks for a plan (`make_plan`), may edit it, and gives it to `build-records`; or leaves that out, and the plan
is made on the way. It is left beside the records (`keep_plan`), where `fit` takes model and batch size from it
(`training_plan`). An option of the user beats the preset, the preset beats the plan, the plan beats the defaults.

Refused, because the result would be neither the one nor the other: a plan of another scale or mode than the preset's,
and one that lacks the preset's configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.planning import fingerprint, load_plan, plan_nnunet
from tfmuscle.planning.nnunet import FORMAT
from tfmuscle.planning.plan_file import check_window, spec_of
from tfmuscle.presets import get_preset
from tfmuscle.subjects import Dataset, read_dataset
from tfmuscle.workflows.building import Progress

PLAN_FILE = "plan.json"


def make_plan(
    dataset: str | Path | Dataset,
    *,
    mode: str = "nnunet_v2",
    scale: str = "full",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Reads every scan of a dataset and plans by nnU-Net's rules; see `planning.plan_nnunet`.

    Args:
        dataset: a dataset folder, or an indexed dataset.
        mode: "nnunet_v2", or "seed002" for nnU-Net as Cheena describes it.
        scale: "laptop" for patches and widths that two cores can train.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        DataError: no subject is labelled and free of problems.
    """
    dataset = dataset if isinstance(dataset, Dataset) else read_dataset(dataset)
    return plan_nnunet(fingerprint(dataset, progress=progress), dataset, mode=mode, scale=scale)


def read_plan(path: str | Path) -> dict[str, Any]:
    """Reads and checks a plan; a mistake in it is a `DataError` that names file, key and remedy."""
    return load_plan(path)


def check_plan_file(path: str | Path) -> Path:
    """Refuses, before any scan is read, a place where no plan can be written; one with a plan is looked at later.

    Raises:
        DataError: a folder, or a file that is no plan.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file, such as {path / PLAN_FILE}")
    if path.exists() and read_json(path).get("format") != FORMAT:
        raise DataError(f"{path}: holds something else, which is no plan; name another file")
    return path


def save_plan(path: str | Path, plan: Mapping[str, Any]) -> Path:
    """Writes a plan; a file that holds anything else, such as an edited plan, is not replaced.

    Raises:
        DataError: the file is there and holds something else.
    """
    path = check_plan_file(path)
    if path.exists() and read_json(path) != plan:
        raise DataError(f"{path}: holds something else, perhaps edits of yours; name another file, or remove this one")
    write_json(path, plan)
    return path


def preset_plan(
    dataset: Dataset,
    preset: str | None,
    *,
    scale: str = "full",
    path: str | Path | None = None,
    records: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Returns the plan that a preset follows, read or made; None for a preset that follows none.

    Args:
        dataset: the scans to plan for.
        preset: name of a recipe.
        scale: what the records or the training are asked to be.
        path: plan to read.
        records: folder of records; without `path`, the plan that is there already is read.
        progress: of the fingerprint, where a plan is made.

    Raises:
        ValueError: a plan is given to a preset that follows none.
        DataError: the plan is of another scale or mode, or lacks the preset's configuration.
    """
    if preset is None or not get_preset(preset).plan:
        if path is not None:
            raise ValueError(f"a plan is given, but preset {preset or 'none'} follows none; choose one as nnunet_3d")
        return None
    if path is None and records is not None and (Path(records) / PLAN_FILE).exists():
        path = Path(records) / PLAN_FILE
    if path is not None:
        return _suited(read_plan(path), preset, scale, str(path))
    plan = make_plan(dataset, mode=_mode(preset), scale=scale, progress=progress)
    return _suited(plan, preset, scale, str(dataset.root))


def planned_spec(
    dataset: Dataset, settings: Mapping[str, Any], plan: Mapping[str, Any], *, preset: str, scale: str = "full"
) -> DataSpec:
    """Decides how scans become samples: the user's settings, then the preset, then its configuration of the plan.

    Raises:
        ValueError: the user's sample is of another kind, or one that the plan's network cannot halve.
        DataError: the plan does not suit the dataset.
    """
    chosen = get_preset(preset)
    configuration = plan["configurations"][chosen.plan]
    kind = configuration["data"]["kind"]
    if settings.get("kind", kind) != kind:
        raise ValueError(f"kind is {settings['kind']!r}, but preset {preset} plans {kind}; choose another preset")
    try:
        planned = spec_of(configuration, label_map=dataset.label_map, name=dataset.name, channels=dataset.channels)
    except ValueError as error:
        raise DataError(f"plan for {dataset.root}: configurations.{chosen.plan}.data: {error}") from error
    fields = {name: getattr(planned, name) for name in DataSpec.__dataclass_fields__} | dict(chosen.data)
    fields |= chosen.laptop.get("data", {}) if scale == "laptop" else {}
    spec = DataSpec(**fields | dict(settings) | {"preset": preset, "scale": scale})
    try:
        check_window(spec.window, configuration["training"].get("model_options", {}))
    except ValueError as error:
        raise ValueError(f"a sample has {error} in the plan") from error
    return spec


def keep_plan(plan: Mapping[str, Any] | None, records: str | Path) -> None:
    """Leaves a plan beside the records made by it; None leaves nothing."""
    if plan is not None:
        write_json(Path(records) / PLAN_FILE, plan)


def training_plan(source: str | Path, preset: str | None, *, scale: str = "full") -> dict[str, Any] | None:
    """Returns what a preset's configuration of the plan decides about training: `training` and `recipe`.

    Args:
        source: records, whose `plan.json` is read, or a dataset, whose plan is made.
        preset: name of a recipe; None, or one without a plan, gives None.
        scale: what the training is asked to be.

    Raises:
        DataError: there is no plan beside the records, or it does not suit the preset.
    """
    source = Path(source)
    if preset is None or not get_preset(preset).plan or not source.is_dir():
        return None
    path = source / PLAN_FILE
    if not (source / "spec.json").exists():
        plan = _suited(make_plan(source, mode=_mode(preset), scale=scale), preset, scale, str(source))
    elif path.exists():
        plan = _suited(read_plan(path), preset, scale, str(path))
    else:
        raise DataError(f"{path}: there is no plan, which preset {preset} follows; build the records with that preset")
    configuration = plan["configurations"][get_preset(preset).plan]
    return {"training": configuration["training"], "recipe": configuration.get("recipe", {})}


def _mode(preset: str) -> str:
    """Returns how a preset wants its plan: those named after Cheena's description want max-pooling."""
    return "seed002" if preset.endswith("_seed002") else "nnunet_v2"


def _suited(plan: dict[str, Any], preset: str, scale: str, where: str) -> dict[str, Any]:
    """Returns the plan if the preset can follow it."""
    wanted = get_preset(preset).plan
    if wanted not in plan["configurations"]:
        there = ", ".join(plan["configurations"])
        raise DataError(
            f"{where}: the plan has no configuration {wanted}, which preset {preset} follows; there are {there}, as the"
            " scans are too small or too flat for the others: choose another preset"
        )
    for key, asked in (("scale", scale), ("mode", _mode(preset))):
        if plan[key] != asked:
            remedy = f"use --scale {plan[key]}" if key == "scale" else "choose a preset of that mode"
            raise DataError(
                f"{where}: the plan's {key} is {plan[key]}, but {asked} is needed for preset {preset}; {remedy}, or"
                f" make a plan with `tfmuscle plan --{key} {asked}`"
            )
    return plan
