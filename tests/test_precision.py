"""ONNX files in fewer bits, judged by hand arithmetic and by ONNX Runtime on the file as it was."""

import keras
import numpy as np
import pytest
from known_networks import make_run, make_spec

from tfmuscle import models
from tfmuscle.errors import DataError
from tfmuscle.export.parity import tolerance_of
from tfmuscle.export.precision import in_precision, measured
from tfmuscle.inference.conversion import onnx_of
from tfmuscle.inference.engines import onnx_session

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper, parser  # noqa: E402

HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def flat():
    """A U-Net with batch normalisation on slices."""
    spec = make_spec("slices", size=(16, 16))
    return spec, models.build("unet", spec.input_shape, spec.num_classes, filters=4, levels=3, norm="batch")


def deep():
    """A U-Net with instance normalisation on volumes."""
    spec = make_spec("volumes", size=(16, 16), depth=4)
    return spec, models.build("unet", spec.input_shape, spec.num_classes, filters=4, levels=2)


@pytest.fixture(scope="module", params=[flat, deep])
def converted(request, tmp_path_factory):
    """A network as float32 ONNX, samples, and what it says of them."""
    keras.utils.set_random_seed(1)
    spec, model = request.param()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    network = onnx_of(make_run(model, spec).forward, tmp_path_factory.mktemp("onnx"))
    images = rng.normal(size=(3, *spec.input_shape)).astype(np.float32)
    return network, images, onnx_session(network)(images)


def graph_of(network):
    """The checked graph, and the type of every tensor."""
    model = onnx.load_from_string(network)
    onnx.checker.check_model(model, full_check=True)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return graph, types | {constant.name: constant.data_type for constant in graph.initializer}


@pytest.mark.parametrize("precision", HALVES)
def test_products_are_in_few_bits_and_what_is_delicate_is_not(converted, precision):
    graph, types = graph_of(in_precision(converted[0], precision))
    for node in graph.node:
        found = {types[name] for name in node.input if types[name] in (TensorProto.FLOAT, HALVES[precision])}
        if node.op_type in ("Conv", "ConvTranspose"):
            assert found == {HALVES[precision]}
        if node.op_type in ("Softmax", "ReduceMean", "Sqrt", "Reciprocal"):
            assert found == {TensorProto.FLOAT}
        assert node.op_type == "Cast" or len(found) < 2
        assert node.op_type != "BatchNormalization"
    assert types["image"] == types["probabilities"] == TensorProto.FLOAT


def test_float16_says_nearly_the_same(converted):
    network, images, expected = converted
    short = in_precision(network, "float16")
    found = onnx_session(short)(images)
    difference = np.abs(found - expected).max()
    assert 1e-6 < difference < tolerance_of("tensorrt", "float16") / 4  # random weights, a few layers
    kept = [numpy_helper.to_array(c).nbytes for c in onnx.load_from_string(network).graph.initializer]
    assert sum(numpy_helper.to_array(c).nbytes for c in graph_of(short)[0].initializer) < 0.65 * sum(kept)


def test_bfloat16_is_the_graph_of_float16_with_other_rounding(converted):
    first, second = (graph_of(in_precision(converted[0], precision))[0] for precision in HALVES)
    assert [node.op_type for node in first.node] == [node.op_type for node in second.node]
    weights = {c.name: numpy_helper.to_array(c) for c in onnx.load_from_string(converted[0]).graph.initializer}
    short = [c for c in second.initializer if c.data_type == TensorProto.BFLOAT16]
    assert short
    for constant in short:
        before = weights.get(constant.name.rpartition("__")[0])
        if before is not None:  # 8 bits: half a unit in the last place is 2^-9 of a power of two
            np.testing.assert_allclose(numpy_helper.to_array(constant).astype(float), before, rtol=2.0**-8)


