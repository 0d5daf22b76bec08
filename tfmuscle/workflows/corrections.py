"""The corrections a user makes in the labels that `propagate` wrote: found, kept, and drawn from then on.

The user opens the labels, corrects some slices and saves them under the same name. A slice that differs from what was
written is *corrected*: it counts as drawn, with all its structures, as if it were in the annotations. Corrections are
copied to the state folder before anything else happens, so that they outlive the labels, which are written anew. Where
a slice is both annotated and corrected the correction counts: it was made later.

    <state>/propagation.json       that the folder is ours
    <state>/written.<ending>       the labels as they were written last
    <state>/corrected.npz          slices that were ever corrected, and what is on them
    <state>/stretches/             what was done so far (`propagation/storing.py`)
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, check_owner, read_json, sha256, write_json
from tfmuscle.io import case_id, read_label_image
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Volume

MADE_BY = "tfmuscle propagate"
_ABOUT, _CORRECTED = "propagation.json", "corrected.npz"


@dataclass(frozen=True)
class Place:
    """Where a propagation keeps its things.

    Attributes:
        labels: the label image that the user named.
    """

    labels: Path

    @property
    def state(self) -> Path:
        """Folder of what was done so far."""
        return self.labels.with_name(f"{case_id(self.labels)}_propagation")

    @property
    def written(self) -> Path:
        """Copy of the labels as they were written last."""
        return self.state / ("written" + self.labels.name.removeprefix(case_id(self.labels)))

    def beside(self, ending: str) -> Path:
        """Returns the file of that ending beside the labels."""
        return self.labels.with_name(f"{case_id(self.labels)}{ending}")

    def claim(self) -> None:
        """Makes the state folder.

        Raises:
            DataError: it, or the report, holds something else.
        """
        check_owner(self.beside(".json"), MADE_BY)
        about = self.state / _ABOUT
        if self.state.exists() and not about.exists() and (not self.state.is_dir() or any(self.state.iterdir())):
            raise DataError(f"{self.state}: holds something else; name another output or remove it")
        check_owner(about, MADE_BY)
        if not about.exists():
            write_json(about, {"made_by": MADE_BY})

    def is_edited(self) -> bool:
        """Whether the labels are there and not as they were written."""
        if not self.labels.exists():
            return False
        if self.labels.is_dir():
            raise DataError(f"{self.labels}: is a folder; name a label image")
        found = sha256(self.labels)
        if self.written.exists() and sha256(self.written) == found:
            return False
        beside = self.beside(".json")
        files = read_json(beside).get("files") if beside.exists() else None
        return not isinstance(files, dict) or files.get(self.labels.name) != found

    def publish(self) -> str:
        """Copies the labels from the state folder to where the user wants them; returns their SHA-256."""
        with atomic_path(self.labels) as temporary:
            shutil.copyfile(self.written, temporary)
        return sha256(self.labels)


def take_corrections(
    place: Place, labels: Volume, label_map: LabelMap, axis: int, *, update: bool
) -> dict[int, np.ndarray]:
    """Returns the slices that were corrected in the labels now or earlier, index -> ids.

    Args:
        place: where they are.
        labels: the annotations, for their grid.
        label_map: names the ids.
        axis: of the arrays, along which slices follow each other.
        update: whether edited labels are to be taken for corrections.

    Raises:
        DataError: edited labels that nobody asked to take, or that cannot be taken.
    """
    kept = _read(place.state / _CORRECTED)
    if not place.is_edited():
        return kept
    if not update or not place.written.exists():
        raise DataError(
            f"{place.labels}: is there already and was not written by this command, or has corrections since;"
            + (" --update takes those as drawn slices;" if place.written.exists() else "")
            + " name another output or remove it"
        )
    edited, written = read_label_image(place.labels), read_label_image(place.written)
    if not edited.geometry.same_grid(written.geometry) or not edited.geometry.same_grid(labels.geometry):
        raise DataError(f"{place.labels}: has another grid than it was written with; save it on the scan's grid")
    if unknown := label_map.unknown_ids(edited.array):
        raise DataError(f"{place.labels}: ids {list(unknown)} have no name; correct them or name them (--names)")
    planes, before = (np.moveaxis(volume.array, axis, 0) for volume in (edited, written))
    changed = [index for index in range(len(planes)) if not np.array_equal(planes[index], before[index])]
    kept |= {index: np.ascontiguousarray(planes[index]) for index in changed}
    if kept:
        with atomic_path(place.state / _CORRECTED) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, slices=np.array(list(kept)), planes=np.stack(list(kept.values())))
    return kept


def _read(path: Path) -> dict[int, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            return dict(zip(found["slices"].tolist(), found["planes"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise DataError(f"{path}: is damaged; remove it (the corrections in it are lost) and run again") from None
