"""From trained networks and scans to labels: `predict`.

The user gives one run, several, or a folder of cross-validation; several are one ensemble, the mean of their
probabilities. The labels are then cleaned: by the rule of the recipe the networks were trained by, and by the
`postprocessing.json` in the folder given, which cross-validation chose on labels that had gone through the former.
A network that looks at the labels of an earlier one gets them from files, or from the earlier network itself.

`predictions.json` beside the predictions carries the label map, which subjects were asked for, which failed and why,
and which runs, cleaning and engine made them; `evaluate` reads it, so that a subject that failed cannot go missing from
the tables.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, sha256, write_json
from tfmuscle.io import VOLUME_SUFFIXES, case_files, read_label_image, write_volume
from tfmuscle.postprocessing import CHEENA, CLEANING_FILE, Cleaning, clean
from tfmuscle.preprocessing import find_midline
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.schedule import curves
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats labels are written in."""
PROGRESS_STEPS = 100
"""Steps of the progress per scan."""
PREDICTIONS_FILE = "predictions.json"
RECIPE_CLEANINGS = {"none": Cleaning(), "cheena": CHEENA}
"""What `Supervised.postprocessing` stands for."""


@dataclass(frozen=True)
class PredictOptions:
    """What may be left as it is.

    Attributes:
        prior: labels of an earlier network, for networks that look at them: a folder of label images named like the
            scans, one such image for one scan, a run, or a folder of cross-validation.
        postprocess: clean the labels as the recipe and `postprocessing.json` say.
        engine: what runs the networks, one of `inference.ENGINES`.
        resume: keep predictions that are there.
    """

    prior: str | Path | None = None
    postprocess: bool = True
    engine: str = "keras"
    resume: bool = False


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
        run: run folder made by `fit`, a folder of cross-validation, or several of them: an ensemble.
        source: a scan, a folder of scans, a DICOM series, a folder of series, or a dataset.
        out: folder for `<subject>.nii.gz`, or for one scan a file name.
        part: only the subjects of the dataset that were `folds.PARTS`: "train", "validation", "left_out" or
            "test" when the runs were trained.
        mirror: average over mirrored copies, exchanging left and right.
        options: prior, cleaning, engine, and whether to go on with what is there.
        progress: called with (steps done, steps in all, subject), `PROGRESS_STEPS` a scan.

    Raises:
        DataError: a run, the source or the output cannot be used, or runs that do not go together.
    """
    options = options or PredictOptions()
    if progress is not None and options.engine != "keras":
        progress(0, PROGRESS_STEPS, "preparing the engine")
    network = _Network.opened([run] if isinstance(run, str | Path) else list(run), options)
    subjects = _sources(Path(source), network.runs, part)
    out = Path(out)
    single = _is_one_file(out, len(subjects))
    folder = out.parent if single else out
    description = _description(network, part, mirror, [subject.subject_id for subject in subjects])
    if not single:
        _claim_predictions(folder / PREDICTIONS_FILE, description, resume=options.resume)
    paths = {subject.subject_id: out if single else folder / f"{subject.subject_id}.nii.gz" for subject in subjects}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, subject in enumerate(subjects):
        started, path = time.monotonic(), paths[subject.subject_id]
        try:
            _check_overwriting(path, subject)
            if not (options.resume and path.exists()):
                windows = _within(progress, number, len(subjects), subject.subject_id)
                image = subject.read_image()
                write_volume(path, network.labels(image, subject.subject_id, mirror=mirror, progress=windows))
        except DataError as error:
            failures[subject.subject_id] = str(error)
        seconds[subject.subject_id] = round(time.monotonic() - started, 2)
        if progress is not None:
            progress((number + 1) * PROGRESS_STEPS, len(subjects) * PROGRESS_STEPS, subject.subject_id)
    if not single:
        description |= {"engine": network.engine, "seconds": seconds, "failures": failures}
        write_json(folder / PREDICTIONS_FILE, description)
    written = {subject_id: path for subject_id, path in paths.items() if subject_id not in failures}
    return PredictResult(folder, written, failures, network.warnings, network.is_reduced)


@dataclass(frozen=True, eq=False)
class _Network:
    """One run or an ensemble, with what cleans its labels and what it looks at besides the scan."""

    runs: tuple[inference.Run, ...]
    cleanings: tuple[Cleaning, ...] = ()
    prior: "_Network | dict[str, Path] | None" = field(default=None)
    prior_name: str | None = None

    @classmethod
    def opened(cls, paths: Sequence[str | Path], options: PredictOptions) -> Self:
        runs = inference.load_ensemble(paths)
        spec, where = runs[0].spec, options.prior
        if spec.prior and where is None:
            raise DataError(f"{runs[0].path}: looks at the labels of an earlier network; give them with --prior")
        if where is not None and not spec.prior:
            raise DataError(f"{runs[0].path}: looks at the scan alone; leave out --prior")
        prior = None if where is None else cls._prior(Path(where), runs[0], options)
        cleanings = _cleanings(paths, runs) if options.postprocess else ()
        runs = tuple(inference.with_engine(run, options.engine) for run in runs)
        return cls(runs, cleanings, prior, None if where is None else Path(where).resolve().name)

    @classmethod
    def _prior(cls, path: Path, run: inference.Run, options: PredictOptions) -> "_Network | dict[str, Path]":
        if path.name.lower().endswith(VOLUME_SUFFIXES):
            return {"": path}
        if not (inference.run_folders(path)[0] / "spec.json").exists():
            return case_files(path)
        prior = cls.opened([path], PredictOptions(None, options.postprocess, options.engine))
        mine, theirs = run.spec.label_map.to_dict(), prior.runs[0].spec.label_map.to_dict()
        if mine != theirs:
            raise DataError(f"{path}: its labels are {theirs}, but {mine} in {run.path}; give the run it was made for")
        return prior

    def labels(self, image: Volume, name: str, *, mirror: bool, progress: inference.Progress | None = None) -> Volume:
        """Returns the cleaned labels of the scan of subject `name`."""
        spec, prior = self.runs[0].spec, None
        if isinstance(self.prior, _Network):
            prior = self.prior.labels(image, name, mirror=mirror)
        elif self.prior is not None:
            prior = self._read_prior(self.prior, image, name)
        labels = inference.predict_volume(self.runs, image, prior=prior, mirror=mirror, progress=progress)
        for cleaning in self.cleanings:
            midline = find_midline(image) if cleaning.side is not None else None
            labels = clean(labels, cleaning, spec.label_map, orientation=spec.orientation, midline=midline)
        return labels

    def _read_prior(self, files: dict[str, Path], image: Volume, name: str) -> Volume:
        path = files.get("", files.get(name))
        if path is None:
            raise DataError(
                f"{name}: has no prior among {len(files)} label images in {self.prior_name}; name them alike"
            )
        prior = read_label_image(path)
        if not prior.geometry.same_grid(image.geometry):
            raise DataError(f"{path}: shape {prior.geometry.shape}, not on the grid {image.geometry.shape} of the scan")
        if unknown := self.runs[0].spec.label_map.unknown_ids(prior.array):
            raise DataError(f"{path}: ids {list(unknown)} are not among those of {self.runs[0].path}; relabel it")
        return prior

    @property
    def is_reduced(self) -> bool:
        return any("laptop" in (run.spec.scale, run.config.scale) for run in self.runs)

    @property
    def engine(self) -> str | list[str]:
        return _joined([run.engine.name if run.engine is not None else "keras" for run in self.runs])

    @property
    def warnings(self) -> tuple[str, ...]:
        before = self.prior.warnings if isinstance(self.prior, _Network) else ()
        notes = (note for run in self.runs for note in (run.warning, run.engine.note if run.engine else ""))
        return (*before, *(note for note in notes if note))


def _cleanings(paths: Sequence[str | Path], runs: Sequence[inference.Run]) -> tuple[Cleaning, ...]:
    """Returns the recipe's cleaning and the one that cross-validation chose, in this order, once where equal."""
    recipes = {run.config.recipe.postprocessing for run in runs}
    files = [Path(path) / CLEANING_FILE for path in paths]
    chosen = {Cleaning.load(file) if file.exists() else Cleaning() for file in files}
    for what, several in (("recipes of the runs", recipes), (CLEANING_FILE, chosen)):
        if len(several) > 1:
            raise DataError(f"{files[0].parent}: the {what} clean labels in different ways; use --no-postprocess")
    ((recipe,), (choice,)) = recipes, chosen
    if unknown := sorted(set(choice.largest) - set(runs[0].spec.label_map.structures)):
        raise DataError(f"{files[0]}: the runs have no {', '.join(unknown)}; use --no-postprocess, or remove the file")
    return tuple(
        dict.fromkeys(cleaning for cleaning in (RECIPE_CLEANINGS[recipe], choice) if cleaning)
    )  # once if equal


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


