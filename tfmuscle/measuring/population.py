"""A structure beside those of other people.

The table is one that `tfmuscle measure` made of a cohort. Left and right count together (a muscle and its mirror
image), structures that are cut by the edge of the scan do not count, and neither does the subject that is looked at.

Score. The robust z of Iglewicz & Hoaglin (1993, "How to detect and handle outliers"): (x - median) / (1.4826·MAD), MAD
being the median distance from the median. A few outliers in the table do not hide themselves, as they would in mean and
standard deviation. Their limit of 3.5 is for many: of ten people the MAD itself is uncertain, and 3 % of what is normal
lies beyond. `limit` is where 0.2 % of a normal distribution lie beyond, whatever the number of people; it was fitted to
200,000 simulated tables each of 10 to 100 people (7.4 for ten, 4.8 for twenty, 3.1 for very many). Below ten people
there is no score. Where the table hardly varies, 1.4826·MAD is taken as 2 % of the median: less is an outline's noise.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.labels import without_side

FEATURES = {
    "volume_ml": "volume",
    "length_mm": "length",
    "max_area_cm2": "largest area",
    "fill": "fill (volume over that of a cylinder as long and wide)",
    "slenderness": "slenderness (length over width)",
}
"""Column -> what it is; the first three are size, the others shape."""
FEWEST_PEOPLE = 10
SMALLEST_SPREAD = 0.02
_MAD_TO_SD = 1.4826
_LIMIT_OF_MANY, _FEW = 3.1, 8.7
_LARGEST_TABLE = 256 << 20


@dataclass(frozen=True)
class Unusual:
    """A feature far from the population: its value, the population's median and how many people it is of."""

    structure: str
    feature: str
    value: float
    median: float
    z: float
    people: int


@dataclass(frozen=True)
class Population:
    """Measures of other people: structure without side -> feature -> (subject, value)."""

    values: Mapping[str, Mapping[str, tuple[tuple[str, float], ...]]]

    def unusual(self, row: Mapping[str, Any], *, subject: str) -> list[Unusual]:
        """Returns which features of a row of `Structure.row` are far from those of other subjects."""
        features = self.values.get(without_side(str(row["structure"])), {})
        found = []
        for feature in FEATURES if not row["cut"] else ():
            others = [(who, value) for who, value in features.get(feature, ()) if who != subject]
            people = len({who for who, _ in others})
            if people < FEWEST_PEOPLE:
                continue
            values = np.array([value for _, value in others])
            z = robust_z(float(row[feature]), values)
            if abs(z) > limit(people):
                median = float(np.median(values))
                found.append(Unusual(str(row["structure"]), feature, float(row[feature]), median, z, people))
        return found


def robust_z(value: float, values: np.ndarray) -> float:
    """Returns the distance of a value from the median in robust standard deviations.

    >>> round(robust_z(16.0, np.array([8.0, 9.0, 10.0, 11.0, 12.0])), 2)
    4.05
    """
    median = float(np.median(values))
    spread = _MAD_TO_SD * float(np.median(np.abs(values - median)))
    spread = max(spread, SMALLEST_SPREAD * abs(median))
    return (value - median) / spread if spread else math.copysign(math.inf, value - median) if value != median else 0.0


def limit(people: int) -> float:
    """Returns beyond which robust z a value is far, by the number of people it is compared with.

    >>> round(limit(10), 1), round(limit(20), 1)
    (7.4, 4.8)
    """
    return _LIMIT_OF_MANY * math.exp(_FEW / people)


def population(rows: Iterable[Mapping[str, Any]]) -> Population:
    """Gathers rows of a cohort, each with its `subject`."""
    values: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for row in rows:
        own = values.setdefault(without_side(str(row["structure"])), {})
        for feature in FEATURES if not row["cut"] else ():
            if math.isfinite(float(row[feature])):
                own.setdefault(feature, []).append((str(row["subject"]), float(row[feature])))
    return Population({name: {key: tuple(v) for key, v in own.items()} for name, own in values.items()})


def read_population(path: str | Path) -> Population:
    """Reads the `cohort.csv` that `tfmuscle measure` wrote.

    Raises:
        DataError: the file is missing, or no such table.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise ValueError("far too long for a table")
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        missing = {"subject", "structure", "cut", *FEATURES} - set(rows[0] if rows else ())
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}" if rows else "no row in it")
        return population(rows)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path}: no usable table of a population ({error}); give the cohort.csv of `tfmuscle measure -i FOLDER`"
        ) from error
