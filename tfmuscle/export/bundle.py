"""A bundle: everything that a trained network needs to be used elsewhere, in one folder that knows its own checksums.

    saved_models/NAME/1/                a version, as TF Serving loads it
        saved_model.pb  variables/      network and graph (`segment.py`), if that format was exported
        onnx/  openvino/  litert/  tensorrt/    the network alone, for other libraries
        spec.json  train_0.json ...     how scans become samples, and how each run of the ensemble was trained
        labels.json                     id -> name and colour
        MODEL_CARD.md                   what it is for, on whom it was trained, how good it was, what it must not do
        bundle.json                     what the rest is, with the SHA-256 of every file; sealed itself

A folder is written under a temporary name and renamed when it is whole, because a server may look at any moment. The
same network exported to another format joins the version that is there; another network becomes the next version.
Reading compares every file with its checksum: a bundle in which one byte has changed is refused.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, read_json, sha256
from tfmuscle.postprocessing import Cleaning
from tfmuscle.records.sealing import is_sealed, write_sealed

BUNDLE_FILE, SPEC_FILE, LABELS_FILE, CARD_FILE = "bundle.json", "spec.json", "labels.json", "MODEL_CARD.md"
FORMATS = ("saved_model", "onnx", "openvino", "litert", "tensorrt")
"""Formats of a network, the one that is exact first."""
LAYOUT = 1
"""Version of this layout; a later one may not be read."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle, every file of which is as it was written.

    Attributes:
        path: folder of the version.
        spec: how scans become samples.
        configs: how each run of the ensemble was trained.
        about: content of `bundle.json`.
    """

    path: Path
    spec: DataSpec
    configs: tuple[TrainConfig, ...]
    about: Mapping[str, Any]

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that the bundle holds."""
        return tuple(name for name in FORMATS if name in self.about["formats"])

    @property
    def cleanings(self) -> tuple[Cleaning, ...]:
        """How labels are cleaned, one after the other."""
        return tuple(Cleaning.from_dict(content) for content in self.about["cleaning"])


def is_bundle(path: str | Path) -> bool:
    """Whether a path is a bundle: one version, or the folder of all versions."""
    return (Path(path) / BUNDLE_FILE).exists() or bool(versions(path))


def versions(path: str | Path) -> list[int]:
    """Returns the versions in the folder of a bundle, ascending."""
    path = Path(path)
    if not path.is_dir():
        return []
    return sorted(int(one.name) for one in path.iterdir() if one.name.isdecimal() and (one / BUNDLE_FILE).is_file())


def open_bundle(path: str | Path, *, network: bool = True) -> Bundle:
    """Opens a version, or the newest of the folder of all, and checks every file.

    Args:
        path: folder of the version, or of all.
        network: the network must be there too; a client of a server needs the JSON files only.

    Raises:
        DataError: no bundle, one of a later layout, or a file that is missing, altered or not known.
    """
    path = Path(path)
    if not (path / BUNDLE_FILE).exists():
        if not (found := versions(path)):
            raise DataError(f"{path}: holds no bundle; give the folder that 'tfmuscle export -o' wrote")
        path = path / str(found[-1])
    about = read_about(path)
    for name, checksum in about["files"].items():
        file = path / name
        if not network and not file.exists() and ("/" in name or not name.endswith(".json")):
            continue
        if not file.resolve().is_relative_to(path.resolve()) or not file.is_file() or sha256(file) != checksum:
            raise DataError(f"{file}: is missing or has changed since it was exported; copy the bundle again")
    known = {BUNDLE_FILE, *about["files"]}
    if strange := sorted(name for name in _files(path) if name not in known):
        raise DataError(f"{path / strange[0]}: was not exported with this bundle; remove it")
    configs = tuple(TrainConfig.load(path / f"train_{number}.json") for number in range(about["runs"]))
    return Bundle(path, DataSpec.load(path / SPEC_FILE), configs, about)


def read_about(path: Path) -> dict[str, Any]:
    """Returns the content of `bundle.json` of a version; of it every bit is as it was written."""
    content = read_json(path / BUNDLE_FILE)
    if not is_sealed(path / BUNDLE_FILE, content):
        raise DataError(f"{path / BUNDLE_FILE}: has changed since it was exported; copy the bundle again")
    if content.get("layout") != LAYOUT:
        raise DataError(
            f"{path / BUNDLE_FILE}: has layout {content.get('layout')}, this version of tfmuscle reads {LAYOUT};"
            " export the network again"
        )
    return content


def choose_version(out: str | Path, identity: Mapping[str, Any]) -> int:
    """Returns the version that a network shall be: the one that holds it already, or the next.

    Args:
        out: folder of all versions.
        identity: what tells networks apart: checksums of weights, settings.
    """
    found = versions(out)
    for version in reversed(found):
        if read_about(Path(out) / str(version)).get("identity") == dict(identity):
            return version
    return found[-1] + 1 if found else 1


def write_bundle(path: Path, about: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Writes a version, or adds to it; what is there stays, but for the files and folders that `fill` writes anew.

    Args:
        path: folder of the version.
        about: content of `bundle.json` without the checksums.
        fill: writes the new files into the empty folder it is given.
    """
    with atomic_path(path) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder)
        new = {one.name for one in folder.iterdir()} | {BUNDLE_FILE}
        for name in _files(path) if path.exists() else ():
            if Path(name).parts[0] not in new:  # linked only now: writing into a linked file would change the old one
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _link(str(path / name), str(folder / name))
        files = {name: sha256(folder / name) for name in _files(folder)}
        write_sealed(folder / BUNDLE_FILE, {"layout": LAYOUT} | dict(about) | {"files": files})


def _link(source: str, target: str) -> None:
    """Gives a file a second name where the disk can, and copies it elsewhere."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _files(folder: Path) -> list[str]:
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())
