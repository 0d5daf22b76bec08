"""A dataset in which only the slices are labelled that weak supervision of IFSS-Net draws, for networks that segment.

    python benchmarks/propagation_weak.py DATASET WHOLE -o OUT [--sweep 400] [--fold 0]

WHOLE are records of whole scans of DATASET (`build-records --preset ifss_net`), which say who trains. In the labels of
those subjects all slices but the drawn ones get the ignore id; everybody else's stay. A `seg_net_fs` trained on that
has seen what a weakly supervised `ifss_net` may see, and is what it starts from (`fit --from`).
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from tfmuscle.config import Propagation, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.metrics import slice_axis
from tfmuscle.records import load_spec, read_index
from tfmuscle.subjects import read_dataset
from tfmuscle.training.annotation import drawn_slices
from tfmuscle.training.supervised import split_of

IGNORE_ID = 255


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("records", type=Path, metavar="WHOLE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sweep", type=int, default=400, help="as in --propagation sweep [400]")
    parser.add_argument("--fold", type=int, default=0)
    options = parser.parse_args(arguments)
    spec = load_spec(options.records)
    split = split_of(read_index(options.records), spec, TrainConfig(fold=options.fold))
    dataset, settings = read_dataset(options.dataset), Propagation(sweep=options.sweep)
    if options.output.exists():
        raise SystemExit(f"error: {options.output}: is there already; name another folder")
    try:
        shutil.copytree(options.dataset, options.output)
        for subject in dataset.subjects:
            if subject.subject_id in split["train"]:
                truth = read_label_image(subject.labels)
                order = sorted(split["train"]).index(subject.subject_id)
                path = options.output / subject.labels.relative_to(options.dataset)
                print(f"{subject.subject_id}: {hide(truth, path, order, settings)} slices drawn")
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    about = read_json(options.dataset / "dataset.json")
    write_json(options.output / "dataset.json", about | {"labels": about["labels"] | {"ignore": IGNORE_ID}})


def hide(truth, path: Path, order: int, settings: Propagation) -> int:
    """Writes labels that are silent about all slices but the drawn ones; returns how many those are."""
    array = truth.array.astype(np.uint8)
    slices = np.moveaxis(array, slice_axis(truth.geometry), 0)
    drawn = drawn_slices(len(slices), order, settings)
    slices[~drawn] = IGNORE_ID
    write_volume(path, truth.with_array(array))
    return int(drawn.sum())


if __name__ == "__main__":
    main()
