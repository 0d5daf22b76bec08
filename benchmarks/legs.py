"""All 35 muscles of two real people as two datasets: the acceptance data of the cascaded network.

    python benchmarks/legs.py --data FOLDER/visible_human -o OUT [--train 8] [--test 2] [--spacing 1 1 5] [--seed 0]

makes `OUT/train` (subjects `vhf_00` ..., all from one person) and `OUT/test` (`vhm_00` ..., all from another) in
nnU-Net's layout, with one label map: 70 muscles, ids 1 to 70 sorted by name, and 255 for unknown. Subjects that are
there stay on a rerun; a folder made with other settings is refused.

What is real and what is not. The anatomy is that of two legs of the woman and one leg of the man of the Visible Human
project: label volumes at 1 mm. The images are painted from the labels by the phantom's intensity model, and further
subjects are random deformations of the same person. So a figure on these data says that a network finds muscles in the
body of another person, and nothing about scanners or patients. The man has 2.2 times the woman's
muscle, 0.9 to 3.1 times from muscle to muscle.

A body. Two legs are joined on the left leg's grid. VHF's legs lie side by side in one world already, 1.5 mm apart; the
right one moves by less than half a voxel, because its grid is not a whole number of voxels off, and keeps its height.
Legs that overlap would be moved apart along x. VHM has a left leg only; its mirror image is the right one, with VHF's
distance between the muscles of both sides. Left and right of one subject are never independent.

Unknown is not background. VHF's right biceps femoris long head was never outlined. The left one is mirrored and moved
so that the box around its group-mates becomes the box around theirs, per axis: the rule of `cascade.Neighbours`. The
image shows a muscle there, because fat would tell a network that nothing is where in truth a muscle is. In the labels
it, and background within `RIM_MM` around it, are 255. That rim keeps its fat: it is a margin for what the guess has
wrong; as muscle it would fill the skin. A bone that a leg lacks (VHM's femur, tibia and hip bone) is fat in the image.
Bones are painted as bones and are background in the labels.

A subject is a `deform_labels` of the body at 1 mm and a random girth and length, wider than a deformation alone, for
people differ more in size than it changes; the test's first is the body as it is. The 1 mm labels are then sampled at
the nearest voxel: a majority over 5 mm would thin the thin muscles. The field of view follows each body. Images are
int16 as scanners write them.
"""

import argparse
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage

from tfmuscle.cascade import tight_boxes
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.labels import (
    LOWER_LIMB_BONES,
    LOWER_LIMB_MUSCLES,
    MUSCLE_GROUPS,
    SIDES,
    LabelMap,
    distinct,
    lower_limb,
    mirrored_name,
)
from tfmuscle.phantom import deform_labels, image_from_labels
from tfmuscle.preprocessing.grid import resample_labels
from tfmuscle.volume import Geometry, Volume

IGNORE_ID = 255
PAINTED = LabelMap(lower_limb().names, ignore=IGNORE_ID)
"""What a body holds: the dataset's ids, then bones."""
LABELS = LabelMap(lower_limb(bones=False).names, ignore=IGNORE_ID)
PERSONS = {"train": "VHF", "test": "VHM"}
OTHER_NAMES = {"pelvis/hip bone": "hip"}
"""Names in the files that are not the house's with spaces and a remark in brackets."""

GAP_MM = 18.0
"""Between the muscles of a leg and of its mirror image; 17.5 mm in VHF."""
RIM_MM = 10.0
"""How far around an unknown muscle's guessed place nothing is known: some of its boundary is wrong by a centimetre."""
ROOM_MM = (24.0, 24.0, 40.0)
"""Air around a body at 1 mm, so that no deformation (4 % of the size, three sd of 5 mm) leaves the grid."""
FIELD_MM = (25.0, 25.0, 10.0)
"""Around the muscles in a scan: the thickest fat of the phantoms is 18 mm."""
LENGTH, GIRTH = 1.1, 1.25
"""Largest factor on a body along z, and along x and y; its inverse is the smallest, log-uniform between. Our choice."""
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Body:
    """Both legs of one person at the resolution of the files.

    Attributes:
        labels: ids of `PAINTED`; `IGNORE_ID` in the rim of an unknown muscle, its own id where the image shows it.
        unknown: ids of muscles whose place is a guess.
        notes: what was done to the legs, for people.
    """

    labels: Volume
    unknown: tuple[int, ...]
    notes: tuple[str, ...]


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    try:
        for part in PERSONS:
            make_dataset(part, options)
        print(table(options.output))
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2:.1f} GiB")  # Linux: KiB


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of VHF_Left_labels_1mm.nii.gz and the others")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the datasets train and test")
    parser.add_argument("--train", type=int, default=8, help="subjects made of VHF [%(default)s]")
    parser.add_argument("--test", type=int, default=2, help="subjects made of VHM, the first undeformed [%(default)s]")
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 5.0), metavar=("X", "Y", "Z"), help="mm")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same voxels [%(default)s]")
    options = parser.parse_args(arguments)
    if min(options.train, options.test, options.seed) < 0:
        parser.error("--train, --test and --seed are 0 or more")
    if not all(0 < size < np.inf for size in options.spacing):
        parser.error("--spacing is three positive numbers in mm")
    return options


