"""Records are read by TensorFlow Datasets, which knows nothing of this package, and give what `read_shard` gives."""

import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import records
from tfmuscle.config import DataSpec
from tfmuscle.labels import LabelMap
from tfmuscle.sampling import cut

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is in the extra 'test'")

# tensorflow-datasets 4.9.10 asks protobuf for the label of a field in the old way; ends when it stops
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")

TWO = LabelMap({1: "muscle", 2: "bone"}, ignore=255)
KINDS = {
    "slices": DataSpec(TWO, name="Legs of été/2", size=(6, 8), folds=2, test=1),
    "volumes": DataSpec(TWO, kind="volumes", channels=("in", "out"), size=(6, 8), depth=4, folds=2, test=1),
}
FOLDS = {"a": 0, "b": 1, "c": 0, "d": records.TEST, "e": 1, "f": 0}
FAILED = ("c", "f")  # a gap in the middle of the numbers, and one at their end


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    """Six subjects with different numbers of samples, two of which failed."""
    spec, entries = KINDS[request.param], []
    for shard in records.plan_shards(FOLDS):
        rng = np.random.default_rng(shard.index)
        image = rng.normal(size=(7 + shard.index, 9, 8, len(spec.channels))).astype(np.float32)
        labels = rng.integers(-1, 3, image.shape[:3]).astype(np.int16)
        entry = {"file": shard.file, "subject_id": shard.subject_id, "fold": shard.fold}
        if shard.subject_id in FAILED:
            entries.append(entry | {"status": "failed", "error": "cut short"})
            continue
        written = records.write_shard(
            tmp_path / shard.file, cut(image, labels, spec), spec, subject_id=shard.subject_id
        )
        entries.append(entry | {"status": "ok"} | written)
    records.write_index(tmp_path, entries, spec)
    return tmp_path


def expected(folder, subjects):
    index, spec = records.read_index(folder), records.load_spec(folder)
    return [sample for subject in subjects for sample in records.read_shard(folder / index.path_of(subject), spec)]


@pytest.mark.parametrize(
    ("split", "subjects"),
    [("fold_0", "a"), ("fold_1", "be"), ("test", "d"), ("fold_0+fold_1", "abe"), ("all", "abed")],
)
def test_a_split_gives_the_samples_of_its_subjects(folder, split, subjects):
    builder = tfds.builder_from_directory(folder)
    found = list(tfds.as_numpy(builder.as_dataset(split=split)))
    wanted = expected(folder, subjects)
    assert len(found) == len(wanted) == builder.info.splits[split].num_examples
    found.sort(key=lambda sample: (sample["subject_id"], *sample["start"]))
    wanted.sort(key=lambda sample: (sample["subject_id"], *sample["start"]))
    for sample, again in zip(wanted, found, strict=True):
        assert again["subject_id"].decode() == sample["subject_id"] and tuple(again["start"]) == sample["start"]
        assert again["image"].dtype == np.float16 and again["labels"].dtype == np.int16
        np.testing.assert_array_equal(again["image"].astype(np.float32), sample["image"])
        np.testing.assert_array_equal(again["labels"], sample["labels"])


def test_splits_sizes_and_shapes_are_announced(folder):
    info = tfds.builder_from_directory(folder).info
    spec, index = records.load_spec(folder), records.read_index(folder)
    assert list(info.splits) == ["fold_0", "fold_1", "test"]
    assert info.features["image"].shape == spec.input_shape and info.features["labels"].shape == spec.label_shape
    for split, subjects in {"fold_0": "a", "fold_1": "be", "test": "d"}.items():
        assert info.splits[split].num_bytes == sum(index.usable[subject]["bytes"] for subject in subjects)
        opened = {instruction.filename for instruction in info.splits[split].file_instructions}
        assert opened == {str(folder / index.path_of(subject)) for subject in subjects}


def test_percentages_shuffling_and_sharding_between_readers_stay_inside_a_split(folder):
    builder = tfds.builder_from_directory(folder)
    shuffled = builder.as_dataset(split="fold_1", shuffle_files=True)
    assert {sample["subject_id"] for sample in tfds.as_numpy(shuffled)} == {b"b", b"e"}
    whole = builder.info.splits["fold_1"].num_examples
    halves = [builder.info.splits[f"fold_1[{part}]"].num_examples for part in (":50%", "50%:")]
    assert sum(halves) == whole
    shares = [list(builder.as_dataset(split=part)) for part in tfds.even_splits("fold_1", n=3)]
    assert sum(map(len, shares)) == whole
    subjects = []
    for reader in range(2):  # two machines that train together share out the files of a split
        context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=reader)
        dataset = builder.as_dataset(split="fold_1", read_config=tfds.ReadConfig(input_context=context))
        subjects.append({sample["subject_id"] for sample in tfds.as_numpy(dataset)})
    assert sorted(subjects, key=sorted) == [{b"b"}, {b"e"}]
