"""Pieces that architectures share: convolution, normalisation, blocks, head; 2D or 3D by the rank of their input.

Where Keras' defaults differ from those of the references they are set here: LeakyReLU slope 0.01 (Keras 0.3), He
initialisation for that slope, batch normalisation with ε 1e-5 and momentum 0.9 (1e-3, 0.99), and instance
normalisation as `GroupNormalization(groups=-1)` with ε 1e-5. The latter was measured on 2 CPU cores: a training step
of a 3D U-Net takes as long as with batch normalisation, and as with a hand-written layer, so there is none.

A block takes `strides` (one factor per axis), `norm`, `kernel` and `slope`; its layers are called `<name>_...`.
"""

from collections.abc import Sequence

import keras
from keras import layers

Edges = int | tuple[int, ...]
"""One number for all axes, or one for each."""
LEAKY_SLOPE = 0.01
"""Slope of the activation for negative input, as in nnU-Net."""
NORMS = ("instance", "batch", "none")
DENSE_LAYERS = 4
"""Layers of a dense block; each adds a quarter of the block's filters."""


def convolution(x, filters: int, *, name: str, kernel: Edges = 3, strides: Edges = 1, use_bias: bool = True):
    """Convolves with an odd `kernel`; He-normal for LeakyReLU: standard deviation sqrt(2 / ((1 + 0.01²) fan_in)).

    Output voxel i is centred on input voxel `i * stride`, as in PyTorch. Keras' own "same" padding puts all of it
    behind an even axis, which centres the voxel one further and shifts what weights of nnU-Net see.
    """
    rank = len(x.shape) - 2
    layer = {2: layers.Conv2D, 3: layers.Conv3D}[rank]
    margin = [edge // 2 for edge in ((kernel,) * rank if isinstance(kernel, int) else kernel)]
    padding = "same"
    if max((strides,) if isinstance(strides, int) else strides) > 1:
        x, padding = pad(x, margin, name=f"{name}_pad"), "valid"
    return layer(
        filters, kernel, strides=strides, padding=padding, use_bias=use_bias, kernel_initializer=he_normal(), name=name
    )(x)


def pad(x, margin: Sequence[int], *, name: str):
    """Adds `margin` zeros at both ends of each axis; nothing to do when all are 0."""
    if not any(margin):
        return x
    layer = {4: layers.ZeroPadding2D, 5: layers.ZeroPadding3D}[len(x.shape)]
    return layer(tuple(margin), name=name)(x)


def max_pool(x, factor: tuple[int, ...], *, name: str):
    """Takes the largest value of cells of `factor` voxels; nothing to do when all are 1."""
    if max(factor) == 1:
        return x
    layer = {4: layers.MaxPooling2D, 5: layers.MaxPooling3D}[len(x.shape)]
    return layer(factor, name=name)(x)


def upsample(x, filters: int, *, factor: tuple[int, ...], name: str):
    """Enlarges each axis by `factor` with a transposed convolution whose kernel is its stride, as in nnU-Net."""
    layer = {4: layers.Conv2DTranspose, 5: layers.Conv3DTranspose}[len(x.shape)]
    return layer(filters, factor, strides=factor, kernel_initializer=he_normal(), name=name)(x)


def he_normal() -> keras.initializers.Initializer:
    """Returns He's initialisation for LeakyReLU of slope 0.01 (Keras' `he_normal` is for ReLU, and truncated)."""
    return keras.initializers.VarianceScaling(
        2 / (1 + LEAKY_SLOPE**2), mode="fan_in", distribution="untruncated_normal"
    )


def normalise(x, norm: str, *, name: str):
    """Normalises per sample and channel (`instance`), per channel over the batch (`batch`), or not at all (`none`)."""
    if norm == "instance":
        return layers.GroupNormalization(groups=-1, epsilon=1e-5, name=name)(x)
    if norm == "batch":
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)
    return x


