"""Whatever a lab calls its labels, as masks on a scan's grid, one structure at a time.

A *label source* is one file: a binary mask or another tool's label map (any image format), a surface (PLY, STL), a
DICOM SEG or an RTSTRUCT. `structures` says which it holds, `masks` yields them on the grid of the scan, so that
seventy structures of a whole limb never stand in memory together.

Names. A structure is *present* in a source when a voxel or a surface of it is there, and *considered* when its
program looked for it: a label map speaks for its whole table, so that an absent structure is really absent, while a
missing mask file says nothing.

A binary mask and a surface are called by their file (`femur_left.nii.gz`); a label map's numbers are named by a table
(`io/label_tables.py`): the one given, the one in the file's own header, or one beside it (`labels.nii.gz` and
`labels.json`). DICOM objects carry their names. Given a table, a name outside it is an error, not a new structure.

Grids. A mask on the scan's grid is taken as it is, whatever the order of its axes in the file. On another grid it is
placed by its world coordinates, nearest voxel, and the note says so; a mask that lies beside the scan is refused: it
is another scan's, or was exported without its place.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io import VOLUME_SUFFIXES, case_id, read_label_image, read_mesh
from tfmuscle.io.dicom_labels import label_object_kind, label_object_names, read_segmentation, read_structure_set
from tfmuscle.io.label_tables import names_of, plain_name
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import resample_labels
from tfmuscle.surfaces import check_surface, voxelise
from tfmuscle.volume import Geometry, Volume

MESH_SUFFIXES = (".ply", ".stl")
LOST_SHARE = 0.01
"""A structure may lose this share of its voxels beyond the scan before the note tells."""


def source_kind(path: str | Path) -> str | None:
    """Returns "surface", "segmentation", "structure set" or "image", or None for anything else.

    >>> source_kind("femur_left.ply"), source_kind("notes.docx")
    ('surface', None)
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(MESH_SUFFIXES):
        return "surface"
    if name.endswith(VOLUME_SUFFIXES):
        return "image"
    return label_object_kind(path) if path.is_file() else None


@dataclass(frozen=True)
class Structures:
    """Names of the structures that are present in a source, and of those its program looked for."""

    present: tuple[str, ...]
    considered: tuple[str, ...]


def structures(path: str | Path, *, table: LabelMap | None = None, prefix: str = "") -> Structures:
    """Returns the structures in a source.

    Args:
        path: the source.
        table: names of the numbers in label maps, and the only names allowed.
        prefix: start of file names that is not part of a structure's name, such as the subject's id.

    Raises:
        DataError: a damaged file, or numbers without names.
    """
    path = Path(path)
    kind = source_kind(path)
    if kind == "image":
        named, whole = _names_of_image(path, read_label_image(path).array, table, prefix)
        names, considered = list(named.values()), whole
    elif kind == "surface":
        names = considered = [_name_of_file(path, prefix)]
    elif kind is not None:
        names = considered = label_object_names(path)
    else:
        raise DataError(f"{path}: no labels tfmuscle knows; use an image, PLY, STL, DICOM SEG or RTSTRUCT")
    return Structures(tuple(_allowed(path, names, table)), tuple(considered))


