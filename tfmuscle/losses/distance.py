"""Boundary loss: probability weighed by the distance to the structure.

Terms. The *signed distance* φ of a structure is, on a voxel outside it, the distance to its nearest voxel; on a voxel
inside, 1 minus the distance to the nearest voxel outside, so that a structure's outermost voxels have 0. Distances are
Euclidean, between voxel centres and in voxels, whatever the spacing, in the plane of a 2D sample and in all three axes
of a 3D one, per sample and class. φ is 0 everywhere for a structure that is absent, and for one that fills the sample:
neither has a boundary. Of a soft truth the voxels above 1/2 are inside.

Unlabelled voxels are neither inside nor outside: a distance is that to the nearest voxel which is known to lie on the
other side. It may be longer than the true one, never shorter, and where the labels end is no boundary.

The loss is negative where a structure is met: its least value is the sum of the φ inside over the number of voxels.

φ is made from the labels at every step; a second target beside them would have to go through every transform, shard
and coarse output. The squared distance is separable: along each axis in turn D(i) = min over k of (i - k)² + D(k).
Because k² = 1 + 3 + 5 + ..., that minimum over all k is what remains after taking, for n = 1, 2, ..., the minimum of
each voxel and its two neighbours plus 2n - 1 (Huang & Mitchell 1994). It is exact, needs a few copies of one mask, and
has no axis of pairs (i, k), which took 64 MiB for a single 256 x 256 mask and longer.
"""

from typing import Any

import keras
from keras import ops

from tfmuscle.losses.targets import prepare

_FAR = 1e12
"""Squared distance to nothing; above that of any two voxels, and finite, for infinity times 0 is not a number."""


def signed_distance(g, labelled):
    """Returns φ of every class in voxels, `(B, ..., C)` float32, a constant of the gradient.

    Args:
        g: truth `(B, ..., C)`, zero on unlabelled voxels.
        labelled: `(B, ..., 1)`, 1 where somebody labelled.
    """
    g = ops.stop_gradient(g)
    inside = ops.cast(g > 0.5, "float32")
    sides = ops.stack([inside, (1 - inside) * labelled], axis=-1)
    sides = ops.moveaxis(sides, -2, 1)
    shape = ops.shape(sides)
    one_by_one = ops.reshape(sides, (-1, *shape[2:]))  # in turn: what is held is a few copies of one mask
    found = ops.reshape(ops.map(_squared_distances, one_by_one), shape)
    to_inside, to_outside = (ops.moveaxis(found[..., side], 1, -1) for side in (0, 1))
    signed = ops.sqrt(to_inside) * (1 - inside) - (ops.sqrt(to_outside) - 1) * inside
    return ops.where(ops.maximum(to_inside, to_outside) < _FAR / 2, signed, 0.0)


def _squared_distances(sides):
    """Returns the squared distance of every voxel to the nearest 1 of each mask `(*spatial, masks)`."""
    squared = ops.where(sides > 0, 0.0, _FAR)
    for axis in range(len(sides.shape) - 1):
        squared = ops.moveaxis(_along_first_axis(ops.moveaxis(squared, axis, 0)), 0, axis)
    return squared


def _along_first_axis(squared):
    """Returns min over k of (i - k)² + D(k) along the first axis."""
    beyond = ops.full_like(squared[:1], _FAR)
    end = ops.cast(2 * ops.shape(squared)[0] - 1, "float32")

    def nearer(step, found):
        before, after = ops.concatenate([beyond, found[:-1]], axis=0), ops.concatenate([found[1:], beyond], axis=0)
        return step + 2, ops.minimum(found, ops.minimum(before, after) + step)

    return ops.while_loop(lambda step, found: step < end, nearer, (ops.ones((), "float32"), squared))[1]


def kervadec_loss(g, p, labelled):
    """Returns the mean over labelled voxels and foreground of p φ, φ the signed distance in voxels; may be negative."""
    signed = signed_distance(g[..., 1:], labelled)
    # p is 0 on unlabelled voxels
    return ops.sum(p[..., 1:] * signed) / (signed.shape[-1] * ops.maximum(ops.sum(labelled), 1.0))


@keras.saving.register_keras_serializable(package="tfmuscle")
class Kervadec(keras.losses.Loss):
    """Boundary loss: a probability costs what its voxel's distance to the structure is, in voxels; may be negative.

    A part of a sum: alone, its slope towards a small structure is lost among that of the background around it.
    """

    source = "Kervadec et al. 2019"
    formula = "mean of p φ over labelled voxels and foreground, φ voxels to g, inside 1 - voxels to the outside"

    def __init__(self, *, name="kervadec"):
        super().__init__(name=name, dtype="float32")

    def call(self, y_true, y_pred):
        """Returns the loss of a batch."""
        return kervadec_loss(*prepare(y_true, y_pred))

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name}
