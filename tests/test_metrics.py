"""Judges: arithmetic in comments, closed forms, a naive loop over all pairs, SciPy's distance transform, relations."""

import math

import numpy as np
import pytest
from scipy import ndimage

from tfmuscle import metrics
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import METRICS, measure, slice_axis, surface_distances
from tfmuscle.volume import Geometry, Volume

SPACING = (0.7, 1.3, 2.5)
OVERLAPS = ("dice", "iou", "dice_2d_mean", "precision", "recall")
SURFACES = (metrics.hausdorff, metrics.hausdorff_95, metrics.assd, metrics.mean_surface_distance, metrics.surface_dice)
VOLUMES = (
    metrics.volume_difference_percent,
    metrics.volume_difference_absolute_percent,
    metrics.volume_error_ml,
    metrics.volume_error_percent,
)


def blobs(seed, shape=(9, 8, 7)):
    generator = np.random.default_rng(seed)
    return tuple(ndimage.gaussian_filter(generator.normal(size=shape), 1.2) > 0.05 for _ in range(2))


def ball(shape, spacing, centre, radius):
    steps = np.indices(shape) * np.reshape(spacing, (3, 1, 1, 1))
    return ((steps - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0) <= radius**2


class TestOverlap:
    def test_hand_arithmetic(self):
        # S has 4 voxels, G has 3, 2 are common: TP 2, FP 2, FN 1.
        prediction = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
        reference = np.array([0, 0, 1, 1, 1, 0], dtype=bool)
        assert metrics.dice(prediction, reference) == pytest.approx(4 / 7)
        assert metrics.iou(prediction, reference) == pytest.approx(2 / 5)
        assert metrics.precision(prediction, reference) == pytest.approx(2 / 4)
        assert metrics.recall(prediction, reference) == pytest.approx(2 / 3)
        # IoU of the background: TP 1 (the last voxel), FP 1 (the fifth), FN 2 -> 1/4; the mean with 2/5 is 0.325.
        assert metrics.miou_fgbg(prediction, reference) == pytest.approx(0.325)

    @pytest.mark.parametrize("seed", range(5))
    def test_dice_follows_from_iou(self, seed):
        prediction, reference = blobs(seed)
        iou = metrics.iou(prediction, reference)
        assert 0 < iou < 1
        assert metrics.dice(prediction, reference) == pytest.approx(2 * iou / (1 + iou))

    def test_dice_and_iou_are_symmetric_and_precision_is_recall_the_other_way_round(self):
        prediction, reference = blobs(1)
        assert metrics.dice(prediction, reference) == metrics.dice(reference, prediction)
        assert metrics.iou(prediction, reference) == metrics.iou(reference, prediction)
        assert metrics.precision(prediction, reference) == metrics.recall(reference, prediction)

    def test_2d_dice_is_the_mean_over_slices_and_3d_dice_pools(self):
        # A large slice, 8 of 8 right (Dice 1); a small one, 1 of 2 + 1 of 2 (Dice 1/2); one where neither has a voxel.
        prediction, reference = np.zeros((2, 3, 8), dtype=bool)
        prediction[0], reference[0] = True, True
        prediction[1, :2], reference[1, 1:3] = True, True
        assert metrics.dice_2d_mean(prediction, reference) == pytest.approx((1 + 0.5) / 2)
        assert metrics.dice(prediction, reference) == pytest.approx(2 * 9 / (10 + 10))
        assert metrics.dice_2d_mean(prediction.T, reference.T, axis=1) == pytest.approx(0.75)

    def test_2d_dice_counts_a_slice_that_only_the_prediction_fills(self):
        prediction, reference = np.zeros((2, 2, 4), dtype=bool)
        prediction[:], reference[0] = True, True
        assert metrics.dice_2d_mean(prediction, reference) == pytest.approx((1 + 0) / 2)

    def test_masked_voxels_do_not_count(self):
        prediction = np.array([1, 1, 0, 1], dtype=bool)
        reference = np.array([1, 0, 0, 0], dtype=bool)
        mask = np.array([1, 0, 1, 0], dtype=bool)  # both errors are masked
        for name in OVERLAPS:
            value = METRICS[name].function(prediction[None], reference[None], mask=mask[None])
            assert value == 1.0, name
        assert metrics.miou_fgbg(prediction, reference, mask=mask) == 1.0


class TestEmpty:
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)

    @pytest.mark.parametrize(
        ("name", "both", "no_prediction", "no_reference"),
        [
            ("dice", 1.0, 0.0, 0.0),
            ("dice_2d_mean", 1.0, 0.0, 0.0),
            ("iou", 1.0, 0.0, 0.0),
            ("precision", math.nan, math.nan, 0.0),
            ("recall", math.nan, 0.0, math.nan),
        ],
    )
    def test_overlap(self, name, both, no_prediction, no_reference):
        function = METRICS[name].function
        assert function(self.empty, self.empty) == pytest.approx(both, nan_ok=True)
        assert function(self.empty, self.full) == pytest.approx(no_prediction, nan_ok=True)
        assert function(self.full, self.empty) == pytest.approx(no_reference, nan_ok=True)
        assert function(self.full, self.full) == 1.0

    def test_no_voxel_at_all_has_no_mean_iou(self):
        nothing = np.zeros((2, 2), dtype=bool)
        assert math.isnan(metrics.miou_fgbg(nothing, nothing, mask=nothing))
        assert metrics.miou_fgbg(nothing, nothing) == 1.0  # background alone, all of it right

    @pytest.mark.parametrize("function", SURFACES)
    def test_surface_figures_are_undefined_when_one_is_empty(self, function):
        for prediction, reference in ((self.empty, self.empty), (self.empty, self.full), (self.full, self.empty)):
            distances = surface_distances(prediction, reference, spacing=SPACING)
            assert not distances.defined
            assert math.isnan(function(distances))
        assert not math.isnan(function(surface_distances(self.full, self.full, spacing=SPACING)))

    def test_volumes(self):
        spacing = (10.0, 10.0, 10.0)  # one voxel is 1 ml, the full mask 64 ml
        both, nothing, surplus = ((self.empty, self.empty), (self.empty, self.full), (self.full, self.empty))
        assert metrics.volume_error_ml(*both, spacing=spacing) == 0
        assert metrics.volume_error_ml(*nothing, spacing=spacing) == pytest.approx(64)
        assert metrics.volume_difference_percent(*nothing, spacing=spacing) == -100
        assert metrics.volume_difference_absolute_percent(*nothing, spacing=spacing) == 100
        assert metrics.volume_error_percent(*nothing, spacing=spacing) == 200  # the bound
        assert metrics.volume_error_percent(*surplus, spacing=spacing) == 200
        for function, pair in (
            (metrics.volume_difference_percent, surplus),
            (metrics.volume_difference_absolute_percent, surplus),
            (metrics.volume_difference_percent, both),
            (metrics.volume_error_percent, both),
        ):
            assert math.isnan(function(*pair, spacing=spacing))


