"""The page of a run: what it says while training runs and afterwards, and what it draws."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.training import live_page
from tfmuscle.training.live_page import LivePage, examples_of, write_page
from tfmuscle.workflows.learning import fit, plan_training

LABELS = LabelMap({1: "tibia", 5: "<femur>"})
HISTORY = [
    {"epoch": 1, "seconds": 120.0, "loss": 1.0, "val_loss": 1.1, "dice": 0.4, "val_dice": 0.5},
    {"epoch": 2, "seconds": 120.0, "loss": 0.8, "val_loss": 0.9, "dice": 0.6, "val_dice": 0.4},
]


def page_of(run):
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_page_says_how_far_training_is_and_reloads_itself_until_it_ends(tmp_path):
    config = TrainConfig(epochs=5, model="unet", scale="laptop")
    write_page(tmp_path, config, HISTORY)
    page = page_of(tmp_path)
    assert "Epoch 2 of 5 is done; about 6 min are left." in page  # three epochs of two minutes
    assert "Best epoch so far: 1, validation Dice 0.500." in page
    assert 'http-equiv="refresh" content="15"' in page and "(reduced)" in page
    assert page.count("data:image/png;base64,") == 1 and "http://" not in page and "https://" not in page
    write_page(tmp_path, config, HISTORY, finished=True)
    page = page_of(tmp_path)
    assert "Training has ended after 2 epochs, 4.0 min." in page and "Kept epoch: 1, validation Dice 0.500." in page
    assert "refresh" not in page


def test_a_disk_that_takes_no_page_does_not_end_the_training(tmp_path):
    (tmp_path / "report.html").mkdir()
    write_page(tmp_path, TrainConfig(), HISTORY)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and (tmp_path / "report.html").is_dir()


def batches(images, labels, size=2):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(size)


def spec(**settings):
    return DataSpec(**{"label_map": LABELS, "kind": "slices", "size": (8, 8), "spacing": (4.0, 1.0, 1.0)} | settings)


def test_examples_are_the_samples_with_the_most_structures():
    images = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((6, 8, 8, 1), np.float32)
    labels = np.zeros((6, 8, 8, 1), np.int32)
    labels[1, :2], labels[3, 0], labels[3, 1], labels[5] = 1, 1, 2, IGNORE
    chosen = examples_of(batches(images, labels), spec())
    assert chosen.images[:, 0, 0, 0].tolist()[:2] == [3.0, 1.0] and chosen.labels.shape == (4, 8, 8)
    assert examples_of(batches(images, np.zeros_like(labels)), spec()) is None


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, (3, 8, 8, 1)),
        ({"kind": "stacks", "depth": 3, "channels": ("water", "fat")}, (3, 8, 8, 6)),
        ({"kind": "volumes", "depth": 6}, (1, 6, 8, 8, 1)),
    ],
)
def test_examples_of_every_kind_are_drawn(settings, shape):
    made, drawn = spec(**settings), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    labels = np.zeros((shape[0], *made.label_shape, 1), np.int32)
    labels[:, 2:5, 2:5], labels[:, 0] = 2, IGNORE
    network = keras.Sequential([keras.Input(shape[1:]), keras.layers.Dense(3, activation="softmax")])
    found = examples_of(batches(drawn, labels), made)
    assert found.picture(network).startswith(b"\x89PNG")


def test_the_middle_slice_of_a_stack_is_shown():
    made = spec(kind="stacks", depth=3, channels=("water", "fat"))
    images = np.arange(6, dtype=np.float32) * np.ones((1, 8, 8, 6), np.float32)  # water and fat of three slices
    labels = np.ones((1, 8, 8, 1), np.int32)
    shown, _ = examples_of(batches(images, labels), made)._shown()
    assert shown.shape == (1, 8, 8) and (shown == 2.0).all()


def test_the_page_is_written_as_epochs_end_but_not_too_often(tmp_path, monkeypatch):
    page = LivePage(tmp_path, TrainConfig(epochs=5), HISTORY, None)
    page.on_epoch_end(1)
    assert not (tmp_path / "report.html").exists()
    monkeypatch.setattr(live_page, "SECONDS", 0.0)
    page.on_epoch_end(1)
    assert "Epoch 2 of 5" in page_of(tmp_path)


def test_a_training_ends_with_a_page_of_curves_and_samples(tiny_records, tmp_path):
    settings = {"model_options": {"filters": 4, "levels": 2}, "epochs": 1, "steps": 1, "batch_size": 2}
    run = fit(tiny_records, tmp_path / "run", plan_training(settings, recipe={"augmentation": "none"}))
    page = page_of(run)
    assert page.count("data:image/png;base64,") == 2 and "found by the network (filled)" in page
    assert re.search(r"Subjects: \d+ train, \d+ validation, 1 test\.", page)
    assert Supervised().loss in page
