"""The graph that segments raw scans, judged by `predict_volume` and `preprocess`, and by nibabel for orientations."""

import itertools

import nibabel
import numpy as np
import pytest
import tensorflow as tf
from known_networks import (
    FEMUR_SIDES,
    KINDS,
    SCANS,
    linear_network,
    make_run,
    make_spec,
    random_network,
    random_scan,
    scan_grid,
    threshold_network,
)

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.export import geometry as g
from tfmuscle.export import segment
from tfmuscle.export.intensities import normalise
from tfmuscle.export.segment import Segmenter
from tfmuscle.inference import predict_volume
from tfmuscle.labels import LabelMap
from tfmuscle.preprocessing import preprocess
from tfmuscle.volume import Geometry, Volume

SHARE = 0.9999
"""Of the voxels have the same label; the rest lie where two classes are equally likely to the last digits."""


def graph_labels(graph, image):
    """Labels by a graph."""
    array = image.array if image.array.ndim == 4 else image.array[..., np.newaxis]
    return graph.segment(tf.constant(array, tf.float32), tf.constant(image.geometry.affine))["labels"].numpy()


def segmented(runs, image, *, mirror=False):
    return graph_labels(Segmenter(runs, mirror=mirror), image)


def agree(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found == expected).mean() >= SHARE


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_predict_on_every_grid(kind):
    spec = make_spec(kind)
    run = make_run(threshold_network(spec), spec)
    graph = Segmenter([run], mirror=False)
    for geometry in SCANS.values():
        image = random_scan(geometry)
        agree(graph_labels(graph, image), predict_volume(run, image).array)


CHANGES = {
    "finer": ("stacks", {"spacing": (1.5, 0.8, 0.7)}),
    "coarser, so blurred": ("volumes", {"spacing": (2.0, 3.1, 1.9)}),
    "resized": ("slices", {"resize": True, "size": (16, 12), "spacing": (1.0, 1.0, 1.0)}),
    "resized, slices as they are": ("stacks", {"resize": True, "size": (12, 16)}),
    "cropped": ("volumes", {"crop_nonzero": True, "spacing": (1.2, 1.2, 1.2)}),
    "logits": ("volumes", {"blend": "logits", "overlap": 0.75}),
    "logits of slices": ("slices", {"blend": "logits"}),
    "no patient": ("slices", {"orientation": None}),
    "another orientation": ("stacks", {"orientation": "ARI"}),
}


@pytest.mark.parametrize(("kind", "change"), CHANGES.values(), ids=CHANGES)
def test_labels_are_those_of_predict_under_every_setting(kind, change):
    spec = make_spec(kind, **change)
    image = random_scan(scan_grid((17, 19, 13), (0.9, 0.8, 1.7), orientation="LPS", oblique=True))
    image.array[:3], image.array[:, -2:] = 0, 0
    run = make_run(random_network(spec), spec)
    agree(segmented([run], image), predict_volume(run, image, mirror=False).array)


@pytest.mark.parametrize("letters", list(itertools.product("RL", "AP", "SI")), ids="".join)
def test_all_orientations_and_all_orders_of_axes(letters):
    for order in itertools.permutations(letters):
        affine = scan_grid((4, 5, 6), (1.0, 2.0, 3.0), orientation="".join(order), oblique=True).affine
        axes, flips = g.reorientation(tf.constant(affine), "SPL")
        volume = np.arange(120.0).reshape(4, 5, 6)
        expected = Volume(volume, Geometry((4, 5, 6), affine)).reoriented("SPL").array
        found = g.reoriented(tf.constant(volume[..., np.newaxis]), axes, flips).numpy()[..., 0]
        np.testing.assert_array_equal(found, expected)


def test_axes_of_a_strange_grid_are_chosen_as_nibabel_does():
    for seed in range(40):  # any three directions, also where two scan axes are nearest to one of the world's
        affine = np.eye(4)
        affine[:3, :3] = np.random.default_rng(seed).normal(size=(3, 3))
        expected = nibabel.io_orientation(affine)
        world, signs = g._nearest_axes(tf.constant(affine))
        np.testing.assert_array_equal(world.numpy(), expected[:, 0])
        np.testing.assert_array_equal(signs.numpy(), expected[:, 1])


