"""Voxelising and surfacing: closed forms, hand counts, VTK's stencil and trimesh as judges, and real bones."""

import numpy as np
import pytest
import trimesh
import vtk
from scipy.ndimage import binary_dilation, binary_erosion
from test_io_mesh import sphere
from vtk.util import numpy_support

from tfmuscle.errors import DataError
from tfmuscle.io import read_mesh, read_volume, write_mesh
from tfmuscle.surfaces import check_surface, mesh_problems, surface, voxelise
from tfmuscle.volume import Geometry, Mesh

CENTRE = np.array([10.0, -20.0, 30.0])


def rotation(degrees, axis):
    axis = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def grid(spacing, turn=None, flip=(1, 1, 1), extent=52.0):
    """A grid of `extent` mm around CENTRE, its middle off the voxel centres by odd fractions."""
    shape = np.ceil(extent / np.array(spacing)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(np.array(spacing) * flip)
    affine[:3, 3] = CENTRE + (0.13, -0.21, 0.34) - affine[:3, :3] @ ((shape - 1) / 2)
    return Geometry(tuple(shape), affine)


GRIDS = {
    "plain": grid((1, 1, 1)),
    "anisotropic": grid((0.8, 0.8, 3)),
    "negative determinant": grid((1, 1.2, 2), flip=(-1, 1, 1)),
    "oblique": grid((0.9, 1.1, 2.5), rotation(25, (1, 2, 3))),
    "oblique and flipped": grid((2, 0.7, 1.3), rotation(-70, (3, -1, 1)), (1, -1, 1)),
}


def box(low, high):
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    faces = [face for a, b, c, d in quads for face in ([a, b, c], [a, c, d])]
    return Mesh(np.array(low, float) + corners * (np.array(high, float) - low), np.array(faces))


def joined(*meshes):
    shift = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, shift, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


UNIT = Geometry((12, 12, 12), np.eye(4))


@pytest.mark.parametrize("name", GRIDS)
def test_a_sphere_holds_exactly_the_centres_within_its_radius(name):
    geometry = GRIDS[name]
    found = voxelise(sphere(20.0), geometry)
    distance = np.linalg.norm(geometry.world(np.indices(geometry.shape).reshape(3, -1).T) - CENTRE, axis=1)
    distance = distance.reshape(geometry.shape)
    # edges of at most 1.3 mm: the faces lie up to 1.3^2 / (6 * 20) = 0.015 mm inside the sphere
    assert (found[distance < 19.98]).all()
    assert not found[distance > 20].any()
    assert found.sum() * geometry.voxel_volume_ml == pytest.approx(4 / 3 * np.pi * 8, rel=0.01)


def stencil(mesh, geometry):
    """VTK's verdict, asked in index coordinates, where every grid is the unit grid."""
    homogeneous = np.c_[mesh.vertices, np.ones(len(mesh.vertices))]
    index = np.linalg.solve(geometry.affine, homogeneous.T)[:3].T
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    points.SetData(numpy_support.numpy_to_vtk(np.ascontiguousarray(index), deep=True))
    table = np.c_[np.full(len(mesh.faces), 3), mesh.faces].astype(np.int64).ravel()
    cells.ImportLegacyFormat(numpy_support.numpy_to_vtkIdTypeArray(table, deep=True))
    body = vtk.vtkPolyData()
    body.SetPoints(points)
    body.SetPolys(cells)
    cut = vtk.vtkPolyDataToImageStencil()
    cut.SetInputData(body)
    cut.SetOutputOrigin(0, 0, 0)
    cut.SetOutputSpacing(1, 1, 1)
    cut.SetOutputWholeExtent(0, geometry.shape[0] - 1, 0, geometry.shape[1] - 1, 0, geometry.shape[2] - 1)
    picture = vtk.vtkImageStencilToImage()
    picture.SetInputConnection(cut.GetOutputPort())
    picture.SetInsideValue(1)
    picture.SetOutsideValue(0)
    picture.Update()
    values = numpy_support.vtk_to_numpy(picture.GetOutput().GetPointData().GetScalars())
    return values.reshape(geometry.shape[::-1]).transpose(2, 1, 0) > 0


def touched_layer(mask):
    """Voxels beside the boundary, on either side of it."""
    full = np.ones((3, 3, 3), bool)
    return binary_dilation(mask, full) & ~binary_erosion(mask, full)


def agrees_with_vtk(mesh, geometry):
    """How many voxels differ; every one of them touches the surface."""
    found, judge = voxelise(mesh, geometry), stencil(mesh, geometry)
    different = found != judge
    assert judge.any()
    assert not (different & ~touched_layer(judge)).any()
    return different.sum() / judge.sum()


@pytest.mark.parametrize("name", GRIDS)
def test_vtk_agrees_on_spheres_and_ellipsoids(name):
    ball = sphere(20.0)
    egg = Mesh((ball.vertices - CENTRE) * (1.1, 0.4, 0.75) @ rotation(40, (1, 1, 0)).T + CENTRE, ball.faces)
    assert agrees_with_vtk(ball, GRIDS[name]) < 1e-3
    assert agrees_with_vtk(egg, GRIDS[name]) < 1e-3


def test_vtk_agrees_on_a_real_patella_on_an_oblique_flipped_grid(data_dir):
    mesh = read_mesh(data_dir / "surfaces" / "VHF_Left_Bone_Patella_smooth.stl")
    turned = grid((0.9, 0.6, 1.7), rotation(33, (2, 1, -1)), (-1, 1, 1), extent=70)
    middle = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    affine = turned.affine.copy()
    affine[:3, 3] += middle - CENTRE
    assert agrees_with_vtk(mesh, Geometry(turned.shape, affine)) < 1e-3


def test_a_ray_through_corners_and_edges_counts_once():
    assert voxelise(box((2, 2, 2), (6, 6, 6)), UNIT).sum() == 4**3  # 2, 3, 4, 5 along every axis: lower side in
    left, right = (voxelise(box((x, 2, 2), (x + 3, 6, 6)), UNIT) for x in (2, 5))
    assert not (left & right).any()
    assert ((left | right) == voxelise(box((2, 2, 2), (8, 6, 6)), UNIT)).all()  # neighbours share no voxel, lose none
    octahedron = sphere(1.0, divisions=0, centre=(0, 0, 0))
    found = voxelise(Mesh(octahedron.vertices * 4 + 5, octahedron.faces), UNIT)  # every vertex on a voxel centre
    size = np.abs(np.indices(UNIT.shape) - 5).sum(axis=0)
    assert found[size < 4].all()
    assert not found[size > 4].any()


def test_real_bones_leave_no_streaks_on_their_own_grid(data_dir):
    labels = read_volume(data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz")
    for name, key in (("Muscle_Popliteus", 22), ("Bone_Patella", 39)):
        mesh = read_mesh(data_dir / "surfaces" / f"VHF_Left_{name}_smooth.stl")
        found = voxelise(mesh, labels.geometry)
        assert 2 * (found & (labels.array == key)).sum() / (found.sum() + (labels.array == key).sum()) > 0.9999
        assert abs(trimesh.Trimesh(mesh.vertices, mesh.faces).volume / found.sum() - 1) < 0.002


def test_neither_order_nor_sense_nor_repeated_corners_matter():
    mesh, geometry = sphere(20.0, divisions=3), GRIDS["oblique"]
    wanted = voxelise(mesh, geometry)
    loose = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3))
    random = np.random.default_rng(3)
    rounded = Mesh(loose.vertices + random.uniform(-1e-4, 1e-4, loose.vertices.shape), loose.faces)
    order = random.permutation(len(mesh.faces))
    for other in (
        loose,
        Mesh(mesh.vertices, mesh.faces[order][:, [2, 0, 1]]),
        Mesh(mesh.vertices, mesh.faces[:, ::-1]),
    ):
        assert (voxelise(other, geometry) == wanted).all()
        assert mesh_problems(other, geometry) == []
    assert (voxelise(rounded, geometry) != wanted).sum() <= 5  # 0.1 micrometre of 20 mm: a centre on the very surface
    some = np.where(np.arange(len(mesh.faces))[:, None] % 7 == 0, mesh.faces[:, ::-1], mesh.faces)
    assert (voxelise(Mesh(mesh.vertices, some), geometry) == wanted).all()
    check = check_surface(Mesh(mesh.vertices, some), geometry)
    assert check.remarks == [f"{len(range(0, 512, 7))} faces look the other way than their neighbours"]
    assert check_surface(Mesh(mesh.vertices, mesh.faces[:, ::-1]), geometry).remarks == ["faces look inward"]
    both = Mesh(mesh.vertices, np.concatenate([mesh.faces, mesh.faces[:, ::-1]]))
    assert (voxelise(both, geometry) == wanted).all()  # double-sided, as some programs export


