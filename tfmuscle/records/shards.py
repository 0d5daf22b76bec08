"""Writing and reading the samples of one shard; the encoding is explained in the package's docstring."""

import contextlib
import errno
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, sha256
from tfmuscle.labels import IGNORE
from tfmuscle.records.layout import REBUILD, VERSION

_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_FRAME = struct.Struct("<QI")  # length of a record and the checksum of that length
_FRAME_END_BYTES = 4
_DEFLATE_LEVEL = 1


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
        raise DataError(f"{path}: the shard is damaged ({error.message.splitlines()[0]}); {REBUILD}") from error


def _decode(path: Path, record: bytes, spec: DataSpec) -> dict[str, Any]:
    try:
        feature = tf.train.Example.FromString(record).features.feature
        version = feature["version"].int64_list.value[0]
        shapes = [tuple(feature[key].int64_list.value) for key in ("image_shape", "label_shape")]
        image = np.frombuffer(feature["image"].bytes_list.value[0], dtype="<f2")
        labels = np.frombuffer(zlib.decompress(feature["labels"].bytes_list.value[0]), dtype="<i2")
        start, subject_id = tuple(feature["start"].int64_list.value), feature["subject_id"].bytes_list.value[0].decode()
    except (DecodeError, IndexError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: holds something else than samples of tfmuscle; {REBUILD}") from error
    if version != VERSION:
        raise DataError(f"{path}: format version {version}; this tfmuscle reads version {VERSION}, {REBUILD}")
    if shapes != [spec.input_shape, spec.label_shape]:
        raise DataError(
            f"{path}: samples have shapes {shapes[0]} and {shapes[1]}, the spec says {spec.input_shape} and"
            f" {spec.label_shape}; {REBUILD}"
        )
    image, labels = image.reshape(shapes[0]).astype(np.float32), labels.reshape(shapes[1]).astype(np.int16)
    return {"image": image, "labels": labels, "start": start, "subject_id": subject_id}


def _check_frames(path: Path) -> None:
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
