"""From maps and scores to one row a structure: what to expect of it, and where to look."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmuscle.labels import LabelMap
from tfmuscle.measuring.shape import structure_boxes
from tfmuscle.uncertainty.calibration import Calibration
from tfmuscle.volume import Volume

SLICES_SHOWN = 3
REACH = 3
"""Voxels around a structure's box in which unlabelled voxels count for it: it may be larger than its label."""


def scores_of(agreement: np.ndarray, labels: np.ndarray, label_map: LabelMap) -> dict[str, float]:
    """Returns structure -> agreement; 0 for one that is labelled though no member alone finds it, NaN without any.

    Args:
        agreement: `(num_classes,)`, NaN for what no member found.
        labels: ids.
        label_map: names them; classes are in its order.
    """
    there = structure_boxes(labels, [label_map.id_of(name) for name in label_map.structures])
    scores = {}
    for name in label_map.structures:
        key = label_map.id_of(name)
        score = float(agreement[label_map.ids.index(key)])
        scores[name] = 0.0 if np.isnan(score) and key in there else score
    return scores


def rows_of(
    labels: Volume,
    error: np.ndarray,
    scores: Mapping[str, float],
    calibration: Calibration,
    *,
    slice_axis: int,
) -> list[dict[str, Any]]:
    """Returns one row a structure, those that are not there too.

    `error_probability` is the mean of the map in the structure; `slices` are those in which the map has most in it or,
    beside it, in what is background.

    Args:
        labels: ids.
        error: probability that each is wrong, on their grid.
        scores: from `scores_of`.
        calibration: of the members.
        slice_axis: along which slices are counted.
    """
    label_map = LabelMap.from_dict(dict(calibration.labels))
    boxes = structure_boxes(labels.array, [label_map.id_of(name) for name in label_map.structures])
    rows = []
    for name in label_map.structures:
        key, judged = label_map.id_of(name), calibration.judge(name, scores[name])
        row: dict[str, Any] = {
            "structure": name,
            "id": key,
            "expected_dice": judged.expected,
            "dice_low": judged.low,
            "dice_high": judged.high,
            "agreement": None if np.isnan(scores[name]) else scores[name],
            "look_here": judged.flagged,
            "error_probability": None,
            "slices": [],
            "slice_axis": slice_axis,
            "learnt_from": judged.learnt_from,
        }
        if key in boxes:
            box = tuple(slice(max(side.start - REACH, 0), side.stop + REACH) for side in boxes[key])
            here, doubts = labels.array[box], error[box]
            row["error_probability"] = float(doubts[here == key].mean(dtype=np.float64))
            others = tuple(side for side in range(3) if side != slice_axis)
            amount = np.where((here == key) | (here == 0), doubts, 0).sum(axis=others, dtype=np.float64)
            worst = np.argsort(-amount, kind="stable")[:SLICES_SHOWN]
            row["slices"] = [int(index) + box[slice_axis].start for index in worst if amount[index] > 0]
        rows.append(row)
    return rows
