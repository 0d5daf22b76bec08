"""Prediction of whole volumes, judged by SimpleITK, SciPy and nibabel, by relations and by networks done by hand."""

import itertools

import keras
import nibabel
import numpy as np
import pytest
import SimpleITK
from known_networks import (
    FEMUR_SIDES,
    KINDS,
    SCANS,
    THRESHOLDS,
    TURN,
    linear_network,
    make_run,
    make_spec,
    random_network,
    random_scan,
    scan_grid,
    threshold_network,
    thresholded,
)

from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.inference import load_run, predict_probabilities, predict_volume
from tfmuscle.io import read_volume, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.volume import Volume

# Keras 3.15 hands NumPy 2 its variables without the `copy` keyword when it saves a model; ends with Keras' own fix.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.mark.parametrize("geometry", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("kind", KINDS)
def test_labels_lie_on_the_scan_voxel_by_voxel(kind, geometry, tmp_path):
    spec, image = make_spec(kind), random_scan(geometry)
    labels = predict_volume(make_run(threshold_network(spec), spec), image)
    assert labels.array.dtype == np.uint8 and labels.geometry is image.geometry
    write_volume(tmp_path / "scan.nii.gz", image.with_array(image.array[..., 0]))
    write_volume(tmp_path / "labels.nii.gz", labels)

    scan, found = nibabel.load(tmp_path / "scan.nii.gz"), nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found.dataobj), thresholded(scan.get_fdata()))
    scan, found = (SimpleITK.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("scan", "labels"))
    for one, other in zip(
        found.GetDirection() + found.GetOrigin(), scan.GetDirection() + scan.GetOrigin(), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(found), thresholded(SimpleITK.GetArrayFromImage(scan)))


def test_an_untracked_sweep_keeps_its_axes():
    spec, image = make_spec(orientation=None), random_scan(scan_grid((11, 12, 9), (0.5, 0.2, 0.2)))
    labels = predict_volume(make_run(threshold_network(spec), spec), image)
    np.testing.assert_array_equal(labels.array, thresholded(image.array[..., 0]))


def test_a_resampled_and_cropped_scan_is_labelled_in_place():
    # A bright box in air on a 1 mm grid; the network sees 1.5 mm voxels of the box alone and calls all of it muscle.
    geometry = scan_grid((20, 18, 16), orientation="LPS", oblique=True)
    image = np.zeros((*geometry.shape, 1), np.float32)
    image[4:16, 3:12, 2:14] = 1.5
    spec = make_spec("volumes", spacing=(1.5, 1.5, 1.5), crop_nonzero=True)
    labels = predict_volume(make_run(threshold_network(spec), spec), Volume(image, geometry))
    np.testing.assert_array_equal(labels.array, 4 * (image[..., 0] > 0))


def test_a_smooth_ball_is_found_through_a_resampled_grid():
    # Intensity falls linearly from 4 at the centre; it passes 1 at radius 12 mm and 2 at 8 mm. On 1.5 mm voxels a
    # linear field is interpolated without error, but the network's softmax moves the border by less than half a voxel.
    geometry = scan_grid((36, 36, 18), (1.0, 1.0, 2.0), orientation="LPS", oblique=True)
    centre = geometry.world([17.5, 17.5, 8.5])
    radius = np.linalg.norm(geometry.world(np.moveaxis(np.indices(geometry.shape), 0, -1)) - centre, axis=-1)
    image = np.float32(4 - radius / 4)
    spec = make_spec("volumes", spacing=(1.5, 1.5, 1.5), size=(16, 16), depth=16)
    labels = predict_volume(make_run(threshold_network(spec), spec), Volume(image, geometry)).array
    clear = (np.abs(radius - 12) > 0.75) & (np.abs(radius - 8) > 0.75)
    np.testing.assert_array_equal(labels[clear], thresholded(image)[clear])
    ball_ml = 4 / 3 * np.pi * 12**3 / 1000
    assert (labels > 0).sum() * geometry.voxel_volume_ml == pytest.approx(ball_ml, rel=0.02)


