"""Several models on the same subjects: what differs, and whether the difference can be trusted.

The user has measured each model on the same scans, none of which it was trained on, and asks which one to use. The data
are rows as `evaluate` measures them, one per subject and structure, of every model.

Means and sd are between subjects, as in `results.py`. The test is of *persons*: both legs of a person (`<id>_left`,
`<id>_right`) are averaged first, for they are not independent. Each person's figure is the mean Dice of all structures;
two models are compared on the persons that both segmented.

* p: Wilcoxon's signed-rank test, two-sided, exact for any number of persons and for ties (the distribution of the ranks
  that were found is built up rank by rank); equal pairs are left out, as Wilcoxon did.
* p (Holm): corrected for the number of pairs of models, Holm 1979, Scand. J. Statist. 6:65.
* interval of the median difference: order statistics, which assume nothing about the distribution; the smallest such
  interval that covers the median with a probability of 95 % at least. Below six persons there is none.

With n persons p cannot fall below 2 / 2^n; where that, times the number of pairs, exceeds 0.05, the verdict says "too
few persons" whatever the figures look like.

Rejected: Student's t-test (a Dice is bounded and skewed); tests of every structure (their number would have to be
corrected for as well, and with ten subjects nothing would be left); the normal approximation.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tfmuscle.evaluation.results import ALL_STRUCTURES, mean

LEVEL = 0.05
"""Probability of error that a test may have, and 1 - coverage of an interval."""
COMPARED = ("dice", "iou", "volume_error_ml", "hausdorff_95", "assd")
"""Metrics of the tables."""
COSTS = {
    "parameters": "weights of the network",
    "trainable_parameters": "of these, learnt",
    "training_seconds": "training, mean of the folds",
    "seconds_per_scan": "prediction of one scan, mean, reading and writing included",
    "peak_memory_mb": "most main memory of a process that predicts, MiB; graphics memory is not counted",
}
"""What a model costs: key -> description."""
_EQUAL_BELOW = 12
"""Decimals of a difference that count: what is closer is a tie, for rounding must not rank it."""


@dataclass(frozen=True)
class ModelResult:
    """What one model did.

    Attributes:
        name: shown in tables.
        rows: one per subject and structure: `subject_id`, `structure` and every name of `metrics.METRICS`.
        varied: settings in which the models differ; columns of all tables.
        about: what else to know, e.g. architecture and epochs; columns of the CSV file.
        costs: keys of `COSTS`; a missing one was not measured.
        published: structure -> metric -> (mean, sd), as a paper reports them.
        failed: subjects of which it has no prediction.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    varied: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, float | None] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    failed: int = 0


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        models: in the order asked for; those without any prediction are not among them.
        table: one row per structure and model, the last structure being `ALL_STRUCTURES`.
        tests: one row per pair of models.
        failures: what failed -> reason in one line.
        waiting: what is not done yet, because another process is at it -> which.
        context: where the figures come from, e.g. data, split, seed, epochs, hardware.
        cleaning: one row per structure and model whose labels were cleaned, Dice before and after.
        out: folder of the tables and of the page.
    """

    models: tuple[ModelResult, ...]
    table: tuple[dict[str, Any], ...]
    tests: tuple[dict[str, Any], ...]
    failures: Mapping[str, str]
    waiting: Mapping[str, str]
    context: Mapping[str, str]
    cleaning: tuple[dict[str, Any], ...]
    out: Path

    @property
    def reduced(self) -> bool:
        """Whether the recipes had been cut down."""
        return str(self.context.get("scale", "")).startswith("reduced")


def comparison_table(models: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """Returns one row per structure and model.

    Columns: `structure`, `model`, those of `ModelResult.varied`, `<metric>_mean` and `<metric>_sd` of every metric in
    `COMPARED` (Dice and IoU 0..1, volumes in ml, distances in mm), `n` subjects, `n_undefined` of them without surface,
    `n_failed`, the keys of `COSTS`, `published_<metric>_mean` and `published_<metric>_sd` where a paper has them, and
    those of `ModelResult.about`.
    """
    structures = list(dict.fromkeys(row["structure"] for model in models for row in model.rows))
    published = sorted({metric for model in models for one in model.published.values() for metric in one})
    varied = dict.fromkeys(key for model in models for key in model.varied)
    about = dict.fromkeys(key for model in models for key in model.about)
    rows = []
    for structure, model in itertools.product((*structures, ALL_STRUCTURES), models):
        row: dict[str, Any] = {"structure": structure, "model": model.name}
        row |= {key: model.varied.get(key, "") for key in varied} | _figures(model, structure)
        row |= {"n_failed": model.failed} | {key: model.costs.get(key) for key in COSTS}
        for metric in published:
            figures = model.published.get(structure, {}).get(metric, (None, None))
            row |= {f"published_{metric}_{part}": figure for part, figure in zip(("mean", "sd"), figures, strict=True)}
        rows.append(row | {key: model.about.get(key, "") for key in about})
    return rows


def _figures(model: ModelResult, structure: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for metric in COMPARED:
        values = [v for v in per_subject(model.rows, metric, structure).values() if math.isfinite(v)]
        row[f"{metric}_mean"] = mean(values)
        row[f"{metric}_sd"] = sd(values)
    surfaces = per_subject(model.rows, "assd", structure)
    undefined = sum(not math.isfinite(value) for value in surfaces.values())
    return row | {"n": len(surfaces), "n_undefined": undefined}


def sd(values: Sequence[float]) -> float:
    """Returns the standard deviation of a sample (n - 1); NaN below two values.

    >>> sd([1.0, 3.0])
    1.4142135623730951
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def per_subject(
    rows: Sequence[Mapping[str, Any]], metric: str = "dice", structure: str = ALL_STRUCTURES
) -> dict[str, float]:
    """Returns subject -> the metric of a structure, or the mean of all structures; NaN where it is undefined."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if structure in (ALL_STRUCTURES, row["structure"]):
            values.setdefault(row["subject_id"], []).append(row[metric])
    return {subject_id: mean(found) for subject_id, found in values.items()}


def per_person(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns person -> mean Dice of all structures, the legs of a person averaged; undefined ones are left out.

    >>> rows = [{"subject_id": "a_left", "structure": "femur", "dice": 0.5}]
    >>> per_person([*rows, {"subject_id": "a_right", "structure": "femur", "dice": 1.0}])
    {'a': 0.75}
    """
    values: dict[str, list[float]] = {}
    for subject_id, value in per_subject(rows).items():
        if math.isfinite(value):
            values.setdefault(subject_id.removesuffix("_left").removesuffix("_right"), []).append(value)
    return {person: mean(found) for person, found in values.items()}


