"""From a trained run and a scan to labels on the scan's own grid.

`runs` opens a run folder or an ensemble of them, `volumes` moves windows through the network, `resampling` brings
probabilities back to the scan, `uncertain` says how sure the members are, `engines` lets other libraries run the
network, `cascade` lets many networks share a limb.
"""

from tfmuscle.inference.cascade import CascadeResult, find_in_box, predict_cascade
from tfmuscle.inference.cascade_runs import NETWORKS_FOLDER, CascadeRun, is_cascade, load_cascade
from tfmuscle.inference.engines import ENGINES, Engine, to_onnx, with_engine
from tfmuscle.inference.runs import WEIGHTS_FILE, Run, load_ensemble, load_run, run_folders
from tfmuscle.inference.uncertain import Uncertain, predict_uncertain
from tfmuscle.inference.volumes import Progress, predict_probabilities, predict_volume

__all__ = [
    "ENGINES",
    "NETWORKS_FOLDER",
    "WEIGHTS_FILE",
    "CascadeResult",
    "CascadeRun",
    "Engine",
    "Progress",
    "Run",
    "Uncertain",
    "find_in_box",
    "is_cascade",
    "load_cascade",
    "load_ensemble",
    "load_run",
    "predict_cascade",
    "predict_probabilities",
    "predict_uncertain",
    "predict_volume",
    "run_folders",
    "to_onnx",
    "with_engine",
]
