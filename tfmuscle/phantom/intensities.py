"""From tissues to an image: one model for the synthetic limbs and for any label volume.

Terms. A *tissue* is a number per voxel (`TISSUES`); it decides the mean signal. Muscles are one tissue: no parameter
of this file depends on which muscle a voxel belongs to, so that brightness alone cannot tell muscles apart. What can
be seen of a border between two muscles is a thin fatty septum, as in a real image.

Magnetic resonance, per channel: I = gain * |(blur(S) * B) + n| with S the tissue signal with septa, compact bone,
infiltrated fat and texture, B a smooth field around 1, and n complex Gaussian noise, which makes the magnitude Rician
(Gudbjartsson and Patz 1995). Ultrasound: the echo amplitude E of each tissue, lowered with depth and behind bone,
times Rayleigh speckle (the magnitude of smoothed complex Gaussian noise), times the gain, log-compressed to 0..255. The
gain drifts along the sweep, and is low where the probe lost contact. In ultrasound the beam runs along axis 1, from
index 0, and axis 2 is the sweep.
"""

import re

import numpy as np
from scipy import ndimage

from tfmuscle.labels import LabelMap
from tfmuscle.phantom import parameters as p
from tfmuscle.volume import Geometry, Volume

TISSUES = ("air", "skin", "fat", "muscle", "marrow", "viscera")
"""Tissue numbers 0, 1, ...; compact bone and septa are drawn on borders and have no number."""
AIR, SKIN, FAT, MUSCLE, MARROW, VISCERA = range(len(TISSUES))
CONTRASTS = ("t1", "water", "dixon", "ultrasound")
BONE_WORDS = frozenset(
    ("bone", "bones", "femur", "tibia", "fibula", "patella", "hip", "pelvis", "ilium", "ischium", "pubis", "sacrum")
)
"""A structure whose name holds one of these words is bone; every other structure is muscle."""


def is_bone(name: str) -> bool:
    """Whether a structure of that name is bone.

    >>> is_bone("pelvis/hip bone"), is_bone("Right femur"), is_bone("rectus femoris"), is_bone("hip_left")
    (True, True, False, True)
    """
    return not BONE_WORDS.isdisjoint(re.findall(r"[a-z]+", name.lower()))


def check_contrast(contrast: str) -> None:
    """Raises ValueError unless `contrast` is one of `CONTRASTS`."""
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast is {contrast!r}; choose one of {', '.join(CONTRASTS)}")


def image_from_labels(labels: Volume, label_map: LabelMap, *, contrast: str = "t1", seed: int) -> Volume:
    """Paints an image on which `labels` would be the right answer, `(I, J, K)` or, for "dixon", `(I, J, K, 2)` float32.

    Bones are recognised by name; every other structure is muscle. Around and between the structures lies fat, then
    skin, then air. A voxel with the ignore id counts as fat. Dixon channels are water, fat. The same seed gives the
    same bits.

    Args:
        labels: integer ids `(I, J, K)`.
        label_map: what the ids mean.
        contrast: "t1", "water" (fat-suppressed), "dixon" or "ultrasound".
        seed: any non-negative integer.

    Raises:
        ValueError: an unknown contrast, labels with channels, or an id that the map does not name.
    """
    check_contrast(contrast)
    _check_labels(labels, label_map)
    rng = np.random.default_rng([seed, 1])
    fat_mm = float(np.exp(rng.uniform(*np.log(p.FAT_THICKNESS_MM))))
    bones = [key for key, name in label_map.names.items() if key != 0 and is_bone(name)]
    known = (
        np.where(labels.array == label_map.ignore, 0, labels.array) if label_map.ignore is not None else labels.array
    )
    axis = 2 if contrast == "ultrasound" else int(np.argmax(np.abs(labels.geometry.affine[2, :3]) / labels.spacing))
    inside = hull(known > 0, labels.spacing, axis, fat_mm)
    tissues = np.where(inside, FAT, AIR).astype(np.uint8)
    tissues[known > 0] = MUSCLE
    tissues[np.isin(known, bones)] = MARROW
    return labels.with_array(paint(tissues, known, labels.geometry, contrast=contrast, rng=rng))


def _check_labels(labels: Volume, label_map: LabelMap) -> None:
    if labels.array.ndim != 3:
        raise ValueError(f"labels have the shape {labels.array.shape}; one id per voxel (I, J, K) is needed")
    unknown = label_map.unknown_ids(labels.array)
    if unknown:
        raise ValueError(
            f"label ids {list(unknown)} are not in the label map {list(label_map.ids)}; name them or remove them"
        )


