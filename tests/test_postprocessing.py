"""Cleaning of labels, judged by SciPy and scikit-image, by hand and by what must hold for any labels."""

import itertools
import json

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure

from tfmuscle.errors import DataError
from tfmuscle.labels import LabelMap
from tfmuscle.postprocessing import CHEENA, Cleaning, choose_cleaning, clean
from tfmuscle.preprocessing import Midline
from tfmuscle.volume import Geometry, Volume

BONES = LabelMap({1: "tibia", 2: "femur", 3: "fibula", 7: "pelvis"}, ignore=255)
EIGHT = np.ones((3, 3))


def volume(array, *, affine=None):
    array = np.asarray(array, dtype=np.uint8)
    return Volume(array, Geometry(array.shape, np.eye(4) if affine is None else affine), "labels.nii.gz")


def picture(text, *, letters=".abcd?", ids=(0, 1, 2, 3, 7, 255)):
    """One slice of labels from a drawing, as the only slice of a scan."""
    rows = [[ids[letters.index(letter)] for letter in row] for row in text.split()]
    return volume(np.array(rows)[..., np.newaxis])


def random_labels(seed, *, shape=(24, 22, 5)):
    """Ragged blobs with islands, holes and unknown voxels."""
    random = np.random.default_rng(seed)
    smooth = scipy.ndimage.gaussian_filter(random.normal(size=(5, *shape)), (0, *random.uniform(0.4, 2.5, 3)))
    ids = np.array([0, 1, 2, 3, 7])[smooth.argmax(axis=0)]
    ids[random.random(shape) < random.choice([0, 0.1, 0.4])] = 0
    ids[random.random(shape) < random.choice([0, 0.02])] = 255
    return volume(ids)


# --- denoising and filling --------------------------------------------------------------------------------------------


def test_small_components_go_and_the_largest_stays():
    # Structure a has 40 + 6 + 5 + 1 + 1 = 53 pixels: below 0.15 * 53 = 7.95 go all but the largest; of 4 pixels of b
    # there is one component only, which stays though 5 are asked for.
    image = np.zeros((20, 20), int)
    image[0:5, 0:8], image[8:10, 0:3], image[12, 0:5], image[15, 0], image[17, 0] = 1, 1, 1, 1, 1
    image[10:12, 10:12] = 2
    expected = np.where(np.arange(20)[:, np.newaxis] < 5, image, 0)
    expected[10:12, 10:12] = 2
    found = clean(volume(image[..., np.newaxis]), Cleaning(denoise=True), BONES)
    np.testing.assert_array_equal(found.array[..., 0], expected)


@pytest.mark.parametrize(("pixels", "stays"), [(15, True), (14, False)])
def test_a_component_of_exactly_the_share_stays(pixels, stays):
    image = np.zeros((30, 10), int)
    image[0:10, 0:9], image[11, 0 : 100 - 90 - 10 + 5] = 1, 0
    image[0:10, 0:10].flat[: 100 - pixels] = 1
    image[0:10, 0:10].flat[100 - pixels :] = 0
    image[12:14, :].flat[:pixels] = 1  # 100 pixels in all, so that the threshold is 15
    assert image.sum() == 100
    found = clean(volume(image[..., np.newaxis]), Cleaning(denoise=True), BONES).array[..., 0]
    assert found[12:].any() == stays and found.sum() == (100 if stays else 100 - pixels)


def test_corners_connect_and_slices_do_not():
    image = np.zeros((12, 12, 2), int)
    image[np.arange(10), np.arange(10), 0] = 1  # a diagonal of 10 pixels is one component
    image[0:2, 0:2, 1] = 1  # above it 4 pixels, the largest of their own slice
    np.testing.assert_array_equal(clean(volume(image), CHEENA, BONES).array, image)


