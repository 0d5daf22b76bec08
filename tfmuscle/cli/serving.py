"""Commands that put a network on a server: serve-config."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, checked, command, given
from tfmuscle.quiet import quiet_start


@command(name="serve-config")
@click.option(
    "-m", "--model", "bundles", type=FOLDER, required=True, multiple=True, help="bundle made by export, or one version"
)
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder of the files, e.g. serving")
@click.option("--gpu/--no-gpu", default=None, help="serve on a graphics processor [default: no-gpu]")
@click.option("--cpus", type=int, help="cores for the server [default: 4]")
@click.option("--memory-gb", type=int, help="main memory for the server [default: 16]")
@click.option("--batching/--no-batching", default=None, help="join requests of several clients; forbids whole scans")
@click.option("--image", metavar="IMAGE", help="Docker image of the server [default: tensorflow/serving:2.21.0]")
def serve_config_command(bundles: tuple[Path, ...], out: Path, **settings: Any) -> None:
    """Write what TensorFlow Serving, Docker Compose and Kubernetes need to serve bundles."""
    with quiet_start():
        from tfmuscle.workflows.serving import ServeOptions, serve_config

    options = checked(ServeOptions, **given(settings))
    for model in serve_config(bundles, out, options=options):
        which = "newest version" if not model.versions else f"version {', '.join(map(str, model.versions))}"
        click.echo(f"{model.name}: {which} of {model.folder}")
    click.echo(f"docker compose -f {out / 'compose.yaml'} up --wait")
