"""A run that starts from another one: which weights come along, what is told, and what resuming does not repeat."""

import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from tfmuscle import models
from tfmuscle.cli import tfmuscle_group
from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, sha256, write_json
from tfmuscle.inference import load_run
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.metrics import dice
from tfmuscle.records import load_samples, read_index
from tfmuscle.training import fit
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.supervised import prepare
from tfmuscle.training.transfer import differences, head_layers, take_weights, zero_shot
from tfmuscle.workflows.learning import plan_training

OPTIONS = {"filters": 8, "levels": 2}
SHORT = {"epochs": 2, "steps": 2, "batch_size": 32, "seed": 8}


class Interrupted(Exception):
    """What a user's progress raises to end a training."""


def at_batch(number):
    def progress(done, total, note):
        if done == number:
            raise Interrupted

    return progress


def config_of(recipe=(), **changes):
    return plan_training(SHORT | {"model_options": OPTIONS} | changes, recipe=dict(recipe))


@pytest.fixture(scope="module")
def first(tiny_records, tmp_path_factory):
    """A run to start from; instance normalisation keeps no averages, so weights alone decide what it computes."""
    config = config_of(epochs=3, steps=5, learning_rate=1e-2)
    return fit(tiny_records, tmp_path_factory.mktemp("first") / "run", config)


@pytest.fixture
def renamed(tiny_records, tmp_path):
    """The same records under other names: the first two structures exchanged, the last one called otherwise."""
    folder = Path(shutil.copytree(tiny_records, tmp_path / "renamed"))
    content = read_json(folder / "spec.json")
    names = list(content["label_map"])
    names[1], names[2], names[-1] = names[2], names[1], "something_else"
    content["label_map"] = {name: number for number, name in enumerate(names)}
    write_json(folder / "spec.json", content)
    return folder


class TestTakingWeights:
    def test_by_name_and_shape(self):
        old = models.build("unet", (16, 16, 1), 3, **OPTIONS)
        new = models.build("unet", (32, 32, 2), 4, **OPTIONS)  # another size, stem and head
        before = {layer.name: layer.get_weights() for layer in new.layers}
        taken, fresh = take_weights(new, old)
        assert fresh == ["encoder0_conv0", "probabilities_logits"]
        assert set(taken) | set(fresh) == {layer.name for layer in new.layers if layer.weights}
        for name in taken:
            for one, two in zip(new.get_layer(name).weights, old.get_layer(name).weights, strict=True):
                np.testing.assert_array_equal(one.numpy(), two.numpy())
        for name in fresh:
            for one, two in zip(new.get_layer(name).get_weights(), before[name], strict=True):
                np.testing.assert_array_equal(one, two)

    def test_a_whole_network_computes_the_same(self):
        old = models.build("unet", (16, 16, 1), 3, filters=4, levels=3)
        new = models.build("unet", (16, 16, 1), 3, filters=4, levels=3, deep_supervision=True)
        _, fresh = take_weights(new, old)
        assert fresh == ["probabilities_1_logits"]
        images = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype("float32")
        np.testing.assert_array_equal(new(images)["probabilities"].numpy(), old(images).numpy())

    def test_the_head_is_found_whatever_its_name(self):
        assert head_layers(models.build("unet", (16, 16, 1), 3, **OPTIONS)) == {"probabilities_logits"}
        image = keras.Input((8, 8, 1))
        features = keras.layers.Conv2D(4, 3, padding="same")(image)
        logits = keras.layers.ReLU()(keras.layers.Conv2D(3, 1, name="final_conv")(features))
        assert head_layers(keras.Model(image, keras.layers.Softmax()(logits))) == {"final_conv"}

    def test_models_within_models_and_names_that_stand_twice(self):
        def network(prefix):
            inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="twice")], name=f"{prefix}_inner")
            other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="twice")], name=f"{prefix}_other")
            deep = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="once")], name=f"{prefix}_deep")
            image = keras.Input((4,))
            return keras.Model(image, deep(other(inner(image))))

        assert take_weights(network("a"), network("b")) == (["once"], ["twice", "twice"])

    def test_the_head_starts_anew_where_it_is_told_to(self):
        one, two = (models.build("unet", (16, 16, 1), 3, **OPTIONS) for _ in range(2))
        _, fresh = take_weights(one, two, anew=head_layers(one))
        assert fresh == ["probabilities_logits"]


