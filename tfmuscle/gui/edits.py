"""Drawn labels that come back from the page.

They come as a NIfTI file of indices, with the table that the page had. They are taken when they lie on exactly the
scan's grid and the table is still that of the labels they correct; new structures may follow it. They are written
whole, with their names beside them, into the results; the labels that were corrected stay as they are.

Two pages may correct the same labels. A page says which version of the corrected file it knows; when there is another
one by now, its own goes beside that one under the next free name, and nothing is lost.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import write_json
from tfmuscle.gui.volumes import MAX_STRUCTURES, Scan, Volumes
from tfmuscle.gui.workspace import Workspace
from tfmuscle.io import case_id, read_label_image, write_volume
from tfmuscle.io.label_tables import plain_name
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Volume

MADE_BY = "tfmuscle gui"
FOLDER = "labels"
_OURS = re.compile(r"_(corrected|drawn)(-\d+)?$")
_NUMBER = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Edit:
    """What the page sends with drawn indices.

    Attributes:
        scan: what they were drawn on.
        labels: what they correct; None for new ones.
        names: of the structures, index 1 first.
        version: of the corrected file that the page knows; "" for none.
    """

    scan: Scan
    labels: Path | None
    names: tuple[str, ...]
    version: str = ""


@dataclass(frozen=True)
class Saved:
    """Where an edit went, its version, how many voxels changed, and whether it went beside another page's."""

    path: Path
    version: str
    changed: int
    is_beside: bool


def save_edit(drawn: Path, edit: Edit, workspace: Workspace, volumes: Volumes) -> Saved:
    """Checks drawn indices and writes them as ids.

    Args:
        drawn: NIfTI file of indices, as the page sent it.
        edit: what they mean.
        workspace: where results go.
        volumes: reads what is corrected.

    Raises:
        DataError: another grid, an index without a name, names that are no names, or labels that changed meanwhile.
    """
    indices, grid = read_label_image(drawn), volumes.grid(edit.scan)
    if not indices.geometry.same_grid(grid):
        shape, other = (" x ".join(map(str, one.shape)) for one in (indices.geometry, grid))
        raise DataError(f"drawn labels: {shape} voxels, not on the grid of {edit.scan.stem} ({other}); open it again")
    if (largest := int(indices.array.max())) > len(edit.names):
        raise DataError(f"drawn labels: index {largest}, but {len(edit.names)} structures are named; open it again")
    before, ids, label_map = _meaning(edit, volumes)
    array = np.array([0, *ids], np.min_scalar_type(max(ids, default=0)))[indices.array]
    made = Volume(array, grid, edit.scan.stem)
    changed = int((array != before).sum()) if before is not None else int((array != 0).sum())
    path, is_beside = _place(edit, workspace)
    about = {"of": None if edit.labels is None else edit.labels.name, "scan": edit.scan.stem}
    write_json(path.with_name(f"{case_id(path)}.json"), {"made_by": MADE_BY, "labels": label_map.to_dict()} | about)
    write_volume(path, made)
    return Saved(path, version_of(path), changed, is_beside)


def version_of(path: Path) -> str:
    """Returns what tells a file from an earlier one of its name; "" when there is none."""
    return f"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}" if path.exists() else ""


def _meaning(edit: Edit, volumes: Volumes) -> tuple[np.ndarray | None, list[int], LabelMap]:
    """Returns the ids before, the id of each index, and the names; new structures get the next free ids."""
    _check_names(edit.names)
    if edit.labels is None:
        ids = list(range(1, len(edit.names) + 1))
        return None, ids, LabelMap(dict(zip(ids, edit.names, strict=True)))
    seen = volumes.labels(edit.labels, edit.scan)
    known = [one.name for one in seen.structures]
    if list(edit.names[: len(known)]) != known:
        raise DataError(f"{edit.labels.name}: its structures changed since it was opened; open it again")
    ids = [one.id for one in seen.structures]
    ids += [max(ids, default=0) + number for number in range(1, len(edit.names) - len(known) + 1)]
    before = np.array([0, *ids])[seen.volume.array]
    names = {key: name for key, name in zip(ids, edit.names, strict=True) if key != seen.ignore}
    return before, ids, LabelMap(names, ignore=seen.ignore)


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MAX_STRUCTURES:
        raise DataError(f"{len(names)} structures; the page takes {MAX_STRUCTURES} at most")
    for name in names:
        if plain_name(name) != name and not name.isprintable():
            raise DataError(f"{name[:80]!r}: is no name of a structure; use letters, digits and underscores")
    if twice := sorted({name for name in names if names.count(name) > 1 or name == "background"}):
        raise DataError(f"{twice[0]!r}: names two structures, or background; give each a name of its own")


def _place(edit: Edit, workspace: Workspace) -> tuple[Path, bool]:
    """Returns the file to write, and whether it goes beside one that another page wrote."""
    stem = f"{edit.scan.stem}_drawn"
    if edit.labels is not None:
        stem = case_id(edit.labels)
        is_ours = edit.labels.parent == workspace.results / FOLDER and _OURS.search(stem)
        stem = stem if is_ours else f"{stem}_corrected"
    path = workspace.results / FOLDER / f"{stem}.nii.gz"
    if not path.exists() or (edit.version and version_of(path) == edit.version):
        return path, False
    return workspace.free(FOLDER, _NUMBER.sub("", stem), ".nii.gz"), True
