"""From records to a trained network: `plan_training` and `fit`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfmuscle import models, training
from tfmuscle.augmentation import notes
from tfmuscle.config import DataSpec, Propagation, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.losses import get_loss
from tfmuscle.presets import get_preset, reduced_training
from tfmuscle.records import load_spec
from tfmuscle.subjects import read_dataset
from tfmuscle.training.propagation import CLASSES, check_propagation, fit_propagation
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.data import plan_spec
from tfmuscle.workflows.planning import keep_plan, preset_plan
from tfmuscle.workflows.staging import fit_stages, stages_of


def plan_training(
    settings: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    preset: str | None = None,
    scale: str = "full",
    plan: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> TrainConfig:
    """Decides how a model is trained: the user's settings, then the preset, then the plan, then the defaults.

    A training that starts from another run has that run's architecture and options, unless the user gives others.

    Args:
        settings: fields of `TrainConfig` the user gave.
        recipe: fields of `Supervised` the user gave.
        preset: name of a recipe.
        scale: "laptop" cuts width and epochs down.
        plan: what `workflows.planning.training_plan` found for the preset.
        start: run whose weights the training will start with.
    """
    chosen = get_preset(preset) if preset else None
    values = _over(plan, "training", chosen.training if chosen else {})
    laptop = chosen.laptop.get("training", {}) if chosen else {}
    if "model" in settings and settings["model"] != values.get("model"):  # whose options belong to the preset's model
        values, laptop = ({key: part[key] for key in part if key != "model_options"} for part in (values, laptop))
        values["model"] = settings["model"]
    if scale == "laptop":
        values = reduced_training(values, laptop)
    if start is not None and not (Path(start) / "train.json").exists():
        training.identify(Path(start))  # says what is wrong with a folder that is no run
    before = TrainConfig.load(Path(start) / "train.json") if start is not None else None
    if before is not None and settings.get("model", before.model) == before.model:
        values |= {"model": before.model, "model_options": before.model_options}
    options = values.get("model_options", {})
    values |= {"preset": preset} | dict(settings)
    values["model_options"] = options | dict(settings.get("model_options", {}))
    chosen_recipe = _over(plan, "recipe", chosen.recipe if chosen else {})
    chosen_recipe |= chosen.laptop.get("recipe", {}) if chosen and scale == "laptop" else {}
    if recipe.get("loss", chosen_recipe.get("loss")) != chosen_recipe.get("loss"):
        chosen_recipe.pop("loss_options", None)  # they belong to the preset's loss
    method = Supervised(**chosen_recipe | dict(recipe))
    try:
        get_loss(method.loss, **method.loss_options)  # refused now, not after the records are made
    except TypeError as error:
        raise ValueError(f"loss_options {method.loss_options}: {error}") from error
    if before is not None and before.scale == "laptop":
        scale = "laptop"  # a reduced network stays one
    return TrainConfig(**values | {"scale": scale, "recipe": method})


def _over(plan: Mapping[str, Any] | None, part: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a preset chose over what the plan did; the model's options are merged one by one."""
    planned = (plan or {}).get(part, {})
    merged = dict(planned) | dict(chosen)
    if "model_options" in planned:
        merged["model_options"] = planned["model_options"] | chosen.get("model_options", {})
    return merged


def plan_propagation(config: TrainConfig, settings: Mapping[str, Any] | None = None) -> Propagation | None:
    """Decides how a network learns to carry masks: the user's settings, then the preset's; None for other networks.

    Args:
        config: what is trained, and by which preset.
        settings: fields of `Propagation` the user gave.

    Raises:
        ValueError: settings for a network that carries no masks, or one that cannot be.
    """
    if not models.carries_masks(config.model):
        if settings:
            raise ValueError(f"propagation: {config.model} carries no masks from slice to slice; choose ifss_net")
        return None
    chosen = get_preset(config.preset) if config.preset else None
    values = dict(chosen.propagation) if chosen else {}
    if chosen and config.scale == "laptop":
        values |= chosen.laptop.get("propagation", {})
    return Propagation.from_dict(values | dict(settings or {}))


