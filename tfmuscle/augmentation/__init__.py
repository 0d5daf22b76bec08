"""Random transforms of one sample, image and labels together.

`spatial.py` moves voxels (rotation, scale, shear, elastic, mirror), `intensity.py` changes their values (noise, blur,
brightness, contrast, gamma, low resolution), `masks.py` thickens or thins labelled structures, `recipe.py` draws all of
them for one sample.

Terms. An *axis* of a transform is one of the first axes of an array; whatever follows (slices of a stack, channels)
moves along with them. A *seed* is a pair of int32, as TensorFlow's stateless functions take it: the same seed gives
the same sample on every run, and nothing is global.

Rules that the user can rely on:

* Image and labels move by one map of coordinates: the image linearly, the labels by nearest neighbour, so that `IGNORE`
  and class indices are never averaged. What comes in from outside is the channel's minimum and `IGNORE`.
* Angles are true in the patient: rotations are made in mm with the spacing of the spec (isotropic voxels without one).
* Left stays left. A mirror along the left/right axis exchanges the partners; a label map with a side but no partner, or
  sides without a known orientation, is not mirrored. Rotations stay within ±30 degrees, also where nnU-Net turns
  through ±180 in-plane, because a limb turned upside down has its left on the right.
* Nothing is clipped to a fixed range: normalised images are negative for good reasons.

Keras' own layers were rejected, since they move image and mask differently and clip to 0..255.
"""

from tfmuscle.augmentation.intensity import (
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    gaussian_blur,
    simulate_low_resolution,
)
from tfmuscle.augmentation.masks import dilate_or_erode_labels
from tfmuscle.augmentation.recipe import FULL, LIGHT, Magnitudes, augment
from tfmuscle.augmentation.spatial import (
    affine_coordinates,
    affine_matrix,
    elastic_displacement,
    mirror_axes,
    mirrored_axes,
    side_axis,
    spatial_transform,
)

__all__ = [
    "FULL",
    "LIGHT",
    "Magnitudes",
    "add_noise",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "affine_coordinates",
    "affine_matrix",
    "augment",
    "dilate_or_erode_labels",
    "elastic_displacement",
    "gaussian_blur",
    "mirror_axes",
    "mirrored_axes",
    "side_axis",
    "simulate_low_resolution",
    "spatial_transform",
]
