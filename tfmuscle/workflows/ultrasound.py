"""From tracked ultrasound to volumes: `sweep_frames`, `compound_sweep`, `merge_recordings`.

The user has raw sweeps. Either way leads to muscle volumes:

* frames first: `sweep_frames` writes the frames as an image `(columns, rows, frames)`; label them, learn from them
  (`build-records --kind sequences --orientation none`), predict; `compound_sweep` with those labels puts them in space.
* volume first: `compound_sweep` makes a volume, `merge_recordings` joins several; label and learn as with MRI.

The frame image has the pixel size of the calibration and, for its third axis, the median distance between frames. It is
no place in space (frames are neither parallel nor evenly spread), so volumes are never measured on it. Each result gets
a picture beside it: three slices, because a wrong calibration or a lost reference is seen at once and never computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmuscle import registration
from tfmuscle.compounding import COMBINATIONS, METHODS, compound, compound_labels, sweep_geometry
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, check_outputs, check_owner, write_json
from tfmuscle.io import case_id, check_suffix, read_label_image, read_volume, write_volume
from tfmuscle.io.label_tables import names_of
from tfmuscle.io.tracked import describe_sweep, read_calibration, read_sweep
from tfmuscle.labels import LabelMap
from tfmuscle.report import figure_png
from tfmuscle.report.figures import plain, rgb
from tfmuscle.volume import Geometry, Sweep, Volume

Progress = Callable[[int, int, str], None]
DEFAULT_SPACING_MM = 1.0
_MADE_BY = "tfmuscle compound"


@dataclass(frozen=True)
class Compounding:
    """How a sweep becomes a volume.

    Attributes:
        spacing: voxel size in mm; None takes the calibration's, else 1 mm.
        method: how a pixel is spread over voxels.
        combine: what several frames at one place become.
        bridge_mm: longest gap between frames that is bridged; None is twice their median distance.
    """

    spacing: float | None = None
    method: str = METHODS[0]
    combine: str = COMBINATIONS[0]
    bridge_mm: float | None = None


@dataclass(frozen=True)
class SweepResult:
    """What was made from a sweep.

    Attributes:
        path: the image or the labels.
        picture: three slices of it.
        frames: frames used.
        dropped: frames without a valid image or pose.
        shape: size of the result in voxels.
        spacing: voxel size in mm.
        seen: share of the voxels that were seen or bridged.
        volumes_ml: structure -> ml, of labels.
        bridge_mm: longest gap that was bridged.
        ignore: id of unseen voxels in labels, None for an image.
    """

    path: Path
    picture: Path
    frames: int
    dropped: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    seen: float = 1.0
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    bridge_mm: float = 0.0
    ignore: int | None = None


def sweep_frames(
    sweep: str | Path, out: str | Path, *, calibration: str | Path | None = None, frame: str = ""
) -> SweepResult:
    """Writes the valid frames of a sweep as an image `(columns, rows, frames)`, to be labelled or learnt from.

    Args:
        sweep: a tracked sequence.
        out: image file to write.
        calibration: XML file with ImageToProbe.
        frame: frame of reference.

    Raises:
        ValueError: `out` has another ending.
        DataError: the sweep cannot be read, or the output not be written or is the sweep itself.
    """
    _check_output(out, sweep, calibration)
    read = read_sweep(sweep, calibration=calibration, frame=frame)
    rows, columns = (float(np.linalg.norm(read.poses[0, :3, axis])) for axis in (0, 1))
    affine = np.diag([columns, rows, frame_distance(read) or 1.0, 1.0])
    image = Volume(read.frames.transpose(2, 1, 0), Geometry(read.frames.shape[::-1], affine), str(sweep))
    write_volume(out, image)
    return _result(Path(out), read, image, _draw(out, image))


def compound_sweep(
    sweep: str | Path,
    out: str | Path,
    settings: Compounding | None = None,
    *,
    calibration: str | Path | None = None,
    frame: str = "",
    labels: tuple[str | Path, LabelMap | None] | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Writes the volume a sweep has seen or, with `labels`, the labels drawn on its frames as a volume.

    Args:
        sweep: a tracked sequence.
        out: image file to write; a picture goes beside it, and for labels a JSON of names and ids.
        settings: how.
        calibration: XML file with ImageToProbe.
        frame: frame of reference.
        labels: file with ids for the image that `sweep_frames` wrote, and what they mean (None: what stands beside the
            file, see `io.label_tables.names_of`, else ids stand for names).
        progress: called with (frames or votes done, in all, "").

    Raises:
        DataError: the sweep or labels cannot be read, or do not belong together.
        ValueError: settings that make no volume.
    """
    settings = settings or Compounding()
    _check_output(out, sweep, calibration, labels[0] if labels else None)
    proposed = read_calibration(calibration).spacing if calibration else None
    read = read_sweep(sweep, calibration=calibration, frame=frame)
    grid = sweep_geometry(read, settings.spacing if settings.spacing is not None else proposed or DEFAULT_SPACING_MM)
    bridge = 2 * frame_distance(read) if settings.bridge_mm is None else settings.bridge_mm
    if labels is None:
        made = compound(
            read, grid, method=settings.method, combine=settings.combine, bridge_mm=bridge, progress=progress
        )
        write_volume(out, made.image)
        return _result(Path(out), read, made.image, _draw(out, made.image), bridge_mm=bridge, seen=made.seen.mean())
    beside = Path(out).with_name(f"{case_id(out)}.json")
    check_owner(beside, _MADE_BY)
    ids, label_map = _frame_labels(labels[0], read, labels[1])
    ignore = int(label_map.ignore or 0)
    found = compound_labels(read, ids, grid, ignore=ignore, method=settings.method, bridge_mm=bridge, progress=progress)
    write_volume(out, found)
    write_json(beside, {"made_by": _MADE_BY, "labels": label_map.to_dict()})
    return _result(
        Path(out), read, found, _draw(out, None, found, label_map), bridge_mm=bridge, ignore=ignore,
        seen=(found.array != ignore).mean(), volumes_ml=label_volumes(found, label_map),
    )  # fmt: skip


