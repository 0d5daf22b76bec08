"""Commands between labels and contours to be edited: contours, fill-contours."""

import functools
from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, print_table
from tfmuscle.quiet import quiet_start


@command(name="contours")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="label image")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder for the contours")
@click.option("-r", "--reference", type=FOLDER, help="scan in whose slices they shall lie [default: the labels' own]")
@click.option("--labels", "names", type=FOLDER, help="dataset.json or label table [default: the one beside the labels]")
@click.option("--simplify/--no-simplify", "simplified", default=True, show_default=True, help="drop needless points")
def contours_command(source: Path, out: Path, reference: Path | None, names: Path | None, simplified: bool) -> None:
    """Write labels as contours that 3D Slicer and ITK-SNAP can edit."""
    with quiet_start():
        from tfmuscle.workflows.contours import contours

    bar = Bar()
    try:
        say = functools.partial(_note, bar)
        rows = contours(source, out, names=names, reference=reference, simplified=simplified, progress=bar, say=say)
    finally:
        bar.close()
    columns = ("structure", "id", "curves", "corners", "points", "voxels", "dice")
    print_table([row | {"dice": f"{row['dice']:.4f}"} for row in rows], columns)
    click.echo(f"{len(rows)} structures in {out}; in 3D Slicer choose the curve type linear, which is what is filled")


@command(name="fill-contours")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="folder of contours, or edited label image")
@click.option("-r", "--reference", type=FOLDER, required=True, help="scan whose grid the labels get")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label file, e.g. labels.nii.gz")
@click.option("--labels", "names", type=FOLDER, help="dataset.json or label table [default: the one in the folder]")
@click.option("--series", help="which series of a DICOM folder that holds several")
def fill_contours_command(source: Path, reference: Path, out: Path, names: Path | None, series: str | None) -> None:
    """Turn contours, edited or not, into labels on a scan's grid."""
    with quiet_start():
        from tfmuscle.workflows.contours import fill_contours

    bar = Bar()
    try:
        scan = (reference, series) if series else reference
        say = functools.partial(_note, bar)
        made = checked(fill_contours, source, scan, out, names=names, progress=bar, say=say)
    finally:
        bar.close()
    print_table([row | {"ml": f"{row['ml']:.3f}"} for row in made.rows], ("id", "structure", "voxels", "ml"))
    if made.missing:
        click.echo(f"No voxel of {', '.join(made.missing)}: background in these labels")
    if made.unread:
        click.echo(f"Not read: {', '.join(made.unread)}; curves end in .mrk.json, an image is given itself with -i")
    click.echo(f"{len(made.rows) - len(made.missing)} structures in {out}, read from the {made.source}")


def _note(bar: Bar, sentence: str) -> None:
    bar.close()
    click.echo(f"Note: {sentence}", err=True)
