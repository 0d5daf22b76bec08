"""What travels: a grid in space, an image on it, a sweep of frames, a surface.

Conventions, stated once:

* World coordinates are RAS+ in millimetres: x grows to the patient's Right, y to the Anterior, z to the Superior
  side, as in NIfTI. DICOM's LPS is converted in `io/dicom/`, in
  `io/dicom_labels/`, and nowhere else.
* `affine @ (i, j, k, 1)` is the world position of the *centre* of voxel `array[i, j, k]`. Spacing, orientation,
  origin and direction are read from the affine, so that they cannot disagree with it.
* An orientation code names, for axes 0, 1, 2, the side towards which the index grows: nibabel's axis codes. `"SPL"`
  is the usual code of a limb after preprocessing: axis 0 is the slice axis, rows run to the back, columns to the
  left.
* Arrays are `(I, J, K)`, or `(I, J, K, C)` with channels last. After preprocessing axis 0 is the slice axis.

Every change of grid returns a new object. There is no history and no inverse: a prediction is resampled onto the
geometry of the scan it was made from.
"""

from dataclasses import dataclass, field
from typing import Any

import nibabel.orientations as orientations
import numpy as np

SPACING_TOLERANCE_MM = 1e-4
"""Two spacings closer than this are one spacing."""
GRID_TOLERANCE_MM = 1e-2
"""Two grids whose corners agree within this are one grid: far below a voxel, above float32 rounding in headers."""

SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 1e-6, 1e6
"""Spacings beyond these are damaged headers, whatever the unit; axis codes cannot be computed of them."""

