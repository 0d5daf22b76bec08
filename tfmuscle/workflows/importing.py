"""From a lab's folders to a dataset: `import_folder`.

The user has a folder of scans (DICOM, NIfTI, NRRD) and, beside them, whatever the drawing program left: binary masks,
surfaces, DICOM SEG or RTSTRUCT, or another tool's label map. `pairing.py` says what belongs together; the pairing can
be looked at before anything is read (`--dry-run`). Then, subject by subject: the scan is read -> every mask comes
onto its grid (`label_sources.py`) -> masks are merged by counting (a voxel of exactly one structure gets its id, a
voxel that two claim becomes background, and is reported) -> image, labels and a picture are written.

The result is a dataset in nnU-Net's layout. `import.json` in it says for each subject what was done; a rerun keeps
the subjects whose files and settings are the same.

**Unknown is not background.** A structure that was drawn in other subjects but not in this one may well be there:
such a subject is refused, unless the user says what it means: `missing="background"` (it is not in this scan) or
`missing="ignore"` (nobody drew it: all that is not labelled here counts as unknown).

**Privacy.** What DICOM says of the patient is never copied. A subject is called by its folder, unless that repeats
the patient's name, number or birth date: then it is called `subject_001`, also in messages. No output names a source
file; `--key FILE` writes which subject came from where, for the lab's safe.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, provenance, read_json, write_json
from tfmuscle.io import read_volume, write_volume
from tfmuscle.io.dicom import list_series
from tfmuscle.io.identity import identifying_words, names_patient
from tfmuscle.io.label_tables import read_label_table
from tfmuscle.label_sources import Structures, masks, structures
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import resample_image
from tfmuscle.preprocessing.merging import merge_masks
from tfmuscle.report import figure_png, overlay
from tfmuscle.subjects import check_subject, read_dataset
from tfmuscle.volume import Volume
from tfmuscle.workflows.pairing import NOTE_FILE, Layout, Pair, Pairing, Scan, is_plain, matching, pair_up, same_name

MISSING = ("refuse", "background", "ignore")
PICTURES = "pictures"
_KEY_COLUMNS = ["subject", "scan"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ImportResult:
    """What `import_folder` did.

    Attributes:
        folder: the dataset.
        label_map: structures of all subjects.
        notes: subject -> what was decided on the way: overlaps, masks on other grids.
        problems: subject -> what `inspect` would complain about.
        failures: subject -> why it is not in the dataset.
    """

    folder: Path
    label_map: LabelMap
    notes: dict[str, list[str]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def pair(folder: str | Path, layout: Layout) -> Pairing:
    """Pairs scans and masks, and calls no subject after its patient.

    Raises:
        DataError: nothing found, or a table calls a subject after its patient.
    """
    found = pair_up(folder, layout)
    pairs, hidden = [], {}
    for number, one in enumerate(found.pairs, start=1):
        if names_patient(one.subject_id, _words_of(one)):
            if layout.table is not None:
                raise DataError(
                    f"{layout.table}: the subject in row {number} is called after the patient; give it an id of its own"
                )
            hidden[one.subject_id] = f"subject_{number:03d}"
        pairs.append(replace(one, subject_id=hidden.get(one.subject_id, one.subject_id)))
    failures = {}
    for number, (key, reason) in enumerate(found.failures.items(), start=len(pairs) + 1):
        words = {word for path in found.failed_paths.get(key, ()) for word in identifying_words(path)}
        called = f"subject_{number:03d}" if names_patient(key, words) else key
        failures[called] = reason if called == key else reason.replace(key, called)
    for one in pairs:
        if not is_plain(one.subject_id):
            failures[one.subject_id] = f"{one.subject_id!r} is no plain file name; rename the folder"
        elif others := [o.subject_id for o in pairs if o is not one and same_name(o.subject_id, one.subject_id)]:
            failures[one.subject_id] = f"{one.subject_id} and {others[0]} are one name on many disks; rename one"
    usable = tuple(one for one in pairs if one.subject_id not in failures)
    return replace(found, pairs=usable, failures=failures, renamed=frozenset(hidden.values()))


def preview(folder: str | Path, layout: Layout, *, key: str | Path | None = None) -> tuple[list[str], dict[str, str]]:
    """Returns what belongs together, a line each, and why the other subjects fail; writes only the key.

    Raises:
        DataError: as `pair`, or `key` cannot be written.
    """
    pairing = pair(folder, layout)
    if key is not None:
        _write_key(Path(key), pairing)
    lines = []
    for one in pairing.pairs:
        lines.append(f"{one.subject_id}: {len(one.scans)} scan file(s) or series, {len(one.labels)} label source(s)")
        scans = [f"{scan.path}" + (f"#{scan.series}" if scan.series else "") for scan in one.scans]
        lines += [f"    {_without_source(text, one, Path(folder))}" for text in [*scans, *map(str, one.labels)]]
    if pairing.left_out:
        lines.append(f"left aside: {len(pairing.left_out)} file(s) that lie in no subject's folder")
    return lines, pairing.failures


def import_folder(
    folder: str | Path,
    out: str | Path,
    layout: Layout,
    *,
    labels: str | Path | None = None,
    missing: str = "refuse",
    key: str | Path | None = None,
    progress: Progress | None = None,
) -> ImportResult:
    """Makes a dataset in nnU-Net's layout of a lab's folder.

    Args:
        folder: where the scans are.
        out: dataset folder to make, or one that an interrupted import left.
        layout: which scan belongs to which masks.
        labels: table of names and ids; without it structures are numbered in the order of their names.
        missing: one of `MISSING`: what a structure means that other subjects have and this one has not.
        key: CSV to write with the source of every subject; it may name patients.
        progress: called with (steps done, steps in all, subject).

    Raises:
        DataError: nothing to import, `out` holds something else, or no subject could be used.
        ValueError: an unknown `missing`.
    """
    if missing not in MISSING:
        raise ValueError(f"missing is {missing!r}; choose one of {', '.join(MISSING)}")
    out = Path(out)
    pairing = pair(folder, layout)
    if key is not None:
        _write_key(Path(key), pairing)
    table = None if labels is None else read_label_table(labels)
    job = _Job(Path(folder), out, layout, table, missing)
    found, failures = _structures(pairing, job, progress)
    present = {name for one in found.values() for name in one.present}
    label_map = table or _numbered(present, missing)
    before = _claim(out)
    result = ImportResult(out, label_map, failures=dict(pairing.failures) | failures)
    entries: dict[str, Any] = {}
    usable = [one for one in pairing.pairs if one.subject_id in found]
    for number, one in enumerate(usable):
        digest = _digest(one, job, label_map)
        entry = before.get(one.subject_id, {})
        if entry.get("made_from") != digest or not _is_whole(out, one, entry):
            try:
                absent = sorted(present - {"ignore"} - set(found[one.subject_id].considered))
                entry = {"made_from": digest} | _import_subject(one, job, label_map, absent)
            except DataError as error:
                result.failures[one.subject_id] = _without_source(str(error), one, job.folder)
                entry = {}
        if entry:
            entries[one.subject_id] = entry
            write_json(out / NOTE_FILE, {"made_with": provenance(), "subjects": before | entries})
        if progress is not None:
            progress(len(usable) + number + 1, 2 * len(usable), one.subject_id)
    if not entries:
        first = next(iter(result.failures.values()), "no subject found")
        raise DataError(f"{folder}: none of {len(result.failures)} subjects could be imported; the first: {first}")
    write_json(out / NOTE_FILE, {"made_with": provenance(), "subjects": entries})
    write_json(out / "dataset.json", _dataset_json(out, pairing.channels, label_map, entries))
    _clear_others(out, set(entries))
    result.notes.update({subject_id: entry["notes"] for subject_id, entry in entries.items() if entry["notes"]})
    for subject_id in sorted(pairing.renamed & set(entries)):
        told = "called so because its folder names the patient; --key FILE writes which is which"
        result.notes[subject_id] = [told, *result.notes.get(subject_id, [])]
    dataset = read_dataset(out)
    result.problems.update({s.subject_id: wrong for s in dataset.subjects if (wrong := check_subject(s, dataset))})
    return result


@dataclass(frozen=True)
class _Job:
    """What is the same for every subject."""

    folder: Path
    out: Path
    layout: Layout
    table: LabelMap | None
    missing: str


def _structures(pairing: Pairing, job: _Job, progress: Progress | None) -> tuple[dict[str, Structures], dict[str, str]]:
    """Returns subject -> its structures, and subject -> why its labels cannot be read."""
    known: dict[str, Structures] = {}
    failures: dict[str, str] = {}
    for number, one in enumerate(pairing.pairs):
        try:
            listed = [structures(path, table=job.table, prefix=one.subject_id) for path in one.labels]
            present = [name for source in listed for name in source.present]
            if twice := sorted({name for name in present if present.count(name) > 1}):
                raise DataError(f"{one.subject_id}: {twice[0]!r} is in two files; keep one, or choose with --masks")
            considered = tuple(name for source in listed for name in source.considered)
            known[one.subject_id] = Structures(tuple(present), considered)
        except DataError as error:
            failures[one.subject_id] = _without_source(str(error), one, job.folder)
        if progress is not None:
            progress(number + 1, 2 * len(pairing.pairs), one.subject_id)
    return known, failures


def _numbered(names: set[str], missing: str) -> LabelMap:
    structures = sorted(names - {"ignore"})
    ignore = len(structures) + 1 if "ignore" in names or missing == "ignore" else None
    return LabelMap(dict(enumerate(structures, start=1)), ignore=ignore)


def _import_subject(one: Pair, job: _Job, label_map: LabelMap, absent: list[str]) -> dict[str, Any]:
    """Writes image, labels and picture of one subject; returns its entry in `import.json`.

    `absent` are the structures of other subjects that nobody looked for in this one.
    """
    notes: list[str] = []
    images = [_read_scan(scan, job.layout.series) for scan in one.scans]
    for image in images[1:]:
        if not image.geometry.same_grid(images[0].geometry):
            notes.append("a channel lies on another grid than the first and was resampled onto it")
    images = [image if n == 0 else resample_image(image, images[0].geometry) for n, image in enumerate(images)]
    labels = None
    if one.labels:
        labels = _labels(one, job, label_map, images[0], notes)
        if absent and job.missing == "refuse":
            raise DataError(
                f"{one.subject_id}: {', '.join(absent[:6])} not drawn here but in other subjects; say what that means"
                " with --missing background (not in this scan) or --missing ignore (nobody drew it)"
            )
        if absent and job.missing == "ignore":
            labels = labels.with_array(np.where(labels.array == 0, int(label_map.ignore or 0), labels.array))
            notes.append(f"{', '.join(absent[:6])} not drawn: everything without a label counts as unknown")
    else:
        notes.append("no masks: imported without labels")
    for number, image in enumerate(images):
        write_volume(job.out / "imagesTr" / f"{one.subject_id}_{number:04d}.nii.gz", image)
    if labels is not None:
        kind = np.uint8 if int(max(label_map.ids + (label_map.ignore or 0,))) < 256 else np.uint16
        write_volume(job.out / "labelsTr" / f"{one.subject_id}.nii.gz", labels.with_array(labels.array.astype(kind)))
    figure = overlay(images[0], labels, label_map=label_map, title=one.subject_id)
    with atomic_path(job.out / PICTURES / f"{one.subject_id}.png") as temporary:
        temporary.write_bytes(figure_png(figure))
    return {"notes": notes, "labelled": labels is not None, "channels": len(images)}


def _read_scan(scan: Scan, series: str | None) -> Volume:
    wanted = scan.series or series
    if wanted is None or not (scan.path.is_dir() or scan.path.suffix.lower() == ".zip"):
        return read_volume(scan.path)
    names = [info.name for info in list_series(scan.path) if info.is_usable]
    found = matching(names, wanted)
    if len(found) != 1:
        raise DataError(f"{scan.path}: {len(found)} series fit {wanted!r}; there are {', '.join(names) or 'none'}")
    return read_volume(scan.path, series=found[0])


class _PackedMasks(Mapping):
    """Masks by name, one bit a voxel: seventy structures of a whole limb fit into one gigabyte."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._bits: dict[str, np.ndarray] = {}

    def add(self, name: str, mask: np.ndarray) -> None:
        self._bits[name] = np.packbits(mask)

    def __getitem__(self, name: str) -> np.ndarray:
        bits = np.unpackbits(self._bits[name], count=int(np.prod(self._shape)))
        return bits.reshape(self._shape).view(bool)

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


