"""TensorFlow Serving's HTTP protocol with the standard library alone: arrays as JSON.

A float32 takes up to 16 bytes as text, four as gRPC sends it, and a second for every two million of them, so requests
are smaller and large scans better sent by gRPC. Nine digits name every float32 exactly, so that the network sees the
same numbers. Each request has a connection of its own: nothing stale is used after a restart.
"""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.serving.address import Address
from tfmuscle.serving.grpc_wire import remedy
from tfmuscle.serving.patience import said

LARGEST_ANSWER = 1 << 30
"""Bytes; a server that sends more is not one of ours."""
_PASSING = {408: "UNAVAILABLE", 429: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE"}
_CODES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}
_DIGITS = {"float32": "%.9g", "float64": "%.17g"}
_TYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_UINT8": "uint8", "DT_INT32": "int32"}
_CHUNK_BYTES = 1 << 16


class RestWire:
    """Asks one server over HTTP; it holds the sockets of what is on its way."""

    def __init__(self) -> None:
        self._lines: set[socket.socket] = set()
        self._over = False

    def hang_up(self) -> None:
        """Ends what is on its way, and refuses whatever is asked later."""
        self._over = True
        for line in list(self._lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def status(self, address: Address, seconds: float) -> dict[int, str]:
        """Returns version -> state of a model, "AVAILABLE" when it answers."""
        content = self._call(address, "GET", f"/v1/models/{address.model}", None, seconds)
        with _as_expected(address):
            return {int(one["version"]): str(one["state"]) for one in content["model_version_status"]}

    def signatures(self, address: Address, seconds: float) -> dict[str, Any]:
        """Returns signature -> "inputs" and "outputs" -> name -> type and shape."""
        content = self._call(address, "GET", _path(address) + "/metadata", None, seconds)
        with _as_expected(address):
            found = content["metadata"]["signature_def"]["signature_def"]
            return {
                name: {
                    side: {key: _type_and_shape(info) for key, info in definition[side].items()}
                    for side in ("inputs", "outputs")
                }
                for name, definition in found.items()
                if "inputs" in definition and "outputs" in definition
            }

    def ask(
        self, address: Address, signature: str, inputs: Mapping[str, np.ndarray], output: str, seconds: float
    ) -> np.ndarray:
        """Returns one output of a signature.

        Raises:
            ConnectionError: the server is not there, or has too much to do.
            TimeoutError: it took longer than `seconds`.
            DataError: it refuses the request, or the request holds what JSON cannot.
        """
        texts = ", ".join(f'"{name}": {_text(array, address)}' for name, array in inputs.items())
        body = f'{{"signature_name": "{signature}", "inputs": {{{texts}}}}}'.encode("ascii")
        content = self._call(address, "POST", _path(address) + ":predict", body, seconds)
        with _as_expected(address):
            found = content["outputs"]
            return np.asarray(found[output] if isinstance(found, dict) else found)

    def _call(self, address: Address, method: str, path: str, body: bytes | None, seconds: float) -> Any:
        """Returns the JSON content of an answer."""
        until = time.monotonic() + seconds
        connection = http.client.HTTPConnection(address.host, address.port, timeout=seconds)
        headers = {"Connection": "close"} | ({} if body is None else {"Content-Type": "application/json"})
        try:
            connection.connect()
            with self._held(connection.sock) as line:  # the connection forgets it with the answer
                connection.request(method, path, body, headers)
                with contextlib.closing(connection.getresponse()) as answer:
                    content = _read(answer, line, until, address)
        except TimeoutError:
            raise TimeoutError(f"not answered within {seconds:.3g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(said(error) or type(error).__name__) from error
        finally:
            connection.close()
        return _content(address, answer.status, content)

    @contextlib.contextmanager
    def _held(self, line: socket.socket) -> Iterator[socket.socket]:
        self._lines.add(line)
        try:
            if self._over:
                raise ValueError("asked after hanging up")
            yield line
        finally:
            self._lines.discard(line)


def _path(address: Address) -> str:
    version = "" if address.version is None else f"/versions/{address.version}"
    return f"/v1/models/{address.model}{version}"


def _text(array: np.ndarray, address: Address) -> str:
    """Returns an array as nested JSON lists, every number with the digits that its type needs."""
    if not np.isfinite(array).all():
        raise DataError(f"{address}: the scan holds values that are not numbers; HTTP cannot carry them, grpc:// can")
    form = _DIGITS[array.dtype.name]
    for size in reversed(array.shape):
        form = "[" + ",".join([form] * size) + "]"
    return form % tuple(array.ravel().tolist())


def _read(answer: http.client.HTTPResponse, line: socket.socket, until: float, address: Address) -> bytes:
    """Reads an answer, but not for ever: neither a trickle nor a flood."""
    stated = answer.getheader("Content-Length", "")
    size, content = int(stated) if stated.isdecimal() else None, bytearray()
    while size is None or len(content) < size:
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        line.settimeout(left)
        part = answer.read1(_CHUNK_BYTES)
        if not part:
            break
        content += part
        if len(content) > LARGEST_ANSWER:
            raise DataError(f"{address}: sends more than {LARGEST_ANSWER >> 20} MB for one request; use grpc://")
    if size is not None and len(content) < size:
        raise ConnectionError(f"the connection ended after {len(content)} of {size} bytes")
    return bytes(content)


def _content(address: Address, status: int, content: bytes) -> Any:
    """Returns what an answer holds, or raises what its status means."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if status == 200 and isinstance(found, dict):
        return found
    words = said(found["error"] if isinstance(found, dict) and "error" in found else content[:1000].decode("latin-1"))
    if status in _PASSING:
        raise ConnectionError(f"{_PASSING[status]}: {words}")
    if status == 504:
        raise TimeoutError(f"the server's own time ran out: {words}")
    if status == 413:
        raise DataError(f"{address}: the request is too large for it; use grpc://, or raise the limit of the proxy")
    code = _CODES.get(status, f"HTTP {status}")
    raise DataError(f"{address}: refuses the request ({code}: {words}); {remedy(code, words)}")


@contextlib.contextmanager
def _as_expected(address: Address) -> Iterator[None]:
    """Turns an answer of another form into words.

    Raises:
        DataError: it is not what TensorFlow Serving sends.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{address}: its answer is not one of TensorFlow Serving ({said(error)}); check host and port"
        ) from error


def _type_and_shape(info: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    dims = info["tensor_shape"].get("dim") or []
    return _TYPES.get(str(info["dtype"]), str(info["dtype"])), tuple(int(dim["size"]) for dim in dims)
