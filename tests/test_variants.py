"""What may be varied, how it is said on the command line, and what is refused."""

import pytest

from tfmuscle.cli.comparing import parse_settings, parse_vary
from tfmuscle.workflows.variants import candidates_of_study, sort_settings


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({}, "nothing is varied"),
        ({"learning_rat": [1]}, "no setting is called 'learning_rat'; did you mean 'learning_rate'"),
        ({"model_option.filters": [1]}, "did you mean 'model_options.filters'"),
        ({"epochs.x": [1]}, "no setting is called 'epochs.x'"),
        ({"zzz": [1]}, "there are .*learning_rate.*model_options.NAME"),
        ({"fold": [0, 1]}, "fold is the same for all that is compared"),
        ({"epochs": []}, "epochs is varied over nothing"),
        ({"epochs": [1, 1]}, "epochs is varied over 1, 1; give values, each once"),
        ({"epochs": [1]}, "epochs is both varied and set to 3"),
    ],
)
def test_bad_fields(vary, message):
    with pytest.raises(ValueError, match=message):
        candidates_of_study("slices", vary, {"epochs": 3})


def test_the_published_ablations_can_be_said():
    backbones, losses = "model=resnet34_unet,vgg19_unet", "loss=dice,cross_entropy,dice_focal"
    weights = "model_options.encoder_weights=null,w/resnet34.h5"
    for text in ("size=[512,512],[256,256]", backbones, losses, "schedule=constant,linear", weights):
        found = candidates_of_study("cheena_resnet34", parse_vary((text,)), {})
        assert len({candidate.folder for candidate in found}) == len({candidate.name for candidate in found}) > 1
    assert found[1].varied == {"model_options.encoder_weights": "resnet34.h5"}
    assert found[1].training == {"model_options": {"encoder_weights": "w/resnet34.h5"}} and "/" not in found[1].folder
    with pytest.raises(ValueError, match="looks at the labels of another"):
        candidates_of_study("nnunet_3d_cascade", {"epochs": [1, 2]}, {})


def test_options_of_one_field_are_merged():
    parts = sort_settings({"model_options": {"a": 1, "b": 1}, "model_options.b": 2, "loss_options.c": [1, [2]]})
    assert parts == ({}, {"model_options": {"a": 1, "b": 2}}, {"loss_options": {"c": [1, [2]]}})


def test_twice_the_same_field():
    with pytest.raises(ValueError, match="--set epochs is given twice"):
        parse_settings(("epochs=1", "epochs=2"))
    with pytest.raises(ValueError, match="--vary epochs is given twice"):
        parse_vary(("epochs=1", "epochs=2"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model_options=3", "model_options is 3; an object of options in braces, or FIELD.NAME=VALUE, is needed"),
        ("loss_options=abc", "loss_options is 'abc'; an object of options"),
        ("mirror=False", "mirror is 'False'; true or false is needed"),  # a text is true, whatever it says
        ("epochs=1.5", "epochs is 1.5; a whole number is needed"),
        ("epochs=many", "epochs is 'many'; a whole number"),
        ("batch_size=true", "batch_size is True; a whole number"),
        ("learning_rate=NaN", "learning_rate is nan; a finite number is needed"),
        ("learning_rate=1e-3x", "learning_rate is '1e-3x'; a finite number"),
        ("size=64", "size is 64; a list of 2, each a whole number, is needed"),
        ("size=[64,64,64]", "size is .64, 64, 64.; a list of 2"),
        ('size=["a","b"]', "each a whole number, is needed"),
        ("spacing=1", "spacing is 1; a list of 3, each a finite number, or null is needed"),
        ("loss=5", "loss is 5; a text is needed"),
        ("prior=true", "prior is decided by the preset"),
    ],
)
def test_values_of_another_type(setting, message):
    with pytest.raises(ValueError, match=message):
        sort_settings(parse_settings((setting,)))
    name, value = next(iter(parse_settings((setting,)).items()))
    with pytest.raises(ValueError, match=message):
        candidates_of_study("slices", {name: [value]}, {})


def test_values_of_the_right_type_pass():
    texts = ("size=[64,96]", "spacing=null", "spacing=[3,1.5,1]", "learning_rate=1", "mirror=false", "orientation=SPL")
    found = [sort_settings(parse_settings((text,))) for text in texts]
    assert [part for parts in found for part in parts if part] == [
        {"size": (64, 96)},
        {"spacing": None},
        {"spacing": (3, 1.5, 1)},
        {"learning_rate": 1},
        {"mirror": False},
        {"orientation": "SPL"},
    ]
    assert sort_settings(parse_settings(('model_options={"filters":8}',)))[1] == {"model_options": {"filters": 8}}
