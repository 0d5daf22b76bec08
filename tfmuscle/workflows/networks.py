"""What labels a scan: one network, an ensemble, a cascade of many, or an exported bundle, behind the same few names.

`opened` looks at the folders that the user gave and returns a `Network`, a `CascadeNetwork` or a `BundleNetwork`. All
have `channels`, `labels()`, `subjects_of()`, `warnings`, `is_reduced` and `description()`; `predicting` needs to know
no more.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tfmuscle import inference
from tfmuscle.cascade import structures_of
from tfmuscle.config import Cascade, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.export.bundle import is_bundle
from tfmuscle.files import read_json, sha256
from tfmuscle.io import VOLUME_SUFFIXES, case_files, read_label_image
from tfmuscle.postprocessing import CLEANING_FILE, Cleaning, clean, recipe_cleaning
from tfmuscle.preprocessing import find_midline
from tfmuscle.serving import Patience
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.schedule import curves
from tfmuscle.volume import Volume
from tfmuscle.workflows.bundles import BundleNetwork
from tfmuscle.workflows.served import served

OF_PREDICTION = ("boxes", "box_seed", "fusion", "placing", "telling_sides")
"""Settings of a cascade that its networks need not be trained for anew."""


@dataclass(frozen=True)
class PredictOptions:
    """What may be left as it is.

    Attributes:
        prior: labels of an earlier network, for networks that look at them: a folder of label images named like the
            scans, one such image for one scan, a run, or a folder of cross-validation.
        postprocess: clean the labels as the recipe and `postprocessing.json` say.
        engine: what runs the networks, one of `inference.ENGINES`.
        resume: keep predictions that are there.
        roi: of a cascade: muscles, structures or groups to find; all without any.
        cascade: of a cascade: fields of `config.Cascade` that go before those it was trained with, of `OF_PREDICTION`.
        server: address of a server that runs the bundle's network, e.g. grpc://127.0.0.1:8500/bones.
        send: how scans are sent to it, one of `served.WAYS`.
        deadline: seconds that it may take for one request.
        patience: seconds for a request with its repetitions.
        beam: flags from `beam.pipeline_flags`; without any, this process labels one scan after the other.
    """

    prior: str | Path | None = None
    postprocess: bool = True
    engine: str = "keras"
    resume: bool = False
    roi: tuple[str, ...] = ()
    cascade: Mapping[str, Any] = field(default_factory=dict)
    server: str | None = None
    send: str = "auto"
    deadline: float = 60.0
    patience: float = 600.0
    beam: tuple[str, ...] = ()


def opened(paths: Sequence[str | Path], options: PredictOptions) -> "AnyNetwork":
    """Opens run folders, folders of cross-validation, a cascade, or a bundle.

    Raises:
        DataError: they cannot be used, do not go together, or do not know an option.
    """
    bundles = [path for path in paths if is_bundle(path)]
    if bundles and (len(paths) > 1 or options.roi or options.cascade or options.prior is not None):
        raise DataError(
            f"{bundles[0]}: is a bundle, which makes no ensemble with others; give it alone, without --roi, --cascade"
            " and --prior"
        )
    if options.server is not None:
        return _served(paths, options)
    if bundles:
        engine = "auto" if options.engine == "keras" else options.engine  # a bundle holds no Keras network
        return BundleNetwork.opened(bundles[0], engine=engine, postprocess=options.postprocess)
    if options.engine not in inference.ENGINES:
        raise DataError(
            f"{paths[0]}: is no bundle; engine {options.engine} is for bundles, which 'tfmuscle export' makes"
        )
    cascades = [path for path in paths if inference.is_cascade(path)]
    if cascades and len(paths) > 1:
        raise DataError(f"{cascades[0]}: is a cascade, which makes no ensemble with other runs; give it alone")
    if cascades:
        return CascadeNetwork.opened(Path(cascades[0]), options)
    if options.roi or options.cascade:
        raise DataError(
            f"{paths[0]}: is no cascade, and finds all of its structures at once; leave out --roi and --cascade"
        )
    return Network.opened(paths, options)


def _served(paths: Sequence[str | Path], options: PredictOptions) -> BundleNetwork:
    if not is_bundle(paths[0]) or options.engine != "keras":
        raise DataError(
            f"{paths[0]}: with --server give the bundle that is served, or a copy of its JSON files, and no --engine"
        )
    patience = Patience(options.deadline, options.patience)
    return served(paths[0], str(options.server), patience, send=options.send, postprocess=options.postprocess)


@dataclass(frozen=True, eq=False)
class Network:
    """One run or an ensemble, with what cleans its labels and what it looks at besides the scan."""

    runs: tuple[inference.Run, ...]
    cleanings: tuple[Cleaning, ...] = ()
    prior: "Network | dict[str, Path] | None" = field(default=None)
    prior_name: str | None = None

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
        runs = tuple(inference.with_engine(run, options.engine) for run in runs)
        return cls(runs, cleanings, prior, None if where is None else Path(where).resolve().name)

    @classmethod
    def _prior(cls, path: Path, run: inference.Run, options: PredictOptions) -> "Network | dict[str, Path]":
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
        if isinstance(self.prior, Network):
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
        """Whether a recipe was cut down."""
        return any("laptop" in (run.spec.scale, run.config.scale) for run in self.runs)

    @property
    def engine(self) -> str | list[str]:
        """What runs the networks."""
        return _joined([run.engine.name if run.engine is not None else "keras" for run in self.runs])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the labels."""
        before = self.prior.warnings if isinstance(self.prior, Network) else ()
        notes = (note for run in self.runs for note in (run.warning, run.engine.note if run.engine else ""))
        return (*before, *(note for note in notes if note))

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
            "run": _joined([_name(run) for run in runs]),
            "dataset": _joined([run.spec.name for run in runs]),
            "model": _joined([run.config.model for run in runs]),
            "preset": _joined([run.config.preset for run in runs]),
            "orientation": first.spec.orientation,
            "history": curves(read_history(first.path / "history.csv")) if len(runs) == 1 else {},
            "scale": "laptop" if self.is_reduced else "full",
            "seed": _joined([run.config.seed for run in runs]),
            "fold": _joined([run.config.fold for run in runs]),
            "epochs": _joined([about.get("epochs") for about in abouts]),
            "trained_on": _joined([about.get("hardware") for about in abouts]),
            "training_seconds": sum(known) if known else None,
            "weights": _joined([sha256(run.path / inference.WEIGHTS_FILE) for run in runs]),
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


