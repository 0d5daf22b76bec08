"""Rigid registration and merging: judged by motions that were applied here, and by SimpleITK's own resampling."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tfmuscle.phantom import make_phantom
from tfmuscle.registration import Match, likeness, merge_recordings, register_rigid
from tfmuscle.registration import _sitk_transform as sitk_transform
from tfmuscle.volume import Geometry, Volume

STAY = Match(np.eye(4), 1.0, 1.0, 1.0)
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def motion(degrees, shift, centre=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(centre) + shift - matrix[:3, :3] @ centre
    return matrix


def moved(volume, matrix):
    return Volume(volume.array, Geometry(volume.geometry.shape, matrix @ volume.geometry.affine), volume.source)


def sampled(volume, matrix, order):
    """The volume as an upright grid would record it after the limb moved by `matrix`: new voxels, new noise."""
    geometry = volume.geometry
    whole = np.linalg.inv(geometry.affine) @ np.linalg.inv(matrix) @ geometry.affine
    return ndimage.affine_transform(volume.array, whole[:3, :3], whole[:3, 3], order=order, mode="constant")


@pytest.fixture(scope="module")
def recordings():
    """A calf in two overlapping parts: the second moved, interpolated onto an upright grid, with noise of its own."""
    phantom = make_phantom("ultrasound", seed=3, scale=2)
    image, labels, depth = phantom.image, phantom.labels, phantom.image.geometry.shape[2]
    rng = np.random.default_rng(0)
    centre = image.geometry.world((np.array(image.geometry.shape) - 1) / 2)
    true = motion((4, -3, 6), (3, -4, 5), centre)  # carries the moving recording onto the fixed one
    away = np.linalg.inv(true)
    second = Volume(sampled(image, away, 1), image.geometry)
    seen = sampled(Volume(np.ones(labels.array.shape, np.float32), image.geometry), away, 1) > 0.99
    second_labels = Volume(np.where(seen, sampled(labels, away, 0), 255).astype(np.uint8), image.geometry)
    parts = []
    for volume, ids, start, stop in (
        (image, labels, 0, int(0.62 * depth)),
        (second, second_labels, int(0.38 * depth), depth),
    ):
        box = (0, 0, start), (*image.geometry.shape[:2], stop)
        part, part_ids = volume.cropped(*box), ids.cropped(*box)
        noise = rng.normal(0, 0.2 * part.array.std(), part.array.shape)
        parts.append((part.with_array(np.where(part.array == 0, 0, part.array + noise).astype(np.float32)), part_ids))
    return phantom, parts, true


@pytest.fixture(scope="module")
def match(recordings):
    _, ((fixed, _), (moving, _)), _ = recordings
    return register_rigid(moving, fixed)


def target_error(found, true, labels):
    """Distances in mm between where structures' voxels are put and where they belong."""
    points = labels.geometry.world(np.argwhere((labels.array > 0) & (labels.array < 255))[::200])
    places = [points @ matrix[:3, :3].T + matrix[:3, 3] for matrix in (found, true)]
    return np.linalg.norm(places[0] - places[1], axis=1)


