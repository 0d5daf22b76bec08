"""Volumes, lengths and areas against closed forms on grids of every kind, and against SimpleITK and nibabel."""

import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from measuring_phantoms import GRIDS, cone, cylinder, grid, labels, rotation, spheroid

from tfmuscle.labels import LabelMap
from tfmuscle.measuring import cutouts, limb_axis, measure_structures
from tfmuscle.measuring.limb import moments
from tfmuscle.volume import Geometry, Volume

RADIUS, LENGTH = 20.0, 127.0
CENTRE = (7.3, -30.1, 400.7)
CLOSED = {  # body -> volume over that of the cylinder
    "cylinder": (cylinder, 1.0),
    "cone": (cone, 1 / 3),
    "spheroid": (spheroid, 2 / 3),
}
NAMES = LabelMap({1: "body"})


def normal(directions):
    """Direction of the axis nearest to foot-head, towards the head."""
    column = directions[:, int(np.argmax(np.abs(directions[2])))]
    return column * np.sign(column[2])


def size(long_first, width, length):
    return (length, width, width) if long_first else (width, width, length)


def whole_slices(geometry):
    """About `LENGTH`, but as many slices as lie within it around the grid's centre, so that no end cuts a slice."""
    axis = limb_axis("slices", geometry)
    odd = geometry.shape[axis.slice_axis] % 2
    return (2 * round((LENGTH / axis.step_mm - odd) / 2) + odd) * axis.step_mm


def only(array, geometry, **options):
    (found,) = measure_structures(Volume(array, geometry), NAMES, **options)
    return found


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("body", CLOSED)
class TestClosedForms:
    def check(self, found, share, length=LENGTH):
        row, area = found.row(), math.pi * RADIUS**2 / 100
        pointed = share == 1 / 3
        assert row["volume_ml"] == pytest.approx(share * area * length / 10, rel=0.01)
        # what is thinner than a voxel at the tip of a cone is not in the labels
        tip = np.hypot(*sorted(found.axis.grid.spacing)[:2]) / 2 * length / RADIUS if pointed else 0.0
        assert length * 0.99 - tip <= row["length_mm"] <= length * 1.01
        base = (1 - 2 * found.axis.step_mm / length) ** 2 if pointed else 1  # the slab at a base may hold a part of it
        assert 0.99 * base * area <= row["max_area_cm2"] <= 1.01 * area
        assert row["mean_area_cm2"] * row["length_mm"] == pytest.approx(share * area * length, rel=0.01)
        assert pointed or row["fill"] == pytest.approx(share, rel=0.02)
        assert found.profile.area_cm2.sum() * found.axis.step_mm / 10 == pytest.approx(row["volume_ml"], rel=1e-9)

    def test_slices_across_the_limb(self, body, name):
        spacing, directions = GRIDS[name]
        geometry = grid(size("axes" in name, 48, LENGTH + 14), spacing, directions, CENTRE)
        length, (make, share) = whole_slices(geometry), CLOSED[body]
        mask = make(geometry, RADIUS, length, direction=normal(directions), centre=CENTRE)
        self.check(only(labels(mask), geometry), share, length)

    def test_slices_aslant_the_patient(self, body, name):
        spacing, directions = GRIDS[name]
        geometry = grid(size("axes" in name, 88, LENGTH + 24), spacing, directions, (0.2, 0.4, 0.1))
        length, (make, share) = whole_slices(geometry), CLOSED[body]
        mask = make(geometry, RADIUS, length, centre=(0.2, 0.4, 0.1))
        self.check(only(labels(mask), geometry, axis="patient"), share, length)


@pytest.mark.parametrize("body", CLOSED)
def test_a_leg_aslant_the_scan_has_an_axis_of_its_own(body):
    make, share = CLOSED[body]
    direction = rotation(15, -20) @ (0, 0, 1)
    geometry = grid((90, 90, 150), (1.0, 1.0, 1.0))
    found = only(labels(make(geometry, RADIUS, LENGTH, direction=direction)), geometry, axis="labels")
    np.testing.assert_allclose(found.axis.direction, direction, atol=2e-3)
    TestClosedForms().check(found, share)
    # along the slices' normal a cylinder is longer by its tilted ends, and its section is an ellipse
    if body == "cylinder":
        cosine = direction[2]
        aslant = only(labels(make(geometry, RADIUS, LENGTH, direction=direction)), geometry)
        assert aslant.shape.length_mm == pytest.approx(
            LENGTH * cosine + 2 * RADIUS * math.sqrt(1 - cosine**2), rel=0.01
        )
        assert np.median(aslant.profile.area_cm2) == pytest.approx(math.pi * RADIUS**2 / 100 / cosine, rel=0.01)


