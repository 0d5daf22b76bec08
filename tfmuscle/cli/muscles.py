"""Command for the figures of a paper about all muscles of the lower limb: muscle-figures."""

from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, Bar, command, finish, print_table
from tfmuscle.quiet import quiet_start


@command(name="muscle-figures")
@click.option("-i", "--input", "evaluation", type=FOLDER, required=True, help="folder that evaluate wrote")
@click.option("-p", "--predictions", type=FOLDER, help="folder of the predicted labels, to be rendered")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to write")
@click.option(
    "--renderings",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="most subjects to render, the first ones of the evaluation",
)
def muscle_figures_command(evaluation: Path, predictions: Path | None, out: Path, renderings: int) -> None:
    """Set an evaluation of lower-limb muscles beside the figures of Ni et al. 2019."""
    with quiet_start():
        from tfmuscle.workflows.muscles import muscle_figures

    made = muscle_figures(evaluation, out, predictions=predictions, renderings=renderings, progress=Bar())
    lines = made.readable()
    print_table(lines, tuple(lines[0]))
    for line in made.remarks:
        click.echo(line)
    click.echo(f"Tables, figures and report.html in {out}" + (" (reduced)" if made.reduced else ""))
    finish(made.failures)
