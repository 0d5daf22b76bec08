"""What is decided: about a family of records (`DataSpec`), one training run (`TrainConfig`), and a cascade (`Cascade`).

Each field is declared once, with its help and choices in its metadata; from that line come the default, the JSON key
and the command-line option. Unknown keys in a file are an error with the nearest name. `DataSpec` is stored as
`spec.json` beside the records and copied beside the weights, so that prediction needs no settings; `TrainConfig` as
`train.json` in the run folder; `Cascade` is part of `cascade.json`. Presets (`presets/`) know their part of them.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tfmuscle.errors import DataError
from tfmuscle.fields import fits, needed
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import LabelMap

KINDS = ("slices", "stacks", "volumes", "sequences")
NORMALISATIONS = ("zscore", "zscore_all", "zscore_masked", "percentile", "ct", "minmax", "div255", "none")
RESAMPLINGS = ("linear", "nnunet")
PATCHES = ("grid", "random", "whole", "boxes")
BLENDS = ("probabilities", "logits")
SELECTIONS = ("dice", "ema_dice", "loss")
POSTPROCESSINGS = ("none", "largest", "cheena")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
SCALES = ("full", "laptop")
REGIONS = ("labels", "thirds", "scan")
FUSIONS = ("coverage", "count")
PLACINGS = ("muscle", "group")
PRETRAINING_METHODS = ("pcl", "gcl", "simclr")
TELLING_SIDES = ("midline", "network")
SUPERVISIONS = ("decremental", "fixed", "full")
PROPAGATION_MODES = ("halves", "per_window", "tbptt")
ALIGNMENTS = ("window", "slice")
FEEDBACKS = ("corrected", "predicted", "expert")
SCHEDULES = ("constant", "linear", "cosine", "polynomial", "plateau", "last_two")
OPTIMISERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = (
    "none", "light", "full", "nnunet", "mehrabi", "ni", "cheena", "cheena_coronal", "positional", "positional_paper",
)  # fmt: skip
_AXIS = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """Declares a field with its help, and its choices if it has any."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _tuples(value: Any) -> Any:
    """Turns the lists of JSON into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    """Turns tuples into the lists of JSON."""
    return list(map(_lists, value)) if isinstance(value, tuple) else value


class _Settings:
    """JSON and validation shared by the settings of this file."""

    def _check_choices(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value, choices = getattr(self, item.name), item.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{item.name} is {value!r}; choose one of {', '.join(map(str, choices))}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; a positive number is needed")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content; a label map in nnU-Net's form."""
        content = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            value = value.to_dict() if isinstance(value, LabelMap) else value
            content[item.name] = _lists(value)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; lists become tuples.

        Raises:
            ValueError: an unknown key (the nearest known one is suggested), a missing one, or a value of another type
                or out of range.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"settings are {content!r}; an object with named settings is needed")
        known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values: dict[str, Any] = {key: _tuples(value) for key, value in content.items()}
        if isinstance(labels := values.get("label_map"), Mapping):
            values["label_map"] = LabelMap.from_dict(labels)
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            is_plain = item.name in values and item.name not in ("label_map", "recipe")
            if is_plain and not fits(values[item.name], item.type):
                raise ValueError(f"{item.name} is {values[item.name]!r}; {needed(item.type)} is needed")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the settings as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads settings from JSON; a bad file is a `DataError` that names it."""
        try:
            return cls.from_dict(read_json(path))
        except DataError:
            raise
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class DataSpec(_Settings):
    """How the scans of one dataset become samples; frozen when the records are built.

    Axis order of `spacing` and `size` is that of the preprocessed volume: the slice axis first.
    """

    label_map: LabelMap = field(metadata={"help": "names and ids of the structures"})
    name: str = option("dataset", "name of the dataset")
    channels: tuple[str, ...] = option(("image",), "names of the image channels, in order")
    kind: str = option("slices", "what one sample is", choices=KINDS)
    size: tuple[int, int] = option((256, 256), "height and width of a sample in voxels")
    depth: int = option(1, "slices in a sample: 1 for slices, the stack, the patch depth or the window")
    spacing: tuple[float, float, float] | None = option(
        None, "voxel size to resample to, in mm; none keeps each scan's own"
    )
    orientation: str | None = option(
        "SPL", "axis codes after preprocessing, slice axis first; none for untracked sweeps"
    )
    normalisation: str = option("zscore", "how intensities are scaled, per scan and channel", choices=NORMALISATIONS)
    statistics: tuple[tuple[float, float, float, float], ...] | None = option(
        None, "per channel mean, sd, lower and upper limit of the foreground over the dataset; for normalisation ct"
    )
    resampling: str = option(
        "linear",
        "linear; or nnU-Net's rules: intensities scaled first, cubic, and thick slices apart",
        choices=RESAMPLINGS,
    )
    resize: bool = option(False, "resample each slice to exactly `size`, whatever its voxel size")
    prior: bool = option(False, "the labels of an earlier network are further channels, one per structure")
    bias_field: bool = option(False, "N4 bias field correction before anything else")
    crop_nonzero: bool = option(False, "cut away the margin in which every channel is zero")
    patches: str = option(
        "grid",
        "training samples: windows on a grid, or anywhere in the scan, drawn anew at each step; whole regions and boxes"
        " are those of a cascade",
        choices=PATCHES,
    )
    blend: str = option("probabilities", "what is averaged where predicted windows overlap", choices=BLENDS)
    overlap: float = option(0.5, "overlap of neighbouring samples in-plane, and of sub-volumes along the limb")
    folds: int = option(5, "folds of the cross-validation, by subject")
    test: float = option(0.0, "subjects held out of every fold: a count, or a share below 1")
    seed: int = option(0, "seed of the assignment to folds")
    preset: str | None = option(None, "recipe these settings come from")
    scale: str = option("full", "full recipe, or one cut down for a laptop", choices=SCALES)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("depth")
        if not isinstance(self.label_map, LabelMap):
            raise ValueError(f"label_map is {self.label_map!r}; names and ids are needed")
        if (
            not isinstance(self.channels, tuple)
            or not self.channels
            or not all(isinstance(c, str) for c in self.channels)
        ):
            raise ValueError(f"channels is {self.channels!r}; a list of at least one name is needed")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size is {self.size}; height and width are needed")
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < mm < math.inf for mm in self.spacing)):
            raise ValueError(f"spacing is {self.spacing}; three positive numbers in mm are needed, slice axis first")
        letters = self.orientation if isinstance(self.orientation, str) else "?"
        if self.orientation is not None and sorted(_AXIS.get(letter, "?") for letter in letters) != [
            "A",
            "R",
            "S",
        ]:
            raise ValueError(
                f"orientation is {self.orientation!r}; three letters, one each of R/L, A/P and S/I, or none"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is {self.overlap}; a share from 0 to below 1 is needed")
        if self.kind == "slices" and self.depth != 1:
            raise ValueError(
                f"depth is {self.depth}; slices have depth 1, use kind 'stacks' for neighbours as channels"
            )
        if self.kind == "stacks" and self.depth % 2 == 0:
            raise ValueError(
                f"depth is {self.depth}; a stack has an odd number of slices, the labelled one in the middle"
            )
        if not (0 <= self.test < 1 or self.test == self.test // 1 < math.inf):
            raise ValueError(f"test is {self.test}; a whole number of subjects, or a share below 1, is needed")
        if self.normalisation == "ct" and (self.statistics is None or len(self.statistics) != len(self.channels)):
            raise ValueError(
                "normalisation is 'ct'; statistics of each channel are needed, which `tfmuscle plan` measures"
            )
        if self.resize and self.kind in ("volumes", "sequences"):
            raise ValueError(f"resize goes with slices and stacks, not with {self.kind}; give a spacing")
        if self.folds < 1:
            raise ValueError(f"folds is {self.folds}; at least one fold is needed")

    @property
    def num_classes(self) -> int:
        """Classes of the label map, background included."""
        return self.label_map.num_classes

    @property
    def window(self) -> tuple[int, int, int]:
        """Depth, height and width of a sample on the preprocessed grid."""
        return (self.depth, *self.size)

    @property
    def num_channels(self) -> int:
        """Channels of a voxel: those of the image, and with `prior` one for each structure."""
        return len(self.channels) + (self.num_classes - 1 if self.prior else 0)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a model's main input without the batch axis."""
        if self.kind == "slices":
            return (*self.size, self.num_channels)
        if self.kind == "stacks":
            return (*self.size, self.depth * self.num_channels)
        return (self.depth, *self.size, self.num_channels)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of a sample's labels: the centre slice for slices and stacks, else the whole window."""
        return self.size if self.kind in ("slices", "stacks") else self.window

    @property
    def is_volumetric(self) -> bool:
        """Whether samples have three spatial axes."""
        return self.kind in ("volumes", "sequences")


