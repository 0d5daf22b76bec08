"""What is decided: about a family of records (`data`), one training run (`training`), and a cascade (`cascade`).

Each field is declared once, with its help and choices in its metadata; from that line come the default, the JSON key
and the command-line option. Unknown keys in a file are an error with the nearest name. `DataSpec` is stored as
`spec.json` beside the records and copied beside the weights, so that prediction needs no settings; `TrainConfig` as
`train.json` in the run folder; `Cascade` is part of `cascade.json`. Presets (`presets/`) know their part of them.
"""

from tfmuscle.config.cascade import FUSIONS, PLACINGS, REGIONS, TELLING_SIDES, Cascade
from tfmuscle.config.data import BLENDS, KINDS, NORMALISATIONS, PATCHES, RESAMPLINGS, SCALES, DataSpec
from tfmuscle.config.pretraining import PRETRAINING_METHODS, Pretraining
from tfmuscle.config.propagation import ALIGNMENTS, FEEDBACKS, PROPAGATION_MODES, SUPERVISIONS, Propagation
from tfmuscle.config.settings import option
from tfmuscle.config.training import (
    AUGMENTATIONS,
    DEVICES,
    OPTIMISERS,
    POSTPROCESSINGS,
    PRECISIONS,
    SCHEDULES,
    SELECTIONS,
    Supervised,
    TrainConfig,
)

__all__ = [
    "ALIGNMENTS", "AUGMENTATIONS", "BLENDS", "Cascade", "DEVICES", "DataSpec", "FEEDBACKS", "FUSIONS", "KINDS",
    "NORMALISATIONS", "OPTIMISERS", "PATCHES", "PLACINGS", "POSTPROCESSINGS", "PRECISIONS", "PRETRAINING_METHODS",
    "PROPAGATION_MODES", "Pretraining", "Propagation", "REGIONS", "RESAMPLINGS", "SCALES", "SCHEDULES", "SELECTIONS",
    "SUPERVISIONS", "Supervised", "TELLING_SIDES", "TrainConfig", "option",
]  # fmt: skip
