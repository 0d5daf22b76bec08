"""The shape of one subject's limbs, and what follows from it: labels on any grid, and volumes in closed form.

At every height z a structure's section is one convex set: its ellipse, cut along straight lines (radical axes) where
it meets its neighbours, cut by the fascia and by a line beside the midline. Bones cut each other likewise and are
then taken out of the muscles. So structures never overlap, touch like real muscles do, and the length of every
horizontal chord is known exactly; a volume is the integral of chord lengths over y and z, taken by quadrature. The
labels are made on another way, by asking for each voxel centre which section holds it, so that the two check each
other.

The slices are then bent by two shears, x += A sin(k y + p(z)) and y += B sin(k x + q(z)). A shear has determinant
one: borders become curved, volumes stay. Rejected: arbitrary smooth warps (volumes known only by counting voxels),
sectors around the bone (look like a cake), free ellipses (muscles would overlap or leave gaps as thick as
themselves).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from tfmuscle.labels import SIDES
from tfmuscle.phantom import anatomy
from tfmuscle.phantom import parameters as p
from tfmuscle.volume import Geometry

HEIGHT_STEP_MM = 1.5
"""Step of the quadrature along the limb: errors below 0.1 % for structures longer than 20 mm."""
CHORDS = 128
"""Chords per section: errors below 0.1 %, as a cut section's chord length has kinks."""
HIP_HEIGHT_MM, ANKLE_HEIGHT_MM = 400.0, -380.0
"""Ends of the free limb in the anatomy's frame, between which it bows."""


