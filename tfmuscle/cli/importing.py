"""Commands that take what others made: import, of a lab's folders; relabel, of another tool's label files."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.label_lists import LISTS
from tfmuscle.quiet import quiet_start


@command(name="import")
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="dataset folder to make")
@click.option(
    "--scan", "scans", multiple=True, metavar="[CHANNEL=]PATTERN[#SERIES]", help="where scans are; {id} is the subject"
)
@click.option(
    "--masks", multiple=True, metavar="PATTERN", help="where masks, surfaces, SEG or RTSTRUCT are; may be repeated"
)
@click.option("--table", type=FOLDER, help="CSV with the columns subject, scan, masks, instead of patterns")
@click.option("--labels", type=FOLDER, help="names and ids: dataset.json, ITK-SNAP or Slicer table, CSV")
@click.option("--series", metavar="NAME", help="DICOM series to take, a name of `tfmuscle inspect` or a glob")
@click.option("--space", type=click.Choice(["ras", "lps"]), help="coordinates of surfaces whose header does not say")
@click.option(
    "--missing",
    type=click.Choice(["refuse", "background", "ignore"]),
    default="refuse",
    show_default=True,
    help="what a structure means that other subjects have and this one has not",
)
@click.option("--key", type=FOLDER, help="write a CSV of which subject came from where; it may name patients")
@click.option("--dry-run", is_flag=True, help="show what belongs together and stop")
def import_command(
    folder: Path,
    out: Path,
    scans: tuple[str, ...],
    masks: tuple[str, ...],
    table: Path | None,
    series: str | None,
    space: str | None,
    dry_run: bool,
    labels: Path | None,
    missing: str,
    key: Path | None,
) -> None:
    """Make a dataset of a lab's FOLDER: pair scans with masks, merge, check, leave out who the patients are."""
    with quiet_start():
        from tfmuscle.workflows.importing import import_folder, preview
        from tfmuscle.workflows.pairing import Layout

    layout = checked(Layout, scans=scans, masks=masks, table=table, series=series, space=space)
    if dry_run:
        lines, failures = preview(folder, layout, key=key)
        click.echo("\n".join(lines))
        _tell(failures)
        sys.exit(1 if failures else 0)
    result = import_folder(folder, out, layout, labels=labels, missing=missing, key=key, progress=Bar())
    for subject_id, notes in result.notes.items():
        for note in notes:
            click.echo(f"{subject_id}: {note}")
    structures = ", ".join(result.label_map.structures)
    click.echo(f"{out}: structures {structures or '(none)'}; look at {out / 'pictures'} before you go on")
    for subject_id, problems in result.problems.items():
        for problem in problems:
            click.echo(f"Problem: {subject_id}: {problem}", err=True)
    _tell(result.failures)
    sys.exit(1 if result.failures or result.problems else 0)


def _tell(failures: dict[str, str]) -> None:
    for subject_id, reason in failures.items():
        click.echo("Failed: " + " ".join(f"{subject_id}: {reason}".split()), err=True)


def _print_lists(context: click.Context, parameter: click.Parameter, chosen: str | None) -> None:
    """Prints all known lists, or one as a renaming table, and ends the command."""
    if chosen is None:
        return
    if chosen and chosen not in LISTS:
        raise click.BadParameter(f"no list is called {chosen!r}; there are {', '.join(LISTS)}")
    if chosen:
        from tfmuscle.relabelling import list_map, standard_name

        rows = [f"{name},{standard_name(name)}" for name in list_map(chosen).structures]
        click.echo("\n".join(["from,to", *rows]))
    for name, known in LISTS.items() if not chosen else ():
        click.echo(f"{name}: {len(known.names)} structures ({known.source})")
        listed = ", ".join(f"{key}={called}" for key, called in known.names.items())
        click.echo(textwrap.fill(listed, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    context.exit()


@command(name="relabel")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="label file of another tool, or a folder")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label file to write, or a folder")
@click.option(
    "--table",
    required=True,
    metavar="RENAME.csv|standard",
    help="columns from,to: one 'to' for several 'from' merges, an empty one drops; standard: only our spelling",
)
@click.option(
    "--names", metavar="TABLE|LIST", help="what the ids mean: label table or known list [default: the file's]"
)
@click.option(
    "--like", type=FOLDER, help="dataset.json or label table whose ids the new names get [default: 1, 2, ...]"
)
@click.option("--keep-others", is_flag=True, help="structures that the table does not name keep their name")
@click.option(
    "--list",
    is_flag=False,
    flag_value="",
    is_eager=True,
    expose_value=False,
    callback=_print_lists,
    metavar="[LIST]",
    help="print the known lists and stop; with one of them: its names as a table to edit",
)
def relabel_command(source: Path, out: Path, **options: Any) -> None:
    """Rename, merge and drop the structures of another tool's label files, so that correcting beats drawing."""
    with quiet_start():
        from tfmuscle.workflows.relabelling import relabel_files

    result = checked(relabel_files, source, out, **options, progress=Bar())
    for case, one in result.files.items():
        click.echo(f"{case}:")
        rows = [
            {"structure": name, "id": key, "ml": f"{one.volumes_ml[name]:.1f}", "made of": ", ".join(one.made_of[name])}
            for name, key in sorted(one.ids.items(), key=lambda item: item[1])
        ]
        print_table(rows, ("structure", "id", "ml", "made of"))
        if one.dropped:
            click.echo(f"dropped: {', '.join(one.dropped)}")
        if one.absent:
            click.echo(f"not in this file: {', '.join(one.absent)}")
    click.echo(f"{out}: correct it in 3D Slicer or ITK-SNAP (names in the .label file), or with tfmuscle contours")
    finish(result.failures)
