"""Ten labelled slices of one scan: the latent network against a plain U-Net and interpolation between the slices.

    python benchmarks/ten_slices.py simulate --data FOLDER/visible_human -o OUT [--muscle NAME] [--spacing 1 1 5]
    python benchmarks/ten_slices.py take --scan FILE --labels FILE -o OUT [--slices 10] [--axis 2] [--structure NAME]
    python benchmarks/ten_slices.py more FOLDER -o OUT [--count 3] [--suggested NEXT/suggested.csv]
    python benchmarks/ten_slices.py table OUT [RUN_labels/scan.nii.gz ...] [--besides OTHER]

`simulate` writes one scan of the left leg of the Visible Human man (`scan.nii.gz`), cut to the muscle and `FIELD_MM`
beyond both its ends, its labels (`truth.nii.gz`), and those of ten slices at equal distances from the muscle's first
slice to its last (`slices.nii.gz`), all others empty. The anatomy is real; the image is painted from the labels by the
phantom's intensity model (`legs.py`), in which all muscles look alike but for their borders. `take` does the same with
a real scan whose slices are all labelled.

`more` draws further slices of such a scan: those that `tfmuscle suggest` named, or, to compare with, those that make
the distances even. `table --besides OTHER` leaves slices drawn in either folder out of what nobody drew.

`table` measures label files of whole scans against the truth, as means over the structures: 3D Dice of the whole scan;
3D and mean 2D Dice of the slices that nobody drew; the distance between the surfaces; the error of the volume. The rows
called interpolation are made here: from all drawn slices, and from those of them that networks train on.
"""

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
from legs import FIELD_MM, PAINTED, make_body, world_edges  # the script beside this one

from tfmuscle.files import read_json, write_json
from tfmuscle.interpolation import interpolate_slices
from tfmuscle.io import read_label_image, read_volume, write_volume
from tfmuscle.io.label_tables import names_of, read_label_table
from tfmuscle.labelled_slices import find_slices, only
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.metrics import METRICS, surface_distances
from tfmuscle.phantom import image_from_labels
from tfmuscle.preprocessing.grid import resample_labels
from tfmuscle.volume import Volume

IGNORE = 255


def simulate(chosen: argparse.Namespace) -> None:
    """Writes scan, truth and slices of one muscle."""
    scan, truth = painted(make_body(chosen.data, "VHM").labels, chosen.muscle, chosen.spacing, chosen.seed)
    write(chosen, scan, truth, LabelMap({1: chosen.muscle}), axis=2)


def painted(
    body: Volume, muscle: str, spacing: tuple[float, ...], seed: int, *, narrow: bool = False
) -> tuple[Volume, Volume]:
    """Returns a painted scan of the left leg over a muscle's length, and the muscle's labels.

    `narrow` cuts it to the muscle from side to side and from front to back, too; `FIELD_MM` is left around it.
    """
    key = PAINTED.id_of(f"{muscle}_left")
    edges = world_edges(body, [key])
    leg = world_edges(body, [k for k in PAINTED.ids[1:] if PAINTED.names[k].endswith("_left")])
    low, high = edges if narrow else (np.array([*leg[end, :2], edges[end, 2]]) for end in (0, 1))
    start = np.floor(body.geometry.index(low - FIELD_MM)).astype(int)
    stop = np.ceil(body.geometry.index(high + FIELD_MM)).astype(int)
    shown = resample_labels(body, body.geometry.cropped(tuple(start), tuple(stop - start + 1)).resampled(spacing))
    image = image_from_labels(shown, PAINTED, contrast="t1", seed=seed)
    truth = shown.with_array((shown.array == key).astype(np.uint8))
    return image.with_array(np.rint(image.array).astype(np.int16)), truth


def take(chosen: argparse.Namespace) -> None:
    """Writes the same of a real scan."""
    table = read_label_table(chosen.names) if chosen.names else names_of(chosen.labels)
    scan, truth = read_volume(chosen.scan), read_label_image(chosen.labels)
    if chosen.structure:
        scan, truth = alone(scan, truth, table.id_of(chosen.structure))
        table = LabelMap({1: chosen.structure})
    write(chosen, scan, truth, table, axis=chosen.axis)