@dataclass(frozen=True, eq=False)
class Sections:
    """Ellipses of several structures at several heights, in world mm; all arrays `(N heights, S structures)`.

    A point is inside where xx dx² + 2 xy dx dy + yy dy² <= 1, with (dx, dy) its offset from the centre (x, y).
    `weight` is the squared radius that decides borders between neighbours, -inf where the structure is absent.
    """

    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    weight: np.ndarray

    def power(self, x: np.ndarray, y: np.ndarray, row: int, column: int) -> np.ndarray:
        """Power distance of points to a structure's circle: squared distance to its centre minus its weight."""
        return (x - self.x[row, column]) ** 2 + (y - self.y[row, column]) ** 2 - self.weight[row, column]

    def inside(self, x: np.ndarray, y: np.ndarray, row: int, column: int) -> np.ndarray:
        """Which points lie in the uncut ellipse."""
        dx, dy = x - self.x[row, column], y - self.y[row, column]
        form = self.xx[row, column] * dx**2 + 2 * self.xy[row, column] * dx * dy + self.yy[row, column] * dy**2
        return form <= 1.0

    def half_height(self, column: int) -> np.ndarray:
        """Half the extent of an ellipse along y, `(N,)`, 0 where absent."""
        determinant = self.xx[:, column] * self.yy[:, column] - self.xy[:, column] ** 2
        present = np.isfinite(self.weight[:, column])
        return np.sqrt(np.where(present, self.xx[:, column] / np.where(present, determinant, 1.0), 0.0))

    def chord(self, y: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Ends (low, high) in x of the chords at `y` `(N, L)` of the uncut ellipse; low > high where there is none."""
        xx, xy, yy = (form[:, column, None] for form in (self.xx, self.xy, self.yy))
        dy = y - self.y[:, column, None]
        root = (xy * dy) ** 2 - xx * (yy * dy**2 - 1.0)
        missing = (root < 0) | ~np.isfinite(self.weight[:, column, None])
        half = np.where(missing, -np.inf, np.sqrt(np.where(missing, 0.0, root)) / xx)
        middle = self.x[:, column, None] - xy * dy / xx
        return middle - half, middle + half

    def side_of(self, y: np.ndarray, column: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Ends in x of the half-lines at `y` `(N, L)` that lie nearer, by power, to `column` than to `other`."""
        a = 2 * (self.x[:, other] - self.x[:, column])[:, None]
        b = 2 * (self.y[:, other] - self.y[:, column])[:, None]
        own, theirs = (self.x[:, k] ** 2 + self.y[:, k] ** 2 - self.weight[:, k] for k in (column, other))
        both = np.isfinite(own) & np.isfinite(theirs)
        c = np.where(both, np.where(both, theirs, 0.0) - np.where(both, own, 0.0), np.inf)[:, None]
        a = np.where(np.abs(a) < 1e-9, 1e-9, a)
        end = (c - b * y) / a
        return np.where((a < 0) & np.isfinite(c), end, -np.inf), np.where((a > 0) & np.isfinite(c), end, np.inf)


@dataclass(frozen=True, eq=False)
class Leg:
    """One leg of one subject: its structures' paths, already random, and its pose.

    Attributes:
        side: "left" or "right".
        size: scale across the limb.
        length: scale along it.
        spread: sideways lean, mm outwards per mm downwards from the hip.
        bow: largest outward and forward bow, mm.
        twist: turn of the foot against the hip, radians.
        muscles: name -> (radius factor, shift m, shift a in mm).
    """

    side: str
    size: float
    length: float
    spread: float
    bow: tuple[float, float]
    twist: float
    muscles: dict[str, tuple[float, float, float]]

    @property
    def sign(self) -> float:
        """-1 on the left, +1 on the right: the sign of x in RAS+."""
        return -1.0 if self.side == SIDES[0] else 1.0

    def axis(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World (x, y) of the leg's axis at heights `z` in mm."""
        height = np.asarray(z) / self.length
        down = np.clip(HIP_HEIGHT_MM - height, 0.0, None)
        share = np.clip((height - ANKLE_HEIGHT_MM) / (HIP_HEIGHT_MM - ANKLE_HEIGHT_MM), 0.0, 1.0)
        bow = np.sin(np.pi * share)
        outward = anatomy.AXIS_OFFSET_MM * self.size + self.spread * down + self.bow[0] * bow
        return self.sign * outward, self.bow[1] * bow

    def muscle_sections(self, z: np.ndarray, names: tuple[str, ...]) -> Sections:
        """Sections of the named muscles at heights `z` `(N,)`."""
        rows = []
        for name in names:
            aspect, turn, knots = anatomy.MUSCLE_SHAPES[name]
            factor, shift_m, shift_a = self.muscles[name]
            table = np.array(knots)
            radius = table[:, 3] * factor
            ratio = np.sqrt(aspect)
            shape = np.column_stack(
                [table[:, 0], table[:, 1] + shift_m, table[:, 2] + shift_a, radius * ratio, radius / ratio]
            )
            rows.append(np.column_stack([shape, np.full(len(table), float(turn))]))
        return self._sections(z, rows, slack=p.SLACK)

    def bone_sections(self, z: np.ndarray) -> Sections:
        """Sections of the bones at heights `z`, in the order of `anatomy.BONE_SHAPES`."""
        return self._sections(z, [np.array(knots) for knots in anatomy.BONE_SHAPES.values()])

    def fascia_section(self, z: np.ndarray, *, margin: np.ndarray | float = 0.0) -> Sections:
        """Section of the sleeve around the muscles, widened by `margin` mm."""
        return self._sections(z, [np.array(anatomy.FASCIA_SHAPE)], margin=margin)

    def _sections(
        self, z: np.ndarray, tables: list[np.ndarray], *, slack: float = 1.0, margin: np.ndarray | float = 0.0
    ) -> Sections:
        """Places tubes, rows (z, m, a, radius_m, radius_a, degrees), in the world at heights `z`."""
        z = np.asarray(z, dtype=np.float64)
        height = z / self.length
        tables = [t[np.argsort(t[:, 0])] for t in tables]
        values = [PchipInterpolator(t[:, 0], np.column_stack([t[:, 1:3], t[:, 3:5] ** 2, t[:, 5]])) for t in tables]
        m, a, squared_m, squared_a, degrees = np.stack(
            [f(height, extrapolate=False) for f in values], axis=-1
        ).transpose(1, 0, 2)
        absent = ~(np.minimum(squared_m, squared_a) > 1e-3)
        squared_m, squared_a = (np.where(absent, 1.0, r) for r in (squared_m, squared_a))
        radius_m, radius_a = (
            np.sqrt(r) * self.size * slack + np.reshape(margin, (-1, 1)) for r in (squared_m, squared_a)
        )
        low = np.clip((HIP_HEIGHT_MM - height) / (HIP_HEIGHT_MM - ANKLE_HEIGHT_MM), 0.0, 1.0)[:, None] * self.twist
        m, a = m * np.cos(low) - a * np.sin(low), m * np.sin(low) + a * np.cos(low)
        turn = np.nan_to_num(np.deg2rad(degrees) + low)
        axis_x, axis_y = self.axis(z)
        cos, sin = np.cos(turn), np.sin(turn)
        mm = (cos / radius_m) ** 2 + (sin / radius_a) ** 2
        aa = (sin / radius_m) ** 2 + (cos / radius_a) ** 2
        ma = cos * sin * (1 / radius_m**2 - 1 / radius_a**2)
        weight = np.where(absent, -np.inf, np.sqrt(squared_m * squared_a) * self.size**2)
        x = axis_x[:, None] - self.sign * self.size * np.nan_to_num(m)
        return Sections(x, axis_y[:, None] + self.size * np.nan_to_num(a), mm, -self.sign * ma, aa, weight)


@dataclass(frozen=True, eq=False)
class Warp:
    """Two shears across the limb: amplitudes in mm, wavenumbers in 1/mm, phases in radians, each for x and y."""

    amplitude: tuple[float, float]
    wavenumber: tuple[float, float]
    phase: tuple[float, float]

    def undone(self, x: np.ndarray, y: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
        """Maps bent positions at height `z` back to straight ones; area is kept exactly."""
        turn = 2 * np.pi * z / p.WARP_TWIST_MM
        x = x - self.amplitude[0] * np.sin(self.wavenumber[0] * y + self.phase[0] + turn)
        return x, y - self.amplitude[1] * np.sin(self.wavenumber[1] * x + self.phase[1] - turn)


@dataclass(frozen=True, eq=False)
class Body:
    """One subject: two legs of one build, fat in mm under the skin at mid-thigh, and the warp."""

    legs: tuple[Leg, Leg]
    fat_mm: float
    warp: Warp

    def leg(self, side: str) -> Leg:
        """Returns the leg of that side."""
        return self.legs[SIDES.index(side)]


def make_body(rng: np.random.Generator) -> Body:
    """Draws a subject: build, fat, muscle proportions, pose and warp."""
    size, length = 1 + p.SIZE_SD * _normal(rng), 1 + p.LENGTH_SD * _normal(rng)
    fat_mm = float(np.exp(rng.uniform(*np.log(p.FAT_THICKNESS_MM))))
    bulk = rng.uniform(*p.BULK)
    factors = {name: bulk * (1 + p.MUSCLE_SD * _normal(rng)) for name in anatomy.MUSCLE_SHAPES}
    legs = []
    for side in SIDES:
        muscles = {
            name: (
                factor * (1 + p.ASYMMETRY_SD * _normal(rng)),
                p.SHIFT_SD_MM * _normal(rng),
                p.SHIFT_SD_MM * _normal(rng),
            )
            for name, factor in factors.items()
        }
        spread, twist = (
            np.tan(np.deg2rad(rng.uniform(*p.SPREAD_DEG))),
            np.deg2rad(rng.uniform(-p.TWIST_DEG, p.TWIST_DEG)),
        )
        bow = (float(rng.uniform(-p.BOW_MM, p.BOW_MM)), float(rng.uniform(-p.BOW_MM, p.BOW_MM)))
        legs.append(Leg(side, float(size), float(length), float(spread), bow, float(twist), muscles))
    warp = Warp(
        tuple(rng.uniform(*p.WARP_AMPLITUDE_MM, 2)),
        tuple(2 * np.pi / rng.uniform(*p.WARP_WAVELENGTH_MM, 2)),
        tuple(rng.uniform(0, 2 * np.pi, 2)),
    )
    return Body((legs[0], legs[1]), fat_mm, warp)


def structure_names(side: str) -> tuple[str, ...]:
    """Names with side of what `paint_leg` numbers 1, 2, ...: muscles, then bones."""
    return tuple(f"{name}_{side}" for name in (*anatomy.MUSCLE_SHAPES, *anatomy.BONE_SHAPES))


def leg_labels(body: Body, side: str, geometry: Geometry) -> np.ndarray:
    """Numbers each voxel centre 1, 2, ... in the order of `structure_names`, 0 outside, `(I, J, K)` uint8.

    The grid's axes must run along x, y and z.
    """
    leg, (xs, ys, zs) = body.leg(side), grid_axes(geometry)
    names = tuple(anatomy.MUSCLE_SHAPES)
    muscles, bones, fascia = leg.muscle_sections(zs, names), leg.bone_sections(zs), leg.fascia_section(zs)
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    for k, z in enumerate(zs):
        x, y = body.warp.undone(xs[:, None], ys[None, :], z)
        near = fascia.inside(x, y, k, 0) & (leg.sign * x >= p.MIDLINE_GAP_MM)
        plane = np.zeros(x.shape, dtype=np.uint8)
        if near.any():
            plane[near] = _nearest(muscles, x[near], y[near], k)
        bone = _nearest(bones, x.ravel(), y.ravel(), k).reshape(x.shape)
        labels[:, :, k] = np.where(bone > 0, bone + len(names), plane)
    return labels


def _nearest(sections: Sections, x: np.ndarray, y: np.ndarray, row: int) -> np.ndarray:
    """1 + number of the structure nearest by power, where that structure's ellipse holds the point, else 0."""
    best = np.full(x.shape, np.inf)
    found = np.zeros(x.shape, dtype=np.uint8)
    for column in map(int, np.flatnonzero(np.isfinite(sections.weight[row]))):
        power = sections.power(x, y, row, column)
        nearer = power < best
        best = np.where(nearer, power, best)
        found = np.where(nearer, np.where(sections.inside(x, y, row, column), column + 1, 0), found).astype(np.uint8)
    return found


def outline(body: Body, sides: tuple[str, ...], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Which voxels lie inside the skin, and which are pelvic organs if nothing else, both `(I, J, K)` bool."""
    xs, ys, zs = grid_axes(geometry)
    heights = np.array(zs) / body.legs[0].length
    fat = body.fat_mm * np.interp(heights, *np.array(anatomy.FAT_PROFILE).T)
    skins = [body.leg(side).fascia_section(zs, margin=fat) for side in sides]
    trunk, size = np.array(anatomy.TRUNK_SHAPE), body.legs[0].size
    inside, organs = np.zeros(geometry.shape, dtype=bool), np.zeros(geometry.shape, dtype=bool)
    for k, z in enumerate(zs):
        x, y = body.warp.undone(xs[:, None], ys[None, :], z)
        for skin in skins:
            inside[:, :, k] |= skin.inside(x, y, k, 0)
        if heights[k] >= trunk[0, 0]:
            centre, wide, deep = (np.interp(heights[k], trunk[:, 0], column) * size for column in trunk[:, 1:].T)
            inside[:, :, k] |= (x / (wide + fat[k])) ** 2 + ((y - centre) / (deep + fat[k])) ** 2 <= 1
        start, centre, wide, deep = anatomy.VISCERA_SHAPE
        if heights[k] >= start:
            organs[:, :, k] = (x / (wide * size)) ** 2 + ((y - centre * size) / (deep * size)) ** 2 <= 1
    return inside, organs


def volumes_ml(body: Body, side: str, geometry: Geometry) -> dict[str, float]:
    """Returns each structure's volume in ml between the outer faces of the first and last slice, in closed form.

    V = sum over heights, sum over chords of length dy dz, with midpoints in z and y = cy + h cos(t) for midpoints in t,
    which removes the square-root ends of an ellipse. Structures absent from the view have 0.
    """
    step = geometry.spacing[2]
    zs = grid_axes(geometry)[2]
    low, high = zs.min() - step / 2, zs.max() + step / 2
    count = int(np.ceil((high - low) / HEIGHT_STEP_MM))
    dz = (high - low) / count
    z = low + dz * (np.arange(count) + 0.5)
    leg = body.leg(side)
    names = tuple(anatomy.MUSCLE_SHAPES)
    muscles, bones, fascia = leg.muscle_sections(z, names), leg.bone_sections(z), leg.fascia_section(z)
    areas = [_muscle_area(leg, muscles, bones, fascia, column) for column in range(len(names))]
    areas += [_bone_area(bones, column) for column in range(len(anatomy.BONE_SHAPES))]
    return {name: float(area.sum() * dz) / 1000.0 for name, area in zip(structure_names(side), areas, strict=True)}


def _lines(sections: Sections, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Heights in y `(N, L)` of the chords through a structure, and what share of y each stands for."""
    angle = np.pi * (np.arange(CHORDS) + 0.5) / CHORDS
    half = sections.half_height(column)[:, None]
    return sections.y[:, column, None] + half * np.cos(angle), half * np.sin(angle) * np.pi / CHORDS


def _present(sections: Sections) -> Iterator[int]:
    return map(int, np.flatnonzero(np.isfinite(sections.weight).any(axis=0)))


def _cell(sections: Sections, y: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends in x of a structure's chords at `y`, cut where it meets the others of its kind."""
    low, high = sections.chord(y, column)
    for other in _present(sections):
        if other != column:
            start, stop = sections.side_of(y, column, other)
            low, high = np.maximum(low, start), np.minimum(high, stop)
    return low, high


def _bone_area(bones: Sections, column: int) -> np.ndarray:
    """Area of a bone at each height, mm², `(N,)`."""
    y, dy = _lines(bones, column)
    low, high = _cell(bones, y, column)
    return (np.maximum(high - low, 0.0) * dy).sum(axis=1)


def _muscle_area(leg: Leg, muscles: Sections, bones: Sections, fascia: Sections, column: int) -> np.ndarray:
    """Area of a muscle at each height, mm², `(N,)`: its cell within the fascia less the bones in it."""
    rows = np.flatnonzero(np.isfinite(muscles.weight[:, column]))
    area = np.zeros(len(muscles.weight))
    if not len(rows):
        return area
    muscles, bones, fascia = (_rows(sections, rows) for sections in (muscles, bones, fascia))
    y, dy = _lines(muscles, column)
    low, high = _cell(muscles, y, column)
    start, stop = fascia.chord(y, 0)
    low, high = np.maximum(low, start), np.minimum(high, stop)
    low = np.maximum(low, p.MIDLINE_GAP_MM) if leg.sign > 0 else low
    high = np.minimum(high, -p.MIDLINE_GAP_MM) if leg.sign < 0 else high
    length = np.maximum(high - low, 0.0)
    for bone in _present(bones):
        start, stop = _cell(bones, y, bone)
        length = length - np.maximum(np.minimum(high, stop) - np.maximum(low, start), 0.0)
    area[rows] = (length * dy).sum(axis=1)
    return area


def _rows(sections: Sections, rows: np.ndarray) -> Sections:
    return Sections(*(getattr(sections, name)[rows] for name in ("x", "y", "xx", "xy", "yy", "weight")))


def grid_axes(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World x, y and z in mm of the voxel centres along the three axes of a grid that is not turned."""
    affine = geometry.affine
    if not np.allclose(affine[:3, :3], np.diag(np.diag(affine[:3, :3]))):
        raise ValueError(
            f"a phantom needs a grid along x, y and z, not {affine[:3, :3].tolist()}; resample the result instead"
        )
    x, y, z = (affine[axis, 3] + affine[axis, axis] * np.arange(geometry.shape[axis]) for axis in range(3))
    return x, y, z


def _normal(rng: np.random.Generator) -> float:
    """A standard normal number cut at two, so that no subject is absurd."""
    return float(np.clip(rng.standard_normal(), -2.0, 2.0))
