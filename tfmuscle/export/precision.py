"""The ONNX file of a network in fewer bits, said by the types in the file: float16, bfloat16 or int8.

For TensorRT, whose versions 10 and 11 both obey the types they read (`inference/tensorrt.py`); ONNX Runtime runs the
same files on a processor, which is how the tests judge them.

* *float16, bfloat16*: convolutions and matrix products, with their weights, and what follows them number by number
  (activations, sums and joins of such results, pooling). Means, roots, exponentials, resizing and the softmax stay
  float32, and so do input and output. Batch normalisation becomes a product and a sum first.
* *int8*: every convolution but the first and the last: weights by the largest of each channel, inputs by one scale
  each, both symmetric, written as pairs of QuantizeLinear and DequantizeLinear around float32, as TensorRT wants them.
  Everything else stays float32. The scale of an input is measured on real windows: the largest over windows of the
  99.99th percentile of its size, one of the rules that Wu et al. 2020 compare ("Integer quantization for deep learning
  inference").

Rejected: NVIDIA's ModelOpt (pulls PyTorch), converters of ONNX Runtime (int32 biases, which TensorRT does not take, and
no bfloat16).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.inference.conversion import IMAGE

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
PERCENTILE = 99.99
"""Of the sizes of a convolution's input, taken for its largest."""
_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_ALONG = (
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Clip", "Add", "Sub", "Mul", "Max", "Concat", "MaxPool", "AveragePool"),
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Pad", "Slice", "Identity", "Tile", "Expand"),
)
"""Operations in fewer bits where everything they are given is so already."""
_OPSET_OF_BFLOAT16 = 22
_STEPS = 127


