"""Recipes of papers, under the names of their authors or of their networks.

Where `--scale laptop` needs another rate, loss or batch than the caps give, the comment says what was seen without.
"""

from tfmuscle.presets.preset import Preset

_CHEENA_DATA = {"kind": "slices", "size": (256, 256), "resize": True, "normalisation": "minmax"}
_CHEENA_LAPTOP_DATA = {"size": (64, 64)}
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

PUBLISHED: dict[str, Preset] = {
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
            "mirror": False,  # one scan, one side: 12 epochs with mirroring 0.91, 20 without 0.99
            "postprocessing": "largest",
        },
        laptop={
            "data": {"size": (256, 256)},
            "training": {
                "epochs": 20,
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
        # Ten thigh phantoms, validation Dice after 400 steps: 0.27 by cross-entropy at 1e-3, and 0.89 by Dice and
        # cross-entropy at 5e-3, without mirroring. Steps are counted: one subject has two batches of slices.
        laptop={
            "data": {"size": (64, 64)},
            "training": {
                "epochs": 8,
                "steps": 30,
                "learning_rate": 5e-3,
                "model_options": {"filters": 8, "max_filters": 128},
            },
            "recipe": {"loss": "dice_cross_entropy"},
            "pretraining": {"epochs": 20, "model_options": {"filters": 8, "max_filters": 128}},
        },
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
