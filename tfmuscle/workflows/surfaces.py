"""Surfaces to labels on a scan's grid, and labels to surfaces: `voxelise`, `surfaces`.

A bone drawn elsewhere comes as one PLY or STL file a structure; the file's name is the structure's name. A label file
with one structure silently missing would teach a network that the bone is background, so that one unusable surface
stops the job: all of them are checked first, all complaints are told at once, and nothing is written. A voxel inside
two surfaces is background, because nobody can say whose it is; such voxels are counted.

Scanner coordinates are RAS or LPS; 3D Slicer says which in the header, most programs do not, and RAS is taken then. A
surface that lies outside the scan but would lie inside in the other space is told so; it is never turned silently.

Surfaces made from labels are read back, voxelised on the labels' grid and compared (Dice, volume): the table is a
measurement of the files that were written. What is finished is kept: a subject whose labels and settings have not
changed is not made again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import check_owner, provenance, read_json, sha256, write_json, write_text
from tfmuscle.io import (
    WRITTEN_SUFFIXES,
    case_files,
    case_id,
    read_label_image,
    read_mesh,
    read_volume,
    write_mesh,
    write_volume,
)
from tfmuscle.io.label_tables import names_of, plain_name, read_label_table
from tfmuscle.labels import LabelMap
from tfmuscle.surfaces import SMOOTHING, SurfaceCheck, check_surface, surface
from tfmuscle.surfaces import voxelise as voxelise_mesh
from tfmuscle.tables import csv_text
from tfmuscle.volume import Geometry, Mesh, Volume

Progress = Callable[[int, int, str], None]
MESH_SUFFIXES = (".ply", ".stl")
SPACES = ("ras", "lps")
_MADE_BY = "tfmuscle voxelise"
_RESERVED = ("background", "ignore")
_MARGIN = 2
_ROW = (
    *("subject", "structure", "id", "file", "faces", "voxels", "labels_ml", "surface_ml"),
    *("volume_error_percent", "dice"),
)


@dataclass(frozen=True)
class Voxelised:
    """What `voxelise` made.

    Attributes:
        labels: the ids on the scan's grid.
        label_map: ids and names.
        rows: per structure its id, volumes and remarks.
        overlap_voxels: voxels inside two or more surfaces, left as background.
        missing: structures of the given label map without a surface.
    """

    labels: Volume
    label_map: LabelMap
    rows: tuple[dict[str, Any], ...]
    overlap_voxels: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class SurfaceResult:
    """What `surfaces` made: one row a structure, and subject -> why it failed."""

    rows: tuple[dict[str, Any], ...]
    failures: dict[str, str]


def voxelise(
    sources: str | Path | Sequence[str | Path],
    reference: str | Path | tuple[str | Path, str],
    out: str | Path,
    *,
    names: str | Path | None = None,
    space: str | None = None,
    allow_open: bool = False,
    progress: Progress | None = None,
) -> Voxelised:
    """Turns surfaces into labels on a scan's grid, and writes a JSON with names and volumes beside them.

    Args:
        sources: PLY or STL files, or folders of them; a file's name is its structure's name.
        reference: the scan, any image or a DICOM folder; with the name of a series where a folder holds several.
        out: the label file to write.
        names: a `dataset.json` or another label table with the ids; without it they are 1, 2, ... in order of names.
        space: "ras" or "lps" when the headers are silent or wrong.
        allow_open: fill open surfaces too, see `tfmuscle.surfaces.voxelise`.
        progress: called with (surfaces done, surfaces in all, structure).

    Raises:
        ValueError: `out` is no label file, or `space` is unknown.
        DataError: a surface cannot be used; every one of them is named and nothing is written.
    """
    out = Path(out)
    scan, series = reference if isinstance(reference, tuple) else (reference, None)
    beside = _claimed(out, scan)
    files = _structure_files([sources] if isinstance(sources, str | Path) else sources)
    label_map = _label_map(files, names)
    grid = read_volume(scan, channel=0, series=series).geometry
    labels = np.zeros(grid.shape, dtype=np.min_scalar_type(max(label_map.ids)))
    taken, twice = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=bool)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, (name, path) in enumerate(files.items()):
        if progress is not None:
            progress(number, len(files), name)
        try:
            mask, row = _voxelised(path, grid, space, allow_open)
        except DataError as error:
            problems.append(str(error))
            continue
        labels[mask] = label_map.id_of(name)
        twice |= taken & mask
        taken |= mask
        rows.append({"structure": name, "id": label_map.id_of(name)} | row)
    if problems:
        raise DataError(
            f"{len(problems)} of {len(files)} surfaces cannot be used, nothing written: " + " | ".join(problems)
        )
    labels[twice] = 0
    rows = [row | {"overlap_voxels": row["voxels"] - int((labels == row["id"]).sum())} for row in rows]
    missing = tuple(name for name in label_map.structures if name not in files)
    made = Voxelised(Volume(labels, grid, str(out)), label_map, tuple(rows), int(twice.sum()), missing)
    write_volume(out, made.labels)
    write_json(beside, _description(made))
    if progress is not None:
        progress(len(files), len(files), "")
    return made


def _description(made: Voxelised) -> dict[str, Any]:
    about = {"labels": made.label_map.to_dict(), "structures": list(made.rows), "missing": list(made.missing)}
    return {"made_by": _MADE_BY, **about, "overlap_voxels": made.overlap_voxels, **provenance()}


def _claimed(out: Path, reference: str | Path) -> Path:
    """Returns the JSON beside the labels, after checking that neither file replaces something else."""
    if not out.name.lower().endswith(WRITTEN_SUFFIXES):
        raise ValueError(f"{out}: labels are written as {', '.join(WRITTEN_SUFFIXES)}; choose one of these endings")
    beside = out.with_name(case_id(out) + ".json")
    if out.exists() and out.resolve() == Path(reference).resolve():
        raise DataError(f"{out}: is the scan itself; choose another output")
    check_owner(beside, _MADE_BY)
    return beside


def _structure_files(sources: Iterable[str | Path]) -> dict[str, Path]:
    """Returns structure -> file, sorted by name."""
    files: dict[str, Path] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"{source}: there is no such file or folder; check the path")
        found = sorted(source.iterdir()) if source.is_dir() else [source]
        wanted = [path for path in found if path.suffix.lower() in MESH_SUFFIXES and not path.name.startswith(".")]
        if not wanted:
            raise DataError(f"{source}: no surface; use {' or '.join(MESH_SUFFIXES)} files or a folder of them")
        for path in wanted:
            name = plain_name(path.stem)
            if name in _RESERVED:
                raise DataError(f"{path}: {name!r} is no structure; rename the file")
            if name in files and files[name].resolve() != path.resolve():
                raise DataError(f"{path}: {files[name].name} is {name!r} too; give every structure one file")
            files[name] = path
    return dict(sorted(files.items()))


def _label_map(files: dict[str, Path], names: str | Path | None) -> LabelMap:
    if names is None:
        return LabelMap(dict(enumerate(files, start=1)))
    label_map = read_label_table(names)
    unknown = [name for name in files if name not in label_map.structures]
    if unknown:
        known = ", ".join(label_map.structures)
        raise DataError(
            f"{files[unknown[0]]}: {names} names no {unknown[0]!r}{_others(unknown)}; rename the file to one of {known}"
        )
    return label_map


def _others(names: Sequence[str]) -> str:
    return f" (nor {', '.join(names[1:6])}{' ...' * (len(names) > 6)})" if len(names) > 1 else ""


def _voxelised(path: Path, grid: Geometry, space: str | None, allow_open: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns one structure's mask and its row of the table."""
    mesh = read_mesh(path, space=space)
    check = check_surface(mesh, grid)
    if check.outside >= 1:
        raise DataError(f"{path}: outside the scan{_other_space(path, mesh, check, grid)}; check scan and coordinates")
    mask = voxelise_mesh(mesh, grid, allow_open=allow_open)
    voxels = int(mask.sum())
    if not voxels:
        raise DataError(f"{path}: encloses no voxel centre; it is thinner than the grid or has no inside")
    remarks = check.remarks
    if check.outside > 0:
        remarks[0] += _other_space(path, mesh, check, grid)
    if check.boundary_edges:
        remarks.insert(0, f"open ({check.boundary_edges:,} boundary edges), filled by vote")
    row: dict[str, Any] = {
        "file": path.name,
        "faces": len(mesh.faces),
        "voxels": voxels,
        "labels_ml": voxels * grid.voxel_volume_ml,
    }
    trusted = not (check.boundary_edges or check.flipped_faces or check.crossing_voxels)
    volume = abs(check.volume_ml)
    row |= {"surface_ml": volume if trusted else None}
    row |= {"volume_error_percent": 100 * (row["labels_ml"] / volume - 1) if trusted and volume > 0 else None}
    return mask, row | {"remarks": remarks}


