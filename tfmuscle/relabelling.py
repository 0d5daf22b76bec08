"""Another tool's structures under other names and numbers: renamed, merged, dropped.

The user has label files of TotalSegmentator, MuscleMap or a network and wants them to be a start for correcting: under
the project's names, four heads as one muscle, without the organs. A small table says how: `from,to`, one row a
structure. `from` is the name as the tool writes it, or its number; rows with the same `to` are merged; an empty `to`
makes background of the structure; the word `ignore` makes it unknown.

Unknown is not background. A structure that no row names is an error, unless others are kept; nothing vanishes because a
table forgot it. Voxels that the file calls unknown stay unknown.

A row may name what a file has not, for TotalSegmentator's files list only what was asked for: such rows are told. A row
that names nothing the tool knows is a slip of the pen: an error with the nearest name. What the tool knows is the
file's own table, every list of `label_lists.py` that this table is a part of, and the numbers that are in the files.

Standard names are those of `labels.py`: 35 muscles and five bones with a side. A name that differs from one of them in
spelling alone (capitals, the place of the side, "fascia" for "fasciae") becomes it. Every other name stays: whether
MuscleMap's `pelvic_girdle` is our `hip` is anatomy, which the user knows and this module does not guess.
"""

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io.label_tables import BACKGROUND_NAMES, plain_name, read_label_table
from tfmuscle.label_lists import LISTS
from tfmuscle.labels import LOWER_LIMB_BONES, LOWER_LIMB_MUSCLES, LabelMap, without_side

DROPPED = ""
"""New name of a structure that becomes background."""
IGNORE = "ignore"
"""New name of a structure that becomes unknown."""
_LARGEST_TABLE = 4 << 20
_STANDARD = {name.replace("_", ""): name for name in (*LOWER_LIMB_MUSCLES, *LOWER_LIMB_BONES)} | {
    "tensorfascialatae": "tensor_fasciae_latae"
}

Renaming = Mapping[int | str, str]
"""Name or number in the file -> new name."""


