"""Commands that hand a trained network on: export."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, checked, command
from tfmuscle.quiet import quiet_start

_FORMATS = ("saved_model", "onnx", "openvino", "litert", "tensorrt")
_PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@command(name="export")
@click.option(
    "-m", "--model", "runs", type=FOLDER, required=True, multiple=True, help="run, cross-validation, or several runs"
)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="bundle to make or add to: saved_models/NAME")
@click.option(
    "--format", "name", type=click.Choice(_FORMATS), default="saved_model", show_default=True, help="what to write"
)
@click.option("-i", "--input", "scans", type=FOLDER, help="real scans to compare on [default: samples of the records]")
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="average mirrored copies inside `segment`")
@click.option("--segment/--no-segment", default=True, show_default=True, help="signature that takes raw scans")
@click.option(
    "--precision", type=click.Choice(_PRECISIONS), default="float32", show_default=True, help="of the format tensorrt"
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    nargs=2,
    metavar="USUAL LARGEST",
    help="samples at once, of the format tensorrt [default: as many as predict sends]",
)
@click.option("--intended-use", metavar="TEXT", help="for the model card")
@click.option("--licence", metavar="TEXT", help="of the weights, for the model card")
@click.option("--evaluation", type=FOLDER, help="folder of evaluate on held-out subjects, for the model card")
def export_command(runs: tuple[Path, ...], out: Path, name: str, **settings: Any) -> None:
    """Write a network with all it needs as one bundle for other programs, and prove that it says what Keras says."""
    with quiet_start():
        from tfmuscle.workflows.exporting import ExportOptions, check_options, export

    options = ExportOptions(**{key: value for key, value in settings.items() if value is not None})
    checked(check_options, name, options)
    result = export(runs, out, name, options=options)
    parity = result.parity
    click.echo(f"{result.path} ({result.size_mb:g} MB)" + "".join(f"; {note}" for note in result.notes))
    click.echo(
        f"{name} against Keras on {parity.windows} windows: probabilities within {parity.largest_difference:.2g}"
        f" ({parity.tolerance:.2g} allowed), {parity.equal_labels:.4%} of the labels equal"
    )
    if parity.equal_scan_labels is not None:
        click.echo(
            f"segment against predict on {parity.scans} scans: {parity.equal_scan_labels:.4%} of the labels equal"
        )
