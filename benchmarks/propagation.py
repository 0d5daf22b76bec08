"""Ways to label sweeps of which a few slices are drawn, under the same protocols, in one table.

    python benchmarks/propagation.py -d DATASET -o OUT [--subjects ID ...] [--protocols start every100 share3]
        [--methods interpolate grow watershed registration] [--carry NAME=RUN[,RUN...] ...] [--segment NAME=RUN ...]
        [--structures NAME ...] [--every 100] [--shown 1] [--largest]

`--methods` and `--carry` (runs of `fit --preset ifss_net`, several where each learned muscles of its own) label every
sweep with `tfmuscle propagate` from the slices that a protocol draws; `--segment` (ordinary runs) labels it with
`tfmuscle predict` from none, and stands beside them. Then `tfmuscle evaluate` measures, and `tfmuscle sweep-tables`
compares. What is there stays on a rerun, so that more methods can be added to a folder; a table is made of all that is
asked for.

    OUT/<protocol>/                          a dataset whose labels have the ignore id on the drawn slices
    OUT/<protocol>/drawn/<subject>.nii.gz    the labels of those slices alone
    OUT/<protocol>/methods/<name>/made, /labels, /evaluation
    OUT/tables/
    OUT/intervals.csv                        how many volumes lie in the interval that `propagate` gives

With `--largest` a second table, `OUT/tables_largest`, has the same labels of every way, of which only the largest piece
of each structure is kept: islands make Hausdorff distances large, and removing them is no matter of the network.

Protocols.

* `start`: three slices in a row. The published sweeps begin with them; here they lie where the muscles are all seen
  best, because a sweep begins where some of them do not exist: the three slices on which the smallest share of any
  muscle's largest area is largest. Masks are carried from there to both ends.
* `every100`: the published "three in every 100" is 14 places along a sweep of 1400 slices, each 0.2 % of it. A sweep of
  N slices has as many places (`--every` 100 of `--sweep` 1400), evenly spread from the first to the last slice with a
  muscle, and at each max(1, 3 N / 1400) slices in a row: the muscles change as much between two of them as there. The
  share of drawn slices is then larger (14 of 80 slices are 18 %).
* `share3`: the other reading. 3 % of the slices, three at least, one by one, evenly spread.

No leak. The slices that were drawn are known to a method, and a protocol that draws them all measures nothing: they
have the ignore id in the references, so that no figure looks at them, and where less than half of the slices with a
muscle are left, the protocol is refused. (The released evaluation of IFSS-Net can be fed the truth at every window.)
"""

import argparse
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, provenance, read_json, write_json
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import slice_axis
from tfmuscle.postprocessing import Cleaning, clean
from tfmuscle.subjects import Dataset, Subject, read_dataset

IGNORE_ID = 255
PROTOCOLS = ("start", "every100", "share3")
METHODS = ("interpolate", "grow", "watershed", "registration")
STARTING = 3
"""Slices that the published networks start from."""
LEAST_LEFT = 0.5
"""Share of the slices with a muscle that must be left to be measured."""


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    try:
        dataset = read_dataset(options.dataset)
        subjects = [
            subject for subject in dataset.subjects if not options.subjects or subject.subject_id in options.subjects
        ]
        if missing := set(options.subjects) - {subject.subject_id for subject in subjects}:
            raise DataError(f"{options.dataset}: holds no {', '.join(sorted(missing))}; check the names")
        names = options.structures or list(dataset.label_map.structures)
        label_map = LabelMap({dataset.label_map.id_of(name): name for name in names}, ignore=IGNORE_ID)
        for protocol in options.protocols:
            prepare(protocol, dataset, subjects, label_map, options)
            for name, words in _ways(options).items():
                run_way(options.output / protocol, name, words, options, [subject.subject_id for subject in subjects])
        tabulate(options)
        count_intervals(options, subjects, label_map)
        if options.largest:
            tabulate_largest(options, label_map, [subject.subject_id for subject in subjects])
    except (DataError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", "--dataset", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", nargs="*", default=[], help="test subjects [all]")
    parser.add_argument("--structures", nargs="*", default=[], help="structures to label [all]")
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["start", "every100"])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--carry", nargs="*", default=[], metavar="NAME=RUN", help="networks that carry masks")
    parser.add_argument("--segment", nargs="*", default=[], metavar="NAME=RUN", help="networks that segment")
    parser.add_argument("--every", type=int, default=100, help="protocol every100: slices from place to place [100]")
    parser.add_argument("--sweep", type=int, default=1400, help="length of the sweeps that --every is meant for [1400]")
    parser.add_argument("--part", default="test", help="what the subjects are, for the tables [test]")
    parser.add_argument("--shown", type=int, default=1, help="subjects with curves and surfaces [1]")
    parser.add_argument("--largest", action="store_true", help="a second table, of the largest piece of each structure")
    options = parser.parse_args(arguments)
    if wrong := [word for word in (*options.carry, *options.segment) if "=" not in word]:
        parser.error(f"{wrong[0]!r} is not NAME=RUN")
    return options


