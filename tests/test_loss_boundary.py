"""The boundary loss of Kervadec: distances against SciPy, values by hand, weights that follow the epoch."""

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import distance_transform_edt

from tfmuscle.config import Supervised, TrainConfig
from tfmuscle.labels import IGNORE
from tfmuscle.losses import get_loss
from tfmuscle.losses.combined import Composite, ramp
from tfmuscle.losses.distance import signed_distance
from tfmuscle.training import fit
from tfmuscle.training.callbacks import RampLoss, check_comparable, read_history

TINY = TrainConfig(
    model="unet",
    model_options={"filters": 4, "levels": 2},
    epochs=2,
    steps=1,
    batch_size=2,
    recipe=Supervised(loss="composite", loss_options={"boundary": "kervadec"}, augmentation="none", mirror=False),
)
UNLIKE = "weights change from epoch to epoch, so that losses do not compare; choose "


def reference(mask):
    """The convention of the authors' one_hot2dist."""
    if not mask.any():
        return np.zeros(mask.shape)
    return distance_transform_edt(~mask) * ~mask - (distance_transform_edt(mask) - 1) * mask


def random_masks(shape, seed=0):
    """Masks of very different density, one empty, `(*shape, 4)`."""
    rng = np.random.default_rng(seed)
    masks = rng.random((*shape, 4)) < np.array([0.01, 0.3, 0.97, 0.0])
    masks[:, 0, 0, ..., :3] = [True, False, False]  # neither absent nor everywhere
    masks[:, -1, -1, ..., :2] = [False, True]
    return masks


def probabilities(foreground):
    foreground = np.asarray(foreground, "float32")[..., None]
    return np.concatenate([1 - foreground, foreground], axis=-1)


@pytest.mark.parametrize("shape", [(3, 24, 17), (1, 40, 1), (2, 9, 14, 11)])
@pytest.mark.parametrize("compiled", [False, True])
def test_distances_equal_scipy(shape, compiled):
    masks = random_masks(shape)
    expected = np.stack(
        [np.stack([reference(mask[..., k]) for k in range(masks.shape[-1])], axis=-1) for mask in masks]
    )
    found = tf.function(signed_distance, jit_compile=compiled)(
        tf.constant(masks, tf.float32), tf.ones((*shape, 1), tf.float32)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)  # square roots in float32


def test_sizes_that_are_known_only_when_run():
    masks = random_masks((2, 12, 9))
    signature = [tf.TensorSpec((None, None, None, 4)), tf.TensorSpec((None, None, None, 1))]
    traced = tf.function(signed_distance, input_signature=signature)
    found = traced(tf.constant(masks, tf.float32), tf.ones((2, 12, 9, 1)))
    np.testing.assert_allclose(found[1, ..., 1], reference(masks[1, ..., 1]), atol=1e-4)


def test_a_structure_that_is_everywhere_has_no_boundary():
    assert not np.any(signed_distance(tf.ones((1, 5, 6, 1)), tf.ones((1, 5, 6, 1))))


def test_distances_are_to_what_is_known():
    rng = np.random.default_rng(1)
    kind = rng.choice(3, size=(9, 8), p=[0.1, 0.1, 0.8])  # outside, inside, unlabelled
    found = signed_distance(tf.constant((kind == 1)[None, ..., None], tf.float32), (kind != 2)[None, ..., None] * 1.0)
    found = found[0, ..., 0].numpy()
    places = np.argwhere(kind < 3).reshape(9, 8, 2)
    for row, column in np.argwhere(kind == 0):
        nearest = np.linalg.norm(places[kind == 1] - (row, column), axis=1).min()
        assert found[row, column] == pytest.approx(nearest, abs=1e-4)
    for row, column in np.argwhere(kind == 1):
        nearest = np.linalg.norm(places[kind == 0] - (row, column), axis=1).min()
        assert found[row, column] == pytest.approx(1 - nearest, abs=1e-4)


def test_kervadec_by_hand():
    # φ of 0 1 1 1 0 0 is 1 0 -1 0 1 2
    labels = np.array([[[0, 1, 1, 1, 0, 0]]])
    loss = get_loss("kervadec")
    assert float(loss(labels, probabilities(labels))) == pytest.approx(-1 / 6)
    assert float(loss(labels, probabilities(1 - labels))) == pytest.approx(4 / 6)
    assert float(loss(labels, probabilities(labels * 0))) == 0
    # unlabelled: φ is 1 0 -1 ? ? 2, over four voxels
    labels = np.array([[[0, 1, 1, IGNORE, IGNORE, 0]]])
    labels[0, 0, 4] = IGNORE
    assert float(loss(labels, probabilities(np.ones((1, 1, 6))))) == pytest.approx((1 + 0 - 1 + 3) / 4)


def test_the_slope_is_the_distance():
    masks = random_masks((2, 12, 9))[..., 1]
    p = tf.constant(probabilities(np.random.default_rng(2).random(masks.shape)))
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = get_loss("kervadec")(masks.astype(int), p)
    expected = np.stack([reference(mask) for mask in masks]) / masks.size
    np.testing.assert_allclose(tape.gradient(value, p)[..., 1], expected, atol=1e-6)


def composite_parts(labels, prediction, weights):
    names = ("dice", "cross_entropy", "kervadec", "tversky", "small_object")
    options = ({"batch_dice": False, "smooth": 1.0}, {}, {}, {}, {})
    terms = [float(get_loss(name, **option)(labels, prediction)) for name, option in zip(names, options, strict=True)]
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def squares():
    labels = np.zeros((2, 16, 16), int)
    labels[0, 3:9, 4:12] = labels[1, 8:14, 2:7] = 1
    return labels, probabilities(np.random.default_rng(3).random(labels.shape))


