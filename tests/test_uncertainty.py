"""What uncertainty is made of: temperature, agreement, curves and rows, judged by hand arithmetic, closed forms, draws
from known distributions and nibabel."""

import json
import math
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import scipy.special
from known_networks import scan_grid

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume
from tfmuscle.io.nifti import write_shares
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import dice
from tfmuscle.uncertainty import (
    Calibration,
    Curve,
    PairwiseDice,
    Scan,
    calibrate,
    calibration_error,
    fit_curve,
    fit_temperature,
    with_temperature,
)
from tfmuscle.uncertainty.calibration import ALL
from tfmuscle.uncertainty.structures import rows_of, scores_of
from tfmuscle.volume import Volume

LEG = LabelMap({3: "soleus", 8: "tibia"}, ignore=255)
LINE = Curve((0.0, 0.5, 1.0), (0.0, 0.6, 0.9), -0.5, 0.25, 0.7, 40)


def drawn(count=20_000, seed=0):
    """Logits, and classes drawn from exactly their probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, 3))
    shares = scipy.special.softmax(logits, axis=1)
    return logits, (generator.random((count, 1)) > shares.cumsum(axis=1)).sum(axis=1)


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_of_a_made_up_model_is_recovered(true):
    # A model whose logits are `true` times those its classes were drawn by needs just this temperature. With 20,000
    # draws the estimate has a standard error of about 1.3 % (a binary margin of this spread: 1 / sqrt(0.3 N)).
    logits, classes = drawn()
    said = scipy.special.softmax(true * logits, axis=1)
    assert fit_temperature(said, classes) == pytest.approx(true, rel=0.05)
    honest = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(with_temperature(said, true), honest, atol=2e-3)  # what is below 1e-12 is cut
    right = said.argmax(axis=1) == classes
    before = calibration_error(said.max(axis=1), right)
    after = calibration_error(with_temperature(said, true).max(axis=1), right)
    assert after < 0.015 and (true == 1 or before > 0.05)


def test_a_temperature_keeps_order_and_sum():
    said = np.random.default_rng(1).dirichlet([0.3, 0.3, 0.3, 0.3], 500)
    for temperature in (0.3, 1.0, 4.0):
        found = with_temperature(said, temperature)
        np.testing.assert_array_equal(found.argmax(axis=-1), said.argmax(axis=-1))
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    # sqrt(0.8) : sqrt(0.2) = 2 : 1
    np.testing.assert_allclose(with_temperature(np.array([0.8, 0.2]), 2), [2 / 3, 1 / 3])


def test_what_cannot_be_learnt_from_is_said():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1
    with pytest.raises(ValueError, match=r"shape \(4, 3\) and classes \(5,\); \(N, C\) and \(N,\) are needed"):
        fit_temperature(np.ones((4, 3)), np.zeros(5, int))
    with pytest.raises(ValueError, match="a temperature is a positive number, not 0"):
        with_temperature(np.ones((1, 2)), 0)


def test_the_calibration_error_by_hand():
    # Two bins: 0.35 (one of two right: 0.15 apart), 0.85 (all right: 0.15 apart); half of the voxels in each.
    assert calibration_error(np.array([0.35, 0.35, 0.85, 0.85]), np.array([True, False, True, True])) == pytest.approx(
        0.15
    )
    assert calibration_error(np.array([1.0]), np.array([True])) == 0
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))


# --- agreement --------------------------------------------------------------------------------------------------------


def test_agreement_is_the_mean_dice_of_pairs():
    generator = np.random.default_rng(2)
    said = [generator.integers(0, 3, (5, 6, 7)) for _ in range(3)]
    pairs = PairwiseDice(4)
    pairs.add(said)
    for key in (1, 2):
        judge = np.mean([dice(said[a] == key, said[b] == key) for a, b in ((0, 1), (0, 2), (1, 2))])
        assert pairs.mean()[key] == pytest.approx(judge)
    assert math.isnan(pairs.mean()[0]) and math.isnan(pairs.mean()[3])  # background, and what nobody found
    parts = PairwiseDice(4)
    for slab in range(5):
        parts.add([one[slab] for one in said])
    np.testing.assert_allclose(parts.mean(), pairs.mean())


def test_weights_count_voxels_as_often_as_they_say():
    # Member one: voxels 0, 1; member two: voxels 1, 2; they share voxel 1. With weights 1, 2, 3: 2 * 2 / (3 + 5).
    pairs = PairwiseDice(2)
    pairs.add([np.array([1, 1, 0]), np.array([0, 1, 1])], np.array([1.0, 2.0, 3.0]))
    assert pairs.mean()[1] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="3 members answered; 2 are needed"):
        pairs.add([np.zeros(3, int)] * 3)
    with pytest.raises(ValueError, match="1 members answered; 2 are needed"):
        PairwiseDice(2).add([np.zeros(3, int)])
    with pytest.raises(ValueError, match=r"shapes \[\(3,\), \(4,\)\]; one shape is needed"):
        PairwiseDice(2).add([np.zeros(3, int), np.zeros(4, int)])


def test_a_structure_that_one_member_alone_finds_has_no_agreement():
    pairs = PairwiseDice(2)
    pairs.add([np.array([1, 0]), np.array([0, 0]), np.array([0, 0])])
    # Two of three pairs have it, and share nothing; the third has nothing to agree about.
    assert pairs.mean()[1] == 0


# --- curves -----------------------------------------------------------------------------------------------------------


def points(count, seed=3):
    """Scores, Dice values around 0.2 + 0.7 score with a spread that falls towards 1, and persons."""
    generator = np.random.default_rng(seed)
    scores = generator.uniform(0.3, 1, count)
    dices = 0.2 + 0.7 * scores
    dices += generator.normal(0, 0.2, count) * (1 - dices)
    return scores, np.clip(dices, 0, 1), [f"p{number}" for number in range(count)]


@pytest.mark.parametrize("count", [25, 49, 50, 300])
def test_a_curve_rises(count):
    curve = fit_curve(*points(count))
    scores = np.linspace(0, 1, 201)
    found = np.array([curve.expected(score) for score in scores])
    assert curve.count == count and (np.diff(found) >= 0).all() and found[0] == 0 and found[-1] <= 1
    middle = scores[(scores > 0.4) & (scores < 0.95)]
    apart = [abs(curve.expected(score) - 0.2 - 0.7 * score) for score in middle]
    assert np.mean(apart) < (0.05 if count < 300 else 0.03)
    for score in scores:
        low, high = curve.interval(score)
        assert 0 <= low <= curve.expected(score) <= high <= 1


def test_isotonic_means_by_hand():
    # 50 scores; the last two fall (0.9, then 0.7), so they become one step at their mean, 0.8 at the score 0.975.
    scores = np.concatenate([np.linspace(0.02, 0.9, 48), [0.95, 1.0]])
    dices = np.concatenate([np.linspace(0.02, 0.6, 48), [0.9, 0.7]])
    curve = fit_curve(scores, dices, [str(n) for n in range(50)])
    assert curve.scores[-1] == pytest.approx(0.975) and curve.dices[-1] == pytest.approx(0.8)
    assert curve.expected(1.0) == pytest.approx(0.8) and curve.expected(0.01) == pytest.approx(0.01)


def test_perfect_members_are_expected_to_be_perfect():
    scores = np.linspace(0.5, 1, 60)
    curve = fit_curve(scores, scores, [str(n) for n in range(60)])
    assert curve.expected(1.0) == pytest.approx(1) and curve.interval(1.0)[1] == pytest.approx(1)
    assert curve.expected(0.25) == pytest.approx(0.25)  # below all that was seen: on the way to nothing
    same = fit_curve([0.9] * 20, [0.8] * 20, [str(n) for n in range(20)])  # no spread: no slope can be learnt
    assert same.expected(0.95) == pytest.approx(0.8)


@pytest.mark.parametrize("count", [40, 400])
def test_nine_in_ten_fresh_scans_lie_in_the_interval(count):
    # Of 40 curves each, so that the luck of one does not decide; split-conformal intervals hold 0.9 on average, a
    # little more for few points, as order statistics are whole numbers.
    fresh, true, _ = points(2000, seed=99)
    held = []
    for seed in range(40):
        curve = fit_curve(*points(count, seed=seed))
        ends = np.array([curve.interval(score) for score in fresh[seed::40]])
        held.append(np.mean((ends[:, 0] <= true[seed::40]) & (true[seed::40] <= ends[:, 1])))
    assert 0.86 < np.mean(held) < 0.97


def test_the_flag_names_the_lowest_tenth_of_the_scans_it_was_learnt_from():
    scores, dices, persons = points(200)
    curve = fit_curve(scores, dices, persons)
    assert sum(curve.is_low(score) for score in scores) == 20


def test_members_that_always_agree_less_are_not_flagged_for_that():
    # Two pairs of members, one of which agrees 0.3 less on every scan: the flag names the lowest tenth of both, by
    # scores about 0.15 above and below. Without groups it would name scans of the second pair alone.
    scores, dices, persons = points(200)
    pairs = ["one", "other"] * 100
    shifted = scores - 0.3 * np.array([pair == "other" for pair in pairs])
    level = fit_curve(shifted, dices, persons, pairs).level
    middle = np.array([scores[0::2].mean(), scores[1::2].mean()])
    judge = np.sort(np.concatenate([scores[0::2] - middle[0], scores[1::2] - middle[1]]))[20] + shifted.mean()
    assert level == pytest.approx(judge) and level > fit_curve(shifted, dices, persons).level + 0.05
    alone = fit_curve(shifted, dices, persons, persons)  # one scan each tells nothing of a group
    assert alone.level == pytest.approx(fit_curve(shifted, dices, persons).level)


def test_too_few_points_promise_nothing():
    scores, dices, persons = points(20)
    assert fit_curve(scores[:19], dices[:19], persons[:19]) is None and fit_curve(scores, dices, persons) is not None
    assert fit_curve(scores, dices, ["one person"] * 20) is None
    with pytest.raises(ValueError, match="20 scores, 19 Dice values and 20 persons; one each is needed"):
        fit_curve(scores, dices[:19], persons)


# --- calibration ------------------------------------------------------------------------------------------------------


def scans(count, structures=("soleus", "tibia"), seed=4):
    """Scans whose agreement tells their Dice, by networks that are too sure by a temperature of 2."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        logits, classes = drawn(200, seed=number)
        scores = {name: float(generator.uniform(0.4, 1)) for name in structures}
        said = scipy.special.softmax(2 * logits, axis=1)
        dices = {name: 0.95 * score for name, score in scores.items()}
        found.append(Scan(f"s{number}", ("a", "b"), said, classes, scores, dices))
    return found


