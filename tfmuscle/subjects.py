"""Subjects and datasets: which files belong together, and what is wrong with them.

Terms. A *subject* is one scan with its channels and, if there are any, its labels. A *dataset* is a folder of subjects
with one label map and one list of channels.

What is read as it is: nnU-Net v2 (`imagesTr/<id>_0000.nii.gz`, `labelsTr/<id>.nii.gz`), the Medical Segmentation
Decathlon (`training: [{image, label}]`, channels in the fourth axis), and any folder whose layout a descriptor gives as
path patterns (`datasets/README.md`). Opening a dataset only lists files; a damaged file is found when it is read, so
that one bad subject does not hide the others. `read_checked` collects all complaints about a subject.

`dataset.json` may come from a stranger: paths that leave the dataset folder and ids that are no plain file names are
refused. An image path that stands C times in `Subject.images` is one file with C channels.
"""

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.io import VOLUME_SUFFIXES, case_id, holds_dicom, is_dicom_folder, read_volume, volume_files
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.volume import Geometry, Volume

_HINT = "; check its permissions"
_CHANNEL_NUMBER = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
_FORBIDDEN_IN_ID = re.compile(r"[/\\\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True)
class Subject:
    """One scan: its channels in order (one file each, or one file repeated) and its labels, if any.

    `prior` is the file of labels that an earlier network gave this scan, for networks that take them as channels.
    """

    subject_id: str
    images: tuple[Path, ...]
    labels: Path | None = None
    prior: Path | None = None

    def __post_init__(self) -> None:
        if not self.subject_id or self.subject_id.startswith(".") or _FORBIDDEN_IN_ID.search(self.subject_id):
            raise ValueError(f"subject id {self.subject_id!r} is no plain file name; use letters, digits, '-' and '_'")
        if not self.images:
            raise ValueError(f"subject {self.subject_id} has no image; give at least one")

    def read_image(self) -> Volume:
        """Reads all channels as one float32 volume `(I, J, K, C)`.

        Raises:
            DataError: a file is missing or broken, the channels lie on different grids, or a voxel is not finite.
        """
        files = self.images
        inside = [None if files.count(path) == 1 else files[:index].count(path) for index, path in enumerate(files)]
        first = _read_channel(self.images[0], inside[0])
        if len(self.images) == 1:
            return Volume(first.array[..., np.newaxis], first.geometry, str(self.images[0]))
        array = np.empty((*first.geometry.shape, len(self.images)), np.float32)
        array[..., 0] = first.array
        for index, path in enumerate(self.images[1:], start=1):
            volume = _read_channel(path, inside[index])
            if not first.geometry.same_grid(volume.geometry):
                difference = _difference(volume.geometry, first.geometry)
                raise DataError(f"{path}: not on the grid of {self.images[0]} ({difference}); resample it")
            array[..., index] = volume.array
        self._check_stored_channels()
        return Volume(array, first.geometry, str(self.images[0]))

    def _check_stored_channels(self) -> None:
        for path in dict.fromkeys(self.images):
            if (wanted := self.images.count(path)) > 1 and path.name.lower().endswith((".nii", ".nii.gz")):
                stored = nib.load(path)
                if isinstance(stored, nib.Nifti1Image) and (count := int(np.prod(stored.shape[3:]))) != wanted:
                    raise DataError(f"{path}: has {count} channels, {wanted} are declared; correct one of them")

    def read_labels(self, label_map: LabelMap) -> Volume:
        """Reads the labels `(I, J, K)` as ids in the smallest unsigned type.

        Raises:
            DataError: the file is missing or broken, holds fractions or ids the map does not name, or labels nothing.
        """
        if self.labels is None:
            raise DataError(f"{self.images[0]}: subject {self.subject_id} has no labels; add a label file")
        volume, values = _read_ids(self.labels, label_map)
        if not values - {0, label_map.ignore}:
            raise DataError(f"{self.labels}: nothing is labelled (empty mask); label it or leave the subject out")
        return volume

    def read_prior(self, label_map: LabelMap, image: Volume) -> Volume | None:
        """Reads the labels of an earlier network, which may be empty, on the grid of `image`; None without `prior`.

        Raises:
            DataError: the file is missing or broken, holds other ids than the map, or lies on another grid.
        """
        return None if self.prior is None else _on_grid_of(image, _read_ids(self.prior, label_map)[0])

    def read(self, label_map: LabelMap) -> tuple[Volume, Volume | None]:
        """Reads image and labels, on one grid; labels are None when the subject has none.

        Raises:
            DataError: as `read_image` and `read_labels`, or labels on another grid.
        """
        image = self.read_image()
        if self.labels is None:
            return image, None
        return image, _on_grid_of(image, self.read_labels(label_map))


@dataclass(frozen=True)
class Dataset:
    """A folder of subjects that share a label map and channels."""

    root: Path
    name: str
    label_map: LabelMap
    channels: tuple[str, ...]
    subjects: tuple[Subject, ...]
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        ids = [subject.subject_id for subject in self.subjects]
        if not ids:
            raise ValueError("no scan found; check the folder, file endings and patterns")
        if twice := sorted(key for key, count in Counter(ids).items() if count > 1):
            raise ValueError(f"subjects {_shorten(twice)} are there twice; give every subject an id of its own")


def read_dataset(path: str | Path, *, descriptor: str | Path | None = None) -> Dataset:
    """Lists the subjects of a dataset folder; image files are not opened.

    Args:
        path: the folder, or the `dataset.json` in it.
        descriptor: a `dataset.json` kept elsewhere that describes the folder, such as those in `datasets/`.

    Raises:
        DataError: no such folder, no or bad `dataset.json`, no scans, or a path that leaves the folder.
    """
    path = Path(path)
    root, index = (path.parent, path) if path.is_file() else (path, path / "dataset.json")
    if not root.is_dir():
        raise DataError(f"{path}: there is no such folder; check the path")
    index = index if descriptor is None else Path(descriptor)
    if not index.is_file():
        raise DataError(f"{root}: holds no dataset.json; write one (as nnU-Net v2) or give a descriptor of the layout")
    if index.name.lower().endswith(VOLUME_SUFFIXES):
        raise DataError(f"{path}: is one image; give the dataset's folder")
    content = read_json(index)
    try:
        return _read_layout(root, content)
    except (ValueError, OSError) as error:
        raise DataError(f"{index}: {error}{_HINT * isinstance(error, OSError)}") from error


def _read_layout(root: Path, content: Any) -> Dataset:
    labels_key = "label_map" if isinstance(content, Mapping) and "images" in content else "labels"
    if not isinstance(content, Mapping) or not isinstance(content.get(labels_key), Mapping):
        raise ValueError(f"has no {labels_key!r} (names and ids of the structures); add it, see datasets/README.md")
    if "images" in content:
        channels = _channel_names(content.get("channels", ["image"]))
        subjects = _described_subjects(root, content, channels)
    elif "training" in content and "channel_names" not in content:
        channels = _channel_names(content.get("modality", ["image"]))
        subjects = _decathlon_subjects(root, content["training"], len(channels))
    else:
        channels = _channel_names(content.get("channel_names", content.get("modality")))
        subjects = _nnunet_subjects(root, content, len(channels))
    name = str(content.get("name") or root.resolve().name)
    licence = str(content.get("licence", content.get("license", "")))
    citation = str(content.get("citation", content.get("reference", "")))
    label_map = LabelMap.from_dict(content[labels_key])
    return Dataset(root, name, label_map, channels, tuple(subjects), licence, citation)


def _described_subjects(root: Path, content: Mapping[str, Any], channels: tuple[str, ...]) -> list[Subject]:
    images = [content["images"]] * len(channels) if isinstance(content["images"], str) else content["images"]
    if not isinstance(images, list) or len(images) != len(channels):
        raise ValueError(f"image patterns are {images!r} for {len(channels)} channels; give one, or a list of one each")
    label_pattern = content.get("labels")
    patterns = [*images, *([] if label_pattern is None else [label_pattern])]
    for pattern in patterns:
        if not isinstance(pattern, str) or "{id}" not in pattern:
            raise ValueError(f"pattern {pattern!r} does not say where the subject id stands; write {{id}} there")
    id_of: dict[Path, str] = {}
    for pattern in sorted(patterns, key=len):  # a longer pattern is more specific and claims its files last
        id_of |= _matches(root, pattern)
    subjects = []
    for key in sorted(set(id_of.values())):
        files = tuple(_inside(root, pattern.replace("{id}", key)) for pattern in images)
        labels = None if label_pattern is None else _inside(root, label_pattern.replace("{id}", key))
        subjects.append(Subject(key, files, labels))
    return subjects


def _matches(root: Path, pattern: str) -> dict[Path, str]:
    pieces = _inside(root, pattern).relative_to(root).as_posix().split("{id}")
    again = "".join("(?P=id)" + re.escape(piece) for piece in pieces[2:])
    regex = re.compile("(?P<id>[^./][^/]*)".join(map(re.escape, pieces[:2])) + again)
    files = root.glob("*".join(map(glob.escape, pieces)))
    matches = {path: regex.fullmatch(path.relative_to(root).as_posix()) for path in files}
    return {path: match["id"] for path, match in matches.items() if match}


def _decathlon_subjects(root: Path, entries: Any, num_channels: int) -> list[Subject]:
    subjects = []
    for entry in entries if isinstance(entries, list) else [entries]:
        image = entry.get("image") if isinstance(entry, Mapping) else None
        images = [image] * num_channels if isinstance(image, str) else None
        subjects.append(_listed_subject(root, entry, case_id(Path(str(image))), images))
    return subjects


def _listed_subject(root: Path, entry: Any, subject_id: str, images: Any) -> Subject:
    if not isinstance(entry, Mapping) or not isinstance(images, list) or not images:
        raise ValueError(f"the entry {entry!r} of {subject_id} names no image; write {{'image': ..., 'label': ...}}")
    labels = None if entry.get("label") is None else _inside(root, entry["label"])
    return Subject(subject_id, tuple(_inside(root, image) for image in images), labels)


def _nnunet_subjects(root: Path, content: Mapping[str, Any], num_channels: int) -> list[Subject]:
    if isinstance(content.get("dataset"), Mapping):
        entries = {key: entry if isinstance(entry, Mapping) else {} for key, entry in content["dataset"].items()}
        return [_listed_subject(root, entry, key, entry.get("images")) for key, entry in sorted(entries.items())]
    images, labels = root / "imagesTr", root / "labelsTr"
    if not images.is_dir():
        raise ValueError(f"there is no folder {images}; put the images there, named <id>_0000 and so on")
    ending = str(content.get("file_ending", ".nii.gz"))
    channels_of: dict[str, set[int]] = {key: set() for key in _names_with(labels, ending)}
    for name in _names_with(images, ending):
        match = _CHANNEL_NUMBER.fullmatch(name)
        if match is None:
            raise ValueError(f"{images / (name + ending)} lacks its channel number; name it {name}_0000{ending}")
        channels_of.setdefault(match["id"], set()).add(int(match["channel"]))
    subjects = []
    for key, present in sorted(channels_of.items()):
        numbers = sorted(present | set(range(num_channels)))  # a missing file is named when it is read
        files = tuple(images / f"{key}_{number:04d}{ending}" for number in numbers)
        subjects.append(Subject(key, files, labels / f"{key}{ending}" if labels.is_dir() else None))
    return subjects


def _names_with(folder: Path, ending: str) -> list[str]:
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return [name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith(".")]


def _inside(root: Path, text: Any) -> Path:
    flat = str(text).replace("\\", "/")
    normal = posixpath.normpath(flat)
    if not isinstance(text, str) or flat.startswith("/") or normal.split("/")[0] == ".." or re.match("[A-Za-z]:", flat):
        raise ValueError(f"path {text!r} leaves the dataset folder; use paths inside it")
    return root / normal


def _channel_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping) and sorted(value) == sorted(str(number) for number in range(len(value))):
        value = [value[str(number)] for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise ValueError(f'channel names are {value!r}; write {{"0": "T1", "1": ...}} with numbers from 0')
    return tuple(str(name) for name in value)


def read_scans(path: str | Path, channels: tuple[str, ...]) -> tuple[Subject, ...]:
    """Finds the scans to segment: one file, a DICOM folder or zip, or a folder of files, DICOM folders and zips.

    Several channels are files `<id>_0000`, ... or a fourth axis. With one channel a `_0000` is not part of the id.

    Raises:
        DataError: nothing to segment there, or two scans of one name. Missing or surplus channels show on reading.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    try:
        if path.is_file():
            together = len(channels) > 1 and _CHANNEL_NUMBER.fullmatch(case_id(path))
            files = [one for one in volume_files(path.parent) if case_id(one)[:-5] == case_id(path)[:-5]]
            subjects = _grouped(files if together else [path], len(channels))
        elif is_dicom_folder(path):
            subjects = [Subject(path.resolve().name, (path,))]
        else:
            items = [item for item in sorted(path.iterdir()) if not item.name.startswith(".")]
            found = [item for item in items if (item.is_dir() or item.suffix.lower() == ".zip") and holds_dicom(item)]
            subjects = [Subject(case_id(item), (item,)) for item in found]
            subjects += _grouped(volume_files(path), len(channels))
        return Dataset(path, path.name, LabelMap({}), channels, tuple(subjects)).subjects
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}{_HINT * isinstance(error, OSError)}") from error


def _grouped(files: Iterable[Path], num_channels: int) -> list[Subject]:
    groups: dict[str, dict[int, Path]] = {}
    subjects = []
    for file in files:
        match = _CHANNEL_NUMBER.fullmatch(case_id(file))
        if match is None:
            subjects.append(Subject(case_id(file), (file,) * num_channels))
        elif int(match["channel"]) in groups.setdefault(match["id"], {}):
            raise ValueError(f"{file.name}: another file has this name and channel; keep one of them")
        else:
            groups[match["id"]][int(match["channel"])] = file
    for key, group in groups.items():
        if num_channels == 1 and 0 not in group:  # numbers of frames or dates, not of channels
            subjects += [Subject(case_id(file), (file,)) for file in group.values()]
            continue
        ending = (some := next(iter(group.values()))).name.removeprefix(case_id(some))
        numbers = sorted(set(group) | set(range(num_channels)))
        missing = {number: some.with_name(f"{key}_{number:04d}{ending}") for number in numbers}
        subjects.append(Subject(key, tuple((missing | group)[number] for number in numbers)))
    return sorted(subjects, key=lambda subject: subject.subject_id)


def read_checked(subject: Subject, dataset: Dataset) -> tuple[Volume | None, Volume | None, list[str]]:
    """Reads a subject and collects what is wrong with it; a part that cannot be read is None."""
    image, labels, problems = None, None, []
    if (count := len(subject.images)) != (wanted := len(dataset.channels)):
        names = ", ".join(dataset.channels)
        problems.append(f"{subject.images[-1]}: {count} channels, {wanted} are declared ({names}); correct one of them")
    try:
        image = subject.read_image()
        for channel, path in enumerate(subject.images):
            if (value := image.array[..., channel].min()) == image.array[..., channel].max():
                problems.append(f"{path}: constant image, every voxel is {value:g}; export it again or leave it out")
    except DataError as error:
        problems.append(str(error))
    try:
        labels = None if subject.labels is None else subject.read_labels(dataset.label_map)
        if image is not None and labels is not None:
            labels = _on_grid_of(image, labels)
    except DataError as error:
        problems.append(str(error))
    return image, labels, problems


def check_subject(subject: Subject, dataset: Dataset) -> list[str]:
    """Returns what is wrong with a subject, each problem in one line naming file and remedy; [] when it is fine."""
    return read_checked(subject, dataset)[2]


def _read_channel(path: Path, channel: int | None) -> Volume:
    volume = read_volume(path, channel=channel)
    with np.errstate(over="ignore"):
        array = volume.array.astype(np.float32, copy=False)
    if volume.array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        count = int(array.size - np.isfinite(array).sum())
        raise DataError(f"{path}: {count} voxels are NaN or infinite; replace them by numbers and save again")
    return volume.with_array(array)


def _read_ids(path: Path, label_map: LabelMap) -> tuple[Volume, set[int]]:
    """Returns the ids of a label file in the smallest unsigned type, and which there are."""
    volume = read_volume(path)
    values = distinct(volume.array)
    broken = [f"{value:g}" for value in values if not np.isfinite(value) or value != np.rint(value)]
    if broken:
        raise DataError(f"{path}: labels must be whole numbers, found {_shorten(broken)}; resample by nearest")
    if unknown := label_map.unknown_ids(values):
        known = _shorten(f"{key} {name}" for key, name in label_map.names.items())
        raise DataError(f"{path}: label ids {_shorten(unknown)} are not among {known}; name or remove them")
    kind = np.min_scalar_type(int(values.max()))
    return volume.with_array(volume.array.astype(kind, copy=False)), set(map(int, values))


def _on_grid_of(image: Volume, labels: Volume) -> Volume:
    if not labels.geometry.same_grid(image.geometry):
        difference = _difference(labels.geometry, image.geometry)
        raise DataError(f"{labels.source}: on another grid than {image.source} ({difference}); resample by nearest")
    return Volume(labels.array, image.geometry, labels.source)


def _difference(one: Geometry, other: Geometry) -> str:
    if one.shape != other.shape:
        return f"shape {one.shape} against {other.shape}"
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(one.shape) - 1)
    return f"corners up to {np.abs(one.world(corners) - other.world(corners)).max():.3g} mm apart"


def _shorten(items: Iterable[Any]) -> str:
    shown = [str(item) for item in items]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
