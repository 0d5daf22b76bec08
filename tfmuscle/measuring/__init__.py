"""Numbers of muscles from their labels: volume, length, area along the limb, fat, left against right, doubts.

The user has labels, drawn or predicted, and wants what goes into a table of results, and to know where not to trust it.
One structure at a time is cut out of its scan and measured in its box, so that memory does not grow with their number.

* `limb.py`: along which direction.
* `shape.py`: volume and its bounds, ends, pieces, edges of the scan.
* `area.py`: area across the limb.
* `composition.py`: intensities, fat fraction.
* `structures.py`: all of it together.
* `splitting.py`: both limbs under one name parted.
* `asymmetry.py`, `population.py`, `agreement.py`: beside the other side, other people, another labelling.
* `flags.py`: what may be wrong, and where to look.

Lengths come from the grid's affine alone, whatever its order of axes, flips, tilt or shear. NaN means "undefined".
"""

from tfmuscle.measuring.agreement import Agreement, agreement
from tfmuscle.measuring.area import PERCENT, Profile, area_profile
from tfmuscle.measuring.asymmetry import asymmetry, symmetry_index
from tfmuscle.measuring.composition import FatImages, noise_mean
from tfmuscle.measuring.flags import KINDS, Flag, find_flags
from tfmuscle.measuring.limb import AXES, limb_axis
from tfmuscle.measuring.population import Population, population, read_population
from tfmuscle.measuring.shape import cutouts, measure_shape
from tfmuscle.measuring.splitting import split_sides
from tfmuscle.measuring.structures import Images, Structure, measure_structures

__all__ = [
    "AXES",
    "KINDS",
    "PERCENT",
    "Agreement",
    "FatImages",
    "Flag",
    "Images",
    "Population",
    "Profile",
    "Structure",
    "agreement",
    "area_profile",
    "asymmetry",
    "cutouts",
    "find_flags",
    "limb_axis",
    "measure_shape",
    "measure_structures",
    "noise_mean",
    "population",
    "read_population",
    "split_sides",
    "symmetry_index",
]
