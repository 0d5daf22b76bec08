"""Triangle surfaces in PLY and STL files, ASCII and binary.

Vertices of a `Mesh` are in RAS+ millimetres. Files do not say in which space they are, except that 3D Slicer writes
`SPACE=LPS` or `SPACE=RAS` into the header; that is believed unless the caller says otherwise, and without it RAS is
taken. LPS to RAS turns x and y around, a half turn about z, so that faces keep looking outward.

An STL file repeats every corner; equal corners are merged. PLY polygons are cut into fans of triangles. Whatever a
header promises is compared with the size of the file before memory is asked for. An ASCII PLY is turned into a binary
one in which every number is a double, so that one reader serves both.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.io.nifti import one_line
from tfmuscle.volume import Mesh

_HEADER_BYTES = 1 << 16
_STL_HEADER, _STL_TRIANGLE = 84, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_PLY_TYPES = {
    **{
        "char": "i1",
        "uchar": "u1",
        "short": "i2",
        "ushort": "u2",
        "int": "i4",
        "uint": "u4",
        "float": "f4",
        "double": "f8",
    },
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
_PLY_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
_HALF_TURN = np.array([-1.0, -1.0, 1.0])


def read_mesh(path: str | Path, *, space: str | None = None) -> Mesh:
    """Reads a PLY or STL surface; vertices in RAS+ mm.

    Args:
        path: a `.ply` or `.stl` file.
        space: "ras" or "lps", the space of the file's coordinates; None takes it from the header, else RAS.

    Raises:
        DataError: the file is missing, damaged, of another format or holds no triangles.
    """
    path = Path(path)
    _check_space(space)
    parse = {".ply": _parse_ply, ".stl": _parse_stl}.get(path.suffix.lower())
    if parse is None:
        raise DataError(f"{path}: not a known surface; use .ply or .stl")
    try:
        data = path.read_bytes()
        with np.errstate(invalid="ignore", over="ignore"):  # NaN is refused below, in words
            vertices, faces, header = parse(data)
        found = re.search(rb"SPACE=(LPS|RAS)", header)
        if (space or (found.group(1).decode().lower() if found else "ras")) == "lps":
            vertices = vertices * _HALF_TURN
        if not len(faces) or not np.isfinite(vertices).all():
            raise ValueError("no triangles" if not len(faces) else "a vertex is not a finite number")
        return Mesh(vertices, faces, str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a usable surface ({one_line(error)}); export it again") from error


def write_mesh(
    path: str | Path,
    mesh: Mesh,
    *,
    binary: bool = True,
    space: str = "ras",
    quality: np.ndarray | None = None,
    colours: np.ndarray | None = None,
) -> None:
    """Writes a surface as PLY or STL in single precision, whole or not at all, and its space into the header.

    Args:
        path: `.ply` or `.stl`.
        mesh: vertices in RAS+ mm.
        binary: or ASCII.
        space: "ras" or "lps", of the vertices in the file.
        quality: `(V,)` a number for every vertex, e.g. an error in mm; in a binary PLY as property `quality`, which
            MeshLab, ParaView and 3D Slicer read.
        colours: `(V, 3)` uint8, red, green, blue of every vertex, with `quality`.

    Raises:
        ValueError: the name ends otherwise, `space` is neither "ras" nor "lps", or there is no room for `quality`.
        DataError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    _check_space(space)
    format_ = {".ply": _format_ply, ".stl": _format_stl}.get(path.suffix.lower())
    if format_ is None:
        raise ValueError(f"{path}: surfaces are written as .ply or .stl; choose one of these endings")
    vertices = mesh.vertices * (_HALF_TURN if space == "lps" else 1.0)
    note = f"SPACE={space.upper()}"
    if quality is None and colours is None:
        content = format_(vertices.astype(np.float32), mesh.faces, binary=binary, note=note)
    elif quality is None or colours is None or not binary or format_ is not _format_ply:
        raise ValueError(f"{path}: quality and colours go together, into a binary .ply")
    else:
        content = _format_coloured_ply(vertices, mesh.faces, quality, colours, note=note)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _check_space(space: str | None) -> None:
    if space not in (None, "ras", "lps"):
        raise ValueError(f"space is {space!r}; use 'ras' or 'lps'")


@dataclass(frozen=True)
class _Element:
    """One table of a PLY file: name, rows, and per property (name, type, type of the list's length or None)."""

    name: str
    count: int
    properties: tuple[tuple[str, str, str | None], ...]

    def dtype(self, list_length: int) -> np.dtype:
        """Row layout if every list has `list_length` entries; a list `x` becomes `x#` (its length) and `x`."""
        fields: list[tuple] = []
        for name, kind, length_kind in self.properties:
            if length_kind is None:
                fields.append((name, kind))
            else:
                fields += [(f"{name}#", length_kind), (name, kind, (list_length,))]
        return np.dtype(fields)

    @property
    def lists(self) -> tuple[str, ...]:
        """Names of the list properties."""
        return tuple(name for name, _, length_kind in self.properties if length_kind is not None)


