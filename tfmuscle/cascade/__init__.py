"""Geometry and fusion of the cascaded 3D network of Ni et al. 2019, in NumPy: everything but the networks.

`plan.py` decides from the training legs which networks there are and where each looks.

Stage 1 finds every muscle on a coarse grid; `boxes.py` brings its boxes to the scan's own grid and enlarges them at
random, `neighbours.py` places the box of a muscle that the coarse grid lost. Stage 2 finds each muscle in its boxes,
which `resizing.py` brings to the size that a network sees and back; `fusion.py` averages them and joins 70 muscles into
one label image.
"""

from tfmuscle.cascade.boxes import (
    Box,
    enlarged,
    fitting_grid,
    largest_enlargement,
    mapped,
    tight_box,
    tight_boxes,
)
from tfmuscle.cascade.fusion import BoxAverage, Conflicts, across_axis, clean_muscle, largest_component
from tfmuscle.cascade.neighbours import Leg, Neighbours
from tfmuscle.cascade.plan import (
    CascadePlan,
    GroupNetwork,
    MuscleNetwork,
    Observation,
    make_plan,
    observe,
    structures_of,
)
from tfmuscle.cascade.resizing import resized_back, resized_labels, resized_linear

__all__ = [
    "Box",
    "BoxAverage",
    "CascadePlan",
    "Conflicts",
    "GroupNetwork",
    "Leg",
    "MuscleNetwork",
    "Neighbours",
    "Observation",
    "across_axis",
    "clean_muscle",
    "enlarged",
    "fitting_grid",
    "largest_component",
    "largest_enlargement",
    "make_plan",
    "mapped",
    "observe",
    "resized_back",
    "resized_labels",
    "resized_linear",
    "structures_of",
    "tight_box",
    "tight_boxes",
]
