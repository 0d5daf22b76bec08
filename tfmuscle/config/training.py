"""How one network is trained (`TrainConfig`, and `Supervised` by labels): `train.json` in the run folder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tfmuscle.config.data import SCALES
from tfmuscle.config.settings import Settings, option

SELECTIONS = ("dice", "ema_dice", "loss")
POSTPROCESSINGS = ("none", "largest", "cheena")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
DEVICES = ("one", "all", "machines")
SCHEDULES = ("constant", "linear", "cosine", "polynomial", "plateau", "last_two")
OPTIMISERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = (
    "none", "light", "full", "nnunet", "mehrabi", "ni", "cheena", "cheena_coronal", "positional", "positional_paper",
)  # fmt: skip


@dataclass(frozen=True)
class Supervised(Settings):
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
class TrainConfig(Settings):
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
    devices: str = option(
        "one",
        "what shares the batch of a step: nothing, all graphics processors, or the machines of TF_CONFIG",
        choices=DEVICES,
    )
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
        for name, unset in (("subjects", 0), ("devices", "one")):
            if content[name] == unset:
                del content[name]  # as runs say that were begun before there was this setting, and can be resumed
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
