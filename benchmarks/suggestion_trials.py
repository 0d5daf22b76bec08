"""Does `suggest` beat equal distances? Many scans, a network trained on each, slices added either way.

    python benchmarks/suggestion_trials.py opinions --data DATA -o OUT --part judge
    python benchmarks/suggestion_trials.py slices -o OUT --part judge
    python benchmarks/suggestion_trials.py anew -o OUT --part judge [--only NAME ...]
    python benchmarks/suggestion_trials.py table -o OUT --part judge
    python benchmarks/suggestion_trials.py rules -o OUT --part judge

`opinions` writes each scan with five slices drawn, at equal distances, and trains a small network on them: by the
recipe of `mehrabi_latent`, as `fit --labels` does. `slices` asks `suggest` for three more, and takes three that make
the distances as even as can be; both sets are then interpolated. `anew` trains networks on both sets, too. `rules`
compares what `suggest` asks with its parts alone and with a perfect opinion. A call goes on with what is missing.

Parts. `judge`: every second muscle of the man of the Visible Human (left leg, 150 mm or longer, painted at 3 x 3 x 5 mm
as `ten_slices.py` does and cut to 25 mm around the muscle) and eight hippocampi. `develop`: every third muscle of the
woman and four other hippocampi; on these the rule was chosen, so their figures prove nothing.

Measured on the whole scan, and on the slices that neither way draws; of hippocampi, means of both parts.
"""

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from legs import PAINTED, make_body, world_edges  # the scripts beside this one
from ten_slices import draw, even, painted

from tfmuscle.disagreement import Opinion, choose_slices, probable_error, slice_disagreement
from tfmuscle.evaluation.label_curve import mean_interval
from tfmuscle.files import read_json
from tfmuscle.interpolation import expected_error, interpolate_slices
from tfmuscle.io import read_label_image, read_volume
from tfmuscle.io.label_tables import names_of
from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import LOWER_LIMB_MUSCLES, LabelMap
from tfmuscle.metrics import METRICS
from tfmuscle.volume import Volume
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.slices import SliceLabels, fit_slices
from tfmuscle.workflows.suggesting import suggest

PARTS = {
    "judge": ("VHM", 2, ("014", "015", "017", "019", "020", "023", "024", "025")),
    "develop": ("VHF", 3, ("004", "006", "007", "008")),
}
"""Part -> person, every so many muscles, and hippocampi."""
SPACING, SHORTEST_MM, DRAWN, MORE = (3.0, 3.0, 5.0), 150.0, 5, 3
NETWORK = {"model": "unet2d", "model_options": {"filters": 8}}
WAYS = ("even", "suggested")


def write_scans(data: Path, out: Path, part: str) -> None:
    """Writes the scans of a part that are not there yet, with `DRAWN` slices drawn."""
    person, every, hippocampi = PARTS[part]
    if not (out / "scans_made").exists():
        body = make_body(data / "visible_human", person).labels
        for muscle in long_muscles(body)[::every]:
            scan, truth = painted(body, muscle, SPACING, seed=0, narrow=True)
            start(out / muscle, scan, truth, LabelMap({1: muscle}), axis=2)
        names = names_of(data / f"hippocampus/labelsTr/hippocampus_{hippocampi[0]}.nii.gz")
        names = names or LabelMap({1: "anterior", 2: "posterior"})
        for number in hippocampi:
            name = f"hippocampus_{number}"
            scan, truth = (
                read_volume(data / f"hippocampus/imagesTr/{name}.nii.gz"),
                data / f"hippocampus/labelsTr/{name}.nii.gz",
            )
            start(out / name, scan, read_label_image(truth), names, axis=1)
        (out / "scans_made").touch()


def long_muscles(body: Volume) -> list[str]:
    """Returns the muscles of the left leg that are `SHORTEST_MM` long, by name."""
    found = []
    for muscle in sorted(LOWER_LIMB_MUSCLES):
        edges = world_edges(body, [PAINTED.id_of(f"{muscle}_left")])
        if edges[1, 2] - edges[0, 2] >= SHORTEST_MM:
            found.append(muscle)
    return found


