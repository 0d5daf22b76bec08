"""A few labelled slices of one scan: found, shared out, and silent about the others."""

import numpy as np
import pytest

from tfmuscle.labelled_slices import LabelledSlices, find_slices, free_id, only
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

MUSCLE = LabelMap({1: "soleus"})
GRID = Geometry((20, 16, 30), np.diag([1.0, 1.0, 4.0, 1.0]))


def drawn(indices, axis=2, value=1):
    array = np.zeros(GRID.shape, np.uint8)
    for index in indices:
        where = [slice(4, 12)] * 3
        where[axis] = index
        array[tuple(where)] = value
    return Volume(array, GRID)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_found_along_the_axis_with_gaps(axis):
    found = find_slices(drawn([3, 6, 10], axis), MUSCLE)
    assert found == LabelledSlices(axis, (3, 6, 10), GRID.spacing[axis])


def test_gaps_between_muscles_are_no_gaps_between_slices():
    array = drawn(range(5, 12)).array
    array[0:3] = array[4:7]  # a second leg, beside the first: three columns, one column apart, then the other eight
    assert find_slices(Volume(array, GRID), MUSCLE).axis == 2


def test_without_gaps_it_is_the_slice_axis():
    assert find_slices(drawn(range(5, 12)), MUSCLE) == LabelledSlices(2, tuple(range(5, 12)), 4.0, is_assumed=True)
    assert find_slices(drawn([7]), MUSCLE).axis == 2


def test_what_is_assumed_or_left_out_is_told():
    (told,) = find_slices(drawn(range(5, 12)), MUSCLE).notes()
    assert "along axis 2" in told and "--axis names another" in told
    assert find_slices(drawn(range(5, 12)), MUSCLE, axis=2).notes() == ()
    assert find_slices(drawn([3, 6, 10]), MUSCLE).notes() == ()
    listed = find_slices(drawn(range(5, 12)), MUSCLE, listed=[5, 8, 11])
    assert listed.notes() == (told, "4 labelled slices are not listed, and count as unknown")


def test_the_ignore_id_says_that_nobody_looked():
    ignoring = LabelMap({1: "soleus"}, ignore=255)
    labels = drawn([3, 9])
    labels.array[:, :, [0, 1, 2]] = 255
    assert find_slices(labels, ignoring).indices == (3, 9)


def test_an_axis_or_slices_may_be_given():
    assert find_slices(drawn([3, 6]), MUSCLE, axis=0).indices == tuple(range(4, 12))
    absent = find_slices(drawn([3, 6, 9, 12]), MUSCLE, listed=[9, 3, 6, 12, 0])
    assert (absent.indices, absent.empty) == ((0, 3, 6, 9, 12), (0,))
    assert absent.validating() == (6,)
    corrected = find_slices(drawn(range(12)), MUSCLE, axis=2, listed=[3, 6, 9])
    assert (corrected.indices, corrected.empty, corrected.unlisted[:4]) == ((3, 6, 9), (), (0, 1, 2, 4))
    with pytest.raises(ValueError, match="axis 2 has slices 0 to 29"):
        find_slices(drawn([3, 6]), MUSCLE, listed=[3, 6, 30])
    with pytest.raises(
        ValueError, match=r"none of the listed slices \[4, 7\] shows a label; along axis 2 .* are 3, 6,"
    ):
        find_slices(drawn([3, 6]), MUSCLE, listed=[4, 7])
    with pytest.raises(ValueError, match="axis is 3"):
        find_slices(drawn([3]), MUSCLE, axis=3)
    with pytest.raises(ValueError, match="nothing is labelled"):
        find_slices(drawn([]), MUSCLE)


@pytest.mark.parametrize("count", range(3, 41))
def test_who_validates_lies_between_others(count):
    slices = LabelledSlices(0, tuple(range(0, 3 * count, 3)), 2.0)
    chosen = slices.validating()
    assert len(chosen) == max(1, round(count / 5))
    assert slices.indices[0] < min(chosen) and max(chosen) < slices.indices[-1]
    assert set(chosen) < set(slices.indices)


def test_the_third_and_the_eighth_of_ten_validate():
    slices = LabelledSlices(0, (2, 5, 9, 11, 14, 20, 21, 25, 30, 31), 3.0)
    assert slices.validating() == (9, 25)
    assert slices.apart_mm(slices.validating()) == 2 * 3.0  # from 9 to 11


def test_two_slices_are_too_few():
    with pytest.raises(ValueError, match="2 labelled slices; 3 are needed"):
        LabelledSlices(0, (1, 2), 1.0).validating()


def test_labels_of_some_slices_say_nothing_of_the_others():
    slices = find_slices(drawn([3, 6, 10]), MUSCLE)
    labels = only(drawn([3, 6, 10]), slices, [6], 255)
    assert (np.delete(labels.array, 6, axis=2) == 255).all()
    assert np.array_equal(labels.array[:, :, 6], drawn([6]).array[:, :, 6])
    assert labels.geometry is GRID


def test_the_id_of_the_unknown_is_no_structure():
    assert free_id(MUSCLE) == 255
    assert free_id(LabelMap({255: "bone"})) == 256
    assert free_id(LabelMap({255: "bone", 65535: "muscle"})) == 65536
    assert free_id(LabelMap({1: "a"}, ignore=7)) == 7
    assert only(drawn([3]), LabelledSlices(2, (3,), 1.0), [3], 65535).array.dtype == np.uint16
    large = drawn([3]).with_array(drawn([3]).array.astype(np.uint16) * 300)
    assert only(large, LabelledSlices(2, (3,), 1.0), [3], 255).array.max() == 300
