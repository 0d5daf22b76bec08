"""Several networks as one, networks that look at earlier labels, and the cleaning after them: in Python and as
`predict` runs them; judged by hand arithmetic and by networks whose answer is known."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_inference import (
    linear_network,
    make_run,
    make_spec,
    random_network,
    random_scan,
    scan_grid,
    threshold_network,
)

from tfmuscle.cli import tfmuscle_group
from tfmuscle.cli.predicting import predict_command
from tfmuscle.config import Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.export.bundle import FORMATS
from tfmuscle.files import read_json, sha256
from tfmuscle.inference import ENGINES, load_ensemble, predict_probabilities, predict_volume, run_folders
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.postprocessing import CHEENA, Cleaning, clean
from tfmuscle.volume import Volume
from tfmuscle.workflows.predicting import PredictOptions, predict

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
SCAN = random_scan(scan_grid((11, 13, 6)))


def constant(probabilities, **changes):
    spec = make_spec(**changes)
    return make_run(linear_network(spec, [0, 0, 0], np.log(probabilities)), spec)


def save_run(folder, model, spec, *, fold=0, parts=None, **recipe):
    """A finished run of `model`."""
    folder.mkdir(parents=True)
    spec.save(folder / "spec.json")
    TrainConfig(fold=fold, recipe=Supervised(**recipe)).save(folder / "train.json")
    model.save(folder / "best.keras")
    (folder / "about.json").write_text(json.dumps({"seconds": 10.0, "epochs": 3}))
    (folder / "split.json").write_text(json.dumps(parts or {"test": ["one"]}))
    return folder


# --- the mean ---------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_probabilities():
    runs = [constant([0.2, 0.5, 0.3]), constant([0.7, 0.1, 0.2])]
    found = predict_probabilities(runs, SCAN).array
    np.testing.assert_allclose(found, np.broadcast_to([0.45, 0.3, 0.25], found.shape), atol=1e-6)
    assert (predict_volume(runs[0], SCAN).array == 4).all() and not predict_volume(runs, SCAN).array.any()


def test_each_run_counts_once_however_many_mirrors_it_has():
    spec = make_spec("volumes")
    mirrored, plain = make_run(random_network(spec), spec), make_run(random_network(spec, seed=9), spec, mirror=False)
    alone = [predict_probabilities(run, SCAN).array for run in (mirrored, plain)]
    together = predict_probabilities((mirrored, plain), SCAN).array
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.05


def test_a_run_that_is_not_a_number_is_named(tmp_path):
    runs = [constant([0.2, 0.5, 0.3]), dataclasses.replace(constant([0.2, np.nan, 0.3]), path=tmp_path / "broken")]
    with pytest.raises(DataError, match="broken: the network returns values that are not numbers"):
        predict_volume(runs, SCAN)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A cross-validation of two folds that answer 4 and 0, together 0."""
    folder, spec = tmp_path_factory.mktemp("cv") / "cheena", make_spec()
    for fold, probabilities in enumerate(([0.2, 0.5, 0.3], [0.7, 0.1, 0.2])):
        model = linear_network(spec, [0, 0, 0], np.log(probabilities))
        parts = {"test": ["one"], "validation": [f"subject{fold}"]}
        save_run(folder / f"fold_{fold}/run", model, spec, fold=fold, parts=parts)
    return folder


@pytest.fixture
def scans(tmp_path):
    """Two scans for thresholds at 1 and 2: a noisy part, and apart from it a block of bone."""
    for name, seed in (("one", 1), ("two", 2)):
        scan = random_scan(scan_grid((20, 18, 3), orientation="LPS"), seed=seed)
        scan.array[12:], scan.array[15:19, 5:15] = 0, 2.5
        write_volume(tmp_path / f"scans/{name}.nii.gz", Volume(scan.array[..., 0], scan.geometry))
    return tmp_path / "scans"


def test_folders_of_cross_validation_stand_for_their_runs_in_order(tmp_path):
    for number in (10, 2, 0):
        (tmp_path / f"cv/a/fold_{number}/run").mkdir(parents=True)
    assert [run.parent.name for run in run_folders(tmp_path / "cv/a")] == ["fold_0", "fold_2", "fold_10"]
    (tmp_path / "cv/b/fold_0/run").mkdir(parents=True)
    with pytest.raises(DataError, match="cv: holds cross-validations of a, b; give one of these folders"):
        run_folders(tmp_path / "cv")
    assert run_folders(tmp_path / "nothing") == [tmp_path / "nothing"]