def starting_slices(labels: np.ndarray, ids: Iterable[int]) -> list[int]:
    """Returns three slices in a row of `(N, H, W)` ids, those on which all structures are seen best."""
    areas = np.array([[np.count_nonzero(plane == key) for plane in labels] for key in ids], dtype=float)
    areas = areas[areas.any(axis=1)]
    shares = (areas / areas.max(axis=1, keepdims=True)).min(axis=0)
    if not shares.any():
        raise ValueError("no slice shows all structures; leave some out with --structures")
    middle = int(np.clip(shares.argmax(), 1, len(labels) - 2))
    return list(range(middle - 1, middle + 2))


def drawn_slices(
    protocol: str, labels: np.ndarray, ids: Iterable[int], *, every: int = 100, sweep: int = 1400
) -> list[int]:
    """Returns the slices of `(N, H, W)` ids that a protocol draws.

    >>> blocks = np.ones((80, 1, 1), int)
    >>> drawn_slices("every100", blocks, [1])
    [0, 6, 12, 18, 24, 30, 36, 43, 49, 55, 61, 67, 73, 79]
    >>> drawn_slices("share3", blocks, [1])
    [0, 40, 79]
    """
    ids = list(ids)
    present = np.flatnonzero(np.isin(labels, ids).any(axis=(1, 2)))
    if protocol == "start":
        drawn = starting_slices(labels, ids)
    else:
        first, last = int(present[0]), int(present[-1])
        places = max(3, round(0.03 * len(labels))) if protocol == "share3" else max(2, sweep // every)
        run = max(1, round(STARTING * len(labels) / sweep)) if protocol == "every100" else 1
        begins = np.rint(np.linspace(first, last - run + 1, places)).astype(int)
        drawn = sorted({int(begin) + offset for begin in begins for offset in range(run)})
    left = len(set(present.tolist()) - set(drawn)) / len(present)
    if left < LEAST_LEFT:
        raise ValueError(
            f"{protocol} draws {len(drawn)} of {len(labels)} slices; {left:.0%} of those with a structure are left to"
            f" be measured, {LEAST_LEFT:.0%} are needed: a method must not be fed what it is measured on"
        )
    return drawn


def prepare(
    protocol: str, dataset: Dataset, subjects: list[Subject], label_map: LabelMap, options: argparse.Namespace
) -> None:
    """Writes the drawn slices of every subject, and references that are silent about them."""
    folder = options.output / protocol
    settings = {"every": options.every, "sweep": options.sweep, "dataset": dataset.name, "labels": label_map.to_dict()}
    note = folder / "protocol.json"
    if note.exists() and (before := read_json(note))["settings"] != settings:
        raise DataError(f"{folder}: was made with {before['settings']}, not with {settings}; name another folder")
    drawn: dict[str, list[int]] = read_json(note)["drawn"] if note.exists() else {}
    for subject in subjects:
        if subject.subject_id in drawn:
            continue
        truth = read_label_image(subject.labels)
        axis = slice_axis(truth.geometry)
        array = np.where(np.isin(truth.array, label_map.ids[1:]), truth.array, 0).astype(np.uint8)
        planes = np.moveaxis(array, axis, 0)
        slices = drawn_slices(protocol, planes, label_map.ids[1:], every=options.every, sweep=options.sweep)
        few, silent = np.zeros_like(array), array.copy()
        np.moveaxis(few, axis, 0)[slices] = planes[slices]
        np.moveaxis(silent, axis, 0)[slices] = IGNORE_ID
        name = f"{subject.subject_id}.nii.gz"
        write_volume(folder / "drawn" / name, truth.with_array(few))
        write_volume(folder / "labelsTr" / name, truth.with_array(silent))
        image = folder / "imagesTr" / f"{subject.subject_id}_0000.nii.gz"
        image.parent.mkdir(exist_ok=True)
        shutil.copy(subject.images[0], image)
        drawn[subject.subject_id] = slices
        print(f"{protocol} {subject.subject_id}: {len(slices)} of {len(planes)} slices drawn: {slices}", flush=True)
    about = {"name": dataset.name, "channel_names": dict(enumerate(dataset.channels)), "file_ending": ".nii.gz"}
    count = len(list((folder / "labelsTr").glob("*.nii.gz")))
    write_json(folder / "dataset.json", about | {"labels": label_map.to_dict(), "numTraining": count})
    names = {key: value for key, value in label_map.to_dict().items() if value != IGNORE_ID}
    write_json(folder / "drawn" / "dataset.json", {"labels": names})
    write_json(note, {"settings": settings, "drawn": drawn})


def _ways(options: argparse.Namespace) -> dict[str, list[str]]:
    """Returns name -> the words that make a command of it."""
    ways = {name: ["propagate", "--method", name] for name in options.methods}
    for word in options.carry:
        name, _, runs = word.partition("=")
        ways[name] = ["propagate", *(part for run in runs.split(",") for part in ("-m", run))]
    return ways | {word.partition("=")[0]: ["predict", "-m", word.partition("=")[2]] for word in options.segment}


def run_way(folder: Path, name: str, words: list[str], options: argparse.Namespace, subjects: list[str]) -> None:
    """Labels what has no labels yet, and evaluates if anything is new."""
    own = folder / "methods" / name
    note_path = own / "labels" / "predictions.json"
    note: dict[str, Any] = read_json(note_path) if note_path.exists() else {"seconds": {}, "subjects": []}
    fresh = False
    for subject in subjects:
        path = own / "labels" / f"{subject}.nii.gz"
        if path.exists():
            continue
        twins = [
            other / "methods" / name / "labels" / path.name for other in folder.parent.iterdir() if other != folder
        ]
        if words[0] == "predict" and (same := [twin for twin in twins if twin.exists()]):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(same[0].parent, path.parent, dirs_exist_ok=True)  # it is drawn from no slice
            note = read_json(note_path)
            continue
        scan = folder / "imagesTr" / f"{subject}_0000.nii.gz"
        more = ["-a", str(folder / "drawn" / f"{subject}.nii.gz")] if words[0] == "propagate" else []
        made = own / "made" / path.name  # beside it are pictures, which are no labels
        started = time.monotonic()
        call([*words, "-i", str(scan), *more, "-o", str(made)])
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, path)
        note["seconds"][subject] = round(time.monotonic() - started, 2)
        note["subjects"] = sorted({*note["subjects"], subject})
        fresh = True
        write_json(note_path, note | _about(folder, name, words, options))
        print(f"{folder.name} {name} {subject}: {note['seconds'][subject]:.1f} s", flush=True)
    if fresh or not (own / "evaluation" / "metrics.json").exists():
        call(["evaluate", "-i", str(own / "labels"), "-r", str(folder), "-o", str(own / "evaluation")])


