"""Boxes of one muscle: resizing and records, judged by SciPy's and our own other interpolation, and by hand.

Three channels of a leg hold its indices, so that a sample shows where each of its voxels came from.
"""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tfmuscle import records
from tfmuscle.cascade import Box, largest_enlargement, resized_back, resized_labels, resized_linear
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.preprocessing import resample_image, resample_labels
from tfmuscle.records.boxes import grown, tight_edges
from tfmuscle.records.description import features
from tfmuscle.volume import Geometry, Volume

MAP = LabelMap({1: "soleus"}, ignore=255)
SETTINGS = {"channels": ("z", "y", "x"), "kind": "volumes", "normalisation": "none", "folds": 2}
SPEC = DataSpec(MAP, size=(7, 12), depth=8, patches="boxes", **SETTINGS)
SHAPE = (20, 18, 30)
TIGHT = Box((6, 7, 9), (14, 12, 20))
"""8, 5 and 11 voxels: edges move by 0.2 l = 1.6, 1 and 2.2 voxels, rounded outward 2, 1 and 3."""
MEAN = Box((4, 6, 6), (16, 13, 23))
LEGS = {
    "inside": (SHAPE, TIGHT),
    "at the border": ((9, 18, 30), Box((0, 7, 18), (9, 12, 30))),
    "thin": ((5, 40, 40), Box((2, 3, 4), (3, 33, 8))),
    "one voxel": ((1, 1, 1), Box((0, 0, 0), (1, 1, 1))),
}
WINDOWS = [(8, 7, 12), (30, 5, 17), (3, 40, 1)]


def made_leg(shape=SHAPE, tight=TIGHT, seed=0):
    """Index channels and noise; a muscle full of holes that touches all faces of its box, unknown voxels around it."""
    random = np.random.default_rng(seed)
    image = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32)
    labels = random.choice([0, 0, IGNORE], shape).astype(np.int16)
    muscle = random.choice([IGNORE, 0, 1], tight.size)
    muscle[(0, -1), ...] = muscle[:, (0, -1)] = muscle[..., (0, -1)] = 1
    labels[tight.slices] = muscle
    return image, labels


def write(path, leg="inside", *, spec=SPEC, subject_id="leg_7"):
    return records.write_scan(path, *made_leg(*LEGS[leg]), spec, subject_id=subject_id)


def places(start, size, new):
    """Old indices of the new voxels: the formula, written down once more."""
    return np.clip([start + (n + 0.5) * size / new - 0.5 for n in range(new)], start, start + size - 1)


# ---------------------------------------------------------------- resizing


@pytest.mark.parametrize("shape", WINDOWS)
def test_linear_resizing_is_that_of_scipy(shape):
    image = np.random.default_rng(1).normal(size=(*SHAPE, 2)).astype(np.float32)
    found = resized_linear(image, MEAN, shape)
    assert found.shape == (*shape, 2) and found.dtype == np.float32
    axes = [places(*axis) for axis in zip(MEAN.start, MEAN.size, shape, strict=True)]
    points = np.meshgrid(*axes, indexing="ij")
    for channel in range(2):
        expected = scipy.ndimage.map_coordinates(image[..., channel].astype(float), points, order=1, mode="nearest")
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-5)  # float32 of values below 5
    outside = np.full_like(image, np.nan)
    outside[MEAN.slices] = image[MEAN.slices]
    np.testing.assert_array_equal(resized_linear(outside, MEAN, shape), found)  # what is outside is never looked at


@pytest.mark.parametrize("shape", WINDOWS)
def test_a_ramp_stays_the_ramp_of_the_formula(shape):
    image, _ = made_leg()
    found = resized_linear(image.astype(np.float16), MEAN, shape)  # as records hold it
    for axis in range(3):
        line = np.moveaxis(found[..., axis], axis, 0).reshape(shape[axis], -1)
        expected = places(MEAN.start[axis], MEAN.size[axis], shape[axis])
        np.testing.assert_allclose(line, np.repeat(expected[:, np.newaxis], line.shape[1], 1), atol=1e-5)


