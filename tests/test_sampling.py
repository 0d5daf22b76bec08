"""cut and stitch: each undoes the other, and the stream gives what a full-memory sum would."""

import tracemalloc

import numpy as np
import pytest

from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE, LabelMap
from tfmuscle.sampling import Stitcher, cut, stitch, window_origins, window_starts

TWO = LabelMap({1: "muscle", 2: "bone"})


def make_spec(kind, **changes):
    settings = {
        "slices": {"size": (6, 8)},
        "stacks": {"size": (6, 8), "depth": 5},
        "volumes": {"size": (6, 8), "depth": 4},
        "sequences": {"size": (6, 8), "depth": 3},
    }[kind]
    return DataSpec(TWO, kind=kind, **settings | changes)


def stitched(shape, spec, windows, num_classes):
    """Everything the stream yields, in one array; every slice exactly once, in order."""
    result = np.full((*shape, num_classes), np.nan, np.float32)
    stitcher, reached = stitch(shape, spec, num_classes), 0
    for start, window in windows:
        for first, block in stitcher.until(start):
            assert first == reached
            result[first : first + len(block)] = block
            reached += len(block)
        stitcher.add(start, window)
    for first, block in stitcher.close():
        assert first == reached
        result[first : first + len(block)] = block
        reached += len(block)
    assert reached == shape[0]
    return result


KINDS = ("slices", "stacks", "volumes", "sequences")
SHAPES = [(9, 13, 17), (4, 6, 8), (1, 13, 17), (2, 5, 3), (1, 1, 1), (12, 6, 30)]


