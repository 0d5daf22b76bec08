"""From trained networks and scans to labels: `predict`.

The user gives one run, several, or a folder of cross-validation; several are one ensemble, the mean of their
probabilities. The labels are then cleaned: by the rule of the recipe the networks were trained by, and by the
`postprocessing.json` in the folder given, which cross-validation chose on labels that had gone through the former.
A network that looks at the labels of an earlier one gets them from files, or from the earlier network itself. What all
this is, `networks.py` knows. With `uncertainty` there are maps and a table of what the labels are worth (`trusting`).

`predictions.json` beside the predictions carries the label map, which subjects were asked for, which failed and why,
and which runs, cleaning and engine made them; `evaluate` reads it, so that a subject that failed cannot go missing from
the tables.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, write_json
from tfmuscle.io import VOLUME_SUFFIXES, case_id
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.networks import AnyNetwork, Network, PredictOptions, opened
from tfmuscle.workflows.scan_jobs import ScanJob, label_on_beam, label_scan
from tfmuscle.workflows.trusting import FOLDER as TRUST
from tfmuscle.workflows.trusting import Trust, write_table

__all__ = ["PredictOptions", "PredictResult", "predict"]

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats labels are written in."""
PROGRESS_STEPS = 100
"""Steps of the progress per scan."""
PREDICTIONS_FILE = "predictions.json"
Keep = Callable[[Mapping[str, dict[str, Any]], Mapping[str, Any]], dict[str, str]]
"""Keeps what is known of the scans, by subject, and says which failed."""


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did: files written by subject, failures with their reason, and what to know about the runs.

    `reduced` says that the recipe was cut down (`--scale laptop`). `worth` holds one row a scan and structure, those to
    look at first, where `uncertainty` was asked for.
    """

    folder: Path
    written: dict[str, Path]
    failures: dict[str, str]
    warnings: tuple[str, ...] = ()
    reduced: bool = False
    worth: tuple[dict[str, Any], ...] = ()


def predict(
    run: str | Path | Sequence[str | Path],
    source: str | Path,
    out: str | Path,
    *,
    part: str | None = None,
    mirror: bool = True,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> PredictResult:
    """Segments scans; each output is a label image on exactly its scan's grid.

    Args:
        run: run folder made by `fit`, a folder of cross-validation, or several of them: an ensemble; or a cascade.
        source: a scan, a folder of scans, a DICOM series, a folder of series, or a dataset.
        out: folder for `<subject>.nii.gz`, or for one scan a file name.
        part: only the subjects of the dataset that were `folds.PARTS`: "train", "validation", "left_out" or
            "test" when the runs were trained.
        mirror: average over mirrored copies, exchanging left and right.
        options: prior, cleaning, engine, roi, whether to go on with what is there, and whether Beam does the work.
        progress: called with (steps done, steps in all, subject), `PROGRESS_STEPS` a scan.

    Raises:
        DataError: a run, the source or the output cannot be used, or runs that do not go together.
    """
    options = options or PredictOptions()
    if progress is not None and options.engine != "keras":
        progress(0, PROGRESS_STEPS, "preparing the engine")
    network = opened([run] if isinstance(run, str | Path) else list(run), options)
    _check_mirror(network, mirror)
    subjects = _sources(Path(source), network, part)
    out = Path(out)
    single = _is_one_file(out, len(subjects))
    folder = out.parent if single else out
    description = _description(network, part, mirror, [subject.subject_id for subject in subjects])
    earlier = _earlier(folder / PREDICTIONS_FILE) if options.resume and not single else {}
    if not single:
        _claim_predictions(folder / PREDICTIONS_FILE, description, resume=options.resume)
    paths = {subject.subject_id: out if single else folder / f"{subject.subject_id}.nii.gz" for subject in subjects}
    networks = (Path(run),) if isinstance(run, str | Path) else tuple(map(Path, run))
    trusts = {key: Trust.beside(path, single=single) if options.uncertainty else None for key, path in paths.items()}
    jobs = [
        ScanJob(networks, options, mirror, subject, paths[subject.subject_id], trusts[subject.subject_id])
        for subject in subjects
    ]
    keep = functools.partial(_keep, None if single else folder / PREDICTIONS_FILE, description, earlier)
    failures = _on_beam(jobs, keep, progress) if options.beam else _here(network, jobs, keep, progress)
    warnings = (*network.warnings, *_known(network, part, source, list(paths)))
    written = {subject_id: path for subject_id, path in paths.items() if subject_id not in failures}
    told = {key: trust for key, trust in trusts.items() if trust is not None and key in written}
    worth = _worth(out, told, single=single) if options.uncertainty else ()
    return PredictResult(folder, written, failures, warnings, network.is_reduced, worth)


def _worth(out: Path, trusts: Mapping[str, Trust], *, single: bool) -> tuple[dict[str, Any], ...]:
    """Writes the table of what labels are worth, and returns its rows."""
    path = out.with_name(f"{case_id(out)}_{TRUST}.csv") if single else out / f"{TRUST}.csv"
    return tuple(write_table(path, trusts))


def _check_mirror(network: AnyNetwork, mirror: bool) -> None:
    calibration = network.calibration if isinstance(network, Network) else None
    if calibration is not None and calibration.mirror != mirror:
        flags = {True: "--mirror", False: "--no-mirror"}
        raise DataError(
            f"{network.folder}: uncertainty was calibrated with {flags[calibration.mirror]}; predict so, or calibrate"
            f" anew with {flags[mirror]}"
        )


def _here(network: AnyNetwork, jobs: Sequence[ScanJob], keep: Keep, progress: Progress | None) -> dict[str, str]:
    """Labels one scan after the other; what is known is kept after each, so that a kill loses nothing."""
    notes: dict[str, dict[str, Any]] = {}
    for number, job in enumerate(jobs):
        subject_id = job.subject.subject_id
        notes[subject_id] = label_scan(network, job, _within(progress, number, len(jobs), subject_id))
        failures = keep(notes, network.details())
        if progress is not None:
            progress((number + 1) * PROGRESS_STEPS, len(jobs) * PROGRESS_STEPS, subject_id)
    return failures


def _on_beam(jobs: Sequence[ScanJob], keep: Keep, progress: Progress | None) -> dict[str, str]:
    notes = label_on_beam(jobs, progress)
    details: dict[str, Any] = {}
    for note in notes.values():
        for key, value in note.get("details", {}).items():
            details.setdefault(key, {}).update(value)
    return keep(notes, details)


def _keep(
    path: Path | None,
    description: dict[str, Any],
    earlier: dict[str, Any],
    notes: Mapping[str, dict[str, Any]],
    details: Mapping[str, Any],
) -> dict[str, str]:
    """Writes what is known of the scans into `predictions.json`; returns those that failed, and why."""
    failures = {subject_id: note["failure"] for subject_id, note in notes.items() if "failure" in note}
    seconds = {subject_id: note["seconds"] for subject_id, note in notes.items() if "seconds" in note}
    if path is not None:
        known = {key: earlier.get(key, {}) | value for key, value in details.items()}
        seconds = earlier.get("seconds", {}) | seconds
        write_json(path, description | known | {"seconds": seconds, "failures": failures})
    return failures


def _known(network: AnyNetwork, part: str | None, source: str | Path, subjects: list[str]) -> list[str]:
    """Warns when scans of a dataset have names of those that trained the network: figures of them would be too good."""
    if part is not None or not (Path(source) / "dataset.json").exists():
        return []
    dataset = read_dataset(source)
    if dataset.name not in network.datasets() or dataset.channels != network.channels:
        return []
    known = sorted(set(subjects) & network.trained_on())
    if not known:
        return []
    same = f"{len(known)} of {len(subjects)} scans are called like scans that trained this model, e.g. {known[0]}"
    return [f"{same}; if they are the same, figures of them are too good, and --split names those left out"]


def _is_one_file(out: Path, num_subjects: int) -> bool:
    """Whether the output is a file name rather than a folder; refuses one that cannot be."""
    single = out.name.lower().endswith(VOLUME_SUFFIXES)
    if single and not out.name.lower().endswith(WRITTEN_SUFFIXES):
        raise DataError(f"{out}: labels are written as {', '.join(WRITTEN_SUFFIXES)}; choose one of them, or a folder")
    if single and num_subjects > 1:
        raise DataError(f"{out}: one file name for {num_subjects} scans; name a folder")
    return single


def _within(progress: Progress | None, number: int, total: int, note: str) -> Callable[[int, int], None] | None:
    """Turns the windows of one scan into steps of the whole job."""
    if progress is None:
        return None

    def windows(done: int, of: int) -> None:
        progress(number * PROGRESS_STEPS + PROGRESS_STEPS * done // of, total * PROGRESS_STEPS, note)

    return windows


def _sources(source: Path, network: AnyNetwork, part: str | None) -> tuple[Subject, ...]:
    is_dataset = (source / "dataset.json").exists()
    if part is None:
        return read_dataset(source).subjects if is_dataset else read_scans(source, network.channels)
    if not is_dataset:
        raise DataError(f"{source}: holds no dataset.json, so its {part} subjects are unknown; give the dataset")
    wanted = network.subjects_of(part)
    found = {subject.subject_id: subject for subject in read_dataset(source).subjects}
    missing = [subject_id for subject_id in wanted if subject_id not in found]
    if missing:
        raise DataError(
            f"{source}: lacks {', '.join(missing[:5])} of the run's {part} subjects; give the run's dataset"
        )
    if not wanted:
        raise DataError(
            f"{network.folder}: the run has no {part} subjects; build records with --test, or train with --left-out, to"
            " hold some out, or use --split validation"
        )
    return tuple(found[subject_id] for subject_id in wanted)


def _earlier(path: Path) -> dict[str, Any]:
    """Returns what an earlier call noted of its scans."""
    content = read_json(path) if path.exists() else {}
    return {key: content[key] for key in ("stages", "seconds") if isinstance(content.get(key), dict)}


def _claim_predictions(path: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Notes whose predictions these are before the first is made, and refuses to go on with those of another model."""
    if resume and path.exists():
        before = read_json(path)
        for key in ("weights", "mirror", "cleaning", "prior", "roi", "cascade", "box_seed"):
            if key in before and before[key] != description.get(key):
                raise DataError(
                    f"{path}: the predictions there have other {key}; name another folder, or leave out --resume"
                )
    write_json(path, description)


def _description(network: AnyNetwork, part: str | None, mirror: bool, subjects: list[str]) -> dict[str, Any]:
    asked = {"part": part or "all scans given", "mirror": mirror, "made_with": provenance(), "subjects": subjects}
    return network.description() | asked
