"""Samples on disk: one TFRecord file (*shard*) per subject, an index with checksums, and the spec they were cut by.

A records folder holds `spec.json` (the `DataSpec`), `index.json` (what each shard holds, which fold its subject is
in, which subjects failed and why) and `shard-00000.tfrecord`, ... One shard per subject, because folds go by subject:
choosing folds is choosing files. A shard is written to a temporary name and renamed when whole, so a file that exists
is complete, and the same samples give the same bytes in every process; a leftover temporary file is never read, for
only the index counts.

Each example keeps the image as raw little-endian float16 and the labels (class indices, int16, `IGNORE` = -1) deflated.
float16 has 11 significant bits: a normalised intensity is kept to a relative 0.05 %, below the noise of any scanner,
in half the space and time; beyond ±65504 it does not reach, which is refused. Whole-file compression was rejected,
because it makes reading ten times slower.

The user's files may be cut short or altered: `read_index` sees missing and truncated shards, `verify` every changed
bit. Both say what to do: run build-records again, which makes only what is damaged.
"""

import contextlib
import errno
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, provenance, read_json, sha256, write_json
from tfmuscle.labels import IGNORE
from tfmuscle.subjects import TEST

__all__ = [
    "TEST",
    "RecordIndex",
    "Shard",
    "check_shard",
    "load_samples",
    "load_spec",
    "plan_shards",
    "read_index",
    "read_shard",
    "verify",
    "write_index",
    "write_shard",
]

FORMAT = "tfmuscle-records"
VERSION = 1
"""Version of the layout described above; a reader refuses any other."""
INDEX_FILE = "index.json"
SPEC_FILE = "spec.json"
_REBUILD = "run build-records again"
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_FRAME = struct.Struct("<QI")  # length of a record and the checksum of that length
_FRAME_END_BYTES = 4
_DEFLATE_LEVEL = 1


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


def write_shard(
    path: str | Path, samples: Iterable[Mapping[str, Any]], spec: DataSpec, *, subject_id: str
) -> dict[str, Any]:
    """Writes a subject's samples as one file, whole or not at all; samples without a labelled voxel are left out.

    Args:
        path: the shard.
        samples: dicts with `image`, `labels` and `start`, as `sampling.cut` yields them.
        spec: how they were cut.
        subject_id: stored in every example, and named in errors.

    Returns:
        `samples` (count), `bytes`, `sha256`, and `class_voxels`: voxels of each class over all samples.

    Raises:
        DataError: nothing is labelled, an intensity is beyond float16 or not a number, or the disk is full.
        ValueError: a sample does not have the shape of `spec`, or holds a class that `spec` does not know.
    """
    count, class_voxels = 0, np.zeros(spec.num_classes, dtype=np.int64)
    with atomic_path(path) as temporary:
        with _disk_errors(), tf.io.TFRecordWriter(str(temporary)) as writer:
            for sample in samples:
                labels = np.asarray(sample["labels"])
                if (labels == IGNORE).all():
                    continue
                _check_sample(sample, spec, subject_id)
                class_voxels += np.bincount(labels[labels != IGNORE].ravel(), minlength=spec.num_classes)
                writer.write(_encode(sample, subject_id))
                count += 1
        if not count:
            raise DataError(f"{subject_id}: no sample has a labelled voxel; label some slices or leave the subject out")
        size, digest = temporary.stat().st_size, sha256(temporary)
    return {"samples": count, "bytes": size, "sha256": digest, "class_voxels": class_voxels.tolist()}


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turns TensorFlow's word for a full or closed disk into the OSError that `atomic_path` explains."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.OutOfRangeError) as error:
        raise OSError(errno.ENOSPC, "no space left") from error
    except tf.errors.PermissionDeniedError as error:
        raise OSError(errno.EACCES, "permission denied") from error


def _check_sample(sample: Mapping[str, Any], spec: DataSpec, subject_id: str) -> None:
    image, labels = np.asarray(sample["image"]), np.asarray(sample["labels"])
    if image.shape != spec.input_shape or labels.shape != spec.label_shape:
        raise ValueError(
            f"{subject_id}: a sample has shapes {image.shape} and {labels.shape}; the spec needs {spec.input_shape} and"
            f" {spec.label_shape}"
        )
    if labels.min() < IGNORE or labels.max() >= spec.num_classes:
        raise ValueError(
            f"{subject_id}: class indices {labels.min()}..{labels.max()} are not in -1..{spec.num_classes - 1};"
            " encode labels with the spec's label map"
        )
    if not np.abs(image).max() <= _LARGEST_FLOAT16:
        raise DataError(
            f"{subject_id}: an intensity is NaN, infinite or beyond ±{_LARGEST_FLOAT16:.0f}, which records cannot hold;"
            " mend the scan or choose a normalisation"
        )


