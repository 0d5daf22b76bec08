"""What becomes of damaged DICOM files: every one must be read or refused in one line.

    python benchmarks/mutations.py DATA --count 1000 --seed 0

Copies of files below DATA are damaged: bits flipped, cut short, values or types of two tags exchanged, absurd sizes and
numbers, tags removed, another transfer syntax claimed, compressed pixels scrambled. Of the originals a fifth are label
objects, two fifths are drawn evenly over transfer syntaxes, the others evenly over all files. Every fifth copy lies
among up to four sound files of its folder, so that stacks of several files are tried too. `list_series`, `read_dicom`
and, for label objects, `read_segmentation` and `read_structure_set` run on each in a process of its own with `--memory`
GB and `--seconds`, so that a decoder that crashes takes nothing else with it.

Counted: read; refused (`DataError`); traceback (any other exception, warnings of numbers included); memory
(`MemoryError`); time-out; crash (the process is gone). The last four are bugs: their files are kept in `--keep`.
"""

import argparse
import collections
import json
import multiprocessing
import os
import queue
import random
import resource
import shutil
import tempfile
import threading
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tfmuscle.errors import DataError
from tfmuscle.io.dicom import list_series, read_dicom
from tfmuscle.io.dicom_labels import label_object_kind, read_segmentation, read_structure_set
from tfmuscle.volume import Geometry

BUGS = ("traceback", "memory", "time-out", "crash")
SMALL_REFERENCE = Geometry((64, 64, 40), np.diag([-4.0, -4.0, 5.0, 1.0]))
_SHORTS = (0, 1, 2, 3, 7, 12, 16, 32, 64, 255, 4096, 32767, 32768, 65535)
_TEXTS = ("", "0", "-1", "1", "2", "3", "999999999", "-2147483648", "1e9", "nan", "inf", "1e300", "1e-300", "x", "\xff")
_SIZES = (
    "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel",
    "PixelRepresentation", "PlanarConfiguration", "PhotometricInterpretation", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept",
    "ImageType", "InstanceNumber", "SegmentNumber", "ReferencedSegmentNumber", "MaximumFractionalValue",
    "SegmentationType", "ContourData", "NumberOfContourPoints", "ROINumber", "ReferencedROINumber",
)  # fmt: skip
_SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5", "1.2.3.4",
)  # fmt: skip


