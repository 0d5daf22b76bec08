"""A cascade trained from a dataset: the plan, the records, who trains what, and what prediction says of it."""

import shutil
from dataclasses import replace

import cascades
import numpy as np
import pytest

from tfmuscle import records
from tfmuscle.cascade import CascadePlan, largest_enlargement, tight_box
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.inference import cascade as prediction
from tfmuscle.inference import find_in_box, load_cascade, load_run
from tfmuscle.io import read_volume, write_volume
from tfmuscle.metrics import dice
from tfmuscle.preprocessing import preprocess, resample_labels
from tfmuscle.records.boxes import mean_sample
from tfmuscle.workflows import cascade as workflow
from tfmuscle.workflows import comparing, deciding, fold_jobs, summarising
from tfmuscle.workflows.cascade import cascade_status, fit_cascade, plan_cascade, records_folder
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.predicting import PredictOptions, predict
from tfmuscle.workflows.processes import claimed

CASCADE = {
    "groups": [["soleus", "popliteus"]], "folds": 2, "fine_voxels": 4096, "coarse_voxels": 8000, "coarse_multiple": 4,
}  # fmt: skip
SETTINGS = {"epochs": 1, "steps": 2, "model_options": {"filters": 2, "levels": 2}}


def wanted(**settings):
    found = plan_cascade(SETTINGS | settings, recipe={}, cascade=CASCADE, preset="ni_cascade", scale="laptop")
    return replace(found, groups=replace(found.groups, model_options={"filters": 2, "levels": 2}))


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Trainings run here and now: a process of its own for each is tested with the other workflows."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (workflow, fold_jobs):
            patch.setattr(module, "run_apart", _here)
        yield


def _here(function, *parts, progress=None):
    return function(*parts, progress=progress)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cascade")
    data = cascades.dataset(folder / "data", subjects=3)
    path = data / "labelsTr/person_0.nii.gz"
    labels = read_volume(path)
    unknown = labels.array == cascades.LABEL_MAP.id_of("popliteus_left")
    write_volume(path, labels.with_array(np.where(unknown, 0, labels.array).astype(np.uint8)))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    said = []
    outcome = fit_cascade(folder / "data", folder / "run", wanted(), say=said.append)
    assert not outcome.failures
    assert [state.state for state in outcome.states] == ["done"] * 3
    assert "rectus_femoris_left" in said[0]
    assert "no network learns them" in said[0]
    return folder / "run"


