"""What all commands share: the group, error lines, options made from settings, the progress bar, tables."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

import tfmuscle
from tfmuscle.errors import DataError
from tfmuscle.files import PROGRESS_VARIABLE, write_json

FOLDER = click.Path(path_type=Path)
RUNNERS = ("direct", "flink", "spark", "dataflow")
"""Where Apache Beam runs a job."""
_TELL_SECONDS = 0.5


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


def runner_options(workers: str) -> Callable:
    """Makes the options of a job that Apache Beam may do; `workers` says what --workers means."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for add in (
            click.option(
                "--runner-option", multiple=True, metavar="KEY=VALUE", help="option of Apache Beam; repeatable"
            ),
            click.option("--runner", type=click.Choice(RUNNERS), help="let Apache Beam do it, here or on a cluster"),
            click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help=workers),
        ):
            function = add(function)
        return function

    return decorate


def beam_flags(
    pipeline_flags: Callable[..., tuple[str, ...]], options: dict[str, Any], *, workers: int
) -> tuple[str, ...]:
    """Takes those of `runner_options` out of the options and returns a Beam pipeline's flags; none without --runner."""
    runner, more = options.pop("runner"), options.pop("runner_option")
    if more and not runner:
        raise click.UsageError("--runner-option goes with --runner")
    return checked(pipeline_flags, runner, workers=workers, options=more) if runner else ()


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


def parse_options(texts: tuple[str, ...], flag: str = "--option") -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value is JSON if it can be, else text.

    >>> parse_options(("filters=16", "block=residual"))
    {'filters': 16, 'block': 'residual'}
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{flag} {text!r} is not NAME=VALUE, e.g. filters=16")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


class Bar:
    """A progress bar with time left, made anew for each job; nothing is shown when standard error is no terminal.

    A program that started the command, as `tfmuscle gui` does, finds the same in the file named by `PROGRESS_VARIABLE`.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0
        self._told = -_TELL_SECONDS

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows `done` of `total`."""
        self._tell(done, total, note)
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

    def _tell(self, done: int, total: int, note: str) -> None:
        """Writes the progress into the file that wants it, not too often; a full disk does not end the job."""
        path, now = os.environ.get(PROGRESS_VARIABLE), time.monotonic()
        if path and (done == total or now - self._told >= _TELL_SECONDS):
            self._told = now
            with contextlib.suppress(DataError, OSError):
                write_json(path, {"done": done, "total": total, "note": note})

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
        click.echo(f"{len(failures)} failed; the others are done.", err=True)
        sys.exit(1)


def print_table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Prints rows as aligned columns."""
    cells = [[f"{row[c]:,}" if isinstance(row[c], int) else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_list(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """Prints rows as JSON or as aligned columns."""
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        print_table(rows, columns)
