"""From a few labelled slices to all of them without a network, and to the slices worth labelling next."""

import csv
import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.inference import WEIGHTS_FILE
from tfmuscle.interpolation import expected_error, interpolate_slices
from tfmuscle.io import read_label_image, read_volume, write_volume
from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows import suggesting
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.predicting import PredictResult
from tfmuscle.workflows.slices import SliceLabels, fit_slices

SHAPE, SPACING = (40, 36, 24), (1.5, 1.5, 5.0)
DRAWN = (2, 4, 6, 9, 11, 13, 16, 18, 20, 22)
NETWORK = {"background": 0, "bone": 2, "soleus": 5}
NAMED = LabelMap({1: "soleus"})


def command(*words):
    return CliRunner().invoke(tfmuscle_group, [str(word) for word in words])


@pytest.fixture
def case(tmp_path):
    """A scan, ten labelled slices, and the folder they are in."""
    i, j, k = np.indices(SHAPE)
    inside = ((i - 14 - 0.3 * k) ** 2 + (j - 18) ** 2 < 49).astype(np.uint8)
    image = np.random.default_rng(0).normal(1.0, 0.1, SHAPE) + 2.0 * inside
    labels = np.zeros_like(inside)
    labels[..., DRAWN] = inside[..., DRAWN]
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -30, 10, 100
    geometry = Geometry(SHAPE, affine)
    write_volume(tmp_path / "leg.nii.gz", Volume(image.astype(np.float32), geometry))
    write_volume(tmp_path / "soleus.nii.gz", Volume(labels, geometry))
    return SliceLabels(tmp_path / "leg.nii.gz", tmp_path / "soleus.nii.gz")


def shapes(source):
    return interpolate_slices(read_label_image(source.labels), NAMED, LabelledSlices(2, DRAWN, SPACING[2]))


@pytest.fixture
def networks(case, monkeypatch):
    """Stands in for trained networks: run -> blocks it adds to the interpolated shapes, `{slice: edge in pixels}`."""

    def pretend(blocks, names=NETWORK):
        def predict(run, source, out, options=None, progress=None):
            array = 5 * shapes(case).array
            array[30:34, 28:34] = 2  # what is not drawn is in nobody's dispute
            for index, edge in blocks[run.name].items():
                array[:edge, :edge, index] = 5
            write_volume(out / "leg.nii.gz", shapes(case).with_array(array))
            write_json(out / "predictions.json", {"labels": names})
            return PredictResult(out, {"leg": out / "leg.nii.gz"}, {}, ("as it was told",), True)

        monkeypatch.setattr(suggesting, "predict", predict)
        return [case.scan.with_name(name) for name in blocks]

    return pretend


def test_interpolate_writes_labels_and_their_names(case, tmp_path):
    out = tmp_path / "made/all.nii.gz"
    result = command("interpolate", "-i", case.labels, "-o", out)
    assert result.exit_code == 0, result.output
    made = read_label_image(out)
    assert np.array_equal(made.array, shapes(case).array)
    assert made.geometry.same_grid(read_label_image(case.labels).geometry)
    assert read_json(out.with_name("all.json"))["labels"] == {"background": 0, "soleus": 1}
    volume = made.array.sum() * 1.5 * 1.5 * 5.0 / 1000
    assert f"soleus: {volume:.1f} ml" in result.output
    assert "slices 2 to 22 along axis 2, from 10 labelled ones" in result.output
    listed = command("interpolate", "-i", case.labels, "-o", out, "--slices", "0," + ",".join(map(str, DRAWN)))
    assert listed.exit_code == 0, listed.output
    ended = read_label_image(out).array
    assert 0 < ended[..., 1].sum() < ended[..., 2].sum() and not ended[..., 0].any()


def test_corrected_labels_are_not_interpolated_over(case, tmp_path):
    out = tmp_path / "all.nii.gz"
    for _ in range(2):  # as it was written, it may be made again
        assert command("interpolate", "-i", case.labels, "-o", out).exit_code == 0
    made = read_label_image(out)
    write_volume(out, made.with_array(1 - made.array))
    failed = command("interpolate", "-i", case.labels, "-o", out)
    assert failed.exit_code == 1 and "is there already, perhaps with corrections" in failed.output
    assert np.array_equal(read_label_image(out).array, 1 - made.array)
    write_volume(tmp_path / "mine.nii.gz", made)
    failed = command("interpolate", "-i", case.labels, "-o", tmp_path / "mine.nii.gz")
    assert failed.exit_code == 1 and "name another output or remove it" in failed.output


def test_the_axis_that_is_assumed_is_told(case, tmp_path):
    whole = tmp_path / "whole.nii.gz"
    write_volume(whole, shapes(case))
    told = command("interpolate", "-i", whole, "-o", tmp_path / "a.nii.gz", "--slices", "2,9,22")
    assert told.exit_code == 0, told.output
    assert "Note: on no axis do labelled slices stand alone" in told.output and "along axis 2" in told.output
    assert "Note: 18 labelled slices are not listed" in told.output
    given = command("interpolate", "-i", whole, "-o", tmp_path / "b.nii.gz", "--slices", "2,9,22", "--axis", "2")
    assert "stand alone" not in given.output and "18 labelled slices" in given.output


