"""Another tool's label files as a start for correcting: `relabel_files`.

The user names a label file, or a folder of them, and a table of names (`relabelling.py`). Out comes, on the same grid,
a label image with new numbers, and beside it what they mean: `<name>.json`, or `predictions.json` for a folder, which
all commands find, and the same for ITK-SNAP (`.label`). All files of a folder share one table.

Numbers follow the order of the renaming table, then that of the structures that are kept besides; with `like` they are
another table's. The new table holds what was found in some file, and nothing else: a row whose structure is in none of
them gets no number.

Nothing is written over: labels that were relabelled once may have been corrected since. A folder is there when all of
its files have been tried, or not at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, json_text, write_json, write_text
from tfmuscle.io import case_files, case_id, check_suffix, read_label_image, write_volume
from tfmuscle.io.label_tables import embedded_label_map, names_of, read_label_table
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.relabelling import (
    DROPPED,
    IGNORE,
    Renaming,
    check_renaming,
    new_map,
    new_names,
    read_renaming,
    renumbered,
    standard_name,
    tool_names,
)
from tfmuscle.workflows.contours import snap_table

STANDARD = "standard"
"""Stands for a table of names: our spelling of every name, nothing merged or dropped."""
MADE_BY = "tfmuscle relabel"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Relabelled:
    """One file.

    Attributes:
        ids: new name -> new number, of what is there.
        volumes_ml: new name -> ml.
        made_of: new name -> old names, or `id <number>` where there was none.
        dropped: old names of what became background.
        absent: rows of the table whose structure the file has not.
    """

    ids: Mapping[str, int]
    volumes_ml: Mapping[str, float]
    made_of: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class RelabelResult:
    """What the new numbers mean, what became of each file, and why others failed."""

    label_map: LabelMap
    files: Mapping[str, Relabelled]
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """Ids in a file, and what they mean."""

    path: Path
    present: tuple[int, ...]
    names: LabelMap | None

    def called(self, key: int) -> str:
        """Returns the old name of an id."""
        name = None if self.names is None else self.names.names.get(key)
        return name or (f"id {key}" if self.names is None or key != self.names.ignore else "ignore")


def relabel_files(
    source: str | Path,
    out: str | Path,
    *,
    table: str | Path,
    names: str | Path | None = None,
    like: str | Path | None = None,
    keep_others: bool = False,
    progress: Progress | None = None,
) -> RelabelResult:
    """Renames, merges and drops the structures of label files.

    Args:
        source: label file, or folder of them.
        out: label file to write, or folder for `<case>.nii.gz`; not there yet.
        table: CSV with the columns `from` and `to`, or `STANDARD`.
        names: what the ids mean: a label table, or a list of `label_lists.py`; without it the files' own.
        like: label table whose ids the new names get; without it they are numbered.
        keep_others: structures that no row names keep their name.
        progress: called with (files done, files in all, case); each file is read twice.

    Raises:
        ValueError: `out` has another ending.
        DataError: a table is wrong, `out` is there already, or no file could be used.
    """
    source, out = Path(source), Path(out)
    files = _files(source, out)
    standard = str(table) == STANDARD
    renaming: Renaming = {} if standard else read_renaming(table)
    keep = standard_name if standard else str if keep_others else None
    wanted_map = None if like is None else read_label_table(like)
    found, failures = _look(files, names, progress)
    tables = [one.names for one in found.values() if one.names is not None]
    if found:
        present = {key for one in found.values() for key in one.present}
        _explained(table, check_renaming, renaming, tables, present)
    new: dict[str, dict[int, str]] = {}
    for case, one in found.items():
        try:
            new[case] = new_names(one.present, one.names, renaming, keep=keep)
        except ValueError as error:
            failures[case] = f"{one.path}: {error}"
    if not new:
        first = next(iter(failures.values()))
        raise DataError(f"{source}: no label file could be used; the first: {first}" if len(files) > 1 else first)
    there = list(dict.fromkeys(name for one in new.values() for name in one.values()))
    wanted = [*(name for name in renaming.values() if name in there), *there]
    label_map = _explained(like or table, new_map, wanted, like=wanted_map)
    chosen = {case: found[case] for case in new}
    if source.is_dir():
        told, unwritten = _write_folder(out, chosen, new, label_map, progress)
        failures |= unwritten
    else:
        told = _write_file(out, chosen, new, label_map, progress)
    absent = {case: _absent(renaming, found[case]) for case in told}
    return RelabelResult(label_map, {case: replace(one, absent=absent[case]) for case, one in told.items()}, failures)


def _files(source: Path, out: Path) -> dict[str, Path]:
    """Returns case -> label file, once it is seen that nothing is in the way of the output."""
    files = case_files(source) if source.is_dir() else {case_id(source): source}
    if not files:
        raise DataError(f"{source}: holds no label file; NIfTI, NRRD or MHA files are needed")
    if not source.is_dir():
        check_suffix(out)
    for path in (out, *(() if source.is_dir() else _beside(out))):
        if path.exists() and not (source.is_dir() and path.is_dir() and not any(path.iterdir())):
            raise DataError(f"{path}: is there already, perhaps with corrections; name another output or remove it")
    return files


def _beside(out: Path) -> tuple[Path, Path]:
    """Returns the tables that lie beside a label file: ours, and ITK-SNAP's."""
    return out.with_name(f"{case_id(out)}.json"), out.with_name(f"{case_id(out)}.label")


