"""Named recipes: which transforms happen, how often and how strongly.

The user names one by `fit --augmentation`, or gives `augment` a `Magnitudes` of their own.

| name | source | moves | changes |
|---|---|---|---|
| none | | nothing, no mirror | nothing |
| light | ours | more than half of the samples, together | mild |
| full | ours, after nnU-Net | half of the samples, together, and elastically | nnU-Net's amounts, all channels alike |
| nnunet | nnU-Net v2 | rotation 0.2, scale 0.2, each by itself | each channel by itself |
| mehrabi | Mehrabi & Handsfield | every sample ±15°, 0.9–1.1, ±5 % | gamma, noise 0.5, outlines ±1 voxel 0.3 |
| ni | Ni et al. 2019 | every sample ±10°, shear ±0.1 | nothing |
| cheena, cheena_coronal | Cheena | one angle ±15° and one mirror for a whole scan | nothing |
| positional, positional_paper | Zeng et al. 2021 | 0.67: elastic, rotation, 0.7–1.3; else a crop | nothing |

**Limits that hold for all.** A label map with sides is never turned by more than `UPRIGHT` degrees, because a limb
upside down has its left where its right was; `nnunet` and `positional_paper` keep their ±180 degrees where no name has
a side. Mirrors exchange partners (`mirror.py`). `notes` puts into words what of this a dataset meets.

**nnU-Net, item by item**, after its trainer and batchgeneratorsv2 (the numbers are probabilities):

* the same: rotation 0.2 (volumes ±30° about all axes; 2D ±180°, or ±15° where one edge is over 1.5 x the other); a
  patch over 3 x wider than deep turns in-plane only, ±180°, its slices alike, and loses resolution in-plane only;
  scale 0.2 in 0.7–1.4, all axes alike; no elastic deformation; noise 0.1 in U(0, 0.1), called a variance and used as
  a standard deviation; blur 0.2 with σ 0.5–1 for each axis, channels 0.5; brightness 0.15 by 0.75–1.25; contrast 0.15
  by 0.75–1.25 within the range; low resolution 0.25 by 0.5–1, nearest down and linear up, channels 0.5; gamma
  0.7–1.5, half of them below 1, mean and deviation kept, of the negative 0.1 and of the image 0.3; mirror each axis
  0.5.
* angles are true in mm, nnU-Net turns voxels: with thick slices its rotations shear the patient;
* uniform is the magnification, in nnU-Net its inverse: the same range, 4 % larger on average;
* noise is drawn for each channel, in nnU-Net once for all: receivers are independent;
* mirrors come first, not last, which has the same distribution, and keep the rule of sides;
* what comes in from outside is the channel's minimum and unknown, not 0 and background: nobody labelled it;
* samples are cut when records are built, not anew around random voxels, a third of them foreground, in every epoch;
* labels are moved by nearest neighbour, there by the majority of linear weights: half a voxel at most.

What the papers leave open is ours: `ni` and `mehrabi` move every sample; Cheena's two or four fixed copies of a scan
become one new copy an epoch, turned about the window's centre; PCL's crop, there a patch of a wider slice, is here a
shift of the window. PCL turns full circle (`positional_paper`); thighs stay upright (`positional`). Ni's mirror and
Cheena's are left/right, Mehrabi's too (columns where left/right is unknown).
"""

from dataclasses import dataclass

from tfmuscle.augmentation.mirror import is_sided, mirrored_axes, sample_axes, side_axis
from tfmuscle.config import AUGMENTATIONS, DataSpec

UPRIGHT = 30.0
"""Largest in-plane rotation, in degrees, of samples whose labels have sides."""
ANISOTROPY = 3.0
"""Slices thicker than this many in-plane voxels are only turned in-plane: anything else would be interpolation."""
_FLAT_PATCH, _NARROW_PATCH, _NARROW_ANGLE, _TILT = 3.0, 1.5, 15.0, 30.0
_COLUMNS = 2
"""The axis taken for left/right where it is unknown and no name has a side."""
_NORMAL = {"axial": "SI", "coronal": "AP", "sagittal": "LR"}
_Range = tuple[float, float]


