"""The mean limb: where every structure runs and how thick it is, as one table.

Frame of one leg, the same for both sides: *m* grows to the midline (medial), *a* to the front (anterior), *z* up the
limb (superior). z = 0 is the knee joint, about -380 the ankle, about +400 the hip joint. The leg's axis runs through
the knee centre, `AXIS_OFFSET_MM` from the midline. Everything is in mm for the mean adult and is scaled, moved and
thinned per subject by `parameters.py`.

A structure is a tube with elliptical sections whose knots are joined by monotone cubics. A muscle's knots are `(z, m,
a, radius)`: centre and equal-area radius of the section; its first and last knot have radius 0, for the *squared*
radius is interpolated and so the ends are rounded like an ellipsoid's. A bone's or an outline's knots are `(z, m, a,
radius_m, radius_a, degrees)`. The numbers were written down from textbook cross-sections, not fitted to any data set,
so that no public label volume is hidden in the phantoms. Simplified on purpose: sections are convex, a hip bone is a
plate with a thick lower part, no menisci, no feet, no vessels.
"""

AXIS_OFFSET_MM = 95.0
"""Distance of a leg's axis from the midline: half the distance between the hips of an adult, rounded up."""

MUSCLE_SHAPES: dict[str, tuple[float, float, tuple[tuple[float, float, float, float], ...]]] = {
    # name: (aspect = radius_m / radius_a, turn in degrees from medial to anterior, knots (z, m, a, radius))
    "psoas_major": (1.0, 0,
        ((590, 52, 12, 0), (540, 50, 22, 20), (480, 36, 38, 19), (430, 18, 42, 15), (390, 10, 26, 11), (358, 2, 6, 0))),
    "iliacus": (0.6, 37,
        ((548, 18, 18, 0), (510, 18, 16, 22), (460, 0, 26, 19), (425, -6, 36, 14), (385, -4, 28, 9), (360, -4, 14, 0))),
    "gluteus_minimus": (0.5, 37,
        ((392, -46, 18, 0), (430, -30, 10, 16), (470, -18, -2, 17), (505, -12, -10, 0))),
    "gluteus_maximus": (1.5, -15,
        ((270, -36, -30, 0), (340, -34, -52, 27), (400, -8, -76, 40), (450, 28, -80, 42), (500, 46, -76, 30),
         (542, 50, -66, 0))),
    "gluteus_medius": (0.6, 37,
        ((385, -54, -4, 0), (430, -52, -6, 24), (480, -40, -18, 30), (520, -28, -18, 25), (552, -16, -10, 0))),
    "tensor_fasciae_latae": (0.7, 0,
        ((492, -44, 46, 0), (440, -56, 40, 13), (390, -62, 32, 14), (340, -62, 24, 8), (305, -62, 20, 0))),
    "piriformis": (2.0, -15,
        ((462, 66, -48, 0), (446, 44, -44, 12), (430, 8, -38, 13), (414, -24, -24, 9), (400, -40, -14, 0))),
    "obturator_internus": (0.5, 0,
        ((350, 52, -18, 0), (380, 64, -12, 13), (420, 66, -6, 14), (446, 60, 0, 0))),
    "obturator_externus": (1.6, 0,
        ((352, 50, 10, 0), (374, 36, 2, 13), (392, 8, -16, 11), (404, -20, -16, 0))),
    "quadratus_femoris": (2.0, 0,
        ((332, 2, -26, 0), (358, 2, -30, 14), (388, 0, -32, 0))),
    "external_rotators": (2.5, -10,
        ((382, 16, -34, 0), (402, 6, -36, 11), (424, -14, -30, 0))),
    "pectineus": (1.2, 0,
        ((412, 56, 34, 0), (380, 38, 28, 15), (345, 14, 14, 12), (312, 0, 4, 0))),
    "adductor_brevis": (1.1, 0,
        ((382, 62, 12, 0), (340, 38, 6, 17), (290, 18, 2, 15), (240, 4, -2, 0))),
    "adductor_longus": (1.3, 0,
        ((388, 70, 24, 0), (330, 46, 24, 15), (250, 28, 14, 17), (180, 14, 4, 11), (140, 6, 0, 0))),
    "adductor_magnus": (1.3, 0,
        ((376, 48, -24, 0), (320, 36, -20, 28), (240, 26, -18, 29), (160, 22, -18, 21), (90, 30, -14, 10),
         (30, 36, -8, 0))),
    "gracilis": (0.6, 0,
        ((376, 74, 4, 0), (320, 64, -4, 11), (220, 58, -16, 12), (120, 54, -26, 10), (40, 46, -28, 6),
         (-45, 34, -8, 0))),
    "sartorius": (1.4, -30,
        ((492, -28, 60, 0), (430, -10, 62, 9), (330, 28, 56, 12), (220, 52, 26, 12), (120, 52, -8, 12),
         (40, 48, -20, 8), (-45, 34, -4, 0))),
    "semimembranosus": (1.2, 0,
        ((358, 26, -44, 0), (280, 28, -50, 12), (200, 28, -46, 19), (120, 26, -44, 22), (50, 22, -40, 15),
         (-20, 24, -28, 0))),
    "semitendinosus": (1.2, 0,
        ((362, 18, -52, 0), (300, 12, -56, 15), (220, 14, -62, 18), (140, 22, -62, 14), (50, 34, -46, 6),
         (-45, 34, -14, 0))),
    "biceps_femoris_long_head": (1.1, 0,
        ((362, 12, -52, 0), (290, -12, -54, 17), (200, -20, -54, 22), (120, -28, -46, 20), (40, -36, -34, 9),
         (-18, -40, -24, 0))),
    "biceps_femoris_short_head": (1.0, 0,
        ((268, -16, -16, 0), (190, -22, -22, 13), (110, -28, -26, 18), (50, -34, -26, 10), (-14, -40, -20, 0))),
    "rectus_femoris": (1.5, 0,
        ((470, -20, 46, 0), (430, -18, 52, 9), (350, -12, 54, 18), (250, -8, 54, 21), (150, -6, 50, 15),
         (60, -2, 46, 0))),
    "vastus_intermedius": (1.6, 15,
        ((362, -22, 18, 0), (300, -20, 28, 22), (200, -12, 32, 26), (100, -4, 36, 20), (45, 0, 38, 0))),
    "vastus_lateralis": (0.7, 0,
        ((392, -50, 6, 0), (330, -46, 10, 24), (220, -44, 12, 30), (120, -40, 12, 22), (45, -34, 24, 0))),
    "vastus_medialis": (0.9, 0,
        ((344, 4, 20, 0), (250, 20, 30, 18), (150, 32, 24, 26), (80, 36, 16, 24), (15, 34, 18, 0))),
    "gastrocnemius_lateral_head": (1.4, 0,
        ((28, -20, -34, 0), (-20, -22, -40, 13), (-80, -20, -50, 19), (-130, -18, -48, 15), (-178, -12, -46, 0))),
    "gastrocnemius_medial_head": (1.4, 0,
        ((28, 20, -36, 0), (-20, 24, -40, 16), (-80, 24, -50, 23), (-140, 22, -48, 20), (-194, 14, -46, 0))),
    "soleus": (1.7, 0,
        ((-30, -28, -20, 0), (-80, -8, -30, 19), (-150, 0, -32, 28), (-220, 0, -30, 23), (-290, 2, -28, 13),
         (-350, 4, -34, 0))),
    "popliteus": (1.9, 0,
        ((5, -30, -14, 0), (-20, -4, -26, 11), (-50, 10, -18, 12), (-92, 16, -10, 0))),
    "tibialis_anterior": (0.8, 0,
        ((-22, -16, 16, 0), (-90, -12, 22, 15), (-160, -8, 22, 15), (-240, -2, 22, 10), (-330, 12, 24, 5),
         (-368, 16, 24, 0))),
    "phalangeal_extensors": (0.9, 0,
        ((-40, -28, 8, 0), (-120, -25, 14, 11), (-220, -18, 14, 12), (-310, -8, 18, 7), (-378, 0, 22, 0))),
    "fibulari": (0.8, 0,
        ((-34, -44, -4, 0), (-100, -40, -4, 13), (-200, -36, -6, 13), (-300, -34, -16, 8), (-384, -32, -22, 0))),
    "tibialis_posterior": (1.2, 0,
        ((-52, -12, -6, 0), (-120, -8, -6, 14), (-200, -5, -8, 15), (-290, 4, -14, 9), (-372, 16, -16, 0))),
    "flexor_digitorum_longus": (1.2, 0,
        ((-88, 18, -14, 0), (-160, 18, -15, 9), (-240, 17, -15, 9), (-320, 18, -18, 5), (-372, 20, -20, 0))),
    "flexor_hallucis_longus": (1.2, 0,
        ((-126, -22, -24, 0), (-200, -18, -22, 12), (-280, -10, -22, 12), (-340, -2, -24, 6), (-378, 4, -26, 0))),
}  # fmt: skip

