"""Fixtures shared by all tests. Real data comes from `pytest --data DIR`; without it those tests skip and say so."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--data", default=None, metavar="DIR", help="folder of real scans; tests that need it skip without")


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder given by `--data`."""
    given = request.config.getoption("--data")
    if given is None:
        pytest.skip("needs real scans: pass --data DIR")
    folder = Path(given).resolve()
    if not folder.is_dir():
        pytest.fail(f"--data {given}: there is no such folder")
    return folder
