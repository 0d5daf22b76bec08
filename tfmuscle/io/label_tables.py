"""Names of the numbers in a label image, as other programs write them.

What is read: nnU-Net's and the Decathlon's `dataset.json`, a JSON object of names or ids, ITK-SNAP's label description
(`.label`, `.txt`), 3D Slicer's colour table (`.ctbl`, `.txt`), a CSV with the columns `id` and `name`, and the table
that TotalSegmentator puts into the header of its NIfTI files. Names become plain words joined by underscores, so that
they can be file names and JSON keys anywhere; sides in them stay as they are (`labels.py` finds them). The name
`ignore` is no structure: its id marks voxels that nobody labelled.
"""

import contextlib
import csv
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib

from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap, find_side

_LARGEST_TABLE = 4 << 20
"""Bytes; a label table is a few kilobytes, so that anything longer is something else."""
TABLE_SUFFIXES = (".json", ".label", ".ctbl", ".csv", ".txt")
_DATASET_TABLES = ("predictions.json", "dataset.json")
BACKGROUND_NAMES = ("clear_label", "background", "unlabelled", "unlabeled")
"""Plain names of what is no structure."""
_IGNORE_NAME = "ignore"
_EXTENSION_LABEL = re.compile(r'<Label\s[^>]*?Key="(\d+)"[^>]*>\s*(?:<!\[CDATA\[(.*?)\]\]>|([^<]*))\s*</Label>', re.S)


def plain_name(text: str) -> str:
    """Returns a structure's name as words joined by underscores, small letters; "structure" when nothing is left.

    >>> plain_name("Vastus lateralis (left)"), plain_name("../Femur-L"), plain_name("Ä?")
    ('vastus_lateralis_left', 'femur_l', 'ä')
    >>> plain_name("SoleusLeft"), plain_name("VastusLateralis")
    ('soleus_left', 'vastuslateralis')
    """
    return "_".join(re.findall(r"\w+", _side_apart(text).replace("_", " ").lower()))[:80] or "structure"


def _side_apart(text: str) -> str:
    """Puts a space before and after the side of a CamelCase name, which small letters would hide."""
    found = find_side(text)
    for place in () if found is None else (found[2], found[1]):
        if text[place - 1 : place].islower() and text[place : place + 1].isupper():
            text = f"{text[:place]} {text[place:]}"
    return text


def read_label_table(path: str | Path) -> LabelMap:
    """Reads names and ids of structures from any of the table formats above.

    Raises:
        DataError: the file is missing, is no label table, lacks a name, or gives one id or one name twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise ValueError("far too long for a label table")
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else None
        if content is not None:
            return _from_json(content)
        return _label_map(_csv_rows(text) if path.suffix.lower() == ".csv" else _text_rows(text))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{path}: no usable label table ({error}); give a dataset.json, an ITK-SNAP or Slicer table, or a CSV with"
            " the columns id and name"
        ) from error


def embedded_label_map(path: str | Path) -> LabelMap | None:
    """Returns the names that a NIfTI file carries in its header (TotalSegmentator does), or None."""
    try:
        image = nib.load(path)
        extensions = getattr(image.header, "extensions", [])
        for extension in extensions:
            content = extension.get_content()
            text = content.decode("utf-8", errors="replace") if isinstance(content, bytes) else str(content)
            found = [(int(key), one or other) for key, one, other in _EXTENSION_LABEL.findall(text[:_LARGEST_TABLE])]
            if found:
                return _label_map(iter(found))
    except Exception:  # a damaged header or table: the image reader names what is wrong with the file
        return None
    return None


def names_of(path: str | Path) -> LabelMap | None:
    """Returns the names that a label image carries, or that stand beside it or in its dataset; None without any.

    Looked for, in this order: the image's own header, a table of the same name (`leg.nii.gz` and `leg.json`), and
    `predictions.json` or `dataset.json` in its folder or the one above. A JSON of something else is passed over.
    """
    path = Path(path)
    stem = path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
    tables = [path.with_name(stem + suffix) for suffix in TABLE_SUFFIXES]
    tables += [folder / name for folder in (path.parent, path.parent.parent) for name in _DATASET_TABLES]
    if (found := embedded_label_map(path)) is not None:
        return found
    for table in tables:
        with contextlib.suppress(DataError):
            if table.is_file() and table != path:
                return read_label_table(table)
    return None


def _from_json(content: Any) -> LabelMap:
    """Takes `labels` or `label_map` of a dataset.json, or the object itself."""
    for key in ("label_map", "labels"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError("no object of names and ids")
    plain = LabelMap.from_dict(content)
    return _label_map(iter(plain.names.items()), ignore=plain.ignore)


def _csv_rows(text: str) -> Iterator[tuple[int, str]]:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    if not {"id", "name"} <= {str(field).strip().lower() for field in rows.fieldnames or ()}:
        raise ValueError("the columns id and name are needed")
    for row in rows:
        lowered = {str(key).strip().lower(): value for key, value in row.items()}
        key, name = str(lowered["id"] or "").strip(), str(lowered["name"] or "")
        if not key.isdecimal():
            raise ValueError(f"line {rows.line_num} has the id {key[:60]!r}; a whole number is needed")
        yield int(key), _named(int(key), name, rows.line_num)


def _text_rows(text: str) -> Iterator[tuple[int, str]]:
    """Yields the rows of an ITK-SNAP table (eight columns, name last) or a Slicer table (name second)."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = shlex.split(line)
        if len(words) < 2 or not words[0].isdigit():
            raise ValueError(f"line {number}, {line[:60]!r}, has no id and name")
        is_snap = len(words) >= 7 and all(re.fullmatch(r"[\d.]+", word) for word in words[:7])
        yield int(words[0]), _named(int(words[0]), " ".join(words[7:]) if is_snap else words[1], number)


def _named(key: int, name: str, line: int) -> str:
    if key and not re.search(r"\w", name):
        raise ValueError(f"line {line} gives the id {key} no name")
    return name


def _label_map(rows: Iterator[tuple[int, str]], *, ignore: int | None = None) -> LabelMap:
    names: dict[int, str] = {}
    for key, text in rows:
        name = plain_name(text)
        if key == 0 or name in BACKGROUND_NAMES:
            continue
        if not re.search(r"\w", text):
            raise ValueError(f"the id {key} has no name")
        is_unknown = name == _IGNORE_NAME
        if key in names or key == ignore or name in names.values() or (is_unknown and ignore is not None):
            raise ValueError(f"id {key} or name {name!r} is there twice")
        if is_unknown:
            ignore = key
        else:
            names[key] = name
    if not names:
        raise ValueError("no structure in it")
    return LabelMap(names, ignore=ignore)
