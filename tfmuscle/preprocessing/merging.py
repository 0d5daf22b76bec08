"""Binary masks, one a structure, become one label image.

Masks of bones and muscles are drawn one by one and overlap at their borders. A voxel that one mask claims gets that
structure's id; one that two or more claim belongs to nobody and becomes background, and the overlaps are counted so
that somebody can look. Adding the ids and zeroing unknown sums, as has been published, is wrong: tibia (1) and femur
(2) make a fibula (3).

Memory is the label image, one byte a voxel for the count, and one mask at a time: `masks` may be a mapping that reads
its files on access.
"""

from collections.abc import Mapping

import numpy as np

from tfmuscle.labels import LabelMap


def merge_masks(masks: Mapping[str, np.ndarray], label_map: LabelMap) -> tuple[np.ndarray, dict[tuple[str, str], int]]:
    """Merges binary masks into ids by counting.

    Args:
        masks: structure -> `(I, J, K)`, set where not 0; all of one shape. Asked for twice each.
        label_map: ids of the structures; may name more of them.

    Returns:
        Ids `(I, J, K)` in the smallest unsigned type, 0 where no or several masks are set, and for every overlapping
        pair of structures the number of voxels they share.

    Raises:
        ValueError: no mask, a name that the map does not have, or masks of different shapes.

    >>> masks = {"tibia": np.array([1, 1, 0]), "femur": np.array([0, 1, 1])}
    >>> ids, overlaps = merge_masks(masks, LabelMap({1: "tibia", 2: "femur"}))
    >>> ids.tolist(), overlaps
    ([1, 0, 2], {('tibia', 'femur'): 1})
    """
    if not masks:
        raise ValueError("there is no mask to merge; give at least one")
    ids = {name: label_map.id_of(name) for name in masks}
    first = next(iter(masks))
    merged = np.zeros(np.shape(masks[first]), np.min_scalar_type(max(label_map.ids)))
    count = np.zeros(merged.shape, np.uint8)
    for name in masks:
        mask = np.asarray(masks[name]) != 0
        if mask.shape != merged.shape:
            raise ValueError(f"mask {name!r} has shape {mask.shape}, {first!r} {merged.shape}; bring them to one grid")
        merged[mask] = ids[name]
        count += mask & (count < 2)
    several = np.flatnonzero(count == 2)
    merged.reshape(-1)[several] = 0
    return merged, _overlaps(masks, several)


def _overlaps(masks: Mapping[str, np.ndarray], several: np.ndarray) -> dict[tuple[str, str], int]:
    """Counts the voxels that each pair of masks shares, given the flat indices that several masks hold."""
    if not len(several):
        return {}
    held = {name: np.packbits(np.asarray(masks[name]).reshape(-1)[several] != 0) for name in masks}
    held = {name: bits for name, bits in held.items() if bits.any()}
    names = list(held)
    shared = {
        (one, other): int(np.bitwise_count(held[one] & held[other]).sum())
        for index, one in enumerate(names)
        for other in names[index + 1 :]
    }
    return {pair: voxels for pair, voxels in shared.items() if voxels}
