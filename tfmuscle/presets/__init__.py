"""Recipes by name: each knows its part of the data (`build-records --preset`) and of the training (`fit --preset`).

A preset is a constant; its text names data, hardware, time and what to expect. Precedence: an option given by the
user beats the preset, the preset beats the plan made from the dataset's fingerprint. `--scale laptop` cuts any recipe
down (`reduced`).
"""

import difflib

from tfmuscle.presets.general import GENERAL
from tfmuscle.presets.nnunet import NNUNET
from tfmuscle.presets.preset import Preset
from tfmuscle.presets.published import PUBLISHED
from tfmuscle.presets.reduced import reduced_data, reduced_training
from tfmuscle.presets.sweeps import SWEEPS

__all__ = ["PRESETS", "Preset", "get_preset", "reduced_data", "reduced_training"]

PRESETS: dict[str, Preset] = GENERAL | PUBLISHED | NNUNET | SWEEPS


def get_preset(name: str) -> Preset:
    """Returns a preset by name; an unknown name is a ValueError with the nearest one.

    >>> get_preset("demo").data["kind"]
    'slices'
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}; {hint}")
    return PRESETS[name]
