"""Jobs of the page: run as commands, cancelled, and known after the server has gone."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from gui_pages import page_of, until, write_leg

from tfmuscle.errors import DataError
from tfmuscle.gui import jobs as jobs_module
from tfmuscle.gui.commands import Command
from tfmuscle.gui.jobs import Jobs
from tfmuscle.gui.workspace import Workspace

QUICK = "import sys; print('hello of', *sys.argv[1:]); sys.exit('fail' in sys.argv)"
SLOW = """
import json, os, signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(os.environ["TFMUSCLE_PROGRESS"], "w") as file:
    json.dump({"done": 3, "total": 9, "note": "third"}, file)
print("started", os.getpid())
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


@pytest.fixture
def queue(tmp_path):
    queue = Jobs(Workspace(tmp_path))
    queue.start()
    yield queue
    for job in reversed(queue.listed()):
        queue.cancel(job["id"])
        if (queue._folder / job["id"] / "started.json").exists() and job["state"] in jobs_module.ACTIVE:
            kill(queue, job["id"])
    queue.stop()


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Lets jobs run other programs than tfmuscle, which takes seconds to start."""

    def use(text):
        path = tmp_path / "site"
        path.mkdir(exist_ok=True)
        lines = ["import sys, types", "cli = types.ModuleType('tfmuscle.cli')", f"text = {text!r}"]
        lines += ["cli.main = lambda: exec(text, {})", "sys.modules['tfmuscle.cli'] = cli"]
        (path / "sitecustomize.py").write_text("\n".join(lines))
        monkeypatch.setenv("PYTHONPATH", str(path))

    return use


def kill(queue, job, number=signal.SIGKILL):
    started = queue._folder / job / "started.json"
    os.killpg(json.loads(until(lambda: started.exists() and started.read_text()))["process"], number)


def state(queue, job):
    return next(one for one in queue.listed() if one["id"] == job)["state"]


def submit(queue, *words):
    return queue.submit(Command(words, " ".join(words), None))


def test_jobs_run_one_after_the_other_and_keep_their_logs(queue, code):
    code(QUICK)
    one, two = submit(queue, "one"), submit(queue, "two", "fail")
    until(lambda: state(queue, two) == "failed")
    assert state(queue, one) == "done"
    assert queue.log(one) == "hello of one\n" and queue.log(two) == "hello of two fail\n"
    listed = {job["id"]: job for job in queue.listed()}
    assert [job["id"] for job in queue.listed()] == [two, one]  # newest first
    assert listed[one]["ended"] <= listed[two]["started"]
    assert listed[two]["reason"] == "hello of two fail" and listed[two]["code"] == 1


def test_a_job_is_cancelled_as_at_a_terminal(queue, code):
    code(SLOW)
    job, waiting = submit(queue, "slow"), submit(queue, "waits")
    until(lambda: "started" in queue.log(job))
    about = next(one for one in queue.listed() if one["id"] == job)
    assert about["state"] == "running" and (about["done"], about["total"], about["note"]) == (3, 9, "third")
    queue.cancel(waiting)
    assert state(queue, waiting) == "cancelled" and state(queue, job) == "running"
    queue.cancel(job)
    until(lambda: state(queue, job) == "cancelled")
    assert "interrupted" in queue.log(job)
    assert not (queue._folder / waiting / "started.json").exists()
    queue.cancel(job)  # once more does no harm
    assert state(queue, job) == "cancelled"


def test_a_job_that_does_not_stop_is_killed(queue, code, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE_SECONDS", 0.5)
    code(SLOW)
    job = submit(queue, "stubborn")
    until(lambda: "started" in queue.log(job))
    process = int(queue.log(job).split()[1])
    queue.cancel(job)
    assert state(queue, job) == "cancelling"
    until(lambda: state(queue, job) == "cancelled")
    until(lambda: not is_alive(process))


def is_alive(process):
    """Whether the process runs; one that has ended and was not asked after does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) and "Z" not in found.stdout


