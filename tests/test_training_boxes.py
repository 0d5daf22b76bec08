"""Random boxes in training: what is drawn is read from channels that hold indices, judged by the rule and by counts."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfmuscle import records
from tfmuscle.cascade import Box, enlarged, largest_enlargement
from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.labels import LabelMap
from tfmuscle.training import fit
from tfmuscle.training.batches import epoch_steps, training_batches, validation_batches
from tfmuscle.training.boxes import random_boxes
from tfmuscle.training.callbacks import read_history

MAP = LabelMap({1: "soleus"})
SETTINGS = {"kind": "volumes", "size": (8, 8), "depth": 8, "normalisation": "none"}
SPEC = DataSpec(MAP, channels=("z", "y", "x"), patches="boxes", **SETTINGS)
LEGS = [  # shape and tight box; no side is shorter than the window, so that a sample shows the edges of its box
    ((30, 40, 28), Box((8, 10, 6), (20, 26, 18))),
    ((20, 30, 40), Box((0, 9, 30), (11, 21, 40))),  # at the border of the scan
    ((16, 110, 20), Box((3, 20, 4), (12, 90, 15))),
]


class Interrupted(Exception):
    """What a user's progress raises to end a training."""


def write(folder, legs=LEGS):
    paths = []
    for number, (shape, tight) in enumerate(legs):
        image = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32)
        labels = np.zeros(shape, np.int16)
        labels[tight.slices] = 1
        paths.append(folder / f"shard-{number:05d}.tfrecord")
        records.write_scan(paths[-1], image, labels, SPEC, subject_id=f"s{number}")
    return paths


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("legs"))


def config(**changes):
    recipe = Supervised(augmentation=changes.pop("augmentation", "none"), mirror=False)
    return TrainConfig(**({"batch_size": 1, "epochs": 2, "seed": 5} | changes), recipe=recipe)


def drawn(paths, settings, *, epoch=0, count=60):
    """Boxes `(count, 2, 3)` of start and stop, and the number of the leg of each."""
    made = list(random_boxes(paths, SPEC, settings, count=count)(tf.constant(epoch, tf.int64)))
    return np.array([box_of(image.numpy()) for image, _, _ in made]), np.array([int(leg) for _, _, leg in made])


def box_of(image):
    """The box that was resized to `image`: first and last voxel lie at start + s/2n - 1/2 and stop - s/2n - 1/2."""
    line = np.array([[image[0, 0, 0, axis], image[-1, -1, -1, axis]] for axis in range(3)], float)
    size = (line[:, 1] - line[:, 0]) / (1 - 1 / np.array(SPEC.window))
    start = (line.sum(axis=1) + 1 - size) / 2
    edges = np.stack([start, start + size])
    np.testing.assert_allclose(edges, np.round(edges), atol=1e-3)  # whole voxels; float32 of numbers up to 110
    return np.round(edges).astype(int)


def batches(paths, settings, *, steps, first_epoch=0, spec=SPEC):
    """Images and labels of all epochs from the first on, one array each."""
    made = training_batches(paths, spec, settings, first_epoch=first_epoch, steps=steps)
    taken = list(made.take(steps * (settings.epochs - first_epoch)))
    return np.concatenate([image for image, _ in taken]), np.concatenate([labels for _, labels in taken])


# ---------------------------------------------------------------- which boxes are drawn


def test_every_box_holds_the_muscle_and_grows_by_two_fifths_at_most(shards):
    boxes, legs = drawn(shards, config(), count=150)
    for (start, stop), leg in zip(boxes, legs, strict=True):
        shape, tight = LEGS[leg]
        box = Box(tuple(start), tuple(stop))
        assert box.contains(tight) and largest_enlargement(tight, shape).contains(box)
        most = 0.4 * np.array(tight.size) + 1
        assert (np.subtract(tight.start, box.start) < most).all() and (np.subtract(box.stop, tight.stop) < most).all()
    for leg, (shape, tight) in enumerate(LEGS):  # all that may be drawn is drawn: the outermost edges are reached
        low, high = boxes[legs == leg, 0].min(axis=0), boxes[legs == leg, 1].max(axis=0)
        outer = largest_enlargement(tight, shape)
        assert (low <= np.add(outer.start, 2)).all() and (high >= np.subtract(outer.stop, 2)).all()


def test_labels_are_those_of_the_box(shards):
    made = random_boxes(shards, SPEC, config(), count=12)(tf.constant(3, tf.int64))
    for image, labels, leg in made:
        shape, tight = LEGS[int(leg)]
        nearest = np.floor(np.round(image.numpy().astype(float), 4) + 0.5).astype(int)  # float32 of numbers up to 110
        expected = np.zeros(shape, int)
        expected[tight.slices] = 1
        np.testing.assert_array_equal(labels, expected[tuple(np.moveaxis(nearest, -1, 0))])
        assert labels.dtype == tf.int32 and labels.numpy().any()


