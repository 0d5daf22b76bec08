"""Commands from a trained network to numbers: calibrate, predict, evaluate."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import (
    FOLDER,
    Bar,
    beam_flags,
    checked,
    command,
    finish,
    parse_options,
    print_table,
    runner_options,
)
from tfmuscle.folds import PARTS
from tfmuscle.quiet import quiet_start

SECONDS = click.FloatRange(0, 1e6, min_open=True)
_SHOWN = 12
"""Structures to look at that are printed."""


@command(name="calibrate")
@click.option(
    "-m",
    "--model",
    "runs",
    type=FOLDER,
    required=True,
    multiple=True,
    help="run folder made by fit, or a cross-validation; given several times, or with folds: an ensemble",
)
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="dataset that the runs were trained on")
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="average over mirrored copies")
@click.option("--prior", type=FOLDER, help="labels of an earlier network, as for predict")
@click.option("--postprocess/--no-postprocess", default=True, show_default=True, help="clean the labels, as predict")
def calibrate_command(runs: tuple[Path, ...], source: Path, mirror: bool, **settings: Any) -> None:
    """Learn on validation scans what a model's uncertainty means, for predict --uncertainty."""
    with quiet_start():
        from tfmuscle.workflows.calibrating import calibrate, promises
        from tfmuscle.workflows.networks import PredictOptions

    result = calibrate(runs, source, mirror=mirror, options=PredictOptions(**settings), progress=Bar())
    rows = result.rows()
    print_table(rows, tuple(rows[0]))
    for warning in result.calibration.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"{result.path}: {promises(result.calibration)}")
    finish(result.failures)


@command(name="predict")
@click.option(
    "-m",
    "--model",
    "runs",
    type=FOLDER,
    required=True,
    multiple=True,
    help="run folder made by fit, a cascade, or a cross-validation; given several times, or with folds: their mean",
)
@click.option(
    "-i", "--input", "source", type=FOLDER, required=True, help="scan, DICOM series, folder of them, or dataset"
)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder, or a file name for one scan")
@click.option("--split", "part", type=click.Choice(PARTS), help="only these subjects of the dataset")
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="average over mirrored copies")
@click.option("--prior", type=FOLDER, help="labels of an earlier network, for a cascade: folder of them, or its run")
@click.option(
    "--postprocess/--no-postprocess",
    default=True,
    show_default=True,
    help="clean the labels as the recipe, or postprocessing.json beside the runs, says",
)
@click.option(
    "--engine",
    type=click.Choice(["keras", "auto", "xla", "saved_model", "onnx", "openvino", "litert", "tensorrt"]),
    default="keras",
    show_default=True,
    help="what runs the network; auto: the fastest that is installed, which is the default for a bundle",
)
@click.option("--uncertainty", is_flag=True, help="maps and a table of how far labels may be trusted, see calibrate")
@click.option("--roi", multiple=True, metavar="NAME", help="of a cascade: only this muscle or group; repeatable")
@click.option("--cascade", multiple=True, metavar="NAME=VALUE", help="setting of a cascade, e.g. boxes=1 or box_seed=3")
@click.option("--server", metavar="ADDRESS", help="ask it, grpc://HOST:8500/NAME or http://HOST:8501/NAME; -m: bundle")
@click.option(
    "--send",
    type=click.Choice(["auto", "scan", "windows"]),
    default="auto",
    show_default=True,
    help="to a server: the scan as it is, or prepared windows; auto: the scan where it is small enough",
)
@click.option("--deadline", type=SECONDS, default=60.0, show_default=True, help="seconds for a request to a server")
@click.option("--patience", type=SECONDS, default=600.0, show_default=True, help="seconds with all its repetitions")
@runner_options("processes of --runner direct")
@click.option("--resume", is_flag=True, help="keep predictions that are there")
def predict_command(
    runs: tuple[Path, ...], source: Path, out: Path, part: str | None, mirror: bool, **settings: Any
) -> None:
    """Segment scans; every output lies on exactly its scan's grid."""
    with quiet_start():
        from tfmuscle.workflows.beam import pipeline_flags
        from tfmuscle.workflows.predicting import PredictOptions, predict

    settings["beam"] = beam_flags(pipeline_flags, settings, workers=settings.pop("workers"))
    options = PredictOptions(**settings | {"cascade": checked(parse_options, settings["cascade"], "--cascade")})
    result = predict(runs, source, out, part=part, mirror=mirror, options=options, progress=Bar())
    for warning in result.warnings:
        click.echo(f"Warning: {warning}", err=True)
    doubts = [row for row in result.worth if row["look_here"]]
    for row in doubts[:_SHOWN]:
        low, high = row["dice_low"], row["dice_high"]
        where = f", slices {'ijk'[row['slice_axis']]} = {', '.join(map(str, row['slices']))}" if row["slices"] else ""
        what = (
            f"{row['subject']}, {row['structure']}: Dice {row['expected_dice']:.2f} expected ({low:.2f} to {high:.2f})"
        )
        click.echo(f"Look at {what}{where}")
    if result.worth:
        click.echo(
            f"{len(doubts)} of {len(result.worth)} structures are worth a look: uncertainty.csv beside the labels"
        )
    click.echo(f"{len(result.written)} scan(s) segmented in {out}" + (" (reduced)" if result.reduced else ""))
    finish(result.failures)


@command(name="evaluate")
@click.option("-i", "--input", "predictions", type=FOLDER, required=True, help="folder of predictions")
@click.option("-r", "--references", type=FOLDER, required=True, help="folder of reference labels, or a dataset")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder of the report")
@click.option("--images", type=FOLDER, help="scans for the overlays, when the references are no dataset")
@click.option("--observer2", type=FOLDER, help="a second annotator's labels: marks structures within human variability")
def evaluate_command(
    predictions: Path, references: Path, out: Path, images: Path | None, observer2: Path | None
) -> None:
    """Compare predictions with references: Dice, surface distances and volumes per subject and structure."""
    with quiet_start():
        from tfmuscle.workflows.evaluating import evaluate

    result = evaluate(predictions, references, out, images=images, observer2=observer2, progress=Bar())
    click.echo(result.table())
    click.echo(f"Tables, figures and report.html in {out}")
    finish(result.failures)
