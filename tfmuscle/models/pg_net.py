"""PG-Net: single frames, a mask to go by, and a drawn frame to refer to; a Siamese network after Oh et al. 2018 (RGMP).

Inputs, all of the same size: `image` `(H, W, C)`, the frame; `mask` `(H, W, 1)`, how much each pixel belonged to the
structure in the frame before; `reference_image` and `reference_mask`, a frame and its drawn mask, always the same
for one recording. One encoder reads (image, mask) and (reference_image, reference_mask): the mask enters through a stem
of its own, added to the image's. The deepest maps of both are joined by large kernels, and the frame's own finer maps
refine the answer from 1/32 to 1/4 of the size, which is then enlarged.

Al Chanti et al. state 8,649,224 parameters for the copy they compare with and nothing else, so the numbers are ours: a
residual encoder of 18 layers (`blocks` (3, 4, 6, 3) for 34) with the widths of ResNet in place of ResNet-50, trained
from nothing, and RGMP's decoder with its 256 maps. Normalisation is per frame, for batches of one. Their answers on
the coarser levels, used in training only, are left out.

Not exported: one answer is one step of a loop over a recording that feeds each frame the mask of the one before, and
only the loop labels anything; `tfmuscle propagate` runs it.
"""

from collections.abc import Sequence

import keras
from keras import layers

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import NORMS, convolution, normalise, residual_block, softmax

FACTS = {
    "source": "Oh et al. 2018 (RGMP), with ResNet-18; the copy of Al Chanti et al. 2021 is not described",
    "input_shape": (512, 512, 1),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (2,),
    "multiple_of": 32,
    "inputs": ("image", "mask", "reference_image", "reference_mask"),
}
MULTIPLE_OF = 32
REACH = 7
"""Edge of the large kernels that join frame and reference."""


def pg_net(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 64,
    blocks: Sequence[int] = (2, 2, 2, 2),
    features: int = 256,
    norm: str = "instance",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(H, W, C)` of a frame, H and W multiples of 32; None for axes of any size.
        num_classes: 2, background and the structure.
        filters: maps of the stem and of the first stage; they double per stage.
        blocks: residual blocks of the four stages.
        features: maps of the decoder.
        norm: `instance`, `batch` or `none`.

    Returns:
        Model with the inputs `image`, `mask`, `reference_image`, `reference_mask` and the output `probabilities`
        `(H, W, 2)` float32.

    Raises:
        ValueError: an option out of range, or a shape that does not fit.
    """
    _check(input_shape, num_classes, filters, features, blocks)
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    one = (*input_shape[:2], 1)
    shapes = {"image": input_shape, "mask": one, "reference_image": input_shape, "reference_mask": one}
    inputs = {name: keras.Input(tuple(shape), name=name) for name, shape in shapes.items()}
    encoder = _encoder(tuple(input_shape), filters, blocks, norm)
    *skips, frame = encoder([inputs["image"], inputs["mask"]])
    reference = encoder([inputs["reference_image"], inputs["reference_mask"]])[-1]
    x = _join(layers.Concatenate(name="join_both")([frame, reference]), features)
    for step, skip in enumerate(reversed(skips)):
        x = _refine(x, skip, features, name=f"refine{step}")
    logits = convolution(layers.ReLU(name="logits_relu")(x), num_classes, name="logits")
    logits = layers.UpSampling2D(4, interpolation="bilinear", name="logits_up")(logits)
    return keras.Model(list(inputs.values()), softmax(logits), name="pg_net")


def _encoder(input_shape: tuple[int | None, ...], filters: int, blocks: Sequence[int], norm: str) -> keras.Model:
    """Returns a model of a frame and its mask, whose outputs are maps at 1/4, 1/8, 1/16 and 1/32 of the size."""
    image, mask = keras.Input(input_shape, name="frame"), keras.Input((*input_shape[:2], 1), name="frame_mask")
    stems = [
        convolution(image, filters, kernel=7, strides=2, use_bias=False, name="stem_image"),
        convolution(mask, filters, kernel=7, strides=2, name="stem_mask"),
    ]
    x = normalise(layers.Add(name="stem_sum")(stems), norm, name="stem_norm")
    x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(layers.ReLU(name="stem_relu")(x))
    maps = []
    for stage, number in enumerate(blocks):
        for block in range(number):
            strides = (2, 2) if stage and not block else (1, 1)
            width, name = filters * 2**stage, f"stage{stage}_block{block}"
            x = residual_block(x, width, strides=strides, norm=norm, name=name, slope=0.0)
        maps.append(x)
    return keras.Model([image, mask], maps, name="encoder")


def _join(x, features: int):
    """Returns the sum of two paths of long kernels, and a residual block of it."""
    paths = []
    for path, kernels in enumerate([((REACH, 1), (1, REACH)), ((1, REACH), (REACH, 1))]):
        y = x
        for n, kernel in enumerate(kernels):
            y = convolution(y, features, kernel=kernel, name=f"join_path{path}_{n}")
        paths.append(y)
    return _residual(layers.Add(name="join_paths")(paths), features, name="join")


def _refine(x, skip, features: int, *, name: str):
    """Returns the enlarged x with what the skip adds."""
    skip = convolution(skip, features, name=f"{name}_skip")
    skip = _residual(skip, features, name=f"{name}_skip")
    x = layers.UpSampling2D(2, interpolation="bilinear", name=f"{name}_up")(x)
    return _residual(layers.Add(name=f"{name}_both")([skip, x]), features, name=name)


def _residual(x, features: int, *, name: str):
    y = x
    for n in range(2):
        y = convolution(layers.ReLU(name=f"{name}_relu{n}")(y), features, name=f"{name}_conv{n}")
    return layers.Add(name=f"{name}_sum")([x, y])


def _check(
    input_shape: tuple[int | None, ...], num_classes: int, filters: int, features: int, blocks: Sequence[int]
) -> None:
    if any(edge is not None and edge % MULTIPLE_OF for edge in input_shape[:2]):
        near = " x ".join(str(edge and nearest_multiple(edge, MULTIPLE_OF)) for edge in input_shape[:2])
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W must be multiples of {MULTIPLE_OF}; use {near}")
    if num_classes != 2:
        raise ValueError(
            f"num_classes is {num_classes}; pg_net needs 2, a structure and the rest: carry each structure by itself"
        )
    for name, value in (("filters", filters), ("features", features)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; a positive whole number is needed")
    if len(blocks) != 4 or not all(type(n) is int and n > 0 for n in blocks):
        raise ValueError(f"blocks is {blocks!r}; 4 positive whole numbers of blocks are needed")
