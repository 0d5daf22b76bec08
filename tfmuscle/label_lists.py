"""What TotalSegmentator and MuscleMap call the numbers in their label files: facts, with where they stand.

MuscleMap writes numbers without names, and so does TotalSegmentator in formats other than NIfTI. Only lists with
muscles or bones of the limbs are here; a structure outside them has no place in this project.

Spelling. Names are the tools' own, as words joined by underscores with the side last; MuscleMap's `anatomy` and `side`
are two columns.

Sides. MuscleMap's whole-body ids end in 1 for left, 2 for right and 0 for neither. Its older models of one region count
from 1, left before right, except the abdomen's, where right comes first.

Versions. MuscleMap 1.0 and 1.1 have the ids of 1.2 without 6181 to 6222 and spell some names otherwise.
TotalSegmentator changed all ids of `total` with 2.0 and those of `total_mr` with 2.5: older files are not meant here.
Its MR tasks `appendicular_bones_mr` and `thigh_shoulder_muscles_mr` have the ids of the tasks without `_mr`. The
repositories are github.com/wasserth/TotalSegmentator and github.com/MuscleMap/MuscleMap.
"""

from collections.abc import Mapping
from typing import NamedTuple


class LabelList(NamedTuple):
    """One model's ids.

    Attributes:
        names: id -> name, without background.
        source: where this stands.
    """

    names: Mapping[int, str]
    source: str


def _counted(names: str) -> dict[int, str]:
    return dict(enumerate(names.split(), start=1))


def _in_pairs(names: str, *, first: str = "left", second: str = "right", last: str = "") -> dict[int, str]:
    sided = [f"{name}_{side}" for name in names.split() for side in (first, second)]
    return dict(enumerate([*sided, *last.split()], start=1))


def _by_region(rows: str) -> dict[int, str]:
    """Reads `first id: names` a line; ids of a line rise by ten, their last digit is the side."""
    names: dict[int, str] = {}
    for row in rows.strip().splitlines():
        start, _, listed = row.partition(":")
        for place, name in enumerate(listed.split()):
            number = int(start) + 10 * place
            names |= {number: name} if name == "sacrum" else {number + 1: f"{name}_left", number + 2: f"{name}_right"}
    return names


_VERTEBRAE = " ".join(
    [
        *(f"vertebrae_L{number}" for number in range(5, 0, -1)),
        *(f"vertebrae_T{number}" for number in range(12, 0, -1)),
        *(f"vertebrae_C{number}" for number in range(7, 0, -1)),
    ]
)
_RIBS = " ".join(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13))
_LIMBS = """
    humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right
    hip_left hip_right
"""
_GLUTEI = """
    gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left
    gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain
"""
_ORGANS = "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left"
_ILIAC = "iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right"
_MODELS = "MuscleMap model {0} 0.0, scripts/models/{0}/contrast_agnostic_{0}_model.json at commit d87c140"
_CLASSES = "TotalSegmentator {0}, totalsegmentator/map_to_binary.py at commit 0275d30"

LISTS: Mapping[str, LabelList] = {
    "totalsegmentator_total": LabelList(
        _counted(
            f"""{_ORGANS} lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right
            lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate
            kidney_cyst_left kidney_cyst_right sacrum vertebrae_S1 {_VERTEBRAE} heart aorta pulmonary_vein
            brachiocephalic_trunk subclavian_artery_right subclavian_artery_left common_carotid_artery_right
            common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left
            superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein {_ILIAC} {_LIMBS} spinal_cord {_GLUTEI}
            skull {_RIBS} sternum costal_cartilages"""
        ),
        _CLASSES.format("task total, from 2.0 on"),
    ),
    "totalsegmentator_total_mr": LabelList(
        _counted(
            f"""{_ORGANS} lung_left lung_right esophagus small_bowel duodenum colon urinary_bladder prostate sacrum
            vertebrae intervertebral_discs spinal_cord heart aorta inferior_vena_cava portal_vein_and_splenic_vein
            {_ILIAC} {_LIMBS} {_GLUTEI}"""
        ),
        _CLASSES.format("task total_mr, from 2.5 on"),
    ),
    "totalsegmentator_thigh_shoulder_muscles": LabelList(
        _in_pairs("quadriceps_femoris thigh_medial_compartment thigh_posterior_compartment sartorius")
        | {
            key + 8: name
            for key, name in _counted(
                """deltoid supraspinatus infraspinatus subscapularis coracobrachial trapezius pectoralis_minor
                serratus_anterior teres_major triceps_brachii"""
            ).items()
        },
        _CLASSES.format("task thigh_shoulder_muscles"),
    ),
    "totalsegmentator_appendicular_bones": LabelList(
        _counted(
            "patella tibia fibula tarsal metatarsal phalanges_feet ulna radius carpal metacarpal phalanges_hand",
        ),
        _CLASSES.format("task appendicular_bones"),
    ),
    "musclemap_wholebody": LabelList(
        _by_region(
            """
            1100: levator_scapulae semispinalis_cervicis_and_multifidus semispinalis_capitis splenius_capitis
            1140: sternocleidomastoid longus_colli trapezius
            2100: supraspinatus subscapularis infraspinatus
            2140: deltoid
            4100: rhomboid
            5100: thoracolumbar_multifidus erector_spinae psoas_major quadratus_lumborum latissimus_dorsi
            6100: gluteus_minimus gluteus_medius gluteus_maximus tensor_fasciae_latae iliacus ilium sacrum femur
            6180: piriformis pectineus obturator_internus obturator_externus gemelli_and_quadratus_femoris
            7100: vastus_lateralis vastus_intermedius vastus_medialis rectus_femoris sartorius gracilis
            7160: semimembranosus semitendinosus biceps_femoris_long_head biceps_femoris_short_head
            7200: adductor_magnus adductor_longus adductor_brevis
            8100: anterior_compartment deep_posterior_compartment lateral_compartment soleus gastrocnemius tibia fibula
            """
        ),
        "MuscleMap model wholebody 1.2, docs/muscle-anatomy.md at commit 3b4a4f5",
    ),
    "musclemap_abdomen": LabelList(
        _in_pairs("multifidus erector_spinae psoas_major quadratus_lumborum", first="right", second="left"),
        _MODELS.format("abdomen"),
    ),
    "musclemap_pelvis": LabelList(
        _in_pairs(
            "gluteus_minimus gluteus_medius gluteus_maximus tensor_fasciae_latae femur pelvic_girdle", last="sacrum"
        ),
        _MODELS.format("pelvis"),
    ),
    "musclemap_thigh": LabelList(
        _in_pairs(
            """vastus_lateralis vastus_intermedius vastus_medialis rectus_femoris sartorius gracilis semimembranosus
            semitendinosus biceps_femoris_long_head biceps_femoris_short_head adductor_magnus adductor_longus
            adductor_brevis femur"""
        ),
        _MODELS.format("thigh"),
    ),
    "musclemap_leg": LabelList(
        _in_pairs(
            """anterior_compartment deep_posterior_compartment lateral_compartment soleus gastrocnemius tibia fibula"""
        ),
        _MODELS.format("leg"),
    ),
}
"""List -> ids and names; `tfmuscle relabel --list` prints them."""
