"""PLY and STL: closed forms, files written by hand, and real surfaces against the label volume they lie on."""

import struct

import numpy as np
import pytest

from tfmuscle.errors import DataError
from tfmuscle.io import read_mesh, read_volume, write_mesh
from tfmuscle.volume import Mesh

CORNERS = np.array([[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 5]], float) + (100.5, -20.25, 7)
TETRAHEDRON = Mesh(CORNERS, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
FORMATS = [(suffix, binary) for suffix in (".ply", ".stl") for binary in (True, False)]


def sphere(radius, *, divisions=5, centre=(10.0, -20.0, 30.0)):
    """Octahedron whose faces are split in four `divisions` times and pushed onto the sphere: 8 * 4^5 = 8192 faces."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    triangles = vertices[[[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]]
    for _ in range(divisions):
        a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
        ab, bc, ca = ((p + q) / np.linalg.norm(p + q, axis=1, keepdims=True) for p, q in ((a, b), (b, c), (c, a)))
        triangles = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    points, inverse = np.unique(triangles.reshape(-1, 3).round(12), axis=0, return_inverse=True)
    return Mesh(radius * points + centre, inverse.reshape(-1, 3))


@pytest.mark.parametrize(("suffix", "binary"), FORMATS)
def test_a_sphere_keeps_its_volume(suffix, binary, tmp_path):
    mesh = sphere(20.0)
    write_mesh(tmp_path / f"s{suffix}", mesh, binary=binary)
    found = read_mesh(tmp_path / f"s{suffix}")
    # 4/3 pi 20^3 mm3 = 33.510 ml; the polyhedron lies inside, edges of about 1.2 mm: (1.2 / 20)^2 / 4 = 0.09 % less
    assert 0.998 * 33.5103 < found.volume_ml < 33.5103
    assert found.volume_ml == pytest.approx(mesh.volume_ml, rel=1e-5)  # single precision in the file
    assert (len(found.vertices), len(found.faces)) == (4098, 8192)  # Euler: 8192 / 2 + 2 vertices; STL corners merged
    assert np.abs(np.linalg.norm(found.vertices - (10, -20, 30), axis=1) - 20).max() < 1e-4


@pytest.mark.parametrize(("suffix", "binary"), FORMATS)
def test_lps_and_ras_files_hold_the_same_surface(suffix, binary, tmp_path):
    for space in ("ras", "lps"):
        path = tmp_path / f"{space}{suffix}"
        write_mesh(path, TETRAHEDRON, binary=binary, space=space)
        found = read_mesh(path)  # by the header
        assert found.volume_ml == pytest.approx(0.010)  # 3 * 4 * 5 / 6 = 10 mm3, outward
        triangles = found.vertices[found.faces]
        assert np.allclose(triangles, CORNERS[TETRAHEDRON.faces])
        assert found.source == str(path)
    as_written = read_mesh(tmp_path / f"lps{suffix}", space="ras")  # the caller knows better
    assert np.allclose(as_written.vertices[as_written.faces], CORNERS[TETRAHEDRON.faces] * (-1, -1, 1))
    assert f"SPACE={'LPS'}".encode() in (tmp_path / f"lps{suffix}").read_bytes()[:200]


def ply(kind, body, *, vertices=4, faces=1, index="int", number="float", extra="", face_extra="", comment=""):
    lines = ["ply", f"format {kind} 1.0", *([f"comment {comment}"] if comment else []), f"element vertex {vertices}"]
    lines += [f"property {number} {axis}" for axis in "xyz"] + ([extra] if extra else [])
    lines += [
        f"element face {faces}",
        f"property list uchar {index} vertex_indices",
        *([face_extra] if face_extra else []),
    ]
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + body


SQUARE = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("number", "code"), [("float", "f"), ("double", "d"), ("float32", "f")])
@pytest.mark.parametrize(("index", "index_code"), [("int", "i"), ("uint", "I"), ("ushort", "H"), ("uint8", "B")])
def test_binary_ply_of_both_byte_orders(order, number, code, index, index_code, tmp_path):
    body = b"".join(struct.pack(f"{order}3{code}", *point) for point in SQUARE)
    body += struct.pack(f"{order}B3{index_code}", 3, 0, 1, 2) + struct.pack(f"{order}B3{index_code}", 3, 0, 2, 3)
    kind = "binary_little_endian" if order == "<" else "binary_big_endian"
    (tmp_path / "a.ply").write_bytes(ply(kind, body, faces=2, index=index, number=number))
    mesh = read_mesh(tmp_path / "a.ply")
    assert mesh.vertices.tolist() == [list(point) for point in SQUARE]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_polygons_become_fans_and_other_properties_are_skipped(tmp_path):
    points = "\n".join(f"{x} {y} {z} 255" for x, y, z in SQUARE)
    faces = "4 0 1 2 3 0.5\n3 0 1 2 0.25\n"
    extra = {"extra": "property uchar red", "face_extra": "property float quality"}
    (tmp_path / "a.ply").write_bytes(ply("ascii", f"{points}\n{faces}".encode(), faces=2, **extra))
    assert read_mesh(tmp_path / "a.ply").faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    body = b"".join(struct.pack(">3fB", *point, 255) for point in SQUARE)
    body += struct.pack(">B4if", 4, 0, 1, 2, 3, 0.5) + struct.pack(">B3if", 3, 0, 1, 2, 0.25)
    (tmp_path / "b.ply").write_bytes(ply("binary_big_endian", body, faces=2, **extra))
    assert read_mesh(tmp_path / "b.ply").faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]


def test_windows_line_ends_and_the_other_name_of_the_corner_list(tmp_path):
    body = b"0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n"
    content = (
        ply("ascii", body, comment="SPACE=LPS").replace(b"vertex_indices", b"vertex_index").replace(b"\n", b"\r\n")
    )
    (tmp_path / "a.ply").write_bytes(content)
    assert read_mesh(tmp_path / "a.ply").vertices[2].tolist() == [-1, -1, 0]


def test_stl_with_a_misleading_header_and_the_header_of_3d_slicer(tmp_path):
    write_mesh(tmp_path / "a.stl", TETRAHEDRON)
    content = (tmp_path / "a.stl").read_bytes()
    (tmp_path / "solid.stl").write_bytes(b"solid but binary".ljust(80) + content[80:])
    assert read_mesh(tmp_path / "solid.stl").volume_ml == pytest.approx(0.010)
    (tmp_path / "slicer.stl").write_bytes(b"3D Slicer output. SPACE=LPS".ljust(80) + content[80:])
    found = read_mesh(tmp_path / "slicer.stl")
    assert sorted(found.vertices.tolist()) == sorted((CORNERS * (-1, -1, 1)).tolist())
    assert found.volume_ml == pytest.approx(0.010)  # a half turn keeps faces outward


def test_ascii_stl_by_hand(tmp_path):
    facet = "facet normal 0 0 1\n outer loop\n  vertex {}\n  vertex {}\n  vertex {}\n endloop\nendfacet\n"
    text = "solid part one\n" + facet.format("0 0 0", "1.0e0 0 0", "1 1 -0.0") + facet.format("0 0 0", "1 1 0", "0 1 0")
    (tmp_path / "a.stl").write_text(text + "endsolid part one\n")
    mesh = read_mesh(tmp_path / "a.stl")
    assert len(mesh.vertices) == 4  # six corners, two of them shared; -0.0 equals 0.0
    assert mesh.vertices[mesh.faces].tolist() == [[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]]


POINTS = b"0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
ZEROS = bytes(48)
PLY_DAMAGE = {
    "empty": (b"", "no PLY header"),
    "no_end": (b"ply\nformat ascii 1.0\n", "no PLY header"),
    "no_format": (b"ply\nelement vertex 1\nproperty float x\nend_header\n", "PLY type 'float' is not known"),
    "only_end": (b"ply\nend_header\n", "names no format"),
    "huge_ascii": (ply("ascii", POINTS, vertices=10**14), "100000000000000 entries of 'vertex' are promised"),
    "huge_binary": (
        ply("binary_little_endian", ZEROS, vertices=4 * 10**9),
        "4000000000 entries of 'vertex' are promised",
    ),
    "huge_faces": (ply("binary_big_endian", ZEROS, faces=2**31), "2147483648 entries of 'face' are promised"),
    "negative": (ply("ascii", POINTS, vertices=-4), "'element vertex -4' is not understood"),
    "absurd": (ply("ascii", POINTS, vertices=10**40), "is not understood"),
    "cut_vertices": (ply("binary_little_endian", ZEROS[:-1]), "are promised"),
    "cut_faces": (ply("binary_little_endian", ZEROS + b"\3" + bytes(8)), "ends too early"),
    "cut_ascii": (ply("ascii", POINTS + b"3 0 1"), "ends too early"),
    "long_list": (ply("binary_little_endian", ZEROS + b"\xff" + bytes(20)), "ends too early"),
    "negative_list": (ply("ascii", POINTS + b"-3 0 1 2"), "ends too early"),
    "infinite_list": (ply("ascii", POINTS + b"inf 0 1 2"), "cannot convert float infinity"),
    "words": (ply("ascii", b"a b c"), "could not convert string to float"),
    "signalling_nan": (
        ply("binary_little_endian", b"\1\0\x80\x7f" + bytes(44) + b"\3" + bytes(12)),
        "not a finite number",
    ),
    "nan": (ply("ascii", POINTS.replace(b"1 1", b"nan 1") + b"3 0 1 2"), "a vertex is not a finite number"),
    "outside": (ply("ascii", POINTS + b"3 0 1 4"), "a face points outside the 4 vertices"),
    "below": (ply("ascii", POINTS + b"3 0 1 -1"), "a face points outside the 4 vertices"),
    "between": (ply("ascii", POINTS + b"3 0 1 1.5"), "a face points outside the 4 vertices"),
    "nan_index": (ply("ascii", POINTS + b"3 0 1 nan"), "a face points outside the 4 vertices"),
    "two_corners": (ply("ascii", POINTS + b"2 0 1"), "fewer than three corners"),
    "no_faces": (ply("ascii", POINTS, faces=0), "no triangles"),
    "no_z": (ply("ascii", POINTS + b"3 0 1 2").replace(b"float z", b"float w"), "vertices lack x, y or z"),
    "no_face": (
        b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n",
        "vertices and faces are needed",
    ),
    "no_corners": (
        ply("ascii", POINTS + b"3 0 1 2").replace(b"vertex_indices", b"friends"),
        "faces lack vertex_indices",
    ),
    "odd_type": (ply("ascii", POINTS).replace(b"float x", b"quaternion x"), "PLY type 'quaternion' is not known"),
    "no_list": (ply("ascii", POINTS + b"3").replace(b"list uchar int", b"int"), "faces are no lists of corners"),
}


def refusal(path, match):
    with pytest.raises(DataError, match=match) as caught:
        read_mesh(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


@pytest.mark.parametrize("kind", PLY_DAMAGE)
def test_a_damaged_ply_is_refused_before_memory_is_asked_for(kind, tmp_path):
    content, message = PLY_DAMAGE[kind]
    (tmp_path / "a.ply").write_bytes(content)
    refusal(tmp_path / "a.ply", message)


def test_a_damaged_stl_is_refused(tmp_path):
    write_mesh(tmp_path / "b.stl", TETRAHEDRON)
    write_mesh(tmp_path / "t.stl", TETRAHEDRON, binary=False)
    binary, text = (tmp_path / "b.stl").read_bytes(), (tmp_path / "t.stl").read_bytes()
    cases = {
        "empty": (b"", "neither a binary STL nor a whole ASCII one"),
        "cut_binary": (binary[:-1], "4 triangles are promised and 283 bytes there"),  # 84 + 4 * 50 - 1
        "huge": (binary[:80] + b"\xff" * 4 + binary[84:], "4294967295 triangles are promised"),
        "cut_text": (text[:-150], "neither a binary STL nor a whole ASCII one"),
        "no_triangles": (binary[:80] + bytes(4), "no triangles"),
        "two_corners": (text.replace(b"vertex", b"corner", 1), "a facet does not have three corners"),
        "words": (text.replace(b"100.5", b"abc"), "could not convert string to float"),
        "infinite": (text.replace(b"100.5", b"inf"), "not a finite number"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / f"{name}.stl").write_bytes(content)
        refusal(tmp_path / f"{name}.stl", message)


def test_missing_files_unknown_endings_and_spaces(tmp_path):
    refusal(tmp_path / "a.ply", "there is no such file")
    refusal(tmp_path / "a.obj", "not a known surface; use .ply or .stl")
    with pytest.raises(ValueError, match="surfaces are written as .ply or .stl"):
        write_mesh(tmp_path / "a.obj", TETRAHEDRON)
    for act in (
        lambda: read_mesh(tmp_path / "a.ply", space="xyz"),
        lambda: write_mesh("a.ply", TETRAHEDRON, space="xyz"),
    ):
        with pytest.raises(ValueError, match="space is 'xyz'; use 'ras' or 'lps'"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_real_surfaces_lie_on_their_label_volume(data_dir):
    labels = read_volume(data_dir / "visible_human" / "VHF_Left_labels_1mm.nii.gz")
    for name in ("Muscle_Soleus", "Bone_Patella"):
        mesh = read_mesh(data_dir / "surfaces" / f"VHF_Left_{name}_smooth.stl")
        inside = labels.geometry.index(mesh.vertices.mean(axis=0, keepdims=True))[0]
        assert (inside > 0).all()
        assert (inside < labels.array.shape).all()
        index = np.round(labels.geometry.index(mesh.vertices)).astype(int)
        near = labels.array[tuple(index.T)]
        value = np.bincount(near[near > 0]).argmax()  # the label most of the surface touches
        voxels = np.argwhere(labels.array == value)
        assert mesh.volume_ml == pytest.approx(len(voxels) * labels.geometry.voxel_volume_ml, rel=0.05)
        box = labels.geometry.world(np.stack([voxels.min(axis=0), voxels.max(axis=0)]))
        assert (
            np.abs(np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)]) - box).max() < 2
        )  # two voxels of 1 mm


def test_a_number_and_a_colour_for_every_vertex(tmp_path):
    quality, colours = np.array([0.5, 1.5, -2.0, 4.0]), np.arange(12, dtype=np.uint8).reshape(4, 3)
    write_mesh(tmp_path / "a.ply", TETRAHEDRON, quality=quality, colours=colours)
    again = read_mesh(tmp_path / "a.ply")
    assert np.array_equal(again.vertices, CORNERS) and np.array_equal(again.faces, TETRAHEDRON.faces)
    body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")[2]
    rows = [struct.unpack_from("<4f3B", body, 19 * number) for number in range(4)]
    assert [row[3] for row in rows] == quality.tolist() and [list(row[4:]) for row in rows] == colours.tolist()
    for name, more in (
        ("a.stl", {"colours": colours}),
        ("a.ply", {}),
        ("a.ply", {"colours": colours, "binary": False}),
    ):
        with pytest.raises(ValueError, match="quality and colours go together, into a binary .ply"):
            write_mesh(tmp_path / name, TETRAHEDRON, quality=quality, **more)
