"""Decisions that follow from the history: rates and epochs by hand arithmetic."""

import math

import pytest

from tfmuscle.config import TrainConfig
from tfmuscle.training.schedule import best_epoch, learning_rate, scores, should_stop


def history(length):
    return [{"loss": 1.0}] * length


def test_cosine_rate_by_hand():
    config = TrainConfig(learning_rate=0.2, schedule="cosine", epochs=4)
    # r/2 (1 + cos(pi e/4)): e=0 -> 0.2, e=2 -> 0.1; e=4 would be 0, kept at 1 % = 0.002
    rates = [learning_rate(config, history(epoch)) for epoch in (0, 2, 4)]
    assert rates == pytest.approx([0.2, 0.1, 0.002])


def test_polynomial_rate_by_hand():
    config = TrainConfig(learning_rate=0.01, schedule="polynomial", epochs=10)
    assert learning_rate(config, history(5)) == pytest.approx(0.01 * 0.5**0.9)


@pytest.mark.parametrize("epoch", [0, 1, 7, 39, 49, 98, 99, 100, 250])
def test_linear_rate_is_that_of_both_papers(epoch):
    cheena = TrainConfig(learning_rate=1e-4, schedule="linear", epochs=300)
    assert learning_rate(cheena, history(epoch)) == pytest.approx(max(1e-4 - 1e-6 * epoch, 1e-6))
    if epoch < 40:  # nnU-Net as Cheena describes it ends there
        seed002 = TrainConfig(learning_rate=1e-3, schedule="linear", epochs=40)
        assert learning_rate(seed002, history(epoch)) == pytest.approx(1e-3 - 1e-5 * epoch)


def test_plateau_halves_after_ten_epochs_without_gain():
    config = TrainConfig(learning_rate=0.1, schedule="plateau", epochs=99)
    flat = [{"loss": 1.0, "val_loss": 1.0}] * 11  # the first is a gain, ten are not
    assert learning_rate(config, flat[:10]) == pytest.approx(0.1)
    assert learning_rate(config, flat) == pytest.approx(0.05)


def test_best_epoch_and_early_stop():
    rows = [{"loss": 1.0, "val_dice": value} for value in (0.1, 0.5, math.nan, 0.4, 0.3)]
    assert best_epoch(rows) == 1
    assert not should_stop(rows, 4) and should_stop(rows, 3) and not should_stop(rows, 0)
    with pytest.raises(ValueError, match="an empty history has no best epoch"):
        best_epoch([])


def test_moving_average_by_hand():
    rows = [{"loss": 1.0, "val_dice": value} for value in (math.nan, 0.5, 0.8, math.nan, 0.4)]
    # nothing, 0.5, 0.9 * 0.5 + 0.1 * 0.8 = 0.53, as before, 0.9 * 0.53 + 0.1 * 0.4 = 0.517
    assert scores(rows, "ema_dice") == pytest.approx([-math.inf, 0.5, 0.53, 0.53, 0.517])


def test_the_three_selections_choose_three_epochs():
    dice, loss = [0.50, 0.80, 0.10, 0.70, 0.72], [0.9, 0.8, 0.7, 0.1, 0.6]
    rows = [{"loss": 1.0, "val_dice": d, "val_loss": v} for d, v in zip(dice, loss, strict=True)]
    # moving average: 0.5, 0.53, 0.487, 0.5083, 0.52947
    assert [best_epoch(rows, of) for of in ("dice", "loss")] == [1, 3]
    later = [*rows, {"loss": 1.0, "val_dice": 0.79, "val_loss": 0.2}]  # average 0.555523, Dice below 0.80
    assert [best_epoch(later, of) for of in ("dice", "ema_dice", "loss")] == [1, 5, 3]
    assert [should_stop(later, 2, of) for of in ("dice", "ema_dice", "loss")] == [True, False, True]
    assert [should_stop(later, 3, of) for of in ("dice", "ema_dice", "loss")] == [True, False, False]


@pytest.mark.parametrize("of", ["dice", "ema_dice", "loss"])
def test_without_validation_the_training_loss_decides(of):
    assert best_epoch([{"loss": 0.5}, {"loss": 0.2}, {"loss": 0.3}], of) == 1