BONE_SHAPES: dict[str, tuple[tuple[float, float, float, float, float, float], ...]] = {
    # name: knots (z, m, a, radius_m, radius_a, degrees)
    "femur": ((2, 0, -4, 0, 0, 0), (12, 0, -3, 38, 27, 0), (32, 0, -1, 40, 29, 0), (60, 0, 2, 27, 20, 0),
              (95, -2, 4, 18, 16, 0),
              (150, -4, 7, 14, 14, 0), (250, -8, 10, 14, 14.5, 0), (330, -12, 7, 16, 16, 0), (358, -16, 3, 23, 18, 0),
              (384, -14, 0, 37, 17, 10), (400, -4, 3, 36, 20, 10), (412, 7, 6, 24, 22, 0), (427, 10, 7, 0, 0, 0)),
    "tibia": ((-2, 0, -3, 0, 0, 0), (-10, 0, -3, 37, 25, 0), (-30, 2, -2, 31, 24, 0), (-60, 6, 4, 20, 19, 0),
              (-120, 10, 8, 14, 15, 0),
              (-200, 12, 8, 12.5, 13.5, 0), (-300, 10, 4, 13, 13, 0), (-350, 6, 0, 20, 18, 0), (-372, 7, 0, 23, 18, 0),
              (-392, 18, 0, 0, 0, 0)),
    "fibula": ((-16, -38, -18, 0, 0, 0), (-30, -37, -18, 10, 11, 0), (-60, -33, -15, 7, 7, 0),
               (-200, -26, -14, 6.5, 6.5, 0),
               (-300, -27, -12, 6.5, 6.5, 0), (-360, -28, -8, 8, 10, 0), (-396, -27, -8, 0, 0, 0)),
    "patella": ((-3, 0, 43, 0, 0, 0), (8, 0, 45, 16, 8, 0), (22, 0, 46, 21, 9.5, 0), (36, 0, 45, 17, 9, 0),
                (44, 0, 42, 0, 0, 0)),
    "hip": ((342, 30, -38, 0, 0, 0), (364, 34, -34, 14, 17, 0), (385, 43, -16, 13, 29, 5), (405, 48, -8, 15, 34, 10),
            (432, 24, -6, 20, 32, 25), (462, 12, -8, 12, 38, 37), (500, 2, -4, 8, 50, 37), (540, -4, 4, 7, 52, 37),
            (562, -6, 6, 0, 0, 0)),
}  # fmt: skip

