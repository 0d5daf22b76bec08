"""Would knowing where the labels are wrong beat equal distances? The rule of `suggest` with a perfect opinion.

    python benchmarks/suggested_slices.py --data FOLDER/visible_human [--drawn 5] [--more 3]

For every muscle of two real legs (VHM_Left, VHF_Left, at 2 x 2 x 5 mm, those of 20 slices or more): `--drawn` slices at
equal distances are drawn and the others interpolated. Then `--more` slices are added, either by `choose_slices` from
the area in which the interpolation differs from the truth, slice by slice, or so that distances stay as even as can
be, and all is interpolated again. No network can disagree with the interpolation in a more useful way than the truth
does, so the difference is the most that `suggest` can gain with this rule where shapes are interpolated.

The last row has no opinion at all: `expected_error`, what drawn slices that are left out tell.
"""

import argparse
from pathlib import Path

import numpy as np
from ten_slices import even  # the script beside this one

from tfmuscle.disagreement import choose_slices
from tfmuscle.evaluation.label_curve import mean_interval
from tfmuscle.interpolation import expected_error, interpolate_slices
from tfmuscle.io import read_label_image
from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.metrics import METRICS
from tfmuscle.volume import Volume

LEGS, STEP, MARGIN, FEWEST = ("VHM_Left", "VHF_Left"), (2, 2, 5), 4, 20
NAMES = LabelMap({1: "muscle"})


def muscle(leg: Volume, key: int) -> Volume:
    """Returns one structure alone, sampled every `STEP` voxels of 1 mm."""
    where = np.argwhere(leg.array == key)
    start = np.maximum(where.min(axis=0) - MARGIN, 0)
    stop = np.minimum(where.max(axis=0) + 1 + MARGIN, leg.array.shape)
    part = leg.cropped(tuple(map(int, start)), tuple(map(int, stop)))
    array = (part.array[tuple(slice(None, None, step) for step in STEP)] == key).astype(np.uint8)
    return Volume(array, part.geometry.resized(array.shape))


def filled(truth: Volume, drawn: list[int]) -> Volume:
    """Returns the interpolation from the slices in `drawn`."""
    return interpolate_slices(truth, NAMES, LabelledSlices(2, tuple(sorted(drawn)), truth.spacing[2]))


def dice(truth: Volume, drawn: list[int]) -> float:
    """Returns the 3D Dice of the interpolation from `drawn`."""
    return METRICS["dice"].function(filled(truth, drawn).array == 1, truth.array == 1)


def compare(truth: Volume, drawn: list[int], count: int) -> list[float]:
    """Returns Dice at first, with slices at even distances, suggested by the truth, and by the drawn slices alone."""
    wrong = (filled(truth, drawn).array != truth.array).sum(axis=(0, 1)).astype(float)
    wrong[: drawn[0]] = wrong[drawn[-1] + 1 :] = np.nan
    (told,) = expected_error(truth, NAMES, LabelledSlices(2, tuple(drawn), truth.spacing[2]))
    ways = ([], even(drawn, count), *(choose_slices(score, drawn, count) for score in (wrong, told)))
    return [dice(truth, [*drawn, *further]) for further in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of VHM_Left_labels_1mm.nii.gz and others")
    parser.add_argument("--drawn", type=int, default=5)
    parser.add_argument("--more", type=int, default=3)
    chosen = parser.parse_args()
    rows = []
    for name in LEGS:
        leg = read_label_image(chosen.data / f"{name}_labels_1mm.nii.gz")
        for key in filter(None, distinct(leg.array).tolist()):
            truth = muscle(leg, key)
            present = np.flatnonzero(truth.array.any(axis=(0, 1)))
            if len(present) >= FEWEST:
                drawn = np.rint(np.linspace(present[0], present[-1], chosen.drawn)).astype(int).tolist()
                rows.append(compare(truth, drawn, chosen.more))
    first, evenly, *others = np.transpose(rows)
    print(f"{len(rows)} structures: Dice {first.mean():.3f} from {chosen.drawn} slices; {evenly.mean():.3f} with")
    print(f"{chosen.more} more at even distances")
    for called, suggested in zip(("where the truth differs", "as drawn slices tell"), others, strict=True):
        gained = suggested - evenly
        low, high = mean_interval(gained.tolist())
        print(
            f"{called}: {suggested.mean():.3f}, {gained.mean():+.4f} ({low:+.4f} to {high:+.4f}), better on"
            f" {np.mean(gained > 0):.0%}, worse on {np.mean(gained < 0):.0%}"
        )


if __name__ == "__main__":
    main()
