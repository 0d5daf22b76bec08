"""Repeated recordings of one limb: brought together by a rigid motion, then merged.

A sweep shows a strip of a limb, so a limb is recorded several times, with overlap. Between recordings the limb moves,
as a whole: six numbers. The motion is found by Mattes' mutual information or by correlation, coarse to fine, with
SimpleITK; each recording is registered onto the first and must overlap with it.

* `register_rigid` returns a 4x4 matrix in world millimetres (RAS+) that carries the moving recording onto the fixed:
  `transform @ moving.geometry.affine` is where its voxels belong. SimpleITK's own answer is the other way round, from
  fixed to moving points, and in LPS; both end here.
* Voxels that are exactly 0 were not seen (compounding writes 0 there) and count neither for the match nor in the
  mean; zeros enclosed by seen voxels, such as shadows, do count.
* A match says how alike the recordings were before and after, where they overlap, measured here.
  An optimiser always returns something: the starting position is kept when it was better, and a match that is poor or
  overlaps hardly is not `is_trustworthy`, to be looked at and not to be merged. The figure is no proof: brightness that
  falls with depth makes recordings alike that lie wrong, and a sweep a centimetre wide hardly fixes the motion along
  it (2.5 mm off in one real sweep of 21 frames, split in two), so a picture is looked at too.
* Merging averages intensities where recordings overlap. Labels vote with the share that linear interpolation gives them
  at a voxel of the union; the winner needs more than half of the votes of the recordings that labelled the place,
  otherwise the voxel gets the ignore id: two recordings that disagree do not make a label.

One unit of work and a fixed seed: the same input gives the same motion. Non-rigid motion (a probe pressing into
muscle) is not undone; it shows as a low correlation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from tfmuscle.volume import Geometry, Volume

METRICS = ("mutual information", "correlation")
LEAST_CORRELATION = 0.75
"""Recordings less alike than this after registration are not merged. Phantoms of one texture reach 0.92 with noise when
they lie right; of two textures, 0.65 when they lie wrong by a centimetre."""
LEAST_OVERLAP = 0.1
"""Share of the smaller recording that must lie in the other one."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHRINK = (4, 2, 1)
_SAMPLES = 40_000
_ITERATIONS = 200
_COARSE_ITERATIONS = 60
_JUDGED_VOXELS = 60_000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Match:
    """How one recording lies on another.

    Attributes:
        transform: `(4, 4)` from the moving to the fixed world, in mm (RAS+).
        before: correlation of both where they overlap, at the start; NaN without overlap.
        after: the same after registration.
        overlap: share of the smaller recording's seen voxels that both saw, after registration.
    """

    transform: np.ndarray
    before: float
    after: float
    overlap: float

    @property
    def is_trustworthy(self) -> bool:
        """Whether the recordings are alike and overlap enough to be merged."""
        return self.after >= LEAST_CORRELATION and self.overlap >= LEAST_OVERLAP

    @property
    def rotation_degrees(self) -> float:
        """Angle of the motion."""
        cosine = (np.trace(self.transform[:3, :3]) - 1) / 2
        return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


@dataclass(frozen=True, eq=False)
class Merged:
    """Recordings in one volume.

    Attributes:
        image: mean intensity on the union of all grids, 0 where nothing was seen.
        labels: ids on the same grid, or None without labels.
        matches: one for each recording, the first onto itself.
    """

    image: Volume
    labels: Volume | None
    matches: tuple[Match, ...]