@dataclass(frozen=True)
class Magnitudes:
    """How strong each transform is at most, and how often it happens.

    Attributes:
        spatial: probability of rotation, scale, shear and shift, together.
        rotation: largest in-plane angle in degrees.
        tilt: largest angle about the two in-plane axes in degrees; volumes only, and not of thick slices.
        scale: smallest and largest magnification.
        shear: largest shear.
        shift: largest shift, as a share of each edge.
        rotation_alone, scale_alone: probabilities of each by itself, beside `spatial`.
        elastic: probability of an elastic deformation in a sample that is moved.
        elastic_amplitude: largest displacement, as a share of the distance of control points.
        elastic_noise, elastic_sigma: ranges of the elastic deformation of smoothed noise (`noise_displacement`), in
            voxels; it replaces the one of control points.
        crop: largest shift of a sample that is not moved otherwise, as a share of each edge.
        patch_angles: choose angles and planes by the shape of the sample, as nnU-Net does.
        plane: the plane volumes turn in: axial, coronal or sagittal; None for in-plane, and `tilt` out of it.
        mirrors: "all" axes that may be, or only "sides", the left/right axis (columns where it is unknown).
        mirror_one_sided: mirror even if a sided label lacks its partner; it keeps its name in the mirror image.
        whole_scan: all samples of a scan are moved and mirrored alike in an epoch.
        morphology: probability of labels thickened or thinned by one voxel in-plane.
        noise, noise_variance, noise_sd: probability; largest variance, or largest standard deviation.
        blur, blur_sigma: probability, range in voxels.
        brightness, brightness_factor: probability, range.
        contrast, contrast_factor: probability, range.
        low_resolution, zoom: probability, range.
        gamma, gamma_inverted, exponent: probabilities for the image and for its negative, range.
        each_channel: amounts are drawn for each channel by itself.
        channel_share: probability that a channel takes part in blur and low resolution; with `each_channel`.
        balanced: half of the factors and exponents are below 1, whatever the range.
    """

    spatial: float = 0.0
    rotation: float = 0.0
    tilt: float = 0.0
    scale: _Range = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    rotation_alone: float = 0.0
    scale_alone: float = 0.0
    elastic: float = 0.0
    elastic_amplitude: float = 0.0
    elastic_noise: _Range | None = None
    elastic_sigma: _Range = (1.0, 1.0)
    crop: float = 0.0
    patch_angles: bool = False
    plane: str | None = None
    mirrors: str = "all"
    mirror_one_sided: bool = False
    whole_scan: bool = False
    morphology: float = 0.0
    noise: float = 0.0
    noise_variance: float = 0.0
    noise_sd: float = 0.0
    blur: float = 0.0
    blur_sigma: _Range = (0.0, 0.0)
    brightness: float = 0.0
    brightness_factor: _Range = (1.0, 1.0)
    contrast: float = 0.0
    contrast_factor: _Range = (1.0, 1.0)
    low_resolution: float = 0.0
    zoom: _Range = (1.0, 1.0)
    gamma: float = 0.0
    gamma_inverted: float = 0.0
    exponent: _Range = (1.0, 1.0)
    each_channel: bool = False
    channel_share: float = 1.0
    balanced: bool = False


LIGHT = Magnitudes(
    spatial=0.6, rotation=15, tilt=10, scale=(0.85, 1.15), shear=0.1,
    noise=0.2, noise_variance=0.02,
    brightness=0.2, brightness_factor=(0.85, 1.15), contrast=0.2, contrast_factor=(0.85, 1.15),
    gamma=0.2, exponent=(0.8, 1.25),
)  # fmt: skip
"""Small movements and mild intensity changes; for small networks and short training."""