def masks(
    path: str | Path,
    geometry: Geometry,
    *,
    table: LabelMap | None = None,
    space: str | None = None,
    prefix: str = "",
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yields (name, mask `(I, J, K)`, note) of every structure in a source, on the scan's grid; the note may be "".

    Args:
        path: the source.
        geometry: the scan's grid.
        table: as in `structures`.
        space: "ras" or "lps" for surfaces whose header does not say; None is RAS.
        prefix: as in `structures`.

    Raises:
        DataError: a damaged file, numbers without names, an open surface, or a structure outside the scan.
    """
    path = Path(path)
    kind = source_kind(path)
    if kind == "image":
        yield from _masks_of_image(path, geometry, table, prefix)
    elif kind == "surface":
        mesh = read_mesh(path, space=space)
        found = check_surface(mesh, geometry)
        if found.problems:
            raise DataError(f"{path}: {'; '.join(found.problems)}")
        name = _allowed(path, [_name_of_file(path, prefix)], table)[0]
        yield name, voxelise(mesh, geometry), "; ".join(found.remarks)
    elif kind in ("segmentation", "structure set"):
        read = read_segmentation if kind == "segmentation" else read_structure_set
        drawn, _ = read(path, reference=geometry)
        for name in _allowed(path, list(drawn), table):
            yield name, drawn[name], ""
    else:
        raise DataError(f"{path}: no labels tfmuscle knows; use an image, PLY, STL, DICOM SEG or RTSTRUCT")


def _masks_of_image(
    path: Path, geometry: Geometry, table: LabelMap | None, prefix: str
) -> Iterator[tuple[str, np.ndarray, str]]:
    labels = read_label_image(path)
    names, _ = _names_of_image(path, labels.array, table, prefix)
    placed, note = _placed(labels, geometry)
    lost = _shares_outside(labels, geometry) if note else {}
    for key, name in names.items():
        mask = placed.array == key
        told = note
        if lost.get(key, 0) > LOST_SHARE:
            told += f", {lost[key]:.0%} of it lies outside the scan"
        yield _allowed(path, [name], table)[0], mask, told


def _shares_outside(labels: Volume, geometry: Geometry) -> dict[int, float]:
    """Returns number -> share of its voxels whose centres lie outside the scan's voxels."""
    to_scan = np.linalg.inv(geometry.affine) @ labels.geometry.affine
    inside: Counter[int] = Counter()
    everywhere: Counter[int] = Counter()
    for plane, slab in enumerate(labels.array):
        where = np.argwhere(slab)
        at = where @ to_scan[:3, 1:3].T + (to_scan[:3, 0] * plane + to_scan[:3, 3])
        there = ((at >= -0.5) & (at <= np.array(geometry.shape) - 0.5)).all(axis=1)
        values = slab[tuple(where.T)]
        for counter, chosen in ((everywhere, values), (inside, values[there])):
            keys, counts = np.unique(chosen, return_counts=True)
            counter.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    return {key: 1 - inside[key] / count for key, count in everywhere.items()}


def _placed(labels: Volume, geometry: Geometry) -> tuple[Volume, str]:
    """Returns the labels on the scan's grid, and a note when voxels had to be looked up."""
    if labels.geometry.same_grid(geometry):
        return labels, ""
    turned = labels.reoriented(geometry.orientation)
    if turned.geometry.same_grid(geometry):
        return Volume(turned.array, geometry, labels.source), ""
    placed = resample_labels(labels, geometry)
    if labels.array.any() and not placed.array.any():
        raise DataError(
            f"{labels.source}: lies beside the scan, no labelled voxel falls into it; is it another scan's, or was it"
            " exported without its place in the patient?"
        )
    return placed, "on another grid than the scan, placed by its coordinates (nearest voxel)"


def _names_of_image(
    path: Path, array: np.ndarray, table: LabelMap | None, prefix: str
) -> tuple[dict[int, str], list[str]]:
    """Returns number -> name of the structures present, and the names its program looked for."""
    present = [int(key) for key in np.unique(np.concatenate([np.unique(slab) for slab in array])) if key]
    own = _name_of_file(path, prefix)
    found = table or names_of(path)
    if len(present) <= 1 and (found is None or (table is not None and own in table.names.values())):
        return dict.fromkeys(present, own), [own]
    if found is None:
        raise DataError(f"{path}: {len(present)} labels without names; give a table of them with --labels")
    if found.ignore is not None:
        found = LabelMap(dict(found.names) | {found.ignore: "ignore"})
    if missing := [key for key in present if key not in found.names]:
        raise DataError(f"{path}: the labels {missing[:8]} have no name in the table; add them")
    return {key: found.names[key] for key in present}, list(found.structures)


def _name_of_file(path: Path, prefix: str) -> str:
    """Returns the structure a file is named after, without the subject's id before it."""
    stem = case_id(path) if source_kind(path) == "image" else path.stem
    start = plain_name(prefix) if prefix else ""
    name = plain_name(stem)
    return name.removeprefix(start).lstrip("_") or name if start else name


def _allowed(path: Path, names: list[str], table: LabelMap | None) -> list[str]:
    for name in names:
        if table is not None and name not in table.names.values() and name != "ignore":
            known = ", ".join(list(table.structures)[:6])
            raise DataError(f"{path}: the structure {name!r} is not in the table ({known} ...); rename it or add it")
    return names
