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
# The paper says of its rivals that they segment windows of three slices, and nothing of how they were trained: losses
# are those of their own papers, rate and epochs those of IFSS-Net.
_RIVAL = {"epochs": 10, "batch_size": 1, "learning_rate": 1e-4, "schedule": "last_two"}
_RIVAL_RECIPE = {"augmentation": "none", "mirror": False}
_RIVAL_LAPTOP_DATA = {"size": (96, 96)}
_RIVAL_LAPTOP = {"epochs": 6, "steps": 60, "batch_size": 4, "learning_rate": 2e-3, "schedule": "cosine"}

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
        # Seen on phantom sweeps of 96 x 96 x 80, 6 that train and 2 that validate (carried from the three best slices
        # to both ends; registration: 0.80, soleus alone 0.77), a third of the slices drawn, one seed each. Fed the
        # masks of the slice before, one network for three muscles learned to hand them on. Fed wrong masks instead,
        # and started from a seg_net_fs of 220 s of processor time: 0.47 after 70 s for three muscles, which the mask
        # then has to tell apart, but 0.85 for soleus alone, and 0.90 where masks were less wrong (spoil 0.15 and away 6
        # rather than 0.5 and 20). So: one network a muscle, as the paper has it, from one seg_net_fs of all. Mean of
        # the three muscles then: 0.835; with one loss of all windows 0.856; with the mask at the bottleneck alone as
        # well 0.860; and with 8 epochs instead of 4 0.893. docs/propagation.md has the commands.
        laptop={
            "data": {"size": (96, 96)},
            "training": {
                "epochs": 8,
                "batch_size": 6,
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "model_options": {
                    "filters": 10,
                    "aggregate": False,
                    "dilation_scale": 0.2,
                    "dropout": 0.0,
                    "recurrent_dropout": 0.0,
                    "outer_dropout": 0.0,
                    "tversky": "fixed",
                },
            },
            "propagation": {
                "mode": "per_window",
                "alignment": "drawn",
                "feedback": "predicted",
                "pooled": True,
                "sweep": 400,
                "parts": 28,
                "slices": 4,
                "spoil": 0.15,
                "away": 6,
                "smallest": 20,
                "reverse": 0.5,
            },
        },
    ),
    "seg_net_fs": Preset(
        about="Seg-Net-FS, IFSS-Net without masks (Al Chanti et al. 2021): segments windows of three slices; all slices"
        " labelled.",
        data=_SWEEPS,
        training=_RIVAL | {"model": "seg_net_fs", "model_options": {"tversky": "learned"}},
        recipe=_RIVAL_RECIPE | {"loss": "tversky", "loss_options": {"alpha": 0.5, "beta": 0.5}},
        laptop={
            "data": _RIVAL_LAPTOP_DATA,
            "training": _RIVAL_LAPTOP
            | {"model_options": {"filters": 10, "dilation_scale": 0.2, "outer_dropout": 0.0, "tversky": "fixed"}},
        },
    ),
    "unet3d": Preset(
        about="3D U-Net (Çiçek et al. 2016) on windows of three slices, a rival of IFSS-Net; all slices labelled.",
        data=_SWEEPS,
        training=_RIVAL | {"model": "unet3d"},
        recipe=_RIVAL_RECIPE | {"loss": "dice_cross_entropy"},
        laptop={
            "data": _RIVAL_LAPTOP_DATA,
            "training": _RIVAL_LAPTOP | {"model_options": {"filters": 8}},
        },
    ),
    "vnet": Preset(
        about="V-Net (Milletari et al. 2016) on windows of three slices, a rival of IFSS-Net; all slices labelled.",
        data=_SWEEPS,
        training=_RIVAL | {"model": "vnet"},
        recipe=_RIVAL_RECIPE | {"loss": "dice", "loss_options": {"squared": True}},
        laptop={
            "data": _RIVAL_LAPTOP_DATA,
            "training": _RIVAL_LAPTOP | {"model_options": {"filters": 4}},
        },
    ),
    "daf3d": Preset(
        about="DAF3D (Wang et al. 2019) on windows of three slices, a rival of IFSS-Net; all slices labelled.",
        data=_SWEEPS,
        training=_RIVAL | {"model": "daf3d"},
        recipe=_RIVAL_RECIPE | {"loss": "dice_cross_entropy", "deep_supervision": True},
        laptop={
            "data": _RIVAL_LAPTOP_DATA,
            "training": _RIVAL_LAPTOP
            | {"model_options": {"filters": 8, "blocks": [1, 1, 1, 1], "dilation_scale": 0.2}},
        },
    ),
    "pg_net": Preset(
        about="PG-Net after Oh et al. 2018, a rival of IFSS-Net: carries masks from frame to frame and refers to the"
        " first drawn one. Then 'tfmuscle propagate -m RUN'.",
        data=_SWEEPS | {"kind": "slices", "depth": 1},
        training=_RIVAL | {"model": "pg_net"},
        recipe=_RIVAL_RECIPE,
        propagation={"supervision": "full"},
        laptop={
            "data": _RIVAL_LAPTOP_DATA,
            "training": {
                "learning_rate": 1e-3,
                "model_options": {"filters": 8, "features": 32, "blocks": [1, 1, 1, 1]},
            },
            "propagation": {"mode": "per_window", "feedback": "predicted"},
        },
    ),
}
