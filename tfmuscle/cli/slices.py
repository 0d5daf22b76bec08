"""Commands for one scan and its labels: slices, interpolate, suggest, add-case; and what `fit --labels` does."""

import functools
import json
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command
from tfmuscle.quiet import quiet_start

_LABELS = click.option("--labels", type=FOLDER, help="label image of a few slices of the one scan given with -i")
NAMES = click.option("--names", type=FOLDER, help="dataset.json or label table [default: the one beside the labels]")
SLICES = click.option(
    "--slices", "listed", metavar="A,B,...", help="slices that count, from 0 [default: those that show something]"
)
AXIS = click.option("--axis", type=click.IntRange(0, 2), help="axis along which slices follow [default: found]")
SLICE_OPTIONS = (_LABELS, NAMES, SLICES, AXIS)


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
    tell(found.notes())
    sampled = sample_settings(found, read_dataset(out).subjects[0].read_image())
    click.echo(f"{out}: {len(found.indices)} labelled slices along axis {found.axis}: {_listed(found.indices)}")
    if found.empty:
        click.echo(f"Nothing is drawn on {_listed(found.empty)}: they make no subject.")
    click.echo("All other slices are unknown, not background. Slices of one person are not independent.")
    flags = " ".join(
        f"--set {key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in sampled.items()
    )
    click.echo(f"Compare with: tfmuscle cross-validate -i {out} --preset mehrabi_latent --folds loocv {flags} -o ...")


@command(name="interpolate")
@click.option("-i", "--input", "labels", type=FOLDER, required=True, help="label image of a few slices of one scan")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="label image to write, e.g. labels.nii.gz")
@NAMES
@SLICES
@AXIS
def interpolate_command(labels: Path, out: Path, names: Path | None, listed: str | None, axis: int | None) -> None:
    """Fill the slices between the labelled ones by the shapes on them; no scan and no network is needed."""
    with quiet_start():
        from tfmuscle.workflows.interpolating import interpolate

    bar, chosen = Bar(), checked(numbers, listed)
    try:
        result = checked(interpolate, labels, out, names=names, axis=axis, listed=chosen, progress=bar)
    finally:
        bar.close()
    tell(result.slices.notes())
    indices = result.slices.indices
    for structure, volume in result.volumes_ml.items():
        click.echo(f"{structure}: {volume:.1f} ml")
    click.echo(
        f"{out}: slices {indices[0]} to {indices[-1]} along axis {result.slices.axis}, from {len(indices)} labelled"
        " ones; nothing beyond them"
    )


@command(name="suggest")
@click.option(
    "-m",
    "--model",
    "runs",
    type=FOLDER,
    multiple=True,
    help="run folder made by fit --labels, or a cross-validation; repeatable, each run is an opinion of its own"
    " [default: what the labelled slices tell alone]",
)
@click.option("-i", "--input", "scan", type=FOLDER, required=True, help="scan: image file or DICOM folder")
@slice_options
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder for tables and figure")
@click.option("-n", "--count", type=click.IntRange(1), default=3, show_default=True, help="slices wanted")
def suggest_command(runs: tuple[Path, ...], scan: Path, out: Path, count: int, **options: Any) -> None:
    """Name the next slices worth labelling: where the shapes between drawn ones are probably wrong."""
    with quiet_start():
        from tfmuscle.workflows.suggesting import suggest

    if options["labels"] is None:
        raise click.UsageError("--labels is missing: the label image of the scan")
    bar = Bar()
    try:
        result = checked(suggest, _source(scan, options), runs, out, count=count, progress=bar)
    finally:
        bar.close()
    tell(result.notes)
    for row in result.rows:
        most = f", most of it {row['structure']}" if row["structure"] else ""
        dispute = f", {row['disagreement_mm2']:.0f} mm² in dispute{most}" if runs else ""
        place = ", ".join(f"{row[f'{letter}_mm']:.1f}" for letter in "xyz")
        found = f"{row['probable_error_mm2']:.0f} mm² probably wrong{dispute}"
        click.echo(f"{row['rank']}: slice {row['slice']} along axis {row['axis']}, at ({place}) mm: {found}")
    reduced = " (reduced)" if result.reduced else ""
    click.echo(f"{out}: told by {len(result.runs)} network(s), interpolated shapes and slices left out{reduced}")


