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
"""Cosine and plateau schedules end at this share of the initial rate."""
POLYNOMIAL_POWER = 0.9
"""Exponent of the polynomial schedule (nnU-Net)."""
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 10
"""The rate is halved after ten epochs without a better validation loss."""


def learning_rate(config: TrainConfig, history: History) -> float:
    """Returns the rate of the epoch after `history`.

    cosine: `r/2 (1 + cos(pi e/E))` but at least 1 % of `r`; polynomial: `r (1 - e/E)^0.9`; plateau: `r / 2^k` after the
    k-th plateau of the validation loss.

    >>> learning_rate(TrainConfig(learning_rate=0.1, schedule="cosine", epochs=10), [])
    0.1
    """
    rate, done = config.learning_rate, min(len(history) / config.epochs, 1.0)
    if config.schedule == "cosine":
        return max(rate * 0.5 * (1 + math.cos(math.pi * done)), rate * MINIMUM_RATE_SHARE)
    if config.schedule == "polynomial":
        return max(rate * (1 - done) ** POLYNOMIAL_POWER, rate * 1e-6)
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


def score(row: dict[str, float]) -> float:
    """Returns what the best epoch maximises: the validation Dice, or minus the training loss without validation."""
    value = row.get("val_dice", -row["loss"])
    return -math.inf if math.isnan(value) else value


def best_epoch(history: History) -> int:
    """Returns the index of the best epoch, the earliest of equals.

    >>> best_epoch([{"loss": 1.0, "val_dice": 0.2}, {"loss": 0.5, "val_dice": 0.4}, {"loss": 0.4, "val_dice": 0.4}])
    1
    """
    if not history:
        raise ValueError("an empty history has no best epoch; train at least one")
    return max(range(len(history)), key=lambda epoch: (score(history[epoch]), -epoch))


def should_stop(history: History, patience: int) -> bool:
    """Whether `patience` epochs have passed since the best one; a patience of 0 never stops.

    >>> should_stop([{"loss": 1.0, "val_dice": 0.5}, {"loss": 0.5, "val_dice": 0.4}], patience=1)
    True
    """
    return patience > 0 and bool(history) and len(history) - 1 - best_epoch(history) >= patience


def curves(history: History) -> dict[str, list[float]]:
    """Returns what there is to draw of a history, name -> value per epoch; seconds and numbers of epochs are not.

    >>> curves([{"epoch": 1.0, "seconds": 3.0, "loss": 0.5}])
    {'loss': [0.5]}
    """
    names = [name for name in (history[0] if history else {}) if name not in ("epoch", "seconds")]
    return {name: [row[name] for row in history] for name in names}
