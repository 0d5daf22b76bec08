"""The plan as a file: what the user may edit, checked before anything is made from it.

`plan.json` is what `plan_nnunet` returned. The user changes numbers in `data`, `training` and `recipe` of a
configuration, whose keys are the fields of `DataSpec`, `TrainConfig` and `Supervised`; `notes`, `remarks` and
`fingerprint` are for reading and change nothing. A mistake names the file, the key and the remedy: an unknown key, a
value out of range, or a patch that the strides do not divide.
"""

import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmuscle.config import SCALES, DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.labels import LabelMap
from tfmuscle.planning.nnunet import FORMAT, MODES

_KEYS = ("format", "mode", "scale", "dataset", "fingerprint", "remarks", "configurations")
_PARTS: dict[str, type[DataSpec | TrainConfig | Supervised]] = {
    "data": DataSpec,
    "training": TrainConfig,
    "recipe": Supervised,
}
_ELSEWHERE = {
    "data": ("label_map", "name", "channels", "preset", "scale"),
    "training": ("preset", "scale", "fold", "recipe"),
    "recipe": (),
}
"""Fields that a plan does not decide: they belong to the dataset, the command or another part."""
_ANY_LABELS = LabelMap({1: "structure"})


def load_plan(path: str | Path) -> dict[str, Any]:
    """Reads and checks a plan.

    Raises:
        DataError: no such file, no plan, or an edit that cannot be; the message names the key and what it needs.
    """
    path = Path(path)
    plan = read_json(path)
    if plan.get("format") != FORMAT:
        raise DataError(f"{path}: is no plan of tfmuscle; make one with `tfmuscle plan -i DATASET -o {path.name}`")
    try:
        _check_keys(plan, _KEYS, "")
        for key, choices in (("mode", MODES), ("scale", SCALES)):
            if plan.get(key) not in choices:
                raise ValueError(f"{key} is {plan.get(key)!r}; choose one of {', '.join(choices)}")
        configurations = plan.get("configurations")
        if not isinstance(configurations, Mapping) or not configurations:
            raise ValueError("configurations is missing or empty; make the plan anew with `tfmuscle plan`")
        for name, content in configurations.items():
            _check_configuration(f"configurations.{name}", content)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return plan


def spec_of(configuration: Mapping[str, Any], *, label_map: LabelMap, name: str, channels: tuple[str, ...]) -> DataSpec:
    """Returns how the scans of a dataset become samples by one configuration of a plan."""
    about = {"label_map": label_map, "name": name, "channels": channels}
    return DataSpec.from_dict(about | dict(configuration["data"]))


def check_window(window: tuple[int, ...], model_options: Mapping[str, Any]) -> None:
    """Refuses a sample that the strides of a network do not divide.

    Args:
        window: edges of a sample in voxels; of slices the last two count.
        model_options: those of the plan; without strides there is nothing to check.

    Raises:
        ValueError: an edge is no multiple of what its strides make; the nearest sizes are named.
    """
    strides = model_options.get("strides")
    if not strides:
        return
    divisors = [math.prod(axis) for axis in zip(*strides, strict=True)]
    edges = window[-len(divisors) :]
    if any(edge % divisor for edge, divisor in zip(edges, divisors, strict=True)):
        near = [max(1, round(edge / divisor)) * divisor for edge, divisor in zip(edges, divisors, strict=True)]
        raise ValueError(
            f"{_times(edges)} voxels, but the strides need multiples of {_times(divisors)}; use {_times(near)}, or"
            " change the strides"
        )


def plan_rows(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a table of a plan, one row a configuration, as text."""
    rows = []
    for name, content in plan["configurations"].items():
        data, training = content["data"], content["training"]
        options = training.get("model_options", {})
        strides = options.get("strides", [])
        halvings = [str(sum(edge > 1 for edge in axis)) for axis in zip(*strides, strict=True)]
        first, most = options.get("filters", 32), options.get("max_filters", 320)
        patch = [data["depth"], *data["size"]] if data["kind"] == "volumes" else data["size"]
        rows.append(
            {
                "configuration": name,
                "spacing (mm)": _times(f"{mm:.4g}" for mm in data["spacing"]),
                "median scan": _times(content.get("notes", {}).get("median_shape", ["-"])),
                "patch": _times(patch),
                "batch": str(training.get("batch_size", "-")),
                "stages": str(len(strides)),
                "halvings": _times(halvings),
                "widths": " ".join(str(min(first * 2**stage, most)) for stage in range(len(strides))),
                "normalisation": str(data.get("normalisation", "-")),
            }
        )
    return rows


def _check_configuration(place: str, content: Any) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}; an object with data and training is needed")
    _check_keys(content, (*_PARTS, "notes"), place)
    for needed in ("data", "training"):
        if needed not in content:
            raise ValueError(f"{place}.{needed} is missing; make the plan anew with `tfmuscle plan`")
    for part, cls in _PARTS.items():
        values = content.get(part, {})
        if not isinstance(values, Mapping):
            raise ValueError(f"{place}.{part} is {values!r}; an object with named settings is needed")
        known = [name for name in cls.__dataclass_fields__ if name not in _ELSEWHERE[part]]
        _check_keys(values, known, f"{place}.{part}")
        shown = {"label_map": _ANY_LABELS} | _channels_of(values) if part == "data" else {}
        try:
            cls.from_dict(shown | dict(values))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}.{part}: {error}") from error
    for needed in ("kind", "size", "depth", "spacing"):
        if content["data"].get(needed) is None:
            raise ValueError(f"{place}.data.{needed} is missing; make the plan anew with `tfmuscle plan`")
    _check_network(place, content["data"], content["training"].get("model_options", {}))


def _channels_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns stand-ins for the dataset's channels, as many as there are statistics."""
    statistics = data.get("statistics")
    return {"channels": [f"channel {n}" for n in range(len(statistics))]} if isinstance(statistics, list) else {}


def _check_network(place: str, data: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    dim = 3 if data["kind"] in ("volumes", "sequences") else 2
    place_of = f"{place}.training.model_options"
    if not isinstance(options, Mapping):
        raise ValueError(f"{place_of} is {options!r}; an object with named options is needed")
    for name in ("strides", "kernels"):
        if name in options and not _is_table(options[name], dim):
            raise ValueError(f"{place_of}.{name} is {options[name]!r}; a list of {dim} whole numbers a stage is needed")
    if len(options.get("kernels", ())) != len(options.get("strides", ())):
        counts = [len(options.get(name, ())) for name in ("strides", "kernels")]
        raise ValueError(f"{place_of}: {counts[0]} strides and {counts[1]} kernels; one of each a stage is needed")
    if any(stride != 1 for stride in options.get("strides", [[1]])[0]):
        first = options["strides"][0]
        raise ValueError(f"{place_of}.strides begins with {first}; the first stage has the full resolution, all ones")
    try:
        check_window((data["depth"], *data["size"]), options)
    except ValueError as error:
        raise ValueError(f"{place}.data: depth and size are {error}") from error


def _is_table(table: Any, dim: int) -> bool:
    rows = table if isinstance(table, list) and table else [None]
    return all(
        isinstance(row, list) and len(row) == dim and all(type(value) is int and value > 0 for value in row)
        for row in rows
    )


def _check_keys(content: Mapping[str, Any], known: Any, place: str) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            where = f"{place}.{key}" if place else key
            raise ValueError(f"{where} is unknown; " + (f"did you mean {near[0]!r}?" if near else "remove it"))


def _times(values: Any) -> str:
    return " x ".join(str(value) for value in values)
