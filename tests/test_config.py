import dataclasses

import pytest

from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.presets import PRESETS, get_preset, reduced_data, reduced_training

LABELS = LabelMap({1: "femur_left", 2: "femur_right"}, ignore=255)


def spec(**changes):
    return DataSpec(label_map=LABELS, **changes)


def test_settings_survive_json(tmp_path):
    one = spec(
        kind="volumes", depth=32, size=(64, 48), spacing=(2.0, 1.0, 1.0), orientation=None, channels=("fat", "water")
    )
    one.save(tmp_path / "spec.json")
    assert DataSpec.load(tmp_path / "spec.json") == one
    two = TrainConfig(model="unet", model_options={"filters": 8}, recipe=Supervised(loss="dice", mirror=False))
    two.save(tmp_path / "train.json")
    assert TrainConfig.load(tmp_path / "train.json") == two


@pytest.mark.parametrize(
    ("changes", "input_shape", "label_shape"),
    [
        ({"kind": "slices", "size": (64, 48)}, (64, 48, 2), (64, 48)),
        ({"kind": "stacks", "size": (64, 48), "depth": 5}, (64, 48, 10), (64, 48)),
        ({"kind": "volumes", "size": (64, 48), "depth": 32}, (32, 64, 48, 2), (32, 64, 48)),
        ({"kind": "sequences", "size": (64, 48), "depth": 3}, (3, 64, 48, 2), (3, 64, 48)),
    ],
)
def test_shapes_follow_from_the_kind(changes, input_shape, label_shape):
    one = spec(channels=("fat", "water"), **changes)
    assert (one.input_shape, one.label_shape, one.num_classes) == (input_shape, label_shape, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "slides"}, "kind is 'slides'; choose one of slices"),
        ({"size": (64,)}, "size is .*height and width"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing is .*three positive"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"kind": "slices", "depth": 5}, "depth is 5; slices have depth 1"),
        ({"kind": "stacks", "depth": 4}, "depth is 4; a stack has an odd number"),
        ({"depth": 0}, "depth is 0; a positive number"),
        ({"orientation": "XYZ"}, "orientation is 'XYZ'; three letters"),
        ({"orientation": "RLS"}, "orientation is 'RLS'; three letters"),
        ({"folds": 0}, "at least one fold"),
        ({"test": 1.5}, "test is 1.5; a whole number of subjects, or a share"),
        ({"test": float("nan")}, "test is nan"),
        ({"spacing": (float("inf"), 1.0, 1.0)}, "spacing is"),
        ({"channels": ()}, "at least one name"),
        ({"normalisation": "ct"}, "statistics of each channel are needed"),
        ({"kind": "volumes", "resize": True}, "resize goes with slices and stacks"),
    ],
)
def test_a_wrong_spec_names_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "schedule is 'cosin'; choose one of constant, linear, cosine"),
        ({"epochs": 0}, "epochs is 0; a positive number"),
        ({"fold": -1}, "finite and not negative"),
        ({"left_out": -2}, "or -1 for none"),
        ({"fold": 2, "left_out": 2}, "a fold other than 2"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; a finite number"),
        ({"seed": -1}, "seed is -1; a number from 0"),
        ({"weight_decay": 0.1}, "which adam does not know"),
        ({"momentum": 1.0}, "momentum is 1.0"),
    ],
)
def test_a_wrong_training_names_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_a_prior_adds_a_channel_for_each_structure():
    assert spec(kind="volumes", size=(64, 48), depth=32, prior=True).input_shape == (32, 64, 48, 3)


def test_statistics_survive_json(tmp_path):
    one = spec(normalisation="ct", statistics=((40.0, 20.0, -100.0, 300.0),))
    one.save(tmp_path / "spec.json")
    assert DataSpec.load(tmp_path / "spec.json") == one


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="unknown setting 'epoch'; did you mean 'epochs'"):
        TrainConfig.from_dict({"epoch": 3})
    (tmp_path / "spec.json").write_text('{"kind": "slices"}')
    with pytest.raises(DataError, match=r"spec\.json: .*label_map"):
        DataSpec.load(tmp_path / "spec.json")
    with pytest.raises(ValueError, match="training method 'magic' is unknown"):
        TrainConfig.from_dict({"recipe": {"method": "magic"}})


@pytest.mark.parametrize("settings", [DataSpec, TrainConfig, Supervised])
def test_every_field_has_help(settings):
    assert all(item.metadata.get("help") for item in dataclasses.fields(settings))


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_makes_valid_settings_at_both_scales(name):
    preset = get_preset(name)
    assert preset.about
    for data, training in (
        (dict(preset.data), dict(preset.training)),
        (
            reduced_data(preset.data, preset.laptop.get("data")),
            reduced_training(preset.training, preset.laptop.get("training")),
        ),
    ):
        assert spec(**data).kind == preset.data.get("kind", "slices")
        for stage in preset.stages or ({},):
            assert TrainConfig(**training | stage, recipe=Supervised(**preset.recipe)).epochs >= 1
    assert preset.plan or "kind" in preset.data  # somebody decides what a sample is


def test_what_a_preset_says_of_a_laptop_beats_the_caps():
    preset = get_preset("hdenseunet")
    reduced = reduced_training(preset.training, preset.laptop["training"])
    assert (reduced["epochs"], reduced["steps"], reduced["model_options"]["growth_3d"]) == (4, 25, 8)
    assert reduced_data(preset.data, preset.laptop["data"])["size"] == (96, 96)


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match="no preset is called 'hipocampus'; did you mean 'hippocampus'"):
        get_preset("hipocampus")
