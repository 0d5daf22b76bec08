"""Phantoms: volumes against closed forms, sides against the world, and that brightness does not give muscles away."""

import dataclasses

import numpy as np
import pytest

from tfmuscle.labels import SIDES, LabelMap, mirrored_name
from tfmuscle.phantom import KINDS, image_from_labels, intensities, limb, make_phantom
from tfmuscle.phantom import parameters as p
from tfmuscle.volume import Geometry, Volume

BONES = {"femur", "tibia", "fibula", "patella", "hip"}
TWO_BALLS = LabelMap({1: "soleus", 2: "tibialis anterior", 3: "Left femur"})


@pytest.fixture(scope="module")
def phantoms():
    """One phantom of each kind on its default grid."""
    return {kind: make_phantom(kind, seed=3) for kind in KINDS}


def count_ml(phantom, name):
    return (phantom.labels.array == phantom.label_map.id_of(name)).sum() * phantom.labels.geometry.voxel_volume_ml


def centre_mm(phantom, name):
    index = np.argwhere(phantom.labels.array == phantom.label_map.id_of(name))
    return phantom.labels.geometry.world(index.mean(axis=0))


def balls(spacing=(2.0, 2.0, 2.0), affine=None):
    """Two touching muscle boxes and a bone box in the middle of an empty grid."""
    array = np.zeros((60, 60, 20), dtype=np.int16)
    array[15:30, 15:45, 3:17] = 1
    array[30:45, 15:30, 3:17] = 2
    array[32:43, 32:43, 3:17] = 3
    return Volume(array, Geometry(array.shape, np.diag([*spacing, 1.0]) if affine is None else affine))


# --- the closed form ------------------------------------------------------------------------------


def circles(*centres_and_radii):
    """Sections at one height of circles given as (x, y, radius)."""
    x, y, radius = (np.array(column, dtype=float)[None] for column in zip(*centres_and_radii, strict=True))
    return limb.Sections(x, y, 1 / radius**2, 0 * radius, 1 / radius**2, radius**2)


def test_area_of_a_turned_ellipse_is_pi_a_b():
    a, b, turn = 30.0, 11.0, 0.6
    cos, sin = np.cos(turn), np.sin(turn)
    xx, yy = (cos / a) ** 2 + (sin / b) ** 2, (sin / a) ** 2 + (cos / b) ** 2
    forms = (np.array([[value]]) for value in (5.0, -3.0, xx, cos * sin * (1 / a**2 - 1 / b**2), yy, a * b))
    assert limb._bone_area(limb.Sections(*forms), 0) == pytest.approx(np.pi * a * b, rel=1e-6)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.0, 1.0), (0.6, -0.8)])
def test_equal_circles_are_cut_halfway(direction):
    # what is left of a circle beyond the line at distance h = 10 from its centre is the circle less a segment:
    # r² (pi - acos(h / r)) + h sqrt(r² - h²)
    r, h = 16.0, 10.0
    pair = circles((0, 0, r), (2 * h * direction[0], 2 * h * direction[1], r))
    expected = r**2 * (np.pi - np.arccos(h / r)) + h * np.sqrt(r**2 - h**2)
    # a cut along the chords themselves is the worst case: it ends between two of 128 chords
    for column in range(2):
        assert limb._bone_area(pair, column) == pytest.approx(expected, rel=1e-2 if direction[0] == 0 else 1e-3)


def test_an_absent_neighbour_cuts_nothing():
    pair = circles((0, 0, 16), (10, 0, 16))
    pair = dataclasses.replace(pair, weight=np.array([[256.0, -np.inf]]))
    assert limb._bone_area(pair, 0) == pytest.approx(np.pi * 256, rel=1e-6)
    assert limb._bone_area(pair, 1) == 0.0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("height", [-150.0, 15.0, 180.0, 430.0], ids=["calf", "knee", "thigh", "hip"])
def test_counted_volumes_are_within_one_percent_at_1_mm(height, side):
    body = limb.make_body(np.random.default_rng([8, int(height) % 97]))
    middle = float(body.leg(side).axis(np.array(height))[0])
    affine = np.eye(4)
    affine[:3, 3] = [middle - 110.0, -135.0, height - 20.0]
    grid = Geometry((221, 220, 41), affine)
    labels = limb.leg_labels(body, side, grid)
    assert not labels[[0, -1]].any() and not labels[:, [0, -1]].any()  # or the view would cut what is compared
    checked = 0
    for number, (name, expected) in enumerate(limb.volumes_ml(body, side, grid).items(), start=1):
        counted = (labels == number).sum() * grid.voxel_volume_ml
        if expected > 5.0:  # ml: below, one layer of voxels on the surface is itself some percent
            assert counted == pytest.approx(expected, rel=0.01), name
            checked += 1
        else:
            assert counted == pytest.approx(expected, abs=0.15), name
    assert checked >= 3


