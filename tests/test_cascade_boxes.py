"""Boxes of the cascade, judged by naive loops, hand arithmetic, and nibabel's affines and resampling."""

import itertools
import json

import nibabel as nib
import nibabel.affines
import nibabel.processing
import numpy as np
import pytest

from tfmuscle.cascade import (
    Box,
    enlarged,
    fitting_grid,
    largest_enlargement,
    mapped,
    tight_box,
    tight_boxes,
)
from tfmuscle.io import read_volume
from tfmuscle.preprocessing import resample_labels
from tfmuscle.volume import Geometry, Volume

GRID = (60, 50, 40)
ORIENTATIONS = ("RAS", "LPS", "SPL", "IAR", "PLI")
LINE = {letter: pair for pair in ("RL", "AP", "SI") for letter in pair}
"""The patient's axis that a letter lies on."""


def oblique(shape, spacing, *, orientation="RAS", degrees=0.0, origin=(-30.0, 40.0, 5.0)):
    """A grid of nibabel's making: axes permuted and flipped, then the patient turned about two axes."""
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(np.deg2rad(degrees), np.deg2rad(degrees / 2), 0)
    turn[:3, 3] = origin
    codes = nib.orientations.axcodes2ornt(orientation)
    axes = np.zeros((4, 4))
    for axis, (target, flip) in enumerate(codes.astype(int)):
        axes[target, axis] = flip * spacing[axis]
    axes[3, 3] = 1
    return Geometry(shape, turn @ axes)


def covering(outer, inner):
    """The grid `outer`, moved over the middle of `inner`."""
    middle = inner.world((np.array(inner.shape) - 1) / 2)
    affine = outer.affine.copy()
    affine[:3, 3] += middle - outer.world((np.array(outer.shape) - 1) / 2)
    return Geometry(outer.shape, affine)


def corners(box):
    """The eight corners of the outer voxel faces, one by one."""
    return np.array(list(itertools.product(*[(a - 0.5, b - 0.5) for a, b in zip(box.start, box.stop, strict=True)])))


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_a_box_by_hand():
    box = Box((2, -1, 3), (6, 4, 4))
    assert box.size == (4, 5, 1) and box.num_voxels == 20
    assert box.edges.tolist() == [[1.5, -1.5, 2.5], [5.5, 3.5, 3.5]]
    assert box.clipped((5, 9, 9)) == Box((2, 0, 3), (5, 4, 4))
    assert box.overlap(Box((6, 0, 3), (9, 9, 9))) is None  # half-open: faces that touch share no voxel
    assert box.overlap(Box((5, 0, 3), (9, 9, 9))) == Box((5, 0, 3), (6, 4, 4))
    assert box.contains(box) and box.contains(Box((5, 3, 3), (6, 4, 4)))
    assert not box.contains(Box((5, 3, 3), (7, 4, 4))) and not box.contains(Box((1, 3, 3), (6, 4, 4)))
    assert box.union(Box((0, 0, 0), (1, 1, 1)), Box((9, 0, 0), (10, 1, 1))) == Box((0, -1, 0), (10, 4, 4))
    voxels = np.arange(60).reshape(3, 4, 5)
    np.testing.assert_array_equal(voxels[Box((1, 2, 3), (2, 4, 5)).slices], [[[33, 34], [38, 39]]])
    assert json.dumps(Box((np.int64(1), 0, 0), (2, 1, 1)).start) == "[1, 0, 0]"  # plain integers, whatever came in


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (1, 1, 0)), ((0, 5, 0), (1, 4, 1))])
def test_an_empty_box_is_refused(start, stop):
    with pytest.raises(ValueError, match="is empty; each stop must lie beyond its start"):
        Box(start, stop)


