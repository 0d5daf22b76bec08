"""Batches of a training: order and transforms follow from (seed, epoch) alone; scans move alike where they should."""

import numpy as np
import pytest

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.labels import LabelMap
from tfmuscle.records import write_shard
from tfmuscle.training.batches import training_batches

SPEC = DataSpec(LabelMap({1: "muscle"}), size=(16, 16))
SCANS, SLICES = 3, 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three scans of four slices that are all alike but for a number in one voxel of the middle."""
    folder, paths = tmp_path_factory.mktemp("shards"), []
    rng = np.random.default_rng(0)
    for scan in range(SCANS):
        image = rng.normal(size=(16, 16, 1)).astype(np.float32)
        samples = [{"image": image + 10 * scan, "labels": np.ones((16, 16), int), "start": (number, 0, 0)}
                   for number in range(SLICES)]  # fmt: skip
        paths.append(folder / f"shard-{scan:05d}.tfrecord")
        write_shard(paths[-1], samples, SPEC, subject_id=f"s{scan}")
    return paths


def made(shards, recipe, *, first_epoch=0, epochs=2, seed=3, steps=3):
    """Images and labels of the epochs, one array each."""
    config = TrainConfig(epochs=epochs, batch_size=4, seed=seed, recipe=Supervised(augmentation=recipe))
    batches = training_batches(shards, SPEC, config, first_epoch=first_epoch, steps=steps)
    taken = list(batches.take(steps * (epochs - first_epoch)))
    return np.concatenate([image for image, _ in taken]), np.concatenate([labels for _, labels in taken])


@pytest.mark.parametrize("recipe", ["light", "cheena"])
def test_a_later_start_sees_the_same_epoch(shards, recipe):
    images, labels = made(shards, recipe)
    later = made(shards, recipe, first_epoch=1)
    np.testing.assert_array_equal(images[12:], later[0])
    np.testing.assert_array_equal(labels[12:], later[1])
    assert labels.shape == (24, 16, 16, 1) and labels.dtype == np.int32
    again, other = made(shards, recipe)[0], made(shards, recipe, seed=4)[0]
    np.testing.assert_array_equal(images, again)
    assert np.abs(images - other).max() > 0.1 and np.abs(images[:12] - images[12:]).max() > 0.1


def test_every_sample_is_seen_once_an_epoch(shards):
    images, _ = made(shards, "none")
    scans = np.round(images.mean((1, 2, 3)) / 10).astype(int)
    assert sorted(scans[:12]) == sorted(scans[12:]) == sorted(list(range(SCANS)) * SLICES)


def test_cheena_moves_all_slices_of_a_scan_alike(shards):
    def variants_of(recipe):
        images, _ = made(shards, recipe, epochs=1)
        scans = np.round(images.mean((1, 2, 3)) / 10).astype(int)
        return [len({image.tobytes() for image in images[scans == scan]}) for scan in range(SCANS)]

    assert variants_of("cheena") == [1, 1, 1]
    assert variants_of("light") == [SLICES] * SCANS
    images, _ = made(shards, "cheena")
    by_scan = [images[np.round(images.mean((1, 2, 3)) / 10) == scan] for scan in range(SCANS)]
    assert all(len({image.tobytes() for image in scan}) == 2 for scan in by_scan)  # one copy an epoch
