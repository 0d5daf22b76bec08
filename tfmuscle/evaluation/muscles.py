"""Dice of each muscle beside what was published for all 35 muscles of the lower limb.

The user has evaluated predictions and wants the table of Ni et al. 2019: a row per muscle, left and right pooled, the
worst first, beside the paper's method and the agreement of its observers.

Pooled. A subject's Dice of a muscle is the mean of the sides that it has; mean and sd (n - 1) are over the subjects,
for the two legs of one person are not two persons. `n_sides` says how many muscles were measured.

Reference. A muscle that nobody drew cannot be measured: sides without reference are left out and counted, also where
the evaluation calls two empty masks an agreement of 1. A muscle that was drawn and not found counts with 0.

Rejected: the published figures as a target. They were measured on other scans, with observers of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.evaluation.results import EvaluationOptions, mean
from tfmuscle.files import read_json
from tfmuscle.io.label_tables import plain_name
from tfmuscle.labels import LOWER_LIMB_MUSCLES, LabelMap, without_side
from tfmuscle.metrics import BOTH_EMPTY, METRICS, PREDICTION_EMPTY, REFERENCE_EMPTY

METRICS_FILE = "metrics.json"
VOLUME_ERROR, SURFACE_DISTANCE = "volume_difference_absolute_percent", "mean_surface_distance"
SOURCE = "Ni et al. 2019, J. Med. Imaging 6(4) 044009, Table 1: method on 13 subjects, observers on 3 subjects"
PUBLISHED_MEANS = {VOLUME_ERROR: 6.5, SURFACE_DISTANCE: 2.9}
"""Means over muscles and subjects in the same paper: % of the reference's volume, mm."""
_NEEDED = ("dice", VOLUME_ERROR, SURFACE_DISTANCE, "volume_difference_percent")
_NOTES = ("", BOTH_EMPTY, PREDICTION_EMPTY, REFERENCE_EMPTY)
_KNOWN = {name.replace("_", ""): name for name in LOWER_LIMB_MUSCLES}


class PublishedDice(NamedTuple):
    """A row of the paper's Table 1.

    Attributes:
        observers: mean Dice between two observers.
        mean: mean Dice of the method.
        sd: its standard deviation between subjects.
    """

    observers: float
    mean: float
    sd: float


PUBLISHED: dict[str, PublishedDice] = {
    "adductor_brevis": PublishedDice(0.88, 0.83, 0.024),
    "adductor_longus": PublishedDice(0.94, 0.94, 0.011),
    "adductor_magnus": PublishedDice(0.92, 0.94, 0.015),
    "biceps_femoris_long_head": PublishedDice(0.95, 0.94, 0.034),
    "biceps_femoris_short_head": PublishedDice(0.95, 0.93, 0.013),
    "external_rotators": PublishedDice(0.84, 0.70, 0.101),
    "fibulari": PublishedDice(0.93, 0.93, 0.036),
    "flexor_digitorum_longus": PublishedDice(0.94, 0.85, 0.032),
    "flexor_hallucis_longus": PublishedDice(0.83, 0.87, 0.038),
    "gastrocnemius_lateral_head": PublishedDice(0.92, 0.92, 0.016),
    "gastrocnemius_medial_head": PublishedDice(0.94, 0.95, 0.012),
    "gluteus_maximus": PublishedDice(0.97, 0.97, 0.006),
    "gluteus_medius": PublishedDice(0.94, 0.93, 0.013),
    "gluteus_minimus": PublishedDice(0.90, 0.88, 0.015),
    "gracilis": PublishedDice(0.96, 0.94, 0.010),
    "iliacus": PublishedDice(0.91, 0.91, 0.033),
    "obturator_externus": PublishedDice(0.66, 0.78, 0.058),
    "obturator_internus": PublishedDice(0.78, 0.78, 0.043),
    "pectineus": PublishedDice(0.92, 0.84, 0.036),
    "phalangeal_extensors": PublishedDice(0.89, 0.90, 0.030),
    "piriformis": PublishedDice(0.86, 0.80, 0.050),
    "popliteus": PublishedDice(0.90, 0.88, 0.029),
    "psoas_major": PublishedDice(0.92, 0.78, 0.067),
    "quadratus_femoris": PublishedDice(0.89, 0.81, 0.057),
    "rectus_femoris": PublishedDice(0.97, 0.96, 0.026),
    "sartorius": PublishedDice(0.95, 0.93, 0.020),
    "semimembranosus": PublishedDice(0.90, 0.93, 0.030),
    "semitendinosus": PublishedDice(0.95, 0.93, 0.011),
    "soleus": PublishedDice(0.93, 0.94, 0.019),
    "tensor_fasciae_latae": PublishedDice(0.96, 0.94, 0.016),
    "tibialis_anterior": PublishedDice(0.88, 0.92, 0.015),
    "tibialis_posterior": PublishedDice(0.94, 0.90, 0.034),
    "vastus_intermedius": PublishedDice(0.87, 0.88, 0.026),
    "vastus_lateralis": PublishedDice(0.95, 0.94, 0.018),
    "vastus_medialis": PublishedDice(0.96, 0.95, 0.009),
}
"""Muscle -> published Dice, named as in `LOWER_LIMB_MUSCLES`; see `SOURCE`."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, read back.

    Attributes:
        rows: one per subject and structure: `subject_id`, `structure`, `note` and figures, NaN where undefined.
        label_map: ids and names.
        context: where the figures come from, e.g. data, seed, epochs, scale.
        failures: subject id -> reason.
    """

    rows: tuple[dict[str, Any], ...]
    label_map: LabelMap
    context: dict[str, str]
    failures: dict[str, str]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Ids of the subjects that were measured, in the order of the evaluation."""
        return tuple(dict.fromkeys(row["subject_id"] for row in self.rows))

    @property
    def reduced(self) -> str:
        """Returns " (reduced)" for a recipe that was cut down, else nothing."""
        return EvaluationOptions(context=self.context).reduced

    @property
    def compared(self) -> tuple[dict[str, Any], ...]:
        """Rows with a reference, of the paper's muscles, or of all structures when none is a muscle of the paper."""
        drawn = tuple(row for row in self.rows if row["note"] not in (BOTH_EMPTY, REFERENCE_EMPTY))
        muscles = tuple(row for row in drawn if pooled_name(row["structure"]) in PUBLISHED)
        return muscles or drawn


