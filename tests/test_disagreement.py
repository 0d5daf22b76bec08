"""Where opinions differ, by a naive loop over pairs; which slices to draw, by hand arithmetic."""

import itertools

import numpy as np
import pytest

from tfmuscle.disagreement import Opinion, choose_slices, probable_error, slice_disagreement
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

NAMES = LabelMap({1: "soleus", 4: "gracilis"})
GRID = Geometry((6, 5, 4), np.diag([0.5, 2.0, 7.0, 1.0]))


def opinions(count, *, spans=()):
    rng = np.random.default_rng(0)
    arrays = [rng.choice([0, 1, 4], GRID.shape).astype(np.uint8) for _ in range(count)]
    spans = [*spans, *[None] * (count - len(spans))]
    return [Opinion(str(n), Volume(a, GRID), span) for n, (a, span) in enumerate(zip(arrays, spans, strict=True))]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mean_over_all_pairs_of_the_area_that_differs(axis):
    some = opinions(4)
    found = slice_disagreement(some, NAMES, axis)
    area = {0: 2.0 * 7.0, 1: 0.5 * 7.0, 2: 0.5 * 2.0}[axis]
    for row, key in enumerate((1, 4)):
        for index in range(GRID.shape[axis]):
            planes = [np.take(opinion.labels.array, index, axis) for opinion in some]
            pairs = [((a == key) != (b == key)).sum() * area for a, b in itertools.combinations(planes, 2)]
            assert found[row, index] == pytest.approx(np.mean(pairs))


def test_an_oblique_grid_has_the_areas_of_its_pixels():
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.5, 2.0, 7.0)
    turned = [Opinion(o.name, Volume(o.labels.array, Geometry(GRID.shape, affine))) for o in opinions(2)]
    assert slice_disagreement(turned, NAMES, 1) == pytest.approx(slice_disagreement(opinions(2), NAMES, 1))


def test_who_is_silent_is_left_out_of_the_pairs():
    three, two = opinions(3, spans=[(1, 2)]), opinions(3)[1:]
    found, without = slice_disagreement(three, NAMES, 2), slice_disagreement(two, NAMES, 2)
    assert np.array_equal(found[:, [0, 3]], without[:, [0, 3]])
    assert not np.array_equal(found[:, [1, 2]], without[:, [1, 2]])
    alone = slice_disagreement(opinions(2, spans=[(1, 2)]), NAMES, 2)
    assert np.isnan(alone[:, [0, 3]]).all() and np.isfinite(alone[:, [1, 2]]).all()


def test_opinions_that_agree_and_such_as_cannot_be_compared():
    one = opinions(1)[0]
    assert not slice_disagreement([one, one], NAMES, 0).any()
    other = Opinion("shifted", Volume(one.labels.array, GRID.cropped((1, 0, 0), GRID.shape)))
    for wrong in ([], [one, other]):
        with pytest.raises(ValueError, match="all on one grid"):
            slice_disagreement(wrong, NAMES, 0)


def test_the_mean_of_what_is_disputed_beyond_own_mistakes_and_what_is_expected():
    differing = np.array([np.nan, 4.0, 9, 20, 1, 12, 30])
    expected = np.array([np.nan, 0.0, 3, 4, 3, 0, np.nan])
    found = probable_error(differing, expected, [1, 5])
    # Own mistakes are 4 on slice 1 and 12 on slice 5: 6, 8 and 10 between, and 12 beyond.
    assert found[1:].tolist() == [0, (3 + 3) / 2, (12 + 4) / 2, (0 + 3) / 2, 0, 18]
    assert np.isnan(found[0])


def test_a_network_that_found_nothing_leaves_it_to_the_slices():
    expected = np.array([0.0, 3, 4, 3, 0])
    assert probable_error(np.full(5, 700.0), expected, [0, 4]).tolist() == (expected / 2).tolist()
    assert probable_error(np.full(5, np.nan), expected, [0, 4]).tolist() == expected.tolist()  # no network at all
    with pytest.raises(ValueError, match="no slice is drawn; name those that are"):
        probable_error(expected, expected, [])


def test_a_single_peak():
    score = np.zeros(21)
    score[[11, 12, 13, 14, 15]] = 2, 6, 9, 8, 7
    # Slice 20 leaves 2*(20 - z)/20 of each: 1.8, 4.8, 6.3, 4.8, 3.5. 13 is taken, in the gap 0 to 20. To its left 13 of
    # 20 remain: 12 keeps 4.8 * (2*1/13) * 13/20 = 0.48, and 11 1.8 * (4/13) * 13/20 = 0.36. To its right 7 of 20: 14
    # keeps 4.8 * (2/7) * 7/20 = 0.48, and 15 3.5 * (4/7) * 7/20 = 0.7.
    assert choose_slices(score, [0, 20], 1) == (13,)
    # 15 is taken, in the gap 13 to 20: 14 keeps 0.48 * min(1, 2*1/2) * 2/7 = 0.14 and falls behind 12 and 11.
    assert choose_slices(score, [0, 20], 3) == (13, 15, 12)


def test_two_peaks():
    score = np.zeros(41)
    score[[10, 12, 30]] = 9, 8, 5
    # 10 is taken: of 12 there remain 8 * 0.8 * (2*2/10) * 10/20 = 1.28, less than the 5 of the other gap.
    assert choose_slices(score, [0, 20, 40], 3) == (10, 30, 12)


def test_a_drawn_slice_settles_its_neighbours():
    score = np.array([0.0, 9, 1, 1, 1, 2, 1, 1, 1, 0, 0, 9, 9])
    # 1 keeps 9 * 2/10 = 1.8, less than the 2 in the middle of its gap. Beyond 10 nothing is drawn on the other side: of
    # the gap 10 to 13 slice 11 keeps 9 * 2/3 = 6, and 12 all of its 9.
    assert choose_slices(score, [0, 10], 1) == (12,)
    assert choose_slices(score[:11], [0, 10], 1) == (5,)


@pytest.mark.parametrize(
    ("length", "drawn", "expected"),
    [
        (17, [0, 16], (8, 4, 12)),
        (41, [0, 10, 20, 30, 40], (5, 15, 25, 35)),
        (51, [0, 40, 50], (20, 45)),
        (31, [7, 23], (15, 3, 27)),  # beyond the drawn slices a gap ends outside the scan: -1 to 7, and 23 to 31
        (9, [], (4,)),
    ],
)
def test_a_flat_score_gives_the_middles_of_the_gaps(length, drawn, expected):
    assert choose_slices(np.full(length, 3.0), drawn, len(expected)) == expected
    assert choose_slices(np.zeros(length), drawn, 1) == expected[:1]  # all agree everywhere


def test_never_a_drawn_slice_nor_one_of_which_nothing_is_known():
    score = np.array([9.0, 1.0, 9.0, 2.0, np.nan, 9.0])
    assert choose_slices(score, [0, 2, 5], 1) == (3,)
    assert choose_slices(score, [0, 2, 5], 7) == (3, 1)  # fewer are free than were asked for
    assert choose_slices(score, range(6), 2) == ()
    assert choose_slices(np.full(4, np.nan), [1], 2) == ()
    assert score[3] == 2.0  # the caller's stays as it is


def test_what_cannot_be_chosen():
    with pytest.raises(ValueError, match="0 slices are wanted"):
        choose_slices(np.ones(5), [1], 0)
    for wrong in (5, -1):
        with pytest.raises(ValueError, match="there are slices 0 to 4"):
            choose_slices(np.ones(5), [wrong], 1)
