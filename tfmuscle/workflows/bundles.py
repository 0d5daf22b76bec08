"""An exported bundle as a network for `predict`: the same labels without Keras.

Which format answers is the user's choice among those the bundle holds; `auto` takes the first of `FASTEST` whose
libraries are installed: converted networks are faster for slices, and not for volumes (benchmarks/engines.md). It was
compared with Keras when it was exported, so that no proof is needed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.export.bundle import Bundle, open_bundle
from tfmuscle.export.formats import STARTERS
from tfmuscle.inference.engines import Engine, can_run, how_to_install, missing_libraries
from tfmuscle.postprocessing import Cleaning, clean
from tfmuscle.preprocessing import find_midline
from tfmuscle.volume import Volume

FASTEST = {
    False: ("tensorrt", "openvino", "onnx", "saved_model", "litert"),
    True: ("tensorrt", "saved_model", "openvino", "onnx", "litert"),
}
"""Whether samples are volumes -> formats, the fastest first; TensorRT where there is a GPU."""


@dataclass(frozen=True, eq=False)
class BundleNetwork:
    """An opened bundle, what answers for its network, and what cleans its labels.

    Attributes:
        bundle: the bundle.
        run: its settings, and the engine that answers.
        cleanings: of labels, one after the other.
        batch_size: windows for one call of the engine; None leaves it to `inference`.
        whole: given a scan and whether to mirror, returns its labels, or None when windows shall be sent (`served`).
        remarks: what the user should know, added to as scans are labelled.
    """

    bundle: Bundle
    run: inference.Run
    cleanings: tuple[Cleaning, ...]
    batch_size: int | None = None
    whole: Callable[[Volume, bool], Volume | None] | None = None
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, path: str | Path, *, engine: str, postprocess: bool) -> Self:
        """Opens a bundle, checks its files and starts the engine.

        Raises:
            DataError: an altered file, a format that the bundle does not hold, or missing libraries.
        """
        bundle = open_bundle(path)
        name = _chosen(bundle, engine)
        infer = STARTERS[name](bundle.path)
        answering = Engine(name, infer, infer, bundle.path, must_be=True)
        answering.proven = True
        run = inference.Run(None, bundle.spec, bundle.configs[0], bundle.path, engine=answering)
        return cls(bundle, run, bundle.cleanings if postprocess else ())

    def labels(self, image: Volume, name: str, *, mirror: bool, progress: inference.Progress | None = None) -> Volume:
        """Returns the cleaned labels of the scan of subject `name`."""
        labels = None if self.whole is None else self.whole(image, mirror)
        if labels is None:
            labels = inference.predict_volume(
                self.run, image, mirror=mirror, batch_size=self.batch_size, progress=progress
            )
        for cleaning in self.cleanings:
            midline = find_midline(image) if cleaning.side is not None else None
            spec = self.bundle.spec
            labels = clean(labels, cleaning, spec.label_map, orientation=spec.orientation, midline=midline)
        return labels

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of a scan."""
        return self.bundle.spec.channels

    @property
    def folder(self) -> Path:
        """Where the bundle is, for messages."""
        return self.bundle.path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the labels."""
        return tuple(self.remarks)

    @property
    def is_reduced(self) -> bool:
        """Whether a recipe was cut down."""
        return self._description.get("scale") == "laptop"

    @property
    def _description(self) -> Mapping[str, Any]:
        return self.bundle.about["description"]

    def subjects_of(self, part: str) -> list[str]:
        """Refuses: a bundle does not say who was in which part.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.folder}: a bundle does not know its {part} subjects; name the scans, or give the run")

    def datasets(self) -> set[str]:
        """Returns the name of the dataset that trained the network."""
        return {self.bundle.spec.name}

    def trained_on(self) -> set[str]:
        """Returns the subjects that trained the network, or chose its epoch."""
        return set(self.bundle.about["trained_on"])

    def description(self) -> dict[str, Any]:
        """Returns what tables must know of the network, as plain JSON content."""
        cleaning = [cleaning.to_dict() for cleaning in self.cleanings]
        engine = None if self.run.engine is None else self.run.engine.name
        return dict(self._description) | {"run": str(self.folder.resolve()), "cleaning": cleaning, "engine": engine}

    def details(self) -> dict[str, Any]:
        """Returns what is known only when the scans are labelled."""
        return {}


def usable_formats(bundle: Bundle) -> list[str]:
    """Returns the formats that a bundle holds and whose libraries are installed, the fastest first."""
    order = FASTEST[bundle.spec.is_volumetric]
    return [name for name in order if name in bundle.formats and can_run(name)]


def _chosen(bundle: Bundle, engine: str) -> str:
    held = ", ".join(bundle.formats)
    if engine == "auto":
        if usable := usable_formats(bundle):
            return usable[0]
        raise DataError(f"{bundle.path}: holds {held}, whose libraries are missing; pip install 'tfmuscle[engines]'")
    if engine not in bundle.formats:
        raise DataError(
            f"{bundle.path}: holds {held} and nothing for engine {engine}; choose one of these, or add it with"
            f" 'tfmuscle export --format'"
        )
    if missing := missing_libraries(engine):
        raise DataError(f"engine {engine} needs {', '.join(missing)}; install them with {how_to_install(engine)}")
    return engine
