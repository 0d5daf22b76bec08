"""Slices between drawn ones: closed forms of cylinders, a cone and a sphere, and what must stay as it was drawn."""

import numpy as np
import pytest

from tfmuscle.interpolation import expected_error, interpolate_slices, signed_distance
from tfmuscle.labelled_slices import LabelledSlices, find_slices
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

ONE = LabelMap({1: "soleus"})
TWO = LabelMap({1: "soleus", 7: "gracilis"}, ignore=9)


def volume(array, spacing=(1.0, 1.0, 1.0)):
    return Volume(array, Geometry(array.shape, np.diag([*spacing, 1.0])))


def discs(radii, centres, shape=(64, 64), step=(1.0, 1.0)):
    """Discs `(rows, columns, slices)`; radii in mm, centres in mm."""
    i, j = (np.arange(size) * one for size, one in zip(shape, step, strict=True))
    planes = [(i[:, None] - y) ** 2 + (j - x) ** 2 < r**2 for r, (y, x) in zip(radii, centres, strict=True)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def filled(truth, drawn, *, label_map=ONE, listed=None, spacing=(1.0, 1.0, 1.0)):
    """Interpolates between the slices `drawn` of `truth`, as a user would have it done."""
    given = np.zeros_like(truth)
    given[..., drawn] = truth[..., drawn]
    labels = volume(given, spacing)
    found = find_slices(labels, label_map, axis=2, listed=listed)
    return interpolate_slices(labels, label_map, found).array


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_drawn_slices_stay_as_drawn_and_nothing_lies_beyond(axis):
    rng = np.random.default_rng(0)
    array = np.zeros((20, 18, 16), np.uint8)
    planes = np.moveaxis(array, axis, 0)
    for index in (3, 6, 12):  # holes, specks, several structures and voxels that nobody labelled
        planes[index] = rng.choice([0, 1, 7, 9], planes[index].shape)
    result = interpolate_slices(volume(array), TWO, LabelledSlices(axis, (3, 6, 12), 1.0))
    found = np.moveaxis(result.array, axis, 0)
    for index in (3, 6, 12):
        assert np.array_equal(found[index], np.where(planes[index] == 9, 0, planes[index]))
    assert not found[:3].any() and not found[13:].any()
    assert found[4:6].any() and set(np.unique(found)) == {0, 1, 7}


def test_shapes_that_stay_are_filled_exactly_side_by_side():
    truth = np.zeros((30, 30, 11), np.uint8)
    truth[5:15, 4:25], truth[15:22, 4:25] = 1, 7  # they share an outline: no gap and no overlap may open
    assert np.array_equal(filled(truth, [0, 4, 10], label_map=TWO), truth)


def test_a_sheared_box_comes_out_exactly():
    truth = np.zeros((70, 40, 11), np.uint8)
    for k in range(11):
        truth[4 + 5 * k : 12 + 5 * k, 6 + k : 20 + k, k] = 1
    assert not (truth[..., 0] & truth[..., 10]).any()
    assert np.array_equal(filled(truth, [0, 10]), truth)


@pytest.mark.parametrize("apart", [4, 20])
def test_an_oblique_cylinder_keeps_its_volume(apart):
    count, radius = 41, 8.0
    truth = discs([radius] * count, [(12 + 0.97 * k, 20 + 0.3 * k) for k in range(count)])
    result = filled(truth, list(range(0, count, apart)))  # 20 slices apart the discs lie 20.3 pixels apart
    # The voxels of a disc of 8 pixels differ by up to 4 % from its area (193 of 201), of all drawn ones by 2 %.
    assert result.sum() == pytest.approx(np.pi * radius**2 * count, rel=0.04)
    assert dice(result, truth) > 0.96


@pytest.mark.parametrize("upside_down", [False, True])
def test_a_muscle_that_ends_is_a_cone(upside_down):
    radius, height = 24.0, 30
    radii = radius * (1 - np.arange(height + 1) / height)
    truth = discs(radii, [(31.7, 32.2)] * (height + 1))
    truth = truth[..., ::-1] if upside_down else truth
    drawn, listed = ([height], [0, height]) if upside_down else ([0], [0, height])
    result = filled(truth, drawn, listed=listed)
    areas = result.sum(axis=(0, 1))[:: -1 if upside_down else 1].astype(int)
    assert (np.diff(areas) <= 0).all() and areas[-1] == 0 and areas[-2] > 0
    # The sum of the slices is the cone and half its first slice (trapezoids); a pixel at the edge of each makes 3 %.
    cone = np.pi * radius**2 * height / 3 + np.pi * radius**2 / 2
    assert result.sum() == pytest.approx(cone, rel=0.03)
    assert dice(result, truth) > 0.97


def test_a_sphere_lacks_what_lies_beyond_its_chords():
    radius, count, apart = 30.0, 61, 6
    heights = np.arange(count) - 30.0
    radii = np.sqrt(np.maximum(0, 30.5**2 - heights**2))
    truth = discs(radii, [(31.5, 32.3)] * count)
    drawn = list(range(0, count, apart))
    result = filled(truth, drawn)
    chords = np.interp(heights, heights[drawn], radii[drawn])  # the radius is linear between drawn slices
    assert result.sum() == pytest.approx((np.pi * chords**2).sum(), rel=0.01)
    assert result.sum() == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)


