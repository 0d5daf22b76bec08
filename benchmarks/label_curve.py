"""The data of a label curve: thigh phantoms, and a dataset in two.

    python benchmarks/label_curve.py thighs -o OUT [--subjects 124] [--seed 0]
    python benchmarks/label_curve.py split DATASET -o OUT --unlabelled 100 [--seed 0]

`thighs` writes left thighs of 64 x 64 x 16 voxels of 3.5 x 3.5 x 15 mm, twelve muscles and the femur. Both legs in 64
pixels would leave 6.6 mm to a pixel, and a muscle a few of them. Slices are those of the phantom, painted 15 mm apart.

`split` writes `OUT/unlabelled` (scans alone, to pre-train on) and `OUT/labelled` (the other subjects with their
labels). Who is where follows from a hash of the name, whole persons (both legs) together, so that the same call gives
the same parts anywhere. What `label-curve` tests on is among the labelled ones, so no scan of the test was seen in
pre-training.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import LabelMap, relabel
from tfmuscle.phantom import make_phantom
from tfmuscle.subjects import Dataset, Subject, read_dataset
from tfmuscle.volume import Geometry, Volume

SHAPE, SPACING = (64, 64, 16), (3.5, 3.5, 15.0)
SIDE = "_left"


def thigh(seed: int) -> tuple[Volume, Volume, LabelMap]:
    """Returns image, labels and names of one left thigh, in the middle of its view."""
    made = make_phantom("thigh", seed=seed, spacing=SPACING)
    ours = {key: name for key, name in made.label_map.names.items() if name.endswith(SIDE)}
    table = dict.fromkeys(made.label_map.names, 0) | {key: new for new, key in enumerate(ours, start=1)}
    labels = relabel(made.labels.array, table).astype(np.uint8)
    where = np.argwhere(labels)
    start = (where.min(axis=0) + where.max(axis=0) + 1 - np.array(SHAPE)) // 2
    start[2] = (labels.shape[2] - SHAPE[2]) // 2
    label_map = LabelMap({new: ours[key].removesuffix(SIDE) for new, key in enumerate(ours, start=1)})
    image = np.rint(made.image.array).astype(np.int16)
    return view(image, start, made.image.geometry), view(labels, start, made.image.geometry), label_map


def view(array: np.ndarray, start: np.ndarray, geometry: Geometry) -> Volume:
    """Returns `SHAPE` voxels from `start` on; what lies beyond the array is 0."""
    beyond = [
        (max(0, -first), max(0, first + size - edge))
        for first, size, edge in zip(start, SHAPE, array.shape, strict=True)
    ]
    padded = np.pad(array, beyond)
    where = tuple(slice(max(0, first), max(0, first) + size) for first, size in zip(start, SHAPE, strict=True))
    return Volume(padded[where], geometry.cropped(tuple(map(int, start)), SHAPE))


def write_thighs(chosen: argparse.Namespace) -> None:
    """Writes a dataset of thighs; seeds follow each other from that of the call."""
    with atomic_path(chosen.output) as folder:
        for number in range(chosen.subjects):
            image, labels, label_map = thigh(1000 * chosen.seed + number)
            (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
            (folder / "labelsTr").mkdir(exist_ok=True)
            write_volume(folder / f"imagesTr/thigh_{number:03d}_0000.nii.gz", image)
            write_volume(folder / f"labelsTr/thigh_{number:03d}.nii.gz", labels)
        about = {"name": "thighs", "labels": label_map.to_dict(), "file_ending": ".nii.gz"}
        write_json(folder / "dataset.json", about | {"channel_names": {"0": "t1"}, "numTraining": chosen.subjects})
    print(f"{chosen.output}: {chosen.subjects} thighs, {len(label_map.structures)} structures each")


def person(subject: Subject) -> str:
    """Returns the name without its side."""
    return subject.subject_id.removesuffix("_left").removesuffix("_right")


def write_part(out: Path, dataset: Dataset, subjects: list[Subject], *, labelled: bool) -> None:
    """Copies subjects into a dataset of their own."""
    with atomic_path(out) as folder:
        entries = {}
        for subject in subjects:
            names = [f"imagesTr/{subject.subject_id}_{number:04d}.nii.gz" for number in range(len(subject.images))]
            for name, path in zip(names, subject.images, strict=True):
                copy(path, folder / name)
            entry: dict[str, object] = {"images": names}
            if labelled:
                entry["label"] = f"labelsTr/{subject.subject_id}.nii.gz"
                copy(subject.labels, folder / f"labelsTr/{subject.subject_id}.nii.gz")
            entries[subject.subject_id] = entry
        about = {"name": f"{dataset.name}_{out.name}", "labels": dataset.label_map.to_dict(), "file_ending": ".nii.gz"}
        about |= {"channel_names": {str(number): name for number, name in enumerate(dataset.channels)}}
        write_json(folder / "dataset.json", about | {"numTraining": len(entries), "dataset": entries})


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def split(chosen: argparse.Namespace) -> None:
    """Writes both parts of a dataset."""
    dataset = read_dataset(chosen.dataset)
    persons = sorted(
        {person(subject) for subject in dataset.subjects},
        key=lambda name: hashlib.sha256(f"label-curve/{chosen.seed}/{name}".encode()).digest(),
    )
    first = set(persons[: chosen.unlabelled])
    for part, labelled in (("unlabelled", False), ("labelled", True)):
        subjects = [subject for subject in dataset.subjects if (person(subject) in first) is not labelled]
        write_part(chosen.output / part, dataset, subjects, labelled=labelled)
        print(f"{chosen.output / part}: {len(subjects)} subjects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    thighs = parts.add_parser("thighs")
    thighs.add_argument("--subjects", type=int, default=124)
    thighs.set_defaults(run=write_thighs)
    splitting = parts.add_parser("split")
    splitting.add_argument("dataset", type=Path)
    splitting.add_argument("--unlabelled", type=int, required=True, help="persons to pre-train on")
    splitting.set_defaults(run=split)
    for part in (thighs, splitting):
        part.add_argument("-o", "--output", type=Path, required=True)
        part.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    try:
        chosen.run(chosen)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
