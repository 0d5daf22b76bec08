"""Commands for tracked ultrasound: sweep-frames, compound, merge-recordings."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, given, print_table
from tfmuscle.quiet import quiet_start

FILE = click.Path(path_type=Path)
_SWEEP = click.option(
    "-i", "--input", "sweep", type=FILE, required=True, help="tracked sequence (.igs.mha, .mha, .mhd)"
)
_CALIBRATION = click.option(
    "--calibration", type=FILE, help="PLUS device set (XML) with ImageToProbe and clip rectangle"
)
_FRAME = click.option("--frame", default="", help="frame of reference [default: Reference, else Tracker]")
_NAMES = click.option(
    "--dataset", type=FILE, help="dataset.json or label table [default: the one beside the labels, else label 1, ...]"
)


@command(name="sweep-frames")
@_SWEEP
@click.option("-o", "--output", "out", type=FILE, required=True, help="image to write, e.g. frames.nii.gz")
@_CALIBRATION
@_FRAME
def sweep_frames_command(sweep: Path, out: Path, calibration: Path | None, frame: str) -> None:
    """Write the frames of a tracked sweep as an image, to be labelled or learnt from (--kind sequences)."""
    with quiet_start():
        from tfmuscle.workflows.ultrasound import sweep_frames

    _print_sweep(checked(sweep_frames, sweep, out, calibration=calibration, frame=frame))


@command(name="compound")
@_SWEEP
@click.option("-o", "--output", "out", type=FILE, required=True, help="volume to write, e.g. volume.nii.gz")
@_CALIBRATION
@_FRAME
@click.option("--labels", type=FILE, help="labels of the sweep-frames image; the output is then a volume of labels")
@_NAMES
@click.option("--spacing", type=float, help="voxel size in mm [default: the calibration's, else 1]")
@click.option(
    "--method", type=click.Choice(["linear", "nearest"]), help="how pixels spread over voxels [default: linear]"
)
@click.option("--combine", type=click.Choice(["mean", "max", "latest"]), help="frames at one place [default: mean]")
@click.option("--bridge", "bridge_mm", type=float, help="longest gap to bridge, mm [default: twice the frame distance]")
def compound_command(
    sweep: Path, out: Path, labels: Path | None, dataset: Path | None, calibration: Path | None, frame: str, **how: Any
) -> None:
    """Make a volume from a tracked sweep, or from labels drawn on its frames."""
    with quiet_start():
        from tfmuscle.io.label_tables import read_label_table
        from tfmuscle.workflows.ultrasound import Compounding, compound_sweep

    if dataset and not labels:
        raise click.UsageError("--dataset names labels; give --labels too")
    drawn = (labels, read_label_table(dataset) if dataset else None) if labels else None
    result = checked(
        compound_sweep, sweep, out, Compounding(**given(how)), calibration=calibration, frame=frame, labels=drawn,
        progress=Bar(),
    )  # fmt: skip
    _print_sweep(result)
    click.echo(f"{result.seen:.0%} of the voxels seen; gaps up to {result.bridge_mm:.2f} mm bridged")
    if result.ignore is not None:
        _print_volumes(result.volumes_ml)
        click.echo(f"Unseen voxels have the ignore id {result.ignore}.")


@command(name="merge-recordings")
@click.option(
    "-i", "--input", "images", type=FILE, multiple=True, required=True, help="a recording; repeat, the first stays"
)
@click.option("--labels", type=FILE, multiple=True, help="labels of a recording; repeat in the same order")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to write")
@_NAMES
@click.option(
    "--metric", type=click.Choice(["mutual information", "correlation"]), help="[default: mutual information]"
)
@click.option("--least-correlation", type=float, help="recordings less alike are left out [default: 0.75]")
def merge_recordings_command(
    images: tuple[Path, ...], labels: tuple[Path, ...], out: Path, dataset: Path | None, **how: Any
) -> None:
    """Register overlapping recordings of one limb onto the first and merge them with their labels."""
    with quiet_start():
        from tfmuscle.io.label_tables import read_label_table
        from tfmuscle.workflows.ultrasound import merge_recordings

    names = read_label_table(dataset) if dataset else None
    result = checked(merge_recordings, images, out, labels=labels, label_map=names, progress=Bar(), **given(how))
    print_table(
        [
            {
                "recording": Path(name).name,
                "correlation": f"{match.before:.3f} -> {match.after:.3f}",
                "overlap": f"{match.overlap:.0%}",
                "turned": f"{match.rotation_degrees:.1f} deg",
            }
            for name, match in result.matches.items()
        ],
        ("recording", "correlation", "overlap", "turned"),
    )
    _print_volumes(result.volumes_ml)
    click.echo(f"{result.folder / 'merged.nii.gz'}; look at {result.folder / 'merged.png'} first")
    finish(result.failures)


def _print_sweep(result: Any) -> None:
    size = " x ".join(map(str, result.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in result.spacing)
    click.echo(f"{result.path}: {size} voxels of {spacing} mm; look at {result.picture} first")
    click.echo(f"{result.frames} frames used, {result.dropped} without a valid image or pose")


def _print_volumes(volumes_ml: Any) -> None:
    if volumes_ml:
        rows = [{"structure": name, "ml": f"{volume:.2f}"} for name, volume in volumes_ml.items()]
        print_table(rows, ("structure", "ml"))
