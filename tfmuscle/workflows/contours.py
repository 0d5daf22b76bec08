"""Labels as contours to be edited, and back: `contours`, `fill_contours`.

A reader corrects a muscle in the program at hand, and the corrected muscle comes back on the scan's grid. What such
programs can open decides the form. 3D Slicer edits points of closed curves; its files hold any number of them, so there
is one file a structure, `<structure>.mrk.json`, to be loaded one muscle at a time: a leg has nine thousand contours.
ITK-SNAP has no contours: it opens `labels.nii.gz`, the filled contours, with the names and colours in `labels.label`
("Import Label Descriptions"), and its polygon tool edits those slice by slice; Slicer opens the same file as a
segmentation. Rejected: DICOM RTSTRUCT, which belongs to a DICOM series that research data has lost, and which ITK-SNAP
does not read; one file a curve, nine thousand files; `.seg.nrrd`, which ITK-SNAP shows without names.

A curve is called `<structure>-<slice>-<number>`, and only what stands before the first hyphen is needed. Slicer saves
each curve it has changed into a file of its own, called after the curve: put it beside the others, and it replaces the
curve of that name or, with a new name, adds one (`soleus_left-new`). A curve whose points are all deleted is gone. A
missing file of a structure means that the structure is gone, and this is told.

`contours.json` says on which grid the contours lie, what the ids mean, and the checksum of every file. So it is known
what was edited: curves or `labels.nii.gz`; both at once cannot be joined and are refused. A folder in which something
was edited is never written over.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.contours import IGNORE_NAME, Contour, contours_of, labels_from_contours
from tfmuscle.errors import DataError
from tfmuscle.files import (
    atomic_path,
    check_outputs,
    check_owner,
    provenance,
    read_json,
    sha256,
    write_json,
    write_text,
)
from tfmuscle.io import case_id, check_suffix, read_label_image, read_volume, write_volume
from tfmuscle.io.label_tables import names_of, plain_name, read_label_table
from tfmuscle.io.markups import SUFFIX, read_markups, write_markups
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.preprocessing.grid import resample_labels
from tfmuscle.volume import Geometry, Volume

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
LABELS, TABLE, ABOUT = "labels.nii.gz", "labels.label", "contours.json"
_MADE_BY, _FILLED_BY = "tfmuscle contours", "tfmuscle fill-contours"
_GREY = (128, 128, 128)
_MOST_OUTSIDE = 0.5
"""Share of the labelled voxels beyond which a scan cannot be the one they belong to."""


@dataclass(frozen=True)
class FilledContours:
    """What `fill_contours` made.

    Attributes:
        labels: the ids on the scan's grid.
        label_map: ids and names.
        rows: per structure its id, voxels and volume.
        missing: structures of the label map without a voxel.
        source: "curves" or "labels", whichever was read.
        unread: other files in the folder, which may be edits saved under another name.
    """

    labels: Volume
    label_map: LabelMap
    rows: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]
    source: str
    unread: tuple[str, ...] = ()


def contours(
    source: str | Path,
    out: str | Path,
    *,
    names: str | Path | None = None,
    reference: str | Path | None = None,
    simplified: bool = True,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[dict[str, Any]]:
    """Writes the contours of labels as closed curves for 3D Slicer, and filled again for ITK-SNAP.

    Args:
        source: label image.
        out: folder to write, whole or not at all; one that this command wrote and nobody edited is replaced.
        names: `dataset.json` or another label table; without it the one beside the labels, else `label_<id>`.
        reference: a scan in whose slices the contours shall lie; without it they lie in those of the labels.
        simplified: whether points that are not needed are left out, see `tfmuscle.contours`.
        progress: called with (structures done, structures in all, structure).
        say: called with what the user should know, one sentence each.

    Returns:
        For every structure `structure`, `id`, `curves`, `points` and `corners` (with and before simplifying), `voxels`,
        and `dice` of the filled contours with the labels.

    Raises:
        DataError: a file is missing or damaged, nothing is labelled, or `out` holds something else or was edited.
    """
    source, out = Path(source), Path(out)
    check_outputs([out], [source, source.parent, names, reference])
    _check_free(out)
    labels = read_label_image(source)
    if reference is not None:
        labels = _on_grid(labels, read_volume(reference, channel=0).geometry, say)
    label_map = _label_map(source, labels, read_label_table(names) if names is not None else names_of(source))
    found = contours_of(labels, label_map, simplified=simplified)
    again = labels_from_contours(found, labels.geometry, label_map)
    by_structure: dict[str, list[Contour]] = {}
    for contour in found:
        by_structure.setdefault(contour.structure, []).append(contour)
    rows = []
    with atomic_path(out) as folder:
        folder.mkdir()
        for number, (name, curves) in enumerate(by_structure.items()):
            if progress is not None:
                progress(number, len(by_structure), name)
            colour = _GREY if name == IGNORE_NAME else label_map.colour(name)
            write_markups(folder / (name + SUFFIX), {one.name: one.points for one in curves}, colour=colour)
            rows.append(_row(name, _id_of(label_map, name), curves, labels.array, again.array))
        write_volume(folder / LABELS, again)
        write_text(folder / TABLE, snap_table(label_map))
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        about = {"made_by": _MADE_BY, "labels": label_map.to_dict(), "grid": labels.geometry.to_dict()}
        write_json(folder / ABOUT, {**about, "structures": rows, "files": files, **provenance()})
    if progress is not None:
        progress(len(by_structure), len(by_structure), "")
    return rows


def _id_of(label_map: LabelMap, name: str) -> int:
    return label_map.ignore if name == IGNORE_NAME and label_map.ignore is not None else label_map.id_of(name)


def _row(name: str, key: int, curves: list[Contour], labels: np.ndarray, again: np.ndarray) -> dict[str, Any]:
    before, after = labels == key, again == key
    voxels = int(before.sum())
    return {
        "structure": name,
        "id": key,
        "curves": len(curves),
        "corners": sum(curve.corners for curve in curves),
        "points": sum(len(curve.points) for curve in curves),
        "voxels": voxels,
        "dice": 2 * int((before & after).sum()) / (voxels + int(after.sum())),
    }


def snap_table(label_map: LabelMap) -> str:
    """Returns ITK-SNAP's label description file: id, red, green, blue, opacity, shown in slices and in 3D, name.

    >>> print(snap_table(LabelMap({1: "femur"})).splitlines()[-1])
        1  255  115  115  1  1  1  "femur"
    """
    rows = [(key, label_map.colour(name), name) for key, name in label_map.names.items() if key != 0]
    rows += [(label_map.ignore, _GREY, IGNORE_NAME)] if label_map.ignore is not None else []
    lines = ["# ITK-SNAP label description file: id, red, green, blue, opacity, visible, mesh visible, name"]
    lines.append('    0    0    0    0  0  0  0  "Clear Label"')
    for key, (red, green, blue), name in sorted(rows):
        lines.append(f'{key:5d}  {red:3d}  {green:3d}  {blue:3d}  1  1  1  "{name}"')
    return "\n".join([*lines, ""])


def _label_map(source: Path, labels: Volume, known: LabelMap | None) -> LabelMap:
    """Returns the names of the ids, plain words; `label_<id>` for those without one."""
    names = {} if known is None else {key: plain_name(name) for key, name in known.names.items() if key != 0}
    ignore = None if known is None else known.ignore
    present = [int(key) for key in distinct(labels.array) if key != 0]
    if not present:
        raise DataError(f"{source}: nothing is labelled; label it or leave it out")
    names |= {key: f"label_{key}" for key in present if key not in names and key != ignore}
    try:
        return LabelMap(names, ignore=ignore)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error


def _on_grid(labels: Volume, geometry: Geometry, say: Say | None) -> Volume:
    """Returns the labels on the scan's grid: the same voxels where it has them, else those of the nearest voxels.

    A scan of another part or person would silently leave little of them, perhaps whole structures out.
    """
    turned = labels.reoriented(geometry.orientation)
    if turned.geometry.same_grid(geometry):
        return resample_labels(turned, geometry)
    voxels = np.argwhere(labels.array)
    places = geometry.index(labels.geometry.world(voxels))
    outside = int(((places < -0.5) | (places > np.array(geometry.shape) - 0.5)).any(axis=1).sum())
    told = f"{outside} of {len(voxels)} labelled voxels ({outside / max(1, len(voxels)):.0%}) lie outside the scan"
    told = told.replace("%", " %")
    if outside > _MOST_OUTSIDE * len(voxels):
        raise DataError(f"{labels.source}: {told}; give the scan that they belong to")
    if outside and say is not None:
        say(f"{told} and are left out")
    return resample_labels(turned, geometry)


def _check_free(out: Path) -> None:
    """Refuses to replace anything but an unedited folder of this command."""
    if out.is_file():
        raise DataError(f"{out}: is a file; choose a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / ABOUT).is_file():
        raise DataError(f"{out}: holds something else; choose a new folder")
    check_owner(out / ABOUT, _MADE_BY)
    files = _files_of(out, read_json(out / ABOUT))
    if edited := sorted(_edited(out, files) | {path.name for path in out.iterdir()} - {*files, ABOUT}):
        raise DataError(f"{out}: {edited[0]} was edited or added since and would be lost; choose a new folder")


def _files_of(folder: Path, about: Mapping[str, Any]) -> dict[str, str]:
    files = about.get("files")
    if not isinstance(files, dict):
        raise DataError(f"{folder / ABOUT}: names no files; make the contours again")
    return files


def _edited(folder: Path, files: Mapping[str, str]) -> set[str]:
    """Returns the names of the curves and label images that are not as they were written; a missing one is no edit."""
    shown = [path for path in folder.iterdir() if path.name.endswith(SUFFIX) or path.name == LABELS]
    return {path.name for path in shown if not path.name.startswith(".") and sha256(path) != files.get(path.name)}


def fill_contours(
    source: str | Path,
    reference: str | Path | tuple[str | Path, str],
    out: str | Path,
    *,
    names: str | Path | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> FilledContours:
    """Turns contours, edited or not, into labels on a scan's grid, and writes a JSON with names beside them.

    Args:
        source: the folder of `contours`, or any folder of Slicer's closed curves; or an edited label image.
        reference: the scan, any image or a DICOM folder; with the name of a series where a folder holds several.
        out: the label file to write.
        names: `dataset.json` or another label table; without it the one in the folder or beside the labels.
        progress: called with (files read, files in all, file).
        say: called with what the user should know, one sentence each.

    Raises:
        ValueError: `out` is no label file.
        DataError: a file is missing or damaged, a structure is unknown, or curves and labels were both edited.
    """
    source, out = Path(source), Path(out)
    check_suffix(out)
    scan, series = reference if isinstance(reference, tuple) else (reference, None)
    beside = out.with_name(case_id(out) + ".json")
    check_owner(beside, _FILLED_BY)
    again = {out.name, beside.name} if beside.exists() and out.parent.resolve() == source.resolve() else set()
    inside = sorted(path for path in source.iterdir() if path.name not in again) if source.is_dir() else []
    check_outputs([out, beside], [scan, source, names, *inside])
    geometry = read_volume(scan, channel=0, series=series).geometry
    table = None if names is None else read_label_table(names)
    read = "labels" if _holds_edited_labels(source) else "curves"
    if read == "labels":
        drawn, label_map = _from_image(source / LABELS if source.is_dir() else source, table)
    else:
        drawn, label_map = _from_curves(source, geometry, table, progress)
    labels = _on_grid(Volume(drawn.array, drawn.geometry, str(source)), geometry, say)
    rows = tuple(_counted(labels, label_map))
    missing = tuple(row["structure"] for row in rows if not row["voxels"])
    unread = _unread(source, again)
    made = FilledContours(Volume(labels.array, geometry, str(out)), label_map, rows, missing, read, unread)
    write_volume(out, made.labels)
    about = {"made_by": _FILLED_BY, "labels": label_map.to_dict(), "structures": list(rows), "missing": list(missing)}
    write_json(beside, {**about, "read_from": read, **provenance()})
    return made


def _counted(labels: Volume, label_map: LabelMap) -> Iterator[dict[str, Any]]:
    for key, name in label_map.names.items():
        if key != 0:
            voxels = int((labels.array == key).sum())
            yield {"structure": name, "id": key, "voxels": voxels, "ml": voxels * labels.geometry.voxel_volume_ml}


def _unread(source: Path, written: set[str]) -> tuple[str, ...]:
    """Returns the names of the files in a folder of contours that are none of its own and hold no curves."""
    if not source.is_dir():
        return ()
    names = {path.name for path in source.iterdir() if not path.name.startswith(".") and path.is_file()}
    return tuple(sorted(name for name in names - written - {LABELS, TABLE, ABOUT} if not name.endswith(SUFFIX)))


def _holds_edited_labels(source: Path) -> bool:
    """Whether the label image is to be read and not the curves."""
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder; check the path")
    if source.is_file() or not (source / ABOUT).is_file():
        return source.is_file()
    edited = _edited(source, _files_of(source, read_json(source / ABOUT)))
    if LABELS in edited and len(edited) > 1:
        curve = sorted(edited - {LABELS})[0]
        raise DataError(
            f"{source}: both {LABELS} and curves ({curve}) were edited, which cannot be joined; give {LABELS} itself to"
            " keep that, or take it out of the folder to keep the curves"
        )
    return LABELS in edited


def _from_image(path: Path, table: LabelMap | None) -> tuple[Volume, LabelMap]:
    labels = read_label_image(path)
    label_map = table or names_of(path)
    if label_map is None:
        raise DataError(f"{path}: no names beside it; give a label table with --labels")
    known = {*label_map.ids, label_map.ignore}
    if unknown := [int(key) for key in distinct(labels.array) if int(key) not in known]:
        raise DataError(f"{path}: the labels {unknown[:8]} have no name in the table; add them to it or remove them")
    return labels, label_map


def _from_curves(
    folder: Path, scan: Geometry, table: LabelMap | None, progress: Progress | None
) -> tuple[Volume, LabelMap]:
    """Fills the curves of a folder on the grid they were made on; without a word about that, on the scan's."""
    grid, own = scan, None
    curves = _curves(folder, progress)
    if (folder / ABOUT).is_file():
        about = read_json(folder / ABOUT)
        try:
            grid, own = Geometry.from_dict(about["grid"]), LabelMap.from_dict(about["labels"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{folder / ABOUT}: no usable grid or names ({error}); make the contours again") from error
    label_map = table or own or (read_label_table(folder / TABLE) if (folder / TABLE).is_file() else None)
    if label_map is None:
        raise DataError(f"{folder}: no {ABOUT} in it; give a label table with --labels")
    found = [
        Contour(plain_name(name.partition("-")[0]), points, name, source=str(path))
        for name, (path, points) in curves.items()
        if len(points)
    ]
    return labels_from_contours(found, grid, label_map), label_map


def _curves(folder: Path, progress: Progress | None) -> dict[str, tuple[Path, np.ndarray]]:
    """Returns name -> file and points of all curves; a file of one curve replaces the one of that name elsewhere."""
    files = [path for path in folder.iterdir() if path.name.endswith(SUFFIX) and not path.name.startswith(".")]
    if not files:
        raise DataError(f"{folder}: no curves ({SUFFIX}) in it; give the folder that `tfmuscle contours` wrote")
    curves: dict[str, tuple[Path, np.ndarray]] = {}
    for number, path in enumerate(sorted(files, key=lambda path: ("-" in path.name, path.name))):
        if progress is not None:
            progress(number, len(files), path.name)
        curves |= {name: (path, points) for name, points in read_markups(path).items()}
    if progress is not None:
        progress(len(files), len(files), "")
    return curves