@dataclass(frozen=True)
class MergeResult:
    """What became of several recordings.

    Attributes:
        folder: `merged.nii.gz`, `merged_labels.nii.gz`, `merge.json`, `merged.png`.
        matches: recording -> how it lies on the first.
        failures: recording -> why it was left out.
        volumes_ml: structure -> ml of the merged labels.
    """

    folder: Path
    matches: dict[str, registration.Match]
    failures: dict[str, str]
    volumes_ml: dict[str, float]


def merge_recordings(
    images: Sequence[str | Path],
    out: str | Path,
    *,
    labels: Sequence[str | Path] = (),
    label_map: LabelMap | None = None,
    metric: str = registration.METRICS[0],
    least_correlation: float = registration.LEAST_CORRELATION,
    progress: Progress | None = None,
) -> MergeResult:
    """Registers recordings of one limb onto the first, and writes them and their labels as one.

    A recording that cannot be read or does not lie on the first is left out and named; the others go on.

    Args:
        images: two or more recordings.
        out: folder to write.
        labels: ids of each, in the same order.
        label_map: what they mean (None: what stands beside the labels, else ids stand for names).
        metric: one of `registration.METRICS`.
        least_correlation: recordings less alike than this after registration are left out.
        progress: called with (recordings done, recordings in all, recording).

    Raises:
        DataError: the first recording cannot be used, or no other lies on it.
        ValueError: fewer than two recordings, or not as many labels as recordings.
    """
    if len(images) < 2 or len(labels) not in (0, len(images)):
        raise ValueError(f"{len(images)} recordings and {len(labels)} labels; give two or more, with labels for all")
    written = ("merged.nii.gz", "merged_labels.nii.gz", "merged_labels.json", "merged.png", "merge.json")
    check_outputs([Path(out) / name for name in written], [*images, *labels])
    kept: list[tuple[Volume, Volume | None, registration.Match]] = []
    matches, failures = {}, {}
    for number, image in enumerate(images):
        try:
            volume, label = _recording(image, labels[number] if labels else None)
            match = _match(volume, kept[0][0] if kept else None, metric, least_correlation)
            kept.append((volume, label, match))
            matches[str(image)] = match
        except DataError as error:
            if not kept:
                raise
            failures[str(image)] = str(error)
        if progress is not None:
            progress(number + 1, len(images), case_id(image))
    if len(kept) < 2:
        raise DataError(f"{images[0]}: no other recording lies on it; the first: {next(iter(failures.values()))}")
    found = [label for _, label, _ in kept if label is not None]
    names = _named(label_map or _names_beside(labels), [label.array for label in found])
    merged = registration.merge_recordings(
        [volume for volume, _, _ in kept], [match for _, _, match in kept], labels=found, ignore=int(names.ignore or 0)
    )
    volumes = label_volumes(merged.labels, names) if merged.labels else {}
    _write_merged(Path(out), merged, names, {"matches": _as_json(matches), "failures": failures, "volumes_ml": volumes})
    return MergeResult(Path(out), matches, failures, volumes)


