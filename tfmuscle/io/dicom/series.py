"""Series as a user sees them: found, named, judged, chosen, read."""

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset

from tfmuscle.errors import DataError
from tfmuscle.io.dicom.fitness import named_localiser, no_image
from tfmuscle.io.dicom.frames import Frame, frames_of
from tfmuscle.io.dicom.headers import CONVERT, description, is_directory, modality_of, number, read_header, words
from tfmuscle.io.dicom.pixels import check_decoder, check_promise, is_lossy, read_pixels
from tfmuscle.io.dicom.sources import Source, open_sources
from tfmuscle.io.dicom.stacks import TIME, Stack, make_stacks
from tfmuscle.volume import Volume

USABLE = "usable"
_MAX_LISTED = 8


@dataclass(frozen=True)
class SeriesInfo:
    """One stack of images that can be read as a volume, or a part of the folder that cannot.

    Attributes:
        name: short and unique; what `read_dicom(path, series=name)` takes.
        number: series number; None if there is none.
        description: of the scanner; withheld when it repeats what names the patient.
        modality: "MR", "CT", ...
        contrast: kind of image and its times, e.g. "water, TE 2.46 ms, TR 6.7 ms".
        shape: `(I, J, K)`: columns, rows, slices; None if it is no volume.
        spacing: mm along the three axes; None if it is no volume.
        orientation: axis codes, e.g. "LPS"; "" if it is no volume.
        num_files: files it is made of.
        num_images: two-dimensional images.
        fitness: "usable", or why it is not and what to do, in plain words.
        kind: "image", "localiser", "other" (labels, reports, colour, ...) or "damaged".
        notes: what a user should know of a usable one.
    """

    name: str
    number: int | None
    description: str
    modality: str
    contrast: str
    shape: tuple[int, int, int] | None
    spacing: tuple[float, float, float] | None
    orientation: str
    num_files: int
    num_images: int
    fitness: str
    kind: str = "image"
    notes: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether it can be read."""
        return self.fitness == USABLE

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class _Entry:
    """A stack with what the user sees of it; `folders` are those its files lie in."""

    info: SeriesInfo
    stack: Stack | None = None
    folders: frozenset[str] = field(default_factory=frozenset)


def list_series(path: str | Path, *, progress: Callable[[int, int, str], None] | None = None) -> list[SeriesInfo]:
    """Lists what a DICOM file, a nested folder, a DICOMDIR or a zip holds, by series number.

    Args:
        path: where to look.
        progress: called with (files read, files in all, "").

    Raises:
        DataError: nothing there, a hostile or damaged zip, or a damaged DICOMDIR. Damaged images are listed instead.
    """
    with _quiet(), open_sources(Path(path)) as (sources, problems):
        return [entry.info for entry in _entries(Path(path), sources, problems, progress)]


def read_dicom(path: str | Path, *, series: str | None = None) -> Volume:
    """Reads one stack of a DICOM file, nested folder, DICOMDIR or zip as `(I, J, K)` with its affine in mm (RAS+).

    Stored numbers keep their type when every rescale slope is 1 and every intercept 0, else they become float32. A
    stack of one slice takes its thickness as spacing. Localisers, reports and labels beside one stack are passed over.

    Args:
        path: where to look.
        series: name of the stack, as `list_series` gives it, or the number of a series that has one usable stack.

    Raises:
        DataError: no such series, more than one and none chosen, or one that is no evenly spaced stack of grey images.
    """
    path = Path(path)
    with _quiet(), open_sources(path) as (sources, problems):
        entries = _entries(path, sources, problems, None)
        stack = _chosen(path, entries, series)
        try:
            return Volume(read_pixels(stack.frames), stack.geometry, str(path))
        except DataError as error:
            raise DataError(f"{path}{_below(path, str(error))}") from error


def _below(path: Path, text: str) -> str:
    """Returns what follows `path` in a message that begins with the name of a file in it."""
    return text[len(path.name) :] if text.startswith(f"{path.name}: ") else f"/{text}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences pydicom's warnings and log: they quote values, which may be a patient's name."""
    log = logging.getLogger("pydicom")
    before = log.propagate
    log.propagate = False
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.propagate = before


def _entries(
    path: Path, sources: list[Source], problems: list[str], progress: Callable[[int, int, str], None] | None
) -> list[_Entry]:
    """Reads all headers and makes the entries, named and in order."""
    found: dict[tuple[str, ...], list[tuple[Source, FileDataset]]] = {}
    entries = [_Entry(_no_volume("damaged", problem, kind="damaged")) for problem in problems]
    for done, source in enumerate(sources, start=1):
        try:
            read, header = read_header(source)
            if not is_directory(header):
                key = ("SeriesInstanceUID", "SeriesNumber", "SOPClassUID", "Modality")
                found.setdefault(tuple(str(header.get(name, "")) for name in key), []).append((read, header))
        except DataError as error:
            entries.append(_damaged(path, source, str(error)))
        if progress is not None:
            progress(done, len(sources), "")
    if not found and not entries:
        raise DataError(f"{path}: no DICOM image in it; give the folder, DICOMDIR or zip that holds the series")
    for files in found.values():
        entries += _series_entries(path, files)
    return _named(sorted(entries, key=_order))