def _labels(one: Pair, job: _Job, label_map: LabelMap, image: Volume, notes: list[str]) -> Volume:
    packed = _PackedMasks(image.geometry.shape)
    for path in one.labels:
        found = masks(path, image.geometry, table=job.table, space=job.layout.space, prefix=one.subject_id)
        for name, mask, note in found:
            notes += [f"{name}: {note}"] * bool(note)
            notes += [f"{name}: empty, nothing of it lies in this scan"] * (not mask.any())
            packed.add(name, mask)
    if not packed:
        return Volume(np.zeros(image.geometry.shape, np.uint8), image.geometry, one.subject_id)
    ids = dict(label_map.names) | ({} if label_map.ignore is None else {label_map.ignore: "ignore"})
    merged, overlaps = merge_masks(packed, LabelMap(ids))
    for (first, second), count in sorted(overlaps.items()):
        millilitres = count * image.geometry.voxel_volume_ml
        notes.append(f"{first} and {second} overlap in {count} voxels ({millilitres:.2f} ml), left as background")
    return Volume(merged, image.geometry, one.subject_id)


def _claim(out: Path) -> dict[str, Any]:
    """Returns the subjects that an earlier import left in `out`; refuses a folder with anything else."""
    if (out / NOTE_FILE).is_file():
        subjects = read_json(out / NOTE_FILE).get("subjects")
        return subjects if isinstance(subjects, dict) else {}
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: is not empty and holds no import; name another folder")
    write_json(out / NOTE_FILE, {"made_with": provenance(), "subjects": {}})
    return {}


