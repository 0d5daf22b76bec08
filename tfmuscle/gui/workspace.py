"""The folder that the page works on: what is in it, and which names from the page are allowed.

Names that travel between page and server are paths relative to the folder, with slashes. A name from the page is
resolved, symbolic links included, and must then lie in the folder and be there; hidden files are not for the page.

Listing opens no image: a folder is known by the JSON files in it (dataset, run, bundle, cascade), an image by the
ending of its name, DICOM by the start of a file. Whether an image is a scan or labels is guessed from where it lies and
what it is called; the page lets the user say otherwise.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.io import case_id
from tfmuscle.io.dicom import is_dicom_file, is_zip_file

RESULTS = "results"
"""Folder in the workspace of everything that the page makes."""
HIDDEN = ".tfmuscle"
"""Folder in the workspace of jobs and converted scans."""
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SURFACE_SUFFIXES = (".ply", ".stl")
UPLOAD_SUFFIXES = (*IMAGE_SUFFIXES, *SURFACE_SUFFIXES, ".zip")
DOWNLOAD_SUFFIXES = (".csv", ".dcm")
"""Results that are no images, offered for download."""
MODEL_FILES = {"bundle.json": "bundle", "cascade.json": "cascade", "train.json": "run"}
"""File in a folder -> kind of model that the folder is."""
MAX_FILES = 20_000
"""Files looked at before the listing stops: a home folder given by mistake must not take minutes."""
_TRIED_FOR_DICOM = 3
_LABEL_FOLDERS = re.compile(r"labels|masks?$|predictions?|segmentations?|corrected", re.IGNORECASE)
_LABEL_NAMES = re.compile(r"(^|[_.-])(labels?|seg|segmentation|masks?|corrected|drawn|propagated)([_.-]|\d|$)", re.I)


@dataclass(frozen=True)
class Workspace:
    """A folder, resolved, that the page may see."""

    root: Path

    def __post_init__(self) -> None:
        root = Path(self.root).resolve()
        if not root.is_dir():
            raise DataError(f"{self.root}: there is no such folder; name one that holds scans")
        object.__setattr__(self, "root", root)

    @property
    def hidden(self) -> Path:
        """Folder of the server's own files."""
        return self.root / HIDDEN

    @property
    def results(self) -> Path:
        """Folder of what the page makes."""
        return self.root / RESULTS

    def path(self, name: str) -> Path:
        """Returns the file or folder that a name from the page stands for.

        Raises:
            DataError: no such thing, a hidden one, or one outside the workspace.
        """
        if name == ".":
            return self.root
        parts = name.split("/")
        if not name or "\0" in name or "\\" in name or any(not part or part.startswith(".") for part in parts):
            raise DataError(f"{name[:200]!r}: is no name of a file in the folder of the page; choose one from its list")
        try:
            found = (self.root / name).resolve()
            is_there = found.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{name[:200]!r}: cannot be looked at; choose another file") from error
        if not found.is_relative_to(self.root) or found.is_relative_to(self.hidden):
            raise DataError(f"{name}: leads outside the folder of the page; start tfmuscle gui in the folder it is in")
        if not is_there:
            raise DataError(f"{name}: there is no such file or folder any more; load the list again")
        return found

    def name(self, path: Path) -> str:
        """Returns what the page calls a path in the workspace."""
        return path.relative_to(self.root).as_posix()

    def free(self, folder: str, stem: str, suffix: str = "") -> Path:
        """Returns a path in the results that nothing is at yet: `stem`, else `stem-2`, ..."""
        number, path = 1, self.results / folder / (stem + suffix)
        while path.exists():
            number += 1
            path = self.results / folder / f"{stem}-{number}{suffix}"
        return path

    def listing(self) -> dict[str, Any]:
        """Returns scans, labels, surfaces, DICOM folders, datasets, models and other results, by name."""
        found = _Found()
        for folder, names in self._walk(found):
            self._sort(folder, names, found)
        return {
            "folder": str(self.root),
            "scans": found.scans,
            "labels": found.labels,
            "surfaces": found.surfaces,
            "dicom": found.dicom,
            "datasets": found.datasets,
            "models": found.models,
            "reports": found.reports,
            "is_cut": found.is_cut,
        }

    def _walk(self, found: "_Found") -> Iterator[tuple[Path, list[str]]]:
        seen = 0
        for here, folders, names in os.walk(self.root):
            folder = Path(here)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if kind := next((kind for file, kind in MODEL_FILES.items() if file in names), None):
                found.models.append({"path": self.name(folder), "kind": kind})
                folders.clear()
                continue
            seen += len(names)
            if seen > MAX_FILES:
                found.is_cut = True
                return
            yield folder, sorted(name for name in names if not name.startswith("."))

    def _sort(self, folder: Path, names: list[str], found: "_Found") -> None:
        if "dataset.json" in names:
            found.datasets.append({"path": self.name(folder)})
        others = []
        for name in names:
            path = folder / name
            if name.lower().endswith(IMAGE_SUFFIXES):
                is_labels = "predictions.json" in names or looks_like_labels(path.relative_to(self.root))
                (found.labels if is_labels else found.scans).append({"path": self.name(path)})
            elif name.lower().endswith(SURFACE_SUFFIXES):
                found.surfaces.append({"path": self.name(path)})
            elif name.lower().endswith(".zip"):
                if is_zip_file(path):
                    found.dicom.append({"path": self.name(path)})
            elif folder.is_relative_to(self.results):
                if name == "report.html" or name.lower().endswith(DOWNLOAD_SUFFIXES):
                    found.reports.append({"path": self.name(path)})
            else:
                others.append(path)
        if any(is_dicom_file(path) for path in others[:_TRIED_FOR_DICOM]):
            found.dicom.append({"path": self.name(folder)})


@dataclass
class _Found:
    """What a walk through the workspace has found so far."""

    scans: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    surfaces: list[dict[str, Any]] = field(default_factory=list)
    dicom: list[dict[str, Any]] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    is_cut: bool = False


def looks_like_labels(path: Path) -> bool:
    """Whether an image is labels, by its name and the names of its folders.

    >>> looks_like_labels(Path("labelsTr/leg.nii.gz")), looks_like_labels(Path("imagesTr/leg_0000.nii.gz"))
    (True, False)
    >>> looks_like_labels(Path("leg_corrected-2.nii.gz")), looks_like_labels(Path("segments_of_t1.nii.gz"))
    (True, False)
    """
    return bool(_LABEL_NAMES.search(case_id(path))) or any(_LABEL_FOLDERS.match(part) for part in path.parts[:-1])


def plain_stem(path: Path) -> str:
    """Returns a scan's name, without channel number, as a plain file name.

    >>> plain_stem(Path("a/leg 1_0000.nii.gz"))
    'leg_1'
    """
    stem = re.sub(r"_0000$", "", case_id(path))
    return re.sub(r"[^\w.+-]+", "_", stem).strip("._")[:80] or "scan"
