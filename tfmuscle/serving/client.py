"""A served bundle as a network: what it must be, and batches cut into requests.

Before anything is sent the server says which versions it has and what its signatures take and give; what does not fit
the bundle's `spec.json` is refused. The version is pinned then, so that a server which is updated in the middle of a
folder of scans never mixes two networks.

A batch becomes requests of at most `VALUES_PER_REQUEST` numbers, `IN_FLIGHT` of them on their way at once; that bounds
the memory of both sides whatever the scan. Requests that fail in passing are repeated (`patience`); once a server has
been given up, each further request is tried once, so that a folder of a thousand scans does not wait a thousand times.
"""

from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from typing import Self

import numpy as np

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.export.formats import SEGMENT, SERVING
from tfmuscle.export.segment import AFFINE, IMAGE, LABELS, PROBABILITIES, VOLUME
from tfmuscle.inference.volumes import WINDOW_BUDGET_VOXELS
from tfmuscle.serving.address import Address
from tfmuscle.serving.grpc_wire import GrpcWire
from tfmuscle.serving.patience import Patience, keep_trying
from tfmuscle.serving.rest_wire import RestWire
from tfmuscle.volume import Volume

IN_FLIGHT = 4
"""Requests of one batch on their way at once."""
VALUES_PER_REQUEST = {"grpc": 1 << 24, "http": 1 << 20}
"""Numbers sent and received with one request: 64 MB, and about 16 MB of text."""
LARGEST_SCAN = {"grpc": 1 << 26, "http": 1 << 22}
"""Voxels, times channels, of a scan that is sent whole."""
FIRST_CONTACT_SECONDS = 30.0
"""A server that does not answer at all for so long was probably misspelt."""
_WHOLE_SCAN_ATTEMPTS = 2
"""A scan that brings the server down twice is not sent a third time."""


