"""Looking for damage: every bit of every file in a records folder stands under some checksum.

The index is sealed and holds the checksums of spec and description; the notes are sealed and must say what the index
says; a shard must have the length and checksum of its entry, and TensorFlow must find as many whole records in it as
were written. When the index itself is damaged, the notes speak for the shards.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256
from tfmuscle.records.index import check_length, entries_of
from tfmuscle.records.layout import INDEX_FILE, REBUILD, SPEC_FILE, records_in
from tfmuscle.records.sealing import is_sealed, read_sealed

_SHARD_NAME = re.compile(r"shard-\d{5,}\.(tfrecord|json)")


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        problems: one line each, naming the file and what to do; [] when all is well.
        shards: number of sound shards.
        samples: samples in them.
        bytes: their size.
    """

    problems: list[str] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    bytes: int = 0


def verify(folder: str | Path, *, progress: Callable[[int, int, str], None] | None = None) -> Verification:
    """Reads every file of a records folder and compares it with its checksum.

    Args:
        folder: the records.
        progress: called with (shards done, shards in all, file).
    """
    folder = Path(folder)
    found = Verification()
    entries, found.problems = _listed(folder)
    for done, entry in enumerate(entries, start=1):
        path = folder / entry["file"]
        try:
            truth, problems = _check_entry(path, entry)
        except OSError as error:
            truth, problems = entry, [f"{path}: cannot be read ({error.strerror}); {REBUILD}"]
        found.problems += problems
        if truth is not None and not problems:
            found.shards += 1
            found.samples += truth["samples"]
            found.bytes += truth["bytes"]
        if progress is not None:
            progress(done, len(entries), path.name)
    return found


def _listed(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the entries to check, with nothing but a file name when the index is not to be trusted, and problems."""
    path = folder / INDEX_FILE
    try:
        content = read_json(path)
        entries = entries_of(path, content)
        if not is_sealed(path, content):
            raise DataError(f"{path}: has changed since it was written; {REBUILD}")
    except DataError as error:
        return [{"file": shard.name} for shard in sorted(folder.glob("shard-*.tfrecord"))], [_with_remedy(error)]
    problems = [*_check_companions(folder, content.get("files", {})), *_strays(folder, entries)]
    return [entry for entry in entries if entry["status"] == "ok"], problems


def check_shard(path: str | Path, entry: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a shard (missing, cut short, altered), or None; `entry` is that of the index."""
    problem = check_length(Path(path), entry)
    if problem is None and sha256(path) != entry["sha256"]:
        problem = f"{path}: the content has changed since it was written; {REBUILD}"
    return problem


def _check_entry(path: Path, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, list[str]]:
    """Returns what was said to be in a shard, and the problems with shard and note."""
    problems, note = [], None
    note_path = path.with_suffix(".json")
    is_trusted = "status" in entry
    try:
        note = read_sealed(note_path)
    except DataError as error:
        problems.append(_with_remedy(error))
    if is_trusted and note is not None and note != {key: entry[key] for key in entry if key != "fold"}:
        problems.append(f"{note_path}: says something else than {INDEX_FILE}; {REBUILD}")
    truth = entry if is_trusted else note
    if truth is not None and (problem := check_shard(path, truth) or _check_records(path, truth)):
        problems.append(problem)
    return truth, problems


def _with_remedy(error: DataError) -> str:
    return str(error) if REBUILD in str(error) else f"{error}; {REBUILD}"


def _check_records(path: Path, entry: Mapping[str, Any]) -> str | None:
    """Lets TensorFlow check the records one by one: what was broken before its checksum was taken shows only here."""
    try:
        count = int(_count_records(tf.constant(str(path))))
    except tf.errors.OpError:
        return f"{path}: a record is damaged; delete the shard and {REBUILD}"
    if count != (expected := records_in(entry)):
        return f"{path}: holds {count} samples instead of {expected}; delete the shard and {REBUILD}"
    return None


@tf.function(input_signature=[tf.TensorSpec((), tf.string)])
def _count_records(path: tf.Tensor) -> tf.Tensor:
    """Compiled once: a dataset made anew for each of thousands of small shards takes longer than reading them."""
    return tf.data.TFRecordDataset(path).reduce(np.int64(0), lambda count, _: count + 1)


def _check_companions(folder: Path, checksums: Mapping[str, str]) -> Iterator[str]:
    for name, checksum in checksums.items():
        remedy = REBUILD
        if name == SPEC_FILE:
            remedy = "put the original back, or build the records anew in another folder"
        if not (folder / name).is_file():
            yield f"{folder / name}: the file is missing; {remedy}"
        elif sha256(folder / name) != checksum:
            yield f"{folder / name}: has changed since it was written; {remedy}"


def _strays(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    known = {Path(entry["file"]).stem for entry in entries if "file" in entry}
    for path in sorted(folder.iterdir()):
        if _SHARD_NAME.fullmatch(path.name) and path.stem not in known:
            yield f"{path}: is not in {INDEX_FILE}; {REBUILD}, which removes it"
