"""SegNet in 3D or 2D, by the rank of the input: a decoder that knows of the encoder only where its maxima were.

Five levels of two convolutions, each followed by max-pooling; the decoder puts each value back on the place of the
maximum and convolves twice, the second time to the width of the next finer level. There is no skip connection. As in
the U-Net of Ni et al. 2019 the filters start at `filters` and double per level; Badrinarayanan et al. took VGG-16.

TensorFlow has no pooling in 3D that says where the maximum was. So the place is found again: let u be the pooled map,
repeated onto the voxels of its cells; m = (x == u), divided by the number of voxels in the cell that are equal to the
maximum, is 1 at a single maximum, and ties share. `unpool` is repeat(y) * m. No gradient flows through m, as none does
through an index. All of it are layers and operations of Keras, so that a model file loads without our code.
"""

from collections.abc import Sequence

import keras
from keras import layers, ops

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import NORMS, activate, average, convolution, head, max_pool, normalise

FACTS = {
    "source": "Badrinarayanan et al. 2017 (SegNet), with the encoder of Ni et al. 2019",
    "input_shape": (64, 64, 64, 1),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (2, 3),
    "multiple_of": 32,
    "depth_multiple_of": 32,
}
LEVELS = 5


def segnet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 32,
    norm: str = "batch",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(H, W, C)` or `(D, H, W, C)`; multiples of 32, or None.
        num_classes: classes, background included.
        filters: filters of the first level; they double per level.
        norm: `instance`, `batch` or `none`.

    Returns:
        Model with the input `image` and the output `probabilities` `(..., num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved five times.
    """
    check_levels(input_shape, filters, norm)
    factor = (2,) * (len(input_shape) - 1)
    widths = [filters * 2**level for level in range(LEVELS)]
    image = x = keras.Input(tuple(input_shape), name="image")
    places = []
    for level, width in enumerate(widths):
        x = _convolutions(x, (width, width), norm, name=f"encoder{level}")
        pooled = max_pool(x, factor, name=f"pool{level}")
        places.append(maximum_places(x, pooled, factor, name=f"place{level}"))
        x = pooled
    for level in reversed(range(LEVELS)):
        x = unpool(x, places[level], factor, name=f"unpool{level}")
        x = _convolutions(x, (widths[level], widths[max(level - 1, 0)]), norm, name=f"decoder{level}")
    return keras.Model(image, head(x, num_classes), name="segnet")


def maximum_places(x, pooled, factor: tuple[int, ...], *, name: str):
    """Returns m: 1 where `x` is the maximum of its cell, else 0; the k voxels that tie have 1/k each."""
    is_maximum = ops.cast(ops.equal(x, _repeat(pooled, factor, name=f"{name}_maximum")), x.dtype)
    share = _repeat(average(is_maximum, factor, name=f"{name}_share"), factor, name=f"{name}_shares")
    return is_maximum / (share * 2 ** len(factor))


def unpool(x, places, factor: tuple[int, ...], *, name: str):
    """Puts every value of `x` on the place of the maximum in its cell."""
    return layers.Multiply(name=name)([_repeat(x, factor, name=f"{name}_repeat"), places])


def _repeat(x, factor: tuple[int, ...], *, name: str):
    layer = {4: layers.UpSampling2D, 5: layers.UpSampling3D}[len(x.shape)]
    return layer(factor, name=name)(x)


def _convolutions(x, widths: Sequence[int], norm: str, *, name: str):
    for n, width in enumerate(widths):
        x = convolution(x, width, name=f"{name}_conv{n}")
        x = activate(normalise(x, norm, name=f"{name}_norm{n}"), name=f"{name}_act{n}", slope=0.0)
    return x


def check_levels(input_shape: tuple[int | None, ...], filters: int, norm: str) -> None:
    """Checks what FCN-8s and SegNet take.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved five times.
    """
    shape, divisor = input_shape[:-1], 2**LEVELS
    if filters < 1:
        raise ValueError(f"filters is {filters!r}; a positive number is needed")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    if any(edge is not None and edge % divisor for edge in shape):
        near = " x ".join(str(edge and nearest_multiple(edge, divisor)) for edge in shape)
        raise ValueError(f"input_shape {tuple(input_shape)}: {LEVELS} poolings need multiples of {divisor}; use {near}")
