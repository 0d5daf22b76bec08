"""Training: from a folder of records to a run folder that `tfmuscle predict` takes.

`supervised.fit` is ordinary training with labels, `contrastive.pretrain` that of an encoder without any. `schedule.py`
holds what is decided from the history alone, `callbacks.py` what happens at the end of an epoch, `batches.py` how
records become batches, `optimisers.py` the steps, `deep_supervision.py` what coarser outputs learn, `transfer.py` how a
run starts from another one, `distribution.py` how several devices or machines share a training.
"""

from tfmuscle.training.deep_supervision import model_options
from tfmuscle.training.distribution import strategy_of
from tfmuscle.training.supervised import fit
from tfmuscle.training.transfer import identify

__all__ = ["fit", "identify", "model_options", "strategy_of"]