@command(name="add-case")
@click.option("-i", "--input", "scan", type=FOLDER, required=True, help="scan: image file or DICOM folder")
@slice_options
@click.option("-o", "--output", "dataset", type=FOLDER, required=True, help="dataset folder, made if it is not there")
@click.option("--partly", is_flag=True, help="slices without a label (or not in --slices) are unknown, not background")
@click.option("--id", "subject_id", metavar="NAME", help="name of the case [default: the scan's]")
@click.option("--replace", is_flag=True, help="take new labels for a scan that is in the dataset")
def add_case_command(scan: Path, dataset: Path, partly: bool, subject_id: str, replace: bool, **options: Any) -> None:
    """Add a scan and its labels, drawn or corrected, to a dataset in nnU-Net's layout, or begin one."""
    with quiet_start():
        from tfmuscle.workflows.adding import add_case

    if options["labels"] is None:
        raise click.UsageError("--labels is missing: the label image of the scan")
    source = _source(scan, options)
    done = checked(add_case, source, dataset, subject_id=subject_id, partly=partly, replace=replace)
    unknown = f", {done.unknown:.0%} of it unknown" if done.unknown else ""
    new = "has new labels" if done.replaced else "is added"
    click.echo(f"{dataset}: {done.subject_id} {new}{unknown}; {done.cases} labelled case(s)")


def _listed(numbers: Any) -> str:
    return ", ".join(map(str, numbers))


def tell(notes: tuple[str, ...]) -> None:
    """Prints what the user should know, a line each."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def fit_few_slices(scan: Path, run: Path, config: Any, options: dict[str, Any], *, resume: bool) -> None:
    """Trains on a few slices, labels the whole scan and says how the validating slices came out."""
    with quiet_start():
        from tfmuscle.workflows.slices import fit_slices

    bar = Bar()
    try:
        more = {"settings": stack_settings(options["stack"]), "progress": bar, "say": functools.partial(_note, bar)}
        result = checked(fit_slices, _source(scan, options), run, config, resume=resume, **more)
    finally:
        bar.close()
    reduced = " (reduced)" if result.reduced else ""
    for structure, row in result.figures.items():
        click.echo(
            f"{structure}: 2D Dice {row['dice_2d_mean']:.3f}, 3D Dice {row['dice']:.3f}, IoU {row['iou']:.3f} on slices"
            f" {_listed(result.validating)}, which chose the epoch{reduced}"
        )
    for structure in result.absent:
        click.echo(f"{structure}: on none of the validating slices")
    click.echo(f"The whole scan: {result.labels}")


def stack_settings(stack: int | None) -> dict[str, Any]:
    """Returns the fields of `DataSpec` that `--stack` stands for.

    >>> stack_settings(None), stack_settings(1), stack_settings(3)
    ({}, {'kind': 'slices', 'depth': 1}, {'kind': 'stacks', 'depth': 3})
    """
    return {} if stack is None else {"kind": "slices" if stack == 1 else "stacks", "depth": stack}


def _source(scan: Path, options: dict[str, Any]) -> Any:
    from tfmuscle.workflows.slice_labels import SliceLabels

    listed = options["listed"]
    return SliceLabels(scan, options["labels"], options["names"], options["axis"], checked(numbers, listed))


def numbers(text: str | None) -> tuple[int, ...] | None:
    """Reads the value of `--slices`.

    >>> numbers("3, 9"), numbers(None)
    ((3, 9), None)
    """
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ValueError(f"--slices {text} is not a list of whole numbers, e.g. 3,9,15")
    return tuple(int(part) for part in text.split(","))


def _note(bar: Bar, sentence: str) -> None:
    bar.close()
    click.echo(f"Note: {sentence}", err=True)