@dataclass(frozen=True, eq=False)
class CascadeNetwork:
    """A cascade, the muscles asked for, and of each scan what was placed, what was lost, and seconds of each stage."""

    cascade: inference.CascadeRun
    roi: tuple[str, ...]
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: Path, options: PredictOptions) -> Self:
        """Opens a cascade and sees that all networks that are needed are there.

        Raises:
            DataError: they are not, a name of the roi is unknown, or an option is not for cascades.
        """
        if options.prior is not None or options.engine != "keras" or not options.postprocess:
            raise DataError(
                f"{path}: is a cascade; leave out --prior, --engine and --no-postprocess, which are not its"
            )
        cascade = inference.load_cascade(path)
        if fixed := sorted(set(options.cascade) - set(OF_PREDICTION)):
            raise DataError(
                f"{path}: {', '.join(fixed)} cannot be changed any more; what predict decides is"
                f" {', '.join(OF_PREDICTION)}"
            )
        try:
            settings = Cascade.from_dict(cascade.plan.settings.to_dict() | dict(options.cascade))
            cascade = dataclasses.replace(cascade, plan=dataclasses.replace(cascade.plan, settings=settings))
            cascade.check(options.roi)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        return cls(cascade, options.roi)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of a scan."""
        return self.cascade.plan.base.channels

    @property
    def folder(self) -> Path:
        """Where the cascade is, for messages."""
        return self.cascade.path

    @property
    def is_reduced(self) -> bool:
        """Whether the recipe was cut down."""
        return self.cascade.plan.base.scale == "laptop"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the labels: unfinished networks, muscles not found."""
        unfinished = self.cascade.unfinished(self.cascade.wanted(self.roi))
        notes = [f"{self.folder}: training of {', '.join(unfinished)} has not finished"] if unfinished else []
        for subject, seen in self.seen.items():
            notes += [f"{subject}: {note}" for note in seen["notes"]]
            notes += [f"{subject}: {name} was not found: {why}" for name, why in seen["lost"].items()]
        return tuple(notes)

    def subjects_of(self, part: str) -> list[str]:
        """Returns the subjects that were this part when the cascade was trained."""
        return list(self.cascade.plan.split.get(part, []))

    def datasets(self) -> set[str]:
        """Returns the name of the dataset that trained the networks."""
        return {self.cascade.plan.base.name}

    def trained_on(self) -> set[str]:
        """Returns the subjects that trained the networks, or chose their epochs."""
        return {subject for part in ("train", "validation") for subject in self.subjects_of(part)}

    def labels(self, image: Volume, name: str, *, mirror: bool, progress: inference.Progress | None = None) -> Volume:
        """Returns the labels of the scan of subject `name`."""
        result = inference.predict_cascade(self.cascade, image, roi=self.roi, mirror=mirror, progress=progress)
        self.seen[name] = {
            "placed_by_neighbours": list(result.placed),
            "lost": dict(result.lost),
            "notes": list(result.notes),
            "seconds": dict(result.seconds),
        }
        return result.labels

    def description(self) -> dict[str, Any]:
        """Returns what tables must know of the cascade, as plain JSON content."""
        plan, muscles = self.cascade.plan, self.cascade.wanted(self.roi)
        needed = self.cascade.needed(muscles)
        folders = [self.cascade.folder_of(name) for name in needed]
        abouts = [read_json(folder / "about.json") for folder in folders if (folder / "about.json").exists()]
        configs = [TrainConfig.load(folder / "train.json") for folder in folders]
        checksums = [sha256(folder / inference.WEIGHTS_FILE) for folder in folders]
        sides = structures_of(plan.base.label_map)
        return {
            "labels": plan.base.label_map.to_dict(),
            "run": self.folder.resolve().name,
            "dataset": plan.base.name,
            "model": _joined(sorted({config.model for config in configs})),
            "networks": len(needed),
            "preset": _joined(sorted({str(config.preset) for config in configs})),
            "orientation": plan.base.orientation,
            "history": {},
            "scale": plan.base.scale,
            "seed": configs[0].seed,
            "fold": configs[0].fold,
            "epochs": sum(about.get("epochs", 0) for about in abouts),
            "trained_on": _joined(sorted({str(about.get("hardware")) for about in abouts})),
            "training_seconds": sum(about.get("seconds") or 0 for about in abouts),
            "weights": hashlib.sha256("".join(checksums).encode()).hexdigest(),
            "cleaning": [],
            "prior": None,
            "engine": "keras",
            "cascade": {name: getattr(plan.settings, name) for name in OF_PREDICTION},
            "roi": [name for muscle in muscles for name in sides[muscle].values()] if self.roi else [],
        }

    def details(self) -> dict[str, Any]:
        """Returns, by subject: structures placed by neighbours, those not found and why, seconds of each stage."""
        return {"stages": self.seen}


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


def _joined(values: list[Any]) -> Any:
    """Returns what all runs have in common, else the list."""
    return values[0] if all(value == values[0] for value in values) else values


def _name(run: inference.Run) -> str:
    """Names a run by its folder; one of a cross-validation by preset and fold too."""
    parts = run.path.resolve().parts
    return "/".join(parts[-3:] if parts[-2].startswith("fold_") else parts[-1:])


AnyNetwork = Network | CascadeNetwork | BundleNetwork
"""Whatever `opened` returns."""