def paired_tests(models: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """Compares every pair of models on the persons that both segmented.

    Returns:
        One row per pair: `model_a`, `model_b`, `n` persons, `left_out` (persons that only one of them has),
        `median_difference` of their Dice (a - b), `low` and `high` of its interval and its `coverage`, `p`, `p_holm`,
        and a `verdict` in words.
    """
    scores = {model.name: per_person(model.rows) for model in models}
    pairs = list(itertools.combinations(scores, 2))
    rows = []
    for one, other in pairs:
        both = sorted(set(scores[one]) & set(scores[other]))
        differences = [scores[one][person] - scores[other][person] for person in both]
        low, high, coverage = median_interval(differences)
        row: dict[str, Any] = {"model_a": one, "model_b": other, "n": len(both)}
        row["left_out"] = len(set(scores[one]) ^ set(scores[other]))
        row["median_difference"] = float(np.median(differences)) if differences else math.nan
        rows.append(row | {"low": low, "high": high, "coverage": coverage, "p": signed_rank_p(differences)})
    corrected = holm([row["p"] for row in rows])
    return [row | {"p_holm": p, "verdict": _verdict(row, p, len(rows))} for row, p in zip(rows, corrected, strict=True)]


def _verdict(row: Mapping[str, Any], p_holm: float, pairs: int) -> str:
    if row["n"] == 0:
        return "no person in common"
    least = 2.0 ** (1 - row["n"])
    if least > LEVEL:
        return f"too few persons: with {row['n']}, p cannot fall below {least:.3g}"
    if least * pairs > LEVEL:
        return f"too few persons: with {row['n']} and {pairs} pairs, the least p cannot fall below {least * pairs:.3g}"
    if p_holm > LEVEL:
        return "no difference shown"
    better = row["model_a"] if row["median_difference"] > 0 else row["model_b"]
    return f"{better} is better" if row["median_difference"] else "they differ, the median does not"


def signed_rank_p(differences: Sequence[float]) -> float:
    """Returns the exact two-sided p of Wilcoxon's signed-rank test; NaN without differences, 1 when all are zero.

    Source: Wilcoxon 1945, Biometrics Bulletin 1:80. Ties share their mean rank, and the distribution is that of the
    ranks so found.

    >>> signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    values = np.round(np.asarray(differences, dtype=float), _EQUAL_BELOW)
    if not len(values):
        return math.nan
    values = values[values != 0]
    doubled = np.rint(2 * rankdata(np.abs(values))).astype(int)  # a shared rank may end in .5
    chances = np.zeros(doubled.sum() + 1)
    chances[0] = 1.0
    for rank in doubled:  # each rank belongs to a positive difference, or not, with a chance of one half
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2
    found = doubled[values > 0].sum()
    return float(min(1.0, 2 * min(chances[: found + 1].sum(), chances[found:].sum())))


def holm(values: Sequence[float]) -> list[float]:
    """Returns p values corrected for their number by Holm's step-down rule; NaN stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((index for index, p in enumerate(values) if math.isfinite(p)), key=lambda index: values[index])
    corrected, highest = [math.nan] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns limits of the median and the probability that they contain it, by order statistics.

    The k-th smallest and the k-th largest value enclose the median with the probability 1 - 2 P(Binomial(n, 1/2) < k);
    k is the largest that gives 1 - `LEVEL` or more. NaN thrice when there is none, below six values.

    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (1.0, 6.0, 0.96875)
    """
    ordered, n = sorted(values), len(values)
    best, below = (math.nan, math.nan, math.nan), 0.0
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n
        if 1 - 2 * below < 1 - LEVEL:
            break
        best = (float(ordered[k - 1]), float(ordered[-k]), 1 - 2 * below)
    return best
