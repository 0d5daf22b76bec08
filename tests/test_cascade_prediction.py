"""A scan labelled by a cascade of networks that are right by construction: what is left to err is the geometry.

Scans have one channel for each muscle, 1 inside it, so that a network which looks at its channel finds its muscle to
the half voxel; sides are told by a coordinate that a convolution with a half-empty kernel counts.
"""

import dataclasses

import cascades
import keras
import numpy as np
import pytest
from keras import layers

from tfmuscle.cascade import Box, make_plan, observe
from tfmuscle.config import Cascade, DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import write_json
from tfmuscle.inference import NETWORKS_FOLDER, Run, load_cascade, predict_cascade, volumes
from tfmuscle.inference import cascade as prediction
from tfmuscle.inference.cascade import _pieces
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import dice
from tfmuscle.volume import Geometry, Volume

SETTINGS = Cascade(
    coarse_voxels=16_000, fine_voxels=8000, normalisation="none", bias_field=False, folds=2, coarse_multiple=4
)
BASE = DataSpec(
    cascades.LABEL_MAP,
    kind="volumes",
    patches="whole",
    orientation="SPL",
    normalisation="none",
    channels=cascades.MUSCLES,
)
SURE = 20.0


def chosen(image, kernel):
    """Returns one channel, made of the image's by fixed weights `(1, 1, K, C, 1)`."""
    layer = layers.Conv3D(1, kernel.shape[:3], padding="same", use_bias=False)
    found = layer(image)
    layer.set_weights([kernel.astype(np.float32)])
    return found


def inside(image, muscle):
    """Returns a score that is positive where the muscle's channel is above one half."""
    kernel = np.zeros((1, 1, 1, len(cascades.MUSCLES), 1))
    kernel[..., cascades.MUSCLES.index(muscle), 0] = 1
    return layers.Rescaling(SURE, -SURE / 2)(chosen(image, kernel))


def columns(image, width):
    """Returns the number of each voxel's column, from 1, counted by a convolution that looks to one side."""
    kernel = np.zeros((1, 1, 2 * width - 1, len(cascades.MUSCLES), 1))
    kernel[:, :, :width] = 1 / len(cascades.MUSCLES)  # the voxels before, and the voxel itself
    return chosen(layers.Rescaling(0.0, 1.0)(image), kernel)


def group_network(spec):
    image = keras.Input(spec.input_shape, name="image")
    width = spec.size[1]
    left = layers.Rescaling(SURE, -SURE * (width / 2 + 0.5))(columns(image, width))  # columns grow to the left
    right = layers.Rescaling(-1.0)(left)
    scores = [chosen(image, np.zeros((1, 1, 1, len(cascades.MUSCLES), 1)))]
    for name in spec.label_map.structures:
        muscle, side = name.rsplit("_", 1)
        scores.append(layers.Minimum()([inside(image, muscle), left if side == "left" else right]))
    return keras.Model(image, layers.Softmax(name="probabilities")(layers.Concatenate()(scores)))


def muscle_network(spec, *, half=False):
    image = keras.Input(spec.input_shape, name="image")
    score = inside(image, spec.label_map.structures[0])
    if half:  # only the half of the box with the lower columns: on a right leg the lateral one
        width = spec.size[1]
        lateral = layers.Rescaling(-SURE, SURE * (width / 2 + 0.5))(columns(image, width))
        score = layers.Minimum()([score, lateral])
    background = chosen(image, np.zeros((1, 1, 1, len(cascades.MUSCLES), 1)))
    return keras.Model(image, layers.Softmax(name="probabilities")(layers.Concatenate()([background, score])))


def blind_network(spec):
    image = keras.Input(spec.input_shape, name="image")
    layer = layers.Conv3D(spec.num_classes, 1)
    found = layers.Softmax(name="probabilities")(layer(image))
    layer.set_weights([np.zeros((1, 1, 1, len(cascades.MUSCLES), spec.num_classes)), np.eye(spec.num_classes)[0]])
    return keras.Model(image, found)


def scan(seed, orientation="RAS"):
    image, labels = cascades.legs(seed, orientation=orientation)
    return cascades.with_channels(image, labels), labels


def write_cascade(folder, settings=SETTINGS, *, half=False, blind=()):
    """Writes the run folder of a cascade whose networks know the phantom; those in `blind` see nothing."""
    seen = {str(seed): observe(cascades.legs(seed)[1], cascades.LABEL_MAP) for seed in range(3)}
    plan = make_plan(settings, BASE, seen, {"train": list(seen), "validation": [], "test": []}, {})
    folder.mkdir(parents=True)
    plan.save(folder / "cascade.json")
    for network in plan.networks:
        run = folder / NETWORKS_FOLDER / network.name
        run.mkdir(parents=True)
        network.spec.save(run / "spec.json")
        TrainConfig(recipe=Supervised(augmentation="none")).save(run / "train.json")
        write_json(run / "about.json", {"epochs": 1, "seconds": 1.0, "hardware": "none"})
        model = group_network(network.spec) if network in plan.groups else muscle_network(network.spec, half=half)
        model = blind_network(network.spec) if network.name in blind else model
        model.save(run / "best.keras")
    return load_cascade(folder)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return write_cascade(tmp_path_factory.mktemp("cascade") / "run")


