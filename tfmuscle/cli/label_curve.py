"""The command that measures what pre-training is worth: label-curve."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, parse_options, print_table
from tfmuscle.config import SCALES
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start

_PRESETS = [name for name, preset in PRESETS.items() if preset.pretraining]


@command(name="label-curve")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="dataset folder of labelled subjects")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to make, or to go on with")
@click.option("--from", "encoder", type=FOLDER, required=True, help="encoder made by pretrain")
@click.option(
    "-n",
    "--subjects",
    "sizes",
    type=click.IntRange(1),
    multiple=True,
    help="number of labelled subjects; repeatable [default: those of 1, 2, 5, 10, 20, 30, 40 that there are]",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="number of seeds")
@click.option("--test", type=click.FloatRange(0, min_open=True), help="persons to test on, or a share [default: 0.2]")
@click.option("--preset", type=click.Choice(_PRESETS), default="casali_pcl", show_default=True, help="recipe")
@click.option("--scale", type=click.Choice(SCALES), default="full", show_default=True, help="full, or for a laptop")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="setting that goes before encoder and preset, e.g. epochs=20",
)
def label_curve_command(
    source: Path, out: Path, encoder: Path, sizes: tuple[int, ...], settings: tuple[str, ...], **options: Any
) -> None:
    """Draw Dice against the number of labelled subjects, pre-trained and random start; run again to go on."""
    with quiet_start():
        from tfmuscle.evaluation.label_curve import PUBLISHED
        from tfmuscle.report.label_curve import readable_curve
        from tfmuscle.workflows.label_curve import label_curve
        from tfmuscle.workflows.label_curve_plan import CurveOptions

    bar = Bar()

    def note(sentence: str) -> None:
        bar.close()
        click.echo(f"Note: {sentence}", err=True)

    asked = CurveOptions(sizes, settings=checked(parse_options, settings, "--set"), **options)
    try:
        result = checked(label_curve, source, out, encoder, asked, progress=bar, say=note)
    finally:
        bar.close()
    rows = readable_curve(result.table, published=PUBLISHED)
    if rows:
        print_table(rows, tuple(rows[0]))
    click.echo(f"Table, page and picture in {out}: curve.csv, curve.json, curve.html, curve.png")
    if result.reduced:
        click.echo("reduced: the recipes were cut down")
    for what, who in result.waiting.items():
        click.echo(f"Not done yet: {what}: {who}; run again when it has ended")
    finish(dict(result.failures))