def test_whole_limbs_count_close_to_their_closed_form(phantoms):
    # grids of 2 to 5 mm: a structure above 50 ml has thousands of voxels, its error is a fraction of a percent
    for kind in ("thigh", "lower-limb", "ultrasound"):
        for name, expected in phantoms[kind].volumes_ml.items():
            if expected > 50:
                assert count_ml(phantoms[kind], name) == pytest.approx(expected, rel=0.03), (kind, name)


def test_the_warp_keeps_area_and_stays_below_the_midline_gap():
    body = limb.make_body(np.random.default_rng(4))
    x, y = np.meshgrid(np.linspace(-150, 150, 40), np.linspace(-90, 90, 40))
    step = 1e-4
    moved = [body.warp.undone(x + a, y + b, 37.0) for a, b in ((step, 0), (-step, 0), (0, step), (0, -step))]
    (xx, yx), (xy, yy) = (
        [(plus - minus) / (2 * step) for plus, minus in zip(moved[k], moved[k + 1], strict=True)] for k in (0, 2)
    )
    np.testing.assert_allclose(xx * yy - xy * yx, 1.0, atol=1e-6)
    assert np.abs(body.warp.undone(x, y, 37.0)[0] - x).max() > 0.5  # it does bend
    assert p.WARP_AMPLITUDE_MM[1] < p.MIDLINE_GAP_MM


# --- what a phantom is ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_image_labels_map_and_volumes_fit(phantoms, kind):
    phantom = phantoms[kind]
    assert phantom.image.array.dtype == np.float32 and phantom.labels.array.dtype == np.uint8
    assert phantom.image.array.shape == phantom.labels.array.shape
    assert phantom.image.geometry.same_grid(phantom.labels.geometry)
    assert np.isfinite(phantom.image.array).all() and phantom.image.array.min() >= 0
    assert set(np.unique(phantom.labels.array)) == set(phantom.label_map.ids)
    assert tuple(phantom.volumes_ml) == phantom.label_map.structures and min(phantom.volumes_ml.values()) > 0
    assert phantom.label_map.flip_permutation() is not None


def test_numbers_of_structures(phantoms):
    # bones: 5; thigh: 12 muscles and the femur, twice; lower limb: 35 + 5, twice; ultrasound: 3
    assert {kind: len(phantoms[kind].volumes_ml) for kind in KINDS} == {
        "bones": 5, "thigh": 26, "lower-limb": 80, "ultrasound": 3, "child-bones": 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["thigh", "lower-limb"])
def test_left_structures_lie_at_negative_x(phantoms, kind):
    phantom = phantoms[kind]
    x = phantom.labels.geometry.world(np.indices(phantom.labels.array.shape).reshape(3, -1).T)[:, 0]
    for name in phantom.volumes_ml:
        own = x[phantom.labels.array.ravel() == phantom.label_map.id_of(name)]
        assert (own < 0).all() if name.endswith("_left") else (own > 0).all(), name


def test_anatomy_is_where_it_belongs(phantoms):
    limbs = phantoms["lower-limb"]
    for side in SIDES:
        at = {name: centre_mm(limbs, f"{name}_{side}") for name in ("femur", "tibia", "fibula", "patella", "hip")}
        assert at["hip"][2] > at["femur"][2] > at["patella"][2] > at["tibia"][2]
        assert at["patella"][1] > at["femur"][1]  # in front
        assert abs(at["fibula"][0]) > abs(at["tibia"][0])  # further from the midline
        medial, lateral = (centre_mm(limbs, f"gastrocnemius_{part}_head_{side}") for part in ("medial", "lateral"))
        assert abs(medial[0]) < abs(lateral[0])
        assert centre_mm(limbs, f"rectus_femoris_{side}")[1] > centre_mm(limbs, f"semitendinosus_{side}")[1]
        assert centre_mm(limbs, f"gluteus_maximus_{side}")[1] < at["hip"][1]


