"""Which scan belongs to which masks: by the folders of a lab, by patterns, or by a table.

**Folders** (nothing given): every folder in FOLDER is a subject. Labels are its surfaces, DICOM SEG and RTSTRUCT, and
the images that a word in their name or in a folder's name calls so (`mask`, `label`, `seg`, `segmentation`, `roi`,
also in the plural). What is left must be one scan: one image file, or one folder of DICOM.

**Patterns**: paths inside FOLDER in which `{id}` stands for the subject and `*` for anything within one name:
`{id}/T1.nii.gz`, `scans/{id}_*.nii.gz`; a file that fits two belongs to the longer one. A scan's pattern may start
with the channel's name (`water={id}/dixon`) and end with the DICOM series to choose (`{id}/dixon#*water*`).

**Table**: a CSV with the columns `subject`, `scan` (or `scan:<channel>`, one a channel) and `masks` (several
separated by `;`, `*` allowed); paths are relative to FOLDER. A scan may end with `#series` here too.

Nothing is guessed: a subject with two possible scans is refused, and named with both.
"""

import csv
import fnmatch
import glob
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.io import VOLUME_SUFFIXES, is_dicom_folder
from tfmuscle.label_sources import source_kind

NOTE_FILE = "import.json"
"""What marks a folder as an import's result, which is never a subject of the next import."""
_LABEL_WORD = re.compile(r"(?:^|[^a-z])(?:masks?|labels?|seg|segs|segmentations?|rois?)(?:[^a-z]|$)")
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True)
class Scan:
    """One channel of a scan: a file or a DICOM folder, and which of its series (a glob on names), if it has several."""

    path: Path
    series: str | None = None


@dataclass(frozen=True)
class Pair:
    """One subject: a scan per channel, its label sources, and the folder name it was found under."""

    subject_id: str
    scans: tuple[Scan, ...]
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Layout:
    """How a lab's folder is laid out.

    Attributes:
        scans: patterns of scans, one a channel; empty for folders or a table.
        masks: patterns of label sources.
        table: CSV that pairs them.
        series: DICOM series to take, for scans whose pattern does not say.
        space: "ras" or "lps", for surfaces whose header does not say.
    """

    scans: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    table: Path | None = None
    series: str | None = None
    space: str | None = None

    def __post_init__(self) -> None:
        if self.table is not None and (self.scans or self.masks):
            raise ValueError("a table already pairs scans and masks; leave --scan and --masks out")
        if self.masks and not self.scans:
            raise ValueError("patterns of masks need the pattern of their scan; add --scan")
        for pattern in (*self.scans, *self.masks):
            if "{id}" not in pattern:
                raise ValueError(f"pattern {pattern!r} does not say where the subject stands; write {{id}} there")


@dataclass(frozen=True)
class Pairing:
    """What was found: subjects, channels, subjects that cannot be used (id -> why), and what was left aside.

    `failed_paths` are the files found for failed subjects; `renamed` are ids given instead of names of patients.
    """

    pairs: tuple[Pair, ...]
    channels: tuple[str, ...]
    failures: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    failed_paths: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    renamed: frozenset[str] = frozenset()


