"""One run or an ensemble of them behind the names that `networks` promises."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256
from tfmuscle.io import VOLUME_SUFFIXES, case_files, read_label_image
from tfmuscle.postprocessing import CLEANING_FILE, Cleaning, clean, recipe_cleaning
from tfmuscle.preprocessing import find_midline
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.schedule import curves
from tfmuscle.uncertainty import CALIBRATION_FILE, Calibration
from tfmuscle.volume import Volume
from tfmuscle.workflows.predict_options import PredictOptions


@dataclass(frozen=True, eq=False)
class Network:
    """One run or an ensemble, with what cleans its labels and what it looks at besides the scan."""

    runs: tuple[inference.Run, ...]
    cleanings: tuple[Cleaning, ...] = ()
    prior: "Network | dict[str, Path] | None" = field(default=None)
    prior_name: str | None = None
    calibration: Calibration | None = None

    @classmethod
    def opened(cls, paths: Sequence[str | Path], options: PredictOptions) -> Self:
        """Opens runs, or folders of cross-validation, and what they look at besides the scan."""
        runs = inference.load_ensemble(paths)
        _refuse_parts_of_a_cascade(runs)
        spec, where = runs[0].spec, options.prior
        if spec.prior and where is None:
            raise DataError(f"{runs[0].path}: looks at the labels of an earlier network; give them with --prior")
        if where is not None and not spec.prior:
            raise DataError(f"{runs[0].path}: looks at the scan alone; leave out --prior")
        prior = None if where is None else cls._prior(Path(where), runs[0], options)
        cleanings = _cleanings(paths, runs) if options.postprocess else ()
        calibration = _calibration(paths, runs) if options.uncertainty else None
        runs = tuple(inference.with_engine(run, options.engine) for run in runs)
        return cls(runs, cleanings, prior, None if where is None else Path(where).resolve().name, calibration)

    @classmethod
    def _prior(cls, path: Path, run: inference.Run, options: PredictOptions) -> "Network | dict[str, Path]":
        if path.name.lower().endswith(VOLUME_SUFFIXES):
            return {"": path}
        if not (inference.run_folders(path)[0] / "spec.json").exists():
            return case_files(path)
        prior = cls.opened([path], PredictOptions(postprocess=options.postprocess, engine=options.engine))
        mine, theirs = run.spec.label_map.to_dict(), prior.runs[0].spec.label_map.to_dict()
        if mine != theirs:
            raise DataError(f"{path}: its labels are {theirs}, but {mine} in {run.path}; give the run it was made for")
        return prior

    def labels(self, image: Volume, name: str, *, mirror: bool, progress: inference.Progress | None = None) -> Volume:
        """Returns the cleaned labels of the scan of subject `name`."""
        prior = self._prior_of(image, name, mirror=mirror)
        labels = inference.predict_volume(self.runs, image, prior=prior, mirror=mirror, progress=progress)
        return self._cleaned(labels, image)

    def uncertain(
        self,
        image: Volume,
        name: str,
        *,
        mirror: bool,
        asked: np.ndarray | None = None,
        progress: inference.Progress | None = None,
    ) -> inference.Uncertain:
        """Returns the same labels with the probability that they are wrong, and how far the networks agree.

        Where cleaning has changed a label, the map says how likely the network thinks that this was wrong, at least.

        Args:
            image: the scan.
            name: its subject.
            mirror: average over mirrored copies.
            asked: as for `predict_uncertain`.
            progress: as for `labels`.
        """
        found = inference.predict_uncertain(
            self.runs,
            image,
            prior=self._prior_of(image, name, mirror=mirror),
            mirror=mirror,
            temperature=1.0 if self.calibration is None else self.calibration.temperature,
            asked=asked,
            progress=progress,
        )
        labels, error = self._cleaned(found.labels, image), found.error.array
        changed = labels.array != found.labels.array
        error[changed] = np.maximum(error[changed], 1 - error[changed])  # another class has what the largest left over
        return dataclasses.replace(found, labels=labels)

    def _prior_of(self, image: Volume, name: str, *, mirror: bool) -> Volume | None:
        if isinstance(self.prior, Network):
            return self.prior.labels(image, name, mirror=mirror)
        return None if self.prior is None else self._read_prior(self.prior, image, name)

    def _cleaned(self, labels: Volume, image: Volume) -> Volume:
        spec = self.runs[0].spec
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
        """Whether a recipe was cut down."""
        return any("laptop" in (run.spec.scale, run.config.scale) for run in self.runs)

    @property
    def engine(self) -> str | list[str]:
        """What runs the networks."""
        return in_common([run.engine.name if run.engine is not None else "keras" for run in self.runs])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the labels."""
        before = self.prior.warnings if isinstance(self.prior, Network) else ()
        notes = (note for run in self.runs for note in (run.warning, run.engine.note if run.engine else ""))
        learnt = () if self.calibration is None else self.calibration.warnings
        return (*before, *(note for note in notes if note), *learnt)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of a scan."""
        return self.runs[0].spec.channels

    def subjects_of(self, part: str) -> list[str]:
        """Returns the subjects that were this part when the runs were trained.

        Raises:
            DataError: the runs had different ones.
        """
        wanted = read_json(self.runs[0].path / "split.json").get(part, [])
        for run in self.runs[1:]:
            if sorted(read_json(run.path / "split.json").get(part, [])) != sorted(wanted):
                raise DataError(f"{run.path}: has other {part} subjects than {self.runs[0].path}; give one of the runs")
        return list(wanted)

    def datasets(self) -> set[str]:
        """Returns the names of the datasets that trained the runs."""
        return {run.spec.name for run in self.runs}

    def trained_on(self) -> set[str]:
        """Returns the subjects that trained one of the runs, or chose its epoch."""
        files = [run.path / "split.json" for run in self.runs]
        splits = [read_json(file) for file in files if file.exists()]
        return {subject for split in splits for part in ("train", "validation") for subject in split.get(part, [])}

    def description(self) -> dict[str, Any]:
        """Returns what tables must know of the network, as plain JSON content."""
        runs, first = self.runs, self.runs[0]
        abouts = [read_json(run.path / "about.json") if (run.path / "about.json").exists() else {} for run in runs]
        known = [about["seconds"] for about in abouts if about.get("seconds") is not None]
        return {
            "labels": first.spec.label_map.to_dict(),
            "run": in_common([_name(run) for run in runs]),
            "dataset": in_common([run.spec.name for run in runs]),
            "model": in_common([run.config.model for run in runs]),
            "preset": in_common([run.config.preset for run in runs]),
            "orientation": first.spec.orientation,
            "history": curves(read_history(first.path / "history.csv")) if len(runs) == 1 else {},
            "scale": "laptop" if self.is_reduced else "full",
            "seed": in_common([run.config.seed for run in runs]),
            "fold": in_common([run.config.fold for run in runs]),
            "epochs": in_common([about.get("epochs") for about in abouts]),
            "trained_on": in_common([about.get("hardware") for about in abouts]),
            "training_seconds": sum(known) if known else None,
            "weights": in_common(list(checksums(runs))),
            "cleaning": [cleaning.to_dict() for cleaning in self.cleanings],
            "prior": self.prior_name,
            "engine": self.engine,
        }

    def details(self) -> dict[str, Any]:
        """Returns what is known only when the scans are labelled."""
        return {}

    @property
    def folder(self) -> Path:
        """Where the (first) run is, for messages."""
        return self.runs[0].path


def _refuse_parts_of_a_cascade(runs: Sequence[inference.Run]) -> None:
    for run in runs:
        if run.spec.patches in ("whole", "boxes"):
            raise DataError(
                f"{run.path}: is one network of a cascade and sees no whole scan; give the cascade's folder"
            )


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
        dict.fromkeys(cleaning for cleaning in (recipe_cleaning(recipe, runs[0].spec.label_map), choice) if cleaning)
    )  # once if equal


def _calibration(paths: Sequence[str | Path], runs: Sequence[inference.Run]) -> Calibration:
    """Reads what was learnt of these runs.

    Raises:
        DataError: nothing, or of others.
    """
    file, how = Path(paths[0]) / CALIBRATION_FILE, " ".join(f"-m {path}" for path in paths)
    if not file.exists():
        raise DataError(
            f"{paths[0]}: holds no {CALIBRATION_FILE}, so that nobody knows what uncertainty means; make it with"
            f" 'tfmuscle calibrate {how} -i DATASET'"
        )
    found, weights = Calibration.load(file), checksums(runs)
    if sorted(found.members) != sorted(weights) or found.labels != runs[0].spec.label_map.to_dict():
        raise DataError(
            f"{file}: was learnt of other networks ({len(found.members)} of them) than the {len(weights)} given;"
            f" make it anew with 'tfmuscle calibrate {how} -i DATASET'"
        )
    return found


def checksums(runs: Sequence[inference.Run]) -> tuple[str, ...]:
    """Returns the checksums of the weights of runs."""
    return tuple(sha256(run.path / inference.WEIGHTS_FILE) for run in runs)


def in_common(values: list[Any]) -> Any:
    """Returns what all runs have in common, else the list."""
    return values[0] if all(value == values[0] for value in values) else values


def _name(run: inference.Run) -> str:
    """Names a run by its folder; one of a cross-validation by preset and fold too."""
    parts = run.path.resolve().parts
    return "/".join(parts[-3:] if parts[-2].startswith("fold_") else parts[-1:])
