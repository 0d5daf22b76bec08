"""What was learnt of members on labelled scans, as `uncertainty.json` in the run or the folder of cross-validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.folds import person_of
from tfmuscle.labels import LabelMap
from tfmuscle.uncertainty.curve import FEWEST, Curve, fit_curve
from tfmuscle.uncertainty.temperature import calibration_error, fit_temperature, with_temperature

CALIBRATION_FILE = "uncertainty.json"
MADE_BY = "tfmuscle calibrate"
ALL = "all structures"
"""Name of the curve of all structures together, for those that too few scans show."""
FEWEST_PERSONS = 10
"""Of whom there must be points for that curve: structures of one scan are good and bad together."""
_NEEDED = ("members", "mirror", "labels", "temperature", "scans", "speaking", "curves", "ece")


@dataclass(frozen=True, eq=False)
class Scan:
    """What members said of a labelled scan that they were not trained on.

    Attributes:
        subject: its id.
        speakers: who of them spoke.
        probabilities: `(N, C)`, their mean in some voxels.
        classes: `(N,)` true class indices there.
        agreement: structure -> score.
        dice: structure -> true Dice of the labels.
    """

    subject: str
    speakers: tuple[str, ...]
    probabilities: np.ndarray
    classes: np.ndarray
    agreement: Mapping[str, float]
    dice: Mapping[str, float]


@dataclass(frozen=True)
class Judgement:
    """What a score of a structure means.

    Attributes:
        expected: Dice; None where nothing can be promised.
        low: lower end of the interval.
        high: upper end.
        flagged: whether the score is below that of nine in ten labelled scans.
        learnt_from: points behind it, and of what, in words.
    """

    expected: float | None = None
    low: float | None = None
    high: float | None = None
    flagged: bool = False
    learnt_from: str = "too few labelled scans"


@dataclass(frozen=True)
class Calibration:
    """What scores and probabilities of some members mean.

    Attributes:
        members: checksums of their weights.
        mirror: whether they were averaged over mirrors.
        labels: their label map, as JSON content.
        temperature: of the mean probabilities.
        scans: subjects it was learnt from.
        speaking: how many members spoke of a scan, in the mean.
        curves: structure, or `ALL` -> its curve.
        ece: expected calibration error of voxels without and with the temperature; NaN where unknown.
    """

    members: tuple[str, ...]
    mirror: bool
    labels: Mapping[str, Any]
    temperature: float = 1.0
    scans: tuple[str, ...] = ()
    speaking: float = 0.0
    curves: Mapping[str, Curve] = field(default_factory=dict)
    ece: tuple[float, float] = (math.nan, math.nan)

    def judge(self, structure: str, score: float) -> Judgement:
        """Says what the agreement of members about a structure means."""
        curve, basis = self.curves.get(structure), "scans"
        if curve is None:
            curve, basis = self.curves.get(ALL), f"points of {ALL}"
        if curve is None or math.isnan(score):
            return Judgement() if curve is None else Judgement(learnt_from="not found")
        low, high = curve.interval(score)
        return Judgement(curve.expected(score), low, high, curve.is_low(score), f"{curve.count} {basis}")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before relying on it."""
        structures = LabelMap.from_dict(dict(self.labels)).structures
        silent = [name for name in structures if name not in self.curves]
        notes = []
        if silent and ALL not in self.curves:
            shown = ", ".join(silent[:5]) + ", ..." * (len(silent) > 5)
            notes.append(
                f"calibrated with {len(self.scans)} scans; {FEWEST} that show a structure are needed to promise a Dice:"
                f" of {shown} there is the bare agreement"
            )
        if len(self.members) > 1 and self.speaking < len(self.members):
            notes.append(
                f"calibrated with {self.speaking:.2g} of {len(self.members)} networks a scan, those that had not seen"
                " it; all together may be better than expected, and fewer than a tenth be flagged"
            )
        return tuple(notes)

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        curves = {name: curve.to_dict() for name, curve in self.curves.items()}
        content = {"made_by": MADE_BY, "members": self.members, "mirror": self.mirror, "labels": dict(self.labels)}
        content |= {"temperature": self.temperature, "scans": self.scans, "speaking": self.speaking}
        write_json(path, content | {"curves": curves, "ece": self.ece})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads it; a bad file is a `DataError` that names it."""
        content = read_json(path)
        if content.get("made_by") != MADE_BY or (missing := [key for key in _NEEDED if key not in content]):
            what = "is of something else" if content.get("made_by") != MADE_BY else f"lacks {', '.join(missing)}"
            raise DataError(f"{path}: {what}; make it anew with '{MADE_BY}'")
        try:
            curves = {name: Curve.from_dict(curve) for name, curve in content["curves"].items()}
            before, after = (math.nan if value is None else float(value) for value in content["ece"])
            temperature, speaking = float(content["temperature"]), float(content["speaking"])
            if not 0 < temperature < math.inf:
                raise ValueError(f"temperature is {temperature}; a positive number is needed")
            about = (tuple(content["members"]), bool(content["mirror"]), dict(content["labels"]))
            return cls(*about, temperature, tuple(content["scans"]), speaking, curves, (before, after))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is damaged ({error}); make it anew with '{MADE_BY}'") from error


def calibrate(scans: Sequence[Scan], label_map: LabelMap, members: Sequence[str], *, mirror: bool) -> Calibration:
    """Learns from labelled scans what probabilities and agreement of members mean.

    Args:
        scans: one at least, none that a member which spoke was trained on.
        label_map: of the members.
        members: checksums of their weights.
        mirror: whether mirrors were averaged.

    Raises:
        ValueError: no scan.
    """
    if not scans:
        raise ValueError("no labelled scan to learn from; one at least is needed")
    probabilities = np.concatenate([scan.probabilities for scan in scans])
    classes = np.concatenate([scan.classes for scan in scans])
    temperature = fit_temperature(probabilities, classes)
    right = probabilities.argmax(axis=1) == classes
    certain = (probabilities.max(axis=1), with_temperature(probabilities, temperature).max(axis=1))
    ece = (calibration_error(certain[0], right), calibration_error(certain[1], right))
    curves = {}
    for name in label_map.structures:
        if (curve := _curve(scans, [name])) is not None:
            curves[name] = curve
    if len({person_of(scan.subject) for scan in scans if scan.dice}) >= FEWEST_PERSONS:
        together = _curve(scans, label_map.structures)
        curves |= {} if together is None else {ALL: together}
    speaking = float(np.mean([len(scan.speakers) for scan in scans]))
    subjects = tuple(scan.subject for scan in scans)
    return Calibration(tuple(members), mirror, label_map.to_dict(), temperature, subjects, speaking, curves, ece)


def _curve(scans: Sequence[Scan], names: Sequence[str]) -> Curve | None:
    """Returns the curve of some structures together."""
    points = [(scan, name) for scan in scans for name in names if name in scan.dice]
    return fit_curve(
        [scan.agreement[name] for scan, name in points],
        [scan.dice[name] for scan, name in points],
        [person_of(scan.subject) for scan, _ in points],
        [scan.speakers for scan, _ in points],
    )
