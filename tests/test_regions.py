"""Cuts along anatomy: judged by the labels of phantoms whose seeds were not used to choose any number."""

import nibabel.orientations as orientations
import numpy as np
import pytest

from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import make_phantom
from tfmuscle.preprocessing import (
    Midline,
    below_hip,
    find_midline,
    hip_start,
    leg_parts,
    one_leg,
    separate_legs,
    superior_axis,
)
from tfmuscle.preprocessing.grid import resample_image, resample_labels
from tfmuscle.volume import Geometry, Volume

SEEDS = range(200, 203)
ROTATED = np.array([[1.0, 1.0, 0.0, -3.0], [-1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
"""Turned by 45 degrees, so that a box around one side holds some of the other."""
ORIENTATIONS = ("RAS", "LPS", "SPL", "IAR", "AIL")


def first_pelvis_mm(phantom):
    """World z of the most superior slice with a hip label."""
    hips = [key for key, name in phantom.label_map.names.items() if name.startswith("hip")]
    slices = np.flatnonzero(np.isin(phantom.labels.array, hips).any(axis=(0, 1)))
    return phantom.labels.geometry.world((0, 0, slices[-1]))[2]


def tilted(volume, degrees=20.0, *, labels=False):
    """The same patient on a grid turned about the front-back axis and the head-foot axis."""
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    turn = turn @ np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    shape = tuple(int(1.5 * size) for size in volume.geometry.shape[:2]) + (volume.geometry.shape[2],)
    affine = np.eye(4)
    affine[:3, :3] = turn * volume.spacing
    centre = volume.geometry.world((np.array(volume.geometry.shape) - 1) / 2)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return (resample_labels if labels else resample_image)(volume, Geometry(shape, affine))


@pytest.fixture(scope="module")
def legs():
    return make_phantom("lower-limb", seed=210, scale=1.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_hip_start_of_two_legs(seed):
    phantom = make_phantom("lower-limb", seed=seed, scale=2)
    found = hip_start(phantom.image)
    assert found.index is not None and found.confidence > 0.3 and "legs join" in found.reason
    height = phantom.image.geometry.world((0, 0, found.index))[2]
    assert abs(height - first_pelvis_mm(phantom)) <= 20  # 15 mm was the largest of 40 other phantoms


@pytest.mark.parametrize("orientation", ORIENTATIONS[1:4])
def test_hip_start_in_any_orientation(legs, orientation):
    turned = legs.image.reoriented(orientation)
    found, straight = hip_start(turned), hip_start(legs.image)
    axis, upwards = superior_axis(turned.geometry)
    count = turned.geometry.shape[axis]
    assert found.index == (straight.index if upwards else count - 1 - straight.index)
    assert found.position_mm == pytest.approx(straight.position_mm, abs=0.1)


def test_hip_start_of_a_single_limb():
    phantom = make_phantom("bones", seed=203)
    found = hip_start(phantom.image)
    assert "single limb" in found.reason and found.confidence <= 0.5
    height = phantom.image.geometry.world((0, 0, found.index))[2]
    assert abs(height - first_pelvis_mm(phantom)) <= 30  # two slices of 14.5 mm


def test_a_view_that_cuts_the_pelvis_starts_with_it(legs):
    top = round(legs.image.geometry.index((0, 0, first_pelvis_mm(legs) - 80))[2])
    cut = legs.image.cropped((0, 0, 0), (*legs.image.geometry.shape[:2], top))
    found = hip_start(cut)
    assert found.index == top - 1 and "first slice shows pelvis" in found.reason


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [(-400, 150, "apart in every slice"), (420, 600, "nowhere apart"), (-400, 362, "less than 30 mm below")],
    ids=["below", "trunk", "almost"],
)
def test_no_hip_is_guessed(legs, low, high, reason):
    start, stop = (round(legs.image.geometry.index((0, 0, height))[2]) for height in (low, high))
    found = hip_start(legs.image.cropped((0, 0, max(start, 0)), (*legs.image.geometry.shape[:2], stop)))
    assert found.index is None and found.position_mm is None and found.confidence == 0 and reason in found.reason


def test_nothing_in_nothing():
    empty = Volume(np.zeros((20, 20, 20)), Geometry((20, 20, 20), np.eye(4)))
    assert "no body" in hip_start(empty).reason
    assert list(separate_legs(empty)) == ["unknown"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("leg_dixon/test_up.nii.gz", None),
        ("leg_dixon/test_low.nii.gz", None),
        ("leg_dixon/siemens_thigh/0006-Dixon_TE_345_th.nii.gz", None),
        ("pelvis_ct/example_ct.nii.gz", None),
        ("thigh_fat_water/Thigh_001_0000.nii.gz", 15),
        ("thigh_fat_water/Thigh_002_0001.nii.gz", 15),
    ],
)
def test_real_scans_by_eye(data_dir, name, found):
    """The thighs of two patients end at the hip joints: pelvis from the first slice on. The others show no join."""
    assert hip_start(read_volume(data_dir / name)).index == found


@pytest.mark.parametrize("orientation", ["LPS", "IAR"])
def test_below_hip_by_labels_slice_and_detector(legs, orientation):
    image, labels = legs.image.reoriented(orientation), legs.labels.reoriented(orientation)
    cut, cut_labels = below_hip(image, labels)
    assert cut.geometry.same_grid(cut_labels.geometry)
    assert np.count_nonzero(cut_labels.array) == np.count_nonzero(labels.array)
    axis, upwards = superior_axis(cut.geometry)
    assert np.take(cut_labels.array, -1 if upwards else 0, axis).any()
    count = image.geometry.shape[axis]
    hip = 100 if upwards else count - 101
    assert below_hip(image, hip=hip, margin=7)[0].geometry.shape[axis] == 101 + 7
    assert below_hip(image, hip=hip, margin=1000)[0].geometry.shape[axis] == count
    found = hip_start(image).index
    length = (found + 1 if upwards else count - found) + 3
    kept, none = below_hip(image, margin=3)
    assert none is None and kept.geometry.shape[axis] == length
    world = kept.geometry.world((0, 0, 0))
    np.testing.assert_allclose(image.geometry.index(world), np.rint(image.geometry.index(world)), atol=1e-9)


def test_ignored_voxels_are_no_labels():
    grid = Geometry((1, 1, 10), np.eye(4))
    labels = Volume(np.array([[[1, 1, 1, 1, 1, 0, 0, 9, 9, 9]]]), grid)
    image = Volume(np.ones((1, 1, 10)), grid)
    assert below_hip(image, labels, ignore=9)[0].geometry.shape[2] == 5
    assert below_hip(image, labels)[0].geometry.shape[2] == 10


def test_below_hip_refuses(legs):
    with pytest.raises(ValueError, match="hip slice is 144"):
        below_hip(legs.image, hip=144)
    with pytest.raises(ValueError, match="margin -1"):
        below_hip(legs.image, margin=-1)
    with pytest.raises(ValueError, match="the hip was not found: no body"):
        below_hip(legs.image.with_array(np.zeros(legs.image.array.shape)))


def test_leg_parts_overlap_from_the_top():
    ramp = Volume(np.broadcast_to(np.arange(100.0), (1, 1, 100)).copy(), Geometry((1, 1, 100), np.eye(4)))
    for volume in (ramp, ramp.reoriented("RAI")):
        parts = leg_parts(volume)
        spans = {name: (part.array.min(), part.array.max()) for name, part in parts.items()}
        assert spans == {"abdomen": (60, 99), "upper": (24, 79), "lower": (0, 43)}
        places = parts["upper"].geometry.world([[0, 0, 0], [0, 0, 55]])[:, 2]
        assert sorted(places) == [24, 79]
    assert leg_parts(ramp, {"half": (0.5, 1)})["half"].array.max() == 49
    with pytest.raises(ValueError, match="part 'x' goes from 0.5 to 0.5"):
        leg_parts(ramp, {"x": (0.5, 0.5)})


def side_shares(side, labels, label_map):
    """Share of each side's labelled voxels that a cut kept: (own, other)."""
    kept, total = (np.bincount(one.array.ravel(), minlength=256) for one in (side, labels))
    of = {name: [k for k, n in label_map.names.items() if LabelMap.side(n) == name] for name in ("left", "right")}
    return {name: kept[keys].sum() / total[keys].sum() for name, keys in of.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["lower-limb", "thigh"])
def test_sides_are_never_exchanged(kind, seed):
    phantom = make_phantom(kind, seed=seed, scale=4)
    flip = ORIENTATIONS[seed % len(ORIENTATIONS)]
    for image, labels in (
        (phantom.image.reoriented(flip), phantom.labels.reoriented(flip)),
        (tilted(phantom.image), tilted(phantom.labels, labels=True)),
    ):
        midline = find_midline(image)
        for side, other in (("left", "right"), ("right", "left")):
            shares = side_shares(one_leg(labels, midline, side, fill=0), labels, phantom.label_map)
            assert shares[side] > 0.999 and shares[other] < 0.001


def test_separate_legs_cuts_the_image_and_blanks_the_other_leg(legs):
    cut = separate_legs(legs.image)
    assert list(cut) == ["left", "right"]
    for side, sign in (("left", -1), ("right", 1)):
        leg = cut[side]
        assert leg.geometry.orientation == "RAS" and leg.geometry.shape[0] < 0.6 * legs.image.geometry.shape[0]
        bright = np.argwhere(leg.array > 0.3 * leg.array.max())
        assert sign * np.median(leg.geometry.world(bright)[:, 0]) > 50


def test_the_other_leg_is_blanked_by_each_channels_least_value():
    midline, grid = Midline(np.zeros(1), np.zeros(1)), Geometry((4, 4, 4), ROTATED)
    array = np.random.default_rng(0).uniform(10, 20, (4, 4, 4, 2)) * (1, -1)
    leg = one_leg(Volume(array, grid), midline, "left")
    theirs = leg.geometry.world(np.moveaxis(np.indices(leg.geometry.shape), 0, -1))[..., 0] >= 0
    assert theirs.any()
    for channel in range(2):
        assert (leg.array[theirs, channel] == array[..., channel].min()).all()


def test_a_header_with_a_wrong_voxel_size_asks_for_no_terabytes():
    volume = Volume(np.ones((20, 20, 20)), Geometry((20, 20, 20), np.diag([2e5, 2e5, 2e5, 1])))
    with pytest.raises(ValueError, match="the scan is 4,000 m long; check the voxel size"):
        hip_start(volume)


def test_touching_thighs_are_two_legs():
    """Two discs of 90 mm radius whose centres are 170 mm apart: they overlap by 10 mm."""
    grid = Geometry((100, 60, 10), np.diag([4.0, 4.0, 10.0, 1.0]))
    x, y, _ = (axis * step for axis, step in zip(np.indices(grid.shape), grid.spacing, strict=True))
    body = (np.hypot(x - 115, y - 118) < 90) | (np.hypot(x - 285, y - 118) < 90)
    midline = find_midline(Volume(body * 100.0, grid))
    np.testing.assert_allclose(midline.x_mm, 200, atol=4)


def test_one_leg_alone_has_no_side():
    phantom = make_phantom("bones", seed=201)
    cut = separate_legs(phantom.image)
    assert list(cut) == ["unknown"] and cut["unknown"] is phantom.image


def test_one_leg_refuses(legs):
    midline = find_midline(legs.image)
    with pytest.raises(ValueError, match="side is 'middle'"):
        one_leg(legs.image, midline, "middle")
    far = legs.image.cropped((80, 0, 0), legs.image.geometry.shape)
    with pytest.raises(ValueError, match="left side of the midline is outside the view"):
        one_leg(far, midline, "left")


def test_orientation_codes_are_nibabels():
    assert orientations.aff2axcodes(np.eye(4)) == ("R", "A", "S")
    assert superior_axis(Geometry((2, 2, 2), np.diag([1.0, 1.0, -1.0, 1.0]))) == (2, False)
