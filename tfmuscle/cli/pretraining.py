"""Commands that learn from scans without labels: pretrain."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, given, parse_options, setting
from tfmuscle.config import DataSpec, Pretraining, Supervised, TrainConfig
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start

_PRESETS = [name for name, preset in PRESETS.items() if preset.pretraining]


@command(name="pretrain")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="folder of scans, or a dataset")
@click.option("-o", "--output", "run", type=FOLDER, required=True, help="run folder to make")
@click.option("--like", type=FOLDER, help="records whose samples the slices shall be like")
@setting(DataSpec, "size", nargs=2, type=int, metavar="H W")
@setting(DataSpec, "spacing", nargs=3, type=float, metavar="S R C")
@setting(DataSpec, "resize")
@setting(Pretraining, "method")
@setting(Pretraining, "threshold")
@setting(Pretraining, "temperature")
@setting(Supervised, "augmentation")
@setting(TrainConfig, "epochs")
@setting(TrainConfig, "batch_size")
@setting(TrainConfig, "learning_rate")
@setting(TrainConfig, "seed")
@click.option(
    "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="option of the U-Net, e.g. filters=16"
)
@click.option("--leave-out", multiple=True, metavar="SUBJECT", help="do not look at this scan; repeatable")
@click.option("--preset", type=click.Choice(_PRESETS), default="casali_pcl", show_default=True, help="recipe")
@setting(TrainConfig, "scale", default="full")
@click.option("--resume", is_flag=True, help="go on with an interrupted run")
def pretrain_command(
    source: Path,
    run: Path,
    like: Path | None,
    preset: str,
    scale: str,
    leave_out: tuple[str, ...],
    resume: bool,
    **options: Any,
) -> None:
    """Train an encoder on unlabelled scans, for fit --from."""
    with quiet_start():
        from tfmuscle.files import read_json
        from tfmuscle.workflows.pretraining import plan_pretraining, pretrain

    options["model_options"] = checked(parse_options, options["model_options"]) or None
    typed = given(options)
    parts: dict[str, dict[str, Any]] = {
        "data": {key: typed[key] for key in ("size", "spacing", "resize") if key in typed},
        "method": {key: typed[key] for key in ("method", "threshold", "temperature") if key in typed},
        "recipe": {key: typed[key] for key in ("augmentation",) if key in typed},
        "training": {
            key: typed[key]
            for key in ("epochs", "batch_size", "learning_rate", "seed", "model_options")
            if key in typed
        },
    }
    plan = checked(plan_pretraining, source, like=like, preset=preset, scale=scale, **parts)
    bar = Bar()
    try:
        result = checked(pretrain, source, run, plan, leave_out=leave_out, resume=resume, progress=bar)
    finally:
        bar.close()
    about = read_json(run / "about.json")
    click.echo(
        f"{run}: encoder of {result.slices} slices, {about['epochs']} epochs, {about['seconds'] / 60:.1f} min"
        + (" (reduced)" if scale == "laptop" else "")
        + f"; start from it with 'tfmuscle fit --from {run}'"
    )
    finish(result.failures)
