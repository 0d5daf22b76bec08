"""Named recipes: how often, how far, in which plane, and what they say of the user's labels."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from augmentation_samples import BOTH, NO_SIDE, ONE_SIDE, make_sample, variants

from tfmuscle import augmentation
from tfmuscle.augmentation import CHEENA, MEHRABI, NI, NNUNET, POSITIONAL, Magnitudes, largest_angles, notes
from tfmuscle.config import AUGMENTATIONS, DataSpec, Supervised
from tfmuscle.labels import IGNORE

SLICES = DataSpec(NO_SIDE, size=(16, 12), channels=("in", "out"))
VOLUMES = DataSpec(NO_SIDE, kind="volumes", size=(12, 10), depth=8)
CHANCES = [item.name for item in dataclasses.fields(Magnitudes) if item.name in (
    "spatial", "rotation_alone", "scale_alone", "morphology", "noise", "blur", "brightness", "contrast",
    "low_resolution", "gamma", "gamma_inverted", "crop",
)]  # fmt: skip


def only(amounts, *kept, **changes):
    """`amounts` with every transform but `kept` switched off."""
    return dataclasses.replace(amounts, **{name: 0.0 for name in CHANCES if name not in kept} | changes)


def within(count, trials, probability):
    """Whether a count is within 4 standard deviations of a binomial; missed once in 16,000 by chance."""
    return abs(count - trials * probability) <= 4 * math.sqrt(trials * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_recipe_keeps_shapes_and_classes(name):
    spec = VOLUMES if name in ("ni", "cheena_coronal", "nnunet") else SLICES
    assert Supervised(augmentation=name).augmentation == name  # what `fit --augmentation` accepts
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels, spec, count=2, recipe=name):
        assert new_image.shape == spec.input_shape and np.isfinite(new_image).all()
        assert new_labels.shape == spec.label_shape and set(np.unique(new_labels)) <= {IGNORE, 0, 1, 2}


@pytest.mark.parametrize(
    ("kept", "probability"),
    [
        ("rotation_alone", 0.2), ("scale_alone", 0.2), ("noise", 0.1), ("brightness", 0.15), ("contrast", 0.15),
        ("gamma", 0.3), ("gamma_inverted", 0.1), ("blur", 0.2 * 0.75), ("low_resolution", 0.25 * 0.75),
    ],
)  # fmt: skip
def test_nnunet_happens_as_often_as_it_says(kept, probability):
    image, labels = make_sample(SLICES)
    made = variants(image, labels, SLICES, count=600, recipe=only(NNUNET, kept), mirror=False)
    changed = np.array([np.abs(new - image).max((0, 1)) > 1e-4 for new, _ in made])
    assert within(changed.any(-1).sum(), 600, probability)  # of two channels with 1/2 each, 3/4 have at least one
    if kept in ("blur", "low_resolution"):
        assert within(changed.all(-1).sum(), 600, probability / 3)  # and 1/4 have both
    else:
        assert (changed.any(-1) == changed.all(-1)).all()
    moved = sum((new != labels).any() for _, new in made)
    assert (moved > 0) == (kept in ("rotation_alone", "scale_alone"))


def test_channels_have_factors_of_their_own_and_half_are_below_one():
    image = np.ones(SLICES.input_shape, np.float32)
    amounts = only(NNUNET, brightness=1.0, brightness_factor=(0.5, 3.0))
    factors = np.array([new[0, 0] for new, _ in variants(image, np.ones((16, 12), int), SLICES, count=400,
                                                         recipe=amounts)])  # fmt: skip
    assert (factors >= 0.5).all() and (factors <= 3).all() and (factors[:, 0] != factors[:, 1]).all()
    assert within((factors < 1).sum(), 800, 0.5)  # uniform in 0.5..3 would be 0.2
    assert abs(np.corrcoef(factors.T)[0, 1]) < 4 / math.sqrt(400)


def test_nnunet_keeps_the_range_in_contrast_and_the_moments_in_gamma():
    image, labels = make_sample(SLICES)
    for new, _ in variants(image, labels, SLICES, count=6, recipe=only(NNUNET, contrast=1.0), mirror=False):
        assert (new.min((0, 1)) >= image.min((0, 1))).all() and (new.max((0, 1)) <= image.max((0, 1))).all()
        assert np.abs(new - image).max() > 1e-3
    for kept in ("gamma", "gamma_inverted"):
        for new, _ in variants(image, labels, SLICES, count=6, recipe=only(NNUNET, **{kept: 1.0}), mirror=False):
            np.testing.assert_allclose(new.mean((0, 1)), image.mean((0, 1)), atol=1e-4)  # float32 of 192 values
            np.testing.assert_allclose(new.std((0, 1)), image.std((0, 1)), rtol=1e-4)


@pytest.mark.parametrize(
    ("amounts", "angles", "settings"),
    [
        (NNUNET, (180,), {"size": (96, 96)}),
        (NNUNET, (15,), {"size": (96, 60)}),  # 96 / 60 = 1.6 is over 1.5
        (NNUNET, (180,), {"size": (96, 64)}),  # 1.5 is not
        (NNUNET, (30,), {"size": (96, 96), "label_map": BOTH}),
        (NNUNET, (15,), {"size": (96, 60), "label_map": BOTH}),
        (NNUNET, (30, 30, 30), {"kind": "volumes", "size": (96, 96), "depth": 32}),  # 96 / 32 = 3 is not over 3
        (NNUNET, (180,), {"kind": "volumes", "size": (96, 96), "depth": 31}),
        (NNUNET, (30,), {"kind": "volumes", "size": (96, 96), "depth": 31, "label_map": BOTH}),
        (NNUNET, (30, 30, 30), {"kind": "volumes", "size": (9, 9), "depth": 9, "spacing": (5.0, 1.0, 1.0)}),
        (augmentation.FULL, (30, 0, 0), {"kind": "volumes", "size": (9, 9), "depth": 9, "spacing": (5.0, 1.0, 1.0)}),
        (NI, (10, 10, 10), {"kind": "volumes", "size": (9, 9), "depth": 9}),
        (CHEENA, (15,), {"size": (9, 9)}),
        (CHEENA, (0, 15, 0), {"kind": "volumes", "size": (9, 9), "depth": 9, "orientation": "RSA"}),
        (augmentation.CHEENA_CORONAL, (0, 15, 0), {"kind": "volumes", "size": (9, 9), "depth": 9}),  # SPL
        (augmentation.POSITIONAL_PAPER, (180,), {"size": (9, 9)}),
        (augmentation.POSITIONAL_PAPER, (30,), {"size": (9, 9), "label_map": ONE_SIDE}),
    ],
)
def test_how_far_a_recipe_turns(amounts, angles, settings):
    assert largest_angles(amounts, DataSpec(**{"label_map": NO_SIDE} | settings)) == angles


def test_nnunet_turns_upside_down_only_without_sides():
    mark = np.zeros((21, 21, 1), np.float32)
    mark[1:5, 9:12] = 1  # near the first row
    rows, columns = np.mgrid[:21, :21] - 10
    for label_map, upright in ((NO_SIDE, False), (BOTH, True)):
        spec = DataSpec(label_map, size=(21, 21))
        turn = only(NNUNET, rotation_alone=1.0)
        made = variants(mark, np.zeros((21, 21), int), spec, count=60, recipe=turn, mirror=False)
        angles = [math.degrees(math.atan2((new[..., 0] * columns).sum(), -(new[..., 0] * rows).sum()))
                  for new, _ in made]  # fmt: skip
        assert (np.abs(angles).max() <= 31) == upright and np.abs(angles).max() > 20


def test_a_flat_patch_moves_as_a_pile_of_slices():
    spec = DataSpec(NO_SIDE, kind="volumes", size=(20, 20), depth=4)
    plane = np.random.default_rng(0).normal(size=(20, 20, 1)).astype(np.float32)
    image, labels = np.stack([plane + number for number in range(4)]), np.ones(spec.label_shape, int)
    for kept in ({"rotation_alone": 1.0, "scale_alone": 1.0}, {"low_resolution": 1.0, "channel_share": 1.0}):
        recipe = only(NNUNET, **kept)
        for new, new_labels in variants(image, labels, spec, count=4, recipe=recipe, mirror=False):
            known = new_labels[0] == 1
            steps = np.diff(new[..., 0], axis=0)[:, known]
            np.testing.assert_allclose(steps, 1.0, atol=1e-5)  # slices alike, none mixed with its neighbour
            assert (new_labels == new_labels[:1]).all() and np.abs(new - image).max() > 0.1


def test_mehrabi_shifts_by_a_twentieth_and_changes_outlines():
    spec = DataSpec(NO_SIDE, size=(40, 40))
    labels = np.zeros((40, 40), int)
    labels[15:25, 15:25] = 1
    image = labels[..., None].astype(np.float32)
    still = {"rotation": 0.0, "scale": (1.0, 1.0)}
    made = variants(image, labels, spec, count=200, recipe=only(MEHRABI, "spatial", **still), mirror=False)
    offsets = np.array([np.array(np.nonzero(new == 1)).mean(1) for _, new in made]) - 19.5
    assert 1.5 < np.abs(offsets).max() <= 2.5 and (offsets.std(0) > 0.8).all()  # 5 % of 40, and rounding
    made = variants(image, labels, spec, count=300, recipe=only(MEHRABI, "morphology"), mirror=False)
    areas = [(new == 1).sum() for _, new in made]
    assert set(areas) == {100, 140, 64} and within(300 - areas.count(100), 300, 0.3)
    made = variants(image * 0, labels, spec, count=300, recipe=only(MEHRABI, "noise"), mirror=False)
    deviations = np.array([new.std() for new, _ in made])
    assert within((deviations > 0).sum(), 300, 0.5) and 0.09 < deviations.max() < 0.11  # U(0, 0.1), 1600 values each


def test_ni_exchanges_left_and_right_and_mirrors_nothing_else():
    spec = DataSpec(BOTH, kind="volumes", size=(8, 10), depth=6)  # SPL: columns run to the left
    assert augmentation.recipe_axes("ni", spec) == (2,)
    labels = np.zeros(spec.label_shape, int)
    labels[:3, :4, 5:], labels[:3, :4, :5] = 1, 2
    image = np.arange(10, dtype=np.float32) * np.ones(spec.input_shape, np.float32)[..., :1].reshape(6, 8, 10)
    made = variants(image[..., None], labels, spec, count=100, recipe=only(NI))
    mirrored = sum(new[0, 0, 0, 0] == 9 for new, _ in made)
    assert within(mirrored, 100, 0.5)
    for _, new in made:
        np.testing.assert_array_equal(new, labels)  # a symmetric pair is its own mirror image


def test_cheena_moves_a_scan_alike_and_scans_differently():
    spec = DataSpec(NO_SIDE, size=(20, 20))
    image, labels = make_sample(spec)

    def one(number, scan):
        return augmentation.augment(image, labels, seed=[number, 7], recipe="cheena", spec=spec, scan_seed=[scan, 1])

    first, same, other = (one(*pair)[0].numpy() for pair in ((0, 0), (5, 0), (0, 5)))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).mean() > 0.1


@pytest.mark.parametrize(("plane", "axis"), [("axial", 0), ("coronal", 1), ("sagittal", 2)])
def test_volumes_turn_in_the_plane_asked_for(plane, axis):
    spec = DataSpec(NO_SIDE, kind="volumes", size=(12, 12), depth=12)  # SPL
    image = np.arange(12, dtype=np.float32).reshape([-1 if number == axis else 1 for number in range(4)])
    image = image * np.ones(spec.input_shape, np.float32)  # constant in the plane: turning in it changes nothing
    turn = Magnitudes(spatial=1.0, rotation=30, plane=plane)
    labels = np.zeros(spec.label_shape, int)
    labels[:6, :6, :6] = 1
    moved = 0
    for new, new_labels in variants(image, labels, spec, count=4, recipe=turn, mirror=False):
        known = new_labels != IGNORE
        np.testing.assert_allclose(new[known], image[known], atol=1e-4)
        moved += (new_labels != labels).any()
    assert moved >= 2  # an angle below 5 degrees moves no label: fewer than 2 of 4 with probability 0.02, seeds fixed


def test_cheena_mirrors_one_leg_and_says_so():
    spec = DataSpec(ONE_SIDE, size=(6, 8))
    labels = np.zeros((6, 8), int)
    labels[:, 5:] = 1
    image = labels[..., None].astype(np.float32)
    made = variants(image, labels, spec, count=60, recipe=only(CHEENA))
    assert within(sum((new[:, 0] == 1).all() for _, new in made), 60, 0.5)
    assert all((new == image[..., 0]).all() or (new == image[:, ::-1, 0]).all() for _, new in made)
    for _, new in variants(image, labels, spec, count=8, recipe=only(CHEENA), mirror=False):
        np.testing.assert_array_equal(new, labels)
    assert augmentation.recipe_axes("mehrabi", spec) == ()


@pytest.mark.parametrize(
    ("name", "label_map", "settings", "said"),
    [
        ("none", ONE_SIDE, {}, []),
        ("nnunet", BOTH, {}, ["nnunet turns by ±30 degrees, not ±180, because labels have a side"]),
        ("nnunet", NO_SIDE, {}, []),
        ("cheena", ONE_SIDE, {}, ["mirrors, though a sided label has no partner: it keeps its name"]),
        ("cheena", NO_SIDE, {}, ["where one leg only is labelled, the copy has the labels on the other leg"]),
        ("cheena", BOTH, {}, []),
        ("cheena", BOTH, {"orientation": None}, ["does not mirror, because no axis is known to be left/right"]),
        (
            "cheena_coronal",
            BOTH,
            {},
            ["turns slices in their own plane; for the coronal plane build records of volumes"],
        ),
        ("light", ONE_SIDE, {}, ["light does not mirror, because a sided label has no partner"]),
        ("ni", BOTH, {"orientation": "LPS"}, ["ni does not mirror, because slices do not show left and right"]),
    ],
)
def test_notes_say_what_a_dataset_meets(name, label_map, settings, said):
    found = notes(name, DataSpec(label_map, size=(9, 9), **settings))
    assert len(found) == len(said) and all(part in note for part, note in zip(said, found, strict=True))
    assert not any("mirror" in note for note in notes(name, DataSpec(label_map, size=(9, 9), **settings), mirror=False))


def test_positional_is_moved_or_cropped_by_whole_voxels():
    spec = DataSpec(NO_SIDE, size=(16, 24))
    image, labels = make_sample(spec)
    whole, trials = 0, 300
    values = set(image.ravel().tolist())
    for new, new_labels in variants(image, labels, spec, count=trials, recipe=POSITIONAL, mirror=False):
        cropped = set(new.ravel().tolist()) <= values
        whole += cropped
        if cropped:
            known = np.argwhere(new_labels != IGNORE)
            assert (16 - np.ptp(known[:, 0]) - 1 <= 3) and (
                24 - np.ptp(known[:, 1]) - 1 <= 4
            )  # an eighth; edges unknown
    assert within(whole, trials, 1 - 0.67)


def test_smoothed_noise_has_the_deviation_of_its_formula():
    shape, sigma = (120, 140), 5.0
    fields = [
        augmentation.noise_displacement(shape, seed=[number, 1], amplitude=100.0, sigma=sigma) for number in range(4)
    ]
    inner = np.array([[part.numpy()[20:-20, 20:-20] for part in field] for field in fields])
    # (80 · 100) / (4 pi · 25) = 25 independent spots a field, 8 fields: the deviation is known to 1 / sqrt(400) = 5 %
    assert inner.std() == pytest.approx(100 * math.sqrt(1 / 3) / (2 * sigma * math.sqrt(math.pi)), rel=0.2)
    rough = np.abs(np.diff(inner, axis=-1)).mean() / np.abs(inner).mean()
    assert rough == pytest.approx(1 / (sigma * math.sqrt(2)), rel=0.2)  # correlation exp(-d² / 4 sigma²) at d = 1


def test_an_offset_moves_the_window():
    image = np.arange(30, dtype=np.float32).reshape(5, 6, 1)
    labels = np.arange(30).reshape(5, 6)
    new, new_labels = augmentation.move(tf.constant(image), tf.constant(labels), tf.eye(2), tf.constant([1.0, -2.0]))
    assert new_labels.numpy()[0, 2] == labels[1, 0] and (new_labels.numpy()[:4, 2:] == labels[1:, :4]).all()
    assert (new_labels.numpy()[4] == IGNORE).all() and (new.numpy()[:, :2] == 0).all()
