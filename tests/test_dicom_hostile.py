"""Damaged DICOM files: every one is read or refused in one line; the long run is `benchmarks/mutations.py`."""

import importlib
import random
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tfmuscle.io.dicom_labels import write_segmentation
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # reading processes must find the module by its name
mutations = importlib.import_module("mutations")

COUNT = 30  # damaged copies of synthetic, and as many of real files


@pytest.fixture(scope="module")
def reader():
    """A reading process with 4 GB and a minute per file: a crash ends it, not the tests."""
    reader = mutations.Reader(4.0, 60.0)
    yield reader
    reader.close()


def synthetic(folder):
    """Writes a scan of three slices, one of them compressed, and labels on it."""
    series = folder / "series"
    series.mkdir()
    template = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
    template.SeriesInstanceUID = "1.2.3"
    template.ImagePositionPatient, template.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    for place in range(3):
        template.ImagePositionPatient[2], template.InstanceNumber = 2 * place, place + 1
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{place}"
        if place == 2:
            template.compress(pydicom.uid.RLELossless)
        template.save_as(series / f"{place}.dcm")
    row, column = (float(size) for size in template.PixelSpacing)
    grid = Geometry((template.Columns, template.Rows, 3), np.diag([-column, -row, 2.0, 1.0]))
    array = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    write_segmentation(folder / "seg.dcm", Volume(array, grid), LabelMap({1: "a", 2: "b_left"}), series=series)


def check(reader, data, folder, seed):
    groups, results = mutations.groups_of(mutations.dicom_files(data)), []
    for number in range(COUNT):
        path, source, done = mutations.make_case(groups, folder, number, seed)
        result, why = reader.read(path, mutations.reference_for(source), mutations.secrets_of(source))
        assert result in ("read", "refused"), f"{source.name}: {done}: {result}: {why}"
        results.append(result)
    assert set(results) == {"read", "refused"}  # the damage is neither nothing nor everything


def test_damaged_copies_of_synthetic_files(reader, tmp_path):
    (tmp_path / "data").mkdir()
    synthetic(tmp_path / "data")
    check(reader, tmp_path / "data", tmp_path / "cases", seed=3)


def test_damaged_copies_of_real_files(reader, data_dir, tmp_path):
    check(reader, data_dir / "dicom", tmp_path / "cases", seed=4)


def test_the_harness_sees_bugs_hangs_and_crashes(tmp_path, monkeypatch):
    """Without this, zero bugs could mean a blind harness."""
    path = tmp_path / "x.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM")

    def attempt_with(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(mutations, "read_dicom", fail)
        return mutations.attempt(path, mutations.SMALL_REFERENCE)

    assert attempt_with(IndexError("x"))[0] == "traceback"
    assert attempt_with(MemoryError())[0] == "memory"
    assert attempt_with(mutations.DataError("two\nlines; x"))[0] == "traceback"
    assert attempt_with(mutations.DataError("x: no; do"))[0] == "refused"
    monkeypatch.setattr(mutations, "list_series", lambda path: [])
    assert mutations.attempt(path, mutations.SMALL_REFERENCE, ("x: no",))[0] == "traceback"
    hanging = mutations.Reader(4.0, 0.001)
    assert hanging.read(path, mutations.SMALL_REFERENCE)[0] == "time-out"
    hanging.seconds = 60.0
    hanging.process.kill()
    assert hanging.read(path, mutations.SMALL_REFERENCE)[0] == "crash"
    assert hanging.read(path, mutations.SMALL_REFERENCE)[0] == "refused"
    hanging.close()


def test_every_kind_of_damage_is_done(tmp_path):
    source = Path(pydicom.data.get_testdata_file("MR_small.dcm"))
    done = [mutations.mutate(source, tmp_path / "x.dcm", random.Random(seed)).split()[0] for seed in range(60)]
    for kind in ("cut", "flip:", "pixels:", "exchanged", "removed", "syntax"):
        assert kind in done
