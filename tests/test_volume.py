"""Grids, volumes, sweeps and meshes: judged by hand, by nibabel and by relations between world positions."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tfmuscle.volume import Geometry, Mesh, Sweep, Volume

TILT = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1, 0, 0], [0, 0.28, -0.96], [0, 0.96, 0.28]]
)


def affine(direction, spacing, origin=(5.0, -7.0, 11.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(direction, float) * spacing
    matrix[:3, 3] = origin
    return matrix


GRIDS = {
    "RAS": affine(np.eye(3), (1, 1, 1)),
    "LPS": affine(np.diag([-1, -1, 1]), (1, 2, 3)),
    "LAS": affine(np.diag([-1, 1, 1]), (0.9, 0.9, 5)),
    "ASL": affine([[0, 0, -1], [1, 0, 0], [0, 1, 0]], (0.9, 0.9, 5)),
    "oblique": affine(TILT, (0.7, 1.1, 2.3)),
    "left_handed": affine(TILT @ np.diag([1, 1, -1]), (0.7, 1.1, 2.3)),
}


def volume_on(matrix, shape=(3, 4, 5)):
    return Volume(np.arange(np.prod(shape)).reshape(shape), Geometry(shape, matrix), "scan.nii")


def places(volume):
    """World position of every value, as a dictionary; values are all different."""
    index = np.indices(volume.array.shape).reshape(3, -1).T
    return dict(zip(volume.array[tuple(index.T)].tolist(), volume.geometry.world(index), strict=True))


def assert_same_places(one, other):
    first, second = places(one), places(other)
    assert first.keys() == second.keys()
    assert all(np.allclose(first[key], second[key], atol=1e-9) for key in first)


def test_spacing_volume_and_orientation_by_hand():
    grid = Geometry((10, 20, 30), affine([[0, 0, -1], [1, 0, 0], [0, 1, 0]], (0.9, 0.8, 5)))
    assert grid.spacing == pytest.approx((0.9, 0.8, 5.0))
    assert grid.orientation == "ASL"  # i to the front, j up, k to the left
    assert grid.voxel_volume_ml == pytest.approx(0.9 * 0.8 * 5 / 1000)
    assert grid.world((1, 2, 3)).tolist() == pytest.approx([5 - 15, -7 + 0.9, 11 + 1.6])


def test_a_sheared_voxel_has_the_volume_of_base_times_height():
    matrix = np.diag([2.0, 3.0, 5.0, 1.0])
    matrix[0, 2] = 4.0  # slices slide by 4 mm: height stays 5, the step is sqrt(41)
    grid = Geometry((1, 1, 1), matrix)
    assert grid.voxel_volume_ml == pytest.approx(0.030)
    assert grid.spacing[2] == pytest.approx(41**0.5)


@pytest.mark.parametrize("name", GRIDS)
def test_orientation_and_zooms_agree_with_nibabel(name):
    grid = Geometry((3, 4, 5), GRIDS[name])
    assert grid.orientation == "".join(nib.aff2axcodes(GRIDS[name]))
    assert grid.spacing == pytest.approx(tuple(nib.affines.voxel_sizes(GRIDS[name])))


@pytest.mark.parametrize("name", GRIDS)
def test_index_undoes_world_and_agrees_with_nibabel(name):
    grid = Geometry((3, 4, 5), GRIDS[name])
    index = np.random.default_rng(0).uniform(-2, 9, (2, 7, 3))
    assert np.allclose(grid.index(grid.world(index)), index)
    assert np.allclose(grid.world(index), nib.affines.apply_affine(GRIDS[name], index))


@pytest.mark.parametrize("code", ["RAS", "SPL", "LPS", "ILA", "ASR"])
@pytest.mark.parametrize("name", GRIDS)
def test_reorienting_moves_no_voxel_in_the_world(name, code):
    volume = volume_on(GRIDS[name])
    turned = volume.reoriented(code)
    assert turned.geometry.orientation == code
    assert turned.source == "scan.nii"
    assert_same_places(volume, turned)
    judge = nib.Nifti1Image(volume.array.astype(np.int32), volume.geometry.affine)
    judge = judge.as_reoriented(volume.geometry.transform_to(code))
    assert np.allclose(judge.affine, turned.geometry.affine)
    assert (np.asarray(judge.dataobj) == turned.array).all()
    back = turned.reoriented(volume.geometry.orientation)
    assert (back.array == volume.array).all()
    assert back.geometry.same_grid(volume.geometry)


def test_reorienting_agrees_with_simpleitk():
    volume = volume_on(GRIDS["oblique"])
    image = sitk.GetImageFromArray(volume.array.transpose(2, 1, 0))
    lps = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine
    image.SetSpacing(volume.spacing)
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    turned = sitk.DICOMOrient(image, "LPI")  # DICOMOrient names the sides that axes run to, like nibabel
    found = volume.reoriented("LPI")
    assert (sitk.GetArrayFromImage(turned).transpose(2, 1, 0) == found.array).all()


def test_reorienting_without_patient_coordinates_reverses_the_axes_only():
    volume = volume_on(GRIDS["LPS"])
    turned = volume.reoriented(None)
    assert turned.array.shape == (5, 4, 3)
    assert (turned.array == volume.array.transpose(2, 1, 0)).all()
    assert_same_places(volume, turned)


def test_channels_stay_last_when_axes_move():
    volume = volume_on(GRIDS["ASL"])
    both = volume.with_array(np.stack([volume.array, -volume.array], axis=-1))
    assert (volume.num_channels, both.num_channels) == (1, 2)
    for code in ("SPL", None):
        turned = both.reoriented(code)
        assert (turned.array[..., 0] == volume.reoriented(code).array).all()
        assert (turned.array[..., 1] == -turned.array[..., 0]).all()


@pytest.mark.parametrize("code", ["RRS", "", "RA", "ras", "RASX", "XYZ"])
def test_a_code_that_is_no_orientation(code):
    with pytest.raises(ValueError):
        volume_on(np.eye(4)).reoriented(code)
    with pytest.raises(ValueError, match="'RRS' is no orientation; use three letters"):
        volume_on(np.eye(4)).geometry.transform_to("RRS")


@pytest.mark.parametrize("name", GRIDS)
def test_a_crop_keeps_places(name):
    volume = volume_on(GRIDS[name])
    crop = volume.cropped((1, 0, 2), (3, 4, 4))
    assert crop.array.shape == (2, 4, 2)
    whole, part = places(volume), places(crop)
    assert all(np.allclose(whole[key], part[key]) for key in part)
    padded = volume.geometry.cropped((-1, -2, 0), (5, 8, 5))
    assert np.allclose(padded.world((1, 2, 0)), volume.geometry.world((0, 0, 0)))


@pytest.mark.parametrize(("start", "stop"), [((-1, 0, 0), (3, 4, 5)), ((0, 0, 0), (3, 4, 6)), ((2, 0, 0), (2, 4, 5))])
def test_a_box_that_is_not_inside(start, stop):
    with pytest.raises(ValueError, match=r"box .* is not inside \(3, 4, 5\)"):
        volume_on(np.eye(4)).cropped(start, stop)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 7.0), (100.0, 0.3, 1.1)])
def test_resampling_keeps_the_centre_of_the_field_of_view(name, spacing):
    grid = Geometry((30, 41, 12), GRIDS[name])
    new = grid.resampled(spacing)
    assert new.spacing == pytest.approx(spacing)
    assert min(new.shape) >= 1
    centre, new_centre = ((np.array(g.shape) - 1) / 2 for g in (grid, new))
    assert np.allclose(grid.world(centre), new.world(new_centre))
    for old_count, count, old_mm, mm in zip(grid.shape, new.shape, grid.spacing, spacing, strict=True):
        assert count == 1 or abs(old_count * old_mm - count * mm) <= mm / 2 + 1e-9


def test_resampling_by_hand_and_to_the_same_spacing():
    grid = Geometry((4, 4, 4), np.diag([1.0, 1.0, 1.0, 1.0]))
    new = grid.resampled((2, 2, 2))  # faces at -0.5 and 3.5 stay: centres at 0.5 and 2.5
    assert new.shape == (2, 2, 2)
    assert new.world((0, 0, 0)).tolist() == [0.5, 0.5, 0.5]
    same = grid.resampled((1, 1, 1 + 1e-6))
    assert same.same_grid(grid)
    assert np.array_equal(same.affine, grid.affine)


@pytest.mark.parametrize("spacing", [(1, 1), (0, 1, 1), (1, -1, 1)])
def test_a_spacing_that_is_none(spacing):
    with pytest.raises(ValueError, match="a spacing is three positive numbers in mm"):
        Geometry((4, 4, 4), np.eye(4)).resampled(spacing)


def test_same_grid_looks_at_the_far_corners():
    grid = Geometry((101, 10, 10), np.eye(4))
    assert grid.same_grid(Geometry((101, 10, 10), np.eye(4)))
    assert not grid.same_grid(Geometry((100, 10, 10), np.eye(4)))
    stretched = Geometry((101, 10, 10), np.diag([1.0002, 1, 1, 1]))  # 0.02 mm off at voxel 100
    assert not grid.same_grid(stretched)
    assert grid.same_grid(stretched, tolerance_mm=0.03)
    assert not grid.same_grid(Geometry((101, 10, 10), affine(np.eye(3), 1.0, (0.02, 0, 0))))


@pytest.mark.parametrize("shape", [(1, 2), (0, 2, 3), (1, 2, 3, 4)])
def test_a_shape_that_is_no_grid(shape):
    with pytest.raises(ValueError, match="a grid has three positive sizes"):
        Geometry(shape, np.eye(4))


@pytest.mark.parametrize("matrix", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1, 1, 0, 1])])
def test_a_matrix_that_is_no_affine(matrix):
    with pytest.raises(ValueError, match="an affine is a finite, invertible 4x4 matrix"):
        Geometry((2, 2, 2), matrix)


def test_a_geometry_cannot_be_changed_behind_its_back():
    matrix = np.eye(4)
    grid = Geometry((2, 2, 2), matrix)
    matrix[0, 0] = 7
    assert grid.spacing == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 7


def test_a_geometry_survives_as_a_dictionary():
    grid = Geometry((3, 4, 5), GRIDS["oblique"])
    again = Geometry.from_dict(grid.to_dict())
    assert again.shape == grid.shape
    assert np.array_equal(again.affine, grid.affine)


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (2, 2, 2, 1, 1)])
def test_an_array_that_does_not_fit_its_grid(shape):
    with pytest.raises(ValueError, match="does not fit a grid of shape"):
        Volume(np.zeros(shape), Geometry((2, 2, 2), np.eye(4)))


def test_sweeps_need_a_pose_per_frame():
    assert Sweep(np.zeros((3, 4, 5)), np.stack([np.eye(4)] * 3)).frames.shape == (3, 4, 5)
    for frames, poses in (((3, 4, 5), (2, 4, 4)), ((4, 5), (4, 4, 4)), ((3, 4, 5), (3, 3, 4))):
        with pytest.raises(ValueError, match="frames need as many 4x4 poses"):
            Sweep(np.zeros(frames), np.zeros(poses))


def test_the_volume_of_a_tetrahedron_and_of_its_inside_out():
    corners = np.array([[0, 0, 0], [30, 0, 0], [0, 40, 0], [0, 0, 50]], float)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    assert Mesh(corners, faces).volume_ml == pytest.approx(10.0)  # 30 * 40 * 50 / 6 = 10000 mm3
    assert Mesh(corners + 1000, faces).volume_ml == pytest.approx(10.0)
    assert Mesh(corners, faces[:, ::-1]).volume_ml == pytest.approx(-10.0)


def test_meshes_that_are_none():
    with pytest.raises(ValueError, match="vertices .* and faces .* are needed"):
        Mesh(np.zeros((3, 2)), np.zeros((1, 3), int))
    for face in ([0, 1, 3], [-1, 0, 1]):
        with pytest.raises(ValueError, match="faces point outside the 3 vertices"):
            Mesh(np.zeros((3, 3)), np.array([face]))


@pytest.mark.parametrize("size", [1e300, 1e7, 1e-9])
def test_voxels_of_an_absurd_size_are_refused(size):
    with pytest.raises(ValueError, match="no voxels of a scan"):
        Geometry((2, 2, 2), np.diag([1.0, 1.0, size, 1.0]))