def test_holes_are_filled_into_background_only():
    before = """
        aaaaaaa....
        a.....a.bbb
        a.bbb.a.b.b
        a.b.b.a.b.b
        a.bbb.a.bb.
        a....?a....
        aaaaaaa...."""
    after = """
        aaaaaaa....
        aaaaaaa.bbb
        aabbbaa.bbb
        aabbbaa.bbb
        aabbbaa.bb.
        aaaaa?a....
        aaaaaaa...."""
    found = clean(picture(before), Cleaning(fill_holes=True), BONES)
    np.testing.assert_array_equal(found.array, picture(after).array)


def test_background_enclosed_by_two_structures_together_stays():
    before = picture(".aaa. .a.b. .abb.")
    np.testing.assert_array_equal(clean(before, CHEENA, BONES).array, before.array)


def test_holes_of_single_structures_are_those_of_scipy():
    for seed in range(20):
        labels = random_labels(seed)
        mask = volume(labels.array == 1)
        found = clean(mask, Cleaning(fill_holes=True), BONES).array
        expected = np.stack([scipy.ndimage.binary_fill_holes(mask.array[..., n]) for n in range(5)], axis=-1)
        np.testing.assert_array_equal(found, expected)


def components(plane, key):
    numbers, count = scipy.ndimage.label(plane == key, EIGHT)
    return [int((numbers == n).sum()) for n in range(1, count + 1)]


@pytest.mark.parametrize("seed", range(40))
def test_what_must_hold_for_any_labels(seed):
    labels = random_labels(seed)
    found = clean(labels, CHEENA, BONES)
    np.testing.assert_array_equal(clean(found, CHEENA, BONES).array, found.array, err_msg="not idempotent")
    np.testing.assert_array_equal(found.array == 255, labels.array == 255)
    assert found.array.dtype == np.uint8 and found.geometry is labels.geometry
    for plane, before in zip(np.moveaxis(found.array, 2, 0), np.moveaxis(labels.array, 2, 0), strict=True):
        assert set(np.unique(plane)) - {0} == set(np.unique(before)) - {0}, "a structure vanished or appeared"
        for key in (1, 2, 3, 7):
            sizes = components(plane, key)
            assert all(size >= max(5, 0.15 * sum(sizes)) or size == max(sizes) for size in sizes)
            hole = scipy.ndimage.binary_fill_holes(plane == key) & (plane == 0)
            assert not (hole & scipy.ndimage.binary_dilation(plane == key)).any()


def test_filling_alone_and_denoising_alone_are_idempotent():
    for cleaning, seed in itertools.product((Cleaning(denoise=True), Cleaning(fill_holes=True)), range(20)):
        labels = random_labels(seed)
        once = clean(labels, cleaning, BONES)
        changed = (once.array if cleaning.denoise else labels.array)[once.array != labels.array]
        assert not changed.any(), "denoising makes background only, filling takes background only"
        np.testing.assert_array_equal(clean(once, cleaning, BONES).array, once.array)


def test_filling_that_raises_the_threshold_is_followed_by_denoising():
    # A ring of 44 pixels and a spot of 8: 8 >= 0.15 * 52. The filled ring has 144: 8 < 0.15 * 152, so the spot goes.
    image = np.zeros((20, 20), int)
    image[0:12, 0:12], image[1:11, 1:11], image[15:17, 0:4] = 1, 0, 1
    expected = np.zeros((20, 20), int)
    expected[0:12, 0:12] = 1
    np.testing.assert_array_equal(clean(volume(image[..., np.newaxis]), CHEENA, BONES).array[..., 0], expected)


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "ALS", None])
def test_the_slice_axis_is_that_of_the_recipe_however_the_scan_is_stored(orientation):
    labels = random_labels(3, shape=(14, 15, 16))
    here = {"SPL": 2, "RAS": 0, "ALS": 1, None: 2}[orientation]  # axis of the "RAS" scan that slices run along
    planes = [volume(np.take(labels.array, n, here)[..., np.newaxis]) for n in range(labels.array.shape[here])]
    expected = np.stack([clean(plane, CHEENA, BONES).array[..., 0] for plane in planes], axis=here)
    assert (expected != labels.array).any()
    np.testing.assert_array_equal(clean(labels, CHEENA, BONES, orientation=orientation).array, expected)
    if orientation is not None:
        stored = labels.reoriented("PIL")
        found = clean(stored, CHEENA, BONES, orientation=orientation).reoriented("RAS")
        np.testing.assert_array_equal(found.array, expected)