def test_what_cannot_be_interpolated(case, tmp_path):
    assert "is an input and would be lost" in command("interpolate", "-i", case.labels, "-o", case.labels).output
    assert command("interpolate", "-i", case.labels, "-o", tmp_path / "a.stl").exit_code == 2
    labels = read_label_image(case.labels)
    write_volume(tmp_path / "one.nii.gz", labels.with_array(np.where(np.arange(24) == 9, labels.array, 0)))
    failed = command("interpolate", "-i", tmp_path / "one.nii.gz", "-o", tmp_path / "b.nii.gz")
    assert failed.exit_code == 1 and "1 labelled slice(s); 2 are needed" in failed.output
    write_json(tmp_path / "c.json", {"mine": 1})
    failed = command("interpolate", "-i", case.labels, "-o", tmp_path / "c.nii.gz")
    assert failed.exit_code == 1 and "holds something else" in failed.output


def test_slices_in_dispute_are_suggested(case, networks, tmp_path):
    runs = networks({"a": {7: 4, 14: 8}})
    result = command("suggest", "-m", *runs, "-i", case.scan, "--labels", case.labels, "-o", tmp_path / "next", "-n", 2)
    assert result.exit_code == 0, result.output
    # The network adds 64 pixels to slice 14 and 16 to slice 7, of 2.25 mm² each; one pair of opinions.
    # The mean of that and of what the drawn slices tell is what is probably wrong.
    (told,) = expected_error(read_label_image(case.labels), NAMED, LabelledSlices(2, DRAWN, SPACING[2]))
    worst, second = (144 + told[14]) / 2, (36 + told[7]) / 2
    place = "slice 14 along axis 2, at (-0.8, 36.2, 170.0) mm"
    assert f"1: {place}: {worst:.0f} mm² probably wrong, 144 mm² in dispute, most of it soleus" in result.output
    place = "slice 7 along axis 2, at (-0.8, 36.2, 135.0) mm"
    assert f"2: {place}: {second:.0f} mm² probably wrong, 36 mm² in dispute" in result.output
    assert "beyond slices 2 and 22 only one network has an opinion" in result.output
    assert "as it was told" in result.output and "(reduced)" in result.output
    with open(tmp_path / "next/suggested.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["slice"], row["disagreement_mm2"]) for row in rows] == [
        ("1", "14", "144.0"),
        ("2", "7", "36.0"),
    ]
    with open(tmp_path / "next/disagreement.csv", encoding="utf-8", newline="") as file:
        every = list(csv.DictReader(file))
    assert [row["disagreement_mm2"] for row in every[:3]] == ["nan", "nan", "0.0"]
    assert float(every[14]["probable_error_mm2"]) == pytest.approx(worst, abs=0.01)
    assert every[14]["soleus (mm2)"] == "144.0"
    assert [int(row["slice"]) for row in every if row["labelled"] == "1"] == list(DRAWN)
    assert (tmp_path / "next/suggested.png").read_bytes().startswith(b"\x89PNG")


def test_drawn_slices_alone_suggest_where_shapes_bend(case, tmp_path):
    """Slices 16 and on lie 6 pixels to the side: the line is broken between 13 and 16."""
    labels = read_label_image(case.labels)
    array = labels.array.copy()
    array[..., 16:] = np.roll(array[..., 16:], 6, axis=1)
    write_volume(case.labels, labels.with_array(array))
    found = command("suggest", "-i", case.scan, "--labels", case.labels, "-o", tmp_path / "next", "-n", 1)
    assert found.exit_code == 0, found.output
    assert "1: slice 14 along axis 2" in found.output
    assert "mm² probably wrong\n" in found.output and "in dispute" not in found.output
    assert "beyond slices 2 and 22 no network has an opinion" in found.output
    assert "told by 0 network(s), interpolated shapes and slices left out\n" in found.output
    assert not list((tmp_path / "next").glob("labels_*"))
    array[..., 3:22] = 0
    write_volume(case.labels, labels.with_array(array))
    with pytest.raises(DataError, match=r"2 labelled slices; label 3 or more, or give a run \(-m\)"):
        suggesting.suggest(case, [], tmp_path / "other")


def test_what_a_network_gets_wrong_on_a_drawn_slice_too_is_not_suggested(case, networks, tmp_path):
    """It sees a block on slices 11 to 18, of which four are drawn without one; the one on 19 is news."""
    runs = networks({"a": dict.fromkeys(range(11, 19), 8) | {19: 12}})
    (row,) = suggesting.suggest(case, runs, tmp_path / "next", count=1).rows
    assert (row["slice"], row["disagreement_mm2"]) == (19, 324.0)


