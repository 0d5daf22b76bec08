"""How one example is best kept in a TFRecord: size, writing and reading speed, and what precision costs.

    python benchmarks/encoding.py --data FOLDER [--rounds 5] > table.md

`FOLDER` holds `hippocampus/` (Medical Segmentation Decathlon, Task04) and `leg_dixon/` (`test_up.nii.gz` and
`test_low.nii.gz`, both legs). The scans go through the package's own reading, preprocessing and cutting; the samples
are held in memory, so that only the encoding is timed. The legs have no labels: three classes by intensity stand in,
whose ragged borders deflate worse than drawn ones would.

Every encoding writes all samples to one file and reads them back by `tf.data` (parallel map, as training does) to
float32 and int32, `--rounds` times; encodings take turns, so that a busy machine is busy for all. Medians are printed:
examples per second by the clock, and milliseconds of processor time per example (all threads together), which other
work on the machine disturbs less; and the load over the last minute at the start and at the end. Files lie in the page
cache: a disk is not measured, on which the smaller file gains.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import cut
from tfmuscle.subjects import read_dataset

UINT16 = 65535


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How image and labels become bytes; `image` turns float32 into bytes, scale and offset."""

    name: str
    kind: tf.DType
    deflate_image: bool = False
    deflate_labels: bool = True
    gzip: bool = False

    def encode(self, image: np.ndarray, labels: np.ndarray) -> bytes:
        scale, offset = 1.0, 0.0
        if self.kind == tf.uint16:
            offset = float(image.min())
            scale = max(float(image.max()) - offset, 1e-9) / UINT16
            image = np.rint((image - offset) / scale)
        pixels = image.astype(self.kind.as_numpy_dtype).tobytes()
        indices = labels.tobytes()
        feature = {
            "image": _bytes(zlib.compress(pixels, 1) if self.deflate_image else pixels),
            "labels": _bytes(zlib.compress(indices, 1) if self.deflate_labels else indices),
            "scale": tf.train.Feature(float_list=tf.train.FloatList(value=[scale, offset])),
        }
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)

    def decode(self, record: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
        features = {"image": tf.io.FixedLenFeature((), tf.string), "labels": tf.io.FixedLenFeature((), tf.string)}
        if self.kind == tf.uint16:
            features["scale"] = tf.io.FixedLenFeature((2,), tf.float32)
        example = tf.io.parse_single_example(record, features)
        pixels, indices = example["image"], example["labels"]
        pixels = tf.io.decode_compressed(pixels, "ZLIB") if self.deflate_image else pixels
        indices = tf.io.decode_compressed(indices, "ZLIB") if self.deflate_labels else indices
        image = tf.cast(tf.reshape(tf.io.decode_raw(pixels, self.kind), spec.input_shape), tf.float32)
        if self.kind == tf.uint16:
            image = image * example["scale"][0] + example["scale"][1]
        return image, tf.cast(tf.reshape(tf.io.decode_raw(indices, tf.int16), spec.label_shape), tf.int32)


ENCODINGS = [
    Encoding("float16 raw, labels deflated (ours)", tf.float16),
    Encoding("uint16 raw with scale, labels deflated", tf.uint16),
    Encoding("float32 raw, labels deflated", tf.float32),
    Encoding("float16 raw, labels raw", tf.float16, deflate_labels=False),
    Encoding("float16 deflated, labels deflated", tf.float16, deflate_image=True),
    Encoding("float16 in a GZIP file", tf.float16, deflate_labels=False, gzip=True),
    Encoding("float32 in a GZIP file", tf.float32, deflate_labels=False, gzip=True),
]


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def hippocampus(folder: Path) -> tuple[DataSpec, list[dict]]:
    dataset = read_dataset(folder)
    spec = DataSpec(dataset.label_map, kind="volumes", size=(56, 40), depth=40, channels=dataset.channels)
    samples = []
    for subject in dataset.subjects[:60]:
        image, labels = preprocess(*subject.read(spec.label_map), spec)
        samples += cut(image.array, labels.array, spec)
    return spec, samples


def legs(folder: Path) -> tuple[DataSpec, list[dict]]:
    spec = DataSpec(LabelMap({1: "middle", 2: "bright"}), size=(256, 256))
    samples = []
    for name in ("test_up.nii.gz", "test_low.nii.gz"):
        image = read_volume(folder / name)
        third = np.quantile(image.array[image.array > 0], [1 / 3, 2 / 3])
        labels = image.with_array(np.digitize(image.array, third).astype(np.uint8))
        image = image.with_array(image.array.astype(np.float32)[..., np.newaxis])
        image, labels = preprocess(image, labels, spec)
        samples += cut(image.array, labels.array, spec)
    return spec, samples


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds by the clock and of the processor, over all threads."""
    start = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def write(path: Path, encoding: Encoding, samples: list[dict]) -> None:
    options = tf.io.TFRecordOptions(compression_type="GZIP" if encoding.gzip else "")
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for sample in samples:
            writer.write(encoding.encode(sample["image"], sample["labels"]))


def read(path: Path, encoding: Encoding, spec: DataSpec) -> tf.data.Dataset:
    records = tf.data.TFRecordDataset(str(path), "GZIP" if encoding.gzip else "", buffer_size=1 << 20)
    return records.map(lambda record: encoding.decode(record, spec), num_parallel_calls=tf.data.AUTOTUNE)


def table(name: str, spec: DataSpec, samples: list[dict], rounds: int) -> None:
    repeats = max(1, 400 // len(samples))
    many = samples * repeats
    seconds = {encoding: ([], []) for encoding in ENCODINGS}
    size, error = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for number, encoding in enumerate(ENCODINGS):
                path = Path(folder) / f"{number}.tfrecord"
                seconds[encoding][0].append(timed(lambda p=path, e=encoding: write(p, e, many)))
                dataset = read(path, encoding, spec)
                seconds[encoding][1].append(timed(lambda d=dataset: [None for _ in d.prefetch(2)]))
                size[encoding] = path.stat().st_size / len(many)
                back = zip(samples, dataset.as_numpy_iterator(), strict=False)
                error[encoding] = max(float(np.abs(image - sample["image"]).max()) for sample, (image, _) in back)
    print(f"\n**{name}**: {len(samples)} samples of {spec.input_shape}, written {repeats} times over\n")
    print("| encoding | KiB/example | write/s | CPU ms | read and decode/s | CPU ms | largest error (SD) |")
    print("|---|---|---|---|---|---|---|")
    for encoding, (writing, reading) in seconds.items():
        cells = []
        for times in (writing, reading):
            wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
            cells += [f"{len(many) / wall:,.0f}", f"{1000 * processor / len(many):.2f}"]
        print(f"| {encoding.name} | {size[encoding] / 1024:.1f} | {' | '.join(cells)} | {error[encoding]:.1g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, TensorFlow {tf.__version__}, load {os.getloadavg()[0]:.1f} at the start")
    for name, make in (("hippocampus", hippocampus), ("leg_dixon", legs)):
        spec, samples = make(arguments.data / name)
        table(name, spec, samples, arguments.rounds)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
