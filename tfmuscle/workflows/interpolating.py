"""A label image of a few drawn slices becomes one of all slices between them, without a network: `interpolate`.

The result is there to be corrected. The JSON beside it knows its SHA-256, so that a second call replaces what is as it
was written, and never corrections.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import check_outputs, check_owner, read_json, sha256, write_json
from tfmuscle.interpolation import interpolate_slices
from tfmuscle.io import case_id, check_suffix, write_volume
from tfmuscle.labelled_slices import LabelledSlices, find_slices
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.slice_labels import read_slice_labels

_MADE_BY = "tfmuscle interpolate"


@dataclasses.dataclass(frozen=True)
class InterpolateResult:
    """The labelled slices of an interpolation, and volumes in ml by structure."""

    slices: LabelledSlices
    volumes_ml: dict[str, float]


def interpolate(
    path: str | Path,
    out: str | Path,
    *,
    names: str | Path | None = None,
    axis: int | None = None,
    listed: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> InterpolateResult:
    """Fills the slices between the drawn ones by shape interpolation.

    Args:
        path: label image of a few slices.
        out: label image to write; `<name>.json` beside it holds names and ids.
        names: table of names; the one beside the labels by default.
        axis: of the label array, along which slices follow each other; found by default.
        listed: labelled slices, where structures are absent from some of them.
        progress: called with (slices done, slices in all, note).

    Raises:
        ValueError: `out` has another ending.
        DataError: files that cannot be used, fewer than two labelled slices, or an output that is there already and
            is not as this command wrote it.
    """
    path, out = Path(path), Path(out)
    check_suffix(out)
    beside = out.with_name(f"{case_id(out)}.json")
    check_outputs([out], [path])
    check_owner(beside, _MADE_BY)
    _check_unedited(out, beside)
    labels, label_map = read_slice_labels(path, None if names is None else Path(names))
    try:
        slices = find_slices(labels, label_map, axis=axis, listed=listed)
        filled = interpolate_slices(labels, label_map, slices, progress=progress)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    write_volume(out, filled)
    about = {"made_by": _MADE_BY, "labels": dataclasses.replace(label_map, ignore=None).to_dict()}
    write_json(beside, about | {"files": {out.name: sha256(out)}})
    size = filled.geometry.voxel_volume_ml
    volumes = {
        key: float(np.count_nonzero(filled.array == label_map.id_of(key))) * size for key in label_map.structures
    }
    return InterpolateResult(slices, volumes)


def _check_unedited(out: Path, beside: Path) -> None:
    """Refuses to replace labels that are not as they were written."""
    if not out.exists():
        return
    files = read_json(beside).get("files") if beside.exists() else None
    if out.is_dir() or not isinstance(files, dict) or files.get(out.name) != sha256(out):
        raise DataError(f"{out}: is there already, perhaps with corrections; name another output or remove it")
