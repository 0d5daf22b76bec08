"""How many networks share the work (`Cascade`): part of `cascade.json`."""

from dataclasses import dataclass

from tfmuscle.config.data import NORMALISATIONS
from tfmuscle.config.settings import Settings, option

REGIONS = ("labels", "thirds", "scan")
FUSIONS = ("coverage", "count")
PLACINGS = ("muscle", "group")
TELLING_SIDES = ("midline", "network")


@dataclass(frozen=True)
class Cascade(Settings):
    """How the networks of a cascade share the work: groups on a coarse grid first, then every muscle in its box."""

    groups: tuple[tuple[str, ...], ...] = option(
        (), "muscles that are found together; none: the ten groups of Ni et al."
    )
    regions: str = option(
        "labels",
        "where along the limb a group is looked for: where training subjects have it, in the paper's overlapping"
        " thirds, or in the whole scan",
        choices=REGIONS,
    )
    region_margin: float = option(0.1, "share of the scanned length added at both ends of a region of `labels`")
    coarse_voxels: int = option(2_000_000, "most voxels a network of groups sees")
    coarse_multiple: int = option(8, "of which every axis of its grid is a multiple: 2^(levels - 1)")
    fine_voxels: int = option(500_000, "most voxels a network of one muscle sees")
    fine_multiple: int = option(4, "of which every axis of its grid is a multiple: 2^(levels - 1)")
    boxes: int = option(6, "boxes around a muscle that are averaged in prediction")
    box_seed: int = option(0, "seed of these boxes")
    fusion: str = option("coverage", "boxes are averaged over those that hold a voxel, or over all", choices=FUSIONS)
    placing: str = option("muscle", "one box for each muscle, or one for all of a group", choices=PLACINGS)
    telling_sides: str = option(
        "midline",
        "what tells left from right among the pieces found: the midline of the scan where both legs are in view, or the"
        " networks of groups alone",
        choices=TELLING_SIDES,
    )
    normalisation: str = option("zscore", "how intensities are scaled, per scan and channel", choices=NORMALISATIONS)
    bias_field: bool = option(True, "N4 bias field correction before anything else")
    folds: int = option(5, "folds by person; one of them chooses the epochs that are kept")
    test: float = option(0.0, "subjects held out of everything: a count, or a share below 1")

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_positive("coarse_voxels", "coarse_multiple", "fine_voxels", "fine_multiple", "boxes", "folds")
        if self.box_seed < 0:
            raise ValueError(f"box_seed is {self.box_seed}; a number from 0 on is needed")
        if not 0 <= self.region_margin < 1:
            raise ValueError(f"region_margin is {self.region_margin}; a share from 0 to below 1 is needed")
        names = [muscle for group in self.groups for muscle in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"groups: {', '.join(twice)} stand in two groups; a muscle has one")
