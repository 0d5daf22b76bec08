"""Given labels, painted and deformed: nothing folds, nothing is torn, brightness gives no muscle away."""

import json

import numpy as np
import pytest
from scipy import ndimage

from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.phantom import deform_labels, image_from_labels, intensities
from tfmuscle.volume import Geometry, Volume

TWO_BALLS = LabelMap({1: "soleus", 2: "tibialis anterior", 3: "Left femur"})


def balls(spacing=(2.0, 2.0, 2.0), affine=None):
    """Two touching muscle boxes and a bone box in the middle of an empty grid."""
    array = np.zeros((60, 60, 20), dtype=np.int16)
    array[15:30, 15:45, 3:17] = 1
    array[30:45, 15:30, 3:17] = 2
    array[32:43, 32:43, 3:17] = 3
    return Volume(array, Geometry(array.shape, np.diag([*spacing, 1.0]) if affine is None else affine))


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


@pytest.mark.parametrize("orientation", ["LPS", "ASL", "SPR"])
def test_the_hull_does_not_depend_on_the_order_of_axes(orientation):
    plain = image_from_labels(balls(), TWO_BALLS, seed=1)
    turned = image_from_labels(balls().reoriented(orientation), TWO_BALLS, seed=1)
    first, second = (image.array > 0.2 * np.quantile(image.array, 0.99) for image in (plain, turned.reoriented("RAS")))
    assert turned.geometry.orientation == orientation
    assert (first & second).sum() > 0.97 * (first | second).sum()  # noise differs, the outline does not


def test_ignored_voxels_look_like_fat_and_empty_labels_like_air():
    label_map = LabelMap({1: "soleus"}, ignore=255)
    array = np.zeros((30, 30, 8), dtype=np.uint8)
    array[8:22, 8:22] = 1
    array[13:17, 13:17] = 255
    grid = Geometry(array.shape, np.diag([3.0, 3.0, 3.0, 1.0]))
    image = image_from_labels(Volume(array, grid), label_map, seed=0).array
    assert image[14:16, 14:16].mean() > 1.6 * image[9:12, 9:21].mean()
    empty = image_from_labels(Volume(np.zeros_like(array), grid), label_map, seed=0).array
    assert empty.max() < 0.5 * image.max() and empty.min() >= 0


# --- deformation ----------------------------------------------------------------------------------


def test_deformation_is_seeded_and_keeps_type_grid_and_ids():
    labels = balls()
    first, again, other = (deform_labels(labels, seed=seed) for seed in (1, 1, 2))
    assert first.array.tobytes() == again.array.tobytes() and first.array.tobytes() != other.array.tobytes()
    assert first.array.dtype == labels.array.dtype and first.geometry is labels.geometry
    assert set(np.unique(first.array)) == {0, 1, 2, 3}
    assert 0.05 < (first.array != labels.array).sum() / (labels.array > 0).sum() < 0.8


@pytest.mark.parametrize("seed", range(4))
def test_deformation_tears_nothing_apart(seed):
    labels = balls()
    deformed = deform_labels(labels, seed=seed, amplitude_mm=6.0)
    for label_id in (1, 2, 3):
        assert ndimage.label(deformed.array == label_id)[1] == 1
        ratio = (deformed.array == label_id).sum() / (labels.array == label_id).sum()
        assert 0.5 < ratio < 2.0


def test_without_amplitude_only_size_changes():
    # at most 4 % per axis: 100 voxels become 96 to 104, and one voxel of rounding
    array = np.zeros((120, 120, 120), dtype=np.uint8)
    array[10:110, 10:110, 10:110] = 1
    labels = Volume(array, Geometry(array.shape, np.eye(4)))
    sizes = []
    for seed in range(4):
        (box,) = ndimage.find_objects(deform_labels(labels, seed=seed, amplitude_mm=0.0).array)
        sizes += [part.stop - part.start for part in box]
    assert 95 <= min(sizes) < 100 < max(sizes) <= 105


def test_a_single_voxel_survives_every_deformation():
    array = np.zeros((24, 24, 24), dtype=np.uint8)
    array[6:18, 6:18, 6:18] = 1
    array[12, 11, 9] = 2
    labels = Volume(array, Geometry(array.shape, np.diag([8.0, 8.0, 8.0, 1.0])))
    for seed in range(25):
        assert 2 in deform_labels(labels, seed=seed, amplitude_mm=12.0).array


def test_bad_labels_are_refused():
    labels = balls()
    with pytest.raises(ValueError, match=r"label ids \[3\] are not in the label map"):
        image_from_labels(labels, LabelMap({1: "a", 2: "b"}), seed=0)
    with pytest.raises(ValueError, match="contrast is 'ct'"):
        image_from_labels(labels, TWO_BALLS, contrast="ct", seed=0)
    channels = labels.with_array(labels.array[..., None])
    with pytest.raises(ValueError, match="one id per voxel"):
        image_from_labels(channels, TWO_BALLS, seed=0)
    with pytest.raises(ValueError, match="one id per voxel"):
        deform_labels(channels, seed=0)


@pytest.mark.parametrize("amplitude_mm", [-1.0, 13.0, float("nan")])
def test_amplitudes_that_fold_are_refused(amplitude_mm):
    with pytest.raises(ValueError, match="use 0 to 12, more would fold the body"):
        deform_labels(balls(), seed=0, amplitude_mm=amplitude_mm)


def test_a_real_leg_is_deformed_and_painted(data_dir):
    stem = data_dir / "visible_human" / "VHF_Left_labels_1mm"
    whole = read_volume(f"{stem}.nii.gz")
    names = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["labels"]
    label_map = LabelMap({int(key): name for key, name in names.items()})
    assert sum(intensities.is_bone(name) for name in label_map.structures) == 5
    array = np.ascontiguousarray(whole.array[::3, ::3, ::8])
    labels = Volume(array, Geometry(array.shape, whole.geometry.affine @ np.diag([3.0, 3.0, 8.0, 1.0])))
    deformed = deform_labels(labels, seed=1)
    assert set(np.unique(deformed.array)) == set(np.unique(array))
    image = image_from_labels(deformed, label_map, seed=1).array
    muscles = muscle_ids(label_map)
    found = best_dice_from_brightness(image, deformed.array)[muscles]
    # calling every muscle voxel a muscle of volume share s scores 2 s / (1 + s); brightness adds little to that
    counts = np.bincount(deformed.array.ravel().astype(int))[muscles]
    share = counts / counts.sum()
    assert (found < np.maximum(1.15 * 2 * share / (1 + share), 0.1)).all()