@pytest.mark.parametrize(
    ("size", "window", "step", "expected"),
    [
        (110, 64, 32, [0, 23, 46]),  # nnU-Net: ceil(46 / 32) = 2 gaps of 23
        (64, 64, 32, [0]),
        (10, 64, 32, [0]),
        (65, 64, 32, [0, 1]),
        (100, 10, 10, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (5, 1, 1, [0, 1, 2, 3, 4]),
        (7, 3, 1, [0, 1, 2, 3, 4]),
    ],
)
def test_window_starts_by_hand(size, window, step, expected):
    assert window_starts(size, window, step) == expected


def test_window_starts_cover_every_axis():
    for size in range(1, 40):
        for window in range(1, 12):
            for step in range(1, window + 1):
                starts = window_starts(size, window, step)
                covered = {i for s in starts for i in range(s, s + window)}
                assert covered >= set(range(size))
                assert starts[0] == 0 and starts[-1] == max(size - window, 0)
                assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("bad", [(0, 4, 2), (5, 0, 2), (5, 4, 0)])
def test_window_starts_refuses_nothing(bad):
    with pytest.raises(ValueError, match="must be at least 1 voxel"):
        window_starts(*bad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_stitch_undoes_cut(kind, overlap, shape):
    rng = np.random.default_rng(0)
    spec = make_spec(kind, overlap=overlap)
    labels = rng.integers(0, 3, shape).astype(np.int16)
    image = rng.normal(size=(*shape, 1)).astype(np.float32)
    samples = list(cut(image, labels, spec))
    assert [sample["start"] for sample in samples] == window_origins(shape, spec)
    windows = [(sample["start"], np.eye(3, dtype=np.float32)[sample["labels"]]) for sample in samples]
    joined = stitched(shape, spec, windows, 3)
    np.testing.assert_array_equal(joined.argmax(-1), labels)
    np.testing.assert_allclose(joined.sum(-1), 1.0, atol=1e-6)  # float32 rounding of a weighted mean
    middle = spec.depth // 2
    pixels = [(s["start"], s["image"][..., middle, None] if kind == "stacks" else s["image"]) for s in samples]
    # up to 200 float32 additions per voxel, 6e-8 each
    np.testing.assert_allclose(stitched(shape, spec, pixels, 1), image, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_survives(kind):
    spec, shape = make_spec(kind), (9, 13, 17)
    constant = np.array([0.1, 0.7, 0.2], np.float32)
    windows = [(start, np.tile(constant, (*spec.label_shape, 1))) for start in window_origins(shape, spec)]
    result = stitched(shape, spec, windows, 3)
    np.testing.assert_allclose(result, np.broadcast_to(constant, result.shape), atol=1e-6)


def softmax(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def test_constant_logits_survive_merging():
    spec, shape = make_spec("volumes", blend="logits"), (9, 13, 17)
    constant = softmax(np.array([-4.0, 9.0, 2.5]))
    windows = [(start, np.tile(constant, (*spec.label_shape, 1))) for start in window_origins(shape, spec)]
    result = stitched(shape, spec, windows, 3)
    np.testing.assert_allclose(result, np.broadcast_to(constant, result.shape), rtol=1e-4)  # logits of ~10 in float32


@pytest.mark.parametrize("kind", KINDS)
def test_blending_logarithms_is_blending_the_logits_of_the_network(kind):
    """log softmax(z) = z - (one number a voxel), so the mean differs by one number too, which a softmax undoes.

    The mean of what came in (identity instead of softmax) is judged elsewhere, so it may be the judge here.
    """
    rng, shape = np.random.default_rng(4), (9, 13, 17)
    spec = make_spec(kind, blend="logits", overlap=0.6)
    origins = window_origins(shape, spec)
    logits = [rng.uniform(-7, 7, (*spec.label_shape, 3)).astype(np.float32) for _ in origins]  # no share below 1e-7
    mean = stitched(shape, make_spec(kind, overlap=0.6), list(zip(origins, logits, strict=True)), 3)
    found = stitched(shape, spec, [(start, softmax(z)) for start, z in zip(origins, logits, strict=True)], 3)
    np.testing.assert_allclose(found, softmax(mean), atol=1e-5)
    plain = stitched(
        shape, make_spec(kind, overlap=0.6), [(start, softmax(z)) for start, z in zip(origins, logits, strict=True)], 3
    )
    assert np.abs(found - plain).max() > 0.05  # it is another mean


def test_a_probability_of_zero_does_not_end_a_class():
    # one window of two is sure of class 0, the other of class 1 (1e-7 against 1): equal weights give a half each
    spec = DataSpec(TWO, kind="volumes", size=(1, 1), depth=2, overlap=0.5, blend="logits")
    ones = np.eye(3, dtype=np.float32)
    windows = [((0, 0, 0), ones[[0, 0]].reshape(2, 1, 1, 3)), ((1, 0, 0), ones[[1, 1]].reshape(2, 1, 1, 3))]
    result = stitched((3, 1, 1), spec, windows, 3)[:, 0, 0]
    np.testing.assert_allclose(result, [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(11, 13, 17), (2, 5, 19)])
def test_the_stream_equals_a_sum_in_full_memory(kind, shape):
    rng = np.random.default_rng(1)
    spec = make_spec(kind, overlap=0.6)
    window = spec.window if spec.is_volumetric else (1, *spec.size)
    origins = window_origins(shape, spec)
    weight = np.ones(window)
    for axis, n in enumerate(window):  # peak 1, sd an eighth of the window, only where windows meet
        if len({origin[axis] for origin in origins}) > 1:
            bell = np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2)
            weight = weight * np.moveaxis((bell / bell.max())[:, None, None], 0, axis)
    pad = 20
    total, norm = np.zeros([n + 2 * pad for n in shape] + [3]), np.zeros([n + 2 * pad for n in shape])
    windows = []
    for origin in origins:
        probabilities = rng.random((*spec.label_shape, 3)).astype(np.float32)
        windows.append((origin, probabilities))
        box = tuple(slice(o + pad, o + pad + n) for o, n in zip(origin, window, strict=True))
        total[box] += weight[..., None] * probabilities.reshape(*window, 3)
        norm[box] += weight
    inside = tuple(slice(pad, pad + n) for n in shape)
    expected = total[inside] / norm[inside][..., None]
    np.testing.assert_allclose(stitched(shape, spec, windows, 3), expected, atol=1e-5)


def test_memory_is_one_window_deep():
    spec = DataSpec(TWO, kind="volumes", size=(32, 32), depth=8)
    window = np.zeros((8, 32, 32, 3), np.float32)

    def peak(depth):
        tracemalloc.start()
        stitcher = stitch((depth, 64, 64), spec, 3)
        for start in window_origins((depth, 64, 64), spec):
            for _ in stitcher.until(start):
                pass
            stitcher.add(start, window)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    slab = 8 * 64 * 64 * (3 + 1) * 4  # sums and weights of one window depth in float32
    assert peak(256) < 4 * slab  # plus the block handed out and the product of one window
    assert peak(256) < 1.3 * peak(32)


def test_samples_have_the_shapes_and_types_of_the_spec():
    image = np.zeros((9, 13, 17, 2), np.float64)
    for kind in KINDS:
        spec = make_spec(kind, channels=("in", "out"))
        for sample in cut(image, np.zeros((9, 13, 17), np.int64), spec):
            assert sample["image"].shape == spec.input_shape and sample["image"].dtype == np.float32
            assert sample["labels"].shape == spec.label_shape and sample["labels"].dtype == np.int16
        assert "labels" not in next(cut(image, None, spec))


def test_number_of_samples_by_hand():
    # slices, stacks: every slice; sequences: 9 - 3 + 1 = 7; volumes of depth 4 in steps of 2: ceil(5 / 2) + 1 = 4
    # in-plane 12 of 6 in steps of 3: 3; 8 of 8: 1
    count = {kind: len(window_origins((9, 12, 8), make_spec(kind))) for kind in KINDS}
    assert count == {"slices": 9 * 3, "stacks": 9 * 3, "sequences": 7 * 3, "volumes": 4 * 3}


def test_a_stack_is_slice_major_and_replicates_the_ends():
    spec = DataSpec(TWO, kind="stacks", size=(2, 2), depth=5, channels=("a", "b"))
    image = np.zeros((4, 2, 2, 2), np.float32)
    image[..., 0] = np.arange(4)[:, None, None]  # channel a holds z, channel b 10 + z
    image[..., 1] = 10 + np.arange(4)[:, None, None]
    labels = np.arange(4)[:, None, None] * np.ones((1, 2, 2), int) % 3
    samples = list(cut(image, labels.astype(np.int16), spec))
    assert [s["start"] for s in samples] == [(z, 0, 0) for z in range(4)]
    assert samples[0]["image"][0, 0].tolist() == [0, 10, 0, 10, 0, 10, 1, 11, 2, 12]
    assert samples[1]["image"][0, 0].tolist() == [0, 10, 0, 10, 1, 11, 2, 12, 3, 13]
    assert samples[3]["image"][0, 0].tolist() == [1, 11, 2, 12, 3, 13, 3, 13, 3, 13]
    assert [int(s["labels"][0, 0]) for s in samples] == [0, 1, 2, 0]  # the middle slice


def test_a_one_slice_volume_repeats_itself_in_a_stack():
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    (sample,) = cut(image, None, DataSpec(TWO, kind="stacks", size=(2, 2), depth=3))
    np.testing.assert_array_equal(sample["image"], np.repeat(image[0], 3, axis=-1))


def test_padding_is_symmetric_with_air_and_ignore():
    spec = DataSpec(TWO, kind="volumes", size=(4, 5), depth=4, channels=("a", "b"))
    image = np.stack([np.arange(12.0) - 3, np.arange(12.0) + 50], axis=-1).reshape(2, 2, 3, 2)
    (sample,) = cut(image, np.ones((2, 2, 3), np.int16), spec)
    assert sample["start"] == (-1, -1, -1)
    np.testing.assert_array_equal(sample["image"][1:3, 1:3, 1:4], image)
    assert (sample["image"][0] == [-3, 50]).all() and (sample["image"][:, :, 4] == [-3, 50]).all()
    assert (sample["labels"] != IGNORE).sum() == 12 and (sample["labels"][1:3, 1:3, 1:4] == 1).all()


def test_odd_padding_leaves_the_larger_part_behind():
    (sample,) = cut(np.zeros((1, 5, 4, 1)), None, DataSpec(TWO, size=(8, 8)))  # 3 rows: 1 before, 2 behind
    assert sample["start"] == (0, -1, -2)


def test_cut_does_not_change_its_input_nor_share_memory():
    image = np.ones((3, 6, 8, 1), np.float32)
    for sample in cut(image, None, make_spec("slices")):
        sample["image"][:] = 7
    assert (image == 1).all()


def test_outside_the_scan_a_prior_is_zero_and_not_its_minimum():
    spec = DataSpec(TWO, size=(4, 4), prior=True)  # image, muscle, bone
    image = np.ones((1, 2, 4, 3), np.float32)
    image[..., 0] = 7
    (sample,) = cut(image, None, spec)
    assert sample["image"].shape == spec.input_shape == (4, 4, 3)
    assert (sample["image"][[0, 3]] == [7, 0, 0]).all() and (sample["image"][1:3] == [7, 1, 1]).all()
    with pytest.raises(ValueError, match=r"\(D, H, W, 3\) is needed for \('image',\) and the prior's structures"):
        cut(image[..., :1], None, spec)


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((3, 4, 5)), None, r"image has shape \(3, 4, 5\)"),
        (np.zeros((3, 4, 5, 2)), None, r"image has shape \(3, 4, 5, 2\)"),
        (np.zeros((3, 4, 5, 1)), np.zeros((3, 4, 4)), r"labels have shape \(3, 4, 4\)"),
    ],
)
def test_cut_refuses_arrays_that_do_not_fit(image, labels, message):
    with pytest.raises(ValueError, match=message):
        cut(image, labels, make_spec("slices"))