def _encode(sample: Mapping[str, Any], subject_id: str) -> bytes:
    image = np.ascontiguousarray(sample["image"], dtype="<f2")
    labels = np.ascontiguousarray(sample["labels"], dtype="<i2")
    feature = {
        "image": _bytes(image.tobytes()),
        "image_shape": _integers(image.shape),
        "labels": _bytes(zlib.compress(labels.tobytes(), _DEFLATE_LEVEL)),
        "label_shape": _integers(labels.shape),
        "start": _integers(sample["start"]),
        "subject_id": _bytes(subject_id.encode()),
        "version": _integers([VERSION]),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _integers(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))


@dataclass(frozen=True)
class RecordIndex:
    """What a records folder holds.

    Attributes:
        folder: the folder.
        entries: one dict per subject: `file`, `subject_id`, `fold`, `status` ("ok" or "failed"); for "ok" also
            `samples`, `bytes`, `sha256`, `class_voxels`; for "failed" `error`.
    """

    folder: Path
    entries: tuple[dict[str, Any], ...]

    @property
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
        """Returns the number of samples in the subject's shard."""
        return self._entry(subject_id)["samples"]

    def paths(self, folds: Sequence[int]) -> list[Path]:
        """Returns the shards of the subjects in `folds`."""
        return [self.folder / entry["file"] for entry in self.usable.values() if entry["fold"] in folds]

    def class_voxels(self, folds: Sequence[int]) -> list[int]:
        """Returns the voxels of each class over the subjects in `folds`."""
        counts = [entry["class_voxels"] for entry in self.usable.values() if entry["fold"] in folds]
        return np.sum(counts, axis=0, dtype=np.int64).tolist() if counts else []

    def _entry(self, subject_id: str) -> dict[str, Any]:
        if subject_id not in self.usable:
            raise ValueError(f"{self.folder}: no shard of subject {subject_id!r}; there are {', '.join(self.usable)}")
        return self.usable[subject_id]


