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
        plan: configuration of nnU-Net's plan (`planning.nnunet`) that decides the rest from the dataset's fingerprint.
        stages: trainings one after another, each going on with the last one's weights; fields of `TrainConfig`.
        cascade: fields of `Cascade`, for a recipe of many networks.
        networks: presets of the networks of groups and of muscles, for such a recipe.
        pretraining: fields of `TrainConfig` for an encoder that learns from unlabelled scans first (`pretrain`).
        laptop: what `--scale laptop` decides besides the caps, in the parts "data", "training", "recipe", "cascade" and
            "pretraining".
    """

    about: str
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plan: str = ""
    stages: tuple[Mapping[str, Any], ...] = ()
    cascade: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    laptop: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_CHEENA_DATA = {"kind": "slices", "size": (256, 256), "resize": True, "normalisation": "minmax"}
_CHEENA_LAPTOP_DATA = {"size": (64, 64)}
_NNUNET_TRAINING = {
    "model": "unet", "epochs": 1000, "steps": 250, "optimiser": "sgd", "learning_rate": 0.01, "momentum": 0.99,
    "weight_decay": 3e-5, "schedule": "polynomial",
}  # fmt: skip
_NNUNET_RECIPE = {
    "loss": "dice_cross_entropy", "augmentation": "nnunet", "deep_supervision": True, "foreground": 0.33,
    "selection": "ema_dice",
}  # fmt: skip
_SEED002_TRAINING = {
    "model": "unet", "epochs": 40, "steps": 250, "optimiser": "adam", "learning_rate": 1e-3, "schedule": "linear",
}  # fmt: skip
_SEED002_RECIPE = {"loss": "dice_cross_entropy", "augmentation": "nnunet", "foreground": 0.33}
# A momentum of 0.99 takes hundreds of steps to get going: after 240 steps of 0.01 all was still background.
_NNUNET_LAPTOP = {"training": {"epochs": 7, "steps": 50, "learning_rate": 0.1, "momentum": 0.9}}
_NNUNET_2D_LAPTOP = {"training": {"epochs": 6, "steps": 50, "batch_size": 6, "learning_rate": 0.05, "momentum": 0.9}}
_NI_TRAINING = {"model": "unet", "batch_size": 1, "learning_rate": 0.01, "schedule": "constant"}
_NI_RECIPE = {"loss": "cross_entropy", "augmentation": "ni"}
_NI_OPTIONS = {"norm": "batch", "pooling": "max", "max_filters": 1024, "slope": 0.0}
# In a few hundred steps cross-entropy alone leaves thin muscles to the background, and the network of a region learns
# where it is faster when it is told (160 steps of group 1: validation Dice 0.45 without coordinates, 0.53 with them).
_NI_LAPTOP = {"batch_size": 2, "schedule": "cosine"}
_NI_LAPTOP_RECIPE = {"loss": "dice_cross_entropy"}
_CASALI_MODEL = {
    "model": "unet",
    "model_options": {"filters": 32, "levels": 5, "norm": "batch", "pooling": "max", "max_filters": 512},
    "schedule": "cosine",
}
_SEED002_LAPTOP = {"training": {"epochs": 6, "steps": 50}}

PRESETS: dict[str, Preset] = {
    "demo": Preset(
        about="Phantom bones, 2D slices; two to six minutes on 2 cores. Shows the job, proves nothing about patients.",
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
    "mehrabi_latent": Preset(
        about="Latent-feature residual U-Net for one scan with about ten labelled slices (Mehrabi & Handsfield):"
        " 'fit -i SCAN --labels LABELS'. Numbers are ours; the paper has none.",
        data={"kind": "stacks", "depth": 5, "normalisation": "percentile", "folds": 2},
        training={"model": "latent_unet", "epochs": 200, "steps": 50, "batch_size": 4, "schedule": "plateau"},
        recipe={
            "loss": "composite",
            "augmentation": "mehrabi",
            "selection": "loss",
            "patience": 30,
            "patience_of": "loss",
        },
        laptop={
            "data": {"size": (256, 256)},
            "training": {
                "epochs": 12,
                "steps": 20,
                "schedule": "cosine",
                "model_options": {"filters": 8, "latent": 64},
            },
        },
    ),
    "casali_pcl": Preset(
        about="U-Net whose encoder learned from unlabelled scans first (Casali; Zeng et al. 2021): 'pretrain', then"
        " 'fit --preset casali_pcl --from'.",
        data={"kind": "slices", "normalisation": "percentile"},
        training=_CASALI_MODEL
        | {"epochs": 100, "batch_size": 10, "optimiser": "adamw", "learning_rate": 5e-5, "weight_decay": 1e-5},
        recipe={"loss": "cross_entropy"},
        pretraining=_CASALI_MODEL
        | {
            "epochs": 300,
            "batch_size": 32,
            "optimiser": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 1e-5,
        },
        laptop={
            "data": {"size": (64, 64)},
            "training": {"epochs": 30, "learning_rate": 1e-3, "model_options": {"filters": 8, "max_filters": 128}},
            "pretraining": {"epochs": 20, "model_options": {"filters": 8, "max_filters": 128}},
        },
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
    "cheena_resnet34": Preset(
        about="ResNet34 U-Net for paediatric leg bones (Cheena): 256 x 256 slices, Dice + focal; about 20 s a scan on a"
        " T4. Give ImageNet weights with --option encoder_weights=FILE, which freezes the encoder.",
        data=_CHEENA_DATA,
        training={
            "model": "resnet34_unet",
            "epochs": 50,
            "batch_size": 16,
            "learning_rate": 1e-4,
            "schedule": "linear",
        },
        recipe={
            "loss": "dice_focal",
            "augmentation": "cheena",
            "patience": 10,
            "patience_of": "loss",
            "postprocessing": "cheena",
        },
        laptop={
            "data": _CHEENA_LAPTOP_DATA,
            "training": {
                "epochs": 6,
                "steps": 50,
                "batch_size": 8,
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "model_options": {"norm_momentum": 0.9},
            },
        },
    ),
    "cheena_unet2d": Preset(
        about="Baseline of the same paper: plain 2D U-Net of 31 M weights, Dice loss, Adam 1e-3, batch 30.",
        data=_CHEENA_DATA,
        training={
            "model": "unet2d",
            "epochs": 50,
            "batch_size": 30,
            "learning_rate": 1e-3,
            "schedule": "constant",
        },
        recipe={
            "loss": "dice",
            "augmentation": "cheena",
            "patience": 10,
            "patience_of": "loss",
            "postprocessing": "cheena",
        },
        laptop={
            "data": _CHEENA_LAPTOP_DATA,
            "training": {
                "epochs": 8,
                "steps": 60,
                "batch_size": 8,
                "learning_rate": 3e-4,  # at 1e-3 all became background in the first epoch, and stayed so
                "model_options": {"filters": 16},
            },
        },
    ),
    "nnunet_2d": Preset(
        about="nnU-Net v2's rules in 2D: plan from the fingerprint, 1000 epochs of 250 steps; days on a GPU.",
        training=_NNUNET_TRAINING,
        recipe=_NNUNET_RECIPE,
        plan="2d",
        laptop=_NNUNET_2D_LAPTOP,
    ),
    "nnunet_3d": Preset(
        about="nnU-Net v2's rules in 3D at full resolution; 1000 epochs of 250 steps, a day or two on a GPU.",
        training=_NNUNET_TRAINING,
        recipe=_NNUNET_RECIPE,
        plan="3d_fullres",
        laptop=_NNUNET_LAPTOP,
    ),
    "nnunet_3d_lowres": Preset(
        about="nnU-Net v2's first stage of two, for scans far larger than a patch.",
        training=_NNUNET_TRAINING,
        recipe=_NNUNET_RECIPE,
        plan="3d_lowres",
        laptop=_NNUNET_LAPTOP,
    ),
    "nnunet_3d_cascade": Preset(
        about="nnU-Net v2's second stage: full resolution, the first stage's labels as further channels.",
        training=_NNUNET_TRAINING,
        recipe=_NNUNET_RECIPE,
        plan="3d_cascade_fullres",
        laptop=_NNUNET_LAPTOP,
    ),
    "nnunet_2d_seed002": Preset(
        about="nnU-Net in 2D as Cheena describes it: max-pooling, Adam 1e-3 falling 1e-5 an epoch, 40 epochs.",
        training=_SEED002_TRAINING,
        recipe=_SEED002_RECIPE,
        plan="2d",
        laptop=_SEED002_LAPTOP,
    ),
    "nnunet_3d_seed002": Preset(
        about="nnU-Net in 3D as Cheena describes it: max-pooling, Adam 1e-3 falling 1e-5 an epoch, 40 epochs.",
        training=_SEED002_TRAINING,
        recipe=_SEED002_RECIPE,
        plan="3d_fullres",
        laptop=_SEED002_LAPTOP,
    ),
    "ni_cascade": Preset(
        about="All 35 muscles of both legs (Ni et al. 2019): 10 networks find groups of muscles on a coarse grid, 35"
        " find one muscle each in its box; see docs/muscles.md for what it costs.",
        data={"kind": "volumes", "patches": "whole"},
        networks=("ni_groups", "ni_muscles"),
        laptop={"cascade": {"coarse_voxels": 50_000, "coarse_multiple": 4, "fine_voxels": 30_000, "bias_field": False}},
    ),
    "ni_groups": Preset(
        about="One of the cascade's networks of groups: 3D U-Net of four levels, 2,000 steps.",
        data={"kind": "volumes", "patches": "whole"},
        training=_NI_TRAINING
        | {"epochs": 8, "steps": 250, "model_options": _NI_OPTIONS | {"filters": 32, "levels": 4}},
        recipe=_NI_RECIPE,
        laptop={
            "training": _NI_LAPTOP
            | {"epochs": 4, "steps": 65, "model_options": {"filters": 16, "levels": 3, "coordinates": True}},
            "recipe": _NI_LAPTOP_RECIPE,
        },
    ),
    "ni_muscles": Preset(
        about="One of the cascade's networks of single muscles: 3D U-Net of three levels and root 96, 5,000 steps.",
        data={"kind": "volumes", "patches": "boxes"},
        training=_NI_TRAINING
        | {"epochs": 20, "steps": 250, "model_options": _NI_OPTIONS | {"filters": 96, "levels": 3}},
        recipe=_NI_RECIPE | {"mirror": False},
        laptop={
            "training": _NI_LAPTOP
            | {"epochs": 4, "steps": 22, "learning_rate": 5e-3, "model_options": {"filters": 16}},
            "recipe": _NI_LAPTOP_RECIPE,
        },
    ),
    "hdenseunet": Preset(
        about="H-DenseUNet: DenseUNet-161 on three slices, then a 3D branch, then both end to end (Li et al. 2018).",
        data={"kind": "volumes", "depth": 8, "size": (224, 224), "normalisation": "zscore", "patches": "random"},
        training={
            "model": "hdenseunet",
            "epochs": 30,
            "steps": 250,
            "batch_size": 1,
            "optimiser": "sgd",
            "learning_rate": 1e-3,
            "momentum": 0.9,
            "schedule": "polynomial",
        },
        recipe={
            "loss": "weighted_cross_entropy",
            "loss_options": {"class_weights": "dataset"},
            "augmentation": "light",
            "foreground": 0.33,
        },
        stages=(
            {"model_options": {"stage": "slices"}},
            {"model_options": {"stage": "volume"}},
            {"model_options": {"stage": "both"}},
        ),
        laptop={
            "data": {"size": (96, 96)},
            "training": {
                "epochs": 4,
                "steps": 25,
                "learning_rate": 1e-2,
                "model_options": {
                    "blocks_2d": [2, 2, 2, 2],
                    "growth_2d": 12,
                    "blocks_3d": [2, 2, 2, 2],
                    "growth_3d": 8,
                },
            },
        },
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
