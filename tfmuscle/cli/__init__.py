"""The `tfmuscle` command: a skin over `workflows/`, one function a command, one file a family of commands.

A command turns options into settings, calls one workflow and prints what it did. Options that are fields of
`DataSpec`, `TrainConfig` or `Supervised` take name, help and choices from there. Workflows are imported inside the
functions, because TensorFlow takes seconds to load and `--help` should not.

A `DataError` is printed on one line and exits with 1; a misused option exits with 2; anything else is our bug and
keeps its traceback. Subjects that failed are listed last, and the exit code is 1.
"""

from tfmuscle.cli import (
    cascade,
    comparing,
    contours,
    data,
    exporting,
    gui,
    importing,
    label_curve,
    learning,
    measuring,
    muscles,
    planning,
    predicting,
    preparing,
    pretraining,
    propagation,
    segmentations,
    serving,
    slices,
    surfaces,
    sweeps,
    ultrasound,
)
from tfmuscle.cli.base import tfmuscle_group

__all__ = [
    "cascade",
    "comparing",
    "contours",
    "data",
    "exporting",
    "gui",
    "importing",
    "label_curve",
    "learning",
    "main",
    "measuring",
    "muscles",
    "planning",
    "predicting",
    "preparing",
    "pretraining",
    "propagation",
    "segmentations",
    "serving",
    "slices",
    "surfaces",
    "sweeps",
    "tfmuscle_group",
    "ultrasound",
]


def main() -> None:
    """Runs the command line."""
    tfmuscle_group()
