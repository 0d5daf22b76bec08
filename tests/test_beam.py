"""Apache Beam with two real worker processes: the same bytes as the serial build and the same labels as `predict`; a
killed worker ends the job in words. For the clusters only the flags are tested."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle import records
from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.workflows import beam
from tfmuscle.workflows.beam import map_on_beam, pipeline_flags

DIRECT = ["--runner=DirectRunner", "--direct_running_mode=multi_processing"]
WORDS = ["--kind", "slices", "--size", "48", "48", "--spacing", "8", "4", "4", "--folds", "2", "--test", "1"]
needs_beam = pytest.mark.skipif(not beam.importlib.util.find_spec("apache_beam"), reason="needs the extra 'beam'")


def leave_pid(job):
    folder, number = job
    time.sleep(0.5)
    Path(folder, f"done-{number}").write_text(str(os.getpid()))


def kill_own_worker(job):
    leave_pid(job)
    if job[1] == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def complain(job):
    raise DataError(f"shard-{job:05d}.tfrecord: the disk is full; free some space")


@pytest.fixture
def importable(monkeypatch):
    """Lets the workers, which are fresh interpreters, import this file."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


def command(scans, out, *words):
    words = ["build-records", "-i", scans, "-o", out, *WORDS, "--runner", "direct", "--workers", "2", *words]
    return [sys.executable, "-c", "from tfmuscle.cli import main; main()", *map(str, words)]


