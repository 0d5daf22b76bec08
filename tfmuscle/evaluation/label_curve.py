"""Dice against the number of labelled subjects, with a pre-trained encoder and with a random start: what differs.

Networks of both arms were trained on the same subjects with the same seed, and all were tested on the same persons. A
seed decides who is among the first S, and the weights and shuffling of the training.

Each network's figure is the mean over the tested persons (both legs of a person averaged first, for they are not
independent) of the mean Dice of all structures. A structure that was not found counts 0, and so does one that was found
where the reference has none; one that neither the reference nor the network has is left out: that they agree says
nothing of how well it is drawn. Means and sd of an arm are over seeds (n - 1).

The difference is paired by seed and person: for every person the mean over the seeds that both arms have, pre-trained
minus random. Its interval is over *persons*: Student's t for the mean, and for the median the order statistics of
`comparison.py`, which assume nothing about the distribution. It says how far the figure would hold for other persons,
given these seeds; how far it depends on who was labelled, the differences of the single seeds say, which stand beside
it. With three seeds an interval over seeds would be a guess.

Rejected: the bootstrap (with ten persons its intervals are too short, and they depend on chance); all pairs of seed and
person as if they were independent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from tfmuscle.evaluation.comparison import LEVEL, median_interval, per_person, sd
from tfmuscle.evaluation.results import mean
from tfmuscle.metrics import BOTH_EMPTY

ARMS = ("ssl", "random")
"""Encoder pre-trained without labels, and random start."""
PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "ssl": {1: 0.631, 40: 0.927},
    "random": {1: 0.530, 40: 0.924},
}
"""Arm -> number of labelled subjects -> Dice that a paper reports, of other scans."""
PUBLISHED_SOURCE = (
    "Casali, thigh muscles in T1-weighted MRI: U-Net, encoder pre-trained on 72 unlabelled scans, 1 and all 40 labelled"
    " scans"
)


def curve_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per number of labelled subjects, fewest first.

    Columns: `subjects`; of each arm `<arm>_mean` and `<arm>_sd` over `<arm>_seeds` seeds; `difference` (ssl - random),
    `low` and `high` of its interval (Student's t, 95 %) over `persons`, and its median with `median_low`,
    `median_high` and their `coverage`; then the Dice of every seed, `<arm>_seed_<n>`, and `difference_seed_<n>`. What
    is undefined is NaN.

    Args:
        rows: one per network, tested subject and structure: `arm` of `ARMS`, `subjects`, `seed`, `subject_id`,
            `structure` and `dice`; `note` says which structures neither reference nor prediction has.
    """
    scores = persons_of_networks(rows)
    seeds = sorted({seed for _, _, seed in scores})
    return [_line(scores, size, seeds) for size in sorted({size for _, size, _ in scores})]


def persons_of_networks(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int, int], dict[str, float]]:
    """Returns (arm, number of labelled subjects, seed) -> person -> mean Dice of all structures that there are."""
    networks: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("note") != BOTH_EMPTY:
            networks.setdefault((row["arm"], row["subjects"], row["seed"]), []).append(row)
    return {key: per_person(own) for key, own in networks.items()}


def _line(
    scores: Mapping[tuple[str, int, int], Mapping[str, float]], size: int, seeds: Sequence[int]
) -> dict[str, Any]:
    line: dict[str, Any] = {"subjects": size}
    single: dict[str, float] = {}
    for arm in ARMS:
        of_seeds = {seed: mean(list(scores.get((arm, size, seed), {}).values())) for seed in seeds}
        known = [value for value in of_seeds.values() if math.isfinite(value)]
        line |= {f"{arm}_mean": mean(known), f"{arm}_sd": sd(known), f"{arm}_seeds": len(known)}
        single |= {f"{arm}_seed_{seed}": value for seed, value in of_seeds.items()}
    persons: dict[str, list[float]] = {}
    for seed in seeds:
        one, other = (scores.get((arm, size, seed), {}) for arm in ARMS)
        differences = {person: one[person] - other[person] for person in sorted(set(one) & set(other))}
        for person, value in differences.items():
            persons.setdefault(person, []).append(value)
        single[f"difference_seed_{seed}"] = mean(list(differences.values()))
    return line | _paired([mean(values) for values in persons.values()]) | single


def _paired(values: Sequence[float]) -> dict[str, Any]:
    low, high = mean_interval(values)
    median_low, median_high, coverage = median_interval(values)
    return {
        "difference": mean(values),
        "low": low,
        "high": high,
        "persons": len(values),
        "median_difference": float(np.median(values)) if len(values) else math.nan,
        "median_low": median_low,
        "median_high": median_high,
        "coverage": coverage,
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the limits of a mean, `m ± t sd / sqrt(n)` with Student's t of n - 1; NaN twice below two values.

    Source: Student 1908, Biometrika 6:1; its coverage is 1 - `comparison.LEVEL`.

    >>> [round(limit, 2) for limit in mean_interval([1.0, 3.0])]
    [-10.71, 14.71]
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = float(student.ppf(1 - LEVEL / 2, n - 1)) * sd(values) / math.sqrt(n)
    return mean(values) - half, mean(values) + half