def test_calibration_travels_through_its_file(tmp_path):
    made = calibrate(scans(60), LEG, ["a", "b", "c"], mirror=True)
    assert made.temperature == pytest.approx(2, rel=0.07) and made.ece[1] < made.ece[0] / 2
    made.save(tmp_path / "uncertainty.json")
    read = Calibration.load(tmp_path / "uncertainty.json")
    assert read == made and read.scans[:2] == ("s0", "s1") and set(read.curves) == {"soleus", "tibia", ALL}
    judged = read.judge("soleus", 0.8)
    assert judged.expected == pytest.approx(0.76, abs=0.01) and judged.low <= 0.76 <= judged.high
    assert judged.learnt_from == "60 scans" and not judged.flagged and read.judge("soleus", 0.41).flagged
    assert read.judge("soleus", math.nan).expected is None and read.judge("soleus", math.nan).learnt_from == "not found"
    (warning,) = read.warnings
    assert warning.startswith("calibrated with 2 of 3 networks a scan")


def test_few_scans_give_the_bare_agreement_and_say_so():
    few = calibrate(scans(9), LEG, ["a", "b"], mirror=True)
    assert few.curves == {} and few.judge("soleus", 0.4).expected is None and not few.judge("soleus", 0.4).flagged
    assert few.judge("soleus", 0.4).learnt_from == "too few labelled scans"
    assert "with 9 scans; 20 that show a structure are needed to promise a Dice: of soleus, tibia" in few.warnings[0]
    some = calibrate(scans(12), LEG, ["a", "b"], mirror=True)  # 24 points of 12 persons: all structures together
    assert set(some.curves) == {ALL} and some.judge("tibia", 0.8).learnt_from == f"24 points of {ALL}"
    assert some.warnings == ()
    with pytest.raises(ValueError, match="no labelled scan to learn from; one at least is needed"):
        calibrate([], LEG, ["a"], mirror=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made_by": "another"}, "is of something else; make it anew with 'tfmuscle calibrate'"),
        ({"temperature": None}, "is damaged .*; make it anew"),
        ({"temperature": -1}, "temperature is -1.0; a positive number is needed"),
        ({"curves": {"soleus": [1]}}, "a curve needs scores, dices, low, high, level, count"),
        (
            {"curves": {"soleus": LINE.to_dict() | {"dices": [0.9, 0.6, 0.7]}}},
            "as many Dice values as scores, both ris",
        ),
        ({"curves": {"soleus": LINE.to_dict() | {"low": None}}}, "a curve is made of numbers"),
        ({"curves": 3}, "is damaged"),
        ({"scans": ...}, "lacks scans; make it anew"),
    ],
)
def test_a_damaged_calibration_is_named(change, message, tmp_path):
    path = tmp_path / "uncertainty.json"
    Calibration(("a",), True, LEG.to_dict(), curves={"soleus": LINE}).save(path)
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(DataError, match=f"uncertainty.json: {message}" if "damaged" in message else message):
        Calibration.load(path)