def fit(
    source: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    propagation: Propagation | None = None,
    start: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains on records, or on a dataset whose records are then made in `<run>_records` first.

    A preset with stages trains them one after the other (`workflows.staging`).

    Args:
        source: folder of records, or a dataset folder.
        run: run folder to make, or to go on with.
        config: what to train and how.
        propagation: how a network learns that carries masks from slice to slice, from `plan_propagation`; as its preset
            says by default.
        start: run whose weights the network starts with, layer by layer, as far as names and shapes agree.
        resume: go on with an interrupted run.
        progress: of the records first, then of the training; what it raises ends the training, which can be resumed.
        say: called before training with what the user should know about augmentation and `start`, one sentence each.

    Raises:
        DataError: the records do not fit the model (the field is named), or a file cannot be used.
    """
    source, run = Path(source), Path(run)
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder; give records made by build-records, or a dataset")
    _check_devices(config, source, propagation or plan_propagation(config), start)
    if (source / "spec.json").exists():
        records, spec = source, load_spec(source)
    else:
        dataset = read_dataset(source)
        records = run.with_name(run.name + "_records")
        plan = preset_plan(dataset, config.preset, scale=config.scale, records=records, progress=progress)
        spec = plan_spec(dataset, {}, preset=config.preset, scale=config.scale, plan=plan, progress=progress)
    propagation = propagation or plan_propagation(config)
    stages = stages_of(config)
    for stage in stages:
        _check_fit(stage, spec, records, propagation)
    if say is not None and propagation is None:
        for note in notes(config.recipe.augmentation, spec, mirror=config.recipe.mirror):
            say(note)
    if records != source:
        build_records(dataset, records, spec, progress=progress)
        keep_plan(plan, records)
    start = None if start is None else Path(start)
    if propagation is not None:
        return fit_propagation(
            records, run, config, propagation, start=start, resume=resume, progress=progress, say=say
        )
    return fit_stages(records, run, stages, start=start, resume=resume, progress=progress, say=say)


def _check_devices(
    config: TrainConfig, source: Path, propagation: Propagation | None, start: str | Path | None
) -> None:
    """Refuses what cannot be shared out among devices, and joins the machines before TensorFlow computes anything."""
    if config.devices == "one":
        return
    if propagation is not None:
        raise DataError(f"{source}: {config.model} carries masks, slice after slice, on one device; no --devices")
    if config.devices == "machines" and not (source / "spec.json").exists():
        raise DataError(f"{source}: several machines train on records; make them once with build-records")
    if config.devices == "machines" and (start is not None or len(stages_of(config)) > 1):
        raise DataError(f"{source}: stages and --from are for one machine; use --devices all, or leave it out")
    training.strategy_of(config.devices)


def _check_fit(config: TrainConfig, spec: DataSpec, records: Path, propagation: Propagation | None) -> None:
    """Refuses a spec and a model that do not go together, before anything is written."""
    try:
        if "deep_supervision" in config.model_options:
            raise ValueError("model_options: leave deep_supervision out; it is the setting --deep-supervision of fit")
        options = training.model_options(config)
        if propagation is not None:
            check_propagation(spec, config, propagation)
        models.check_spec(config.model, spec, **options)
        classes = spec.num_classes if propagation is None else CLASSES
        models.build(config.model, spec.input_shape, classes, **options)
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(f"{records / 'spec.json'}: {error}") from error
    for fold, option in ((config.fold, "--fold"), (config.left_out, "--left-out")):
        if fold >= spec.folds:
            last = spec.folds - 1
            raise DataError(
                f"{records / 'spec.json'}: fold {fold} does not exist, there are folds 0 to {last}; use {option}"
            )
