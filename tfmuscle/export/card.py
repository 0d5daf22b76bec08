"""The model card of a bundle: what it is for, on whom it learned, how good it was, and what it must not do.

It states what the files say and no more: what nobody told (a licence, the intended use) is called *not stated*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.export.bundle import BUNDLE_FILE, SPEC_FILE

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Statement:
    """What only the user can say of a network.

    Attributes:
        intended_use: of the network.
        licence: of the weights.
        scores: structure -> mean Dice on subjects that neither trained it nor chose its epoch.
        scores_from: what these subjects were.
    """

    intended_use: str = NOT_STATED
    licence: str = NOT_STATED
    scores: Mapping[str, float] | None = None
    scores_from: str = ""


def card(
    name: str,
    spec: DataSpec,
    configs: Sequence[TrainConfig],
    *,
    about: Mapping[str, Any],
    splits: Sequence[Mapping[str, Any]],
    statement: Statement,
) -> str:
    """Returns the card as Markdown.

    Args:
        name: of the bundle.
        spec: how scans become samples.
        configs: how each run was trained.
        about: content of `bundle.json`.
        splits: `split.json` of each run.
        statement: what the user says.
    """
    reduced = " (*reduced*: the recipe was cut down)" if "laptop" in {spec.scale, *(c.scale for c in configs)} else ""
    lines = [
        f"# {name}",
        "",
        f"{_joined(c.model for c in configs)}, {len(configs)} network(s), recipe {_joined(c.preset for c in configs)}"
        f"{reduced}.",
        "**For research use, not for diagnosis.**",
        "",
        f"* **Intended use:** {statement.intended_use}",
        f"* **Licence of the weights:** {statement.licence}",
        f"* **Structures:** {', '.join(spec.label_map.structures)}",
        f"* **Scans:** channels {', '.join(spec.channels)}; {_grid(spec)}; intensities {spec.normalisation}",
        f"* **Cleaning of labels:** {about['cleaning'] or 'none'} (done by tfmuscle, not inside the network)",
        "",
        "## Training",
        "",
        f"Dataset {spec.name}, split by person, seed {_joined(c.seed for c in configs)}, loss"
        f" {_joined(c.recipe.loss for c in configs)}, augmentation {_joined(c.recipe.augmentation for c in configs)}.",
        "",
        "| run | trained on | chose the epoch | left out | epochs | validation Dice of the kept epoch |",
        "|---|---|---|---|---|---|",
    ]
    for number, (split, training) in enumerate(zip(splits, about["training"], strict=True)):
        counts = [len(split.get(part, [])) for part in ("train", "validation", "test")]
        dice = training.get("best_validation_dice")
        shown = NOT_STATED if dice is None else f"{dice:.3f}"
        lines.append(f"| {number} | {counts[0]} | {counts[1]} | {counts[2]} | {training.get('epochs')} | {shown} |")
    lines += ["", "## How good it was", "", *_scores(statement), "", "## The same answer everywhere", ""]
    lines += ["Compared with Keras when it was exported:", ""]
    lines += ["| format | largest difference | equal labels |", "|---|---|---|"]
    for name_of_format, content in about["formats"].items():
        parity = content["parity"]
        shown = " ".join([name_of_format, *{content.get("precision", "float32")} - {"float32"}])
        lines.append(f"| {shown} | {parity['largest_difference']:.2g} | {parity['equal_labels']:.4%} |")
    versions = ", ".join(f"{key} {value}" for key, value in about["made_with"]["versions"].items())
    lines += [
        "",
        f"Made with {versions}. SHA-256 of the weights: {', '.join(about['identity']['weights'])}.",
        f"`{BUNDLE_FILE}` holds the checksum of every file, `{SPEC_FILE}` all settings.",
    ]
    return "\n".join(lines) + "\n"


def _scores(statement: Statement) -> list[str]:
    if not statement.scores:
        return ["Not stated. The validation Dice above chose the epoch, so it is too good for new scans."]
    rows = [f"| {structure} | {dice:.3f} |" for structure, dice in statement.scores.items()]
    return [f"Mean Dice on {statement.scores_from}:", "", "| structure | Dice |", "|---|---|", *rows]


def _grid(spec: DataSpec) -> str:
    spacing = "their own voxel size" if spec.spacing is None else f"{' x '.join(f'{mm:g}' for mm in spec.spacing)} mm"
    return f"{spec.kind} of {' x '.join(map(str, spec.input_shape))} at {spacing}, orientation {spec.orientation}"


def _joined(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
