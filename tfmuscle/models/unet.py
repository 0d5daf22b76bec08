"""U-Net in 2D or 3D, by the rank of the input.

Encoder and decoder are those of nnU-Net: filters double per level up to a limit, the first convolution of a level is
strided, the decoder uses transposed convolutions with kernel = stride. Strided convolution rather than max-pooling
(which `pooling="max"` gives): a training step costs the same on a CPU (0.35 s for two 48 x 64 x 48 samples, 16 filters,
4 levels, 2 cores), and TensorFlow has no float16 max-pooling in 3D for CPUs. The residual and the dense block replace
the plain one of Ni et al. 2019 with the same filters.

Axes are pooled by 2 only while they are even and at least 4 voxels remain, so that stacks of few slices keep their
depth. Axes of unknown size (None) are allowed; they must come in multiples of `2**(levels - 1)`. A plan says instead
itself how each level is pooled and which kernels its convolutions have (`strides`, `kernels`). With plain blocks,
instance norm and deep supervision that is nnU-Net's `PlainConvUNet`, weight by weight: two convolutions per level on
either way with the kernel of the level, biases everywhere, a 1x1 head at each level of the decoder.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfmuscle.layers import Coordinates
from tfmuscle.models._pooling import fitting_levels, per_level, planned_poolings, poolings
from tfmuscle.models.blocks import (
    BLOCKS,
    DENSE_LAYERS,
    LEAKY_SLOPE,
    NORMS,
    Edges,
    convolution,
    head,
    max_pool,
    upsample,
)

FACTS = {
    "source": "Ronneberger et al. 2015, in the form of nnU-Net (Isensee et al. 2021)",
    "input_shape": (128, 128, 128, 1),
    "num_classes": 5,
    "options": {"levels": 6},
    "spatial_axes": (2, 3),
    "multiple_of": None,
}
POOLINGS = ("stride", "max")


def unet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 32,
    levels: int | None = None,
    block: str = "plain",
    norm: str = "instance",
    dropout: float = 0.0,
    deep_supervision: bool = False,
    max_filters: int = 320,
    strides: Sequence[Edges] | None = None,
    kernels: Sequence[Edges] | None = None,
    pooling: str = "stride",
    dense_dropout: float = 0.0,
    slope: float = LEAKY_SLOPE,
    coordinates: bool = False,
) -> keras.Model:
    """Builds a U-Net.

    Args:
        input_shape: `(H, W, C)` or `(D, H, W, C)`; None for axes of any size.
        num_classes: classes, background included.
        filters: filters of the first level; they double per level.
        levels: resolutions, the full one included; None takes 5, or fewer where the shape is soon too small to halve.
        block: `plain`, `residual` or `dense`.
        norm: `instance`, `batch` or `none`.
        dropout: share of the deepest features dropped in training.
        deep_supervision: return a dict that has, besides `probabilities`, those of the coarser decoder levels as
            `probabilities_1`, `probabilities_2`, ... from fine to coarse.
        max_filters: filters are not doubled beyond this.
        strides: factors between a level and the one before, one number or one per axis for each level; the first is 1.
            They replace `levels`; None halves what can be halved.
        kernels: odd edges of the convolutions in voxels, one number or one per axis for each level; None is 3.
        pooling: `stride` or `max`, how the encoder gets from one level to the next.
        dense_dropout: share of its maps that each layer of a dense block drops in training.
        slope: of the activation for negative input; 0 is ReLU.
        coordinates: show the network where each voxel lies in its window, for windows of always the same part of the
            body.

    Returns:
        Model with the input `image` and the output `probabilities` `(..., num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be pooled that often.
    """
    factors = _factors(input_shape, levels, strides)
    edges = _kernels(kernels, len(input_shape) - 1, len(factors) + 1)
    widths = [min(filters * 2**level, max_filters) for level in range(len(factors) + 1)]
    _check(block, norm, dropout, widths)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; choose one of {', '.join(POOLINGS)}")
    if dense_dropout and (block != "dense" or not 0 <= dense_dropout < 1):
        raise ValueError(f"dense_dropout is {dense_dropout!r}; only dense blocks have it, from 0 to below 1")
    if not 0 <= slope < 1:
        raise ValueError(f"slope is {slope!r}; a number from 0 (ReLU) to below 1 is needed")
    dropped = {"dropout": dense_dropout} if block == "dense" else {}
    build = functools.partial(BLOCKS[block], norm=norm, slope=slope, **dropped)
    image = keras.Input(tuple(input_shape), name="image")
    x = Coordinates(name="coordinates")(image) if coordinates else image
    # A dense block starts with norm and activation, which would discard the dark half of the image itself.
    x = convolution(x, widths[0], name="stem") if block == "dense" else x
    skips, unit = [], (1,) * (len(input_shape) - 1)
    for level, (width, factor, kernel) in enumerate(zip(widths, [unit, *factors], edges, strict=True)):
        if pooling == "max":
            x, factor = max_pool(x, factor, name=f"encoder{level}_pool"), unit
        x = build(x, width, strides=factor, kernel=kernel, name=f"encoder{level}")
        skips.append(x)
    x = layers.Dropout(dropout, name="dropout")(x) if dropout else x
    outputs = {}
    for level in reversed(range(len(factors))):
        x = upsample(x, widths[level], factor=factors[level], name=f"decoder{level}_up")
        x = layers.Concatenate(name=f"decoder{level}_skip")([x, skips[level]])
        x = build(x, widths[level], strides=unit, kernel=edges[level], name=f"decoder{level}")
        if level == 0 or deep_supervision:
            name = f"probabilities_{level}" if level else "probabilities"
            outputs[name] = head(x, num_classes, name=name)
    fine_to_coarse = dict(sorted(outputs.items()))
    return keras.Model(image, fine_to_coarse if deep_supervision else outputs["probabilities"], name="unet")


def _factors(input_shape: tuple[int | None, ...], levels: int | None, strides: Any) -> list[tuple[int, ...]]:
    shape = input_shape[:-1]
    try:
        if strides is None:
            return poolings(shape, fitting_levels(shape) if levels is None else levels)
        factors = planned_poolings(strides, shape)
    except ValueError as error:
        raise ValueError(f"input_shape {tuple(input_shape)}: {error}") from error
    if levels not in (None, len(factors) + 1):
        raise ValueError(f"levels is {levels!r} and strides has {len(factors) + 1} levels; leave levels out")
    return factors


def _kernels(kernels: Any, num_axes: int, levels: int) -> list[tuple[int, ...]]:
    if kernels is None:
        return [(3,) * num_axes] * levels
    edges = per_level("kernels", kernels, num_axes)
    if len(edges) != levels:
        raise ValueError(f"kernels has {len(edges)} levels; {levels} are needed, as many as the network has")
    if any(edge % 2 == 0 for level in edges for edge in level):
        raise ValueError(f"kernels is {kernels!r}; odd numbers are needed, for an even kernel has no middle voxel")
    return edges


def _check(block: str, norm: str, dropout: float, widths: list[int]) -> None:
    if block not in BLOCKS:
        raise ValueError(f"block is {block!r}; choose one of {', '.join(BLOCKS)}")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a share from 0 to below 1 is needed")
    if not widths or min(widths) < 1:
        raise ValueError(f"levels, filters and max_filters give the widths {widths}; positive numbers are needed")
    if block == "dense" and any(width % DENSE_LAYERS for width in widths):
        raise ValueError(
            f"dense blocks of widths {widths}; filters and max_filters must be multiples of {DENSE_LAYERS}"
        )
