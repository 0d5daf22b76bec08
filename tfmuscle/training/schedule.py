"""Decisions that follow from the history of a run: learning rate, best epoch, when to stop.

A history is a list of rows, one per finished epoch, each a dict of numbers (`loss`, `val_dice`, ...). Everything here
is a pure function of it, so that a run that was killed and resumed decides as one that never was; Keras' own
`ReduceLROnPlateau` and `EarlyStopping` keep their counters in memory and would forget them.
"""

import math
from collections.abc import Sequence

from tfmuscle.config import TrainConfig

History = Sequence[dict[str, float]]

MINIMUM_RATE_SHARE = 0.01
"""Linear, cosine and plateau schedules end at this share of the initial rate."""
LINEAR_STEP = 0.01
"""Share of the initial rate that the linear schedule loses per epoch (Cheena)."""
POLYNOMIAL_POWER = 0.9
"""Exponent of the polynomial schedule (nnU-Net)."""
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 10
"""The rate is halved after ten epochs without a better validation loss."""
LAST_EPOCHS, LAST_EPOCHS_SHARE = 2, 0.1
"""The schedule last_two ends with so many epochs at this share of the rate."""
EMA_MEMORY = 0.9
"""Weight of the past in the moving average of the Dice (nnU-Net)."""


def learning_rate(config: TrainConfig, history: History) -> float:
    """Returns the rate of the epoch after `history`.

    linear: `r (1 - e/100)`, whatever the number of epochs `E` (Cheena: 1e-4 - 1e-6 e); cosine:
    `r/2 (1 + cos(pi e/E))`; both at least 1 % of `r`; polynomial: `r (1 - e/E)^0.9`; plateau: `r / 2^k` after the k-th
    plateau of the validation loss; last_two: `r`, and `r/10` in the last two epochs (IFSS-Net).

    >>> learning_rate(TrainConfig(learning_rate=0.1, schedule="cosine", epochs=10), [])
    0.1
    """
    rate, done = config.learning_rate, min(len(history) / config.epochs, 1.0)
    if config.schedule == "linear":
        return rate * max(1 - LINEAR_STEP * len(history), MINIMUM_RATE_SHARE)
    if config.schedule == "cosine":
        return max(rate * 0.5 * (1 + math.cos(math.pi * done)), rate * MINIMUM_RATE_SHARE)
    if config.schedule == "polynomial":
        return max(rate * (1 - done) ** POLYNOMIAL_POWER, rate * 1e-6)
    if config.schedule == "last_two":
        return rate * (LAST_EPOCHS_SHARE if len(history) >= config.epochs - LAST_EPOCHS else 1.0)
    if config.schedule == "plateau":
        return max(rate * PLATEAU_FACTOR ** _plateaus(history), rate * MINIMUM_RATE_SHARE)
    return rate


def _plateaus(history: History) -> int:
    best, waited, found = math.inf, 0, 0
    for row in history:
        loss = row.get("val_loss", row["loss"])
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == PLATEAU_PATIENCE:
            found, waited = found + 1, 0
    return found


def scores(history: History, of: str = "dice") -> list[float]:
    """Returns, per epoch, what the best epoch has most of.

    `dice` is the validation Dice, `ema_dice` its moving average `0.9 old + 0.1 new` that starts at the first, `loss`
    minus the validation loss. A fold without validation leaves only the training loss, whatever is asked for. An epoch
    whose Dice is not defined scores minus infinity, and leaves a moving average as it was.

    >>> [round(score, 3) for score in scores([{"val_dice": 0.5}, {"val_dice": 0.9}], "ema_dice")]
    [0.5, 0.54]
    """
    column = "val_loss" if of == "loss" else "val_dice"
    if not all(column in row for row in history):
        return [_known(-row["loss"]) for row in history]
    if of == "loss":
        return [_known(-row["val_loss"]) for row in history]
    found = [_known(row["val_dice"]) for row in history]
    return _moving_average(found) if of == "ema_dice" else found


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _moving_average(values: Sequence[float]) -> list[float]:
    averages: list[float] = []
    for value in values:
        before = averages[-1] if averages else -math.inf
        if math.isinf(before) or math.isinf(value):
            averages.append(max(before, value))
        else:
            averages.append(EMA_MEMORY * before + (1 - EMA_MEMORY) * value)
    return averages


def best_epoch(history: History, of: str = "dice") -> int:
    """Returns the index of the epoch with the best `scores`, the earliest of equals.

    >>> best_epoch([{"loss": 1.0, "val_dice": 0.2}, {"loss": 0.5, "val_dice": 0.4}, {"loss": 0.4, "val_dice": 0.4}])
    1
    """
    if not history:
        raise ValueError("an empty history has no best epoch; train at least one")
    found = scores(history, of)
    return found.index(max(found))


def should_stop(history: History, patience: int, of: str = "dice") -> bool:
    """Whether `patience` epochs have passed since the best one; a patience of 0 never stops.

    >>> should_stop([{"loss": 1.0, "val_dice": 0.5}, {"loss": 0.5, "val_dice": 0.4}], patience=1)
    True
    """
    return patience > 0 and bool(history) and len(history) - 1 - best_epoch(history, of) >= patience


def curves(history: History) -> dict[str, list[float]]:
    """Returns what there is to draw of a history, name -> value per epoch; seconds and numbers of epochs are not.

    >>> curves([{"epoch": 1.0, "seconds": 3.0, "loss": 0.5}])
    {'loss': [0.5]}
    """
    names = [name for name in (history[0] if history else {}) if name not in ("epoch", "seconds")]
    return {name: [row[name] for row in history] for name in names}
