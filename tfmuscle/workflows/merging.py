"""A folder of binary masks, one a structure, becomes one label image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import check_owner, write_json
from tfmuscle.io import case_files, case_id, check_suffix, read_volume, write_volume
from tfmuscle.io.label_tables import plain_name, read_label_table
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import merge_masks as merged_masks
from tfmuscle.volume import Geometry, Volume

_MADE_BY = "tfmuscle merge-masks"


class _MaskFiles(Mapping[str, np.ndarray]):
    """Masks read from their files on access, so that one is in memory at a time."""

    def __init__(self, files: Mapping[str, Path], geometry: Geometry) -> None:
        self.files, self.geometry = files, geometry

    def __getitem__(self, name: str) -> np.ndarray:
        volume = read_volume(self.files[name])
        if not volume.geometry.same_grid(self.geometry):
            raise DataError(f"{self.files[name]}: on another grid than the first mask; resample it by nearest")
        if not set(np.unique(volume.array).tolist()) <= {0, 1, 255}:
            raise DataError(f"{self.files[name]}: is no binary mask; values 0 and 1 (or 255) are needed")
        return volume.array != 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class MergeResult:
    """Ids by name, volumes in ml by name, and shared voxels by pair, of merged masks."""

    label_map: LabelMap
    volumes_ml: dict[str, float]
    overlaps: dict[tuple[str, str], int]


def merge_masks(folder: str | Path, out: str | Path, *, names: str | Path | None = None) -> MergeResult:
    """Merges a folder of binary masks, named like their structures, into one label image.

    Args:
        folder: one mask a file.
        out: label image to write, in another folder; `<name>.json` beside it holds names and ids.
        names: table of names and ids; without it ids are 1, 2, ... in the order of the names.

    Raises:
        ValueError: `out` has another ending.
        DataError: no masks, two of one name, a mask without an id, masks on different grids, or one that is not binary.
    """
    folder, out = Path(folder), Path(out)
    check_suffix(out)
    beside = out.with_name(f"{case_id(out)}.json")
    check_owner(beside, _MADE_BY)
    files = _mask_files(folder)
    if out.resolve().parent == folder.resolve():
        raise DataError(f"{out}: lies among the masks and would be taken for one; choose another folder")
    geometry = read_volume(next(iter(files.values()))).geometry
    try:
        label_map = read_label_table(names) if names else LabelMap(dict(enumerate(files, start=1)))
        merged, overlaps = merged_masks(_MaskFiles(files, geometry), label_map)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{folder}: {error}") from error
    volume = Volume(merged, geometry, str(folder))
    write_volume(out, volume)
    write_json(beside, {"made_by": _MADE_BY, "labels": label_map.to_dict()})
    counts = np.bincount(merged.reshape(-1), minlength=max(label_map.ids) + 1)
    size = volume.geometry.voxel_volume_ml
    return MergeResult(label_map, {name: float(counts[label_map.id_of(name)]) * size for name in files}, overlaps)


def _mask_files(folder: Path) -> dict[str, Path]:
    """Returns structure -> mask file, sorted by name; names are compared as words, as label tables are."""
    files: dict[str, Path] = {}
    for key, path in case_files(folder).items():
        if (name := plain_name(key)) in files:
            raise DataError(f"{path}: {files[name].name} is {name!r} too; keep one of them")
        files[name] = path
    if not files:
        raise DataError(f"{folder}: holds no mask; one NIfTI, NRRD or MHA file per structure is needed")
    return dict(sorted(files.items()))