def test_a_job_outlives_its_server(tmp_path, code):
    code(SLOW)
    server = Jobs(Workspace(tmp_path))
    server.start()
    job = submit(server, "slow")
    queued = submit(server, "later")
    until(lambda: "started" in server.log(job))
    server.stop()
    code(QUICK)
    after = Jobs(Workspace(tmp_path))
    after.start()
    assert state(after, job) == "running" and state(after, queued) == "queued"
    after.cancel(job)
    until(lambda: state(after, job) == "cancelled" and state(after, queued) == "done")
    after.stop()


def test_a_server_killed_in_the_middle_loses_nothing(tmp_path, code):
    """Killed with a job that runs, one that waits, and an upload half sent."""
    code(SLOW)
    write_leg(tmp_path)
    serve = "import sys; from tfmuscle.gui.app import serve; "
    serve += "serve(sys.argv[1], port=None, browser=False, tell=lambda text: print(text, flush=True))"
    words = [sys.executable, "-c", serve, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        home, _, token = server.stdout.readline().strip().partition("/?token=")
        host, port = home.removeprefix("http://").split(":")
        head = {"X-Tfmuscle-Token": token, "Origin": home}

        def asks(method, path, body=None):
            with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as connection:
                connection.request(method, path, body=body, headers=head)
                return json.loads(connection.getresponse().read())

        form = json.dumps({"command": "surfaces", "labels": "labels/leg.nii.gz"})
        running, waiting = (asks("POST", "/api/jobs", form)["id"] for _ in range(2))
        until(lambda: "started" in asks("GET", f"/api/jobs/{running}/log")["log"])
        with socket.create_connection((host, int(port))) as connection:
            lines = [f"POST /api/uploads?name=half.nii HTTP/1.1\r\nHost: {host}:{port}", f"Content-Length: {1 << 20}"]
            lines += [f"{name}: {value}" for name, value in head.items()]
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + b"x" * 1000)
            (part,) = until(lambda: list((tmp_path / ".tfmuscle" / "uploads").glob("*")))
            server.kill()
            server.wait()
    code(QUICK)
    with page_of(tmp_path) as page:
        assert page.job(running)["state"] == "running" and page.job(waiting)["state"] == "queued"
        assert page.get("/api/workspace")["scans"] == [{"path": "leg.nii.gz"}]  # no half upload
        page.post(f"/api/jobs/{running}/cancel", {})
        until(lambda: page.job(waiting)["state"] == "done")
        assert page.job(running)["state"] == "cancelled" and part.exists()  # another server may be writing it
    os.utime(part, (0, 0))
    with page_of(tmp_path):
        assert not part.exists()  # a day old


def test_a_job_that_was_killed_is_lost_with_its_log(queue, code):
    code(SLOW)
    job = submit(queue, "slow")
    until(lambda: "started" in queue.log(job))
    kill(queue, job)
    until(lambda: state(queue, job) == "lost")
    assert "started" in queue.log(job)
    assert "started" in next(one for one in queue.listed() if one["id"] == job)["reason"]
    code(QUICK)
    after = submit(queue, "after")
    until(lambda: state(queue, after) == "done")


def test_two_servers_on_one_folder_start_no_two_jobs_at_once(queue, tmp_path, code):
    code(SLOW)
    other = Jobs(Workspace(tmp_path))
    other.start()
    mine = [submit(queue, "a"), submit(other, "b"), submit(queue, "c")]
    for _ in mine:
        running = until(
            lambda: [job for job in queue.listed() if "started" in queue.log(job["id"]) and job["state"] == "running"]
        )
        assert len(running) == 1 and len([job for job in other.listed() if job["state"] == "running"]) == 1
        other.cancel(running[0]["id"])
        until(lambda job=running[0]["id"]: state(queue, job) == "cancelled")
    other.stop()


def test_what_cannot_be_is_one_line(queue, monkeypatch):
    for job in ("../..", "x", "1234567890123456789-abcdef"):
        with pytest.raises(DataError, match="there is no such job"):
            queue.cancel(job)
    queue.stop()
    monkeypatch.setattr(jobs_module, "MAX_WAITING", 1)
    submit(queue, "one")
    with pytest.raises(DataError, match="1 jobs are waiting"):
        submit(queue, "two")


