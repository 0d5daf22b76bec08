"""Other libraries that run a trained network: faster on a processor, and proven to say what Keras says.

The user chooses the engine; `auto` takes the first of `AUTOMATIC` whose libraries are installed, and Keras for volumes,
where no converted network is clearly faster (benchmarks/engines.md), and where TensorFlow sees a graphics processor,
which they would leave idle. `onnx` (ONNX Runtime), `openvino` and `tensorrt` read one ONNX file, made from the float32
network by tf2onnx; `xla` lets TensorFlow compile the network as a whole (seconds to minutes for each run, and slow for
3D networks on a processor); `keras` is the network as it is.

The file lies in the run folder, `engines/<sha256 of the weights>.onnx`, so that other weights never meet an old file,
and a folder of scans, or the next day, converts nothing. A run folder that cannot be written to is no obstacle: then
the network is converted anew each time.

Proof. The sums of an engine run in another order, so its probabilities differ in the last digits, and most where the
network is unsure. Before an engine is used it answers two windows from the middle of the first scan, and so does Keras:
no probability may differ by more than `TOLERANCE`, and no label where Keras prefers it by more than that. Otherwise the
engine is refused, or under `auto` Keras goes on and the result says so. Once for each process, because processors and
versions of the libraries differ too.

Rejected: OpenVINO's own converter (a second file, no faster network), half precision (fails the proof), TensorFlow Lite
(no 3D).
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import tensorflow as tf

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, sha256
from tfmuscle.inference import tensorrt
from tfmuscle.inference.conversion import IMAGE, onnx_of, plain

if TYPE_CHECKING:
    from tfmuscle.inference.runs import Run

ENGINES = ("keras", "auto", "xla", "onnx", "openvino", "tensorrt")
"""What `predict --engine` takes."""
AUTOMATIC = ("openvino", "onnx")
"""What `auto` tries, the fastest first."""
TOLERANCE = {"xla": 5e-3, "onnx": 5e-3, "openvino": 5e-3, "tensorrt": 5e-3}
"""Largest difference of a probability from Keras. Networks with random weights, whose softmax is saturated, differ by
up to 2e-3 with both converted engines; trained ones by less."""
LIBRARIES = {
    "onnx": ("onnxruntime", "onnx", "tf2onnx"),
    "openvino": ("openvino", "onnx", "tf2onnx"),
    "tensorrt": ("tensorrt", "cuda", "onnxruntime", "onnx", "tf2onnx"),
}
WINDOW_BUDGET_VOXELS = 2**19
"""Voxels sent through a network at once when no batch size is given: 8 slices of 256 x 256, one patch of 80³."""
FOLDER = "engines"
"""Folder of converted networks in a run."""

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
            f"engine {engine} needs {', '.join(missing)}; install them with {how_to_install(engine)}, or use --engine"
            " keras"
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


def how_to_install(engine: str) -> str:
    """Returns the command that brings the libraries of an engine."""
    ours = "pip install 'tfmuscle[engines]'"
    return f"{ours} and {tensorrt.INSTALL}" if engine == "tensorrt" else ours


def can_run(engine: str) -> bool:
    """Whether an engine's libraries are installed, and for TensorRT whether there is a graphics processor."""
    return not missing_libraries(engine) and (engine != "tensorrt" or bool(tf.config.list_physical_devices("GPU")))


def batches_of(window: tuple[int, ...]) -> tensorrt.Batches:
    """Returns the batches that prediction sends through a network of windows `(d, h, w)`."""
    most = max(1, WINDOW_BUDGET_VOXELS // math.prod(window))
    return tensorrt.Batches(most, most)


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
    return lambda images: session.run(None, {IMAGE: images})[0]


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


def _start_tensorrt(run: "Run") -> Infer:
    batches = batches_of(run.spec.window)
    return _started(run, "tensorrt", lambda network: tensorrt.start(network, batches, run.path))


_STARTS = {"xla": _start_xla, "onnx": _start_onnx, "openvino": _start_openvino, "tensorrt": _start_tensorrt}


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
    return onnx_of(dataclasses.replace(run, model=plain(run.model), engine=None).forward, run.path)
