"""One sample, all transforms: which of them happen, and how strongly, is drawn from the sample's seed alone.

The order is that of nnU-Net: move voxels, then noise, blur, brightness, contrast, low resolution, gamma. A transform
that is not drawn costs nothing.
"""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfmuscle.augmentation import intensity, masks, spatial
from tfmuscle.config import AUGMENTATIONS, DataSpec

ANISOTROPY = 3.0
"""Slices thicker than this many in-plane voxels are only turned in-plane: anything else would be interpolation."""
_EVEN = 0.5
_Range = tuple[float, float]


@dataclass(frozen=True)
class Magnitudes:
    """How strong each transform is at most, and how often it happens.

    Attributes:
        spatial: probability of rotation, scale and shear, together.
        rotation: largest in-plane angle in degrees.
        tilt: largest angle about the two in-plane axes in degrees; volumes only.
        scale: smallest and largest magnification.
        shear: largest shear.
        elastic: probability of an elastic deformation in a sample that is moved.
        elastic_amplitude: largest displacement, as a share of the distance of control points.
        morphology: probability of labels thickened or thinned by one voxel in-plane (Mehrabi & Handsfield); 0 in both
            strengths, because it costs accuracy where outlines are good.
        noise, noise_variance: probability, largest variance.
        blur, blur_sigma: probability, range in voxels.
        brightness, brightness_factor: probability, range.
        contrast, contrast_factor: probability, range.
        low_resolution, zoom: probability, range.
        gamma, gamma_inverted, exponent: probabilities for the image and for its negative, range.
    """

    spatial: float = 0.0
    rotation: float = 0.0
    tilt: float = 0.0
    scale: _Range = (1.0, 1.0)
    shear: float = 0.0
    elastic: float = 0.0
    elastic_amplitude: float = 0.0
    morphology: float = 0.0
    noise: float = 0.0
    noise_variance: float = 0.0
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

_STRENGTHS = {"none": None, "light": LIGHT, "full": FULL}