def label_volumes(labels: Volume, label_map: LabelMap) -> dict[str, float]:
    """Returns structure -> volume in ml; what has the ignore id counts for none."""
    return {
        name: float(np.count_nonzero(labels.array == label_map.id_of(name)) * labels.geometry.voxel_volume_ml)
        for name in label_map.structures
    }


def frame_distance(sweep: Sweep) -> float:
    """Returns the median distance between the centres of neighbouring frames, in mm; 0 for a single frame."""
    rows, columns = sweep.frames.shape[1:]
    centres = (sweep.poses @ np.array([(rows - 1) / 2, (columns - 1) / 2, 0, 1]))[:, :3]
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return float(np.median(steps)) if len(steps) else 0.0


def _recording(image: str | Path, labels: str | Path | None) -> tuple[Volume, Volume | None]:
    volume = read_volume(image)
    if not volume.array.any():
        raise DataError(f"{image}: holds nothing but 0; leave it out")
    if labels is None:
        return volume, None
    label = read_label_image(labels)
    if not label.geometry.same_grid(volume.geometry):
        raise DataError(f"{labels}: not on the grid of {image}; give the labels of this recording")
    return volume, label


def _match(volume: Volume, first: Volume | None, metric: str, least_correlation: float) -> registration.Match:
    if first is None:
        return registration.Match(np.eye(4), 1.0, 1.0, 1.0)
    match = registration.register_rigid(volume, first, metric=metric)
    if not match.after >= least_correlation or match.overlap < registration.LEAST_OVERLAP:
        raise DataError(
            f"{volume.source}: correlation {match.after:.2f} over {match.overlap:.0%} of it after registration, "
            f"{least_correlation:.2f} over {registration.LEAST_OVERLAP:.0%} is needed; look at both, or leave it out"
        )
    return match


def _frame_labels(path: str | Path, sweep: Sweep, label_map: LabelMap | None) -> tuple[np.ndarray, LabelMap]:
    labels = read_label_image(path)
    if labels.array.shape != sweep.frames.shape[::-1]:
        raise DataError(
            f"{path}: {labels.array.shape} ids, {sweep.frames.shape[::-1]} (columns, rows, valid frames) are needed; "
            "label the image that sweep-frames wrote with the same calibration"
        )
    return labels.array.transpose(2, 1, 0), _named(label_map or names_of(path), [labels.array], path)


def _named(label_map: LabelMap | None, arrays: Sequence[np.ndarray], path: str | Path = "labels") -> LabelMap:
    """Returns a map that names all ids and has an ignore id: the given one, else the first free one."""
    present = sorted({int(key) for array in arrays for key in np.unique(array)})
    names = label_map.names if label_map else {key: f"label {key}" for key in present if key > 0}
    ignore = label_map.ignore if label_map and label_map.ignore is not None else max([0, *present, *names]) + 1
    try:
        named = LabelMap(names, ignore=ignore)
        unknown = [key for key in present if key not in named.ids and key != ignore]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if unknown:
        raise DataError(f"{path}: ids {unknown} are not in the label map {list(named.ids)}; give the right one")
    return named


