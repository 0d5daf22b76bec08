"""Geometry and fusion of the cascaded 3D network of Ni et al. 2019, in NumPy: everything but the networks.

Stage 1 finds every muscle on a coarse grid; `boxes.py` brings its boxes to the scan's own grid and enlarges them at
random, `neighbours.py` places the box of a muscle that the coarse grid lost. Stage 2 finds each muscle in its boxes;
`fusion.py` averages them and joins 70 muscles into one label image.
"""

from tfmuscle.cascade.boxes import (
    Box,
    enlarged,
    input_size,
    largest_enlargement,
    low_resolution_grid,
    mapped,
    tight_box,
    tight_boxes,
)
from tfmuscle.cascade.fusion import BoxAverage, Conflicts, across_axis, clean_muscle, largest_component
from tfmuscle.cascade.neighbours import Leg, Neighbours

__all__ = [
    "Box",
    "BoxAverage",
    "Conflicts",
    "Leg",
    "Neighbours",
    "across_axis",
    "clean_muscle",
    "enlarged",
    "input_size",
    "largest_component",
    "largest_enlargement",
    "low_resolution_grid",
    "mapped",
    "tight_box",
    "tight_boxes",
]
