"""A network written for other libraries, and opened again: one function each way for every format of a bundle.

* `saved_model`: TensorFlow's own, with both signatures (`segment.py`); exact.
* `onnx`: the network alone, for ONNX Runtime and whatever else reads ONNX; free batch size.
* `openvino`: the same for Intel's runtime, float32, so that its answer stays within the tolerance.
* `litert`: TensorFlow Lite for telephones and boards; one sample at a time, networks of slices, and of volumes `unet`
  alone (it has no 3D pooling and no PReLU of volumes without TensorFlow beside it).
* `tensorrt`: ONNX in the precision asked for (`precision.py`), the batches the engine shall take, and for int8 how
  large inputs were. The engine is built from it on each machine and kept there (`inference/tensorrt.py`).

A network in mixed precision is written in float32.
"""

import contextlib
import hashlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfmuscle.errors import DataError
from tfmuscle.export.precision import PERCENTILE, fingerprint, in_precision, measured
from tfmuscle.export.segment import PROBABILITIES, Segmenter
from tfmuscle.files import json_text, read_json, write_json
from tfmuscle.inference import tensorrt
from tfmuscle.inference.conversion import onnx_of, without_functions
from tfmuscle.inference.engines import Infer, how_to_install, missing_libraries, onnx_session, openvino_session

ONNX_FILE, OPENVINO_FILE, LITERT_FILE = "onnx/network.onnx", "openvino/network.xml", "litert/network.tflite"
SAVED_MODEL_FILE = "saved_model.pb"
TENSORRT_FILE, ENGINE_FILE, SIZES_FILE = "tensorrt/network.onnx", "tensorrt/engine.json", "tensorrt/sizes.json"
SERVING, SEGMENT = "serving_default", "segment"
"""Names of the signatures."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a format may be asked for.

    Attributes:
        segment: of a SavedModel: the signature that takes raw scans.
        precision: of TensorRT: one of `precision.PRECISIONS`.
        batches: of TensorRT: how many samples at once.
        windows: of TensorRT in int8: real samples, to measure on.
    """

    segment: bool = False
    precision: str = "float32"
    batches: tensorrt.Batches = tensorrt.Batches(1, 1)
    windows: np.ndarray | None = None


def write_saved_model(graph: Segmenter, folder: Path, wanted: Wanted) -> None:
    """Writes a SavedModel with the signature `serving_default`, and `segment` if wanted."""
    signatures = {SERVING: graph.serve.get_concrete_function()}
    if wanted.segment:
        signatures[SEGMENT] = graph.segment.get_concrete_function()
    tf.saved_model.save(graph, str(folder), signatures=signatures)


def write_onnx(graph: Segmenter, folder: Path, wanted: Wanted) -> None:
    """Writes the network as ONNX; raw scans are for `saved_model`."""
    _write(folder / ONNX_FILE, onnx_of(graph.serve, folder))


def write_openvino(graph: Segmenter, folder: Path, wanted: Wanted) -> None:
    """Writes the network as OpenVINO's XML and its weights."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        network = Path(scratch) / "network.onnx"
        network.write_bytes(onnx_of(graph.serve, folder))
        path = folder / OPENVINO_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(openvino.convert_model(network), path, compress_to_fp16=False)


def write_litert(graph: Segmenter, folder: Path, wanted: Wanted) -> None:
    """Writes the network for LiteRT, which takes one sample at a time.

    Raises:
        DataError: it has operations that LiteRT has not, as most 3D networks.
    """
    shape = graph.sample_shape
    signature = [tf.TensorSpec((1, *shape), tf.float32, name="image")]
    one = tf.function(lambda image: graph.serve(image)[PROBABILITIES], input_signature=signature, autograph=False)
    concrete = without_functions(one)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # TensorFlow's own, about the converter moving to another package
            frozen = convert_variables_to_constants_v2(concrete)  # or weights would be asked for, and be nowhere
            network = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    except Exception as error:  # the converter has no errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: LiteRT cannot express the network ({reason}); use --format onnx") from error
    _write(folder / LITERT_FILE, network)


def write_tensorrt(graph: Segmenter, folder: Path, wanted: Wanted) -> None:
    """Writes what an engine is built from."""
    network, largest = onnx_of(graph.serve, folder), {}
    if wanted.precision == "int8":
        if wanted.windows is None:
            raise ValueError("int8 is measured on real windows; give some")
        sizes = _sizes(network, wanted.windows)
        largest = sizes["largest"]
        _write(folder / SIZES_FILE, json_text(sizes).encode())
    _write(folder / TENSORRT_FILE, in_precision(network, wanted.precision, largest))
    about = {"precision": wanted.precision, "batches": [wanted.batches.usual, wanted.batches.largest]}
    _write(folder / ENGINE_FILE, json_text(about).encode())


def _sizes(network: bytes, windows: np.ndarray) -> dict[str, Any]:
    """Returns how large inputs of convolutions are, kept from an earlier export of this network and these windows."""
    facts = {
        "network": fingerprint(network),
        "windows": hashlib.sha256(np.ascontiguousarray(windows)).hexdigest(),
        "percentile": PERCENTILE,
    }
    path = tensorrt.cache_folder() / f"{facts['network'][:16]}-{facts['windows'][:16]}.sizes.json"
    known = read_json(path) if path.is_file() else {}
    if {key: known.get(key) for key in facts} == facts and isinstance(known.get("largest"), dict):
        return known
    sizes = facts | {"number": len(windows), "largest": measured(network, windows)}
    with contextlib.suppress(DataError):  # a disk that takes none
        write_json(path, sizes)
    return sizes


WRITERS: dict[str, Callable[[Segmenter, Path, Wanted], None]] = {
    "saved_model": write_saved_model,
    "onnx": write_onnx,
    "openvino": write_openvino,
    "litert": write_litert,
    "tensorrt": write_tensorrt,
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


def start_tensorrt(folder: Path) -> Infer:
    """Starts the engine of a bundle; builds it, if this machine has none for its GPU and version."""
    batches = tensorrt.Batches(*read_json(folder / ENGINE_FILE)["batches"])
    return tensorrt.start((folder / TENSORRT_FILE).read_bytes(), batches, folder)


STARTERS: dict[str, Callable[[Path], Infer]] = {
    "saved_model": start_saved_model,
    "onnx": lambda folder: onnx_session((folder / ONNX_FILE).read_bytes()),
    "openvino": lambda folder: openvino_session(folder / OPENVINO_FILE),
    "litert": start_litert,
    "tensorrt": start_tensorrt,
}


def check_libraries(name: str) -> None:
    """Refuses a format whose libraries are not installed.

    Raises:
        DataError: naming them.
    """
    if missing := missing_libraries(name):
        raise DataError(f"format {name} needs {', '.join(missing)}; install them with {how_to_install(name)}")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
