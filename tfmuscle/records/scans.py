"""Whole preprocessed scans as records, for patches that are drawn anywhere (`DataSpec.patches == "random"`).

A shard then holds one example: image (float16) and labels of the whole scan, what lies outside it (`air`), and
`places`: voxels of each structure to centre patches on, because looking for them at every step would cost more than the
step. Up to `PLACES` a class are kept, drawn by chance from the subject's id, so that every process keeps the same ones.
nnU-Net keeps 10,000; a patch is far larger than what lies between two of a thousand. Where voxels are unlabelled,
`IGNORE` stands for "labelled, whatever it is", so that no patch falls where nobody drew.

The starts of the grid's windows that hold labels (`windows`) are stored too. Scans are read either as arrays
(`read_scan`) or inside a `tf.data` pipeline (`load_scans`), where no Python runs: a pipeline that calls Python can wait
for ever when the process ends.

Boxes around one muscle (`patches == "boxes"`) are cut from such arrays too, one a leg; see `boxes.py`. They need
neither places nor a grid, and a leg without the muscle is refused.

Shapes are stored as TensorFlow Datasets wants them of arrays of unknown size (`image/shape`, `image/value`). An example
cannot be larger than 2 GB, about a thousand million intensities; what is larger is refused with a remedy.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.labels import IGNORE
from tfmuscle.records.examples import (
    DEFLATE_LEVEL,
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
from tfmuscle.sampling import air_of, label_window, sample_at, window_origins

PLACES = 1000
"""Largest number of voxels kept of one class."""
ARRAYS = ("random", "boxes")
"""Choices of `DataSpec.patches` whose shards hold one array instead of samples."""
MUSCLE = 1
"""Class of the muscle in the labels of boxes."""
LARGEST_EXAMPLE_BYTES = 2**31 - 2**16
"""A protocol buffer ends at 2 GB; a little is left for names."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A preprocessed scan from which patches are drawn.

    Attributes:
        image: `(D, H, W, C)` float16.
        labels: `(D, H, W)` int16 class indices with `IGNORE`.
        air: `(C,)` float32, what lies outside.
        places: class -> `(N, 3)` voxels of it; `IGNORE` -> labelled voxels of any class, when some are unlabelled.
        subject_id: whose scan it is.
    """

    image: np.ndarray
    labels: np.ndarray
    air: np.ndarray
    places: dict[int, np.ndarray]
    subject_id: str


def write_scan(
    path: str | Path, image: np.ndarray, labels: np.ndarray, spec: DataSpec, *, subject_id: str
) -> dict[str, Any]:
    """Writes a subject's whole scan, or one leg's array around a muscle, as one file, whole or not at all.

    Args:
        path: the shard.
        image: `(D, H, W, spec.num_channels)`.
        labels: `(D, H, W)` class indices with `IGNORE`.
        spec: how patches will be cut from it.
        subject_id: stored in the example, seed of its places, and named in errors.

    Returns:
        `samples` (windows of the grid that hold labels; 1 for boxes), `records` (1), `bytes`, `sha256`, and
        `class_voxels` of the scan.

    Raises:
        DataError: nothing is labelled, for boxes as the muscle, an intensity is beyond float16 or not a number, the
            scan is larger than 2 GB, or the disk is full.
        ValueError: shapes other than those of `spec`, a class that it does not know, or boxes of anything but one
            muscle in volumes.
    """
    if image.ndim != 4 or image.shape[3] != spec.num_channels or labels.shape != image.shape[:3]:
        raise ValueError(
            f"{subject_id}: image {image.shape} and labels {labels.shape}; (D, H, W, {spec.num_channels}) and (D, H, W)"
            " are needed"
        )
    check_values(image, labels, spec, subject_id)
    windows = _windows(labels, spec, subject_id)
    with atomic_path(path) as temporary:
        with disk_errors(), tf.io.TFRecordWriter(str(temporary)) as writer:
            writer.write(_encode(image, labels, windows, spec, subject_id))
        class_voxels = sum((count_classes(plane, spec) for plane in labels), np.zeros(spec.num_classes, np.int64))
        return summary(temporary, samples=len(windows), class_voxels=class_voxels) | {"records": 1}


def _windows(labels: np.ndarray, spec: DataSpec, subject_id: str) -> list[tuple[int, int, int]]:
    """Returns the starts of the samples, or says why there are none."""
    if spec.patches != "boxes":
        if not (windows := labelled_origins(labels, spec)):
            raise nothing_labelled(subject_id)
        return windows
    if spec.kind != "volumes" or spec.num_classes != 2:
        raise ValueError(
            f"{subject_id}: boxes are cut from {spec.kind} with {spec.num_classes - 1} structures; kind 'volumes' and"
            " one muscle are needed"
        )
    if not (labels == MUSCLE).any():
        raise no_muscle(subject_id, spec)
    return [(0, 0, 0)]


def no_muscle(subject_id: str, spec: DataSpec) -> DataError:
    """Returns what to say of a leg that no box can be made of."""
    return DataError(
        f"{subject_id}: no voxel of {spec.label_map.structures[0]}; label it, or leave this leg out for this muscle"
    )


def labelled_origins(labels: np.ndarray, spec: DataSpec) -> list[tuple[int, int, int]]:
    """Returns the starts of the grid's windows that hold a labelled voxel of `labels` `(D, H, W)`."""
    found = []
    for start in window_origins(labels.shape, spec):
        box = tuple(slice(max(first, 0), first + size) for first, size in zip(start, label_window(spec), strict=True))
        if (labels[box] != IGNORE).any():
            found.append(start)
    return found


