"""Surfaces and the distances between them: arithmetic, a loop over all pairs, SciPy, relations."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tfmuscle import metrics
from tfmuscle.metrics import SurfaceDistances, surface, surface_distances

SPACING = (0.7, 1.3, 2.5)
SURFACES = (metrics.hausdorff, metrics.hausdorff_95, metrics.assd, metrics.mean_surface_distance, metrics.surface_dice)


def blobs(seed, shape=(9, 8, 7)):
    generator = np.random.default_rng(seed)
    return tuple(ndimage.gaussian_filter(generator.normal(size=shape), 1.2) > 0.05 for _ in range(2))


def naive_surface(mask):
    points = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = index.copy()
                other[axis] += step
                outside = not 0 <= other[axis] < mask.shape[axis]
                if outside or not mask[tuple(other)]:
                    points.append(tuple(index))
    return sorted(set(points))


def cube_and_shifted(axis):
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[3:8, 3:8, 3:8] = True
    return np.roll(reference, 1, axis), reference


class TestSurface:
    @pytest.mark.parametrize("shape", [(9, 8, 7), (11, 6), (3, 3, 9)])
    def test_is_the_mask_minus_its_erosion(self, shape):
        mask, _ = blobs(3, shape)
        assert sorted(map(tuple, surface(mask))) == naive_surface(mask)

    def test_a_single_slice_has_an_outline(self):
        # A square of 5x5 has 16 voxels around 9; as a 3D mask all 25 touch the background above and below.
        mask = np.zeros((9, 9, 1), dtype=bool)
        mask[2:7, 2:7] = True
        assert len(surface(mask)) == 16
        assert len(surface(np.repeat(mask, 3, axis=2))) == 16 + 2 * 25

    def test_one_voxel_is_its_own_surface(self):
        assert surface(np.ones((1, 1, 1), dtype=bool)).tolist() == [[0, 0, 0]]

    def test_the_border_of_the_unlabelled_region_is_no_surface(self):
        # A bar fills rows 2..4 of all 12 columns; only columns 4..7 were labelled. Known surface: rows 2 and 4 there.
        bar = np.zeros((7, 12), dtype=bool)
        bar[2:5] = True
        mask = np.zeros_like(bar)
        mask[:, 4:8] = True
        assert sorted(map(tuple, surface(bar, mask=mask))) == [
            (row, column) for row in (2, 4) for column in range(4, 8)
        ]

    def test_masked_error_has_no_distance(self):
        prediction, reference = np.zeros((2, 10, 10), dtype=bool)
        prediction[2:5, 2:5], reference[2:5, 2:5] = True, True
        prediction[8, 8] = True
        mask = np.ones_like(reference)
        mask[8, 8] = False
        far = metrics.hausdorff(surface_distances(prediction, reference, spacing=(1.0, 1.0)))
        assert far == pytest.approx(math.hypot(4, 4))  # from (8, 8) to (4, 4)
        assert metrics.hausdorff(surface_distances(prediction, reference, spacing=(1.0, 1.0), mask=mask)) == 0


class TestDistances:
    def test_two_voxels(self):
        # Two voxels apart along an axis of spacing 3 mm are 6 mm apart; the diagonal of 3, 4 and 12 mm is 13 mm.
        prediction, reference = np.zeros((2, 3, 3, 3), dtype=bool)
        prediction[0, 0, 0], reference[0, 0, 2] = True, True
        distances = surface_distances(prediction, reference, spacing=(1.0, 1.0, 3.0))
        for function in (metrics.hausdorff, metrics.hausdorff_95, metrics.assd, metrics.mean_surface_distance):
            assert function(distances) == 6.0
        reference[:] = False
        reference[1, 1, 1] = True
        assert metrics.hausdorff(surface_distances(prediction, reference, spacing=(3.0, 4.0, 12.0))) == 13.0

    @pytest.mark.parametrize("axis", range(3))
    def test_cube_shifted_by_one_voxel(self, axis):
        # Hausdorff distance: the spacing of that axis. Dice of 5x5x5: 4/5.
        prediction, reference = cube_and_shifted(axis)
        distances = surface_distances(prediction, reference, spacing=SPACING)
        assert metrics.hausdorff(distances) == pytest.approx(SPACING[axis])
        assert metrics.dice(prediction, reference) == pytest.approx(4 / 5)

    def test_mean_distance_by_hand(self):
        # On a line: S = {0}, G = {0, 3, 5}, spacing 2 mm. S->G: 0. G->S: 0, 6, 10. All are single voxels.
        prediction, reference = np.zeros((2, 7), dtype=bool)
        prediction[0], reference[[0, 3, 5]] = True, True
        distances = surface_distances(prediction, reference, spacing=(2.0,))
        assert metrics.mean_surface_distance(distances) == 0
        assert metrics.assd(distances) == pytest.approx((0 + 16 / 3) / 2)
        assert metrics.hausdorff(distances) == 10
        assert metrics.surface_dice(distances, tolerance_mm=6.0) == pytest.approx((1 + 2) / 4)
        assert metrics.surface_dice(distances, tolerance_mm=5.9) == pytest.approx((1 + 1) / 4)

    def test_hausdorff_95_is_the_larger_of_two_percentiles(self):
        # 0..100: the 95th percentile is 95 (a percentile of the joined distances would be lower).
        distances = SurfaceDistances(np.zeros(1000), np.arange(101.0))
        assert metrics.hausdorff_95(distances) == pytest.approx(95)
        assert metrics.hausdorff(distances) == 100

    @pytest.mark.parametrize("seed", range(3))
    def test_equal_a_naive_loop_over_all_pairs(self, seed):
        prediction, reference = blobs(seed)
        distances = surface_distances(prediction, reference, spacing=SPACING)
        first = np.array(naive_surface(prediction)) * SPACING
        second = np.array(naive_surface(reference)) * SPACING
        forward = sorted(min(math.dist(p, q) for q in second) for p in first)
        backward = sorted(min(math.dist(p, q) for q in first) for p in second)
        assert np.sort(distances.prediction_to_reference) == pytest.approx(forward, abs=1e-9)
        assert np.sort(distances.reference_to_prediction) == pytest.approx(backward, abs=1e-9)
        assert max(forward) > 0

    @pytest.mark.parametrize("seed", range(3))
    def test_equal_scipys_distance_transform(self, seed):
        prediction, reference = blobs(seed, (30, 20, 25))
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
        expected = ndimage.distance_transform_edt(~edges[1], sampling=SPACING)[edges[0]]
        distances = surface_distances(prediction, reference, spacing=SPACING)
        assert np.sort(distances.prediction_to_reference) == pytest.approx(np.sort(expected), abs=1e-9)

    def test_scale_with_the_spacing_and_overlap_does_not(self):
        prediction, reference = blobs(4)
        once = surface_distances(prediction, reference, spacing=SPACING)
        twice = surface_distances(prediction, reference, spacing=tuple(2 * step for step in SPACING))
        for function in SURFACES[:4]:
            assert function(twice) == pytest.approx(2 * function(once))
            assert function(once) > 0
        assert metrics.surface_dice(twice, tolerance_mm=2.0) == metrics.surface_dice(once, tolerance_mm=1.0)

    def test_symmetry(self):
        prediction, reference = blobs(5)
        there = surface_distances(prediction, reference, spacing=SPACING)
        back = surface_distances(reference, prediction, spacing=SPACING)
        for function in (metrics.hausdorff, metrics.hausdorff_95, metrics.assd, metrics.surface_dice):
            assert function(there) == pytest.approx(function(back))
        assert metrics.mean_surface_distance(there) != metrics.mean_surface_distance(back)  # directed

    def test_surface_dice_of_a_shift(self):
        prediction, reference = cube_and_shifted(2)
        distances = surface_distances(prediction, reference, spacing=(1.0, 1.0, 1.8))
        assert metrics.surface_dice(distances, tolerance_mm=1.8) == 1.0
        assert metrics.surface_dice(distances, tolerance_mm=0.0) < 1.0
