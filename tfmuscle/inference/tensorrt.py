"""TensorRT: a network as an engine for one kind of NVIDIA graphics processor, built there and kept.

The user says `export --format tensorrt` or `predict --engine tensorrt` on the machine with the GPU. The network comes
as ONNX with the input `image` and the output `probabilities`, and its types say the precision (`export.precision`):
TensorRT 11 takes such *strongly typed* networks only, TensorRT 10 takes them too, so that one way serves both. Not
used, because TensorRT 11 has them no more: the builder's flags for float16, bfloat16 and int8, and its calibrators.
TF32 is switched off: float32 is to mean float32.

An engine fits one kind of GPU and one version of TensorRT. Building takes minutes, so it is kept in the user's cache
folder, beside what it was built for: an engine for another GPU, version, network or batch, or one of which a byte has
changed, is not used but built again. It never lies in a bundle, because it holds machine code, and a bundle holds none.

**No engine was ever built or run by the authors, who had no GPU.** The tests replace both libraries by stand-ins that
run the ONNX file that the builder is given; that the names used here exist was read in the bindings of 10.16 and 11.4
and seen in cuda-bindings 13.5.

Rejected: TF-TRT (left TensorFlow), ONNX Runtime's TensorRT provider (built for one version of TensorRT), engines that
fit several kinds of GPU (slower).
"""

import hashlib
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path

VERSIONS = (10, 11)
"""Major versions of TensorRT that this is written for."""
INSTALL = "pip install tensorrt cuda-python --extra-index-url https://pypi.nvidia.com"
"""What brings the libraries; those with the code itself are in NVIDIA's own index."""
IMAGE, PROBABILITIES = "image", "probabilities"

Infer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Batches:
    """How many samples an engine takes at once: any number from one to `largest`, and it is tuned for `usual`."""

    usual: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.usual <= self.largest:
            raise ValueError(
                f"batches {self.usual} and {self.largest}: give the usual number of samples and then the largest, both"
                " at least 1"
            )


@dataclass(frozen=True)
class Libraries:
    """The modules `tensorrt` and `cuda.bindings.runtime`."""

    trt: Any
    cuda: Any


def libraries() -> Libraries:
    """Imports TensorRT and CUDA's bindings.

    Raises:
        DataError: one is missing, lacks a part, or is of a version that this is not written for.
    """
    try:
        import tensorrt as trt
        from cuda.bindings import runtime as cuda
    except (ImportError, OSError) as error:  # OSError: the bindings are there, NVIDIA's own libraries are not
        raise DataError(
            f"engine tensorrt cannot be loaded ({error}); on a machine with an NVIDIA GPU: {INSTALL}"
        ) from error
    major = str(trt.__version__).partition(".")[0]
    if major not in map(str, VERSIONS):
        raise DataError(f"engine tensorrt: version {trt.__version__} is not known, 10 and 11 are; {INSTALL}")
    return Libraries(trt, cuda)


def cache_folder() -> Path:
    """Returns where engines are kept: `tfmuscle/tensorrt` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmuscle" / "tensorrt"


def start(network: bytes, batches: Batches, where: Path) -> Infer:
    """Starts an engine; builds it if there is none for this GPU, version, network and batch.

    Args:
        network: ONNX.
        batches: how many samples it takes at once.
        where: of the network, for messages.

    Raises:
        DataError: missing libraries, no GPU, or a network that TensorRT cannot build or run.
    """
    using = libraries()
    facts = described(using, network, batches)
    path = cache_folder() / _file_name(facts)
    plan = kept(path, facts)
    infer = None if plan is None else _session(using, plan, batches.largest)
    if infer is None:
        plan = build(using.trt, network, batches, where)
        keep(path, facts, plan)
        infer = _session(using, plan, batches.largest)
    if infer is None:
        raise DataError(f"{where}: TensorRT built an engine and cannot open it; use another --engine, or --format")
    return infer


def described(using: Libraries, network: bytes, batches: Batches) -> dict[str, Any]:
    """Returns what an engine is for: GPU, version, network and batch."""
    number = _answer(using.cuda, using.cuda.cudaGetDevice())
    about = _answer(using.cuda, using.cuda.cudaGetDeviceProperties(number))
    name = about.name.decode() if isinstance(about.name, bytes) else str(about.name)
    return {
        "gpu": name.rstrip("\0"),
        "capability": f"{about.major}.{about.minor}",
        "tensorrt": str(using.trt.__version__),
        "network": hashlib.sha256(network).hexdigest(),
        "batches": [batches.usual, batches.largest],
    }


def _file_name(facts: Mapping[str, Any]) -> str:
    """Names an engine.

    >>> facts = {"gpu": "NVIDIA A10", "capability": "8.6", "tensorrt": "11.4.0", "network": 40 * "0"}
    >>> _file_name(facts | {"batches": [4, 8]})
    '0000000000000000-nvidia-a10-8.6-11.4.0-4-8.engine'
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", facts["gpu"].lower()).strip("-")
    usual, largest = facts["batches"]
    return f"{facts['network'][:16]}-{gpu}-{facts['capability']}-{facts['tensorrt']}-{usual}-{largest}.engine"