def _encode(
    image: np.ndarray, labels: np.ndarray, windows: list[tuple[int, int, int]], spec: DataSpec, subject_id: str
) -> bytes:
    values = np.ascontiguousarray(image, dtype="<f2")
    classes = zlib.compress(np.ascontiguousarray(labels, dtype="<i2").tobytes(), DEFLATE_LEVEL)
    places = (np.zeros((0, 4)) if spec.patches == "boxes" else _places(labels, spec, subject_id)).astype("<i4")
    if (size := values.nbytes + len(classes) + places.nbytes) > LARGEST_EXAMPLE_BYTES:
        raise DataError(
            f"{subject_id}: the preprocessed scan of {' x '.join(map(str, image.shape))} values takes {size / 1e9:.1f}"
            " GB, a record holds 2 GB; choose a coarser --spacing, crop the scan, or take --patches grid"
        )
    features = {
        "image/value": in_bytes(values.tobytes()),
        "image/shape": in_integers(image.shape),
        "labels/value": in_bytes(classes),
        "labels/shape": in_integers(labels.shape),
        "air": in_bytes(air_of(values, spec).astype("<f4").tobytes()),
        "places": in_bytes(places.tobytes()),
        "windows": in_bytes(np.array(windows, dtype="<i4").tobytes()),
        "start": in_integers((0, 0, 0)),
        "subject_id": in_bytes(subject_id.encode()),
    }
    return serialised(features)


def _places(labels: np.ndarray, spec: DataSpec, subject_id: str) -> np.ndarray:
    """Returns rows `(class, d, h, w)`, at most `PLACES` a class."""
    generator = np.random.default_rng([*subject_id.encode()])
    rows = [np.zeros((0, 4), np.int64)]
    sparse = (IGNORE,) if labels.min() == IGNORE else ()
    for number in (*sparse, *range(1, spec.num_classes)):
        found = np.flatnonzero(labels != IGNORE if number == IGNORE else labels == number)
        if len(found) > PLACES:
            found = np.sort(generator.choice(found, PLACES, replace=False))
        places = np.stack(np.unravel_index(found, labels.shape), axis=1)
        rows.append(np.insert(places, 0, number, axis=1))
    return np.concatenate(rows)


def read_scan(path: str | Path, spec: DataSpec) -> Scan:
    """Reads the scan of one shard.

    Memory: three times the shard while it is read, then its arrays.

    Raises:
        DataError: the file is missing, damaged, of another version or made by another spec.
    """
    path = Path(path)
    for record in read_records(path):
        return _decode(path, record, spec)
    raise DataError(f"{path}: is empty; {REBUILD}")


def _decode(path: Path, record: bytes, spec: DataSpec) -> Scan:
    with decoding(path):
        feature = tf.train.Example.FromString(record).features.feature
        check_version(path, feature)
        shape = tuple(feature["image/shape"].int64_list.value)
        image = np.frombuffer(feature["image/value"].bytes_list.value[0], dtype="<f2").reshape(shape)
        classes = zlib.decompress(feature["labels/value"].bytes_list.value[0])
        labels = np.frombuffer(classes, dtype="<i2").reshape(tuple(feature["labels/shape"].int64_list.value))
        air = np.frombuffer(feature["air"].bytes_list.value[0], dtype="<f4")
        rows = np.frombuffer(feature["places"].bytes_list.value[0], dtype="<i4").reshape(-1, 4)
        subject_id = feature["subject_id"].bytes_list.value[0].decode()
    if len(shape) != 4 or shape[3] != spec.num_channels or labels.shape != shape[:3]:
        raise DataError(
            f"{path}: image and labels have shapes {shape} and {labels.shape}, the spec says {spec.num_channels}"
            f" channels; {REBUILD}"
        )
    places = {int(number): rows[rows[:, 0] == number, 1:] for number in np.unique(rows[:, 0])}
    return Scan(image, labels, air, places, subject_id)


