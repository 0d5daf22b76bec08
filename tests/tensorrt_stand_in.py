"""A stand-in for NVIDIA's `tensorrt` and `cuda.bindings.runtime`, because tests have no GPU.

It has the names that `tfmuscle.inference.tensorrt` uses and no others, and notes the calls. What it calls an engine is
the ONNX file with a line before it, and what it calls the GPU is memory of this process; ONNX Runtime does the sums. So
it says whether the library is spoken to in the right order with the right things, and nothing about TensorRT itself.
"""

import ctypes
import enum
import importlib.machinery
import json
import sys
import types
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime

SUCCESS, NO_DEVICE = 0, 100


@dataclass
class Machine:
    """What the tests may set, and what the stand-in noted."""

    version: str = "11.4.0.106"
    gpu: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    has_gpu: bool = True
    can_build: bool = True
    unknown_operation: str = ""
    calls: list = field(default_factory=list)
    memory: dict = field(default_factory=dict)

    def install(self, monkeypatch):
        """Puts the stand-ins where the libraries would be imported from."""
        cuda, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
        modules = {"tensorrt": self._tensorrt(), "cuda": cuda, "cuda.bindings": bindings}
        modules["cuda.bindings.runtime"] = bindings.runtime = self._cuda()
        for name, module in modules.items():
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def made(self, call):
        """What was noted of one call."""
        return [noted for name, noted in self.calls if name == call]

    def note(self, name, *what):
        self.calls.append((name, what))

    def _tensorrt(self):
        machine, trt = self, types.ModuleType("tensorrt")
        trt.__version__ = self.version

        class Logger:
            ERROR = 1

            def __init__(self, severity):
                self.severity = severity

        class NetworkDefinitionCreationFlag(enum.IntEnum):
            EXPLICIT_BATCH = 0
            STRONGLY_TYPED = 1

        class BuilderFlag(enum.Enum):
            TF32 = 1

        class Profile:
            def set_shape(self, name, smallest, usual, largest):
                machine.note("set_shape", name, smallest, usual, largest)
                self.shapes = [list(smallest), list(usual), list(largest)]

        class Config:
            def __init__(self):
                self.flags, self.profiles = {BuilderFlag.TF32}, []

            def clear_flag(self, flag):
                self.flags.remove(flag)

            def add_optimization_profile(self, profile):
                self.profiles.append(profile)

        class Definition:
            network, num_inputs = None, 1

            def get_input(self, number):
                value = onnx.load_from_string(self.network).graph.input[number]
                shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
                return types.SimpleNamespace(name=value.name, shape=tuple(shape))

        class OnnxParser:
            num_errors = 1

            def __init__(self, definition, logger):
                self.definition = definition

            def parse(self, network):
                onnx.checker.check_model(onnx.load_from_string(network), full_check=True)
                self.definition.network = network
                return not machine.unknown_operation

            def get_error(self, number):
                return f"no importer for {machine.unknown_operation}"

        class Builder:
            def __init__(self, logger):
                pass

            def create_network(self, flags):
                machine.note("create_network", flags)
                return Definition()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return Profile()

            def build_serialized_network(self, definition, config):
                machine.note("build", config.flags, definition.network)
                first = {"for": machine.stamp, "shapes": config.profiles[0].shapes}
                plan = json.dumps(first).encode() + b"\n" + definition.network
                return memoryview(plan) if machine.can_build else None

        class Engine:
            def __init__(self, first, network):
                self.shapes = first["shapes"]
                self.session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])

            def get_tensor_shape(self, name):
                every = (*self.session.get_inputs(), *self.session.get_outputs())
                (found,) = [value.shape for value in every if value.name == name]
                return tuple(size if isinstance(size, int) else -1 for size in found)

            def create_execution_context(self):
                return Context(self)

        class Context:
            def __init__(self, engine):
                self.engine, self.addresses, self.shape = engine, {}, None

            def set_tensor_address(self, name, address):
                self.addresses[name] = address

            def set_input_shape(self, name, shape):
                smallest, _, largest = (one[0] for one in self.engine.shapes)
                self.shape = tuple(shape)
                return smallest <= shape[0] <= largest and list(shape[1:]) == self.engine.shapes[0][1:]

            def execute_async_v3(self, stream):
                machine.note("execute", self.shape, stream)
                images = np.empty(self.shape, np.float32)
                ctypes.memmove(images.ctypes.data, self.addresses["image"], images.nbytes)
                (found,) = self.engine.session.run(["probabilities"], {"image": images})
                ctypes.memmove(self.addresses["probabilities"], found.ctypes.data, found.nbytes)
                return True

        class Runtime:
            def __init__(self, logger):
                pass

            def deserialize_cuda_engine(self, plan):
                first, _, network = bytes(plan).partition(b"\n")
                first = json.loads(first)
                return Engine(first, network) if first["for"] == machine.stamp else None  # as TensorRT refuses it

        for made in (Logger, NetworkDefinitionCreationFlag, BuilderFlag, OnnxParser, Builder, Runtime):
            setattr(trt, made.__name__, made)
        return trt

    @property
    def stamp(self):
        return [self.version, self.gpu, *self.capability]

    def _cuda(self):
        machine, cuda = self, types.ModuleType("cuda.bindings.runtime")

        class Stream:
            def __int__(self):
                return 77

        def malloc(count):
            buffer = np.zeros(count, np.uint8)
            machine.memory[buffer.ctypes.data] = buffer
            return SUCCESS, buffer.ctypes.data

        def copy(to, start, count, kind, stream):
            inside = to if kind == "to the GPU" else start
            room = next(len(one) - (inside - at) for at, one in machine.memory.items() if at <= inside < at + len(one))
            assert count <= room and isinstance(stream, Stream)
            ctypes.memmove(to, start, count)
            return (SUCCESS,)

        def free(address):
            del machine.memory[address]
            return (SUCCESS,)

        about = types.SimpleNamespace(
            name=self.gpu.encode() + b"\0", major=self.capability[0], minor=self.capability[1]
        )
        cuda.cudaMemcpyKind = types.SimpleNamespace(
            cudaMemcpyHostToDevice="to the GPU", cudaMemcpyDeviceToHost="from the GPU"
        )
        cuda.cudaGetDevice = lambda: (SUCCESS, 0) if machine.has_gpu else (NO_DEVICE, None)
        cuda.cudaGetErrorString = lambda status: (SUCCESS, b"no CUDA-capable device is detected")
        cuda.cudaGetDeviceProperties = lambda number: (SUCCESS, about)
        cuda.cudaStreamCreate = lambda: (SUCCESS, Stream())
        cuda.cudaStreamSynchronize = lambda stream: (SUCCESS,)
        cuda.cudaStreamDestroy = lambda stream: (SUCCESS,)
        cuda.cudaMalloc, cuda.cudaFree, cuda.cudaMemcpyAsync = malloc, free, copy
        return cuda