def test_stitch_refuses_what_would_be_wrong():
    spec, shape = make_spec("volumes"), (12, 6, 8)
    window = np.zeros((4, 6, 8, 3), np.float32)
    with pytest.raises(ValueError, match=r"probabilities have shape \(4, 6, 8, 2\)"):
        stitch(shape, spec, 3).add((0, 0, 0), window[..., :2])
    with pytest.raises(ValueError, match="lies outside the volume"):
        stitch(shape, spec, 3).add((0, 6, 0), window)
    stitcher = Stitcher(shape, spec, 3)
    stitcher.add((0, 0, 0), window)
    with pytest.raises(ValueError, match=r"slices 0 to 1 are final; take them by until\(\(2, 0, 0\)\) first"):
        stitcher.add((2, 0, 0), window)
    assert [first for first, _ in stitcher.until((2, 0, 0))] == [0]
    stitcher.add((2, 0, 0), window)
    with pytest.raises(ValueError, match="window at slice 0 after one at slice 2"):
        stitcher.add((0, 0, 0), window)
    with pytest.raises(ValueError, match="slices 2 to 7 are not covered"):
        list(stitcher.until((8, 0, 0)))
    with pytest.raises(ValueError, match="slices 2 to 11 are not covered"):
        list(stitcher.close())