def hull(mask: np.ndarray, spacing: tuple[float, float, float], axis: int, fat_mm: float) -> np.ndarray:
    """Closes gaps between structures in each slice across `axis` and adds `fat_mm` around them; bool like `mask`."""
    inside = np.zeros(mask.shape, dtype=bool)
    step = [size for number, size in enumerate(spacing) if number != axis]
    pad = [int(np.ceil((p.HULL_CLOSING_MM + fat_mm) / size)) + 1 for size in step]
    for number in range(mask.shape[axis]):
        plane = np.take(mask, number, axis=axis)
        if plane.any():
            wide = np.pad(plane, [(size, size) for size in pad])
            grown = ndimage.distance_transform_edt(~wide, sampling=step) <= p.HULL_CLOSING_MM + fat_mm
            kept = ndimage.distance_transform_edt(ndimage.binary_fill_holes(grown), sampling=step) > p.HULL_CLOSING_MM
            index = tuple(number if other == axis else slice(None) for other in range(3))
            inside[index] = kept[pad[0] : pad[0] + plane.shape[0], pad[1] : pad[1] + plane.shape[1]]
    return inside


def paint(
    tissues: np.ndarray, structures: np.ndarray, geometry: Geometry, *, contrast: str, rng: np.random.Generator
) -> np.ndarray:
    """Turns tissue numbers into an image in float32; `structures` says where one muscle ends and the next begins.

    Args:
        tissues: `(I, J, K)` numbers of `TISSUES`.
        structures: `(I, J, K)` integers, different for different structures, 0 outside.
        geometry: their grid.
        contrast: "t1", "water" (fat-suppressed), "dixon" or "ultrasound".
        rng: where every random number comes from.
    """
    spacing = geometry.spacing
    if contrast == "ultrasound":
        return _ultrasound(tissues, structures, spacing, rng)
    shares = _thin_layers(tissues, structures, spacing, p.SEPTUM_MM)
    infiltration = _infiltration(tissues == MUSCLE, spacing, rng)
    tables = {"t1": [p.T1_SIGNAL], "water": [p.WATER_SIGNAL]}.get(contrast, [p.WATER_SIGNAL, p.FAT_SIGNAL])
    noise = rng.uniform(*p.NOISE)
    gain = rng.uniform(*p.GAIN)
    bias = smooth_field(geometry.shape, spacing, p.BIAS_MM, rng)
    span = max(float(np.ptp(bias)), 1e-6)
    bias = 1 + np.float32(rng.uniform(*p.BIAS) / span) * (bias - bias.mean())
    channels = []
    for table in tables:
        table = {name: value * (1 + p.SIGNAL_SD * float(rng.standard_normal())) for name, value in table.items()}
        signal = _signal(tissues, shares, table)
        signal += infiltration * np.float32(table["fat"] - table["muscle"])
        signal *= 1 + p.TEXTURE_SD * rng.standard_normal(signal.shape, dtype=np.float32)
        signal = ndimage.gaussian_filter(signal, p.BLUR_VOXELS, mode="nearest", truncate=3) * bias
        real, imaginary = (rng.standard_normal(signal.shape, dtype=np.float32) * np.float32(noise) for _ in range(2))
        channels.append((gain * np.hypot(signal + real, imaginary)).astype(np.float32))
    return channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)


def _signal(tissues: np.ndarray, shares: dict[str, np.ndarray], table: dict[str, float]) -> np.ndarray:
    """Mean signal of each voxel, mixed with the thin layers it holds by their share of it."""
    signal = np.array([table[name] for name in TISSUES], dtype=np.float32)[tissues]
    for name, share in shares.items():
        signal += share * (np.float32(table[name]) - signal)
    return signal


def _thin_layers(
    tissues: np.ndarray, structures: np.ndarray, spacing: tuple[float, ...], septum_mm: float
) -> dict[str, np.ndarray]:
    """Share of septum, compact bone and skin in each voxel, 0..1 float32: layers thinner than voxels."""
    septum = np.zeros(tissues.shape, dtype=np.float32)
    muscle = tissues == MUSCLE
    for axis, size in enumerate(spacing):
        first, second = _pair(axis, 0), _pair(axis, 1)
        touching = (structures[first] != structures[second]) & muscle[first] & muscle[second]
        half = touching * np.float32(min(0.5 * septum_mm / size, 1.0))
        septum[first] = np.maximum(septum[first], half)
        septum[second] = np.maximum(septum[second], half)
    skin = np.zeros(tissues.shape, dtype=np.float32)
    inside, step = tissues != AIR, min(spacing[:2])
    for axis in (0, 1):
        first, second = _pair(axis, 0), _pair(axis, 1)
        skin[first] = np.maximum(skin[first], inside[first] & ~inside[second])
        skin[second] = np.maximum(skin[second], inside[second] & ~inside[first])
    return {
        "septum": septum,
        "cortex": _cortex(structures * (tissues == MARROW), spacing),
        "skin": skin * min(p.SKIN_MM / step, 1.0),
    }


def _pair(axis: int, side: int) -> tuple[slice, ...]:
    """Index of all voxels but the last (side 0) or but the first (side 1) along `axis`."""
    part = slice(1, None) if side else slice(None, -1)
    return tuple(part if number == axis else slice(None) for number in range(3))


