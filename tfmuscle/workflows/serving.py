"""From bundles to what a TensorFlow Serving process reads: `serve-config`.

The user names bundles (the folder of all versions: the newest is served; or single versions: these are) and a folder.
Every bundle is opened, so that one that was altered is not put on a server, and left as it is.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.export.bundle import BUNDLE_FILE, Bundle, open_bundle
from tfmuscle.files import write_text
from tfmuscle.serving import config as c
from tfmuscle.serving.address import NAME_RULE, is_name
from tfmuscle.serving.client import windows_per_request
from tfmuscle.serving.config import Model, ServeOptions

__all__ = ["ServeOptions", "serve_config"]


def serve_config(
    bundles: Sequence[str | Path], out: str | Path, *, options: ServeOptions | None = None
) -> tuple[Model, ...]:
    """Writes the configuration of a server of bundles into a folder.

    Args:
        bundles: folders of all versions, or of single ones.
        out: folder for the files; `compose.yaml` names the bundles relative to it.
        options: sizes, batching, image.

    Returns:
        What is served.

    Raises:
        DataError: no bundle, an altered one, one without a SavedModel, or names that cannot be served together.
    """
    options, out = options or ServeOptions(), Path(out)
    models: dict[str, Model] = {}
    for path in map(Path, bundles):
        model = _model(path)
        models[model.name] = _joined(models[model.name], model) if model.name in models else model
    served = tuple(models.values())
    sources = {model.name: Path(os.path.relpath(model.folder, out.resolve())).as_posix() for model in served}
    texts = {
        c.MODELS_FILE: c.models_config(served),
        c.BATCHING_FILE: c.batching_config(served, options),
        c.MONITORING_FILE: c.monitoring_config(),
        c.COMPOSE_FILE: c.compose(served, options, {name: _marked(source) for name, source in sources.items()}),
        c.KUBERNETES_FILE: c.kubernetes(served, options),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return served


def _model(path: Path) -> Model:
    bundle = open_bundle(path)
    if "saved_model" not in bundle.formats:
        raise DataError(
            f"{bundle.path}: holds {', '.join(bundle.formats)}; TensorFlow Serving needs saved_model: add it with"
            " 'tfmuscle export --format saved_model'"
        )
    if not bundle.path.name.isdecimal():
        raise DataError(
            f"{bundle.path}: TensorFlow Serving needs a folder with a number for each version; name it"
            f" {bundle.path.name}/1"
        )
    folder = bundle.path.resolve().parent
    if not is_name(folder.name):
        raise DataError(f"{folder}: {folder.name!r} cannot be the name of a model: {NAME_RULE}; rename the folder")
    versions = (int(bundle.path.name),) if (path / BUNDLE_FILE).exists() else ()
    segment = bool(bundle.about["formats"]["saved_model"]["segment"])
    return Model(folder.name, folder, versions, segment, windows_per_request(bundle.spec, "grpc"), _megabytes(bundle))


def _megabytes(bundle: Bundle) -> float:
    return sum((bundle.path / name).stat().st_size for name in bundle.about["files"]) / 1e6


def _joined(first: Model, second: Model) -> Model:
    """Returns two versions of one bundle as one model."""
    if first.folder != second.folder or not (first.versions and second.versions):
        raise DataError(
            f"{second.folder}: {first.folder} is served under the same name {first.name!r}; rename one of the folders,"
            " or give its versions only"
        )
    return dataclasses.replace(
        first,
        versions=tuple(sorted({*first.versions, *second.versions})),
        segment=first.segment or second.segment,
        windows=max(first.windows, second.windows),
        megabytes=first.megabytes + second.megabytes,
    )


def _marked(source: str) -> str:
    """Returns a relative path that Docker Compose takes for a path, and whose dollar signs it leaves alone."""
    return (source if source.startswith(("./", "../", "/")) else f"./{source}").replace("$", "$$")
