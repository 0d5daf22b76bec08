"""Every number of the phantoms that is not anatomy, with unit and reason. Change them only with a changelog line.

They were fixed before any network was trained on a phantom: a figure obtained on phantoms means something only as
long as the phantoms are not tuned to the network. `sd` is a standard deviation over subjects, drawn from a normal
distribution cut at two sd.
"""

# --- a subject's body -------------------------------------------------------------------------------------------------
SIZE_SD = 0.05
"""Width of the whole body, relative; adults differ by about this."""
LENGTH_SD = 0.025
"""Length of the limb, relative; kept small enough that every kind's field of view still holds its structures."""
FAT_THICKNESS_MM = (4.0, 18.0)
"""Range of the fat under the skin at mid-thigh, mm, drawn log-uniformly: lean athlete to obese."""
BULK = (0.86, 1.04)
"""Range of the factor on all muscle radii: below 1 fat appears between the muscles (wasting)."""
MUSCLE_SD = 0.08
"""Radius of one muscle against the others, relative (16 % in area), the same on both sides."""
ASYMMETRY_SD = 0.02
"""Radius of one muscle, left against right, relative (4 % in area)."""
SHIFT_SD_MM = 1.5
"""Shift of a muscle's path in both directions across the limb, mm."""
SLACK = 1.3
"""How far a muscle may spread beyond its radius into free room; neighbours then meet along straight borders."""
MIDLINE_GAP_MM = 8.0
"""No muscle comes nearer to the midline: more than the warp moves anything, so that left stays left."""

# --- pose -------------------------------------------------------------------------------------------------------------
SPREAD_DEG = (-0.5, 2.0)
"""Range of the legs' abduction, degrees, each leg by itself."""
BOW_MM = 4.0
"""Largest sideways and forward bow of a limb, mm, a half sine from ankle to hip."""
TWIST_DEG = 8.0
"""Largest turn of the foot against the hip about the limb's axis, degrees."""
CENTRE_JITTER_MM = (4.0, 4.0, 12.0)
"""Largest shift of the field of view in x, y, z, mm: the patient never lies in its centre."""

# --- warp: two area-preserving shears per slice that bend every border ------------------------------------------------
WARP_AMPLITUDE_MM = (1.0, 2.5)
"""Range of the amplitude of each shear, mm; two of them stay below MIDLINE_GAP_MM."""
WARP_WAVELENGTH_MM = (55.0, 100.0)
"""Range of the wavelength across the limb, mm: bends borders, never folds them (a shear cannot fold)."""
WARP_TWIST_MM = 300.0
"""Wavelength of the shear's phase along the limb, mm: neighbouring slices look alike."""

# --- magnetic resonance: signal relative to pure fat in T1, or to pure water in Dixon ---------------------------------
T1_SIGNAL = {
    "air": 0.0,
    "skin": 0.45,
    "fat": 1.0,
    "muscle": 0.36,
    "marrow": 0.88,
    "cortex": 0.06,
    "viscera": 0.42,
    "septum": 0.75,
}
"""T1-weighted: fat and fatty marrow bright, muscle grey, compact bone and air black; septa are mostly fat."""
WATER_SIGNAL = {
    "air": 0.0,
    "skin": 0.5,
    "fat": 0.06,
    "muscle": 0.85,
    "marrow": 0.08,
    "cortex": 0.04,
    "viscera": 0.9,
    "septum": 0.4,
}
"""Water channel of a Dixon acquisition."""
FAT_SIGNAL = {
    "air": 0.0,
    "skin": 0.2,
    "fat": 1.0,
    "muscle": 0.05,
    "marrow": 0.9,
    "cortex": 0.03,
    "viscera": 0.06,
    "septum": 0.5,
}
"""Fat channel of a Dixon acquisition."""
SIGNAL_SD = 0.06
"""Change of a tissue's signal between subjects and scanners, relative. One value for all muscles of a subject."""
GAIN = (200.0, 900.0)
"""Range of the scanner's gain: files hold arbitrary units."""
SEPTUM_MM = 1.2
"""Thickness of the fatty septum where two muscles touch, mm; spread over the two voxels it lies in."""
CORTEX_MM = 3.0
"""Thickness of compact bone, mm, the same everywhere."""
SKIN_MM = 1.8
"""Thickness of skin, mm."""
INFILTRATION = (0.01, 0.08)
"""Range of the mean fat share inside muscle, drawn per subject, the same field model for all its muscles."""
INFILTRATION_MM = 5.0
"""Correlation length of that fat, mm."""
TEXTURE_SD = 0.10
"""Fine texture of every tissue before blur, relative: fibre bundles and small vessels."""
BIAS = (0.05, 0.20)
"""Range of the receive field's span over the view, largest less smallest, relative: what scanners leave uncorrected.

A wider field would tell the muscles of one corner by brightness alone (in water images, where muscle is bright)."""
BIAS_MM = 160.0
"""Distance between control points of the receive field, mm."""
NOISE = (0.03, 0.06)
"""Range of the noise sd, relative to the brightest tissue: signal-to-noise of muscle in T1 6 to 12."""
BLUR_VOXELS = 0.45
"""Gaussian blur of the image before noise, voxels: partial volume and the point spread of the scanner."""

