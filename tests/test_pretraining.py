"""An encoder that learned from unlabelled scans, and the training that starts from it."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from tfmuscle import models
from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec, Pretraining, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.inference import load_run
from tfmuscle.labels import LabelMap
from tfmuscle.training.contrastive import encoder_with_head, view_batches
from tfmuscle.training.transfer import take_weights
from tfmuscle.workflows.learning import fit, plan_training
from tfmuscle.workflows.pretraining import plan_pretraining, pretrain

OPTIONS = {"filters": 2, "levels": 3, "norm": "batch", "pooling": "max", "max_filters": 8}
SPEC = DataSpec(LabelMap({}), size=(16, 16), normalisation="percentile")
CONFIG = TrainConfig(
    model_options=OPTIONS, epochs=2, batch_size=4, optimiser="sgd", momentum=0.9,
    recipe=Supervised(augmentation="positional", selection="loss"),
)  # fmt: skip


def weights_of(path):
    return [np.asarray(weight) for weight in models.load(path / "best.keras").weights]


@pytest.fixture(scope="module")
def plan(phantom_dataset):
    training = {"epochs": 2, "batch_size": 24, "model_options": OPTIONS}
    return plan_pretraining(phantom_dataset, data={"size": (32, 32), "resize": True}, training=training)


@pytest.fixture(scope="module")
def run(plan, phantom_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining") / "run"
    result = pretrain(phantom_dataset, folder, plan)
    assert not result.failures
    assert result.slices > 8
    return folder


def test_a_batch_is_two_views_of_each_slice():
    slices = np.random.default_rng(0).normal(size=(10, *SPEC.input_shape)).astype(np.float16)
    about = np.array([(number, (number + 1) / 10, number // 3) for number in range(10)], np.float32)
    batches = list(view_batches(slices, about, SPEC, CONFIG, batch=4).take(4))
    for images, known in batches:
        assert images.shape == (8, 16, 16, 1) and images.dtype == tf.float32
        assert np.array_equal(known[:4], known[4:])
        assert not np.allclose(images[:4], images[4:])
    first, second, third, fourth = (set(known.numpy()[:, 0]) for _, known in batches)
    assert len(first | second) == 8 and len(third | fourth) == 8  # each slice once an epoch, two are left out
    later = next(iter(view_batches(slices, about, SPEC, CONFIG, batch=4, first_epoch=1)))
    assert np.array_equal(later[0], batches[2][0])  # a resumed run sees what it would have seen


def test_the_head_ends_in_a_vector():
    model = encoder_with_head(SPEC, CONFIG)
    assert model.output_shape == (None, 512)
    names = [layer.name for layer in model.layers if layer.weights]
    assert names[-2:] == ["projection_hidden", "projection"]
    assert all(name.startswith("encoder") for name in names[:-2])


def test_the_encoder_and_nothing_else_is_taken_over(run):
    source = models.load(run / "best.keras")
    model = models.build("unet", (32, 32, 1), 3, **OPTIONS)
    before = {layer.name: layer.get_weights() for layer in model.layers}
    taken, new = take_weights(model, source)
    assert all(name.startswith("encoder") for name in taken)
    assert not any(name.startswith("encoder") for name in new)
    for name in taken:
        for mine, theirs in zip(model.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True):
            assert np.array_equal(mine, theirs)  # moving averages of the normalisation too
    for name in new:
        assert all(np.array_equal(a, b) for a, b in zip(model.get_layer(name).get_weights(), before[name], strict=True))


def test_a_run_folder_like_any_other(run):
    assert {"spec.json", "train.json", "split.json", "history.csv", "curves.png", "about.json"} <= {
        path.name for path in run.iterdir()
    }
    assert read_json(run / "pretraining.json") == Pretraining().to_dict()
    with pytest.raises(
        DataError, match="was pre-trained and segments nothing; start from it with 'tfmuscle fit --from"
    ):
        load_run(run)


def test_a_resumed_run_is_the_run_that_was_never_interrupted(run, plan, phantom_dataset, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total, note):
        if "epoch 2" in note:
            raise Killed

    with pytest.raises(Killed):
        pretrain(phantom_dataset, tmp_path / "run", plan, progress=kill)
    with pytest.raises(DataError, match="add --resume to go on with it"):
        pretrain(phantom_dataset, tmp_path / "run", plan)
    pretrain(phantom_dataset, tmp_path / "run", plan, resume=True)
    for mine, theirs in zip(weights_of(tmp_path / "run"), weights_of(run), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_training_starts_from_the_encoder(run, tiny_records, tmp_path):
    said = []
    spec = DataSpec.load(tiny_records / "spec.json")
    settings = {"epochs": 1, "steps": 1, "batch_size": 2, "model_options": OPTIONS}
    config = plan_training(settings, recipe={}, preset="casali_pcl", start=run)
    fit(tiny_records, tmp_path / "run", config, start=run, say=said.append)
    assert any("layers start with the encoder of" in text for text in said)
    note = read_json(tmp_path / "run/transfer.json")
    assert all(name.startswith("encoder") for name in note["layers_taken"])
    assert load_run(tmp_path / "run").spec == spec


def test_what_cannot_be(run, plan, phantom_dataset, tiny_records, tmp_path):
    with pytest.raises(ValueError, match="preset demo has no pre-training; casali_pcl has"):
        plan_pretraining(phantom_dataset, preset="demo")
    with pytest.raises(ValueError, match="threshold is 0"):
        plan_pretraining(phantom_dataset, method={"threshold": 0})
    with pytest.raises(DataError, match="every scan is left out"):
        names = [path.name[: -len("_0000.nii.gz")] for path in (phantom_dataset / "imagesTr").iterdir()]
        pretrain(phantom_dataset, tmp_path / "run", plan, leave_out=names)
    scans = tmp_path / "scans"
    shutil.copytree(phantom_dataset / "imagesTr", scans)
    broken = sorted(scans.iterdir())[0]
    broken.write_bytes(b"nothing")
    result = pretrain(scans, tmp_path / "b", plan)
    assert list(result.failures) == [broken.name[: -len("_0000.nii.gz")]]
    other = plan_pretraining(phantom_dataset, method={"method": "gcl"}, training={"model": "unet2d"})
    with pytest.raises(ValueError, match="pre-training is for unet"):
        pretrain(phantom_dataset, tmp_path / "c", other)


def test_scans_that_shall_be_left_out_must_be_there(phantom_dataset, plan, tmp_path):
    with pytest.raises(DataError, match="holds no scan called typo, which shall be left out"):
        pretrain(phantom_dataset, tmp_path / "run", plan, leave_out=["typo"])
    small = plan_pretraining(phantom_dataset, data={"size": (24, 24)}, training={"model_options": {"levels": 5}})
    with pytest.raises(ValueError, match="24"):
        pretrain(phantom_dataset, tmp_path / "run", small)
    assert not (tmp_path / "run").exists()  # nothing is claimed by a call that cannot be


def test_the_command(phantom_dataset, tmp_path):
    words = ["pretrain", "-i", phantom_dataset, "-o", tmp_path / "run", "--size", 32, 32, "--resize", "--epochs", 1]
    words += ["--option", "filters=2", "--option", "levels=3", "--option", "max_filters=8", "--batch-size", 64]
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "start from it with 'tfmuscle fit --from" in result.output


def test_slices_like_those_of_records(tiny_records, phantom_dataset):
    spec = DataSpec.load(tiny_records / "spec.json")
    plan = plan_pretraining(phantom_dataset, like=tiny_records)
    assert (plan.spec.input_shape, plan.spec.normalisation) == (spec.input_shape, spec.normalisation)
    assert plan.spec.label_map.structures == ()
