"""tfmuscle: from a folder of scans to muscle and bone numbers that can be trusted.

The rooms, from the ground floor up: `errors`, `files`, `labels`, `volume` (what travels); `config` (what is decided);
`io`, `phantom`, `metrics`, `losses`; `subjects`, `preprocessing`; `planning`, `sampling`, `report`;
`records`, `augmentation`, `models`; `inference`; `training`; `evaluation`; `workflows`; `cli`. A module imports only
from the floors below its own; `docs/architecture.md` tells why.
"""

__version__ = "0.1.0"