def test_a_button_runs_its_command_and_its_results_can_be_had(tmp_path):
    write_leg(tmp_path)
    (tmp_path / "labels" / "leg.json").unlink()
    with page_of(tmp_path) as page:
        form = {"command": "surfaces", "labels": "labels/leg.nii.gz"}
        status, content = page.post("/api/jobs", form)
        assert status == 200
        job = content["id"]
        until(lambda: page.job(job)["state"] == "done", seconds=60)
        listing = page.get("/api/workspace")
        made = [one["path"] for one in listing["surfaces"]]
        assert made == [f"results/surfaces/leg/{name}" for name in ("label_3.ply", "label_70.ply")]
        assert listing["reports"] == [{"path": "results/surfaces/leg/surfaces.csv"}]
        assert page.get("/api/file", path=made[0]).startswith(b"ply")
        assert page.job(job)["total"] == 2  # told by the command's own bar
        assert "2 surfaces" in page.get(f"/api/jobs/{job}/log")["log"]
        page.post(f"/api/jobs/{job}/cancel", {})
        assert page.job(job)["state"] == "done"


DRAWN = {"command": "propagate", "scan": "leg.nii.gz", "labels": "labels/leg.nii.gz"}
WRONG = [
    ({"command": "rm -rf /"}, "the page runs prepare, predict"),
    ({}, "the name of one is needed"),
    ({"command": ["predict"]}, "the name of one is needed"),
    ({"command": "predict"}, "no model is chosen"),
    ({"command": "predict", "model": "labels"}, "no model is chosen"),
    ({"command": "predict", "model": "../.."}, "no name of a file"),
    ({"command": "propagate"}, "no scan is open"),
    ({"command": "propagate", "scan": "leg.nii.gz"}, "no labels are open"),
    (DRAWN | {"method": "--help"}, "choose one"),
    (DRAWN | {"slices": "3;rm"}, "with commas"),
    ({"command": "prepare", "scan": "leg.nii.gz"}, "nothing to prepare"),
    ({"command": "prepare", "scan": "leg.nii.gz", "below_hip": "yes"}, "true or false"),
    ({"command": "prepare", "scan": "leg.nii.gz", "below_hip": True, "hip_slice": -1}, "a whole number from 0"),
    ({"command": "prepare", "scan": "leg.nii.gz", "below_hip": True, "hip_slice": True}, "a whole number from 0"),
    ({"command": "prepare", "scan": "leg.nii.gz", "below_hip": True, "hip_slice": "3 -o /"}, "a whole number from 0"),
    ({"command": "prepare", "scan": {"a": 1}, "bias_field": True}, "a text is needed"),
    ({"command": "write-seg", "scan": "leg.nii.gz", "labels": "labels/leg.nii.gz"}, "is no DICOM series"),
    ({"command": "inspect"}, "no dataset is chosen"),
    ({"command": "add-case", "scan": "leg.nii.gz"}, "no labels are open"),
    (DRAWN | {"command": "add-case", "set": "../../data"}, "a name of letters"),
    (DRAWN | {"command": "add-case", "set": "--id"}, "a name of letters"),
    (DRAWN | {"command": "add-case", "case": "-o"}, "case is '-o'; a name of letters"),
    (DRAWN | {"command": "add-case", "partly": "yes"}, "true or false"),
]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    write_leg(folder)
    with page_of(folder) as page:
        yield page


@pytest.mark.parametrize(("form", "reason"), WRONG)
def test_forms_are_checked_field_by_field(page, form, reason):
    status, content = page.post("/api/jobs", form)
    assert status == 400 and reason in content["error"]
    assert page.get("/api/jobs") == {"jobs": []}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b"null"])
def test_what_is_no_object_is_refused(page, body):
    status, content = page.call("POST", "/api/jobs", body=body)
    assert status == 400 and "an object is needed" in content["error"]
