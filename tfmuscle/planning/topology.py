"""nnU-Net v2's arithmetic of networks: how often an axis is halved, what that costs, which patch and batch fit.

Terms. A *patch* is what the network sees at once, in voxels, slice axis first. A *stage* is one resolution of a U-Net,
the full one first; its *strides* say by how much each axis shrinks on entering it, and its *kernels* are the sizes of
its convolutions. An axis with coarse voxels is neither halved nor convolved until the others have caught up with it, so
that the deep stages see about cubes. *Cost* is the number of values in the feature maps of one sample: what fills the
memory of a GPU, in nnU-Net's own unit.

All rules are those of nnU-Net v2 (Isensee et al. 2021; its repository MIC-DKFZ/nnUNet, `experiment_planning`), with its
numbers. `BUDGETS` holds those numbers, and beside them ours for a laptop: an initial patch of 40³ or 128² voxels, a
quarter or half of the widths, and the cost of such a patch, so that two cores take a second or two for a training step.
The rules themselves are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_EDGE = 4
"""Voxels that must remain along an axis at the deepest stage."""
SIMILAR = 2.0
"""Voxel edges count as similar while none is this many times the smallest or more."""
SMALLEST_BATCH = 2
DATASET_SHARE = 0.05
"""Largest share of the dataset's voxels that one batch may hold."""


@dataclass(frozen=True)
class Budget:
    """What a network may cost.

    Attributes:
        voxels: of the patch to start from, before it is clipped to the median scan.
        cost: feature-map values of one sample at which `batch` samples fit.
        batch: see `cost`.
        filters: of the first stage; they double from stage to stage.
        max_filters: filters are not doubled beyond this.
    """

    voxels: int
    cost: float
    batch: int
    filters: int
    max_filters: int


BUDGETS = {
    ("full", 3): Budget(voxels=256**3, cost=5.6e8, batch=2, filters=32, max_filters=320),
    ("full", 2): Budget(voxels=2048**2, cost=8.5e7, batch=12, filters=32, max_filters=512),
    ("laptop", 3): Budget(voxels=40**3, cost=4.5e6, batch=2, filters=8, max_filters=80),
    ("laptop", 2): Budget(voxels=128**2, cost=2.8e6, batch=12, filters=16, max_filters=128),
}
"""By scale and number of spatial axes."""


