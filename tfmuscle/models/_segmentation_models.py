"""U-Nets on ImageNet encoders, built by the package `segmentation-models` and brought into our form.

From the package come encoder and decoder (nearest upsampling, concatenation, two times 3x3 convolution without bias,
batch normalisation, ReLU; 256, 128, 64, 32, 16 filters) and a 3x3 head. Ours are the input `image` of any number of
channels and the float32 softmax: under mixed precision the package's own stays float16. Its losses are not used, for
they break saving.

The package speaks `tf.keras` and prints on import, both dealt with at the top of this file. ImageNet weights are
never downloaded; a local file is read. Those weights saw RGB images of 0..255 (ResNets) or centred ones (VGG,
MobileNet); z-scored scans are close enough for a start, because batch normalisation stays trainable in a frozen
encoder.
"""

import contextlib
import importlib
import io
import os
from pathlib import Path

import keras
from keras import layers

from tfmuscle.errors import DataError
from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import softmax

os.environ["SM_FRAMEWORK"] = "tf.keras"  # its default, "keras", needs modules that Keras 3 no longer has
with contextlib.redirect_stdout(io.StringIO()):
    segmentation_models = importlib.import_module("segmentation_models")

MULTIPLE_OF = 32
"""Five halvings."""
NORM_MOMENTUM = 0.99
"""Share of the moving averages that a step keeps, the published value: they forget their start after 500 steps."""


def backbone_unet(
    backbone: str,
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    encoder_weights: str | Path | None,
    freeze_encoder: bool | None,
    norm_momentum: float,
    weights_url: str,
) -> keras.Model:
    """Builds a U-Net on `backbone`.

    One channel is given three times; other numbers than three go through a trainable 1x1 convolution.

    Args:
        backbone: the package's name of the encoder.
        input_shape: `(H, W, C)`; H and W multiples of 32, or None.
        num_classes: classes, background included.
        encoder_weights: ImageNet weights in a local .h5 file, or None for random ones.
        freeze_encoder: keep the encoder's convolutions as they are; its batch normalisation trains on. None does so
            exactly when `encoder_weights` are given: random convolutions that cannot learn are of no use.
        norm_momentum: of every batch normalisation, 0 to below 1.
        weights_url: where that file can be had, for messages.

    Raises:
        ValueError: the shape does not fit, or `norm_momentum` is out of range.
        DataError: the weight file is missing or is not the one for this encoder.
    """
    if len(input_shape) != 3 or any(edge is not None and edge % MULTIPLE_OF for edge in input_shape[:2]):
        near = tuple(edge and nearest_multiple(edge, MULTIPLE_OF) for edge in input_shape[-3:-1])
        raise ValueError(
            f"input_shape {tuple(input_shape)}: {backbone} needs (H, W, C), H and W multiples of {MULTIPLE_OF};"
            f" use {' x '.join(map(str, near))}"
        )
    if not 0 <= norm_momentum < 1:
        raise ValueError(f"norm_momentum is {norm_momentum}; a number from 0 to below 1 is needed")
    path = None if encoder_weights is None else _existing(Path(encoder_weights), weights_url)
    frozen = path is not None if freeze_encoder is None else bool(freeze_encoder)
    network = _network(backbone, (*input_shape[:2], 3), num_classes, path, frozen, weights_url)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = norm_momentum
    image = keras.Input(tuple(input_shape), name="image")
    rgb = _three_channels(image)

    def call(layer, *inputs, **options):
        return layer(*(rgb if tensor is image else tensor for tensor in inputs), **options)

    # The same layers called on our input: one flat graph with the package's layer names, nothing initialised twice.
    logits = keras.models.clone_model(network, image, clone_function=lambda layer: layer, call_function=call).output
    return keras.Model(image, softmax(logits), name=f"{backbone}_unet")


def _network(backbone, shape, num_classes, path, freeze_encoder, weights_url):
    def make() -> keras.Model:
        return segmentation_models.Unet(
            backbone,
            input_shape=shape,
            classes=num_classes,
            activation="linear",
            encoder_weights=None if path is None else str(path),
            encoder_freeze=freeze_encoder,
        )

    if path is None:
        return make()
    try:
        return make()
    except (ValueError, OSError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path}: not the ImageNet weights of {backbone} ({reason}); download {weights_url}") from error


def _three_channels(image):
    if image.shape[-1] == 3:
        return image
    if image.shape[-1] == 1:
        return layers.Concatenate(name="rgb")([image, image, image])
    return layers.Conv2D(3, 1, name="rgb")(image)


def _existing(path: Path, weights_url: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: there is no such weight file; download {weights_url} and give its path")
    if path.suffix not in (".h5", ".hdf5") or path.name.endswith(".weights.h5"):
        raise DataError(f"{path}: not a Keras 2 weight file (.h5); download {weights_url} and give its path")
    return path
