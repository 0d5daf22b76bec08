"""DenseUNet-161: the 2D half of H-DenseUNet as a network of its own.

DenseNet-161 as encoder, and a decoder that adds the encoder's maps instead of concatenating them. The published input
is three neighbouring slices (records of kind `stacks` with depth 3); single slices do as well. Its layers are called
as in `hdenseunet`, so that a trained DenseUNet of three slices can start the hybrid. Without the scale layers of the
authors' program (see `_dense.py`) it has, for three channels, the 26,472,000 trainable weights of DenseNet-161
(torchvision) without classifier, and the decoder.
"""

from collections.abc import Sequence

import keras

from tfmuscle.models._dense import check_dense, check_dropout, check_grid, slices_branch
from tfmuscle.models.blocks import softmax

FACTS = {
    "source": "Li et al. 2018 (H-DenseUNet), 2D network; Huang et al. 2017 (DenseNet-161)",
    "input_shape": (224, 224, 3),
    "num_classes": 5,
    "options": {},
    "spatial_axes": (2,),
    "multiple_of": 32,
}


def denseunet(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    blocks: Sequence[int] = (6, 12, 36, 24),
    growth: int = 48,
    dropout: float = 0.3,
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(H, W, C)`; H and W multiples of 32, or None.
        num_classes: classes, background included.
        blocks: layers of the four dense blocks.
        growth: maps that each layer adds; all other widths follow from it.
        dropout: share of the last features dropped in training.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved five times.
    """
    check_dense("", blocks, growth)
    check_dropout(dropout)
    check_grid(input_shape)
    image = keras.Input(tuple(input_shape), name="image")
    _, logits = slices_branch(image, num_classes, blocks=blocks, growth=growth, dropout=dropout)
    return keras.Model(image, softmax(logits), name="denseunet")