@dataclass(frozen=True)
class Supervised(_Settings):
    """The recipe of ordinary supervised training."""

    loss: str = option("dice_cross_entropy", "loss to minimise; `tfmuscle losses` lists them")
    loss_options: dict[str, Any] = option({}, "keyword arguments of the loss, e.g. batch_dice=true")
    augmentation: str = option("light", "recipe of the random transforms", choices=AUGMENTATIONS)
    mirror: bool = option(True, "mirror images, exchanging left and right labels")
    foreground: float = option(0.0, "share of each batch that is centred on a structure; for random patches")
    deep_supervision: bool = option(False, "let the coarser outputs of the decoder learn too, with weights 1, 1/2, 1/4")
    selection: str = option("dice", "what the kept epoch has the best of, on the validation fold", choices=SELECTIONS)
    patience: int = option(0, "epochs without improvement before stopping; 0 never stops early")
    patience_of: str = option("dice", "what has to improve for training to go on", choices=SELECTIONS)
    postprocessing: str = option("none", "cleaning of predicted labels", choices=POSTPROCESSINGS)

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0 <= self.foreground <= 1:
            raise ValueError(f"foreground is {self.foreground}; a share from 0 to 1 is needed")
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; 0 (never stop early) or more epochs are needed")


@dataclass(frozen=True)
class TrainConfig(_Settings):
    """One training run: architecture, optimisation and which fold is left out."""

    model: str = option("unet", "architecture; `tfmuscle models` lists them")
    model_options: dict[str, Any] = option({}, "keyword arguments of the architecture, e.g. filters=16")
    epochs: int = option(50, "passes over the training samples")
    steps: int = option(0, "batches per epoch; 0 sees every sample once")
    batch_size: int = option(8, "samples per step")
    optimiser: str = option("adam", "optimiser", choices=OPTIMISERS)
    learning_rate: float = option(1e-3, "initial learning rate")
    momentum: float = option(0.99, "Nesterov momentum of sgd")
    weight_decay: float = option(0.0, "decoupled weight decay of adamw; L2 term added to the gradient of sgd")
    schedule: str = option("cosine", "how the learning rate falls", choices=SCHEDULES)
    precision: str = option("float32", "arithmetic; mixed_float16 in 3D needs a GPU", choices=PRECISIONS)
    fold: int = option(0, "fold used for validation")
    left_out: int = option(-1, "fold kept out of training and validation, to test on; -1 for none")
    subjects: int = option(0, "number of training persons, 0 for all; fewer are always among more")
    seed: int = option(0, "seed of weights, shuffling and augmentation")
    preset: str | None = option(None, "recipe these settings come from")
    scale: str = option("full", "full recipe, or one cut down for a laptop", choices=SCALES)
    recipe: Supervised = field(default_factory=Supervised, metadata={"help": "settings of the training method"})

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("epochs", "batch_size", "learning_rate")
        if self.steps < 0 or self.fold < 0 or not 0 <= self.weight_decay < math.inf:
            raise ValueError("steps, fold and weight_decay must be finite and not negative")
        if self.left_out < -1 or self.left_out == self.fold:
            raise ValueError(f"left_out is {self.left_out}; a fold other than {self.fold} is needed, or -1 for none")
        if self.subjects < 0:
            raise ValueError(f"subjects is {self.subjects}; a number of persons is needed, or 0 for all")
        if not self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; a finite number is needed")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; a number from 0 to 2**32 - 1 is needed")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; a number from 0 to below 1 is needed")
        if self.weight_decay and self.optimiser == "adam":
            raise ValueError(
                f"weight_decay is {self.weight_decay}, which adam does not know; choose optimiser adamw or sgd"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content with the recipe nested under its class name."""
        content = super().to_dict()
        if not self.subjects:
            del content["subjects"]  # as runs say that were begun before there was this setting, and can be resumed
        return content | {"recipe": {"method": "supervised"} | self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote."""
        values = dict(content)
        if isinstance(values.get("recipe"), Mapping):
            recipe = dict(values["recipe"])
            if (method := recipe.pop("method", "supervised")) != "supervised":
                raise ValueError(f"training method {method!r} is unknown; this version knows 'supervised'")
            values["recipe"] = Supervised.from_dict(recipe)
        return super().from_dict(values)


@dataclass(frozen=True)
class Pretraining(_Settings):
    """What contrastive pre-training takes for alike."""

    method: str = option(
        "pcl", "slices at the same place are alike; or in the same quarter; or none", choices=PRETRAINING_METHODS
    )
    threshold: float = option(0.1, "positions, from 0 to 1 along the scan, that differ by less are the same place")
    temperature: float = option(0.1, "by which similarities are divided")

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a share of the scan from above 0 to 1 is needed")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; a positive number is needed")


