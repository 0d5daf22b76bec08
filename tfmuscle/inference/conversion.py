"""A Keras network as other libraries take it: rebuilt for them, and as ONNX.

Rebuilt (`plain`) means the same weights with every layer in float32, whatever it was trained in, and with instance
normalisation without the axis of groups that Keras puts in. With that axis a 3D network works on six, for which
OpenVINO has its reference code only: a small `unet` in nnU-Net's form took five times as long in all.

Keras hands grouped convolutions (`daf3d`) to XLA, in a function of its own that no converter looks into;
`without_functions` traces the network so that there is none.
"""

import warnings
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfmuscle.errors import DataError

IMAGE, PROBABILITIES = "image", "probabilities"
"""Names of input and output of a converted network."""
_OPSET = 18


class _InstanceNormalization(keras.layers.GroupNormalization):
    """Keras' own layer where every channel is a group, on the axes that its input has."""

    def call(self, inputs: Any) -> Any:
        mean, variance = ops.moments(inputs, axes=list(range(1, len(inputs.shape) - 1)), keepdims=True)
        factor = ops.rsqrt(variance + self.epsilon) * (self.gamma if self.scale else 1)
        return inputs * factor + ((self.beta if self.center else 0) - mean * factor)


def plain(model: keras.Model) -> keras.Model:
    """Returns the network with every layer in float32 and plain instance normalisation, and with the same weights."""
    layers = model._flatten_layers()
    if all(layer.compute_dtype == "float32" and not _is_instance_normalisation(layer) for layer in layers):
        return model

    def rebuilt(layer: keras.Layer) -> keras.Layer:
        kind = _InstanceNormalization if _is_instance_normalisation(layer) else type(layer)
        return kind.from_config(_without_policies(layer.get_config()))

    again = keras.models.clone_model(model, clone_function=rebuilt)
    again.set_weights(model.get_weights())
    return again


def _is_instance_normalisation(layer: Any) -> bool:
    """Whether a layer has one channel a group; built ones carry the number of channels in place of -1."""
    if type(layer) is not keras.layers.GroupNormalization or layer.axis != -1:
        return False
    channels = [weight.shape[0] for weight in layer.weights]
    return layer.groups == -1 or layer.groups in channels


def _without_policies(config: Any) -> Any:
    """Returns a layer's settings, those of layers in it included, with every precision policy float32."""
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" else _without_policies(value) for key, value in config.items()}
    return [_without_policies(item) for item in config] if isinstance(config, list) else config


def without_functions(function: Any) -> Any:
    """Returns the concrete function of a `tf.function` with an input signature, without functions inside it."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # those inside; what is asked for as a concrete function becomes one
    try:
        again = tf.function(function.python_function, input_signature=function.input_signature, autograph=False)
        return again.get_concrete_function()
    finally:
        tf.config.run_functions_eagerly(before)


def _tell_groups(graph: Any, given: tf.Graph) -> None:
    """Says of 3D convolutions how many groups they have, which tf2onnx does for those of two axes only."""
    for operation in given.get_operations():
        if operation.type == "Conv3D" and (node := graph.get_node_by_name(operation.name)) is not None:
            node.set_attr("group", operation.inputs[0].shape[-1] // operation.inputs[1].shape[-2])


def onnx_of(function: Any, where: Path) -> bytes:
    """Returns a `tf.function` as ONNX with input `image` and output `probabilities`, both with a free batch axis.

    By the parts of `tf2onnx.convert.from_function`, with one of its twelve optimisers: the others copy all weights
    again and again (a ResNet34 U-Net of 98 MB took 10 GB and a minute, now 3 GB and 11 s) and gain no speed, because
    the engines optimise on their own.

    Args:
        function: of samples to probabilities, with an input signature.
        where: the run, for messages.

    Raises:
        DataError: the network has an operation that ONNX does not.
    """
    import tf2onnx.tfonnx
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    forward = without_functions(function)
    inputs = [tensor.name for tensor in forward.inputs if tensor.dtype != tf.resource]
    outputs = [tensor.name for tensor in forward.outputs]
    names = {inputs[0]: IMAGE, outputs[0]: PROBABILITIES}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf2onnx's own, about the versions of its libraries
            frozen = tf2onnx.tf_loader.from_function(forward, inputs, outputs)
            with tf.Graph().as_default() as given:
                tf.import_graph_def(frozen, name="")
                known = {"opset": _OPSET, "input_names": inputs, "output_names": outputs, "tensors_to_rename": names}
                graph = tf2onnx.tfonnx.process_tf_graph(given, **known)
                _tell_groups(graph, given)
            graph = tf2onnx.optimizer.optimize_graph(graph, False, {"optimize_transpose": TransposeOptimizer})
            network = graph.make_model("tfmuscle")
    except MemoryError:
        raise
    except Exception as error:  # tf2onnx has no errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: cannot be converted to ONNX ({reason}); use --engine keras") from error
    return network.SerializeToString()
