"""What is compared: presets as they are, or one preset with some settings varied.

A *candidate* is a preset with settings that go before it. Settings are named as the fields of `DataSpec` (how scans
become samples), `TrainConfig` and `Supervised` (training); `model_options.NAME` and `loss_options.NAME` reach into the
options of architecture and loss. A study's candidates are all combinations of the varied values.

What decides who is compared with whom (folds, the fold left out, the split's seed, the label map) is no setting here:
every candidate must see the same subjects. `seed` is that of the training. Values must be of the field's type: a text
"False" is no `mirror=false`, and `epochs=1.5` would end a job of days after its records are made.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.fields import fits, needed
from tfmuscle.presets import get_preset

OPTION_FIELDS = ("model_options", "loss_options")
"""Fields that hold options by name; `model_options.filters` is the option `filters`."""
FIRST_STAGE, CASCADE = "3d_lowres", "3d_cascade_fullres"
"""Configurations of nnU-Net's plan of which the second looks at the labels of the first."""
_DECIDED = ("label_map", "name", "channels", "folds", "fold", "left_out", "test", "preset", "scale", "recipe", "plan")
_LONGEST_FOLDER = 80


@dataclass(frozen=True)
class Candidate:
    """One model to be trained and measured.

    Attributes:
        name: in tables and figures.
        folder: name of its folder.
        preset: recipe, or None for the defaults.
        data: fields of `DataSpec` that go before the preset's.
        training: fields of `TrainConfig`.
        recipe: fields of `Supervised`.
        varied: what distinguishes it from the other candidates of a study, as tables show it.
    """

    name: str
    folder: str
    preset: str | None
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    recipe: Mapping[str, Any]
    varied: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def plan(self) -> str:
        """Configuration of nnU-Net's plan that the preset follows, or ""."""
        return get_preset(self.preset).plan if self.preset else ""

    def asked(self) -> dict[str, Any]:
        """Returns what was asked for, as plain JSON content."""
        settings = {"data": self.data, "training": self.training, "recipe": self.recipe}
        return json.loads(json.dumps({"preset": self.preset} | settings))


def candidates_of_presets(presets: Sequence[str], settings: Mapping[str, Any]) -> list[Candidate]:
    """Returns one candidate per preset.

    Args:
        presets: names, each once.
        settings: go before those of every preset.

    Raises:
        ValueError: no preset, an unknown one or one twice, or an unknown setting; the nearest name is suggested.
    """
    if not presets:
        raise ValueError("no preset is given; name one at least")
    for name in presets:
        _check_segments(name)
        if list(presets).count(name) > 1:
            raise ValueError(f"preset {name!r} is given twice; name each preset once")
    parts = sort_settings(settings)
    candidates = [Candidate(name, name, name, *parts) for name in presets]
    if any(item.plan == CASCADE for item in candidates) and not any(item.plan == FIRST_STAGE for item in candidates):
        raise ValueError("a cascade looks at the labels of its first stage; name preset nnunet_3d_lowres as well")
    return candidates


def candidates_of_study(
    preset: str | None, vary: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]
) -> list[Candidate]:
    """Returns one candidate per combination of the varied values, the last field varying fastest.

    Args:
        preset: recipe that is varied, or None for the defaults.
        vary: field -> values.
        settings: the same for all candidates.

    Raises:
        ValueError: nothing to vary, an unknown field, or a field without values, with one twice, or given in both.

    >>> [c.name for c in candidates_of_study("demo", {"epochs": [1, 2]}, {})]
    ['epochs=1', 'epochs=2']
    """
    if preset and get_preset(preset).plan == CASCADE:
        raise ValueError(
            f"preset {preset} looks at the labels of another; vary nnunet_3d, or compare with cross-validate"
        )
    if preset:
        _check_segments(preset)
    if not vary:
        raise ValueError("nothing is varied; name a field and its values, e.g. learning_rate=1e-3,1e-4")
    for name, values in vary.items():
        _place_of(name)
        texts = [json.dumps(value) for value in values]
        if not texts or len(set(texts)) < len(texts):
            raise ValueError(f"{name} is varied over {', '.join(texts) or 'nothing'}; give values, each once")
        if name in settings:
            raise ValueError(f"{name} is both varied and set to {settings[name]!r}; leave one out")
    found = []
    for values in itertools.product(*vary.values()):
        chosen = dict(zip(vary, values, strict=True))
        varied = {name: _shown(name, value, vary[name]) for name, value in chosen.items()}
        title = ", ".join(f"{name.rpartition('.')[2]}={text}" for name, text in varied.items())
        folder = _folder(",".join(f"{name}={_text(value)}" for name, value in chosen.items()))
        found.append(Candidate(title, folder, preset, *sort_settings({**settings, **chosen}), varied))
    return found


