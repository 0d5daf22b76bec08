"""Coarser outputs learn too: weights and labels by hand, and a run that predicts as any other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.inference import load_run
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.losses import get_loss
from tfmuscle.training import fit, model_options
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.deep_supervision import (
    coarse_labels,
    output_shapes,
    output_shares,
    output_weights,
    with_coarse_labels,
)
from tfmuscle.workflows.learning import plan_training

OPTIONS = {"filters": 4, "levels": 4, "norm": "none"}


def test_weights_by_hand():
    # 1 + 1/2 + 1/4 + 1/8 = 15/8: 8/15, 4/15, 2/15, 1/15, and nothing for the coarsest
    assert output_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert output_weights(2) == [1.0, 0.0]


def test_coarse_labels_come_from_the_middle_and_invent_nothing():
    labels = tf.constant(np.arange(24).reshape(1, 4, 6, 1))
    # cells of 2 x 3 voxels: rows floor((i + 1/2) 2) = 1, 3, columns floor((j + 1/2) 3) = 1, 4
    np.testing.assert_array_equal(coarse_labels(labels, (4, 6), (2, 2))[0, ..., 0], [[7, 10], [19, 22]])
    rng = np.random.default_rng(0)
    volume = rng.choice([IGNORE, 0, 3], size=(2, 5, 8, 8, 1)).astype(np.int32)
    coarse = coarse_labels(tf.constant(volume), (5, 8, 8), (5, 4, 2)).numpy()
    for b, z, y, x in np.ndindex(2, 5, 4, 2):
        assert coarse[b, z, y, x, 0] == volume[b, z, 2 * y + 1, 4 * x + 2, 0]
    assert coarse.dtype == np.int32 and (coarse == IGNORE).any()


def test_every_output_gets_labels_of_its_size_and_a_single_one_none():
    spec = DataSpec(LabelMap({1: "bone"}), size=(32, 32))
    model = models.build("unet", spec.input_shape, 2, deep_supervision=True, **OPTIONS)
    assert list(output_shapes(model).values()) == [(32, 32), (16, 16), (8, 8)]
    assert next(iter(output_shapes(model))) == "probabilities"
    batches = tf.data.Dataset.from_tensors((tf.zeros((2, 32, 32, 1)), tf.zeros((2, 32, 32, 1), tf.int32)))
    ((_, labels),) = with_coarse_labels(batches, model, spec)
    assert {name: tuple(part.shape[1:3]) for name, part in labels.items()} == output_shapes(model)
    plain = models.build("unet", spec.input_shape, 2, **OPTIONS)
    assert with_coarse_labels(batches, plain, spec) is batches


def test_published_weights_come_before_the_rule():
    unet = models.build("unet", (32, 32, 1), 2, deep_supervision=True, **OPTIONS)
    expected = {"probabilities": 2 / 3, "probabilities_1": 1 / 3, "probabilities_2": 0}
    assert output_shares(unet) == pytest.approx(expected)
    assert output_shares(models.build("unet", (32, 32, 1), 2, **OPTIONS)) == {}
    # 0.4, 0.5, 0.7, 0.8 for the four levels and for the four refined ones, 1 for the end
    daf3d = models.build("daf3d", (3, 32, 32, 1), 2, filters=2, blocks=(1, 1, 1, 1), deep_supervision=True)
    shares, whole = output_shares(daf3d), 1 + 2 * (0.4 + 0.5 + 0.7 + 0.8)
    assert len(shares) == 9 and sum(shares.values()) == pytest.approx(1)
    assert shares["probabilities"] == pytest.approx(1 / whole)
    assert shares["probabilities_level4"] == shares["probabilities_refined4"] == pytest.approx(0.8 / whole)


@pytest.fixture(scope="module")
def run(tiny_records, tmp_path_factory):
    settings = {"model_options": OPTIONS, "epochs": 2, "steps": 3, "learning_rate": 1e-9, "optimiser": "sgd", "seed": 2}
    config = plan_training(settings, recipe={"deep_supervision": True, "augmentation": "none"})
    return fit(tiny_records, tmp_path_factory.mktemp("deep") / "run", config)


def test_the_history_is_that_of_the_main_output(run):
    rows = read_history(run / "history.csv")
    assert set(rows[0]) == {"epoch", "seconds", "dice", "loss", "val_dice", "val_loss", "learning_rate"}


def test_the_loss_is_the_weighted_sum(run, tiny_records):
    """At a rate of next to nothing the validation loss is that of the weights in best.keras."""
    loaded = load_run(run)
    model, spec = keras.models.load_model(run / "best.keras"), loaded.spec
    images = np.random.default_rng(0).normal(size=(4, *spec.input_shape)).astype("float32")
    labels = np.random.default_rng(1).integers(-1, spec.num_classes, (4, *spec.label_shape, 1)).astype("int32")
    batch = tf.data.Dataset.from_tensors((images, labels))
    found = model.evaluate(with_coarse_labels(batch, model, spec), verbose=0, return_dict=True)
    outputs, loss = model(images, training=False), get_loss("dice_cross_entropy")
    expected = 2 / 3 * loss(labels, outputs["probabilities"])
    expected += 1 / 3 * loss(labels[:, 1::2, 1::2], outputs["probabilities_1"])  # the third and coarsest weighs nothing
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_prediction_takes_the_full_resolution(run):
    loaded = load_run(run)
    images = np.zeros((2, *loaded.spec.input_shape), "float32")
    assert loaded.forward(images).shape == (2, *loaded.spec.label_shape, loaded.spec.num_classes)


def test_the_setting_reaches_the_architecture():
    config = plan_training({}, recipe={"deep_supervision": True})
    assert model_options(config) == {"deep_supervision": True} and model_options(TrainConfig()) == {}
