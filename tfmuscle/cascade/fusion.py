"""From the maps of single boxes to one label image: averaging, cleaning, and who gets a voxel that several claim.

Terms. A *map* holds the probability that a voxel is in one muscle. A *region* is the union of the boxes that a muscle
was searched in. A muscle *claims* the voxels of its cleaned mask, each with the voxel's own averaged probability.

The steps, after Ni et al. 2019; radii and order are our choice:

1. `BoxAverage`: the maps of several boxes are averaged. `normalise="coverage"` divides by the boxes that hold a voxel,
   so that a stage-1 box that is too small does not press down the rim; `"count"` divides by all boxes, the literal
   reading.
2. `clean_muscle`: threshold, largest component (26 neighbours), closing, filled holes.
3. `Conflicts`: muscle after muscle; a voxel claimed by several goes to the highest probability, of equals to the lower
   id, so that the order of muscles does not matter. What closing and filling added is claimed with the low probability
   it has: it may win a voxel nobody wants, not one another muscle is surer of.
4. Again the largest component of each muscle, because losing voxels may cut off islands; islands become background.

Holes are closed in 3D: a gap that reaches the outside, or the end of the scan, is none. *Across* is the axis with the
thickest voxels, where one voxel is already far; the closing's ellipsoid has radius 1 there and 2 along the others.

Memory. Maps and masks exist on their region only. The whole scan is held as one float32 and one small integer per
voxel: 315 MB for 512 x 512 x 240 and 70 muscles. A map for each muscle would be 18 GB.
"""

from collections.abc import Sequence

import cc3d
import numpy as np
import scipy.ndimage

from tfmuscle.cascade.boxes import Box, tight_box, tight_boxes
from tfmuscle.config import FUSIONS
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import superior_axis
from tfmuscle.volume import SPACING_TOLERANCE_MM, Geometry, Volume

THRESHOLD = 0.5
"""A voxel belongs to a muscle above this, as with the argmax of two classes."""
RADIUS, RADIUS_ACROSS = 2, 1
"""Radii of the closing in voxels, in plane and across."""