def test_the_same_size_changes_nothing():
    image, labels = made_leg()
    noise = np.random.default_rng(2).normal(size=image.shape).astype(np.float32)
    np.testing.assert_array_equal(resized_linear(noise, MEAN, MEAN.size), noise[MEAN.slices])
    np.testing.assert_array_equal(resized_labels(labels, MEAN, MEAN.size), labels[MEAN.slices])
    np.testing.assert_array_equal(resized_back(noise[..., 0], SHAPE), noise[..., 0])


@pytest.mark.parametrize("shape", [(8, 7, 12), (40, 40, 40), (12, 14, 34)])
def test_the_grid_is_that_of_geometry_resized(shape):
    image, labels = made_leg()
    here = Geometry(MEAN.size, np.diag([5.0, 1.0, 1.0, 1.0]))
    there = here.resized(shape)
    expected = resample_labels(Volume(labels[MEAN.slices], here), there).array
    found = resized_labels(labels, MEAN, shape)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype and {*np.unique(found)} == {IGNORE, 0, 1}
    # no axis becomes coarser by more than 1.5, so that preprocessing does not blur either
    expected = resample_image(Volume(image[MEAN.slices], here), there).array
    np.testing.assert_allclose(resized_linear(image, MEAN, shape), expected, atol=1e-5)


def test_halves_go_up():
    # 4 voxels to 2: new ones lie at 0.5 and 2.5; 3 to 2: at 0.25 and 1.75; 1 to 5: all at the one there is
    line = np.arange(10, 14, dtype=np.uint8).reshape(1, 1, 4)
    assert resized_labels(line, Box((0, 0, 0), (1, 1, 4)), (1, 1, 2)).ravel().tolist() == [11, 13]
    assert resized_labels(line, Box((0, 0, 1), (1, 1, 4)), (1, 1, 2)).ravel().tolist() == [11, 13]
    assert resized_labels(line, Box((0, 0, 2), (1, 1, 3)), (1, 1, 5)).ravel().tolist() == [12] * 5


def test_a_probability_goes_back_to_its_box():
    there = resized_linear(made_leg()[0], MEAN, (24, 28, 34))[..., 1]  # finer than the box
    back = resized_back(there, MEAN.size)
    assert back.shape == MEAN.size and back.dtype == np.float32
    # the ramp is bent only where the first and last fine voxels were clipped to the outermost coarse ones
    expected = np.broadcast_to(np.arange(6.0, 13)[np.newaxis, :, np.newaxis], MEAN.size)
    np.testing.assert_allclose(back[:, 1:-1], expected[:, 1:-1], atol=1e-5)
    np.testing.assert_allclose(back, expected, atol=0.25)
    assert (resized_back(np.full((3, 4, 5), 0.25), (9, 2, 5)) == 0.25).all()


def test_what_cannot_be_resized_is_refused():
    image, labels = made_leg()
    with pytest.raises(ValueError, match=r"an image has shape \(20, 18, 30\); \(D, H, W, C\) is needed"):
        resized_linear(labels, MEAN, (1, 1, 1))
    with pytest.raises(ValueError, match=r"labels have shape \(20, 18, 30, 3\); \(D, H, W\) is needed"):
        resized_labels(image, MEAN, (1, 1, 1))
    with pytest.raises(ValueError, match=r"a probability has shape \(20, 18, 30, 3\); \(d, h, w\) is needed"):
        resized_back(image, (1, 1, 1))
    with pytest.raises(ValueError, match=r"three positive sizes, not \(0, 1, 1\)"):
        resized_linear(image, MEAN, (0, 1, 1))
    for box in (Box((-1, 0, 0), (5, 5, 5)), Box((0, 0, 0), (5, 5, 31))):
        with pytest.raises(ValueError, match=r"reaches outside the array \(20, 18, 30\); clip it first"):
            resized_labels(labels, box, (1, 1, 1))