def _explained(path: str | Path, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `function`; what it says of the table gets the table's path."""
    try:
        return function(*args, **kwargs)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _look(
    files: Mapping[str, Path], names: str | Path | None, progress: Progress | None
) -> tuple[dict[str, _Found], dict[str, str]]:
    """Returns what each file holds, and why others cannot be read."""
    given, is_list = (None, False) if names is None else tool_names(names)
    found, failures = {}, {}
    for number, (case, path) in enumerate(files.items(), start=1):
        try:
            present = tuple(int(key) for key in distinct(read_label_image(path).array) if key)
            if is_list:
                _check_header(path, given or LabelMap({}))
            found[case] = _Found(path, present, given or names_of(path))
        except DataError as error:
            failures[case] = str(error)
        if progress is not None:
            progress(number, 2 * len(files), case)
    return found, failures


def _check_header(path: Path, given: LabelMap) -> None:
    """Refuses a list that the file's own header contradicts: versions of one tool number otherwise."""
    own = embedded_label_map(path)
    for key, name in {} if own is None else own.names.items():
        if key and given.names.get(key) != name:
            other = given.names.get(key, "nothing")
            raise DataError(f"{path}: its header calls {key} {name}, the list {other}; leave --names out")


def _write_file(
    out: Path,
    found: Mapping[str, _Found],
    new: Mapping[str, dict[int, str]],
    label_map: LabelMap,
    progress: Progress | None,
) -> dict[str, Relabelled]:
    """Writes one label file, and what its ids mean beside it."""
    ((case, one),) = found.items()
    told = _write_one(out, one, new[case], label_map)
    for path, text in zip(_beside(out), (json_text(_about(label_map)), snap_table(label_map)), strict=True):
        write_text(path, text)
    if progress is not None:
        progress(2, 2, case)
    return {case: told}


def _write_folder(
    out: Path,
    found: Mapping[str, _Found],
    new: Mapping[str, dict[int, str]],
    label_map: LabelMap,
    progress: Progress | None,
) -> tuple[dict[str, Relabelled], dict[str, str]]:
    """Writes a folder of label files and what their ids mean; returns them, and why others cannot be written."""
    done: dict[str, Relabelled] = {}
    failures: dict[str, str] = {}
    with atomic_path(out) as temporary:
        for number, (case, one) in enumerate(found.items(), start=1):
            try:
                done[case] = _write_one(temporary / f"{case}.nii.gz", one, new[case], label_map)
            except DataError as error:
                failures[case] = str(error)
            if progress is not None:
                progress(len(found) + number, 2 * len(found), case)
        if not done:
            raise DataError(next(iter(failures.values())))
        write_json(temporary / "predictions.json", _about(label_map))
        write_text(temporary / "labels.label", snap_table(label_map))
    return done, failures


def _about(label_map: LabelMap) -> dict[str, Any]:
    return {"made_by": MADE_BY, "labels": label_map.to_dict()}


def _write_one(path: Path, one: _Found, names: Mapping[int, str], label_map: LabelMap) -> Relabelled:
    labels = read_label_image(one.path)
    array = renumbered(labels.array, names, label_map)
    write_volume(path, labels.with_array(array))
    size = labels.geometry.voxel_volume_ml
    made_of: dict[str, tuple[str, ...]] = {}
    for key, name in names.items():
        made_of[name] = (*made_of.get(name, ()), one.called(key))
    dropped = made_of.pop(DROPPED, ())
    ids = {name: int(label_map.ignore or 0) if name == IGNORE else label_map.id_of(name) for name in made_of}
    volumes = {name: int(np.count_nonzero(array == key)) * size for name, key in ids.items()}
    return Relabelled(ids, volumes, made_of, dropped)


def _absent(renaming: Renaming, one: _Found) -> tuple[str, ...]:
    """Returns the rows whose structure is not in the file."""
    there = {*one.present, *(one.called(key) for key in one.present)}
    return tuple(f"id {key}" if isinstance(key, int) else key for key in renaming if key not in there)
