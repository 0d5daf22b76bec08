"""What papers report, to stand beside our own figures.

The user compares presets that reimplement published methods, and wants to see the published figures in the same table.
They were measured on other scans: they are a hint, no target, and no test compares with them.

A file of the user's own has the same form: `{"source": "...", "models": {preset: {"structures": {structure:
{"dice": [mean, sd], "volume_error_ml": [mean, sd]}}, "costs": {"trainable_parameters": n, "seconds_per_scan": s}}}}`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.evaluation.comparison import COMPARED, COSTS
from tfmuscle.files import read_json

BONES_SOURCE = (
    "Cheena, Table 3 (leave-one-out on 7 children, lower-limb MRI) and Table 5 (trainable parameters; seconds a scan on"
    " a Tesla T4)"
)
_DICE_AND_VOLUME = {
    "cheena_resnet34": {
        "tibia": (0.93, 0.02, 5.4, 0.9),
        "femur": (0.95, 0.01, 0.9, 0.2),
        "fibula": (0.78, 0.04, 2.9, 1.2),
        "pelvis": (0.88, 0.03, 24.5, 3.9),
    },
    "cheena_unet2d": {
        "tibia": (0.78, 0.02, 25.0, 6.2),
        "femur": (0.83, 0.03, 8.3, 2.3),
        "fibula": (0.64, 0.03, 8.8, 3.0),
        "pelvis": (0.68, 0.03, 53.4, 8.1),
    },
    "nnunet_2d": {
        "tibia": (0.89, 0.03, 18.3, 3.4),
        "femur": (0.92, 0.03, 1.1, 0.8),
        "fibula": (0.75, 0.03, 3.4, 1.6),
        "pelvis": (0.84, 0.04, 31.8, 5.1),
    },
    "nnunet_3d": {
        "tibia": (0.90, 0.03, 9.6, 2.2),
        "femur": (0.91, 0.03, 0.9, 0.2),
        "fibula": (0.75, 0.06, 5.4, 2.6),
        "pelvis": (0.70, 0.05, 43.3, 5.2),
    },
}
_COSTS = {
    "cheena_resnet34": (3e6, 20),
    "cheena_unet2d": (31e6, 40),
    "nnunet_2d": (45e6, 180),
    "nnunet_3d": (62e6, 540),
}
_SAME_AS = {"nnunet_2d_seed002": "nnunet_2d", "nnunet_3d_seed002": "nnunet_3d"}


@dataclass(frozen=True)
class Published:
    """Figures of a paper for one model.

    Attributes:
        source: paper, table and data.
        structures: structure -> metric -> (mean, sd); volumes in ml.
        costs: keys of `comparison.COSTS`.
    """

    source: str
    structures: Mapping[str, Mapping[str, tuple[float, float]]]
    costs: Mapping[str, float] = field(default_factory=dict)


def published_bones() -> dict[str, Published]:
    """Returns preset -> the published figures of the bone pipeline and its rivals.

    >>> published_bones()["nnunet_2d"].structures["tibia"]["volume_error_ml"]
    (18.3, 3.4)
    """
    found = {}
    for preset in (*_DICE_AND_VOLUME, *_SAME_AS):
        key = _SAME_AS.get(preset, preset)
        structures = {
            name: {"dice": line[:2], "volume_error_ml": line[2:]} for name, line in _DICE_AND_VOLUME[key].items()
        }
        costs = dict(zip(("trainable_parameters", "seconds_per_scan"), _COSTS[key], strict=True))
        found[preset] = Published(BONES_SOURCE, structures, costs)
    return found


def read_published(path: str | Path) -> dict[str, Published]:
    """Reads preset -> published figures from a JSON file of the form above.

    Raises:
        DataError: no such file, or another form; the preset and structure are named.
    """
    content = read_json(path)
    models = content.get("models")
    if not isinstance(models, dict):
        raise DataError(f'{path}: "models" is {type(models).__name__}; an object with one entry per preset is needed')
    return {name: _published(path, name, model, str(content.get("source", path))) for name, model in models.items()}


def _published(path: str | Path, name: str, model: Any, source: str) -> Published:
    if not isinstance(model, dict) or not isinstance(structures := model.get("structures"), dict):
        raise DataError(f'{path}: {name} has no object "structures"; give structure -> metric -> [mean, sd]')
    costs = model.get("costs", {})
    if not isinstance(costs, dict) or not all(key in COSTS and _is_number(value) for key, value in costs.items()):
        raise DataError(f"{path}: costs of {name} are {costs!r}; numbers named {', '.join(COSTS)} are needed")
    read = {key: _metrics(path, f"{name}, {key}", value) for key, value in structures.items()}
    return Published(source, read, costs)


def _metrics(path: str | Path, place: str, content: Any) -> dict[str, tuple[float, float]]:
    read = {}
    for metric, figures in content.items() if isinstance(content, dict) else [("", content)]:
        fits = isinstance(figures, list) and len(figures) == 2 and all(map(_is_number, figures))
        if metric not in COMPARED or not fits:
            known = ", ".join(COMPARED)
            raise DataError(f"{path}: {place}: {metric!r} is {figures!r}; [mean, sd] of one of {known} is needed")
        read[metric] = (float(figures[0]), float(figures[1]))
    return read


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