@dataclass(frozen=True)
class Propagation(_Settings):
    """How a network learns to carry masks from slice to slice (IFSS-Net)."""

    supervision: str = option(
        "decremental",
        "which slices count as drawn: fewer with every subject, three in every so many, or all",
        choices=SUPERVISIONS,
    )
    every: int = option(100, "of so many slices three are drawn; for supervision fixed")
    sweep: int = option(0, "slices of a sweep that gaps between drawn ones are meant for; 0 takes gaps as they are")
    mode: str = option(
        "halves",
        "a step of the optimiser after each half of a sweep, after each window, or after `through` windows",
        choices=PROPAGATION_MODES,
    )
    through: int = option(4, "windows that a gradient goes back through; for mode tbptt")
    alignment: str = option(
        "window",
        "a slice nobody drew learns from the prediction at its position in the window before, or from that of itself",
        choices=ALIGNMENTS,
    )
    feedback: str = option(
        "corrected",
        "masks fed to the next window: predictions with drawn slices put in, predictions alone, or drawn slices alone",
        choices=FEEDBACKS,
    )
    refresh: int = option(1, "windows after which drawn slices are put into the masks fed, for feedback corrected")
    l2: float = option(1e-5, "factor of the squared weights in the loss")
    structures: tuple[str, ...] = option((), "structures to learn; none: all")
    smallest: int = option(0, "a structure is followed from the first slice on which it has more pixels than this")
    slices: int = option(0, "slices in a row of each sweep that an epoch goes through, from a random one on; 0: all")
    reverse: float = option(0.0, "share of sweeps that are gone through backwards")
    mirror: float = option(0.0, "share of sweeps whose slices are mirrored")

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("every", "through", "refresh")
        if min(self.sweep, self.smallest, self.slices) < 0 or not 0 <= self.l2 < math.inf:
            raise ValueError("sweep, smallest, slices and l2 must be finite and not negative")
        for name in ("reverse", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share from 0 to 1 is needed")


@dataclass(frozen=True)
class Cascade(_Settings):
    """How the networks of a cascade share the work: groups on a coarse grid first, then every muscle in its box."""

    groups: tuple[tuple[str, ...], ...] = option(
        (), "muscles that are found together; none: the ten groups of Ni et al."
    )
    regions: str = option(
        "labels",
        "where along the limb a group is looked for: where training subjects have it, in the paper's overlapping"
        " thirds, or in the whole scan",
        choices=REGIONS,
    )
    region_margin: float = option(0.1, "share of the scanned length added at both ends of a region of `labels`")
    coarse_voxels: int = option(2_000_000, "most voxels a network of groups sees")
    coarse_multiple: int = option(8, "of which every axis of its grid is a multiple: 2^(levels - 1)")
    fine_voxels: int = option(500_000, "most voxels a network of one muscle sees")
    fine_multiple: int = option(4, "of which every axis of its grid is a multiple: 2^(levels - 1)")
    boxes: int = option(6, "boxes around a muscle that are averaged in prediction")
    box_seed: int = option(0, "seed of these boxes")
    fusion: str = option("coverage", "boxes are averaged over those that hold a voxel, or over all", choices=FUSIONS)
    placing: str = option("muscle", "one box for each muscle, or one for all of a group", choices=PLACINGS)
    telling_sides: str = option(
        "midline",
        "what tells left from right among the pieces found: the midline of the scan where both legs are in view, or the"
        " networks of groups alone",
        choices=TELLING_SIDES,
    )
    normalisation: str = option("zscore", "how intensities are scaled, per scan and channel", choices=NORMALISATIONS)
    bias_field: bool = option(True, "N4 bias field correction before anything else")
    folds: int = option(5, "folds by person; one of them chooses the epochs that are kept")
    test: float = option(0.0, "subjects held out of everything: a count, or a share below 1")

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("coarse_voxels", "coarse_multiple", "fine_voxels", "fine_multiple", "boxes", "folds")
        if self.box_seed < 0:
            raise ValueError(f"box_seed is {self.box_seed}; a number from 0 on is needed")
        if not 0 <= self.region_margin < 1:
            raise ValueError(f"region_margin is {self.region_margin}; a share from 0 to below 1 is needed")
        names = [muscle for group in self.groups for muscle in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"groups: {', '.join(twice)} stand in two groups; a muscle has one")