class TestVolume:
    def test_hand_arithmetic(self):
        # 24 against 20 voxels of 50 mm³: 1.2 and 1.0 ml.
        prediction, reference = np.zeros((2, 30), dtype=bool)
        prediction[:24], reference[:20] = True, True
        assert metrics.volume_ml(prediction, spacing=(50.0,)) == pytest.approx(1.2)
        assert metrics.volume_difference_percent(prediction, reference, spacing=(50.0,)) == pytest.approx(20)
        assert metrics.volume_difference_percent(reference, prediction, spacing=(50.0,)) == pytest.approx(-100 / 6)
        assert metrics.volume_difference_absolute_percent(reference, prediction, spacing=(50.0,)) == pytest.approx(
            100 / 6
        )
        assert metrics.volume_error_ml(prediction, reference, spacing=(50.0,)) == pytest.approx(0.2)
        assert metrics.volume_error_percent(prediction, reference, spacing=(50.0,)) == pytest.approx(100 * 0.2 / 1.1)
        mask = np.arange(30) < 10
        assert metrics.volume_error_ml(prediction, reference, spacing=(50.0,), mask=mask) == 0
        assert metrics.volume_ml(prediction, spacing=(50.0,), mask=mask) == pytest.approx(0.5)

    def test_sphere(self):
        # 4/3·pi·20³ mm³ = 33.51 ml; counting voxel centres at 1 mm is exact to well under 1 %.
        sphere = ball((45, 45, 30), (1.0, 1.0, 1.5), (22.3, 22.1, 21.9), 20.0)
        assert metrics.volume_ml(sphere, spacing=(1.0, 1.0, 1.5)) == pytest.approx(4 / 3 * math.pi * 8, rel=0.005)

    def test_spheres_in_spheres(self):
        # Concentric spheres of 14 and 20 mm: every distance is 6 mm to within a voxel's diagonal.
        small, large = (ball((45, 45, 45), (1.0,) * 3, (22.0,) * 3, radius) for radius in (14.0, 20.0))
        distances = surface_distances(small, large, spacing=(1.0, 1.0, 1.0))
        assert metrics.assd(distances) == pytest.approx(6.0, abs=0.5)
        assert metrics.hausdorff(distances) == pytest.approx(6.0, abs=math.sqrt(3))

    def test_volume_error_is_unchanged_by_block_subsampling(self):
        generator = np.random.default_rng(0)
        coarse = generator.random((2, 4, 6, 6)) > np.reshape([0.4, 0.6], (2, 1, 1, 1))
        fine = coarse.repeat(2, axis=2).repeat(2, axis=3)  # exact 2x2 blocks in-plane, then one voxel of each is kept
        for function in VOLUMES:
            before = function(*fine, spacing=(3.0, 0.5, 0.5))
            after = function(*fine[..., ::2, ::2], spacing=(3.0, 1.0, 1.0))
            assert after == pytest.approx(before)
            assert before != 0