# --- largest components and sides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_largest_components_are_those_of_scikit_image(seed):
    labels = random_labels(seed, shape=(12, 11, 13))
    known = np.where(labels.array == 255, 0, labels.array)

    def largest(mask):
        numbers = skimage.measure.label(mask)  # its default joins all 26 neighbours
        sizes = np.bincount(numbers.ravel())[1:]
        return np.isin(numbers, np.flatnonzero(sizes == sizes.max(initial=0)) + 1) if len(sizes) else mask

    expected = np.where(largest(known > 0) | (labels.array == 255), labels.array, 0)
    found = clean(labels, Cleaning(largest_foreground=True), BONES)
    np.testing.assert_array_equal(found.array, expected)
    expected = np.where((labels.array == 2) & ~largest(labels.array == 2), 0, labels.array)
    found = clean(volume(np.asfortranarray(labels.array)), Cleaning(largest=("femur",)), BONES)
    np.testing.assert_array_equal(found.array, expected)


def two_legs(*, flipped=False):
    """A tibia on the left (x = 2..3 of 20) and two on the right, the scan's x axis running either way."""
    image = np.zeros((20, 6, 6), int)
    image[2:4, 1:4, 1:4], image[12:15, 1:4, 1:4], image[17:19, 1:4, 1:4] = 1, 1, 2
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 3] = 100.0
    labels = volume(image, affine=affine)
    return labels.reoriented("LAS") if flipped else labels


@pytest.mark.parametrize("flipped", [False, True])
def test_components_beyond_the_midline_go(flipped):
    labels = two_legs(flipped=flipped)
    x = labels.geometry.world(np.moveaxis(np.indices(labels.array.shape), 0, -1))[..., 0]
    left = clean(labels, Cleaning(side="left"), BONES).array
    np.testing.assert_array_equal(left, np.where(x < 119, labels.array, 0))  # the view's middle: 100 + 2 * 9.5
    right = clean(labels, Cleaning(side="right"), BONES).array
    np.testing.assert_array_equal(right, np.where(x > 119, labels.array, 0))
    found = clean(labels, Cleaning(side="right"), BONES, midline=Midline(np.array([0.0]), np.array([131.0]))).array
    np.testing.assert_array_equal(found, np.where(labels.array == 2, 2, 0))


def test_nothing_to_clean_is_left_alone():
    empty = volume(np.zeros((4, 5, 6)))
    everything = Cleaning(True, ("tibia",), True, True, "left")
    assert not clean(empty, everything, BONES).array.any()
    labels = random_labels(1)
    before = labels.array.copy()
    assert clean(labels, Cleaning(), BONES).array is not labels.array
    clean(labels, everything, BONES)
    np.testing.assert_array_equal(labels.array, before)
    assert not Cleaning() and CHEENA


# --- the choice by cross-validation -----------------------------------------------------------------------------------


def subject(*, spot=0, femurs=1, tibias=1):
    """Reference with a large tibia and a large femur that touch, and a prediction with further spots."""
    reference = np.zeros((14, 10, 10), int)
    reference[0:4, 1:9, 1:9], reference[4:8, 1:9, 1:9] = 1, 2
    prediction = reference.copy()
    prediction[10, :tibias, 0], prediction[12, :femurs, 5] = 1, 2
    reference[10, 0, 0] = spot  # 1: the spot of the tibia is truly there
    return volume(prediction), volume(reference)


def test_spots_beside_all_structures_choose_the_largest_foreground():
    assert choose_cleaning([subject(), subject()], BONES) == Cleaning(largest_foreground=True)


