"""Synthetic limbs whose true labels and volumes are known: for demos, tests and benchmarks.

`make_phantom` draws a subject (build, fat, muscle proportions, pose), shapes its limbs and paints an image of them.
A phantom shows that software works, and nothing about patients. Five kinds:

* "bones": one whole limb, left or right by chance, in thick slices; five bones are labelled, muscles are only seen.
  Names carry no side, as every view holds one limb.
* "thigh": the middle of both thighs, twelve muscles of each and the femora.
* "lower-limb": 35 muscles and five bones of both sides, ankle to hip.
* "ultrasound": a sweep along a left calf in a water bath, three muscles. The beam runs along axis 1 from index 0,
  axis 2 is the sweep; the coordinates are the probe's, not a patient's.
* "child-bones": one whole limb of a child, with the four labels of Cheena's bone pipeline: tibia 1, femur 2, fibula 3,
  pelvis 4 (the hip bone of that limb). The contrast "water" makes a second cohort of other appearance.

Where things are: `anatomy.py` is the mean limb, `parameters.py` every other number, with unit and reason. `limb.py`
is the shape and its closed-form volumes, `intensities.py` the image, `deformation.py` new bodies from given labels.

Not rigged: all muscles of a subject share one distribution of brightness. The best rule that looks at one voxel's
value alone stays below 0.3 Dice for every muscle of a thigh or lower limb, and below 0.4 in a sweep, where soleus alone
is a third of all muscle; tests say so. Position, shape and the faint septa between muscles are what there is to learn.
"""

from dataclasses import dataclass

import numpy as np

from tfmuscle.labels import SIDES, LabelMap, lower_limb
from tfmuscle.phantom import anatomy, limb
from tfmuscle.phantom import parameters as p
from tfmuscle.phantom.deformation import deform_labels
from tfmuscle.phantom.intensities import (
    CONTRASTS,
    FAT,
    MARROW,
    MUSCLE,
    VISCERA,
    check_contrast,
    image_from_labels,
    paint,
)
from tfmuscle.volume import Geometry, Volume

__all__ = ["CONTRASTS", "KINDS", "Phantom", "deform_labels", "image_from_labels", "make_phantom"]

KINDS = ("bones", "thigh", "lower-limb", "ultrasound", "child-bones")
_CHILD_BONES = {"tibia": "tibia", "femur": "femur", "fibula": "fibula", "hip": "pelvis"}
"""Bone of the limb -> its name in the bone pipeline, in the order of the ids."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """An image, its exact labels, and what they should measure.

    Attributes:
        image: `(I, J, K)` float32, or `(I, J, K, 2)` (water, fat) for Dixon.
        labels: `(I, J, K)` uint8 ids on the same grid.
        label_map: what the ids mean.
        volumes_ml: structure -> volume in ml within the view, in closed form; counting voxels comes within 1 % at 1 mm.
    """

    image: Volume
    labels: Volume
    label_map: LabelMap
    volumes_ml: dict[str, float]


def make_phantom(
    kind: str,
    *,
    seed: int,
    spacing: tuple[float, float, float] | None = None,
    scale: float = 1.0,
    contrast: str | None = None,
) -> Phantom:
    """Makes one subject; the same arguments give the same bits, another seed another subject.

    Args:
        kind: one of `KINDS`.
        seed: any non-negative integer. A subject's shape depends on kind and seed only, not on grid or contrast.
        spacing: voxel size along x, y, z in mm; the kind's own by default. The field of view stays the same.
        scale: factor on the spacing: 2 halves the number of voxels along each axis.
        contrast: one of `CONTRASTS`; "ultrasound" for that kind and "t1" for the others by default.

    Raises:
        ValueError: an unknown kind or contrast, or sizes that are not positive.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0, 1, 2, ...")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale is {scale}; use a positive factor on the spacing")
    contrast = contrast or ("ultrasound" if kind == "ultrasound" else "t1")
    check_contrast(contrast)
    shape_rng, image_rng = (np.random.default_rng([seed, KINDS.index(kind), part]) for part in range(2))
    body = limb.make_body(shape_rng)
    single = SIDES[shape_rng.integers(2) if kind in ("bones", "child-bones") else 0]
    sides = SIDES if kind in ("thigh", "lower-limb") else (single,)
    geometry = _view(kind, body, sides, shape_rng)
    if spacing is not None or scale != 1.0:
        geometry = geometry.resampled(tuple(size * scale for size in spacing or geometry.spacing))
    structures, all_volumes = _structures(body, sides, geometry)
    tissues = _tissues(body, sides, structures, geometry)
    if kind == "child-bones":
        geometry, all_volumes = _shrunk(geometry, all_volumes)
    image = paint(tissues, structures, geometry, contrast=contrast, rng=image_rng)
    label_map = _label_map(kind)
    labels, volumes_ml = _chosen(structures, all_volumes, label_map)
    return Phantom(Volume(image, geometry), Volume(labels, geometry), label_map, volumes_ml)