def _result(path: Path, sweep: Sweep, volume: Volume, picture: Path, **about: Any) -> SweepResult:
    dropped = describe_sweep(sweep.source).num_frames - len(sweep.frames)
    about = {key: float(value) if key == "seen" else value for key, value in about.items()}
    return SweepResult(path, picture, len(sweep.frames), dropped, volume.geometry.shape, volume.spacing, **about)


def _check_output(out: str | Path, *inputs: str | Path | None) -> None:
    """Refuses, before the work, a name that cannot be written or is one of the inputs."""
    check_suffix(out)
    check_outputs([out, Path(out).with_name(f"{case_id(out)}.png")], inputs)


def _names_beside(labels: Sequence[str | Path]) -> LabelMap | None:
    """Returns what stands beside the labels of recordings; ids have one meaning in all of them."""
    found = [names_of(path) for path in labels]
    for path, label_map in zip(labels, found, strict=True):
        if label_map != found[0]:
            raise DataError(f"{path}: other names stand beside it than beside {labels[0]}; give one table for all")
    return found[0] if found else None


def _as_json(matches: Mapping[str, registration.Match]) -> dict[str, Any]:
    return {
        name: {
            "transform": match.transform.tolist(),
            "correlation_before": match.before,
            "correlation_after": match.after,
            "overlap": match.overlap,
        }
        for name, match in matches.items()
    }


def _write_merged(out: Path, merged: registration.Merged, names: LabelMap, about: dict[str, Any]) -> None:
    write_volume(out / "merged.nii.gz", merged.image)
    if merged.labels is not None:
        write_volume(out / "merged_labels.nii.gz", merged.labels)
        about["labels"] = names.to_dict()
        write_json(out / "merged_labels.json", {"labels": names.to_dict()})
    write_json(out / "merge.json", about)
    _draw(out / "merged.nii.gz", merged.image, merged.labels, names)


def _draw(
    path: str | Path, image: Volume | None, labels: Volume | None = None, label_map: LabelMap | None = None
) -> Path:
    """Writes three slices through the middle of what is there, with true proportions, as a PNG beside `path`."""
    shown = next(volume for volume in (image, labels) if volume is not None)
    content = shown.array != (label_map.ignore if image is None and label_map else 0)
    middle = np.rint(np.argwhere(content).mean(axis=0)).astype(int) if content.any() else np.array(content.shape) // 2
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axis in range(3):
        panel = figure.add_subplot(1, 3, axis + 1)
        down, across = [(1, 2), (0, 2), (0, 1)][axis]
        height, width = (shown.array.shape[n] * shown.spacing[n] for n in (down, across))
        if image is not None:
            panel.imshow(image.array.take(middle[axis], axis), cmap="gray", extent=(0, width, height, 0))
        if labels is not None and label_map is not None:
            panel.imshow(_coloured(labels.array.take(middle[axis], axis), label_map), extent=(0, width, height, 0))
        panel.set(title=f"{'ijk'[axis]} = {middle[axis]}", xlabel=f"{'ijk'[across]}, mm", ylabel=f"{'ijk'[down]}, mm")
        panel.set_facecolor("black")
    figure.suptitle(plain(f"{case_id(path)}: {' x '.join(map(str, content.shape))} voxels"))
    picture = Path(path).with_name(f"{case_id(path)}.png")
    with atomic_path(picture) as temporary:
        temporary.write_bytes(figure_png(figure))
    return picture


def _coloured(labels: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """Returns RGBA `(H, W, 4)`: structures in their colours, the ignore id grey, background clear."""
    colours = np.zeros((*labels.shape, 4))
    for name in label_map.structures:
        colours[labels == label_map.id_of(name)] = (*rgb(label_map, name), 0.55)
    if label_map.ignore:
        colours[labels == label_map.ignore] = (0.5, 0.5, 0.5, 0.35)
    return colours
