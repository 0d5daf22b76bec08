"""Bundles made in a moment: a network whose answer is known, and as much of a bundle as a server and a client read."""

from tfmuscle.config import TrainConfig
from tfmuscle.export.bundle import write_bundle
from tfmuscle.files import write_json

DESCRIPTION = {"labels": {}, "weights": "none", "scale": "full", "orientation": "SPL"}


def write_made_bundle(path, spec, *, config=None, write=None, segment=True, mirror=True, formats=("saved_model",)):
    """Writes version `path` of a bundle; `write(folder)` writes its network, else the files hold nothing to run."""
    config = config or TrainConfig()
    about = {
        "identity": {"weights": [str(path)]},
        "runs": 1,
        "mirror": mirror,
        "cleaning": [],
        "description": DESCRIPTION | {"labels": spec.label_map.to_dict(), "orientation": spec.orientation},
        "trained_on": [],
        "formats": {name: {"parity": {}, "segment": segment and name == "saved_model"} for name in formats},
    }

    def fill(folder):
        spec.save(folder / "spec.json")
        config.save(folder / "train_0.json")
        write_json(folder / "labels.json", {"labels": spec.label_map.to_dict()})
        if write is None:
            (folder / "saved_model.pb").write_bytes(b"no network")
        else:
            write(folder)

    write_bundle(path, about, fill)
    return path