def _about(folder: Path, name: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Returns what tables must know of a way, in the form of `predict`."""
    data = read_json(folder / "dataset.json")
    note = {"labels": data["labels"], "dataset": data["name"], "part": options.part, "model": name}
    if words[1] == "-m":
        runs = [Path(word) for word in words[2::2]]
        config, *_ = (read_json(run / "train.json") if (run / "train.json").exists() else {} for run in runs)
        about = [read_json(run / "about.json") if (run / "about.json").exists() else {} for run in runs]
        made = about[0] | {"seconds": sum(one.get("seconds") or 0 for one in about) or None}
        note |= {key: config.get(key) for key in ("model", "preset", "seed", "fold", "scale")}
        note |= {"epochs": made.get("epochs"), "trained_on": made.get("hardware")}
        note |= {"training_seconds": made.get("seconds")}
    return note | {"made_with": provenance()}


def call(words: list[str]) -> None:
    """Runs a command of tfmuscle in this process.

    Raises:
        DataError: it failed.
    """
    try:
        tfmuscle_group.main(words, standalone_mode=False)
    except SystemExit as end:
        if end.code:
            raise DataError(f"tfmuscle {' '.join(words)}: failed, see above") from end


def tabulate_largest(options: argparse.Namespace, label_map: LabelMap, subjects: list[str]) -> None:
    """Compares the largest piece of each structure, of all ways under all protocols."""
    names = LabelMap({label_map.id_of(name): name for name in label_map.structures})
    words = ["sweep-tables", "-o", str(options.output / "tables_largest"), "--shown", "0"]
    for protocol in options.protocols:
        for name in _ways(options):
            folder, own = options.output / protocol, options.output / protocol / "methods" / name
            labels, evaluation = own / "largest" / "labels", own / "largest" / "evaluation"
            labels.mkdir(parents=True, exist_ok=True)
            for subject in subjects:
                made = read_label_image(own / "labels" / f"{subject}.nii.gz")
                cleaned = clean(made, Cleaning(largest=names.structures), names)
                write_volume(labels / f"{subject}.nii.gz", cleaned)
            shutil.copy(own / "labels" / "predictions.json", labels)
            call(["evaluate", "-i", str(labels), "-r", str(folder), "-o", str(evaluation)])
            words += ["-i", f"{name}/{protocol}={evaluation}"]
    call(words)


def count_intervals(options: argparse.Namespace, subjects: list[Subject], label_map: LabelMap) -> None:
    """Writes and prints how many true volumes lie in the interval that a propagation gives, and how wide those are."""
    truths = {subject.subject_id: read_label_image(subject.labels) for subject in subjects}
    rows = ["protocol,way,structure,volumes,inside,median_half_width_percent"]
    for protocol in options.protocols:
        for name, words in _ways(options).items():
            if words[0] != "propagate":
                continue
            made = options.output / protocol / "methods" / name / "made"
            said = {key: read_json(made / f"{key}.json")["volumes_ml"] for key in truths}
            for structure in label_map.structures:
                inside, widths = 0, []
                for key, truth in truths.items():
                    voxels = np.count_nonzero(truth.array == label_map.id_of(structure))
                    volume, range_ml = voxels * truth.geometry.voxel_volume_ml, said[key][structure]
                    inside += range_ml["low"] <= volume <= range_ml["high"]
                    widths.append((range_ml["high"] - range_ml["low"]) / 2 / volume)
                rows.append(f"{protocol},{name},{structure},{len(truths)},{inside},{100 * np.median(widths):.1f}")
    print("\n".join(rows))
    with atomic_path(options.output / "intervals.csv") as temporary:
        temporary.write_text("\n".join(rows) + "\n")


def tabulate(options: argparse.Namespace) -> None:
    """Compares all ways under all protocols, in one table."""
    words = ["sweep-tables", "-o", str(options.output / "tables"), "--shown", str(options.shown)]
    for protocol in options.protocols:
        for name in _ways(options):
            own = options.output / protocol / "methods" / name
            words += ["-i", f"{name}/{protocol}={own / 'evaluation'}"]
    call(words)
    for protocol in options.protocols if options.shown else ():
        folder = options.output / protocol
        words = ["sweep-tables", "-o", str(options.output / f"tables_{protocol}"), "--shown", str(options.shown)]
        for name in _ways(options):
            own = folder / "methods" / name
            words += ["-i", f"{name}={own / 'evaluation'}", "-p", f"{name}={own / 'labels'}"]
        call([*words, "-r", str(folder / "labelsTr")])


if __name__ == "__main__":
    main()
