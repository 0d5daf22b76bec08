"""How far labels may be trusted: a number of every structure, a map, and a flag; promises come from validation.

Terms. *Members* are what answers several times: the networks of an ensemble, or for one network the mirrors it was
trained with, or, where it has none, slightly changed copies of the scan. Labels are those of the members' mean, as
`predict` always gives them; nothing here changes them.

* **Map.** The probability that the label shown is wrong: 1 less the largest of the mean probabilities, which one
  *temperature* has sharpened or flattened (`temperature`). It is fitted to labelled scans.
* **Agreement** of a structure: the mean Dice of all pairs of members (`agreement`; Roy et al., NeuroImage 195, 2019,
  "structure-wise uncertainty"). Of many scores that were compared on five datasets it found failed scans best (Zenk et
  al., Medical Image Analysis 101, 2025). Its mean does not depend on how many members there are, so that it may be
  calibrated with two of them and used with five; its spread does.
* **Expected Dice**: what agreement meant on labelled scans: a rising curve, and around it an interval that held nine of
  ten of them (`curve`).
* **Flag**: members agree less than on nine in ten labelled scans.

The labelled scans (`calibration`) must be ones that the members were not trained on: those a run left out or validated
on. Of the members of a cross-validation only those speak of a scan that had not seen it. That is two of them, whose
mean is worse than that of all, and whose agreement varies more: what is promised is then rather too low, and the flag
rarer than a tenth. Members that share what they left out all speak (benchmarks/uncertainty.md has both). The test set
stays out of it.

What it cannot do: members that were trained alike are wrong alike, and scans unlike those it was calibrated on (another
scanner, an implant) may be worse than it says; benchmarks/uncertainty.md shows both.

Rejected: a network trained to guess the Dice (needs many failures to learn from), entropy of the mean (mixes thin
structures, which are all border, with wrong ones), dropout at prediction (the networks have none), a temperature for
each class (few voxels of thin muscles), variance maps of members (not a probability that anything can be checked
against).
"""

from tfmuscle.uncertainty.agreement import PairwiseDice
from tfmuscle.uncertainty.calibration import CALIBRATION_FILE, Calibration, Judgement, Scan, calibrate
from tfmuscle.uncertainty.curve import Curve, fit_curve
from tfmuscle.uncertainty.temperature import calibration_error, fit_temperature, with_temperature

__all__ = [
    "CALIBRATION_FILE",
    "Calibration",
    "Curve",
    "Judgement",
    "PairwiseDice",
    "Scan",
    "calibrate",
    "calibration_error",
    "fit_curve",
    "fit_temperature",
    "with_temperature",
]
