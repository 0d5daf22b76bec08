"""The addresses of the page: what it may ask, and what happens then.

Every answer that is no file is JSON; what is wrong is one line under `error`. A `DataError` is the user's file or field
(400); what a route does not expect is our bug (500, with a traceback on the terminal).
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from tfmuscle.errors import DataError
from tfmuscle.gui.commands import make_command
from tfmuscle.gui.edits import Edit, save_edit, version_of
from tfmuscle.gui.guard import BodyTooLarge, Guard
from tfmuscle.gui.jobs import Jobs
from tfmuscle.gui.volumes import Scan, Volumes
from tfmuscle.gui.workspace import UPLOAD_SUFFIXES, Workspace

STATIC = Path(__file__).parent / "static"
_PART_SECONDS = 86_400
_NO_STORE = {"cache-control": "no-store"}


def make_app(folder: str | Path, *, port: int, token: str) -> Guard:
    """Makes the application for a folder, guarded.

    Args:
        folder: the workspace.
        port: where it will be served.
        token: what callers must know.

    Raises:
        DataError: there is no such folder.
    """
    workspace = Workspace(Path(folder))
    volumes, jobs = Volumes(workspace), Jobs(workspace)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        _forget_parts(workspace)
        yield
        jobs.stop()

    app = FastAPI(title="tfmuscle", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(DataError, lambda _, error: _refused(400, str(error)))
    app.add_exception_handler(BodyTooLarge, lambda _, error: _refused(413, str(error)))
    app.add_exception_handler(HTTPException, lambda _, error: _refused(error.status_code, str(error.detail)))
    app.add_exception_handler(RequestValidationError, lambda _, error: _refused(422, _first(error)))
    _add_views(app, workspace, volumes)
    _add_jobs(app, workspace, volumes, jobs)
    _add_files(app, workspace, volumes)
    app.mount("/static", StaticFiles(directory=STATIC))
    return Guard(app, port=port, token=token)


def serve(folder: str | Path, *, port: int | None, browser: bool, tell: Callable[[str], None]) -> None:
    """Serves the page of a folder on 127.0.0.1 until it is interrupted.

    Args:
        folder: the workspace.
        port: a free one is taken without.
        browser: open the page in the user's browser.
        tell: called with the page's address.

    Raises:
        DataError: no such folder, or the port is taken.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port or 0))
            listening.listen()  # before the address is told: a visitor waits then, and is not turned away
        except OSError as error:
            raise DataError(f"port {port}: cannot be had ({error.strerror}); choose another --port, or none") from error
        chosen, token = listening.getsockname()[1], secrets.token_urlsafe(32)
        app = make_app(folder, port=chosen, token=token)
        address = f"http://127.0.0.1:{chosen}/?token={token}"
        tell(address)
        if browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=5)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listening])


def _add_views(app: FastAPI, workspace: Workspace, volumes: Volumes) -> None:
    """What the page shows: itself, the folder, scans, labels."""

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=_NO_STORE)

    @app.get("/api/workspace")
    def listing() -> dict[str, Any]:
        return workspace.listing()

    @app.get("/api/series")
    def series(path: str) -> dict[str, Any]:
        return {"series": [one.to_dict() | {"usable": one.is_usable} for one in volumes.series(workspace.path(path))]}

    @app.get("/api/scan")
    def scan(path: str, series: str | None = None) -> dict[str, Any]:
        return volumes.about(Scan(workspace.path(path), series))

    @app.get("/api/scan.nii")
    def scan_file(path: str, series: str | None = None) -> FileResponse:
        file = volumes.scan_file(Scan(workspace.path(path), series))
        packed = {"content-encoding": "gzip"} if file.name.endswith(".gz") else {}  # the browser unpacks faster
        return FileResponse(file, media_type="application/octet-stream", headers=_NO_STORE | packed)

    @app.get("/api/surface.ply")
    def surface(path: str) -> FileResponse:
        return FileResponse(volumes.surface_file(workspace.path(path)), headers=_NO_STORE)

    @app.get("/api/hip")
    def hip(path: str, series: str | None = None) -> dict[str, Any]:
        return volumes.hip(Scan(workspace.path(path), series))

    @app.get("/api/labels")
    def labels(path: str, scan: str, series: str | None = None) -> dict[str, Any]:
        found = workspace.path(path)
        _, table = volumes.label_file(found, Scan(workspace.path(scan), series))
        return table | {"version": version_of(found)}

    @app.get("/api/labels.nii")
    def label_file(path: str, scan: str, series: str | None = None) -> FileResponse:
        file, _ = volumes.label_file(workspace.path(path), Scan(workspace.path(scan), series))
        return FileResponse(file, headers=_NO_STORE)


