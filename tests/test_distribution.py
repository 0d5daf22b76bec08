"""Several devices and machines learn what one device would."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmuscle.config import Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.labels import IGNORE
from tfmuscle.records import load_spec, read_index
from tfmuscle.training.batches import training_batches, validation_batches
from tfmuscle.training.distribution import check_shares, naming_lost_machines, strategy_of
from tfmuscle.workflows import staging
from tfmuscle.workflows.learning import fit, plan_training

# A plain mean over voxels and steps in proportion to the gradient: what devices share must add up to rounding.
FIT = (
    "fit", "--model", "unet2d", "--option", "filters=4", "--option", "dropout=0", "--loss", "cross_entropy",
    "--augmentation", "none", "--no-mirror", "--optimiser", "sgd", "--learning-rate", "0.01", "--batch-size", "4",
    "--steps", "3", "--epochs", "2",
)  # fmt: skip
COMMAND = "from tfmuscle.cli import main; main()"
TWO_PROCESSORS = """
import tensorflow as tf
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
from tfmuscle.cli import main
main()
"""


@contextlib.contextmanager
def started(words, clusters):
    """The same command on every machine; none is left when a test has failed."""
    processes = [start(*words, cluster=cluster) for cluster in clusters]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start(*words, cluster=None, code=None):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1"}
    environment |= {} if cluster is None else {"TF_CONFIG": json.dumps(cluster)}
    command = [sys.executable, "-c", code or COMMAND]
    return subprocess.Popen(
        [*command, *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_ports(count):
    """Ports below those that the system gives to others who ask for any, so that none is gone before it is used."""
    found = []
    for port in np.random.default_rng(os.getpid()).permutation(np.arange(20_000, 30_000)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", int(port)))
            found.append(int(port))
        if len(found) == count:
            return found
    raise AssertionError("no free port")


def clusters(count):
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": n}} for n in range(count)]


def history(run):
    with (run / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def agree(run, other):
    """Losses and Dice of all epochs are the same to rounding, so that the weights went the same way."""
    for mine, theirs in zip(history(run), history(other), strict=True):
        for key in ("loss", "dice", "val_dice"):
            assert mine[key] == pytest.approx(theirs[key], abs=2e-3), key


@pytest.fixture(scope="module")
def single(tiny_records, tmp_path_factory):
    run = tmp_path_factory.mktemp("single") / "run"
    process = start(*FIT, "-i", tiny_records, "-o", run)
    output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return run


def test_two_devices_of_a_machine_learn_what_one_does(single, tiny_records, tmp_path):
    process = start(*FIT, "-i", tiny_records, "-o", tmp_path / "run", "--devices", "all", code=TWO_PROCESSORS)
    output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    agree(tmp_path / "run", single)
    assert read_json(tmp_path / "run" / "train.json")["devices"] == "all"


def test_two_machines_learn_what_one_does_and_the_first_keeps_the_run(single, tiny_records, tmp_path):
    run = tmp_path / "run"
    words = (*FIT, "-i", tiny_records, "-o", run, "--devices", "machines")
    with started(words, clusters(2)) as processes:
        outputs = [process.communicate(timeout=500) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
    agree(run, single)
    assert (run / "about.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_machine_that_is_late_joins_the_run_that_the_first_has_begun(tiny_records, tmp_path, monkeypatch):
    run, joined = tmp_path / "run", []
    write_json(run / "train.json", {})  # by the first machine, since both have met
    monkeypatch.setattr(staging.training, "fit", lambda records, run, config, **_: joined.append(run))
    staging.fit_stages(tiny_records, run, [TrainConfig(devices="machines")])
    assert joined == [run]


def test_a_lost_machine_is_said_and_whole_epochs_are_kept(tiny_records, tmp_path):
    run = tmp_path / "run"
    words = (*FIT, "--epochs", "200", "-i", tiny_records, "-o", run, "--devices", "machines")
    with started(words, clusters(2)) as (chief, other):
        waited = time.monotonic() + 300
        while not list((run / "state").glob("epoch-*.weights.h5")):
            if chief.poll() is not None or time.monotonic() > waited:
                other.kill()
                pytest.fail(f"never trained: {chief.communicate(timeout=10)} {other.communicate(timeout=10)}")
            time.sleep(0.2)
        other.kill()
        errors = chief.communicate(timeout=500)[1]
        assert chief.returncode == 1
    assert "another machine has gone" in errors and "--resume" in errors
    assert history(run)


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.InternalError])
def test_a_machine_lost_before_the_first_step_is_said_as_well(error):
    gone = "Collective ops is aborted. The error could be from a previous operation. Restart your program to reset."
    said = pytest.raises(DataError, match="TF_CONFIG: another machine has gone.*Collective ops is aborted")
    with said, naming_lost_machines("machines"):
        raise error(None, None, gone)
    with pytest.raises(error), naming_lost_machines("all"):
        raise error(None, None, gone)


def test_other_errors_of_a_machine_stay_what_they_are():
    with pytest.raises(tf.errors.ResourceExhaustedError), naming_lost_machines("machines"):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")


@pytest.mark.parametrize("text", ["", "nonsense", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": 1}'])
def test_a_cluster_that_cannot_be_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(DataError, match="TF_CONFIG: .* every machine needs one like"):
        strategy_of("machines")


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    class Three:
        num_replicas_in_sync = 3

    check_shares(TrainConfig(batch_size=6), Three())
    with pytest.raises(ValueError, match="batch_size is 8, shared by 3 devices; give a multiple of that"):
        check_shares(TrainConfig(batch_size=8), Three())


def test_machines_make_their_parts_of_every_batch(tiny_records):
    spec, index = load_spec(tiny_records), read_index(tiny_records)
    paths = [tiny_records / entry["file"] for entry in index.usable.values()]
    config = TrainConfig(batch_size=4, epochs=1, recipe=Supervised(augmentation="light"))
    whole = next(iter(training_batches(paths, spec, config, steps=4)))
    for number in (0, 1):  # two parts of a machine follow each other in what is called a batch
        image, labels = next(iter(training_batches(paths, spec, config, steps=4, machine=(number, 2))))
        assert np.array_equal(image[:2], whole[0][2 * number : 2 * number + 2])
        assert np.array_equal(labels[:2], whole[1][2 * number : 2 * number + 2])


def test_the_last_batch_of_validation_is_filled_up_with_what_counts_nowhere(tiny_records):
    spec, index = load_spec(tiny_records), read_index(tiny_records)
    entry = next(iter(index.usable.values()))
    count, batch = entry["samples"], 7
    assert count % batch
    batches = validation_batches([tiny_records / entry["file"]], spec, batch, num_samples=count, full=True)
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    assert len(labels) == -(-count // batch) * batch
    assert (labels[count:] == IGNORE).all() and not (labels[:count] == IGNORE).all()


def test_what_cannot_be_shared_is_refused_before_anything_is_made(tiny_records, phantom_dataset, tmp_path):
    propagating = plan_training({"devices": "all"}, recipe={}, preset="ifss_net")
    with pytest.raises(DataError, match="ifss_net carries masks, slice after slice, on one device; no --devices"):
        fit(tiny_records, tmp_path / "run", propagating)
    machines = plan_training({"devices": "machines"}, recipe={})
    with pytest.raises(DataError, match="several machines train on records; make them once with build-records"):
        fit(phantom_dataset, tmp_path / "run", machines)
    with pytest.raises(DataError, match="stages and --from are for one machine"):
        fit(tiny_records, tmp_path / "run", machines, start=tmp_path)
    assert not list(tmp_path.iterdir())
