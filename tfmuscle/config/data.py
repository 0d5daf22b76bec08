"""How the scans of a dataset become samples (`DataSpec`): `spec.json` beside the records, copied beside the weights."""

import math
from dataclasses import dataclass, field

from tfmuscle.config.settings import Settings, option
from tfmuscle.labels import LabelMap

KINDS = ("slices", "stacks", "volumes", "sequences")
NORMALISATIONS = ("zscore", "zscore_all", "zscore_masked", "percentile", "ct", "minmax", "div255", "none")
RESAMPLINGS = ("linear", "nnunet")
PATCHES = ("grid", "random", "whole", "boxes")
BLENDS = ("probabilities", "logits")
SCALES = ("full", "laptop")
_AXIS = {"R": "R", "L": "R", "A": "A", "P": "A", "S": "S", "I": "S"}


@dataclass(frozen=True)
class DataSpec(Settings):
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
