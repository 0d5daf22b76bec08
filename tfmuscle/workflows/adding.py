"""One labelled scan more for a dataset: `add_case`.

The user corrected labels of a scan, by hand or on the page, and wants to train on them: scan and labels become a case
of a dataset in nnU-Net's layout, which is made when it is not there yet. Scan and labels lie on one grid already;
voxels are copied, nothing is resampled. A folder of many scans is brought in at once by `import_folder`.

**One dataset, one meaning.** A case must name exactly the dataset's structures, for what nobody drew in one case would
count as background there; ids may differ, they become the dataset's.

**Unknown is not background.** Voxels with the labels' ignore id stay unknown. With `partly` all slices that show no
label become unknown as well, or all that are not in `listed`: the labels of a scan of which a few slices were drawn.

A case is known by its scan. The same scan again takes the new labels with `replace`; another scan under that name is
refused. Image, `dataset.json` and labels are each written whole, in this order; run again after an interruption.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labelled_slices import find_slices, free_id, only
from tfmuscle.labels import LabelMap
from tfmuscle.subjects import Subject
from tfmuscle.volume import Volume
from tfmuscle.workflows.pairing import is_plain
from tfmuscle.workflows.slice_labels import SliceLabels, one_scan, read_slice_labels

MADE_BY = "tfmuscle add-case"
ENDING = ".nii.gz"


@dataclass(frozen=True)
class AddedCase:
    """What `add_case` did.

    Attributes:
        subject_id: name of the case.
        cases: how many the dataset has now.
        unknown: share of the case's voxels that count as unknown, 0 to 1.
        replaced: whether the scan was there already and has new labels now.
    """

    subject_id: str
    cases: int
    unknown: float
    replaced: bool


def add_case(
    source: SliceLabels,
    dataset: str | Path,
    *,
    subject_id: str | None = None,
    partly: bool = False,
    replace: bool = False,
) -> AddedCase:
    """Puts a scan and its labels into a dataset in nnU-Net's layout, and makes it if needed.

    Args:
        source: scan and labels; `axis` and `listed` count with `partly` only.
        dataset: the folder.
        subject_id: name of the case; the scan's by default.
        partly: slices without a label, or not listed, are unknown rather than background.
        replace: take new labels for a scan that is there.

    Raises:
        DataError: files that do not fit, other structures than the dataset's, another layout, or a name that is taken.
        ValueError: listed slices without `partly`.
    """
    if source.listed is not None and not partly:
        raise ValueError("slices are listed, but all count as labelled; set partly, or list none")
    out, scan = Path(dataset), one_scan(source.scan)
    image, label_map, labels = _read(scan, source, partly=partly)
    case = subject_id or scan.subject_id
    if not is_plain(case):
        raise DataError(f"{case!r}: is no plain file name; name the case by letters, digits, '-' and '_'")
    about = _about(out, label_map, source.labels)
    known = LabelMap.from_dict(about["labels"])
    ending = about["file_ending"]
    image_path, labels_path = out / "imagesTr" / f"{case}_0000{ending}", out / "labelsTr" / f"{case}{ending}"
    replaced = labels_path.exists()
    if image_path.exists() and not _is_same(image_path, image):
        raise DataError(f"{out}: has another scan called {case}; give this one a name of its own (--id)")
    if replaced and not replace:
        raise DataError(f"{out}: has labels of {case} already; replace them (--replace), or use another name (--id)")
    array = _renumbered(labels.array, label_map, known)
    if not image_path.exists():
        write_volume(image_path, image)
    about["numTraining"] = len({path.name for path in labels_path.parent.glob(f"*{ending}")} | {labels_path.name})
    write_json(out / "dataset.json", about)
    write_volume(labels_path, labels.with_array(array))
    unknown = 0.0 if known.ignore is None else float((array == known.ignore).mean())
    return AddedCase(case, about["numTraining"], unknown, replaced)


def _read(scan: Subject, source: SliceLabels, *, partly: bool) -> tuple[Volume, LabelMap, Volume]:
    """Returns the scan, names and labels, where slices that nobody drew are unknown if `partly`."""
    image = read_volume(scan.images[0])
    labels, label_map = read_slice_labels(source.labels, source.names)
    if not labels.geometry.same_grid(image.geometry):
        raise DataError(f"{source.labels}: not on the grid of {source.scan}; resample it by nearest neighbour")
    if not set(np.unique(labels.array).tolist()) - {0, label_map.ignore}:
        raise DataError(f"{source.labels}: nothing is labelled; draw something first")
    if partly:
        try:
            slices = find_slices(labels, label_map, axis=source.axis, listed=source.listed)
        except ValueError as error:
            raise DataError(f"{source.labels}: {error}") from error
        label_map = dataclasses.replace(label_map, ignore=free_id(label_map))
        labels = only(labels, slices, slices.indices, free_id(label_map))
    return image, label_map, labels


def _about(out: Path, label_map: LabelMap, source: Path) -> dict[str, Any]:
    """Returns `dataset.json` as it will be: new, or that of the dataset, which must have the same structures."""
    if not (out / "dataset.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: holds other files and no dataset.json; name another folder")
        names = {"name": out.resolve().name, "channel_names": {"0": "image"}, "labels": label_map.to_dict()}
        return {"made_by": MADE_BY} | names | {"file_ending": ENDING}
    about = read_json(out / "dataset.json")
    known = _label_map(out, about)
    if set(known.structures) != set(label_map.structures):
        more = _listed(set(label_map.structures) - set(known.structures))
        fewer = _listed(set(known.structures) - set(label_map.structures))
        raise DataError(
            f"{source}: its structures are not those of {out.name} (more: {more}; fewer: {fewer}); what one case has"
            " and another does not would count as background there: name another dataset, or relabel"
        )
    if label_map.ignore is not None and known.ignore is None:
        known = dataclasses.replace(known, ignore=free_id(known))
    return {**about, "labels": known.to_dict(), "file_ending": about.get("file_ending", ENDING)}


def _label_map(out: Path, about: dict[str, Any]) -> LabelMap:
    """Returns the names of a dataset of one channel in nnU-Net's layout."""
    channels = about.get("channel_names", about.get("modality"))
    if not isinstance(channels, dict | list) or not isinstance(about.get("labels"), dict):
        raise DataError(f"{out}: its dataset.json is not in nnU-Net's layout; name another dataset")
    if any(key in about for key in ("dataset", "training", "images")):
        raise DataError(f"{out}: lists its cases itself, and is not added to; name another dataset")
    if len(channels) != 1:
        raise DataError(f"{out}: its cases have {len(channels)} channels, a scan has one; name another dataset")
    try:
        return LabelMap.from_dict(about["labels"])
    except ValueError as error:
        raise DataError(f"{out / 'dataset.json'}: {error}") from error


def _is_same(path: Path, image: Volume) -> bool:
    there = read_volume(path)
    return there.geometry.same_grid(image.geometry) and np.array_equal(there.array, image.array)


def _renumbered(array: np.ndarray, own: LabelMap, known: LabelMap) -> np.ndarray:
    """Returns the ids of the dataset instead of the labels' own; unknown stays unknown."""
    pairs = {key: known.id_of(name) for key, name in own.names.items() if key}
    if own.ignore is not None and known.ignore is not None:
        pairs[own.ignore] = known.ignore
    table = np.zeros(max(pairs) + 1, np.min_scalar_type(max(pairs.values())))
    table[list(pairs)] = list(pairs.values())
    return table[array]


def _listed(names: set[str] | Sequence[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:5]) + (" ..." if len(found) > 5 else "") if found else "none"