# ---------------------------------------------------------------- the same in TensorFlow


def test_boxes_grow_in_tensorflow_as_in_numpy():
    random = np.random.default_rng(4)
    for _ in range(60):
        start = random.integers(0, 15, 3)
        tight = Box(tuple(start), tuple(start + random.integers(1, 16, 3)))
        labels = made_leg((32, 30, 31), tight, seed=int(start[0]))[1]
        edges = tight_edges(tf.constant(labels))
        assert edges.numpy().tolist() == [list(tight.start), list(tight.stop)]
        for ratio in (1.0, 1.4, 1.6, 1.8, random.uniform(1, 1.8)):  # 0.6 * 10 / 2 is a little above 3
            box = largest_enlargement(tight, labels.shape, high=ratio)
            again = grown(edges, tf.constant(labels.shape, tf.int64), tf.fill((2, 3), tf.constant(ratio, tf.float64)))
            assert again.numpy().tolist() == [list(box.start), list(box.stop)]


@pytest.mark.parametrize("window", WINDOWS)
def test_both_ways_of_reading_agree(tmp_path, window):
    spec = DataSpec(MAP, size=window[1:], depth=window[0], patches="boxes", **SETTINGS)
    paths = [tmp_path / f"{leg}.tfrecord" for leg in LEGS]
    for path, leg in zip(paths, LEGS.values(), strict=True):
        image, labels = made_leg(*leg)
        image += np.random.default_rng(3).normal(size=image.shape)
        written = records.write_scan(path, image, labels, spec, subject_id="leg_7")
        assert (written["samples"], written["records"]) == (1, 1)
        assert written["class_voxels"] == [(labels == 0).sum(), (labels == 1).sum()]
    loaded = records.load_samples(paths, spec)
    assert [part.shape for part in loaded.element_spec] == [spec.input_shape, spec.label_shape]
    for path, (one, classes) in zip(paths, loaded, strict=True):
        (sample,) = records.read_shard(path, spec)
        assert sample["start"] == (0, 0, 0) and sample["subject_id"] == "leg_7"
        assert one.dtype == tf.float32 and classes.dtype == tf.int32
        assert sample["image"].dtype == np.float32 and sample["labels"].dtype == np.int16
        np.testing.assert_allclose(one, sample["image"], rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(classes, sample["labels"])


def test_the_sample_that_validation_sees_by_hand(tmp_path):
    write(tmp_path / "s.tfrecord")
    ((image, labels),) = records.load_samples([tmp_path / "s.tfrecord"], SPEC)
    for axis, new in enumerate(SPEC.window):
        line = np.moveaxis(image.numpy()[..., axis], axis, 0).reshape(new, -1)[:, 0]
        np.testing.assert_allclose(line, places(MEAN.start[axis], MEAN.size[axis], new), atol=1e-5)
    nearest = np.floor(np.round(image.numpy().astype(float), 5) + 0.5).astype(int)
    np.testing.assert_array_equal(labels, made_leg()[1][tuple(np.moveaxis(nearest, -1, 0))])


# ---------------------------------------------------------------- records


def test_a_leg_comes_back_without_places(tmp_path):
    write(tmp_path / "s.tfrecord")
    scan = records.read_scan(tmp_path / "s.tfrecord", SPEC)
    image, labels = made_leg()
    np.testing.assert_array_equal(scan.image, image)  # whole numbers below 2048 are exact in float16
    np.testing.assert_array_equal(scan.labels, labels)
    assert scan.places == {}
    parts = features(SPEC)["featuresDict"]["features"]
    assert parts["image"]["tensor"]["shape"]["dimensions"] == ["-1", "-1", "-1", "3"]


def test_what_is_no_muscle_in_a_volume_is_refused(tmp_path):
    image, labels = made_leg()
    path = tmp_path / "s.tfrecord"
    for empty in (np.minimum(labels, 0), np.full_like(labels, IGNORE)):
        with pytest.raises(DataError, match="leg_7: no voxel of soleus; label it, or leave this leg out"):
            records.write_scan(path, image, empty, SPEC, subject_id="leg_7")
    two = DataSpec(LabelMap({1: "a", 2: "b"}), size=(7, 12), depth=8, patches="boxes", **SETTINGS)
    flat = DataSpec(MAP, size=(7, 12), patches="boxes", **(SETTINGS | {"kind": "slices"}))
    for spec, words in ((two, "volumes with 2 structures"), (flat, "slices with 1 structures")):
        with pytest.raises(ValueError, match=f"leg_7: boxes are cut from {words}; kind 'volumes' and one muscle"):
            records.write_scan(path, image, labels, spec, subject_id="leg_7")
    with pytest.raises(ValueError, match="leg_7: boxes are cut from one array around the muscle; write it by"):
        records.write_shard(path, [], SPEC, subject_id="leg_7")
    assert list(tmp_path.iterdir()) == []
    random = DataSpec(MAP, size=(7, 12), depth=8, patches="random", **SETTINGS)
    records.write_scan(path, image, np.minimum(labels, 0), random, subject_id="leg_7")
    with pytest.raises(DataError, match="leg_7: no voxel of soleus"):  # a shard that was made for something else
        next(records.read_shard(path, SPEC))


def made_folder(path, spec, one):
    """Two subjects with notes and index; `one` writes a shard."""
    entries = []
    for shard in records.plan_shards({"a": 0, "b": 1}):
        note = {"file": shard.file, "subject_id": shard.subject_id, "status": "ok"} | one(path / shard.file)
        records.write_sealed((path / shard.file).with_suffix(".json"), note)
        entries.append(note | {"fold": shard.fold})
    records.write_index(path, entries, spec)
    return path


def test_boxes_are_verified_and_damage_is_named(tmp_path):
    folder = made_folder(tmp_path, SPEC, write)
    found = records.verify(folder)
    assert found.problems == [] and (found.shards, found.samples) == (2, 2)
    path = folder / "shard-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (problem,) = records.verify(folder).problems
    assert "shard-00001.tfrecord: the content has changed since it was written" in problem
    with pytest.raises(DataError, match="shard-00001.tfrecord: the shard is damaged .*; run build-records again"):
        next(records.read_shard(path, SPEC))
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="shard-00001.tfrecord: the shard is damaged or cut short"):
        records.load_samples([path], SPEC)
    with pytest.raises(DataError, match="the spec says 1 channels"):
        next(records.read_shard(folder / "shard-00000.tfrecord", DataSpec(MAP, kind="volumes", patches="boxes")))


def test_a_whole_part_of_a_scan_is_an_ordinary_sample(tmp_path):
    spec = DataSpec(MAP, size=(18, 30), depth=20, patches="whole", **SETTINGS)
    image, labels = made_leg()

    def one(path):
        sample = {"image": image, "labels": labels, "start": (0, 0, 0)}
        return records.write_shard(path, [sample], spec, subject_id="leg_7")

    folder = made_folder(tmp_path, spec, one)
    found = records.verify(folder)
    assert found.problems == [] and (found.shards, found.samples) == (2, 2)
    paths = records.read_index(folder).paths([0, 1])
    ((again, classes), _) = records.load_samples(paths, spec)
    (sample,) = records.read_shard(paths[0], spec)
    for image_again, labels_again in ((again, classes), (sample["image"], sample["labels"])):
        np.testing.assert_array_equal(image_again, image)
        np.testing.assert_array_equal(labels_again, labels)
    parts = features(records.load_spec(folder))["featuresDict"]["features"]
    assert parts["image"]["tensor"]["shape"]["dimensions"] == ["20", "18", "30", "3"]
