"""What each part of the latent network is worth on a scan with a few labelled slices.

    python benchmarks/ten_slices_ablation.py FOLDER [FOLDER ...] [--rows latent unet2d ...] [--seeds 1] [--epochs 20]

FOLDER is one that `ten_slices.py` made. Every row of `VARIANTS` is trained on its drawn slices by the reduced recipe of
`mehrabi_latent`, as `tfmuscle fit --labels --preset mehrabi_latent --scale laptop` and the options that the row changes
would; the whole scan is measured as `ten_slices.py table` does. Rows go to FOLDER/ablation.csv when they are there, and
a call goes on with what is missing.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from ten_slices import means  # the script beside this one

from tfmuscle.cli.slices import stack_settings
from tfmuscle.files import read_json
from tfmuscle.io import read_label_image
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.slices import SliceLabels, fit_slices

VARIANTS = {
    "latent": ({}, {}, None),
    "latent_off": ({"model_options": {"latent": 0}}, {}, None),
    "stack_1": ({}, {}, 1),
    "unet2d": ({"model": "unet2d", "model_options": {"filters": 8}}, {}, None),
    "unet2d_stack_1": ({"model": "unet2d", "model_options": {"filters": 8}}, {}, 1),
    "dice": ({}, {"loss": "dice"}, None),
    "cross_entropy": ({}, {"loss": "cross_entropy"}, None),
    "dice_cross_entropy": ({}, {"loss": "dice_cross_entropy"}, None),
}
"""Row -> settings of the training, of its method, and slices the network sees."""
COLUMNS = ("row", "seed", "epochs", "dice_3d", "undrawn_3d", "undrawn_2d", "distance_mm", "volume_error", "cpu_s")


def measured(folder: Path, labels: Path) -> list[float]:
    """Returns the five figures of a label file."""
    truth, about = read_label_image(folder / "truth.nii.gz"), read_json(folder / "drawn.json")
    free = np.ones(truth.array.shape, bool)
    np.moveaxis(free, about["axis"], 0)[about["slices"]] = False
    return means(read_label_image(labels), truth, free, about["axis"])


def train(folder: Path, row: str, seed: int, epochs: int) -> dict[str, object]:
    """Trains one row and returns its figures."""
    settings, recipe, stack = VARIANTS[row]
    begun, run = time.process_time(), folder / f"runs/{row}_{seed}_{epochs}"
    asked = settings | {"epochs": epochs, "seed": seed}
    config = plan_training(asked, recipe=recipe, preset="mehrabi_latent", scale="laptop")
    axis = read_json(folder / "drawn.json")["axis"]
    source = SliceLabels(folder / "scan.nii.gz", folder / "slices.nii.gz", axis=axis)
    going_on = (run / "train.json").exists()
    made = fit_slices(source, run, config, settings=stack_settings(stack), resume=going_on)
    found = [round(value, 4) for value in measured(folder, made.labels)]
    seconds = round(time.process_time() - begun)
    return dict(zip(COLUMNS, (row, seed, epochs, *found, seconds), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rows", nargs="*", choices=VARIANTS, default=["latent", "latent_off", "stack_1", "unet2d"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--epochs", type=int, default=20)
    chosen = parser.parse_args()
    for folder in chosen.folders:
        path, done = folder / "ablation.csv", set()
        if path.exists():
            with path.open() as file:
                done = {(line["row"], line["seed"], line["epochs"]) for line in csv.DictReader(file)}
        for seed in chosen.seeds:
            for row in chosen.rows:
                if (row, str(seed), str(chosen.epochs)) in done:
                    continue
                found = train(folder, row, seed, chosen.epochs)
                with path.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow(found)
                print(folder.name, *found.values(), flush=True)


if __name__ == "__main__":
    main()