def windows_of(scan: Scan, spec: DataSpec) -> Iterator[dict[str, Any]]:
    """Yields the samples of the grid that hold a labelled voxel, as `sampling.cut` does, and the `subject_id`."""
    for start in labelled_origins(scan.labels, spec):
        yield sample_at(scan.image, scan.labels, start, spec, scan.air) | {"subject_id": scan.subject_id}


def load_scans(paths: tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Returns the scans of some shards, in order; one is held at a time, and two more of its size while it is read.

    Args:
        paths: shards, a string tensor.
        spec: what is cut from them.

    Yields:
        dicts of `image`, `labels` and `air` as in `Scan`, `places` `(N, 4)` (class and voxel) and `windows` `(N, 3)`.
    """
    shards = tf.data.Dataset.from_tensor_slices(paths)
    return shards.flat_map(tf.data.TFRecordDataset).map(lambda record: _parse(record, spec))


def _parse(record: tf.Tensor, spec: DataSpec) -> dict[str, tf.Tensor]:
    names = ("image/value", "labels/value", "air", "places", "windows")
    features: dict[str, Any] = {name: tf.io.FixedLenFeature((), tf.string) for name in names}
    features["image/shape"] = tf.io.FixedLenFeature((4,), tf.int64)
    example = tf.io.parse_single_example(record, features)
    image = tf.io.decode_raw(example["image/value"], tf.float16, little_endian=True)
    labels = tf.io.decode_compressed(example["labels/value"], "ZLIB")
    shape = tf.concat([example["image/shape"][:3], [spec.num_channels]], 0)
    return {
        "image": tf.reshape(image, shape),
        "labels": tf.reshape(tf.io.decode_raw(labels, tf.int16, little_endian=True), shape[:3]),
        "air": tf.io.decode_raw(example["air"], tf.float32, little_endian=True),
        "places": tf.reshape(tf.io.decode_raw(example["places"], tf.int32, little_endian=True), (-1, 4)),
        "windows": tf.reshape(tf.io.decode_raw(example["windows"], tf.int32, little_endian=True), (-1, 3)),
    }


def load_windows(paths: tf.Tensor, spec: DataSpec) -> tf.data.Dataset:
    """Yields `(image, labels)` of the windows of `read_shard`, float32 and int32; `paths` is a string tensor."""

    def of_one(scan: dict[str, tf.Tensor]) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(scan["windows"]).map(lambda start: sample_of(scan, start, spec))

    return load_scans(paths, spec).flat_map(of_one)


def sample_of(scan: dict[str, tf.Tensor], start: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `sampling.sample_at` cuts, as tensors: float32 `spec.input_shape`, int32 `spec.label_shape`.

    Args:
        scan: from `load_scans`.
        start: three int32, which may be negative.
        spec: what a sample is.
    """
    shape = tf.shape(scan["labels"])
    length = tf.constant(label_window(spec))
    low, high = tf.maximum(start, 0), tf.minimum(start + length, shape)
    outside = tf.stack([low - start, start + length - high], axis=1)
    labels = tf.cast(tf.slice(scan["labels"], low, high - low), tf.int32)
    labels = tf.pad(labels, outside, constant_values=IGNORE)
    image = scan["image"]
    if spec.kind == "stacks":
        slices = tf.clip_by_value(tf.range(spec.depth) + start[0] - spec.depth // 2, 0, shape[0] - 1)
        image, depth = tf.gather(image, slices), spec.depth
        low, high = tf.concat([[0], low[1:]], 0), tf.concat([[depth], high[1:]], 0)
        outside = tf.concat([[[0, 0]], outside[1:]], 0)
    image = tf.slice(image, tf.concat([low, [0]], 0), tf.concat([high - low, [spec.num_channels]], 0))
    inside = tf.pad(tf.ones(high - low, tf.bool), outside)[..., tf.newaxis]
    image = tf.pad(tf.cast(image, tf.float32), tf.concat([outside, [[0, 0]]], 0))
    image = tf.where(inside, image, scan["air"])
    if spec.kind == "stacks":
        image = tf.transpose(image, (1, 2, 0, 3))
    return tf.reshape(image, spec.input_shape), tf.reshape(labels, spec.label_shape)
