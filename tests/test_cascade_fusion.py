"""Averaging, cleaning and joining of muscles, judged by naive loops, scikit-image and by what must always hold."""

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure

from tfmuscle.cascade import Box, BoxAverage, Conflicts, across_axis, clean_muscle, enlarged, largest_component
from tfmuscle.labels import LabelMap, lower_limb
from tfmuscle.volume import Geometry

SHAPE = (30, 26, 18)
NAMES = LabelMap({1: "soleus", 2: "popliteus", 7: "gracilis", 9: "sartorius", 200: "pectineus"})


def boxes(seed, *, count=6):
    random = np.random.default_rng(seed)
    return [enlarged(Box((9, 8, 6), (18, 15, 12)), SHAPE, random) for _ in range(count)]


def blobs(seed, shape, *, sigma=1.2):
    """Smooth noise, its values spread evenly over 0..1."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (noise.ravel().argsort().argsort().reshape(shape) / noise.size).astype(np.float32)


# --- averaging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", ["coverage", "count"])
@pytest.mark.parametrize("seed", range(4))
def test_a_constant_stays_the_same_inside_all_boxes(seed, normalise):
    given = boxes(seed)
    average = BoxAverage(given, normalise=normalise)
    for box in given:
        average.add(box, np.full(box.size, 0.7, np.float32))
    found = average.result()
    common = given[0]
    for box in given[1:]:
        common = common.overlap(box)
    np.testing.assert_allclose(found[common.moved(average.region.start).slices], 0.7, rtol=1e-6)  # float32 sums
    cover = np.zeros(SHAPE)
    for box in given:
        cover[box.slices] += 1
    cover = cover[average.region.slices]
    assert (cover == 0).any() and (cover == 6).any()
    expected = 0.7 * cover / 6 if normalise == "count" else 0.7 * (cover > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("normalise", ["coverage", "count"])
def test_averages_are_those_of_whole_volumes(normalise):
    given = boxes(11)
    maps = [np.random.default_rng(n).random(box.size) for n, box in enumerate(given)]
    whole = np.full((6, *SHAPE), np.nan)
    for canvas, box, one in zip(whole, given, maps, strict=True):
        canvas[box.slices] = one
    known = np.isfinite(whole)
    divisor = np.maximum(known.sum(axis=0), 1) if normalise == "coverage" else 6
    expected = np.where(known, whole, 0).sum(axis=0) / divisor
    average = BoxAverage(given, normalise=normalise)
    for box, one in list(zip(given, maps, strict=True))[::-1]:  # in any order
        average.add(box, one)
    assert average.region == given[0].union(*given[1:]) and average.region.num_voxels < np.prod(SHAPE)
    found = average.result()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[average.region.slices], rtol=1e-6)


def test_one_box_sampled_twice_counts_twice():
    box = Box((0, 0, 0), (2, 2, 2))
    average = BoxAverage([box, box], normalise="count")
    average.add(box, np.zeros(box.size))
    average.add(box, np.ones(box.size))
    assert (average.result() == 0.5).all()


def test_what_cannot_be_averaged_is_refused():
    box, other = Box((0, 0, 0), (2, 2, 3)), Box((1, 0, 0), (2, 2, 3))
    with pytest.raises(ValueError, match="normalise is 'mean'; choose coverage or count"):
        BoxAverage([box], normalise="mean")
    with pytest.raises(ValueError, match="no boxes to average"):
        BoxAverage([])
    average = BoxAverage([box, other])
    with pytest.raises(ValueError, match="2 of 2 boxes were not added"):
        average.result()
    with pytest.raises(ValueError, match=r"map has shape \(2, 3, 2\); its box needs \(2, 2, 3\)"):
        average.add(box, np.zeros((2, 3, 2)))
    with pytest.raises(ValueError, match=r"map of box \(0, 0, 0\)..\(2, 2, 3\) is not finite"):
        average.add(box, np.full(box.size, np.nan))
    average.add(box, np.zeros(box.size))
    with pytest.raises(ValueError, match="none of those still to come; add each box once"):
        average.add(box, np.zeros(box.size))


# --- cleaning ---------------------------------------------------------------------------------------------------------


def naive_closing(mask, radii):
    """A voxel is in the closing if every ellipsoid that holds it meets the mask; beyond the array there is nothing."""
    offsets = [
        o
        for o in itertools.product(*[range(-r, r + 1) for r in radii])
        if sum((a / r) ** 2 for a, r in zip(o, radii, strict=True)) <= 1
    ]
    marked = {tuple(point) for point in np.argwhere(mask).tolist()}
    closed = np.zeros_like(mask)
    for point in np.ndindex(mask.shape):
        centres = (tuple(np.add(point, o)) for o in offsets)  # of the ellipsoids that hold the point
        closed[point] = all(any(tuple(np.add(c, o)) in marked for o in offsets) for c in centres)
    return closed


@pytest.mark.parametrize(("across", "radii"), [(0, (1, 2, 2)), (1, (2, 1, 2)), (2, (2, 2, 1))])
@pytest.mark.parametrize("seed", range(3))
def test_cleaning_is_component_closing_and_filling(seed, across, radii):
    probability = blobs(seed, (9, 8, 7), sigma=0.8)
    parts = skimage.measure.label(probability > 0.75, connectivity=3)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    closed = naive_closing(largest, radii)
    outside = skimage.measure.label(np.pad(~closed, 1, constant_values=True), connectivity=1)
    filled = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    found = clean_muscle(probability, across=across, threshold=0.75)
    np.testing.assert_array_equal(found, filled)
    assert (found & ~largest).any() and (parts.max() > 1)  # the case has something to close and to remove


def test_a_gap_closes_in_plane_and_a_hole_is_filled():
    probability = np.zeros((20, 20, 9), np.float32)
    probability[2:18, 2:18, 1:8] = 0.9
    probability[5:15, 5:15, 3:6] = 0.1  # a hole of 10 x 10 x 3, beyond any closing
    probability[0, 0, 8] = 0.9  # apart
    expected = np.zeros(probability.shape, bool)
    expected[2:18, 2:18, 1:8] = True
    np.testing.assert_array_equal(clean_muscle(probability, across=2), expected)
    probability[5:15, 5:15, 3:] = 0.1  # open at the top: no hole
    assert not clean_muscle(probability, across=2)[7:13, 7:13, 3:].any()


def test_voxels_that_touch_at_a_corner_are_one_component():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = mask[5, 5, 0] = mask[5, 4, 0] = True
    expected = mask.copy()
    expected[5] = False
    np.testing.assert_array_equal(largest_component(mask), expected)
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()


def test_the_threshold_is_the_argmax_of_two_classes():
    assert not clean_muscle(np.full((4, 4, 4), 0.5, np.float32), across=0).any()
    assert clean_muscle(np.full((4, 4, 4), 0.51, np.float32), across=0).all()


@pytest.mark.parametrize(
    ("spacing", "orientation", "across"),
    [
        ((1, 1, 5), None, 2),
        ((5, 1, 1), None, 0),
        ((1, 1, 1), (0, 1, 2), 2),
        ((1, 1, 1), (2, 0, 1), 0),
        ((3, 3, 1), None, 0),
    ],
)
def test_across_is_the_thickest_axis_else_the_patients(spacing, orientation, across):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(orientation or (0, 1, 2))] * spacing
    assert across_axis(Geometry((4, 4, 4), affine)) == across


def test_what_cannot_be_cleaned_is_refused():
    for array, across, threshold in (((4, 4), 0, 0.5), ((4, 4, 4), 3, 0.5), ((4, 4, 4), 0, 1.0)):
        with pytest.raises(ValueError, match="an axis 0, 1 or 2 and a number between 0 and 1 are needed"):
            clean_muscle(np.zeros(array), across=across, threshold=threshold)


# --- conflicts --------------------------------------------------------------------------------------------------------


def claims(seed):
    """Five muscles whose regions and masks overlap widely; probabilities of a few levels, so that many are equal."""
    random, found = np.random.default_rng(seed), []
    for number, name in enumerate(NAMES.structures):
        start = random.integers(0, 8, 3)
        region = Box(tuple(start), tuple(np.minimum(start + random.integers(9, 22, 3), SHAPE)))
        probability = np.round(blobs(seed * 10 + number, region.size, sigma=2), 1)
        found.append((name, region, probability, clean_muscle(probability, across=2)))
    return found


def joined(given):
    conflicts = Conflicts(Geometry(SHAPE, np.eye(4)), NAMES)
    for claim in given:
        conflicts.claim(*claim)
    return conflicts.result()


@pytest.mark.parametrize("seed", range(5))
def test_the_highest_probability_wins(seed):
    given = claims(seed)
    wanted = np.full((len(given), *SHAPE), -1.0)  # all maps at once, which the code must not need
    for canvas, (_, region, probability, mask) in zip(wanted, given, strict=True):
        canvas[region.slices][mask] = probability[mask]
    owners = np.where(wanted.max(axis=0) >= 0, np.array(NAMES.ids[1:])[wanted.argmax(axis=0)], 0)  # ties: the lower id
    expected = np.zeros(SHAPE, np.uint8)
    for key in NAMES.ids[1:]:
        parts = skimage.measure.label(owners == key, connectivity=3)
        if parts.max():
            expected[parts == np.bincount(parts.ravel())[1:].argmax() + 1] = key
    labels, lost = joined(given)
    assert labels.array.dtype == np.uint8 and not lost
    np.testing.assert_array_equal(labels.array, expected)
    assert ((wanted >= 0).sum(axis=0) > 1).sum() > 100  # many voxels were claimed by several
    for key, (_, region, _, mask) in zip(NAMES.ids[1:], given, strict=True):
        mine = labels.array == key
        assert skimage.measure.label(mine, connectivity=3).max() == 1
        whole = np.zeros(SHAPE, bool)
        whole[region.slices] = mask
        assert not (mine & ~whole).any()


def test_the_order_of_muscles_does_not_matter():
    given = claims(8)
    expected = joined(given)[0].array
    for order in itertools.permutations(given):
        np.testing.assert_array_equal(joined(order)[0].array, expected)


def test_voxels_of_the_closing_claim_with_what_they_have():
    # In one row: soleus is found in 0..2 and 4..6 and closes over 3 with 0.2 and over 7 with 0.
    region = Box((0, 0, 0), (8, 1, 1))
    soleus = np.array([0.9, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.0], np.float32).reshape(region.size)
    other = np.array([0.0, 0.0, 0.0, 0.6, 0.6, 0.0, 0.0, 0.0], np.float32).reshape(region.size)
    closed = np.ones(region.size, bool)
    alone, _ = joined([("soleus", region, soleus, closed)])
    assert (alone.array[:8, 0, 0] == 1).all()  # nobody else wants 3 and 7
    both, lost = joined([("soleus", region, soleus, closed), ("popliteus", region, other, other > 0.5)])
    # 3 goes to popliteus, 4 stays; the larger part of soleus is 4..7, and its island 0..2 becomes background.
    assert both.array[:8, 0, 0].tolist() == [0, 0, 0, 2, 1, 1, 1, 1] and not lost


def test_a_muscle_that_lost_everything_is_named():
    region = Box((3, 3, 3), (6, 6, 6))
    full = np.ones(region.size, bool)
    nothing = ("gracilis", region, np.zeros(region.size), ~full)
    given = [
        ("pectineus", region, np.full(region.size, 0.6), full),
        ("sartorius", region, np.full(region.size, 0.8), full),
    ]
    labels, lost = joined([*given, nothing])
    assert lost == ("pectineus",)  # gracilis was not found in the first place
    assert np.unique(labels.array).tolist() == [0, 9] and (labels.array == 9).sum() == 27


def test_labels_lie_on_the_scans_grid_in_a_type_that_holds_the_ids():
    geometry = Geometry(SHAPE, np.diag([-1.0, 2.0, 5.0, 1.0]))
    labels, lost = Conflicts(geometry, LabelMap({300: "soleus"})).result()
    assert labels.geometry is geometry and labels.array.dtype == np.uint16 and not labels.array.any() and lost == ()


def test_what_cannot_be_claimed_is_refused():
    conflicts, region = Conflicts(Geometry(SHAPE, np.eye(4)), NAMES), Box((0, 0, 0), (2, 2, 2))
    zeros, mask = np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool)
    with pytest.raises(ValueError, match="no label is called 'femur'"):
        conflicts.claim("femur", region, zeros, mask)
    with pytest.raises(ValueError, match="'background' has claimed its voxels already, or is background"):
        conflicts.claim("background", region, zeros, mask)
    with pytest.raises(ValueError, match=r"and mask \(2, 2, 2\) of float64 do not fit the region's \(2, 2, 2\)"):
        conflicts.claim("soleus", region, zeros, zeros)
    with pytest.raises(ValueError, match=r"probability \(2, 2, 1\) .*do not fit the region's"):
        conflicts.claim("soleus", region, zeros[..., :1], mask)
    with pytest.raises(ValueError, match=r"region \(29, 0, 0\)..\(31, 2, 2\) reaches outside the scan"):
        conflicts.claim("soleus", region.moved((-29, 0, 0)), zeros, mask)
    conflicts.claim("soleus", region, zeros, mask)
    with pytest.raises(ValueError, match="'soleus' has claimed its voxels already"):
        conflicts.claim("soleus", region, zeros, mask)


def test_memory_does_not_grow_with_the_number_of_muscles():
    # 600 MB for 512 x 512 x 240 voxels are 9.5 bytes a voxel; two arrays of 4 and 1 bytes, and regions of a fiftieth.
    geometry, names = Geometry((128, 128, 60), np.diag([1.0, 1.0, 5.0, 1.0])), lower_limb(bones=False)
    random = np.random.default_rng(0)
    tracemalloc.start()
    try:
        conflicts = Conflicts(geometry, names)
        for name in names.structures:
            start = random.integers(0, (100, 100, 40))
            region = Box(tuple(start), tuple(start + (28, 28, 20)))
            probability = np.full(region.size, random.random(), np.float32)
            conflicts.claim(name, region, probability, probability > 0.2)
        conflicts.result()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9.5 * np.prod(geometry.shape)
