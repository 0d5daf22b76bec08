"""A running server of the page in a thread, and a client that knows its token unless told otherwise."""

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlencode

import nibabel as nib
import numpy as np
import uvicorn

from tfmuscle.gui.app import make_app

TOKEN = "the-token-of-the-tests"
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -1.9, 0.3, 12], [0, 0.3, 2.9, -40], [0, 0, 0, 1]])
"""Flipped and oblique, so that an axis mixed up is seen."""


class Page:
    """One server; calls give the status and what JSON or bytes came."""

    def __init__(self, folder, *, port=0, token=TOKEN):
        self.folder, self.token = folder, token
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        self.port = listening.getsockname()[1]
        self.home = f"http://127.0.0.1:{self.port}"
        self.app = make_app(folder, port=self.port, token=token)
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="critical", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.listening = listening

    def call(self, method, path, /, body=None, headers=None, **fields):
        known = {"X-Tfmuscle-Token": self.token} | ({} if method == "GET" else {"Origin": self.home})
        known = {key: value for key, value in (known | (headers or {})).items() if value is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = f"{path}?{urlencode(fields)}" if fields else path
        try:
            connection.request(method, given, body=body, headers=known)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = answer.headers["content-type"] == "application/json"
        self.headers = answer.headers
        return answer.status, json.loads(content) if is_json and content else content

    def get(self, path, /, **fields):
        status, content = self.call("GET", path, **fields)
        assert status == 200, content
        return content

    def post(self, path, content):
        return self.call("POST", path, body=json.dumps(content))

    def refused(self, path, /, **fields):
        """Asks for what is refused; returns the one line of the reason."""
        status, content = self.call("GET", path, **fields)
        assert status == 400, (status, content)
        assert "\n" not in content["error"]
        return content["error"]

    def job(self, job):
        return next(one for one in self.get("/api/jobs")["jobs"] if one["id"] == job)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


@contextlib.contextmanager
def page_of(folder, **settings):
    page = Page(folder, **settings)
    try:
        yield page
    finally:
        page.stop()


def until(true, *, seconds=20):
    """Waits for something, and fails when it does not come."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def write_leg(folder, *, shape=(20, 24, 12)):
    """Writes a scan `leg.nii.gz` and labels of ids 3 and 70 with names in `labels/`; returns the labels' array."""
    image = np.random.default_rng(4).integers(0, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(image, AFFINE), folder / "leg.nii.gz")
    ids = np.zeros(shape, np.uint8)
    ids[4:9, 5:9, 3:8], ids[12:15, 5:9, 2:5] = 3, 70
    (folder / "labels").mkdir()
    nib.save(nib.Nifti1Image(ids, AFFINE), folder / "labels" / "leg.nii.gz")
    table = {"labels": {"background": 0, "soleus_left": 3, "tibia_left": 70}}
    (folder / "labels" / "leg.json").write_text(json.dumps(table))
    return ids


def nifti_bytes(array, affine=AFFINE):
    """A `.nii.gz` file's bytes, written by nibabel."""
    return gzip.compress(nib.Nifti1Image(array, affine).to_bytes())
