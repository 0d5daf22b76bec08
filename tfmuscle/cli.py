"""The `tfmuscle` command: a skin over `workflows/`, one function a command.

A command turns options into settings, calls one workflow and prints what it did. Options that are fields of
`DataSpec`, `TrainConfig` or `Supervised` take name, help and choices from there. Workflows are imported inside the
functions, because TensorFlow takes seconds to load and `--help` should not.

A `DataError` is printed on one line and exits with 1; a misused option exits with 2; anything else is our bug and
keeps its traceback. Subjects that failed are listed last, and the exit code is 1.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import tfmuscle
from tfmuscle.config import KINDS, DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start

PHANTOM_KINDS = ("bones", "thigh", "lower-limb", "ultrasound")
FOLDER = click.Path(path_type=Path)


def main() -> None:
    """Runs the command line."""
    tfmuscle_group()


@click.group(name="tfmuscle", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(tfmuscle.__version__, "-V", "--version", prog_name="tfmuscle")
def tfmuscle_group() -> None:
    """From a folder of scans to muscle and bone numbers that can be trusted.

    The main job in four commands: build-records, fit, predict, evaluate. See it first with `tfmuscle demo`. For
    research use.
    """


def command(*, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a command whose errors are one line."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except DataError as error:
                click.echo("Error: " + " ".join(str(error).split()), err=True)
                sys.exit(1)
            except KeyboardInterrupt:
                click.echo(
                    "Interrupted; what is finished is kept. Run the same command again (fit: with --resume).", err=True
                )
                sys.exit(130)

        versioned = click.version_option(tfmuscle.__version__, "-V", "--version", prog_name="tfmuscle")(guarded)
        return tfmuscle_group.command(name=name)(versioned)

    return decorate


def setting(cls: type, field_name: str, flag: str | None = None, **overrides: Any) -> Callable:
    """Makes the option of a settings field; its default is None, so that presets can fill it."""
    item = next(item for item in dataclasses.fields(cls) if item.name == field_name)
    flags = [flag or "--" + field_name.replace("_", "-"), field_name]
    default = item.default if item.default is not dataclasses.MISSING else None
    options: dict[str, Any] = {"default": None, "help": f"{item.metadata['help']} [default: {default}]"}
    if isinstance(default, bool):
        flags[0] = f"{flags[0]}/--no-{flags[0].removeprefix('--')}"
    elif item.metadata.get("choices"):
        options["type"] = click.Choice(item.metadata["choices"])
    elif isinstance(default, int | float):
        options["type"] = type(default)
    return click.option(*flags, **options | overrides)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that the user typed."""
    return {key: value for key, value in values.items() if value is not None and value != ()}


def checked(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `make`; a ValueError about a setting becomes click's usage error."""
    try:
        return make(*args, **kwargs)
    except DataError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error)) from error


class Bar:
    """A progress bar with time left, made anew for each job; nothing is shown when standard error is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows `done` of `total`."""
        if not sys.stderr.isatty():
            return
        if self._bar is None or self._bar.length != total or done < self._done:
            self.close()
            self._bar = click.progressbar(length=total, file=sys.stderr, item_show_func=lambda note: (note or "")[:40])
            self._bar.__enter__()
        self._bar.update(done - self._done, note)
        self._done = done
        if done == total:
            self.close()

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar, self._done = None, 0


def finish(failures: Mapping[str, str]) -> None:
    """Lists failed subjects and exits with 1 if there are any."""
    for subject, reason in failures.items():
        click.echo(f"Failed: {subject}: {' '.join(reason.split())}", err=True)
    if failures:
        click.echo(f"{len(failures)} subject(s) failed; the others are done.", err=True)
        sys.exit(1)


