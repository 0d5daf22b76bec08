"""Densely connected networks with a decoder, in 2D or 3D by the rank of the input: the halves of H-DenseUNet.

The encoder is DenseNet (Huang et al. 2017): a stem, four dense blocks, between them transitions that halve the number
of maps. Each layer of a block sees all maps before it and adds `growth` new ones. The decoder enlarges by repetition
and convolves. All widths follow from `blocks` and `growth`, in the way that the published numbers give the published
widths: those of the decoder are the widths of the encoder on the way back.

Taken from the authors' program (github.com/xmengli/H-DenseUNet): kernels, paddings, the order normalisation, ReLU,
convolution, biases in the decoder only. Not taken: scale layers after batch normalisation, which has γ and β itself.
Layers are called `<name>_...`, the same in every network, so that weights can be carried over by name.
"""

from collections.abc import Sequence
from typing import Any

from keras import layers

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import convolution, normalise, pad

NUM_BLOCKS = 4
COMPRESSION = 0.5
"""Share of the maps that a transition keeps."""
BOTTLENECK = 4
"""Maps of a layer's 1x1 convolution, in units of `growth`."""
MULTIPLE_OF = 32
"""In-plane sizes are halved by the stem, its pooling and three transitions."""
DEPTH_MULTIPLE_OF = 4
"""Depth is halved by the stem and its pooling only."""


def dense_encoder(x, *, blocks: Sequence[int], growth: int, stem: int, name: str) -> list:
    """Returns the maps of the stem and of the blocks, from fine to coarse, the last normalised and activated."""
    x = convolution(x, stem, kernel=7, strides=2, use_bias=False, name=f"{name}_stem_conv")
    maps = [norm_relu(x, name=f"{name}_stem")]
    x = _stem_pool(maps[0], name=f"{name}_stem_pool")
    for number, num_layers in enumerate(blocks):
        x = _dense_block(x, num_layers, growth, name=f"{name}_block{number}")
        maps.append(x)
        if number < len(blocks) - 1:
            x = _transition(x, name=f"{name}_transition{number}")
    maps[-1] = norm_relu(maps[-1], name=f"{name}_top")
    return maps


def dense_decoder(x, *, widths: Sequence[int], skips: Sequence[Any], dropout: float, name: str):
    """Returns features on the grid of the image: per width doubled, added to the skip (or None), convolved.

    The deepest three steps leave the depth of volumes alone, as the transitions did. Dropout is in the last step.
    """
    for step, (width, skip) in enumerate(zip(widths, skips, strict=True)):
        x = _double(x, deep=step >= NUM_BLOCKS - 1, name=f"{name}_up{step}")
        if skip is not None:
            if skip.shape[-1] != x.shape[-1]:
                skip = convolution(skip, x.shape[-1], kernel=1, name=f"{name}_up{step}_skip")
            x = layers.Add(name=f"{name}_up{step}_sum")([x, skip])
        x = convolution(x, width, name=f"{name}_up{step}_conv")
        if dropout and step == len(widths) - 1:
            x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
        x = norm_relu(x, name=f"{name}_up{step}")
    return x


def slices_branch(x, num_classes: int, *, blocks: Sequence[int], growth: int, dropout: float):
    """Returns features (`features_of(growth)` maps) and logits of the 2D network; its layers are `slices_...`."""
    maps = dense_encoder(x, blocks=blocks, growth=growth, stem=2 * growth, name="slices")
    stem, first, second, third, top = maps
    widths = [second.shape[-1], first.shape[-1], stem.shape[-1], stem.shape[-1], features_of(growth)]
    skips = [third, second, first, stem, None]
    features = dense_decoder(top, widths=widths, skips=skips, dropout=dropout, name="slices")
    return features, convolution(features, num_classes, kernel=1, name="slices_logits")


def features_of(growth: int) -> int:
    """Returns the features of the last layer: 64 for the published 2D growth of 48.

    >>> features_of(48), features_of(12)
    (64, 16)
    """
    return max(1, 4 * growth // 3)


def norm_relu(x, *, name: str):
    """Batch normalisation and ReLU."""
    return layers.ReLU(name=f"{name}_relu")(normalise(x, "batch", name=f"{name}_norm"))


def check_dense(suffix: str, blocks: Any, growth: Any) -> None:
    """Checks the options `blocks` and `growth` with this suffix.

    Raises:
        ValueError: not four positive whole numbers of layers, or no positive whole growth.
    """
    if (
        not isinstance(blocks, list | tuple)
        or len(blocks) != NUM_BLOCKS
        or not all(type(n) is int and n > 0 for n in blocks)
    ):
        raise ValueError(f"blocks{suffix} is {blocks!r}; {NUM_BLOCKS} positive whole numbers of layers are needed")
    if type(growth) is not int or growth < 1:
        raise ValueError(f"growth{suffix} is {growth!r}; a positive whole number is needed")


def check_dropout(dropout: float) -> None:
    """Raises a ValueError when `dropout` is not a share below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a share from 0 to below 1 is needed")


def check_grid(input_shape: tuple[int | None, ...]) -> None:
    """Checks that a shape `(H, W, C)` or `(D, H, W, C)` can be halved; an axis may be None.

    Raises:
        ValueError: naming the nearest shape.
    """
    multiples = (DEPTH_MULTIPLE_OF, MULTIPLE_OF, MULTIPLE_OF)[-(len(input_shape) - 1) :]
    shape = input_shape[:-1]
    if any(edge is not None and edge % multiple for edge, multiple in zip(shape, multiples, strict=True)):
        near = [edge and nearest_multiple(edge, multiple) for edge, multiple in zip(shape, multiples, strict=True)]
        raise ValueError(
            f"input_shape {tuple(input_shape)}: multiples of {' x '.join(map(str, multiples))} are needed;"
            f" use {' x '.join(map(str, near))}"
        )


def _stem_pool(x, *, name: str):
    """Halves by the maximum of 3 voxels along each axis; zeros around are neutral, for all values are above."""
    x = pad(x, (1,) * (len(x.shape) - 2), name=f"{name}_pad")
    layer = {4: layers.MaxPooling2D, 5: layers.MaxPooling3D}[len(x.shape)]
    return layer(3, strides=2, name=name)(x)


def _dense_block(x, num_layers: int, growth: int, *, name: str):
    for number in range(num_layers):
        new = norm_relu(x, name=f"{name}_layer{number}_0")
        new = convolution(new, BOTTLENECK * growth, kernel=1, use_bias=False, name=f"{name}_layer{number}_conv0")
        new = norm_relu(new, name=f"{name}_layer{number}_1")
        new = convolution(new, growth, use_bias=False, name=f"{name}_layer{number}_conv1")
        x = layers.Concatenate(name=f"{name}_layer{number}_maps")([x, new])
    return x


def _transition(x, *, name: str):
    width = int(x.shape[-1] * COMPRESSION)
    x = convolution(norm_relu(x, name=name), width, kernel=1, use_bias=False, name=f"{name}_conv")
    if len(x.shape) == 4:
        return layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return layers.AveragePooling3D((1, 2, 2), name=f"{name}_pool")(x)


def _double(x, *, deep: bool, name: str):
    if len(x.shape) == 4:
        return layers.UpSampling2D(2, name=f"{name}_double")(x)
    return layers.UpSampling3D((2 if deep else 1, 2, 2), name=f"{name}_double")(x)
