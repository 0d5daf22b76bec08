"""Samples on disk: one TFRecord file (*shard*) per subject, an index with checksums, and the spec they were cut by.

A records folder holds `spec.json` (the `DataSpec`), `index.json` (what each shard holds, which fold its subject is
in, which subjects failed and why), `shard-00000.tfrecord`, ..., a *note* beside each shard (`shard-00000.json`: what
it was made from) and two files that describe the whole to TensorFlow Datasets. One shard per subject, because folds
go by subject: choosing folds is choosing files. A shard is written to a temporary name and renamed when whole, so a
file that exists is complete, and the same samples give the same bytes in every process; a leftover temporary file is
never read, for only the index counts.

Each example keeps the image as raw little-endian float16 and the labels (class indices, int16, `IGNORE` = -1) deflated.
float16 has 11 significant bits: a normalised intensity is kept to a relative 0.05 %, below the noise of any scanner,
in half the space of float32; beyond ±65504 it does not reach, which is refused. uint16 takes the same space and must
carry a scale. Deflated images and GZIP files are smaller, and cost processor time at every reading, which augmentation
needs (`benchmarks/encoding.md`).

With random patches (`DataSpec.patches`) a shard holds a single example, the whole preprocessed scan, from which
training draws patches (`scans.py`). `read_shard` and `load_samples` then give the windows of the grid that hold labels,
which is also what `samples` in the index counts.

Two choices serve a cascade. With `patches="whole"` a shard holds one ordinary sample, a part of the scan that was
already resized to `DataSpec.window`. With `patches="boxes"` it holds one array around a muscle, from which training
cuts boxes of random size (`boxes.py`); the one sample that `read_shard` and `load_samples` give is its mean box.

The user's files may be cut short or altered: `read_index` sees missing and truncated shards, `verify` every changed
bit of every file. Both say what to do: run build-records again, which makes only what is damaged.

`shards.py` writes and reads samples, `scans.py` whole scans, `boxes.py` cuts boxes from them, `examples.py` is what
they share; `index.py` holds the index, `sealing.py` JSON that knows its own checksum, `checking.py` looks for damage,
`description.py` speaks to TensorFlow Datasets.
"""

from tfmuscle.folds import TEST
from tfmuscle.records.boxes import box_sample
from tfmuscle.records.checking import Verification, check_shard, verify
from tfmuscle.records.index import RecordIndex, Shard, load_spec, plan_shards, read_index, withdraw_index, write_index
from tfmuscle.records.layout import INDEX_FILE, SPEC_FILE
from tfmuscle.records.scans import PLACES, Scan, load_scans, read_scan, sample_of, write_scan
from tfmuscle.records.sealing import read_sealed, write_sealed
from tfmuscle.records.shards import load_samples, read_shard, write_shard

__all__ = [
    "INDEX_FILE",
    "PLACES",
    "SPEC_FILE",
    "TEST",
    "RecordIndex",
    "Scan",
    "Shard",
    "Verification",
    "box_sample",
    "check_shard",
    "load_samples",
    "load_scans",
    "load_spec",
    "plan_shards",
    "read_index",
    "read_scan",
    "read_sealed",
    "read_shard",
    "sample_of",
    "verify",
    "withdraw_index",
    "write_index",
    "write_scan",
    "write_sealed",
    "write_shard",
]
