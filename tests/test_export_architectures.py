"""Every architecture of the library as every format, judged by the Keras network it was made from."""

import keras
import numpy as np
import pytest
from known_networks import make_run, make_spec
from test_models import SMALL, THICK, classes

from tfmuscle import models
from tfmuscle.errors import DataError
from tfmuscle.export.formats import STARTERS, WRITERS, Wanted
from tfmuscle.export.parity import TOLERANCE
from tfmuscle.export.segment import Segmenter
from tfmuscle.inference.conversion import onnx_of
from tfmuscle.inference.engines import onnx_session, openvino_session
from tfmuscle.labels import LabelMap

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

PRETRAINABLE = ("mobilenetv2_unet", "resnet34_unet", "resnet50_unet", "vgg19_unet")
SLOW = {*PRETRAINABLE, "hdenseunet", "daf3d", "daf3d, deep supervision"}
"""Large, or of very many layers."""
ALONE = [name for name in models.available() if not models.carries_masks(name)]
"""Architectures that look at the image alone."""
CASES = {name: (name, THICK.get(name), {}) for name in ALONE} | {
    "unet, 3D": ("unet", 4, {}),
    "unet, deep supervision": ("unet", None, {"deep_supervision": True}),
    "unet, 3D, residual, dropout": ("unet", 4, {"block": "residual", "norm": "batch", "dropout": 0.3}),
    "unet, coordinates": ("unet", 4, {"coordinates": True}),
    "daf3d, deep supervision": ("daf3d", 3, {"deep_supervision": True}),
    "fcn8s, 3D": ("fcn8s", 32, {}),
    "segnet, 3D": ("segnet", 32, {}),
}


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


class Made:
    """A network with random weights, its graph, samples, and what Keras says of them."""

    def __init__(self, name, depth, options):
        label_map = LabelMap({number: f"bone_{number}" for number in range(1, classes(name))})
        kind = "slices" if depth is None else "volumes"
        spec = make_spec(kind, label_map=label_map, size=(32, 32), depth=depth or 1)
        keras.utils.set_random_seed(4)
        model = models.build(name, spec.input_shape, classes(name), **SMALL.get(name, {}) | options)
        self.run = make_run(model, spec)
        self.graph = Segmenter([self.run], mirror=False)
        self.images = np.random.default_rng(2).normal(size=(2, *spec.input_shape)).astype(np.float32)
        self.expected = self.run.probabilities(self.images)


@pytest.fixture(scope="module")
def made():
    """Makes each case once; only the last is kept, because tests of one case follow each other."""
    last = {}

    def of(case):
        if case not in last:
            last.clear()
            last[case] = Made(*CASES[case])
        return last[case]

    return of


def agree(found, expected, tolerance):
    """Within the tolerance, and within a hundredth of what a network of random weights has to say at all."""
    assert found.shape == expected.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=min(tolerance, 0.01 * np.ptp(expected)))


@pytest.mark.parametrize("case", marked(CASES))
def test_onnx_runtime_and_openvino_say_what_keras_says(made, case, tmp_path):
    one = made(case)
    network = onnx_of(one.graph.serve, tmp_path)
    onnx.checker.check_model(onnx.load_from_string(network), full_check=True)
    for start in (onnx_session, openvino_session):
        infer = start(network)
        agree(infer(one.images), one.expected, TOLERANCE["onnx"])
        agree(infer(one.images[:1]), one.expected[:1], TOLERANCE["onnx"])  # the batch is free


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_says_exactly_what_keras_says(made, case, tmp_path):
    one = made(case)
    WRITERS["saved_model"](one.graph, tmp_path, Wanted())
    agree(STARTERS["saved_model"](tmp_path)(one.images), one.expected, TOLERANCE["saved_model"])


@pytest.mark.parametrize("case", marked([*(n for n, (_, depth, _) in CASES.items() if depth is None), "unet, 3D"]))
def test_litert_takes_every_network_of_slices_and_one_of_volumes(made, case, tmp_path):
    one = made(case)
    WRITERS["litert"](one.graph, tmp_path, Wanted())
    agree(STARTERS["litert"](tmp_path)(one.images), one.expected, TOLERANCE["litert"])


def test_what_is_not_exported_says_so_in_its_file():
    others = sorted(set(models.available()) - set(ALONE))
    assert others == ["ifss_net", "pg_net"]
    for name in others:
        assert "Not exported: " in (models.FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]


@pytest.mark.parametrize("case", ["fcn8s, 3D", "vnet", "unet3d"])
def test_litert_has_no_pooling_and_no_prelu_of_volumes(made, case, tmp_path):
    with pytest.raises(DataError, match="(?s)LiteRT cannot express the network .*; use --format onnx"):
        WRITERS["litert"](made(case).graph, tmp_path, Wanted())
    assert not list(tmp_path.iterdir())
