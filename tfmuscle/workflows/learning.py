"""From records to a trained network: `plan_training` and `fit`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfmuscle import models, training
from tfmuscle.augmentation import notes
from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.losses import get_loss
from tfmuscle.presets import get_preset, reduced_training
from tfmuscle.records import load_spec
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.data import plan_spec


def plan_training(
    settings: Mapping[str, Any], *, recipe: Mapping[str, Any], preset: str | None = None, scale: str = "full"
) -> TrainConfig:
    """Decides how a model is trained: the user's settings, then the preset, then the defaults.

    Args:
        settings: fields of `TrainConfig` the user gave.
        recipe: fields of `Supervised` the user gave.
        preset: name of a recipe.
        scale: "laptop" cuts width and epochs down.
    """
    chosen = get_preset(preset) if preset else None
    plan = dict(chosen.training) if chosen else {}
    if "model" in settings and settings["model"] != plan.get("model"):
        plan = {key: value for key, value in plan.items() if key != "model_options"} | {"model": settings["model"]}
    if scale == "laptop":
        plan = reduced_training(plan, chosen.laptop.get("training") if chosen else None)
    options = plan.get("model_options", {})
    plan |= {"preset": preset} | dict(settings)
    plan["model_options"] = options | dict(settings.get("model_options", {}))
    method = dict(chosen.recipe) if chosen else {}
    method |= chosen.laptop.get("recipe", {}) if chosen and scale == "laptop" else {}
    if recipe.get("loss", method.get("loss")) != method.get("loss"):
        method.pop("loss_options", None)  # they belong to the preset's loss
    method = Supervised(**method | dict(recipe))
    try:
        get_loss(method.loss, **method.loss_options)  # refused now, not after the records are made
    except TypeError as error:
        raise ValueError(f"loss_options {method.loss_options}: {error}") from error
    return TrainConfig(**plan | {"scale": scale, "recipe": method})


def fit(
    source: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains on records, or on a dataset whose records are then made in `<run>_records` first.

    Args:
        source: folder of records, or a dataset folder.
        run: run folder to make, or to go on with.
        config: what to train and how.
        resume: go on with an interrupted run.
        progress: of the records first, then of the training.
        cancel: asked after every training step; True stops, and the run can be resumed.
        say: called before training with what the user should know about the augmentation, one sentence each.

    Raises:
        DataError: the records do not fit the model (the field is named), or a file cannot be used.
    """
    source, run = Path(source), Path(run)
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder; give records made by build-records, or a dataset")
    if (source / "spec.json").exists():
        records, spec = source, load_spec(source)
    else:
        dataset = read_dataset(source)
        spec = plan_spec(dataset, {}, preset=config.preset, scale=config.scale, progress=progress)
        records = run.with_name(run.name + "_records")
    _check_fit(config, spec, records)
    for note in notes(config.recipe.augmentation, spec, mirror=config.recipe.mirror) if say is not None else ():
        say(note)
    if records != source:
        build_records(dataset, records, spec, progress=progress)
    return training.fit(records, run, config, resume=resume, progress=progress, cancel=cancel)


def _check_fit(config: TrainConfig, spec: DataSpec, records: Path) -> None:
    """Refuses a spec and a model that do not go together, before anything is written."""
    try:
        models.check_spec(config.model, spec, **config.model_options)
        model = models.build(config.model, spec.input_shape, spec.num_classes, **config.model_options)
        if len(model.outputs) > 1:
            raise ValueError("model_options: fit trains models with one output; leave deep_supervision out")
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(f"{records / 'spec.json'}: {error}") from error
    if config.fold >= spec.folds:
        last = spec.folds - 1
        raise DataError(
            f"{records / 'spec.json'}: fold {config.fold} does not exist, there are folds 0 to {last}; use --fold"
        )
