"""The command that shows the page: gui."""

from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, command
from tfmuscle.errors import DataError


@command(name="gui")
@click.argument("folder", type=FOLDER, default=".")
@click.option("--port", type=click.IntRange(1, 65535), help="port on 127.0.0.1 [default: a free one]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="open the page in the browser")
def gui_command(folder: Path, port: int | None, browser: bool) -> None:
    """Look at the scans in FOLDER in the browser, run models, correct labels, measure.

    The page is this machine's only. End it with Ctrl-C; a job that runs then goes on.
    """
    try:
        from tfmuscle.gui.app import serve
    except ImportError as error:
        raise DataError(f"the page needs {error.name}; run: pip install 'tfmuscle[gui]' (Linux or macOS)") from error

    serve(folder, port=port, browser=browser, tell=lambda address: click.echo(f"{address}\nCtrl-C ends the page."))
