"""From a trained run and a scan to labels on the scan's own grid.

`runs` opens a run folder, `volumes` moves windows through the network, `resampling` brings probabilities back to the
scan.
"""

from tfmuscle.inference.runs import WEIGHTS_FILE, Run, load_run
from tfmuscle.inference.volumes import predict_probabilities, predict_volume

__all__ = ["WEIGHTS_FILE", "Run", "load_run", "predict_probabilities", "predict_volume"]