def make_dataset(part: str, options: argparse.Namespace) -> None:
    """Writes what is missing of one dataset; `dataset.json` comes last, when every subject is there."""
    folder, count = options.output / part, getattr(options, part)
    if not count:
        return
    settings = {"person": PERSONS[part], "spacing": list(options.spacing), "seed": options.seed}
    _claim(folder / "legs.json", settings)
    body, notes = None, []
    for number in range(count):
        subject = f"{PERSONS[part].lower()}_{number:02d}"
        paths = folder / "imagesTr" / f"{subject}_0000.nii.gz", folder / "labelsTr" / f"{subject}.nii.gz"
        if all(path.exists() for path in paths):
            print(f"{part} {number + 1}/{count} {subject}: kept", flush=True)
            continue
        if body is None:
            body = make_body(options.data, PERSONS[part])
            notes = list(body.notes)
            print("\n".join(f"{PERSONS[part]}: {note}" for note in notes), flush=True)
        random = np.random.default_rng([options.seed, list(PERSONS).index(part), number])
        is_deformed = part == "train" or number > 0
        image, labels = make_subject(body, tuple(options.spacing), random, is_deformed=is_deformed)
        for path, volume in zip(paths, (image, labels), strict=True):
            write_volume(path, volume)
        print(f"{part} {number + 1}/{count} {subject}: {_described(labels, body)}", flush=True)
    if body is not None or not (folder / "dataset.json").exists():
        write_json(folder / "dataset.json", _dataset_json(folder, settings, notes))


