"""Names of the files in a records folder, and the version of their layout."""

from collections.abc import Mapping
from typing import Any

FORMAT = "tfmuscle-records"
VERSION = 1
"""Version of the layout described in the package's docstring; a reader refuses any other."""
INDEX_FILE = "index.json"
SPEC_FILE = "spec.json"
DATASET_INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
REBUILD = "run build-records again"
"""What to do about damage, at the end of most messages."""


def records_in(entry: Mapping[str, Any]) -> int:
    """Returns the examples in a shard, by its entry in the index: one a sample, or one for a whole scan.

    >>> records_in({"samples": 12}), records_in({"samples": 12, "records": 1})
    (12, 1)
    """
    return int(entry.get("records", entry["samples"]))