def test_a_start_is_written_told_and_in_force(tiny_records, first, tmp_path):
    said = []
    fit(tiny_records, tmp_path / "run", config_of(learning_rate=1e-9), start=first, say=said.append)
    note = read_json(tmp_path / "run" / "transfer.json")
    assert note["from"] == str(first.resolve()) and note["weights"] == sha256(first / "best.keras")
    assert note["layers_new"] == [] and note["differences"] == []
    assert (
        said[0]
        == f"{len(note['layers_taken'])} of {len(note['layers_taken'])} layers start with the weights of {first}"
    )
    assert said[1].startswith(f"Dice of {first} as it is, on the 2 validation subject(s): ") and len(said) == 2
    # at a rate of next to nothing the first epoch validates the other run's best weights
    rows = read_history(first / "history.csv")
    best = rows[read_json(first / "about.json")["best_epoch"] - 1]
    began = read_history(tmp_path / "run" / "history.csv")[0]
    assert [began[key] for key in ("val_dice", "val_loss")] == pytest.approx(
        [best[key] for key in ("val_dice", "val_loss")], rel=1e-4
    )


def test_zero_shot_is_the_mean_dice_over_the_subjects(tiny_records, first):
    index, run = read_index(tiny_records), load_run(first)
    subjects = read_json(first / "split.json")["validation"]
    shards = {name: (tiny_records / index.path_of(name), index.samples_of(name)) for name in subjects}
    expected = {name: [] for name in run.spec.label_map.structures}
    for path, _ in shards.values():
        samples = list(load_samples([str(path)], run.spec))
        truth = np.stack([labels for _, labels in samples])
        found = run.forward(np.stack([image for image, _ in samples])).numpy().argmax(-1)
        for number, name in enumerate(expected, start=1):
            expected[name].append(dice(found == number, truth == number, mask=truth != IGNORE))
    # batches of another size sum in another order: a voxel on a tie may fall either way
    assert zero_shot(run, run.spec, shards, batch_size=3) == pytest.approx(
        {name: np.mean(values) for name, values in expected.items()}, abs=1e-3
    )
    swapped = dict(enumerate(run.spec.label_map.names.values()))
    swapped[1], swapped[len(swapped) - 1] = "something_else", swapped[1]
    other = dataclasses.replace(run.spec, label_map=LabelMap(swapped))
    found = zero_shot(run, other, shards, batch_size=3)
    assert set(found) == set(expected) - {run.spec.label_map.structures[-1]}  # that name is gone
    kept = run.spec.label_map.structures[1:-1]
    assert [found[name] for name in kept] == pytest.approx([np.mean(expected[name]) for name in kept], abs=1e-3)


def test_other_sizes_are_tried_and_other_channels_are_not(first):
    run = load_run(first)
    assert zero_shot(run, dataclasses.replace(run.spec, size=(32, 64)), {}, batch_size=2).keys()
    two = dataclasses.replace(run.spec, channels=("fat", "water"))
    with pytest.raises(ValueError, match=r"its encoder0_conv0 does not take samples of shape \(48, 48, 2\)"):
        zero_shot(run, two, {}, batch_size=2)


def test_other_structures_start_with_a_new_head(renamed, first, tmp_path):
    said = []
    fit(renamed, tmp_path / "run", config_of(epochs=1), start=first, say=said.append)
    note = read_json(tmp_path / "run" / "transfer.json")
    assert note["layers_new"] == ["probabilities_logits"]  # of the right shape, but its classes mean something else
    assert said[0].endswith(", anew: probabilities_logits")
    assert "was trained on other records: structures are " in said[1]
    assert set(note["zero_shot"]) == set(load_run(first).spec.label_map.structures[:-1])


def test_an_interrupted_start_is_resumed_and_not_repeated(tiny_records, first, tmp_path):
    start = Path(shutil.copytree(first, tmp_path / "start"))
    whole = read_history(fit(tiny_records, tmp_path / "whole", config_of(), start=start) / "history.csv")
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):  # in the first epoch, before there is a backup
        fit(tiny_records, cut, config_of(), start=start, progress=at_batch(1))
    with pytest.raises(Interrupted):  # in the second
        fit(tiny_records, cut, config_of(), resume=True, progress=at_batch(3))
    shutil.rmtree(start)  # not needed any more
    fit(tiny_records, cut, config_of(), resume=True)
    for key in ("loss", "val_loss"):  # float32 sums in another order
        found = [row[key] for row in read_history(cut / "history.csv")]
        assert found == pytest.approx([row[key] for row in whole], rel=1e-3)