def _check_segments(preset: str) -> None:
    """Refuses a network that labels no scan by itself."""
    if get_preset(preset).propagation:
        raise ValueError(
            f"preset {preset} carries masks from drawn slices, and nothing is drawn here; train it with fit, and"
            " compare with sweep-tables"
        )


def sort_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the fields of `DataSpec`, of `TrainConfig` and of `Supervised` among `settings`; lists become tuples.

    Raises:
        ValueError: an unknown name (the nearest is suggested), one that is decided otherwise, or a value that is not of
            the field's type.

    >>> sort_settings({"size": [64, 64], "model_options.filters": 8, "loss": "dice"})
    ({'size': (64, 64)}, {'model_options': {'filters': 8}}, {'loss': 'dice'})
    """
    parts: dict[str, dict[str, Any]] = {"data": {}, "training": {}, "recipe": {}}
    for name, value in settings.items():
        (place, item), (head, dot, option) = _place_of(name), name.partition(".")
        part = parts[place]
        if dot:
            part[head] = part.get(head, {}) | {option: value}
        elif not fits(_tuples(value), item.type):
            raise ValueError(f"{name} is {value!r}; {needed(item.type)} is needed")
        else:
            part[head] = dict(value) | part.get(head, {}) if head in OPTION_FIELDS else _tuples(value)
    return parts["data"], parts["training"], parts["recipe"]


def _place_of(name: str) -> tuple[str, dataclasses.Field[Any]]:
    """Returns the part that a setting belongs to, and its field; refuses a name that is no setting."""
    classes = (("training", TrainConfig), ("recipe", Supervised), ("data", DataSpec))
    fields = {item.name: (place, item) for place, cls in reversed(classes) for item in dataclasses.fields(cls)}
    head, dot, option = name.partition(".")
    if head in _DECIDED:
        raise ValueError(f"{name} is the same for all that is compared; it is no setting to give or to vary here")
    if head == "prior":
        raise ValueError("prior is decided by the preset; compare nnunet_3d_lowres with nnunet_3d_cascade")
    if head not in fields or (bool(dot) and (head not in OPTION_FIELDS or not option)):
        raise ValueError(f"no setting is called {name!r}; {_nearest(name, list(fields))}")
    return fields[head]


def _nearest(name: str, fields: Sequence[str]) -> str:
    head, dot, option = name.partition(".")
    if dot and (near := difflib.get_close_matches(head, OPTION_FIELDS, n=1)):
        return f"did you mean {near[0] + '.' + (option or 'NAME')!r}?"
    known = [field for field in fields if field not in _DECIDED]
    near = difflib.get_close_matches(name, known, n=1)
    options = "an option of the model is model_options.NAME, one of the loss loss_options.NAME"
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}; {options}"


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(name: str, value: Any, values: Sequence[Any]) -> str:
    """Returns a value for tables; of a path the file's name alone, if that tells it from the other values."""
    short = [Path(text).name if isinstance(text, str) else _text(text) for text in values]
    text = Path(value).name if isinstance(value, str) else _text(value)
    return text if text and short.count(text) == 1 else _text(value)


def _folder(text: str) -> str:
    """Returns a name that any disk takes, whatever its rules of case, and that no other text has.

    >>> _folder("learning_rate=0.001"), _folder("size=[64, 64]")
    ('learning_rate=0.001', 'size=_64,_64-a9be60')
    """
    plain = re.sub(r"[^A-Za-z0-9.,=_-]+", "_", text).strip("_.")[:_LONGEST_FOLDER]
    return plain if plain == text == text.lower() else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
