"""Writing and reading the samples of one shard; the encoding is explained in the package's docstring."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.labels import IGNORE
from tfmuscle.records.boxes import load_boxes, mean_sample
from tfmuscle.records.examples import (
    DEFLATE_LEVEL,
    check_frames,
    check_values,
    check_version,
    count_classes,
    decoding,
    disk_errors,
    in_bytes,
    in_integers,
    nothing_labelled,
    read_records,
    serialised,
    summary,
)
from tfmuscle.records.layout import REBUILD
from tfmuscle.records.scans import ARRAYS, load_windows, read_scan, windows_of


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
        ValueError: a sample does not have the shape of `spec`, or holds a class that `spec` does not know; or the
            spec wants boxes, whose arrays `write_scan` writes.
    """
    if spec.patches == "boxes":
        raise ValueError(f"{subject_id}: boxes are cut from one array around the muscle; write it by write_scan")
    count, class_voxels = 0, np.zeros(spec.num_classes, dtype=np.int64)
    with atomic_path(path) as temporary:
        with disk_errors(), tf.io.TFRecordWriter(str(temporary)) as writer:
            for sample in samples:
                labels = np.asarray(sample["labels"])
                if (labels == IGNORE).all():
                    continue
                _check_sample(sample, spec, subject_id)
                class_voxels += count_classes(labels, spec)
                writer.write(_encode(sample, subject_id))
                count += 1
        if not count:
            raise nothing_labelled(subject_id)
        return summary(temporary, samples=count, class_voxels=class_voxels)


def _check_sample(sample: Mapping[str, Any], spec: DataSpec, subject_id: str) -> None:
    image, labels = np.asarray(sample["image"]), np.asarray(sample["labels"])
    if image.shape != spec.input_shape or labels.shape != spec.label_shape:
        raise ValueError(
            f"{subject_id}: a sample has shapes {image.shape} and {labels.shape}; the spec needs {spec.input_shape} and"
            f" {spec.label_shape}"
        )
    check_values(image, labels, spec, subject_id)


def _encode(sample: Mapping[str, Any], subject_id: str) -> bytes:
    image = np.ascontiguousarray(sample["image"], dtype="<f2")
    labels = np.ascontiguousarray(sample["labels"], dtype="<i2")
    features = {
        "image": in_bytes(image.tobytes()),
        "image_shape": in_integers(image.shape),
        "labels": in_bytes(zlib.compress(labels.tobytes(), DEFLATE_LEVEL)),
        "label_shape": in_integers(labels.shape),
        "start": in_integers(sample["start"]),
        "subject_id": in_bytes(subject_id.encode()),
    }
    return serialised(features)


def read_shard(path: str | Path, spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the samples of one shard: `image` float32, `labels` int16, `start` and `subject_id`.

    Of a whole scan (random patches), these are the windows of the grid that hold a labelled voxel; of boxes, the one
    in which every edge is moved by the mean ratio.

    Raises:
        DataError: the file is missing, damaged, of another version or made by another spec.
    """
    path = Path(path)
    if spec.patches == "random":
        yield from windows_of(read_scan(path, spec), spec)
        return
    if spec.patches == "boxes":
        yield mean_sample(read_scan(path, spec), spec)
        return
    for record in read_records(path):
        yield _decode(path, record, spec)


def _decode(path: Path, record: bytes, spec: DataSpec) -> dict[str, Any]:
    with decoding(path):
        feature = tf.train.Example.FromString(record).features.feature
        check_version(path, feature)
        shapes = [tuple(feature[key].int64_list.value) for key in ("image_shape", "label_shape")]
        image = np.frombuffer(feature["image"].bytes_list.value[0], dtype="<f2")
        labels = np.frombuffer(zlib.decompress(feature["labels"].bytes_list.value[0]), dtype="<i2")
        start, subject_id = tuple(feature["start"].int64_list.value), feature["subject_id"].bytes_list.value[0].decode()
    if shapes != [spec.input_shape, spec.label_shape]:
        raise DataError(
            f"{path}: samples have shapes {shapes[0]} and {shapes[1]}, the spec says {spec.input_shape} and"
            f" {spec.label_shape}; {REBUILD}"
        )
    image, labels = image.reshape(shapes[0]).astype(np.float32), labels.reshape(shapes[1]).astype(np.int16)
    return {"image": image, "labels": labels, "start": start, "subject_id": subject_id}


def load_samples(paths: Sequence[str | Path] | tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Returns the samples of some shards, in order, unbatched and unshuffled.

    Of whole scans (random patches) and boxes, these are the samples of `read_shard`; one scan is held at a time.

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
            _check_first(Path(path), spec)
        paths = tf.constant([str(path) for path in paths], dtype=tf.string)
    if spec.patches == "random":
        return load_windows(paths, spec)
    if spec.patches == "boxes":
        return load_boxes(paths, spec)
    files = tf.data.Dataset.from_tensor_slices(paths)
    records = files.flat_map(lambda path: tf.data.TFRecordDataset(path, buffer_size=1 << 20))
    return records.map(lambda record: _parse(record, spec), num_parallel_calls=tf.data.AUTOTUNE)


def _check_first(path: Path, spec: DataSpec) -> None:
    if spec.patches in ARRAYS:  # reading a whole scan twice would take long
        check_frames(path)
    else:
        next(read_shard(path, spec), None)


def _parse(record: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
    features = {"image": tf.io.FixedLenFeature((), tf.string), "labels": tf.io.FixedLenFeature((), tf.string)}
    example = tf.io.parse_single_example(record, features)
    image = tf.io.decode_raw(example["image"], tf.float16, little_endian=True)
    labels = tf.io.decode_raw(tf.io.decode_compressed(example["labels"], "ZLIB"), tf.int16, little_endian=True)
    image = tf.cast(tf.reshape(image, spec.input_shape), tf.float32)
    return image, tf.cast(tf.reshape(labels, spec.label_shape), tf.int32)
