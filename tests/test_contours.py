"""Outlines, their simplification and filling: hand arithmetic, naive loops, nibabel's affine, matplotlib's paths."""

import itertools
import math

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, label, minimum_filter

from tfmuscle.contours import Contour, contours_of, labels_from_contours, outlines, simplify, tolerance
from tfmuscle.errors import DataError
from tfmuscle.io import read_label_image
from tfmuscle.io.label_tables import names_of
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

MUSCLES = LabelMap({2: "soleus", 5: "popliteus", 9: "fibulari"}, ignore=255)
LARGEST_TOLERANCE = 1.5
"""Pixels; the formula's maximum over chords of a pixel or more is 1.42 (a long one at 45 degrees)."""


def rotation(x, y, z):
    def around(axis, angle):
        c, s = math.cos(angle), math.sin(angle)
        matrix = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
        return matrix

    return around(0, x) @ around(1, y) @ around(2, z)


def affine(matrix, origin=(-70.3, 11.9, 420.1)):
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = matrix, origin
    return whole


GRIDS = {
    "plain": (affine(np.diag([1.0, 1.0, 1.0])), 2),
    "flipped": (affine(np.diag([-0.8, -0.8, 3.0])), 2),
    "oblique": (affine(rotation(0.3, -0.2, 0.4) @ np.diag([0.9, -1.1, 5.0])), 2),
    "sagittal": (affine(np.array([[4.0, 0, 0], [0, 0, 0.7], [0, -0.7, 0]])), 0),
    "turned": (affine(np.array([[0, 0, 1.0], [0, 1.0, 0], [-1.0, 0, 0]])), 0),  # equal sizes: axis 0 runs foot-head
}