HALF_VOXEL_TOLERANCE = 1e-3
"""An extent this close above half a voxel is rounded down, so that DICOM's decimal text and NIfTI's float32 of one
spacing lead to one grid."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular grid in the patient: `shape` (I, J, K) and a 4x4 `affine` from index to world millimetres (RAS+).

    >>> grid = Geometry((10, 20, 30), np.diag([-2.0, -2.0, 3.0, 1.0]))
    >>> grid.spacing, grid.orientation
    ((2.0, 2.0, 3.0), 'LPS')
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three positive sizes, not {self.shape}")
        is_matrix = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
        largest = np.abs(affine[:3, :3]).max(axis=0) if is_matrix else np.zeros(3)  # never overflows, as a norm would
        is_sane = 0 < largest.max() <= LARGEST_VOXEL_MM
        if not is_matrix or (is_sane and abs(np.linalg.det(affine[:3, :3])) < 1e-12) or not largest.all():
            raise ValueError(f"an affine is a finite, invertible 4x4 matrix, not {affine.tolist()}")
        if not is_sane or largest.min() < SMALLEST_VOXEL_MM:
            raise ValueError(f"voxels of about {largest.tolist()} mm are no voxels of a scan; check the spacing")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each axis, in mm."""
        a, b, c = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(a), float(b), float(c)

    @property
    def orientation(self) -> str:
        """Nearest axis codes, e.g. "RAS"; for an oblique grid the closest ones."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (cm³), true for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def world(self, index: Any) -> np.ndarray:
        """Maps indices `(..., 3)` to world positions `(..., 3)` in mm."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world: Any) -> np.ndarray:
        """Maps world positions `(..., 3)` in mm to fractional indices `(..., 3)`."""
        return (np.asarray(world, dtype=np.float64) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def same_grid(self, other: "Geometry", *, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
        """Whether both grids have the same shape and their corners lie within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(self.shape) - 1)
        return bool(np.abs(self.world(corners) - other.world(corners)).max() <= tolerance_mm)

    def cropped(self, start: tuple[int, ...], shape: tuple[int, ...]) -> "Geometry":
        """Returns the grid of `array[start:start + shape]`; `start` may be negative (padding)."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(start)
        return Geometry((shape[0], shape[1], shape[2]), affine)

    def resampled(self, spacing: tuple[float, ...]) -> "Geometry":
        """Returns the grid of exactly `spacing` mm over the same field of view, centred on it.

        The outer faces of the voxels are kept to within half a new voxel; an axis has at least one voxel.
        """
        old, new = np.array(self.spacing), np.array(spacing, dtype=np.float64)
        if new.shape != (3,) or not (np.isfinite(new) & (new > 0)).all():
            raise ValueError(f"a spacing is three positive numbers in mm, not {tuple(spacing)}")
        new = np.where(np.abs(new - old) < SPACING_TOLERANCE_MM, old, new)
        extent = np.array(self.shape) * old / new
        shape = np.maximum(1, np.ceil(extent - 0.5 - HALF_VOXEL_TOLERANCE)).astype(int)
        start = ((np.array(self.shape) - 1) - (shape - 1) * new / old) / 2
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * (new / old)
        affine[:3, 3] = self.world(start)
        return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def resized(self, shape: tuple[int, ...]) -> "Geometry":
        """Returns the grid of exactly `shape` voxels over the same field of view; its outer faces stay where they are.

        The spacing follows: `spacing * old shape / new shape`.

        >>> Geometry((1, 512, 512), np.diag([3, 0.9375, 0.9375, 1])).resized((1, 256, 256)).spacing
        (3.0, 1.875, 1.875)
        """
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three positive sizes, not {tuple(shape)}")
        factor = np.array(self.shape) / np.array(shape)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * factor
        affine[:3, 3] = self.world((factor - 1) / 2)  # centre of the first voxel, whose face stays at -1/2
        return Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)

    def transform_to(self, orientation: str) -> np.ndarray:
        """Returns nibabel's orientation transform `(3, 2)` (target axis, flip) that leads to `orientation`."""
        axes = [axis for letter in orientation for axis, pair in enumerate(("RL", "AP", "SI")) if letter in pair]
        if len(orientation) != 3 or sorted(axes) != [0, 1, 2]:
            raise ValueError(f"{orientation!r} is no orientation; use three letters, one each of R/L, A/P, S/I")
        wanted = orientations.axcodes2ornt(tuple(orientation))
        return orientations.ornt_transform(orientations.io_orientation(self.affine), wanted)

    def to_dict(self) -> dict[str, Any]:
        """Returns shape and affine as plain lists."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Geometry":
        """Reads what `to_dict` wrote."""
        return cls(tuple(content["shape"]), np.array(content["affine"]))


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a label array on a grid.

    Attributes:
        array: `(I, J, K)` or `(I, J, K, C)`.
        geometry: its grid; `geometry.shape` equals `array.shape[:3]`.
        source: file or folder it came from, for messages only.
    """

    array: np.ndarray
    geometry: Geometry
    source: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4) or self.array.shape[:3] != self.geometry.shape:
            raise ValueError(f"array of shape {self.array.shape} does not fit a grid of shape {self.geometry.shape}")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing of the grid in mm."""
        return self.geometry.spacing

    @property
    def num_channels(self) -> int:
        """Number of channels; an `(I, J, K)` array has one."""
        return 1 if self.array.ndim == 3 else self.array.shape[3]

    def with_array(self, array: np.ndarray) -> "Volume":
        """Returns new data on the same grid."""
        return Volume(array, self.geometry, self.source)

    def reoriented(self, orientation: str | None) -> "Volume":
        """Returns the same voxels with axes permuted and flipped to `orientation`, e.g. "SPL".

        None is for data without patient coordinates (an ultrasound sweep): the axes are only reversed, so that the
        slice axis (the last one in a file) comes first; nothing is flipped.
        """
        if orientation is None:
            affine = self.geometry.affine[:, [2, 1, 0, 3]]
            array = self.array.transpose(2, 1, 0, *range(3, self.array.ndim))
            return Volume(array, Geometry(array.shape[:3], affine), self.source)
        transform = self.geometry.transform_to(orientation)
        array = orientations.apply_orientation(self.array, transform)
        affine = self.geometry.affine @ orientations.inv_ornt_aff(transform, self.geometry.shape)
        return Volume(array, Geometry(array.shape[:3], affine), self.source)

    def cropped(self, start: tuple[int, ...], stop: tuple[int, ...]) -> "Volume":
        """Returns `array[start:stop]` on its own grid."""
        if min(start) < 0 or any(not a < b <= n for a, b, n in zip(start, stop, self.geometry.shape, strict=True)):
            raise ValueError(f"box {tuple(start)}..{tuple(stop)} is not inside {self.geometry.shape}")
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        return Volume(self.array[box], self.geometry.cropped(start, shape), self.source)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Tracked ultrasound frames.

    Attributes:
        frames: `(T, H, W)`.
        poses: `(T, 4, 4)`; `poses[t] @ (row, column, 0, 1)` is a position in mm.
        source: file it came from.
    """

    frames: np.ndarray
    poses: np.ndarray
    source: str = ""

    def __post_init__(self) -> None:
        if self.frames.ndim != 3 or self.poses.shape != (len(self.frames), 4, 4):
            raise ValueError(f"{self.frames.shape} frames need as many 4x4 poses, not {self.poses.shape}")


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle surface in world mm (RAS+).

    Attributes:
        vertices: `(N, 3)`.
        faces: `(M, 3)` indices, outward by the right hand.
        source: file it came from.
    """

    vertices: np.ndarray
    faces: np.ndarray
    source: str = field(default="")

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(
                f"vertices (N, 3) and faces (M, 3) are needed, not {self.vertices.shape}, {self.faces.shape}"
            )
        if len(self.faces) and not 0 <= self.faces.min() <= self.faces.max() < len(self.vertices):
            raise ValueError(f"faces point outside the {len(self.vertices)} vertices")

    @property
    def volume_ml(self) -> float:
        """Signed enclosed volume in ml, positive when the faces look outward (divergence theorem)."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6000.0
