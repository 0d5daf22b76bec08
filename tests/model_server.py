"""A server that speaks TensorFlow Serving's two protocols on 127.0.0.1, with the official stubs: for tests of a client.

What answers is a `Model`: signatures of a SavedModel run by TensorFlow, or functions of the test. Codes and words are
those of TensorFlow Serving: NOT_FOUND for a model or version, INVALID_ARGUMENT for inputs that do not fit, and
the same as 404 and 400 over HTTP. `Faults` makes it slow, busy or lost; `stop` and `start` restart it on the same port.
"""

import concurrent.futures
import http.server
import json
import threading
import time
from dataclasses import dataclass, field

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

CODES = {
    "NOT_FOUND": (grpc.StatusCode.NOT_FOUND, 404),
    "INVALID_ARGUMENT": (grpc.StatusCode.INVALID_ARGUMENT, 400),
    "UNAVAILABLE": (grpc.StatusCode.UNAVAILABLE, 503),
    "RESOURCE_EXHAUSTED": (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
}


class Refusal(Exception):
    """A code and words."""

    def __init__(self, code, words):
        super().__init__(words)
        self.code, self.words = code, words


@dataclass
class Faults:
    """What goes wrong, and what was seen.

    `codes` are answered to the next predictions in turn; `delays` are seconds that the next ones wait; more than
    `at_once` predictions at a time are told to come back.
    """

    codes: list = field(default_factory=list)
    delays: list = field(default_factory=list)
    at_once: int = 1000
    asked: list = field(default_factory=list)
    running: int = 0
    most: int = 0
    largest: int = 0


class Model:
    """Signatures under a name: definition, and a function of arrays to arrays."""

    def __init__(self, name, version, signatures, functions):
        self.name, self.version, self.signatures, self.functions = name, version, signatures, functions

    @classmethod
    def of(cls, folder, name, version):
        """A SavedModel as TensorFlow runs it."""
        loaded = tf.saved_model.load(str(folder))
        content = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        signatures = {
            key: value for key, value in content.meta_graphs[0].signature_def.items() if not key.startswith("__")
        }

        def function(key):
            def run(**arrays):
                return {name: value.numpy() for name, value in loaded.signatures[key](**arrays).items()}

            return run

        return cls(name, version, signatures, {key: function(key) for key in signatures})

    def check(self, name, version):
        if name != self.name:
            raise Refusal("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if version is not None and version != self.version:
            raise Refusal("NOT_FOUND", f"Servable not found for request: Specific({name}, {version})")

    def run(self, signature, arrays, faults):
        if signature not in self.signatures:
            raise Refusal("INVALID_ARGUMENT", f'Serving signature name: "{signature}" not found in signature def')
        expected = self.signatures[signature].inputs
        if set(arrays) != set(expected):
            raise Refusal("INVALID_ARGUMENT", f"input size does not match signature: {sorted(arrays)}")
        faults.asked.append((signature, {key: value.shape for key, value in arrays.items()}))
        faults.largest = max(faults.largest, sum(value.nbytes for value in arrays.values()))
        faults.running += 1
        faults.most = max(faults.most, faults.running)
        try:
            if faults.codes and (code := faults.codes.pop(0)) is not None:
                raise Refusal(code, "as the test wants")
            if faults.running > faults.at_once:
                raise Refusal("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
            if faults.delays:
                time.sleep(faults.delays.pop(0))
            tensors = {key: tf.constant(value, tf.as_dtype(expected[key].dtype)) for key, value in arrays.items()}
            return self.functions[signature](**tensors)
        except (tf.errors.InvalidArgumentError, ValueError, TypeError) as error:
            raise Refusal("INVALID_ARGUMENT", str(error)) from error
        finally:
            faults.running -= 1


def signature(inputs, outputs):
    """A definition: name -> (dtype, shape) on both sides."""
    made = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for side, names in ((made.inputs, inputs), (made.outputs, outputs)):
        for name, (dtype, shape) in names.items():
            side[name].name, side[name].dtype = f"{name}:0", tf.as_dtype(dtype).as_datatype_enum
            side[name].tensor_shape.SetInParent()
            for size in shape:
                side[name].tensor_shape.dim.add(size=size)
    return made


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model, faults, state):
        self.model, self.faults, self.state = model, faults, state

    def Predict(self, request, context):
        spec = request.model_spec
        try:
            self.model.check(spec.name, spec.version.value if spec.HasField("version") else None)
            arrays = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            found = self.model.run(spec.signature_name or "serving_default", arrays, self.faults)
        except Refusal as refusal:
            context.abort(CODES[refusal.code][0], refusal.words)
        answer = predict_pb2.PredictResponse()
        for name, array in found.items():
            if not request.output_filter or name in request.output_filter:
                answer.outputs[name].CopyFrom(_as_fields(array))
        return answer

    def GetModelMetadata(self, request, context):
        try:
            self.model.check(request.model_spec.name, request.model_spec.version.value or None)
        except Refusal as refusal:
            context.abort(CODES[refusal.code][0], refusal.words)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(_map(self.model))
        return answer


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, model, state):
        self.model, self.state = model, state

    def GetModelStatus(self, request, context):
        try:
            self.model.check(request.model_spec.name, None)
        except Refusal as refusal:
            context.abort(CODES[refusal.code][0], f"Could not find any versions of model {request.model_spec.name}")
        return _status(self.model, self.state)


def _as_fields(array):
    """A tensor with one field a number, as TensorFlow Serving answers by default."""
    proto = tf.make_tensor_proto(array)
    flat = proto.float_val if array.dtype == np.float32 else proto.int_val
    proto.ClearField("tensor_content")
    del flat[:]
    flat.extend(array.ravel().tolist())
    return proto


def _map(model):
    made = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in model.signatures.items():
        made.signature_def[name].CopyFrom(definition)
    return made


def _status(model, state):
    answer = get_model_status_pb2.GetModelStatusResponse()
    answer.model_version_status.add(version=model.version, state=state)
    return answer


AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
LOADING = get_model_status_pb2.ModelVersionStatus.LOADING


class GrpcServer:
    """Speaks gRPC until stopped."""

    scheme = "grpc"

    def __init__(self, model, *, state=AVAILABLE):
        self.model, self.faults, self.state, self.port = model, Faults(), state, 0
        self.start()

    def start(self):
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=options)
        predictions = _Predictions(self.model, self.faults, self.state)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self.model, self.state), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self):
        self._server.stop(0).wait()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        model = self.server.model
        name, version, what = self._parts()
        try:
            model.check(name, version if what else None)
        except Refusal as refusal:
            return self._refuse(refusal)
        if what == "metadata":
            content = json_format.MessageToDict(
                _map(model), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            spec = {"name": name, "signature_name": "", "version": str(model.version)}
            # an Any of protobuf's, as JSON
            return self._answer(200, {"model_spec": spec, "metadata": {"signature_def": {"@type": "x", **content}}})
        status = json_format.MessageToDict(
            _status(model, self.server.state),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return self._answer(200, status)

    def do_POST(self):
        model = self.server.model
        name, version, what = self._parts()
        try:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.check(name, version)
            if what != "predict" or not isinstance(request.get("inputs"), dict):
                raise Refusal("INVALID_ARGUMENT", "Malformed request")
            arrays = {key: np.asarray(value, np.float64) for key, value in request["inputs"].items()}
            found = model.run(request.get("signature_name", "serving_default"), arrays, self.server.faults)
        except Refusal as refusal:
            return self._refuse(refusal)
        except ValueError as error:
            return self._refuse(Refusal("INVALID_ARGUMENT", f"JSON Parse error: {error}"))
        outputs = {key: value.tolist() for key, value in found.items()}
        single = next(iter(outputs.values())) if len(outputs) == 1 else outputs
        return self._answer(200, {"outputs": single})

    def _parts(self):
        path, _, what = self.path.removeprefix("/v1/models/").partition(":")
        name, *rest = path.split("/")
        version = int(rest[1]) if rest[:1] == ["versions"] else None
        return name, version, what or ("metadata" if rest[-1:] == ["metadata"] else "")

    def _refuse(self, refusal):
        self._answer(CODES[refusal.code][1], {"error": refusal.words})

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, *_):
        pass


class _Threads(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, *args):
        super().__init__(*args)
        self.open = set()

    def process_request(self, request, client_address):
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)


class RestServer:
    """Speaks HTTP until stopped."""

    scheme = "http"

    def __init__(self, model, *, state=AVAILABLE):
        self.model, self.faults, self.state, self.port = model, Faults(), state, 0
        self.start()

    def start(self):
        self._server = _Threads(("127.0.0.1", self.port), _Handler)
        self._server.model, self._server.faults, self._server.state = self.model, self.faults, self.state
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        """Ends as a killed process does: every connection breaks."""
        self._server.shutdown()
        for request in list(self._server.open):
            self._server.shutdown_request(request)
        self._server.server_close()
