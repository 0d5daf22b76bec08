"""Runs one signature of a SavedModel through TensorFlow's C API: the loader of TensorFlow Serving, and no Python of it.

    python c_api_session.py LIBRARY FOLDER REQUEST.npz ANSWER.npz

REQUEST holds an array for each input, under the tensor's name, and `outputs`, the names of the tensors wanted.
"""

import ctypes
import sys
from pathlib import Path

import numpy as np

DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8}
"""Numbers of `TF_DataType`."""


class Output(ctypes.Structure):
    """`TF_Output`: an operation and the number of its result."""

    _fields_ = [("oper", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
    """`TF_Buffer`."""

    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


def load(library):
    """The functions that are used, with the types that matter: everything else is a pointer."""
    tf = ctypes.CDLL(library)
    for name in (
        "TF_NewStatus", "TF_NewGraph", "TF_NewSessionOptions", "TF_LoadSessionFromSavedModel",
        "TF_GraphOperationByName", "TF_AllocateTensor", "TF_TensorData",
    ):  # fmt: skip
        getattr(tf, name).restype = ctypes.c_void_p
    tf.TF_Message.restype = ctypes.c_char_p
    tf.TF_Dim.restype = ctypes.c_int64
    tf.TF_TensorByteSize.restype = ctypes.c_size_t
    return tf


def main(library, folder, request, answer):
    tf, pointer = load(library), ctypes.c_void_p
    status, graph = pointer(tf.TF_NewStatus()), pointer(tf.TF_NewGraph())

    def check():
        if tf.TF_GetCode(status):
            raise SystemExit(tf.TF_Message(status).decode())

    tags = (ctypes.c_char_p * 1)(b"serve")
    options = pointer(tf.TF_NewSessionOptions())
    session = pointer(tf.TF_LoadSessionFromSavedModel(options, None, folder.encode(), tags, 1, graph, None, status))
    check()

    def output(name):
        oper, _, index = name.partition(":")
        found = tf.TF_GraphOperationByName(graph, oper.encode())
        assert found, name
        return Output(found, int(index or 0))

    def tensor(array):
        array = np.ascontiguousarray(array)
        dtype = next(number for number, dtype in DTYPES.items() if dtype == array.dtype)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        made = pointer(tf.TF_AllocateTensor(dtype, dims, array.ndim, ctypes.c_size_t(array.nbytes)))
        ctypes.memmove(tf.TF_TensorData(made), array.ctypes.data, array.nbytes)
        return made

    def array(made):
        shape = [tf.TF_Dim(made, axis) for axis in range(tf.TF_NumDims(made))]
        raw = ctypes.string_at(tf.TF_TensorData(made), tf.TF_TensorByteSize(made))
        return np.frombuffer(raw, DTYPES[tf.TF_TensorType(made)]).reshape(shape)

    with np.load(request, allow_pickle=False) as content:
        asked = {name: content[name] for name in content.files}
    wanted = [str(name) for name in asked.pop("outputs")]
    inputs = (Output * len(asked))(*(output(name) for name in asked))
    values = (pointer * len(asked))(*(tensor(one) for one in asked.values()))
    outputs, found = (Output * len(wanted))(*(output(name) for name in wanted)), (pointer * len(wanted))()
    tf.TF_SessionRun(session, None, inputs, values, len(asked), outputs, found, len(wanted), None, 0, None, status)
    check()
    np.savez(answer, **{f"output_{n}": array(pointer(one)) for n, one in enumerate(found)})
    loaded = {name.partition(".")[0] for name in sys.modules} & {"tensorflow", "keras", "tfmuscle"}
    assert not loaded, loaded
    assert Path(answer).exists()


if __name__ == "__main__":
    main(*sys.argv[1:])