def _shrunk(geometry: Geometry, volumes: dict[str, float]) -> tuple[Geometry, dict[str, float]]:
    """Makes a child's limb of an adult's: the same voxels, all lengths times `CHILD_SIZE`; bones by other names."""
    affine = geometry.affine.copy()
    affine[:3] *= p.CHILD_SIZE
    shrunk = {}
    for name, volume in volumes.items():
        bone, _, side = name.rpartition("_")
        shrunk[f"{_CHILD_BONES.get(bone, bone)}_{side}"] = volume * p.CHILD_SIZE**3
    return Geometry(geometry.shape, affine), shrunk


def _label_map(kind: str) -> LabelMap:
    if kind == "lower-limb":
        return lower_limb()
    if kind == "child-bones":
        return LabelMap(dict(enumerate(_CHILD_BONES.values(), start=1)))
    if kind == "thigh":
        names = [f"{name}_{side}" for name in (*anatomy.THIGH_MUSCLES, "femur") for side in SIDES]
    else:
        names = list(anatomy.BONE_SHAPES if kind == "bones" else anatomy.ULTRASOUND_MUSCLES)
    return LabelMap(dict(enumerate(names, start=1)))


def _view(kind: str, body: limb.Body, sides: tuple[str, ...], rng: np.random.Generator) -> Geometry:
    """The kind's grid in RAS+ order, around the limb or limbs, a little off centre."""
    shape, spacing, z, y = p.VIEWS[kind]
    leg = body.leg(sides[0])
    x, y_axis = (0.0, 0.0) if len(sides) == 2 else (float(value) for value in leg.axis(np.array(z * leg.length)))
    centre = np.array([x, y + y_axis, z * leg.length]) + rng.uniform(-1, 1, 3) * p.CENTRE_JITTER_MM
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = centre - (np.array(shape) - 1) / 2 * spacing
    return Geometry(shape, affine)


def _structures(body: limb.Body, sides: tuple[str, ...], geometry: Geometry) -> tuple[np.ndarray, dict[str, float]]:
    """Numbers of all structures of the sides in view, `(I, J, K)` uint8, and name -> volume in ml in their order."""
    structures = np.zeros(geometry.shape, dtype=np.uint8)
    volumes: dict[str, float] = {}
    for side in sides:
        own = limb.leg_labels(body, side, geometry)
        structures = np.where(own > 0, own + len(volumes), structures).astype(np.uint8)
        volumes |= limb.volumes_ml(body, side, geometry)
    return structures, volumes


def _tissues(body: limb.Body, sides: tuple[str, ...], structures: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Tissue of each voxel, `(I, J, K)` uint8."""
    inside, organs = limb.outline(body, sides, geometry)
    tissues = np.where(inside, FAT, 0).astype(np.uint8)
    tissues[organs & inside] = VISCERA
    muscles, bones = len(anatomy.MUSCLE_SHAPES), len(anatomy.BONE_SHAPES)
    is_bone = (structures - 1) % (muscles + bones) >= muscles
    tissues[structures > 0] = MUSCLE
    tissues[(structures > 0) & is_bone] = MARROW
    return tissues


def _chosen(
    structures: np.ndarray, volumes: dict[str, float], label_map: LabelMap
) -> tuple[np.ndarray, dict[str, float]]:
    """Keeps what the map names: ids `(I, J, K)` uint8 and volumes; the map may leave out the side of a single limb."""
    table = np.zeros(len(volumes) + 1, dtype=np.uint8)
    chosen = {}
    for number, (name, volume) in enumerate(volumes.items(), start=1):
        shown = name if name in label_map.structures else name.rsplit("_", 1)[0]
        if shown in label_map.structures:
            table[number] = label_map.id_of(shown)
            chosen[shown] = volume
    return table[structures], {name: chosen[name] for name in label_map.structures}