def start(out: Path, scan: Volume, truth: Volume, label_map: LabelMap, *, axis: int) -> None:
    """Writes a scan with slices drawn at equal distances."""
    present = np.flatnonzero(np.moveaxis(truth.array, axis, 0).any(axis=(1, 2)))
    drawn = np.rint(np.linspace(present[0], present[-1], DRAWN)).astype(int).tolist()
    draw(out / "first", scan, truth, label_map, axis=axis, drawn=drawn)


def train(folder: Path, epochs: int, seed: int = 0) -> Path:
    """Trains on the drawn slices of `folder`, unless that was done; returns the labels of the whole scan."""
    labels, begun = folder / "run_labels/scan.nii.gz", time.process_time()
    if not labels.exists():
        asked = NETWORK | {"epochs": epochs, "seed": seed}
        config = plan_training(asked, recipe={}, preset="mehrabi_latent", scale="laptop")
        fit_slices(source_of(folder), folder / "run", config, resume=(folder / "run/train.json").exists())
        print(f"{folder}: {time.process_time() - begun:.0f} s of processor time", flush=True)
    return labels


def opinions(chosen: argparse.Namespace) -> None:
    """Makes the scans and trains a network on each."""
    write_scans(chosen.data, chosen.output / chosen.part, chosen.part)
    for folder in scans(chosen):
        train(folder / "first", chosen.epochs)


def scans(chosen: argparse.Namespace) -> list[Path]:
    """Returns the folders of the scans."""
    found = sorted(path.parent for path in (chosen.output / chosen.part).glob("*/first"))
    return [path for path in found if not chosen.only or path.name in chosen.only]


def source_of(folder: Path) -> SliceLabels:
    """Returns a scan and its drawn slices as `fit` and `suggest` take them."""
    axis = read_json(folder / "drawn.json")["axis"]
    return SliceLabels(folder / "scan.nii.gz", folder / "slices.nii.gz", folder / "dataset.json", axis)


def slices(chosen: argparse.Namespace) -> None:
    """Adds three slices to each scan either way, and measures what interpolation makes of them."""
    for folder in scans(chosen):
        first = folder / "first"
        if not (first / "run_labels/scan.nii.gz").exists() or (folder / "suggested/drawn.json").exists():
            continue
        about = read_json(first / "drawn.json")
        truth, scan = read_label_image(first / "truth.nii.gz"), read_volume(first / "scan.nii.gz")
        named = suggest(source_of(first), [first / "run"], first / "next", count=MORE).rows
        further = {"even": even(about["slices"], MORE), "suggested": [int(row["slice"]) for row in named]}
        for way in WAYS:
            drawn = sorted({*about["slices"], *further[way]})
            draw(folder / way, scan, truth, label_map_of(first), axis=about["axis"], drawn=drawn)


def anew(chosen: argparse.Namespace) -> None:
    """Trains a network on each of both sets."""
    for folder in scans(chosen):
        for way in WAYS:
            if (folder / way / "drawn.json").exists():
                train(folder / way, chosen.epochs)


def label_map_of(folder: Path) -> LabelMap:
    return LabelMap.from_dict(read_json(folder / "dataset.json")["labels"])