def register_rigid(
    moving: Volume,
    fixed: Volume,
    *,
    metric: str = "mutual information",
    start: np.ndarray | None = None,
    seed: int = 0,
) -> Match:
    """Finds the rigid motion that carries `moving` onto `fixed`.

    Args:
        moving: `(I, J, K)` recording to be moved.
        fixed: `(I, J, K)` recording that stays.
        metric: one of `METRICS`; correlation asks for equal gains and fails more often.
        start: 4x4 motion in mm to start from; without it the position as stored, and centre on centre, are both tried.
        seed: of the choice of voxels that are compared.

    Raises:
        ValueError: an unknown metric, a start that is not rigid, or a volume with channels or without content.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    for volume in (moving, fixed):
        if volume.num_channels != 1 or volume.array.ndim != 3 or not volume.array.any():
            raise ValueError(f"{volume.source or 'a volume'} has no content or several channels; one image is needed")
    stored = np.eye(4) if start is None else _checked(start)
    starts = [stored] if start is not None else [stored, _centred(moving, fixed)]
    coarse = [_optimised(moving, fixed, metric, begin, seed, is_coarse=True) for begin in starts]
    best = max([*starts, *coarse], key=lambda motion: _rank(likeness(moving, fixed, motion)))
    fine = _optimised(moving, fixed, metric, best, seed)
    motion = max([stored, fine], key=lambda motion: _rank(likeness(moving, fixed, motion)))
    after, overlap = likeness(moving, fixed, motion)
    return Match(motion, likeness(moving, fixed, stored)[0], after, overlap)


def likeness(moving: Volume, fixed: Volume, transform: np.ndarray) -> tuple[float, float]:
    """Returns how alike two recordings are once `transform` has moved one: correlation, and share of overlap.

    Pearson's correlation over voxels both saw (NaN without any), and their number over that of the smaller recording.
    """
    seen_fixed, seen_moving = _seen(fixed.array), _seen(moving.array)
    index = np.argwhere(seen_fixed)
    index = index[:: -(-len(index) // _JUDGED_VOXELS)]
    world = fixed.geometry.world(index)
    inverse = np.linalg.inv(transform)
    place = moving.geometry.index(world @ inverse[:3, :3].T + inverse[:3, 3]).T
    both = ndimage.map_coordinates(seen_moving.astype(np.float32), place, order=1) >= 0.5
    a = fixed.array[tuple(index[both].T)].astype(np.float64)
    b = ndimage.map_coordinates(moving.array.astype(np.float32), place[:, both], order=1, mode="nearest")
    size_fixed = np.count_nonzero(seen_fixed) * fixed.geometry.voxel_volume_ml
    size_moving = np.count_nonzero(seen_moving) * moving.geometry.voxel_volume_ml
    overlap = float(both.mean() * size_fixed / min(size_fixed, size_moving))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, overlap
    return float(np.corrcoef(a, b)[0, 1]), overlap


def merge_recordings(
    volumes: Sequence[Volume],
    matches: Sequence[Match],
    *,
    labels: Sequence[Volume] | None = None,
    ignore: int = 0,
    progress: Progress | None = None,
) -> Merged:
    """Puts registered recordings into one volume on the union of their grids, with the spacing of the first.

    Args:
        volumes: `(I, J, K)` recordings.
        matches: motion of each onto the first, from `register_rigid`.
        labels: ids of each recording, on its grid.
        ignore: id of voxels that nobody labelled or that recordings disagree about.
        progress: called with (recordings done, recordings in all, "").

    Raises:
        ValueError: not as many matches, or labels, as recordings, or labels on another grid.
    """
    labels = list(labels or [])
    if not volumes or len(matches) != len(volumes) or len(labels) not in (0, len(volumes)):
        raise ValueError(f"{len(volumes)} recordings, {len(matches)} matches and {len(labels)} labels do not fit")
    for volume, label in zip(volumes, labels, strict=bool(labels)):
        if not label.geometry.same_grid(volume.geometry) or not np.issubdtype(label.array.dtype, np.integer):
            raise ValueError(f"{label.source or 'labels'}: integer ids on the recording's grid are needed")
    grids = [Geometry(v.geometry.shape, m.transform @ v.geometry.affine) for v, m in zip(volumes, matches, strict=True)]
    union = _union(grids)
    sums, weights = np.zeros(union.shape, np.float32), np.zeros(union.shape, np.float32)
    for number, (volume, grid) in enumerate(zip(volumes, grids, strict=True)):
        seen = _seen(volume.array)
        share = _moved(seen, grid, union)
        share[share < 0.5] = 0
        sums += np.where(share > 0, _moved(np.where(seen, volume.array, 0), grid, union), 0)
        weights += share
        if progress is not None:
            progress(number + 1, len(volumes), "")
    image = np.divide(sums, weights, out=sums, where=weights > 0)
    merged = _vote(labels, grids, union, ignore) if labels else None
    return Merged(Volume(image, union), merged, tuple(matches))


def _vote(labels: list[Volume], grids: list[Geometry], union: Geometry, ignore: int) -> Volume:
    ids = sorted({int(key) for label in labels for key in np.unique(label.array)} - {ignore})
    result = np.full(union.shape, ignore, dtype=np.min_scalar_type(max([ignore, *ids])))
    known = sum(_moved(label.array != ignore, grid, union) for label, grid in zip(labels, grids, strict=True))
    for key in ids:
        votes = sum(_moved(label.array == key, grid, union) for label, grid in zip(labels, grids, strict=True))
        result[(votes > 0.5 * known + 1e-4) & (known >= 0.5)] = key
    return Volume(result, union)


def _moved(array: np.ndarray, grid: Geometry, union: Geometry) -> np.ndarray:
    """Interpolates linearly onto the union; 0 outside."""
    matrix = np.linalg.inv(grid.affine) @ union.affine
    return ndimage.affine_transform(
        array.astype(np.float32), matrix[:3, :3], matrix[:3, 3], output_shape=union.shape, order=1, mode="grid-constant"
    )


def _union(grids: Sequence[Geometry]) -> Geometry:
    """Returns the first grid, extended by whole voxels to hold all of them."""
    ends = []
    for grid in grids:
        corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(grid.shape) - 1)
        ends.append(grids[0].index(grid.world(corners)))
    low = np.floor(np.concatenate(ends).min(axis=0) + 1e-6).astype(int)
    high = np.ceil(np.concatenate(ends).max(axis=0) - 1e-6).astype(int)
    return grids[0].cropped(tuple(low), tuple(high - low + 1))


def _seen(array: np.ndarray) -> np.ndarray:
    return ndimage.binary_fill_holes(array != 0)


def _checked(start: np.ndarray) -> np.ndarray:
    start = np.asarray(start, dtype=np.float64)
    rotation = start[:3, :3] if start.shape == (4, 4) else np.zeros((3, 3))
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6) or np.linalg.det(rotation) < 0:
        raise ValueError(f"a start is a rigid 4x4 motion in mm, not {start.tolist()}")
    return start


def _centred(moving: Volume, fixed: Volume) -> np.ndarray:
    """Returns the shift that lays the middle of what was seen on the middle of what was seen."""
    middles = [v.geometry.world(np.argwhere(v.array != 0).mean(axis=0)) for v in (moving, fixed)]
    motion = np.eye(4)
    motion[:3, 3] = middles[1] - middles[0]
    return motion


def _rank(found: tuple[float, float]) -> float:
    """Likeness for choosing; positions that hardly overlap come last."""
    correlation, overlap = found
    return correlation if math.isfinite(correlation) and overlap >= LEAST_OVERLAP else overlap - 2


def _optimised(
    moving: Volume, fixed: Volume, metric: str, start: np.ndarray, seed: int, *, is_coarse: bool = False
) -> np.ndarray:
    """Runs SimpleITK from one start; returns the start where it finds no overlap."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfWorkUnits(1)  # sums of several threads differ in the last bits, and motions in the 7th digit
    if metric == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMattesMutualInformation(32)
    voxels, width = fixed.array.size, float(np.prod(fixed.spacing)) ** (1 / 3)
    shrink = _SHRINK[:1] if is_coarse else _SHRINK
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, _SAMPLES / (voxels / s**3)) for s in shrink], max(1, seed + 1))
    method.SetMetricFixedMask(_sitk_image(fixed, _seen(fixed.array).astype(np.uint8)))
    method.SetMetricMovingMask(_sitk_image(moving, _seen(moving.array).astype(np.uint8)))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        2.0, 1e-3, _COARSE_ITERATIONS if is_coarse else _ITERATIONS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([0.5 * factor * width for factor in shrink])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(_sitk_transform(start, fixed), inPlace=True)
    try:
        found = method.Execute(_sitk_image(fixed, fixed.array), _sitk_image(moving, moving.array))
    except RuntimeError:
        return start
    return _ras_motion(found)


