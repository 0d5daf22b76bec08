"""How far a training by propagation is, also in the middle of a scan, as one file that is whole or not there.

A scan of 1400 slices takes an hour and more, too long to lose. So weights, state of the optimiser and of the random
numbers, gradients added up since its last step, the masks to feed next and the place are written every
`SAVE_SECONDS`, together, and a run that goes on from there ends as one that was never interrupted.
"""

import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path
from tfmuscle.training.propagation_steps import Stepper

SAVE_SECONDS = 30.0
STATE_FILE = "propagation.npz"


@dataclass
class Place:
    """Where a training is, and what it has seen of this epoch.

    Attributes:
        epoch: epochs that are done.
        scan: scans of this epoch that are done.
        chunk: chunks of windows of this scan that are done.
        loss: sum over the windows of this epoch.
        windows: how many these are.
        seconds: spent on this epoch.
    """

    epoch: int = 0
    scan: int = 0
    chunk: int = 0
    loss: float = 0.0
    windows: int = 0
    seconds: float = 0.0


def save_state(folder: Path, stepper: Stepper, place: Place, fed: tf.Tensor | None) -> None:
    """Writes everything that going on needs."""
    content = {f"state_{number:05d}": value.numpy() for number, value in enumerate(_variables(stepper))}
    if fed is not None:
        content["fed"] = fed.numpy()
    content |= {f"place_{name}": np.array(value) for name, value in asdict(place).items()}
    with atomic_path(folder / STATE_FILE) as temporary:
        np.savez(temporary, **content)


def load_state(folder: Path, stepper: Stepper) -> tuple[Place, tf.Tensor | None]:
    """Sets the network to what was saved; returns the place and the masks to feed next. Without a file: the start.

    Raises:
        DataError: the file is damaged or belongs to another network.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return Place(), None
    try:
        with np.load(path, allow_pickle=False) as content:
            values = [content[f"state_{number:05d}"] for number, _ in enumerate(_variables(stepper))]
            place = Place(**{item.name: content[f"place_{item.name}"].item() for item in fields(Place)})
            fed = tf.constant(content["fed"]) if "fed" in content else None
        for variable, value in zip(_variables(stepper), values, strict=True):
            variable.assign(value)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be gone on from ({error}); remove {folder.parent} and fit again") from error
    return place, fed


def _variables(stepper: Stepper) -> list[tf.Variable]:
    kept = [*stepper.model.variables, *stepper.optimiser.variables]
    return [*(variable.value for variable in kept), *stepper.gradients]
