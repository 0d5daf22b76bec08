"""Commands that compare models: cross-validate, study."""

import json
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish
from tfmuscle.config import SCALES
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start


def _shared(function: Any) -> Any:
    """Adds the options that both commands have."""
    for decorate in (
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="processes for records"),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the split and trainings"),
        click.option(
            "--scale",
            type=click.Choice(SCALES),
            default="full",
            show_default=True,
            help="full recipes, or cut down for a laptop",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="FIELD=VALUE",
            help="setting that goes before the presets', e.g. epochs=20, model_options.filters=16, size=[96,96]",
        ),
        click.option("--folds", metavar="K|loocv", help="folds by person [default: 5; of records: their own]"),
        click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder to make, or to go on with"),
        click.option(
            "-i", "--input", "source", type=FOLDER, required=True, help="dataset folder, or records of one muscle"
        ),
    ):
        function = decorate(function)
    return function


@command(name="cross-validate")
@_shared
@click.option(
    "--preset", "presets", type=click.Choice(list(PRESETS)), multiple=True, required=True, help="recipe; repeatable"
)
@click.option("--published", type=FOLDER, help="JSON file of published figures to show beside ours")
def cross_validate_command(
    source: Path, out: Path, presets: tuple[str, ...], published: Path | None, **options: Any
) -> None:
    """Train presets on every fold and compare them on the subjects left out; run again to go on."""
    with quiet_start():
        from tfmuscle.evaluation.published import read_published
        from tfmuscle.workflows.comparing import cross_validate

    figures = read_published(published) if published else None
    bar = Bar()
    try:
        options = _read(options)
        result = checked(cross_validate, source, out, presets, published=figures, progress=bar, **options)
    finally:
        bar.close()
    _report(result, "comparison")


@command(name="study")
@_shared
@click.option("--preset", type=click.Choice(list(PRESETS)), help="recipe that is varied")
@click.option(
    "--vary", multiple=True, required=True, metavar="FIELD=A,B", help="setting and its values; all combinations"
)
@click.option("--fold", type=click.IntRange(0), help="leave out this fold only [default: each in turn]")
def study_command(
    source: Path, out: Path, preset: str | None, vary: tuple[str, ...], fold: int | None, **options: Any
) -> None:
    """Train one preset with varied settings and compare the variants; run again to go on."""
    with quiet_start():
        from tfmuscle.workflows.comparing import study

    varied = checked(parse_vary, vary)
    bar = Bar()
    try:
        options = _read(options)
        result = checked(study, source, out, preset=preset, vary=varied, fold=fold, progress=bar, **options)
    finally:
        bar.close()
    _report(result, "study")


def _read(options: dict[str, Any]) -> dict[str, Any]:
    folds = options["folds"]
    if folds not in (None, "loocv") and not folds.isdecimal():
        raise click.UsageError(f"--folds {folds} is neither a number nor loocv")
    settings = checked(parse_settings, options["settings"])
    return options | {"folds": int(folds) if folds and folds != "loocv" else folds, "settings": settings}


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Reads FIELD=VALUE pairs; a value is JSON if it can be, else text.

    >>> parse_settings(("epochs=3", "loss=dice", "size=[64,64]"))
    {'epochs': 3, 'loss': 'dice', 'size': [64, 64]}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ValueError(f"--set {text!r} is not FIELD=VALUE, e.g. epochs=20")
        if name in settings:
            raise ValueError(f"--set {name} is given twice; name each field once")
        settings[name] = _value(value)
    return settings


def parse_vary(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Reads FIELD=A,B,C; values are JSON, separated by commas, or texts separated by commas.

    >>> parse_vary(("learning_rate=1e-3,1e-4", "loss=dice,dice_focal", "size=[64,64],[96,96]"))
    {'learning_rate': [0.001, 0.0001], 'loss': ['dice', 'dice_focal'], 'size': [[64, 64], [96, 96]]}
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise ValueError(f"--vary {text!r} is not FIELD=A,B, e.g. learning_rate=1e-3,1e-4")
        if name in varied:
            raise ValueError(f"--vary {name} is given twice; give all its values at once")
        try:
            varied[name] = json.loads(f"[{values}]")
        except json.JSONDecodeError:
            varied[name] = [_value(value) for value in values.split(",")]
    return varied


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _report(result: Any, name: str) -> None:
    from tfmuscle.evaluation.comparison_page import text_table

    click.echo(text_table(result))
    for row in result.tests:
        p = f"p (Holm) {row['p_holm']:.3g}, " if row["n"] else ""
        click.echo(f"{row['model_a']} against {row['model_b']}, {row['n']} persons: {p}{row['verdict']}")
    click.echo(f"Tables and page in {result.out}: {name}.csv, {name}.json, {name}.html")
    for what, who in result.waiting.items():
        click.echo(f"Not done yet: {what}: {who}; run again when it has ended")
    finish(result.failures)
