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


SWEEPS_SOURCE = (
    "Al Chanti et al. 2021, IFSS-Net, IEEE Trans Med Imaging: means of three muscles of the lower leg in 3D ultrasound,"
    " validation on 5 participants, test on 10; Table X for the methods that do not learn, with three drawn slices in"
    " every 100"
)
SWEEPS_NOTES = (
    "The paper's Table X prints an mIoU above the Dice, which cannot be; its two columns are read the other way round.",
    "Its text gives IFSS-Net with weak supervision volume errors of 1.495 and 0.981 %, whose mean, 1.24, is what Table"
    " IV prints for full supervision (1.23; weak: 1.60). Table IV is shown.",
    "Its fixed regime called 3.5 % is 42 of 1400 slices, 3.0 %.",
    "The released code feeds the true mask again every 100 windows, and at every window for full supervision, and cuts"
    " sweeps to the extent of the truth; whether the published figures were made so is not known. They are no target.",
)
"""What does not fit in those figures."""
_SWEEP_METRICS = (
    "iou",
    "dice",
    "hausdorff",
    "mean_surface_distance",
    "precision",
    "recall",
    "volume_error_percent",
)
_SWEEPS = {
    "unet3d": (
        (0.578, 0.667, 14.374, 5.460, 0.725, 0.877, 18.703),
        (0.778, 0.867, 6.646, 2.395, 0.797, 0.973, 7.324),
    ),
    "vnet": (
        (0.491, 0.638, 17.268, 7.009, 0.556, 0.879, 25.138),
        (0.562, 0.698, 16.679, 6.691, 0.762, 0.897, 23.311),
    ),
    "daf3d": (
        (0.468, 0.619, 14.893, 3.576, 0.651, 0.656, 19.284),
        (0.544, 0.720, 11.844, 3.028, 0.710, 0.746, 18.558),
    ),
    "seg_net_fs": (
        (0.785, 0.839, 6.595, 3.391, 0.853, 0.907, 8.593),
        (0.833, 0.894, 5.759, 2.014, 0.883, 0.919, 5.647),
    ),
}
"""Network -> figures of validation and test, in the order of `_SWEEP_METRICS`."""
_SWEEPS_TEST = {
    "ifss_net_full": {
        "dice": 0.987, "hausdorff": 0.578, "mean_surface_distance": 0.197, "volume_error_percent": 1.23
    },
    "ifss_net_weak": {
        "dice": 0.985, "hausdorff": 0.728, "mean_surface_distance": 0.275, "volume_error_percent": 1.60
    },
    "pg_net": {"hausdorff": 18.4, "mean_surface_distance": 7.1, "volume_error_percent": 18.6},
    "interpolate": {
        "dice": 0.918, "iou": 0.849, "hausdorff": 16.6, "mean_surface_distance": 1.057, "volume_error_percent": 10.78
    },
    "grow": {
        "dice": 0.779, "iou": 0.645, "hausdorff": 17.18, "mean_surface_distance": 6.826, "volume_error_percent": 16.71
    },
    "watershed": {
        "dice": 0.770, "iou": 0.628, "hausdorff": 18.55, "mean_surface_distance": 2.462, "volume_error_percent": 6.80
    },
}  # fmt: skip
SWEEPS_PROTOCOLS = ("start", "every100", "share3")
"""Protocols of `benchmarks/propagation.py`: three starting slices, three in every 100, 3 % of the slices."""
SWEEP_ABLATIONS: dict[str, dict[str, float]] = {
    "temporal_bi": {"mean_surface_distance": 0.171, "iou": 0.983},
    "temporal_uni": {"mean_surface_distance": 3.52, "iou": 0.597},
    "temporal_none": {"mean_surface_distance": 5.75, "iou": 0.282},
    "no_recurrence": {"mean_surface_distance": 0.395, "iou": 0.948},
    "window_10": {"mean_surface_distance": 0.199, "iou": 0.971},
    "dice_loss": {"precision": 0.738, "recall": 0.997},
    "tversky": {"precision": 0.919, "recall": 0.974},
    "fixed_3.5": {"mean_surface_distance": 3.2},
    "fixed_2": {"mean_surface_distance": 6.3},
    "fixed_1": {"mean_surface_distance": 13.8},
}
"""Variation of IFSS-Net -> metric -> figure of the soleus."""


def shown_under(method: str, protocol: str) -> bool:
    """Whether a method's published figures belong beside rows of a protocol; names of others' protocols say nothing.

    >>> [shown_under("grow", name) for name in ("every100", "start", "")], shown_under("vnet", "start")
    ([True, False, True], True)
    """
    own = "every100" if method in ("interpolate", "grow", "watershed") else "start"
    return protocol == own or protocol not in SWEEPS_PROTOCOLS


def published_sweeps(part: str = "test") -> dict[str, dict[str, float]]:
    """Returns method -> metric -> the figure that was published for sweeps; see `SWEEPS_SOURCE` and `SWEEPS_NOTES`.

    Args:
        part: "test" or "validation"; only the four networks that segment have figures of both.

    >>> published_sweeps("validation")["vnet"]["dice"], published_sweeps()["vnet"]["dice"]
    (0.638, 0.698)
    """
    if part not in ("test", "validation"):
        raise ValueError(f"part is {part!r}; figures of test and validation were published")
    column = part == "test"
    found = {name: dict(zip(_SWEEP_METRICS, both[column], strict=True)) for name, both in _SWEEPS.items()}
    return found | _SWEEPS_TEST | SWEEP_ABLATIONS if column else found


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
