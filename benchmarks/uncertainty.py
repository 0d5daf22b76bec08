"""How well uncertainty finds the worst cases: folds as members, one network in its mirrors, and what needs no network.

    python benchmarks/uncertainty.py train --data FOLDER/hippocampus -o OUT    # records and seven networks
    python benchmarks/uncertainty.py measure --data FOLDER/hippocampus -o OUT  # calibrates, labels 150 scans twice
    python benchmarks/uncertainty.py table -o OUT                              # figures of what `measure` wrote

150 of 200 persons are the test set and were seen by no training, epoch or calibration. The other 50 are five folds of
ten: network k leaves out fold k, chooses its epoch by fold k + 1 and is trained on the other thirty. Members are

* folds: these five. Of a calibration scan two of them speak, of a test scan all.
* seeds: network 3 and two more with its split and another seed. All three speak of twenty calibration scans.
* mirrors: network 0 alone in its eight mirrors; twenty calibration scans.

Every test scan is labelled as it is, and once more with one of six kinds of damage (`DAMAGE`, 25 scans each). A *case*
is a structure of a scan. The worst tenth of cases is taken within each structure, so that no structure is all of it;
areas under the curve and rank correlations are means of those within each structure.
Baselines that know nothing of networks: chance, and how far volume, length and shape of the labels are from those of
the 50 persons (the flag `population` of `tfmuscle measure`, by their reference labels).
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.ndimage
import scipy.stats

from tfmuscle.evaluation.reading import on_grid
from tfmuscle.files import read_json, write_json
from tfmuscle.measuring import measure_structures
from tfmuscle.measuring.population import FEATURES, limit, robust_z
from tfmuscle.metrics import dice
from tfmuscle.subjects import Subject, read_dataset
from tfmuscle.uncertainty import calibration_error, with_temperature
from tfmuscle.uncertainty.structures import scores_of
from tfmuscle.volume import Volume
from tfmuscle.workflows.calibrating import calibrate
from tfmuscle.workflows.data import plan_spec
from tfmuscle.workflows.ensembles import Network
from tfmuscle.workflows.learning import build_records, fit, plan_training
from tfmuscle.workflows.predict_options import PredictOptions

FOLDS, TEST = 5, 150
TRAINING = {
    "model_options": {"filters": 8, "levels": 3},
    "epochs": 20,
    "batch_size": 2,
}
SHARED, SEEDS = 3, (10, 11)
"""Network of the cross-validation whose split two more networks share, and their seeds."""
MEMBERS = ("folds", "seeds", "mirrors")
RESAMPLED = 1000
"""Draws of persons for an interval of the area under the curve."""


def train(chosen: argparse.Namespace) -> None:
    """Makes records and trains the folds."""
    settings = {"test": TEST, "folds": FOLDS, "seed": 0}
    spec = plan_spec(read_dataset(chosen.data), settings, preset="hippocampus", scale="laptop")
    build_records(chosen.data, chosen.out / "records", spec)
    for fold in range(FOLDS):
        settings = TRAINING | {"fold": (fold + 1) % FOLDS, "left_out": fold, "seed": fold}
        config = plan_training(settings, recipe={}, preset="hippocampus", scale="laptop")
        fit(chosen.out / "records", chosen.out / f"cv/fold_{fold}/run", config, resume=True)
    for seed in SEEDS:
        settings = TRAINING | {"fold": (SHARED + 1) % FOLDS, "left_out": SHARED, "seed": seed}
        config = plan_training(settings, recipe={}, preset="hippocampus", scale="laptop")
        fit(chosen.out / "records", chosen.out / f"seeds/{seed}/run", config, resume=True)


# --- damage -----------------------------------------------------------------------------------------------------------


def noisy(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return image + generator.normal(0, image.std(), image.shape).astype(np.float32)


def biased(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A coil's brightness: falls to a fifth from one corner to the other."""
    places = np.indices(image.shape[:3]) / np.array(image.shape[:3]).reshape(3, 1, 1, 1)
    field = np.exp(np.log(0.2) * np.tensordot(generator.dirichlet([1, 1, 1]), places, 1))
    return (image * field[..., np.newaxis]).astype(np.float32)


