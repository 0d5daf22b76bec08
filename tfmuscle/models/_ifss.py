"""Pieces of IFSS-Net and Seg-Net-FS: encoder levels with parallel dilations, fusion, recurrence, decoder.

All volumes are short windows of slices `(w, H, W, C)`. Depth is never pooled; five levels halve the plane. Numbers are
those of the authors' code for `filters` = 30, and scale with it but for the last two. Normalisation is over all voxels
and channels of a window (TF-slim's `layer_norm`): `GroupNormalization(groups=1)`.

* **Dilations reach in the plane only** unless `dilate_depth`: of three slices a rate from 3 on sees just the middle
  tap, and two thirds of such a kernel would be dead. The count is the same.
* Transposed convolutions of stride 1 are convolutions with their kernel mirrored, and are written as such.
* The sigmoid gate of the fusion has no ReLU before it and the logits have none: in the authors' code both have one,
  which leaves gates from 0.5 up, and half of all logits flat.

A level is a function that holds its layers, so that two streams through one encoder share weights by calling it twice.
"""

from collections.abc import Callable
from typing import Any

from keras import layers, ops

from tfmuscle.losses.parametric import ParametricTversky
from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import softmax

MULTIPLE_OF = 32
WIDTHS = (1, 1, 2, 4, 4)
"""Width of each level, in `filters`."""
DILATIONS = ((6, 12, 18), (6, 12, 18), (4, 6, 8), (2, 4, 6), (2, 4, 6))
BRANCHES = 5
"""Branches of a pyramid: mean of the slice, 1x1x1, three dilations; they share the width of the level."""
EPSILON = 1e-6
TEMPORAL = ("bi", "uni", "none")

Stage = Callable[[Any], Any]
Fuse = Callable[..., Any]


def encoder(*, filters: int, dilate_depth: bool, dilation_scale: float, dropout: float) -> list[Stage]:
    """Returns the five levels of the encoder, each halving the plane; the deepest has no dropout."""
    last = len(WIDTHS) - 1
    return [
        _level(
            filters * width,
            [max(1, round(rate * dilation_scale)) for rate in rates],
            dilate_depth=dilate_depth,
            dropout=dropout if level < last else 0.0,
            name=f"encoder{level}",
        )
        for level, (width, rates) in enumerate(zip(WIDTHS, DILATIONS, strict=True))
    ]


def _level(width: int, rates: list[int], *, dilate_depth: bool, dropout: float, name: str) -> Stage:
    branch = width // BRANCHES
    stages: list[Stage] = [
        layers.Conv3D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"),
        layers.GroupNormalization(groups=1, epsilon=EPSILON, name=f"{name}_norm"),
        layers.ReLU(name=f"{name}_relu"),
        layers.MaxPooling3D((1, 3, 3), (1, 2, 2), padding="same", name=f"{name}_pool"),
    ]
    mean = layers.Conv3D(branch, 1, use_bias=False, name=f"{name}_mean")
    views = [layers.Conv3D(branch, 1, use_bias=False, name=f"{name}_point")]
    for number, rate in enumerate(rates):
        reach, called = (rate if dilate_depth else 1, rate, rate), f"{name}_dilated{number}"
        views.append(
            layers.Conv3D(branch, 3, padding="same", dilation_rate=reach, use_bias=False, name=called)  # linear
        )
    join = layers.Concatenate(name=f"{name}_pyramid")
    drop = layers.Dropout(dropout, name=f"{name}_dropout") if dropout else None

    def apply(x):
        for stage in stages:
            x = stage(x)
        everywhere = ops.ones_like(x[..., :1])
        x = join([everywhere * mean(slice_means(x)), *(view(x) for view in views)])
        return drop(x) if drop else x

    return apply


def slice_means(x):
    """Returns `(w, 1, 1, C)`, the mean of each slice, summed in float32 also in half precision."""
    return ops.cast(ops.mean(ops.cast(x, "float32"), axis=(2, 3), keepdims=True), x.dtype)