def _other_space(path: Path, mesh: Mesh, check: SurfaceCheck, grid: Geometry) -> str:
    """Returns a hint when the surface would lie inside the scan in the other space, else nothing."""
    for other in SPACES:
        turned = read_mesh(path, space=other)
        if not np.array_equal(turned.vertices, mesh.vertices):
            outside = check_surface(turned, grid).outside
            if outside < 0.5 * check.outside:
                where = "inside" if outside == 0 else f"{1 - outside:.0%} inside"
                return f" (it would lie {where} with --space {other})"
    return ""


def surfaces(
    source: str | Path,
    out: str | Path,
    *,
    names: str | Path | None = None,
    suffix: str = ".ply",
    space: str = "ras",
    smoothing: float = SMOOTHING,
    progress: Progress | None = None,
) -> SurfaceResult:
    """Makes a smooth closed surface of every structure, voxelises it back and measures what was lost.

    Args:
        source: a label file, or a folder of them (one folder of surfaces each).
        out: folder for the surfaces and `surfaces.csv`.
        names: a `dataset.json` or another label table; without it one beside the labels is used, else `label_<id>`.
        suffix: ".ply" or ".stl".
        space: "ras" or "lps", written into the header too.
        smoothing: see `tfmuscle.surfaces.surface`.
        progress: called with (structures done, structures of the subject, subject and structure).

    Raises:
        ValueError: a setting is out of range.
        DataError: there is nothing to read, or the table of names is unusable.
    """
    source, out = Path(source), Path(out)
    if suffix not in MESH_SUFFIXES or space not in SPACES or not 0 <= smoothing < np.inf:
        wanted = f"{' or '.join(MESH_SUFFIXES)}, {' or '.join(SPACES)}, and 0 or more"
        raise ValueError(f"suffix, space and smoothing are {suffix!r}, {space!r}, {smoothing!r}; use {wanted}")
    table = None if names is None else read_label_table(names)
    files = case_files(source) if source.is_dir() else {case_id(source): source}
    if not files:
        raise DataError(f"{source}: no label file; use images of whole numbers")
    settings = {"suffix": suffix, "space": space, "smoothing": smoothing}
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for subject, path in files.items():
        try:
            folder = out / subject if source.is_dir() else out
            rows += [{"subject": subject} | row for row in _subject_surfaces(path, folder, table, settings, progress)]
        except DataError as error:
            failures[subject] = str(error)
    if rows:
        write_text(out / "surfaces.csv", csv_text(rows, _ROW))
    return SurfaceResult(tuple(rows), failures)


