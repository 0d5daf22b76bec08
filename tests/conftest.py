"""Fixtures shared by all tests. Real data comes from `pytest --data=DIR` (with the equals sign: pytest takes a
bare DIR for a test path before it knows the option); without it those tests skip and say so."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors: one thread each, read when TensorFlow starts
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.building import build_records
from tfmuscle.workflows.data import phantom, plan_spec
from tfmuscle.workflows.learning import fit, plan_training


def pytest_addoption(parser):
    parser.addoption(
        "--data", default=None, metavar="DIR", help="folder of real scans; tests that need it skip without"
    )


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder given by `--data`."""
    given = request.config.getoption("--data")
    if given is None:
        pytest.skip("needs real scans: pass --data=DIR")
    folder = Path(given).resolve()
    if not folder.is_dir():
        pytest.fail(f"--data {given}: there is no such folder")
    return folder


@pytest.fixture(scope="session")
def phantom_dataset(tmp_path_factory) -> Path:
    """Five small phantoms of leg bones in nnU-Net's layout."""
    return phantom(tmp_path_factory.mktemp("phantoms") / "scans", subjects=5, seed=11, kind="bones")


@pytest.fixture(scope="session")
def tiny_records(phantom_dataset, tmp_path_factory) -> Path:
    """Coarse 2D records of the phantoms: two folds, one test subject."""
    out = tmp_path_factory.mktemp("records") / "records"
    settings = {"kind": "slices", "size": (48, 48), "spacing": (8.0, 4.0, 4.0), "folds": 2, "test": 1}
    build_records(phantom_dataset, out, plan_spec(read_dataset(phantom_dataset), settings))
    return out


@pytest.fixture(scope="session")
def tiny_run(tiny_records, tmp_path_factory) -> Path:
    """A network trained for a few steps: good enough to name most voxels, bad enough to be quick."""
    settings = {
        "model_options": {"filters": 8, "levels": 3, "norm": "batch"},
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "seed": 5,
    }
    return fit(tiny_records, tmp_path_factory.mktemp("runs") / "run", plan_training(settings, recipe={}))