@pytest.mark.parametrize(("epoch", "regional", "rising"), [(0, 1.0, 0.01), (30, 0.7, 0.31), (150, 0.1, 1.51)])
def test_weights_follow_the_epoch(epoch, regional, rising):
    labels, prediction = squares()
    loss = get_loss("composite", boundary="kervadec")
    loss.at_epoch(epoch)
    weights = (regional, 0.5 * regional, rising, 0.5 * regional, 0.1 * regional)
    assert float(loss(labels, prediction)) == pytest.approx(composite_parts(labels, prediction, weights), rel=1e-5)
    assert ramp(epoch) == pytest.approx((regional, rising))


def test_the_band_knows_no_epoch():
    labels, prediction = squares()
    loss = get_loss("composite")
    before = float(loss(labels, prediction))
    loss.at_epoch(50)
    assert float(loss(labels, prediction)) == before


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_model_follows_the_epoch_and_keeps_its_loss(tmp_path, jit_compile):
    labels, images = squares()
    image = keras.Input((16, 16, 2))
    model = keras.Model(image, keras.layers.Conv2D(2, 1, activation="softmax")(image))
    loss = get_loss("composite", boundary="kervadec", weights=(1, 1, 2, 1, 1))
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=jit_compile)
    prediction = model.predict(images, verbose=0)

    def expected(epoch):
        regional, rising = ramp(epoch)
        return composite_parts(labels, prediction, (regional, regional, 2 * rising, regional, regional))

    first = model.test_on_batch(images, labels[..., None])
    loss.at_epoch(60)
    later = model.test_on_batch(images, labels[..., None])
    assert (first, later) == pytest.approx((expected(0), expected(60)), rel=1e-5)
    logs = model.fit(
        images, labels[..., None], initial_epoch=7, epochs=9, batch_size=2, verbose=0, callbacks=[RampLoss()],
        validation_data=(images, labels[..., None]),
    ).history  # fmt: skip
    for name in ("loss", "val_loss"):  # sums run in another order from one call to the next
        assert logs[name] == pytest.approx([expected(7), expected(8)], rel=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert again.loss.get_config() == loss.get_config()
    assert again.test_on_batch(images, labels[..., None]) == pytest.approx(expected(0), rel=1e-5)


class Interrupted(Exception):
    """What a user's progress raises to end a training."""


def test_a_resumed_run_goes_on_with_the_weights_of_its_epoch(tiny_records, tmp_path, monkeypatch):
    epochs, at_epoch = [], Composite.at_epoch
    monkeypatch.setattr(Composite, "at_epoch", lambda loss, epoch: (epochs.append(epoch), at_epoch(loss, epoch)))

    def interrupt(done, total, note):
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(tiny_records, tmp_path / "run", TINY, progress=interrupt)
    assert epochs == [0, 1]
    run = fit(tiny_records, tmp_path / "run", TINY, resume=True)
    assert epochs == [0, 1, 1]
    assert len(read_history(run / "history.csv")) == 2
    assert keras.saving.load_model(run / "best.keras").loss.is_ramped


@pytest.mark.parametrize(
    ("recipe", "training", "num_folds", "message"),
    [
        ({"selection": "loss"}, {}, 2, "selection dice"),
        ({"patience": 3, "patience_of": "loss"}, {}, 2, "patience_of dice"),
        ({}, {"schedule": "plateau"}, 2, "a schedule other than plateau"),
        ({}, {}, 1, "records with two folds or more, for without validation the loss alone tells epochs apart"),
        ({"selection": "loss"}, {"schedule": "plateau"}, 2, "selection dice, a schedule other than plateau"),
    ],
)
def test_losses_of_unlike_weights_are_not_compared(recipe, training, num_folds, message):
    config = dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, **recipe), **training)
    with pytest.raises(ValueError, match=UNLIKE + message + "$"):
        check_comparable(config, num_folds=num_folds)
    band = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, loss_options={"boundary": "band"}))
    check_comparable(band, num_folds=num_folds)


def test_a_fit_that_would_compare_them_leaves_nothing(tiny_records, tmp_path):
    config = dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, selection="loss"))
    with pytest.raises(ValueError, match=UNLIKE + "selection dice"):
        fit(tiny_records, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_an_unknown_boundary():
    with pytest.raises(ValueError, match="boundary is 'surface'; choose one of band, kervadec"):
        get_loss("composite", boundary="surface")


JAX = """
import jax, numpy as np
from tfmuscle.losses import get_loss
labels = np.zeros((2, 8, 8), int)
labels[0, 2:6, 3:7] = labels[1, 5:, 2:4] = 1
p = np.random.default_rng(0).random((2, 8, 8, 2)).astype("float32")
value, slope = jax.jit(jax.value_and_grad(lambda p: get_loss("kervadec")(labels, p)))(p)
print(float(value), float(np.abs(slope).sum()), float(get_loss("composite", boundary="kervadec")(labels, p)))
"""


def test_the_same_under_jax():
    pytest.importorskip("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    told = subprocess.run(
        [sys.executable, "-c", JAX], env=environment, capture_output=True, encoding="utf-8", check=True
    ).stdout
    labels = np.zeros((2, 8, 8), int)
    labels[0, 2:6, 3:7] = labels[1, 5:, 2:4] = 1
    p = tf.constant(np.random.default_rng(0).random((2, 8, 8, 2)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = get_loss("kervadec")(labels, p)
    slope = np.abs(tape.gradient(value, p)).sum()
    composite = float(get_loss("composite", boundary="kervadec")(labels, p))
    assert [float(figure) for figure in told.split()] == pytest.approx([float(value), slope, composite], rel=1e-5)