def test_every_place_of_a_profile_has_its_closed_form():
    geometry = grid((64, 64, 150), (0.8, 0.8, 1.0), rotation(7, 11))
    found = only(labels(cone(geometry, 20, LENGTH)), geometry, axis="patient")
    height = found.profile.position_mm + LENGTH / 2
    inside = (height > 2) & (height < LENGTH / 2)
    truth = math.pi * (20 * (1 - height / LENGTH)) ** 2 / 100
    np.testing.assert_allclose(found.profile.area_cm2[inside], truth[inside], rtol=0.012)
    assert found.row()["max_area_percent"] == pytest.approx(0, abs=1.5)


def test_slices_are_those_of_the_file():
    geometry = grid((20, 20, 30), (1.0, 1.0, 1.0), np.diag([-1.0, 1.0, -1.0]))  # slice 0 lies uppermost
    array = np.zeros(geometry.shape, np.uint8)
    array[5:10, 5:10, 3], array[5:9, 5:9, 4], array[5:8, 5:8, 7] = 1, 1, 1
    found = only(array, geometry)
    assert found.profile.slices.tolist() == [7, 7, 4, 4, 3]  # foot to head; gaps take the nearest, the lower first
    np.testing.assert_allclose(found.profile.area_cm2, [0.09, 0, 0, 0.16, 0.25])
    assert found.row()["max_area_slice"] == 3
    assert found.row()["length_mm"] == pytest.approx(5.0)
    np.testing.assert_allclose(found.profile.position_mm, 14.5 - np.array([7, 6, 5, 4, 3]))


def test_sheared_grids_have_slabs_of_their_true_thickness():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 1.0  # slices shift by 1 mm each, as a tilted gantry does
    array = np.ones((10, 10, 5), np.uint8)
    found = only(np.pad(array, 2), Geometry((14, 14, 9), affine))
    assert found.shape.volume_ml == pytest.approx(10 * 10 * 10 / 1000)
    assert found.shape.length_mm == pytest.approx(10.0)
    np.testing.assert_allclose(found.profile.area_cm2, 1.0)


class TestBounds:
    def test_a_block_counted_by_hand(self):
        array = np.zeros((12, 11, 10), np.uint8)
        array[2:8, 3:8, 4:8] = 1  # 6 x 5 x 4
        shape = only(array, Geometry(array.shape, np.diag([1.0, 1.0, 2.0, 1.0]))).shape
        assert shape.inner_ml == pytest.approx(4 * 3 * 2 * 2 / 1000)
        assert shape.volume_ml == pytest.approx(6 * 5 * 4 * 2 / 1000)
        assert shape.outer_ml == pytest.approx((120 + 2 * (30 + 24 + 20)) * 2 / 1000)

    def test_the_edge_of_the_scan_is_no_surface(self):
        array = np.zeros((6, 6, 6), np.uint8)
        array[:, :, :3] = 1
        shape = only(array, Geometry(array.shape, np.eye(4))).shape
        assert (shape.inner_ml, shape.volume_ml, shape.outer_ml) == pytest.approx((0.072, 0.108, 0.144))
        assert {key: (b.voxels, b.slices) for key, b in shape.borders.items()} == {
            "L": (18, (0, 2)), "R": (18, (0, 2)), "P": (18, (0, 2)), "A": (18, (0, 2)), "I": (36, (0, 0)),
        }  # fmt: skip

    def test_a_structure_may_fill_its_scan(self):
        shape = only(np.ones((3, 4, 5), np.uint8), Geometry((3, 4, 5), np.diag([1.0, 1.0, 4.0, 1.0]))).shape
        assert shape.inner_ml == shape.volume_ml == shape.outer_ml == pytest.approx(0.24)
        assert shape.length_mm == pytest.approx(20.0)

    def test_what_nobody_labelled_is_neither_inside_nor_outside(self):
        array = np.zeros((7, 7, 7), np.uint8)
        array[2:5, 2:5, 2:5] = 1
        array[5:] = 255
        (found,) = measure_structures(
            Volume(array, Geometry(array.shape, np.eye(4))), LabelMap({1: "body"}, ignore=255)
        )
        # as if it went on: of 27 voxels the middle one and the one towards the unknown have no face to background
        assert found.shape.inner_ml == pytest.approx(0.002)
        assert found.shape.outer_ml == pytest.approx((27 + 5 * 9) / 1000)
        assert found.shape.unlabelled_contacts == 9
        assert found.row()["cut"] == "unlabelled"

    def test_the_truth_of_a_ball_lies_between_them(self):
        geometry = grid((50, 50, 50), (1.0, 1.0, 1.5), rotation(10, 20, 30))
        shape = only(labels(spheroid(geometry, 20, 40)), geometry).shape
        truth = 4 / 3 * math.pi * 20**3 / 1000
        assert shape.inner_ml < truth < shape.outer_ml
        # a layer of voxels that share a face covers the surface by 2/3 of a voxel of its projection on each axis
        assert shape.outer_ml - shape.volume_ml == pytest.approx(shape.volume_ml - shape.inner_ml, rel=0.15)