def scores(labels, truth):
    found = {}
    for name in cascades.NAMES:
        key = cascades.LABEL_MAP.id_of(name)
        found[name] = dice(labels.array == key, truth.array == key)
    return found


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL"])
def test_muscles_are_found_on_the_scans_own_grid(cascade, orientation):
    image, truth = scan(7, orientation)
    result = predict_cascade(cascade, image)
    assert result.labels.geometry.same_grid(image.geometry)
    assert not result.lost
    assert min(scores(result.labels, truth).values()) > 0.9  # borders of coarser voxels are off by a part of one


def test_an_oblique_scan_keeps_its_sides(cascade):
    image, truth = scan(8)
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    geometry = Geometry(image.geometry.shape, turn @ image.geometry.affine)
    labels = predict_cascade(cascade, Volume(image.array, geometry)).labels
    assert labels.geometry is geometry
    assert min(scores(labels, truth).values()) > 0.9


def mixed_network(spec):
    """A network of a group that finds its muscles and does not know one leg from the other."""
    known, number = group_network(spec), spec.num_classes
    both = layers.Conv3D(number, 1, use_bias=False)
    found = both(known.output)
    mix = np.eye(number)
    for left, right in zip(range(1, number, 2), range(2, number, 2), strict=True):  # 0.6 of each goes to the wrong side
        mix[[left, left, right, right], [left, right, left, right]] = 0.4, 0.6, 0.6, 0.4
    both.set_weights([mix.reshape(1, 1, 1, number, number)])
    return keras.Model(known.input, layers.Activation("linear")(found))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "AIL"])
def test_the_midline_tells_sides_that_networks_confuse(tmp_path, orientation):
    cascade = write_cascade(tmp_path / "run")
    for group in cascade.plan.groups:
        mixed_network(group.spec).save(cascade.folder_of(group.name) / "best.keras")
    image, truth = scan(7, orientation)
    assert min(scores(predict_cascade(cascade, image).labels, truth).values()) > 0.9
    settings = dataclasses.replace(SETTINGS, telling_sides="network")
    trusting = dataclasses.replace(cascade, plan=dataclasses.replace(cascade.plan, settings=settings))
    assert max(scores(predict_cascade(trusting, image).labels, truth).values()) < 0.1  # every muscle in the other leg


def test_the_twin_in_the_other_leg_is_not_taken(cascade, monkeypatch):
    image, truth = scan(7)
    whole = prediction._find_group

    def both_legs(*arguments, mirror):
        coarse, found = whole(*arguments, mirror=mirror)
        return coarse, {
            name: Box((box.start[0], 0, 0), (box.stop[0], *coarse.shape[1:])) for name, box in found.items()
        }

    monkeypatch.setattr(prediction, "_find_group", both_legs)
    # boxes over both legs are seen coarsely, but no muscle is found in the wrong one
    assert min(scores(predict_cascade(cascade, image).labels, truth).values()) > 0.5
    monkeypatch.setattr(prediction, "MIDLINE_MARGIN_MM", 1000.0)
    assert min(scores(predict_cascade(cascade, image).labels, truth).values()) < 0.1


def test_what_reaches_over_the_midline_is_no_muscle_of_the_other_leg():
    label_map = LabelMap({1: "soleus_left", 2: "soleus_right", 3: "popliteus_left"})
    probabilities = np.zeros((1, 1, 40, 4), np.float32)
    probabilities[..., 0] = 0.4
    probabilities[0, 0, 19:32, 2] = 0.6  # called right, but it lies on the left but for one voxel
    probabilities[0, 0, 2:5, 3] = 0.6  # a muscle of one side stays what it is called
    left = np.arange(40).reshape(1, 1, 40) >= 20
    found = {name: np.flatnonzero(piece).tolist() for name, piece in _pieces(probabilities, label_map, left).items()}
    assert found == {"soleus_left": list(range(20, 32)), "popliteus_left": [2, 3, 4]}
    found = {name: np.flatnonzero(piece).tolist() for name, piece in _pieces(probabilities, label_map, None).items()}
    assert found == {"soleus_right": list(range(19, 32)), "popliteus_left": [2, 3, 4]}


def test_the_order_of_networks_and_the_roi_do_not_change_a_muscle(cascade):
    image, _ = scan(9)
    whole = predict_cascade(cascade, image).labels.array
    for roi in (["soleus"], ["popliteus_left", "soleus_right"]):
        alone = predict_cascade(cascade, image, roi=roi).labels.array
        asked = {part.removesuffix("_left").removesuffix("_right") for part in roi}
        names = [name for name in cascades.NAMES if name.rsplit("_", 1)[0] in asked]
        keys = [cascades.LABEL_MAP.id_of(name) for name in names]
        assert set(np.unique(alone)) == {0, *keys}
        assert np.array_equal(alone, np.where(np.isin(whole, keys), whole, 0))