def _is_whole(out: Path, one: Pair, entry: Any) -> bool:
    files = [out / "imagesTr" / f"{one.subject_id}_{number:04d}.nii.gz" for number in range(len(one.scans))]
    files += [out / "labelsTr" / f"{one.subject_id}.nii.gz"] if one.labels else []
    return isinstance(entry, dict) and isinstance(entry.get("notes"), list) and all(file.is_file() for file in files)


def _digest(one: Pair, job: _Job, label_map: LabelMap) -> str:
    """Stands for a subject's files and the settings, without naming any of them."""
    paths = [scan.path for scan in one.scans] + list(one.labels)
    files = sorted(
        {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()}
    )
    stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    series = [scan.series or job.layout.series for scan in one.scans]
    settings = [stats, series, job.layout.space, job.missing, label_map.to_dict()]
    return hashlib.sha256(json.dumps(settings).encode("utf-8", "surrogateescape")).hexdigest()


def _dataset_json(out: Path, channels: tuple[str, ...], label_map: LabelMap, entries: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "name": out.resolve().name,
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0} | label_map.to_dict(),
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
    }
    if len({entry["labelled"] for entry in entries.values()}) == 2:  # nnU-Net's list says which have no labels
        content["dataset"] = {
            key: {"images": [f"imagesTr/{key}_{number:04d}.nii.gz" for number in range(entry["channels"])]}
            | ({"label": f"labelsTr/{key}.nii.gz"} if entry["labelled"] else {})
            for key, entry in entries.items()
        }
    return content


