"""DAF3D (Wang et al. 2019): features of all levels, each refined by attention to their fusion.

A ResNeXt-50 in 3D (32 groups, group normalisation, its last two stages dilated by 2 instead of strided) gives four
levels. Each becomes 128 maps and is added to the enlarged deeper one; all, enlarged to the finest, are fused to 64. Per
level, attention is a sigmoid of the level beside the fusion, and the level beside attention times fusion is refined.
What the four agree on goes through a pyramid of dilations, in the plane only, and the head.

Nine places answer with `deep_supervision`: each level, each refined level, and the end; so the authors train it, with
the weights in `FACTS`. It then has their 28,918,390 parameters exactly, 776 of them in the eight further heads. Two
classes have one logit, as with the authors' sigmoid.

The authors segment whole prostates, halve the depth once and dilate it. `thin` does neither, for windows of few slices;
the count is the same. Every PReLU has a single slope, and within a block of the encoder one is used three times.
"""

import math
from collections.abc import Sequence

import keras
from keras import layers, ops

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import Edges, pad, softmax

FACTS = {
    "source": "Wang et al. 2019 (DAF3D), structure of the authors' code",
    "input_shape": (3, 512, 512, 1),
    "num_classes": 2,
    "options": {"deep_supervision": True},
    "spatial_axes": (3,),
    "multiple_of": 8,
    "output_weights": {
        "probabilities": 1.0,
        "probabilities_level1": 0.4,
        "probabilities_level2": 0.5,
        "probabilities_level3": 0.7,
        "probabilities_level4": 0.8,
        "probabilities_refined1": 0.4,
        "probabilities_refined2": 0.5,
        "probabilities_refined3": 0.7,
        "probabilities_refined4": 0.8,
    },
}
GROUPS = 32
"""Of grouped convolutions and of normalisations, or the largest divisor of narrower maps."""
RATES = (1, 6, 12, 18)
MULTIPLE_OF = 8