@pytest.mark.parametrize("name", GRIDS)
def test_simpleitk_and_nibabel_measure_the_same(name, tmp_path):
    spacing, directions = GRIDS[name]
    geometry = grid((70, 70, 70), spacing, directions, (3.0, 2.0, 1.0))
    one = spheroid(geometry, 14, 50, centre=(-8, 0, 3))
    two = cone(geometry, 9, 40, centre=(18, 4, 0))
    array = labels(one, two & ~one)
    found = {one.key: one for one in measure_structures(Volume(array, geometry), LabelMap({1: "a", 2: "b"}))}
    image = nib.Nifti1Image(array, geometry.affine)
    nib.save(image, tmp_path / "labels.nii.gz")
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(sitk.ReadImage(tmp_path / "labels.nii.gz"))
    for key in (1, 2):
        x, y, z = statistics.GetCentroid(key)
        assert found[key].shape.volume_ml == pytest.approx(statistics.GetPhysicalSize(key) / 1000, rel=1e-6)
        assert found[key].shape.centroid_mm == pytest.approx((-x, -y, z), abs=1e-3)  # SimpleITK speaks LPS
    zooms = np.prod(image.header.get_zooms())
    assert found[1].shape.volume_ml == pytest.approx(np.count_nonzero(image.get_fdata() == 1) * zooms / 1000, rel=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_simpleitk_finds_the_same_long_axis(name):
    spacing, directions = GRIDS[name]
    geometry = grid((90, 90, 90), spacing, directions)
    direction = rotation(25, -10, 0) @ (0, 0, 1)
    array = labels(spheroid(geometry, 10, 80, direction=direction))
    found = only(array, geometry, axis="labels").axis.direction
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(geometry.spacing)
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetDirection((flip @ geometry.affine[:3, :3] / geometry.spacing).ravel().tolist())
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(image)
    long = flip @ np.array(statistics.GetPrincipalAxes(1)).reshape(3, 3)[2]
    assert abs(found @ long) == pytest.approx(1, abs=1e-6)
    assert found @ direction == pytest.approx(1, abs=1e-3)


class TestLimb:
    def test_percent_of_all_labels_of_the_side(self):
        array = np.zeros((20, 5, 20), np.uint8)
        array[2:4, 2, 2:12], array[2:4, 2, 12:18] = 1, 2  # left: z 2..17
        array[15:17, 2, 5:9] = 3  # right: z 5..8
        table = LabelMap({1: "tibia_left", 2: "soleus_left", 3: "soleus_right"})
        found = measure_structures(Volume(array, Geometry(array.shape, np.eye(4))), table)
        assert [one.limb_mm for one in found] == [(1.5, 17.5), (1.5, 17.5), (4.5, 8.5)]
        by_shin = measure_structures(Volume(array, Geometry(array.shape, np.eye(4))), table, landmark="tibia")
        assert [one.limb_mm for one in by_shin] == [(1.5, 11.5), (1.5, 11.5), None]
        assert by_shin[1].row()["max_area_limb_percent"] == pytest.approx(105.0)  # middle of slice 12
        assert math.isnan(by_shin[2].row()["max_area_limb_percent"])

    def test_each_leg_has_its_own_axis(self):
        geometry = grid((150, 60, 150), (1.5, 1.5, 1.5))
        left, right = rotation(0, -12) @ (0, 0, 1), rotation(0, 12) @ (0, 0, 1)
        one = cylinder(geometry, 8, 100, direction=left, centre=(-40, 0, 0))
        two = cylinder(geometry, 8, 100, direction=right, centre=(40, 0, 0))
        table = LabelMap({1: "soleus_left", 2: "soleus_right"})
        found = measure_structures(Volume(labels(one, two), geometry), table, axis="labels")
        np.testing.assert_allclose(found[0].axis.direction, left, atol=4e-3)
        np.testing.assert_allclose(found[1].axis.direction, right, atol=4e-3)
        assert found[0].shape.length_mm == pytest.approx(100, rel=0.01)

    def test_moments_are_those_of_numpy(self):
        mask = np.random.default_rng(1).random((4, 5, 6)) > 0.6
        start = np.array([3, 0, 7])
        found, index = moments(mask, start), np.argwhere(mask) + start
        assert found.count == len(index)
        np.testing.assert_allclose(found.first, index.sum(axis=0))
        np.testing.assert_allclose(found.second, index.T @ index)

    def test_wrong_arguments(self):
        geometry = Geometry((2, 2, 2), np.eye(4))
        with pytest.raises(ValueError, match="axis is 'bone'; choose from slices, patient, labels"):
            limb_axis("bone", geometry)
        with pytest.raises(ValueError, match="nothing is labelled"):
            limb_axis("labels", geometry)
        with pytest.raises(ValueError, match="no structure is called 'tibia'; there are body"):
            only(np.ones((2, 2, 2), np.uint8), geometry, landmark="tibia")


class TestCutouts:
    def test_large_ids_and_absent_ones(self):
        array = np.zeros((5, 5, 5), np.uint32)
        array[1:3, 2, 2], array[4, 4, 4] = 4_000_000_000, 7
        volume = Volume(array, Geometry(array.shape, np.eye(4)))
        found = dict(cutouts(volume, [7, 9, 4_000_000_000]))
        assert {key: int(one.mask.sum()) for key, one in found.items()} == {7: 1, 4_000_000_000: 2}
        assert found[4_000_000_000].box == (slice(0, 4), slice(1, 4), slice(1, 4))

    def test_nothing_labelled(self):
        empty = Volume(np.zeros((3, 3, 3), np.uint8), Geometry((3, 3, 3), np.eye(4)))
        assert measure_structures(empty, NAMES) == ()
        assert measure_structures(empty, NAMES, axis="labels") == ()

    def test_one_voxel(self):
        array = np.zeros((3, 3, 3), np.uint8)
        array[1, 1, 1] = 1
        row = only(array, Geometry(array.shape, np.diag([1.0, 2.0, 3.0, 1.0]))).row()
        assert row["volume_ml"] == pytest.approx(0.006)
        assert row["length_mm"] == pytest.approx(3.0)
        assert row["max_area_cm2"] == pytest.approx(0.02)
        assert (row["inner_ml"], row["fill"], row["pieces"], row["cut"]) == pytest.approx((0, 1, 1, "")[:2] + (1, ""))

    def test_pieces_touch_not_even_with_a_corner(self):
        array = np.zeros((9, 9, 9), np.uint8)
        array[1:4, 1:4, 1:4], array[4, 4, 4], array[7, 7, 7] = 1, 1, 1  # a corner touches, the last one does not
        shape = only(array, Geometry(array.shape, np.eye(4))).shape
        assert [(round(1000 * piece.volume_ml), piece.slices) for piece in shape.pieces] == [(28, (1, 4)), (1, (7, 7))]
        assert shape.pieces[1].centroid_mm == (7, 7, 7)
        assert shape.outside_largest == pytest.approx(1 / 29)