def test_distances_are_mm_where_pixels_are_not_square():
    spacing, count = (0.5, 2.0, 3.0), 11
    radii, centre = np.linspace(8.0, 20.0, count), (24.9, 49.6)
    truth = discs(radii, [centre] * count, shape=(100, 50), step=spacing[:2])
    result = filled(truth, [0, 10], spacing=spacing)
    # In pixels the blend of two ellipses would be off; in mm every slice is a disc. Pixels of 2 mm.
    areas = result.sum(axis=(0, 1)) * 0.5 * 2.0
    assert areas == pytest.approx(np.pi * radii**2, rel=0.05)
    assert dice(result, truth) > 0.97


def test_signed_distances_are_those_of_a_naive_search():
    mask, step = np.random.default_rng(1).random((9, 7)) < 0.4, (1.5, 0.7)
    places = np.argwhere(np.ones_like(mask)) * step
    for place, here, found in zip(places, mask.ravel(), signed_distance(mask, step).ravel(), strict=True):
        ways = places[mask.ravel() != here] - place
        way = min(ways, key=np.linalg.norm)
        pixel = np.linalg.norm(way / np.linalg.norm(way) * step)
        assert found == pytest.approx((1 if here else -1) * (np.linalg.norm(way) - pixel / 2), abs=1e-5)


def test_the_border_of_the_scan_is_no_outline():
    truth = np.zeros((12, 20, 5), np.uint8)
    for k in range(5):
        truth[:, : 4 + 2 * k, k] = 1  # reaches both ends of the rows and the first column
    assert np.array_equal(filled(truth, [0, 4]), truth)
    assert np.array_equal(filled(np.ones_like(truth), [0, 4]), np.ones_like(truth))


def test_where_one_of_two_parts_ends_the_other_stays_in_place():
    """Both legs under one id: their common centroid jumps where one ends, and must not take the other along."""
    truth = np.zeros((20, 80, 5), np.uint8)
    truth[5:15, 5:15] = 1
    truth[5:15, 60:70, :4] = 1
    result = filled(truth, [0, 4])
    assert np.array_equal(result[:, :40], truth[:, :40])
    assert not result[:, 15:60].any()


def test_the_other_way_round_is_the_same():
    rng = np.random.default_rng(2)
    truth = np.zeros((40, 40, 8), np.uint8)
    for k in (0, 7):
        i, j = rng.integers(5, 15, 2)
        truth[i : i + 17, j : j + 9, k], truth[i : i + 17, j + 9 : j + 16, k] = 1, 7
    there = filled(truth, [0, 7], label_map=TWO)
    back = filled(truth[..., ::-1], [0, 7], label_map=TWO)[..., ::-1]
    assert (there != back).sum() <= 2  # pixels on an outline to the last digit


def test_progress_and_what_cannot_be_used():
    truth = discs([8.0] * 5, [(30, 30)] * 5)
    said = []
    slices = LabelledSlices(2, (0, 1, 4), 1.0)
    interpolate_slices(volume(truth), ONE, slices, progress=lambda done, total, note: said.append((done, total)))
    assert said == [(1, 4), (4, 4)]
    with pytest.raises(ValueError, match=r"1 labelled slice\(s\); 2 are needed"):
        interpolate_slices(volume(truth), ONE, LabelledSlices(2, (3,), 1.0))
    with pytest.raises(ValueError, match=r"ids \[1\] have no name"):
        interpolate_slices(volume(truth), LabelMap({2: "soleus"}), slices)


def bands(halves, step, *, key=1):
    """Bands of `2 * half` columns across all ten rows, in a volume of 20 columns."""
    column = np.arange(20)
    planes = [np.broadcast_to((column >= 10 - half) & (column < 10 + half), (10, 20)) for half in halves]
    return volume(key * np.stack(planes, axis=-1).astype(np.uint8), step)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_that_are_left_out_tell_the_error_to_expect(axis):
    """Half widths 2, 6, 2, 2 on slices 1, 5, 9, 11 of 13."""
    halves = np.zeros(13, int)
    halves[[1, 5, 9, 11]] = 2, 6, 2, 2
    labels = bands(halves, (0.5, 2.0, 7.0))
    turned = np.moveaxis(labels.array, 2, axis)
    geometry = Geometry(turned.shape, np.diag([*np.insert([0.5, 2.0], axis, 7.0), 1.0]))
    (found,) = expected_error(Volume(turned, geometry), ONE, LabelledSlices(axis, (1, 5, 9, 11), 7.0))
    # 5 is 2 wide between 1 and 9: 8 columns of 10 rows of 1 mm² are missing, a bend of 80 / (4 * 4) = 5. Between 5 and
    # 11 slice 9 would be 6 - 4 * 4 / 6 = 3.33 wide, 3 in whole pixels: 20 mm² too many, a bend of 20 / (4 * 2) = 2.5.
    assert found[[1, 5, 9, 11]].tolist() == [0, 0, 0, 0]
    assert found[2:5].tolist() == [5 * 3, 5 * 4, 5 * 3]
    assert found[6:9] == pytest.approx([3.75 * 3, 3.75 * 4, 3.75 * 3])
    assert found[10] == pytest.approx(2.5)
    assert np.isnan(found[[0, 12]]).all()


def test_shapes_that_change_evenly_are_expected_to_be_right():
    labels = bands([2, 3, 4, 5, 6, 7, 8], (1.0, 1.0, 5.0), key=7)
    found = expected_error(labels, TWO, LabelledSlices(2, (0, 2, 4, 6), 5.0))
    assert found.tolist() == np.zeros((2, 7)).tolist()  # the absent structure, too


def test_two_slices_leave_nobody_to_ask():
    found = expected_error(bands([2, 4, 6], (1.0, 1.0, 5.0)), ONE, LabelledSlices(2, (0, 2), 5.0))
    assert found[0, [0, 2]].tolist() == [0, 0] and np.isnan(found[0, 1])
