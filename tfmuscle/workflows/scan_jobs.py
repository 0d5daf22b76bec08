"""The labels of one scan as a job: done here one after another, or anywhere by Apache Beam.

Thousands of scans on many machines: each worker opens the networks once and labels whatever scans it is handed, one at
a time. A job writes its labels whole or not at all and leaves finished ones alone when the user resumes; with
`uncertainty` it writes the map first, then the labels, then what they are worth (`trusting`). What became of it stands
in a note beside them, `notes/<subject>.json`, because Beam brings nothing back. `predict` gathers the notes into
`predictions.json` and removes them. All machines must see networks, scans and labels under the same paths.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import write_volume
from tfmuscle.io.nifti import write_shares
from tfmuscle.subjects import Subject
from tfmuscle.uncertainty.structures import rows_of, scores_of
from tfmuscle.volume import Volume
from tfmuscle.workflows.beam import map_on_beam
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.networks import AnyNetwork, Network, PredictOptions, opened
from tfmuscle.workflows.trusting import Trust, write_rows

if TYPE_CHECKING:
    from tfmuscle.inference import Progress as Windows

NOTES_FOLDER = "notes"
_ONE_AT_A_TIME = threading.Lock()
_OPENED: dict[str, AnyNetwork] = {}
"""The networks that this process has opened, by what they were asked for."""


@dataclass(frozen=True)
class ScanJob:
    """One scan, where its labels go, and which networks label it; `trust` says where their worth goes, if anywhere."""

    networks: tuple[Path, ...]
    options: PredictOptions
    mirror: bool
    subject: Subject
    path: Path
    trust: Trust | None = None

    @property
    def note(self) -> Path:
        """File that says what became of the job."""
        return self.path.parent / NOTES_FOLDER / f"{self.subject.subject_id}.json"


def label_scan(network: AnyNetwork, job: ScanJob, windows: "Windows | None" = None) -> dict[str, Any]:
    """Labels a scan and returns its note: seconds that it took, nothing for one that was kept, or why it failed.

    Args:
        network: the job's, opened.
        job: scan and output.
        windows: called with (windows done, windows in all).
    """
    started = time.monotonic()
    try:
        written = [job.path, *([] if job.trust is None else [job.trust.map])]
        scans = {image.resolve() for image in job.subject.images}
        if lost := [path for path in written if path.resolve() in scans]:
            raise DataError(f"{lost[0]}: is the scan itself, which the labels would overwrite; name another output")
        if job.options.resume and job.path.exists() and (job.trust is None or job.trust.is_of(job.path)):
            return {}
        image, name = job.subject.read_image(), job.subject.subject_id
        if job.trust is not None and isinstance(network, Network):
            _label_and_judge(network, image, name, job.path, job.trust, mirror=job.mirror, progress=windows)
        else:
            write_volume(job.path, network.labels(image, name, mirror=job.mirror, progress=windows))
    except DataError as error:
        return {"failure": str(error)}
    return {"seconds": round(time.monotonic() - started, 2)}


def _label_and_judge(
    network: Network,
    image: Volume,
    name: str,
    path: Path,
    trust: Trust,
    *,
    mirror: bool,
    progress: "Windows | None" = None,
) -> None:
    """Labels a scan and writes map, labels and rows, the rows last.

    Args:
        network: with a calibration.
        image: the scan.
        name: of its subject.
        path: of the labels.
        trust: of the rest.
        mirror: average over mirrored copies.
        progress: called with (windows done, windows in all).

    Raises:
        ValueError: a network without calibration.
    """
    if network.calibration is None:
        raise ValueError("the network was opened without its calibration; open it with uncertainty")
    found = network.uncertain(image, name, mirror=mirror, progress=progress)
    scores = scores_of(found.agreement, found.labels.array, network.runs[0].spec.label_map)
    rows = rows_of(found.labels, found.error.array, scores, network.calibration, slice_axis=found.slice_axis)
    write_shares(trust.map, found.error)
    write_volume(path, found.labels)
    write_rows(trust, name, path, rows)


def label_on_beam(jobs: Sequence[ScanJob], progress: Progress | None) -> dict[str, dict[str, Any]]:
    """Has all jobs done by Beam, with the flags of their options; returns their notes by subject.

    Raises:
        DataError: a worker was killed, or the cluster failed; what is finished is kept.
    """
    jobs = [_absolute(job) for job in jobs]
    _remove_notes(jobs)
    map_on_beam(_label_and_tell, jobs, jobs[0].options.beam, watch=functools.partial(_watch, jobs, progress))
    notes = {job.subject.subject_id: read_json(job.note) for job in jobs}
    _remove_notes(jobs)
    return notes


def _absolute(job: ScanJob) -> ScanJob:
    """Workers may stand in another folder."""
    images = tuple(path.absolute() for path in job.subject.images)
    networks = tuple(path.absolute() for path in job.networks)
    prior = job.options.prior
    options = dataclasses.replace(job.options, prior=None if prior is None else Path(prior).absolute())
    subject = dataclasses.replace(job.subject, images=images)
    trust = None if job.trust is None else job.trust.absolute()
    return ScanJob(networks, options, job.mirror, subject, job.path.absolute(), trust)


def _label_and_tell(job: ScanJob) -> None:
    with _ONE_AT_A_TIME:  # Beam may hand a process several jobs at once, and the memory is for one scan
        network = _network(job)
        note = label_scan(network, job)
        details = {key: _of(value, job.subject.subject_id) for key, value in network.details().items()}
    write_json(job.note, note | {"details": details})


def _of(value: Mapping[str, Any], subject_id: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key == subject_id}


def _network(job: ScanJob) -> AnyNetwork:
    """Opens the networks of a job, once in a process."""
    key = repr((job.networks, job.options))
    if key not in _OPENED:
        _OPENED.clear()
        _OPENED[key] = opened(job.networks, job.options)
    return _OPENED[key]


def _watch(jobs: Sequence[ScanJob], progress: Progress | None) -> None:
    if progress is not None:
        progress(sum(job.note.exists() for job in jobs), len(jobs), "")


def _remove_notes(jobs: Sequence[ScanJob]) -> None:
    for job in jobs:
        job.note.unlink(missing_ok=True)
    folder = jobs[0].note.parent
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