# --- rows and maps ----------------------------------------------------------------------------------------------------


def test_rows_say_what_to_expect_and_where_to_look():
    grid = scan_grid((10, 12, 9), orientation="LPS", oblique=True)
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 2:5, 1:8], labels[7:9, 8:10, 2:4] = 3, 8
    error = np.full(grid.shape, 0.1, np.float32)
    error[2:5, 2:5, 6] = 0.9  # inside the soleus
    error[2:5, 6, 3] = 0.6  # background beside it: a part that may be missing
    error[9, 11, 8] = 1  # far from both
    scores = scores_of(np.array([np.nan, 0.8, np.nan]), labels, LEG)
    assert scores == {"soleus": pytest.approx(0.8), "tibia": 0.0}
    calibration = Calibration(("a",), True, LEG.to_dict(), curves={"soleus": LINE})
    soleus, tibia = rows_of(Volume(labels, grid), error, scores, calibration, slice_axis=2)
    # On the line from (0.5, 0.6) to (1, 0.9): 0.78; ends 0.78 - 0.5 * 0.24 and 0.78 + 0.25 * 0.24.
    assert [soleus[key] for key in ("expected_dice", "dice_low", "dice_high")] == pytest.approx([0.78, 0.66, 0.84])
    assert soleus["slices"][:2] == [6, 3] and soleus["error_probability"] == pytest.approx((6 * 0.1 + 0.9) / 7)
    assert not soleus["look_here"] and soleus["learnt_from"] == "40 scans"
    assert (
        tibia["expected_dice"] is None and tibia["agreement"] == 0 and tibia["error_probability"] == pytest.approx(0.1)
    )
    nothing = Volume(np.zeros_like(labels), grid)
    absent = rows_of(nothing, error, scores_of(np.full(3, np.nan), nothing.array, LEG), calibration, slice_axis=2)[0]
    assert absent["expected_dice"] is absent["agreement"] is absent["error_probability"] is None
    assert absent["slices"] == [] and absent["learnt_from"] == "not found" and not absent["look_here"]


def test_a_map_is_stored_in_bytes_at_its_place(tmp_path):
    grid = scan_grid((5, 6, 4), (0.7, 1.1, 3.0), orientation="LPS", oblique=True)
    shares = np.random.default_rng(5).random(grid.shape).astype(np.float32)
    shares[0, 0, :2] = 0, 1
    write_shares(tmp_path / "map.nii.gz", Volume(shares, grid))
    judge = nibabel.load(tmp_path / "map.nii.gz")
    assert judge.get_data_dtype() == np.uint8
    np.testing.assert_allclose(judge.get_fdata(), shares, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(judge.affine, grid.affine, atol=1e-5)
    back = read_volume(tmp_path / "map.nii.gz")
    assert back.geometry.same_grid(grid) and back.array.max() == pytest.approx(1) and back.array[0, 0, 0] == 0
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match="shares from 0 to 1 are needed"):
            write_shares(tmp_path / "wrong.nii.gz", SimpleNamespace(array=np.array([wrong, 0.5])))
    assert not (tmp_path / "wrong.nii.gz").exists()
