"""What samples and whole scans have in common as TFRecord examples: features, damage, and what must not be written."""

import contextlib
import errno
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import sha256
from tfmuscle.labels import IGNORE
from tfmuscle.records.layout import REBUILD, VERSION

DEFLATE_LEVEL = 1
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_FRAME = struct.Struct("<QI")  # length of a record and the checksum of that length
_FRAME_END_BYTES = 4


def check_values(image: np.ndarray, labels: np.ndarray, spec: DataSpec, subject_id: str) -> None:
    """Refuses intensities that float16 does not hold (DataError) and classes that `spec` does not know (ValueError)."""
    if labels.min() < IGNORE or labels.max() >= spec.num_classes:
        raise ValueError(
            f"{subject_id}: class indices {labels.min()}..{labels.max()} are not in -1..{spec.num_classes - 1};"
            " encode labels with the spec's label map"
        )
    if not max(-float(image.min()), float(image.max())) <= _LARGEST_FLOAT16:  # NaN is not
        raise DataError(
            f"{subject_id}: an intensity is NaN, infinite or beyond ±{_LARGEST_FLOAT16:.0f}, which records cannot hold;"
            " mend the scan or choose a normalisation"
        )


def count_classes(labels: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Returns the number of voxels of each class."""
    return np.bincount(labels[labels != IGNORE].ravel(), minlength=spec.num_classes)


def nothing_labelled(subject_id: str) -> DataError:
    """Returns what to say of a subject without any labelled voxel."""
    return DataError(f"{subject_id}: no sample has a labelled voxel; label some slices or leave the subject out")


def summary(path: Path, *, samples: int, class_voxels: np.ndarray) -> dict[str, Any]:
    """Returns what the index says of a shard that has just been written."""
    size, digest = path.stat().st_size, sha256(path)
    return {"samples": samples, "bytes": size, "sha256": digest, "class_voxels": class_voxels.tolist()}


def in_bytes(value: bytes) -> tf.train.Feature:
    """Returns a feature of one byte string."""
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def in_integers(values: Iterable[int]) -> tf.train.Feature:
    """Returns a feature of int64."""
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))


def serialised(features: Mapping[str, tf.train.Feature]) -> bytes:
    """Returns an example that says its version; the same bytes in every process."""
    content = dict(features) | {"version": in_integers([VERSION])}
    return tf.train.Example(features=tf.train.Features(feature=content)).SerializeToString(deterministic=True)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turns TensorFlow's words for a full, closed or vanished disk into the OSError that `atomic_path` explains."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.OutOfRangeError) as error:
        raise OSError(errno.ENOSPC, "no space left") from error
    except tf.errors.PermissionDeniedError as error:
        raise OSError(errno.EACCES, "permission denied") from error
    except tf.errors.NotFoundError as error:
        raise OSError(errno.ENOENT, "the folder is gone") from error
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message.splitlines()[0]) from error


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the records of a shard.

    Raises:
        DataError: the file is missing or damaged.
    """
    check_frames(path)
    try:
        yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise DataError(f"{path}: the shard is damaged ({error.message.splitlines()[0]}); {REBUILD}") from error


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong with an example of something else into a `DataError` that names its file."""
    try:
        yield
    except DataError:
        raise
    except (DecodeError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: holds something else than samples of tfmuscle; {REBUILD}") from error


def check_version(path: Path, feature: Mapping[str, Any]) -> None:
    """Refuses an example of another version (DataError), or of none (IndexError)."""
    if (version := feature["version"].int64_list.value[0]) != VERSION:
        raise DataError(f"{path}: format version {version}; this tfmuscle reads version {VERSION}, {REBUILD}")


def check_frames(path: Path) -> None:
    """Walks over the lengths of the records, without reading them: a file that was cut short does not come out even."""
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; {REBUILD}")
    size, position = path.stat().st_size, 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_FRAME.size)
            if len(head) == _FRAME.size:
                position += _FRAME.size + _FRAME.unpack(head)[0] + _FRAME_END_BYTES
            if len(head) < _FRAME.size or position > size:
                raise DataError(f"{path}: the shard is damaged or cut short; {REBUILD}")
