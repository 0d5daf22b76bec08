"""A bundle on a server as a network for `predict --server`: what `predict -m BUNDLE` does, computed elsewhere.

The user gives the bundle too, or a copy of its JSON files: from it come how scans are prepared, which mirrored copies
are averaged, and how labels are cleaned. The server has the network.

Scans are sent in one of two ways. *Windows*: prepared here, cut, sent to `serving_default` in small requests, and put
together here; memory is bounded on both sides, and a lost server costs one request. *Scan*: sent as it is to `segment`,
which does all of that; much less is sent where windows overlap. `auto` sends a scan whole where the bundle can take it
and it is small enough, and goes on with windows when the server refuses it, or is not done in time.

Where the bundle's own network is here as well, it and the server answer two made samples first, so that other weights
of the same shape are found out.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfmuscle import inference
from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.export.bundle import Bundle, open_bundle
from tfmuscle.export.formats import STARTERS
from tfmuscle.inference.engines import Engine
from tfmuscle.serving import Address, Patience, Server
from tfmuscle.volume import Volume
from tfmuscle.workflows.bundles import BundleNetwork, usable_formats

WAYS = ("auto", "scan", "windows")
"""How scans are sent."""
DIFFERENT, OFTEN = 0.01, 0.01
"""Another network differs by more than this, in more than this share of voxels; graphics processors round, in few."""
_BLOCK = 16
"""Voxels across the blotches of the second made sample."""


def served(path: str | Path, address: str, patience: Patience, *, send: str, postprocess: bool) -> BundleNetwork:
    """Opens a bundle whose network a server runs.

    Args:
        path: the bundle, or a copy of its JSON files.
        address: of the server, as `Address.parse` takes it.
        patience: how long the server may take.
        send: one of `WAYS`.
        postprocess: clean the labels as the bundle says.

    Raises:
        ValueError: `send` is none of the ways.
        DataError: an altered file, no such server or model, or another network than the bundle's.
    """
    if send not in WAYS:
        raise ValueError(f"send is {send!r}; choose one of {', '.join(WAYS)}")
    bundle = open_bundle(path, network=False)
    version = int(bundle.path.name) if bundle.path.name.isdecimal() else None
    server = Server.opened(Address.parse(address), bundle.spec, patience, version=version)
    if send == "scan" and not server.has_segment:
        raise DataError(f"{server.address}: has no signature segment for whole scans; use --send windows")
    _prove(server, bundle)
    answering = Engine(str(server.address), server.infer, server.infer, bundle.path, must_be=True)
    answering.proven = True
    run = inference.Run(None, bundle.spec, bundle.configs[0], bundle.path, engine=answering)
    remarks: list[str] = []
    whole = None if send == "windows" else Whole(server, bundle, send == "scan", remarks)
    cleanings = bundle.cleanings if postprocess else ()
    return BundleNetwork(bundle, run, cleanings, server.batch_size, whole, remarks)


@dataclass
class Whole:
    """Sends scans whole while that works; a class, because it remembers what did not.

    Attributes:
        server: asked.
        bundle: that it serves.
        must: refuse rather than send windows.
        remarks: what the user should know.
    """

    server: Server
    bundle: Bundle
    must: bool
    remarks: list[str] = field(default_factory=list)

    def __call__(self, image: Volume, mirror: bool) -> Volume | None:
        """Returns the labels of a scan, or None when it goes as windows.

        Raises:
            DataError: it must be sent whole, and cannot.
        """
        inside, problem = bool(self.bundle.about["mirror"]), ""
        if mirror != inside:
            problem = f"segment {'averages' if inside else 'leaves out'} mirrored copies, which is not what is asked"
        elif not self.server.takes(image):
            problem = f"{image.source or 'the scan'} of {image.geometry.shape} voxels is too large to be sent whole"
        if problem and self.must:
            raise DataError(f"{self.server.address}: {problem}; use --send windows")
        if problem or self.remarks:
            return None
        try:
            labels = self.server.segment(image)
        except DataError as error:
            if self.must:
                raise
            self.remarks.append(f"scans were sent as windows, because whole: {error}")
            return None
        kind = self.bundle.spec.label_map.decode(np.zeros(1, np.intp)).dtype
        return Volume(labels.astype(kind), image.geometry, image.source)


def _prove(server: Server, bundle: Bundle) -> None:
    """Compares server and bundle on two made samples, if the bundle's network is here.

    Raises:
        DataError: they are different networks.
    """
    usable = usable_formats(bundle)
    if not usable or not all((bundle.path / file).exists() for file in bundle.about["files"]):
        return
    images = _made_samples(bundle.spec)
    difference = np.abs(STARTERS[usable[0]](bundle.path)(images) - server.infer(images)).max(axis=-1)
    share = float((difference > DIFFERENT).mean())
    if share > OFTEN:
        raise DataError(
            f"{server.address}: serves another network than {bundle.path}: on made samples {share:.0%} of the voxels"
            f" differ by more than {DIFFERENT:g}; give the bundle that is served"
        )


def _made_samples(spec: DataSpec) -> np.ndarray:
    """Returns a sample of noise and one of blotches, `(2, *input_shape)` float32, the same every time."""
    made = np.random.default_rng(8)
    fine = made.standard_normal(spec.input_shape)
    coarse = made.standard_normal([-(-size // _BLOCK) for size in spec.input_shape[:-1]] + [spec.input_shape[-1]])
    for axis, size in enumerate(spec.input_shape[:-1]):
        coarse = coarse.repeat(_BLOCK, axis=axis).take(np.arange(size), axis=axis)
    return np.stack([fine, coarse]).astype(np.float32)
