"""From trained networks and scans to labels: `predict`.

The user gives one run, several, or a folder of cross-validation; several are one ensemble, the mean of their
probabilities. The labels are then cleaned: by the rule of the recipe the networks were trained by, and by the
`postprocessing.json` in the folder given, which cross-validation chose on labels that had gone through the former.
A network that looks at the labels of an earlier one gets them from files, or from the earlier network itself. What all
this is, `networks.py` knows.

`predictions.json` beside the predictions carries the label map, which subjects were asked for, which failed and why,
and which runs, cleaning and engine made them; `evaluate` reads it, so that a subject that failed cannot go missing from
the tables.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, write_json
from tfmuscle.io import VOLUME_SUFFIXES, write_volume
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.bundles import BundleNetwork
from tfmuscle.workflows.networks import CascadeNetwork, Network, PredictOptions, opened

__all__ = ["PredictOptions", "PredictResult", "predict"]

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats labels are written in."""
PROGRESS_STEPS = 100
"""Steps of the progress per scan."""
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did: files written by subject, failures with their reason, and what to know about the runs.

    `reduced` says that the recipe was cut down (`--scale laptop`).
    """

    folder: Path
    written: dict[str, Path]
    failures: dict[str, str]
    warnings: tuple[str, ...] = ()
    reduced: bool = False


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
        options: prior, cleaning, engine, roi, and whether to go on with what is there.
        progress: called with (steps done, steps in all, subject), `PROGRESS_STEPS` a scan.

    Raises:
        DataError: a run, the source or the output cannot be used, or runs that do not go together.
    """
    options = options or PredictOptions()
    if progress is not None and options.engine != "keras":
        progress(0, PROGRESS_STEPS, "preparing the engine")
    network = opened([run] if isinstance(run, str | Path) else list(run), options)
    subjects = _sources(Path(source), network, part)
    out = Path(out)
    single = _is_one_file(out, len(subjects))
    folder = out.parent if single else out
    description = _description(network, part, mirror, [subject.subject_id for subject in subjects])
    earlier = _earlier(folder / PREDICTIONS_FILE) if options.resume and not single else {}
    if not single:
        _claim_predictions(folder / PREDICTIONS_FILE, description, resume=options.resume)
    paths = {subject.subject_id: out if single else folder / f"{subject.subject_id}.nii.gz" for subject in subjects}
    failures: dict[str, str] = {}
    seconds = dict(earlier.get("seconds", {}))
    for number, subject in enumerate(subjects):
        started, path = time.monotonic(), paths[subject.subject_id]
        try:
            _check_overwriting(path, subject)
            if not (options.resume and path.exists()):
                windows = _within(progress, number, len(subjects), subject.subject_id)
                image = subject.read_image()
                write_volume(path, network.labels(image, subject.subject_id, mirror=mirror, progress=windows))
                seconds[subject.subject_id] = round(time.monotonic() - started, 2)
        except DataError as error:
            failures[subject.subject_id] = str(error)
        if not single:  # after every scan, so that a kill loses nothing that is known of those before
            known = {key: earlier.get(key, {}) | value for key, value in network.details().items()}
            write_json(folder / PREDICTIONS_FILE, description | known | {"seconds": seconds, "failures": failures})
        if progress is not None:
            progress((number + 1) * PROGRESS_STEPS, len(subjects) * PROGRESS_STEPS, subject.subject_id)
    warnings = (*network.warnings, *_known(network, part, source, list(paths)))
    written = {subject_id: path for subject_id, path in paths.items() if subject_id not in failures}
    return PredictResult(folder, written, failures, warnings, network.is_reduced)


def _known(
    network: Network | CascadeNetwork | BundleNetwork, part: str | None, source: str | Path, subjects: list[str]
) -> list[str]:
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


def _check_overwriting(path: Path, subject: Subject) -> None:
    if path.resolve() in {image.resolve() for image in subject.images}:
        raise DataError(f"{path}: is the scan itself, which the labels would overwrite; name another output")


def _within(progress: Progress | None, number: int, total: int, note: str) -> Callable[[int, int], None] | None:
    """Turns the windows of one scan into steps of the whole job."""
    if progress is None:
        return None

    def windows(done: int, of: int) -> None:
        progress(number * PROGRESS_STEPS + PROGRESS_STEPS * done // of, total * PROGRESS_STEPS, note)

    return windows


def _sources(source: Path, network: Network | CascadeNetwork | BundleNetwork, part: str | None) -> tuple[Subject, ...]:
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


def _description(
    network: Network | CascadeNetwork | BundleNetwork, part: str | None, mirror: bool, subjects: list[str]
) -> dict[str, Any]:
    asked = {"part": part or "all scans given", "mirror": mirror, "made_with": provenance(), "subjects": subjects}
    return network.description() | asked
