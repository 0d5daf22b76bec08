"""Surfaces to voxels and voxels to surfaces.

The user has bones drawn as triangle surfaces and needs labels on the scan (`voxelise`), or has labels and wants smooth
bodies for printing, simulation and display (`surface`).

Terms. A surface is *closed* when every edge belongs to an even number of faces; a *boundary edge* belongs to an odd
number. A *shell* is a connected part. The *winding number* of a point says how often the surface goes around it: 1
inside, 0 outside, and 2 or more only where it crosses itself or where shells overlap.

Voxelising. A voxel is inside when a ray from it meets the surface an odd number of times (ray parity; Jordan's
theorem). Everything happens in index coordinates, where any oblique, flipped or anisotropic grid is the unit grid and
rays run along its last axis. A ray that meets a vertex or an edge is decided by half-open intervals: an edge owns its
lower row and not its upper one, a triangle its lower column and not its upper one. Where an edge meets a row is worked
out from its lower end whichever face asks, so that neighbours agree to the last bit and a closed surface never leaks.
Signed crossings give the winding number at no cost. Rejected: testing voxels against triangles (counts the touched
layer twice), `trimesh.voxelized().fill()` (the touched layer too: Dice 0.97 on an ellipsoid), a search tree (slower).

Self-crossings are looked for at the voxels: a closed surface with a winding number of 2 or more at a voxel centre, or
one shell with positive and negative ones. Crossings that hold no voxel centre are not found; they change no label.

Surfacing. The signed distance to the mask in mm, bounded to half the widest spacing so that ends stay blunt, goes
through the low-pass filter 2 G - G G (G a Gaussian), which hardly shrinks round bodies as G alone does. Voxel centres
it would move across the surface are put back on their side ("constrained" as in Whitaker 2000, "Reducing aliasing
artifacts in iso-surfaces of binary volumes", doi 10.1109/VV.2000.10012), so that structures one voxel thin survive.
Marching cubes (Lewiner) at the level that encloses the volume of the voxels gives a closed surface. Volume goes before
voxels: the level may pass a few voxel centres of thin or coarsely sliced structures, and the round trip shows how many.
Rejected, measured on spheres, rods and threads of 1 x 1 x 1 to 1 x 1 x 5 mm: repeated Gaussians (a rod of 8 mm loses 5
to 25 %), smoothing the mask (thin parts vanish), no smoothing (normals off by 21 degrees, here 3), Taubin on the mesh
(moves along terraces, knows no voxels).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

from tfmuscle.errors import DataError
from tfmuscle.volume import Geometry, Mesh

WELD_MM = 1e-3
"""Corners closer than this are one corner when the surface is open otherwise: programs round their STL text."""
SMOOTHING = 1.5
"""Standard deviation of the Gaussian in finest voxels: terraces vanish on spheres, rods of 4 mm keep their shape."""
_HOLD = 0.05
"""A voxel centre put back on its side lies this share of the finest voxel from the surface."""
_MARGIN = 3
_VOLUME_TOLERANCE, _LEVEL_STEPS = 1e-4, 8
_SLAB_VOXELS = 1 << 24
_CHUNK_CROSSINGS = 1 << 21


@dataclass(frozen=True)
class SurfaceCheck:
    """What is peculiar about a surface on a grid: `problems` forbid voxelising, `remarks` do not.

    Attributes:
        boundary_edges: edges with an odd number of faces; 0 for a closed surface.
        crossing_voxels: voxel centres around which the surface goes twice, or both ways.
        flipped_faces: faces that look to the other side than their neighbours.
        degenerate_faces: faces without area.
        shells: connected parts.
        volume_ml: signed volume; negative when the faces look inward.
        outside: share of the area more than a voxel beyond the outermost centres, 0 to 1.
    """

    boundary_edges: int
    crossing_voxels: int
    flipped_faces: int
    degenerate_faces: int
    shells: int
    volume_ml: float
    outside: float

    @property
    def problems(self) -> list[str]:
        """Why the surface gives no labels on this grid, in words."""
        lines = [f"open: {self.boundary_edges:,} boundary edges"] if self.boundary_edges else []
        return [*lines, "outside the scan"] if self.outside >= 1 else lines

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the labels it gives, in words, the gravest first."""
        lines = [f"{self.outside:.1%} of it outside the scan"] if 0 < self.outside < 1 else []
        if self.crossing_voxels:
            lines.append(f"crosses itself or its shells overlap: {self.crossing_voxels:,} voxels are enclosed twice")
        if self.flipped_faces:
            lines.append(f"{self.flipped_faces:,} faces look the other way than their neighbours")
        elif self.volume_ml < 0:
            lines.append("faces look inward")
        if self.shells > 1:
            lines.append(f"{self.shells:,} separate shells")
        if self.degenerate_faces:
            lines.append(f"{self.degenerate_faces:,} faces without area")
        return lines