class Server:
    """An asked server whose model fits a bundle; a class, because it remembers that it was given up."""

    def __init__(self, address: Address, spec: DataSpec, patience: Patience) -> None:
        self.address, self._spec, self._patience = address, spec, patience
        self._wire = _wire_to(address)
        self._given_up = False
        self.has_segment = False

    @classmethod
    def opened(cls, address: Address, spec: DataSpec, patience: Patience, *, version: int | None = None) -> Self:
        """Asks what a server has, and pins the version.

        Args:
            address: of the model.
            spec: that its network must fit.
            patience: how long it may take.
            version: of the bundle, taken where the address names none.

        Raises:
            DataError: no such server, model or version, or a network with other inputs and outputs.
        """
        server = cls(address, spec, patience)
        wanted = address.version if address.version is not None else version
        first = replace(patience, limit=min(patience.limit, FIRST_CONTACT_SECONDS))
        chosen = keep_trying(lambda seconds: server._chosen(wanted, seconds), first, str(address))
        server.address = address.at(chosen)
        found = keep_trying(lambda seconds: server._wire.signatures(server.address, seconds), first, str(address))
        _check(server.address, found.get(SERVING), spec)
        server.has_segment = _fits(found.get(SEGMENT), _segment_of(spec))
        return server

    def _chosen(self, wanted: int | None, seconds: float) -> int:
        """Returns the version to ask."""
        found = self._wire.status(replace(self.address, version=None), seconds)
        ready = [version for version, state in found.items() if state == "AVAILABLE"]
        if wanted in ready or (wanted is None and ready):
            return max(ready) if wanted is None else wanted
        has = ", ".join(f"{version} ({state})" for version, state in sorted(found.items())) or "none"
        if any(found.get(version) in ("START", "LOADING") for version in ([wanted] if wanted is not None else found)):
            raise ConnectionError(f"the model is being loaded: {has}")
        sought = "a version that answers" if wanted is None else f"version {wanted}"
        raise DataError(
            f"{self.address}: {sought} is needed, the server has {has}; give the bundle that it serves with -m, or end"
            " the address with a version"
        )

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Maps samples `(B, *input_shape)` to probabilities `(B, *label_shape, num_classes)`.

        Raises:
            DataError: refused, or not answered within all patience.
        """
        size = windows_per_request(self._spec, self.address.scheme)
        parts = [images[first : first + size] for first in range(0, len(images), size)]
        if len(parts) == 1:
            return self._probabilities(parts[0])
        with ThreadPool(min(IN_FLIGHT, len(parts))) as pool:
            try:
                return np.concatenate(pool.map(self._probabilities, parts, chunksize=1))
            except KeyboardInterrupt:  # or the process would stay until the last request has been answered
                self._wire.hang_up()
                self._wire = _wire_to(self.address)
                raise

    @property
    def batch_size(self) -> int:
        """Samples that keep `IN_FLIGHT` requests busy."""
        return IN_FLIGHT * windows_per_request(self._spec, self.address.scheme)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        images = np.ascontiguousarray(images, np.float32)
        found = self._ask(SERVING, {IMAGE: images}, PROBABILITIES, self._patience)
        return self._checked(found, (len(images), *self._spec.label_shape, self._spec.num_classes)).astype(np.float32)

    def segment(self, image: Volume) -> np.ndarray:
        """Returns ids `(I, J, K)` of a scan that is sent whole; one attempt may take all patience there is.

        Raises:
            DataError: refused, not answered within all patience, or twice a broken connection.
        """
        array = image.array if image.array.ndim == 4 else image.array[..., np.newaxis]
        inputs = {VOLUME: np.ascontiguousarray(array, np.float32), AFFINE: np.asarray(image.geometry.affine, float)}
        limit = self._patience.limit
        whole = Patience(limit, limit, attempts=_WHOLE_SCAN_ATTEMPTS)
        return self._checked(self._ask(SEGMENT, inputs, LABELS, whole), image.geometry.shape)

    def takes(self, image: Volume) -> bool:
        """Whether a scan may be sent whole."""
        return self.has_segment and image.array.size <= LARGEST_SCAN[self.address.scheme]

    def _ask(self, signature: str, inputs: Mapping[str, np.ndarray], output: str, patience: Patience) -> np.ndarray:
        if self._given_up:
            patience = replace(patience, attempts=1)

        wire = self._wire

        def ask(seconds: float) -> np.ndarray:
            return wire.ask(self.address, signature, inputs, output, seconds)

        try:
            found = keep_trying(ask, patience, str(self.address))
        except DataError as error:
            if signature == SERVING:  # what a whole scan does to a server says nothing of windows
                self._given_up = isinstance(error.__cause__, ConnectionError | TimeoutError)
            raise
        self._given_up = False
        return found

    def _checked(self, found: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if found.shape != tuple(shape) or found.dtype.kind not in "fiu":
            raise DataError(
                f"{self.address}: answers with shape {found.shape}, {tuple(shape)} is needed; see that it serves the"
                " bundle given with -m"
            )
        return found


def _wire_to(address: Address) -> GrpcWire | RestWire:
    return GrpcWire(address) if address.scheme == "grpc" else RestWire()


def windows_per_request(spec: DataSpec, scheme: str) -> int:
    """Returns how many samples go with one request: as many as the limits allow, one at least."""
    values = int(np.prod(spec.input_shape)) + int(np.prod(spec.label_shape)) * spec.num_classes
    return max(1, min(WINDOW_BUDGET_VOXELS // int(np.prod(spec.window)), VALUES_PER_REQUEST[scheme] // values))


Signature = Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]


def _serving_of(spec: DataSpec) -> Signature:
    said = (-1, *spec.label_shape, spec.num_classes)
    return {
        "inputs": {IMAGE: ("float32", (-1, *spec.input_shape))},
        "outputs": {PROBABILITIES: ("float32", said)},
    }


def _segment_of(spec: DataSpec) -> Signature:
    ids = "int32" if spec.label_map.decode(np.arange(spec.num_classes)).dtype.itemsize > 1 else "uint8"
    volume = ("float32", (-1, -1, -1, len(spec.channels)))
    return {
        "inputs": {VOLUME: volume, AFFINE: ("float64", (4, 4))},
        "outputs": {LABELS: (ids, (-1, -1, -1))},
    }


def _fits(found: Signature | None, wanted: Signature) -> bool:
    """Whether a signature has the names, types and sizes that are wanted; -1 is any size."""
    if found is None:
        return False
    for side, names in wanted.items():
        if set(found[side]) != set(names):
            return False
        for name, (kind, shape) in names.items():
            theirs, size = found[side][name]
            sizes = zip(size, shape, strict=False)
            if theirs != kind or len(size) != len(shape) or any(a != b for a, b in sizes if a != -1 and b != -1):
                return False
    return True


def _check(address: Address, found: Signature | None, spec: DataSpec) -> None:
    """Refuses a model whose `serving_default` is not that of the bundle.

    Raises:
        DataError: naming both.
    """
    wanted = _serving_of(spec)
    if _fits(found, wanted):
        return
    theirs = "no signature serving_default" if found is None else _in_words(found)
    raise DataError(
        f"{address}: serves another network: {theirs}, but the bundle given with -m has {_in_words(wanted)}; give the"
        " bundle that is served, or the address of this one"
    )


def _in_words(signature: Signature) -> str:
    sides = [
        ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in sorted(signature[side].items()))
        for side in ("inputs", "outputs")
    ]
    return " -> ".join(sides)
