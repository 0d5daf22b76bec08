"""What a dataset is like, and the settings that suit it.

`fingerprint` measures, `suggest_spec` chooses as one would by hand, `plan_nnunet` by nnU-Net's rules (`nnunet.py`,
`topology.py`); its plan is a file that the user may edit (`plan_file.py`).
"""

from tfmuscle.planning.fingerprint import fingerprint, fingerprint_table
from tfmuscle.planning.nnunet import MODES, plan_nnunet
from tfmuscle.planning.plan_file import load_plan, plan_rows
from tfmuscle.planning.suggestion import PATCH_VOXELS, suggest_spec

__all__ = [
    "MODES",
    "PATCH_VOXELS",
    "fingerprint",
    "fingerprint_table",
    "load_plan",
    "plan_nnunet",
    "plan_rows",
    "suggest_spec",
]