class TestMeasure:
    label_map = LabelMap({1: "femur", 7: "tibia", 300: "fibula"}, ignore=255)

    @staticmethod
    def volume(array, spacing=SPACING):
        return Volume(array, Geometry(array.shape, np.diag([*spacing, 1.0])))

    def scene(self):
        prediction, reference = np.zeros((2, 10, 9, 8), dtype=np.uint16)
        prediction[1:5, 1:5, 1:5], reference[2:6, 1:5, 1:5] = 1, 1
        prediction[7:9, 7:9, 6:8] = 7
        return prediction, reference

    def test_rows_equal_the_metrics_of_each_mask(self):
        prediction, reference = self.scene()
        rows = measure(self.volume(prediction), self.volume(reference), self.label_map)
        assert [row["structure"] for row in rows] == ["femur", "tibia", "fibula"]
        for key, row in zip((1, 7, 300), rows, strict=True):
            found, true = prediction == key, reference == key
            distances = surface_distances(found, true, spacing=SPACING)
            for name, metric in METRICS.items():
                given = {"volume": {"spacing": SPACING}, "slices": {"axis": 2}}.get(metric.family, {})
                whole = (
                    metric.function(distances) if metric.family == "surface" else metric.function(found, true, **given)
                )
                assert row[name] == pytest.approx(whole, nan_ok=True), (key, name)
            assert row["prediction_ml"] == pytest.approx(found.sum() * np.prod(SPACING) / 1000)

    def test_notes_say_what_is_empty(self):
        prediction, reference = self.scene()
        rows = measure(self.volume(prediction), self.volume(reference), self.label_map)
        assert [row["note"] for row in rows] == ["", "reference empty", "both empty"]
        assert measure(self.volume(reference), self.volume(prediction), self.label_map)[1]["note"] == "prediction empty"

    def test_ignored_voxels_of_the_reference_count_for_nothing(self):
        prediction, reference = self.scene()
        reference[7:, 7:, 6:] = 255  # hides the false tibia
        reference[1] = 255  # and the slice of the femur that the prediction has too much
        rows = measure(self.volume(prediction), self.volume(reference), self.label_map)
        assert rows[1]["note"] == "both empty"
        assert rows[0]["prediction_ml"] == pytest.approx(3 * 16 * np.prod(SPACING) / 1000)
        assert rows[0]["dice"] == pytest.approx(2 * 48 / (48 + 64))  # 3 against 4 slices of 16
        assert rows[0]["precision"] == 1.0

    def test_tolerance(self):
        prediction, reference = self.scene()
        near = measure(self.volume(prediction), self.volume(reference), self.label_map, tolerance_mm=0.7)[0]
        exact = measure(self.volume(prediction), self.volume(reference), self.label_map, tolerance_mm=0.0)[0]
        assert near["surface_dice"] == 1.0 > exact["surface_dice"]

    def test_another_grid_is_refused(self):
        prediction, reference = self.scene()
        with pytest.raises(
            ValueError, match=r"grid \(10, 9, 8\) is not the reference's \(10, 9, 8\), or lies elsewhere"
        ):
            measure(self.volume(prediction, (1.0, 1.0, 1.0)), self.volume(reference), self.label_map)

    @pytest.mark.parametrize(
        ("shape", "diagonal", "axis"),
        [
            ((10, 10, 10), (1, 1, 1), 2),  # isotropic RAS: foot to head
            ((10, 1, 10), (1, 1, 1), 1),  # a single slice
            ((10, 10, 10), (5, 1, 1), 0),  # thick sagittal slices
            ((10, 10, 10), (1.2, 1, 1), 2),  # nearly isotropic
            ((1, 1, 10), (1, 1, 1), 2),
        ],
    )
    def test_slice_axis(self, shape, diagonal, axis):
        assert slice_axis(Geometry(shape, np.diag([*diagonal, 1.0]))) == axis

    def test_slice_axis_follows_the_orientation(self):
        swapped = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # axis 0 runs along z
        assert slice_axis(Geometry((5, 5, 5), swapped)) == 0