def alone(scan: Volume, truth: Volume, key: int) -> tuple[Volume, Volume]:
    """Returns one structure of the first half of the scan's first axis, of two legs, and what lies around it."""
    shown = truth.array == key
    shown[shown.shape[0] // 2 :] = False
    where = np.argwhere(shown)
    margin = np.ceil(np.array([*FIELD_MM[:2], 0]) / truth.spacing).astype(int)
    start = np.maximum(where.min(axis=0) - margin, 0)
    stop = np.minimum(where.max(axis=0) + 1 + margin, truth.array.shape)
    start[2], stop[2] = 0, truth.array.shape[2]
    box = tuple(map(int, start)), tuple(map(int, stop))
    return scan.cropped(*box), truth.with_array(shown.astype(np.uint8)).cropped(*box)


def write(chosen: argparse.Namespace, scan: Volume, truth: Volume, label_map: LabelMap, *, axis: int) -> None:
    """Writes a scan, its labels and those of some slices."""
    others = tuple(other for other in range(3) if other != axis)
    present = np.flatnonzero(truth.array.any(axis=others))
    drawn = np.rint(np.linspace(present[0], present[-1], chosen.slices)).astype(int)
    draw(chosen.output, scan, truth, label_map, axis=axis, drawn=sorted(set(drawn.tolist())))


def draw(out: Path, scan: Volume, truth: Volume, label_map: LabelMap, *, axis: int, drawn: list[int]) -> None:
    """Writes the folder in which `drawn` are the slices that have labels."""
    few = np.zeros_like(truth.array)
    np.moveaxis(few, axis, 0)[drawn] = np.moveaxis(truth.array, axis, 0)[drawn]
    out.mkdir(parents=True, exist_ok=True)
    for name, volume in (("scan", scan), ("truth", truth), ("slices", truth.with_array(few))):
        write_volume(out / f"{name}.nii.gz", volume)
    write_json(out / "dataset.json", {"labels": label_map.to_dict()})
    write_json(out / "drawn.json", {"axis": axis, "slices": drawn})
    size = np.count_nonzero(truth.array) * truth.geometry.voxel_volume_ml
    print(f"{truth.geometry.shape} voxels, {len(label_map.structures)} structures, {size:.1f} ml, slices {drawn}")


def more(chosen: argparse.Namespace) -> None:
    """Writes the same scan with further slices drawn."""
    scan = read_volume(chosen.folder / "scan.nii.gz")
    truth = read_label_image(chosen.folder / "truth.nii.gz")
    about = read_json(chosen.folder / "drawn.json")
    if chosen.suggested:
        with chosen.suggested.open() as file:
            further = [int(row["slice"]) for row in csv.DictReader(file)][: chosen.count]
    else:
        further = even(about["slices"], chosen.count)
    drawn = sorted({*about["slices"], *further})
    draw(chosen.output, scan, truth, names_of(chosen.folder / "truth.nii.gz"), axis=about["axis"], drawn=drawn)


def even(drawn: list[int], count: int) -> list[int]:
    """Returns `count` slices that divide the widest gaps, so that the widest of what is left is as small as can be.

    >>> even([0, 8, 16], 3)
    [3, 5, 12]
    """
    gaps, parts = list(itertools.pairwise(drawn)), [1] * (len(drawn) - 1)
    for _ in range(count):
        widths = [(after - before) / n for (before, after), n in zip(gaps, parts, strict=True)]
        parts[int(np.argmax(widths))] += 1
    return [
        round(before + place * (after - before) / n)
        for (before, after), n in zip(gaps, parts, strict=True)
        for place in range(1, n)
    ]


def table(chosen: argparse.Namespace) -> None:
    """Prints one row for every label file."""
    truth, few = (read_label_image(chosen.folder / f"{name}.nii.gz") for name in ("truth", "slices"))
    label_map = names_of(chosen.folder / "truth.nii.gz") or LabelMap({1: "muscle"})
    slices = find_slices(few, label_map, axis=chosen.axis)
    training = tuple(index for index in slices.indices if index not in slices.validating())
    rows = {}
    for called, indices in (("all drawn", slices.indices), ("those that train", training)):
        some = only(few, slices, indices, IGNORE)
        some = some.with_array(np.where(some.array == IGNORE, 0, some.array))
        rows[f"interpolation ({called})"] = interpolate_slices(
            some, label_map, find_slices(some, label_map, axis=slices.axis)
        )
    rows |= {path.parent.name: read_label_image(path) for path in chosen.labels}
    free = np.ones(truth.array.shape, bool)
    drawn = {*slices.indices, *(read_json(chosen.besides / "drawn.json")["slices"] if chosen.besides else ())}
    np.moveaxis(free, slices.axis, 0)[sorted(drawn)] = False
    print(
        "| | Dice 3D | undrawn slices: Dice 3D | 2D | surface distance (mm) | volume error (%) |\n"
        "|---|---|---|---|---|---|"
    )
    for called, labels in rows.items():
        mean = means(labels, truth, free, slices.axis)
        print(
            f"| {called} | " + " | ".join(f"{value:.3f}" for value in mean[:3]) + f" | {mean[3]:.2f} | {mean[4]:+.1f} |"
        )


def means(labels: Volume, truth: Volume, free: np.ndarray, axis: int) -> list[float]:
    """Returns the five figures as means over the structures."""
    keys = [key for key in distinct(truth.array).tolist() if key]
    measured = [figures(labels.array == key, truth.array == key, free, truth, axis) for key in keys]
    return np.mean(measured, axis=0).tolist()


def figures(one: np.ndarray, other: np.ndarray, free: np.ndarray, grid: Volume, axis: int) -> tuple[float, ...]:
    """Returns the five figures of a structure."""
    return (
        METRICS["dice"].function(one, other),
        METRICS["dice"].function(one, other, mask=free),
        METRICS["dice_2d_mean"].function(one, other, mask=free, axis=axis),
        METRICS["assd"].function(surface_distances(one, other, spacing=grid.spacing)),
        100 * (np.count_nonzero(one) / np.count_nonzero(other) - 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    simulating = parts.add_parser("simulate")
    simulating.add_argument("--data", type=Path, required=True, help="folder of VHM_Left_labels_1mm.nii.gz and others")
    simulating.add_argument("--muscle", default="gastrocnemius_medial_head")
    simulating.add_argument(
        "--spacing", type=float, nargs=3, default=(1.0, 1.0, 5.0), metavar=("X", "Y", "Z"), help="mm"
    )
    simulating.add_argument("--seed", type=int, default=0)
    simulating.set_defaults(run=simulate)
    taking = parts.add_parser("take")
    taking.add_argument("--scan", type=Path, required=True)
    taking.add_argument("--labels", type=Path, required=True)
    taking.add_argument("--names", type=Path, help="label table [the one beside the labels]")
    taking.add_argument("--axis", type=int, default=2)
    taking.add_argument("--structure", help="one structure alone, of one leg, and 25 mm around it [all]")
    taking.set_defaults(run=take)
    for making in (simulating, taking):
        making.add_argument("-o", "--output", type=Path, required=True)
        making.add_argument("--slices", type=int, default=10)
    adding = parts.add_parser("more")
    adding.add_argument("folder", type=Path)
    adding.add_argument("-o", "--output", type=Path, required=True)
    adding.add_argument("--count", type=int, default=3)
    adding.add_argument("--suggested", type=Path, help="suggested.csv of `tfmuscle suggest` [even distances]")
    adding.set_defaults(run=more)
    measuring = parts.add_parser("table")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("labels", type=Path, nargs="*")
    measuring.add_argument("--axis", type=int)
    measuring.add_argument("--besides", type=Path, help="folder of the same scan with other slices drawn")
    measuring.set_defaults(run=table)
    chosen = parser.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
