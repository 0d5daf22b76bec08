"""Commands of training: fit, the demo, and what there is to choose from."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, given, parse_options, print_list, setting
from tfmuscle.cli.cascade import fit_networks
from tfmuscle.cli.slices import fit_few_slices, slice_options
from tfmuscle.config import Supervised, TrainConfig
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start


@command(name="demo")
@click.argument("out", type=FOLDER, default=Path("tfmuscle-demo"))
def demo_command(out: Path) -> None:
    """Run the whole job on synthetic legs in OUT and leave a report.html: about two minutes."""
    with quiet_start():
        from tfmuscle.workflows.demo import demo

    report = demo(out, say=click.echo, progress=Bar())
    click.echo(f"Done. Open {report} in a browser: training curves, overlays, Dice and volume tables.")


@command(name="fit")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="records, a dataset, or a scan with --labels")
@click.option("-o", "--output", "run", type=FOLDER, required=True, help="run folder to make")
@setting(TrainConfig, "model")
@setting(Supervised, "loss")
@setting(TrainConfig, "fold")
@setting(TrainConfig, "left_out")
@setting(TrainConfig, "subjects")
@setting(TrainConfig, "epochs")
@setting(TrainConfig, "steps")
@setting(TrainConfig, "batch_size")
@setting(TrainConfig, "optimiser")
@setting(TrainConfig, "learning_rate")
@setting(TrainConfig, "momentum")
@setting(TrainConfig, "weight_decay")
@setting(TrainConfig, "schedule")
@setting(Supervised, "augmentation")
@setting(Supervised, "mirror")
@setting(Supervised, "foreground")
@setting(Supervised, "deep_supervision")
@setting(Supervised, "selection")
@setting(Supervised, "patience")
@setting(Supervised, "patience_of")
@setting(Supervised, "postprocessing")
@setting(TrainConfig, "precision")
@setting(TrainConfig, "devices")
@setting(TrainConfig, "seed")
@click.option(
    "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="option of the model, e.g. filters=16"
)
@click.option(
    "--loss-option", "loss_options", multiple=True, metavar="NAME=VALUE", help="option of the loss, e.g. gamma=2"
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="recipe to follow")
@setting(TrainConfig, "scale", default="full")
@click.option(
    "--from", "start", type=FOLDER, help="run to start from: its architecture, and its weights as far as they fit"
)
@slice_options
@click.option("--stack", type=click.IntRange(1), help="with --labels: slices the network sees at once [default: 5]")
@click.option("--only", multiple=True, metavar="NETWORK", help="of a cascade: only this group or muscle; repeatable")
@click.option(
    "--cascade", "cascade", multiple=True, metavar="NAME=VALUE", help="setting of a cascade, e.g. fine_voxels=100000"
)
@click.option(
    "--propagation",
    multiple=True,
    metavar="NAME=VALUE",
    help="setting of a network that carries masks from slice to slice, e.g. supervision=fixed",
)
@click.option("--resume", is_flag=True, help="go on with an interrupted run")
def fit_command(source: Path, run: Path, preset: str | None, scale: str, start: Path | None, **options: Any) -> None:
    """Train a model on all folds but one, keeping the epoch that is best on that one."""
    with quiet_start():
        from tfmuscle.files import read_json
        from tfmuscle.workflows.learning import fit, plan_propagation, plan_training
        from tfmuscle.workflows.planning import training_plan

    resume, only, cascade = (options.pop(name) for name in ("resume", "only", "cascade"))
    propagation = checked(parse_options, options.pop("propagation"), "--propagation")
    many = preset is not None and bool(PRESETS[preset].networks)
    if (only or cascade) and not many:
        raise click.UsageError("--only and --cascade are for presets of many networks, such as ni_cascade")
    for name in ("model_options", "loss_options"):
        options[name] = checked(parse_options, options[name]) or None
    recipe_names = {item.name for item in dataclasses.fields(Supervised)}
    recipe = {key: value for key, value in given(options).items() if key in recipe_names}
    settings = {key: value for key, value in given(options).items() if key not in recipe_names}
    few = {name: settings.pop(name, None) for name in ("labels", "names", "listed", "axis", "stack")}
    if given(few) and (many or few["labels"] is None):
        raise click.UsageError("--names, --slices, --axis and --stack go with --labels, with a preset of one network")
    if propagation and (many or few["labels"] is not None):
        raise click.UsageError("--propagation is for a network that carries masks, trained on a dataset or records")
    if many:
        if start is not None or given({key: settings.get(key) for key in ("left_out", "subjects", "devices")}):
            raise click.UsageError(
                f"--from, --left-out, --subjects and --devices are for one network; {preset} trains many"
            )
        cascade = checked(parse_options, cascade, "--cascade")
        chosen = {"preset": preset, "scale": scale}
        fit_networks(source, run, settings, recipe, cascade=cascade, only=only, resume=resume, **chosen)
        return
    if few["labels"] is not None:
        others = ("fold", "left_out", "subjects", "devices")
        if start is not None or given({key: settings.get(key) for key in others}):
            raise click.UsageError(
                "--from, --fold, --left-out, --subjects and --devices are not for a few slices of one scan"
            )
        config = checked(plan_training, settings, recipe=recipe, preset=preset, scale=scale)
        fit_few_slices(source, run, config, few, resume=resume)
        return
    plan = checked(training_plan, source, preset, scale=scale)
    config = checked(plan_training, settings, recipe=recipe, preset=preset, scale=scale, plan=plan, start=start)
    carrying = checked(plan_propagation, config, propagation)
    bar = Bar()
    try:
        say = functools.partial(_note, bar)
        checked(fit, source, run, config, propagation=carrying, start=start, resume=resume, progress=bar, say=say)
        if not (run / "about.json").exists():
            click.echo(f"{run}: trained; the first machine keeps it")
            return
    finally:
        bar.close()
    about = read_json(run / "about.json")
    reduced = "laptop" in (read_json(run / "train.json")["scale"], read_json(run / "spec.json")["scale"])
    dice = about["best_validation_dice"]
    told = f"best epoch {about['best_epoch']} of {about['epochs']}" + (
        "" if dice is None else f", validation Dice {dice:.3f}"
    )
    click.echo(f"{run}: {told}, {about['seconds'] / 60:.1f} min" + (" (reduced)" if reduced else ""))


def _note(bar: Bar, sentence: str) -> None:
    bar.close()
    click.echo(f"Note: {sentence}", err=True)


@command(name="models")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def models_command(as_json: bool) -> None:
    """List the architectures with source and parameter counts at the published input size."""
    with quiet_start():
        from tfmuscle.workflows.catalogue import list_models

    print_list(
        list_models(), ("name", "input_shape", "num_classes", "parameters", "trainable_parameters", "source"), as_json
    )


@command(name="losses")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def losses_command(as_json: bool) -> None:
    """List the losses with formula and source."""
    with quiet_start():
        from tfmuscle.workflows.catalogue import list_losses

    print_list(list_losses(), ("name", "formula", "source"), as_json)
