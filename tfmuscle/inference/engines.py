"""Other libraries that run a trained network: faster on a processor, and proven to say what Keras says.

The user chooses the engine; `auto` takes the first of `AUTOMATIC` whose libraries are installed, and Keras for volumes,
where the converted networks are up to five times slower (benchmarks/inference.md), and where TensorFlow sees a
graphics processor, which they would leave idle. `onnx` (ONNX Runtime) and
`openvino` read one ONNX file, made from the float32 network by tf2onnx; `xla` lets TensorFlow compile the network as a
whole (seconds to minutes for each run, and slow for 3D networks on a processor); `keras` is the network as it is.

The file lies in the run folder, `engines/<sha256 of the weights>.onnx`, so that other weights never meet an old file,
and a folder of scans, or the next day, converts nothing. A run folder that cannot be written to is no obstacle: then
the network is converted anew each time.

Proof. The sums of an engine run in another order, so its probabilities differ in the last digits, and most where the
network is unsure. Before an engine is used it answers two windows from the middle of the first scan, and so does Keras:
no probability may differ by more than `TOLERANCE`, and no label where Keras prefers it by more than that. Otherwise the
engine is refused, or under `auto` Keras goes on and the result says so. Once for each process, because processors and
versions of the libraries differ too.

Mixed-precision networks are rebuilt in float32 first: their layers with another policy, and the same weights. Rejected:
OpenVINO's own converter (a second file, no faster network), half precision (fails the proof), TensorFlow Lite (no 3D).
"""

import dataclasses
import importlib.util
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, sha256

if TYPE_CHECKING:
    from tfmuscle.inference.runs import Run

ENGINES = ("keras", "auto", "xla", "onnx", "openvino")
"""What `predict --engine` takes."""
AUTOMATIC = ("openvino", "onnx")
"""What `auto` tries, the fastest first."""
TOLERANCE = {"xla": 5e-3, "onnx": 5e-3, "openvino": 5e-3}
"""Largest difference of a probability from Keras. Networks with random weights, whose softmax is saturated, differ by
up to 2e-3 with both converted engines; trained ones by less."""
LIBRARIES = {"onnx": ("onnxruntime", "onnx", "tf2onnx"), "openvino": ("openvino", "onnx", "tf2onnx")}
FOLDER = "engines"
"""Folder of converted networks in a run."""
_OPSET = 18
_INPUT, _OUTPUT = "image", "probabilities"

Infer = Callable[[np.ndarray], np.ndarray]
_Run = TypeVar("_Run", bound="Run")


class Engine:
    """Answers in place of Keras, once `prove` has compared the two on real windows.

    A class, because the proof changes what it is: an engine that fails under `auto` becomes Keras.

    Attributes:
        name: what answers.
        note: what the user should know, empty when all is well.
        proven: whether it was compared with Keras.
    """

    def __init__(self, name: str, infer: Infer, reference: Infer, run: Path | None, *, must_be: bool) -> None:
        self.name, self.note, self.proven = name, "", False
        self._infer, self._reference, self._run, self._must_be = infer, reference, run, must_be

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images `(B, ...)` to probabilities."""
        return self._infer(images)

    def prove(self, images: np.ndarray) -> None:
        """Compares with Keras on real windows `(B, ...)`.

        Raises:
            DataError: they differ, and the user asked for this engine by name.
        """
        difference = "" if self.name == "keras" else _difference(self, images, self._reference(images))
        if difference and self._must_be:
            raise DataError(f"{self._run}: {difference}; use --engine keras")
        if difference:
            self.name, self._infer = "keras", self._reference
            self.note = f"{self._run}: {difference}; Keras is used instead"
        self.proven = True


def _difference(engine: Engine, images: np.ndarray, expected: np.ndarray) -> str:
    """Says how an engine's answer differs from what is expected; empty within the tolerance."""
    found, tolerance = engine(images), TOLERANCE[engine.name]
    if found.shape != expected.shape:
        return f"{engine.name} returns the shape {found.shape}, Keras {expected.shape}"
    largest = float(np.abs(found - expected).max())
    best = np.partition(expected, -2, axis=-1)
    sure = best[..., -1] - best[..., -2] > tolerance
    wrong = int((sure & (found.argmax(-1) != expected.argmax(-1))).sum())
    if largest <= tolerance and not wrong:
        return ""
    largest = largest if math.isfinite(largest) else math.nan
    return f"{engine.name} differs from Keras by {largest:.2g} ({tolerance:.2g} is allowed) and in {wrong} clear labels"


