"""One step, two steps and a restored step of our SGD by hand arithmetic."""

import keras
import numpy as np
import pytest

from tfmuscle.config import TrainConfig
from tfmuscle.training.optimisers import NesterovSGD, make_optimiser


def by_hand(weights, gradients, rates, *, momentum, l2):
    """PyTorch's documented SGD with nesterov=True, in a naive loop; returns the weights after the last step."""
    weights, velocity = np.array(weights, float), None
    for gradient, rate in zip(gradients, rates, strict=True):
        step = np.array(gradient, float) + l2 * weights
        velocity = step if velocity is None else momentum * velocity + step
        weights = weights - rate * (step + momentum * velocity)
    return weights


def steps(optimiser, weights, gradients, rates):
    variable = keras.Variable(np.array(weights, "float32"))
    for gradient, rate in zip(gradients, rates, strict=True):
        optimiser.learning_rate = rate
        optimiser.apply([np.array(gradient, "float32")], [variable])
    return np.asarray(variable)


def test_one_step_by_hand():
    # d = 1 + 0.1 * 2 = 1.2; v = d; w = 2 - 0.5 (1.2 + 0.9 * 1.2) = 0.86
    found = steps(NesterovSGD(momentum=0.9, l2=0.1), [2.0], [[1.0]], [0.5])
    assert found == pytest.approx([0.86])


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_steps_under_a_falling_rate(momentum):
    rng = np.random.default_rng(0)
    weights, gradients, rates = rng.normal(size=3), rng.normal(size=(6, 3)), 0.1 * 0.5 ** np.arange(6)
    found = steps(NesterovSGD(momentum=momentum, l2=0.05), weights, gradients, rates)
    # float32 over six steps
    np.testing.assert_allclose(
        found, by_hand(weights, gradients, rates, momentum=momentum, l2=0.05), rtol=1e-5, atol=1e-6
    )


def test_the_gradient_is_clipped_before_the_l2_term():
    optimiser = make_optimiser(TrainConfig(optimiser="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.5))
    # |g| = 24 is halved to norm 12; the L2 term 0.5 * 10 is not clipped: 10 - 0.1 (12 + 5)
    assert steps(optimiser, [10.0], [[24.0]], [0.1]) == pytest.approx([8.3])


def test_settings_reach_every_optimiser():
    sgd = make_optimiser(TrainConfig(optimiser="sgd", learning_rate=0.25, momentum=0.5, weight_decay=3e-5))
    assert (float(sgd.learning_rate), sgd.momentum, sgd.l2, sgd.weight_decay) == (0.25, 0.5, 3e-5, None)
    adamw = make_optimiser(TrainConfig(optimiser="adamw", weight_decay=0.1))
    assert adamw.weight_decay == 0.1
    for name in ("adam", "adamw", "sgd"):
        assert make_optimiser(TrainConfig(optimiser=name)).global_clipnorm == 12


def test_the_state_survives_a_file_and_mixed_precision(tmp_path):
    def network():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(NesterovSGD(0.1, momentum=0.9, l2=0.01), "mse")
        return model

    images, truth = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    one, two = network(), network()
    one.train_on_batch(images, truth)
    one.save_weights(tmp_path / "state.weights.h5")
    two.optimizer.build(two.trainable_variables)
    two.load_weights(tmp_path / "state.weights.h5")
    for model in (one, two):
        model.train_on_batch(images, truth)
    np.testing.assert_array_equal(one.get_weights()[0], two.get_weights()[0])
    one.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert (type(again), again.momentum, again.l2) == (NesterovSGD, 0.9, 0.01)
    scaled = keras.optimizers.LossScaleOptimizer(NesterovSGD(0.5, momentum=0.9, l2=0.1), initial_scale=8.0)
    # the gradient arrives eight times too large, and the step is that of test_one_step_by_hand
    assert steps(scaled, [2.0], [[8.0]], [0.5]) == pytest.approx([0.86])
