"""The index: what every shard holds, which fold its subject is in, and who failed and why."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, sha256
from tfmuscle.records.description import write_description
from tfmuscle.records.layout import (
    DATASET_INFO_FILE,
    FEATURES_FILE,
    FORMAT,
    INDEX_FILE,
    REBUILD,
    SPEC_FILE,
    VERSION,
)
from tfmuscle.records.sealing import is_sealed, write_sealed


@dataclass(frozen=True)
class Shard:
    """One file to write: its number, its subject, and the subject's fold (`TEST` for those held out)."""

    index: int
    subject_id: str
    fold: int

    @property
    def file(self) -> str:
        """Name of the file inside the records folder."""
        return f"shard-{self.index:05d}.tfrecord"


def plan_shards(folds: Mapping[str, int]) -> list[Shard]:
    """Returns one shard per subject, numbered in the order of the ids, whatever the order of `folds`.

    >>> [(shard.file, shard.subject_id) for shard in plan_shards({"b": 1, "a": 0})]
    [('shard-00000.tfrecord', 'a'), ('shard-00001.tfrecord', 'b')]
    """
    return [Shard(number, subject_id, folds[subject_id]) for number, subject_id in enumerate(sorted(folds))]


@dataclass(frozen=True)
class RecordIndex:
    """What a records folder holds.

    Attributes:
        folder: the folder.
        entries: one dict per subject: `file`, `subject_id`, `fold`, `status` ("ok" or "failed"); for "ok" also
            `samples`, `bytes`, `sha256`, `class_voxels`, and for a whole scan `records` (1); for "failed" `error`.
    """

    folder: Path
    entries: tuple[dict[str, Any], ...]

    @functools.cached_property
    def usable(self) -> dict[str, dict[str, Any]]:
        """Subject -> entry, of the subjects that have a shard."""
        return {entry["subject_id"]: entry for entry in self.entries if entry["status"] == "ok"}

    @property
    def failures(self) -> dict[str, str]:
        """Subject -> why it has no shard."""
        return {entry["subject_id"]: entry.get("error", "") for entry in self.entries if entry["status"] != "ok"}

    @property
    def folds(self) -> dict[str, int]:
        """Subject -> fold, of the subjects that have a shard."""
        return {subject_id: entry["fold"] for subject_id, entry in self.usable.items()}

    def path_of(self, subject_id: str) -> str:
        """Returns the subject's shard, relative to the folder."""
        return self._entry(subject_id)["file"]

    def samples_of(self, subject_id: str) -> int:
        """Returns the number of samples in the subject's shard; of a whole scan, windows of the grid with labels."""
        return self._entry(subject_id)["samples"]

    def paths(self, folds: Sequence[int]) -> list[Path]:
        """Returns the shards of the subjects in `folds`."""
        return [self.folder / entry["file"] for entry in self.usable.values() if entry["fold"] in folds]

    def class_voxels(self, folds: Sequence[int]) -> list[int]:
        """Returns the voxels of each class over the subjects in `folds`."""
        counts = [entry["class_voxels"] for entry in self.usable.values() if entry["fold"] in folds]
        return [sum(column) for column in zip(*counts, strict=True)]

    def _entry(self, subject_id: str) -> dict[str, Any]:
        if subject_id not in self.usable:
            raise ValueError(f"{self.folder}: no shard of subject {subject_id!r}; there are {', '.join(self.usable)}")
        return self.usable[subject_id]


def write_index(folder: str | Path, entries: Iterable[Mapping[str, Any]], spec: DataSpec) -> None:
    """Writes `spec.json`, the description for TensorFlow Datasets and, when all that stands, `index.json`.

    Args:
        folder: the records.
        entries: those of `RecordIndex`.
        spec: how the samples were cut.
    """
    folder, entries = Path(folder), [dict(entry) for entry in entries]
    spec.save(folder / SPEC_FILE)
    write_description(folder, entries, spec)
    checksums = {name: sha256(folder / name) for name in (SPEC_FILE, FEATURES_FILE, DATASET_INFO_FILE)}
    content = {"format": FORMAT, "version": VERSION, "made_with": provenance(), "files": checksums, "shards": entries}
    write_sealed(folder / INDEX_FILE, content)


def withdraw_index(folder: str | Path) -> None:
    """Removes what lists the shards, before one of them changes: a build that is killed then leaves no false list."""
    for name in (INDEX_FILE, DATASET_INFO_FILE):
        (Path(folder) / name).unlink(missing_ok=True)


def read_index(folder: str | Path) -> RecordIndex:
    """Reads `index.json` and sees that every shard is there in full length.

    Raises:
        DataError: the index is missing, damaged or of another version, or a shard is missing or cut short.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if folder.is_dir() and not path.exists():
        raise DataError(f"{path}: there is no index, the records are incomplete; {REBUILD} to finish them")
    content = read_json(path)
    index = RecordIndex(folder, entries_of(path, content))
    if not is_sealed(path, content):
        raise DataError(f"{path}: has changed since it was written; {REBUILD}")
    for entry in index.usable.values():
        problem = check_length(folder / entry["file"], entry)
        if problem:
            raise DataError(problem)
    return index


def load_spec(folder: str | Path) -> DataSpec:
    """Reads the spec the records were made by; a missing or bad file is a `DataError`."""
    return DataSpec.load(Path(folder) / SPEC_FILE)


def check_length(path: Path, entry: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a shard at first sight (missing, cut short), or None."""
    if not path.is_file():
        return f"{path}: the shard is missing; {REBUILD}"
    size = path.stat().st_size
    return None if size == entry["bytes"] else f"{path}: has {size} bytes instead of {entry['bytes']}; {REBUILD}"


def entries_of(path: Path, content: Any) -> tuple[dict[str, Any], ...]:
    """Returns the entries of an index read from `path`, or says what is wrong with it."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: is no index of tfmuscle records; give the folder that build-records made")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {content.get('version')!r}; this tfmuscle reads version {VERSION}, {REBUILD}"
            " into another folder"
        )
    entries = content.get("shards")
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise DataError(f"{path}: an entry is incomplete or points outside the folder; {REBUILD}")
    return tuple(entries)


def _is_entry(entry: Any) -> bool:
    types: dict[str, type] = {"subject_id": str, "status": str}
    if isinstance(entry, dict) and entry.get("status") == "ok":
        types |= {"file": str, "fold": int, "samples": int, "bytes": int, "sha256": str, "class_voxels": list}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in types.items()):
        return False
    return Path(entry.get("file", "-")).name == entry.get("file", "-")
