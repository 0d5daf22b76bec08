"""U-Net on an ImageNet MobileNetV2 encoder (Sandler et al. 2018)."""

from pathlib import Path

import keras

from tfmuscle.models._segmentation_models import NORM_MOMENTUM, backbone_unet

FACTS = {
    "source": "Cheena (comparison); segmentation-models 1.0.1 (Iakubovskii 2019)",
    "input_shape": (256, 256, 3),
    "num_classes": 5,
    "options": {"freeze_encoder": True},
    "spatial_axes": (2,),
    "multiple_of": 32,
}
WEIGHTS_URL = (
    "https://github.com/JonathanCMitchell/mobilenet_v2_keras/releases/download/v1.1/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
)


def mobilenetv2_unet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    encoder_weights: str | Path | None = None,
    freeze_encoder: bool | None = None,
    norm_momentum: float = NORM_MOMENTUM,
) -> keras.Model:
    """Builds the network; options as `backbone_unet`.

    Args:
        input_shape: `(H, W, C)`; H and W multiples of 32, or None.
        num_classes: classes, background included.
        encoder_weights: a local copy of `WEIGHTS_URL`, or None for random weights.
        freeze_encoder: train the decoder and the encoder's batch normalisation only; None does so exactly when
            `encoder_weights` are given.
        norm_momentum: of every batch normalisation; a training of less than a few hundred steps wants 0.9.
    """
    return backbone_unet(
        "mobilenetv2",
        input_shape,
        num_classes,
        encoder_weights=encoder_weights,
        freeze_encoder=freeze_encoder,
        norm_momentum=norm_momentum,
        weights_url=WEIGHTS_URL,
    )
