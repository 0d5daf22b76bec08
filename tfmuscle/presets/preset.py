"""What a recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
        propagation: fields of `Propagation`, for a network that carries masks from slice to slice.
        laptop: what `--scale laptop` decides besides the caps, in the parts "data", "training", "recipe", "cascade",
            "pretraining" and "propagation".
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
    propagation: Mapping[str, Any] = field(default_factory=dict)
    laptop: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
