"""The command from a lab's folders to a dataset: import."""

import sys
from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command
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
