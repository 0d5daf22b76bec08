"""Every loss, and `LOSSES`, the table of them.

Terms. `p` are probabilities `(B, ..., C)` of a softmax, or `(B, ..., 1)` of a sigmoid, which is read as the two classes
(1 - p, p). `g` is the truth, background in channel 0. `y_true` may be class indices `(B, ...)` or `(B, ..., 1)` with
`labels.IGNORE` (-1) where nobody labelled, or one-hot or soft `(B, ..., C)` with rows of zeros there. Unlabelled voxels
contribute exactly nothing, whatever is predicted there, even NaN; a batch without a labelled voxel has loss 0.
"Foreground" is every class but background.

Everything is computed in float32, also under mixed precision. Each loss is one number for the whole batch: what is a
mean over samples and what is pooled over the batch is part of the formula; Keras' `reduction` has nothing left to do.

Absent classes. The Dice of a class that is absent from reference and prediction is ε/ε = 1, a loss of 0. With any
probability on it, its Dice is ε/(Σp + ε), near 0, but the slope with respect to a logit stays below 1/4, so that many
absent muscles shift the value and do not dominate the step. (Keras' own Dice sums over background too: a small muscle
missed completely costs 2 %.) Logarithms are taken of max(p, 1e-7), as in Keras.

The boundary loss of Kervadec, and with it `composite` with `boundary="kervadec"`, can be negative; all others cannot.
"""

import difflib
import inspect
from typing import Any

import keras

from tfmuscle.losses.combined import Composite, DiceCrossEntropy, DiceFocal
from tfmuscle.losses.distance import Kervadec
from tfmuscle.losses.overlap import Dice, GeneralisedDice, Tversky
from tfmuscle.losses.shape import BoundaryBand, SmallObject
from tfmuscle.losses.voxelwise import CrossEntropy, Focal, WeightedCrossEntropy

LOSSES: dict[str, type[keras.losses.Loss]] = {
    "dice": Dice,
    "generalised_dice": GeneralisedDice,
    "tversky": Tversky,
    "cross_entropy": CrossEntropy,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": Focal,
    "dice_cross_entropy": DiceCrossEntropy,
    "dice_focal": DiceFocal,
    "boundary_band": BoundaryBand,
    "kervadec": Kervadec,
    "small_object": SmallObject,
    "composite": Composite,
}
"""Name on the command line -> class."""


def get_loss(name: str, **options: Any) -> keras.losses.Loss:
    """Makes a loss by name.

    Raises:
        ValueError: no such loss or option; the nearest name is suggested.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss is called {name!r}; {_nearest(name, LOSSES)}")
    known = [option for option in inspect.signature(LOSSES[name]).parameters if option != "name"]
    for option in options:
        if option not in known:
            raise ValueError(f"the loss {name!r} has no option {option!r}; {_nearest(option, known)}")
    return LOSSES[name](**options)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"


def describe_losses() -> list[dict[str, str]]:
    """Returns name, source and formula of every loss.

    >>> describe_losses()[3]["name"]
    'cross_entropy'
    """
    return [{"name": name, "source": loss.source, "formula": loss.formula} for name, loss in LOSSES.items()]
