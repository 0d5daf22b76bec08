"""Left against right.

Definition. The symmetry index 100·(left - right) / ((left + right) / 2) in percent: 0 for equal sides, positive when
the left one is larger, at most 200 either way. Source: Robinson, Herzog & Nigg 1987, J Manipulative Physiol Ther 10,
172-176, who wrote it for forces, right minus left. A fat fraction is a ratio already: for it the difference of left and
right in percentage points is given.

A side that is cut by the edge of the scan has not its whole volume; such pairs are measured and marked.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfmuscle.labels import LabelMap, without_side

COMPARED = ("volume_ml", "length_mm", "max_area_cm2")
"""Columns compared by the symmetry index."""
FAT_COMPARED = ("ff_mean", "ff_of_sums")
"""Columns compared by their difference."""


def symmetry_index(left: float, right: float) -> float:
    """Returns 100·(left - right) over their mean; NaN when both are 0 or one is undefined.

    >>> symmetry_index(110.0, 90.0)
    20.0
    """
    return 200 * (left - right) / (left + right) if left + right else math.nan


def asymmetry(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares the sides of every structure that has two.

    Args:
        rows: one a structure, with `structure`, `cut` and the columns above as far as they were measured.

    Returns:
        One row a pair, in the order of the left structures: `structure` without side, `cut` (sides that are cut), and
        for each column `<column>_left`, `<column>_right` and `<column>_asymmetry`.
    """
    named = {str(row["structure"]): row for row in rows}
    table = LabelMap(dict(enumerate(named, start=1))) if named else LabelMap({})
    pairs = []
    for name, left in named.items():
        partner = table.partner(name)
        if LabelMap.side(name) != "left" or partner is None:
            continue
        right = named[partner]
        sides = [side for side, row in (("left", left), ("right", right)) if row["cut"]]
        pair: dict[str, Any] = {"structure": without_side(name), "cut": " ".join(sides)}
        for column in (*COMPARED, *FAT_COMPARED):
            if column in left and column in right:
                one, other = float(left[column]), float(right[column])
                pair[f"{column}_left"], pair[f"{column}_right"] = one, other
                difference = symmetry_index(one, other) if column in COMPARED else one - other
                pair[f"{column}_asymmetry"] = difference
        pairs.append(pair)
    return pairs
