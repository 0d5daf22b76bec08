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