def test_two_networks_have_an_opinion_beyond_the_drawn_slices(case, networks, tmp_path):
    runs = networks({"a": {0: 4, 7: 4}, "b": {7: 12}})
    result = suggesting.suggest(case, runs, tmp_path / "next", count=24)
    # Slice 7: pixels of the smaller block are given by two of three, of the rest by one; all 144 by 2 of 3 pairs.
    found = {row["slice"]: row["disagreement_mm2"] for row in result.rows}
    assert found[0] == 16 * 2.25
    assert found[7] == pytest.approx(144 * 2.25 * 2 / 3)
    assert result.rows[0]["slice"] == 7
    assert set(found) == set(range(24)) - set(DRAWN)
    assert list(result.runs.values()) == runs
    assert "14 slices could be suggested of the 24" in result.notes[-1]
    assert not any("only one network" in note for note in result.notes)


def test_labels_of_other_networks_go_and_the_same_stay(case, networks, tmp_path):
    runs, out = networks({"a": {7: 4}, "b": {}}), tmp_path / "next"
    for run, weights in zip(runs, "ab", strict=True):
        run.mkdir()
        (run / WEIGHTS_FILE).write_text(weights)
    (out / "labels_9").mkdir(parents=True)  # the user's own

    def labels():
        return {path.name: (path / "mark").exists() for path in out.glob("labels_*")}

    suggesting.suggest(case, runs, out)
    (out / "labels_1/mark").touch()
    told = suggesting.suggest(dataclasses.replace(case, listed=DRAWN[1:]), runs, out).notes
    assert "1 labelled slices are not listed, and count as unknown" in told
    assert labels() == {"labels_1": True, "labels_2": False, "labels_9": False}
    suggesting.suggest(case, runs[:1], out)
    assert labels() == {"labels_1": False, "labels_9": False}
    (out / "labels_1/mark").touch()
    scan = read_volume(case.scan)
    write_volume(case.scan, scan.with_array(scan.array + 1))
    suggesting.suggest(case, runs[:1], out)
    assert labels() == {"labels_1": False, "labels_9": False}


@pytest.mark.parametrize("turn", [(2, 0, 1), (0, 2, 1)])
def test_slices_may_follow_along_any_axis(case, networks, tmp_path, turn):
    runs = networks({"a": {7: 4}})
    real = suggesting.predict

    def turned(volume):
        affine = volume.geometry.affine[:, [*turn, 3]]
        return Volume(volume.array.transpose(turn), Geometry(tuple(SHAPE[axis] for axis in turn), affine))

    def predict(run, source, out, options=None, progress=None):
        found = real(run, source, out)
        write_volume(out / "leg.nii.gz", turned(read_label_image(out / "leg.nii.gz")))
        return found

    labels, scan = tmp_path / "turned/soleus.nii.gz", tmp_path / "turned/leg.nii.gz"
    write_volume(labels, turned(read_label_image(case.labels)))
    write_volume(scan, Volume(np.ones(turned(shapes(case)).array.shape, np.float32), turned(shapes(case)).geometry))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suggesting, "predict", predict)
        (row,) = suggesting.suggest(SliceLabels(scan, labels), runs, tmp_path / "next", count=1).rows
    assert (row["axis"], row["slice"], row["disagreement_mm2"], row["z_mm"]) == (turn.index(2), 7, 36.0, 135.0)


def test_what_cannot_be_suggested(case, networks, tmp_path):
    runs = networks({"a": {}}, names={"background": 0, "femur": 5})
    with pytest.raises(DataError, match=r"shows soleus, but the network knows femur; give the run"):
        suggesting.suggest(case, runs, tmp_path / "next")
    with pytest.raises(ValueError, match="0 slices are wanted"):
        suggesting.suggest(case, runs, tmp_path / "next", count=0)
    missing = command("suggest", "-m", runs[0], "-i", case.scan, "-o", tmp_path / "next")
    assert missing.exit_code == 2 and "--labels is missing" in missing.output
    labels = read_label_image(case.labels)
    write_volume(tmp_path / "cut.nii.gz", labels.cropped((0, 0, 0), (39, 36, 24)))
    with pytest.raises(DataError, match="not on the grid of"):
        suggesting.suggest(SliceLabels(case.scan, tmp_path / "cut.nii.gz"), runs, tmp_path / "next")
    write_volume(tmp_path / "none.nii.gz", labels.with_array(np.zeros_like(labels.array)))
    with pytest.raises(DataError, match="nothing is labelled"):
        suggesting.suggest(SliceLabels(case.scan, tmp_path / "none.nii.gz"), runs, tmp_path / "next")
    monkey = PredictResult(tmp_path, {}, {"leg": "leg.nii.gz: too dark"})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="too dark"):
        patch.setattr(suggesting, "predict", lambda *parts, **more: monkey)
        suggesting.suggest(case, runs, tmp_path / "next")


def test_a_trained_network_suggests(case, tmp_path):
    tiny = {"epochs": 1, "steps": 1, "batch_size": 2, "model_options": {"filters": 2, "latent": 4}}
    fit_slices(case, tmp_path / "run", plan_training(tiny, recipe={}, preset="mehrabi_latent", scale="laptop"))
    result = command("suggest", "-m", tmp_path / "run", "-i", case.scan, "--labels", case.labels, "-o", tmp_path / "n")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line[:3] in ("1: ", "2: ", "3: ")]
    assert len(lines) == 3
    assert (tmp_path / "n/labels_1/leg.nii.gz").exists()