@tf.autograph.experimental.do_not_convert  # all branches are written as tf.cond; converting takes seconds
def augment(
    image: tf.Tensor,
    labels: tf.Tensor,
    *,
    seed: tf.Tensor,
    strength: str | Magnitudes,
    spec: DataSpec,
    mirror: bool = True,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a random variant of one sample; for use in `tf.data.Dataset.map`, or eagerly.

    Args:
        image: `spec.input_shape`.
        labels: class indices of `spec.label_shape`, any integer type.
        seed: two int32; the same seed gives the same result.
        strength: "none", "light", "full", or amounts of your own.
        spec: what a sample is, its spacing and orientation, and its label map.
        mirror: mirror each axis of `mirrored_axes(spec)` half of the time; "none" never does.

    Raises:
        ValueError: an unknown strength, or shapes other than those of `spec`.
    """
    if not isinstance(strength, Magnitudes) and strength not in _STRENGTHS:
        raise ValueError(f"strength is {strength!r}; choose one of {', '.join(AUGMENTATIONS)}")
    amounts = strength if isinstance(strength, Magnitudes) else _STRENGTHS[strength]
    image, labels = tf.convert_to_tensor(image), tf.convert_to_tensor(labels)
    for name, tensor, shape in (("image", image, spec.input_shape), ("labels", labels, spec.label_shape)):
        if not tensor.shape.is_compatible_with(shape):
            raise ValueError(f"{name} have shape {tuple(tensor.shape)}; the spec needs {shape}")
    if amounts is None:
        return image, labels
    image, labels = tf.ensure_shape(image, spec.input_shape), tf.ensure_shape(labels, spec.label_shape)
    image = tf.cast(image, tf.float32)
    kind, draws = labels.dtype, _Draws(seed)
    labels = tf.cast(labels, tf.int32)
    if mirror:
        flips = [draws.uniform(f"mirror {axis}", 0.0, 1.0) < _EVEN for axis in spatial.mirrored_axes(spec)]
        image, labels = spatial.mirror_axes(image, labels, flips=flips, spec=spec)
    image, labels, rank = _planes_first(image, labels, spec)
    image, labels = _move(image, labels, rank, draws, amounts, spec)
    labels = _change_masks(labels, rank, draws, amounts)
    image = _change_intensities(image, rank, draws, amounts)
    image, labels = _restored(image, labels, spec)
    return image, tf.cast(labels, kind)


class _Draws:
    """Random numbers of one sample, each from the sample's seed and a name of its own.

    By name, not in turn, so that a transform that does not happen, or a new one, changes no other.
    """

    def __init__(self, seed: tf.Tensor) -> None:
        self._seed = tf.cast(seed, tf.int32)

    def seed(self, name: str) -> tf.Tensor:
        return tf.random.fold_in(self._seed, zlib.crc32(name.encode()) & 0x7FFFFFFF)

    def uniform(self, name: str, low: float, high: float) -> tf.Tensor:
        return tf.random.stateless_uniform([], self.seed(name), low, high) if low < high else tf.constant(float(low))

    def maybe(self, name: str, probability: float, transform: Callable[[], Any], unchanged: Any) -> Any:
        """Returns `transform()` with this probability, else `unchanged`."""
        if probability <= 0:
            return unchanged
        happens = self.uniform(f"{name} happens", 0.0, 1.0) < probability
        return tf.cond(happens, transform, lambda: unchanged)


def _planes_first(image: tf.Tensor, labels: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor, int]:
    """Returns the sample with the axes that move together in front, and how many of them there are.

    Volumes `(D, H, W, C)` move along three; all others `(H, W, slices, C)` along two, every slice in the same way.
    """
    if spec.kind == "volumes":
        return image, labels, 3
    if spec.kind == "sequences":
        return tf.transpose(image, (1, 2, 0, 3)), tf.transpose(labels, (1, 2, 0)), 2
    return tf.reshape(image, (*spec.size, spec.depth, len(spec.channels))), labels[..., tf.newaxis], 2


def _restored(image: tf.Tensor, labels: tf.Tensor, spec: DataSpec) -> tuple[tf.Tensor, tf.Tensor]:
    if spec.kind == "sequences":
        image, labels = tf.transpose(image, (2, 0, 1, 3)), tf.transpose(labels, (2, 0, 1))
    return tf.reshape(image, spec.input_shape), tf.reshape(labels, spec.label_shape)


def _move(
    image: tf.Tensor, labels: tf.Tensor, rank: int, draws: _Draws, amounts: Magnitudes, spec: DataSpec
) -> tuple[tf.Tensor, tf.Tensor]:
    shape = image.shape[:rank].as_list()
    spacing = (spec.spacing or (1.0, 1.0, 1.0))[-rank:]
    tilt = amounts.tilt if spacing[0] <= ANISOTROPY * max(spacing[1:]) else 0.0
    limits = {"rotation": amounts.rotation} | ({"tilt 1": tilt, "tilt 2": tilt} if rank == 3 else {})
    angles = [draws.uniform(name, -limit, limit) for name, limit in limits.items()]
    scale = draws.uniform("scale", *amounts.scale)
    shear = draws.uniform("shear", -amounts.shear, amounts.shear)

    def moved() -> tuple[tf.Tensor, tf.Tensor]:
        matrix = spatial.affine_matrix(angles, scale=scale, shear=shear, spacing=spacing)
        straight = spatial.affine_coordinates(matrix, shape)
        coordinates = draws.maybe("elastic", amounts.elastic, lambda: deformed(straight), straight)
        return spatial.spatial_transform(image, labels, coordinates)

    def deformed(straight: list[tf.Tensor]) -> list[tf.Tensor]:
        amplitude = amounts.elastic_amplitude
        displacement = spatial.elastic_displacement(shape, seed=draws.seed("elastic"), amplitude=amplitude)
        return [here + there for here, there in zip(straight, displacement, strict=True)]

    return draws.maybe("spatial", amounts.spatial, moved, (image, labels))


def _change_masks(labels: tf.Tensor, rank: int, draws: _Draws, amounts: Magnitudes) -> tf.Tensor:
    dilate = draws.uniform("dilate", 0.0, 1.0) < _EVEN

    def changed() -> tf.Tensor:
        return masks.dilate_or_erode_labels(labels, dilate=dilate, axes=(rank - 2, rank - 1))

    return draws.maybe("morphology", amounts.morphology, changed, labels)


def _change_intensities(image: tf.Tensor, rank: int, draws: _Draws, amounts: Magnitudes) -> tf.Tensor:
    axes = tuple(range(rank))
    sd = tf.sqrt(draws.uniform("variance", 0.0, amounts.noise_variance))
    sigma = draws.uniform("sigma", *amounts.blur_sigma)
    brightness = draws.uniform("factor", *amounts.brightness_factor)
    contrast = draws.uniform("contrast", *amounts.contrast_factor)
    zoom = draws.uniform("zoom", *amounts.zoom)
    exponents = [draws.uniform(name, *amounts.exponent) for name in ("exponent of the negative", "exponent")]
    steps: dict[str, tuple[float, Callable[[tf.Tensor], tf.Tensor]]] = {
        "noise": (amounts.noise, lambda x: intensity.add_noise(x, seed=draws.seed("noise"), sd=sd)),
        "blur": (amounts.blur, lambda x: intensity.gaussian_blur(x, sigma=sigma, axes=axes)),
        "brightness": (amounts.brightness, lambda x: intensity.adjust_brightness(x, factor=brightness)),
        "contrast": (amounts.contrast, lambda x: intensity.adjust_contrast(x, factor=contrast)),
        "low": (amounts.low_resolution, lambda x: intensity.simulate_low_resolution(x, zoom=zoom, axes=axes)),
        "negative": (amounts.gamma_inverted, lambda x: intensity.adjust_gamma(x, gamma=exponents[0], invert=True)),
        "gamma": (amounts.gamma, lambda x: intensity.adjust_gamma(x, gamma=exponents[1])),
    }
    for name, (probability, step) in steps.items():
        image = draws.maybe(name, probability, functools.partial(step, image), image)
    return image
