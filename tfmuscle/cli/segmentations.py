"""The command from labels to the hospital's viewer: write-seg."""

from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, command
from tfmuscle.quiet import quiet_start


@command(name="write-seg")
@click.option("-i", "--input", "labels", type=FOLDER, required=True, help="label image on the series' grid")
@click.option("-s", "--series", type=FOLDER, required=True, help="folder of the DICOM series it belongs to")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="DICOM file to write, e.g. labels.dcm")
@click.option("--labels", "names", type=FOLDER, help="dataset.json, spec.json or label table [default: the one beside]")
@click.option("--number", type=int, help="series number, when several series have this grid (water and fat)")
def write_seg_command(labels: Path, series: Path, out: Path, names: Path | None, number: int | None) -> None:
    """Write labels as a DICOM SEG that refers to its source series, slice by slice."""
    with quiet_start():
        from tfmuscle.workflows.segmentations import write_seg

    label_map = write_seg(labels, series, out, names=names, number=number)
    click.echo(f"{out}: {len(label_map.structures)} segments; it carries the patient of its series, as DICOM demands")