def test_the_same_seed_gives_the_same_labels_and_another_other_boxes(cascade):
    image, _ = scan(10)
    first, again = (predict_cascade(cascade, image, roi=["soleus"]).labels.array for _ in range(2))
    assert np.array_equal(first, again)
    settings = dataclasses.replace(cascade.plan.settings, box_seed=5)
    other = dataclasses.replace(cascade, plan=dataclasses.replace(cascade.plan, settings=settings))
    assert not np.array_equal(first, predict_cascade(other, image, roi=["soleus"]).labels.array)


def test_left_legs_are_mirrored_before_a_network_sees_them(tmp_path):
    cascade = write_cascade(tmp_path / "run", dataclasses.replace(SETTINGS, boxes=2), half=True)
    image, truth = scan(11)
    labels = predict_cascade(cascade, image, roi=["rectus_femoris"]).labels
    for side, sign in (("left", -1), ("right", 1)):
        key = cascades.LABEL_MAP.id_of(f"rectus_femoris_{side}")
        centres = [
            np.mean(sign * volume.geometry.world(np.argwhere(volume.array == key))[:, 0]) for volume in (labels, truth)
        ]
        assert centres[0] > centres[1] + 2  # the network keeps the lateral half: away from the midline on both sides


def test_a_muscle_that_stage_1_lost_is_placed_by_its_neighbours(tmp_path):
    cascade = write_cascade(tmp_path / "run")
    group = cascade.plan.group_of("popliteus")
    run = cascade.folder_of(group.name)
    whole = group_network(group.spec)
    number = [group.spec.label_map.structures.index(f"popliteus_{side}") + 1 for side in ("left", "right")]
    keep = np.ones(group.spec.num_classes, np.float32)
    keep[number] = 0
    scale = layers.Conv3D(group.spec.num_classes, 1, use_bias=False)
    kept = scale(whole.output)
    scale.set_weights([np.diag(keep).reshape(1, 1, 1, len(keep), len(keep))])
    keras.Model(whole.input, layers.Activation("linear")(kept)).save(run / "best.keras")
    image, truth = scan(12)
    result = predict_cascade(cascade, image, roi=["popliteus"])
    assert result.placed == ("popliteus_left", "popliteus_right")
    found = scores(result.labels, truth)
    assert min(found["popliteus_left"], found["popliteus_right"]) > 0.7


def test_what_was_not_found_is_said(tmp_path):
    cascade = write_cascade(tmp_path / "run", blind=("group_01", "popliteus"))
    result = predict_cascade(cascade, scan(13)[0])
    assert "none of its group-mates" in result.lost["rectus_femoris_left"]
    assert result.lost["popliteus_right"] == "its network finds nothing in its box"
    assert "soleus_left" not in result.lost


def test_a_scan_that_shows_much_more_is_told_of(cascade):
    image, _ = scan(13)
    assert predict_cascade(cascade, image, roi=["soleus"]).notes == ()
    wide = np.zeros((64, 36, 80, 4), np.float32)
    wide[:, :, :40] = image.array
    (note,) = predict_cascade(
        cascade, Volume(wide, Geometry((64, 36, 80), image.geometry.affine)), roi=["soleus"]
    ).notes
    assert note.startswith("the scan is 2.00 times as long along the limb")


def test_boxes_go_through_the_network_within_the_budget(cascade, monkeypatch):
    image, _ = scan(10)
    whole = predict_cascade(cascade, image, roi=["popliteus"]).labels.array
    sizes, probabilities = [], Run.probabilities

    def counted(run, images):
        sizes.append(len(images))
        return probabilities(run, images)

    monkeypatch.setattr(Run, "probabilities", counted)
    monkeypatch.setattr(volumes, "WINDOW_BUDGET_VOXELS", 1)
    assert np.array_equal(whole, predict_cascade(cascade, image, roi=["popliteus"]).labels.array)
    assert set(sizes) == {1}


def test_progress_and_seconds_of_each_stage(cascade):
    told = []
    result = predict_cascade(cascade, scan(14)[0], roi=["soleus"], progress=lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]
    assert set(result.seconds) == {"prepare", "groups", "muscles", "join"}


def test_what_cannot_be_predicted(cascade, tmp_path):
    with pytest.raises(ValueError, match="nothing is called sartorius; there are group_01"):
        predict_cascade(cascade, scan(0)[0], roi=["sartorius"])
    damaged = write_cascade(tmp_path / "run")
    (damaged.folder_of("soleus") / "best.keras").unlink()
    with pytest.raises(DataError, match="1 of its networks are not trained: soleus"):
        predict_cascade(damaged, scan(0)[0])
    assert predict_cascade(damaged, scan(0)[0], roi=["rectus_femoris"]).lost == {}
