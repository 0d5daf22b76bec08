"""What the page may run: a fixed list of `tfmuscle` commands, made from fields that are checked one by one.

Nothing from the page becomes part of a command line as text: paths are resolved in the workspace, numbers are numbers,
choices are from lists, and outputs are named here, each in a place of its own in the results.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.gui.volumes import Scan, Volumes
from tfmuscle.gui.workspace import MODEL_FILES, Workspace
from tfmuscle.io import case_id

PARTS = ("abdomen", "upper", "lower")
SIDES = ("left", "right", "both-separately")
METHODS = ("registration", "interpolate", "grow", "watershed")
FORMATS = ("ply", "stl")
Words = tuple[str, ...]
_DATASET_NAME = re.compile(r"\w[\w-]{0,59}", re.ASCII)


@dataclass(frozen=True)
class Command:
    """A command to run: its words after `tfmuscle`, what it is about, and what it makes."""

    words: Words
    title: str
    output: Path | None


class Fields:
    """Fields of a form, each taken with a check.

    Args:
        content: what the page sent.
        workspace: where its paths lead.
    """

    def __init__(self, content: Mapping[str, Any], workspace: Workspace) -> None:
        self._content, self._workspace = content, workspace

    def text(self, name: str) -> str | None:
        """Returns a text, None when there is none."""
        value = self._content.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name} is {value!r}; a text is needed")
        return value or None

    def path(self, name: str) -> Path | None:
        """Returns a path in the workspace, None when there is none."""
        text = self.text(name)
        return None if text is None else self._workspace.path(text)

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """Returns one of the choices, None when nothing is chosen."""
        value = self.text(name)
        if value is not None and value not in choices:
            raise DataError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
        return value

    def number(self, name: str) -> int | None:
        """Returns a whole number from 0 on, None when there is none."""
        value = self._content.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise DataError(f"{name} is {value!r}; a whole number from 0 on is needed")
        return value

    def flag(self, name: str) -> bool:
        """Returns whether a box is ticked."""
        value = self._content.get(name, False)
        if not isinstance(value, bool):
            raise DataError(f"{name} is {value!r}; true or false is needed")
        return value

    def scan(self) -> Scan:
        """Returns the open scan.

        Raises:
            DataError: none is named.
        """
        path = self.path("scan")
        if path is None:
            raise DataError("no scan is open; choose one first")
        return Scan(path, self.text("series"))

    def labels(self) -> Path:
        """Returns the open labels.

        Raises:
            DataError: none are named.
        """
        path = self.path("labels")
        if path is None:
            raise DataError("no labels are open; choose some, or draw and save them first")
        return path


def make_command(kind: str, content: Mapping[str, Any], workspace: Workspace, volumes: Volumes) -> Command:
    """Makes the command of a form.

    Raises:
        DataError: an unknown command, or a field that is missing or wrong.
    """
    if kind not in COMMANDS:
        raise DataError(f"{kind[:60]!r}: the page runs {', '.join(COMMANDS)} only")
    return COMMANDS[kind](Fields(content, workspace), workspace, volumes)


def _prepare(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    dataset = fields.path("dataset")
    source, stem = (dataset, dataset.name) if dataset else _source(fields, volumes)
    words: list[str] = []
    if fields.flag("below_hip"):
        words.append("--below-hip")
        for name, flag in (("hip_slice", "--hip-slice"), ("margin", "--margin")):
            if (number := fields.number(name)) is not None:
                words += [flag, str(number)]
    if fields.flag("bias_field"):
        words.append("--bias-field")
    for name, choices in (("part", PARTS), ("side", SIDES)):
        if (value := fields.choice(name, choices)) is not None:
            words += [f"--{name}", value]
    if not words:
        raise DataError("nothing to prepare; tick a cut, a part, a side or the bias field")
    out = workspace.free("prepared", stem)
    return Command(("prepare", "-i", str(source), "-o", str(out), *words), f"prepare {stem}", out)


def _predict(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    model = fields.path("model")
    if model is None or not any((model / name).is_file() for name in MODEL_FILES):
        raise DataError("no model is chosen; train one with tfmuscle fit, or copy a run or bundle into the folder")
    source, stem = _source(fields, volumes)
    out = workspace.free("predictions", f"{stem}-{model.name}")
    words = ("predict", "-m", str(model), "-i", str(source), "-o", str(out))
    mirror = () if fields.flag("mirror") else ("--no-mirror",)
    return Command((*words, *mirror), f"run {model.name} on {stem}", out)


def _propagate(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    source, stem = _source(fields, volumes)
    labels, model = fields.labels(), fields.path("model")
    out = workspace.free("labels", f"{stem}_propagated", ".nii.gz")
    words = ["propagate", "-i", str(source), "-a", str(labels), "-o", str(out)]
    if model is not None:
        words += ["-m", str(model)]
    elif (method := fields.choice("method", METHODS)) is not None:
        words += ["--method", method]
    if (text := fields.text("slices")) is not None:
        if not all(part.strip().isdecimal() for part in text.split(",")):
            raise DataError(f"slices are {text!r}; numbers with commas between are needed, e.g. 3,40,77")
        words += ["--slices", text]
    return Command(tuple(words), f"propagate {labels.name}", out)


def _measure(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    labels = fields.labels()
    out = workspace.free("reports", case_id(labels))
    words = ("measure", "-i", str(labels), "-o", str(out), "--scan", str(_source(fields, volumes)[0]))
    return Command(words, f"measure {labels.name}", out)


def _surfaces(fields: Fields, workspace: Workspace, _: Volumes) -> Command:
    labels = fields.labels()
    out = workspace.free("surfaces", case_id(labels))
    chosen = fields.choice("format", FORMATS) or FORMATS[0]
    words = ("surfaces", "-i", str(labels), "-o", str(out), "--format", chosen)
    return Command(words, f"surfaces of {labels.name}", out)


def _write_seg(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    labels, scan = fields.labels(), fields.scan()
    if scan.series is None:
        raise DataError(f"{scan.path.name}: is no DICOM series; a DICOM SEG refers to one")
    info = next((one for one in volumes.series(scan.path) if one.name == scan.series), None)
    number = () if info is None or info.number is None else ("--number", str(info.number))
    out = workspace.free("seg", case_id(labels), ".dcm")
    words = ("write-seg", "-i", str(labels), "-s", str(scan.path), "-o", str(out), *number)
    return Command(words, f"DICOM SEG of {labels.name}", out)


def _add_case(fields: Fields, workspace: Workspace, volumes: Volumes) -> Command:
    source, _ = _source(fields, volumes)
    labels, name = fields.labels(), fields.text("set") or "corrected"
    if not _DATASET_NAME.fullmatch(name):
        raise DataError(f"set is {name[:80]!r}; a name of letters, digits, '-' and '_' is needed")
    out = workspace.results / "datasets" / name
    words = ["add-case", "-i", str(source), "--labels", str(labels), "-o", str(out)]
    words += [f"--{flag}" for flag in ("partly", "replace") if fields.flag(flag)]
    if (case := fields.text("case")) is not None:
        if not _DATASET_NAME.fullmatch(case):
            raise DataError(f"case is {case[:80]!r}; a name of letters, digits, '-' and '_' is needed")
        words += ["--id", case]
    return Command(tuple(words), f"add {labels.name} to {name}", out)


def _inspect(fields: Fields, workspace: Workspace, _: Volumes) -> Command:
    dataset = fields.path("dataset")
    if dataset is None:
        raise DataError("no dataset is chosen; choose a folder with a dataset.json")
    return Command(("inspect", str(dataset)), f"inspect {dataset.name}", None)


def _source(fields: Fields, volumes: Volumes) -> tuple[Path, str]:
    """Returns the open scan as a file that commands take, and its name."""
    scan = fields.scan()
    return (scan.path if scan.series is None else volumes.scan_file(scan)), scan.stem


COMMANDS: dict[str, Callable[[Fields, Workspace, Volumes], Command]] = {
    "prepare": _prepare,
    "predict": _predict,
    "propagate": _propagate,
    "measure": _measure,
    "surfaces": _surfaces,
    "write-seg": _write_seg,
    "add-case": _add_case,
    "inspect": _inspect,
}
"""Name of a form -> its command."""
