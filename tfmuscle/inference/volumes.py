"""Whole-volume prediction: windows through the network, stitched, resampled onto the scan and only then decided.

The scan is preprocessed as in training, cut into the windows training saw (`sampling.cut`: every slice for slices and
stacks, overlapping windows otherwise), and the network's probabilities are blended by `sampling.stitch` into slabs that are
final. Each slab goes straight to `resampling.labels_on_grid`, so memory holds one window depth of probabilities, never a
volume of them.

Test-time augmentation is the mean over all combinations of mirrored axes, mirrored back. Which axes may be mirrored is the
rule of training (`mirrored_axes`), and a network that was trained without mirroring is never asked for it: it has not seen
such images. Along the left/right axis the classes change sides with the image (`LabelMap.flip_permutation`).
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.inference.resampling import labels_on_grid
from tfmuscle.inference.runs import Run
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import cut, stitch
from tfmuscle.volume import Volume