def read_measured(folder: Path) -> Measured:
    """Reads `metrics.json` of an evaluation.

    Raises:
        DataError: it is missing, damaged, or holds no figures.
    """
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        raise DataError(f"{folder}: holds no {METRICS_FILE}; give the folder that `tfmuscle evaluate` wrote")
    content = read_json(path)
    try:
        rows = tuple(_row(row) for row in content["rows"])
        label_map = LabelMap.from_dict(content["label_map"])
        parts = [{str(key): str(value) for key, value in content[name].items()} for name in ("context", "failures")]
        if unnamed := sorted({row["structure"] for row in rows} - set(label_map.structures)):
            raise ValueError(f"the label map does not name {', '.join(unnamed[:3])}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: not as `tfmuscle evaluate` writes it ({error!s}); evaluate again") from error
    if not rows:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in list(parts[1].items())[:2])
        raise DataError(f"{path}: no subject was measured ({reasons or 'no reason given'}); evaluate again")
    return Measured(rows, label_map, parts[0], parts[1])


def _row(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with null as NaN."""
    row = {key: content[key] for key in ("subject_id", "structure", "note")}
    if not all(isinstance(value, str) for value in row.values()) or row["note"] not in _NOTES:
        raise ValueError(f"a row is called {list(row.values())!r}")
    for metric in (name for name in METRICS if name in content or name in _NEEDED):
        value = content[metric]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{metric} of {row['structure']} is {value!r}")
        row[metric] = math.nan if value is None or not math.isfinite(value) else float(value)
    return row


def pooled_name(structure: str) -> str:
    """Returns the name without its side, as in `LOWER_LIMB_MUSCLES` where it is one of them.

    >>> pooled_name("soleus_left"), pooled_name("Vastus medialis R"), pooled_name("rightVastusMedialis")
    ('soleus', 'vastus_medialis', 'vastus_medialis')
    >>> pooled_name("lateral_head"), pooled_name("Femur_L")
    ('lateral_head', 'femur')
    """
    name = plain_name(without_side(structure))
    return _KNOWN.get(name.replace("_", ""), name)


def muscle_table(measured: Measured) -> list[dict[str, Any]]:
    """Returns one row per muscle or other structure: the paper's muscles first, each part with the worst first.

    Each holds `structure`, `dice_mean`, `dice_sd`, `n_subjects`, `n_sides` (measured), `n_missed` (drawn but not
    found), `n_unknown` (sides without reference), `n_invented` (those of them that were predicted all the same),
    `published_mean`, `published_sd`, `observers_mean`, `difference` (ours - published) and `note`. Undefined figures
    are NaN.
    """
    pooled: dict[str, list[dict[str, Any]]] = {pooled_name(name): [] for name in measured.label_map.structures}
    for row in measured.rows:
        pooled[pooled_name(row["structure"])].append(row)
    table = [_line(name, rows) for name, rows in pooled.items()]
    return sorted(table, key=lambda line: (line["structure"] not in PUBLISHED, *_worst_first(line)))


def _worst_first(line: Mapping[str, Any]) -> tuple[bool, float, str]:
    known = math.isfinite(line["dice_mean"])
    return not known, line["dice_mean"] if known else 0.0, line["structure"]


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    drawn = [row for row in rows if row["note"] not in (BOTH_EMPTY, REFERENCE_EMPTY)]
    subjects = dict.fromkeys(row["subject_id"] for row in drawn)
    dices = [mean([row["dice"] for row in drawn if row["subject_id"] == key]) for key in subjects]
    theirs = PUBLISHED.get(name, PublishedDice(math.nan, math.nan, math.nan))
    line = {
        "structure": name,
        "dice_mean": mean(dices),
        "dice_sd": float(np.std(dices, ddof=1)) if len(dices) > 1 else math.nan,
        "n_subjects": len(dices),
        "n_sides": len(drawn),
        "n_missed": sum(row["note"] == PREDICTION_EMPTY for row in drawn),
        "n_unknown": len(rows) - len(drawn),
        "n_invented": sum(row["note"] == REFERENCE_EMPTY for row in rows),
        "published_mean": theirs.mean,
        "published_sd": theirs.sd,
        "observers_mean": theirs.observers,
    }
    return line | {"difference": line["dice_mean"] - theirs.mean, "note": _note(line)}


def _note(line: Mapping[str, Any]) -> str:
    drawn, missed, unknown = line["n_sides"], line["n_missed"], line["n_unknown"]
    invented = f" (predicted: {line['n_invented']})" if line["n_invented"] else ""
    if not drawn:
        return "unknown, drawn in no subject" + invented
    parts = ["not found in any subject"] if missed == drawn else [f"not found: {missed} of {drawn}"] * (missed > 0)
    return ", ".join(parts + ([f"without reference: {unknown}{invented}"] if unknown else []))


def overall(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means over the paper's muscles that have a Dice here, of all three columns, and how many they are.

    `n_muscles`, `dice_mean`, `published_mean`, `observers_mean`, `difference`, and `n_not_below_observers`: muscles
    whose mean Dice is not below that between the observers.
    """
    lines = [line for line in table if line["structure"] in PUBLISHED and math.isfinite(line["dice_mean"])]
    means = {key: mean([line[key] for line in lines]) for key in ("dice_mean", "published_mean", "observers_mean")}
    difference = means["dice_mean"] - means["published_mean"]
    level = sum(line["dice_mean"] >= line["observers_mean"] for line in lines)
    return {"n_muscles": len(lines), **means, "difference": difference, "n_not_below_observers": level}


def remarks(measured: Measured, table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns in sentences which muscles were never found, are unknown or have no label, and which subjects failed."""
    named = {line["structure"] for line in table}
    absent = [name for name in LOWER_LIMB_MUSCLES if name not in named]
    unknown = [line["structure"] for line in table if not line["n_sides"]]
    missed = [line["structure"] for line in table if line["n_sides"] and line["n_missed"] == line["n_sides"]]
    lines = [f"Not found in any subject, Dice 0: {', '.join(missed)}."] if missed else []
    lines += [f"Unknown, because no subject has a reference of them: {', '.join(unknown)}."] if unknown else []
    if len(absent) == len(LOWER_LIMB_MUSCLES):
        lines.append("None of the labels is one of the paper's 35 muscles, so nothing stands beside them.")
    elif absent:
        lines.append(f"No label of these predictions, {len(absent)} of the paper's 35 muscles: {', '.join(absent)}.")
    failed = [key for key in measured.failures if not key.startswith(("image of ", "observer2"))]
    lines += [f"Failed, and in none of these figures: {', '.join(failed)}."] if failed else []
    return lines
