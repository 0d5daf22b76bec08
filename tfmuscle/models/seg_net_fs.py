"""Seg-Net-FS: IFSS-Net without a mask (Al Chanti et al. 2021), which segments every window of slices by itself.

Encoder, recurrence and decoder are those of IFSS-Net; the mask stream and the fusion at the bottleneck are gone, and in
the decoder plain concatenation takes the place of every fusion module. The authors state 4,129,026 parameters and no
structure; of the natural readings this one comes nearest: 4,120,362, two of them the weights of the loss
(`tversky="learned"`), 0.21 % fewer. Without `tversky` it trains with any loss, like every other network here.

With `fuse="ffm"` the fusion modules stay (5,410,186 parameters), and an `ifss_net` of the same widths can start from
it: all its layers are there but the fusion at the bottleneck (`fit --from`).
"""

import keras

from tfmuscle.losses.parametric import MODES
from tfmuscle.models._ifss import (
    TEMPORAL,
    answer,
    check_choice,
    check_positive,
    check_window,
    concatenated,
    decoder,
    decoder_widths,
    encoder,
    feature_fusion,
    recurrence,
)

FACTS = {
    "source": "Al Chanti et al. 2021 (Seg-Net-FS), nearest natural reading",
    "input_shape": (3, 512, 512, 1),
    "num_classes": 2,
    "options": {"tversky": "learned"},
    "spatial_axes": (3,),
    "multiple_of": 32,
}
FUSIONS = {"concat": concatenated, "ffm": feature_fusion}


def seg_net_fs(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 30,
    temporal: str = "bi",
    clstm_kernel: int = 1,
    fuse: str = "concat",
    dilate_depth: bool = False,
    dilation_scale: float = 1.0,
    dropout: float = 0.1,
    recurrent_dropout: float = 0.3,
    outer_dropout: float = 0.4,
    tversky: str | None = None,
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(w, H, W, C)`, H and W multiples of 32 and known; w may be None.
        num_classes: classes, background included.
        filters: a multiple of 5; every width but the last two is in proportion.
        temporal: `bi`, `uni` or `none`, how the recurrence reads the slices.
        clstm_kernel: edge of its kernel, odd.
        fuse: decoder and skips: `concat`, or `ffm`, the fusion modules of IFSS-Net.
        dilate_depth: dilate along the slices too.
        dilation_scale: factor of all dilations, for windows much smaller than 512 x 512.
        dropout: share dropped after each level in training.
        recurrent_dropout: the same within the recurrence.
        outer_dropout: the same of its result.
        tversky: mode of the loss weights that the output holds (`learned`, `fixed`, `ascent`), or None for none.

    Returns:
        Model with the input `image` and the output `probabilities` `(w, H, W, num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that does not fit.
    """
    shares = {"dropout": dropout, "recurrent_dropout": recurrent_dropout, "outer_dropout": outer_dropout}
    check_window(input_shape, filters, shares)
    check_positive(clstm_kernel, dilation_scale)
    check_choice("temporal", temporal, TEMPORAL)
    check_choice("fuse", fuse, tuple(FUSIONS))
    check_choice("tversky", tversky, (*MODES, None))
    image = x = keras.Input(tuple(input_shape), name="image")
    skips = []
    for level in encoder(filters=filters, dilate_depth=dilate_depth, dilation_scale=dilation_scale, dropout=dropout):
        x = level(x)
        skips.append(x)
    x = recurrence(x, temporal, kernel=clstm_kernel, recurrent_dropout=recurrent_dropout, outer_dropout=outer_dropout)
    skips, widths = [x, *reversed(skips[:-1])], decoder_widths(filters)
    x = decoder(x, skips, widths, fuse=FUSIONS[fuse], dropout=dropout)
    return keras.Model(image, answer(x, num_classes, widths[-1], dropout=dropout, tversky=tversky), name="seg_net_fs")
