"""nnU-Net's rules as recipes: the plan made of the dataset's fingerprint decides patch, widths and batch."""

from tfmuscle.presets.preset import Preset

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
_SEED002_LAPTOP = {"training": {"epochs": 6, "steps": 50}}

NNUNET: dict[str, Preset] = {
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
}