def test_open_surfaces_are_refused_or_filled_by_vote():
    ball, geometry = sphere(20.0), GRIDS["oblique"]
    holed = Mesh(ball.vertices, ball.faces[5:], "ball.ply")
    edges = check_surface(holed, geometry).boundary_edges
    assert 3 <= edges <= 15
    assert mesh_problems(holed, geometry) == [f"open: {edges} boundary edges"]
    with pytest.raises(DataError, match=f"^ball.ply: open, {edges} boundary edges; close it .*--allow-open"):
        voxelise(holed, geometry)
    difference = voxelise(holed, geometry, allow_open=True) != voxelise(ball, geometry)
    assert difference.sum() <= 3  # rays through the hole have no vote; the other two axes agree
    tube = Mesh(box((2.5, 2.5, 2.5), (6.5, 6.5, 9.5)).vertices, box((0, 0, 0), (1, 1, 1)).faces[:8])
    assert voxelise(tube, UNIT, allow_open=True).sum() == 4 * 4 * 7  # two axes out of three see the walls
    sheet = Mesh(np.array([[2.5, 2.5, 5.5], [8.5, 2.5, 5.5], [2.5, 8.5, 5.5]]), np.array([[0, 1, 2]]))
    assert not voxelise(sheet, UNIT, allow_open=True).any()