FULL = Magnitudes(
    spatial=0.5, rotation=30, tilt=30, scale=(0.7, 1.4), shear=0.1, elastic=0.4, elastic_amplitude=0.25,
    noise=0.1, noise_variance=0.1, blur=0.2, blur_sigma=(0.5, 1.0),
    brightness=0.15, brightness_factor=(0.75, 1.25), contrast=0.15, contrast_factor=(0.75, 1.25),
    low_resolution=0.25, zoom=(0.5, 1.0), gamma=0.3, gamma_inverted=0.1, exponent=(0.7, 1.5),
)  # fmt: skip
"""The amounts of nnU-Net (Isensee et al. 2021), rotations within ±30 degrees, and an elastic deformation."""

NNUNET = Magnitudes(
    rotation_alone=0.2, scale_alone=0.2, rotation=180, tilt=_TILT, scale=(0.7, 1.4), patch_angles=True,
    noise=0.1, noise_sd=0.1, blur=0.2, blur_sigma=(0.5, 1.0),
    brightness=0.15, brightness_factor=(0.75, 1.25), contrast=0.15, contrast_factor=(0.75, 1.25),
    low_resolution=0.25, zoom=(0.5, 1.0), gamma=0.3, gamma_inverted=0.1, exponent=(0.7, 1.5),
    each_channel=True, channel_share=0.5, balanced=True,
)  # fmt: skip
"""nnU-Net v2; what differs is in the table of this module."""

MEHRABI = Magnitudes(
    spatial=1.0, rotation=15, scale=(0.9, 1.1), shift=0.05, mirrors="sides", morphology=0.3,
    noise=0.5, noise_sd=0.1, gamma=1.0, exponent=(0.8, 1.2),
)  # fmt: skip
"""Few labelled slices (Mehrabi & Handsfield): a shared affine map, and outlines thickened or thinned."""

NI = Magnitudes(spatial=1.0, rotation=10, tilt=10, shear=0.1, mirrors="sides")
"""Whole legs in 3D (Ni et al. 2019): rotation, shear, and left exchanged with right."""

CHEENA = Magnitudes(
    spatial=1.0, rotation=15, plane="axial", mirrors="sides", mirror_one_sided=True, whole_scan=True
)  # fmt: skip
"""Whole scans (Cheena): one angle in the axial plane and one mirror for all slices of a scan."""

CHEENA_CORONAL = Magnitudes(
    spatial=1.0, rotation=15, plane="coronal", mirrors="sides", mirror_one_sided=True, whole_scan=True
)  # fmt: skip
"""As `CHEENA`, turned in the coronal plane, the other reading of its text; volumes only."""

POSITIONAL = Magnitudes(
    spatial=0.67, rotation=30, scale=(0.7, 1.3), crop=0.125,
    elastic=1.0, elastic_noise=(100, 350), elastic_sigma=(14, 17),
)  # fmt: skip
"""One view of positional contrastive learning (Zeng et al. 2021), limbs upright."""

POSITIONAL_PAPER = Magnitudes(
    spatial=0.67, rotation=180, scale=(0.7, 1.3), crop=0.125,
    elastic=1.0, elastic_noise=(100, 350), elastic_sigma=(14, 17),
)  # fmt: skip
"""As `POSITIONAL`, turned full circle as in the paper."""

_RECIPES = {
    "none": None, "light": LIGHT, "full": FULL, "nnunet": NNUNET, "mehrabi": MEHRABI, "ni": NI, "cheena": CHEENA,
    "cheena_coronal": CHEENA_CORONAL, "positional": POSITIONAL, "positional_paper": POSITIONAL_PAPER,
}  # fmt: skip


def get_recipe(recipe: str | Magnitudes) -> Magnitudes | None:
    """Returns the amounts of a named recipe, None for "none"; amounts are returned as they are.

    >>> get_recipe("ni").rotation
    10
    """
    if isinstance(recipe, Magnitudes):
        return recipe
    if recipe not in _RECIPES:
        raise ValueError(f"recipe is {recipe!r}; choose one of {', '.join(AUGMENTATIONS)}")
    return _RECIPES[recipe]


