"""One scan and a few labelled slices, from the files to labels of the whole scan."""

import dataclasses

import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labelled_slices import LabelledSlices
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.records import load_spec, read_index, read_shard
from tfmuscle.subjects import read_dataset
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows import comparing, deciding, fold_jobs, summarising
from tfmuscle.workflows import slices as slices_workflow
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.slices import SliceLabels, SlicesResult, _figures, fit_slices, sample_settings, slices_dataset

SHAPE, SPACING = (40, 36, 24), (1.5, 1.5, 5.0)
DRAWN = (2, 4, 6, 9, 11, 13, 16, 18, 20, 22)
TINY = {"epochs": 2, "steps": 3, "batch_size": 2, "model_options": {"filters": 2, "latent": 4}}


def muscle():
    """A bright rod that leans, in a darker leg, and where it is."""
    i, j, k = np.indices(SHAPE)
    inside = (i - 14 - 0.3 * k) ** 2 + (j - 18) ** 2 < 49
    rng = np.random.default_rng(0)
    image = rng.normal(1.0, 0.1, SHAPE) + ((i - 20) ** 2 + (j - 18) ** 2 < 260) + 2.0 * inside
    return image.astype(np.float32), inside.astype(np.uint8)


@pytest.fixture(params=["axial", "axial, slices first", "coronal"])
def source(tmp_path, request):
    """A scan and ten labelled slices, along the last axis of the array or the first, or from front to back."""
    image, inside = muscle()
    labels = np.zeros_like(inside)
    labels[..., DRAWN] = inside[..., DRAWN]
    turn = (2, 0, 1) if "first" in request.param else (0, 1, 2)
    affine = np.diag([*SPACING, 1.0])[:, [*turn, 3]]
    affine = affine[[0, 2, 1, 3]] if request.param == "coronal" else affine
    geometry = Geometry(tuple(SHAPE[axis] for axis in turn), affine)
    write_volume(tmp_path / "leg.nii.gz", Volume(image.transpose(turn), geometry))
    write_volume(tmp_path / "soleus.nii.gz", Volume(labels.transpose(turn), geometry))
    return SliceLabels(tmp_path / "leg.nii.gz", tmp_path / "soleus.nii.gz")


def test_each_slice_becomes_a_subject_whose_other_slices_are_unknown(source, tmp_path):
    slices = slices_dataset(source, tmp_path / "data", alone=True)
    assert slices.indices == DRAWN
    dataset = read_dataset(tmp_path / "data")
    assert [s.subject_id for s in dataset.subjects] == [f"leg_slice_{index:04d}" for index in DRAWN]
    assert dataset.label_map.to_dict() == {"background": 0, "soleus": 1, "ignore": 255}
    for index, subject in zip(DRAWN, dataset.subjects, strict=True):
        image, labels = subject.read(dataset.label_map)
        array = np.moveaxis(labels.array, slices.axis, 0)
        assert (np.delete(array, index, axis=0) == 255).all()
        assert set(np.unique(array[index])) == {0, 1}
    assert slices_dataset(source, tmp_path / "data", alone=True) == slices  # again: nothing to do
    with pytest.raises(DataError, match="holds something else, or was made of other labels"):
        slices_dataset(source, tmp_path / "data", alone=False)
    for path in (source.scan, source.labels):  # the same numbers elsewhere are another scan
        volume = read_volume(path)
        moved = volume.geometry.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1])
        write_volume(path, Volume(volume.array, Geometry(volume.geometry.shape, moved)))
    with pytest.raises(DataError, match="holds something else, or was made of other labels or another scan"):
        slices_dataset(source, tmp_path / "data", alone=True)


