"""Which networks a cascade has, where each looks and on which grid: decided once, from the training legs.

The user chooses groups of muscles, voxel budgets and how regions are found (`config.Cascade`). The data decides the
rest: where along the limb a group lies, how large a muscle is, which of them there are.

Terms. A *structure* is a label of the dataset ("soleus_left"); a *muscle* is what it is called on either side
("soleus"). A structure without a side is treated as a right one. Everything is counted on the *prepared* scan: its own
voxels with the axes turned to `ORIENTATION`, so that slices, rows and columns mean the same in every scan and a left
leg becomes a right one by a flip of the last axis. Nothing is resampled before a network looks.

A group's network looks at a *region*: a part of the scan along the limb, as fractions of the scanned length from the
superior end, resized to one fixed grid. So scans should show the limb from about the same level on (`prepare` cuts them
at the hip). A muscle's network looks at a box of about 1.4 times the muscle, resized to another fixed grid; its
`spacing` is the one at which such a box has that size; only along an axis of few voxels is it finer than the scan's own
(`SMALLEST_EDGE`).

`cascade.json` in the run folder is this plan; it is all that prediction needs besides the networks.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from tfmuscle.cascade.boxes import INPUT_MARGIN, Box, fitting_grid, tight_boxes
from tfmuscle.cascade.neighbours import Leg, Neighbours
from tfmuscle.config import Cascade, DataSpec
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import MUSCLE_GROUPS, SIDES, LabelMap, without_side
from tfmuscle.preprocessing import LEG_PARTS
from tfmuscle.volume import Geometry, Volume

PLAN_FILE = "cascade.json"
_PLAIN_NAME = re.compile(r"(?!\.)[\w .()-]+")
FORMAT, VERSION = "tfmuscle-cascade", 1
ORIENTATION = "SPL"
SIDE_AXIS = 2
"""Axis of the prepared scan along which a mirror exchanges left and right."""
MIRRORED, KEPT = SIDES
"""Muscles are learned on right legs; left ones are mirrored."""
SMALLEST_EDGE = 4
"""A network's grid has at least this many multiples along each axis, so that the deepest level keeps 4 voxels (but 32
voxels are enough, for networks of many levels): thin muscles of few slices are seen finer than they were scanned, and a
budget below `(4 multiples)³` is exceeded."""
_OWN_SPACING_WITHIN = 1.05
"""A network's grid less than 5 % coarser than the scan's own is taken at the scan's own spacing."""


@dataclass(frozen=True, eq=False)
class Observation:
    """Where the structures of one labelled scan lie.

    Attributes:
        geometry: grid of the prepared scan.
        boxes: structure -> tight box on it, of the structures that are there.
    """

    geometry: Geometry
    boxes: Mapping[str, Box]


@dataclass(frozen=True, eq=False)
class GroupNetwork:
    """A network of stage 1: finds the structures of a group, left and right apart, on a coarse grid.

    Attributes:
        name: "group_01", ...
        muscles: its members.
        region: from, to as fractions of the scanned length from the superior end.
        spec: classes and grid.
    """

    name: str
    muscles: tuple[str, ...]
    region: tuple[float, float]
    spec: DataSpec


@dataclass(frozen=True, eq=False)
class MuscleNetwork:
    """A network of stage 2: finds one muscle in a box; `name` is the muscle's."""

    name: str
    spec: DataSpec


