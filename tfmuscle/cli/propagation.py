"""Command that carries a few drawn slices to all slices of a scan: propagate."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command
from tfmuscle.cli.slices import AXIS, NAMES, SLICES, numbers, tell
from tfmuscle.quiet import quiet_start


@command(name="propagate")
@click.option("-i", "--input", "scan", type=FOLDER, required=True, help="scan: image file or DICOM folder")
@click.option(
    "-a", "--annotations", "labels", type=FOLDER, required=True, help="label image in which a few slices are drawn"
)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label image to write, e.g. labels.nii.gz")
@click.option(
    "-m",
    "--model",
    "runs",
    type=FOLDER,
    multiple=True,
    help="run folder of a network that carries masks (ifss_net); several, if each learned structures of its own",
)
@click.option(
    "--method",
    type=click.Choice(["registration", "interpolate", "grow", "watershed"]),
    help="without a network [default: registration]",
)
@NAMES
@SLICES
@AXIS
@click.option(
    "--direction",
    type=click.Choice(["both", "forward", "backward"]),
    default="both",
    show_default=True,
    help="carry masks from either side, or towards growing or falling slice numbers alone",
)
@click.option(
    "--fuse",
    type=click.Choice(["first", "mean"]),
    default="first",
    show_default=True,
    help="a slice is what the window that begins on it says, or the mean of all windows",
)
@click.option("--update", is_flag=True, help="slices that you corrected in the output count as drawn")
@click.option(
    "-n", "--count", type=click.IntRange(1), default=3, show_default=True, help="slices to name for redrawing"
)
def propagate_command(scan: Path, labels: Path, out: Path, **options: Any) -> None:
    """Label all slices of a scan of which a few are drawn; no training is needed."""
    with quiet_start():
        from tfmuscle.workflows.propagating import Propagating, propagate
        from tfmuscle.workflows.slice_labels import SliceLabels

    listed = checked(numbers, options.pop("listed"))
    source = SliceLabels(scan, labels, options.pop("names"), options.pop("axis"), listed)
    bar = Bar()
    try:
        result = checked(propagate, source, out, checked(Propagating, **options), progress=bar)
    finally:
        bar.close()
    tell(result.notes)
    for structure, (volume, low, high) in result.report.volumes_ml.items():
        click.echo(f"{structure}: {volume:.1f} ml ({low:.1f} to {high:.1f}){_worst(result.report.drift, structure)}")
    for row in result.report.redraw:
        most = f", most of it {row['structure']}" if row["structure"] else ""
        click.echo(f"redraw slice {row['slice']}: {row['disputed_mm2']:.0f} mm² in dispute{most}")
    corrected = f", {len(result.corrected)} of them corrected in the labels" if result.corrected else ""
    reduced = " (reduced)" if result.reduced else ""
    click.echo(
        f"{out}: from {len(result.slices.indices)} drawn slices along axis {result.slices.axis}{corrected};"
        f" {result.fresh} of {result.stretches} stretches done now, the others were there{reduced}"
    )


def _worst(drift: list[dict[str, Any]], structure: str) -> str:
    """Says where a structure arrived worst; all of it is in the table."""
    seen = [row for row in drift if row["structure"] == structure and row["dice"] == row["dice"]]
    if not seen:
        return ""
    row = min(seen, key=lambda row: row["dice"])
    way = f"{row['way']}, {row['slices_apart']} slices away"
    return f"; arrives at drawn slices with a Dice of {row['dice']:.3f} at worst (slice {row['slice']}, {way})"
