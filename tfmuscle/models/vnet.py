"""V-Net (Milletari et al. 2016): 5x5x5 convolutions, a sum around every stage, strided convolutions between them.

Stages have 1, 2, 3, 3, 3 convolutions and 16 to 256 filters; the way up has as many as the way down at its level. Each
stage adds its input to what its convolutions make of it, then PReLU with a slope per channel. On the way up the input
of a stage is the skip beside the enlarged map, half of its channels each. Axes are halved only while they are even and
at least 4 voxels remain: windows of three slices keep their depth. The authors normalise nothing and train with
Dice of squared denominators (loss `dice`, option `squared`); batch normalisation is that of the PyTorch version.

Fewer levels or filters, and a kernel of 3, make it small: the numbers that Al Chanti et al. state for their V-Net
(8,410,184) belong to no published structure.
"""

import keras
from keras import layers

from tfmuscle.models.blocks import convolution, he_normal, head, normalise
from tfmuscle.models.unet3d import checked_poolings

FACTS = {
    "source": "Milletari et al. 2016 (V-Net)",
    "input_shape": (64, 128, 128, 1),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (3,),
    "multiple_of": None,
    "levels": 5,
}
MOST_CONVOLUTIONS = 3
"""Of a stage; the first have 1 and 2."""


def vnet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 16,
    levels: int = 5,
    kernel: int = 5,
    norm: str = "batch",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(D, H, W, C)`; None for axes of any size.
        num_classes: classes, background included.
        filters: filters of the first stage, even; they double per level.
        levels: resolutions, the full one included.
        kernel: odd edge of the convolutions in voxels.
        norm: `batch`, `instance` or `none`.

    Returns:
        Model with the input `image` and the output `probabilities` `(D, H, W, num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be pooled that often.
    """
    factors = checked_poolings(input_shape, filters, levels, norm)
    if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel!r}; a positive odd number is needed")
    style = {"kernel": kernel, "norm": norm}
    image = keras.Input(tuple(input_shape), name="image")
    x, skips = _stage(image, filters, 0, **style, name="encoder0"), []
    for level, factor in enumerate(factors, start=1):
        skips.append(x)
        width, name = filters * 2**level, f"encoder{level}"
        down = layers.Conv3D(width, factor, strides=factor, kernel_initializer=he_normal(), name=f"{name}_down")
        x = _prelu(normalise(down(x), norm, name=f"{name}_down_norm"), name=f"{name}_down_act")
        x = _stage(x, width, level, **style, name=name)
    for level in reversed(range(levels - 1)):
        width, factor, name = filters * 2**level, factors[level], f"decoder{level}"
        up = layers.Conv3DTranspose(width, factor, strides=factor, kernel_initializer=he_normal(), name=f"{name}_up")
        x = _prelu(normalise(up(x), norm, name=f"{name}_up_norm"), name=f"{name}_up_act")
        x = layers.Concatenate(name=f"{name}_skip")([x, skips[level]])
        x = _stage(x, 2 * width, level, **style, name=name)
    return keras.Model(image, head(x, num_classes), name="vnet")


def _stage(x, width: int, level: int, *, kernel: int, norm: str, name: str):
    """Returns PReLU(F(x) + x); an image of one channel is added to every filter, one of several is projected."""
    before, number = x, min(level + 1, MOST_CONVOLUTIONS)
    for n in range(number):
        x = convolution(x, width, kernel=kernel, name=f"{name}_conv{n}")
        x = normalise(x, norm, name=f"{name}_norm{n}")
        x = _prelu(x, name=f"{name}_act{n}") if n < number - 1 else x
    if before.shape[-1] not in (1, width):
        before = convolution(before, width, kernel=1, name=f"{name}_projection")
    return _prelu(layers.Add(name=f"{name}_sum")([x, before]), name=f"{name}_act")


def _prelu(x, *, name: str):
    axes = tuple(range(1, len(x.shape) - 1))
    start = keras.initializers.Constant(0.25)
    return layers.PReLU(alpha_initializer=start, shared_axes=axes, name=name)(x)
