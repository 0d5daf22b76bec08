"""TensorFlow Serving's gRPC protocol, spoken with its official stubs: arrays as bytes, so small and fast.

gRPC refuses messages of more than 4 MB unless told otherwise on both sides; TensorFlow Serving takes up to 2 GB, and so
does this client. The stubs are the package `tensorflow-serving-api`, an extra of ours, because HTTP needs nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmuscle.errors import DataError
from tfmuscle.serving.address import Address
from tfmuscle.serving.patience import said

_PASSING = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")
"""Codes after which the same request may be answered; a deadline is told apart."""
_TOO_LARGE = "larger than max"
"""In what gRPC says of a message over a limit, which has the code of an overloaded server."""


class GrpcWire:
    """An open channel to a model."""

    def __init__(self, address: Address) -> None:
        self._grpc, self._apis = _stubs(address)
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = self._grpc.insecure_channel(address.server, options=options)
        self._predictions = self._apis["prediction_service_pb2_grpc"].PredictionServiceStub(self._channel)
        self._models = self._apis["model_service_pb2_grpc"].ModelServiceStub(self._channel)

    def hang_up(self) -> None:
        """Ends what is on its way, for good: gRPC itself refuses whatever is asked later."""
        self._channel.close()

    def status(self, address: Address, seconds: float) -> dict[int, str]:
        """Returns version -> state of a model, "AVAILABLE" when it answers."""
        request = self._apis["get_model_status_pb2"].GetModelStatusRequest()
        request.model_spec.name = address.model
        answer = self._call(self._models.GetModelStatus, request, address, seconds)
        states = self._apis["get_model_status_pb2"].ModelVersionStatus.State
        return {one.version: states.Name(one.state) for one in answer.model_version_status}

    def signatures(self, address: Address, seconds: float) -> dict[str, Any]:
        """Returns signature -> "inputs" and "outputs" -> name -> type and shape."""
        metadata = self._apis["get_model_metadata_pb2"]
        request = metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request, address)
        answer = self._call(self._predictions.GetModelMetadata, request, address, seconds)
        found = metadata.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return {
            name: {
                side: {key: _type_and_shape(info) for key, info in getattr(definition, side).items()}
                for side in ("inputs", "outputs")
            }
            for name, definition in found.signature_def.items()
        }

    def ask(
        self, address: Address, signature: str, inputs: Mapping[str, np.ndarray], output: str, seconds: float
    ) -> np.ndarray:
        """Returns one output of a signature.

        Raises:
            ConnectionError: the server is not there, or has too much to do.
            TimeoutError: it took longer than `seconds`.
            DataError: it refuses the request.
        """
        request = self._apis["predict_pb2"].PredictRequest(output_filter=[output])
        self._name(request, address)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        answer = self._call(self._predictions.Predict, request, address, seconds)
        if output not in answer.outputs:
            raise DataError(f"{address}: answers without {output!r}; it is no bundle of 'tfmuscle export'")
        return tf.make_ndarray(answer.outputs[output])

    def _name(self, request: Any, address: Address) -> None:
        request.model_spec.name = address.model
        if address.version is not None:
            request.model_spec.version.value = address.version

    def _call(self, method: Callable[..., Any], request: Any, address: Address, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds)
        except self._grpc.RpcError as error:
            code, words = error.code().name, said(error.details())
            if code == "DEADLINE_EXCEEDED":
                raise TimeoutError(f"not answered within {seconds:.3g} s") from error
            if code in _PASSING and _TOO_LARGE not in words:
                raise ConnectionError(f"{code}: {words}") from error
            raise DataError(f"{address}: refuses the request ({code}: {words}); {remedy(code, words)}") from error


def remedy(code: str, words: str) -> str:
    """Says what to do about a refusal."""
    if _TOO_LARGE in words:
        return "raise the limit of message sizes of the server, or of the proxy before it"
    if code == "NOT_FOUND":
        return "compare name and version with models.config of the server"
    if code == "INVALID_ARGUMENT":
        return "see that it serves the bundle given with -m; --send windows sends prepared windows"
    return "look at the server's log"


def _type_and_shape(info: Any) -> tuple[str, tuple[int, ...]]:
    return tf.as_dtype(info.dtype).name, tuple(dim.size for dim in info.tensor_shape.dim)


def _stubs(address: Address) -> tuple[Any, dict[str, Any]]:
    """Returns gRPC and the stubs.

    Raises:
        DataError: they are not installed.
    """
    try:
        import grpc
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_service_pb2_grpc,
            predict_pb2,
            prediction_service_pb2_grpc,
        )
    except ImportError as error:
        raise DataError(
            f"{address}: gRPC needs {error.name}; pip install 'tfmuscle[serve-client]', or give the http:// address of"
            " the server"
        ) from error
    modules = (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )
    return grpc, {module.__name__.rpartition(".")[2]: module for module in modules}
