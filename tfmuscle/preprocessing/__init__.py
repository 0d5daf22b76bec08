"""From the scan's grid to the grid of the samples: reorient, crop, resample, normalise, encode.

`pipeline.py` is the whole way for one `DataSpec`, `grid.py` the changes of grid, `intensities.py` the scaling of
intensities. Every step returns a new `Volume` with its new geometry; nothing is undone later, for predictions are
resampled straight onto the grid of the scan.
"""

from tfmuscle.preprocessing.grid import ANTIALIAS_FACTOR, crop_to_nonzero, reorient, resample_image, resample_labels
from tfmuscle.preprocessing.intensities import PERCENTILES, normalise
from tfmuscle.preprocessing.pipeline import GROWTH, preprocess

__all__ = [
    "ANTIALIAS_FACTOR",
    "GROWTH",
    "PERCENTILES",
    "crop_to_nonzero",
    "normalise",
    "preprocess",
    "reorient",
    "resample_image",
    "resample_labels",
]