def _sources(source: Path, runs: Sequence[inference.Run], part: str | None) -> tuple[Subject, ...]:
    is_dataset = (source / "dataset.json").exists()
    if part is None:
        return read_dataset(source).subjects if is_dataset else read_scans(source, runs[0].spec.channels)
    if not is_dataset:
        raise DataError(f"{source}: holds no dataset.json, so its {part} subjects are unknown; give the dataset")
    wanted = read_json(runs[0].path / "split.json").get(part, [])
    for run in runs[1:]:
        if sorted(read_json(run.path / "split.json").get(part, [])) != sorted(wanted):
            raise DataError(f"{run.path}: has other {part} subjects than {runs[0].path}; give one of the runs")
    found = {subject.subject_id: subject for subject in read_dataset(source).subjects}
    missing = [subject_id for subject_id in wanted if subject_id not in found]
    if missing:
        raise DataError(
            f"{source}: lacks {', '.join(missing[:5])} of the run's {part} subjects; give the run's dataset"
        )
    if not wanted:
        raise DataError(
            f"{runs[0].path / 'split.json'}: the run has no {part} subjects; build records with --test, or train with"
            " --left-out, to hold some out"
        )
    return tuple(found[subject_id] for subject_id in wanted)


def _claim_predictions(path: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Notes whose predictions these are before the first is made, and refuses to go on with those of another model."""
    if resume and path.exists():
        before = read_json(path)
        for key in ("weights", "mirror", "cleaning", "prior"):
            if key in before and before[key] != description[key]:
                raise DataError(
                    f"{path}: the predictions there have other {key}; name another folder, or leave out --resume"
                )
    write_json(path, description)


def _joined(values: list[Any]) -> Any:
    """Returns what all runs have in common, else the list."""
    return values[0] if all(value == values[0] for value in values) else values


def _name(run: inference.Run) -> str:
    """Names a run by its folder; one of a cross-validation by preset and fold too."""
    parts = run.path.resolve().parts
    return "/".join(parts[-3:] if parts[-2].startswith("fold_") else parts[-1:])


def _description(network: _Network, part: str | None, mirror: bool, subjects: list[str]) -> dict[str, Any]:
    runs, first = network.runs, network.runs[0]
    abouts = [read_json(run.path / "about.json") if (run.path / "about.json").exists() else {} for run in runs]
    known = [about["seconds"] for about in abouts if about.get("seconds") is not None]
    return {
        "labels": first.spec.label_map.to_dict(),
        "run": _joined([_name(run) for run in runs]),
        "dataset": _joined([run.spec.name for run in runs]),
        "part": part or "all scans given",
        "mirror": mirror,
        "model": _joined([run.config.model for run in runs]),
        "preset": _joined([run.config.preset for run in runs]),
        "orientation": first.spec.orientation,
        "history": curves(read_history(first.path / "history.csv")) if len(runs) == 1 else {},
        "scale": "laptop" if network.is_reduced else "full",
        "seed": _joined([run.config.seed for run in runs]),
        "fold": _joined([run.config.fold for run in runs]),
        "epochs": _joined([about.get("epochs") for about in abouts]),
        "trained_on": _joined([about.get("hardware") for about in abouts]),
        "training_seconds": sum(known) if known else None,
        "made_with": provenance(),
        "weights": _joined([sha256(run.path / inference.WEIGHTS_FILE) for run in runs]),
        "cleaning": [cleaning.to_dict() for cleaning in network.cleanings],
        "prior": network.prior_name,
        "engine": network.engine,
        "subjects": subjects,
    }
