"""3D U-Net of Çiçek et al. 2016, which widens before it pools.

Each level convolves twice, and the second convolution doubles the filters, so that nothing is pooled through a
bottleneck; the way up keeps its width in the transposed convolution and narrows in the convolutions. Neither is among
the options of `unet`, which is nnU-Net's, so this is a file of its own. Here convolutions are padded, and axes are
pooled only while they are even and at least 4 voxels remain: windows of three slices keep their depth. The published
input, 116 x 132 x 132, belongs to unpadded ones.

The 19,069,955 parameters that the authors state, for three channels and three classes, are those of the convolutions:
with biases, but for the transposed ones, and without scale and offset of the batch normalisation.
"""

import keras
from keras import layers

from tfmuscle.models._pooling import poolings
from tfmuscle.models.blocks import NORMS, activate, convolution, he_normal, head, max_pool, normalise

FACTS = {
    "source": "Çiçek et al. 2016 (3D U-Net)",
    "input_shape": (112, 128, 128, 3),
    "num_classes": 3,
    "options": {},
    "spatial_axes": (3,),
    "multiple_of": None,
    "levels": 4,
}


def unet3d(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 32,
    levels: int = 4,
    norm: str = "batch",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(D, H, W, C)`; None for axes of any size.
        num_classes: classes, background included.
        filters: of the very first convolution; each second one of a level doubles them.
        levels: resolutions, the full one included.
        norm: `batch`, `instance` or `none`.

    Returns:
        Model with the input `image` and the output `probabilities` `(D, H, W, num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be pooled that often.
    """
    factors = checked_poolings(input_shape, filters, levels, norm)
    image = x = keras.Input(tuple(input_shape), name="image")
    skips = []
    for level in range(levels):
        x = _convolve(x, filters * 2**level, norm, name=f"encoder{level}_0")
        x = _convolve(x, filters * 2 ** (level + 1), norm, name=f"encoder{level}_1")
        skips.append(x)
        if level < levels - 1:
            x = max_pool(x, factors[level], name=f"pool{level}")
    for level in reversed(range(levels - 1)):
        width, factor, name = filters * 2 ** (level + 1), factors[level], f"decoder{level}"
        x = layers.Conv3DTranspose(
            2 * width, factor, strides=factor, use_bias=False, kernel_initializer=he_normal(), name=f"{name}_up"
        )(x)
        x = layers.Concatenate(name=f"{name}_skip")([skips[level], x])
        for n in range(2):
            x = _convolve(x, width, norm, name=f"{name}_{n}")
    return keras.Model(image, head(x, num_classes), name="unet3d")


def checked_poolings(
    input_shape: tuple[int | None, ...], filters: int, levels: int, norm: str
) -> list[tuple[int, ...]]:
    """Returns the factor of each axis between levels.

    Raises:
        ValueError: an option out of range, or a shape that cannot be pooled that often.
    """
    if type(filters) is not int or filters < 1:
        raise ValueError(f"filters is {filters!r}; a positive whole number is needed")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    try:
        return poolings(input_shape[:-1], levels)
    except ValueError as error:
        raise ValueError(f"input_shape {tuple(input_shape)}: {error}") from error


def _convolve(x, width: int, norm: str, *, name: str):
    x = normalise(convolution(x, width, name=f"{name}_conv"), norm, name=f"{name}_norm")
    return activate(x, name=f"{name}_act", slope=0.0)