def test_crossings_are_counted_at_the_voxels():
    cubes = joined(box((0.5, 0.5, 0.5), (6.5, 6.5, 6.5)), box((4.5, 4.5, 4.5), (9.5, 9.5, 9.5)))
    check = check_surface(cubes, UNIT)
    assert check.remarks == [
        "crosses itself or its shells overlap: 8 voxels are enclosed twice",  # 5 and 6 along every axis
        "2 separate shells",
    ]
    assert check.problems == []
    bow = np.array([[1.5, 1.5], [7.5, 7.5], [7.5, 1.5], [1.5, 7.5]])  # two triangles tip to tip
    corners = np.concatenate([np.c_[bow, np.full(4, z)] for z in (2.5, 5.5)])
    walls = [face for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)) for face in ([a, b, b + 4], [a, b + 4, a + 4])]
    lids = [[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7]]
    check = check_surface(Mesh(corners, np.array(walls + lids)), UNIT)
    assert (check.boundary_edges, check.shells) == (0, 1)
    assert check.crossing_voxels >= 3 * 3 * 3
    hollow = joined(box((0.5, 0.5, 0.5), (9.5, 9.5, 9.5)), box((3.5, 3.5, 3.5), (6.5, 6.5, 6.5)))
    turned = np.where(np.arange(24)[:, None] < 12, hollow.faces, hollow.faces[:, ::-1])
    assert check_surface(Mesh(hollow.vertices, turned), UNIT).crossing_voxels == 0  # a cavity is no crossing
    assert voxelise(hollow, UNIT).sum() == 9**3 - 3**3


def test_what_lies_outside_the_scan_is_said():
    cube = box((0, 0, 0), (4, 4, 4))
    assert mesh_problems(Mesh(cube.vertices + (50, 0, 0), cube.faces), UNIT) == ["outside the scan"]
    assert not voxelise(Mesh(cube.vertices + (50, 0, 0), cube.faces), UNIT).any()
    # one cube in, one out: half of the area
    two = joined(box((2, 2, 2), (6, 6, 6)), box((22, 2, 2), (26, 6, 6)))
    assert check_surface(two, UNIT).remarks == ["50.0% of it outside the scan", "2 separate shells"]
    cut = box((-5, 2, 2), (5.5, 6, 6))
    assert voxelise(cut, UNIT).sum() == 6 * 4 * 4  # 0 to 5 of the long axis
    flat = joined(cube, Mesh(np.array([[1.0, 1, 1], [2, 2, 2], [3, 3, 3]]), np.array([[0, 1, 2], [0, 2, 1]])))
    assert "2 faces without area" in check_surface(flat, UNIT).remarks


def ball_mask(geometry, radius=20.0):
    positions = geometry.world(np.indices(geometry.shape).reshape(3, -1).T)
    return (np.linalg.norm(positions - CENTRE, axis=1) < radius).reshape(geometry.shape)