def voxelise(mesh: Mesh, geometry: Geometry, *, allow_open: bool = False) -> np.ndarray:
    """Returns the voxels whose centre lies inside the surface, bool `(I, J, K)`.

    Args:
        mesh: a surface in RAS+ mm; which way its faces look does not matter.
        geometry: the grid, of any orientation.
        allow_open: fill an open surface by the vote of rays along the three axes, where rays that meet it an odd number
            of times have no vote. Without it an open surface is refused.

    Raises:
        DataError: the surface is open and `allow_open` is false.

    >>> corners = np.array([[-0.5, -0.5, -0.5], [4, 0, 0], [0, 4, 0], [0, 0, 4]], float)
    >>> tetrahedron = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    >>> int(voxelise(tetrahedron, Geometry((5, 5, 5), np.eye(4))).sum())
    20
    """
    mesh = _welded(mesh)
    edges = int((_edge_uses(mesh.faces)[1] % 2).sum())
    if edges and not allow_open:
        raise DataError(
            f"{mesh.source or 'surface'}: open, {edges:,} boundary edges; close it where it was made, or allow open "
            "surfaces (--allow-open)"
        )
    inside = np.zeros(geometry.shape, dtype=bool)
    corners, start, shape = _boxed(mesh, geometry)
    if min(shape) < 1:
        return inside
    box = inside[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    if edges:
        box[...] = _vote(corners, shape)
    else:
        for rows, winding in _windings(corners, shape):
            np.not_equal(winding & 1, 0, out=box[rows])
    return inside


def check_surface(mesh: Mesh, geometry: Geometry) -> SurfaceCheck:
    """Looks for everything that is wrong or odd about a surface on this grid; see `SurfaceCheck`."""
    area = _areas(mesh)
    centre = geometry.index(mesh.vertices[mesh.faces].mean(axis=1))
    beyond = ((centre < -1) | (centre > geometry.shape)).any(axis=1)
    welded = _welded(mesh)
    turned, shells = _turned(welded.faces)
    consistent = Mesh(welded.vertices, np.where(turned[:, np.newaxis], welded.faces[:, ::-1], welded.faces))
    edges = int((_edge_uses(welded.faces)[1] % 2).sum())
    return SurfaceCheck(
        boundary_edges=edges,
        crossing_voxels=0 if edges else _num_crossing_voxels(consistent, geometry, shells),
        flipped_faces=int(turned.sum()),
        degenerate_faces=int((area <= np.finfo(np.float32).eps ** 2).sum()),
        shells=shells,
        volume_ml=mesh.volume_ml,
        outside=float(area[beyond].sum() / area.sum()) if area.sum() > 0 else float(beyond.mean()),
    )


def mesh_problems(mesh: Mesh, geometry: Geometry) -> list[str]:
    """Returns why a surface gives no labels on this grid (open, outside), in words; empty for a usable one."""
    return check_surface(mesh, geometry).problems


def surface(mask: np.ndarray, geometry: Geometry, *, smoothing: float = SMOOTHING) -> Mesh:
    """Returns a smooth closed surface around a structure, faces outward, in RAS+ mm.

    It encloses the volume of the voxels. What touches the border of the grid is closed half a voxel beyond it.

    Args:
        mask: bool `(I, J, K)`.
        geometry: its grid.
        smoothing: standard deviation of the Gaussian in voxels of the finest axis; 0 leaves the terraces.

    Raises:
        ValueError: the mask is empty or does not fit the grid, or `smoothing` is negative or no number.

    >>> ball = (np.indices((21, 21, 21)) - 10.0)
    >>> mask = (ball**2).sum(axis=0) < 64
    >>> mesh = surface(mask, Geometry(mask.shape, np.eye(4)))
    >>> round(mesh.volume_ml, 2), round(int(mask.sum()) / 1000, 2)
    (2.1, 2.1)
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != geometry.shape or not mask.any():
        problem = "is empty" if mask.shape == geometry.shape else f"of shape {mask.shape} is not on {geometry.shape}"
        raise ValueError(f"the mask {problem}; a structure on its own grid is needed")
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"smoothing is {smoothing}; use 0 or a positive number of voxels")
    spans = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    start = np.array([span[0] for span in spans])
    box = np.pad(mask[tuple(slice(span[0], span[-1] + 1) for span in spans)], _MARGIN)
    field = _field(box, np.array(geometry.spacing), smoothing)
    target = float(np.count_nonzero(box)) * geometry.voxel_volume_ml
    return _enclosing(field, geometry.cropped(tuple((start - _MARGIN).tolist()), box.shape), target)


def _field(mask: np.ndarray, spacing: np.ndarray, smoothing: float) -> np.ndarray:
    """Returns the smoothed signed distance in mm, positive inside, float32 like `mask`."""
    reach = max(spacing.min(), spacing.max() / 2)
    field = np.minimum(distance_transform_edt(mask, sampling=spacing), reach).astype(np.float32)
    field -= np.minimum(distance_transform_edt(~mask, sampling=spacing), reach).astype(np.float32)
    if smoothing > 0:
        sigma = smoothing * spacing.min() / spacing
        once = gaussian_filter(field, sigma, mode="nearest", truncate=3)
        field = gaussian_filter(once, sigma, mode="nearest", truncate=3)
        np.subtract(2 * once, field, out=field)
    hold = np.float32(_HOLD * spacing.min())
    return np.where(mask, np.maximum(field, hold), np.minimum(field, -hold))


def _enclosing(field: np.ndarray, grid: Geometry, target_ml: float) -> Mesh:
    """Returns the level surface of `field` that encloses `target_ml`, or comes nearest to it."""
    finest = min(grid.spacing)
    low, high = max(-finest, 0.9 * float(field.min())), min(finest / 2, 0.9 * float(field.max()))
    level, best = 0.0, None
    for _ in range(_LEVEL_STEPS):
        mesh = _level_surface(field, level, grid)
        error = mesh.volume_ml - target_ml
        if best is None or abs(error) < abs(best.volume_ml - target_ml):
            best = mesh
        if abs(error) <= _VOLUME_TOLERANCE * target_ml:
            break
        low, high = (level, high) if error > 0 else (low, level)
        step = level + 1000 * error / float(_areas(mesh).sum())  # a shift of h mm adds area * h
        level = step if low < step < high else (low + high) / 2
    return best if best is not None else _level_surface(field, 0.0, grid)


def _level_surface(field: np.ndarray, level: float, grid: Geometry) -> Mesh:
    hold = float(np.abs(field).min())
    if abs(abs(level) - hold) < 0.02 * hold:  # a level through voxel centres makes faces without area
        level = float(np.copysign(0.98 * hold, level))
    vertices, faces, _, _ = marching_cubes(field, level, gradient_direction="ascent")
    mesh = Mesh(grid.world(vertices), faces.astype(np.int64))
    return mesh if mesh.volume_ml > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])


def _areas(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _welded(mesh: Mesh) -> Mesh:
    """Merges corners at one place and drops what encloses nothing; a double-sided surface becomes a single one."""
    vertices, inverse = np.unique(mesh.vertices + 0.0, axis=0, return_inverse=True)
    faces = _proper(inverse.reshape(-1)[mesh.faces])
    if len(faces) and (_edge_uses(faces)[1] % 2).any():
        pairs = cKDTree(vertices).query_pairs(WELD_MM, output_type="ndarray")
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(vertices),) * 2)
        place = connected_components(graph, directed=False)[1]
        first = np.unique(place, return_index=True)[1]
        vertices, faces = vertices[first], _proper(place[faces])
    return Mesh(vertices, faces, mesh.source)


def _proper(faces: np.ndarray) -> np.ndarray:
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    first, counts = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_counts=True)[1:]
    return faces[np.sort(first)] if len(counts) and (counts == 2).all() else faces


def _edge_uses(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for undirected edges: the number of each face's three edges `(3 M,)`, uses `(E,)`, sense `(3 M,)`."""
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    key = low * (int(high.max(initial=0)) + 1) + high
    _, number, uses = np.unique(key, return_inverse=True, return_counts=True)
    return number, uses, pairs[:, 0] == low


def _turned(faces: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns which faces must be turned to agree with most of their shell `(M,)`, and the number of shells.

    Every face stands in a graph twice, as it is and turned; edges of the graph join what agrees across an edge of two
    faces. A shell that cannot be oriented (a Moebius strip) keeps its faces.
    """
    count = len(faces)
    number, uses, sense = _edge_uses(faces)
    order = np.argsort(number, kind="stable")
    order = order[(uses == 2)[number[order]]].reshape(-1, 2)
    one, two = (order % count).T if count else (order[:, 0], order[:, 1])
    agree = sense[order[:, 0]] != sense[order[:, 1]]
    start = np.concatenate([one, one + count])
    stop = np.concatenate([np.where(agree, two, two + count), np.where(agree, two + count, two)])
    graph = coo_array((np.ones(len(start)), (start, stop)), shape=(2 * count, 2 * count))
    group = connected_components(graph, directed=False)[1]
    plain = coo_array((np.ones(len(one)), (one, two)), shape=(count, count))
    shells = connected_components(plain, directed=False)[0]
    members = np.bincount(group[:count], minlength=int(group.max(initial=0)) + 1)
    return members[group[:count]] < members[group[count:]], int(shells)


def _num_crossing_voxels(mesh: Mesh, geometry: Geometry, shells: int) -> int:
    corners, _, shape = _boxed(mesh, geometry)
    twice = positive = negative = 0
    for _, winding in _windings(corners, shape) if min(shape) > 0 else ():
        twice += int(np.count_nonzero(np.abs(winding) > 1))
        positive += int(np.count_nonzero(winding > 0))
        negative += int(np.count_nonzero(winding < 0))
    return twice + (min(positive, negative) if shells == 1 else 0)


def _boxed(mesh: Mesh, geometry: Geometry) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Returns the corners `(M, 3, 3)` in index coordinates of the box around the surface, its start and its shape."""
    index = geometry.index(mesh.vertices)
    used = index[np.unique(mesh.faces)] if len(mesh.faces) else np.full((1, 3), -1.0)
    last = np.array(geometry.shape) - 1
    start = np.clip(np.ceil(used.min(axis=0)), 0, last + 1).astype(int)
    stop = np.clip(np.floor(used.max(axis=0)), -1, last).astype(int) + 1
    return (index - start)[mesh.faces], tuple(start.tolist()), tuple((stop - start).tolist())


def _windings(corners: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slabs of rows and their winding numbers, int16 `(rows, J, K)`."""
    rows, columns, voxels, signs = _crossings(corners, shape)
    order = np.argsort(rows, kind="stable")
    rows, columns, voxels, signs = rows[order], columns[order], voxels[order], signs[order]
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        found = slice(*np.searchsorted(rows, [start, stop]))
        winding = np.zeros((stop - start, shape[1], shape[2] + 1), dtype=np.int16)
        np.add.at(winding, (rows[found] - start, columns[found], voxels[found]), signs[found])
        yield slice(start, stop), np.cumsum(winding, axis=2, out=winding)[:, :, :-1]


def _vote(corners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the majority of the parities along three axes, bool `shape`; rays with odd crossings do not vote."""
    inside, votes = np.zeros(shape, dtype=np.int8), np.zeros(shape, dtype=np.int8)
    for axis in range(3):
        order = [*(other for other in range(3) if other != axis), axis]
        turned = tuple(shape[other] for other in order)
        count = np.zeros((*turned[:2], turned[2] + 1), dtype=np.int16)
        rows, columns, voxels, _ = _crossings(corners[..., order], turned)
        np.add.at(count, (rows, columns, voxels), np.int16(1))
        parity = np.cumsum(count, axis=2, out=count) & 1
        back = np.argsort(order)
        valid = np.broadcast_to(parity[:, :, -1:] == 0, turned)
        inside += (parity[:, :, :-1].astype(bool) & valid).transpose(back)
        votes += valid.transpose(back)
    return 2 * inside > votes


def _crossings(corners: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Returns row, column, first voxel behind (`K` if there is none) and sign of every meeting of rays and faces.

    Rays run along the last axis through the integer (row, column) of `shape`; entering through an outward face is +1.
    """
    size = np.clip(np.ceil(np.ptp(corners, axis=1)) + 1, 1, shape)
    chunk = (np.cumsum(size[:, 0] * size[:, 1]) // _CHUNK_CROSSINGS).astype(int)
    cuts = np.flatnonzero(np.diff(chunk)) + 1
    parts = [_crossings_of(part, shape) for part in np.split(corners, cuts)]
    rows, columns, voxels, signs = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, columns, voxels, signs


def _crossings_of(corners: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    low, high = corners.min(axis=1), corners.max(axis=1)
    face, row = _ranges(np.ceil(low[:, 0]), np.ceil(high[:, 0]) - 1, shape[0])
    upward, downward = np.zeros(len(face)), np.zeros(len(face))
    for edge in range(3):
        a, b = corners[face, edge], corners[face, (edge + 1) % 3]
        rises = a[:, 0] < b[:, 0]
        lower, upper = np.where(rises[:, None], a, b), np.where(rises[:, None], b, a)
        crosses = (lower[:, 0] <= row) & (row < upper[:, 0])
        run = np.where(crosses, upper[:, 0] - lower[:, 0], 1.0)
        column = lower[:, 1] + (row - lower[:, 0]) * ((upper[:, 1] - lower[:, 1]) / run)
        upward = np.where(crosses & rises, column, upward)
        downward = np.where(crosses & ~rises, column, downward)
    first, last = np.ceil(np.minimum(upward, downward)), np.ceil(np.maximum(upward, downward)) - 1
    pair, column = _ranges(first, last, shape[1])
    face, row = face[pair], row[pair]
    a, b, c = (corners[face, corner] for corner in range(3))
    normal = np.cross(b - a, c - a)
    steep = normal[:, 2] == 0
    slope = normal[:, 0] * (row - a[:, 0]) + normal[:, 1] * (column - a[:, 1])
    depth = a[:, 2] - slope / np.where(steep, 1.0, normal[:, 2])
    depth = np.clip(depth, low[face, 2], high[face, 2])
    voxel = np.clip(np.ceil(depth), 0, shape[2]).astype(np.int32)
    sign = np.where(downward[pair] < upward[pair], 1, -1).astype(np.int16)
    return row.astype(np.int32), column.astype(np.int32), voxel, sign


def _ranges(first: np.ndarray, last: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (owner, number) of all whole numbers from `first` to `last` that lie in `range(size)`."""
    first = np.clip(first, 0, size).astype(np.int64)
    counts = np.maximum(np.clip(last, -1, size - 1).astype(np.int64) - first + 1, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + first[owner]
    return owner, number
