"""Architectures, one per file: list, build, describe, check and load them.

An architecture is a function `<name>(input_shape, num_classes, *, ...) -> keras.Model` in `<name>.py`, with its facts
in the constant `FACTS`: source, published input, classes and options, and what it takes (2 or 3 spatial axes; in-plane
sizes, and for some a depth, in multiples of). All share the main input `image` and the main output `probabilities`,
float32 under every precision policy; those that carry masks from slice to slice have further `inputs`.

Listing and checking must not cost a TensorFlow import (4 s), so Keras is imported inside `build`, `load` and
`describe` only, and `FACTS` is read from the source text, the way setuptools reads a version. To add an architecture,
add its file.
"""

import ast
import difflib
import importlib
import inspect
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.models._pooling import fitting_levels, nearest_multiple, planned_poolings, poolings

if TYPE_CHECKING:
    import keras

FOLDER = Path(__file__).parent
_SHARED = ("blocks",)


def available() -> list[str]:
    """Returns the names of the architectures, sorted.

    >>> "unet" in available()
    True
    """
    names = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name not in _SHARED)


def build(name: str, input_shape: tuple[int | None, ...], num_classes: int, **options: Any) -> "keras.Model":
    """Builds an architecture with random weights, under the current precision policy.

    Args:
        name: one of `available()`.
        input_shape: `(H, W, C)` or `(D, H, W, C)`.
        num_classes: classes, background included.
        **options: keyword arguments of the architecture.

    Raises:
        ValueError: unknown name or option (the nearest is suggested), or a shape the architecture does not take.
    """
    facts = _facts(name)
    if len(input_shape) - 1 not in facts["spatial_axes"]:
        raise ValueError(
            f"input_shape {tuple(input_shape)}: {name} needs {_axes_needed(facts)} spatial axes and channels"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}; at least 2 are needed, background included")
    architecture = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    known = list(inspect.signature(architecture).parameters)[2:]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}; {_nearest(option, known)}")
    return architecture(tuple(input_shape), num_classes, **options)


def inputs(name: str) -> tuple[str, ...]:
    """Returns the names of the inputs of an architecture, `image` first.

    >>> inputs("unet"), inputs("ifss_net")
    (('image',), ('image', 'mask'))
    """
    return _facts(name).get("inputs", ("image",))


def output_weights(name: str) -> dict[str, float]:
    """Returns what each output of an architecture weighs in its loss, as published; empty where nothing is.

    >>> output_weights("daf3d")["probabilities_level1"]
    0.4
    """
    return dict(_facts(name).get("output_weights", {}))


def load(path: str | Path) -> "keras.Model":
    """Loads a `.keras` file for prediction, without running any code that it may carry.

    Raises:
        DataError: no such file, not a model, damaged, or one that wants to run code.
    """
    import keras

    import tfmuscle.layers  # noqa: F401 (registers them)
    import tfmuscle.losses.parametric  # noqa: F401 (the same)

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such model file; give the .keras file of a run")
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a Keras model file (.keras), or cut short; copy it again or train again")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged or hostile file sets off inside Keras, the file is at fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: cannot be loaded ({reason}); use a model that tfmuscle wrote, or train again"
        ) from error


def describe(name: str) -> dict[str, Any]:
    """Returns source, published input, classes and options of an architecture, and its parameter counts under them.

    Returns:
        Keys `name`, `source`, `input_shape`, `num_classes`, `options`, `parameters`, `trainable_parameters`; the counts
        are those of weights, moving averages included, and are None with a `problem` where a package is missing.
    """
    facts = _facts(name)
    keys = ("source", "input_shape", "num_classes", "options")
    about: dict[str, Any] = {"name": name} | {key: facts[key] for key in keys}
    try:
        model = build(name, facts["input_shape"], facts["num_classes"], **facts["options"])
    except ImportError as error:
        return about | {"parameters": None, "trainable_parameters": None, "problem": str(error)}
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return about | {"parameters": model.count_params(), "trainable_parameters": trainable}


def carries_masks(name: str) -> bool:
    """Whether an architecture looks at masks of the slices before, besides the image; an unknown name does not.

    >>> carries_masks("ifss_net"), carries_masks("unet")
    (True, False)
    """
    return name in available() and "mask" in _facts(name).get("inputs", ())


def check_spec(name: str, spec: DataSpec, **options: Any) -> None:
    """Checks that an architecture takes the samples of `spec`, without building it.

    Args:
        name: one of `available()`.
        spec: how scans become samples.
        **options: keyword arguments the architecture will be built with; `levels` or `strides` decide how sizes are
            divided.

    Raises:
        ValueError: naming the field that does not fit and a value that does.
    """
    facts = _facts(name)
    axes = 3 if spec.is_volumetric else 2
    if axes not in facts["spatial_axes"]:
        kinds = "volumes or sequences" if axes == 2 else "slices or stacks"
        takers = ", ".join(other for other in available() if axes in _facts(other)["spatial_axes"])
        raise ValueError(
            f"kind {spec.kind!r}: {name} takes {kinds}; build such records, or choose a {axes}D model ({takers})"
        )
    if spec.num_classes < 2:
        raise ValueError(f"label_map {spec.label_map.to_dict()}: names no structure; name at least one in the dataset")
    multiple, thick = facts["multiple_of"], facts.get("depth_multiple_of", 1) if axes == 3 else 1
    if multiple and any(edge % multiple for edge in spec.size):
        near = " ".join(str(nearest_multiple(edge, multiple)) for edge in spec.size)
        raise ValueError(f"size {spec.size}: {name} needs multiples of {multiple}; use --size {near}")
    if spec.depth % thick:
        near = str(nearest_multiple(spec.depth, thick))
        raise ValueError(f"depth {spec.depth}: {name} needs multiples of {thick}; use --depth {near}")
    if not multiple:
        _check_pooling(name, spec, options)


def _check_pooling(name: str, spec: DataSpec, options: Mapping[str, Any]) -> None:
    shape = spec.window if spec.is_volumetric else spec.size
    levels, strides = options.get("levels", _facts(name).get("levels")), options.get("strides")
    try:
        if strides is not None:
            planned_poolings(strides, shape)
        else:
            poolings(shape, fitting_levels(shape) if levels is None else levels)
    except ValueError as error:
        field = f"depth and size {shape}" if spec.is_volumetric else f"size {spec.size}"
        depth = "" if levels is None else f" with levels={levels}"
        raise ValueError(f"{field}: {name}{depth}: {error}") from error


def _facts(name: str) -> dict[str, Any]:
    if name not in available():
        raise ValueError(f"no model is called {name!r}; {_nearest(name, available())}")
    for statement in ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "FACTS":
            return ast.literal_eval(statement.value)
    raise LookupError(f"{name}.py has no FACTS")


def _axes_needed(facts: dict[str, Any]) -> str:
    return " or ".join(map(str, facts["spatial_axes"]))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
