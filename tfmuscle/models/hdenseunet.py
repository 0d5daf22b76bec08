"""H-DenseUNet (Li et al. 2018): a 2D network for each slice, a 3D network that sees its result, and their sum.

1. Each slice of the window and its two neighbours go through DenseUNet-161. Beyond the ends of the window there is no
   slice, so the end slices are their own neighbours. The slices of all windows form one 2D batch, in order.
2. The 3D network, of the same kind but smaller and without skips, sees the image and, as further channels, the 2D
   logits times 250. It halves the depth twice only (stem and pooling), so that eight slices are enough.
3. The features of both are added, convolved and classified.

The authors train in three steps, which are the option `stage`: `slices` builds step 1 alone; `volume` builds all and
keeps the 2D network as it is, its batch normalisation and dropout at rest; `both` trains all, without dropout in the
2D network. Layers have the same names in every stage, so weights go from one to the next by name and shape.

The factor 250 made logits comparable with intensities in Hounsfield units; z-scored images are much smaller than what
it makes. It is the option `logit_scale`. Biases, kernels and widths: see `_dense.py`. A custom layer for the slices was
rejected: concatenation, cropping and a reshape do it, and load without code of ours.
"""

from collections.abc import Sequence

import keras
from keras import layers, ops

from tfmuscle.models._dense import (
    check_dense,
    check_dropout,
    check_grid,
    dense_decoder,
    dense_encoder,
    features_of,
    norm_relu,
    slices_branch,
)
from tfmuscle.models.blocks import convolution, softmax

FACTS = {
    "source": "Li et al. 2018 (H-DenseUNet)",
    "input_shape": (8, 224, 224, 1),
    "num_classes": 5,
    "options": {},
    "spatial_axes": (3,),
    "multiple_of": 32,
    "depth_multiple_of": 4,
}
STAGES = ("slices", "volume", "both")


def hdenseunet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    stage: str = "both",
    blocks_2d: Sequence[int] = (6, 12, 36, 24),
    growth_2d: int = 48,
    blocks_3d: Sequence[int] = (3, 4, 12, 8),
    growth_3d: int = 32,
    dropout: float = 0.3,
    logit_scale: float = 250.0,
) -> keras.Model:
    """Builds the network of one stage.

    Args:
        input_shape: `(D, H, W, C)`, all known; D a multiple of 4, H and W of 32.
        num_classes: classes, background included.
        stage: `slices` (2D network alone), `volume` (all, the 2D network frozen) or `both` (all).
        blocks_2d: layers of the four dense blocks of the 2D network.
        growth_2d: maps that each of them adds; the other widths follow from it.
        blocks_3d: the same of the 3D network.
        growth_3d: the same of the 3D network.
        dropout: share of the last features dropped in training: of the 2D network in stage `slices`, else of the sum.
        logit_scale: factor of the 2D logits where they become input of the 3D network.

    Raises:
        ValueError: an option out of range, or a shape that does not fit.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(STAGES)}")
    check_dense("_2d", blocks_2d, growth_2d)
    check_dense("_3d", blocks_3d, growth_3d)
    check_dropout(dropout)
    if None in input_shape:
        raise ValueError(f"input_shape {tuple(input_shape)}: all sizes are needed, none may be None")
    check_grid(input_shape)
    image = keras.Input(tuple(input_shape), name="image")
    grid, flat = tuple(input_shape[:3]), ops.reshape(neighbours(image), (-1, *input_shape[1:3], 3 * input_shape[3]))
    features, logits = slices_branch(
        flat, num_classes, blocks=blocks_2d, growth=growth_2d, dropout=dropout if stage == "slices" else 0.0
    )
    logits = ops.reshape(logits, (-1, *grid, num_classes))
    if stage == "slices":
        return keras.Model(image, softmax(logits), name="hdenseunet")
    features = ops.reshape(features, (-1, *grid, features.shape[-1]))
    scaled = layers.Rescaling(logit_scale, name="volume_logits_scaled")(logits)
    volume = layers.Concatenate(name="volume_input")([image, scaled])
    thick = volume_branch(volume, blocks=blocks_3d, growth=growth_3d, features=features_of(growth_2d))
    x = layers.Add(name="fusion_sum")([thick, features])
    x = convolution(x, features_of(growth_2d), name="fusion_conv")
    x = layers.Dropout(dropout, name="fusion_dropout")(x) if dropout else x
    logits = convolution(norm_relu(x, name="fusion"), num_classes, kernel=1, name="fusion_logits")
    model = keras.Model(image, softmax(logits), name="hdenseunet")
    if stage == "volume":
        for layer in model.layers:
            layer.trainable = not layer.name.startswith("slices_")
    return model


def neighbours(image):
    """Returns `(D, H, W, 3C)`: for each slice of `(D, H, W, C)` the one before, itself and the one after.

    The end slices stand in for what is beyond them.
    """
    depth = image.shape[1]

    def part(first: int, last: int, name: str):
        return layers.Cropping3D(((first, depth - 1 - last), (0, 0), (0, 0)), name=f"neighbours_{name}")(image)

    before = layers.Concatenate(axis=1, name="neighbours_before")([part(0, 0, "top"), part(0, depth - 2, "upper")])
    after = layers.Concatenate(axis=1, name="neighbours_after")(
        [part(1, depth - 1, "lower"), part(depth - 1, depth - 1, "bottom")]
    )
    return layers.Concatenate(name="neighbours")([before, image, after])


def volume_branch(x, *, blocks: Sequence[int], growth: int, features: int):
    """Returns `features` maps of the 3D network; its layers are called `volume_...`."""
    stem, first, second, _, top = dense_encoder(x, blocks=blocks, growth=growth, stem=3 * growth, name="volume")
    widths = [top.shape[-1], second.shape[-1], first.shape[-1], stem.shape[-1], features]
    return dense_decoder(top, widths=widths, skips=[None] * len(widths), dropout=0.0, name="volume")
