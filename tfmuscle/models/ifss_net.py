"""IFSS-Net (Al Chanti et al. 2021): carries the mask of one window of slices to the next.

Inputs are `image`, a window of w slices, and `mask`, how much each of its voxels belonged to the structure in the
window before, from 0 to 1; the answer is the window's own. One encoder reads both, a fusion module joins them, a
recurrence over the slices of the window follows, and a decoder. There is no memory between windows but the mask.

The default follows the paper's text where it says the image stream is added to the mask stream level by level, and
skips come from the mask stream (`aggregate`); the authors' code has neither, and otherwise this is their code with
the recurrence shared between the directions. Neither costs parameters: both have exactly 6,217,186, two of which are
the weights of the loss, which the output layer holds (`losses/parametric.py`); without them (`tversky=None`) it has
6,217,184. Paper and code differ further: `clstm_kernel=3`, `fusion="gfm"`, `refine="pinheiro"` are the paper's.

Channel 0 of the answer is background and channel 1 the structure, as everywhere here; the authors have it reversed.

`fusion="concat_xcorr"` is the paper's third ablation, of which it says no more than the name. Here both streams are
joined with nine maps of how well they match, the cosine of their features at the same place and its eight neighbours
in the plane (FlowNet's correlation), and convolved.

Not exported: one answer is one step of a loop over a scan that feeds each window the mask of the one before, and only
the loop labels anything; `tfmuscle propagate` runs it.
"""

from functools import partial

import keras
from keras import layers, ops

from tfmuscle.losses.parametric import MODES
from tfmuscle.models._ifss import (
    TEMPORAL,
    answer,
    check_choice,
    check_positive,
    check_window,
    conv_norm_relu,
    decoder,
    decoder_widths,
    encoder,
    feature_fusion,
    recurrence,
    refiner,
)

FACTS = {
    "source": "Al Chanti et al. 2021 (IFSS-Net), structure of the authors' code",
    "input_shape": (3, 512, 512, 1),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (3,),
    "multiple_of": 32,
    "inputs": ("image", "mask"),
}
FUSIONS = ("ffm", "gfm", "concat_xcorr")
REFINERS = ("ffm", "pinheiro")
GLOBAL_REACH = 16
"""In-plane edge of the kernels of `gfm`, and in depth 3."""