def test_two_sides_of_a_subject_resemble_each_other_but_differ(phantoms):
    volumes = phantoms["lower-limb"].volumes_ml
    large = [name for name in volumes if name.endswith("_left") and volumes[name] > 80]
    ratios = np.array([volumes[name] / volumes[mirrored_name(name)] for name in large])
    assert len(large) > 12 and (np.abs(np.log(ratios)) < np.log(1.6)).all()
    muscles = [ratio for ratio, name in zip(ratios, large, strict=True) if name.rsplit("_", 1)[0] not in BONES]
    assert min(abs(ratio - 1) for ratio in muscles) > 0


def test_a_left_and_a_right_bones_phantom_both_occur():
    # the fibula is lateral: at negative x of the tibia in a left leg, which itself lies at negative x
    sides = set()
    for seed in range(6):
        phantom = make_phantom("bones", seed=seed, scale=2.0)
        tibia, fibula = centre_mm(phantom, "tibia")[0], centre_mm(phantom, "fibula")[0]
        assert (fibula < tibia) == (tibia < 0)
        sides.add(bool(tibia < 0))
    assert sides == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_no_labelled_structure_is_cut_by_the_view(seed):
    for kind in ("bones", "lower-limb", "child-bones"):
        labels = make_phantom(kind, seed=seed, scale=1.5).labels.array
        for axis in range(3):
            assert not np.take(labels, [0, -1], axis=axis).any(), (kind, axis)


# --- seeds and grids ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_bits_other_seed_other_subject(kind):
    first, again, other = (make_phantom(kind, seed=seed, scale=3.0) for seed in (5, 5, 6))
    assert first.image.array.tobytes() == again.image.array.tobytes()
    assert first.labels.array.tobytes() == again.labels.array.tobytes() and first.volumes_ml == again.volumes_ml
    assert np.array_equal(first.image.geometry.affine, again.image.geometry.affine)
    assert first.labels.array.tobytes() != other.labels.array.tobytes()
    assert all(first.volumes_ml[name] != other.volumes_ml[name] for name in first.volumes_ml)


def test_the_subject_does_not_depend_on_contrast_or_grid(phantoms):
    plain = make_phantom("bones", seed=3, contrast="dixon")
    assert np.array_equal(plain.labels.array, phantoms["bones"].labels.array)
    assert plain.image.array.shape == (*phantoms["bones"].image.array.shape, 2)
    half = make_phantom("bones", seed=3, scale=2.0)
    assert half.labels.array.shape == (48, 48, 36) and half.labels.spacing == pytest.approx((4.6, 4.6, 29.0))
    assert half.volumes_ml == pytest.approx(phantoms["bones"].volumes_ml, rel=1e-3)
    fine = make_phantom("bones", seed=3, spacing=(4.6, 4.6, 5.0))
    assert fine.labels.array.shape == (48, 48, round(72 * 14.5 / 5.0))


def test_a_child_is_a_small_adult_with_the_labels_of_the_bone_pipeline(phantoms):
    child = phantoms["child-bones"]
    assert child.label_map.to_dict() == {"background": 0, "tibia": 1, "femur": 2, "fibula": 3, "pelvis": 4}
    assert child.image.geometry.spacing == pytest.approx((1.61, 1.61, 7.63))
    z = {name: centre_mm(child, name)[2] for name in child.volumes_ml}
    assert z["pelvis"] > z["femur"] > z["tibia"] and 400 < z["pelvis"] - z["tibia"] < 480  # of a limb of 1.22 m in all
    fine = make_phantom("child-bones", seed=3, spacing=(1.43, 1.43, 1.43))  # 1.0 mm in the child
    for name, volume in fine.volumes_ml.items():
        counted = (fine.labels.array == fine.label_map.id_of(name)).sum() * fine.labels.geometry.voxel_volume_ml
        assert counted == pytest.approx(volume, rel=0.01), name


def test_a_second_cohort_has_other_contrast_and_the_same_bones(phantoms):
    water = make_phantom("child-bones", seed=3, contrast="water")
    first = phantoms["child-bones"]
    assert np.array_equal(water.labels.array, first.labels.array) and water.image.array.ndim == 3
    inside = first.labels.array == first.label_map.id_of("femur")
    around = (first.image.array > np.median(first.image.array)) & (first.labels.array == 0)
    for phantom, bright in ((first, True), (water, False)):  # marrow is fat: bright in T1, dark where fat is suppressed
        assert (phantom.image.array[inside].mean() > phantom.image.array[around].mean() * 0.8) == bright


def test_a_grid_of_one_voxel_still_works():
    assert make_phantom("bones", seed=0, scale=200.0).image.array.shape == (1, 1, 1)


# --- not rigged -----------------------------------------------------------------------------------