class TestRefusals:
    good = np.ones((2, 2), dtype=bool)

    def test_masks_must_be_bool(self):
        with pytest.raises(ValueError, match="prediction has the type int64; a bool mask is needed"):
            metrics.dice(self.good.astype(np.int64), self.good)
        with pytest.raises(ValueError, match="mask has the type uint8"):
            metrics.iou(self.good, self.good, mask=self.good.astype(np.uint8))
        with pytest.raises(ValueError, match="reference has the type float32"):
            surface_distances(self.good, self.good.astype(np.float32), spacing=(1.0, 1.0))

    def test_masks_must_have_one_shape(self):
        with pytest.raises(ValueError, match=r"prediction has the shape \(1, 2\), the reference \(2, 2\)"):
            metrics.dice(self.good[:1], self.good)

    def test_spacing_is_required_and_fits(self):
        with pytest.raises(TypeError, match="spacing"):
            metrics.volume_ml(self.good)
        with pytest.raises(TypeError, match="spacing"):
            surface_distances(self.good, self.good)
        for spacing in ((1.0,), (1.0, 0.0), (1.0, math.nan), (1.0, 1.0, 1.0)):
            with pytest.raises(ValueError, match="does not fit 2 axes"):
                surface_distances(self.good, self.good, spacing=spacing)
            with pytest.raises(ValueError, match="does not fit 2 axes"):
                metrics.volume_ml(self.good, spacing=spacing)

    def test_negative_tolerance(self):
        distances = surface_distances(self.good, self.good, spacing=(1.0, 1.0))
        with pytest.raises(ValueError, match="tolerance_mm is -1"):
            metrics.surface_dice(distances, tolerance_mm=-1)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_described_and_knows_a_perfect_result(name):
    metric = METRICS[name]
    mask = ball((9, 9, 9), (1.0,) * 3, (4.0,) * 3, 3.2)
    perfect = {"higher": 1.0, "lower": 0.0, "zero": 0.0}[metric.better]
    given = {"volume": {"spacing": SPACING}}.get(metric.family, {})
    distances = surface_distances(mask, mask, spacing=SPACING)
    value = metric.function(distances) if metric.family == "surface" else metric.function(mask, mask, **given)
    assert value == perfect
    assert metric.description
    assert metric.unit in ("", "mm", "ml", "%")
