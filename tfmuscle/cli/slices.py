"""Commands for one scan with a few labelled slices: slices; and what `fit --labels` does."""

import functools
import json
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command
from tfmuscle.quiet import quiet_start

SLICE_OPTIONS = (
    click.option("--labels", type=FOLDER, help="label image of a few slices of the one scan given with -i"),
    click.option("--names", type=FOLDER, help="dataset.json or label table [default: the one beside the labels]"),
    click.option("--slices", "listed", metavar="A,B,...", help="labelled slices, if some of them are empty, from 0"),
    click.option("--axis", type=click.IntRange(0, 2), help="axis along which slices follow [default: found]"),
)


def slice_options(function: Any) -> Any:
    """Adds the options that say which slices are labelled."""
    for decorate in reversed(SLICE_OPTIONS):
        function = decorate(function)
    return function


@command(name="slices")
@click.option("-i", "--input", "scan", type=FOLDER, required=True, help="scan: image file or DICOM folder")
@slice_options
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="dataset folder to make")
def slices_command(scan: Path, out: Path, **options: Any) -> None:
    """Make a dataset of a scan's labelled slices, each a subject of its own, to cross-validate on."""
    with quiet_start():
        from tfmuscle.subjects import read_dataset
        from tfmuscle.workflows.slices import sample_settings, slices_dataset

    if options["labels"] is None:
        raise click.UsageError("--labels is missing: the label image of the scan")
    found = checked(slices_dataset, _source(scan, options), out, alone=True)
    sampled = sample_settings(found, read_dataset(out).subjects[0].read_image())
    click.echo(f"{out}: {len(found.indices)} labelled slices along axis {found.axis}: {_listed(found.indices)}")
    click.echo("All other slices are unknown, not background. Slices of one person are not independent.")
    flags = " ".join(
        f"--set {key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in sampled.items()
    )
    click.echo(f"Compare with: tfmuscle cross-validate -i {out} --preset mehrabi_latent --folds loocv {flags} -o ...")


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def fit_few_slices(scan: Path, run: Path, config: Any, options: dict[str, Any], *, resume: bool) -> None:
    """Trains on a few slices, labels the whole scan and says how the validating slices came out."""
    with quiet_start():
        from tfmuscle.workflows.slices import fit_slices

    bar = Bar()
    try:
        say = functools.partial(_note, bar)
        result = checked(fit_slices, _source(scan, options), run, config, resume=resume, progress=bar, say=say)
    finally:
        bar.close()
    reduced = " (reduced)" if result.reduced else ""
    for structure, row in result.figures.items():
        click.echo(
            f"{structure}: 2D Dice {row['dice_2d_mean']:.3f}, 3D Dice {row['dice']:.3f}, IoU {row['iou']:.3f} on slices"
            f" {_listed(result.validating)}, which chose the epoch{reduced}"
        )
    click.echo(f"The whole scan: {result.labels}")


def _source(scan: Path, options: dict[str, Any]) -> Any:
    from tfmuscle.workflows.slices import SliceLabels

    listed = options["listed"]
    return SliceLabels(scan, options["labels"], options["names"], options["axis"], checked(_numbers, listed))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"--slices {text} is not a list of whole numbers, e.g. 3,9,15")
    return tuple(int(part) for part in text.split(","))


def _note(bar: Bar, sentence: str) -> None:
    bar.close()
    click.echo(f"Note: {sentence}", err=True)
