"""Random patches: whole scans in records, and what is drawn from them, judged by hand and by counting.

Every voxel of the scans says where it is: three channels hold its indices, so that a patch shows where it came from.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfmuscle import records
from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.records import scans
from tfmuscle.sampling import cut, window_origins
from tfmuscle.training import patches
from tfmuscle.training.batches import epoch_steps, training_batches, validation_batches
from tfmuscle.training.patches import draw_start, visits

MAP = LabelMap({1: "muscle", 2: "bone", 3: "nerve"})
INDICES = {"channels": ("z", "y", "x"), "patches": "random", "normalisation": "none"}
KINDS = {
    "slices": DataSpec(MAP, size=(6, 8), **INDICES),
    "stacks": DataSpec(MAP, kind="stacks", size=(6, 8), depth=3, **INDICES),
    "volumes": DataSpec(MAP, kind="volumes", size=(6, 8), depth=5, **INDICES),
}
SPEC = KINDS["volumes"]
SHAPES = [(12, 16, 14), (9, 20, 11), (14, 10, 30)]


def made_scan(shape, *, sparse=False):
    """Index channels; a large muscle, one voxel of bone, no nerve; of sparse labels only slice 2 and 3."""
    image = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32)
    labels = np.zeros(shape, np.int16)
    labels[2:8, 2:9, 2:9] = 1
    labels[3, 4, 5] = 2
    if sparse:
        labels[:2], labels[4:] = IGNORE, IGNORE
    return image, labels


def write(folder, spec, shapes=SHAPES, **how):
    paths = []
    for number, shape in enumerate(shapes):
        paths.append(folder / f"shard-{number:05d}.tfrecord")
        records.write_scan(paths[-1], *made_scan(shape, **how), spec, subject_id=f"s{number}")
    return paths


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request, tmp_path_factory):
    spec = KINDS[request.param]
    return spec, write(tmp_path_factory.mktemp(request.param), spec)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shards"), SPEC)


def config(**changes):
    recipe = Supervised(augmentation=changes.pop("augmentation", "none"), foreground=changes.pop("foreground", 0.33))
    return TrainConfig(**({"batch_size": 3, "epochs": 2, "seed": 5} | changes), recipe=recipe)


def drawn(paths, spec, settings, *, steps=8, first_epoch=0):
    """Images and labels of all epochs, one array each."""
    made = training_batches(paths, spec, settings, first_epoch=first_epoch, steps=steps)
    taken = list(made.take(steps * (settings.epochs - first_epoch)))
    return np.concatenate([image for image, _ in taken]), np.concatenate([labels for _, labels in taken])


def starts_of(scan, spec, count, *, forced):
    """Starts of several patches of one scan, `(count, 3)`."""
    draw = tf.function(lambda seed: draw_start(scan, spec, seed, tf.constant(forced)))
    return np.array([draw(tf.constant([number, 7], tf.int32)) for number in range(count)])


def empty(shape, *places):
    """A scan of unlabelled background, with given rows of class and voxel to centre on."""
    return {"labels": tf.zeros(shape, tf.int16), "places": tf.reshape(tf.constant(places, tf.int32), (-1, 4))}


def loaded(path, spec=SPEC):
    (scan,) = records.load_scans(tf.constant([str(path)]), spec)
    return scan


# ---------------------------------------------------------------- where a patch may lie


def test_every_start_inside_is_equally_likely():
    # axes of 7, 6 and 9 voxels, windows of 5, 6 and 8: 3 x 1 x 2 starts
    starts = starts_of(empty((7, 6, 9)), SPEC, 1500, forced=True)
    found, counts = np.unique(starts, axis=0, return_counts=True)
    assert found.tolist() == [[z, 0, x] for z in (0, 1, 2) for x in (0, 1)]
    assert np.abs(counts - 250).max() < 5 * np.sqrt(250)  # five standard deviations


def test_a_small_scan_is_padded_by_half_on_each_side():
    # 4 of 5, 2 of 6 and 5 of 8 voxels: 1, 4 and 3 are missing; of an odd number the last one lies on either side
    starts = set(map(tuple, starts_of(empty((4, 2, 5)), SPEC, 100, forced=False).tolist()))
    assert starts == {(z, -2, x) for z in (-1, 0) for x in (-2, -1)}


def test_a_centred_patch_begins_no_earlier_than_the_others():
    def start(voxel, shape=(20, 20, 20), spec=SPEC):
        return starts_of(empty(shape, (1, *voxel)), spec, 1, forced=True)[0].tolist()

    assert start((10, 11, 12)) == [8, 8, 8]  # minus 5 // 2, 6 // 2, 8 // 2
    assert start((1, 0, 19)) == [0, 0, 15]  # reaches 3 voxels beyond the end
    assert start((1, 9, 9), (3, 20, 20)) == [-1, 6, 5]
    assert start((1, 9, 9), spec=KINDS["stacks"]) == [1, 6, 5]  # a stack is placed by its middle


@pytest.mark.parametrize("sparse", [False, True])
def test_forced_patches_hold_each_structure_equally_often(tmp_path, sparse):
    scan = loaded(write(tmp_path, SPEC, SHAPES[:1], sparse=sparse)[0])
    starts = starts_of(scan, SPEC, 400, forced=True)
    _, labels = made_scan(SHAPES[0])
    centres = np.minimum(starts + (2, 3, 4), np.array(SHAPES[0]) - 1)
    moved = (starts == 0).any(axis=1)  # a patch that would begin before the scan
    assert set(labels[tuple(centres[~moved].T)]) == {1, 2}
    bone = (centres == (3, 4, 5)).all(axis=1).sum()
    assert abs(bone - 200) < 5 * 10 + 3  # one voxel against 293 of muscle; sd sqrt(400) / 2


def test_where_labels_are_sparse_no_patch_is_empty(tmp_path):
    spec = KINDS["slices"]
    scan = loaded(write(tmp_path, spec, SHAPES[:1], sparse=True)[0], spec)
    starts = starts_of(scan, spec, 100, forced=False)
    assert set(starts[:, 0]) == {2, 3} and len(np.unique(starts, axis=0)) > 30
    assert all((records.sample_of(scan, start, spec)[1].numpy() != IGNORE).any() for start in starts.astype(np.int32))


def test_a_scan_without_structures_is_drawn_anywhere(tmp_path):
    image, labels = made_scan(SHAPES[0])
    records.write_scan(tmp_path / "s.tfrecord", image, 0 * labels, SPEC, subject_id="s")
    assert records.read_scan(tmp_path / "s.tfrecord", SPEC).places == {}
    starts = starts_of(loaded(tmp_path / "s.tfrecord"), SPEC, 30, forced=True)
    assert len(np.unique(starts, axis=0)) > 20


# ---------------------------------------------------------------- whole scans in records


def test_a_scan_comes_back(any_kind):
    spec, paths = any_kind
    image, labels = made_scan(SHAPES[1])
    scan = records.read_scan(paths[1], spec)
    np.testing.assert_array_equal(scan.image, image)  # whole numbers below 2048 are exact in float16
    np.testing.assert_array_equal(scan.labels, labels)
    assert scan.air.tolist() == [0, 0, 0] and scan.subject_id == "s1"
    assert {number: len(places) for number, places in scan.places.items()} == {1: 6 * 7 * 7 - 1, 2: 1}
    assert all((labels[tuple(places.T)] == number).all() for number, places in scan.places.items())


def test_a_thousand_places_of_a_class_are_kept_always_the_same(tmp_path):
    image, labels = np.zeros((20, 20, 20, 3), np.float32), np.ones((20, 20, 20), np.int16)
    labels[0] = IGNORE
    written = [records.write_scan(tmp_path / name, image, labels, SPEC, subject_id=who) for name, who in
               (("a", "x"), ("b", "x"), ("c", "y"))]  # fmt: skip
    assert written[0] == written[1] != written[2]
    places = [records.read_scan(tmp_path / name, SPEC).places for name in "abc"]
    assert [len(np.unique(one[1], axis=0)) for one in places] == [1000] * 3
    assert len(places[0][IGNORE]) == 1000 and places[0][IGNORE][:, 0].min() == 1
    assert (places[0][1] == places[1][1]).all() and not (places[0][1] == places[2][1]).all()
    assert abs(places[0][1].mean() - (10 + 9.5 + 9.5) / 3) < 0.5  # all over the scan: sd 5.6 / sqrt(1000) an axis


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", [SHAPES[0], (4, 20, 7), (4, 5, 7)])
def test_shards_give_the_windows_of_the_grid(tmp_path, spec, shape):
    image, labels = made_scan(shape)
    image += 5  # of air
    path = tmp_path / "s.tfrecord"
    records.write_scan(path, image, labels, spec, subject_id="s0")
    expected = list(cut(image, labels, spec))
    found, tensors = list(records.read_shard(path, spec)), list(records.load_samples([path], spec))
    assert len(found) == len(tensors) == len(expected) == len(window_origins(labels.shape, spec))
    for sample, again, (one, classes) in zip(expected, found, tensors, strict=True):
        assert again["start"] == sample["start"] and again["subject_id"] == "s0"
        for image_again, labels_again in ((again["image"], again["labels"]), (one.numpy(), classes.numpy())):
            np.testing.assert_array_equal(image_again, sample["image"])
            np.testing.assert_array_equal(labels_again, sample["labels"])
        assert one.dtype == tf.float32 and classes.dtype == tf.int32
    signature = records.load_samples([], spec).element_spec
    assert [part.shape for part in signature] == [spec.input_shape, spec.label_shape]


def test_windows_that_nobody_labelled_are_left_out(tmp_path):
    spec = KINDS["slices"]
    image, labels = made_scan(SHAPES[0], sparse=True)
    written = records.write_scan(tmp_path / "s.tfrecord", image, labels, spec, subject_id="s")
    starts = [sample["start"] for sample in records.read_shard(tmp_path / "s.tfrecord", spec)]
    assert starts == [start for start in window_origins(labels.shape, spec) if start[0] in (2, 3)]
    assert written["samples"] == len(starts) and written["records"] == 1
    assert written["class_voxels"] == [(labels == number).sum() for number in range(4)]


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    image, labels = made_scan(SHAPES[0])
    path = tmp_path / "s.tfrecord"

    def attempt(image, labels):
        records.write_scan(path, image, labels, SPEC, subject_id="leg_7")

    with pytest.raises(DataError, match="leg_7: no sample has a labelled voxel"):
        attempt(image, np.full_like(labels, IGNORE))
    with pytest.raises(DataError, match="leg_7: an intensity is NaN, infinite or beyond ±65504"):
        attempt(image * 1e6, labels)
    with pytest.raises(ValueError, match=r"leg_7: class indices -1..4 are not in -1..3"):
        attempt(image, np.where(labels == 2, 4, labels - 1))
    with pytest.raises(ValueError, match=r"leg_7: image \(12, 16, 14, 2\) and labels .*; \(D, H, W, 3\) and"):
        attempt(image[..., :2], labels)
    monkeypatch.setattr(scans, "LARGEST_EXAMPLE_BYTES", image.size * 2)  # the image alone would fit
    with pytest.raises(DataError, match=r"leg_7: .* 12 x 16 x 14 x 3 values takes 0.0 GB, a record holds 2 GB; choose"):
        attempt(image, labels)
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_other_shards_are_named(tmp_path):
    (path,) = write(tmp_path, SPEC, SHAPES[:1])
    with pytest.raises(DataError, match="holds something else than samples of tfmuscle"):
        next(records.read_shard(path, DataSpec(MAP, size=(6, 8), channels=("z", "y", "x"))))
    with pytest.raises(DataError, match=r"shapes \(12, 16, 14, 3\) and \(12, 16, 14\), the spec says 1 channels"):
        records.read_scan(path, DataSpec(MAP, size=(6, 8), patches="random"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="shard-00000.tfrecord: .*; run build-records again"):
        records.read_scan(path, SPEC)
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="shard-00000.tfrecord: the shard is damaged or cut short"):
        records.load_samples([path], SPEC)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="shard-00000.tfrecord: is empty; run build-records again"):
        records.read_scan(path, SPEC)


# ---------------------------------------------------------------- batches


def test_patches_are_pieces_of_scans_and_the_last_of_a_batch_are_forced(any_kind):
    spec, paths = any_kind
    images, labels = drawn(paths, spec, config(batch_size=3, foreground=0.5), steps=40)
    assert images.shape == (240, *spec.input_shape) and labels.shape == (240, *spec.label_shape, 1)
    assert images.dtype == np.float32 and labels.dtype == np.int32
    forced = np.arange(240) % 3 >= 2  # round(3 * 0.5) = 2
    middle = tuple(length // 2 for length in spec.label_shape)
    centres = labels[(slice(None), *middle, 0)]
    share = {kind: np.isin(centres[forced == kind], (1, 2)).mean() for kind in (True, False)}
    assert share[True] > 0.6 > 0.35 > share[False]  # not 1: near the border a patch is moved; muscle fills 10 % or less
    places = images.reshape(240, -1, 3)
    assert len(np.unique(places[~forced][:, 0], axis=0)) > 30  # anywhere
    true = labels != IGNORE
    assert 0.8 < true.mean() <= 1


def test_a_later_start_sees_the_same_epoch_and_seeds_differ(shards):
    images, labels = drawn(shards, SPEC, config(augmentation="light"))
    later = drawn(shards, SPEC, config(augmentation="light"), first_epoch=1)
    np.testing.assert_array_equal(images[24:], later[0])
    np.testing.assert_array_equal(labels[24:], later[1])
    again, other = (drawn(shards, SPEC, config(seed=seed))[0] for seed in (5, 6))
    assert np.abs(again - other).max() > 1
    only, _ = drawn(shards[:1], SPEC, config())  # of one scan, nothing but places differs between epochs
    assert (only[:24] != only[24:]).any(axis=(1, 2, 3, 4)).mean() > 0.6  # forced ones may be alike


def test_few_scans_are_open_and_take_turns(shards, monkeypatch):
    # 2 bytes x (2956 voxels x 3 channels + 294 places x 8) x 4 / 3 for labels, and names: about 30 kB a scan;
    # a patch 240 x 4 x 2 = 1.9 kB, of which a visit draws a quarter of the scan
    assert visits(shards, SPEC) == (3, 4)
    monkeypatch.setattr(patches, "SCANS_BYTES", 100)
    assert visits(shards, SPEC) == (2, 4)
    monkeypatch.setattr(patches, "MOST_PATCHES", 2)
    assert visits(shards, SPEC) == (2, 2)
    made = list(patches.random_patches(shards, SPEC, config(), count=46)(tf.constant(1, tf.int64)))
    scan_of = np.array([int(scan) for _, _, scan in made])
    assert len(made) == 46 and set(scan_of) == {0, 1, 2}
    visited = scan_of[:44].reshape(11, 2, 2)  # visit, turn, open scan
    assert (visited[:, 0] == visited[:, 1]).all() and len({tuple(two) for two in visited[:, 0]}) > 3
    for image, labels, scan in made:  # a patch is a piece of the scan it says it is from
        true = labels.numpy() != IGNORE
        _, expected = made_scan(SHAPES[int(scan)])
        np.testing.assert_array_equal(expected[tuple(image.numpy()[true].astype(int).T)], labels.numpy()[true])


def test_an_epoch_without_steps_has_as_many_patches_as_the_grid_windows(tmp_path):
    entries = [{"samples": records.write_scan(tmp_path / f"{n}", *made_scan(shape), SPEC, subject_id="s")["samples"]}
               for n, shape in enumerate(SHAPES)]  # fmt: skip
    windows = sum(len(window_origins(shape, SPEC)) for shape in SHAPES)
    assert sum(entry["samples"] for entry in entries) == windows
    assert epoch_steps(windows, config(batch_size=4, steps=0)) == -(-windows // 4)


def test_validation_sees_every_window_once_and_in_order(any_kind):
    spec, paths = any_kind
    expected = [sample for path in paths for sample in records.read_shard(path, spec)]
    made = validation_batches(paths, spec, 4, num_samples=len(expected))
    assert int(made.cardinality()) == -(-len(expected) // 4)
    for _ in range(2):  # every epoch anew
        images = np.concatenate([image for image, _ in made])
        labels = np.concatenate([labels for _, labels in made])
        np.testing.assert_array_equal(images, [sample["image"] for sample in expected])
        np.testing.assert_array_equal(labels[..., 0], [sample["labels"] for sample in expected])