@pytest.mark.parametrize("source", ["axial, slices first", "coronal"], indirect=True)
def test_few_slices_label_the_whole_scan(source, tmp_path):
    config = plan_training(TINY, recipe={}, preset="mehrabi_latent", scale="laptop")
    said = []
    result = fit_slices(source, tmp_path / "run", config, say=said.append)
    assert result.validating == (6, 18)
    assert any(
        "slices 6, 18 of 10 labelled ones along axis" in text and "lie 10 mm from slices" in text for text in said
    )
    scan, labels = read_volume(source.scan), read_volume(result.labels)
    assert result.labels.name == "leg.nii.gz"
    assert labels.geometry.same_grid(scan.geometry)
    assert set(result.figures) == {"soleus"}
    assert set(result.figures["soleus"]) == {"dice_2d_mean", "dice", "iou"}
    # Records hold the labelled slices and no other: eight train, two validate.
    spec = DataSpec.load(tmp_path / "run_records/spec.json")
    index = read_index(tmp_path / "run_records")
    assert {key: index.samples_of(key) for key in index.usable} == {"leg": 2, "leg_training_slices": 8}
    for key in index.usable:
        for sample in read_shard(index.folder / index.path_of(key), spec):
            assert set(np.unique(sample["labels"])) <= {IGNORE, 0, 1}  # beyond the scan nobody looked either
            assert (sample["labels"] == 1).any()
    assert read_json(tmp_path / "run/split.json")["validation"] == ["leg"]
    assert result.reduced
    # The figures are those of the two slices that validate.
    true = np.moveaxis(muscle()[1], 2, 0)[[6, 18]] == 1
    found = np.moveaxis(labels.array, np.argmax(scan.spacing), 0)[[6, 18]] == 1
    both = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert result.figures["soleus"]["dice"] == pytest.approx(both)
    again = fit_slices(source, tmp_path / "run", config, resume=True)
    assert again.figures == result.figures
    two_d = [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in zip(found, true, strict=True)]
    assert result.figures["soleus"]["dice_2d_mean"] == pytest.approx(np.mean(two_d))
    labels = read_volume(source.labels)
    write_volume(source.labels, labels.with_array(np.flip(labels.array, 0 if scan.spacing[0] < 5 else 1)))
    with pytest.raises(DataError, match="was made of other labels"):
        fit_slices(source, tmp_path / "run", config, resume=True)


@pytest.mark.parametrize("source", ["coronal"], indirect=True)
def test_slices_are_cross_validated(source, tmp_path, monkeypatch):
    for module in (comparing, deciding, fold_jobs, summarising):  # here, not in a process for each step
        monkeypatch.setattr(module, "run_apart", lambda work, *parts, progress=None: work(*parts, progress=progress))
    slices = slices_dataset(source, tmp_path / "data", alone=True)
    settings = {f"model_options.{key}": value for key, value in TINY["model_options"].items()}
    settings |= {"epochs": 1, "steps": 1, "batch_size": 2} | sample_settings(slices, read_volume(source.scan))
    result = comparing.cross_validate(
        tmp_path / "data", tmp_path / "cv", ["mehrabi_latent"], folds=2, scale="laptop", settings=settings
    )
    assert not result.failures
    assert {row["subject_id"] for row in result.models[0].rows} == {f"leg_slice_{index:04d}" for index in DRAWN}


@pytest.mark.parametrize("source", ["axial"], indirect=True)
def test_slices_on_which_the_muscle_has_ended(source, tmp_path):
    listed = dataclasses.replace(source, listed=(0, *DRAWN))
    config = plan_training(TINY | {"epochs": 1}, recipe={}, preset="mehrabi_latent", scale="laptop")
    assert fit_slices(listed, tmp_path / "run", config, settings={"kind": "slices"}).slices.empty == (0,)
    index = read_index(tmp_path / "run_records")
    assert index.samples_of("leg_training_slices") == 9
    assert load_spec(tmp_path / "run_records").input_shape[-1] == 1  # one slice at a time


