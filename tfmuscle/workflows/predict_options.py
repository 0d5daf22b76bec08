"""What `predict` may be told besides networks and scans."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PredictOptions:
    """What may be left as it is.

    Attributes:
        prior: labels of an earlier network, for networks that look at them: a folder of label images named like the
            scans, one such image for one scan, a run, or a folder of cross-validation.
        postprocess: clean the labels as the recipe and `postprocessing.json` say.
        uncertainty: say how far the labels may be trusted, by what `calibrate` has learnt of the networks.
        engine: what runs the networks, one of `inference.ENGINES`.
        resume: keep predictions that are there.
        roi: of a cascade: muscles, structures or groups to find; all without any.
        cascade: of a cascade: fields of `config.Cascade` that go before those it was trained with, of `OF_PREDICTION`.
        server: address of a server that runs the bundle's network, e.g. grpc://127.0.0.1:8500/bones.
        send: how scans are sent to it, one of `served.WAYS`.
        deadline: seconds that it may take for one request.
        patience: seconds for a request with its repetitions.
        beam: flags from `beam.pipeline_flags`; without any, this process labels one scan after the other.
    """

    prior: str | Path | None = None
    postprocess: bool = True
    uncertainty: bool = False
    engine: str = "keras"
    resume: bool = False
    roi: tuple[str, ...] = ()
    cascade: Mapping[str, Any] = field(default_factory=dict)
    server: str | None = None
    send: str = "auto"
    deadline: float = 60.0
    patience: float = 600.0
    beam: tuple[str, ...] = ()
