"""Whether a value that somebody typed, or wrote into a file, is of the type that a settings field declares."""

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

_WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", NoneType: "null"}


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a field's type: one of the words below, options, a tuple, or one of several.

    >>> fits((64, 64), tuple[int, int]), fits("False", bool), fits(None, str | None), fits(True, int)
    (True, False, True, False)
    """
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind is tuple:
        wants = parts[:1] * len(value) if isinstance(value, tuple) and ... in parts else parts
        return isinstance(value, tuple) and len(value) == len(wants) and all(map(fits, value, wants))
    if kind is dict:
        return isinstance(value, Mapping)
    if parts:
        return any(fits(value, part) for part in parts)
    if wanted is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is wanted


def needed(wanted: Any) -> str:
    """Says in words what `fits` a field.

    >>> needed(tuple[int, int]), needed(str | None)
    ('a list of 2, each a whole number,', 'a text or null')
    """
    kind, parts = get_origin(wanted), get_args(wanted)
    if kind is tuple:
        number = "" if ... in parts else f" of {len(parts)}"
        return f"a list{number}, each {needed(parts[0])},"
    if kind is dict:
        return "an object of options in braces, or FIELD.NAME=VALUE,"
    return " or ".join(map(needed, parts)) if parts else _WORDS[wanted]
