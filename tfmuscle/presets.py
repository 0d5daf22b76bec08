"""Recipes by name: each knows its part of the data (`build-records --preset`) and of the training (`fit --preset`).

A preset is a constant; its text names data, hardware, time and what to expect. Precedence: an option given by the
user beats the preset, the preset beats the plan made from the dataset's fingerprint.

`--scale laptop` cuts any recipe down in width, patch and steps (`reduced_data`, `reduced_training`); whatever is made
then carries `scale: laptop`, and tables call it *reduced*.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAPTOP_SIZE_2D, LAPTOP_PATCH_3D = 128, 64
"""Largest edge of a reduced sample, in voxels."""
LAPTOP_FILTERS, LAPTOP_EPOCHS, LAPTOP_STEPS = 16, 30, 250
"""Largest root width, number of epochs, and steps of an epoch (where a recipe fixes them), of a reduced training."""


@dataclass(frozen=True)
class Preset:
    """A named recipe.

    Attributes:
        about: data, hardware, hours and expected Dice.
        data: fields of `DataSpec` it decides.
        training: fields of `TrainConfig` it decides.
        recipe: fields of `Supervised` it decides.
    """

    about: str
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        about="Phantom bones, 2D slices; two minutes on 2 cores. Shows the job, proves nothing about patients.",
        data={"kind": "slices", "size": (96, 96), "folds": 4, "test": 2},
        training={
            "model": "unet",
            "model_options": {"filters": 12, "levels": 4, "norm": "batch"},
            "epochs": 14,
            "batch_size": 4,
            "learning_rate": 3e-3,
        },
    ),
    "slices": Preset(
        about="2D U-Net on single slices: the quick first look at any dataset; hours on 2 cores.",
        data={"kind": "slices"},
        training={"model": "unet", "model_options": {"filters": 32, "norm": "batch"}, "epochs": 50, "batch_size": 16},
    ),
    "stacks": Preset(
        about="2D U-Net on five neighbouring slices as channels: thick-slice limb MRI.",
        data={"kind": "stacks", "depth": 5},
        training={"model": "unet", "model_options": {"filters": 32, "norm": "batch"}, "epochs": 50, "batch_size": 16},
    ),
    "volumes": Preset(
        about="Residual 3D U-Net on sub-volumes: near-isotropic scans; wants a GPU at full scale.",
        data={"kind": "volumes"},
        training={
            "model": "unet",
            "model_options": {"filters": 32, "block": "residual", "norm": "instance"},
            "epochs": 200,
            "batch_size": 2,
            "schedule": "polynomial",
        },
        recipe={"augmentation": "full"},
    ),
    "hippocampus": Preset(
        about="3D U-Net for the Decathlon hippocampus (1 mm, two structures); see benchmarks/hippocampus.md.",
        data={
            "kind": "volumes",
            "depth": 40,
            "size": (56, 40),
            "spacing": (1.0, 1.0, 1.0),
            "folds": 5,
            "test": 40,
        },
        training={
            "model": "unet",
            "model_options": {"filters": 16, "levels": 4, "norm": "instance"},
            "epochs": 50,
            "batch_size": 2,
            "learning_rate": 2e-3,
            "schedule": "cosine",
        },
        recipe={"loss": "dice_cross_entropy", "augmentation": "light"},
    ),
}


def get_preset(name: str) -> Preset:
    """Returns a preset by name; an unknown name is a ValueError with the nearest one.

    >>> get_preset("demo").data["kind"]
    'slices'
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return PRESETS[name]


def reduced_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `DataSpec` fields of `--scale laptop`: edges of a sample are capped, multiples of 16 kept.

    >>> reduced_data({"kind": "volumes", "size": (192, 160), "depth": 96})
    {'kind': 'volumes', 'size': (64, 64), 'depth': 64, 'scale': 'laptop'}
    """
    volumes = settings.get("kind") == "volumes"
    limit = LAPTOP_PATCH_3D if volumes else LAPTOP_SIZE_2D
    reduced = dict(settings) | {"scale": "laptop"}
    if "size" in settings:
        reduced["size"] = tuple(min(edge, limit) for edge in settings["size"])
    if volumes and "depth" in settings:
        reduced["depth"] = min(settings["depth"], limit)
    return reduced


def reduced_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `TrainConfig` fields of `--scale laptop`: root width, epochs and steps are capped.

    >>> reduced_training({"epochs": 200, "model_options": {"filters": 32}})
    {'epochs': 30, 'model_options': {'filters': 16}, 'scale': 'laptop'}
    >>> reduced_training({"model": "resnet34_unet", "steps": 1000})
    {'model': 'resnet34_unet', 'steps': 250, 'scale': 'laptop', 'epochs': 30, 'model_options': {}}
    """
    reduced = dict(settings) | {"scale": "laptop"}
    reduced["epochs"] = min(settings.get("epochs", LAPTOP_EPOCHS), LAPTOP_EPOCHS)
    if settings.get("steps"):
        reduced["steps"] = min(settings["steps"], LAPTOP_STEPS)
    options = dict(settings.get("model_options", {}))
    if settings.get("model", "unet") == "unet":
        options["filters"] = min(options.get("filters", LAPTOP_FILTERS), LAPTOP_FILTERS)
    return reduced | {"model_options": options}