def _claim(path: Path, settings: dict) -> None:
    """Refuses a folder that holds anything else."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    if path.exists():
        if (found := read_json(path)) != settings:
            raise DataError(f"{folder}: was made with {found}, not with {settings}; name another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds other files; name another folder")
    write_json(path, settings)


def _dataset_json(folder: Path, settings: dict, notes: list[str]) -> dict:
    old = read_json(folder / "dataset.json").get("notes", []) if (folder / "dataset.json").exists() else []
    return {
        "name": f"legs_{settings['person'].lower()}",
        "description": "images simulated from deformed labels of a Visible Human; no patient",
        "licence": "CC BY 4.0 (muscles, tibia, fibula, patella), zlib (femur, hip bone); altered",
        "reference": "Andreassen et al. 2022, doi 10.1038/s41597-022-01905-2; BMFToolkit, Sreenivasa et al.",
        "channel_names": {"0": "T1"},
        "labels": LABELS.to_dict(),
        "numTraining": len(list((folder / "labelsTr").glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
        "made_with": settings,
        "notes": notes or old,
    }


def _described(labels: Volume, body: Body) -> str:
    known = {key for key in LABELS.ids[1:] if key not in body.unknown}
    lost = sorted(PAINTED.names[key] for key in known - set(distinct(labels.array).tolist()))
    size = "x".join(map(str, labels.geometry.shape))
    return f"{size} voxels" + (f"; LOST at this spacing: {', '.join(lost)}" if lost else "")


def house_name(name: str) -> str:
    """Returns the house's name of a structure of the files.

    >>> house_name("external rotators (gemelli)"), house_name("pelvis/hip bone")
    ('external_rotators', 'hip')
    """
    found = OTHER_NAMES.get(name, re.sub(r" *\(.*\)$", "", name).replace(" ", "_"))
    if found not in LOWER_LIMB_MUSCLES + LOWER_LIMB_BONES:
        raise DataError(f"{name!r} is none of the 35 muscles or five bones of a leg; correct the name in the JSON file")
    return found


def read_leg(data: Path, name: str, side: str) -> Volume:
    """Reads `<name>_labels_1mm.nii.gz` and its JSON as ids of `PAINTED` for a side, axes to the right, front, top."""
    path = data / f"{name}_labels_1mm.nii.gz"
    given = read_json(data / f"{name}_labels_1mm.json").get("labels")
    if not isinstance(given, dict) or not all(key.isdigit() and int(key) < IGNORE_ID for key in given):
        raise DataError(f'{path.with_suffix("").with_suffix(".json")}: needs "labels", an object of id -> name')
    volume = read_label_image(path).reoriented("RAS")
    known = {int(key): house_name(str(text)) for key, text in given.items()}
    if unnamed := [key for key in distinct(volume.array).tolist() if key and key not in known]:
        raise DataError(f"{path}: ids {unnamed} are not named in the JSON file beside it; add them")
    new_ids = np.zeros(IGNORE_ID + 1, np.uint8)
    for key, structure in known.items():
        new_ids[key] = PAINTED.id_of(f"{structure}_{side}")
    return volume.with_array(new_ids[volume.array])


def make_body(data: Path, person: str) -> Body:
    """Joins the legs of a person; a person without a right leg gets the mirror image of the left one."""
    left = read_leg(data, f"{person}_Left", "left")
    has_right = (data / f"{person}_Right_labels_1mm.nii.gz").exists()
    right = read_leg(data, f"{person}_Right", "right") if has_right else transformed(other_side(left), MIRROR)
    right, note = beside(left, right, None if has_right else GAP_MM)
    labels, unknown, notes = joined(left, right), [], [note]
    for side, own, other in zip(SIDES, (left, right), (right, left), strict=True):
        present = set(distinct(own.array).tolist())
        for muscle in LOWER_LIMB_MUSCLES:
            if (key := PAINTED.id_of(f"{muscle}_{side}")) not in present:
                notes.append(place_unknown(labels, key, own, other))
                unknown.append(key)
        absent = [bone for bone in LOWER_LIMB_BONES if PAINTED.id_of(f"{bone}_{side}") not in present]
        notes += [f"{side}: no {', '.join(absent)} in the files; fat in the image"] if absent else []
    return Body(labels, tuple(unknown), tuple(notes))


def other_side(leg: Volume) -> Volume:
    """Returns the same voxels as ids of the other side; the grid stays."""
    swapped = np.zeros(IGNORE_ID + 1, np.uint8)
    for key, name in PAINTED.names.items():
        swapped[key] = PAINTED.id_of(mirrored_name(name)) if key else 0
    return leg.with_array(swapped[leg.array])


def transformed(volume: Volume, matrix: np.ndarray) -> Volume:
    """Returns the same voxels elsewhere in the world, `matrix` `(4, 4)`."""
    return Volume(volume.array, Geometry(volume.geometry.shape, matrix @ volume.geometry.affine), volume.source)


def world_edges(labels: Volume, keys: Iterable[int] = PAINTED.ids[1:]) -> np.ndarray:
    """Returns the outer faces of the box around structures in world mm, `(2, 3)`: low, high."""
    boxes = list(tight_boxes(labels.array, keys).values())
    if not boxes:
        raise DataError(f"{labels.source}: no voxel of the structures that are needed; check the file")
    return np.sort(labels.geometry.world(boxes[0].union(*boxes[1:]).edges), axis=0)


def beside(left: Volume, right: Volume, gap_mm: float | None) -> tuple[Volume, str]:
    """Returns the right leg, moved along x only: `gap_mm` from the left one, or (None) as far as they overlap."""
    gap = float(world_edges(right)[0, 0] - world_edges(left)[1, 0])
    shift = max(-gap, 0.0) if gap_mm is None else gap_mm - gap
    move = np.eye(4)
    move[0, 3] = shift
    kind = f"as read, moved by {shift:.1f} mm in x" if gap_mm is None else "the left one's mirror image"
    return transformed(right, move), f"right leg: {kind}, {gap + shift:.1f} mm from the left one"


def joined(left: Volume, right: Volume) -> Volume:
    """Puts both legs, which must not overlap, on the left one's grid, with `ROOM_MM` around them."""
    edges = np.concatenate([world_edges(left), world_edges(right)])
    start = np.floor(left.geometry.index(edges.min(axis=0) - ROOM_MM)).astype(int)
    stop = np.ceil(left.geometry.index(edges.max(axis=0) + ROOM_MM)).astype(int)
    grid = left.geometry.cropped(tuple(start), tuple(stop - start + 1))
    whole, other = (resample_labels(leg, grid).array for leg in (left, right))
    np.copyto(whole, other, where=whole == 0)
    return Volume(whole, grid)