@pytest.mark.parametrize("method", ["zscore", "zscore_all", "percentile", "minmax", "div255", "ct", "none"])
def test_intensities_are_those_of_preprocess(method):
    array = np.random.default_rng(3).gamma(2.0, 40.0, (9, 10, 11, 2)).clip(0, 255).astype(np.float32)
    array[:, :3] = 0
    statistics = ((50.0, 20.0, 5.0, 200.0), (40.0, 10.0, 0.0, 100.0)) if method == "ct" else None
    spec = DataSpec(LabelMap({1: "femur"}), channels=("a", "b"), normalisation=method, statistics=statistics)
    expected, _ = preprocess(Volume(array, Geometry((9, 10, 11), np.eye(4))), None, spec)
    found = normalise(g.reoriented(tf.constant(array), *g.reorientation(tf.eye(4, dtype=tf.float64), "SPL")), spec)
    np.testing.assert_allclose(found.numpy(), expected.array, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("method", ["zscore", "percentile", "minmax"])
def test_an_empty_scan_stays_empty(method):
    spec = DataSpec(LabelMap({1: "femur"}), normalisation=method)
    assert not normalise(tf.zeros((3, 4, 5, 1)), spec).numpy().any()


def test_mirrored_copies_and_runs_are_averaged_and_sides_exchanged():
    spec = make_spec("slices", label_map=FEMUR_SIDES, size=(16, 16))
    image = random_scan(scan_grid((15, 13, 4), orientation="LAS"))
    runs = [make_run(random_network(spec, seed=seed), spec) for seed in (1, 5)]
    alone, expected = predict_volume(runs, image, mirror=False).array, predict_volume(runs, image).array
    assert (alone != expected).any()
    agree(segmented(runs, image, mirror=True), expected)


def test_samples_are_served_as_the_mean_over_runs():
    spec = make_spec("volumes")
    runs = [make_run(random_network(spec, seed=seed), spec) for seed in (1, 5)]
    images = np.random.default_rng(0).normal(size=(3, *spec.input_shape)).astype(np.float32)
    found = Segmenter(runs, mirror=True).serve(tf.constant(images))["probabilities"].numpy()
    expected = np.mean([run.probabilities(images) for run in runs], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_many_ids_do_not_wrap():
    label_map = LabelMap({300: "femur", 9: "tibia"})
    spec = make_spec(label_map=label_map)
    run = make_run(linear_network(spec, [0, 0, 0], np.log([0.2, 0.3, 0.5])), spec)
    image = random_scan(scan_grid((11, 12, 9)))
    np.testing.assert_array_equal(segmented([run], image), predict_volume(run, image).array)


def test_a_scan_whose_probabilities_do_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(segment, "LARGEST_BYTES", 11 * 12 * 9 * 3 * 4 - 1)
    spec = make_spec()
    run = make_run(threshold_network(spec), spec)
    with pytest.raises(tf.errors.InvalidArgumentError, match="send windows to serving_default"):
        segmented([run], random_scan(scan_grid((11, 12, 9))))
    monkeypatch.setattr(segment, "LARGEST_BYTES", 11 * 12 * 9 * 3 * 4)
    segmented([run], random_scan(scan_grid((11, 12, 9))))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])])
def test_an_affine_of_no_scan_is_refused(bad):
    spec = make_spec()
    graph = Segmenter([make_run(threshold_network(spec), spec)], mirror=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="finite, invertible 4 x 4 matrix"):
        graph.segment(tf.zeros((11, 12, 9, 1)), tf.constant(bad))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bias_field": True}, "bias_field=True needs N4 correction"),
        ({"resampling": "nnunet"}, "resampling=nnunet needs cubic resampling"),
        ({"normalisation": "zscore_masked"}, "normalisation=zscore_masked needs filling the holes"),
        ({"prior": True}, "prior=True needs the labels of an earlier network"),
        ({"kind": "volumes", "patches": "boxes", "depth": 8}, "patches=boxes needs the regions and boxes"),
    ],
)
def test_what_a_graph_cannot_express_is_refused_by_name(setting, message):
    with pytest.raises(DataError, match=f"spec.json: {message}.*--no-segment"):
        segment.require(make_spec(**setting), "spec.json")
    assert segment.why_not(make_spec()) == ""