def _cortex(bones: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Share of compact bone: full within `CORTEX_MM` of each bone's own surface, fading over one voxel."""
    share = np.zeros(bones.shape, dtype=np.float32)
    step = min(spacing)
    for number, box in enumerate(ndimage.find_objects(bones), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
        mask = bones[wide] == number
        depth = ndimage.distance_transform_edt(mask, sampling=spacing) - step / 2
        share[wide] += mask * np.clip((p.CORTEX_MM - depth) / step + 0.5, 0.0, 1.0).astype(np.float32)
    return share


def _infiltration(muscle: np.ndarray, spacing: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Fat share inside muscle, float32: a positive smooth field of one distribution for every muscle of the subject."""
    field = rng.standard_normal(muscle.shape, dtype=np.float32)
    field = ndimage.gaussian_filter(field, [p.INFILTRATION_MM / size / 2 for size in spacing], truncate=2.5)
    field *= 1 / max(float(field.std()), 1e-6)
    return muscle * np.float32(rng.uniform(*p.INFILTRATION)) * field**2


def smooth_field(
    shape: tuple[int, ...], spacing: tuple[float, ...], distance_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """A random field of mean 0 and sd about 1, float32 `shape`: a cubic B-spline, knots `distance_mm` apart."""
    counts = [int(np.ceil((size - 1) * step / distance_mm)) + 4 for size, step in zip(shape, spacing, strict=True)]
    field = rng.standard_normal(counts).astype(np.float32)
    offsets = rng.uniform(0.5, 1.5, 3)
    for axis, (size, step) in enumerate(zip(shape, spacing, strict=True)):
        at = offsets[axis] + np.arange(size) * step / distance_mm
        field = np.moveaxis(np.tensordot(_spline_weights(at, counts[axis]), field, axes=(1, axis)), 0, axis)
    # a cubic B-spline of independent control values loses variance: 0.479 of it per axis on average remains
    return (field / 0.479**1.5).astype(np.float32)


def _spline_weights(at: np.ndarray, count: int) -> np.ndarray:
    """Weights `(N, count)` of the uniform cubic B-spline at positions `at` in control points."""
    distance = np.abs(at[:, None] - np.arange(count))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _ultrasound(
    tissues: np.ndarray, structures: np.ndarray, spacing: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
    """Log-compressed B-mode frames, 0..255 float32: echo, attenuation and shadow along axis 1, times speckle."""
    table = {name: value * (1 + p.SIGNAL_SD * float(rng.standard_normal())) for name, value in p.ECHO.items()}
    shares = _thin_layers(tissues, structures, spacing, p.ULTRASOUND_SEPTUM_MM)
    echo = _signal(tissues, shares, table)
    border = (tissues[:, 1:] != tissues[:, :-1]) & (tissues[:, 1:] == MUSCLE) & (tissues[:, :-1] == FAT)
    echo[:, 1:] = np.where(border, np.float32(table["septum"]), echo[:, 1:])
    depth = np.cumsum(tissues != AIR, axis=1) * spacing[1]
    bone_above = np.cumsum(tissues == MARROW, axis=1) * spacing[1]
    echo *= np.exp(-p.ATTENUATION_PER_MM * depth).astype(np.float32)
    echo *= np.where(bone_above > p.CORTEX_MM, np.float32(p.SHADOW), np.float32(1.0))
    echo = ndimage.gaussian_filter(echo, p.BLUR_VOXELS, truncate=3)
    sigma = [size / step for size, step in zip(p.SPECKLE_MM, spacing, strict=True)]
    parts = (
        ndimage.gaussian_filter(rng.standard_normal(echo.shape, dtype=np.float32), sigma, truncate=2.5)
        for _ in range(2)
    )
    speckle = np.hypot(*parts)
    echo *= speckle / np.sqrt(np.mean(speckle**2))
    echo *= _sweep_gain(echo.shape, spacing, rng)
    level = 20 * np.log10(np.maximum(echo, 1e-6) / np.quantile(echo, 0.999))
    return (255 * np.clip(1 + level / p.DYNAMIC_RANGE_DB, 0.0, 1.0)).astype(np.float32)


def _sweep_gain(shape: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Amplitude `(I, 1, K)` of a gain that drifts along the sweep and fails where the probe lost contact, float32."""
    drift = smooth_field((1, 1, shape[2]), spacing, p.DRIFT_MM, rng)
    drift *= np.float32(rng.uniform(*p.DRIFT_DB) / max(float(np.ptp(drift)), 1e-6))
    decibels = np.broadcast_to(drift - drift.mean(), (shape[0], 1, shape[2])).copy()
    across, along = (np.arange(shape[axis]) * spacing[axis] for axis in (0, 2))
    for _ in range(rng.integers(p.DROPOUTS + 1)):
        at = rng.uniform(0, across[-1]), rng.uniform(0, along[-1])
        near = [
            np.exp(-(((place - c) / sd) ** 2) / 2)
            for place, c, sd in zip((across, along), at, p.DROPOUT_MM, strict=True)
        ]
        decibels -= (rng.uniform(*p.DROPOUT_DB) * np.multiply.outer(*near))[:, None].astype(np.float32)
    return 10 ** (decibels / 20)