def best_dice_from_brightness(image, labels, bins=256):
    """Largest Dice per id that any rule "these brightnesses are the structure" reaches on the voxels it is made on.

    Dice 2 |A and B| / (|A| + |B|) over sets of bins is largest for a set of those richest in the structure.
    """
    edges = np.linspace(image.min(), np.quantile(image, 0.9999), bins)
    bin_of = np.clip(np.searchsorted(edges, image.ravel(), side="right") - 1, 0, None)
    ids = int(labels.max()) + 1
    joint = np.bincount(bin_of * ids + labels.ravel(), minlength=len(edges) * ids).reshape(-1, ids)
    total, best = joint.sum(axis=1), []
    for own in joint.T:
        order = np.argsort(-own / np.maximum(total, 1))
        best.append((2 * np.cumsum(own[order]) / (np.cumsum(total[order]) + own.sum())).max())
    return np.array(best)


def muscle_ids(label_map):
    return [key for key, name in label_map.names.items() if key and not intensities.is_bone(name)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("contrast", ["t1", "dixon"])
@pytest.mark.parametrize(("kind", "scale"), [("thigh", 1.5), ("lower-limb", 2.0)])
def test_brightness_alone_finds_no_muscle(kind, scale, contrast, seed):
    phantom = make_phantom(kind, seed=seed, scale=scale, contrast=contrast)
    image = phantom.image.array.reshape(*phantom.labels.array.shape, -1)
    for channel in range(image.shape[-1]):
        found = best_dice_from_brightness(image[..., channel], phantom.labels.array)
        assert found[muscle_ids(phantom.label_map)].max() < 0.3


def test_brightness_alone_finds_no_muscle_on_the_default_grids(phantoms):
    for kind in ("thigh", "lower-limb"):
        found = best_dice_from_brightness(phantoms[kind].image.array, phantoms[kind].labels.array)
        assert found[muscle_ids(phantoms[kind].label_map)].max() < 0.3


def test_brightness_alone_finds_no_muscle_of_a_sweep():
    # a rule that takes all muscle tissue for soleus, a third of it, has 0.4 already, without any shadow or drift
    phantom = make_phantom("ultrasound", seed=1, spacing=(1.6, 1.6, 1.875))
    found = best_dice_from_brightness(phantom.image.array, phantom.labels.array)
    assert found[1] < 0.4 and found[2:].max() < 0.3


def test_the_judge_of_brightness_finds_what_is_rigged(phantoms):
    labels = phantoms["thigh"].labels.array
    assert best_dice_from_brightness(labels.astype(float), labels).min() > 0.99


def test_swapping_two_muscles_changes_no_voxel_of_the_image():
    labels = balls()
    swapped = labels.with_array(np.array([0, 2, 1, 3])[labels.array])
    first, second = (image_from_labels(volume, TWO_BALLS, seed=1).array for volume in (labels, swapped))
    assert first.tobytes() == second.tobytes()


def test_a_border_between_muscles_is_a_faint_bright_line():
    image = np.mean([image_from_labels(balls(), TWO_BALLS, seed=seed).array / 100 for seed in range(6)], axis=0)
    line, inner = image[29:31, 17:28, 5:15].mean(), image[20:25, 17:28, 5:15].mean()
    fat = image[38, 10:13, 5:15].mean()
    assert 1.1 * inner < line < 0.8 * fat


# --- intensities ----------------------------------------------------------------------------------


def test_t1_shows_fat_over_muscle_over_bone_cortex():
    image = image_from_labels(balls((1.0, 1.0, 1.0)), TWO_BALLS, seed=2).array
    fat, muscle, marrow = image[32:40, 11:13, 6:14], image[19:26, 20:40, 6:14], image[37:38, 37:38, 6:14]
    cortex, air = image[33, 34:41, 6:14], image[:3, :3, :]
    assert fat.mean() > marrow.mean() > 1.5 * muscle.mean() and muscle.mean() > 1.5 * cortex.mean()
    assert cortex.mean() > air.mean()


def test_dixon_channels_are_water_then_fat():
    water, fat = np.moveaxis(image_from_labels(balls(), TWO_BALLS, contrast="dixon", seed=2).array, -1, 0)
    muscle, rim = (slice(19, 26), slice(20, 40), slice(6, 14)), (slice(17, 28), slice(11, 13), slice(6, 14))
    assert water[muscle].mean() > 4 * fat[muscle].mean()
    assert fat[rim].mean() > 4 * water[rim].mean()


def test_noise_in_air_is_rayleigh(phantoms):
    # magnitude of complex noise: mean / sd = sqrt(pi / 2) / sqrt(2 - pi / 2) = 1.913
    air = phantoms["lower-limb"].image.array[:12, :12, :60]
    assert air.mean() / air.std() == pytest.approx(1.913, rel=0.01)


def test_ultrasound_is_speckle_with_a_shadow_behind_bone():
    array = np.zeros((64, 80, 40), dtype=np.uint8)
    array[8:56, 8:72, :] = 1
    array[28:36, 30:40, :] = 3
    labels = Volume(array, Geometry(array.shape, np.eye(4)))
    image = image_from_labels(labels, TWO_BALLS, contrast="ultrasound", seed=5).array
    assert image.min() == 0 and image.max() == 255
    amplitude = 10 ** ((image / 255 - 1) * p.DYNAMIC_RANGE_DB / 20)
    speckle = amplitude[12:24, 20:28, 5:35]
    assert speckle.mean() / speckle.std() == pytest.approx(1.913, rel=0.12)  # Rayleigh; few independent speckles
    assert amplitude[30:34, 48:66].mean() < 0.15 * amplitude[12:20, 48:66].mean()
    assert amplitude[12:20, 60:68].mean() < 0.9 * amplitude[12:20, 14:22].mean()  # attenuation, exp(-0.008 * 46) = 0.69


def test_gain_of_a_sweep_drifts_within_its_range_and_fails_in_places():
    # `SPAN` dB of drift at most between two frames, plus what the deepest dropouts take away where they meet
    lost = 0
    for seed in range(12):
        gain = intensities._sweep_gain((96, 80, 80), (1.6, 1.6, 1.9), np.random.default_rng(seed))
        assert gain.shape == (96, 1, 80) and np.isfinite(gain).all()
        decibels = 20 * np.log10(gain[:, 0])
        frames = np.median(decibels, axis=0)  # a dropout is narrower than half of the beam's width
        assert p.DRIFT_DB[0] - 0.5 <= np.ptp(frames) <= p.DRIFT_DB[1] + 3.0
        assert np.abs(np.diff(frames)).max() < 1.5  # dB between neighbours: a drift, no flicker
        lost += (frames - decibels).max() > 0.8 * p.DROPOUT_DB[0]
    assert 6 <= lost < 12  # of a sweep in five nothing is lost


def test_the_gain_of_a_sweep_is_seen_in_its_image(monkeypatch):
    labels = Volume(np.ones((24, 24, 30), np.uint8), Geometry((24, 24, 30), np.eye(4)))
    bright = np.full((24, 1, 30), 1.0, np.float32)
    bright[:, :, 15:] = 10 ** (-6 / 20)  # half of the sweep at -6 dB
    monkeypatch.setattr(intensities, "_sweep_gain", lambda *_: bright)
    image = image_from_labels(labels, TWO_BALLS, contrast="ultrasound", seed=1).array
    step = image[4:20, 8:20, 2:13].mean() - image[4:20, 8:20, 17:28].mean()
    assert step == pytest.approx(255 * 6 / p.DYNAMIC_RANGE_DB, rel=0.15)  # log compression: 28 grey values


def test_smooth_field_has_unit_variance_and_is_smooth():
    rng = np.random.default_rng(0)
    fields = np.array([intensities.smooth_field((30, 20, 25), (2.0, 3.0, 2.0), 15.0, rng) for _ in range(40)])
    assert fields.std() == pytest.approx(1.0, abs=0.05) and abs(fields.mean()) < 0.1
    assert np.abs(np.diff(fields, axis=1)).max() < 1.0  # 2 mm steps on a 15 mm scale


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "arm"}, "kind is 'arm'; choose one of bones, thigh, lower-limb, ultrasound"),
        ({"seed": -1}, "seed is -1; use 0, 1, 2"),
        ({"scale": 0.0}, "scale is 0.0; use a positive factor"),
        ({"scale": float("nan")}, "scale is nan; use a positive factor"),
        ({"contrast": "ct"}, "contrast is 'ct'; choose one of t1, water, dixon, ultrasound"),
        ({"spacing": (1.0, 0.0, 1.0)}, "a spacing is three positive numbers"),
    ],
)
def test_make_phantom_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**({"kind": "bones", "seed": 0} | arguments))


def test_turned_grids_are_refused():
    turned = np.eye(4)
    turned[0, 1] = 0.2
    with pytest.raises(ValueError, match="needs a grid along x, y and z"):
        limb.grid_axes(Geometry((4, 4, 4), turned))