def _clear_others(out: Path, subjects: set[str]) -> None:
    """Removes what an earlier import left of subjects that are not in this one."""
    for path in [
        *(out / "imagesTr").glob("*.nii.gz"),
        *(out / "labelsTr").glob("*.nii.gz"),
        *(out / PICTURES).glob("*"),
    ]:
        name = path.name.removesuffix(".nii.gz").removesuffix(".png")
        if name not in subjects and name[:-5] not in subjects:
            path.unlink()


def _words_of(one: Pair) -> set[str]:
    paths = [scan.path for scan in one.scans] + list(one.labels)
    return {word for path in paths for word in identifying_words(path)}


def _without_source(text: str, one: Pair, folder: Path) -> str:
    """Returns a message in which folders that name the patient are called by the subject's id."""
    parts = {part for path in (*(scan.path for scan in one.scans), *one.labels) for part in _parts(path, folder)}
    words = _words_of(one)
    for part in sorted(parts, key=len, reverse=True):
        if names_patient(part, words):
            text = text.replace(part, one.subject_id)
    return text


def _parts(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts if path.is_relative_to(folder) else (path.name,)


def _write_key(path: Path, pairing: Pairing) -> None:
    if path.is_file() and path.read_bytes()[:13].strip() != ",".join(_KEY_COLUMNS).encode():
        raise DataError(f"{path}: is there and is no key of an import; name another file")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_KEY_COLUMNS)
    rows.writerows([one.subject_id, scan.path] for one in pairing.pairs for scan in one.scans)
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
