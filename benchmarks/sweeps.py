"""Ultrasound sweeps along the calves of two real people, with three muscles labelled.

    python benchmarks/sweeps.py --data FOLDER/visible_human -o OUT [--deformed 1] [--spacing 1.5 1.5 1.5] [--seed 0]

writes a dataset in nnU-Net's layout: `vhf_left_0`, `vhf_right_0`, `vhm_left_0`, the calves as they are, and `_1`, ...,
random deformations of each. Names, ids and axes are those of the ultrasound phantom (`tfmuscle phantom --kind
ultrasound`): axis 2 is the sweep, the beam runs along axis 1 from the back of the calf, and a right calf is mirrored
into a left one, so that what was learnt on phantoms can be tried here.

What is real and what is not. The anatomy is that of the Visible Human project, label volumes at 1 mm, from the lowest
voxel of soleus to the highest of gastrocnemius. The image is painted from the labels by the phantom's model of
ultrasound, bones and the other muscles of the leg included. Left and right of one woman are not independent, and
deformations are no further persons: there are two.
"""

import argparse
from pathlib import Path

import numpy as np
from legs import MIRROR, PAINTED, other_side, read_leg, transformed, world_edges  # the script beside this one

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import deform_labels, image_from_labels
from tfmuscle.preprocessing.grid import resample_labels
from tfmuscle.volume import Volume

LABELS = LabelMap({1: "soleus", 2: "gastrocnemius_medial_head", 3: "gastrocnemius_lateral_head"})
CALVES = {"vhf_left": ("VHF_Left", "left"), "vhf_right": ("VHF_Right", "right"), "vhm_left": ("VHM_Left", "left")}
MARGIN_MM = (22.0, 22.0, 0.0)
"""Around the calf: the thickest fat of the image model is 18 mm, then there is water."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of VHF_Left_labels_1mm.nii.gz and the others")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--deformed", type=int, default=1, help="further sweeps of each calf [%(default)s]")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 1.5, 1.5), metavar=("X", "Y", "Z"), help="mm")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same voxels [%(default)s]")
    options = parser.parse_args(arguments)
    if min(options.deformed, options.seed) < 0 or not all(0 < size < np.inf for size in options.spacing):
        parser.error("--deformed and --seed are 0 or more, --spacing is three positive numbers in mm")
    try:
        make_dataset(options)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None


def make_dataset(options: argparse.Namespace) -> None:
    """Writes all sweeps, then `dataset.json`."""
    settings = {"spacing": list(options.spacing), "seed": options.seed, "deformed": options.deformed}
    about = options.output / "dataset.json"
    if options.output.exists() and any(options.output.iterdir()):
        if not about.exists() or read_json(about).get("made_with") != settings:
            raise DataError(f"{options.output}: holds other files; name another folder")
        print(f"{options.output}: is there already")
        return
    for number, (name, (leg, side)) in enumerate(CALVES.items()):
        calf = read_calf(options.data, leg, side)
        for version in range(options.deformed + 1):
            random = np.random.default_rng([options.seed, number, version])
            image, labels = make_sweep(calf, tuple(options.spacing), random, is_deformed=version > 0)
            write_volume(options.output / "imagesTr" / f"{name}_{version}_0000.nii.gz", image)
            write_volume(options.output / "labelsTr" / f"{name}_{version}.nii.gz", labels)
            print(f"{name}_{version}: {' x '.join(map(str, labels.geometry.shape))} voxels", flush=True)
    write_json(about, _dataset_json(options.output, settings))


def read_calf(data: Path, name: str, side: str) -> Volume:
    """Reads a leg as a left one and cuts it to the length of its calf muscles; ids of `legs.PAINTED`."""
    leg = read_leg(data, name, side)
    if side == "right":
        leg = transformed(other_side(leg), MIRROR).reoriented("RAS")
    muscles = [PAINTED.id_of(f"{structure}_left") for structure in LABELS.structures]
    edges = world_edges(leg, muscles)
    start, stop = np.zeros(3, int), np.array(leg.geometry.shape)
    start[2], stop[2] = np.rint(np.sort(leg.geometry.index(edges)[:, 2]) + 0.5)
    slab = leg.array[:, :, start[2] : stop[2]]
    return Volume(slab, leg.geometry.cropped(tuple(start.tolist()), slab.shape), leg.source)


def make_sweep(
    calf: Volume, spacing: tuple[float, ...], random: np.random.Generator, *, is_deformed: bool
) -> tuple[Volume, Volume]:
    """Returns the image, uint8, and labels of a calf, or of a random relative of it."""
    deform_seed, image_seed = (int(seed) for seed in random.integers(1 << 31, size=2))
    fine = deform_labels(calf, seed=deform_seed) if is_deformed else calf
    edges = world_edges(fine)
    start = np.floor(fine.geometry.index(edges[0] - MARGIN_MM)).astype(int)
    stop = np.ceil(fine.geometry.index(edges[1] + MARGIN_MM)).astype(int)
    start[2], stop[2] = 0, fine.geometry.shape[2]
    grid = fine.geometry.cropped(tuple(start.tolist()), tuple((stop - start).tolist())).resampled(spacing)
    shown = resample_labels(fine, grid)
    image = image_from_labels(shown, PAINTED, contrast="ultrasound", seed=image_seed)
    answer = np.zeros(max(PAINTED.ids) + 256, np.uint8)
    for key, structure in LABELS.names.items():
        if key:
            answer[PAINTED.id_of(f"{structure}_left")] = key
    return image.with_array(np.rint(image.array).astype(np.uint8)), shown.with_array(answer[shown.array])


def _dataset_json(folder: Path, settings: dict) -> dict:
    return {
        "name": "visible_human_calves",
        "description": "ultrasound simulated from labels of the Visible Human; no patient",
        "licence": "CC BY 4.0 (muscles, tibia, fibula, patella), zlib (femur, hip bone); altered",
        "reference": "Andreassen et al. 2022, doi 10.1038/s41597-022-01905-2; BMFToolkit, Sreenivasa et al.",
        "channel_names": {"0": "B-mode"},
        "labels": LABELS.to_dict(),
        "numTraining": len(list((folder / "labelsTr").glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
        "made_with": settings,
    }


if __name__ == "__main__":
    main()
