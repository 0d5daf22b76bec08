"""A scan and a few drawn slices become labels of all slices, by a method without a network or by one: `propagate`.

    LABELS               ids of every slice on the scan's grid; drawn slices stay as they are drawn
    <name>.json, .csv    volumes with an interval, drift at every drawn slice, slices to redraw next
    <name>.png           area in dispute and drift along the scan; what each way says of the worst slices
    <name>_propagation/  what was done so far

The work is done in a frame of its own, slices first, in one orientation whatever the file's, so that a flipped scan
gets the same labels; a network has the frame it was trained in. Nothing is resampled.

A call that was interrupted is given again. Corrections are made in the annotations, or in LABELS itself and then given
with `update`; either way only the stretches beside a slice that changed are done again.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import check_outputs, sha256
from tfmuscle.inference import WEIGHTS_FILE
from tfmuscle.inference.propagation import (
    PropagationRun,
    carrier_of_several,
    load_propagation,
    network_carrier,
    prepare,
)
from tfmuscle.io import check_suffix, write_volume
from tfmuscle.labelled_slices import LabelledSlices, find_slices
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.propagation.findings import Findings, find, left_out
from tfmuscle.propagation.frames import Frame, frame_of
from tfmuscle.propagation.methods import METHODS, Method, make_method
from tfmuscle.propagation.running import Job, fill_stretch, path_of, work
from tfmuscle.propagation.storing import Filled
from tfmuscle.propagation.stretches import Stretch, anchors_of, stretches_of
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.corrections import Place, take_corrections
from tfmuscle.workflows.propagation_report import Report, Told, write_report
from tfmuscle.workflows.slice_labels import SliceLabels, one_scan, read_slice_labels

DEFAULT = METHODS[0]
NETWORK = "network"


@dataclass(frozen=True)
class Propagating:
    """How masks are propagated.

    Attributes:
        method: one of `METHODS`, without `runs`; the first by default.
        runs: run folders of networks that carry masks, several if each learned structures of its own.
        direction: from which ends: one of `running.DIRECTIONS`.
        fuse: of a carrier's windows: "first" or "mean".
        update: whether slices that were edited in the labels count as drawn.
        count: slices to name for redrawing.
    """

    method: str | None = None
    runs: tuple[Path, ...] = ()
    direction: str = "both"
    fuse: str = "first"
    update: bool = False
    count: int = 3

    def __post_init__(self) -> None:
        if self.runs and self.method is not None:
            raise ValueError(f"a network and the method {self.method} are given; choose one of them")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; choose one of {', '.join(METHODS)}, or a trained network")
        if self.count < 1:
            raise ValueError(f"{self.count} slices are wanted; ask for 1 at least")


@dataclass(frozen=True)
class PropagateResult:
    """What a propagation made.

    Attributes:
        report: volumes, drift, slices to redraw.
        slices: drawn ones, corrections among them.
        corrected: slices that were corrected in the labels.
        stretches: how many there are, those with a drawn slice left out among them.
        fresh: how many of them were done in this call; the others were there.
        notes: what the user should know.
        reduced: whether the network's recipe was cut down.
    """

    report: Report
    slices: LabelledSlices
    corrected: tuple[int, ...]
    stretches: int
    fresh: int
    notes: tuple[str, ...]
    reduced: bool


@dataclass(frozen=True, eq=False)
class _Tool:
    """A method, the frame it works in, and the images it sees there."""

    method: Method
    frame: Frame
    images: Callable[[], np.ndarray]
    notes: tuple[str, ...] = ()
    reduced: bool = False
    runs: tuple[PropagationRun, ...] = ()


def propagate(
    source: SliceLabels, out: str | Path, options: Propagating | None = None, *, progress: Progress | None = None
) -> PropagateResult:
    """Labels all slices of a scan of which a few are drawn.

    Args:
        source: scan and drawn slices.
        out: label image to write.
        options: how.
        progress: called with (slices gone through, in all, note).

    Raises:
        ValueError: an ending of `out` that cannot be written, or a direction that the method does not know.
        DataError: files that cannot be used or do not fit, or an output that is not as this command wrote it.
    """
    options, place = options or Propagating(), Place(Path(out))
    check_suffix(out)
    check_outputs([place.labels, *map(place.beside, (".json", ".csv", ".png"))], [source.scan, source.labels])
    scan = one_scan(source.scan).read_image()
    labels, label_map = read_slice_labels(source.labels, source.names)
    if not labels.geometry.same_grid(scan.geometry):
        raise DataError(f"{source.labels}: not on the grid of {source.scan}; resample it by nearest neighbour")
    try:
        slices = find_slices(labels, label_map, axis=source.axis, listed=source.listed)
    except ValueError as error:
        raise DataError(f"{source.labels}: {error}") from error
    tool = _tool(scan, slices.axis, options)
    place.claim()
    corrected = take_corrections(place, labels, label_map, slices.axis, update=options.update)
    slices = dataclasses.replace(slices, indices=tuple(sorted({*slices.indices, *corrected})))
    known = _with_corrections(labels, slices, corrected)
    drawn = sorted(map(tool.frame.index, slices.indices))
    job = _job(tool, known, label_map, scan, place, options, drawn)
    pieces = (*stretches_of(drawn, len(job.drawn)), *left_out(job, drawn).values())
    fresh = _fill(job, pieces, progress)
    array, findings = _gather(job, drawn)
    write_volume(place.written, tool.frame.back(tool.frame.turned(known).with_array(array)))
    _clear(job.folder, {path_of(job, piece) for piece in pieces})
    notes = (*slices.notes(), *_notes(job, drawn, label_map), *tool.notes)
    told = Told(tool.method.name, label_map, slices, tuple(sorted(corrected)), options.count, tool.reduced)
    report = write_report(place, job, findings, tool.frame, scan, told)
    return PropagateResult(report, slices, tuple(sorted(corrected)), len(pieces), fresh, notes, tool.reduced)


def _tool(scan: Volume, axis: int, options: Propagating) -> _Tool:
    if not options.runs:
        frame = frame_of(scan.geometry, axis)
        grid = frame.turned(scan)
        method = make_method(options.method or DEFAULT, grid.spacing)
        several = scan.num_channels > 1 and options.method != "interpolate"
        notes: tuple[str, ...] = (f"{scan.num_channels} channels; the first is looked at",) if several else ()
        array = grid.array[..., 0] if grid.array.ndim == 4 else grid.array
        return _Tool(method, frame, functools.cache(lambda: method.prepare(array)), notes)
    runs = tuple(map(load_propagation, options.runs))
    run = runs[0]
    try:
        frame = Frame(run.spec.orientation, scan.geometry, axis)
    except ValueError as error:
        raise DataError(f"{run.path}: {error}") from error
    names = (WEIGHTS_FILE, "propagation.json", "spec.json")
    about = {name + str(n or ""): sha256(one.path / name) for n, one in enumerate(runs) for name in names}
    method = Method(NETWORK, carrier=network_carrier(run), about=about)
    notes, reduced = tuple(one.warning for one in runs if one.warning), any(one.config.scale != "full" for one in runs)
    return _Tool(method, frame, functools.cache(lambda: _prepared(run, frame, scan)), notes, reduced, runs)


def _prepared(run: PropagationRun, frame: Frame, scan: Volume) -> np.ndarray:
    prepared = prepare(run, scan)
    if not prepared.geometry.same_grid(frame.turned(scan).geometry):
        raise DataError(f"{run.path}: was trained on resampled scans; train on the scans' own grid to carry masks")
    return prepared.array


def _with_corrections(labels: Volume, slices: LabelledSlices, corrected: dict[int, np.ndarray]) -> Volume:
    """Returns the ids of drawn slices, annotated or corrected."""
    if not corrected:
        return labels
    kind = np.result_type(labels.array.dtype, *(plane.dtype for plane in corrected.values()))
    array = labels.array.astype(kind)
    for index, plane in corrected.items():
        np.moveaxis(array, slices.axis, 0)[index] = plane
    return labels.with_array(array)


def _job(
    tool: _Tool, known: Volume, label_map: LabelMap, scan: Volume, place: Place, options: Propagating, drawn: list[int]
) -> Job:
    ids = tool.frame.turned(known).array
    present = set(distinct(ids[drawn]).tolist())
    keys = tuple(key for key in label_map.ids if key and key in present)
    digest = hashlib.sha256()
    for plane in np.moveaxis(scan.array, 2, 0):
        digest.update(plane.tobytes())
    folder, direction = place.state / "stretches", tool.frame.way(options.direction)
    method = tool.method
    if tool.runs:
        by_key = {label_map.id_of(name): name for name in label_map.structures}
        names = [by_key[key] for key in keys]
        method = dataclasses.replace(method, carrier=carrier_of_several(tool.runs, names))
    return Job(method, tool.images, ids, keys, digest.hexdigest(), folder, direction, options.fuse)


def _fill(job: Job, pieces: Sequence[Stretch], progress: Progress | None) -> int:
    """Fills what is not filled yet; returns how many pieces that were."""
    done, total, fresh = 0, sum(work(job, piece) for piece in pieces), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and count:
            progress(done, total, "")

    for piece in pieces:
        if path_of(job, piece).exists():
            tick(work(job, piece))
        else:
            fill_stretch(job, piece, tick)
            fresh += 1
    return fresh


def _gather(job: Job, drawn: list[int]) -> tuple[np.ndarray, Findings]:
    """Returns the ids of all slices, and what is known of them."""
    array = np.zeros(job.drawn.shape, np.min_scalar_type(max(job.keys)))

    def put(stretch: Stretch, filled: Filled) -> None:
        array[stretch.first : stretch.last + 1] = filled.ids

    findings = find(job, drawn, stretches_of(drawn, len(job.drawn)), each=put)
    for index in drawn:
        array[index] = np.where(np.isin(job.drawn[index], job.keys), job.drawn[index], 0)
    return array, findings


def _clear(folder: Path, used: set[Path]) -> None:
    """Removes results of stretches that are no more."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path not in used:
            path.unlink()


def _notes(job: Job, drawn: Sequence[int], label_map: LabelMap) -> list[str]:
    notes = []
    if absent := [name for name in label_map.structures if label_map.id_of(name) not in job.keys]:
        notes.append(f"on no drawn slice: {', '.join(absent)}")
    anchors = anchors_of(drawn)
    beyond = anchors[0].first > 0 or anchors[-1].last < len(job.drawn) - 1
    if job.method.name == "interpolate" and beyond:
        notes.append("interpolation knows nothing beyond the outermost drawn slices; all is background there")
    if len(anchors) < (3 if job.method.carrier is None else 2):
        notes.append("no drawn slice lies where another one's masks arrive: drift and the intervals are guessed")
    return notes
