"""Files that are either whole or not there.

Everything tfmuscle writes goes to a temporary name in the same folder and is renamed when complete, so that a killed
process or a full disk leaves no half-written output. The temporary names start with `.tmp-` and carry the process id.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError

TEMPORARY_PREFIX = ".tmp-"
PROGRESS_VARIABLE = "TFMUSCLE_PROGRESS"
"""Environment variable: the file in which a command notes how far it is, for the program that started it."""
_HOST = re.sub(r"\W+", "", socket.gethostname())[:40] or "host"
"""Part of temporary names: on a shared disk a process number means something on its own machine only."""
_CHUNK_BYTES = 1 << 20
_NOT_WRITABLE = {
    getattr(errno, name)
    for name in (
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
        "ENOTEMPTY",
        "ENAMETOOLONG",
        "ELOOP",
    )
}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` when the block ends well, and vanishes when it does not.

    The temporary name keeps the extension, because image libraries choose the format by it. Works for a file and for a
    folder (an existing folder of that name is replaced).

    Args:
        path: the final path; missing parent folders are made.

    Raises:
        DataError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{_HOST}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _clear_leftovers(path: Path) -> None:
    """Removes what killed processes of this machine left of this file; those of living ones stay."""
    ending = f"-{_HOST}-{path.name}"
    for name in os.listdir(path.parent):  # noqa: PTH208 - glob and iterdir cost much in a folder of thousands of shards
        pid = name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        if name.startswith(TEMPORARY_PREFIX) and name.endswith(ending) and pid.isdigit() and not _is_alive(int(pid)):
            _remove(path.parent / name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DataError(
            f"{path}: the disk is full ({error.strerror}); free some space and run again, this file was not kept"
        )
    # /proc and the like say "no such file" where nobody may make one
    ours = Path(str(error.filename)).name.startswith(TEMPORARY_PREFIX)
    if error.errno in _NOT_WRITABLE or (error.errno == errno.ENOENT and ours and path.parent.is_dir()):
        return DataError(f"{path}: cannot be written ({error.strerror}); choose another output")
    return error


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuses, before any work, to write over what is read.

    Raises:
        DataError: an output is one of the inputs, by whatever name.
    """
    there = [Path(path) for path in inputs if path is not None and Path(path).exists()]
    for out in map(Path, outputs):
        if out.exists() and any(out.samefile(path) for path in there):
            raise DataError(f"{out}: is an input and would be lost; choose another output")


def check_owner(path: Path, made_by: str) -> None:
    """Refuses to replace a JSON file that the same command did not write.

    Raises:
        DataError: it holds something else.
    """
    if path.exists() and read_json(path).get("made_by") != made_by:
        raise DataError(f"{path}: holds something else and the names would replace it; choose another output")


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Returns indented JSON; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        DataError: the file is missing, is no JSON or holds something else.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors put a byte-order mark
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); mend the file or make it anew") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, an object in braces is needed; mend the file")
    return content


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """Returns what made an artefact: versions, machine, and the git commit when tfmuscle runs from a checkout."""
    versions = {"python": platform.python_version()}
    for package in ("tfmuscle", "tensorflow", "keras", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {"versions": versions, "hardware": machine, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    git = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        return (git / head.removeprefix("ref: ")).read_text(encoding="utf-8").strip() if "ref: " in head else head
    except OSError:
        return None
