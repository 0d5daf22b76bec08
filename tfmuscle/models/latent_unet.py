"""A residual U-Net on five-slice stacks beside an encoder of the whole stack: Mehrabi & Handsfield, one labelled scan.

The authors give no numbers; filters, depth and sizes are ours. A U-Net of residual blocks segments the middle slice; a
small residual encoder turns the same stack into one vector of `latent` numbers (layer `latent`), which every pixel of
the bottleneck gets, and with `latent_levels="all"` every pixel of each level of the decoder too, through a projection
of 32 numbers. With `latent=0` the branch is left out: the ablation.

At the bottleneck the vector is not laid out and joined: a 1x1 convolution of features and a vector side by side is that
of the features plus a dense layer of the vector, the same function with the same weights. In the decoder, where 3x3
convolutions see the border of the image, it is laid out.

Two-class masks come out of a softmax as in every architecture here; for two classes it is the paper's sigmoid.
"""

import keras
from keras import layers

from tfmuscle.models._pooling import nearest_multiple
from tfmuscle.models.blocks import activate, convolution, head, normalise, residual_block

FACTS = {
    "source": "Mehrabi & Handsfield (latent-feature residual U-Net); numbers ours",
    "input_shape": (256, 256, 5),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (2,),
    "multiple_of": 16,
}
NUM_POOLINGS = 4
PROJECTION = 32
"""Numbers of the vector that each level of the decoder gets."""
LATENT_LEVELS = ("bottleneck", "all")


def latent_unet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 32,
    latent: int = 128,
    latent_levels: str = "bottleneck",
    dropout: float = 0.3,
    norm: str = "batch",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(H, W, C)`, C the slices of a stack; H and W multiples of 16, or None.
        num_classes: classes, background included.
        filters: filters of the first level; they double per level, so the bottleneck has 16 times as many.
        latent: numbers of the vector; 0 for no latent encoder.
        latent_levels: `bottleneck`, or `all` for the levels of the decoder too.
        dropout: share of the bottleneck's features dropped in training.
        norm: `batch`, `instance` or `none`.

    Returns:
        Model with the input `image` and the output `probabilities` `(H, W, num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved four times.
    """
    _check(input_shape, filters, latent, latent_levels, dropout)
    image = keras.Input(tuple(input_shape), name="image")
    vector = _encode(image, latent, filters=filters, norm=norm) if latent else None
    x, skips = image, []
    for level in range(NUM_POOLINGS):
        skips.append(_block(x, filters * 2**level, norm=norm, name=f"encoder{level}"))
        x = layers.MaxPooling2D(2, name=f"encoder{level}_pool")(skips[-1])
    width = filters * 2**NUM_POOLINGS
    x = _block(x, width, norm=norm, name="bottleneck")
    x = layers.Dropout(dropout, name="dropout")(x)
    if vector is not None:
        shared = layers.Dense(width, use_bias=False, kernel_initializer="he_normal", name="expansion_latent")(vector)
        shared = layers.Reshape((1, 1, width), name="expansion_shape")(shared)
        x = layers.Add(name="expansion")([convolution(x, width, kernel=1, name="expansion_conv"), shared])
    for level in reversed(range(NUM_POOLINGS)):
        width, name = filters * 2**level, f"decoder{level}"
        x = layers.UpSampling2D(2, name=f"{name}_up")(x)
        x = layers.Conv2D(width, 2, padding="same", kernel_initializer="he_normal", name=f"{name}_up_conv")(x)
        joined = [x, skips[level]]
        if vector is not None and latent_levels == "all":
            joined.append(_laid_out(layers.Dense(PROJECTION, name=f"{name}_latent")(vector), x))
        x = _block(layers.Concatenate(name=f"{name}_skip")(joined), width, norm=norm, name=name)
    return keras.Model(image, head(x, num_classes), name="latent_unet")


def _encode(image, size: int, *, filters: int, norm: str):
    """Returns `(size,)` numbers about the whole stack: the layer `latent`."""
    x = convolution(image, filters, kernel=7, strides=2, name="latent_stem")
    x = activate(normalise(x, norm, name="latent_stem_norm"), name="latent_stem_act", slope=0.0)
    x = layers.MaxPooling2D(3, 2, padding="same", name="latent_pool")(x)
    for stage in range(NUM_POOLINGS):
        strides = (1, 1) if stage == 0 else (2, 2)
        x = _block(x, filters * 2**stage, norm=norm, strides=strides, name=f"latent{stage}")
    x = layers.GlobalAveragePooling2D(name="latent_mean")(x)
    return layers.Dense(size, name="latent")(x)


def _block(x, filters: int, *, norm: str, name: str, strides: tuple[int, int] = (1, 1)):
    return residual_block(x, filters, strides=strides, norm=norm, name=name, slope=0.0)


def _laid_out(vector, like):
    """Returns the vector at every pixel of a map."""
    everywhere = keras.ops.ones_like(like[..., :1])
    return everywhere * keras.ops.reshape(vector, (-1, 1, 1, vector.shape[-1]))


def _check(input_shape: tuple[int | None, ...], filters: int, latent: int, latent_levels: str, dropout: float) -> None:
    multiple = 2**NUM_POOLINGS
    if any(edge is not None and edge % multiple for edge in input_shape[:2]):
        near = " x ".join(str(edge and nearest_multiple(edge, multiple)) for edge in input_shape[:2])
        raise ValueError(f"input_shape {tuple(input_shape)}: H and W must be multiples of {multiple}; use {near}")
    if type(filters) is not int or filters < 1:
        raise ValueError(f"filters is {filters!r}; a positive whole number is needed")
    if type(latent) is not int or latent < 0:
        raise ValueError(f"latent is {latent!r}; a whole number from 0 (no latent encoder) is needed")
    if latent_levels not in LATENT_LEVELS:
        raise ValueError(f"latent_levels is {latent_levels!r}; choose one of {', '.join(LATENT_LEVELS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; a share from 0 to below 1 is needed")