def kept(path: Path, facts: Mapping[str, Any]) -> bytes | None:
    """Returns an engine that was kept; None where there is none for just these facts, or a byte of it has changed."""
    if not path.is_file():
        return None
    first, _, plan = path.read_bytes().partition(b"\n")
    wanted = dict(facts) | {"engine": hashlib.sha256(plan).hexdigest()}
    return plan if first == json.dumps(wanted, sort_keys=True).encode() else None


def keep(path: Path, facts: Mapping[str, Any], plan: bytes) -> None:
    """Keeps an engine, with what it is for in the first line; a disk that takes none is no obstacle."""
    first = json.dumps(dict(facts) | {"engine": hashlib.sha256(plan).hexdigest()}, sort_keys=True)
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(first.encode() + b"\n" + plan)
    except DataError:
        return


def build(trt: Any, network: bytes, batches: Batches, where: Path) -> bytes:
    """Builds an engine, which takes minutes.

    Args:
        trt: the module `tensorrt`.
        network: ONNX whose types say the precision.
        batches: how many samples it shall take at once.
        where: of the network, for messages.

    Raises:
        DataError: TensorRT does not know an operation, or finds no way to run the network.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    definition = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(network):
        reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise DataError(f"{where}: TensorRT cannot read the network ({reasons}); use --format onnx")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for number in range(definition.num_inputs):
        tensor = definition.get_input(number)
        sample = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((count, *sample) for count in (1, batches.usual, batches.largest)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise DataError(
            f"{where}: TensorRT could not build an engine, its own words are above; a smaller --batch needs less memory"
        )
    return bytes(plan)


def _session(using: Libraries, plan: bytes, largest: int) -> Infer | None:
    """Opens an engine and takes memory on the GPU for its largest batch; None if TensorRT does not open it."""
    trt, cuda = using.trt, using.cuda
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    context = engine.create_execution_context()
    shapes = {name: tuple(engine.get_tensor_shape(name))[1:] for name in (IMAGE, PROBABILITIES)}
    stream = _answer(cuda, cuda.cudaStreamCreate())
    memory = {name: _answer(cuda, cuda.cudaMalloc(4 * largest * math.prod(shape))) for name, shape in shapes.items()}
    for name, address in memory.items():
        context.set_tensor_address(name, int(address))
    copy, directions = cuda.cudaMemcpyAsync, cuda.cudaMemcpyKind

    def some(images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        found = np.empty((len(images), *shapes[PROBABILITIES]), np.float32)
        is_set = context.set_input_shape(IMAGE, images.shape)
        there = (memory[IMAGE], images.ctypes.data, images.nbytes, directions.cudaMemcpyHostToDevice, stream)
        _answer(cuda, copy(*there))
        if not is_set or not context.execute_async_v3(int(stream)):
            raise DataError(f"engine tensorrt did not run samples of shape {images.shape}; its own words are above")
        back = (found.ctypes.data, memory[PROBABILITIES], found.nbytes, directions.cudaMemcpyDeviceToHost, stream)
        _answer(cuda, copy(*back))
        _answer(cuda, cuda.cudaStreamSynchronize(stream))
        return found

    def infer(images: np.ndarray) -> np.ndarray:
        return np.concatenate([some(images[first : first + largest]) for first in range(0, len(images), largest)])

    infer.keeps = (runtime, engine)  # type: ignore[attr-defined] # they must outlive the context
    weakref.finalize(infer, _release, cuda, tuple(memory.values()), stream).atexit = False  # the end frees all
    return infer


def _release(cuda: Any, memory: tuple[Any, ...], stream: Any) -> None:
    for address in memory:
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)


def _answer(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """Returns what a call of CUDA gave.

    Raises:
        DataError: it failed; the reason is CUDA's.
    """
    status, *values = answer
    if int(status):
        reason = cuda.cudaGetErrorString(status)[1]
        reason = reason.decode() if isinstance(reason, bytes) else reason
        raise DataError(f"engine tensorrt: the GPU does not answer ({reason}); it needs an NVIDIA GPU with free memory")
    return values[0] if values else None