def activate(x, *, name: str, slope: float = LEAKY_SLOPE):
    """LeakyReLU; with slope 0 that is ReLU."""
    return layers.LeakyReLU(negative_slope=slope, name=name)(x)


def plain_block(
    x,
    filters: int,
    *,
    strides: tuple[int, ...],
    norm: str,
    name: str,
    kernel: Edges = 3,
    slope: float = LEAKY_SLOPE,
):
    """Two times convolution, normalisation, activation; the first convolution takes the strides (nnU-Net)."""
    for n in range(2):
        x = convolution(x, filters, kernel=kernel, strides=strides if n == 0 else 1, name=f"{name}_conv{n}")
        x = activate(normalise(x, norm, name=f"{name}_norm{n}"), name=f"{name}_act{n}", slope=slope)
    return x


def residual_block(
    x,
    filters: int,
    *,
    strides: tuple[int, ...],
    norm: str,
    name: str,
    kernel: Edges = 3,
    slope: float = LEAKY_SLOPE,
):
    """Returns act(F(x) + P(x)); F is two convolutions, P averages and projects x where the shapes differ."""
    shortcut = average(x, strides, name=f"{name}_shortcut_pool")
    if shortcut.shape[-1] != filters:
        shortcut = convolution(shortcut, filters, kernel=1, use_bias=False, name=f"{name}_shortcut_conv")
        shortcut = normalise(shortcut, norm, name=f"{name}_shortcut_norm")
    x = convolution(x, filters, kernel=kernel, strides=strides, name=f"{name}_conv0")
    x = activate(normalise(x, norm, name=f"{name}_norm0"), name=f"{name}_act0", slope=slope)
    x = normalise(convolution(x, filters, kernel=kernel, name=f"{name}_conv1"), norm, name=f"{name}_norm1")
    return activate(layers.Add(name=f"{name}_add")([x, shortcut]), name=f"{name}_act1", slope=slope)


def dense_block(
    x,
    filters: int,
    *,
    strides: tuple[int, ...],
    norm: str,
    name: str,
    kernel: Edges = 3,
    slope: float = LEAKY_SLOPE,
    dropout: float = 0.0,
):
    """Four layers norm, activation, convolution, each fed all earlier maps; returns their `filters` maps together.

    With `dropout` each layer drops that share of its maps in training (FC-DenseNet: 0.2).
    """
    x = average(x, strides, name=f"{name}_pool")
    new: list = []
    for n in range(DENSE_LAYERS):
        known = layers.Concatenate(name=f"{name}_known{n}")([x, *new]) if new else x
        known = activate(normalise(known, norm, name=f"{name}_norm{n}"), name=f"{name}_act{n}", slope=slope)
        maps = convolution(known, filters // DENSE_LAYERS, kernel=kernel, name=f"{name}_conv{n}")
        new.append(layers.Dropout(dropout, name=f"{name}_dropout{n}")(maps) if dropout else maps)
    return layers.Concatenate(name=f"{name}_maps")(new)


BLOCKS = {"plain": plain_block, "residual": residual_block, "dense": dense_block}


def average(x, strides: tuple[int, ...], *, name: str):
    """Averages cells of `strides` voxels, the last of an odd axis fewer; nothing to do when all are 1."""
    if max(strides) == 1:
        return x
    layer = {4: layers.AveragePooling2D, 5: layers.AveragePooling3D}[len(x.shape)]
    return layer(strides, padding="same", name=name)(x)


def head(x, num_classes: int, *, name: str = "probabilities"):
    """Returns class probabilities: 1x1 convolution and a softmax that is float32 under every precision policy."""
    return softmax(convolution(x, num_classes, kernel=1, name=f"{name}_logits"), name=name)


def softmax(logits, *, name: str = "probabilities"):
    """Turns logits into probabilities in float32."""
    return layers.Activation("softmax", dtype="float32", name=name)(logits)