@pytest.mark.parametrize(
    ("runner", "options", "flags"),
    [
        ("direct", (), [*DIRECT, "--direct_num_workers=3"]),
        ("direct", ("temp_location=/tmp/x",), [*DIRECT, "--direct_num_workers=3", "--temp_location=/tmp/x"]),
        ("flink", ("flink_master=host:8081", "parallelism=8"), ["--flink_master=host:8081", "--parallelism=8"]),
        ("spark", ("spark_master_url=spark://host:7077",), ["--spark_master_url=spark://host:7077"]),
        (
            "dataflow",
            ("project=p", "region=r", "no_use_public_ips"),
            ["--project=p", "--region=r", "--no_use_public_ips"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # apache-beam 2.77 importing itself; ends with its fix
@needs_beam
def test_flags_of_a_pipeline(runner, options, flags):
    names = {"flink": "FlinkRunner", "spark": "SparkRunner", "dataflow": "DataflowRunner"}
    first = [f"--runner={names[runner]}"] if runner in names else []
    assert list(pipeline_flags(runner, workers=3, options=options)) == first + flags


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("ray", (), "runner is 'ray'; choose one of direct, flink, spark, dataflow"),
        ("direct", ("=3",), "runner option '=3'; KEY=VALUE is needed"),
        ("direct", ("a b=3",), "runner option 'a b=3'; KEY=VALUE is needed"),
        ("direct", ("direct_num_workers=3",), "--runner and --workers decide that"),
        ("dataflow", ("temp_locaton=gs://b",), "Beam has no option 'temp_locaton'; did you mean 'temp_location'?"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
@needs_beam
def test_what_is_no_runner_or_option_is_named(runner, options, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        pipeline_flags(runner, options=options)


def test_without_the_extra_or_posix_the_command_says_what_to_do(tmp_path, monkeypatch):
    words = ["build-records", "-i", str(tmp_path), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(beam.importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(tfmuscle_group, [*words, "--runner", "flink"])
    assert result.exit_code == 2 and "pip install 'tfmuscle[beam]'" in result.stderr
    result = CliRunner().invoke(tfmuscle_group, [*words, "--runner-option", "a=b"])
    assert result.exit_code == 2 and "--runner-option goes with --runner" in result.stderr
    monkeypatch.setattr(beam, "_HAS_GROUPS", False)
    with pytest.raises(ValueError, match="runners need Linux or macOS; leave --runner out and use --workers"):
        pipeline_flags("direct")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_beam
def test_two_processes_share_the_jobs(tmp_path, importable):
    watched = []
    flags = pipeline_flags("direct", workers=2)
    map_on_beam(leave_pid, [(tmp_path, n) for n in range(12)], flags, watch=lambda: watched.append(1))
    pids = {path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 12 and len(pids) == 2 and str(os.getpid()) not in pids
    assert watched


@pytest.mark.slow
@needs_beam
def test_a_killed_worker_ends_the_job_at_once_in_words(tmp_path, importable):
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a worker was killed \(out of memory\?\); finished shards are kept, run"):
        map_on_beam(kill_own_worker, [(tmp_path, n) for n in range(40)], pipeline_flags("direct", workers=2))
    done = len(list(tmp_path.iterdir()))
    assert 1 <= done < 40 and time.monotonic() - start < 120
    time.sleep(1.5)  # the other worker ended with it: nobody goes on
    assert len(list(tmp_path.iterdir())) == done


@pytest.mark.slow
@needs_beam
def test_errors_of_a_job_come_back_in_words(importable):
    with pytest.raises(DataError, match=r"^shard-00007.tfrecord: the disk is full; free some space$"):
        map_on_beam(complain, [7], pipeline_flags("direct", workers=2))


def test_what_a_cluster_says_is_passed_on_in_its_last_line():
    words = beam._in_words(RuntimeError("Traceback:\n  somewhere\nJobFailed: no slots left\n\n"))
    assert words == "Apache Beam failed (RuntimeError: JobFailed: no slots left); finished shards are kept, run again"
    assert "SystemExit" in beam._in_words(SystemExit(2))
    assert (
        beam._end_in_words(1)
        == "the process that led Apache Beam ended with code 1; finished shards are kept, run again"
    )


@pytest.mark.slow
@needs_beam
def test_two_workers_write_what_the_serial_build_writes_and_name_who_failed(phantom_dataset, tiny_records, tmp_path):
    scans = shutil.copytree(phantom_dataset, tmp_path / "scans")
    kept = (scans / "imagesTr" / "bones_003_0000.nii.gz").rename(scans / "away")
    result = subprocess.run(command(scans, tmp_path / "out"), capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "Failed: bones_003:" in lines[0] and "no such file" in lines[0], result.stderr
    assert not list((tmp_path / "out").glob("*failed*"))
    kept.rename(scans / "imagesTr" / "bones_003_0000.nii.gz")
    subprocess.run(command(scans, tmp_path / "out"), capture_output=True, check=True)
    for path in tiny_records.glob("shard-*"):  # shards and notes
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
@needs_beam
def test_a_build_whose_worker_is_killed_says_so_and_a_rerun_makes_what_is_missing(
    phantom_dataset, tiny_records, tmp_path
):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(phantom_dataset, out), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    pid = worker_in_the_midst_of_a_shard(out)
    os.kill(pid, signal.SIGKILL)
    errors = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 1
    assert len(errors) == 1 and errors[0].startswith("Error: a worker was killed (out of memory?);"), errors
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert 1 <= len(kept) < 5 and not (out / "index.json").exists()
    subprocess.run(command(phantom_dataset, out), capture_output=True, check=True)
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    for path in tiny_records.glob("shard-*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert records.verify(out).problems == []


@pytest.mark.slow
@needs_beam
def test_two_workers_label_what_one_process_does_and_name_who_failed(phantom_dataset, tiny_run, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in (0, 1, 2):
        shutil.copy(phantom_dataset / "imagesTr" / f"bones_{number:03d}_0000.nii.gz", scans)
    (scans / "broken_0000.nii.gz").write_bytes(b"no scan")
    words = ["predict", "-m", tiny_run, "-i", scans, "--no-mirror"]
    here = run_command(*words, "-o", tmp_path / "here")
    spread = run_command(*words, "-o", tmp_path / "beam", "--runner", "direct", "--workers", "2")
    assert here.returncode == spread.returncode == 1
    assert here.stderr.count("Failed:") == spread.stderr.count("Failed: broken:") == 1, spread.stderr
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "beam").iterdir())  # no notes are left
    for name in names:
        if name.endswith(".nii.gz"):
            mine, theirs = (nibabel.load(tmp_path / which / name) for which in ("here", "beam"))
            assert np.array_equal(mine.dataobj, theirs.dataobj) and np.array_equal(mine.affine, theirs.affine)
    known = json.loads((tmp_path / "beam" / "predictions.json").read_text(encoding="utf-8"))
    assert set(known["seconds"]) == {"bones_000", "bones_001", "bones_002"}
    assert known["failures"] == json.loads((tmp_path / "here" / "predictions.json").read_text())["failures"]


def run_command(*words):
    code = "from tfmuscle.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)


def worker_in_the_midst_of_a_shard(out):
    """Waits until a shard is finished and another is being written; a temporary name tells who writes it."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        writing = list(out.glob(".tmp-*.tfrecord")) if list(out.glob("shard-*.json")) else []
        if writing:
            return int(writing[0].name.split("-")[1])
        time.sleep(0.001)
    raise AssertionError("no shard was written")