# --- ultrasound -------------------------------------------------------------------------------------------------------
ECHO = {
    "air": 0.004,
    "skin": 0.5,
    "fat": 0.10,
    "muscle": 0.07,
    "marrow": 0.004,
    "cortex": 2.0,
    "viscera": 0.1,
    "septum": 0.7,
}
"""Root-mean-square echo amplitude; "air" is the water bath around the limb, "cortex" the reflecting bone surface."""
SPECKLE_MM = (0.9, 0.6, 1.0)
"""Sd of the speckle cell across the beam, along the beam and across the slice, mm, for a 10 MHz probe moved by hand."""
ATTENUATION_PER_MM = 0.008
"""Loss of amplitude per mm of depth left after the machine's gain compensation (natural logarithm)."""
SHADOW = 0.04
"""Amplitude behind bone, relative: bone lets almost nothing through."""
DYNAMIC_RANGE_DB = 55.0
"""Log compression: echoes this far below the brightest are black."""
ULTRASOUND_SEPTUM_MM = 1.6
"""Thickness of the bright aponeurosis between muscles, mm."""
DRIFT_DB = (2.0, 8.0)
"""Range of the span of the gain along a sweep, largest less smallest, dB: the hand presses now more, now less."""
DRIFT_MM = 40.0
"""Distance between control points of that gain along the sweep, mm: it takes seconds to change."""
DROPOUTS = 4
"""Largest number of places in a sweep at which the probe has lost contact, drawn from 0 on."""
DROPOUT_MM = (8.0, 2.5)
"""Sd of such a place across the beam and along the sweep, mm: a bubble or a dry edge, passed within some frames."""
DROPOUT_DB = (6.0, 18.0)
"""Range of the loss in the middle of such a place, dB, at all depths: from thin coupling to hardly any echo."""

# --- painting a given label volume ------------------------------------------------------------------------------------
HULL_CLOSING_MM = 14.0
"""Gaps between structures up to twice this, mm, count as inside the limb."""

# --- random deformation of a given label volume -----------------------------------------------------------------------
DEFORMATION_SCALE = 0.04
"""Largest relative change of size along each axis."""
DEFORMATION_WAVELENGTH_MM = 60.0
"""Distance between control points of the displacement, mm: with the default amplitude far from folding."""
DEFORMATION_AMPLITUDE_MM = 5.0
"""Default sd of the displacement, mm, along each axis."""

# --- fields of view: shape (I, J, K), spacing in mm, world centre of the view: height z, y ----------------------------
VIEWS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float], float, float]] = {
    "bones": ((96, 96, 72), (2.3, 2.3, 14.5), 83.0, -8.0),
    "thigh": ((192, 112, 48), (2.2, 2.2, 5.0), 185.0, -2.0),
    "lower-limb": ((140, 92, 216), (3.0, 3.0, 5.0), 98.0, -10.0),
    "ultrasound": ((128, 128, 100), (1.2, 1.2, 1.5), -125.0, -14.0),
    "child-bones": ((96, 96, 96), (2.3, 2.3, 10.9), 83.0, -8.0),
}
"""Default grids. bones: one whole limb in thick slices, like a quick whole-leg scan; others as in common protocols.
That of child-bones is of the adult limb, before it shrinks by CHILD_SIZE: voxels of 1.6 x 1.6 x 7.6 mm."""
CHILD_SIZE = 0.7
"""Size of the child against the adult in every direction: about 1.22 m against 1.75 m, seven years."""
