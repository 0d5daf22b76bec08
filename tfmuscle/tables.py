"""Tables as CSV, the one place that writes them.

Spreadsheets take a cell that begins with `=`, `+`, `-` or `@` for a formula and run it. Names of subjects, structures
and files are chosen by whoever made the data, so that such a text gets an apostrophe in front, which spreadsheets do
not show (OWASP, "CSV injection"). Numbers keep their sign.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    r"""Returns rows as CSV with a header; what a row lacks is empty.

    Args:
        rows: column -> value.
        columns: the columns, in order; by default those of all rows.

    >>> csv_text([{"subject": "=1+1", "ml": -2.5}])
    "subject,ml\n'=1+1,-2.5\n"
    """
    rows = list(rows)
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([defused(name) for name in columns])
    for row in rows:
        writer.writerow([defused(row.get(name, "")) for name in columns])
    return text.getvalue()


def rounded_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Returns a table with the columns of all rows; numbers have six figures, what is undefined is empty.

    >>> rounded_csv([{"structure": "tibia", "ml": 1 / 3, "ff": math.nan}])
    'structure,ml,ff\ntibia,0.333333,\n'
    """
    return csv_text([{name: _rounded(row[name]) for name in row} for row in rows], None if rows else ["structure"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def defused(value: Any) -> Any:
    """Returns a cell that no spreadsheet runs.

    >>> [defused(value) for value in ("@SUM(A1)", "-0.5", "- soleus", -3, None)]
    ["'@SUM(A1)", '-0.5', "'- soleus", -3, None]
    """
    if not isinstance(value, str) or not value.startswith(_DANGEROUS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
