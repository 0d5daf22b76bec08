"""Command for the tables of propagation: sweep-tables."""

from collections.abc import Iterable
from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.quiet import quiet_start

_FORM = "METHOD[/PROTOCOL]=FOLDER"


@command(name="sweep-tables")
@click.option(
    "-i", "--input", "evaluations", multiple=True, required=True, metavar=_FORM, help="an evaluation; repeatable"
)
@click.option("-p", "--predictions", multiple=True, metavar=_FORM, help="its label files, for curves and surfaces")
@click.option("-r", "--references", type=FOLDER, help="folder of the labels that the predictions were compared with")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to write")
@click.option(
    "--shown", type=click.IntRange(min=0), default=2, show_default=True, help="subjects with curves and surfaces"
)
def sweep_tables_command(
    evaluations: tuple[str, ...], predictions: tuple[str, ...], references: Path | None, out: Path, shown: int
) -> None:
    """Set evaluations of sweeps side by side: a table of methods beside the published figures, and where they fail.

    METHOD stands beside published figures when it is one of interpolate, grow, watershed, ifss_net_full,
    ifss_net_weak, seg_net_fs, unet3d, vnet, daf3d and pg_net; PROTOCOL says which slices were drawn for it.
    """
    with quiet_start():
        from tfmuscle.workflows.sweep_tables import sweep_tables

    given = {"predictions": _named(predictions), "references": references, "shown": shown}
    made = checked(sweep_tables, _named(evaluations), out, **given, progress=Bar())
    lines = made.readable()
    print_table(lines, tuple(lines[0]))
    click.echo(f"Tables, figures and report.html in {out}" + (" (reduced)" if made.reduced else ""))
    finish(made.failures)


def _named(words: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for word in words:
        name, is_there, folder = word.partition("=")
        if not is_there or not name or not folder:
            raise click.UsageError(f"{word!r} is not of the form {_FORM}")
        if name in found:
            raise click.UsageError(f"{name!r} is given twice; names are unique")
        found[name] = Path(folder)
    return found
