"""How a network learns to carry masks from slice to slice (`Propagation`): `propagation.json` in the run folder."""

import math
from dataclasses import dataclass

from tfmuscle.config.settings import Settings, option

SUPERVISIONS = ("decremental", "fixed", "full")
PROPAGATION_MODES = ("halves", "per_window", "tbptt")
ALIGNMENTS = ("window", "slice", "drawn")
FEEDBACKS = ("corrected", "predicted", "expert")


@dataclass(frozen=True)
class Propagation(Settings):
    """How a network learns to carry masks from slice to slice (IFSS-Net)."""

    supervision: str = option(
        "decremental",
        "which slices count as drawn: fewer with every subject, three in every so many, or all",
        choices=SUPERVISIONS,
    )
    every: int = option(100, "of so many slices three are drawn; for supervision fixed")
    sweep: int = option(0, "slices of a sweep that gaps between drawn ones are meant for; 0 takes gaps as they are")
    mode: str = option(
        "halves",
        "a step of the optimiser after each half of a sweep, after each window, or after `through` windows",
        choices=PROPAGATION_MODES,
    )
    through: int = option(4, "windows that a gradient goes back through; for mode tbptt")
    alignment: str = option(
        "window",
        "a slice nobody drew learns from the prediction at its position in the window before, from that of itself, or"
        " not at all",
        choices=ALIGNMENTS,
    )
    feedback: str = option(
        "corrected",
        "masks fed to the next window: predictions with drawn slices put in, predictions alone, or drawn slices alone",
        choices=FEEDBACKS,
    )
    refresh: int = option(1, "windows after which drawn slices are put into the masks fed, for feedback corrected")
    l2: float = option(1e-5, "factor of the squared weights in the loss")
    pooled: bool = option(
        False,
        "one loss of all windows side by side instead of the mean of theirs: what is painted past an end then counts",
    )
    structures: tuple[str, ...] = option((), "structures to learn; none: all")
    smallest: int = option(0, "a structure is followed from the first slice on which it has more pixels than this")
    slices: int = option(0, "slices in a row of each sweep that an epoch goes through, from a random one on; 0: all")
    reverse: float = option(0.0, "share of sweeps that are gone through backwards")
    mirror: float = option(0.0, "share of sweeps whose slices are mirrored")
    parts: int = option(
        0, "short ways of `slices` slices about drawn ones, of each sweep in an epoch; 0: the sweep from its beginning"
    )
    spoil: float = option(0.0, "how much masks that short ways begin with are moved, scaled and bent, 0 to 1")
    away: int = option(0, "slices from which masks that short ways begin with are away, at most")

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("every", "through", "refresh")
        if min(self.sweep, self.smallest, self.slices, self.parts, self.away) < 0 or not 0 <= self.l2 < math.inf:
            raise ValueError("sweep, smallest, slices, parts, away and l2 must be finite and not negative")
        if self.parts and not self.slices:
            raise ValueError(f"parts is {self.parts} and slices is 0; say how many slices a part has, e.g. slices=4")
        if not self.parts and (self.spoil or self.away):
            raise ValueError(f"spoil is {self.spoil} and away {self.away}, but parts is 0; give the number of parts")
        for name in ("reverse", "mirror", "spoil"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share from 0 to 1 is needed")