def test_a_structure_that_would_get_worse_forbids_it_and_the_others_are_cleaned_alone():
    # The true spot of the tibia is one voxel, the wrong ones of the femur are eight: the mean would grow, and yet.
    pairs = [subject(spot=1, femurs=8)]
    assert choose_cleaning(pairs, BONES) == Cleaning(largest=("femur",))


def test_touching_spots_are_found_structure_by_structure():
    prediction, reference = subject(tibias=0, femurs=0)
    array = prediction.array.copy()
    array[0, 1:4, 1] = 2  # a femur inside the tibia: one foreground, two femurs
    assert choose_cleaning([(volume(array), reference)], BONES) == Cleaning(largest=("femur",))


def test_perfect_predictions_need_no_cleaning():
    _, reference = subject()
    assert choose_cleaning([(reference, reference)], BONES) == Cleaning()
    empty = volume(np.zeros((3, 3, 3)))
    assert choose_cleaning([(empty, empty)], BONES) == Cleaning()


def test_unknown_voxels_do_not_count():
    prediction, reference = subject(tibias=0, femurs=4)
    array = reference.array.copy()
    array[12] = 255  # nobody knows what is where the spots are
    assert choose_cleaning([(prediction, volume(array))], BONES) == Cleaning()


def test_the_choice_never_lowers_the_dice_it_was_made_on():
    def mean_dice(pairs):
        values = [[], [], [], []]
        for one, other in pairs:
            for n, key in enumerate((1, 2, 3, 7)):
                a, b = (one.array == key) & (other.array != 255), other.array == key
                values[n].append(2 * (a & b).sum() / (a.sum() + b.sum()))
        return np.mean(values, axis=1)

    for seed in range(5):
        pairs = []
        for n in range(3):
            reference = random_labels(100 * seed + n)
            noise = np.random.default_rng(seed).random(reference.array.shape) < 0.05
            pairs.append((volume(np.where(noise, 2, reference.array) % 255), reference))
        chosen = choose_cleaning(iter(pairs), BONES)
        after = [(clean(one, chosen, BONES), other) for one, other in pairs]
        assert (mean_dice(after) >= mean_dice(pairs) - 1e-12).all()


# --- files and errors -------------------------------------------------------------------------------------------------


def test_a_cleaning_survives_its_file(tmp_path):
    cleaning = Cleaning(True, ("tibia", "femur"), True, False, "right")
    cleaning.save(tmp_path / "postprocessing.json")
    assert Cleaning.load(tmp_path / "postprocessing.json") == cleaning


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"denoize": True}, "unknown step 'denoize'; there are largest_foreground, "),
        ({"denoise": 1}, "denoise is 1; true or false is needed"),
        ({"largest": "tibia"}, "largest is 'tibia'; a list of structures is needed"),
        ({"side": "both"}, "side is 'both'; choose one of left, right, or none"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "postprocessing.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=f"postprocessing.json: {message}"):
        Cleaning.load(path)


def test_labels_that_do_not_fit_are_refused():
    labels = volume(np.full((2, 2, 2), 9))
    with pytest.raises(ValueError, match=r"label ids \[9\] are not in the label map \[0, 1, 2, 3, 7\]; name them"):
        clean(labels, CHEENA, BONES)
    with pytest.raises(ValueError, match="no label is called 'patella'"):
        clean(volume(np.zeros((2, 2, 2))), Cleaning(largest=("patella",)), BONES)
    with pytest.raises(ValueError, match="no predictions to choose a cleaning by"):
        choose_cleaning([], BONES)
    with pytest.raises(ValueError, match="labels.nii.gz: not on its reference's grid"):
        choose_cleaning([(volume(np.zeros((2, 2, 2))), volume(np.zeros((2, 2, 3))))], BONES)
    with pytest.raises(ValueError, match=r"label ids \[9\] of a reference are not in"):
        choose_cleaning([(volume(np.zeros((2, 2, 2))), labels)], BONES)