FASCIA_SHAPE: tuple[tuple[float, float, float, float, float, float], ...] = (
    (-460, 5, -8, 30, 36, 0), (-370, 4, -6, 33, 36, 0), (-300, 2, -8, 37, 40, 0), (-200, 0, -11, 47, 53, 0),
    (-120, -1, -15, 53, 57, 0), (-60, -1, -10, 51, 54, 0), (0, 0, -1, 52, 57, 0), (60, 0, 0, 57, 61, 0),
    (150, 0, -3, 67, 69, 0), (250, 3, -3, 75, 76, 0), (330, 5, -8, 82, 86, 0), (380, 5, -16, 88, 98, 0),
    (430, 10, -24, 90, 104, 0), (480, 15, -22, 86, 98, 0), (540, 18, -12, 80, 88, 0), (700, 18, -10, 80, 85, 0),
)  # fmt: skip
"""The sleeve that holds a leg's muscles; fat and skin lie outside it."""

TRUNK_SHAPE: tuple[tuple[float, float, float, float], ...] = (
    (352, -20, 60, 70), (380, -18, 165, 98), (430, -18, 176, 104), (540, -12, 160, 94), (700, -10, 156, 92),
)  # fmt: skip
"""Outline of the trunk without fat, knots (z, a, radius_x, radius_a): below the first knot the legs are apart."""

VISCERA_SHAPE: tuple[float, float, float, float] = (395.0, 6.0, 58.0, 52.0)
"""(from z, a, radius_x, radius_a): the pelvic organs, an unlabelled mass between the hip bones."""

FAT_PROFILE: tuple[tuple[float, float], ...] = (
    (-400, 0.35), (-200, 0.6), (0, 0.55), (150, 0.9), (330, 1.1), (430, 1.6), (560, 1.4),
)  # fmt: skip
"""Fat under the skin relative to the mid-thigh's, at heights z: thin at the ankle, thick at the buttock."""

THIGH_MUSCLES: tuple[str, ...] = (
    "rectus_femoris", "vastus_intermedius", "vastus_lateralis", "vastus_medialis", "sartorius", "gracilis",
    "adductor_longus", "adductor_magnus", "semimembranosus", "semitendinosus", "biceps_femoris_long_head",
    "biceps_femoris_short_head",
)  # fmt: skip
"""What a thigh phantom labels, both sides; other muscles that reach into the view are seen but belong to background."""

ULTRASOUND_MUSCLES: tuple[str, ...] = ("soleus", "gastrocnemius_medial_head", "gastrocnemius_lateral_head")
"""What an ultrasound phantom labels."""