def test_a_known_motion_is_found(recordings, match):
    _, ((fixed, _), (moving, labels)), true = recordings
    error = target_error(match.transform, true, labels)
    before = target_error(np.eye(4), true, labels)
    assert before.mean() > 5
    # a third of a voxel of 2.4 x 2.4 x 3 mm
    assert error.max() < 0.8, f"target registration error {error.mean():.2f} mm, at most {error.max():.2f}"
    assert match.is_trustworthy and match.after > match.before + 0.1
    assert likeness(moving, fixed, true)[0] == pytest.approx(match.after, abs=0.02)
    np.testing.assert_allclose(match.transform[:3, :3] @ match.transform[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(match.transform[:3, :3]) == pytest.approx(1)


def test_the_same_input_gives_the_same_motion(recordings, match):
    _, ((fixed, _), (moving, _)), _ = recordings
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
    try:
        again = register_rigid(moving, fixed)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert again.transform.tobytes() == match.transform.tobytes()


def test_handedness_against_simpleitk():
    """SimpleITK resamples the moving image with the transform we make; our world says where the bright voxel goes."""
    array = np.zeros((20, 24, 28), np.float32)
    array[4, 15, 9] = 1
    moving = Volume(array, Geometry(array.shape, np.diag([1.0, -1.0, 1.0, 1.0]) @ np.diag([1, 1.5, 2, 1])))
    fixed = Volume(np.ones((60, 60, 60), np.float32), Geometry((60, 60, 60), np.array(
        [[1, 0, 0, -30], [0, 1, 0, -50], [0, 0, 1, -10], [0, 0, 0, 1.0]])))  # fmt: skip
    true = motion((0, 0, 90), (3, -4, 5))
    world = true @ (*moving.geometry.world((4, 15, 9)), 1)
    expected = fixed.geometry.index(world[:3])
    images = []
    for volume in (fixed, moving):
        image = sitk.GetImageFromArray(volume.array.transpose(2, 1, 0))
        affine = FLIP @ volume.geometry.affine
        image.SetSpacing(volume.spacing)
        image.SetDirection((affine[:3, :3] / volume.spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        images.append(image)
    found = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], sitk_transform(true, fixed))).transpose(2, 1, 0)
    middle = np.argwhere(found > 0).T @ found[found > 0] / found.sum()
    np.testing.assert_allclose(middle, expected, atol=0.05)


def test_a_start_far_away_is_found_by_centres(recordings):
    _, ((fixed, _), _), _ = recordings
    far = motion((3, 2, -4), (200, 150, -120), fixed.geometry.world(np.array(fixed.array.shape) / 2))
    found = register_rigid(moved(fixed, np.linalg.inv(far)), fixed)
    points = fixed.geometry.world(np.array([[0, 0, 0], [60, 60, 25]])) @ np.linalg.inv(far)[:3, :3].T
    points = points + np.linalg.inv(far)[:3, 3]
    error = points @ (found.transform - far)[:3, :3].T + (found.transform - far)[:3, 3]
    assert np.linalg.norm(error, axis=1).max() < 0.5 and np.isnan(found.before)


def test_recordings_of_different_things_are_not_trusted():
    rng = np.random.default_rng(0)
    noise = [
        Volume(rng.normal(100, 20, (24, 24, 24)).astype(np.float32), Geometry((24, 24, 24), np.eye(4))) for _ in "ab"
    ]
    assert not register_rigid(*noise).is_trustworthy


def test_merged_labels_are_those_of_the_whole(recordings, match):
    phantom, ((fixed, fixed_labels), (moving, moving_labels)), _ = recordings
    merged = merge_recordings([fixed, moving], [STAY, match], labels=[fixed_labels, moving_labels], ignore=255)
    centres = phantom.labels.geometry.world(np.argwhere(phantom.labels.array >= 0))
    place = np.rint(merged.labels.geometry.index(centres)).astype(int)
    inside = ((place >= 0) & (place < merged.labels.array.shape)).all(axis=1)
    assert inside.mean() > 0.99
    found, true = merged.labels.array[tuple(place[inside].T)], phantom.labels.array.ravel()[inside]
    depth = int(0.38 * phantom.image.geometry.shape[2])
    for key in phantom.label_map.ids[1:]:
        known = found != 255
        dice = 2 * ((found == key) & (true == key)).sum() / ((found == key).sum() + ((true == key) & known).sum())
        assert dice > 0.96, f"{phantom.label_map.names[key]}: Dice {dice:.3f}"
    assert merged.image.geometry.shape[2] > fixed.geometry.shape[2] + depth / 2, "the union is longer than the first"


def block(values, start=0):
    """A row of voxels along axis 0."""
    affine = np.eye(4)
    affine[0, 3] = start
    array = np.array(values)[:, None, None] * np.ones((1, 3, 3), np.asarray(values).dtype)
    return Volume(array, Geometry(array.shape, affine))


def test_merging_by_hand():
    images = [block([10.0, 20.0, 30.0, 0.0]), block([50.0, 70.0, 90.0], start=2)]
    ids = [block([1, 1, 2, 9]), block([2, 1, 9], start=2)]
    merged = merge_recordings(images, [STAY, STAY], labels=ids, ignore=9)
    # position 2: (30 + 50) / 2; position 3: 0 was not seen; 4: only the second
    assert merged.image.array[:, 1, 1].tolist() == [10, 20, 40, 70, 90]
    # 2: both say 2; 3: one says 1, the other does not know; 4: nobody knows
    assert merged.labels.array[:, 1, 1].tolist() == [1, 1, 2, 1, 9]
    against = [block([1, 1, 2, 9]), block([3, 1, 9], start=2)]
    assert merge_recordings(images, [STAY, STAY], labels=against, ignore=9).labels.array[2, 1, 1] == 9
    back = Match(motion((0, 0, 0), (-1, 0, 0)), 1.0, 1.0, 1.0)  # the second one belongs 1 mm lower
    assert merge_recordings(images, [STAY, back]).image.array[:, 1, 1].tolist() == [10, 35, 50, 90]


def test_wrong_arguments_are_named():
    one = block([1.0, 2.0])
    with pytest.raises(ValueError, match="metric is 'mse'"):
        register_rigid(one, one, metric="mse")
    with pytest.raises(ValueError, match="has no content"):
        register_rigid(block([0.0, 0.0]), one)
    for start in (np.diag([2.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1]), np.eye(3)):
        with pytest.raises(ValueError, match="a start is a rigid 4x4 motion"):
            register_rigid(one, one, start=start)
    with pytest.raises(ValueError, match="do not fit"):
        merge_recordings([one], [STAY, STAY])
    with pytest.raises(ValueError, match="on the recording's grid"):
        merge_recordings([one], [STAY], labels=[block([1, 2, 3])])
