"""What all settings share: JSON, validation, and the declaration of a field with its help and choices."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Self

from tfmuscle.errors import DataError
from tfmuscle.fields import fits, needed
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import LabelMap


def option(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """Declares a field with its help, and its choices if it has any."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _tuples(value: Any) -> Any:
    """Turns the lists of JSON into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    """Turns tuples into the lists of JSON."""
    return list(map(_lists, value)) if isinstance(value, tuple) else value


class Settings:
    """JSON and validation shared by all settings."""

    def _check_choices(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value, choices = getattr(self, item.name), item.metadata.get("choices")
            if choices and value not in choices:
                raise ValueError(f"{item.name} is {value!r}; choose one of {', '.join(map(str, choices))}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; a positive number is needed")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content; a label map in nnU-Net's form."""
        content = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            value = value.to_dict() if isinstance(value, LabelMap) else value
            content[item.name] = _lists(value)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote; lists become tuples.

        Raises:
            ValueError: an unknown key (the nearest known one is suggested), a missing one, or a value of another type
                or out of range.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"settings are {content!r}; an object with named settings is needed")
        known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise ValueError(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values: dict[str, Any] = {key: _tuples(value) for key, value in content.items()}
        if isinstance(labels := values.get("label_map"), Mapping):
            values["label_map"] = LabelMap.from_dict(labels)
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            is_plain = item.name in values and item.name not in ("label_map", "recipe")
            if is_plain and not fits(values[item.name], item.type):
                raise ValueError(f"{item.name} is {values[item.name]!r}; {needed(item.type)} is needed")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the settings as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads settings from JSON; a bad file is a `DataError` that names it."""
        try:
            return cls.from_dict(read_json(path))
        except DataError:
            raise
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path}: {error}") from error
