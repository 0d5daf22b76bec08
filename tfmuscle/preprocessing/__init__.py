"""From the scan's grid to the grid of the samples: reorient, crop, resample, normalise, encode.

`pipeline.py` is the whole way for one `DataSpec`, `grid.py` the changes of grid, `nnunet.py` those by nnU-Net's rules,
`intensities.py` the scaling of intensities. Every step returns a new `Volume` with its new geometry; nothing is undone
later, for predictions are resampled straight onto the grid of the scan.

What a scan may need before: `bias_field.py` evens out the coil, `regions.py` cuts to a part of the patient by the
silhouette in `body.py`, `dixon.py` makes fat fractions, `merging.py` joins binary masks.
"""

from tfmuscle.preprocessing.bias_field import correct_bias_field
from tfmuscle.preprocessing.dixon import WaterFat, fat_fraction, identify_water_fat
from tfmuscle.preprocessing.grid import ANTIALIAS_FACTOR, crop_to_nonzero, reorient, resample_image, resample_labels
from tfmuscle.preprocessing.intensities import PERCENTILES, body_mask, normalise
from tfmuscle.preprocessing.merging import merge_masks
from tfmuscle.preprocessing.nnunet import (
    THICK_RATIO,
    coarse_axis,
    nnunet_shape,
    resample_image_nnunet,
    resample_labels_nnunet,
)
from tfmuscle.preprocessing.pipeline import GROWTH, preprocess
from tfmuscle.preprocessing.regions import (
    LEG_PARTS,
    MARGIN_SLICES,
    HipStart,
    Midline,
    below_hip,
    find_midline,
    hip_start,
    leg_parts,
    one_leg,
    separate_legs,
    superior_axis,
)

__all__ = [
    "ANTIALIAS_FACTOR",
    "GROWTH",
    "LEG_PARTS",
    "MARGIN_SLICES",
    "PERCENTILES",
    "THICK_RATIO",
    "HipStart",
    "Midline",
    "WaterFat",
    "below_hip",
    "body_mask",
    "coarse_axis",
    "correct_bias_field",
    "crop_to_nonzero",
    "fat_fraction",
    "find_midline",
    "hip_start",
    "identify_water_fat",
    "leg_parts",
    "merge_masks",
    "nnunet_shape",
    "normalise",
    "one_leg",
    "preprocess",
    "reorient",
    "resample_image",
    "resample_image_nnunet",
    "resample_labels",
    "resample_labels_nnunet",
    "separate_legs",
    "superior_axis",
]
