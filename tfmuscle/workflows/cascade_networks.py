"""A cascade of networks behind the names that `networks` promises."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tfmuscle import inference
from tfmuscle.cascade import structures_of
from tfmuscle.config import Cascade, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256
from tfmuscle.volume import Volume
from tfmuscle.workflows.ensembles import in_common
from tfmuscle.workflows.predict_options import PredictOptions

OF_PREDICTION = ("boxes", "box_seed", "fusion", "placing", "telling_sides")
"""Settings of a cascade that its networks need not be trained for anew."""


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
            "model": in_common(sorted({config.model for config in configs})),
            "networks": len(needed),
            "preset": in_common(sorted({str(config.preset) for config in configs})),
            "orientation": plan.base.orientation,
            "history": {},
            "scale": plan.base.scale,
            "seed": configs[0].seed,
            "fold": configs[0].fold,
            "epochs": sum(about.get("epochs", 0) for about in abouts),
            "trained_on": in_common(sorted({str(about.get("hardware")) for about in abouts})),
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