def _sitk_image(volume: Volume, array: np.ndarray) -> sitk.Image:
    is_mask = array.dtype == np.uint8 and array is not volume.array
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0).astype(np.uint8 if is_mask else np.float32))
    affine = _LPS_TO_RAS @ volume.geometry.affine
    image.SetSpacing(volume.spacing)
    image.SetDirection((affine[:3, :3] / volume.spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _sitk_transform(motion: np.ndarray, fixed: Volume) -> sitk.Euler3DTransform:
    """Turns a motion of the moving volume (RAS+) into SimpleITK's map of fixed points to moving points (LPS)."""
    inverse = _LPS_TO_RAS @ np.linalg.inv(motion) @ _LPS_TO_RAS
    centre = (_LPS_TO_RAS @ [*fixed.geometry.world(np.argwhere(fixed.array != 0).mean(axis=0)), 1.0])[:3]
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(inverse[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((inverse[:3, :3] @ centre + inverse[:3, 3] - centre).tolist())
    return transform


def _ras_motion(found: sitk.Transform) -> np.ndarray:
    """Reads SimpleITK's map off four points and returns the motion of the moving volume (RAS+)."""
    corner = np.array(found.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = corner
    matrix[:3, :3] = np.stack([np.array(found.TransformPoint(tuple(e))) - corner for e in np.eye(3)], axis=1)
    return np.linalg.inv(_LPS_TO_RAS @ matrix @ _LPS_TO_RAS)
