"""Everything that is measured of the structures of one scan.

Limb length. 0 % is the lower end and 100 % the upper end of the limb: of all that is labelled on the structure's side,
or of one structure (a landmark such as `femur`) on that side, so that scans that show more or less of the patient can
be compared. A structure without a side belongs to the whole.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfmuscle.labels import LabelMap, without_side
from tfmuscle.measuring.area import Profile, area_profile
from tfmuscle.measuring.composition import PERCENTILES, Fat, FatImages, Intensity, fat_of, intensity
from tfmuscle.measuring.limb import LimbAxis, Moments, limb_axis, moments
from tfmuscle.measuring.shape import Shape, cutouts, measure_shape
from tfmuscle.volume import Volume

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Structure:
    """What was measured of one structure.

    Attributes:
        key: id.
        name: with its side.
        axis: of its limb.
        shape: size and outline.
        profile: area along the limb.
        limb_mm: lower and upper end of its limb; None where the landmark is missing.
        intensities: image -> values in it.
        fat: its fat, if there are fat images.
    """

    key: int
    name: str
    axis: LimbAxis
    shape: Shape
    profile: Profile
    limb_mm: tuple[float, float] | None = None
    intensities: Mapping[str, Intensity] = field(default_factory=dict)
    fat: Fat | None = None

    @property
    def side(self) -> str:
        """Side by its name; empty for none."""
        return LabelMap.side(self.name) or ""

    @property
    def max_area_cm2(self) -> float:
        """Largest area across the limb."""
        return float(self.profile.area_cm2[self.profile.largest])

    @property
    def fill(self) -> float:
        """Volume over that of a cylinder as long and as wide: 1 for a cylinder, 2/3 ellipsoid, 1/3 cone."""
        return self.shape.volume_ml / (self.max_area_cm2 * self.shape.length_mm / 10)

    @property
    def slenderness(self) -> float:
        """Length over the side of a square of the largest area."""
        return self.shape.length_mm / 10 / math.sqrt(self.max_area_cm2)

    def percent(self, position_mm: float, ends_mm: tuple[float, float] | None) -> float:
        """Returns how far a position is along the way between two ends, in percent; NaN without ends."""
        if ends_mm is None or ends_mm[1] <= ends_mm[0]:
            return math.nan
        return 100 * (position_mm - ends_mm[0]) / (ends_mm[1] - ends_mm[0])

    def row(self) -> dict[str, Any]:
        """Returns the structure's line of a table."""
        shape, largest = self.shape, self.profile.largest
        where = float(self.profile.position_mm[largest])
        row: dict[str, Any] = {
            "structure": self.name,
            "side": self.side,
            "id": self.key,
            "volume_ml": shape.volume_ml,
            "inner_ml": shape.inner_ml,
            "outer_ml": shape.outer_ml,
            "length_mm": shape.length_mm,
            "max_area_cm2": self.max_area_cm2,
            "max_area_slice": int(self.profile.slices[largest]),
            "max_area_percent": self.percent(where, shape.ends_mm),
            "max_area_limb_percent": self.percent(where, self.limb_mm),
            "mean_area_cm2": shape.volume_ml / shape.length_mm * 10,
            "fill": self.fill,
            "slenderness": self.slenderness,
            "pieces": len(shape.pieces),
            "outside_largest_percent": 100 * shape.outside_largest,
            "cut": " ".join([*sorted(shape.borders), *["unlabelled"] * (shape.unlabelled_contacts > 0)]),
        }
        for name, values in self.intensities.items():
            row |= {f"{name}_mean": values.mean, f"{name}_sd": values.sd}
            row |= {f"{name}_p{percent}": values.percentiles[percent] for percent in PERCENTILES}
        if self.fat is not None:
            fat = {"ff_mean": self.fat.mean, "ff_sd": self.fat.sd, "ff_median": self.fat.median}
            fat |= {"ff_of_sums": self.fat.of_sums, "ff_with_signal_percent": self.fat.with_signal}
            row |= fat | {"ff_floor": self.fat.floor}
        return row


@dataclass(frozen=True, eq=False)
class Images:
    """What is measured inside the structures, on the labels' grid.

    Attributes:
        named: name -> `(I, J, K)`, of which mean and percentiles are taken.
        fat: fat images.
    """

    named: Mapping[str, np.ndarray] = field(default_factory=dict)
    fat: FatImages | None = None


def measure_structures(
    labels: Volume,
    label_map: LabelMap,
    *,
    axis: str = "slices",
    landmark: str | None = None,
    images: Images | None = None,
    progress: Progress | None = None,
) -> tuple[Structure, ...]:
    """Measures every structure that is there, in the order of ids, one after the other in its own box.

    Args:
        labels: `(I, J, K)` ids.
        label_map: names of the ids; others are background.
        axis: direction of the limb, one of `limb.AXES`.
        landmark: structure, without side, whose ends are 0 and 100 % of the limb; by default all labels of its side.
        images: what to measure in them.
        progress: called with (structures done, structures in all, name).

    Raises:
        ValueError: an unknown axis, or no structure of the map is called like the landmark.
    """
    if landmark is not None and landmark not in map(without_side, label_map.structures):
        raise ValueError(f"no structure is called {landmark!r}; there are {', '.join(label_map.structures)}")
    ids, images = label_map.ids[1:], images or Images()
    axes = _axes(labels, label_map, axis)
    found: list[Structure] = []
    for number, (key, cutout) in enumerate(cutouts(labels, ids, ignore=label_map.ignore)):
        name = label_map.names[key]
        if progress is not None:
            progress(number, len(ids), name)
        one = axes[LabelMap.side(name)]
        inside = {other: intensity(array[cutout.box][cutout.mask]) for other, array in images.named.items()}
        fat = None if images.fat is None else fat_of(cutout, images.fat)
        shape, profile = measure_shape(cutout, one), area_profile(cutout, one)
        found.append(Structure(key, name, one, shape, profile, None, inside, fat))
    if progress is not None:
        progress(len(ids), len(ids), "")
    return tuple(replace(one, limb_mm=_limb(one, found, landmark)) for one in found)


def _axes(labels: Volume, label_map: LabelMap, how: str) -> dict[str | None, LimbAxis]:
    """Returns the axis of each side, and of what has none."""
    if how != "labels":
        return dict.fromkeys((None, "left", "right"), limb_axis(how, labels.geometry))
    sums: dict[str | None, list[Moments]] = {None: [], "left": [], "right": []}
    for key, cutout in cutouts(labels, label_map.ids[1:]):
        found = moments(cutout.mask, cutout.start)
        for side in {None, LabelMap.side(label_map.names[key])}:
            sums[side].append(found)
    return {side: limb_axis(how, labels.geometry, found) for side, found in sums.items() if found}


def _limb(one: Structure, all_of_them: list[Structure], landmark: str | None) -> tuple[float, float] | None:
    own = [other for other in all_of_them if not one.side or other.side == one.side]
    if landmark is not None:
        own = [other for other in own if without_side(other.name) == landmark]
    ends = [other.shape.ends_mm for other in own]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None