def dicom_files(folder: Path) -> list[Path]:
    """Returns the files below a folder that start as DICOM files do."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(132)[128:] == b"DICM":
                    found.append(path)
    return found


def groups_of(files: list[Path]) -> dict[str, list[Path]]:
    """Returns the files by transfer syntax, and the label objects under "labels"."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        try:
            syntax = str(pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID"))
        except Exception:
            syntax = "unreadable"
        groups.setdefault("labels" if label_object_kind(file) else syntax, []).append(file)
    return groups


def choose(groups: dict[str, list[Path]], chance: random.Random) -> Path:
    """Returns one file to damage."""
    where = chance.random()
    if where < 0.2 and "labels" in groups:
        return chance.choice(groups["labels"])
    if where < 0.6:
        return chance.choice(groups[chance.choice(sorted(groups))])
    return chance.choice([file for group in groups.values() for file in group])


def mutate(path: Path, out: Path, chance: random.Random) -> str:
    """Writes a damaged copy of a file; returns what was done."""
    kind = chance.choice(["flip", "cut", "swap", "size", "size", "remove", "syntax", "pixels"])
    data = path.read_bytes()
    if kind in ("swap", "size", "remove", "syntax"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                change = _edit(path, out, kind, chance)
            if change:
                return change
        except Exception:  # noqa: S110  pydicom cannot write what was never sound: damage its bytes instead
            pass
        kind = "flip"
    if kind == "cut":
        length = chance.randrange(133, max(134, len(data)))
        out.write_bytes(data[:length])
        return f"cut to {length} bytes"
    first = len(data) // 2 if kind == "pixels" else 132
    last = len(data) if kind == "pixels" or chance.random() < 0.5 else min(len(data), 4096)
    changed = bytearray(data)
    for _ in range(chance.choice([1, 3, 10, 100])):
        place = chance.randrange(min(first, last - 1), last)
        changed[place] ^= 1 << chance.randrange(8)
    out.write_bytes(changed)
    return f"{kind}: bits flipped in {first}..{last}"


def _edit(path: Path, out: Path, kind: str, chance: random.Random) -> str:
    dataset = pydicom.dcmread(path)
    if kind == "syntax":
        dataset.file_meta["TransferSyntaxUID"].value = chance.choice(_SYNTAXES)
        _write_raw(dataset, path, out)
        return f"syntax {dataset.file_meta.TransferSyntaxUID}"
    holder = _holder(dataset, chance)
    places = [(holder, tag) for tag in list(holder.keys())]  # iterating the data set itself would parse the values
    if kind == "remove":
        removed = chance.sample(places, min(len(places), chance.choice([1, 1, 2, 4])))
        for holder, tag in removed:
            holder.pop(tag, None)
        done = "removed " + ", ".join(str(tag) for _, tag in removed)
    elif kind == "swap":
        done = _swap(places, chance)
    else:
        sizes = [place for place in places if pydicom.datadict.keyword_for_tag(place[1]) in _SIZES]
        if not sizes:
            return ""
        done = _absurd(*chance.choice(sizes), chance)
    pydicom.dcmwrite(out, dataset, enforce_file_format=False)
    return done


def _holder(dataset: Dataset, chance: random.Random) -> Dataset:
    """Returns the data set, or one on a random way down through its sequences."""
    while chance.random() < 0.6:
        below = [element.value for element in (dataset[tag] for tag in list(dataset.keys())) if element.VR == "SQ"]
        below = [item for sequence in below for item in sequence]
        if not below:
            break
        dataset = chance.choice(below)
    return dataset


def _raw(holder: Dataset, tag: Any) -> RawDataElement | None:
    element = holder.get_item(tag)
    return element if isinstance(element, RawDataElement) else None


def _swap(places: list[tuple[Dataset, Any]], chance: random.Random) -> str:
    raw = [(holder, element) for holder, tag in places if (element := _raw(holder, tag)) is not None]
    (holder, first), (other, second) = chance.sample(raw, 2)
    if chance.random() < 0.5:
        holder[first.tag] = first._replace(value=second.value, length=len(second.value or b""))
        other[second.tag] = second._replace(value=first.value, length=len(first.value or b""))
        return f"exchanged values of {first.tag} and {second.tag}"
    holder[first.tag], other[second.tag] = first._replace(VR=second.VR), second._replace(VR=first.VR)
    return f"exchanged types of {first.tag} and {second.tag}"


def _absurd(holder: Dataset, tag: Any, chance: random.Random) -> str:
    vr = pydicom.datadict.dictionary_VR(tag)
    if vr.startswith("US"):
        value = chance.choice(_SHORTS).to_bytes(2, "little")
    else:
        count = chance.choice([1, 2, 3, 6])
        value = "\\".join(chance.choice(_TEXTS) for _ in range(count)).encode("latin-1")
    value += b" " * (len(value) % 2)
    holder[tag] = RawDataElement(Tag(tag), vr[:2], len(value), value, 0, False, True)
    return f"{pydicom.datadict.keyword_for_tag(tag)} = {value!r}"


def _write_raw(dataset: pydicom.FileDataset, path: Path, out: Path) -> None:
    """Writes the file with another transfer syntax in its meta information and the same bytes after it."""
    data = path.read_bytes()
    start = 132 + 12 + pydicom.dcmread(path, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    meta = pydicom.filebase.DicomBytesIO()
    pydicom.filewriter.write_file_meta_info(meta, dataset.file_meta, enforce_standard=False)
    out.write_bytes(data[:132] + meta.getvalue() + data[start:])


def attempt(path: Path, reference: Geometry, secrets: tuple[str, ...] = ()) -> tuple[str, str]:
    """Reads a file or folder in every way; returns (result, explanation)."""
    results: list[str] = []
    files = [path] if path.is_file() else sorted(path.iterdir())
    try:
        for file in files:
            kind = label_object_kind(file)
            if kind == "segmentation":
                results.append(_outcome(lambda file=file: read_segmentation(file), secrets))  # type: ignore[misc]
                results.append(_outcome(lambda file=file: read_segmentation(file, reference=reference), secrets))  # type: ignore[misc]
            elif kind == "structure set":
                results.append(_outcome(lambda file=file: read_structure_set(file, reference=reference), secrets))  # type: ignore[misc]
        results.append(_outcome(lambda: read_dicom(path), secrets))
        for info in list_series(path):
            _check_text(str(info.to_dict()).replace(str(path), ""), secrets)
            if info.is_usable:
                results.append(_outcome(lambda info=info: read_dicom(path, series=info.name), secrets))  # type: ignore[misc]
    except DataError as error:
        results.append(f"refused {error}")
        if any(secret in str(error) for secret in secrets):
            return "traceback", f"names the patient: {error}"
    except MemoryError:
        return "memory", traceback.format_exc(limit=-6)
    except Exception:
        return "traceback", traceback.format_exc(limit=-8)
    return ("read", "") if "read" in results else ("refused", results[-1])


def _outcome(call: Any, secrets: tuple[str, ...]) -> str:
    try:
        call()
    except DataError as error:
        if "; " not in str(error):
            raise RuntimeError(f"no remedy: {error!r}") from error
        _check_text(str(error), secrets)
        return f"refused {error}"
    return "read"


def _check_text(text: str, secrets: tuple[str, ...]) -> None:
    if not text.isprintable():
        raise RuntimeError(f"not one printable line: {text!r}")
    if any(secret in text for secret in secrets):
        raise RuntimeError(f"names the patient: {text!r}")


def secrets_of(source: Path) -> tuple[str, ...]:
    """Returns the parts of the patient's name and number that no message may hold; short ones prove nothing."""
    try:
        header = pydicom.dcmread(
            source, stop_before_pixels=True, specific_tags=["PatientName", "PatientID", "SeriesNumber"]
        )
        found = f"{header.get('PatientName', '')}^{header.get('PatientID', '')}".split("^")
    except Exception:
        return ()
    return tuple(
        text for text in found if len(text) > 5 and text not in f"{source} Patient {header.get('SeriesNumber')}"
    )


def reference_for(path: Path) -> Geometry:
    """Returns a grid on which the contours of a sound structure set lie; a small one for anything else."""
    if label_object_kind(path) != "structure set":
        return SMALL_REFERENCE
    try:
        contours = [c for roi in pydicom.dcmread(path).ROIContourSequence for c in roi.get("ContourSequence", [])]
        points = np.concatenate([np.array(c.ContourData, dtype=float).reshape(-1, 3) for c in contours])
    except Exception:
        return SMALL_REFERENCE
    depths = np.unique(np.round(points[:, 2], 2))
    step = float(np.diff(depths).min()) if len(depths) > 1 else 3.0
    low, high = points.min(axis=0), points.max(axis=0)
    affine = np.diag([-3.0, -3.0, step, 1.0])
    affine[:3, 3] = [-low[0], -low[1], depths[0]]
    shape = [max(2, int(extent / 3.0) + 1) for extent in (high - low)[:2]]
    return Geometry((shape[0], shape[1], len(depths)), affine)


def serve(connection: Connection, memory_gb: float) -> None:
    """Answers paths with results until the other end closes."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30), int(memory_gb * 2**30)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native decoders write to it
    warnings.simplefilter("error", RuntimeWarning)
    while True:
        try:
            path, reference, secrets = connection.recv()
        except EOFError:
            return
        connection.send(attempt(Path(path), Geometry.from_dict(reference), secrets))


class Reader:
    """A reading process that is started again when it dies or hangs."""

    def __init__(self, memory_gb: float, seconds: float) -> None:
        self.memory_gb, self.seconds = memory_gb, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, self.memory_gb), daemon=True)
        self.process.start()
        other.close()

    def read(self, path: Path, reference: Geometry, secrets: tuple[str, ...] = ()) -> tuple[str, str]:
        """Returns (result, explanation) for one file or folder; `secrets` must be in no message."""
        try:
            self.connection.send((str(path), reference.to_dict(), secrets))
            if self.connection.poll(self.seconds):
                return self.connection.recv()
            result = ("time-out", f"more than {self.seconds:g} s")
        except (EOFError, ConnectionError):
            self.process.join(5)
            result = ("crash", f"exit code {self.process.exitcode}")
        self.close()
        self._start()
        return result

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def make_case(groups: dict[str, list[Path]], folder: Path, number: int, seed: int) -> tuple[Path, Path, str]:
    """Makes damaged copy `number`; returns (what to read, its original, what was done)."""
    chance = random.Random(f"{seed}-{number}")
    source = choose(groups, chance)
    case = folder / f"{number:05d}"
    case.mkdir(parents=True)
    done = mutate(source, case / "damaged.dcm", chance)
    if number % 5:
        return case / "damaged.dcm", source, done
    others = [file for group in groups.values() for file in group if file.parent == source.parent and file != source]
    for other in chance.sample(others, min(4, len(others))):
        shutil.copyfile(other, case / other.name)
    return case, source, done


def run(data: Path, count: int, seed: int, *, keep: Path, memory_gb: float, seconds: float, jobs: int) -> list[dict]:
    """Makes and reads `count` damaged copies; returns one row each."""
    groups, rows = groups_of(dicom_files(data)), []
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(count):
        numbers.put(number)

    def work(folder: Path) -> None:
        reader = Reader(memory_gb, seconds)
        while True:
            try:
                number = numbers.get_nowait()
            except queue.Empty:
                break
            path, source, done = make_case(groups, folder, number, seed)
            started = time.perf_counter()
            result, why = reader.read(path, reference_for(source), secrets_of(source))
            row = {"number": number, "source": str(source.relative_to(data)), "done": done, "result": result}
            rows.append(row | {"why": why, "seconds": round(time.perf_counter() - started, 2)})
            if result in BUGS:
                shutil.copytree(folder / f"{number:05d}", keep / f"{seed}-{number:05d}", dirs_exist_ok=True)
                print(f"{result}: {source.relative_to(data)}: {done}\n{why}", flush=True)
            shutil.rmtree(folder / f"{number:05d}")
        reader.close()

    with tempfile.TemporaryDirectory() as temporary:
        threads = [threading.Thread(target=work, args=(Path(temporary) / str(job),)) for job in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sorted(rows, key=lambda row: row["number"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of sound DICOM files, searched to any depth")
    parser.add_argument("--count", type=int, default=1000, help="damaged copies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=4.0, help="GB of address space of a reading process")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit per copy")
    parser.add_argument("--jobs", type=int, default=1, help="reading processes")
    parser.add_argument("--keep", type=Path, default=Path("mutations"), help="where copies that show a bug go")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # pydicom's quote values
    limits = {"memory_gb": given.memory, "seconds": given.seconds, "jobs": given.jobs}
    rows = run(given.data, given.count, given.seed, keep=given.keep, **limits)
    given.keep.mkdir(parents=True, exist_ok=True)
    (given.keep / f"rows-{given.seed}.json").write_text(json.dumps(rows, indent=1))
    counts = collections.Counter(row["result"] for row in rows)
    for result in ("read", "refused", *BUGS):
        print(f"{result:10} {counts[result]:6}")
    slowest = max((row["seconds"] for row in rows), default=0)
    print(f"slowest {slowest:.1f} s of {given.count} copies, seed {given.seed}")
    raise SystemExit(1 if any(counts[bug] for bug in BUGS) else 0)


if __name__ == "__main__":
    main()