def test_ratios_are_uniform_and_the_six_edges_move_on_their_own(tmp_path):
    # of 100 voxels an edge moves 1 to 40, all being equally likely: ceil(50 (r - 1)), r in (1, 1.8)
    tight, shape, count = Box((40, 8, 8), (140, 16, 16)), (180, 24, 24), 400
    paths = write(tmp_path, [(shape, tight)])
    boxes, _ = drawn(paths, config(), count=count)
    moved = np.stack([tight.start - boxes[:, 0], boxes[:, 1] - tight.stop])[..., 0]
    assert moved.min() >= 1 and moved.max() <= 40
    ratios = 1 + (moved - 0.5) / 50  # the middle of those that round to it
    assert abs(ratios.mean() - 1.4) < 5 * 0.8 / np.sqrt(12 * 2 * count)  # five standard deviations of the mean
    bins = np.bincount(((moved - 1) // 5).ravel(), minlength=8)
    assert scipy.stats.chisquare(bins).pvalue > 1e-5
    edges = np.stack([tight.start - boxes[:, 0], boxes[:, 1] - tight.stop], 1).reshape(count, 6)
    apart = np.corrcoef(edges.T) - np.eye(6)
    assert np.abs(apart).max() < 5 / np.sqrt(count)
    random = np.random.default_rng(1)  # and the same counts as the rule in NumPy
    judged = np.array([enlarged(tight, shape, random).start for _ in range(count)])
    assert scipy.stats.ks_2samp(tight.start[0] - judged[:, 0], moved[0]).pvalue > 1e-5


def test_every_leg_comes_once_before_any_comes_again(shards):
    rounds = []
    for epoch in (0, 1):
        _, legs = drawn(shards, config(), epoch=epoch, count=20)
        assert len(legs) == 20 and sorted(np.bincount(legs)) == [6, 7, 7]
        rounds += [tuple(legs[first : first + 3]) for first in range(0, 18, 3)]
        assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(set(rounds)) > 2  # in other orders
    assert epoch_steps(len(LEGS), config(batch_size=2)) == 2  # without steps: one box a leg, and the last batch filled


# ---------------------------------------------------------------- what follows from the seed


def test_a_later_start_sees_the_same_epoch_and_seeds_differ(shards):
    settings = config(batch_size=2)
    images, labels = batches(shards, settings, steps=3)
    assert images.shape == (12, 8, 8, 8, 3) and labels.shape == (12, 8, 8, 8, 1)
    later = batches(shards, settings, steps=3, first_epoch=1)
    np.testing.assert_array_equal(images[6:], later[0])
    np.testing.assert_array_equal(labels[6:], later[1])
    assert len({image.tobytes() for image in images}) == 12  # no box is drawn twice
    other, _ = batches(shards, config(batch_size=2, epochs=1, seed=6), steps=3)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in other}


def test_validation_takes_the_mean_box_of_each_leg(shards):
    made = validation_batches(shards, SPEC, 2, num_samples=len(LEGS))
    assert int(made.cardinality()) == 2
    for _ in range(2):  # every epoch anew
        images = np.concatenate([image for image, _ in made])
        labels = np.concatenate([labels for _, labels in made])
        for (shape, tight), image, classes, path in zip(LEGS, images, labels, shards, strict=True):
            mean = largest_enlargement(tight, shape, high=1.4)
            assert box_of(image).tolist() == [list(mean.start), list(mean.stop)]
            (sample,) = records.read_shard(path, SPEC)
            np.testing.assert_allclose(image, sample["image"], rtol=1e-6, atol=1e-5)
            np.testing.assert_array_equal(classes[..., 0], sample["labels"])


# ---------------------------------------------------------------- training


def made_records(folder, patches):
    """Four legs with a bright muscle, two folds."""
    spec = DataSpec(MAP, patches=patches, folds=2, **SETTINGS)
    entries = []
    for shard in records.plan_shards({"a": 0, "b": 1, "c": 0, "d": 1}):
        random = np.random.default_rng(shard.index)
        labels = np.zeros((8, 8, 8) if patches == "whole" else (20, 18, 22), np.int16)
        labels[(slice(2, 6),) * 3 if patches == "whole" else (slice(5, 15), slice(4, 13), slice(6, 16))] = 1
        image = (labels + random.normal(0, 0.3, labels.shape))[..., np.newaxis]
        path = folder / shard.file
        if patches == "whole":
            sample = {"image": image, "labels": labels, "start": (0, 0, 0)}
            written = records.write_shard(path, [sample], spec, subject_id=shard.subject_id)
        else:
            written = records.write_scan(path, image, labels, spec, subject_id=shard.subject_id)
        entries.append(
            {"file": shard.file, "subject_id": shard.subject_id, "fold": shard.fold, "status": "ok"} | written
        )
    records.write_index(folder, entries, spec)
    return folder


TINY = TrainConfig(
    model="unet",
    model_options={"filters": 4, "levels": 2, "norm": "instance"},
    epochs=2,
    steps=6,
    batch_size=1,
    learning_rate=1e-2,
    seed=3,
    recipe=Supervised(augmentation="ni", mirror=False, loss="cross_entropy"),
)


def test_a_network_learns_from_boxes_and_an_interrupted_run_goes_on(tmp_path):
    folder = made_records(tmp_path, "boxes")

    def interrupt(done, total, note):
        if done == 9:  # in the second epoch
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(folder, tmp_path / "run", TINY, progress=interrupt)
    fit(folder, tmp_path / "run", TINY, resume=True)
    first, second = read_history(tmp_path / "run" / "history.csv")
    assert second["loss"] < 0.9 * first["loss"] and second["val_loss"] < first["val_loss"]


def test_whole_parts_are_read_as_samples_of_the_grid(tmp_path):
    index = records.read_index(made_records(tmp_path, "whole"))
    spec, paths = records.load_spec(tmp_path), index.paths([0, 1])
    settings = config(batch_size=2)
    images, _ = batches(paths, settings, steps=epoch_steps(4, settings), spec=spec)
    expected = [next(records.read_shard(path, spec))["image"] for path in paths]
    for epoch in (images[:4], images[4:]):  # every subject once
        assert sorted(image.tobytes() for image in epoch) == sorted(image.tobytes() for image in expected)
    validated = np.concatenate([image for image, _ in validation_batches(paths, spec, 2, num_samples=4)])
    np.testing.assert_array_equal(validated, expected)