def _parse_ply(data: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Returns vertices, triangles and header of a PLY file."""
    end = re.search(rb"(?m)^end_header[ \t]*\r?\n", data[:_HEADER_BYTES])
    if not data.startswith(b"ply") or end is None:
        raise ValueError("no PLY header")
    header, body = data[: end.start()], data[end.end() :]
    order, elements = _parse_ply_header(header)
    if order == "ascii":
        tokens = body.split()
        body = np.fromiter(map(float, tokens), dtype="<f8", count=len(tokens)).tobytes()
    tables, offset = {}, 0
    for element in elements:
        tables[element.name], offset = _read_element(element, body, offset)
    if "vertex" not in tables or "face" not in tables:
        raise ValueError("vertices and faces are needed")
    vertex, face = tables["vertex"], tables["face"]
    if not {"x", "y", "z"} <= set(vertex):
        raise ValueError("vertices lack x, y or z")
    polygons = face.get("vertex_indices", face.get("vertex_index"))
    if polygons is None:
        raise ValueError("faces lack vertex_indices")
    vertices = np.stack([np.asarray(vertex[axis], dtype=np.float64).ravel() for axis in "xyz"], axis=1)
    return vertices, _triangles(polygons, len(vertices)), header


def _parse_ply_header(header: bytes) -> tuple[str, list[_Element]]:
    """Returns the format's name and the tables in the order of the file."""
    order, elements = "", []
    for words in (line.split() for line in header.decode("latin-1").splitlines()[1:]):
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3 and words[1] in _PLY_ORDERS:
            order = words[1]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,15}", words[2]):
            elements.append(_Element(words[1], int(words[2]), ()))
        elif words[0] == "property" and elements and len(words) in (3, 5) and (words[1] == "list") == (len(words) == 5):
            kinds = [_ply_type(word, order) for word in (words[2:4] if len(words) == 5 else words[1:2])]
            last = elements.pop()
            added = (words[-1], kinds[-1], kinds[0] if len(words) == 5 else None)
            elements.append(_Element(last.name, last.count, (*last.properties, added)))
        else:
            raise ValueError(f"PLY header line {' '.join(words)[:60]!r} is not understood")
    if not order:
        raise ValueError("the PLY header names no format")
    return order, elements


def _ply_type(word: str, order: str) -> str:
    if word not in _PLY_TYPES or not order:
        raise ValueError(f"PLY type {word[:20]!r} is not known")
    return "<f8" if order == "ascii" else _PLY_ORDERS[order] + _PLY_TYPES[word]


def _read_element(element: _Element, body: bytes, offset: int) -> tuple[dict, int]:
    """Returns one table's columns and the offset behind it; triangles take the fast way."""
    if not element.properties or not element.count:
        return {name: np.empty((0, 3)) for name, _, _ in element.properties}, offset
    promised, left = element.count * element.dtype(0).itemsize, len(body) - offset
    if promised > left:
        raise ValueError(f"{element.count} entries of {element.name!r} are promised, {left} bytes are left; cut off?")
    dtype = element.dtype(3)
    if element.count * dtype.itemsize <= left:
        rows = np.frombuffer(body, dtype, element.count, offset)
        if all((rows[f"{name}#"] == 3).all() for name in element.lists):
            return {name: rows[name] for name, _, _ in element.properties}, offset + element.count * dtype.itemsize
    columns: dict[str, list] = {name: [] for name, _, _ in element.properties}
    for _ in range(element.count):
        for name, kind, length_kind in element.properties:
            length = 1
            if length_kind is not None:
                length = int(_take(body, offset, length_kind, 1)[0])
                offset += np.dtype(length_kind).itemsize
            columns[name].append(_take(body, offset, kind, length))
            offset += length * np.dtype(kind).itemsize
    return dict(columns), offset


def _take(body: bytes, offset: int, kind: str, count: int) -> np.ndarray:
    if count < 0 or offset + count * np.dtype(kind).itemsize > len(body):
        raise ValueError("the file ends too early; cut off?")
    return np.frombuffer(body, kind, count, offset)


