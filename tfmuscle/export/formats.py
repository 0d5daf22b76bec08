"""A network written for other libraries, and opened again: one function each way for every format of a bundle.

* `saved_model`: TensorFlow's own, with both signatures (`segment.py`); exact.
* `onnx`: the network alone, for ONNX Runtime and whatever else reads ONNX; free batch size.
* `openvino`: the same for Intel's runtime, float32, so that its answer stays within the tolerance.
* `litert`: TensorFlow Lite for telephones and boards; one sample at a time, in-plane networks only (it has no 3D
  convolution without TensorFlow beside it).

A network in mixed precision is written in float32.
"""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfmuscle.errors import DataError
from tfmuscle.export.segment import PROBABILITIES, Segmenter
from tfmuscle.inference.engines import Infer, missing_libraries, onnx_of, onnx_session, openvino_session

ONNX_FILE, OPENVINO_FILE, LITERT_FILE = "onnx/network.onnx", "openvino/network.xml", "litert/network.tflite"
SAVED_MODEL_FILE = "saved_model.pb"
SERVING, SEGMENT = "serving_default", "segment"
"""Names of the signatures."""


def write_saved_model(graph: Segmenter, folder: Path, *, segment: bool) -> None:
    """Writes a SavedModel with the signature `serving_default`, and `segment` if wanted."""
    signatures = {SERVING: graph.serve.get_concrete_function()}
    if segment:
        signatures[SEGMENT] = graph.segment.get_concrete_function()
    tf.saved_model.save(graph, str(folder), signatures=signatures)


def write_onnx(graph: Segmenter, folder: Path, *, segment: bool) -> None:
    """Writes the network as ONNX; raw scans are for `saved_model`."""
    _write(folder / ONNX_FILE, onnx_of(graph.serve.get_concrete_function(), folder))


def write_openvino(graph: Segmenter, folder: Path, *, segment: bool) -> None:
    """Writes the network as OpenVINO's XML and its weights."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        network = Path(scratch) / "network.onnx"
        write = onnx_of(graph.serve.get_concrete_function(), folder)
        network.write_bytes(write)
        path = folder / OPENVINO_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(openvino.convert_model(network), path, compress_to_fp16=False)


def write_litert(graph: Segmenter, folder: Path, *, segment: bool) -> None:
    """Writes the network for LiteRT, which takes one sample at a time.

    Raises:
        DataError: it has operations that LiteRT has not, as every 3D network.
    """
    shape = graph.sample_shape
    one = tf.function(lambda image: graph.serve(image)[PROBABILITIES], autograph=False)
    concrete = one.get_concrete_function(tf.TensorSpec((1, *shape), tf.float32, name="image"))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # TensorFlow's own, about the converter moving to another package
            frozen = convert_variables_to_constants_v2(concrete)  # or weights would be asked for, and be nowhere
            network = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    except Exception as error:  # the converter has no errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: LiteRT cannot express the network ({reason}); use --format onnx") from error
    _write(folder / LITERT_FILE, network)


WRITERS: dict[str, Callable[..., None]] = {
    "saved_model": write_saved_model,
    "onnx": write_onnx,
    "openvino": write_openvino,
    "litert": write_litert,
}


def start_saved_model(folder: Path) -> Infer:
    """Loads a SavedModel and answers through its `serving_default`; no Keras is needed."""
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures[SERVING]

    def infer(images: np.ndarray) -> np.ndarray:
        return serve(tf.constant(images, tf.float32))[PROBABILITIES].numpy()

    infer.keeps = loaded  # type: ignore[attr-defined] # the variables live as long as the model does
    return infer


def start_litert(folder: Path) -> Infer:
    """Loads a LiteRT network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, about the interpreter moving to another package
        interpreter = tf.lite.Interpreter(str(folder / LITERT_FILE))
    interpreter.allocate_tensors()
    where, found = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(images: np.ndarray) -> np.ndarray:
        said = []
        for image in images:
            interpreter.set_tensor(where, image[np.newaxis].astype(np.float32))
            interpreter.invoke()
            said.append(interpreter.get_tensor(found)[0])
        return np.stack(said)

    return infer


STARTERS: dict[str, Callable[[Path], Infer]] = {
    "saved_model": start_saved_model,
    "onnx": lambda folder: onnx_session((folder / ONNX_FILE).read_bytes()),
    "openvino": lambda folder: openvino_session(folder / OPENVINO_FILE),
    "litert": start_litert,
}


def check_libraries(name: str) -> None:
    """Refuses a format whose libraries are not installed.

    Raises:
        DataError: naming them.
    """
    if missing := missing_libraries(name):
        raise DataError(f"format {name} needs {', '.join(missing)}; install them with pip install 'tfmuscle[engines]'")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