def _order(entry: _Entry) -> tuple[bool, float]:
    return entry.info.kind == "damaged", float("inf") if entry.info.number is None else entry.info.number


def _damaged(path: Path, source: Source, reason: str) -> _Entry:
    where = "" if path.is_file() and source.archive is None else f"{source.name}: "
    info = replace(_no_volume("damaged", where + reason, kind="damaged"), num_files=1)
    return _Entry(info, folders=frozenset([source.folder]))


def _refused(path: Path, reason: str, files: list[tuple[Source, FileDataset]], kind: str) -> _Entry:
    source = files[0][0]
    if kind == "damaged" and not (path.is_file() and source.archive is None):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        reason = f"{source.name}{more}: {reason}"
    return _Entry(
        _described(files[0][1], None, files, reason, kind=kind), folders=frozenset(one.folder for one, _ in files)
    )


def _no_volume(name: str, fitness: str, *, kind: str) -> SeriesInfo:
    return SeriesInfo(name, None, "", "", "", None, None, "", 0, 0, fitness, kind)


def _series_entries(path: Path, files: list[tuple[Source, FileDataset]]) -> list[_Entry]:
    """Makes the entries of one series: its stacks, or the reason why it has none, and its damaged files."""
    header = files[0][1]
    if reason := no_image(header):
        return [_Entry(_described(header, None, files, reason, kind="other"))]
    frames: list[Frame] = []
    refused: dict[tuple[str, str], list[tuple[Source, FileDataset]]] = {}
    for source, one in files:
        kind = "damaged"
        try:
            check_promise(source, one)
            kind = "image"
            check_decoder(one)
            if one.get("ModalityLUTSequence"):
                raise DataError(f"values come through a look-up table, which is not supported; {CONVERT}")
            frames += frames_of(source, one)
        except DataError as error:
            refused.setdefault((kind, str(error)), []).append((source, one))
    entries = [_refused(path, reason, those, kind) for (kind, reason), those in refused.items()]
    headers = dict(files)
    for stack in make_stacks(frames):
        own = [(source, headers[source]) for source in dict.fromkeys(frame.source for frame in stack.frames)]
        stack = named_localiser(stack, own[0][1])
        info = _described(own[0][1], stack, own, stack.problem or USABLE, kind=stack.kind)
        entries.append(_Entry(info, stack, frozenset(source.folder for source, _ in own)))
    return entries


def _described(
    header: FileDataset, stack: Stack | None, files: list[tuple[Source, FileDataset]], fitness: str, *, kind: str
) -> SeriesInfo:
    text = description(header)
    modality = modality_of(header)
    series_number = number(header, "SeriesNumber")
    geometry = stack.geometry if stack is not None and stack.affine is not None else None
    label = "" if text == "description withheld" else re.sub(r"[^\w.+]+", "_", text).strip("_")[:24]
    parts = [str(int(series_number)) if series_number is not None else "", label or modality]
    return SeriesInfo(
        name="-".join(part for part in parts if part) or "series",
        number=None if series_number is None else int(series_number),
        description=text,
        modality=modality,
        contrast=_contrast(stack),
        shape=geometry.shape if geometry else None,
        spacing=tuple(round(value, 4) for value in geometry.spacing) if geometry else None,  # type: ignore[arg-type]
        orientation=geometry.orientation if geometry else "",
        num_files=len(files),
        num_images=len(stack.frames) if stack is not None else 0,
        fitness=fitness,
        kind=kind,
        notes=_notes(header, stack) if stack is not None and fitness == USABLE else (),
    )


def _contrast(stack: Stack | None) -> str:
    """Returns kind of image and times of a stack in words."""
    if stack is None:
        return ""
    traits = stack.frames[0].traits
    times = (("TE", traits["echo"], "ms"), ("TR", traits["repetition"], "ms"), ("TI", traits["inversion"], "ms"))
    found = [str(traits["kind"])] + [f"{name} {value:.4g} {unit}" for name, value, unit in times if value]
    if traits["b"] not in (None, ""):
        found.append(f"b {float(traits['b']):.0f}")
    return ", ".join(word for word in found if word)


def _notes(header: FileDataset, stack: Stack) -> tuple[str, ...]:
    notes = list(stack.notes)
    if "MONOCHROME1" in words(header, "PhotometricInterpretation"):
        notes.append("MONOCHROME1: high values are meant to be dark; values are as stored")
    if is_lossy(header):
        notes.append("compressed with loss: values are not those of the scanner")
    scales = {frame.private_scale for frame in stack.frames if frame.private_scale is not None}
    if len(scales) == 1:
        notes.append(f"Philips: values as displayed; divided by {scales.pop():.6g} they compare between series")
    elif scales:
        notes.append("Philips: slices are scaled differently; values do not compare between slices")
    return tuple(notes)


