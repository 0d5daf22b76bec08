"""The Tversky loss with learned weights: its values, the slope of its weights, their limits, and saving them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import models
from tfmuscle.labels import IGNORE
from tfmuscle.losses import get_loss
from tfmuscle.losses.parametric import MODES, ParametricTversky, WithinLimits

LIMIT = np.log(9) / 2
"""Half the distance of θ at which the softmax gives 0.9 and 0.1."""


def made(mode="learned", theta=(0.5, 0.5), **options):
    layer = ParametricTversky(mode, **options)
    layer.build((None, 3, 4, 4, 2))
    layer.theta.assign(theta)
    return layer


def sample(seed=0, count=2):
    rng = np.random.default_rng(seed)
    foreground = rng.random((count, 3, 4, 4)).astype("float32")
    return rng.integers(0, 2, (count, 3, 4, 4)), np.stack([1 - foreground, foreground], axis=-1)


def sums(truth, probabilities):
    """TP, FP and FN of each sample."""
    p, g = probabilities[..., 1].astype("float64"), truth.astype("float64")
    return tuple(np.sum(term, axis=(1, 2, 3)) for term in (p * g, p * (1 - g), (1 - p) * g))


def slope(layer, truth, probabilities):
    with tf.GradientTape() as tape:
        value = layer.loss(truth, probabilities)
    return tape.gradient(value, layer.theta.value).numpy()


def test_equal_weights_are_dice_with_linear_denominators():
    truth, p = sample(count=1)
    (tp,), (fp,), (fn,) = sums(truth, p)
    # (TP + 1) / (TP + FP/2 + FN/2 + 1) = (2 TP + 2) / (Σp + Σg + 2)
    assert float(made().loss(truth, p)) == pytest.approx(1 - (2 * tp + 2) / (2 * tp + fp + fn + 2), rel=1e-6)
    assert float(made().loss(truth, p)) == pytest.approx(float(get_loss("dice", smooth=2.0)(truth, p)), rel=1e-6)
    fixed = get_loss("tversky", alpha=0.5, beta=0.5)
    assert float(made("fixed").loss(truth, p)) == pytest.approx(float(fixed(truth, p)), rel=1e-6)


def test_windows_count_alike():
    truth, p = sample()
    tp, fp, fn = sums(truth, p)
    layer = made(theta=(0.2, 0.9))
    alpha = np.exp(0.2) / (np.exp(0.2) + np.exp(0.9))
    expected = 1 - np.mean((tp + 1) / (tp + alpha * fp + (1 - alpha) * fn + 1))
    assert float(layer.loss(truth, p)) == pytest.approx(expected, rel=1e-5)
    assert (layer.alpha, layer.beta) == (pytest.approx(alpha, rel=1e-6), pytest.approx(1 - alpha, rel=1e-6))


@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_answer_costs_nothing(mode):
    truth, _ = sample()
    assert float(made(mode, theta=(0.7, 0.1)).loss(truth, np.eye(2, dtype="float32")[truth])) == pytest.approx(0)


@pytest.mark.parametrize("kind", ["too much", "too little"])
def test_the_slope_of_the_weights(kind):
    """∂L/∂θ_α = αβ (TP + 1)(FP - FN) / D²: descent lowers the weight of the larger error."""
    truth, p = sample(count=1)
    factor = 1.0 if kind == "too much" else 0.2
    p[..., 1] = np.maximum(p[..., 1], 0.6) * factor
    p[..., 0] = 1 - p[..., 1]
    (tp,), (fp,), (fn,) = sums(truth, p)
    assert (fp > fn) == (kind == "too much")
    layer = made(theta=(0.3, 0.8))
    alpha, beta = layer.alpha, layer.beta
    expected = alpha * beta * (tp + 1) * (fp - fn) / (tp + alpha * fp + beta * fn + 1) ** 2
    np.testing.assert_allclose(slope(layer, truth, p), [expected, -expected], rtol=1e-4)
    np.testing.assert_allclose(slope(made("ascent", theta=(0.3, 0.8)), truth, p), [-expected, expected], rtol=1e-4)
    larger = np.array([layer.alpha, layer.beta])[int(fn > fp)]
    optimiser = keras.optimizers.SGD(1.0)
    optimiser.apply([tf.constant(slope(layer, truth, p))], [layer.theta])
    assert np.array([layer.alpha, layer.beta])[int(fn > fp)] < larger


def test_fixed_weights_are_not_trained():
    layer = made("fixed")
    assert not layer.trainable_weights and len(layer.weights) == 1
    assert [len(made(mode).trainable_weights) for mode in ("learned", "ascent")] == [1, 1]


def test_weights_stay_within_their_limits_and_come_back():
    layer = made(theta=(4.0, -2.0))
    assert (layer.alpha, layer.beta) == (pytest.approx(0.9), pytest.approx(0.1))
    np.testing.assert_allclose(WithinLimits()(layer.theta), [1 + LIMIT, 1 - LIMIT], rtol=1e-6)  # around their mean
    optimiser = keras.optimizers.SGD(1.0)
    for step, alpha in ((-5.0, 0.9), (-5.0, 0.9), (LIMIT, 0.5)):
        # steps of size one: the last takes 2 LIMIT off the distance of 2 LIMIT
        optimiser.apply([tf.constant([step, -step], tf.float32)], [layer.theta])
        assert layer.alpha == pytest.approx(alpha, abs=1e-6)
    truth, p = sample()
    assert slope(made(theta=(LIMIT, -LIMIT)), truth, p).any()


def test_unlabelled_voxels_count_nothing():
    truth, p = sample()
    truth[:, 0] = IGNORE
    tp, fp, fn = sums(truth[:, 1:], p[:, 1:])
    expected = 1 - np.mean((tp + 1) / (tp + fp / 2 + fn / 2 + 1))
    assert float(made().loss(truth, p)) == pytest.approx(expected, rel=1e-6)
    soft = np.stack([truth == 0, truth == 1], axis=-1).astype("float32")
    p[:, 0] = np.nan
    assert float(made().loss(soft, p)) == pytest.approx(expected, rel=1e-6)


def test_it_passes_on_what_it_gets_and_is_saved_with_the_network(tmp_path):
    image = keras.Input((3, 4, 4, 2), name="image")
    model = keras.Model(image, ParametricTversky("ascent", smooth=2.0, name="probabilities")(image))
    model.get_layer("probabilities").theta.assign([1.0, 0.5])
    _, p = sample()
    np.testing.assert_array_equal(model(p), p)
    assert model.count_params() == 2
    model.save(tmp_path / "model.keras")
    layer = models.load(tmp_path / "model.keras").get_layer("probabilities")
    assert (layer.mode, layer.smooth, layer.theta.constraint.__class__) == ("ascent", 2.0, WithinLimits)
    np.testing.assert_array_equal(layer.theta, [1.0, 0.5])


def test_float32_under_every_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = made()
    finally:
        keras.config.set_dtype_policy(before)
    truth, p = sample()
    assert layer.compute_dtype == layer.theta.dtype == "float32"
    assert layer.loss(truth, tf.cast(p, tf.bfloat16)).dtype == tf.float32


def test_bad_arguments():
    with pytest.raises(ValueError, match="mode is 'free'; choose one of learned, fixed, ascent"):
        ParametricTversky("free")
    with pytest.raises(ValueError, match="smooth is 0; a positive number is needed"):
        ParametricTversky(smooth=0)


def test_dice_of_squared_denominators():
    """V-Net's: (2 Σpg) / (Σp² + Σg²), by hand; the same as the other for probabilities of 0 and 1."""
    p = np.array([[0.5, 0.5], [0.2, 0.8]], "float32").reshape(1, 1, 1, 2, 2)
    truth = np.array([0, 1]).reshape(1, 1, 1, 2)
    loss = get_loss("dice", squared=True, smooth=1e-9)
    assert float(loss(truth, p)) == pytest.approx(1 - 2 * 0.8 / (0.25 + 0.64 + 1), rel=1e-5)
    hard = np.eye(2, dtype="float32")[np.random.default_rng(0).integers(0, 2, (1, 3, 4, 4))]
    truth, _ = sample(1, count=1)
    assert float(loss(truth, hard)) == pytest.approx(float(get_loss("dice", smooth=1e-9)(truth, hard)), rel=1e-6)