def _add_jobs(app: FastAPI, workspace: Workspace, volumes: Volumes, jobs: Jobs) -> None:
    """Commands that the page asks for."""

    @app.get("/api/jobs")
    def listed() -> dict[str, Any]:
        return {"jobs": jobs.listed()}

    @app.post("/api/jobs")
    async def submit(request: Request) -> dict[str, str]:
        content = _parsed(await request.body())
        kind = content.get("command")
        if not isinstance(kind, str):
            raise DataError(f"command is {kind!r}; the name of one is needed")
        return {"id": await run_in_threadpool(lambda: jobs.submit(make_command(kind, content, workspace, volumes)))}

    @app.get("/api/jobs/{job}/log")
    def log(job: str) -> dict[str, str]:
        return {"log": jobs.log(job)}

    @app.post("/api/jobs/{job}/cancel")
    def cancel(job: str) -> dict[str, bool]:
        jobs.cancel(job)
        return {"asked": True}


def _add_files(app: FastAPI, workspace: Workspace, volumes: Volumes) -> None:
    """Files that come and go."""

    @app.get("/api/file")
    def download(path: str) -> FileResponse:
        found = workspace.path(path)
        if not found.is_file():
            raise DataError(f"{path}: is a folder; choose a file in it")
        name = f"attachment; filename*=UTF-8''{quote(found.name)}"
        headers = _NO_STORE | {"content-disposition": name, "content-security-policy": "sandbox"}
        return FileResponse(found, media_type="application/octet-stream", headers=headers)

    @app.post("/api/uploads")
    async def upload(request: Request, name: str) -> dict[str, str]:
        stem, suffix = _upload_name(name)
        part = await _received(request, workspace)
        try:
            path = workspace.free("uploads", stem, suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return {"path": workspace.name(path)}

    @app.post("/api/edits")
    async def edit(
        request: Request, scan: str, names: str, series: str | None = None, labels: str | None = None, version: str = ""
    ) -> dict[str, Any]:
        of = None if labels is None else workspace.path(labels)
        about = Edit(Scan(workspace.path(scan), series), of, _names(names), version)
        part = await _received(request, workspace, ".nii.gz")
        try:
            saved = await run_in_threadpool(lambda: save_edit(part, about, workspace, volumes))
        finally:
            part.unlink(missing_ok=True)
        told = {"version": saved.version, "changed": saved.changed, "beside": saved.is_beside}
        return told | {"path": workspace.name(saved.path)}


async def _received(request: Request, workspace: Workspace, suffix: str = ".part") -> Path:
    """Writes a request's body into a file of the server, piece by piece; the guard counts."""
    folder = workspace.hidden / "uploads"
    path = folder / f"{secrets.token_hex(8)}{suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            async for piece in request.stream():
                file.write(piece)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DataError(f"{folder}: cannot be written ({error.strerror}); free some space and send it again") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _forget_parts(workspace: Workspace) -> None:
    """Removes what killed servers left of requests; a day old, because another server may be writing its own."""
    for part in (workspace.hidden / "uploads").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # its server was quicker
            if time.time() - part.stat().st_mtime > _PART_SECONDS:
                part.unlink()


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); an object is needed") from error
    if not isinstance(content, dict):
        raise DataError(f"JSON of a {type(content).__name__}; an object is needed")
    return content


def _names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"names: not valid JSON ({error}); a list of texts is needed") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("names: no list of texts; give the names of the structures, index 1 first")
    return tuple(names)


def _upload_name(name: str) -> tuple[str, str]:
    """Takes an uploaded file's name apart; refuses what is no plain name of an image or zip."""
    suffix = next((one for one in UPLOAD_SUFFIXES if name.lower().endswith(one)), "")
    stem = name[: len(name) - len(suffix)]
    if not suffix or not stem or stem.startswith(".") or any(sign in stem for sign in '/\\\0:"<>|?*'):
        raise DataError(f"{name[:80]!r}: is no plain file name that ends in {', '.join(UPLOAD_SUFFIXES)}; rename it")
    if not stem.isprintable() or len(name.encode()) > 200:
        raise DataError(f"{name[:80]!r}: is too long or not printable; rename it")
    return stem, suffix


def _refused(status: int, error: str) -> JSONResponse:
    headers = _NO_STORE | ({"connection": "close"} if status == 413 else {})  # or the rest of the body would be read
    return JSONResponse({"error": " ".join(error.split())}, status_code=status, headers=headers)


def _first(error: RequestValidationError) -> str:
    """Returns the first complaint about a request's fields in words."""
    one = error.errors()[0]
    return f"{one['loc'][-1]}: {one['msg'].lower()}"
