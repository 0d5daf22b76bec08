"""Contrastive losses, judged by loops written out from the formula."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmuscle.losses.contrastive import METHODS, Contrastive, contrastive_loss, position, positives, quarter

SLICES, DEPTH = 6, 24


def batch(seed=0, slices=SLICES):
    """Embeddings of two views of some slices, and what is known of them."""
    rng = np.random.default_rng(seed)
    indices = rng.choice(DEPTH, slices, replace=False)
    about = [(number, position(i, DEPTH), quarter(i, DEPTH)) for number, i in enumerate(indices)]
    return rng.normal(size=(2 * slices, 8)).astype("float32"), np.array(about + about, "float32")


def by_loops(z, pairs, temperature):
    total = 0.0
    unit = [row / np.linalg.norm(row) for row in z.astype(float)]
    score = [[float(a @ b) / temperature for b in unit] for a in unit]
    for a in range(len(z)):
        others = math.log(sum(math.exp(score[a][c]) for c in range(len(z)) if c != a))
        mates = [b for b in range(len(z)) if pairs[a][b]]
        total += -sum(score[a][b] - others for b in mates) / len(mates)
    return total / len(z)


def mates_by_hand(about, method, threshold):
    count = len(about)
    found = np.zeros((count, count))
    for a in range(count):
        for b in range(count):
            alike = about[a][0] == about[b][0]
            alike = alike or (method == "pcl" and abs(about[a][1] - about[b][1]) < threshold)
            alike = alike or (method == "gcl" and about[a][2] == about[b][2])
            found[a, b] = a != b and alike
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [0.05, 0.35])
def test_the_loss_is_that_of_the_formula(method, threshold):
    z, about = batch()
    pairs = np.asarray(positives(about, method=method, threshold=threshold))
    assert np.array_equal(pairs, mates_by_hand(about, method, threshold))
    assert (pairs.sum(axis=1) >= 1).all() and not np.diag(pairs).any()
    loss = Contrastive(method=method, threshold=threshold, temperature=0.1)
    assert float(loss(about, z)) == pytest.approx(by_loops(z, pairs, 0.1), rel=1e-4)


def test_a_threshold_below_the_smallest_gap_is_simclr():
    z, about = batch()
    losses = [float(Contrastive(method=m, threshold=0.9 / DEPTH)(about, z)) for m in ("pcl", "simclr")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_equal_embeddings_cost_the_logarithm_of_their_number(method):
    _, about = batch()
    loss = Contrastive(method=method)(about, np.ones((2 * SLICES, 4), "float32"))
    assert float(loss) == pytest.approx(math.log(2 * SLICES - 1), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_a_batch_does_not_matter(method):
    z, about = batch(1)
    order = np.random.default_rng(2).permutation(len(z))
    loss = Contrastive(method=method)
    assert float(loss(about, z)) == pytest.approx(float(loss(about[order], z[order])), rel=1e-5)


def test_large_and_vanishing_embeddings_are_finite():
    z, about = batch()
    for scale in (1e-15, 1e15):
        assert math.isfinite(float(Contrastive(temperature=0.01)(about, z * np.float32(scale))))
    zeros = tf.Variable(np.zeros_like(z))
    with tf.GradientTape() as tape:
        loss = Contrastive()(about, zeros)
    assert math.isfinite(float(loss)) and np.isfinite(tape.gradient(loss, zeros)).all()


def test_alike_positives_cost_less():
    _, about = batch()
    apart = np.eye(SLICES, 8, dtype="float32")
    together = np.concatenate([apart, apart])
    mixed = np.concatenate([apart, apart[::-1]])
    loss = Contrastive(method="simclr")
    assert float(loss(about, together)) < float(loss(about, mixed))
    pairs = positives(about, method="simclr", threshold=0.1)
    assert float(contrastive_loss(together, pairs, temperature=0.01)) < 1e-3


def test_quarters_of_short_scans():
    assert [quarter(i, 2) for i in range(2)] == [0, 1]
    assert [quarter(i, 1) for i in range(1)] == [0]
    assert quarter(99, 100) == 3


def test_what_cannot_be():
    with pytest.raises(ValueError, match="method is 'moco'; choose one of pcl, gcl, simclr"):
        Contrastive(method="moco")
    with pytest.raises(ValueError, match="threshold is 0 and temperature"):
        Contrastive(threshold=0)
    with pytest.raises(ValueError, match="temperature -1"):
        Contrastive(temperature=-1)


def test_it_is_rebuilt_from_its_settings():
    loss = Contrastive(method="gcl", threshold=0.2, temperature=0.5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.options == loss.options
