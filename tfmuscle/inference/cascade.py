"""A scan labelled by a cascade: `predict_cascade`.

Stage 1. The scan is prepared once (axes, intensities). Each group's network sees its region of it on a coarse grid; the
largest piece of every structure gives a box, which is mapped to the scan's own voxels. Where both legs are in view, the
scan's midline says which piece is left: networks learn late which leg they see. A muscle that the coarse grid lost gets
its box from its neighbours.

Stage 2. Around each box six larger ones are drawn (`Cascade.boxes`, `box_seed`), the muscle's network sees them, a left
leg mirrored, and the six answers are averaged. The cleaned muscles then share out the voxels.

Which numbers are drawn depends on the seed, the muscle and the side alone: a muscle of a `roi` gets the answer that the
whole limb would have given it, unless a muscle that was left out would have taken voxels from it.

Rejected: drawing a box anew around what its network finds in the largest enlargement, for muscles of which stage 1 sees
a part. The networks of thin muscles, shown more, step over into neighbours: mean Dice fell from 0.64 to 0.53 on a
validation subject of benchmarks/cascade.md.

Networks are opened one at a time and dropped, so that memory holds one of them, whatever their number. The scan is held
as float32, as labels and with the probability of their owners; nothing else of its size is. Opening a network takes
about a second.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from tfmuscle.cascade import (
    Box,
    BoxAverage,
    CascadePlan,
    Conflicts,
    GroupNetwork,
    Leg,
    across_axis,
    clean_muscle,
    enlarged,
    largest_component,
    largest_enlargement,
    mapped,
    resized_back,
    resized_linear,
    structures_of,
    tight_box,
)
from tfmuscle.cascade.boxes import INPUT_MARGIN
from tfmuscle.cascade.plan import MIRRORED, SIDE_AXIS
from tfmuscle.config import Cascade
from tfmuscle.errors import DataError
from tfmuscle.inference.cascade_runs import CascadeRun
from tfmuscle.inference.runs import Run, load_run
from tfmuscle.inference.volumes import mean_probabilities
from tfmuscle.labels import SIDES, LabelMap, without_side
from tfmuscle.preprocessing import Midline, find_midline, leg_parts, preprocess, resample_image
from tfmuscle.records import Scan
from tfmuscle.volume import Geometry, Volume

LARGEST_STRETCH = 1.3
"""A scan that is so many times as long or as short as those of the training is told of."""
SPILL = 0.1
"""A piece smaller than this share of its twin in the other leg is what reached over the midline."""
MIDLINE_MARGIN_MM = 10.0
"""How far a muscle may reach over the midline, which is where the legs' outlines are farthest in, not a plane."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CascadeResult:
    """Labels of a scan, and how they came about.

    Attributes:
        labels: ids on the scan's own grid.
        placed: structures whose box came from their neighbours.
        lost: structure -> why it has no voxel.
        notes: what the user should know of the scan, one sentence each.
        seconds: stage ("prepare", "groups", "muscles", "join") -> seconds.
    """

    labels: Volume
    placed: tuple[str, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def predict_cascade(
    cascade: CascadeRun,
    image: Volume,
    *,
    roi: Iterable[str] = (),
    mirror: bool = True,
    progress: Progress | None = None,
) -> CascadeResult:
    """Labels a scan by a cascade, on exactly the scan's own grid.

    Args:
        cascade: from `cascade_runs.load_cascade`.
        image: `(I, J, K, C)` with the channels of the plan, or `(I, J, K)` when there is one.
        roi: muscles, structures or groups to find; all without any.
        mirror: average stage 1 over mirrored images too, if its networks were trained with mirroring.
        progress: called with (networks asked, networks to ask).

    Raises:
        DataError: a network that is needed has not been trained or is damaged, or the scan cannot be used.
        ValueError: an unknown name in `roi`.
    """
    muscles = cascade.check(roi)
    plan, clock = cascade.plan, _Clock()
    groups = [group for group in plan.groups if set(group.muscles) & set(muscles)]
    tick = _counter(progress, len(groups) + len(muscles))
    scan, _ = preprocess(image, None, plan.base)
    midline = find_midline(image) if plan.settings.telling_sides == "midline" else None
    clock.next("prepare")
    boxes: dict[str, Box] = {}
    placed: list[str] = []
    lost: dict[str, str] = {}
    for group in groups:
        coarse, found = _find_group(_open(cascade, group.name), group, scan, midline, mirror=mirror)
        _place(plan, group, scan, coarse, found, boxes=boxes, placed=placed, lost=lost)
        tick()
    clock.next("groups")
    conflicts = Conflicts(scan.geometry, plan.base.label_map)
    for muscle in muscles:
        _find_muscle(cascade, muscle, scan, midline, boxes, conflicts, lost)
        tick()
    clock.next("muscles")
    labels, gone = conflicts.result()
    lost |= dict.fromkeys(gone, "other muscles are surer of all of its voxels")
    wanted = {name for muscle in muscles for name in structures_of(plan.base.label_map)[muscle].values()}
    back = Volume(labels.reoriented(image.geometry.orientation).array, image.geometry, image.source)
    clock.next("join")
    return CascadeResult(
        back,
        tuple(name for name in placed if name in wanted),
        {name: why for name, why in lost.items() if name in wanted},
        _unlike(groups, scan),
        clock.seconds,
    )


def find_in_box(run: Run, leg: Scan) -> np.ndarray:
    """Returns where a muscle's network finds it in the mean enlargement of its true box: `(D, H, W)` uint8, 0 or 1.

    Args:
        run: the network.
        leg: a record of its muscle, with labels.

    Raises:
        DataError: the leg has no voxel of the muscle.
    """
    if (tight := tight_box(leg.labels, 1)) is None:
        raise DataError(f"{leg.subject_id}: its record holds no voxel of the muscle; make the records again")
    box = largest_enlargement(tight, leg.labels.shape, high=INPUT_MARGIN)
    view = resized_linear(leg.image, box, run.spec.window)[np.newaxis]
    probability = mean_probabilities(run, view, mirror=True)[0, ..., 1]
    found = np.zeros(leg.labels.shape, np.uint8)
    found[box.slices] = resized_back(probability, box.size) > 0.5
    return found


def _unlike(groups: Iterable[GroupNetwork], scan: Volume) -> tuple[str, ...]:
    """Says when a scan shows much more or less of the patient than those of the training: regions are then others."""
    notes = []
    for axis, what in enumerate(("along the limb", "from front to back", "from side to side")):
        shares = []
        for group in groups:
            learned = group.spec.window[axis] * (group.spec.spacing or scan.spacing)[axis]
            share = group.region[1] - group.region[0] if axis == 0 else 1.0
            shares.append(share * scan.geometry.shape[axis] * scan.spacing[axis] / learned)
        if shares and not 1 / LARGEST_STRETCH <= (ratio := float(np.median(shares))) <= LARGEST_STRETCH:
            notes.append(
                f"the scan is {ratio:.2f} times as long {what} as those the cascade was trained on; cut it alike"
                " (tfmuscle prepare), or expect muscles in wrong places"
            )
    return tuple(notes)


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def next(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage], self._last = round(now - self._last, 2), now


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def _open(cascade: CascadeRun, name: str) -> Run:
    """Opens a network and drops what Keras kept of the one before."""
    keras.backend.clear_session()
    return load_run(cascade.folder_of(name))


def _find_group(
    run: Run, group: GroupNetwork, scan: Volume, midline: Midline | None, *, mirror: bool
) -> tuple[Geometry, dict[str, Box]]:
    """Returns the coarse grid, and structure -> tight box on it, of the structures that it shows."""
    part = leg_parts(scan, {group.name: group.region})[group.name]
    coarse = resample_image(part, part.geometry.resized(group.spec.window))
    probabilities = mean_probabilities(run, coarse.array[np.newaxis], mirror=mirror)[0]
    left = None if midline is None else midline.left_of(coarse.geometry)
    found = {}
    for name, mask in _pieces(probabilities, group.spec.label_map, left).items():
        if (box := tight_box(mask, 1)) is not None:
            found[name] = box
    return coarse.geometry, found


def _pieces(probabilities: np.ndarray, label_map: LabelMap, left: np.ndarray | None) -> dict[str, np.ndarray]:
    """Returns structure -> its largest piece `(D, H, W)` bool, without those that have none.

    Args:
        probabilities: `(D, H, W, 1 + structures)`.
        label_map: of the group.
        left: voxels `(D, H, W)` on the patient's left: a muscle is then found on both sides as one, and its pieces get
            their side from where they lie. None: the network tells the sides.
    """
    names, found = label_map.structures, {}
    if left is None:
        classes = probabilities.argmax(axis=-1)
        found = {name: classes == number for number, name in enumerate(names, start=1)}
    else:
        muscles = structures_of(label_map)
        sums = [sum(probabilities[..., names.index(name) + 1] for name in sides.values()) for sides in muscles.values()]
        classes = np.stack([probabilities[..., 0], *sums]).argmax(axis=0)
        for number, sides in enumerate(muscles.values(), start=1):
            halves = (left, ~left) if len(sides) == len(SIDES) else (True,)
            for half, name in zip(halves, [sides[side] for side in SIDES if side in sides], strict=True):
                found[name] = (classes == number) & half
    pieces = {name: largest_component(mask) for name, mask in found.items() if mask.any()}
    if left is None:
        return pieces
    sizes = {name: int(piece.sum()) for name, piece in pieces.items()}
    largest = {muscle: max(sizes.get(name, 0) for name in sides.values()) for muscle, sides in muscles.items()}
    return {name: piece for name, piece in pieces.items() if sizes[name] >= SPILL * largest[without_side(name)]}


def _place(
    plan: CascadePlan,
    group: GroupNetwork,
    scan: Volume,
    coarse: Geometry,
    found: Mapping[str, Box],
    *,
    boxes: dict[str, Box],
    placed: list[str],
    lost: dict[str, str],
) -> None:
    """Adds a box for every structure of a group, from its neighbours where it was not found, or why there is none."""
    sides = structures_of(plan.base.label_map)
    tight = {name: mapped(box, coarse, scan.geometry, grow_voxels=0) for name, box in found.items()}
    for side in SIDES:
        names = {muscle: sides[muscle][side] for muscle in group.muscles if side in sides[muscle]}
        leg = Leg({muscle: tight[name] for muscle, name in names.items() if name in tight}, scan.geometry, side)
        for muscle, name in names.items():
            if name in found and plan.settings.placing == "muscle":
                boxes[name] = mapped(found[name], coarse, scan.geometry)
                continue
            try:
                boxes[name] = plan.neighbours.predict(muscle, leg, box=plan.settings.placing)
            except DataError as error:
                lost[name] = str(error)
                continue
            if name not in found:
                placed.append(name)


def _find_muscle(
    cascade: CascadeRun,
    muscle: str,
    scan: Volume,
    midline: Midline | None,
    boxes: Mapping[str, Box],
    conflicts: Conflicts,
    lost: dict[str, str],
) -> None:
    """Lets a muscle claim its voxels, on the sides where it has a box; none beyond the midline.

    A box of a muscle near the midline, enlarged, holds its twin in the other leg too.
    """
    plan, run = cascade.plan, None
    sides = structures_of(plan.base.label_map)[muscle]
    number = [network.name for network in plan.muscles].index(muscle)
    for side, name in sides.items():
        if name not in boxes:
            continue
        run = run or _open(cascade, muscle)
        random = np.random.default_rng([plan.settings.box_seed, number, SIDES.index(side)])
        region, probability = _probability(run, scan, boxes[name], side, random, settings=plan.settings)
        if midline is not None and len(sides) == len(SIDES):
            probability[_beyond(midline, side, scan.geometry.cropped(region.start, region.size))] = 0
        mask = clean_muscle(probability, across=across_axis(scan.geometry))
        if not mask.any():
            lost[name] = "its network finds nothing in its box"
        conflicts.claim(name, region, probability, mask)


def _beyond(midline: Midline, side: str, geometry: Geometry) -> np.ndarray:
    """Returns which voxels lie in the other leg, more than `MIDLINE_MARGIN_MM` beyond the midline."""
    away = MIDLINE_MARGIN_MM if side == "left" else -MIDLINE_MARGIN_MM
    left = dataclasses.replace(midline, x_mm=midline.x_mm + away).left_of(geometry)
    return ~left if side == "left" else left


def _probability(
    run: Run, scan: Volume, box: Box, side: str, random: np.random.Generator, *, settings: Cascade
) -> tuple[Box, np.ndarray]:
    """Returns where the network looked, on the scan's own grid, and the averaged probability there."""
    window = run.spec.window
    nominal = scan.geometry.resampled(run.spec.spacing or scan.spacing)
    tight = mapped(box, scan.geometry, nominal, grow_voxels=0)
    drawn = [enlarged(tight, nominal.shape, random) for _ in range(settings.boxes)]
    average = BoxAverage(drawn, normalise=settings.fusion)
    grid = nominal.cropped(average.region.start, average.region.size)
    around = resample_image(scan, grid).array
    views = np.stack([resized_linear(around, one.moved(average.region.start), window) for one in drawn])
    if side == MIRRORED:
        views = np.ascontiguousarray(np.flip(views, 1 + SIDE_AXIS))
    found = mean_probabilities(run, views, mirror=True)[..., 1]
    if side == MIRRORED:
        found = np.flip(found, 1 + SIDE_AXIS)
    for one, answer in zip(drawn, found, strict=True):
        average.add(one, resized_back(answer, one.size))
    region = mapped(average.region, nominal, scan.geometry, grow_voxels=0)
    target = scan.geometry.cropped(region.start, region.size)
    return region, resample_image(Volume(average.result(), grid), target).array