def daf3d(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    filters: int = 64,
    blocks: Sequence[int] = (3, 4, 6, 3),
    thin: bool = True,
    dilation_scale: float = 1.0,
    deep_supervision: bool = False,
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(D, H, W, C)`, all known; H and W multiples of 8.
        num_classes: classes, background included.
        filters: maps of the stem and of the fusion; all widths are in proportion.
        blocks: blocks of the four stages of the encoder.
        thin: leave the depth alone in the encoder; False halves it once and dilates along it, as the authors do.
        dilation_scale: factor of the dilations of the last pyramid, for windows much smaller than 512 x 512.
        deep_supervision: return a dict that has, besides `probabilities`, those of the levels and the refined levels,
            on the same grid.

    Returns:
        Model with the input `image` and the output `probabilities` `(D, H, W, num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that does not fit.
    """
    _check(input_shape, filters, blocks, dilation_scale)
    grid = tuple(input_shape[:-1])
    image = keras.Input(tuple(input_shape), name="image")
    levels = _pyramid(_encode(image, filters, blocks, thin=thin), 2 * filters)
    fused = _narrow(layers.Concatenate(name="fuse_levels")(list(reversed(levels))), filters, 3, name="fuse")
    places = {f"level{number}": level for number, level in enumerate(levels, start=1)}
    refined = []
    for number, level in enumerate(levels, start=1):
        refined.append(_refine(level, fused, filters, number))
        places[f"refined{number}"] = refined[-1]
    x = _narrow(layers.Concatenate(name="refined_levels")(refined), filters, 1, name="refined")
    x = _dilations(x, filters, dilation_scale)
    answers = {"probabilities": _answer(x, grid, num_classes, name="probabilities")}
    for place, maps in places.items():
        answers[f"probabilities_{place}"] = _answer(maps, grid, num_classes, name=f"probabilities_{place}")
    if deep_supervision:
        return keras.Model(image, answers, name="daf3d")
    return keras.Model(image, answers["probabilities"], name="daf3d")


def _encode(image, filters: int, blocks: Sequence[int], *, thin: bool) -> list:
    """Returns the maps of the four stages, the finest first; the second halves the plane, the last two dilate."""
    x = _conv(pad(image, (3, 3, 3), name="stem_pad"), filters, kernel=7, strides=(1, 2, 2), name="stem_conv")
    x = _prelu(_normalise(x, name="stem_norm"), name="stem_act")
    x = layers.MaxPooling3D(3, (1 if thin else 2, 2, 2), padding="same", name="stem_pool")(x)
    found, reach = [], (1, 2, 2) if thin else (2, 2, 2)
    for stage, number in enumerate(blocks):
        width, dilation = 2 * filters * 2**stage, reach if stage > 1 else (1, 1, 1)
        for block in range(number):
            strides = (1, 2, 2) if stage == 1 and block == 0 else (1, 1, 1)
            x = _block(x, width, strides=strides, dilation=dilation, name=f"stage{stage}_block{block}")
        found.append(x)
    return found


def _block(x, width: int, *, strides: tuple[int, ...], dilation: tuple[int, ...], name: str):
    """Returns twice `width` maps: 1x1x1, grouped 3x3x3 and 1x1x1 convolution, added to x, projected if need be."""
    act, shortcut = _single_slope(f"{name}_act"), x
    if max(strides) > 1 or x.shape[-1] != 2 * width:
        shortcut = _normalise(
            _conv(x, 2 * width, kernel=1, strides=strides, name=f"{name}_shortcut"), name=f"{name}_shortcut_norm"
        )
    x = act(_normalise(_conv(x, width, kernel=1, name=f"{name}_conv0"), name=f"{name}_norm0"))
    x = pad(x, dilation, name=f"{name}_pad")
    x = layers.Conv3D(
        width,
        3,
        strides=strides,
        dilation_rate=dilation,
        groups=math.gcd(GROUPS, width),
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv1",
    )(x)
    x = act(_normalise(x, name=f"{name}_norm1"))
    x = _normalise(_conv(x, 2 * width, kernel=1, name=f"{name}_conv2"), name=f"{name}_norm2")
    return act(layers.Add(name=f"{name}_sum")([x, shortcut]))


def _pyramid(stages: list, width: int) -> list:
    """Returns `width` maps of each stage, the deeper ones added, all on the grid of the finest."""
    found: list = []
    for number, stage in reversed(list(enumerate(stages, start=1))):
        x = _narrow(stage, width, 1, name=f"level{number}")
        if found:
            x = layers.Add(name=f"level{number}_sum")([x, _resized(found[-1], x.shape[1:4])])
        found.append(x)
    return [_resized(x, stages[0].shape[1:4]) for x in reversed(found)]


def _refine(level, fused, width: int, number: int):
    """Returns `width` maps of the level beside what of the fusion its attention lets pass."""
    x = _narrow(layers.Concatenate(name=f"attention{number}_both")([level, fused]), width, 2, name=f"attention{number}")
    gate = layers.Conv3D(width, 3, padding="same", activation="sigmoid", name=f"attention{number}_gate")(x)
    passed = layers.Multiply(name=f"attention{number}_passed")([gate, fused])
    return _narrow(layers.Concatenate(name=f"refine{number}_both")([level, passed]), width, 3, name=f"refine{number}")


def _dilations(x, width: int, scale: float):
    """Returns `width` maps of four dilations side by side, without activation."""
    views = []
    for number, rate in enumerate(RATES):
        rate = max(1, round(rate * scale))
        view = layers.Conv3D(
            width,
            3,
            padding="same",
            dilation_rate=(1, rate, rate),
            kernel_initializer="he_normal",
            name=f"wide{number}",
        )(x)
        views.append(_normalise(view, name=f"wide{number}_norm"))
    x = layers.Concatenate(name="wide")(views)
    return _normalise(layers.Conv3D(width, 1, name="wide_conv")(x), name="wide_norm")


def _answer(x, grid: tuple[int, ...], num_classes: int, *, name: str):
    """Returns probabilities on the grid of the image; logits are enlarged, not probabilities."""
    logits = layers.Conv3D(1 if num_classes == 2 else num_classes, 1, name=f"{name}_logits")(x)
    logits = _resized(logits, grid)
    if num_classes == 2:
        logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
    return softmax(logits, name=name)


def _resized(x, grid: tuple[int, ...]):
    """Interpolates linearly along each axis: the plane of every slice, then the depth."""
    depth, height, width, channels = x.shape[1:]
    if (height, width) != tuple(grid[1:]):
        x = ops.image.resize(ops.reshape(x, (-1, height, width, channels)), tuple(grid[1:]), interpolation="bilinear")
    if depth != grid[0]:
        x = ops.reshape(x, (-1, depth, grid[1] * grid[2], channels))
        x = ops.image.resize(x, (grid[0], grid[1] * grid[2]), interpolation="bilinear")
    return ops.reshape(x, (-1, *grid, channels))


def _narrow(x, width: int, number: int, *, name: str):
    """A convolution of 1x1x1 and as many of 3x3x3 as make `number`, each normalised and activated."""
    for n in range(number):
        x = layers.Conv3D(width, 3 if n else 1, padding="same", kernel_initializer="he_normal", name=f"{name}_conv{n}")(
            x
        )
        x = _prelu(_normalise(x, name=f"{name}_norm{n}"), name=f"{name}_act{n}")
    return x


def _conv(x, width: int, *, kernel: int, name: str, strides: Edges = 1):
    """A convolution without bias that pads nothing."""
    return layers.Conv3D(width, kernel, strides=strides, use_bias=False, kernel_initializer="he_normal", name=name)(x)


def _normalise(x, *, name: str):
    return layers.GroupNormalization(math.gcd(GROUPS, x.shape[-1]), epsilon=1e-5, name=name)(x)


def _prelu(x, *, name: str):
    return _single_slope(name)(x)


def _single_slope(name: str) -> layers.Layer:
    start = keras.initializers.Constant(0.25)
    return layers.PReLU(alpha_initializer=start, shared_axes=(1, 2, 3, 4), name=name)


def _check(input_shape: tuple[int, ...], filters: int, blocks: Sequence[int], dilation_scale: float) -> None:
    if None in input_shape:
        raise ValueError(f"input_shape {tuple(input_shape)}: all sizes are needed, none may be None")
    if any(edge % MULTIPLE_OF for edge in input_shape[1:3]):
        near = " x ".join(str(nearest_multiple(edge, MULTIPLE_OF)) for edge in input_shape[1:3])
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W must be multiples of {MULTIPLE_OF}; use {near}")
    if type(filters) is not int or filters < 1:
        raise ValueError(f"filters is {filters!r}; a positive whole number is needed")
    if len(blocks) != 4 or not all(type(n) is int and n > 0 for n in blocks):
        raise ValueError(f"blocks is {blocks!r}; 4 positive whole numbers of blocks are needed")
    if not dilation_scale > 0:
        raise ValueError(f"dilation_scale is {dilation_scale!r}; a positive number is needed")
