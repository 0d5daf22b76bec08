"""The ways to fill a scan from a few drawn slices: `Method`, and the four that need no network.

A method either looks at both drawn slices at the ends of a stretch and fills it (`fill`), or carries masks from slice
to slice, from either end (`carrier`). The second kind gives two opinions of every slice between drawn ones.

    registration   carries masks as the images move (`flow.py`); the default
    interpolate    blends the shapes of the drawn slices and looks at no image (`interpolation.py`)
    grow           grows regions from the drawn slices (`seeds.py`)
    watershed      floods the image from them (`seeds.py`)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tfmuscle.interpolation import slices_between
from tfmuscle.propagation import flow, seeds
from tfmuscle.propagation.carriers import Carrier

METHODS = ("registration", "interpolate", "grow", "watershed")
Fill = Callable[[np.ndarray, np.ndarray | None, np.ndarray | None], np.ndarray]
"""From images `(n + d, H, W)` and the ids `(H, W)` of the d drawn slices at the ends to the ids of the n others."""


@dataclass(frozen=True, eq=False)
class Method:
    """A way to fill a scan.

    Attributes:
        name: for reports.
        prepare: from the scan `(N, H, W)` to the images that the method is to see.
        carrier: carries masks; None for methods that fill.
        fill: fills a stretch; None for methods that carry.
        about: all that its results depend on, besides images and drawn slices.
    """

    name: str
    prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
    carrier: Carrier | None = None
    fill: Fill | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.carrier is None) == (self.fill is None):
            raise ValueError(f"method {self.name} needs either a carrier or a way to fill")


def make_method(name: str, spacing: tuple[float, ...]) -> Method:
    """Returns one of `METHODS`.

    Args:
        name: which.
        spacing: of slices, rows and columns, mm.

    Raises:
        ValueError: there is no such method.
    """
    about = {"spacing": [round(size, 6) for size in spacing]}
    if name == "registration":
        return Method(name, prepare=flow.prepare, carrier=flow.registration_carrier())
    if name == "interpolate":
        return Method(name, fill=partial(_interpolated, step=spacing[1:]), about=about)
    if name in ("grow", "watershed"):
        spread = seeds.grow if name == "grow" else seeds.flood
        return Method(name, fill=partial(spread, spacing=spacing), about=about)
    raise ValueError(f"method is {name!r}; choose one of {', '.join(METHODS)}, or a trained network")


def _interpolated(
    images: np.ndarray, before: np.ndarray | None, after: np.ndarray | None, *, step: tuple[float, ...]
) -> np.ndarray:
    """Fills by shapes; nothing beyond the outermost drawn slices."""
    if before is None or after is None:
        drawn = before if after is None else after
        return np.zeros((len(images) - 1, *images.shape[1:]), np.uint8 if drawn is None else drawn.dtype)
    found = np.zeros((len(images) - 2, *images.shape[1:]), before.dtype)
    for index, plane in enumerate(slices_between(before, after, len(found), step)):
        found[index] = plane
    return found
