"""How often a grid can be halved: the arithmetic of encoders, without Keras, so that checks cost no time."""

import math
from collections.abc import Sequence
from typing import Any

SMALLEST_EDGE = 4
"""An axis is not halved below this many voxels (nnU-Net's limit)."""
LARGEST_ODD_EDGE = 15
"""An odd axis up to this size may stay as it is; a longer one would cost too much at the deep levels."""


MOST_LEVELS = 5
"""Resolutions of a network whose depth is not given, where the shape allows them."""


def fitting_levels(shape: Sequence[int | None]) -> int:
    """Returns the number of levels that suits a shape: 5, or fewer where all axes get as short as they can before.

    Raises:
        ValueError: a long axis turns odd on the way, so that a network would stay shallow; the nearest shape is named.

    >>> fitting_levels((256, 256)), fitting_levels((48, 48)), fitting_levels((40, 56, 40))
    (5, 4, 4)
    """
    for levels in range(MOST_LEVELS - 1, 1, -1):
        edges = [edge for edge in shape if edge is not None]
        for _ in range(levels - 1):
            edges = [edge // 2 if _can_halve(edge) else edge for edge in edges]
        if len(edges) == len(shape) and not any(map(_can_halve, edges)) and max(edges) <= LARGEST_ODD_EDGE:
            return levels
    poolings(shape, MOST_LEVELS)
    return MOST_LEVELS


def poolings(shape: Sequence[int | None], levels: int) -> list[tuple[int, ...]]:
    """Returns the factor, 1 or 2, by which each axis is divided between one level and the next.

    An axis is halved while it is even and at least 4 voxels remain, so that thin axes stay: 3 slices are never pooled.
    An axis of unknown size is always halved; whoever feeds it keeps to multiples of `2**(levels - 1)`.

    Args:
        shape: spatial axes in voxels, None where unknown.
        levels: resolutions of the network, the full one included.

    Raises:
        ValueError: no axis can be halved that often, or a long axis is odd on the way; the nearest shape is named.

    >>> poolings((3, 64, 48), levels=4)
    [(1, 2, 2), (1, 2, 2), (1, 2, 2)]
    >>> poolings((48, 64, 48), levels=5)
    [(2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 1)]
    """
    if levels < 2:
        raise ValueError(f"levels is {levels!r}; at least 2 are needed")
    factors: list[tuple[int, ...]] = []
    edges = list(shape)
    for _ in range(levels - 1):
        factor = tuple(2 if edge is None or _can_halve(edge) else 1 for edge in edges)
        stuck = any(edge is not None and edge % 2 == 1 and edge > LARGEST_ODD_EDGE for edge in edges)
        if stuck or max(factor) == 1:
            raise ValueError(_remedy(shape, levels, len(factors)))
        factors.append(factor)
        edges = [edge if edge is None else edge // divisor for edge, divisor in zip(edges, factor, strict=True)]
    return factors


def planned_poolings(strides: Any, shape: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Returns what `poolings` does where a plan says it: one entry of `strides` for each level, the first all 1.

    Raises:
        ValueError: not such a list, or a shape that cannot be divided; the nearest shape is named.

    >>> planned_poolings([1, (1, 2, 2), 2], (6, 32, 24))
    [(1, 2, 2), (2, 2, 2)]
    """
    first, *factors = per_level("strides", strides, len(shape))
    if max(first) > 1 or not factors or any(max(factor) == 1 for factor in factors):
        raise ValueError(f"strides is {strides!r}; at least two levels are needed, the first all 1 and no other")
    divisors = [math.prod(axis) for axis in zip(*factors, strict=True)]
    if any(edge is not None and edge % divisor for edge, divisor in zip(shape, divisors, strict=True)):
        near = [edge and nearest_multiple(edge, divisor) for edge, divisor in zip(shape, divisors, strict=True)]
        raise ValueError(
            f"strides need multiples of {' x '.join(map(str, divisors))}; use {' x '.join(map(str, near))}"
        )
    return factors


def per_level(field: str, entries: Any, num_axes: int) -> list[tuple[int, ...]]:
    """Returns one tuple per level; an entry may be one number for all axes.

    Raises:
        ValueError: naming the `field`, where a level has not one positive whole number, or one per axis.

    >>> per_level("kernels", [[1, 3, 3], 3], 3)
    [(1, 3, 3), (3, 3, 3)]
    """
    levels: list[tuple[int, ...]] = []
    for entry in entries if isinstance(entries, list | tuple) else [None]:
        level: tuple[Any, ...] = tuple(entry) if isinstance(entry, list | tuple) else (entry,) * num_axes
        if len(level) != num_axes or not all(type(edge) is int and edge > 0 for edge in level):
            raise ValueError(
                f"{field} is {entries!r}; a list is needed that has, for each level, one positive whole number or"
                f" {num_axes} of them"
            )
        levels.append(level)
    if not levels:
        raise ValueError(f"{field} is empty; one entry per level is needed")
    return levels


def nearest_multiple(edge: int, divisor: int, *, smallest: int = 1) -> int:
    """Returns the multiple of `divisor` nearest to `edge`, the larger of two, at least `smallest` times `divisor`.

    >>> nearest_multiple(100, 32), nearest_multiple(48, 32), nearest_multiple(3, 8)
    (96, 64, 8)
    """
    return max(smallest, (2 * edge + divisor) // (2 * divisor)) * divisor


def _remedy(shape: Sequence[int | None], levels: int, possible: int) -> str:
    """Says what is needed: long odd axes get the nearest multiple, and some axis must be long enough for all levels."""
    divisor = 2 ** (levels - 1)
    near = [edge if edge is None or not _is_stuck(edge, levels) else nearest_multiple(edge, divisor) for edge in shape]
    if not any(edge is None or edge % divisor == 0 and edge >= SMALLEST_EDGE * divisor for edge in near):
        thin = 2 * SMALLEST_EDGE if max(filter(None, shape)) >= 2 * SMALLEST_EDGE else 0
        longer = [nearest_multiple(edge or 0, divisor, smallest=SMALLEST_EDGE) for edge in near]
        near = [edge if edge is not None and edge < thin else new for edge, new in zip(near, longer, strict=True)]
    fewer = f", or levels={possible + 1}" if possible else ""
    return f"{levels - 1} poolings need multiples of {divisor}; use {' x '.join(map(str, near))}{fewer}"


def _is_stuck(edge: int, levels: int) -> bool:
    for _ in range(levels - 1):
        if _can_halve(edge):
            edge //= 2
    return edge % 2 == 1 and edge > LARGEST_ODD_EDGE


def _can_halve(edge: int) -> bool:
    return edge % 2 == 0 and edge // 2 >= SMALLEST_EDGE
