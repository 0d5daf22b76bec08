"""What a score meant on labelled scans: the Dice to expect, an interval that held nine in ten, and the lowest tenth.

The relation is made rising: by isotonic regression (means of neighbours until they rise) from `FEWEST_FOR_STEPS` points
on, by a straight line below. Between the means it is linear, above the largest score seen level, and below the smallest
it falls to a Dice of 0 at a score of 0: no agreement, nothing to trust. Scans much worse than any that were seen are
thus not given the Dice of the worst one seen.

The interval comes from points that had no part in the curve: persons are parted into `PARTS`, each is left out once.
What was found less what was expected is divided by `1 - expected + SLACK`, for a Dice of 0.95 is known better than one
of 0.5; the lowest and highest twentieth of these shares are cut off, by the order statistics that hold with a further
point too (split-conformal; Lei et al., JASA 2018). With 19 points the lowest of all is that limit; fewer promise
nothing.

The lowest tenth is what the flag will name. Where different members spoke of different scans, some agree less than
others whatever the scan, and all together will be the same at every scan: by how much the mean of such a group differs
from that of all is taken off first, if `SMALLEST_GROUP` scans tell it. The curve keeps its points as they are: scores
and Dice of a group go together, and what is expected of all members stays rather too low.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import scipy.optimize

COVERAGE = 0.9
"""Share of scans that the interval should hold."""
FEWEST = 20
"""Points without which nothing is promised: 5 % at each end need 19."""
FEWEST_FOR_STEPS = 50
PARTS = 5
SLACK = 0.02
SMALLEST_GROUP = 5
_ROUNDING = 1e-9
WORST = 0.1
"""Share of labelled scans that the flag would have named."""


@dataclass(frozen=True)
class Curve:
    """A rising relation between score and Dice.

    Attributes:
        scores: of the knots, rising, from 0.
        dices: there, rising, from 0.
        low: lower end of the interval, as a share of `1 - expected + SLACK` that is added.
        high: upper end.
        level: the score below which the lowest tenth was.
        count: points it is made of.
    """

    scores: tuple[float, ...]
    dices: tuple[float, ...]
    low: float
    high: float
    level: float
    count: int

    def expected(self, score: float) -> float:
        """Returns the Dice to expect of a score."""
        return float(np.interp(score, self.scores, self.dices))

    def interval(self, score: float) -> tuple[float, float]:
        """Returns the lowest and highest Dice to expect; the expected one is never outside."""
        expected = self.expected(score)
        low, high = (expected + share * (1 - expected + SLACK) for share in (min(self.low, 0), max(self.high, 0)))
        return max(low, 0.0), min(high, 1.0)

    def is_low(self, score: float) -> bool:
        """Whether the score is below that of nine in ten."""
        return score < self.level

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: it is something else.
        """
        names = [item.name for item in fields(cls)]
        if not isinstance(content, dict) or sorted(content) != sorted(names):
            raise ValueError(f"a curve needs {', '.join(names)}")
        try:
            knots = [tuple(float(value) for value in content[name]) for name in ("scores", "dices")]
            low, high, level, count = (content[name] for name in ("low", "high", "level", "count"))
            curve = cls(knots[0], knots[1], float(low), float(high), float(level), int(count))
        except TypeError as error:
            raise ValueError(f"a curve is made of numbers ({error})") from error
        if len(curve.scores) != len(curve.dices) or not curve.scores or (np.diff(knots) < 0).any():
            raise ValueError("a curve needs as many Dice values as scores, both rising")
        return curve


def fit_curve(
    scores: Sequence[float],
    dices: Sequence[float],
    persons: Sequence[str],
    groups: Sequence[object] | None = None,
) -> Curve | None:
    """Returns the curve through points, or None where there are less than `FEWEST`.

    Args:
        scores: 0..1.
        dices: 0..1, true ones.
        persons: whose scans they are; those of a person are left out together.
        groups: who spoke of each scan; the same everywhere by default.

    Raises:
        ValueError: lengths that differ.
    """
    if not len(scores) == len(dices) == len(persons):
        raise ValueError(
            f"{len(scores)} scores, {len(dices)} Dice values and {len(persons)} persons; one each is needed"
        )
    if len(scores) < FEWEST:
        return None
    x, y = np.asarray(scores, np.float64), np.asarray(dices, np.float64)
    number = {person: rank % PARTS for rank, person in enumerate(dict.fromkeys(persons))}
    part = np.array([number[person] for person in persons])
    shares = []
    for left_out in range(PARTS):
        out = part == left_out
        if out.any() and not out.all():
            expected = np.interp(x[out], *_knots(x[~out], y[~out]))
            shares += list((y[out] - expected) / (1 - expected + SLACK))
    if len(shares) < FEWEST:  # all of them are one person's
        return None
    low, high = _limits(np.sort(shares))
    knots = _knots(x, y)
    level = float(np.sort(_without_groups(x, groups))[int(WORST * len(x))])
    return Curve(tuple(knots[0].tolist()), tuple(knots[1].tolist()), low, high, level, len(x))


def _without_groups(x: np.ndarray, groups: Sequence[object] | None) -> np.ndarray:
    """Returns scores without what makes the mean of a large group differ from the mean of all."""
    number = np.unique([str(group) for group in groups or [""] * len(x)], return_inverse=True)[1]
    count = np.bincount(number)
    if len(count) == 1:
        return x
    shift = np.where(count < SMALLEST_GROUP, 0, np.bincount(number, x) / count - x.mean())
    return x - shift[number]


def _knots(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and Dice values between which the curve is straight."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) < FEWEST_FOR_STEPS:
        spread = x - x.mean()
        slope = max(0.0, float(spread @ y) / float(spread @ spread)) if np.ptp(x) > _ROUNDING else 0.0
        ends = np.array([x[0], x[-1]])
        means, values = ends, y.mean() + slope * (ends - x.mean())
    else:
        found = scipy.optimize.isotonic_regression(y)
        starts = found.blocks[:-1]
        counts = np.diff(found.blocks)
        means, values = np.add.reduceat(x, starts) / counts, found.x[starts]
    if not means[0] > 0:  # the curve begins at (0, 0) in any case
        means, values = means[1:], values[1:]
    return np.concatenate([[0.0], means]), np.clip(np.concatenate([[0.0], values]), 0, 1)


def _limits(shares: np.ndarray) -> tuple[float, float]:
    """Returns the ends between which a further one of sorted shares lies with a probability of `COVERAGE`."""
    count, tail = len(shares), (1 - COVERAGE) / 2
    below = max(int(np.floor((count + 1) * tail + 1e-9)), 1)
    return float(shares[below - 1]), float(shares[count - below])