def write_index(folder: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes `index.json`; `entries` are those of `RecordIndex`."""
    content = {"format": FORMAT, "version": VERSION, "made_with": provenance(), "shards": [dict(e) for e in entries]}
    write_json(Path(folder) / INDEX_FILE, content)


def read_index(folder: str | Path) -> RecordIndex:
    """Reads `index.json` and sees that every shard is there in full length.

    Raises:
        DataError: the index is missing, damaged or of another version, or a shard is missing or cut short.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if folder.is_dir() and not path.exists():
        raise DataError(f"{path}: there is no index, the records are incomplete; {_REBUILD} to finish them")
    index = RecordIndex(folder, _entries(path, read_json(path)))
    for entry in index.usable.values():
        problem = _check_length(folder / entry["file"], entry)
        if problem:
            raise DataError(problem)
    return index


def load_spec(folder: str | Path) -> DataSpec:
    """Reads the spec the records were made by; a missing or bad file is a `DataError`."""
    return DataSpec.load(Path(folder) / SPEC_FILE)


def verify(folder: str | Path) -> list[str]:
    """Compares every shard with its checksum; returns the problems in words, [] when all is well."""
    folder = Path(folder)
    path = folder / INDEX_FILE
    try:
        index = RecordIndex(folder, _entries(path, read_json(path)))
    except DataError as error:
        return [str(error)]
    problems = [check_shard(folder / entry["file"], entry) for entry in index.usable.values()]
    return [problem for problem in problems if problem]


def check_shard(path: str | Path, entry: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a shard (missing, cut short, altered), or None; `entry` is that of the index."""
    problem = _check_length(Path(path), entry)
    if problem is None and sha256(path) != entry["sha256"]:
        problem = f"{path}: the content has changed since it was written; {_REBUILD}"
    return problem


def _check_length(path: Path, entry: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path}: the shard is missing; {_REBUILD}"
    size = path.stat().st_size
    return None if size == entry["bytes"] else f"{path}: has {size} bytes instead of {entry['bytes']}; {_REBUILD}"


def _entries(path: Path, content: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: is no index of tfmuscle records; give the folder that build-records made")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {content.get('version')!r}; this tfmuscle reads version {VERSION}, {_REBUILD}"
            " into another folder"
        )
    entries = content.get("shards")
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise DataError(f"{path}: an entry is incomplete or points outside the folder; {_REBUILD}")
    return tuple(entries)


def _is_entry(entry: Any) -> bool:
    types = {"subject_id": str, "status": str}
    if isinstance(entry, dict) and entry.get("status") == "ok":
        types |= {"file": str, "fold": int, "samples": int, "bytes": int, "sha256": str, "class_voxels": list}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in types.items()):
        return False
    return Path(entry.get("file", "-")).name == entry.get("file", "-")


def read_shard(path: str | Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the samples of one shard: `image` float32, `labels` int16, `start` and `subject_id`.

    Raises:
        DataError: the file is missing, damaged, of another version or made by another spec.
    """
    path = Path(path)
    _check_frames(path)
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield _decode(path, record, spec)
    except tf.errors.OpError as error:
        raise DataError(f"{path}: the shard is damaged ({error.message.splitlines()[0]}); {_REBUILD}") from error


def _decode(path: Path, record: bytes, spec: DataSpec) -> dict[str, Any]:
    try:
        feature = tf.train.Example.FromString(record).features.feature
        version = feature["version"].int64_list.value[0]
        shapes = [tuple(feature[key].int64_list.value) for key in ("image_shape", "label_shape")]
        image = np.frombuffer(feature["image"].bytes_list.value[0], dtype="<f2")
        labels = np.frombuffer(zlib.decompress(feature["labels"].bytes_list.value[0]), dtype="<i2")
        start, subject_id = tuple(feature["start"].int64_list.value), feature["subject_id"].bytes_list.value[0].decode()
    except (DecodeError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: holds something else than samples of tfmuscle; {_REBUILD}") from error
    if version != VERSION:
        raise DataError(f"{path}: format version {version}; this tfmuscle reads version {VERSION}, {_REBUILD}")
    if shapes != [spec.input_shape, spec.label_shape]:
        raise DataError(
            f"{path}: samples have shapes {shapes[0]} and {shapes[1]}, the spec says {spec.input_shape} and"
            f" {spec.label_shape}; {_REBUILD}"
        )
    image, labels = image.reshape(shapes[0]).astype(np.float32), labels.reshape(shapes[1]).astype(np.int16)
    return {"image": image, "labels": labels, "start": start, "subject_id": subject_id}


def _check_frames(path: Path) -> None:
    """Walks over the lengths of the records, without reading them: a file that was cut short does not come out even."""
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; {_REBUILD}")
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_FRAME.size)
            if len(head) == _FRAME.size:
                position += _FRAME.size + _FRAME.unpack(head)[0] + _FRAME_END_BYTES
            if len(head) < _FRAME.size or position > size:
                raise DataError(f"{path}: the shard is damaged or cut short; {_REBUILD}")


def load_samples(paths: Sequence[str | Path] | tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Returns the samples of some shards, in order, unbatched and unshuffled.

    Args:
        paths: shards; a string tensor inside a `tf.data` function is taken unchecked.
        spec: how they were cut.

    Yields:
        `(image, labels)`: float32 of `spec.input_shape` and int32 of `spec.label_shape`.

    Raises:
        DataError: the first record of a shard cannot be read, or does not fit `spec`. Damage further on surfaces as
            TensorFlow's DataLossError while reading; `verify` names the file.
    """
    if not tf.is_tensor(paths):
        for path in paths:
            next(read_shard(path, spec), None)
        paths = tf.constant([str(path) for path in paths], dtype=tf.string)
    files = tf.data.Dataset.from_tensor_slices(paths)
    records = files.flat_map(lambda path: tf.data.TFRecordDataset(path, buffer_size=1 << 20))
    return records.map(lambda record: _parse(record, spec), num_parallel_calls=tf.data.AUTOTUNE)


def _parse(record: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"image": tf.io.FixedLenFeature((), tf.string), "labels": tf.io.FixedLenFeature((), tf.string)}
    example = tf.io.parse_single_example(record, features)
    image = tf.io.decode_raw(example["image"], tf.float16, little_endian=True)
    labels = tf.io.decode_raw(tf.io.decode_compressed(example["labels"], "ZLIB"), tf.int16, little_endian=True)
    image = tf.cast(tf.reshape(image, spec.input_shape), tf.float32)
    return image, tf.cast(tf.reshape(labels, spec.label_shape), tf.int32)