def blobs(shape=(24, 21, 19), seed=0, *, sigma=2.0, singles=30):
    """Ids 0, 2, 5, 9, 255 in smooth patches with holes and single voxels, up to the borders of the grid."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=shape), sigma) for _ in range(5)]
    array = np.array([0, 2, 5, 9, 255], np.uint8)[np.argmax(fields, axis=0)]
    array[tuple(rng.integers(0, shape, (singles, 3)).T)] = 5
    return array


def shoelace(points):
    a, b = points.T
    return float(a @ np.roll(b, -1) - b @ np.roll(a, -1)) / 2


def disc(radius):
    places = np.indices((2 * radius + 5,) * 2) - (radius + 2)
    return (places**2).sum(axis=0) <= radius**2


# simplifying


def test_a_square_of_many_points_becomes_its_corners():
    corners = [(0, 0), (0, 20), (20, 20), (20, 0)]
    sides = zip(corners, corners[1:] + corners[:1], strict=True)
    points = [np.array(a) + (np.array(b) - a) * n / 20 for a, b in sides for n in range(20)]
    assert len(points) == 80
    assert {tuple(point) for point in simplify(np.array(points)).tolist()} == set(corners)
    closed = np.concatenate([points, points[:1]])  # a last point that repeats the first is no corner
    assert len(simplify(closed)) == 4


def test_collinear_points_vanish_at_any_slope():
    rng = np.random.default_rng(1)
    for _ in range(50):
        corners = rng.uniform(-1, 1, (3, 2)) * 100
        if abs(shoelace(corners)) < 1000:  # a flat triangle is itself nearly a line
            continue
        sides = zip(corners, np.roll(corners, -1, axis=0), strict=True)
        points = np.concatenate([a + (b - a) * np.sort(np.append(rng.uniform(0, 1, 9), 0))[:, None] for a, b in sides])
        kept = simplify(points)
        assert sorted(kept.tolist()) == sorted(corners.tolist())


@pytest.mark.parametrize("seed", range(6))
def test_simplified_outlines_against_a_naive_loop(seed):
    mask = blobs((60, 60, 1), seed)[..., 0] == 2
    for points in outlines(mask):
        found = simplify(points)
        expected = naive(points.tolist())
        assert found.tolist() == expected
        assert len(found) <= len(points)
        far = max(itertools.combinations(points.tolist(), 2), key=lambda pair: math.dist(*pair))
        if len(found) < len(points):  # both ends of a longest chord stay
            assert math.isclose(max(math.dist(found[0], other) for other in found), math.dist(*far))


def test_hooks_and_spikes_against_a_naive_loop():
    # points that lie beyond the ends of their chord, or come back to its start, which chords of outlines seldom have
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(60, 2)) * (30, 1)
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        assert simplify(points).tolist() == naive(points.tolist())


def naive(points):
    """Ramer-Douglas-Peucker in words: recursion, plain numbers, distance to the segment."""
    pairs = itertools.combinations(range(len(points)), 2)
    start, opposite = max(pairs, key=lambda pair: round(math.dist(points[pair[0]], points[pair[1]]), 9))
    ring = points[start:] + points[:start]

    def between(part):
        a, b, middle = part[0], part[-1], part[1:-1]
        offs = [off(point, a, b) for point in middle]
        if not offs or max(offs) <= limit(a, b):
            return []
        worst = 1 + offs.index(max(offs))
        return [*between(part[: worst + 1]), part[worst], *between(part[worst:])]

    half = opposite - start
    kept = [ring[0], *between(ring[: half + 1]), ring[half], *between([*ring[half:], ring[0]])]
    return kept if len(kept) > 2 else ring


def off(point, a, b):
    """Distance of a point to a segment."""
    squared = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
    along = ((point[0] - a[0]) * (b[0] - a[0]) + (point[1] - a[1]) * (b[1] - a[1])) / squared if squared else 0
    along = min(1, max(0, along))
    return math.dist(point, (a[0] + along * (b[0] - a[0]), a[1] + along * (b[1] - a[1])))


def limit(a, b):
    s = math.dist(a, b)
    if s == 0:
        return 0
    cos, sin = (b[1] - a[1]) / s, (b[0] - a[0]) / s
    t = (abs(cos) + abs(sin)) / s
    return s * max(math.atan(abs(sin + sign * cos) * (1 - t + t * t) / s) for sign in (-1, 1))


def test_tolerance_by_hand():
    def of(rise, run):
        return tolerance(np.zeros(2), np.array([rise, run], float))

    assert of(0, 0) == 0
    assert of(0, 10) == pytest.approx(10 * math.atan(0.91 / 10))  # t = 0.1
    assert of(10, 0) == pytest.approx(of(0, 10)) == pytest.approx(of(-10, 0))  # vertical chords are like others
    t = 0.4  # 3-4-5: (0.6 + 0.8) / 3.5 of the length 3.5
    assert of(2.1, 2.8) == pytest.approx(3.5 * math.atan(1.4 * (1 - t + t * t) / 3.5))
    lengths = [
        of(*(size * np.array([math.sin(angle), math.cos(angle)]))) for size in (1, 3, 9, 99) for angle in range(9)
    ]
    assert 0.7 < min(lengths) < max(lengths) < LARGEST_TOLERANCE


@pytest.mark.parametrize("place", [1, 25, 49])
def test_every_point_of_a_chord_is_tested(place):
    # one point of a straight side sticks out by 3 pixels, also right after and right before its ends
    side = [(0, n) for n in range(50)]
    side[place] = (-3, place)
    points = np.array([*side, (0, 50), (20, 50), (20, 0)])
    assert [-3, place] in simplify(points).tolist()


def test_the_area_of_a_circle_is_kept():
    # no point of the circle lies farther from its chord than the tolerance; bows and cut corners together change the
    # area by less than two thirds of that along the whole circle
    for radius in (5, 10, 20, 50):
        before = outlines(disc(radius))[0]
        after = simplify(before)
        bound = 2 / 3 * LARGEST_TOLERANCE * 2 * math.pi * radius
        assert abs(abs(shoelace(after)) - abs(shoelace(before))) < bound
        assert len(after) < len(before) / 2
        assert abs(shoelace(after) / shoelace(before) - 1) < 0.05 or radius == 5


def test_small_structures_do_not_vanish():
    for shape in ((1, 1), (1, 2), (1, 9), (2, 2)):
        kept = simplify(outlines(np.ones(shape, bool))[0])
        assert len(kept) == 4 and abs(shoelace(kept)) == shape[0] * shape[1]


@pytest.mark.parametrize("points", [np.zeros((5, 3)), np.zeros(4), np.full((5, 2), np.nan)])
def test_points_that_are_none(points):
    with pytest.raises(ValueError, match=r"points of shape .*finite numbers \(N, 2\) in pixels are needed"):
        simplify(points)


# outlines


@pytest.mark.parametrize("seed", range(4))
def test_outlines_enclose_the_area_of_the_pixels(seed):
    mask = np.random.default_rng(seed).random((15, 22)) < 0.6  # holes, and pixels that touch at corners
    found = outlines(mask)
    areas = np.array([-shoelace(points) for points in found])
    assert areas.sum() == mask.sum()  # holes run the other way
    around = label(~np.pad(mask, 1), np.ones((3, 3)))[1]  # what touches at a corner only: structures no, background yes
    assert ((areas > 0).sum(), (areas < 0).sum()) == (label(mask)[1], around - 1)
    for points in found:
        assert set(np.unique(points % 1)) == {0.5}
        steps = np.diff(points, axis=0, append=points[:1])
        assert ((steps != 0).sum(axis=1) == 1).all()  # along the pixels, and every point is a turn
        assert (steps[:, 0].astype(bool) != np.roll(steps[:, 0].astype(bool), 1)).all()


def test_pixels_that_touch_at_a_corner_are_two_outlines():
    assert [len(points) for points in outlines(np.eye(2, dtype=bool))] == [4, 4]
    assert outlines(np.zeros((3, 3), bool)) == []


# contours in the world, and back


@pytest.mark.parametrize("name", GRIDS)
def test_contours_give_the_labels_back(name, tmp_path):
    matrix, axis = GRIDS[name]
    nib.save(nib.Nifti1Image(blobs(), matrix), tmp_path / "labels.nii.gz")
    labels = read_label_image(tmp_path / "labels.nii.gz")
    found = contours_of(labels, MUSCLES, simplified=False)
    again = labels_from_contours(found, labels.geometry, MUSCLES)
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.array.dtype == np.uint8 and again.geometry.same_grid(labels.geometry)
    # where nibabel says that the voxels are: on their faces in the slice, on their centres along the axis
    written = nib.load(tmp_path / "labels.nii.gz").affine
    for contour in found:
        index = apply_affine(np.linalg.inv(written), contour.points)
        number = int(contour.name.split("-")[1])
        np.testing.assert_allclose(index[:, axis], number, atol=1e-4)  # float32 in the header
        np.testing.assert_allclose(np.delete(index, axis, 1) % 1, 0.5, atol=1e-4)
    assert {contour.structure for contour in found} == {"soleus", "popliteus", "fibulari", "ignore"}
    order = [contour.name for contour in found if contour.structure == "soleus"]
    assert order == sorted(order) and len(set(order)) == len(order)


@pytest.mark.parametrize("name", GRIDS)
def test_simplified_contours_stay_near_the_labels(name):
    smooth = blobs((40, 40, 40), sigma=5.0, singles=0)
    labels = Volume(smooth, Geometry(smooth.shape, GRIDS[name][0]))
    found = contours_of(labels, MUSCLES)
    again = labels_from_contours(found, labels.geometry, MUSCLES).array
    corners = sum(contour.corners for contour in found)
    assert corners == sum(len(contour.points) for contour in contours_of(labels, MUSCLES, simplified=False))
    assert sum(len(contour.points) for contour in found) < 0.4 * corners
    # a voxel that changed lies within the tolerance of its own border
    moved = np.argwhere(again != smooth)
    assert 0 < len(moved) < 0.1 * smooth.size
    # two voxels from any border, that of the grid included
    inner = [minimum_filter(smooth == key, 5, mode="constant") for key in np.unique(smooth)]
    assert not np.any(inner, axis=0)[tuple(moved.T)].any()


def test_filling_against_matplotlib():
    rng = np.random.default_rng(5)
    grid = Geometry((3, 40, 50), affine(rotation(0.1, 0.2, 0.3) @ np.diag([6.0, 1.0, 1.3])))
    angles = np.sort(rng.uniform(0, 2 * math.pi, 30))
    star = np.stack([20 + 15 * np.cos(angles), 25 + 20 * np.sin(angles)], 1) + rng.uniform(-3, 3, (30, 2))
    hole = star[::3] * 0.4 + np.array([20, 25]) * 0.6
    drawn = [Contour("soleus", grid.world(np.insert(ring, 0, 1, axis=1))) for ring in (star, hole)]
    labels = labels_from_contours([*drawn, drawn[0]], grid, MUSCLES)  # one that is there twice counts once
    centres = np.indices((40, 50)).reshape(2, -1).T
    inside = Polygon(star).contains_points(centres) ^ Polygon(hole).contains_points(centres)
    sides = [side for ring in (star, hole) for side in zip(ring, np.roll(ring, -1, axis=0), strict=True)]
    clear = np.array([min(off(centre, *side) for side in sides) > 0.01 for centre in centres])  # nor on a contour
    np.testing.assert_array_equal((labels.array[1] == 2).ravel()[clear], inside[clear])
    assert inside.sum() > 500 and clear.mean() > 0.99
    assert not labels.array[[0, 2]].any()


def test_a_voxel_in_two_structures_goes_where_it_lies_deepest():
    grid = Geometry((1, 4, 12), np.diag([5.0, 1.0, 1.0, 1.0]))

    def box(name, first, last):
        ring = [(0, -0.5, first), (0, 3.5, first), (0, 3.5, last), (0, -0.5, last)]
        return Contour(name, grid.world(ring))

    labels = labels_from_contours([box("fibulari", -0.5, 7.4), box("soleus", 3.6, 11.5)], grid, MUSCLES)
    # columns 4..7 are in both. Row 1 is 1.5 mm from the upper sides: depths are min(1.5, 7.4 - n) and min(1.5, n - 3.6)
    # for n = 4, 5, 6, 7: fibulari 1.5, 1.5, 1.4, 0.4 and soleus 0.4, 1.4, 1.5, 1.5
    assert labels.array[0, 1].tolist() == [9] * 6 + [2] * 6
    # row 0 is 0.5 mm from the upper sides: 0.5, 0.5, 0.5, 0.4 and 0.4, 0.5, 0.5, 0.5; of equals the lowest id, soleus
    assert labels.array[0, 0].tolist() == [9] * 5 + [2] * 7


def test_nothing_drawn_is_nothing_labelled():
    grid = Geometry((2, 3, 4), np.eye(4))
    assert not labels_from_contours([], grid, MUSCLES).array.any()
    assert contours_of(Volume(np.zeros((2, 3, 4), int), grid), MUSCLES) == ()
    with pytest.raises(ValueError, match="label id 7 is not in the label map"):
        contours_of(Volume(np.full((2, 3, 4), 7), grid), MUSCLES)


@pytest.mark.parametrize(
    ("structure", "ring", "message"),
    [
        (
            "tibia",
            [(1, 1, 1), (1, 3, 1), (1, 3, 3)],
            "a.mrk.json: curve 'x' is of the structure 'tibia'; there are sol",
        ),
        ("soleus", [(1, 1, 1), (1, 3, 1)], "fewer than three points, which enclose nothing"),
        ("soleus", [(1, 1, 1), (1, 3, 1), (3, 3, 3)], r"leaves its slice \(number 1 along axis 0\) by 2.0 slices"),
        ("soleus", [(9, 1, 1), (9, 3, 1), (9, 3, 3)], "lies outside the scan's grid"),
        ("soleus", [(1, 31, 1), (1, 33, 1), (1, 33, 3)], "lies outside the scan's grid"),
    ],
)
def test_contours_that_cannot_be_filled(structure, ring, message):
    grid = Geometry((5, 6, 7), affine(np.diag([-3.0, 1.0, 1.0])))
    flat = Contour("soleus", grid.world([(2, 1, 1), (2, 4, 1), (2, 4, 4)]))
    contour = Contour(structure, grid.world(ring), "x", source="a.mrk.json")
    with pytest.raises(DataError, match=message):
        labels_from_contours([flat, flat, contour], grid, MUSCLES)


def test_a_contour_that_leaves_the_grid_in_part_is_cut():
    grid = Geometry((1, 4, 4), np.diag([3.0, 1.0, 1.0, 1.0]))
    ring = grid.world([(0.4, -9, 1.5), (0, 1.5, 1.5), (0, 1.5, 9), (-0.4, -9, 9)])  # and a little off its slice
    assert labels_from_contours([Contour("soleus", ring)], grid, MUSCLES).array[0].tolist() == (
        [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    )


def test_muscles_of_a_real_leg(data_dir):
    path = data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz"
    label_map = names_of(path)
    labels = read_label_image(path)
    labels = labels.cropped((0, 0, 430), (*labels.geometry.shape[:2], 460))  # 30 slices of the thigh
    raw = contours_of(labels, label_map, simplified=False)
    np.testing.assert_array_equal(labels_from_contours(raw, labels.geometry, label_map).array, labels.array)
    few = contours_of(labels, label_map)
    again = labels_from_contours(few, labels.geometry, label_map).array
    assert sum(len(one.points) for one in few) < 0.2 * sum(len(one.points) for one in raw)
    for key in np.unique(labels.array[labels.array > 0]).tolist():
        before, after = labels.array == key, again == key
        # chords off by at most 1.5 voxels; the thinnest muscles of the whole leg come out at 0.960
        assert 2 * (before & after).sum() / (before.sum() + after.sum()) > 0.93, label_map.names[key]
