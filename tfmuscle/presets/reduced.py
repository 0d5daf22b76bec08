"""`--scale laptop`: any recipe cut down in width, patch and steps.

Whatever is made then carries `scale: laptop`, and tables call it *reduced*.
"""

from collections.abc import Mapping
from typing import Any

LAPTOP_SIZE_2D, LAPTOP_PATCH_3D = 128, 64
"""Largest edge of a reduced sample, in voxels."""
LAPTOP_FILTERS, LAPTOP_EPOCHS, LAPTOP_STEPS = 16, 30, 250
"""Largest root width, number of epochs, and steps of an epoch (where a recipe fixes them), of a reduced training."""


def reduced_data(settings: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `DataSpec` fields of `--scale laptop`: edges of a sample are capped, multiples of 16 kept.

    `own` is what the preset's `laptop` says; it beats the caps.

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
    return reduced | dict(own or {})


def reduced_training(settings: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `TrainConfig` fields of `--scale laptop`: root width, epochs and steps are capped.

    `own` is what the preset's `laptop` says; it beats the caps.

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
    own = dict(own or {})
    return reduced | own | {"model_options": options | dict(own.get("model_options", {}))}