def recipe_axes(recipe: str | Magnitudes, spec: DataSpec) -> tuple[int, ...]:
    """Returns the axes of the preprocessed volume along which a recipe mirrors; () for "none"."""
    amounts = get_recipe(recipe)
    if amounts is None:
        return ()
    allowed, axis = mirrored_axes(spec), side_axis(spec)
    if amounts.mirrors == "all":
        return allowed
    if not allowed and not (amounts.mirror_one_sided and axis is not None):
        return ()
    axis = _COLUMNS if axis is None else axis
    return (axis,) if axis in sample_axes(spec) else ()


def is_flat(amounts: Magnitudes, spec: DataSpec) -> bool:
    """Returns whether volumes are moved as a pile of slices, all alike: nnU-Net's rule for flat patches."""
    return amounts.patch_angles and spec.kind == "volumes" and max(spec.window) / spec.depth > _FLAT_PATCH


def largest_angles(amounts: Magnitudes, spec: DataSpec) -> tuple[float, ...]:
    """Returns the largest angle in degrees about each axis: one for samples moved in-plane, three for volumes."""
    turned = min(_turned(amounts, spec), UPRIGHT) if is_sided(spec) else _turned(amounts, spec)
    if spec.kind != "volumes" or is_flat(amounts, spec):
        return (turned,)
    if amounts.plane is not None:
        normal = _normal_axis(amounts.plane, spec)
        return tuple(turned if axis == normal else 0.0 for axis in range(3))
    spacing = spec.spacing or (1.0, 1.0, 1.0)
    tilted = amounts.patch_angles or spacing[0] <= ANISOTROPY * max(spacing[1:])
    return (turned, amounts.tilt, amounts.tilt) if tilted else (turned, 0.0, 0.0)


def _turned(amounts: Magnitudes, spec: DataSpec) -> float:
    """Returns the largest in-plane angle, whatever the labels."""
    if not amounts.patch_angles or is_flat(amounts, spec):
        return amounts.rotation
    if spec.kind == "volumes":
        return min(amounts.rotation, amounts.tilt)
    narrow = max(spec.size) / min(spec.size) > _NARROW_PATCH
    return min(amounts.rotation, _NARROW_ANGLE) if narrow else amounts.rotation


def _normal_axis(plane: str, spec: DataSpec) -> int:
    """Returns the axis that stands upright on a plane; without an orientation, slices are taken to be axial."""
    letters = (spec.orientation or "SPL").upper()
    return next(axis for axis, letter in enumerate(letters) if letter in _NORMAL[plane])


def notes(recipe: str | Magnitudes, spec: DataSpec, *, mirror: bool = True) -> list[str]:
    """Returns what the user should know about a recipe on their labels and samples, one sentence each."""
    amounts = get_recipe(recipe)
    if amounts is None:
        return []
    name, said = recipe if isinstance(recipe, str) else "augmentation", []
    if is_sided(spec) and (turned := _turned(amounts, spec)) > UPRIGHT:
        said.append(f"{name} turns by ±{UPRIGHT:.0f} degrees, not ±{turned:.0f}, because labels have a side")
    if amounts.plane is not None and spec.kind != "volumes" and _normal_axis(amounts.plane, spec) != 0:
        said.append(f"{name} turns slices in their own plane; for the {amounts.plane} plane build records of volumes")
    if not mirror:
        return said
    if amounts.mirror_one_sided and recipe_axes(amounts, spec):
        if spec.label_map.flip_permutation() is None:
            said.append(f"{name} mirrors, though a sided label has no partner: it keeps its name on the other side")
        elif not is_sided(spec):
            said.append(f"{name} mirrors: where one leg only is labelled, the copy has the labels on the other leg")
    elif not mirrored_axes(spec):
        why = "a sided label has no partner" if spec.orientation else "no axis is known to be left/right"
        said.append(f"{name} does not mirror, because {why}")
    elif not recipe_axes(amounts, spec):
        said.append(f"{name} does not mirror, because slices do not show left and right")
    return said