def table(chosen: argparse.Namespace) -> None:
    """Writes a row for every scan, and prints mean differences with 95 % intervals over scans."""
    rows = [row for folder in scans(chosen) if (folder / "suggested/drawn.json").exists() for row in measure(folder)]
    with (chosen.output / f"{chosen.part}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("| | scans | first | even | suggested | difference | 95 % interval | better | worse |\n" + "|---" * 9 + "|")
    for by in ("interpolation", "network"):
        for kind in ("muscle", "hippocampus", ""):
            some = [
                row
                for row in rows
                if row["by"] == by and row["scan"].startswith("hippocampus") >= (kind == "hippocampus")
            ]
            some = [row for row in some if kind != "muscle" or not row["scan"].startswith("hippocampus")]
            for what in ("whole", "undrawn"):
                print(summary(f"{by}, {kind or 'all'}, {what}", some, what))


def rules(chosen: argparse.Namespace) -> None:
    """Prints what each rule gains over even distances, by interpolation of the whole scan."""
    gained: dict[str, list[float]] = {}
    for folder in scans(chosen):
        truth, names = read_label_image(folder / "first/truth.nii.gz"), label_map_of(folder / "first")
        about = read_json(folder / "first/drawn.json")
        axis, drawn = about["axis"], about["slices"]
        few = LabelledSlices(axis, tuple(drawn), truth.spacing[axis])
        shapes = Opinion("shapes", interpolate_slices(truth, names, few), (drawn[0], drawn[-1]))
        network = Opinion("network", read_label_image(folder / "first/run_labels/scan.nii.gz"))
        differing, wrong = (
            slice_disagreement([shapes, other], names, axis).sum(axis=0) for other in (network, Opinion("truth", truth))
        )
        told = expected_error(truth, names, few).sum(axis=0)
        nothing, both = np.full_like(told, np.nan), probable_error(differing, told, drawn)
        own = probable_error(differing, nothing, drawn)
        scores = {"disagreement alone": differing, "less own mistakes": own, "slices left out alone": told}
        ways = {called: choose_slices(score, drawn, MORE) for called, score in (scores | {"both": both}).items()}
        ways |= {"the truth": choose_slices(wrong, drawn, MORE), "even": even(drawn, MORE)}
        for called, further in ways.items():
            filled = interpolate_slices(truth, names, replace(few, indices=tuple(sorted({*drawn, *further}))))
            gained.setdefault(called, []).append(dice(filled, truth, names))
    evenly = np.array(gained.pop("even"))
    for called, values in gained.items():
        more = values - evenly
        low, high = mean_interval(more.tolist())
        print(f"| {called} | {len(more)} | {more.mean():+.4f} | {low:+.4f} to {high:+.4f} | {np.mean(more > 0):.0%} |")


def summary(called: str, rows: list[dict[str, Any]], what: str) -> str:
    """Returns a row of the table."""
    if len(rows) < 2:
        return f"| {called} | {len(rows)} |"
    first, evenly, suggested = (np.array([row[f"{way}_{what}"] for row in rows]) for way in ("first", *WAYS))
    gained = suggested - evenly
    low, high = mean_interval(gained.tolist())
    means = " | ".join(f"{one.mean():.3f}" for one in (first, evenly, suggested))
    counts = f"{(gained > 0).sum()} | {(gained < 0).sum()}"
    return f"| {called} | {len(rows)} | {means} | {gained.mean():+.4f} | {low:+.4f} to {high:+.4f} | {counts} |"


def measure(folder: Path) -> list[dict[str, Any]]:
    """Returns Dice of a scan, by interpolation and, where they were trained, by networks."""
    truth, names = read_label_image(folder / "first/truth.nii.gz"), label_map_of(folder / "first")
    about = {way: read_json(folder / way / "drawn.json") for way in ("first", *WAYS)}
    axis, free = about["first"]["axis"], np.ones(truth.array.shape, bool)
    np.moveaxis(free, axis, 0)[sorted({index for one in about.values() for index in one["slices"]})] = False
    found: dict[str, dict[str, Any]] = {}
    for way, one in about.items():
        filled = interpolate_slices(truth, names, LabelledSlices(axis, tuple(one["slices"]), truth.spacing[axis]))
        labels, path = {"interpolation": filled}, folder / way / "run_labels/scan.nii.gz"
        if path.exists():
            labels["network"] = read_label_image(path)
        for by, volume in labels.items():
            row = found.setdefault(by, {"scan": folder.name, "by": by})
            row[f"{way}_slices"] = " ".join(str(index) for index in one["slices"])
            row[f"{way}_whole"], row[f"{way}_undrawn"] = dice(volume, truth, names), dice(volume, truth, names, free)
    return [row for row in found.values() if "suggested_whole" in row and "even_whole" in row]


def dice(found: Volume, truth: Volume, names: LabelMap, mask: np.ndarray | None = None) -> float:
    """Returns the mean over structures."""
    keys = [key for key in names.ids if key and (truth.array == key).any()]
    function = METRICS["dice"].function
    return float(np.mean([function(found.array == key, truth.array == key, mask=mask) for key in keys]))


def main() -> None:
    steps = {"opinions": opinions, "slices": slices, "anew": anew, "table": table, "rules": rules}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=steps)
    parser.add_argument("--data", type=Path, help="folder of visible_human and hippocampus")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, default="judge")
    parser.add_argument("--epochs", type=int, default=12, help="of 20 steps [%(default)s]")
    parser.add_argument("--only", nargs="*", help="names of scans")
    chosen = parser.parse_args()
    steps[chosen.step](chosen)


if __name__ == "__main__":
    main()