def test_another_start_is_refused_on_resuming(first, tmp_path):
    spec, other = load_run(first).spec, tmp_path / "other"
    other.mkdir()
    (other / "best.keras").write_bytes(b"another network")
    for begun_with, found in ((None, "None"), (other, "'.*'")):
        run = tmp_path / f"run_{begun_with is None}"
        assert not prepare(run, spec, config_of(), {"train": ["a"]}, start=begun_with, resume=False)
        with pytest.raises(DataError, match=rf"transfer\.json: weights was {found} when the run began and is '.*' now"):
            prepare(run, spec, config_of(), {"train": ["a"]}, start=first, resume=True)
    moved = other.rename(tmp_path / "moved")
    assert not prepare(run, spec, config_of(), {"train": ["a"]}, start=moved, resume=True)
    assert read_json(run / "transfer.json")["from"] == str(moved.resolve())


def test_a_start_that_was_given_up_is_forgotten(first, tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "transfer.json", {"from": "elsewhere"})  # killed before its settings were complete
    assert not prepare(tmp_path / "run", load_run(first).spec, config_of(), {}, start=None, resume=False)
    assert not (tmp_path / "run" / "transfer.json").exists()


def test_a_start_that_cannot_be_is_named(tiny_records, first, tmp_path):
    with pytest.raises(DataError, match="nowhere: holds no best.keras to start from; give the run folder"):
        fit(tiny_records, tmp_path / "run", config_of(), start=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
    start = Path(shutil.copytree(first, tmp_path / "start"))
    with pytest.raises(DataError, match=r"best\.keras: no layer fits unet; train the same architecture"):
        fit(tiny_records, tmp_path / "run", config_of(model_options=OPTIONS | {"filters": 6}), start=start)
    (start / "best.keras").write_bytes(b"another network")
    with pytest.raises(DataError, match=r"best\.keras: has changed since .* began; restore it"):
        fit(tiny_records, tmp_path / "run", config_of(model_options=OPTIONS | {"filters": 6}), resume=True)
    write_json(tmp_path / "run" / "transfer.json", {"weights": "0"})
    with pytest.raises(DataError, match=r"transfer\.json: says no longer which run to start from; remove .*run and"):
        fit(tiny_records, tmp_path / "run", config_of(model_options=OPTIONS | {"filters": 6}), resume=True)


def test_the_command_tells_what_it_takes(tiny_records, first, tmp_path):
    words = ["fit", "-i", tiny_records, "-o", tmp_path / "run", "--from", first, "--epochs", 1, "--steps", 1]
    words += ["--patience-of", "loss", "--selection", "ema_dice", "--momentum", 0.5, "--foreground", 0.33]
    result = CliRunner().invoke(tfmuscle_group, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"layers start with the weights of {first}" in result.stderr and f"Dice of {first} as it is" in result.stderr
    config = TrainConfig.load(tmp_path / "run" / "train.json")
    assert (config.model_options, config.momentum) == (OPTIONS, 0.5)
    assert (config.recipe.patience_of, config.recipe.selection, config.recipe.foreground) == ("loss", "ema_dice", 0.33)
    assert "--deep-supervision" in CliRunner().invoke(tfmuscle_group, ["fit", "--help"]).output


def test_differences_are_said_in_words():
    bone = DataSpec(LabelMap({1: "femur"}))
    other = dataclasses.replace(bone, label_map=LabelMap({1: "tibia"}), normalisation="minmax", seed=5, name="two")
    assert differences(bone, other) == [
        "structures are femur there",
        "normalisation is 'zscore' there and 'minmax' here",
    ]


def test_the_architecture_is_the_start_s_unless_given(tmp_path):
    old = TrainConfig(model="unet", model_options={"filters": 20, "levels": 3}, scale="laptop")
    old.save(tmp_path / "train.json")
    found = plan_training({"model_options": {"levels": 4}}, recipe={}, preset="cheena_resnet34", start=tmp_path)
    assert (found.model, found.model_options, found.scale) == ("unet", {"filters": 20, "levels": 4}, "laptop")
    assert found.learning_rate == 1e-4  # the rest is the preset's
    given = plan_training({"model": "resnet34_unet"}, recipe={}, start=tmp_path)
    assert (given.model, given.model_options) == ("resnet34_unet", {})
    reduced = plan_training({}, recipe={}, scale="laptop", start=tmp_path)
    assert reduced.model_options["filters"] == 20  # a laptop's cap would take the weights their layers
