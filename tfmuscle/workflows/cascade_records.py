"""The samples of all networks of a cascade: `build_cascade_records`.

A subject is read and prepared once; every network that can learn from it then gets its part:

    RUN_records/group_01/shard-00000.tfrecord   the subject's region, resized to the network's grid
    RUN_records/soleus/shard-00001.tfrecord     one leg's muscle with what the largest box around it can show
    RUN_records/subjects/<subject>.json         what was made of a subject, and from which files; written last

A rerun keeps subjects whose note still holds. A subject that cannot be used is named and the others go on. A leg in
which a muscle is not labelled gives that muscle's network nothing: unknown is not background.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle import records
from tfmuscle.cascade import (
    Box,
    CascadePlan,
    GroupNetwork,
    MuscleNetwork,
    largest_enlargement,
    mapped,
    structures_of,
    tight_boxes,
)
from tfmuscle.cascade.plan import MIRRORED, SIDE_AXIS
from tfmuscle.errors import DataError
from tfmuscle.files import json_text
from tfmuscle.labels import IGNORE, SIDES
from tfmuscle.preprocessing import leg_parts, preprocess, resample_image, resample_labels
from tfmuscle.subjects import Dataset, Subject
from tfmuscle.volume import Volume
from tfmuscle.workflows.building import Progress, origin

SUBJECTS_FOLDER = "subjects"
Entries = list[tuple[str, dict[str, Any]]]
"""Network and the entry of its index, for everything made of one subject."""


def build_cascade_records(
    dataset: Dataset,
    out: Path,
    plan: CascadePlan,
    *,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Writes the records of every network, one folder each; returns the subjects that could not be used, and why.

    Subjects that the plan does not know are not used.

    Args:
        dataset: labelled scans.
        out: folder of the records; one that an interrupted build left is completed.
        plan: the networks, and the fold of every subject.
        progress: called with (subjects done, subjects in all, note).

    Raises:
        DataError: no subject could be used, or a file cannot be written.
    """
    folds = plan.folds
    subjects = [subject for subject in dataset.subjects if subject.subject_id in folds]
    numbers = {subject: number for number, subject in enumerate(sorted(folds))}
    made_for = hashlib.sha256(json_text(plan.to_dict()).encode()).hexdigest()
    made: Entries = []
    failures: dict[str, str] = {}
    for done, subject in enumerate(subjects, start=1):
        note_path = out / SUBJECTS_FOLDER / f"{subject.subject_id}.json"
        origin_of = origin(subject) | {"plan": made_for}
        entries = _kept(note_path, out, origin_of)
        if entries is None:
            try:
                entries = _make(subject, out, plan, numbers[subject.subject_id])
            except DataError as error:
                if isinstance(error.__cause__, OSError):  # the disk, not the subject
                    raise
                failures[subject.subject_id] = str(error)
                entries = []
            else:
                records.write_sealed(note_path, origin_of | {"entries": [list(entry) for entry in entries]})
        made += [(name, entry | {"fold": folds[subject.subject_id]}) for name, entry in entries]
        if progress is not None:
            progress(done, len(subjects), f"records of {subject.subject_id}")
    if not made:
        raise DataError(f"{dataset.root}: no subject could be used; the first: {next(iter(failures.values()))}")
    _write_indices(out, plan, made)
    return failures


def _write_indices(out: Path, plan: CascadePlan, made: Entries) -> None:
    for network in plan.networks:
        entries = [entry for name, entry in made if name == network.name]
        records.write_index(out / network.name, entries, network.spec)


