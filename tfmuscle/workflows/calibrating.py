"""From trained networks and labelled scans to what their uncertainty means: `calibrate`.

The scans are those of the networks' dataset that some of them were not trained on: left out, validated on, or not
used. Of each scan only those networks speak that had not seen it; an ensemble needs two of them, so that there is
agreement to measure. That leaves:

* one run: its validation scans, and those it left out;
* runs that left the same fold out: this fold, of which all speak;
* a cross-validation of four folds or more: all its scans, of which two speak: the run that left the scan out, and the
  one that chose its epoch by it.

Scans of the test set have no part in it, so that they still tell the truth afterwards. Labels are cleaned as `predict`
does. What is learnt is `uncertainty.json` in the first folder given.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.folds import person_of
from tfmuscle.inference import Run
from tfmuscle.labels import LabelMap
from tfmuscle.measuring.shape import structure_boxes
from tfmuscle.metrics import dice
from tfmuscle.subjects import Subject, read_dataset
from tfmuscle.uncertainty import CALIBRATION_FILE, Calibration, Scan
from tfmuscle.uncertainty import calibrate as learn
from tfmuscle.uncertainty.curve import FEWEST
from tfmuscle.uncertainty.structures import scores_of
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.ensembles import Network, checksums
from tfmuscle.workflows.networks import PredictOptions, opened

VOXELS = 5000
"""Voxels of a scan whose probabilities are looked at."""
MARGIN_MM = 10.0
"""They lie in the box of all structures, with so much around it: far air would make every network look honest."""
UNSEEN = ("validation", "left_out", "unused")
"""Parts of a training that its network was not trained on and that are not the test set."""


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` did.

    Attributes:
        path: the file written.
        calibration: what is in it.
        scans: what was measured of each scan.
        failures: subject -> why it could not be used.
    """

    path: Path
    calibration: Calibration
    scans: tuple[Scan, ...]
    failures: Mapping[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row a structure: scans that show it, their Dice and agreement, and what is promised of it."""
        rows = []
        for name in LabelMap.from_dict(dict(self.calibration.labels)).structures:
            own = [(scan.dice[name], scan.agreement[name]) for scan in self.scans if name in scan.dice]
            values = np.array(own or [(math.nan, math.nan)])
            curve = self.calibration.curves.get(name)
            row = {"structure": name, "scans": str(len(own)), "mean Dice": f"{values[:, 0].mean():.3f}"}
            row |= {"mean agreement": f"{values[:, 1].mean():.3f}"}
            rows.append(row | {"flagged below": "–" if curve is None else f"{curve.expected(curve.level):.3f}"})
        return rows


def calibrate(
    run: str | Path | Sequence[str | Path],
    source: str | Path,
    *,
    mirror: bool = True,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Learns what the uncertainty of networks means, and keeps it in the first folder given.

    Args:
        run: as for `predict`: a run, several, or a folder of cross-validation.
        source: the dataset they were trained on.
        mirror: average over mirrored copies; `predict` must do likewise.
        options: prior, cleaning and engine.
        progress: called with (scans done, scans in all, subject).

    Raises:
        DataError: no run folders, another dataset, or no labelled scan that enough of them had not seen.
    """
    paths = [run] if isinstance(run, str | Path) else list(run)
    options = options or PredictOptions()
    network = opened(paths, dataclasses.replace(options, uncertainty=False))
    if not isinstance(network, Network):
        raise DataError(f"{paths[0]}: uncertainty is of run folders; give those that 'tfmuscle fit' wrote")
    speakers = _speakers(network.runs)
    subjects = _subjects(Path(source), network, speakers)
    scans, failures = [], {}
    for number, subject in enumerate(subjects):
        if progress is not None:
            progress(number, len(subjects), subject.subject_id)
        try:
            scans.append(measured(network, subject, speakers[subject.subject_id], mirror=mirror))
        except DataError as error:
            failures[subject.subject_id] = " ".join(str(error).split())
    if not scans:
        raise DataError(f"{source}: no scan could be used: {next(iter(failures.values()))}")
    if progress is not None:
        progress(len(subjects), len(subjects), "")
    label_map = network.runs[0].spec.label_map
    found = learn(scans, label_map, checksums(network.runs), mirror=mirror)
    path = Path(paths[0]) / CALIBRATION_FILE
    found.save(path)
    return CalibrationResult(path, found, tuple(scans), failures)


def _speakers(runs: Sequence[Run]) -> dict[str, tuple[Run, ...]]:
    """Returns subject -> runs that were not trained on its person, of those that are in no run's test set."""
    splits = [read_json(run.path / "split.json") for run in runs]
    tested = {subject for split in splits for subject in split.get("test", [])}
    seen = [{person_of(subject) for subject in split.get("train", [])} for split in splits]
    known = {subject for split in splits for part in UNSEEN for subject in split.get(part, [])}
    speakers = {
        subject: tuple(run for run, persons in zip(runs, seen, strict=True) if person_of(subject) not in persons)
        for subject in sorted(known - tested)
    }
    return {subject: some for subject, some in speakers.items() if len(some) >= min(2, len(runs))}


def _subjects(source: Path, network: Network, speakers: Mapping[str, Sequence[Run]]) -> list[Subject]:
    if not speakers:
        raise DataError(
            f"{network.folder}: every scan that is not of the test set was trained on by all {len(network.runs)}"
            " networks but one, or all; give a single run, or runs trained with --left-out, as those of 'tfmuscle"
            " cross-validate' from 4 folds on"
        )
    dataset = read_dataset(source)
    if dataset.name not in network.datasets() or dataset.channels != network.channels:
        raise DataError(
            f"{source}: is dataset {dataset.name!r}, the networks were trained on"
            f" {', '.join(map(repr, sorted(network.datasets())))}; give that one, it holds their validation scans"
        )
    found = {subject.subject_id: subject for subject in dataset.subjects if subject.labels is not None}
    if missing := [key for key in speakers if key not in found]:
        raise DataError(
            f"{source}: lacks {', '.join(missing[:5])} of the networks' {len(speakers)} validation scans, or their"
            " labels; give the dataset they were trained on"
        )
    return [found[key] for key in speakers]


def measured(network: Network, subject: Subject, runs: Sequence[Run], *, mirror: bool) -> Scan:
    """Returns what some runs of a network say of a labelled scan.

    Args:
        network: with cleaning, and what it looks at besides the scan.
        subject: labelled.
        runs: of the network, that speak.
        mirror: average over mirrored copies.

    Raises:
        DataError: image or labels cannot be read or do not fit.
    """
    label_map = network.runs[0].spec.label_map
    image, truth = subject.read(label_map)
    if truth is None:
        raise DataError(f"{subject.images[0]}: subject {subject.subject_id} has no labels; add a label file")
    speaking = dataclasses.replace(network, runs=tuple(runs), calibration=None)
    asked = voxels_to_ask(truth, label_map)
    found = speaking.uncertain(image, subject.subject_id, mirror=mirror, asked=asked)
    known = truth.array != (-1 if label_map.ignore is None else label_map.ignore)
    scores = scores_of(found.agreement, found.labels.array, label_map)
    agreement, dices = {}, {}
    for name in label_map.structures:
        mine, true = (volume.array == label_map.id_of(name) for volume in (found.labels, truth))
        if (mine & known).any() or true.any():
            agreement[name] = 0.0 if math.isnan(scores[name]) else scores[name]
            dices[name] = dice(mine, true, mask=known)
    speakers = tuple(str(run.path) for run in runs)
    return Scan(subject.subject_id, speakers, found.probabilities, found.classes, agreement, dices)


def voxels_to_ask(truth: Volume, label_map: LabelMap) -> np.ndarray:
    """Returns true class indices at up to `VOXELS` places, -1 at all others; the same places at every call."""
    asked = np.full(truth.geometry.shape, -1, np.int16)
    boxes = structure_boxes(truth.array, [key for key in label_map.ids if key]).values()
    reach = [math.ceil(MARGIN_MM / step) for step in truth.spacing]
    box = tuple(
        slice(
            max(min(one[side].start for one in boxes) - reach[side], 0),
            max(one[side].stop for one in boxes) + reach[side],
        )
        for side in range(3)
    )
    classes = label_map.encode(truth.array[box])
    places = np.flatnonzero(classes >= 0)
    if len(places) > VOXELS:
        places = np.random.default_rng(0).choice(places, VOXELS, replace=False)
    inside = np.full(classes.size, -1, np.int16)
    inside[places] = classes.ravel()[places]
    asked[box] = inside.reshape(classes.shape)
    return asked


def promises(calibration: Calibration) -> str:
    """Says in one line what was learnt."""
    before, after = calibration.ece
    words = f"{len(calibration.scans)} scans, temperature {calibration.temperature:.2f}"
    words += f" (calibration error of voxels {before:.4f}, then {after:.4f})"
    return words if calibration.curves else f"{words}; too few scans to promise a Dice, {FEWEST} are needed"