@pytest.mark.parametrize("name", GRIDS)
def test_a_ball_becomes_a_smooth_closed_sphere_of_its_volume_and_back(name):
    geometry = GRIDS[name]
    mask = ball_mask(geometry)
    mesh = surface(mask, geometry)
    judge = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert judge.is_watertight and judge.is_winding_consistent
    assert judge.volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)  # positive: faces look outward
    assert judge.volume == pytest.approx(mask.sum() * geometry.voxel_volume_ml * 1000, rel=0.002)
    assert check_surface(mesh, geometry).problems + check_surface(mesh, geometry).remarks == []
    again = voxelise(mesh, geometry)
    assert 2 * (again & mask).sum() / (again.sum() + mask.sum()) > 0.995
    assert again.sum() == pytest.approx(mask.sum(), rel=0.01)
    # terraces end a slice early or late: at most a voxel's diagonal from the sphere, on average a third of it
    assert np.abs(np.linalg.norm(mesh.vertices - CENTRE, axis=1) - 20).mean() < max(geometry.spacing) / 9


def test_smoothing_takes_the_terraces_away():
    geometry = GRIDS["plain"]
    angles = {}
    for smoothing in (0.0, 1.5):
        mesh = surface(ball_mask(geometry), geometry, smoothing=smoothing)
        judge = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
        radial = judge.triangles_center - CENTRE
        cosine = (judge.face_normals * radial).sum(axis=1) / np.linalg.norm(radial, axis=1)
        angles[smoothing] = np.average(np.degrees(np.arccos(np.clip(cosine, -1, 1))), weights=judge.area_faces)
    assert angles[0.0] > 15
    assert angles[1.5] < 4


def test_borders_threads_and_noise_stay_closed():
    whole = np.ones((5, 6, 7), bool)
    mesh = surface(whole, Geometry(whole.shape, np.eye(4)))
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).is_watertight
    assert mesh.volume_ml == pytest.approx(0.210, rel=0.01)
    assert np.abs(mesh.vertices.max(axis=0) - (4.5, 5.5, 6.5)).max() < 0.5  # corners are rounded, sides bulge
    thread = np.zeros((16, 16, 16), bool)
    thread[7, 7, 2:14] = True
    mesh = surface(thread, Geometry(thread.shape, np.eye(4)))
    assert (voxelise(mesh, Geometry(thread.shape, np.eye(4))) & thread).sum() == 12  # a tendon of one voxel survives
    assert mesh.volume_ml == pytest.approx(0.012, rel=0.02)
    noise = np.random.default_rng(0).random((14, 15, 16)) < 0.4  # every corner case of marching cubes
    mesh = surface(noise, Geometry(noise.shape, np.diag([-1, 1, 2, 1])))
    judge = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert judge.is_watertight and judge.is_winding_consistent
    assert mesh.volume_ml > 0


def test_masks_that_cannot_be_surfaced():
    with pytest.raises(ValueError, match="the mask is empty; a structure on its own grid is needed"):
        surface(np.zeros((12, 12, 12), bool), UNIT)
    with pytest.raises(ValueError, match=r"of shape \(3, 3, 3\) is not on \(12, 12, 12\)"):
        surface(np.ones((3, 3, 3), bool), UNIT)
    for smoothing in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="smoothing is .*; use 0 or a positive number"):
            surface(np.ones((12, 12, 12), bool), UNIT, smoothing=smoothing)


def test_files_in_between_change_nothing(tmp_path):
    geometry = GRIDS["oblique and flipped"]
    mask = ball_mask(geometry)
    mesh = surface(mask, geometry)
    wanted = voxelise(mesh, geometry)
    for number, (suffix, binary, space) in enumerate(
        ((".ply", True, "lps"), (".stl", True, "ras"), (".stl", False, "lps"))
    ):
        path = tmp_path / f"{number}{suffix}"
        write_mesh(path, mesh, binary=binary, space=space)
        assert mesh_problems(read_mesh(path), geometry) == []  # single precision leaves it closed
        assert (voxelise(read_mesh(path), geometry) != wanted).sum() <= 5


def test_a_real_knee_with_a_negative_determinant(data_dir):
    knee = read_volume(data_dir / "knee_atlas" / "seg.nrrd")
    assert np.linalg.det(knee.geometry.affine) < 0
    mask = knee.array == 3
    mesh = surface(mask, knee.geometry)
    judge = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert judge.is_watertight
    assert judge.volume == pytest.approx(mask.sum() * knee.geometry.voxel_volume_ml * 1000, rel=0.005)
    again = voxelise(mesh, knee.geometry)
    assert 2 * (again & mask).sum() / (again.sum() + mask.sum()) > 0.97  # about 5 slices of 1 mm