def _kept(note_path: Path, out: Path, wanted: Mapping[str, Any]) -> Entries | None:
    """Returns what was made of a subject, if it was made from the same files by the same plan and is all there."""
    try:
        note = records.read_sealed(note_path)
        entries = [(str(name), dict(entry)) for name, entry in note["entries"]]
    except (DataError, KeyError, TypeError, ValueError):
        return None
    current = all(note.get(key) == value for key, value in wanted.items())
    sizes = all(_size(out / name / entry["file"]) == entry["bytes"] for name, entry in entries)
    return entries if current and sizes else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _make(subject: Subject, out: Path, plan: CascadePlan, number: int) -> Entries:
    """Writes the shards of one subject."""
    image, labels = subject.read(plan.base.label_map)
    scan, classes = preprocess(image, labels, plan.base)
    if classes is None:
        raise DataError(f"{subject.images[0]}: subject {subject.subject_id} has no labels; add a label file")
    entries: Entries = []
    for group in plan.groups:
        path = _shard(out, group.name, number)
        sample = _region(group, plan, scan, classes)
        if (sample["labels"] == IGNORE).all():
            continue  # nobody labelled anything here
        written = records.write_shard(path, [sample], group.spec, subject_id=subject.subject_id)
        entries.append((group.name, _entry(path, subject.subject_id, written)))
    sides, structures = structures_of(plan.base.label_map), plan.base.label_map.structures
    boxes = tight_boxes(classes.array, range(1, len(structures) + 1))
    for muscle in plan.muscles:
        for side, structure in sides[muscle.name].items():
            key = structures.index(structure) + 1
            leg = _leg(muscle, key, side, scan, classes, boxes[key]) if key in boxes else None
            if leg is None:
                continue
            path, leg_id = _shard(out, muscle.name, 2 * number + SIDES.index(side)), f"{subject.subject_id}_{side}"
            written = records.write_scan(path, *leg, muscle.spec, subject_id=leg_id)
            entries.append((muscle.name, _entry(path, leg_id, written)))
    return entries


def _shard(out: Path, network: str, number: int) -> Path:
    return out / network / records.Shard(number, "", 0).file


def _entry(path: Path, subject_id: str, written: Mapping[str, Any]) -> dict[str, Any]:
    return {"file": path.name, "subject_id": subject_id, "status": "ok"} | dict(written)


def _region(group: GroupNetwork, plan: CascadePlan, scan: Volume, classes: Volume) -> dict[str, Any]:
    """Returns the sample of a group: its region of image `(D, H, W, C)` and labels, resized to its grid."""
    cut = {group.name: group.region}
    part, labels = (leg_parts(volume, cut)[group.name] for volume in (scan, classes))
    grid = part.geometry.resized(group.spec.window)
    table = np.zeros(plan.base.num_classes + 1, np.int16)
    table[IGNORE] = IGNORE
    for number, name in enumerate(group.spec.label_map.structures, start=1):
        table[plan.base.label_map.structures.index(name) + 1] = number
    # beyond the field of view `resample_labels` says background; the grid's voxel centres are all inside
    return {
        "image": resample_image(part, grid).array,
        "labels": table[resample_labels(labels, grid).array],
        "start": (0, 0, 0),
    }


def _leg(
    muscle: MuscleNetwork, key: int, side: str, scan: Volume, classes: Volume, box: Box
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns image and labels around a muscle of one leg, on a right leg's axes; None where it is too thin.

    Args:
        muscle: the network.
        key: class of the structure in `classes`.
        side: the patient's.
        scan: prepared image.
        classes: prepared labels.
        box: of the structure, tight.
    """
    nominal = scan.geometry.resampled(muscle.spec.spacing or scan.spacing)
    around = largest_enlargement(mapped(box, scan.geometry, nominal, grow_voxels=0), nominal.shape)
    grid = nominal.cropped(around.start, around.size)
    labels = resample_labels(classes, grid).array
    binary = np.where(labels == IGNORE, np.int16(IGNORE), (labels == key).astype(np.int16))
    if not (binary == 1).any():
        return None  # thinner than the network's voxels
    image = resample_image(scan, grid).array
    if side == MIRRORED:
        image, binary = np.flip(image, SIDE_AXIS), np.flip(binary, SIDE_AXIS)
    return np.ascontiguousarray(image), np.ascontiguousarray(binary)