def inverted(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Another contrast: bright becomes dark."""
    return image.max() + image.min() - image


def thick(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Slices of 6 mm."""
    return scipy.ndimage.uniform_filter1d(image, 6, axis=1)


def striped(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A movement: a third of the lines of k-space comes from a place 8 voxels away."""
    moved, kept = np.fft.fftn(np.roll(image, 8, axis=1), axes=(0, 1, 2)), np.fft.fftn(image, axes=(0, 1, 2))
    lines = generator.random(image.shape[1]) < 1 / 3
    kept[:, lines] = moved[:, lines]
    return np.abs(np.fft.ifftn(kept, axes=(0, 1, 2))).astype(np.float32)


def cut_off(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A field of view that ends early: the hind two fifths have no signal."""
    cut = image.copy()
    cut[:, : int(0.4 * image.shape[1])] = image.min()
    return cut


DAMAGE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": noisy,
    "bias": biased,
    "contrast": inverted,
    "thick slices": thick,
    "movement": striped,
    "cut off": cut_off,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(chosen: argparse.Namespace) -> None:
    """Has every kind of members calibrated, labels the test scans by them and writes one row a case."""
    seeds = [chosen.out / f"seeds/{seed}/run" for seed in SEEDS]
    paths = {"folds": [chosen.out / "cv"], "seeds": [chosen.out / f"cv/fold_{SHARED}/run", *seeds]}
    paths |= {"mirrors": [chosen.out / "cv/fold_0/run"]}
    for name in chosen.members:
        measure_members(chosen, name, paths[name])


def measure_members(chosen: argparse.Namespace, name: str, paths: list[Path]) -> None:
    started, mirror = time.process_time(), name == "mirrors"
    result = calibrate(paths, chosen.data, mirror=mirror)
    network = Network.opened(paths, PredictOptions(uncertainty=True))
    seconds = f"{time.process_time() - started:.0f} s of processor"
    print(name, len(result.scans), result.calibration.temperature, result.calibration.ece, seconds, flush=True)
    dataset = {subject.subject_id: subject for subject in read_dataset(chosen.data).subjects}
    split = read_json(network.folder / "split.json")
    people = reference_measures([dataset[key] for part in ("train", "validation", "left_out") for key in split[part]])
    rows, voxels = [], []
    for number, key in enumerate(sorted(split["test"])):
        label_map = network.runs[0].spec.label_map
        image, truth = dataset[key].read(label_map)
        damage = list(DAMAGE)[number % len(DAMAGE)]
        damaged = image.with_array(DAMAGE[damage](image.array, np.random.default_rng(number)))
        for kind, scan in (("none", image), (damage, damaged)):
            cases, confidence = judged(network, scan, truth, key, mirror=mirror, people=people)
            rows += [{"subject": key, "damage": kind, "members": name} | case for case in cases]
            voxels.append({"damage": kind, "members": name} | confidence)
    write_rows(chosen.out / f"cases_{name}.csv", rows)
    seconds = time.process_time() - started
    write_json(chosen.out / f"voxels_{name}.json", {"scans": voxels, "processor_seconds": seconds})
    print(name, f"{seconds:.0f} s of processor", flush=True)


def judged(
    network: Network, scan: Volume, truth: Volume, key: str, *, mirror: bool, people: dict[str, dict[str, np.ndarray]]
) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Returns the cases of a scan, and how sure and how right its voxels are."""
    calibration, label_map = network.calibration, network.runs[0].spec.label_map
    asked = label_map.encode(truth.array).astype(np.int16)
    found = network.uncertain(scan, key, mirror=mirror, asked=asked)
    scores = scores_of(found.agreement, found.labels.array, label_map)
    honest = with_temperature(found.probabilities, calibration.temperature)
    right = found.probabilities.argmax(axis=1) == found.classes
    cases = []
    for number, name in enumerate(label_map.structures, start=1):
        mine, true = (volume.array == label_map.id_of(name) for volume in (found.labels, on_grid(truth, scan)))
        judgement = calibration.judge(name, scores[name])
        inside = honest.argmax(axis=1) == number
        total = float(inside.sum() + honest[:, number].sum())
        case = {"structure": name, "dice": dice(mine, true), "agreement": scores[name]}
        case |= {"expected": judgement.expected, "low": judgement.low, "high": judgement.high}
        case |= {"flagged": int(judgement.flagged), "soft_dice": 2 * float(honest[inside, number].sum()) / total}
        cases.append(case | distance(found.labels, label_map, name, people))
    bins = np.minimum((honest.max(axis=1) * 15).astype(int), 14)
    confidence = {"raw": calibration_error(found.probabilities.max(axis=1), right)}
    confidence |= {"with temperature": calibration_error(honest.max(axis=1), right)}
    sums = {"count": np.bincount(bins, minlength=15), "right": np.bincount(bins, right, 15)}
    sums |= {"said": np.bincount(bins, honest.max(axis=1), 15)}
    raw = np.minimum((found.probabilities.max(axis=1) * 15).astype(int), 14)
    sums |= {"raw_right": np.bincount(raw, right, 15)}
    sums |= {"raw_said": np.bincount(raw, found.probabilities.max(axis=1), 15)}
    return cases, confidence | {name: value.tolist() for name, value in sums.items()}


def reference_measures(subjects: list[Subject]) -> dict[str, dict[str, np.ndarray]]:
    """Returns structure -> feature -> values of the reference labels."""
    values: dict[str, dict[str, list[float]]] = {}
    label_map = read_dataset(subjects[0].images[0].parent.parent).label_map
    for subject in subjects:
        for one in measure_structures(subject.read_labels(label_map), label_map):
            for feature in FEATURES:
                values.setdefault(one.name, {}).setdefault(feature, []).append(float(one.row()[feature]))
    return {name: {key: np.array(some) for key, some in own.items()} for name, own in values.items()}


def distance(
    labels: Volume, label_map: object, name: str, people: dict[str, dict[str, np.ndarray]]
) -> dict[str, object]:
    """Returns the largest robust z of a structure, and whether the flag `population` would be raised."""
    only = labels.with_array(np.where(labels.array == label_map.id_of(name), labels.array, 0))
    if not only.array.any():
        return {"z": 99.0, "unusual": 1}
    (one,) = measure_structures(only, label_map)
    z = max(abs(robust_z(float(one.row()[feature]), values)) for feature, values in people[name].items())
    return {"z": z, "unusual": int(z > limit(len(people[name]["volume_ml"])))}


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# --- figures ----------------------------------------------------------------------------------------------------------


def table(chosen: argparse.Namespace) -> None:
    """Prints all tables as Markdown."""
    rows, scans = [], []
    for name in MEMBERS:
        with open(chosen.out / f"cases_{name}.csv", newline="") as file:
            rows += [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]
        scans += read_json(chosen.out / f"voxels_{name}.json")["scans"]
    structures = sorted({row["structure"] for row in rows})
    clean = {name: [row for row in rows if row["damage"] == "none" and row["members"] == name] for name in MEMBERS}
    limits = {
        (name, one): np.sort([row["dice"] for row in clean[name] if row["structure"] == one])[count // 10]
        for name in MEMBERS
        for one in structures
        for count in [sum(row["structure"] == one for row in clean[name])]
    }
    for row in rows:
        row["bad"] = row["dice"] < limits[row["members"], row["structure"]]
    print_dice(clean, structures, limits)
    print("\nWorst tenth of test scans as they are\n")
    print_finding(clean)
    print("\nDamaged scans; bad is what is below the limit of the worst tenth of undamaged ones\n")
    print_finding(
        {name: [row for row in rows if row["damage"] != "none" and row["members"] == name] for name in MEMBERS}
    )
    for name in MEMBERS:
        print(f"\nBy damage, {name}\n")
        print_damage([row for row in rows if row["members"] == name])
    print("\nVoxels\n")
    print_voxels(scans)


def number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text or None


def print_dice(clean: dict[str, list[dict]], structures: list[str], limits: dict[tuple[str, str], float]) -> None:
    print("| members | structure | mean Dice | sd | least | tenth |\n|---|---|---|---|---|---|")
    for name in MEMBERS:
        for one in structures:
            own = np.array([row["dice"] for row in clean[name] if row["structure"] == one])
            ends = f"{own.mean():.3f} | {own.std(ddof=1):.3f} | {own.min():.3f} | {limits[name, one]:.3f}"
            print(f"| {name} | {one} | {ends} |")


def print_finding(parts: dict[str, list[dict]]) -> None:
    """Prints how well each score finds bad cases and tells the Dice."""
    head = "score | AUROC (95 %) | bad in lowest tenth | flagged % | recall | precision | Spearman | mean error"
    print(f"| {head} | in interval % | its width |\n|{'---|' * 10}")
    ways = [
        ("folds, agreement", "folds", "expected", "agreement", "flagged"),
        ("seeds, agreement", "seeds", "expected", "agreement", "flagged"),
        ("mirrors, agreement", "mirrors", "expected", "agreement", "flagged"),
        ("folds, soft Dice", "folds", None, "soft_dice", None),
        ("seeds, soft Dice", "seeds", None, "soft_dice", None),
        ("mirrors, soft Dice", "mirrors", None, "soft_dice", None),
        ("far from other people (of folds)", "folds", None, "z", "unusual"),
    ]
    for title, members, expected, score, flag in ways:
        own = parts[members]
        bad, true = np.array([row["bad"] for row in own]), np.array([row["dice"] for row in own])
        value = np.array([row[score] if row[score] is not None else 0.0 for row in own], float)
        value = np.nan_to_num(-value if score == "z" else value)
        structures = np.array([row["structure"] for row in own])
        cells = [title, area_with_interval(bad, value, structures, [row["subject"] for row in own])]
        cells.append(f"{bad[lowest_tenth(value, own)].mean():.2f}")
        if flag is None:
            cells += ["", "", ""]
        else:
            flags = np.array([row[flag] == 1 for row in own])
            both = (flags & bad).sum()
            cells += [f"{100 * flags.mean():.0f}", f"{both / bad.sum():.2f}", f"{both / max(1, flags.sum()):.2f}"]
        parted = [structures == one for one in np.unique(structures)]
        cells.append(f"{np.mean([scipy.stats.spearmanr(value[part], true[part]).statistic for part in parted]):.2f}")
        if expected is None:
            cells += [f"{np.abs(value - true).mean():.3f}" if score == "soft_dice" else "", "", ""]
        else:
            known = [row for row in own if row["expected"] is not None]
            error = np.mean([abs(row["expected"] - row["dice"]) for row in known])
            held = np.mean([row["low"] <= row["dice"] <= row["high"] for row in known])
            width = np.mean([row["high"] - row["low"] for row in known])
            cells += [f"{error:.3f}", f"{100 * held:.0f}", f"{width:.2f}"]
        print("| " + " | ".join(cells) + " |")
    share = np.mean([row["bad"] for row in parts["folds"]])
    print(f"| chance | 0.50 | {share:.2f} | | | {share:.2f} | 0 | | | |")


def lowest_tenth(value: np.ndarray, rows: list[dict]) -> np.ndarray:
    """Returns the places of the lowest tenth of each structure: what is looked at first in a batch."""
    structures = np.array([row["structure"] for row in rows])
    chosen = []
    for one in np.unique(structures):
        places = np.flatnonzero(structures == one)
        chosen += places[np.argsort(value[places], kind="stable")[: len(places) // 10]].tolist()
    return np.array(chosen)


def area(bad: np.ndarray, value: np.ndarray) -> float:
    """Returns the chance that a bad case has a lower score than a good one; half for equal ones."""
    if bad.all() or not bad.any():
        return float("nan")
    ranks = scipy.stats.rankdata(-value)
    count = bad.sum()
    return float((ranks[bad].sum() - count * (count + 1) / 2) / (count * (~bad).sum()))


def area_with_interval(bad: np.ndarray, value: np.ndarray, structures: np.ndarray, subjects: list[str]) -> str:
    """Returns the mean area of structures and the middle 95 % of it when persons are drawn anew."""

    def mean_area(places: np.ndarray) -> float:
        parts = [places[structures[places] == one] for one in np.unique(structures)]
        return float(np.mean([area(bad[part], value[part]) for part in parts]))

    places: dict[str, list[int]] = {}
    for place, subject in enumerate(subjects):
        places.setdefault(subject, []).append(place)
    keys, generator, found = list(places), np.random.default_rng(0), []
    for _ in range(RESAMPLED):
        drawn = [place for pick in generator.integers(0, len(keys), len(keys)) for place in places[keys[pick]]]
        found.append(mean_area(np.array(drawn)))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return f"{mean_area(np.arange(len(bad))):.2f} ({low:.2f}–{high:.2f})"


def print_damage(rows: list[dict]) -> None:
    print("| damage | cases | Dice | expected | bad % | flagged % | recall | precision |\n|" + "---|" * 8)
    for damage in ("none", *DAMAGE):
        own = [row for row in rows if row["damage"] == damage]
        bad, flags = (np.array([bool(row[key]) for row in own]) for key in ("bad", "flagged"))
        both = (bad & flags).sum()
        expected = np.mean([row["expected"] for row in own if row["expected"] is not None])
        cells = [damage, str(len(own)), f"{np.mean([row['dice'] for row in own]):.2f}", f"{expected:.2f}"]
        cells += [f"{100 * bad.mean():.0f}", f"{100 * flags.mean():.0f}"]
        cells += [f"{both / bad.sum():.2f}" if bad.any() else "–", f"{both / flags.sum():.2f}" if flags.any() else "–"]
        print("| " + " | ".join(cells) + " |")


def print_voxels(scans: list[dict]) -> None:
    print("| members | scans | error of calibration, raw | with temperature | mean of scans, raw | with temperature |")
    print("|---|---|---|---|---|---|")
    for name in MEMBERS:
        for title, some in (("as they are", ("none",)), ("damaged", tuple(DAMAGE))):
            own = [scan for scan in scans if scan["members"] == name and scan["damage"] in some]
            total = sum(np.sum(scan["count"]) for scan in own)
            pooled = [
                np.abs(np.sum([scan[right] for scan in own], 0) - np.sum([scan[said] for scan in own], 0)).sum() / total
                for right, said in (("raw_right", "raw_said"), ("right", "said"))
            ]
            means = [np.mean([scan[key] for scan in own]) for key in ("raw", "with temperature")]
            print(f"| {name} | {title} | " + " | ".join(f"{value:.4f}" for value in (*pooled, *means)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (train, measure, table):
        command = commands.add_parser(function.__name__)
        command.add_argument("-o", "--out", type=Path, required=True)
        command.add_argument("--data", type=Path)
        command.add_argument("--members", nargs="+", choices=MEMBERS, default=MEMBERS)
        command.set_defaults(function=function)
    chosen = parser.parse_args()
    chosen.function(chosen)


if __name__ == "__main__":
    main()