def test_runs_that_see_different_input_are_refused(folds, tmp_path):
    spec = make_spec(normalisation="minmax", folds=3, seed=8, name="other")
    save_run(tmp_path / "run", threshold_network(spec), spec)
    message = r"run/spec.json: normalisation is minmax, but none in .*fold_0/run/spec.json; runs of an ensemble need"
    with pytest.raises(DataError, match=message):
        load_ensemble([folds, tmp_path / "run"])
    spec = dataclasses.replace(spec, normalisation="none")
    spec.save(tmp_path / "run/spec.json")
    assert len(load_ensemble([folds, tmp_path / "run"])) == 3  # folds, seed and name decide no input
    spec = dataclasses.replace(spec, label_map=LabelMap({1: "muscle", 9: "bone"}))
    spec.save(tmp_path / "run/spec.json")
    with pytest.raises(DataError, match="label_map is .*'muscle': 1.* but .*'muscle': 4"):
        load_ensemble([folds, tmp_path / "run"])


def test_predict_takes_a_cross_validation_or_its_runs(folds, scans, tmp_path):
    runs = [folds / f"fold_{fold}/run" for fold in (0, 1)]
    alone = predict(runs[0], scans, tmp_path / "alone")
    assert (read_volume(alone.written["one"]).array == 4).all()
    for name, model in (("cv", folds), ("runs", runs)):
        result = predict(model, scans, tmp_path / name)
        assert not read_volume(result.written["two"]).array.any() and result.failures == {}
    note = read_json(tmp_path / "cv/predictions.json")
    assert note["run"] == ["cheena/fold_0/run", "cheena/fold_1/run"] and note["fold"] == [0, 1]
    assert note["weights"] == [sha256(run / "best.keras") for run in runs]
    assert (note["engine"], note["cleaning"], note["model"], note["training_seconds"]) == ("keras", [], "unet", 20.0)
    assert read_json(tmp_path / "alone/predictions.json")["weights"] == note["weights"][0]
    with pytest.raises(DataError, match="the predictions there have other weights; name another folder"):
        predict(runs[1], scans, tmp_path / "cv", options=PredictOptions(resume=True))


def test_subjects_that_only_some_runs_left_out_are_refused(folds, scans):
    (scans / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="fold_1/run: has other validation subjects than .*fold_0/run; give one"):
        predict(folds, scans, scans / "out", part="validation")


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_labels_are_cleaned_as_the_recipe_and_then_the_folder_say(scans, tmp_path):
    spec = make_spec()
    plain = save_run(tmp_path / "plain", threshold_network(spec), spec)
    run = save_run(tmp_path / "run", threshold_network(spec), spec, postprocessing="cheena")
    raw = {name: read_volume(path) for name, path in predict(plain, scans, tmp_path / "a").written.items()}
    off = predict(run, scans, tmp_path / "b", options=PredictOptions(postprocess=False))
    chosen = Cleaning(largest=("bone",))
    recipe = predict(run, scans, tmp_path / "c")
    chosen.save(run / "postprocessing.json")
    both = predict(run, scans, tmp_path / "d")
    for name, labels in raw.items():
        np.testing.assert_array_equal(read_volume(off.written[name]).array, labels.array)
        cleaned = clean(labels, CHEENA, spec.label_map)
        np.testing.assert_array_equal(read_volume(recipe.written[name]).array, cleaned.array)
        assert (cleaned.array != labels.array).any()
        again = clean(cleaned, chosen, spec.label_map)
        np.testing.assert_array_equal(read_volume(both.written[name]).array, again.array)
        assert (again.array != cleaned.array).any()
    notes = {key: read_json(tmp_path / key / "predictions.json")["cleaning"] for key in "abcd"}
    assert (notes["a"], notes["b"]) == ([], [])
    assert notes["c"] == [CHEENA.to_dict()] and notes["d"] == [CHEENA.to_dict(), chosen.to_dict()]
    with pytest.raises(DataError, match="have other cleaning; name another folder"):
        predict(run, scans, tmp_path / "c", options=PredictOptions(resume=True))


def test_cleanings_that_cannot_be_applied_are_refused(folds, scans, tmp_path):
    spec = make_spec()
    run = save_run(tmp_path / "run", threshold_network(spec), spec)
    Cleaning(largest=("patella",)).save(run / "postprocessing.json")
    with pytest.raises(DataError, match="run/postprocessing.json: the runs have no patella; use --no-postprocess"):
        predict(run, scans, tmp_path / "out")
    with pytest.raises(DataError, match="the postprocessing.json clean labels in different ways; use --no-postproc"):
        predict([folds, run], scans, tmp_path / "out")
    other = save_run(tmp_path / "other", threshold_network(spec), spec, postprocessing="cheena")
    with pytest.raises(DataError, match="the recipes of the runs clean labels in different ways"):
        predict([folds, other], scans, tmp_path / "out")