def _named(entries: list[_Entry]) -> list[_Entry]:
    """Gives every entry a name of its own: what sets a stack apart within its series, then a running number."""
    values: dict[tuple[str, str], set[Any]] = {}
    for entry in entries:
        for what, value in entry.stack.parts if entry.stack is not None else ():
            values.setdefault((entry.info.name, what), set()).add(value)
    result: list[_Entry] = []
    used: set[str] = set()
    for entry in entries:
        name = entry.info.name
        for what, value in entry.stack.parts if entry.stack is not None else ():
            known = sorted(values[entry.info.name, what], key=lambda one: (one is not None, one))
            name += f"-{_plane(entry.stack) if what == 'plane' else _part(what, value, 1 + known.index(value))}"
        unique, copy = name, 2
        while unique.lower() in used:
            unique, copy = f"{name}-{copy}", copy + 1
        used.add(unique.lower())
        result.append(replace(entry, info=replace(entry.info, name=unique)))
    return result


def _plane(stack: Stack | None) -> str:
    cosines = stack.frames[0].cosines if stack is not None else np.zeros(6)
    return ("sagittal", "coronal", "axial")[int(np.abs(np.cross(cosines[:3], cosines[3:])).argmax())]


def _part(what: str, value: Any, rank: int) -> str:
    """Returns the word for one property that sets a stack apart."""
    if what in TIME:
        return f"time{rank}"
    if what in ("echo", "echo number"):
        return f"echo{rank}"
    if what in ("b", "inversion", "repetition"):
        prefix = {"b": "b", "inversion": "ti", "repetition": "tr"}[what]
        return f"{prefix}{float(value):.0f}" if value not in (None, "") else f"no_{prefix}"
    if what in ("kind", "size"):
        return re.sub(r"[^\w.+-]+", "_", str(value)) or "plain"
    return f"{what}{rank}"


def _chosen(path: Path, entries: list[_Entry], series: str | None) -> Stack:
    """Returns the stack to read.

    Raises:
        DataError: as `read_dicom`.
    """
    usable = [entry for entry in entries if entry.info.is_usable]
    if series is not None:
        named = [entry for entry in entries if entry.info.name.lower() == series.strip().lower()]
        named = named or [entry for entry in usable if str(entry.info.number) == series.strip()]
        if len(named) != 1:
            raise DataError(f"{path}: no one series is called {series!r}; {_choice(usable)}")
        if not named[0].info.is_usable and not (named[0].info.kind == "localiser" and named[0].info.shape):
            raise DataError(f"{path}: {series}: {named[0].info.fitness}")
        entry = named[0]
    else:
        others = [entry for entry in entries if entry.info.kind == "image" and not entry.info.is_usable]
        if not usable:
            raise DataError(f"{path}: {_why_none(entries)}")
        if len(usable) > 1 or others:
            beside = f", {_shortly(others[0])}" if others else ""
            raise DataError(f"{path}: {len(usable)} series can be read{beside}; {_choice(usable)}")
        entry = usable[0]
    damaged = [one for one in entries if one.info.kind == "damaged" and one.folders & entry.folders]
    if damaged or entry.stack is None:
        raise DataError(f"{path}: {damaged[0].info.fitness}")
    return entry.stack


def _choice(usable: list[_Entry]) -> str:
    parts = [f"{_name(entry)} ({'x'.join(map(str, entry.info.shape or ()))})" for entry in usable]
    more = f" and {len(parts) - _MAX_LISTED} more" if len(parts) > _MAX_LISTED else ""
    if not parts:
        return "none can be read, `tfmuscle inspect` says why"
    return f"choose one by name, of {', '.join(parts[:_MAX_LISTED])}{more}; `tfmuscle inspect` lists all"


def _name(entry: _Entry) -> str:
    return entry.info.name


def _shortly(entry: _Entry) -> str:
    return f"not {_name(entry)} ({entry.info.fitness.split(';')[0]})"


def _why_none(entries: list[_Entry]) -> str:
    """Returns why nothing can be read: the reason, or that of the likeliest entries."""
    by_kind = sorted(entries, key=lambda entry: ("image", "damaged", "localiser", "other").index(entry.info.kind))
    if len(entries) == 1 or len({entry.info.fitness for entry in entries}) == 1:
        return by_kind[0].info.fitness
    parts = [f"{_name(entry)} ({entry.info.fitness.split(';')[0]})" for entry in by_kind]
    more = f" and {len(parts) - _MAX_LISTED} more" if len(parts) > _MAX_LISTED else ""
    return f"none of {len(parts)} series can be read: {', '.join(parts[:_MAX_LISTED])}{more}; choose another folder"