def in_precision(network: bytes, precision: str, largest: Mapping[str, float] | None = None) -> bytes:
    """Returns a float32 ONNX network in another precision.

    Args:
        network: ONNX, float32.
        precision: one of `PRECISIONS`.
        largest: for int8, from `measured`.

    Raises:
        ValueError: no such precision.
        DataError: the network has loops.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return network
    return _quantised(network, largest or {}) if precision == "int8" else _halved(network, precision)


@dataclass
class _Halving:
    """A graph in the making; a class, because every node adds to what is known of the tensors.

    Attributes:
        kind: the type of fewer bits.
        types: tensor -> type, before.
        constants: name -> constant, of the network as it was.
        nodes: those made so far.
        made: constants made so far.
        short: tensors that are of fewer bits.
        casts: (tensor, type) -> its name in that type.
    """

    kind: int
    types: dict[str, int]
    constants: dict[str, Any]
    nodes: list[Any] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    short: set[str] = field(default_factory=set)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: Any) -> None:
        """Adds a node of the network as it was, with casts where it needs them."""
        from onnx import TensorProto

        floats = [name for name in node.input if self.types.get(name) == TensorProto.FLOAT]
        given = [name for name in floats if name not in self.constants]
        along = node.op_type in _ALONG and given and all(name in self.short for name in given)
        is_short = node.op_type in _PRODUCTS or bool(along)
        for place, name in enumerate(node.input):
            if name in floats and is_short != (name in self.short):
                node.input[place] = self.cast(name, self.kind if is_short else TensorProto.FLOAT)
        self.nodes.append(node)
        if is_short:
            self.short.update(name for name in node.output if self.types.get(name) == TensorProto.FLOAT)

    def cast(self, name: str, kind: int) -> str:
        """Returns the name of a tensor in another type; constants are converted here and now."""
        from onnx import helper, numpy_helper

        if (name, kind) in self.casts:
            return self.casts[name, kind]
        other = self.casts[name, kind] = f"{name}__{kind}"
        if name in self.constants:
            values = numpy_helper.to_array(self.constants[name])
            self.made.append(_constant(other, values, kind))
        else:
            self.nodes.append(helper.make_node("Cast", [name], [other], to=kind))
        return other


def _halved(network: bytes, precision: str) -> bytes:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(network)
    if precision == "bfloat16":
        model = onnx.version_converter.convert_version(model, _OPSET_OF_BFLOAT16)
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        raise DataError("the network has loops or branches, which stay float32; leave out --precision")
    _without_identities(model.graph)
    _scale_and_shift(model)
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {constant.name: constant for constant in graph.initializer}
    types |= {name: constant.data_type for name, constant in constants.items()}
    halving = _Halving(TensorProto.FLOAT16 if precision == "float16" else TensorProto.BFLOAT16, types, constants)
    for node in graph.node:
        halving.add(node)
    for output in graph.output:
        if output.name in halving.short:
            short = f"{output.name}__short"
            _rename(halving.nodes, output.name, short)
            halving.nodes.append(helper.make_node("Cast", [short], [output.name], to=TensorProto.FLOAT))
    return _with(model, halving.nodes, [*constants.values(), *halving.made])


def _without_identities(graph: Any) -> None:
    """Lets every node take a constant itself where tf2onnx put an Identity between them."""
    constants = {constant.name for constant in graph.initializer}
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    same = {name: of for name, of in same.items() if of in constants}
    nodes = [node for node in graph.node if node.op_type != "Identity" or node.output[0] not in same]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    graph.ClearField("node")
    graph.node.extend(nodes)


def _scale_and_shift(model: Any) -> None:
    """Puts a product and a sum in place of every batch normalisation."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)}
    constants = {constant.name: constant for constant in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or not set(node.input[1:]) <= set(constants):
            nodes.append(node)
            continue
        scale, bias, mean, variance = (numpy_helper.to_array(constants[name]).astype(float) for name in node.input[1:])
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        factor, name = scale / np.sqrt(variance + epsilon), node.output[0]
        shape = (-1, *(1,) * (ranks[node.input[0]] - 2))
        for end, values in (("factor", factor), ("shift", bias - mean * factor)):
            model.graph.initializer.append(_constant(f"{name}__{end}", values.reshape(shape), TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [node.input[0], f"{name}__factor"], [f"{name}__product"]))
        nodes.append(helper.make_node("Add", [f"{name}__product", f"{name}__shift"], [name]))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def measured(network: bytes, windows: Iterable[np.ndarray]) -> dict[str, float]:
    """Measures how large the inputs of the convolutions are that shall be int8, on real windows.

    Args:
        network: ONNX, float32.
        windows: samples `(*input_shape)`, prepared as in training.

    Returns:
        Checksum of a convolution's weights -> largest size of its input, for `in_precision`.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load_from_string(network)
    _without_identities(model.graph)
    inner = _convolutions(model.graph)
    names = sorted({node.input[0] for node in inner.values()} - {IMAGE})
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = dict.fromkeys([*names, IMAGE], 0.0)
    for window in windows:
        given = window[np.newaxis].astype(np.float32)
        found = session.run(names, {IMAGE: given}) if names else []
        for name, values in zip([*names, IMAGE], [*found, given], strict=True):
            largest[name] = max(largest[name], float(np.percentile(np.abs(values), PERCENTILE)))
    return {key: largest[node.input[0]] for key, node in inner.items()}


def fingerprint(network: bytes) -> str:
    """Returns a checksum of a network's operations and constants; names and order differ between conversions."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(network).graph
    constants = sorted(_checksum(numpy_helper.to_array(constant)) for constant in graph.initializer)
    return hashlib.sha256(" ".join([*sorted(node.op_type for node in graph.node), *constants]).encode()).hexdigest()


def _checksum(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def _convolutions(graph: Any) -> dict[str, Any]:
    """Returns the convolutions that int8 shall be, by the checksum of their weights: all but the first and the last."""
    from onnx import numpy_helper

    constants = {constant.name: constant for constant in graph.initializer}
    found = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in constants]
    return {_checksum(numpy_helper.to_array(constants[node.input[1]])): node for node in found[1:-1]}


def _quantised(network: bytes, largest: Mapping[str, float]) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(network)
    _without_identities(model.graph)
    constants = {constant.name: constant for constant in model.graph.initializer}
    inner = {key: node for key, node in _convolutions(model.graph).items() if key in largest}
    sizes = {node.input[0]: largest[key] for key, node in inner.items()}
    chosen = {node.output[0] for node in inner.values()}
    nodes, made, rounded = [], [_constant("int8__zero", np.zeros(()), TensorProto.INT8)], {}
    for node in model.graph.node:
        if node.output and node.output[0] in chosen:
            name, weights = node.input[0], node.input[1]
            if name not in rounded:
                scale = max(sizes[name], 1e-9) / _STEPS
                rounded[name] = f"{name}__rounded"
                made.append(_constant(f"{name}__scale", np.array(scale), TensorProto.FLOAT))
                how = [f"{name}__scale", "int8__zero"]
                nodes.append(helper.make_node("QuantizeLinear", [name, *how], [f"{name}__int8"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{name}__int8", *how], [rounded[name]]))
            if weights not in rounded:
                rounded[weights] = f"{weights}__rounded"
                made += _rounded_weights(weights, numpy_helper.to_array(constants[weights]))
                given = [f"{weights}__int8", f"{weights}__scale", f"{weights}__zero"]
                nodes.append(helper.make_node("DequantizeLinear", given, [rounded[weights]], axis=0))
            node.input[0], node.input[1] = rounded[name], rounded[weights]
        nodes.append(node)
    return _with(model, nodes, [*constants.values(), *made])


def _rounded_weights(name: str, weights: np.ndarray) -> list[Any]:
    """Returns weights `(out, in, ...)` as int8, their scales, one a channel, and zeros."""
    from onnx import TensorProto

    top = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scale = np.where(top > 0, top, 1) / _STEPS
    steps = np.round(weights / scale.reshape(-1, *(1,) * (weights.ndim - 1)))
    return [
        _constant(f"{name}__int8", steps, TensorProto.INT8),
        _constant(f"{name}__scale", scale, TensorProto.FLOAT),
        _constant(f"{name}__zero", np.zeros(len(weights)), TensorProto.INT8),
    ]


def _constant(name: str, values: np.ndarray, kind: int) -> Any:
    from onnx import helper, numpy_helper

    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def _rename(nodes: list[Any], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def _with(model: Any, nodes: list[Any], constants: list[Any]) -> bytes:
    """Returns the model with other nodes and the constants that they use, without the types it had."""
    used = {name for node in nodes for name in node.input}
    for part in ("node", "initializer", "value_info"):
        model.graph.ClearField(part)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constant for constant in constants if constant.name in used)
    return model.SerializeToString()