@dataclass(frozen=True, eq=False)
class CascadePlan:
    """All networks of a cascade.

    Attributes:
        settings: what the user chose.
        base: how a scan is prepared, and the labels of the dataset.
        groups: networks of stage 1.
        muscles: networks of stage 2.
        neighbours: where muscles lie among those of their group.
        split: part ("train", "validation", ...) -> subjects.
        folds: subject -> fold, of all labelled subjects there were when the plan was made; later ones are not used.
    """

    settings: Cascade
    base: DataSpec
    groups: tuple[GroupNetwork, ...]
    muscles: tuple[MuscleNetwork, ...]
    neighbours: Neighbours
    split: Mapping[str, list[str]]
    folds: Mapping[str, int]

    @property
    def networks(self) -> tuple[GroupNetwork | MuscleNetwork, ...]:
        """All networks, those of stage 1 first."""
        return (*self.groups, *self.muscles)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Structures of the dataset that no network finds: in no group, or in no training subject."""
        found = {name for group in self.groups for name in group.spec.label_map.structures}
        return tuple(name for name in self.base.label_map.structures if name not in found)

    def muscle(self, name: str) -> MuscleNetwork:
        """Returns the network of a muscle."""
        return next(network for network in self.muscles if network.name == name)

    def group_of(self, muscle: str) -> GroupNetwork:
        """Returns the network that finds where a muscle is."""
        return next(network for network in self.groups if muscle in network.muscles)

    def named(self, wanted: Iterable[str]) -> tuple[GroupNetwork | MuscleNetwork, ...]:
        """Returns networks by name, in the order of the plan.

        Raises:
            ValueError: an unknown name.
        """
        names, wanted = [network.name for network in self.networks], list(wanted)
        if unknown := [name for name in wanted if name not in names]:
            raise ValueError(f"no network is called {', '.join(unknown)}; there are {', '.join(names)}")
        return tuple(network for network in self.networks if network.name in wanted)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content."""
        groups = [
            {"name": g.name, "muscles": list(g.muscles), "region": list(g.region), "spec": g.spec.to_dict()}
            for g in self.groups
        ]
        return {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings.to_dict(),
            "base": self.base.to_dict(),
            "split": {part: list(subjects) for part, subjects in self.split.items()},
            "folds": dict(self.folds),
            "groups": groups,
            "muscles": [{"name": muscle.name, "spec": muscle.spec.to_dict()} for muscle in self.muscles],
            "neighbours": self.neighbours.to_dict(),
        }

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, or something else.
        """
        content = read_json(path)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{path}: is no plan of a cascade that this version reads; fit again, or restore the file")
        try:
            groups = tuple(
                GroupNetwork(
                    str(g["name"]), tuple(map(str, g["muscles"])), tuple(g["region"]), DataSpec.from_dict(g["spec"])
                )
                for g in content["groups"]
            )
            muscles = tuple(MuscleNetwork(str(m["name"]), DataSpec.from_dict(m["spec"])) for m in content["muscles"])
            settings, base = Cascade.from_dict(content["settings"]), DataSpec.from_dict(content["base"])
            split = {str(part): list(map(str, names)) for part, names in content["split"].items()}
            folds = {str(subject): int(fold) for subject, fold in content["folds"].items()}
            _check_names([*(group.name for group in groups), *(muscle.name for muscle in muscles)])
            return cls(settings, base, groups, muscles, Neighbours.from_dict(content["neighbours"]), split, folds)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}); fit again, or restore the file") from error


def structures_of(label_map: LabelMap) -> dict[str, dict[str, str]]:
    """Returns muscle -> side -> structure.

    >>> structures_of(LabelMap({1: "soleus_left", 2: "soleus_right", 3: "fibulari"}))
    {'soleus': {'left': 'soleus_left', 'right': 'soleus_right'}, 'fibulari': {'right': 'fibulari'}}
    """
    found: dict[str, dict[str, str]] = {}
    for name in label_map.structures:
        sides, side = found.setdefault(without_side(name), {}), LabelMap.side(name) or KEPT
        if side in sides:
            raise ValueError(f"{sides[side]!r} and {name!r} are one muscle of one side; rename one of them")
        sides[side] = name
    return found


def observe(labels: Volume, label_map: LabelMap) -> Observation:
    """Returns where the structures of `labels` `(I, J, K)`, ids in any orientation, lie on the prepared grid."""
    turned = labels.reoriented(ORIENTATION)
    ids = {label_map.id_of(name): name for name in label_map.structures}
    return Observation(turned.geometry, {ids[key]: box for key, box in tight_boxes(turned.array, ids).items()})


def _check_names(names: Iterable[str]) -> None:
    """Refuses names of networks that are no names of folders, or that stand for two."""
    names = list(names)
    for name in names:
        if not _PLAIN_NAME.fullmatch(name) or names.count(name) > 1:
            raise ValueError(f"{name!r} cannot name a network; use letters, digits, '_', '-' and spaces, and each once")


def make_plan(
    settings: Cascade,
    base: DataSpec,
    observations: Mapping[str, Observation],
    split: Mapping[str, list[str]],
    folds: Mapping[str, int],
) -> CascadePlan:
    """Decides the networks from the training subjects.

    Args:
        settings: the user's.
        base: how scans are prepared; its label map names the structures.
        observations: of the training subjects, at least.
        split: part -> subjects.
        folds: subject -> fold.

    Raises:
        DataError: none of the muscles is labelled in a training subject.
        ValueError: a group names a muscle that the dataset does not have, or a name that cannot be a folder's.
    """
    seen = [observations[subject] for subject in split["train"]]
    sides = structures_of(base.label_map)
    labelled = {muscle for muscle in sides if any(name in one.boxes for one in seen for name in sides[muscle].values())}
    if strange := sorted({muscle for group in settings.groups for muscle in group} - set(sides)):
        raise ValueError(f"groups: the dataset has no {', '.join(strange)}; it has {', '.join(sides)}")
    groups = [tuple(m for m in group if m in labelled) for group in settings.groups or MUSCLE_GROUPS]
    groups = [group for group in groups if group]
    if not groups:
        raise DataError(
            f"no training subject has a labelled muscle of a group, only {', '.join(list(sides)[:5])}; name muscles as"
            " in docs/muscles.md, or give groups of your own"
        )
    _check_names([*(_group_name(n) for n in range(1, len(groups) + 1)), *(m for group in groups for m in group)])
    legs = [leg for one in seen for leg in legs_of(one, base.label_map)]
    spacing = np.median([one.geometry.spacing for one in seen], axis=0)
    return CascadePlan(
        settings,
        base,
        tuple(_group(number, group, settings, base, seen, spacing) for number, group in enumerate(groups, start=1)),
        tuple(_muscle(muscle, settings, base, legs, spacing) for group in groups for muscle in group),
        Neighbours.fit(legs, groups=tuple(groups)),
        split,
        folds,
    )


def legs_of(observation: Observation, label_map: LabelMap) -> list[Leg]:
    """Returns the legs of a scan in which anything is labelled; boxes by muscle."""
    sides = structures_of(label_map)
    legs = []
    for side in SIDES:
        names = {muscle: where[side] for muscle, where in sides.items() if side in where}
        boxes = {muscle: observation.boxes[name] for muscle, name in names.items() if name in observation.boxes}
        if boxes:
            legs.append(Leg(boxes, observation.geometry, side))
    return legs


def _group(
    number: int,
    muscles: tuple[str, ...],
    settings: Cascade,
    base: DataSpec,
    seen: list[Observation],
    spacing: np.ndarray,
) -> GroupNetwork:
    sides = structures_of(base.label_map)
    names = [sides[muscle][side] for muscle in muscles for side in SIDES if side in sides[muscle]]
    region = _region(settings, names, seen)
    share = np.array([region[1] - region[0], 1, 1])
    extents = [np.array(one.geometry.shape) * one.geometry.spacing * share for one in seen]
    size = np.mean(extents, axis=0)
    fitting, _ = fitting_grid(
        size, tuple(spacing), voxel_budget=settings.coarse_voxels, multiple=settings.coarse_multiple
    )
    window = _deep_enough(fitting, settings.coarse_multiple)
    coarse = size / window
    label_map = base.label_map.merged({name: [name] for name in names})[0]
    return GroupNetwork(_group_name(number), muscles, region, _spec(base, label_map, window, coarse, "whole"))


def _group_name(number: int) -> str:
    return f"group_{number:02d}"


def _region(settings: Cascade, names: list[str], seen: list[Observation]) -> tuple[float, float]:
    if settings.regions == "scan":
        return 0.0, 1.0
    ends = []
    for one in seen:
        count = one.geometry.shape[0]
        for name in names:
            if (box := one.boxes.get(name)) is not None:
                ends.append(((count - box.stop[0]) / count, (count - box.start[0]) / count))
    first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    if settings.regions == "thirds":  # the part that shows most of the group
        return max(LEG_PARTS.values(), key=lambda part: min(part[1], last) - max(part[0], first))
    return max(0.0, first - settings.region_margin), min(1.0, last + settings.region_margin)


def _muscle(muscle: str, settings: Cascade, base: DataSpec, legs: list[Leg], spacing: np.ndarray) -> MuscleNetwork:
    extents = [np.array(leg.boxes[muscle].size) * leg.geometry.spacing for leg in legs if muscle in leg.boxes]
    size = np.mean(extents, axis=0) * INPUT_MARGIN
    fitting, cubes = fitting_grid(
        size, tuple(spacing), voxel_budget=settings.fine_voxels, multiple=settings.fine_multiple
    )
    window = _deep_enough(fitting, settings.fine_multiple)
    fine = np.where(np.array(cubes) > _OWN_SPACING_WITHIN * spacing, cubes, spacing)
    fine = np.where(np.array(window) > fitting, np.minimum(fine, size / window), fine)
    return MuscleNetwork(muscle, _spec(base, LabelMap({1: muscle}), window, fine, "boxes"))


def _deep_enough(window: tuple[int, int, int], multiple: int) -> tuple[int, int, int]:
    least = min(SMALLEST_EDGE * multiple, max(32, multiple))
    a, b, c = (max(edge, least) for edge in window)
    return a, b, c


def _spec(
    base: DataSpec, label_map: LabelMap, window: tuple[int, int, int], spacing: np.ndarray, patches: str
) -> DataSpec:
    depth, height, width = window
    a, b, c = (round(float(mm), 6) for mm in spacing)
    return replace(base, label_map=label_map, depth=depth, size=(height, width), spacing=(a, b, c), patches=patches)
