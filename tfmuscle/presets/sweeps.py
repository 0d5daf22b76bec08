"""Recipes for sweeps of ultrasound: networks that carry masks from slice to slice, and their published rivals."""

from tfmuscle.presets.preset import Preset

_SWEEPS = {
    "kind": "sequences",
    "depth": 3,
    "size": (512, 512),
    "spacing": None,
    "orientation": None,
    "patches": "random",
}

SWEEPS: dict[str, Preset] = {
    "ifss_net": Preset(
        about="IFSS-Net (Al Chanti et al. 2021): carries the masks of three drawn slices through a sweep; learns from"
        " 3.5 % of the slices. Then 'tfmuscle propagate -m RUN'.",
        data=_SWEEPS,
        training={
            "model": "ifss_net",
            "epochs": 10,
            "batch_size": 1,
            "learning_rate": 1e-4,
            "schedule": "last_two",
        },
        recipe={"augmentation": "none", "mirror": False},
        propagation={"supervision": "decremental", "mode": "halves", "alignment": "window"},
        laptop={
            "data": {"size": (96, 96)},
            "training": {"epochs": 6, "learning_rate": 1e-3, "model_options": {"filters": 10}},
            "propagation": {"mode": "per_window"},
        },
    ),
}
