"""What the benchmark of propagation draws, and that it never measures what a method was told."""

import csv
import importlib
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tfmuscle.evaluation.muscles import read_measured
from tfmuscle.evaluation.published import SWEEP_ABLATIONS
from tfmuscle.files import read_json
from tfmuscle.io import read_label_image, write_volume
from tfmuscle.workflows.data import phantom

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
propagation = importlib.import_module("propagation")


def cones(length=80):
    """Structure 1 shrinks along the slices, from 40 pixels to 1; structure 2 grows, from slice 30 on."""
    labels = np.zeros((length, 2, 64), np.uint8)
    for index in range(length):
        labels[index, 0, : max(1, 40 - index // 2)] = 1
        labels[index, 1, : max(0, index - 29)] = 2
    return labels


def test_a_sweep_starts_where_all_are_seen_best():
    # shares: (40 - i // 2) / 40 falls, (i - 29) / 50 grows; they meet at i = 56: 0.3 and 0.54; i = 51: 0.375 and 0.44,
    # i = 49: 0.4 and 0.4
    assert propagation.starting_slices(cones(), [1, 2]) == [48, 49, 50]
    assert propagation.starting_slices(cones(), [1]) == [0, 1, 2]  # the best slice is the first
    with pytest.raises(ValueError, match="no slice shows all structures; leave some out with --structures"):
        apart = np.zeros((9, 1, 2), np.uint8)
        apart[:4, 0, 0], apart[5:, 0, 1] = 1, 2
        propagation.starting_slices(apart, [1, 2])


@pytest.mark.parametrize(("length", "run"), [(80, 1), (1400, 3), (700, 2)])
def test_places_of_the_published_protocol(length, run):
    # 1400 / 100 = 14 places, 3 slices of 1400 each
    drawn = propagation.drawn_slices("every100", np.ones((length, 1, 1), int), [1])
    gaps = np.diff(drawn)
    assert len(drawn) == 14 * run and (gaps == 1).sum() == 14 * (run - 1)
    assert drawn[0] == 0 and drawn[-1] == length - 1
    if length == 1400:
        assert len(drawn) / length == 0.03


def test_only_slices_with_a_structure_are_drawn():
    labels = np.zeros((100, 1, 1), int)
    labels[20:60] = 1
    assert propagation.drawn_slices("share3", labels, [1]) == [20, 40, 59]
    drawn = propagation.drawn_slices("every100", labels, [1])
    assert drawn[0] == 20 and drawn[-1] == 59 and len(drawn) == 14


def test_a_protocol_that_leaves_nothing_to_measure_is_refused():
    with pytest.raises(
        ValueError, match="draws 80 of 80 slices; 0% of those .* must not be fed what it is measured on"
    ):
        propagation.drawn_slices("every100", np.ones((80, 1, 1), int), [1], every=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    phantom(folder / "data", subjects=2, kind="ultrasound", seed=3, spacing=(4.8, 4.8, 5.0))
    words = ["-d", folder / "data", "-o", folder / "out", "--protocols", "start", "share3", "--methods", "interpolate"]
    words.append("--largest")
    propagation.main(list(map(str, words)))
    return folder


def test_references_are_silent_about_drawn_slices(made):
    for protocol in ("start", "share3"):
        folder = made / "out" / protocol
        for subject, slices in read_json(folder / "protocol.json")["drawn"].items():
            truth, few, silent = (
                read_label_image(path / f"{subject}.nii.gz").array
                for path in (made / "data/labelsTr", folder / "drawn", folder / "labelsTr")
            )
            others = np.setdiff1d(np.arange(30), slices)
            assert len(slices) == 3 and (silent[:, :, slices] == 255).all() and not few[:, :, others].any()
            assert np.array_equal(few[:, :, slices], truth[:, :, slices])
            assert np.array_equal(silent[:, :, others], truth[:, :, others])


def test_figures_do_not_change_when_a_method_is_wrong_on_drawn_slices(made):
    own = made / "out/share3/methods/interpolate"
    before = read_measured(own / "evaluation").rows
    drawn = read_json(made / "out/share3/protocol.json")["drawn"]
    for subject, slices in drawn.items():
        labels = read_label_image(own / "labels" / f"{subject}.nii.gz")
        wrong = labels.array.copy()
        wrong[:, :, slices] = 1
        write_volume(own / "labels" / f"{subject}.nii.gz", labels.with_array(wrong))
    propagation.call(["evaluate", "-i", str(own / "labels"), "-r", str(made / "out/share3"), "-o", str(made / "again")])
    after = read_measured(made / "again").rows
    assert len(before) == 6
    for one, other in zip(before, after, strict=True):
        assert other["dice"] == one["dice"] and other["volume_error_percent"] == one["volume_error_percent"]


def test_one_table_of_all_protocols(made):
    rows = read_json(made / "out/tables/methods.json")["rows"]
    assert {(row["method"], row["protocol"]) for row in rows} == {("interpolate", "start"), ("interpolate", "share3")}
    assert (made / "out/tables_share3/surfaces").is_dir()


def test_volumes_are_counted_that_lie_in_their_interval(made):
    with (made / "out/intervals.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["protocol"] == "share3"]
    assert [row["structure"] for row in rows] == muscles_of(made / "data")
    for key, row in enumerate(rows, start=1):
        inside = 0
        for path in (made / "data/labelsTr").glob("*.nii.gz"):
            image = nibabel.load(path)
            voxels = np.count_nonzero(np.asanyarray(image.dataobj) == key)
            volume = voxels * abs(np.linalg.det(image.affine)) / 1000
            said = read_json(made / f"out/share3/methods/interpolate/made/{path.name[:-7]}.json")["volumes_ml"]
            inside += said[row["structure"]]["low"] <= volume <= said[row["structure"]]["high"]
        assert (row["volumes"], row["inside"]) == ("2", str(inside))


def muscles_of(dataset):
    return [name for name in read_json(dataset / "dataset.json")["labels"] if name != "background"]


def test_the_largest_piece_of_each_structure(made):
    rows = [read_json(made / "out" / tables / "methods.json")["rows"] for tables in ("tables", "tables_largest")]
    assert [len(part) for part in rows] == [len(rows[0])] * 2
    for path in (made / "out/share3/methods/interpolate/largest/labels").glob("*.nii.gz"):
        array = read_label_image(path).array
        assert [ndimage.label(array == key, np.ones((3, 3, 3)))[1] for key in (1, 2, 3)] == [1, 1, 1]


def test_what_is_there_stays_and_other_settings_are_refused(made, capsys):
    words = ["-d", made / "data", "-o", made / "out", "--protocols", "share3", "--methods", "interpolate"]
    label = next((made / "out/share3/methods/interpolate/labels").glob("*.nii.gz"))
    stamp = label.stat().st_mtime_ns
    propagation.main(list(map(str, words)))
    assert label.stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit, match="was made with .*; name another folder"):
        propagation.main([*map(str, words), "--every", "50"])
    for more, message in ((["--carry", "x"], "'x' is not NAME=RUN"), (["--protocols", "all"], "invalid choice")):
        with pytest.raises(SystemExit):
            propagation.main([*map(str, words), *more])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds no nobody; check the names"):
        propagation.main([*map(str, words), "--subjects", "nobody"])


def test_ablations_differ_in_one_thing_and_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    ablations = importlib.import_module("propagation_ablations")
    said = []
    monkeypatch.setattr(ablations, "call", said.append)
    (tmp_path / "runs/temporal_uni").mkdir(parents=True)
    (tmp_path / "runs/temporal_uni/train.json").write_text("{}")
    (tmp_path / "runs/fixed_1").mkdir()
    for name in ("about.json", "best.keras"):
        (tmp_path / "runs/fixed_1" / name).write_text("{}")
    only = ["temporal_bi", "temporal_uni", "fixed_1"]
    ablations.main([str(tmp_path / "data"), "-o", str(tmp_path / "runs"), "--only", *only])
    builds, fits = ([words for words in said if words[0] == name] for name in ("build-records", "fit"))
    assert len(builds) == 3 and len(fits) == 2  # nothing was written by the first; the third is done
    assert "--resume" not in fits[0] and fits[1][-1] == "--resume"
    assert set(fits[1]) - set(fits[0]) == {str(tmp_path / "runs/temporal_uni"), "--option", "temporal=uni", "--resume"}
    assert 'structures=["soleus"]' in fits[0]
    assert capsys.readouterr().out == f"--structures soleus --methods --carry fixed_1={tmp_path / 'runs/fixed_1'}\n"
    assert set(ablations.ABLATIONS) == set(SWEEP_ABLATIONS)
    for scale, left_out in (("laptop", "dice_loss"), ("full", "tversky")):  # each is the recipe of its scale as it is
        said.clear()
        words = [
            "--only",
            "dice_loss",
            "tversky",
            "window_10",
            "--scale",
            scale,
            "--from",
            "seg",
            "--learning-rate",
            "0.1",
        ]
        ablations.main([str(tmp_path / "data"), "-o", str(tmp_path / scale), *words])
        fits = {words[words.index("-o") + 1].split("/")[-1]: words for words in said if words[0] == "fit"}
        assert set(fits) == {"dice_loss", "tversky", "window_10"} - {left_out}
        for name, words in fits.items():
            assert words[words.index("--from") + 1] == "seg" and words[words.index("--learning-rate") + 1] == "0.1"
            assert ("slices=11" in words) is (name == "window_10" and scale == "laptop")


def test_a_dataset_of_what_weak_supervision_draws(made, tmp_path):
    weak = importlib.import_module("propagation_weak")
    words = ["build-records", "-i", made / "data", "-o", tmp_path / "whole", "--preset", "ifss_net", "--folds", "2"]
    propagation.call([*map(str, words), "--size", "32", "32"])
    words = [str(word) for word in (made / "data", tmp_path / "whole", "-o", tmp_path / "weak", "--sweep", "60")]
    weak.main(words)
    assert read_json(tmp_path / "weak/dataset.json")["labels"]["ignore"] == 255
    silent = []
    for path in sorted((tmp_path / "weak/labelsTr").glob("*.nii.gz")):
        found, truth = (read_label_image(one).array for one in (path, made / "data/labelsTr" / path.name))
        drawn = ~(found == 255).all(axis=(0, 1))
        assert np.array_equal(found[..., drawn], truth[..., drawn])
        silent.append(np.flatnonzero(drawn).tolist())
    # who trains is first in the order: gap 6 of 60 slices, 3 of these 30; who validates keeps all labels
    assert sorted(silent, key=len) == [list(range(1, 30, 3)), list(range(30))]
    with pytest.raises(SystemExit, match="is there already; name another folder"):
        weak.main(words)