def _subject_surfaces(
    path: Path, folder: Path, table: LabelMap | None, settings: dict[str, Any], progress: Progress | None
) -> list[dict[str, Any]]:
    """Makes one subject's surfaces unless they are there; `surfaces.json` comes last and says of what they are made."""
    labels = read_label_image(path)
    label_map = table or names_of(path) or LabelMap({})
    made_of = {"labels_sha256": sha256(path), "settings": settings, "labels": label_map.to_dict()}
    note = folder / "surfaces.json"
    if note.is_file() and (known := read_json(note)).get("made_of") == made_of:
        rows = known.get("structures", [])
        if all((folder / Path(row["file"]).name).is_file() for row in rows):
            return rows
    ids = [int(key) for key in np.unique(labels.array) if key != 0 and key != label_map.ignore]
    if not ids:
        raise DataError(f"{path}: nothing is labelled; label it or leave it out")
    rows = []
    for number, key in enumerate(ids):
        name = label_map.names.get(key, f"label_{key}")
        if progress is not None:
            progress(number, len(ids), f"{case_id(path)} {name}")
        file = folder / (plain_name(name) + settings["suffix"])
        rows.append({"structure": name, "id": key} | _measured_surface(labels, key, file, settings))
    write_json(note, {"made_of": made_of, "structures": rows, **provenance()})
    if progress is not None:
        progress(len(ids), len(ids), "")
    return rows


def _measured_surface(labels: Volume, key: int, file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes one surface, reads it back and compares it with its voxels."""
    mask = labels.array == key
    write_mesh(file, surface(mask, labels.geometry, smoothing=settings["smoothing"]), space=settings["space"])
    mesh = read_mesh(file)
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    start = [max(0, int(span[0]) - _MARGIN) for span in spans]
    box = mask[tuple(slice(a, int(span[-1]) + 1 + _MARGIN) for a, span in zip(start, spans, strict=True))]
    again = voxelise_mesh(mesh, labels.geometry.cropped(tuple(start), box.shape))
    voxels = int(box.sum())
    volume = voxels * labels.geometry.voxel_volume_ml
    return {
        "file": file.name,
        "faces": len(mesh.faces),
        "voxels": voxels,
        "labels_ml": volume,
        "surface_ml": mesh.volume_ml,
        "volume_error_percent": 100 * (mesh.volume_ml / volume - 1),
        "dice": 2 * int((again & box).sum()) / (int(again.sum()) + voxels),
    }
