"""Recipes of our own: a first look at any data, and the datasets of the benchmarks."""

from tfmuscle.presets.preset import Preset

GENERAL: dict[str, Preset] = {
    "demo": Preset(
        about="Phantom bones, 2D slices; about two minutes on 2 cores. Shows the job, proves nothing about patients.",
        data={"kind": "slices", "size": (64, 64), "spacing": (14.5, 3.45, 3.45), "folds": 4, "test": 2},
        training={
            "model": "unet",
            "model_options": {"filters": 12, "levels": 4, "norm": "batch"},
            "epochs": 8,
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
