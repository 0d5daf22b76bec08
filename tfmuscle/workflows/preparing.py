"""Scans made ready for labelling, training or measuring: `prepare`.

Written is a dataset like the given one, or a folder of scans: evened out (N4), then cut below the hip or to a part of
the leg, then to one leg. Image and labels are cut alike and stay at their place in space; voxels are not resampled.
A picture per subject shows where the cuts are, because nobody should trust a cut that nobody saw. A subject is finished
when its note in `prepared/` is written, last; a rerun with the same settings keeps what is finished.

Left and right legs of one person are two subjects here, `<id>_left` and `<id>_right`, and are not independent: folds
keep them together (`folds.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, read_json, write_json
from tfmuscle.io import write_volume
from tfmuscle.labels import SIDES, LabelMap
from tfmuscle.preprocessing import regions
from tfmuscle.preprocessing.bias_field import correct_bias_field
from tfmuscle.report.figures import figure_png, plain
from tfmuscle.subjects import Dataset, Subject, read_dataset, read_scans
from tfmuscle.volume import Geometry, Volume

Progress = Callable[[int, int, str], None]
SIDE_CHOICES = (*SIDES, "both-separately")
_COLOURS = ("#ff9f1c", "#2ec4b6")


@dataclass(frozen=True)
class PrepareOptions:
    """What `prepare` does to every scan.

    Attributes:
        bias_field: N4 correction first.
        below_hip: cut from the hip to the distal end.
        hip_slice: slice of the hip start, of every scan; found in labels or silhouette without it.
        margin: slices kept above a hip slice that no label gave.
        part: one of `regions.LEG_PARTS`, by its fractions of the scanned length.
        fractions: other fractions (from, to) of that part.
        side: "left", "right", or "both-separately" for a subject of each leg.
    """

    bias_field: bool = False
    below_hip: bool = False
    hip_slice: int | None = None
    margin: int = regions.MARGIN_SLICES
    part: str | None = None
    fractions: tuple[float, float] | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        if self.part is not None and self.part not in regions.LEG_PARTS:
            raise ValueError(f"part is {self.part!r}; choose one of {', '.join(regions.LEG_PARTS)}")
        if self.side is not None and self.side not in SIDE_CHOICES:
            raise ValueError(f"side is {self.side!r}; choose one of {', '.join(SIDE_CHOICES)}")
        if self.below_hip and self.part:
            raise ValueError("below_hip and part both choose slices; use one of them")
        if self.margin < 0 or (self.hip_slice is not None and self.hip_slice < 0):
            raise ValueError(f"hip slice {self.hip_slice} and margin {self.margin} must not be negative")
        if self.hip_slice is not None and not self.below_hip:
            raise ValueError(f"hip slice {self.hip_slice} is given, but no cut below the hip; ask for below_hip too")
        if self.fractions is not None and self.part is None:
            raise ValueError(f"fractions {self.fractions} are given, but no part; name the part too")
        if self.fractions is not None and not 0 <= self.fractions[0] < self.fractions[1] <= 1:
            raise ValueError(f"fractions are {self.fractions}; two numbers from 0 to 1 in order are needed")
        if not (self.bias_field or self.below_hip or self.part or self.side):
            raise ValueError("nothing to prepare; ask for bias_field, below_hip, part or side")


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` did.

    Attributes:
        folder: the new dataset, or folder of scans.
        notes: subject -> where its cuts are, in words.
        failures: subject -> why it is not there.
    """

    folder: Path
    notes: dict[str, str]
    failures: dict[str, str]


def prepare(
    source: str | Path, out: str | Path, options: PrepareOptions, *, progress: Progress | None = None
) -> PrepareResult:
    """Prepares every subject of a dataset, or every scan of a folder.

    Args:
        source: dataset folder, or a scan or folder of scans as `tfmuscle predict` takes them.
        out: folder to make; one that an interrupted run left is completed.
        options: what to do.
        progress: called with (subjects done, subjects in all, subject).

    Raises:
        DataError: no scans, `out` holds something else, or no subject could be prepared.
    """
    source, out = Path(source), Path(out)
    dataset = read_dataset(source) if (source / "dataset.json").is_file() else None
    subjects = dataset.subjects if dataset else read_scans(source, ("image",))
    _claim(out, {"source": str(source.resolve()), "options": _plain(options)})
    notes, failures, written = {}, {}, 0
    for number, subject in enumerate(subjects, start=1):
        try:
            note = _finished(out, subject) or _prepare_subject(subject, dataset, out, options)
            notes[subject.subject_id], written = note["how"], written + len(note["subjects"])
        except DataError as error:
            failures[subject.subject_id] = str(error)
        if progress is not None:
            progress(number, len(subjects), subject.subject_id)
    if not notes:
        raise DataError(
            f"{source}: none of {len(subjects)} subjects could be prepared; {next(iter(failures.values()))}"
        )
    if dataset:
        write_json(out / "dataset.json", _dataset_json(dataset, options, written))
    return PrepareResult(out, notes, failures)


