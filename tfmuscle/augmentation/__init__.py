"""Random transforms of one sample, image and labels together.

`spatial.py` moves voxels (rotation, scale, shear, shift, elastic), `mirror.py` mirrors them, `intensity.py` changes
their values (noise, blur, brightness, contrast, gamma, low resolution), `masks.py` thickens or thins labelled
structures. `recipes.py` names which of these happen, how often and how strongly, and says what differs from the papers;
`sample.py` draws them for one sample.

Terms. An *axis* of a transform is one of the first axes of an array; whatever follows (slices of a stack, channels)
moves along with them. A *seed* is a pair of int32, as TensorFlow's stateless functions take it: the same seed gives
the same sample on every run, and nothing is global.

Rules that the user can rely on:

* Image and labels move by one map of coordinates: the image linearly, the labels by nearest neighbour, so that `IGNORE`
  and class indices are never averaged. What comes in from outside is the channel's minimum and `IGNORE`.
* Angles are true in the patient: rotations are made in mm with the spacing of the spec (isotropic voxels without one).
* Left stays left. A mirror along the left/right axis exchanges the partners; a label map with a side but no partner, or
  sides without a known orientation, is not mirrored (but by `cheena`, which is true to its source and says so). Labels
  with sides are turned by ±30 degrees at most, because a limb turned upside down has its left on the right.
* The channels of a prior (labels of an earlier network) move as the image does, stay 0 or 1, change sides with the
  labels, and keep their values when intensities change.
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
from tfmuscle.augmentation.mirror import channel_order, mirror_axes, mirrored_axes, side_axis
from tfmuscle.augmentation.recipes import (
    CHEENA,
    CHEENA_CORONAL,
    FULL,
    LIGHT,
    MEHRABI,
    NI,
    NNUNET,
    POSITIONAL,
    POSITIONAL_PAPER,
    Magnitudes,
    get_recipe,
    largest_angles,
    notes,
    recipe_axes,
)
from tfmuscle.augmentation.sample import augment
from tfmuscle.augmentation.spatial import (
    affine_coordinates,
    affine_matrix,
    elastic_displacement,
    move,
    noise_displacement,
    spatial_transform,
)

__all__ = [
    "CHEENA",
    "CHEENA_CORONAL",
    "FULL",
    "LIGHT",
    "MEHRABI",
    "NI",
    "NNUNET",
    "POSITIONAL",
    "POSITIONAL_PAPER",
    "Magnitudes",
    "add_noise",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "affine_coordinates",
    "affine_matrix",
    "augment",
    "channel_order",
    "dilate_or_erode_labels",
    "elastic_displacement",
    "gaussian_blur",
    "get_recipe",
    "largest_angles",
    "mirror_axes",
    "mirrored_axes",
    "move",
    "noise_displacement",
    "notes",
    "recipe_axes",
    "side_axis",
    "simulate_low_resolution",
    "spatial_transform",
]