class BoxAverage:
    """Mean of the maps of several boxes, on the boxes' union alone.

    A class, because the sum waits for the next map:

        average = BoxAverage(boxes)
        for box in boxes:
            average.add(box, predict(box))
        probability = average.result()  # of average.region
    """

    def __init__(self, boxes: Sequence[Box], *, normalise: str = "coverage") -> None:
        """Makes room for the maps of `boxes`, all of them inside the scan.

        Raises:
            ValueError: no boxes, or an unknown normalisation.
        """
        if normalise not in FUSIONS:
            raise ValueError(f"normalise is {normalise!r}; choose {' or '.join(FUSIONS)}")
        if not boxes:
            raise ValueError("no boxes to average; at least one is needed")
        self.region = boxes[0].union(*boxes[1:])
        self._normalise = normalise
        self._missing = list(boxes)
        self._count = len(boxes)
        self._sum = np.zeros(self.region.size, np.float32)
        self._cover = np.zeros(self.region.size, np.uint16)

    def add(self, box: Box, probability: np.ndarray) -> None:
        """Adds the map of one of the boxes, in any order.

        Args:
            box: one of those announced.
            probability: array of `box.size`.

        Raises:
            ValueError: another box, a box added twice, an array of another shape, or numbers that are not finite.
        """
        if box not in self._missing:
            raise ValueError(f"box {box.start}..{box.stop} is none of those still to come; add each box once")
        if probability.shape != box.size:
            raise ValueError(f"map has shape {probability.shape}; its box needs {box.size}")
        if not np.isfinite(probability).all():
            raise ValueError(f"map of box {box.start}..{box.stop} is not finite; the network's weights are damaged")
        self._missing.remove(box)
        here = box.moved(self.region.start).slices
        self._sum[here] += probability
        self._cover[here] += 1

    def result(self) -> np.ndarray:
        """Returns the averaged probability, float32 of `region.size`; 0 where no box was.

        Raises:
            ValueError: a box was never added.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {self._count} boxes were not added; add them all first")
        if self._normalise == "count":
            return self._sum / np.float32(self._count)
        return self._sum / np.maximum(self._cover, 1)


def across_axis(geometry: Geometry) -> int:
    """Returns the axis with the thickest voxels; of equals the one along the patient, else the first.

    >>> across_axis(Geometry((4, 4, 4), np.diag([1.0, 5.0, 1.0, 1.0])))
    1
    """
    thickest = np.flatnonzero(np.array(geometry.spacing) > max(geometry.spacing) - SPACING_TOLERANCE_MM)
    along = superior_axis(geometry)[0]
    return along if along in thickest else int(thickest[0])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Returns the largest part of an `(I, J, K)` mask connected by 26 neighbours, one of several equals; bool."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return cc3d.largest_k(mask, k=1, connectivity=26, binary_image=True) > 0


def clean_muscle(probability: np.ndarray, *, across: int, threshold: float = THRESHOLD) -> np.ndarray:
    """Returns the mask of a muscle: largest component above `threshold`, closed, holes filled.

    Args:
        probability: `(I, J, K)` of the muscle's region.
        across: axis of the thickest voxels, from `across_axis`.
        threshold: between 0 and 1.

    Raises:
        ValueError: an array, axis or threshold of another kind.
    """
    if probability.ndim != 3 or across not in (0, 1, 2) or not 0 < threshold < 1:
        raise ValueError(
            f"map has {probability.ndim} axes, axis across is {across}, threshold {threshold}; a map (I, J, K), an "
            "axis 0, 1 or 2 and a number between 0 and 1 are needed"
        )
    mask = largest_component(probability > threshold)
    box = tight_box(mask, 1)
    if box is None:
        return mask
    reach = [RADIUS_ACROSS if axis == across else RADIUS for axis in range(3)]
    padded = np.pad(mask[box.slices], [(width, width) for width in reach])  # closing would wear off an edge
    closed = scipy.ndimage.binary_closing(padded, _ellipsoid(reach))
    filled = scipy.ndimage.binary_fill_holes(closed)
    mask[box.slices] = filled[tuple(slice(width, -width) for width in reach)]
    return mask


def _ellipsoid(radii: Sequence[int]) -> np.ndarray:
    """Returns the voxels whose centres lie in an ellipsoid, `(2 r + 1)` along each axis."""
    a, b, c = np.ogrid[tuple(slice(-radius, radius + 1) for radius in radii)]
    return (a / radii[0]) ** 2 + (b / radii[1]) ** 2 + (c / radii[2]) ** 2 <= 1


class Conflicts:
    """Joins the masks of muscles into labels in which every voxel has one owner.

    A class, because it holds who has claimed a voxel best so far. Claims may come in any order.
    """

    def __init__(self, geometry: Geometry, label_map: LabelMap) -> None:
        """Makes an empty label image on the scan's own grid; `label_map` gives the muscles' ids."""
        self._geometry = geometry
        self._label_map = label_map
        self._ids = np.zeros(geometry.shape, np.min_scalar_type(max(label_map.ids)))
        self._best = np.zeros(geometry.shape, np.float32)
        self._claimed: dict[str, bool] = {}  # whether there were voxels to claim

    def claim(self, name: str, region: Box, probability: np.ndarray, mask: np.ndarray) -> None:
        """Claims the voxels of `mask` for a muscle; an empty mask is a muscle that was not found.

        Args:
            name: of the label map.
            region: where probability and mask lie in the scan.
            probability: averaged, of `region.size`.
            mask: bool, of `region.size`, from `clean_muscle`.

        Raises:
            ValueError: an unknown name, a muscle for the second time, or arrays or a region that do not fit.
        """
        key = self._label_map.id_of(name)
        if key == 0 or name in self._claimed:
            raise ValueError(f"{name!r} has claimed its voxels already, or is background; every muscle claims once")
        if probability.shape != region.size or mask.shape != region.size or mask.dtype != bool:
            raise ValueError(
                f"probability {probability.shape} and mask {mask.shape} of {mask.dtype} do not fit the region's "
                f"{region.size}; a number and a bool for each of its voxels are needed"
            )
        if region.clipped(self._geometry.shape) != region:
            raise ValueError(f"region {region.start}..{region.stop} reaches outside the scan {self._geometry.shape}")
        ids, best = self._ids[region.slices], self._best[region.slices]
        mine = probability.astype(np.float32, copy=False)
        wins = mask & ((ids == 0) | (mine > best) | ((mine == best) & (key < ids)))
        ids[wins] = key
        best[wins] = mine[wins]
        self._claimed[name] = bool(mask.any())

    def result(self) -> tuple[Volume, tuple[str, ...]]:
        """Returns the labels, each muscle one component, and the names of muscles that lost every voxel claimed."""
        keys = {name: self._label_map.id_of(name) for name, found in self._claimed.items() if found}
        boxes = tight_boxes(self._ids, keys.values())
        for key, box in boxes.items():
            local = self._ids[box.slices]
            mine = local == key
            local[mine & ~largest_component(mine)] = 0
        lost = tuple(name for name, key in keys.items() if key not in boxes)
        return Volume(self._ids, self._geometry), lost