def conv_norm_relu(x, width: int, *, name: str, kernel: int = 3, use_bias: bool = True):
    """Convolution, normalisation over the window, ReLU."""
    x = layers.Conv3D(
        width, kernel, padding="same", use_bias=use_bias, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    x = layers.GroupNormalization(groups=1, epsilon=EPSILON, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def concatenated(x, other, width: int, *, name: str):
    """Returns both side by side."""
    return layers.Concatenate(name=f"{name}_both")([x, other])


def feature_fusion(x, other, width: int, *, name: str):
    """Returns f + f w; f is what a convolution makes of both, w a gate per slice and channel."""
    f = conv_norm_relu(concatenated(x, other, width, name=name), width, name=name)
    gate = layers.Conv3D(width, 1, activation="relu", name=f"{name}_gate0")(slice_means(f))
    gate = layers.Conv3D(width, 1, activation="sigmoid", name=f"{name}_gate1")(gate)
    return layers.Add(name=f"{name}_sum")([f, layers.Multiply(name=f"{name}_gated")([f, gate])])


def recurrence(x, temporal: str, *, kernel: int, recurrent_dropout: float, outer_dropout: float):
    """Reads the slices as a sequence: forward, or in both directions with the same weights and summed."""
    if temporal == "none":
        return x
    cell = layers.ConvLSTM2D(
        x.shape[-1],
        kernel,
        padding="same",
        return_sequences=True,
        recurrent_dropout=recurrent_dropout,
        name="recurrence",
    )
    found = cell(x)
    if temporal == "bi":
        found = layers.Add(name="recurrence_sum")([found, ops.flip(cell(ops.flip(x, axis=1)), axis=1)])
    return layers.Dropout(outer_dropout, name="recurrence_dropout")(found) if outer_dropout else found


def decoder_widths(filters: int) -> list[int]:
    """Returns the widths of the five steps up and of the last convolutions.

    The last two are as published at any width: with 5 and 4 channels instead, 10 filters learned next to nothing.

    >>> decoder_widths(30)
    [120, 120, 60, 60, 16, 8]
    """
    return [*(filters * factor for factor in (4, 4, 2, 2)), 16, 8]


def decoder(x, skips: list, widths: list[int], *, fuse: Fuse, dropout: float):
    """Returns features on the grid of the image; `skips` from coarse to fine, `widths` one more, for the end."""
    for step, (skip, width) in enumerate(zip(skips, widths, strict=False)):
        name = f"decoder{step}"
        x = conv_norm_relu(x, width, use_bias=False, name=f"{name}_first")
        x = conv_norm_relu(x, width, name=f"{name}_second")
        x = up(fuse(x, skip, width, name=f"{name}_fusion"), dropout=dropout, name=name)
    return x


def refiner(x, skips: list, widths: list[int], *, dropout: float):
    """Decoder of Pinheiro et al. 2016: the skip is convolved, joined, convolved, doubled."""
    for step, (skip, width) in enumerate(zip(skips, widths, strict=False)):
        name, shape = f"decoder{step}", {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
        skip = layers.Conv3D(width, 3, name=f"{name}_skip", **shape)(skip)
        x = layers.Conv3D(width, 3, name=f"{name}_conv", **shape)(concatenated(x, skip, width, name=name))
        x = up(x, dropout=dropout, name=name)
    return x


def up(x, *, dropout: float, name: str):
    """Doubles the plane and drops features in training."""
    x = layers.UpSampling3D((1, 2, 2), name=f"{name}_up")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x) if dropout else x


def answer(x, num_classes: int, width: int, *, dropout: float, tversky: str | None):
    """Returns probabilities: two last convolutions, a float32 softmax, and the weights of the loss if asked for."""
    x = conv_norm_relu(x, width, use_bias=False, name="last_first")
    x = conv_norm_relu(x, width, kernel=1, name="last_second")
    x = layers.Dropout(dropout, name="last_dropout")(x) if dropout else x
    logits = layers.Conv3D(num_classes, 1, name="logits")(x)
    if tversky is None:
        return softmax(logits)
    return ParametricTversky(tversky, name="probabilities")(softmax(logits, name="softmax"))


def check_window(input_shape: tuple[int | None, ...], filters: int, dropouts: dict[str, float]) -> None:
    """Checks shape, width and shares that both networks have.

    Raises:
        ValueError: naming what does not fit and what would.
    """
    if None in input_shape[1:]:
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W are needed, only the number of slices may be None")
    if any(edge % MULTIPLE_OF for edge in input_shape[1:3] if edge):
        near = " x ".join(str(nearest_multiple(edge, MULTIPLE_OF)) for edge in input_shape[1:3] if edge)
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W must be multiples of {MULTIPLE_OF}; use {near}")
    if type(filters) is not int or filters < BRANCHES or filters % BRANCHES:
        raise ValueError(f"filters is {filters!r}; a positive multiple of {BRANCHES} is needed")
    for name, share in dropouts.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share!r}; a share from 0 to below 1 is needed")


def check_positive(clstm_kernel: int, dilation_scale: float) -> None:
    """Raises a ValueError when the kernel is even or below 1, or the scale is not positive."""
    if type(clstm_kernel) is not int or clstm_kernel < 1 or clstm_kernel % 2 == 0:
        raise ValueError(f"clstm_kernel is {clstm_kernel!r}; a positive odd number is needed")
    if not dilation_scale > 0:
        raise ValueError(f"dilation_scale is {dilation_scale!r}; a positive number is needed")


def check_choice(name: str, value: Any, known: tuple) -> None:
    """Raises a ValueError when `value` is none of `known`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(str, known))}")