def test_edges_that_are_no_voxels_are_refused():
    with pytest.raises(ValueError, match="start of a box is .*three whole numbers"):
        Box((0.5, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="stop of a box is .*three whole numbers"):
        Box((0, 0, 0), (1, 1))


def test_a_box_outside_cannot_be_clipped():
    with pytest.raises(ValueError, match=r"lies wholly outside the grid \(5, 5, 5\)"):
        Box((5, 0, 0), (6, 1, 1)).clipped((5, 5, 5))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_tight_boxes_are_those_of_a_loop_over_ids(dtype, order):
    random = np.random.default_rng(3)
    labels = np.zeros((12, 9, 7), dtype)
    for key in (1, 4, 70, 9):
        points = tuple(random.integers(0, size, 5) for size in labels.shape)
        labels[points] = key
    labels = np.asarray(labels, order=order)
    found = tight_boxes(labels, (1, 2, 4, 70, 99))
    assert set(found) == {1, 4, 70}  # 2 and 99 have no voxel, 9 was not asked for
    for key, box in found.items():
        where = np.argwhere(labels == key)
        assert box == Box(tuple(where.min(axis=0)), tuple(where.max(axis=0) + 1))
    assert tight_box(labels, 2) is None and tight_box(labels, 70) == found[70]
    assert tight_box(labels == 4, 1) == found[4]
    assert tight_boxes(labels, ()) == {}


def test_what_is_no_label_image_has_no_boxes():
    with pytest.raises(ValueError, match="labels are float32 .*whole numbers"):
        tight_boxes(np.zeros((2, 2, 2), np.float32), (1,))
    with pytest.raises(ValueError, match=r"of shape \(2, 2\); whole numbers \(I, J, K\)"):
        tight_boxes(np.zeros((2, 2), np.uint8), (1,))
    with pytest.raises(ValueError, match="id 0 has no box; ids of structures begin at 1"):
        tight_boxes(np.zeros((2, 2, 2), np.uint8), (0, 1))


# --- enlargement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [Box((20, 20, 15), (35, 21, 25)), Box((0, 0, 0), GRID), Box((57, 0, 30), (60, 9, 40))])
def test_every_enlargement_holds_the_box_and_grows_by_two_fifths_at_most(box):
    random = np.random.default_rng(1)
    most = np.ceil(0.4 * np.array(box.size) - 1e-6)  # (1.8 - 1) / 2, rounded outward to whole voxels
    largest = largest_enlargement(box, GRID)
    seen = box
    for _ in range(600):
        one = enlarged(box, GRID, random)
        assert one.contains(box) and largest.contains(one) and Box((0, 0, 0), GRID).contains(one)
        assert (np.subtract(box.start, one.start) <= most).all() and (np.subtract(one.stop, box.stop) <= most).all()
        seen = seen.union(one)
    assert seen == largest  # the union of all, and no more: with 600 draws each outermost voxel has been reached


def test_enlargement_is_the_formula():
    box, shape = Box((700, 800, 400), (900, 811, 650)), (2000, 2000, 2000)
    ratios = np.random.default_rng(7).uniform(1.0, 1.8, (2, 3))
    found = enlarged(box, shape, np.random.default_rng(7))
    for axis in range(3):
        length = box.stop[axis] - box.start[axis]
        assert found.start[axis] == np.floor(box.start[axis] - (ratios[0, axis] - 1) * length / 2)
        assert found.stop[axis] == np.ceil(box.stop[axis] + (ratios[1, axis] - 1) * length / 2)


def test_enlargement_is_uniform_and_its_edges_are_independent():
    # U(0, 0.4) of the length at each edge: mean 0.2, deviation 0.4 / sqrt(12) = 0.1155; rounding of a box of 10,000
    # voxels is nothing. 4000 draws know a mean to 0.002 and a correlation to 0.016: four times that is allowed.
    box, shape, random = Box((20_000,) * 3, (30_000,) * 3), (50_000,) * 3, np.random.default_rng(5)
    drawn = [enlarged(box, shape, random) for _ in range(4000)]
    growth = np.array([np.r_[np.subtract(box.start, b.start), np.subtract(b.stop, box.stop)] for b in drawn]) / 10_000
    np.testing.assert_allclose(growth.mean(axis=0), 0.2, atol=0.008)
    np.testing.assert_allclose(growth.std(axis=0), 0.4 / np.sqrt(12), atol=0.005)
    np.testing.assert_allclose(np.corrcoef(growth.T), np.eye(6), atol=0.064)


def test_enlargement_rounds_outward_and_is_clipped():
    # l = 10, 7, 5: (1.5 - 1) l / 2 = 2.5, 1.75, 1.25, outward 3, 2, 2; the second axis ends at the grid's edge.
    box, random = Box((10, 1, 10), (20, 8, 15)), np.random.default_rng(0)
    assert enlarged(box, (30, 9, 30), random, low=1.5, high=1.5) == Box((7, 0, 8), (23, 9, 17))
    assert enlarged(box, (30, 9, 30), random, low=1, high=1) == box
    # 0.4 l of 10, 5 and 15 is exactly 4, 2 and 6, though 0.4 is no binary number.
    assert largest_enlargement(Box((50, 50, 50), (60, 55, 65)), (99,) * 3) == Box((46, 48, 44), (64, 57, 71))
    assert largest_enlargement(Box((50,) * 3, (70,) * 3), (99,) * 3, high=1.1) == Box((49,) * 3, (71,) * 3)


def test_one_seed_is_one_sequence():
    first, second = (np.random.default_rng(4) for _ in range(2))
    enlarged(Box((0, 0, 0), (2, 2, 2)), GRID, first)
    enlarged(Box((9, 9, 9), (30, 30, 30)), GRID, second)
    assert first.random() == second.random()


def test_impossible_enlargements_are_refused():
    box, random = Box((0, 0, 0), (5, 5, 5)), np.random.default_rng(0)
    for low, high in ((0.9, 1.8), (1.5, 1.2), (1.0, np.nan)):
        with pytest.raises(ValueError, match="two ratios from 1 on in order"):
            enlarged(box, GRID, random, low=low, high=high)
    with pytest.raises(ValueError, match=r"reaches outside the grid \(4, 9, 9\); clip it first"):
        largest_enlargement(box, (4, 9, 9))


# --- from grid to grid ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ORIENTATIONS)
@pytest.mark.parametrize("here", ORIENTATIONS)
def test_mapping_between_turned_axes_is_exact(here, there):
    # Native voxels are exact thirds of the coarse ones, so nibabel's nearest-voxel resampling draws the box itself.
    native = oblique((36, 30, 24), (2.0, 2.0, 2.0), orientation=there, degrees=20)
    sizes = dict(zip(map(LINE.get, there), native.shape, strict=True))
    shape = tuple(sizes[LINE[letter]] // 3 for letter in here)
    coarse = covering(oblique(shape, (6.0, 6.0, 6.0), orientation=here, degrees=20), native)
    box = Box((1, 2, 3), (4, 3, 6))
    drawn = np.zeros(coarse.shape, np.uint8)
    drawn[box.slices] = 1
    image, target = nib.Nifti1Image(drawn, coarse.affine), (native.shape, native.affine)
    judge = nib.processing.resample_from_to(image, target, order=0)
    expected = tight_box(np.asarray(judge.dataobj).astype(np.uint8), 1)
    assert mapped(box, coarse, native, grow_voxels=0) == expected
    grown = mapped(box, coarse, native)  # one coarse voxel is three native ones, wherever the scan goes on
    assert grown == Box(tuple(np.subtract(expected.start, 3)), tuple(np.add(expected.stop, 3))).clipped(native.shape)


@pytest.mark.parametrize("degrees", [7.0, 30.0, 45.0])
@pytest.mark.parametrize("there", ORIENTATIONS)
def test_mapping_to_an_oblique_grid_is_the_hull_of_the_corners(there, degrees):
    coarse = oblique((20, 20, 20), (4.0, 4.0, 10.0), orientation="LPS", degrees=3)
    native = covering(oblique((200, 200, 200), (1.0, 1.3, 1.1), orientation=there, degrees=degrees), coarse)
    box = Box((8, 9, 6), (12, 11, 9))
    found = mapped(box, coarse, native, grow_voxels=0)
    world = nib.affines.apply_affine(coarse.affine, corners(box))
    hull = nib.affines.apply_affine(np.linalg.inv(native.affine), world)
    low, high = hull.min(axis=0) - found.edges[0], found.edges[1] - hull.max(axis=0)
    assert ((low > -1e-6) & (low < 1) & (high > -1e-6) & (high < 1)).all()  # outward, by less than a voxel
    grown = mapped(box, coarse, native, grow_voxels=1)
    assert grown == mapped(Box((7, 8, 5), (13, 12, 10)), coarse, native, grow_voxels=0)


def test_the_same_grid_changes_nothing():
    grid = oblique((20, 30, 10), (0.9375, 0.9375, 3.3), orientation="SPL", degrees=17)
    again = Geometry(grid.shape, grid.affine.astype(np.float32))  # as a NIfTI header stores it
    box = Box((3, 4, 5), (9, 30, 6))
    assert mapped(box, grid, again, grow_voxels=0) == box
    assert mapped(box, grid, again) == Box((2, 3, 4), (10, 30, 7))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_muscle_seen_coarsely_lies_in_its_mapped_box(orientation):
    # An ellipsoid sampled at coarse centres misses less than a coarse voxel at each end.
    native = oblique((80, 64, 44), (1.0, 1.5, 2.0), orientation=orientation, degrees=12)
    coarse = native.resized((24, 16, 8))
    offset = (np.indices(native.shape).reshape(3, -1).T - (41.3, 30.1, 20.7)) / (22, 13, 14)
    labels = Volume(((offset**2).sum(axis=1) <= 1).reshape(native.shape).astype(np.uint8), native)
    box = tight_box(resample_labels(labels, coarse).array, 1)
    found = mapped(box, coarse, native)
    truth = tight_box(labels.array, 1)
    assert found.contains(truth)
    ratio = np.array(native.shape) / coarse.shape
    assert (
        np.array(found.size) <= truth.size + 4 * ratio + 2
    ).all()  # at most two coarse voxels wide of it at each end


def test_a_box_beside_the_other_grid_is_refused():
    here, there = Geometry((9, 9, 9), np.eye(4)), Geometry((9, 9, 9), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 50)
    with pytest.raises(ValueError, match="lies wholly outside"):
        mapped(Box((0, 0, 0), (3, 3, 3)), here, there)


# --- sizes ------------------------------------------------------------------------------------------------------------


def finest_by_search(size, spacing, budget, multiple):
    """The same rule, by trying 50,001 spacings from coarse to fine."""
    best = None
    for mm in np.geomspace(max(size), min(spacing), 50_001):
        shape = [
            multiple * max(1, int(np.floor(a / max(mm, b) / multiple + 0.5)))
            for a, b in zip(size, spacing, strict=True)
        ]
        if np.prod(shape) > budget:
            break
        best = tuple(shape)
    return best


def test_grids_by_hand():
    fits = {"voxel_budget": 10**9, "multiple": 4}
    # 98 x 126 x 196 mm at 1 x 1 x 5 mm: 98, 126, 39.2 voxels, to multiples of 4.
    assert fitting_grid((98, 126, 196), (1, 1, 5), **fits) == ((100, 128, 40), (1, 1, 5))  # never finer than the scan
    assert fitting_grid((1, 1, 1), (1, 1, 5), voxel_budget=64, multiple=4)[0] == (4, 4, 4)
    # 1 x 1 x 5 mm is made of cubes of 4 mm but for the slices, which stay: 24 x 32 x 40.
    assert fitting_grid((96, 128, 200), (1, 1, 5), voxel_budget=24 * 32 * 40, multiple=8)[0] == (24, 32, 40)
    # Below one slice's thickness all three axes coarsen alike, to cubes of about 10 mm.
    shape, spacing = fitting_grid((80, 160, 400), (1, 1, 5), voxel_budget=8 * 16 * 40, multiple=4)
    assert shape == (8, 16, 40)
    assert np.ptp(spacing) == 0 and 9 < spacing[0] < 11


@pytest.mark.parametrize("seed", range(6))
def test_grids_are_the_finest_that_fit(seed):
    random = np.random.default_rng(seed)
    size, budget = random.uniform(40, 500, 3), int(random.uniform(2_000, 200_000))
    native, multiple = tuple(random.uniform(0.5, 6, 3)), int(random.choice([4, 8]))
    shape, spacing = fitting_grid(size, native, voxel_budget=budget, multiple=multiple)
    assert np.prod(shape) <= budget and all(edge % multiple == 0 for edge in shape)
    assert shape == finest_by_search(size, native, budget, multiple)
    assert (np.array(spacing) >= native).all()
    assert np.abs(np.array(shape) - np.maximum(size / spacing, multiple)).max() <= multiple / 2 + 1e-6


def test_grids_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="511 voxels do not hold one multiple of 8 .* at least 512"):
        fitting_grid((60, 50, 40), (1, 1, 1), voxel_budget=511, multiple=8)
    with pytest.raises(ValueError, match="three positive numbers each"):
        fitting_grid((1, 2), (1, 1, 1), voxel_budget=1000, multiple=4)
    with pytest.raises(ValueError, match="three positive numbers each"):
        fitting_grid((1, 0, 3), (1, 1, 1), voxel_budget=1000, multiple=4)
    with pytest.raises(ValueError, match="three positive numbers each"):
        fitting_grid((1, 1, 3), (1, 0, 1), voxel_budget=1000, multiple=4)


def test_boxes_of_a_real_leg(data_dir):
    labels = read_volume(data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz")
    boxes = tight_boxes(labels.array, range(1, 36))
    assert set(boxes) == set(range(1, 36))
    for key in (6, 22, 26):  # external rotators, popliteus, sartorius
        planes = [np.flatnonzero((labels.array == key).any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        assert boxes[key] == Box(tuple(p[0] for p in planes), tuple(p[-1] + 1 for p in planes))
    geometry = labels.geometry
    size = np.array(geometry.shape) * geometry.spacing
    coarse = geometry.resized(fitting_grid(size, geometry.spacing, voxel_budget=500_000, multiple=8)[0])
    for key, box in tight_boxes(resample_labels(labels, coarse).array, range(1, 36)).items():
        found = mapped(box, coarse, labels.geometry)
        assert found.overlap(boxes[key]).num_voxels > 0.97 * boxes[key].num_voxels  # thin ends may stick out