def copy_of(run, tmp_path):
    """A copy of the trained cascade and its records, to spoil."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(records_folder(run), records_folder(tmp_path / "run"))
    return tmp_path / "run"


def test_a_left_leg_becomes_the_record_of_a_right_one(run, folder):
    plan = CascadePlan.load(run / "cascade.json")
    spec, home = plan.muscle("soleus").spec, records_folder(run) / "soleus"
    index = records.read_index(home)
    assert set(index.folds) == {f"person_{number}_{side}" for number in range(3) for side in ("left", "right")}
    for number in range(3):
        left, right = (
            records.read_scan(home / index.path_of(f"person_{number}_{side}"), spec) for side in ("left", "right")
        )
        assert left.labels.shape == right.labels.shape
        assert dice(left.labels == 1, right.labels == 1) > 0.95  # the phantom's legs mirror each other, voxels do not
        assert left.labels.max() == 1
        assert np.corrcoef(left.image.ravel(), right.image.ravel())[0, 1] > 0.9


def test_a_leg_without_the_muscle_teaches_its_network_nothing(run):
    index = records.read_index(records_folder(run) / "popliteus")
    assert "person_0_left" not in index.folds
    assert "person_0_right" in index.folds


def test_both_legs_of_a_person_are_in_one_fold(run):
    folds = records.read_index(records_folder(run) / "soleus").folds
    assert all(folds[f"person_{number}_left"] == folds[f"person_{number}_right"] for number in range(3))


def test_the_record_of_a_group_is_its_region_on_the_coarse_grid(run, folder):
    plan = CascadePlan.load(run / "cascade.json")
    group, home = plan.groups[0], records_folder(run) / "group_01"
    (sample,) = records.read_shard(home / records.read_index(home).path_of("person_1"), group.spec)
    labels = read_volume(folder / "data/labelsTr/person_1.nii.gz").reoriented("SPL")
    count = labels.geometry.shape[0]
    start = count - int(np.ceil(group.region[1] * count - 1e-9))
    stop = count - int(np.floor(group.region[0] * count + 1e-9))
    part = labels.cropped((start, 0, 0), (stop, *labels.geometry.shape[1:]))
    coarse = resample_labels(part, part.geometry.resized(group.spec.window)).array
    for number, name in enumerate(group.spec.label_map.structures, start=1):
        assert np.array_equal(sample["labels"] == number, coarse == cascades.LABEL_MAP.id_of(name))


def test_states_tell_who_is_done(run):
    states = cascade_status(run)
    assert [(item.name, item.stage) for item in states] == [("group_01", 1), ("soleus", 2), ("popliteus", 2)]
    assert all(item.epochs == 1 and item.seconds > 0 for item in states)


def test_a_finished_network_is_never_trained_again(run, folder, tmp_path):
    copy = copy_of(run, tmp_path)
    (copy / "networks/soleus/about.json").unlink()  # what is left is complete but for its last line
    before = {path: path.stat().st_mtime_ns for path in copy.glob("networks/*/best.keras")}
    assert cascade_status(copy)[1].state == "interrupted"
    fit_cascade(folder / "data", copy, wanted(), resume=True)
    assert all(item.state == "done" for item in cascade_status(copy))
    changed = {path.parent.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {"soleus"}


def test_a_network_that_another_process_trains_is_left_to_it(run, folder, tmp_path):
    copy, said = copy_of(run, tmp_path), []
    shutil.rmtree(copy / "networks/soleus")
    with claimed(copy / "networks", name="soleus") as other:
        assert not other
        outcome = fit_cascade(folder / "data", copy, wanted(), resume=True, say=said.append)
        assert {item.name: item.state for item in outcome.states}["soleus"] == "running"
    assert any(sentence.startswith("soleus: process") for sentence in said)
    assert not (copy / "networks/soleus").exists()
    only = fit_cascade(folder / "data", copy, wanted(), only=["soleus"], resume=True)
    assert not only.failures
    assert (copy / "networks/soleus/about.json").exists()


def test_records_are_not_made_again(run, folder, tmp_path):
    copy = copy_of(run, tmp_path)
    shard = next(records_folder(copy).glob("soleus/*.tfrecord"))
    gone = next(records_folder(copy).glob("popliteus/*.tfrecord"))
    before = shard.stat().st_mtime_ns
    entry = next(e for e in records.read_index(gone.parent).entries if e["file"] == gone.name)
    gone.unlink()
    fit_cascade(folder / "data", copy, wanted(), resume=True)
    assert gone.stat().st_size == entry["bytes"]
    mine = next(e for e in records.read_index(shard.parent).entries if e["file"] == shard.name)["subject_id"]
    assert (shard.stat().st_mtime_ns == before) == (mine[:8] != entry["subject_id"][:8])


def test_a_damaged_subject_is_named_and_the_others_go_on(folder, tmp_path):
    data = shutil.copytree(folder / "data", tmp_path / "data")
    (data / "imagesTr/person_2_0000.nii.gz").write_bytes(b"nothing")
    outcome = fit_cascade(data, tmp_path / "run", wanted(), only=["group_01"])
    assert list(outcome.failures) == ["person_2"]
    assert read_json(tmp_path / "run/failures.json") == dict(outcome.failures)
    assert [item.state for item in outcome.states] == ["done", "to do", "to do"]


def test_a_failed_network_is_said_and_the_others_go_on(run, folder, tmp_path, monkeypatch):
    copy = copy_of(run, tmp_path)
    for name in ("group_01", "soleus"):
        shutil.rmtree(copy / "networks" / name)
    trained = fold_jobs.train

    def fails(records, into, config, *, progress=None):
        if into.name == "group_01":
            raise RuntimeError("the GPU's memory is full")
        trained(records, into, config, progress=progress)

    monkeypatch.setattr(fold_jobs, "train", fails)
    outcome = fit_cascade(folder / "data", copy, wanted(), resume=True)
    assert outcome.failures == {"group_01": "the GPU's memory is full"}
    assert [(item.state, item.by) for item in outcome.states][0] == ("failed", "the GPU's memory is full")
    assert [item.state for item in outcome.states][1:] == ["done", "done"]
    monkeypatch.undo()
    monkeypatch.setattr(fold_jobs, "run_apart", _here)
    monkeypatch.setattr(workflow, "run_apart", _here)
    own = fit_cascade(folder / "data", copy, wanted(learning_rate=1e-4), only=["group_01"], resume=True)
    assert [item.state for item in own.states] == ["done"] * 3
    assert read_json(copy / "networks/group_01/train.json")["learning_rate"] == 1e-4


def test_a_process_that_dies_when_all_is_written_has_done_its_work(tmp_path, monkeypatch):
    def dies(function, records, run, config, progress=None):
        if records.name == "complete":
            write_json(run / "about.json", {})
        raise DataError("its process was killed (exit code -11; out of memory?); run again, which repeats it")

    monkeypatch.setattr(fold_jobs, "run_apart", dies)
    fold_jobs.train_apart(tmp_path / "complete", tmp_path / "a", wanted().muscles)
    with pytest.raises(DataError, match="exit code -11"):
        fold_jobs.train_apart(tmp_path / "half", tmp_path / "b", wanted().muscles)


def test_subjects_that_came_later_train_nothing(run, folder, tmp_path):
    copy, said = copy_of(run, tmp_path), []
    data = shutil.copytree(folder / "data", tmp_path / "data", copy_function=shutil.copy2)
    for name in ("imagesTr/person_{}_0000.nii.gz", "labelsTr/person_{}.nii.gz"):
        shutil.copy2(data / name.format(1), data / name.format("0_new"))
    before = read_json(records_folder(copy) / "soleus/index.json")["shards"]
    outcome = fit_cascade(data, copy, wanted(), resume=True, say=said.append)
    assert not outcome.failures
    assert any(sentence.startswith("person_0_new: came after the plan was made") for sentence in said)
    assert read_json(records_folder(copy) / "soleus/index.json")["shards"] == before


def test_what_cannot_be_begun(run, folder, tmp_path):
    with pytest.raises(DataError, match="add --resume to go on with it"):
        fit_cascade(folder / "data", run, wanted())
    with pytest.raises(DataError, match="epochs was 1 when the cascade was begun and is 2 now"):
        fit_cascade(folder / "data", run, wanted(epochs=2), resume=True)
    with pytest.raises(ValueError, match="no network is called sartorius"):
        fit_cascade(folder / "data", run, wanted(), only=["sartorius"], resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is not empty and holds no cascade"):
        fit_cascade(folder / "data", tmp_path / "other", wanted())
    with pytest.raises(ValueError, match="fold 2 does not exist: there are 2 folds"):
        fit_cascade(folder / "data", tmp_path / "new", wanted(fold=2))
    with pytest.raises(ValueError, match="soleus: .*--cascade fine_multiple"):
        fit_cascade(folder / "data", tmp_path / "new", wanted(model="segnet", model_options={"filters": 2}))
    assert not (tmp_path / "new/cascade.json").exists()
    with pytest.raises(ValueError, match="did you mean 'fine_voxels'"):
        plan_cascade({}, recipe={}, cascade={"fine_voxel": 3}, preset="ni_cascade")
    with pytest.raises(DataError, match="there is no such file"):
        cascade_status(tmp_path / "other")


def test_prediction_and_evaluation(run, folder, tmp_path):
    result = predict(run, folder / "data", tmp_path / "predictions", part="validation")
    note = read_json(tmp_path / "predictions/predictions.json")
    assert not result.failures
    assert result.reduced
    assert set(result.written) == set(read_json(run / "cascade.json")["split"]["validation"])
    for subject, path in result.written.items():
        labels, image = read_volume(path), read_volume(folder / "data/imagesTr" / f"{subject}_0000.nii.gz")
        assert labels.geometry.same_grid(image.geometry)
        assert set(note["stages"][subject]["seconds"]) == {"prepare", "groups", "muscles", "join"}
    assert note["networks"] == 3
    evaluate(tmp_path / "predictions", folder / "data", tmp_path / "evaluation")
    assert (tmp_path / "evaluation/report.html").exists()


def test_networks_of_a_muscle_are_compared_in_its_true_box(run, tmp_path, monkeypatch):
    for module in (comparing, deciding, fold_jobs, summarising):
        monkeypatch.setattr(module, "run_apart", _here)
    home = records_folder(run) / "soleus"
    settings = {"epochs": 1, "steps": 2, "model_options.filters": 2, "model_options.levels": 2}
    vary = {"model_options.block": ["plain", "residual"]}
    result = comparing.study(
        home, tmp_path / "study", preset="ni_muscles", vary=vary, settings=settings, scale="laptop"
    )
    assert not result.failures
    assert [model.name for model in result.models] == ["block=plain", "block=residual"]
    legs = {f"person_{number}_{side}" for number in range(3) for side in ("left", "right")}
    for model in result.models:
        assert {row["subject_id"] for row in model.rows} == legs
        assert {row["structure"] for row in model.rows} == {"soleus"}
    assert result.context["data"].endswith("soleus in its true box: 6 subjects of 3 persons")
    # A figure again, by hand: the muscle in the mean box, on the grid of the record.
    folder = tmp_path / "study" / "model_options.block=plain" / "fold_0"
    split, network = read_json(folder / "run/split.json"), load_run(folder / "run")
    subject = split["validation"][0]
    leg = records.read_scan(home / records.read_index(home).path_of(subject), network.spec)
    row = next(r for r in read_json(folder / "result.json")["rows"] if r["subject_id"] == subject)
    assert row["reference_ml"] == pytest.approx((leg.labels == 1).sum() * np.prod(network.spec.spacing) / 1000)
    assert row["dice"] == pytest.approx(dice(find_in_box(network, leg) == 1, leg.labels == 1), nan_ok=True)


def test_what_cannot_be_compared(run, tmp_path):
    study = {"preset": "ni_muscles", "scale": "laptop"}
    home = records_folder(run) / "soleus"
    with pytest.raises(ValueError, match="size: .* has made its samples; vary settings of training"):
        comparing.study(home, tmp_path / "a", vary={"size": [[8, 8], [16, 16]]}, **study)
    with pytest.raises(ValueError, match="the records say who is in which fold"):
        comparing.study(home, tmp_path / "b", vary={"epochs": [1, 2]}, folds=3, **study)
    with pytest.raises(DataError, match="group_01: holds records of whole scans"):
        comparing.study(home.with_name("group_01"), tmp_path / "c", vary={"epochs": [1, 2]}, **study)
    with pytest.raises(ValueError, match="follows a plan of whole scans"):
        comparing.cross_validate(home, tmp_path / "d", ["nnunet_3d"])


def test_training_and_prediction_see_the_same_box(run, folder, monkeypatch):
    # The view of a left leg that prediction makes of the true box is the sample that training would make of it.
    cascade = load_cascade(run)
    spec, home = cascade.plan.muscle("soleus").spec, records_folder(run) / "soleus"
    image, labels = (
        read_volume(folder / "data" / name) for name in ("imagesTr/person_1_0000.nii.gz", "labelsTr/person_1.nii.gz")
    )
    scan, classes = preprocess(image, labels, cascade.plan.base)
    seen = []

    def looks(run, views, *, mirror):
        seen.append(views)
        return np.zeros((*views.shape[:-1], 2), np.float32)

    monkeypatch.setattr(prediction, "mean_probabilities", looks)
    monkeypatch.setattr(prediction, "enlarged", lambda box, shape, random: largest_enlargement(box, shape, high=1.4))
    network = load_run(cascade.folder_of("soleus"))
    for side in ("left", "right"):
        key = cascade.plan.base.label_map.structures.index(f"soleus_{side}") + 1
        box = tight_box(classes.array, key)
        random = np.random.default_rng(0)
        prediction._probability(network, scan, box, side, random, settings=cascade.plan.settings)
        leg = records.read_scan(home / records.read_index(home).path_of(f"person_1_{side}"), spec)
        trained = mean_sample(leg, spec)["image"]
        looked = seen[-1][0]
        # One voxel of the nominal grid may differ: the record's box is tight after resampling, the other before.
        assert np.corrcoef(trained.ravel(), looked.ravel())[0, 1] > 0.9


def test_scans_that_trained_the_model_are_told(run, folder, tmp_path):
    options = PredictOptions(roi=("popliteus",))
    whole = predict(run, folder / "data", tmp_path / "a", options=options)
    assert any("3 of 3 scans are called like scans that trained this model" in text for text in whole.warnings)
    other = shutil.copytree(folder / "data", tmp_path / "other")
    write_json(other / "dataset.json", read_json(other / "dataset.json") | {"channel_names": {"0": "water"}})
    for source, part in ((folder / "data", "validation"), (other, None)):
        warnings = predict(run, source, tmp_path / f"b{part}", part=part, options=options).warnings
        assert not any("called like scans" in text for text in warnings)


def test_predictions_of_other_muscles_or_boxes_are_not_mixed(run, folder, tmp_path):
    scan = folder / "data/imagesTr/person_1_0000.nii.gz"
    predict(run, scan, tmp_path / "out", options=PredictOptions(roi=("soleus",)))
    assert read_json(tmp_path / "out/predictions.json")["roi"] == ["soleus_left", "soleus_right"]
    measured = evaluate(tmp_path / "out", folder / "data", tmp_path / "evaluation")
    assert {row["structure"] for row in measured.rows} == {"soleus_left", "soleus_right"}  # nobody looked for others
    for options in (PredictOptions(resume=True), PredictOptions(roi=("soleus",), cascade={"box_seed": 3}, resume=True)):
        with pytest.raises(DataError, match="the predictions there have other (roi|cascade|weights)"):
            predict(run, scan, tmp_path / "out", options=options)


def test_what_cannot_be_predicted(run, folder, tmp_path):
    scan = folder / "data/imagesTr/person_1_0000.nii.gz"
    with pytest.raises(DataError, match="is one network of a cascade"):
        predict(run / "networks/soleus", scan, tmp_path / "out")
    with pytest.raises(DataError, match="nothing is called spleen"):
        predict(run, scan, tmp_path / "out", options=PredictOptions(roi=("spleen",)))
    for settings, message in (
        ({"fine_voxels": 9}, "fine_voxels cannot be changed any more"),
        ({"boxes": 0}, "boxes is 0"),
        ({"boxs": 2}, "boxs cannot be changed"),
        ({"fusion": "mean"}, "fusion is 'mean'"),
    ):
        with pytest.raises(DataError, match=message):
            predict(run, scan, tmp_path / "out", options=PredictOptions(cascade=settings))
    with pytest.raises(DataError, match="makes no ensemble"):
        predict([run, run], scan, tmp_path / "out")
    with pytest.raises(DataError, match="leave out --prior, --engine"):
        predict(run, scan, tmp_path / "out", options=PredictOptions(engine="onnx"))
