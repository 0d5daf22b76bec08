"""One sample, all transforms: which of them happen, and how strongly, is drawn from the sample's seed alone.

The order is that of nnU-Net: move voxels, then noise, blur, brightness, contrast, low resolution, gamma; mirrors come
first. A transform that is not drawn costs nothing. Random numbers are drawn outside `spatial.move`, for a compiled
generator may differ from TensorFlow's. The other steps are not compiled: that would cost a second each at the start.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmuscle.augmentation import intensity, masks, mirror, spatial
from tfmuscle.augmentation.recipes import Magnitudes, get_recipe, is_flat, largest_angles, recipe_axes
from tfmuscle.config import DataSpec

_EVEN = 0.5
_Pair = tuple[tf.Tensor, tf.Tensor]


@tf.autograph.experimental.do_not_convert  # all branches are written as tf.cond; converting takes seconds
def augment(
    image: tf.Tensor,
    labels: tf.Tensor,
    *,
    seed: tf.Tensor,
    recipe: str | Magnitudes,
    spec: DataSpec,
    mirrored: bool = True,
    scan_seed: tf.Tensor | None = None,
) -> _Pair:
    """Returns a random variant of one sample; for use in `tf.data.Dataset.map`, or eagerly.

    Args:
        image: `spec.input_shape`.
        labels: class indices of `spec.label_shape`, any integer type.
        seed: two int32; the same seed gives the same result.
        recipe: one of `AUGMENTATIONS`, or amounts of your own.
        spec: what a sample is, its spacing and orientation, and its label map.
        mirrored: mirror each axis of `recipe_axes(recipe, spec)` half of the time.
        scan_seed: two int32 that all samples of a scan share in an epoch, for recipes with `whole_scan`; by default
            every sample is a scan.

    Raises:
        ValueError: an unknown recipe, or shapes other than those of `spec`.
    """
    amounts = get_recipe(recipe)
    image, labels = _shaped("image", image, spec.input_shape), _shaped("labels", labels, spec.label_shape)
    if amounts is None:
        return image, labels
    kind, image, labels = labels.dtype, tf.cast(image, tf.float32), tf.cast(labels, tf.int32)
    draws = _Draws(seed)
    movement = _Draws(scan_seed) if amounts.whole_scan and scan_seed is not None else draws
    if mirrored:
        image, labels = _mirror(image, labels, movement, amounts, spec)
    image, labels = _planes_first(image, labels, spec)
    image, labels = _move(image, labels, movement, amounts, spec)
    axes = (0, 1, 2) if spec.kind == "volumes" else (0, 1)
    labels = _change_masks(labels, axes[-2:], draws, amounts)
    image, prior = image[..., : len(spec.channels)], image[..., len(spec.channels) :]
    image = _change_intensities(image, axes, draws, amounts, coarse=axes[1:] if is_flat(amounts, spec) else axes)
    if spec.prior:  # labels of an earlier network: moved like the image, whole again, their values left alone
        image = tf.concat([image, tf.round(prior)], axis=-1)
    image, labels = _restored(image, labels, spec)
    return image, tf.cast(labels, kind)


def _shaped(name: str, array: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    tensor = tf.convert_to_tensor(array)
    if not tensor.shape.is_compatible_with(shape):
        raise ValueError(f"{name} have shape {tuple(tensor.shape)}; the spec needs {shape}")
    return tf.ensure_shape(tensor, shape)


class _Draws:
    """Random numbers of one sample, each from the sample's seed and a name of its own.

    By name, not in turn, so that a transform that does not happen, or a new one, changes no other.
    """

    def __init__(self, seed: tf.Tensor) -> None:
        self._seed = tf.cast(seed, tf.int32)

    def seed(self, name: str) -> tf.Tensor:
        return tf.random.fold_in(self._seed, zlib.crc32(name.encode()) & 0x7FFFFFFF)

    def uniform(self, name: str, low: float, high: float, shape: tuple[int, ...] = ()) -> tf.Tensor:
        if low == high:
            return tf.fill(shape, float(low))
        return tf.random.stateless_uniform(shape, self.seed(name), low, high)

    def factor(self, name: str, low: float, high: float, shape: tuple[int, ...] = (), *, balanced: bool) -> tf.Tensor:
        """Returns a number of a range about 1; if `balanced`, half of them are below 1."""
        if not balanced:
            return self.uniform(name, low, high, shape)
        side = self.uniform(name, -1.0, 1.0, shape)
        return 1.0 + side * tf.where(side < 0.0, 1.0 - low, high - 1.0)

    def happens(self, name: str, probability: float) -> tf.Tensor:
        if probability <= 0:
            return tf.constant(False)
        return self.uniform(f"{name} happens", 0.0, 1.0) < probability

    def maybe(self, name: str, probability: float, transform: Callable[[], Any], unchanged: Any) -> Any:
        """Returns `transform()` with this probability, else `unchanged`."""
        if probability <= 0:
            return unchanged
        return tf.cond(self.happens(name, probability), transform, lambda: unchanged)


def _planes_first(image: tf.Tensor, labels: tf.Tensor, spec: DataSpec) -> _Pair:
    """Returns the sample with the axes that move together in front.

    Volumes `(D, H, W, C)` move along three; all others `(H, W, slices, C)` along two, every slice in the same way.
    """
    if spec.kind == "volumes":
        return image, labels
    if spec.kind == "sequences":
        return tf.transpose(image, (1, 2, 0, 3)), tf.transpose(labels, (1, 2, 0))
    return tf.reshape(image, (*spec.size, spec.depth, spec.num_channels)), labels[..., tf.newaxis]


def _restored(image: tf.Tensor, labels: tf.Tensor, spec: DataSpec) -> _Pair:
    if spec.kind == "sequences":
        image, labels = tf.transpose(image, (2, 0, 1, 3)), tf.transpose(labels, (2, 0, 1))
    return tf.reshape(image, spec.input_shape), tf.reshape(labels, spec.label_shape)


def _mirror(image: tf.Tensor, labels: tf.Tensor, draws: _Draws, amounts: Magnitudes, spec: DataSpec) -> _Pair:
    axes = recipe_axes(amounts, spec)
    flips = [draws.uniform(f"mirror {axis}", 0.0, 1.0) < _EVEN for axis in axes]
    return mirror.mirror_axes(image, labels, flips=flips, spec=spec, axes=axes)


def _move(image: tf.Tensor, labels: tf.Tensor, draws: _Draws, amounts: Magnitudes, spec: DataSpec) -> _Pair:
    if amounts.spatial + amounts.rotation_alone + amounts.scale_alone + amounts.crop <= 0:
        return image, labels
    if is_flat(amounts, spec):  # as a pile of slices, for this one step
        image, labels = tf.transpose(image, (1, 2, 0, 3)), tf.transpose(labels, (1, 2, 0))
        image, labels = _move_planes(image, labels, draws, amounts, spec)
        return tf.transpose(image, (2, 0, 1, 3)), tf.transpose(labels, (2, 0, 1))
    return _move_planes(image, labels, draws, amounts, spec)


def _move_planes(image: tf.Tensor, labels: tf.Tensor, draws: _Draws, amounts: Magnitudes, spec: DataSpec) -> _Pair:
    limits = largest_angles(amounts, spec)
    rank = 3 if len(limits) > 1 else 2
    shape = image.shape[:rank].as_list()
    together = draws.happens("spatial", amounts.spatial)
    turned = together | draws.happens("rotation alone", amounts.rotation_alone)
    scaled = together | draws.happens("scale alone", amounts.scale_alone)
    names = ("rotation", "tilt 1", "tilt 2")
    angles = [
        tf.where(turned, draws.uniform(name, -limit, limit), 0.0) for name, limit in zip(names, limits, strict=False)
    ]
    scale = tf.where(scaled, draws.uniform("scale", *amounts.scale), 1.0)
    shear = tf.where(together, draws.uniform("shear", -amounts.shear, amounts.shear), 0.0)
    shift = draws.uniform("shift", -amounts.shift, amounts.shift, (rank,)) * tf.constant(shape, tf.float32)
    crop = draws.uniform("crop", -amounts.crop, amounts.crop, (rank,)) * tf.constant(shape, tf.float32)
    offset = tf.where(together, shift, tf.round(crop))  # whole voxels: a crop interpolates nothing
    spacing = (spec.spacing or (1.0, 1.0, 1.0))[-rank:]

    def moved() -> _Pair:
        matrix = spatial.affine_matrix(angles, scale=scale, shear=shear, spacing=spacing)
        straight = functools.partial(spatial.move, image, labels, matrix, offset)
        if amounts.elastic <= 0:
            return straight()
        bent = together & draws.happens("elastic", amounts.elastic)
        return tf.cond(bent, lambda: straight(_displacement(shape, draws, amounts)), straight)

    return tf.cond(turned | scaled | (amounts.crop > 0), moved, lambda: (image, labels))


def _displacement(shape: list[int], draws: _Draws, amounts: Magnitudes) -> list[tf.Tensor]:
    seed = draws.seed("elastic")
    if amounts.elastic_noise is None:
        return spatial.elastic_displacement(shape, seed=seed, amplitude=amounts.elastic_amplitude)
    amplitude = draws.uniform("elastic noise", *amounts.elastic_noise)
    sigma = draws.uniform("elastic sigma", *amounts.elastic_sigma)
    return spatial.noise_displacement(shape, seed=seed, amplitude=amplitude, sigma=sigma)


def _change_masks(labels: tf.Tensor, axes: tuple[int, ...], draws: _Draws, amounts: Magnitudes) -> tf.Tensor:
    dilate = draws.uniform("dilate", 0.0, 1.0) < _EVEN

    def changed() -> tf.Tensor:
        return masks.dilate_or_erode_labels(labels, dilate=dilate, axes=axes)

    return draws.maybe("morphology", amounts.morphology, changed, labels)


def _change_intensities(
    image: tf.Tensor, axes: tuple[int, ...], draws: _Draws, amounts: Magnitudes, *, coarse: tuple[int, ...]
) -> tf.Tensor:
    """Changes values; `coarse` are the axes that may lose resolution."""
    shape = (image.shape[-1],) if amounts.each_channel else ()
    factor = functools.partial(draws.factor, shape=shape, balanced=amounts.balanced)
    sigma = draws.uniform("sigma", *amounts.blur_sigma, (*shape, len(axes)) if amounts.each_channel else ())
    zoom = draws.uniform("zoom", *amounts.zoom, shape)
    brightness = factor("factor", *amounts.brightness_factor)
    contrast = factor("contrast", *amounts.contrast_factor)
    exponents = [factor(name, *amounts.exponent) for name in ("exponent of the negative", "exponent")]
    sd = tf.sqrt(draws.uniform("variance", 0.0, amounts.noise_variance)) + draws.uniform("sd", 0.0, amounts.noise_sd)

    def blur(x: tf.Tensor) -> tf.Tensor:
        step = functools.partial(intensity.gaussian_blur, axes=axes)
        return _each_channel(lambda x, sigma: step(x, sigma=sigma), x, sigma, draws, amounts, name="blur")

    def lower(x: tf.Tensor) -> tf.Tensor:
        step = functools.partial(intensity.simulate_low_resolution, axes=coarse)
        return _each_channel(lambda x, zoom: step(x, zoom=zoom), x, zoom, draws, amounts, name="low")

    steps: dict[str, tuple[float, Callable[[tf.Tensor], tf.Tensor]]] = {
        "noise": (amounts.noise, lambda x: intensity.add_noise(x, seed=draws.seed("noise"), sd=sd)),
        "blur": (amounts.blur, blur),
        "brightness": (amounts.brightness, lambda x: intensity.adjust_brightness(x, factor=brightness)),
        "contrast": (amounts.contrast, lambda x: intensity.adjust_contrast(x, factor=contrast)),
        "low": (amounts.low_resolution, lower),
        "negative": (amounts.gamma_inverted, lambda x: intensity.adjust_gamma(x, gamma=exponents[0], invert=True)),
        "gamma": (amounts.gamma, lambda x: intensity.adjust_gamma(x, gamma=exponents[1])),
    }
    for name, (probability, step) in steps.items():
        image = draws.maybe(name, probability, functools.partial(step, image), image)
    return image


def _each_channel(
    step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    image: tf.Tensor,
    amount: tf.Tensor,
    draws: _Draws,
    amounts: Magnitudes,
    *,
    name: str,
) -> tf.Tensor:
    """Changes all channels by one amount, or, with `each_channel`, some of them, each by its own."""
    if not amounts.each_channel:
        return step(image, amount)
    chosen = draws.uniform(f"{name} channel", 0.0, 1.0, (image.shape[-1],)) < amounts.channel_share
    channels = []
    for number, channel in enumerate(tf.split(image, image.shape[-1], axis=-1)):
        changed = functools.partial(step, channel, amount[number])
        channels.append(tf.cond(chosen[number], changed, lambda channel=channel: channel))
    return tf.concat(channels, axis=-1)