def read_renaming(path: str | Path) -> dict[int | str, str]:
    """Reads a CSV with the columns `from` and `to`.

    Raises:
        DataError: the file is missing, is no such table, or names one structure twice.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise ValueError("far too long for a table of names")
        return _renaming(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: no usable table of names ({error}); give a CSV with the columns from,to") from error


def _renaming(text: str) -> dict[int | str, str]:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = [str(field).strip().lower() for field in rows.fieldnames or ()]
    if not {"from", "to"} <= set(columns):
        raise ValueError("the columns from and to, separated by a comma, are needed")
    renaming: dict[int | str, str] = {}
    for row in rows:
        cells = dict(zip(columns, row.values(), strict=False))
        if None in row or None in row.values():
            raise ValueError(f"line {rows.line_num} has not {len(columns)} cells")
        key, name = _key(str(cells["from"]).strip()), str(cells["to"]).strip()
        if key in renaming:
            raise ValueError(f"{cells['from'].strip()!r} is there twice")
        if name and not re.search(r"\w", name):
            raise ValueError(f"{name!r} is no name")
        renaming[key] = plain_name(name) if name else DROPPED
        if renaming[key] in BACKGROUND_NAMES:
            raise ValueError(
                f"line {rows.line_num} calls a structure {name!r}; leave its 'to' empty to make it background, or write"
                " ignore to make it unknown"
            )
    if not renaming:
        raise ValueError("no row in it")
    return renaming


def _key(text: str) -> int | str:
    if text.isascii() and text.isdecimal():
        if int(text) == 0:
            raise ValueError("0 is background, which stays as it is")
        return int(text)
    if not re.search(r"\w", text):
        raise ValueError(f"{text!r} in the column from is no name")
    return plain_name(text)


def standard_name(name: str) -> str:
    """Returns what this project calls a structure, if the name differs in spelling alone; else the plain name.

    >>> standard_name("Left Tensor Fascia Latae"), standard_name("SoleusL"), standard_name("quadriceps_femoris_left")
    ('tensor_fasciae_latae_left', 'soleus_left', 'quadriceps_femoris_left')
    """
    known = _STANDARD.get(plain_name(without_side(name)).replace("_", ""))
    side = LabelMap.side(name)
    if known is None:
        return plain_name(name)
    return known if side is None else f"{known}_{side}"


def list_map(name: str) -> LabelMap:
    """Returns a list of `label_lists.py` with plain names.

    >>> list_map("musclemap_thigh").names[1]
    'vastus_lateralis_left'
    """
    return LabelMap({key: plain_name(called) for key, called in LISTS[name].names.items()})


def tool_names(names: str | Path) -> tuple[LabelMap, bool]:
    """Reads the names that a user gives: a label table, or a list of `label_lists.py`; and whether it was a list.

    Raises:
        DataError: neither.
    """
    if str(names) in LISTS and not Path(names).exists():
        return list_map(str(names)), True
    if not Path(names).exists():
        near = difflib.get_close_matches(str(names), LISTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "the lists are " + ", ".join(LISTS)
        raise DataError(f"{names}: neither a file nor a known list of names; {hint}")
    return read_label_table(names), False


def check_renaming(renaming: Renaming, tables: Iterable[LabelMap], present: Iterable[int] = ()) -> None:
    """Checks that every row names something that the tool knows.

    Args:
        renaming: from `read_renaming`.
        tables: names of the files; none if their ids have no names.
        present: ids in the files.

    Raises:
        ValueError: a row names nothing, with the nearest name, or a structure is named twice, by name and by number.
    """
    tables = list(tables)
    named = [key for key in renaming if isinstance(key, str)]
    if not tables:
        if named:
            raise ValueError(f"names {named[0]!r}, but the labels carry no names; say which they are with --names")
        return
    known = [*tables, *(one for one in map(list_map, LISTS) if any(_is_part(table, one) for table in tables))]
    ids = {*present, *(key for table in known for key in table.ids)}
    names = [name for table in known for name in table.structures]
    for key in renaming:
        if key not in ids and key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:8])} ..."
            raise ValueError(f"names {key!r}, which is no structure of these labels; {hint}")
        for table in tables:
            if isinstance(key, int) and table.names.get(key) in renaming:
                raise ValueError(f"names {table.names[key]!r} twice, also as {key}; keep one of the rows")


def _is_part(table: LabelMap, whole: LabelMap) -> bool:
    return all(whole.names.get(key) == name for key, name in table.names.items() if key)


def new_names(
    present: Iterable[int], names: LabelMap | None, renaming: Renaming, *, keep: Callable[[str], str] | None = None
) -> dict[int, str]:
    """Returns id -> new name of the structures in a file; `DROPPED` and `IGNORE` are such names.

    Args:
        present: ids in the file, with or without 0.
        names: what they mean, if that is known.
        renaming: from `read_renaming`.
        keep: new name of a structure that no row names; without it that is an error.

    Raises:
        ValueError: structures that no row names, or ids without a name.
    """
    found: dict[int, str] = {}
    others: list[str] = []
    nameless: list[int] = []
    for key in (int(one) for one in present if one != 0):
        name = None if names is None else IGNORE if key == names.ignore else names.names.get(key)
        if key in renaming or name in renaming:
            found[key] = renaming[key] if key in renaming else renaming[str(name)]
        elif name == IGNORE:
            found[key] = IGNORE
        elif name is None:
            nameless.append(key)
        elif keep is None:
            others.append(name)
        else:
            found[key] = keep(name)
    if nameless:
        raise ValueError(f"the ids {nameless[:12]} have no name; give the right table or list with --names")
    if others:
        raise ValueError(
            f"no row names {', '.join(others)}; add them (an empty 'to' drops one), or keep them with --keep-others"
        )
    return found


def new_map(wanted: Iterable[str], *, like: LabelMap | None = None) -> LabelMap:
    """Numbers new names: as in `like`, else 1, 2, ... in their order, `ignore` last.

    Raises:
        ValueError: `like` has no such name, or nothing is left to number.
    """
    names = [name for name in dict.fromkeys(wanted) if name != DROPPED]
    structures = [name for name in names if name != IGNORE]
    if not structures:
        raise ValueError("no structure is left; give one a name")
    if like is None:
        ignore = len(structures) + 1 if IGNORE in names else None
        return LabelMap(dict(enumerate(structures, start=1)), ignore=ignore)
    missing = [name for name in structures if name not in like.structures]
    missing += [IGNORE] if IGNORE in names and like.ignore is None else []
    if missing:
        near = difflib.get_close_matches(missing[0], like.structures, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(like.structures[:8])} ..."
        raise ValueError(f"no id for {', '.join(missing)}; {hint}")
    return like


def renumbered(labels: np.ndarray, names: Mapping[int, str], label_map: LabelMap) -> np.ndarray:
    """Returns labels `(I, J, K)` under the ids of `label_map`, in the smallest unsigned type that holds all of them.

    Args:
        labels: ids; each but 0 is in `names`.
        names: id -> new name, see `new_names`.
        label_map: from `new_map`.

    >>> renumbered(np.array([[[0, 7, 9]]]), {7: "femur", 9: ""}, LabelMap({1: "femur"}))
    array([[[0, 1, 0]]], dtype=uint8)
    """
    new_ids = {name: key for key, name in label_map.names.items()} | {DROPPED: 0}
    if label_map.ignore is not None:
        new_ids[IGNORE] = label_map.ignore
    old = np.array(sorted({0, *names}))
    new = np.array([new_ids[names[key]] if key else 0 for key in old.tolist()])
    new = new.astype(np.min_scalar_type(max(*label_map.ids, label_map.ignore or 0)))
    out = np.empty(labels.shape, new.dtype)
    for slab, before in zip(out, labels, strict=True):  # slab by slab: places of a whole limb take gigabytes
        slab[...] = new[np.searchsorted(old, before)]
    return out