def place_unknown(body: Volume, key: int, own: Volume, other: Volume) -> str:
    """Writes a muscle that the leg `own` lacks into the body, from the leg `other`, and its rim; returns a note.

    The other leg's mirror image is scaled and moved so that the box around the muscle's group-mates is that of `own`.
    """
    name = PAINTED.names[key]
    muscle, side = name.rsplit("_", 1)
    mirror_image = transformed(other_side(other), MIRROR)
    shared = set(distinct(mirror_image.array).tolist())
    if key not in shared:
        raise DataError(
            f"{own.source}: no {muscle}, and none in the other leg to guess its place from; add one of them"
        )
    shared &= set(distinct(own.array).tolist())
    group = next(group for group in MUSCLE_GROUPS if muscle in group)
    mates = [mate for mate in (PAINTED.id_of(f"{name}_{side}") for name in group) if mate in shared]
    goal, found = world_edges(own, mates), world_edges(mirror_image, mates)
    align = np.diag([*np.ptp(goal, axis=0) / np.ptp(found, axis=0), 1.0])
    align[:3, 3] = goal[0] - align.diagonal()[:3] * found[0]
    only = mirror_image.with_array((mirror_image.array == key).astype(np.uint8))
    placed = resample_labels(transformed(only, align), body.geometry).array > 0
    free = placed & (body.array == 0)
    body.array[free] = key
    reach = [int(np.ceil(RIM_MM / step)) for step in body.spacing]
    box = tight_boxes(placed, [1])[1]
    window = tuple(slice(max(a - r, 0), b + r) for a, b, r in zip(box.start, box.stop, reach, strict=True))
    near = scipy.ndimage.distance_transform_edt(~placed[window], sampling=body.spacing) <= RIM_MM
    body.array[window][near & (body.array[window] == 0)] = IGNORE_ID
    share = 100 * free.sum() / placed.sum()
    return (
        f"{name}: unknown; a guess of {placed.sum() * body.geometry.voxel_volume_ml:.0f} ml, {share:.0f} % of it free"
    )


def make_subject(
    body: Body, spacing: tuple[float, ...], random: np.random.Generator, *, is_deformed: bool
) -> tuple[Volume, Volume]:
    """Returns image, int16, and labels, uint8, of a random relative of the body, or of the body itself."""
    deform_seed, image_seed = (int(seed) for seed in random.integers(1 << 31, size=2))
    fine = body.labels
    if is_deformed:
        girth, length = (largest ** random.uniform(-1, 1) for largest in (GIRTH, LENGTH))
        fine = transformed(deform_labels(fine, seed=deform_seed), np.diag([girth, girth, length, 1.0]))
    edges = world_edges(fine)
    start = np.floor(fine.geometry.index(edges[0] - FIELD_MM)).astype(int)
    stop = np.ceil(fine.geometry.index(edges[1] + FIELD_MM)).astype(int)
    grid = fine.geometry.cropped(tuple(start), tuple(stop - start + 1)).resampled(spacing)
    shown = resample_labels(fine, grid)
    image = image_from_labels(shown, PAINTED, contrast="t1", seed=image_seed)
    image = image.with_array(np.rint(image.array).astype(np.int16))
    answer = np.arange(IGNORE_ID + 1, dtype=np.uint8)
    answer[[key for key in PAINTED.ids if key not in LABELS.ids]] = 0
    answer[list(body.unknown)] = IGNORE_ID
    return image, shown.with_array(answer[shown.array])


def table(out: Path) -> str:
    """Returns voxels per muscle of the first subject of each dataset, left and right, as Markdown."""
    first = {f"{person.lower()}_00": out / part / "labelsTr" for part, person in PERSONS.items()}
    found = {name: folder / f"{name}.nii.gz" for name, folder in first.items() if (folder / f"{name}.nii.gz").exists()}
    counts = {
        f"{name} {side}": (side, np.bincount(labels.ravel(), minlength=IGNORE_ID + 1))
        for name, labels in ((name, read_label_image(path).array) for name, path in found.items())
        for side in SIDES
    }
    lines = ["muscle, voxels | " + " | ".join(counts), "---|" + "---|" * len(counts)]
    for muscle in LOWER_LIMB_MUSCLES:
        row = [str(count[LABELS.id_of(f"{muscle}_{side}")]) for side, count in counts.values()]
        lines.append(f"{muscle} | " + " | ".join(row))
    lines.append("unknown, both sides | " + " | ".join(str(count[IGNORE_ID]) for _, count in counts.values()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