def print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Prints rows as aligned columns."""
    cells = [[f"{row[c]:,}" if isinstance(row[c], int) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@command(name="demo")
@click.argument("out", type=FOLDER, default=Path("tfmuscle-demo"))
def demo_command(out: Path) -> None:
    """Run the whole job on synthetic legs in OUT and leave a report.html: two to four minutes."""
    with quiet_start():
        from tfmuscle.workflows.demo import demo

    report = demo(out, say=click.echo, progress=Bar())
    click.echo(f"Done. Open {report} in a browser: training curves, overlays, Dice and volume tables.")


@command(name="phantom")
@click.argument("out", type=FOLDER)
@click.option("--subjects", type=click.IntRange(1), default=8, show_default=True, help="number of limbs")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="the same seed makes the same voxels"
)
@click.option("--kind", type=click.Choice(PHANTOM_KINDS), default="bones", show_default=True, help="what is in them")
def phantom_command(out: Path, subjects: int, seed: int, kind: str) -> None:
    """Make a dataset of synthetic limbs with known volumes in OUT (nnU-Net layout)."""
    with quiet_start():
        from tfmuscle.workflows.data import phantom

    phantom(out, subjects=subjects, seed=seed, kind=kind, progress=Bar())
    click.echo(f"{subjects} {kind} phantoms in {out}; closed-form volumes in {out / 'volumes.json'}")


@command(name="inspect")
@click.argument("dataset", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="print the whole fingerprint as JSON")
def inspect_command(dataset: Path, as_json: bool) -> None:
    """Check every scan of DATASET and print its fingerprint; exit 1 when something is wrong."""
    with quiet_start():
        from tfmuscle.files import json_text
        from tfmuscle.planning import fingerprint_table
        from tfmuscle.workflows.data import inspect

    found = inspect(dataset, progress=None if as_json else Bar())
    click.echo(json_text(found) if as_json else fingerprint_table(found))
    if found["problems"]:
        sys.exit(1)


@command(name="build-records")
@click.option("-i", "--input", "dataset", type=FOLDER, required=True, help="dataset folder")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder for the records")
@setting(DataSpec, "kind", type=click.Choice(KINDS))
@setting(DataSpec, "spacing", nargs=3, type=float, metavar="S R C")
@setting(DataSpec, "size", nargs=2, type=int, metavar="H W")
@click.option("--stack", type=int, help="slices in a stack (kind stacks) [default: 5]")
@click.option("--patch", type=int, nargs=3, metavar="D H W", help="sub-volume (kind volumes)")
@click.option("--window", type=int, help="slices in a sequence (kind sequences) [default: 3]")
@setting(
    DataSpec, "orientation", help="axis codes after preprocessing, slice axis first; 'none' for sweeps [default: SPL]"
)
@setting(DataSpec, "normalisation")
@setting(DataSpec, "crop_nonzero")
@setting(DataSpec, "overlap")
@setting(DataSpec, "folds")
@setting(DataSpec, "test")
@setting(DataSpec, "seed")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="recipe to follow")
@setting(DataSpec, "scale", default="full")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="processes")
def build_records_command(
    dataset: Path, out: Path, preset: str | None, scale: str, workers: int, **options: Any
) -> None:
    """Turn a dataset into TFRecords; run again to complete an interrupted build."""
    with quiet_start():
        from tfmuscle.subjects import read_dataset
        from tfmuscle.workflows.data import build_records, plan_spec

    index = read_dataset(dataset)
    settings = checked(sample_settings, options, preset)
    spec = checked(plan_spec, index, settings, preset=preset, scale=scale, progress=Bar())
    window = " x ".join(map(str, spec.window))
    click.echo(f"{spec.kind} of {window} voxels at {spec.spacing or 'native'} mm, {spec.orientation}")
    result = build_records(index, out, spec, workers=workers, progress=Bar())
    click.echo(f"{result.samples} samples in {out}" + (" (reduced)" if scale == "laptop" else ""))
    finish(result.failures)


def sample_settings(options: Mapping[str, Any], preset: str | None) -> dict[str, Any]:
    """Returns `DataSpec` fields from the options, where --stack, --patch and --window imply the kind."""
    settings = given(options)
    implied = {"stack": "stacks", "patch": "volumes", "window": "sequences"}
    used = [name for name in implied if name in settings]
    if len(used) > 1:
        raise ValueError(f"--{used[0]} and --{used[1]} exclude each other")
    for name in used:
        value = settings.pop(name)
        if settings.setdefault("kind", implied[name]) != implied[name]:
            raise ValueError(f"--{name} goes with --kind {implied[name]}, not {settings['kind']}")
        if name == "patch":
            if "size" in settings:
                raise ValueError("--patch already gives height and width; leave --size out")
            settings |= {"depth": value[0], "size": tuple(value[1:])}
        else:
            settings["depth"] = value
    kind = settings.get("kind", PRESETS[preset].data.get("kind") if preset else None)
    if not used and kind in ("stacks", "sequences") and not (preset and "depth" in PRESETS[preset].data):
        settings["depth"] = 5 if kind == "stacks" else 3
    if str(settings.get("orientation", "")).lower() == "none":
        settings["orientation"] = None
    return settings


@command(name="fit")
@click.option("-i", "--input", "source", type=FOLDER, required=True, help="records, or a dataset")
@click.option("-o", "--output", "run", type=FOLDER, required=True, help="run folder to make")
@setting(TrainConfig, "model")
@setting(Supervised, "loss")
@setting(TrainConfig, "fold")
@setting(TrainConfig, "epochs")
@setting(TrainConfig, "steps")
@setting(TrainConfig, "batch_size")
@setting(TrainConfig, "optimiser")
@setting(TrainConfig, "learning_rate")
@setting(TrainConfig, "weight_decay")
@setting(TrainConfig, "schedule")
@setting(Supervised, "augmentation")
@setting(Supervised, "mirror")
@setting(Supervised, "patience")
@setting(TrainConfig, "precision")
@setting(TrainConfig, "seed")
@click.option(
    "--option", "model_options", multiple=True, metavar="NAME=VALUE", help="option of the model, e.g. filters=16"
)
@click.option(
    "--loss-option", "loss_options", multiple=True, metavar="NAME=VALUE", help="option of the loss, e.g. gamma=2"
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="recipe to follow")
@setting(TrainConfig, "scale", default="full")
@click.option("--resume", is_flag=True, help="go on with an interrupted run")
def fit_command(source: Path, run: Path, preset: str | None, scale: str, resume: bool, **options: Any) -> None:
    """Train a model on all folds but one, keeping the epoch with the best validation Dice."""
    with quiet_start():
        from tfmuscle.files import read_json
        from tfmuscle.workflows.learning import fit, plan_training

    for name in ("model_options", "loss_options"):
        options[name] = checked(parse_options, options[name]) or None
    recipe_names = {item.name for item in dataclasses.fields(Supervised)}
    recipe = {key: value for key, value in given(options).items() if key in recipe_names}
    settings = {key: value for key, value in given(options).items() if key not in recipe_names}
    config = checked(plan_training, settings, recipe=recipe, preset=preset, scale=scale)
    bar = Bar()
    try:
        fit(source, run, config, resume=resume, progress=bar)
    finally:
        bar.close()
    about = read_json(run / "about.json")
    reduced = "laptop" in (scale, read_json(run / "spec.json")["scale"])
    dice = about["best_validation_dice"]
    told = f"best epoch {about['best_epoch']} of {about['epochs']}" + (
        "" if dice is None else f", validation Dice {dice:.3f}"
    )
    click.echo(f"{run}: {told}, {about['seconds'] / 60:.1f} min" + (" (reduced)" if reduced else ""))


def parse_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value is JSON if it can be, else text.

    >>> parse_options(("filters=16", "block=residual"))
    {'filters': 16, 'block': 'residual'}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--option {text!r} is not NAME=VALUE, e.g. filters=16")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


@command(name="predict")
@click.option("-m", "--model", "run", type=FOLDER, required=True, help="run folder made by fit")
@click.option(
    "-i", "--input", "source", type=FOLDER, required=True, help="scan, DICOM series, folder of them, or dataset"
)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder, or a file name for one scan")
@click.option(
    "--split", "part", type=click.Choice(["train", "validation", "test"]), help="only these subjects of the dataset"
)
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="average over mirrored copies")
@click.option("--resume", is_flag=True, help="keep predictions that are there")
def predict_command(run: Path, source: Path, out: Path, part: str | None, mirror: bool, resume: bool) -> None:
    """Segment scans; every output lies on exactly its scan's grid."""
    with quiet_start():
        from tfmuscle.workflows.learning import predict

    result = predict(run, source, out, part=part, mirror=mirror, resume=resume, progress=Bar())
    for warning in result.warnings:
        click.echo(f"Warning: {warning}", err=True)
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
        from tfmuscle.workflows.learning import evaluate

    result = evaluate(predictions, references, out, images=images, observer2=observer2, progress=Bar())
    click.echo(result.table())
    click.echo(f"Tables, figures and report.html in {out}")
    finish(result.failures)


@command(name="models")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def models_command(as_json: bool) -> None:
    """List the architectures with source and parameter counts at the published input size."""
    with quiet_start():
        from tfmuscle.workflows.catalogue import list_models

    _print_list(
        list_models(), ("name", "input_shape", "num_classes", "parameters", "trainable_parameters", "source"), as_json
    )


@command(name="losses")
@click.option("--json", "as_json", is_flag=True, help="print as JSON")
def losses_command(as_json: bool) -> None:
    """List the losses with formula and source."""
    with quiet_start():
        from tfmuscle.workflows.catalogue import list_losses

    _print_list(list_losses(), ("name", "formula", "source"), as_json)


def _print_list(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(rows, columns)