@dataclass(frozen=True)
class Topology:
    """A patch that its strides divide, and the strides and kernels of every stage, the full resolution first."""

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """What each edge of the patch must be a multiple of."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class Fit:
    """The patch, batch and network that fit a budget.

    Attributes:
        topology: patch, strides and kernels.
        cost: feature-map values of one sample.
        batch: samples per step.
    """

    topology: Topology
    cost: int
    batch: int


def topology_of(patch: Sequence[float], spacing: Sequence[float]) -> Topology:
    """Derives strides and kernels from a patch and its voxel size, and enlarges the patch to what they divide.

    Again and again, axes of at least 8 voxels are halved whose voxels are less than twice the smallest of these; one
    axis alone needs 12. A kernel is 1 along an axis until its voxels are less than twice the smallest of all, then 3;
    at the deepest stage it is 3 everywhere.

    Args:
        patch: edges in voxels; the median of an even number of scans may be a fraction.
        spacing: voxel edges in mm, in the same order.

    >>> found = topology_of((10, 64, 64), (4.0, 1.0, 1.0))
    >>> found.strides
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2))
    >>> found.kernels
    ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    """
    size, voxel = list(patch), list(spacing)
    axes = range(len(size))
    kernel = [1] * len(size)
    strides, kernels = [tuple(kernel)], []
    while halved := _axes_to_halve(size, voxel):
        kernel = [3 if kernel[axis] == 3 or voxel[axis] / min(voxel) < SIMILAR else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            size[axis], voxel[axis] = math.ceil(size[axis] / 2), 2 * voxel[axis]
    kernels.append((3,) * len(size))
    divisors = Topology((), tuple(strides), ()).divisors
    padded = tuple(math.ceil(edge / divisor) * divisor for edge, divisor in zip(patch, divisors, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def _axes_to_halve(size: list[float], voxel: list[float]) -> list[int]:
    long = [axis for axis, edge in enumerate(size) if edge >= 2 * SMALLEST_EDGE]
    smallest = min((voxel[axis] for axis in long), default=0.0)
    chosen = [axis for axis in long if voxel[axis] / smallest < SIMILAR]
    return [] if len(chosen) == 1 and size[chosen[0]] < 3 * SMALLEST_EDGE else chosen


def widths(num_stages: int, budget: Budget) -> list[int]:
    """Returns the filters of each stage.

    >>> widths(6, BUDGETS["full", 3])
    [32, 64, 128, 256, 320, 320]
    """
    return [min(budget.filters * 2**stage, budget.max_filters) for stage in range(num_stages)]


def network_cost(topology: Topology, budget: Budget, *, num_classes: int) -> int:
    """Returns the number of feature-map values of one sample.

    Two convolutions a stage on the way down; two convolutions and the transposed one a stage on the way up; and the
    class values at full resolution.

    >>> flat = Topology((8, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    >>> network_cost(flat, BUDGETS["full", 2], num_classes=3)  # 64 x (5 x 32 + 3) + 16 x 2 x 64
    12480
    """
    voxels, total = math.prod(topology.patch), num_classes * math.prod(topology.patch)
    for stage, (strides, width) in enumerate(zip(topology.strides, widths(len(topology.strides), budget), strict=True)):
        voxels //= math.prod(strides)
        total += voxels * width * (2 if stage == len(topology.strides) - 1 else 5)
    return total


def fit_patch(
    spacing: Sequence[float], median_shape: Sequence[float], budget: Budget, *, num_classes: int, dataset_voxels: float
) -> Fit:
    """Finds the largest patch that fits the budget at a batch of 2, then the largest batch.

    The start is a cube in mm of `budget.voxels`, clipped to the median scan. While it costs too much, the axis that is
    longest relative to the median scan is shortened by one divisor: that of the shortened patch, so that no size is
    skipped. A batch holds at most 5 % of the dataset, but never less than 2 samples.

    Args:
        spacing: voxel edges in mm; two of them for slices.
        median_shape: median shape of the scans at this spacing.
        budget: what may be spent.
        num_classes: values per voxel of the output.
        dataset_voxels: voxels of the whole dataset at this spacing.
    """
    scale = (budget.voxels * math.prod(spacing)) ** (1 / len(spacing))
    start = [min(round(scale / mm), median) for mm, median in zip(spacing, median_shape, strict=True)]
    found = topology_of(start, spacing)
    cost = network_cost(found, budget, num_classes=num_classes)
    while cost / budget.batch * SMALLEST_BATCH > budget.cost:
        shorter = _shortened(found, spacing, median_shape)
        if shorter is None:
            break
        found = shorter
        cost = network_cost(found, budget, num_classes=num_classes)
    most = round(dataset_voxels * DATASET_SHARE / math.prod(found.patch))
    return Fit(found, cost, max(SMALLEST_BATCH, min(round(budget.cost / cost * budget.batch), most)))


def _shortened(found: Topology, spacing: Sequence[float], median_shape: Sequence[float]) -> Topology | None:
    """Returns the next smaller patch, or None when no edge has more than one divisor left."""
    ratios = [edge / median for edge, median in zip(found.patch, median_shape, strict=True)]
    long = [axis for axis, divisor in enumerate(found.divisors) if found.patch[axis] > divisor]
    if not long:
        return None
    axis = max(long, key=lambda axis: (ratios[axis], axis))  # of equals the last, as nnU-Net's sort
    tried = list(found.patch)
    tried[axis] -= found.divisors[axis]
    shorter = list(found.patch)
    shorter[axis] -= topology_of(tried, spacing).divisors[axis]
    return topology_of(shorter, spacing)
