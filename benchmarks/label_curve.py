"""A dataset in two: scans to pre-train on, whose labels nobody looks at, and labelled subjects for `label-curve`.

    python benchmarks/label_curve.py DATASET -o OUT --unlabelled 100 [--seed 0]

writes `OUT/unlabelled` (scans alone) and `OUT/labelled` (the other subjects with their labels). Who is where follows
from a hash of the name, whole persons (both legs) together, so that the same call gives the same parts anywhere. What
`label-curve` tests on is among the labelled ones, so no scan of the test was seen in pre-training.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, write_json
from tfmuscle.subjects import Dataset, Subject, read_dataset


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--unlabelled", type=int, required=True, help="persons to pre-train on")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    try:
        dataset = read_dataset(chosen.dataset)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    persons = sorted(
        {person(subject) for subject in dataset.subjects},
        key=lambda name: hashlib.sha256(f"label-curve/{chosen.seed}/{name}".encode()).digest(),
    )
    first = set(persons[: chosen.unlabelled])
    for part, labelled in (("unlabelled", False), ("labelled", True)):
        subjects = [subject for subject in dataset.subjects if (person(subject) in first) is not labelled]
        write_part(chosen.output / part, dataset, subjects, labelled=labelled)
        print(f"{chosen.output / part}: {len(subjects)} subjects")


if __name__ == "__main__":
    main()
