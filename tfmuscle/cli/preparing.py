"""Commands that make scans ready: prepare, fat-fraction, merge-masks."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.quiet import quiet_start

PARTS = ("abdomen", "upper", "lower")
SIDES = ("left", "right", "both-separately")
FAT_COLUMNS = ("structure", "volume_ml", "with_signal_percent", "fat_fraction_mean", "fat_fraction_median")


@command(name="prepare")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="dataset, scan or folder of scans")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to make")
@click.option("--bias-field", is_flag=True, help="N4 bias field correction before anything else")
@click.option("--below-hip", is_flag=True, help="keep from the hip to the distal end")
@click.option("--hip-slice", type=click.IntRange(0), help="slice of the hip start [default: from labels, else found]")
@click.option(
    "--margin", type=click.IntRange(0), default=50, show_default=True, help="slices kept above a hip without labels"
)
@click.option("--part", type=click.Choice(PARTS), help="keep one part of the scanned length")
@click.option("--fractions", type=float, nargs=2, help="from and to of that part, 0 is the superior end")
@click.option("--side", type=click.Choice(SIDES), help="keep the patient's left or right leg, or make two subjects")
def prepare_command(source: Path, out: Path, **options: Any) -> None:
    """Even out and cut scans and their labels; look at OUT/pictures before going on.

    Run again to complete an interrupted job.
    """
    with quiet_start():
        from tfmuscle.workflows.preparing import PrepareOptions, prepare

    result = prepare(source, out, checked(PrepareOptions, **options), progress=Bar())
    for subject, note in result.notes.items():
        click.echo(f"{subject}: {note}")
    click.echo(f"{len(result.notes)} subjects in {out}; the cuts are drawn in {out / 'pictures'}")
    if options["side"] == SIDES[-1]:
        click.echo("Left and right of one person are not independent; build-records keeps them in one fold.")
    finish(result.failures)


@command(name="fat-fraction")
@click.option("--water", type=FOLDER, required=True, help="water image")
@click.option("--fat", type=FOLDER, required=True, help="fat image on the same grid")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="fat fraction in percent, e.g. OUT.nii.gz")
@click.option("--labels", type=FOLDER, help="label image on the same grid: measure every structure, CSV beside OUT")
@click.option("--names", type=FOLDER, help="names of the labels: dataset.json, ITK-SNAP or Slicer table, CSV")
def fat_fraction_command(water: Path, fat: Path, out: Path, labels: Path | None, names: Path | None) -> None:
    """Make a fat fraction from Dixon water and fat images: 100 fat / (water + fat) percent."""
    with quiet_start():
        from tfmuscle.workflows.fat import fat_fraction

    result = checked(fat_fraction, water, fat, out, labels=labels, names=names)
    print_table(result.rows, FAT_COLUMNS)
    if result.warning:
        click.echo(f"Warning: {result.warning}", err=True)


@command(name="merge-masks")
@click.option("-i", "--input", "folder", type=FOLDER, required=True, help="folder of binary masks, named by structure")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label image, e.g. LABELS.nii.gz")
@click.option("--labels", "names", type=FOLDER, help="names and ids, e.g. a dataset.json [default: 1, 2, ... by name]")
def merge_masks_command(folder: Path, out: Path, names: Path | None) -> None:
    """Merge binary masks into one label image; voxels of several masks become background and are counted."""
    with quiet_start():
        from tfmuscle.workflows.merging import merge_masks

    result = checked(merge_masks, folder, out, names=names)
    rows = [
        {"id": result.label_map.id_of(name), "structure": name, "volume_ml": f"{volume:.2f}"}
        for name, volume in result.volumes_ml.items()
    ]
    print_table(rows, ("id", "structure", "volume_ml"))
    for (one, other), voxels in sorted(result.overlaps.items(), key=lambda item: -item[1]):
        click.echo(f"Overlap: {one} and {other} share {voxels:,} voxels, now background")
    click.echo(f"{out}: {len(rows)} structures, {len(result.overlaps)} overlapping pairs")