def _plain(options: PrepareOptions) -> dict[str, Any]:
    """Options as JSON holds them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}


def _claim(out: Path, description: dict[str, Any]) -> None:
    """Notes what is made where, and refuses to mix it with anything else."""
    path = out / "prepare.json"
    if path.exists() and read_json(path) == description:
        return
    is_empty = not out.exists() or (out.is_dir() and all(item == path for item in out.iterdir()))
    if not is_empty and path.exists():
        raise DataError(f"{path}: other scans or settings were prepared there; name another folder")
    if not is_empty:
        raise DataError(f"{out}: is not empty and holds nothing prepared; name another folder")
    write_json(path, description)


def _made_from(subject: Subject) -> list[list[Any]]:
    files = [path for path in (*subject.images, subject.labels) if path is not None and path.exists()]
    listed = [file for path in files for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in listed]


def _finished(out: Path, subject: Subject) -> dict[str, Any] | None:
    """Returns the note of a subject that is whole and made from the same files."""
    path = out / "prepared" / f"{subject.subject_id}.json"
    try:
        note = read_json(path)
    except DataError:
        return None
    same = note.get("made_from") == _made_from(subject)
    return note if same and all((out / name).is_file() for name in note.get("files", [""])) else None


def _prepare_subject(subject: Subject, dataset: Dataset | None, out: Path, options: PrepareOptions) -> dict[str, Any]:
    made_from = _made_from(subject)
    image, labels = subject.read(dataset.label_map if dataset else LabelMap({}))
    try:
        pieces, how = _cut(image, labels, options, dataset.label_map.ignore if dataset else None)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{subject.images[0]}: {error}") from error
    unlabelled = [suffix for suffix, (_, ids) in pieces.items() if ids is not None and not ids.array.any()]
    if unlabelled:
        what = subject.subject_id + unlabelled[0]
        raise DataError(f"{subject.labels}: nothing is labelled in {what}; choose another cut, or leave it out")
    files = []
    for suffix, (piece, ids) in pieces.items():
        files += _write_scan(out, subject.subject_id + suffix, piece, ids, is_dataset=dataset is not None)
    picture = out / "pictures" / f"{subject.subject_id}.png"
    figure = draw_cuts(image, {key: one.geometry for key, (one, _) in pieces.items()}, f"{subject.subject_id}: {how}")
    with atomic_path(picture) as temporary:
        temporary.write_bytes(figure_png(figure))
    made = [subject.subject_id + suffix for suffix in pieces]
    note = {"subjects": made, "how": how, "made_from": made_from, "files": [*files, f"pictures/{picture.name}"]}
    write_json(out / "prepared" / f"{subject.subject_id}.json", note)
    return note


Pieces = dict[str, tuple[Volume, Volume | None]]


def _cut(image: Volume, labels: Volume | None, options: PrepareOptions, ignore: int | None) -> tuple[Pieces, str]:
    """Returns what is kept, by the ending of its subject id, and how it was found."""
    how = []
    if options.bias_field:
        image = correct_bias_field(image)
        how.append("N4")
    midline = regions.find_midline(image) if options.side else None
    if options.side and midline is None:
        raise ValueError("two legs are nowhere apart, and one leg alone cannot be told left from right; leave side out")
    kept, kept_labels = image, labels
    if options.below_hip:
        kept, kept_labels, told = _below_hip(image, labels, options, ignore)
        how.append(told)
    if options.part:
        fractions = {options.part: options.fractions or regions.LEG_PARTS[options.part]}
        kept = regions.leg_parts(image, fractions)[options.part]
        kept_labels = None if labels is None else regions.leg_parts(labels, fractions)[options.part]
        how.append("{} part, {:.0%} to {:.0%} of the scanned length".format(options.part, *fractions[options.part]))
    if midline is None:
        return {"": (kept, kept_labels)}, "; ".join(how)
    how.append(str(options.side).replace("-", " "))
    pieces: Pieces = {}
    for side in SIDES if options.side == SIDE_CHOICES[2] else (str(options.side),):
        suffix = f"_{side}" if options.side == SIDE_CHOICES[2] else ""
        leg = regions.one_leg(kept, midline, side)
        pieces[suffix] = (leg, None if kept_labels is None else regions.one_leg(kept_labels, midline, side, fill=0))
    return pieces, "; ".join(how)


def _below_hip(
    image: Volume, labels: Volume | None, options: PrepareOptions, ignore: int | None
) -> tuple[Volume, Volume | None, str]:
    axis, _ = regions.superior_axis(image.geometry)
    hip, told = options.hip_slice, f"below hip slice {options.hip_slice}"
    if hip is None and labels is not None:
        told = "from the first labelled slice"
    elif hip is None:
        found = regions.hip_start(image)
        if found.index is None:
            raise ValueError(f"the hip was not found: {found.reason}; look up its slice and give --hip-slice")
        hip = found.index
        told = f"hip found at slice {hip} (confidence {found.confidence:.2f}: {found.reason})"
    kept, kept_labels = regions.below_hip(image, labels, hip=hip, margin=options.margin, ignore=ignore)
    first = round(float(image.geometry.index(kept.geometry.affine[:3, 3])[axis]))
    return kept, kept_labels, f"{told}, slices {first} to {first + kept.geometry.shape[axis] - 1} kept"


def _write_scan(out: Path, subject_id: str, image: Volume, labels: Volume | None, *, is_dataset: bool) -> list[str]:
    """Writes one file per channel, and the labels; returns their names within `out`."""
    files = []
    for channel in range(image.num_channels):
        number = f"_{channel:04d}" if is_dataset or image.num_channels > 1 else ""
        name = f"{'imagesTr/' if is_dataset else ''}{subject_id}{number}.nii.gz"
        write_volume(out / name, image.with_array(np.ascontiguousarray(image.array[..., channel])))
        files.append(name)
    if labels is not None:
        files.append(f"labelsTr/{subject_id}.nii.gz")
        write_volume(out / files[-1], labels)
    return files


def _dataset_json(dataset: Dataset, options: PrepareOptions, count: int) -> dict[str, Any]:
    return {
        "name": f"{dataset.name}_prepared",
        "licence": dataset.licence,
        "citation": dataset.citation,
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": dataset.label_map.to_dict(),
        "numTraining": count,
        "file_ending": ".nii.gz",
        "prepared": _plain(options),
    }


def draw_cuts(image: Volume, boxes: Mapping[str, Geometry], title: str) -> Figure:
    """Draws a scan from the front and from the right as mean intensities, with the kept boxes.

    Args:
        image: `(I, J, K)` or `(I, J, K, C)`, before the cuts.
        boxes: name -> grid of what is kept.
        title: above both.
    """
    turned = image.reoriented("SPL")
    array = turned.array if turned.array.ndim == 3 else turned.array.mean(axis=3)
    step = turned.spacing
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(plain(title), fontsize=8, wrap=True)
    for panel, (axis, name) in enumerate({2: "from the front", 1: "from the right"}.items()):
        axes = figure.add_subplot(1, 2, panel + 1)
        shown = array.mean(axis=3 - axis, dtype=np.float32)
        extent = (-0.5 * step[axis], (shown.shape[1] - 0.5) * step[axis], -0.5 * step[0], (len(shown) - 0.5) * step[0])
        axes.imshow(shown, cmap="gray", origin="lower", extent=extent, vmax=float(np.percentile(shown, 99.5)))
        for colour, (key, box) in zip(_COLOURS, boxes.items(), strict=False):
            corners = np.indices((2, 2, 2)).reshape(3, -1).T * np.array(box.shape) - 0.5
            index = turned.geometry.index(box.world(corners))[:, [axis, 0]] * (step[axis], step[0])
            low, size = index.min(axis=0), np.ptp(index, axis=0)
            axes.add_patch(Rectangle((low[0], low[1]), size[0], size[1], fill=False, edgecolor=colour, linewidth=2))
            if key and axis == 2:
                axes.text(low[0], low[1], plain(key.removeprefix("_")), color=colour, va="bottom")
        letters = "R on the left, L on the right" if axis == 2 else "A on the left, P on the right"
        axes.set(title=f"{name}: {letters}", xlabel="mm", ylabel="mm, upwards" if axis == 2 else "")
        axes.title.set_fontsize(9)
    return figure
