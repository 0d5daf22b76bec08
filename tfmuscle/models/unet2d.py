"""The plain 2D U-Net that Cheena compares with: max-pooling, no normalisation, dropout at the bottom.

Its text has 3x3 up-convolutions, its table 31 million weights, which are those of 2x2 ones (31,030,853 for one channel
and five classes; 34,512,453 with 3x3). So 2 is the default and 3 an option. Without normalisation the start matters:
He-normal for ReLU. For a U-Net with normalisation, or in 3D, there is `unet`.
"""

import keras
from keras import layers

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import softmax

FACTS = {
    "source": "Ronneberger et al. 2015; Cheena (baseline)",
    "input_shape": (256, 256, 1),
    "num_classes": 5,
    "options": {},
    "spatial_axes": (2,),
    "multiple_of": 16,
}
NUM_POOLINGS = 4
UP_KERNELS = (2, 3)


def unet2d(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 64,
    dropout: float = 0.5,
    up_kernel: int = 2,
) -> keras.Model:
    """Builds the network: four levels of two 3x3 convolutions with ReLU, a bottleneck, and four levels up again.

    Args:
        input_shape: `(H, W, C)`; H and W multiples of 16, or None.
        num_classes: classes, background included.
        filters: filters of the first level; they double per level, so the bottleneck has 16 times as many.
        dropout: share of the bottleneck's features dropped in training.
        up_kernel: edge of the up-convolutions in pixels, 2 or 3; their stride is 2.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved four times.
    """
    _check(input_shape, filters, dropout, up_kernel)
    image = keras.Input(tuple(input_shape), name="image")
    x, skips = image, []
    for level in range(NUM_POOLINGS):
        skips.append(_two_convolutions(x, filters * 2**level, name=f"encoder{level}"))
        x = layers.MaxPooling2D(2, name=f"encoder{level}_pool")(skips[-1])
    x = _two_convolutions(x, filters * 2**NUM_POOLINGS, name="bottleneck")
    x = layers.Dropout(dropout, name="dropout")(x)
    for level in reversed(range(NUM_POOLINGS)):
        width = filters * 2**level
        up = layers.Conv2DTranspose(
            width, up_kernel, strides=2, padding="same", kernel_initializer="he_normal", name=f"decoder{level}_up"
        )
        x = layers.Concatenate(name=f"decoder{level}_skip")([up(x), skips[level]])
        x = _two_convolutions(x, width, name=f"decoder{level}")
    logits = layers.Conv2D(num_classes, 1, kernel_initializer="he_normal", name="probabilities_logits")(x)
    return keras.Model(image, softmax(logits), name="unet2d")


def _two_convolutions(x, filters: int, *, name: str):
    for n in range(2):
        x = layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"{name}_conv{n}"
        )(x)
    return x


def _check(input_shape: tuple[int | None, ...], filters: int, dropout: float, up_kernel: int) -> None:
    multiple = 2**NUM_POOLINGS
    if any(edge is not None and edge % multiple for edge in input_shape[:2]):
        near = " x ".join(str(edge and nearest_multiple(edge, multiple)) for edge in input_shape[:2])
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W must be multiples of {multiple}; use {near}")
    if type(filters) is not int or filters < 1:
        raise ValueError(f"filters is {filters!r}; a positive whole number is needed")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a share from 0 to below 1 is needed")
    if up_kernel not in UP_KERNELS:
        raise ValueError(f"up_kernel is {up_kernel!r}; choose one of {', '.join(map(str, UP_KERNELS))}")
