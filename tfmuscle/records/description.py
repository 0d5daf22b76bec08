"""Two files that let `tfds.builder_from_directory` read the records where they lie, without this package.

TensorFlow Datasets wants `features.json` (how to decode an example) and `dataset_info.json` (which files belong to
which *split*, and how many examples each holds). It numbers the files of a split without gaps, while our shards are
numbered over all subjects, those that failed included. So every split names all shards, and gives length 0 to those
that are not its own: TensorFlow Datasets never opens a shard of length 0. Copying or renaming the shards into one row
per split was rejected, because the number of a shard would then change with the folds.

Splits are `fold_0`, `fold_1`, ... and `test`. Subjects held out are in `test` alone; training on all but fold 0 reads
`split="fold_1+fold_2"`. TensorFlow Datasets' own word `all` takes the test subjects in.

The image comes out as float16, as it is stored; `labels` are class indices with -1 for unknown. With random patches
and boxes an example is a whole array, of whatever shape.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec
from tfmuscle.files import write_json
from tfmuscle.folds import TEST
from tfmuscle.records.layout import DATASET_INFO_FILE, FEATURES_FILE, VERSION, records_in
from tfmuscle.records.scans import ARRAYS

_FEATURES = "tensorflow_datasets.core.features."
_ANY = (-1, -1, -1)
SHARD_TEMPLATE = "shard-{SHARD_INDEX}.tfrecord"


def write_description(folder: str | Path, entries: Iterable[Mapping[str, Any]], spec: DataSpec) -> None:
    """Writes `features.json` and `dataset_info.json`; `entries` are those of `RecordIndex`."""
    folder = Path(folder)
    write_json(folder / FEATURES_FILE, features(spec))
    write_json(folder / DATASET_INFO_FILE, dataset_info(entries, spec))


def features(spec: DataSpec) -> dict[str, Any]:
    """Returns how an example is decoded; the names are those of `shards.py`."""
    whole = spec.patches in ARRAYS
    parts = {
        "image": _tensor((*_ANY, spec.num_channels) if whole else spec.input_shape, "float16", "bytes"),
        "labels": _tensor(_ANY if whole else spec.label_shape, "int16", "zlib"),
        "start": _tensor((3,), "int64", "none"),
        "subject_id": {"pythonClassName": _FEATURES + "text_feature.Text", "text": {}},
    }
    return {"pythonClassName": _FEATURES + "features_dict.FeaturesDict", "featuresDict": {"features": parts}}


def _tensor(shape: tuple[int, ...], dtype: str, encoding: str) -> dict[str, Any]:
    # protocol buffers write 64-bit integers as strings
    content = {"dtype": dtype, "encoding": encoding, "shape": {"dimensions": [str(length) for length in shape]}}
    return {"pythonClassName": _FEATURES + "tensor_feature.Tensor", "tensor": content}


def dataset_info(entries: Iterable[Mapping[str, Any]], spec: DataSpec) -> dict[str, Any]:
    """Returns the splits: for each the length of every shard, 0 where the shard is not its own."""
    usable = [entry for entry in entries if entry["status"] == "ok"]
    numbered = {int(Path(entry["file"]).stem.removeprefix("shard-")): entry for entry in usable}
    count = max(numbered, default=-1) + 1
    splits = []
    for fold in sorted({entry["fold"] for entry in numbered.values()}, key=lambda fold: (fold == TEST, fold)):
        own = {number: entry for number, entry in numbered.items() if entry["fold"] == fold}
        lengths = [str(records_in(own[number])) if number in own else "0" for number in range(count)]
        splits.append(
            {
                "name": "test" if fold == TEST else f"fold_{fold}",
                "shardLengths": lengths,
                "numBytes": str(sum(entry["bytes"] for entry in own.values())),
                "filepathTemplate": SHARD_TEMPLATE,
            }
        )
    return {
        "name": "tfmuscle_records",
        "version": f"{VERSION}.0.0",
        "description": f"{spec.name}: {spec.kind}; classes {', '.join(spec.label_map.names.values())}",
        "fileFormat": "tfrecord",
        "splits": splits,
    }