def ifss_net(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 30,
    aggregate: bool = True,
    fusion: str = "ffm",
    temporal: str = "bi",
    clstm_kernel: int = 1,
    refine: str = "ffm",
    dilate_depth: bool = False,
    dilation_scale: float = 1.0,
    dropout: float = 0.1,
    recurrent_dropout: float = 0.3,
    outer_dropout: float = 0.4,
    tversky: str | None = "learned",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(w, H, W, 1)`, H and W multiples of 32 and known, as the recurrence needs them; w may be None.
        num_classes: 2, background and the structure.
        filters: a multiple of 5; every width but the last two is in proportion.
        aggregate: add the image stream to the mask stream level by level and take skips from the latter; False as in
            the authors' code.
        fusion: of the two streams at the bottleneck: `ffm`, `gfm` (large kernels) or `concat_xcorr`.
        temporal: `bi`, `uni` or `none`, how the recurrence reads the slices.
        clstm_kernel: edge of its kernel, odd; 1 in the code, 3 in the paper.
        refine: decoder, `ffm` or `pinheiro`.
        dilate_depth: dilate along the slices too.
        dilation_scale: factor of all dilations, for windows much smaller than 512 x 512.
        dropout: share dropped after each level in training.
        recurrent_dropout: the same within the recurrence.
        outer_dropout: the same of its result.
        tversky: mode of the loss weights that the output holds (`learned`, `fixed`, `ascent`), or None for none.

    Returns:
        Model with the inputs `image` and `mask`, `(w, H, W, 1)` each, and the output `probabilities`
        `(w, H, W, 2)` float32.

    Raises:
        ValueError: an option out of range, or a shape that does not fit.
    """
    shares = {"dropout": dropout, "recurrent_dropout": recurrent_dropout, "outer_dropout": outer_dropout}
    check_window(input_shape, filters, shares)
    check_positive(clstm_kernel, dilation_scale)
    _check(input_shape, num_classes)
    check_choice("fusion", fusion, FUSIONS)
    check_choice("temporal", temporal, TEMPORAL)
    check_choice("refine", refine, REFINERS)
    check_choice("tversky", tversky, (*MODES, None))
    image, mask = (keras.Input(tuple(input_shape), name=name) for name in ("image", "mask"))
    levels = encoder(filters=filters, dilate_depth=dilate_depth, dilation_scale=dilation_scale, dropout=dropout)
    seen, carried, skips = image, mask, []
    for number, level in enumerate(levels):
        seen, carried = level(seen), level(carried)
        if aggregate:
            carried = layers.Add(name=f"aggregate{number}")([carried, seen])
        skips.append(carried if aggregate else seen)
    x = _fuse(fusion)(seen, carried, seen.shape[-1], name="fusion")
    x = recurrence(x, temporal, kernel=clstm_kernel, recurrent_dropout=recurrent_dropout, outer_dropout=outer_dropout)
    skips, widths = [x, *reversed(skips[:-1])], decoder_widths(filters)
    decode = partial(decoder, fuse=feature_fusion) if refine == "ffm" else refiner
    x = decode(x, skips, widths, dropout=dropout)
    probabilities = answer(x, num_classes, widths[-1], dropout=dropout, tversky=tversky)
    return keras.Model([image, mask], probabilities, name="ifss_net")


def _fuse(fusion: str):
    return {"ffm": feature_fusion, "gfm": global_fusion, "concat_xcorr": correlation_fusion}[fusion]


def global_fusion(x, other, width: int, *, name: str):
    """Returns both streams through two paths of long one-dimensional kernels, summed, and a residual block."""
    both = layers.Concatenate(name=f"{name}_both")([x, other])
    paths, across, along = [], (1, 1, GLOBAL_REACH), (1, GLOBAL_REACH, 1)
    for path, order in enumerate([(along, across), (across, along)]):
        y = both
        for step, kernel in enumerate([(3, 1, 1), *order]):
            y = layers.Conv3D(width, kernel, padding="same", name=f"{name}_path{path}_{step}")(y)
        paths.append(y)
    x = y = layers.Add(name=f"{name}_paths")(paths)
    for step in range(2):
        y = layers.ReLU(name=f"{name}_relu{step}")(y)
        y = layers.Conv3D(width, 3, padding="same", kernel_initializer="he_normal", name=f"{name}_conv{step}")(y)
    return layers.Add(name=f"{name}_sum")([x, y])


def correlation_fusion(x, other, width: int, *, name: str):
    """Returns a convolution of both streams and of the cosine of their features at offsets up to one in the plane."""
    here, there = (layers.UnitNormalization(axis=-1, name=f"{name}_unit{n}")(y) for n, y in enumerate((x, other)))
    there = layers.ZeroPadding3D((0, 1, 1), name=f"{name}_pad")(there)
    matches = []
    for row in range(3):
        for column in range(3):
            margin = ((0, 0), (row, 2 - row), (column, 2 - column))
            moved = layers.Cropping3D(margin, name=f"{name}_moved{row}{column}")(there)
            matches.append(ops.sum(here * moved, axis=-1, keepdims=True))
    return conv_norm_relu(layers.Concatenate(name=f"{name}_both")([x, other, *matches]), width, name=name)


def _check(input_shape: tuple[int | None, ...], num_classes: int) -> None:
    if input_shape[-1] != 1:
        raise ValueError(f"input_shape {tuple(input_shape)}: ifss_net takes one channel, for image and mask alike")
    if num_classes != 2:
        raise ValueError(
            f"num_classes is {num_classes}; ifss_net needs 2, a structure and the rest: carry each structure by itself"
        )