def _triangles(polygons: np.ndarray | list[np.ndarray], num_vertices: int) -> np.ndarray:
    """Cuts polygons into fans of triangles `(M, 3)`, after checking that the indices are whole and in range."""
    if isinstance(polygons, list):
        if any(len(polygon) < 3 for polygon in polygons):
            raise ValueError("a face has fewer than three corners")
        fans = [[(p[0], p[i], p[i + 1]) for i in range(1, len(p) - 1)] for p in polygons]
        polygons = np.array([corner for fan in fans for corner in fan], dtype=np.float64)
    indices = np.asarray(polygons)
    if indices.ndim != 2 or indices.shape[1] != 3:
        raise ValueError("faces are no lists of corners")
    if indices.size and not (indices.min() >= 0 and indices.max() < num_vertices and (indices % 1 == 0).all()):
        raise ValueError(f"a face points outside the {num_vertices} vertices")
    return indices.astype(np.int64)


def _parse_stl(data: bytes) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Returns merged vertices, triangles and header of an STL file.

    A binary header may start with "solid" too, so the size decides.
    """
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= _STL_HEADER else 0
    size = _STL_HEADER + count * _STL_TRIANGLE.itemsize
    if len(data) >= _STL_HEADER and (len(data) == size or not data.lstrip().startswith(b"solid")):
        if size > len(data):
            raise ValueError(f"{count} triangles are promised and {len(data)} bytes there; cut off?")
        corners = np.frombuffer(data, _STL_TRIANGLE, count, _STL_HEADER)["corners"].reshape(-1, 3)
        header = data[:80]
    else:
        corners, header = _parse_stl_text(data)
    vertices, inverse = np.unique(corners.astype(np.float64) + 0.0, axis=0, return_inverse=True)
    return vertices, inverse.reshape(-1, 3).astype(np.int64), header


def _parse_stl_text(data: bytes) -> tuple[np.ndarray, bytes]:
    """Returns the corners `(3 M, 3)` and the first line of an ASCII STL."""
    words = data.split()
    if not words or words[0] != b"solid" or b"endsolid" not in words[-64:]:
        raise ValueError("neither a binary STL nor a whole ASCII one")
    starts = [index + 1 for index, word in enumerate(words) if word == b"vertex"]
    if len(starts) != 3 * words.count(b"endfacet"):
        raise ValueError("a facet does not have three corners")
    numbers = [float(word) for start in starts for word in words[start : start + 3]]
    return np.array(numbers, dtype=np.float32).reshape(-1, 3), data.split(b"\n", 1)[0]


def _format_ply(vertices: np.ndarray, faces: np.ndarray, *, binary: bool, note: str) -> bytes:
    kind = "binary_little_endian" if binary else "ascii"
    lines = ["ply", f"format {kind} 1.0", f"comment {note}", f"element vertex {len(vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    header = "\n".join(lines).encode("ascii")
    if not binary:
        rows = ["{:.9g} {:.9g} {:.9g}".format(*row) for row in vertices.tolist()]
        return header + "\n".join([*rows, *("3 {} {} {}".format(*row) for row in faces.tolist()), ""]).encode("ascii")
    table = np.empty(len(faces), dtype=[("length", "u1"), ("corners", "<i4", 3)])
    table["length"], table["corners"] = 3, faces
    return header + vertices.astype("<f4").tobytes() + table.tobytes()


def _format_coloured_ply(
    vertices: np.ndarray, faces: np.ndarray, quality: np.ndarray, colours: np.ndarray, *, note: str
) -> bytes:
    plain = _format_ply(np.empty((0, 3), np.float32), faces, binary=True, note=note)
    head, _, body = plain.partition(b"end_header\n")
    more = "".join(f"property {kind}\n" for kind in ("float quality", "uchar red", "uchar green", "uchar blue"))
    head = head.replace(b"element vertex 0\n", f"element vertex {len(vertices)}\n".encode("ascii"))
    head = head.replace(b"element face", f"{more}element face".encode("ascii"))
    table = np.empty(len(vertices), dtype=[("place", "<f4", 3), ("quality", "<f4"), ("colour", "u1", 3)])
    table["place"], table["quality"], table["colour"] = vertices, quality, colours
    return head + b"end_header\n" + table.tobytes() + body


def _format_stl(vertices: np.ndarray, faces: np.ndarray, *, binary: bool, note: str) -> bytes:
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    if binary:
        table = np.zeros(len(faces), dtype=_STL_TRIANGLE)
        table["normal"], table["corners"] = normals, corners
        return f"surface {note}".encode("ascii").ljust(80) + struct.pack("<I", len(faces)) + table.tobytes()
    lines = [f"solid surface {note}"]
    for normal, triangle in zip(normals.tolist(), corners.tolist(), strict=True):
        lines += ["facet normal {:.9g} {:.9g} {:.9g}".format(*normal), "outer loop"]
        lines += ["vertex {:.9g} {:.9g} {:.9g}".format(*corner) for corner in triangle]
        lines += ["endloop", "endfacet"]
    return "\n".join([*lines, "endsolid surface", ""]).encode("ascii")