def test_batch_normalisation_becomes_the_same_product_and_sum():
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[2, 3, 4, 4] image) => (float[2, 3, 4, 4] probabilities)
    <float[3] s = {1, 2, 3}, float[3] b = {-1, 0, 1}, float[3] m = {5, 6, 7}, float[3] v = {1, 4, 9}> {
      probabilities = BatchNormalization <epsilon: float = 0.001> (image, s, b, m, v)
    }"""
    network = parser.parse_model(text).SerializeToString()
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    found = onnx_session(in_precision(network, "float16"))(images)
    scale, bias, mean, variance = (np.reshape(x, (3, 1, 1)) for x in ((1, 2, 3), (-1, 0, 1), (5, 6, 7), (1, 4, 9)))
    np.testing.assert_allclose(found, (images - mean) / np.sqrt(variance + 0.001) * scale + bias, atol=2e-6)


FACTORS = ((2, 3), (4, 1), (1, 2), (2, 2))


def chain():
    """Four convolutions of one pixel, which multiply both channels by factors."""
    count = len(FACTORS)
    weights = [np.diag(np.float32(factors)).reshape(2, 2, 1, 1) for factors in FACTORS]
    names = ["image", *(f"x{n}" for n in range(1, count)), "probabilities"]
    nodes = [helper.make_node("Conv", [names[n], f"w{n}"], [names[n + 1]]) for n in range(count)]
    kind = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 5, 5]) for name in (names[0], names[-1])]
    constants = [numpy_helper.from_array(weights[n], f"w{n}") for n in range(count)]
    graph = helper.make_graph(nodes, "chain", [kind[0]], [kind[1]], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def test_sizes_are_measured_on_the_inputs_of_the_inner_convolutions():
    windows = [np.full((2, 5, 5), -0.5, np.float32), np.full((2, 5, 5), 0.25, np.float32)]
    # 0.5 by 2 and 3, and by 4 and 1: the first convolution's input is the image, and the last is left out
    assert list(measured(chain(), windows).values()) == [1.5, 4.0]


def test_int8_rounds_to_steps_that_hand_arithmetic_gives():
    keys = measured(chain(), [np.ones((2, 5, 5))])
    network = in_precision(chain(), "int8", dict(zip(keys, (1.27, 2.54), strict=True)))  # steps of 0.01 and 0.02
    graph, types = graph_of(network)
    images = np.zeros((1, 2, 5, 5), np.float32)
    images[0, :, 0, :4] = [[0.1026, -0.05, 3.0, 0.0], [0.05, 0.0, 0.0, 1.0]]
    # by 2 and 3, to steps of 0.01 up to 1.27; by 4 and 1, to steps of 0.02 up to 2.54; by 2 and 4: factors are exact
    x1 = np.clip(np.round(images * [[[2]], [[3]]] / 0.01), -128, 127) * 0.01
    x2 = np.clip(np.round(x1 * [[[4]], [[1]]] / 0.02), -128, 127) * 0.02
    found = onnx_session(network)(images)
    np.testing.assert_allclose(found, x2 * [[[2]], [[4]]], atol=1e-5)
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert weights == ["w0", "w1__rounded", "w2__rounded", "w3"]
    zeros = [numpy_helper.to_array(c) for c in graph.initializer if c.name.endswith("zero")]
    assert zeros and not any(zero.any() for zero in zeros) and types["w1__int8"] == TensorProto.INT8


def test_weights_in_int8_are_within_half_a_step(converted):
    network, images, expected = converted
    quantised = in_precision(network, "int8", measured(network, images))
    graph, _ = graph_of(quantised)
    before = {c.name: numpy_helper.to_array(c) for c in onnx.load_from_string(network).graph.initializer}
    after = {c.name: numpy_helper.to_array(c) for c in graph.initializer}
    rounded = [name.removesuffix("__int8") for name in after if name.endswith("__int8")]
    assert len(rounded) >= 3
    for name in rounded:
        scale = after[f"{name}__scale"].reshape(-1, *(1,) * (before[name].ndim - 1))
        assert np.abs(after[f"{name}__int8"]).max() == 127
        assert (np.abs(after[f"{name}__int8"] * scale - before[name]) <= scale * 0.5001).all()
    assert 1e-5 < np.abs(onnx_session(quantised)(images) - expected).max() < tolerance_of("tensorrt", "int8")


def test_what_cannot_be_is_refused(converted):
    assert in_precision(converted[0], "float32") == converted[0]
    with pytest.raises(ValueError, match="precision is 'int4'; choose one of float32, float16, bfloat16, int8"):
        in_precision(converted[0], "int4")
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[2] image, bool c) => (float[2] probabilities) {
      probabilities = If (c) <then_branch = t () => (float[2] y) { y = Neg(image) },
                              else_branch = e () => (float[2] z) { z = Abs(image) }>
    }"""
    with pytest.raises(DataError, match="loops or branches, which stay float32; leave out --precision"):
        in_precision(parser.parse_model(text).SerializeToString(), "float16")