# --- windows, batches, progress ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_network_is_constant_everywhere(kind):
    spec = make_spec(kind)
    run = make_run(linear_network(spec, [0, 0, 0], np.log([0.2, 0.5, 0.3])), spec)
    probabilities = predict_probabilities(run, random_scan(scan_grid((11, 13, 10))))
    assert probabilities.array.shape == (10, 13, 11, 3) and probabilities.geometry.orientation == "SPL"
    np.testing.assert_allclose(probabilities.array, np.broadcast_to([0.2, 0.5, 0.3], (10, 13, 11, 3)), atol=1e-6)


def test_windows_give_what_one_large_window_gives():
    # The network looks at single voxels, so that tiles cannot differ from the whole.
    image, results = random_scan(scan_grid((11, 13, 10))), []
    for size, depth in (((8, 8), 4), ((13, 11), 10), ((16, 16), 16)):
        spec = make_spec("volumes", size=size, depth=depth)
        results.append(predict_probabilities(make_run(threshold_network(spec), spec), image).array)
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    np.testing.assert_allclose(results[2], results[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_batch_size_does_not_change_the_result_nor_compile_again(kind):
    spec = make_spec(kind)
    run, image = make_run(random_network(spec), spec), random_scan(scan_grid((11, 13, 10)))
    first = predict_probabilities(run, image, batch_size=1).array
    for batch_size in (3, 1000, None):
        other = predict_probabilities(run, image, batch_size=batch_size).array
        np.testing.assert_allclose(other, first, atol=1e-5)  # float32 sums in another order
    assert run.forward.experimental_get_tracing_count() == 1


def test_progress_counts_every_window():
    # Size 11 by windows of 8 with step 4 gives starts 0 and 3 on both in-plane axes: 4 windows in each of 3 slices.
    spec, calls = make_spec(), []
    run = make_run(threshold_network(spec), spec)
    image = random_scan(scan_grid((11, 11, 3)))
    predict_volume(run, image, batch_size=5, progress=lambda *call: calls.append(call))
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_probabilities_and_labels_agree():
    spec = make_spec("volumes")
    run, image = make_run(random_network(spec), spec), random_scan(scan_grid((9, 10, 7)))
    indices = predict_probabilities(run, image).array.argmax(-1).transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(predict_volume(run, image).array, THRESHOLDS.decode(indices))


# --- mirrors and sides ------------------------------------------------------------------------------------------------


def mirror_scan(volume, letters="LR"):
    """The scan mirrored in its own array along one anatomical direction, on the same grid."""
    axis = next(a for a, letter in enumerate(volume.geometry.orientation) if letter in letters)
    return volume.with_array(np.flip(volume.array, axis))


ALL_MIRRORS = itertools.product(["slices", "stacks", "sequences", "volumes"], ["LR", "AP", "SI"])
MIRRORS = [pair for pair in ALL_MIRRORS if pair not in (("stacks", "SI"), ("sequences", "SI"))]  # there order matters


@pytest.mark.parametrize("kind, letters", MIRRORS)
def test_a_mirrored_scan_gives_mirrored_labels(kind, letters):
    depth = {"stacks": 5, "sequences": 3, "volumes": 8}.get(kind, 1)
    spec = make_spec(kind, label_map=FEMUR_SIDES, size=(8, 8), depth=depth)
    run, image = make_run(random_network(spec), spec), random_scan(scan_grid((8, 8, 8), orientation="LPS"))
    straight, mirrored = (predict_probabilities(run, scan) for scan in (image, mirror_scan(image, letters)))
    expected = mirror_scan(straight, letters).array[..., [0, 2, 1] if letters == "LR" else [0, 1, 2]]
    np.testing.assert_allclose(mirrored.array, expected, atol=1e-5)
    plain = [predict_probabilities(run, scan, mirror=False) for scan in (image, mirror_scan(image, letters))]
    if letters != "SI" or kind == "volumes":  # the network itself has no such symmetry
        assert np.abs(plain[1].array - mirror_scan(plain[0], letters).array).max() > 0.05
    ids = predict_volume(run, image).array, predict_volume(run, mirror_scan(image, letters)).array
    swapped = np.select([ids[0] == 3, ids[0] == 7], [7, 3], 0) if letters == "LR" else ids[0]
    axis = {"LR": 0, "AP": 1, "SI": 2}[letters]
    assert (ids[1] == np.flip(swapped, axis)).mean() > 0.99  # ties aside


def side_network(spec):
    """Bright is a femur: left in the half with the higher columns, for after "SPL" columns grow to the Left."""
    image = keras.Input(spec.input_shape, name="image")
    columns = spec.size[1]
    ramp = np.sign(np.arange(columns) - (columns - 1) / 2).astype(np.float32)[:, np.newaxis]
    ramp = np.tile(ramp, (spec.size[0], 1, 1))  # a whole plane: keras.ops.add takes a vector for a bias of axis 1
    bright = keras.layers.Rescaling(8.0, -4.0)(image)
    logits = keras.ops.concatenate([keras.ops.zeros_like(bright), bright + 3 * ramp, bright - 3 * ramp], axis=-1)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(logits))


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("kind", ["slices", "volumes"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "PIR", "SPL"])
def test_left_never_becomes_right(orientation, kind, mirror):
    spec = make_spec(kind, label_map=FEMUR_SIDES, size=(14, 14), depth=14 if kind == "volumes" else 1)
    geometry = scan_grid((14, 14, 14), orientation=orientation, oblique=orientation == "LPS")
    world = geometry.world(np.moveaxis(np.indices(geometry.shape), 0, -1)) - geometry.world([6.5, 6.5, 6.5])
    across = world @ TURN[:, 0] if orientation == "LPS" else world[..., 0]
    bright = (np.abs(np.abs(across) - 4) < 2) & (np.abs(world[..., 2]) < 5)
    image = Volume(bright[..., np.newaxis].astype(np.float32), geometry)
    found = predict_volume(make_run(side_network(spec), spec), image, mirror=mirror).array
    assert set(np.unique(found)) == {0, 3, 7}
    np.testing.assert_array_equal(found, np.select([bright & (across < 0), bright & (across > 0)], [3, 7], 0))


def test_without_sides_in_the_names_a_mirror_would_mix_them():
    # The control of the test above: the exchange of classes is what keeps the sides apart.
    spec = make_spec(label_map=LabelMap({3: "first", 7: "second"}), size=(14, 14))
    image = Volume(np.ones((14, 14, 1, 1), np.float32), scan_grid((14, 14, 1)))
    probabilities = predict_probabilities(make_run(side_network(spec), spec), image).array
    np.testing.assert_allclose(probabilities[..., 1], probabilities[..., 2], atol=1e-6)


@pytest.mark.parametrize(
    "names, orientation", [({3: "femur_left", 7: "bone"}, "SPL"), ({3: "femur_left", 7: "femur_right"}, None)]
)
def test_sides_that_cannot_be_exchanged_are_never_mirrored(names, orientation):
    # A side without a partner, and sides on axes nobody knows: the network differs between columns only, so no change.
    spec = make_spec("volumes", label_map=LabelMap(names), orientation=orientation, size=(14, 14), depth=14)
    run, image = make_run(side_network(spec), spec), random_scan(scan_grid((14, 14, 14)))
    mirrored, plain = (predict_probabilities(run, image, mirror=mirror).array for mirror in (True, False))
    np.testing.assert_allclose(mirrored, plain, atol=1e-6)


@pytest.mark.parametrize(
    "recipe, mirrored", [({}, True), ({"mirror": False}, False), ({"augmentation": "none"}, False)]
)
def test_a_network_that_never_saw_mirrored_images_is_not_given_any(recipe, mirrored):
    spec = make_spec("volumes")
    run, image = make_run(random_network(spec), spec, **recipe), random_scan(scan_grid((8, 8, 6)))
    difference = predict_probabilities(run, image).array - predict_probabilities(run, image, mirror=False).array
    assert (np.abs(difference).max() > 0.01) == mirrored


def test_only_mirrors_of_the_recipe_are_asked_for():
    # "ni" trains with left/right mirrors alone: the answer follows a left/right mirror of the scan, and no other.
    spec = make_spec("volumes", label_map=FEMUR_SIDES, size=(8, 8), depth=8)
    image = random_scan(scan_grid((8, 8, 8), orientation="LPS"))
    run = make_run(random_network(spec), spec, augmentation="ni")
    straight = predict_probabilities(run, image)
    for letters, classes in (("LR", [0, 2, 1]), ("AP", [0, 1, 2])):
        mirrored = predict_probabilities(run, mirror_scan(image, letters)).array
        difference = np.abs(mirrored - mirror_scan(straight, letters).array[..., classes]).max()
        assert (difference < 1e-5) == (letters == "LR")


def test_a_recipe_that_mirrors_one_sided_labels_in_training_does_not_in_prediction():
    spec = make_spec("volumes", label_map=LabelMap({3: "femur_left", 7: "bone"}), size=(14, 14), depth=14)
    run = make_run(side_network(spec), spec, augmentation="cheena")
    image = random_scan(scan_grid((14, 14, 14)))
    mirrored, plain = (predict_probabilities(run, image, mirror=mirror).array for mirror in (True, False))
    np.testing.assert_allclose(mirrored, plain, atol=1e-6)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of the threshold network."""
    folder, spec = tmp_path / "run", make_spec()
    folder.mkdir()
    spec.save(folder / "spec.json")
    TrainConfig().save(folder / "train.json")
    threshold_network(spec).save(folder / "best.keras")
    (folder / "about.json").write_text("{}")
    return folder


def test_a_run_folder_predicts(run_folder, tmp_path):
    run, image = load_run(run_folder), random_scan(scan_grid((9, 9, 4), orientation="LAS"))
    assert run.warning == "" and run.path == run_folder
    assert run.spec.to_dict() == make_spec().to_dict() and run.config == TrainConfig()
    write_volume(tmp_path / "scan.nii.gz", image.with_array(image.array[..., 0]))
    labels = predict_volume(run, read_volume(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(labels.array, thresholded(image.array[..., 0]))
    assert labels.source == str(tmp_path / "scan.nii.gz")


def test_an_unfinished_run_predicts_with_a_warning(run_folder):
    (run_folder / "about.json").unlink()
    assert "training has not finished; the best weights so far are used" in load_run(run_folder).warning


@pytest.mark.parametrize(
    "gone, message",
    [
        (["spec.json"], r"not a run folder \(spec.json missing\)"),
        (["spec.json", "train.json"], r"not a run folder \(spec.json, train.json missing\)"),
        (["best.keras"], "best.keras is missing, no epoch has ended yet"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(run_folder, gone, message):
    for name in gone:
        (run_folder / name).unlink()
    with pytest.raises(DataError, match=message):
        load_run(run_folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such folder; give the run folder"):
        load_run(tmp_path / "nothing")


def test_weights_of_another_run_are_refused(run_folder):
    make_spec(size=(16, 16)).save(run_folder / "spec.json")
    with pytest.raises(DataError, match=r"best.keras: does not take samples of shape \(16, 16, 1\)") as caught:
        load_run(run_folder)
    assert "\n" not in str(caught.value)
    make_spec(label_map=FEMUR_SIDES.merged({"femur": ["femur_left"]})[0]).save(run_folder / "spec.json")
    with pytest.raises(DataError, match=r"returns \(8, 8, 3\) where spec.json needs \(8, 8, 2\)"):
        load_run(run_folder)


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_the_main_output_of_a_network_with_several_is_used(structure):
    spec = make_spec()
    base = threshold_network(spec)
    half = keras.layers.AveragePooling2D(2, name="half")(base.output)
    outputs = {"half": half, "probabilities": base.output} if structure == "dict" else [half, base.output]
    run, image = make_run(keras.Model(base.input, outputs), spec), random_scan(scan_grid((8, 9, 3)))
    np.testing.assert_array_equal(predict_volume(run, image).array, thresholded(image.array[..., 0]))


def test_not_a_number_is_refused():
    spec = make_spec()
    run = make_run(linear_network(spec, [0, 0, np.nan], [0, 0, 0]), spec)
    with pytest.raises(DataError, match="the network returns values that are not numbers; train again"):
        predict_volume(run, random_scan(scan_grid((8, 8, 2))))


def test_wrong_arguments_are_refused():
    spec = make_spec()
    run, image = make_run(threshold_network(spec), spec), random_scan(scan_grid((8, 8, 2)))
    with pytest.raises(ValueError, match="batch_size is 0; at least one window"):
        predict_volume(run, image, batch_size=0)
    with pytest.raises(DataError, match="2 channels, 1"):
        predict_volume(run, image.with_array(np.repeat(image.array, 2, axis=-1)))