# --- labels of an earlier network -------------------------------------------------------------------------------------


@pytest.fixture
def cascade(tmp_path):
    """A first network, and a second one that repeats what the first found."""
    spec = make_spec()
    first = save_run(tmp_path / "first", threshold_network(spec), spec, postprocessing="cheena")
    spec = dataclasses.replace(spec, prior=True)
    model = linear_network(spec, [0, 0, 0], [4, 0, 0])
    weights = np.zeros((3, 3), np.float32)
    weights[1, 1] = weights[2, 2] = 8
    model.layers[1].set_weights([weights, np.array([4, 0, 0], np.float32)])
    return first, save_run(tmp_path / "second", model, spec)


def test_a_prior_is_a_folder_of_labels_or_the_run_that_makes_them(cascade, scans, tmp_path):
    first, second = cascade
    made = predict(first, scans, tmp_path / "priors")
    expected = {name: read_volume(path).array for name, path in made.written.items()}
    for name, prior in (("files", tmp_path / "priors"), ("run", first)):
        result = predict(second, scans, tmp_path / name, options=PredictOptions(prior=prior))
        assert result.failures == {}
        for key, path in result.written.items():
            np.testing.assert_array_equal(read_volume(path).array, expected[key])
        assert read_json(tmp_path / name / "predictions.json")["prior"] == prior.name
    options = PredictOptions(prior=tmp_path / "priors/one.nii.gz")
    predict(second, scans / "one.nii.gz", tmp_path / "single.nii.gz", options=options)
    np.testing.assert_array_equal(read_volume(tmp_path / "single.nii.gz").array, expected["one"])


def test_priors_that_do_not_fit_are_refused(cascade, scans, tmp_path):
    first, second = cascade
    with pytest.raises(DataError, match="second: looks at the labels of an earlier network; give them with --prior"):
        predict(second, scans, tmp_path / "out")
    with pytest.raises(DataError, match="first: looks at the scan alone; leave out --prior"):
        predict(first, scans, tmp_path / "out", options=PredictOptions(prior=first))
    other = dataclasses.replace(make_spec(), label_map=LabelMap({1: "muscle", 2: "bone"}))
    save_run(tmp_path / "other", threshold_network(other), other)
    with pytest.raises(DataError, match="other: its labels are .*'bone': 2}, but .*'bone': 9.* in .*second; give the"):
        predict(second, scans, tmp_path / "out", options=PredictOptions(prior=tmp_path / "other"))

    made = predict(first, scans, tmp_path / "priors").written
    scan = read_volume(made["one"])
    write_volume(made["one"], scan.cropped((0, 0, 0), (4, 4, 3)))
    write_volume(made["two"], scan.with_array(np.full(scan.array.shape, 5, np.uint8)))
    options = PredictOptions(prior=tmp_path / "priors")
    failures = predict(second, scans, tmp_path / "out", options=options).failures
    assert "one.nii.gz: shape (4, 4, 3), not on the grid (20, 18, 3) of the scan" in failures["one"]
    assert "two.nii.gz: ids [5] are not among those of" in failures["two"]
    made["two"].unlink()
    failures = predict(second, scans, tmp_path / "out", options=options).failures
    assert failures["two"] == "two: has no prior among 1 label images in priors; name them alike"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_several_models_and_an_engine(folds, scans, tmp_path):
    words = ["-m", folds / "fold_0/run", "-m", folds / "fold_1/run", "-i", scans, "-o", tmp_path / "out"]
    words = ["predict", *map(str, words), "--engine", "xla", "--no-postprocess", "--no-mirror"]
    result = CliRunner().invoke(tfmuscle_group, words, catch_exceptions=False)
    assert result.exit_code == 0 and "2 scan(s) segmented" in result.output
    assert read_json(tmp_path / "out/predictions.json")["engine"] == "xla"
    assert not read_volume(tmp_path / "out/one.nii.gz").array.any()


def test_the_command_offers_every_engine():
    (option,) = [option for option in predict_command.params if option.name == "engine"]
    assert set(option.type.choices) == {*ENGINES, *FORMATS}  # formats are the engines of bundles