def with_engine(run: _Run, engine: str) -> _Run:
    """Returns the run with another engine answering.

    Args:
        run: from `load_run`.
        engine: one of `ENGINES`.

    Raises:
        ValueError: no such engine.
        DataError: a library is missing, or the network cannot be converted.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; choose one of {', '.join(ENGINES)}")
    if engine == "keras":
        return run
    if engine in LIBRARIES and (missing := missing_libraries(engine)):
        raise DataError(
            f"engine {engine} needs {', '.join(missing)}; install them with pip install 'tfmuscle[engines]', or use"
            " --engine keras"
        )
    chosen = _automatic(run) if engine == "auto" else engine
    if chosen == "keras":
        return run
    try:
        infer, note = _STARTS[chosen](run), ""
    except DataError as error:
        if engine != "auto":
            raise
        chosen, infer, note = "keras", run.probabilities, f"{error}; Keras is used instead"
    made = Engine(chosen, infer, run.probabilities, run.path, must_be=engine != "auto")
    made.note = note
    return dataclasses.replace(run, engine=made)


def missing_libraries(engine: str) -> list[str]:
    """Returns the libraries of an engine that are not installed."""
    return [name for name in LIBRARIES.get(engine, ()) if importlib.util.find_spec(name) is None]


def _automatic(run: "Run") -> str:
    if run.spec.is_volumetric or tf.config.list_physical_devices("GPU"):
        return "keras"
    return next((engine for engine in AUTOMATIC if not missing_libraries(engine)), "keras")


def _num_threads() -> int:
    """Returns the cores this process may use; a library's own default is the physical ones only."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_xla(run: "Run") -> Infer:
    """Compiles for the first batch size it meets and brings all batches to it: XLA compiles for fixed shapes."""
    compiled = tf.function(run.forward.python_function, jit_compile=True, autograph=False)
    size = 0

    def infer(images: np.ndarray) -> np.ndarray:
        nonlocal size
        size = size or len(images)
        parts = []
        for first in range(0, len(images), size):
            part = images[first : first + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(compiled(tf.constant(padded)).numpy()[: len(part)])
        return np.concatenate(parts)

    return infer


def onnx_session(network: bytes) -> Infer:
    """Starts ONNX Runtime on the processor with a network of `onnx_of`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {_INPUT: images})[0]


def openvino_session(network: bytes | Path) -> Infer:
    """Starts OpenVINO on the processor with a network of `onnx_of`, or with an XML file of its own."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # newer processors would otherwise take bfloat16
        "INFERENCE_NUM_THREADS": _num_threads(),
    }
    compiled = core.compile_model(core.read_model(network), "CPU", settings)
    return lambda images: compiled(images)[0]


def _start_onnx(run: "Run") -> Infer:
    return _started(run, "onnx", onnx_session)


def _start_openvino(run: "Run") -> Infer:
    return _started(run, "openvino", openvino_session)


_STARTS = {"xla": _start_xla, "onnx": _start_onnx, "openvino": _start_openvino}


def _started(run: "Run", engine: str, start: Callable[[bytes], Infer]) -> Infer:
    """Starts a session with the converted network; whatever the library says against it is one line."""
    path = run.path / FOLDER / f"{sha256(run.path / 'best.keras')}.onnx"
    try:
        return start(_converted(run, path))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own, none of which concerns the scan
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: {engine} cannot run it ({reason}); remove it, or use --engine keras") from error


def _converted(run: "Run", path: Path) -> bytes:
    """Returns the network as ONNX, from its file or newly converted."""
    if path.is_file():
        return path.read_bytes()
    network = to_onnx(run)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(network)
    except DataError:  # a run folder that is read only, or a full disk: it works without the file
        return network
    return network


def to_onnx(run: "Run") -> bytes:
    """Returns the float32 network of a run as ONNX; see `onnx_of`."""
    single = dataclasses.replace(run, model=in_float32(run.model), engine=None)
    return onnx_of(single.forward.get_concrete_function(), run.path)


def onnx_of(forward: Any, where: Path) -> bytes:
    """Returns a TensorFlow function as ONNX with input `image` and output `probabilities`, both with a free batch axis.

    By the parts of `tf2onnx.convert.from_function`, with one of its twelve optimisers: the others copy all weights
    again and again (a ResNet34 U-Net of 98 MB took 10 GB and a minute, now 3 GB and 11 s) and gain no speed, because
    the engines optimise on their own.

    Args:
        forward: concrete function of samples to probabilities.
        where: the run, for messages.

    Raises:
        DataError: the network has an operation that ONNX does not.
    """
    import tf2onnx.tfonnx
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    inputs = [tensor.name for tensor in forward.inputs if tensor.dtype != tf.resource]
    outputs = [tensor.name for tensor in forward.outputs]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf2onnx's own, about the versions of its libraries
            frozen = tf2onnx.tf_loader.from_function(forward, inputs, outputs)
            with tf.Graph().as_default() as plain:
                tf.import_graph_def(frozen, name="")
                graph = tf2onnx.tfonnx.process_tf_graph(
                    plain,
                    opset=_OPSET,
                    input_names=inputs,
                    output_names=outputs,
                    tensors_to_rename={inputs[0]: _INPUT, outputs[0]: _OUTPUT},
                )
            graph = tf2onnx.optimizer.optimize_graph(graph, False, {"optimize_transpose": TransposeOptimizer})
            network = graph.make_model("tfmuscle")
    except MemoryError:
        raise
    except Exception as error:  # tf2onnx has no errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{where}: cannot be converted to ONNX ({reason}); use --engine keras") from error
    return network.SerializeToString()


def in_float32(model: keras.Model) -> keras.Model:
    """Returns the network with every layer in float32 and the same weights; itself if it is so already."""
    if all(layer.compute_dtype == "float32" for layer in model._flatten_layers()):
        return model

    def rebuilt(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(_without_policies(layer.get_config()))

    single = keras.models.clone_model(model, clone_function=rebuilt)
    single.set_weights(model.get_weights())
    return single


def _without_policies(config: Any) -> Any:
    """Returns a layer's settings, those of layers in it included, with every precision policy float32."""
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" else _without_policies(value) for key, value in config.items()}
    return [_without_policies(item) for item in config] if isinstance(config, list) else config