def test_a_structure_that_is_on_no_validating_slice_has_no_figures():
    geometry = Geometry((8, 8, 4), np.eye(4))
    truth, found = np.full(geometry.shape, 255, np.uint8), np.zeros(geometry.shape, np.uint8)
    truth[..., 2] = 0
    truth[2:4, 2:4, 2] = found[2:4, 2:4, 2] = 1
    found[..., 0] = 2  # only where nobody looked
    found[6, 6, 2] = 3  # nobody drew it there, which is an error of the network
    label_map = LabelMap({1: "soleus", 2: "gracilis", 3: "sartorius"}, ignore=255)
    slices = LabelledSlices(2, (2,), 1.0)
    figures = _figures(Volume(found, geometry), Volume(truth, geometry), label_map, slices)
    assert set(figures) == {"soleus", "sartorius"}
    assert figures["soleus"]["dice"] == 1 and figures["sartorius"]["dice"] == 0


@pytest.mark.parametrize("source", ["axial"], indirect=True)
def test_the_commands_tell_what_the_figures_leave_out(source, tmp_path, monkeypatch):
    def fit_slices(source, run, config, **more):
        figures = {"soleus": {"dice_2d_mean": 0.5, "dice": 0.5, "iou": 0.25}}
        return SlicesResult(run, figures, LabelledSlices(2, DRAWN, 5.0), (6, 18), False, ("gracilis",))

    monkeypatch.setattr(slices_workflow, "fit_slices", fit_slices)
    words = ["-i", source.scan, "--labels", source.labels, "--preset", "mehrabi_latent", "-o", tmp_path / "run"]
    told = CliRunner().invoke(tfmuscle_group, ["fit", *map(str, words)])
    assert told.exit_code == 0, told.output
    assert "gracilis: on none of the validating slices" in told.output
    words = ["-i", source.scan, "--labels", source.labels, "--slices", "0,2,4,6,9", "-o", tmp_path / "data"]
    told = CliRunner().invoke(tfmuscle_group, ["slices", *map(str, words)])
    assert told.exit_code == 0, told.output
    assert "Nothing is drawn on 0: they make no subject." in told.output
    assert "Note: 6 labelled slices are not listed, and count as unknown" in told.output


def test_another_network_is_not_given_the_options_of_the_latent_one():
    config = plan_training({"model": "unet2d"}, recipe={}, preset="mehrabi_latent", scale="laptop")
    assert (config.model, config.model_options, config.epochs) == ("unet2d", {}, 20)
    assert plan_training({}, recipe={}, preset="mehrabi_latent", scale="laptop").model_options["latent"] == 64


def test_what_cannot_be_used(source, tmp_path):
    for preset in ("nnunet_2d", "ni_cascade"):
        with pytest.raises(ValueError, match="learns from whole scans"):
            fit_slices(source, tmp_path / "run", TrainConfig(preset=preset))
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is a file; name a folder"):
        slices_dataset(source, tmp_path / "file", alone=True)
    labels = read_volume(source.labels)
    other = tmp_path / "other.nii.gz"
    write_volume(other, labels.cropped((0, 0, 0), tuple(edge - 1 for edge in labels.geometry.shape)))
    with pytest.raises(DataError, match="not on the grid of"):
        slices_dataset(SliceLabels(source.scan, other), tmp_path / "a", alone=True)
    write_volume(other, labels.with_array(np.zeros_like(labels.array)))
    with pytest.raises(DataError, match="nothing is labelled; label some slices"):
        slices_dataset(SliceLabels(source.scan, other), tmp_path / "b", alone=True)
    write_json(tmp_path / "names.json", {"labels": {"background": 0, "soleus": 2}})
    with pytest.raises(DataError, match="have no name; give a table"):
        slices_dataset(SliceLabels(source.scan, source.labels, tmp_path / "names.json"), tmp_path / "c", alone=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="holds something else"):
        slices_dataset(source, tmp_path / "d", alone=True)
    scans = tmp_path / "scans"
    for name in "ab":
        write_volume(scans / f"{name}.nii.gz", labels)
    with pytest.raises(DataError, match="holds 2 scans"):
        slices_dataset(SliceLabels(scans, source.labels), tmp_path / "e", alone=True)
