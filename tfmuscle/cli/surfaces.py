"""Commands between surfaces and labels: voxelise, surfaces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.quiet import quiet_start

SPACES = click.Choice(["ras", "lps"])


@command(name="voxelise")
@click.option(
    *("-i", "--input", "sources"), type=FOLDER, required=True, multiple=True, help="PLY/STL file or folder; repeatable"
)
@click.option("-r", "--reference", type=FOLDER, required=True, help="scan whose grid the labels get")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label file, e.g. labels.nii.gz")
@click.option("--labels", "names", type=FOLDER, help="dataset.json or label table [default: 1, 2, ... by name]")
@click.option("--space", type=SPACES, help="space of the coordinates [default: what the header says, else ras]")
@click.option("--series", help="which series of a DICOM folder that holds several")
@click.option("--allow-open", is_flag=True, help="fill open surfaces by the vote of rays along three axes")
def voxelise_command(sources: tuple[Path, ...], reference: Path, out: Path, series: str | None, **options: Any) -> None:
    """Turn surfaces (PLY, STL) into labels on a scan's grid; a file's name is its structure's."""
    with quiet_start():
        from tfmuscle.workflows.surfaces import voxelise

    bar = Bar()
    try:
        scan = (reference, series) if series else reference
        made = checked(voxelise, sources, scan, out, **options, progress=bar)
    finally:
        bar.close()
    columns = ("id", "structure", "labels_ml", "surface_ml", "volume_error_percent", "remarks")
    print_table([rounded(row) | {"remarks": "; ".join(row["remarks"])} for row in made.rows], columns)
    if made.overlap_voxels:
        click.echo(f"{made.overlap_voxels:,} voxels lie in two or more surfaces and are background")
    if made.missing:
        click.echo(f"No surface for {', '.join(made.missing)}: background in these labels")
    click.echo(f"{len(made.rows)} structures in {out}")


@command(name="surfaces")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="label file, or a folder of them")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder for the surfaces")
@click.option("--labels", "names", type=FOLDER, help="dataset.json or label table [default: the one beside the labels]")
@click.option("--format", "format_", type=click.Choice(["ply", "stl"]), default="ply", show_default=True, help="format")
@click.option("--space", type=SPACES, default="ras", show_default=True, help="space of the coordinates")
@click.option(
    "--smooth", type=click.FloatRange(0), default=1.5, show_default=True, help="width in finest voxels; 0 is none"
)
def surfaces_command(source: Path, out: Path, names: Path | None, format_: str, space: str, smooth: float) -> None:
    """Make smooth watertight surfaces of labels, and measure what they lost."""
    with quiet_start():
        from tfmuscle.workflows.surfaces import surfaces

    bar = Bar()
    try:
        made = checked(
            surfaces, source, out, names=names, suffix=f".{format_}", space=space, smoothing=smooth, progress=bar
        )
    finally:
        bar.close()
    columns = ("subject", "structure", "labels_ml", "surface_ml", "volume_error_percent", "dice")
    if made.rows:
        print_table([rounded(row) for row in made.rows], columns)
        click.echo(f"{len(made.rows)} surfaces; the table is in {out / 'surfaces.csv'}")
    finish(made.failures)


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with volumes and errors to three decimals, Dice to four; "-" for what is unknown.

    >>> rounded({"structure": "femur", "labels_ml": 1.23456, "dice": 0.99996, "surface_ml": None})
    {'structure': 'femur', 'labels_ml': '1.235', 'dice': '1.0000', 'surface_ml': '-'}
    """
    digits = {"labels_ml": 3, "surface_ml": 3, "volume_error_percent": 3, "dice": 4}
    shown = {key: "-" if row[key] is None else f"{row[key]:.{count}f}" for key, count in digits.items() if key in row}
    return dict(row) | shown
