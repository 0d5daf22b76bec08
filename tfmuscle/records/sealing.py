"""JSON files that carry the checksum of their own text.

A shard's checksum stands in its note and in the index; the *seal* is what protects these two. It is the SHA-256 of the
text as it was without the seal. Reading demands that the text is the very one that would be written again, so that
even a change that JSON does not see (white space, the case of an escape) is found.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.files import json_text, read_json, write_text
from tfmuscle.records.layout import REBUILD

SEAL = "sha256_of_the_rest"


def write_sealed(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as JSON with its checksum, whole or not at all."""
    write_text(path, json_text(dict(content) | {SEAL: _seal(content)}))


def read_sealed(path: str | Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote.

    Raises:
        DataError: the file is missing, no JSON, or any bit of it has changed.
    """
    content = read_json(path)
    if not is_sealed(path, content):
        raise DataError(f"{path}: has changed since it was written; {REBUILD}")
    content.pop(SEAL)
    return content


def is_sealed(path: str | Path, content: Mapping[str, Any]) -> bool:
    """Tells whether the file at `path`, read as `content`, is the one that was written."""
    body = {key: value for key, value in content.items() if key != SEAL}
    try:
        same_text = Path(path).read_text(encoding="utf-8") == json_text(body | {SEAL: content.get(SEAL)})
    except (OSError, ValueError):
        return False
    return same_text and content.get(SEAL) == _seal(body)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_text(dict(content)).encode()).hexdigest()