def pair_up(folder: str | Path, layout: Layout) -> Pairing:
    """Pairs the scans of a folder with their masks; images are not opened.

    Raises:
        DataError: no such folder, a bad table, or nothing found at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    if layout.table is not None:
        found = _by_table(folder, layout.table)
    elif layout.scans:
        found = _by_patterns(folder, layout)
    else:
        found = _by_folders(folder)
    if not found.pairs and not found.failures:
        raise DataError(f"{folder}: no scan found; say where scans and masks are with --scan and --masks, or --table")
    return found


def _by_folders(folder: Path) -> Pairing:
    pairs, failures = [], {}
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for subject in (path for path in entries if path.is_dir() and not (path / NOTE_FILE).is_file()):
        scans, labels = _sorted_out(subject)
        if len(scans) == 1:
            pairs.append(Pair(subject.name, (Scan(scans[0]),), tuple(labels)))
        elif scans:
            names = ", ".join(str(path.relative_to(subject)) for path in scans[:6])
            failures[subject.name] = (
                f"{subject}: {len(scans)} possible scans ({names}); choose with --scan '{{id}}/...'"
            )
        else:
            failures[subject.name] = f"{subject}: no scan, {len(labels)} mask(s); add the scan or remove the folder"
    broken = [path.name for path in entries if path.is_symlink() and not path.exists()]
    failures |= {name: f"{folder / name}: a link to nothing; mend or remove it" for name in broken}
    left_out = tuple(path.name for path in entries if path.is_file())
    failed_paths: dict[str, tuple[Path, ...]] = {name: (folder / name,) for name in failures}
    return Pairing(tuple(pairs), ("image",), failures, left_out, failed_paths)


def _sorted_out(subject: Path) -> tuple[list[Path], list[Path]]:
    """Returns the possible scans and the label sources of a subject's folder, deep."""
    scans, labels = [], []
    for item in _walk(subject):
        if item.is_dir():
            scans.append(item)
            continue
        kind = source_kind(item)
        inside = item.relative_to(subject).as_posix().lower()
        if kind == "image" and not _LABEL_WORD.search(inside):
            scans.append(item)
        elif kind is not None:
            labels.append(item)
        elif item.suffix.lower() == ".zip":
            scans.append(item)
    return scans, labels


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yields files, and folders of DICOM images as one; label objects in them are yielded too.

    A link to a folder `above` is not followed.
    """
    here = folder.resolve()
    if here in above:
        return
    items = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in items if path.is_file()]
    if is_dicom_folder(folder):
        objects = {path for path in files if source_kind(path) in ("segmentation", "structure set")}
        others = [path for path in files if path not in objects and not path.name.lower().endswith(VOLUME_SUFFIXES)]
        if any(source_kind(path) is None and path.suffix.lower() not in (".zip", ".txt", ".json") for path in others):
            yield folder
        files = [path for path in files if path in objects or source_kind(path) in ("surface", "image")]
    yield from files
    for path in items:
        if path.is_dir():
            yield from _walk(path, above | {here, here.parent})


def _by_patterns(folder: Path, layout: Layout) -> Pairing:
    named = [_channel(text) for text in layout.scans]
    names = tuple(name for name, _ in named)
    patterns = [text.partition("#")[0] for _, text in named] + list(layout.masks)
    owner: dict[Path, tuple[str, str]] = {}
    for pattern in sorted(set(patterns), key=len):
        fitting = _matches(folder, pattern)
        if not fitting and pattern in layout.masks:
            raise DataError(
                f"{folder}: nothing fits the masks' pattern {pattern!r}; * and {{id}} stand for one name each, not for"
                " several folders"
            )
        for subject_id, path in fitting:
            owner[path] = pattern, subject_id  # a longer pattern is more specific and claims its files last
    found: dict[str, dict[int, list[Scan]]] = {}
    labels: dict[str, list[Path]] = {}
    for path, (owning, subject_id) in sorted(owner.items()):
        for number, pattern in enumerate(patterns):
            if pattern == owning and number < len(named):
                series = named[number][1].partition("#")[2] or None
                found.setdefault(subject_id, {}).setdefault(number, []).append(Scan(path, series))
            elif pattern == owning:
                labels.setdefault(subject_id, []).append(path)
    pairs, failures = [], {}
    for subject_id in sorted(set(found) | set(labels)):
        per_channel = found.get(subject_id, {})
        wrong = [names[number] for number in range(len(named)) if len(per_channel.get(number, [])) != 1]
        if wrong:
            count = len(per_channel.get(names.index(wrong[0]), []))
            failures[subject_id] = f"{subject_id}: {count} scans fit the pattern of {wrong[0]!r}; exactly one is needed"
            continue
        scans = tuple(per_channel[number][0] for number in range(len(named)))
        pairs.append(Pair(subject_id, scans, tuple(labels.get(subject_id, []))))
    all_paths = {key: [scan.path for scans in found.get(key, {}).values() for scan in scans] for key in failures}
    failed_paths = {key: (*paths, *labels.get(key, [])) for key, paths in all_paths.items()}
    return Pairing(tuple(pairs), names, failures, failed_paths=failed_paths)


def _channel(text: str) -> tuple[str, str]:
    """Splits `water={id}/w.nii.gz` into name and pattern."""
    name, equals, pattern = text.partition("=")
    return (name, pattern) if equals and "{id}" not in name and "/" not in name else ("image", text)


def _matches(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """Returns (subject, path) of everything in the folder that fits a pattern with `{id}` and `*`."""
    parts = re.split(r"(\{id\}|\*)", pattern)
    expression, seen = "", False
    for part in parts:
        if part == "{id}":
            expression += "(?P=id)" if seen else r"(?P<id>[^./][^/]*?)"
            seen = True
        else:
            expression += "[^/]*" if part == "*" else re.escape(part)
    wanted = re.compile(expression)
    wild = "".join("*" if part in ("{id}", "*") else glob.escape(part) for part in parts)
    if ".." in Path(pattern).parts or Path(pattern).is_absolute():
        raise DataError(f"{folder}: the pattern {pattern!r} leaves the folder; use paths inside it")
    found = []
    for path in sorted(folder.glob(wild)):
        if match := wanted.fullmatch(path.relative_to(folder).as_posix()):
            found.append((match["id"], path))
    return found


def _by_table(folder: Path, table: Path) -> Pairing:
    rows = _rows(table)
    columns = [name for name in rows[0] if name == "scan" or name.startswith("scan:")]
    if not columns or "subject" not in rows[0]:
        raise DataError(f"{table}: the columns subject and scan are needed (and masks); found {', '.join(rows[0])}")
    channels = tuple(name.partition(":")[2] or "image" for name in columns)
    pairs, failures = [], {}
    for row in rows:
        subject_id = row["subject"]
        try:
            scans = tuple(_scan(folder, row[name]) for name in columns)
            labels = [path for text in row.get("masks", "").split(";") if text.strip() for path in _files(folder, text)]
        except ValueError as error:
            failures[subject_id] = f"{table}: {error}"
            continue
        pairs.append(Pair(subject_id, scans, tuple(labels)))
    return Pairing(tuple(pairs), channels, failures)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            sample = file.read(4096)
            file.seek(0)
            delimiter = ";" if sample.split("\n")[0].count(";") > sample.split("\n")[0].count(",") else ","
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
            rows = [
                {str(key).strip().lower(): str(value or "").strip() for key, value in row.items()} for row in reader
            ]
    except FileNotFoundError:
        raise DataError(f"{table}: there is no such file; check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable CSV ({error}); save it as CSV in UTF-8") from error
    ids = [row.get("subject", "") for row in rows]
    if not rows or "" in ids and "subject" in rows[0]:
        raise DataError(f"{table}: no rows, or a row without subject; one row a subject is needed")
    if twice := sorted({one for one in ids if ids.count(one) > 1 and one}):
        raise DataError(f"{table}: subject {twice[0]!r} is there twice; one row a subject is needed")
    return rows


def _scan(folder: Path, text: str) -> Scan:
    path, _, series = text.partition("#")
    found = _files(folder, path)
    if len(found) != 1:
        raise ValueError(f"{len(found)} scans fit {path!r}; exactly one is needed")
    return Scan(found[0], series or None)


def _files(folder: Path, text: str) -> list[Path]:
    text = text.strip().replace("\\", "/")
    if not text or text.startswith("/") or ".." in Path(text).parts or re.match("[A-Za-z]:", text):
        raise ValueError(f"the path {text!r} is empty or leaves the folder; use paths inside it")
    found = sorted(folder.glob(text)) if "*" in text else [folder / text] if (folder / text).exists() else []
    if not found:
        raise ValueError(f"nothing fits {text!r} in {folder}; check the path")
    return found


def matching(names: Iterable[str], wanted: str) -> list[str]:
    """Returns the series names that are `wanted`, or that fit it as a glob, without regard to case.

    >>> matching(["5-t1", "7-dixon-water", "7-dixon-fat"], "*Water*")
    ['7-dixon-water']
    """
    listed: Sequence[str] = list(names)
    return [name for name in listed if name == wanted] or [
        name for name in listed if fnmatch.fnmatch(name.lower(), wanted.lower())
    ]


def same_name(first: str, second: str) -> bool:
    """Whether two ids are one file name on a disk that ignores letter case or the spelling of accents.

    >>> same_name("Leg01", "leg01"), same_name("leg1", "leg01")
    (True, False)
    """
    one, other = (unicodedata.normalize("NFC", text.casefold()) for text in (first, second))
    return one == other


def is_plain(subject_id: str) -> bool:
    """Whether an id can be a file name everywhere."""
    return bool(subject_id) and not subject_id.startswith(".") and not _FORBIDDEN.search(subject_id)
