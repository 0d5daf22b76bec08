"""Stretches and ways by hand; masks that follow known motion; what an interruption keeps; findings by hand."""

import dataclasses

import numpy as np
import pytest

from tfmuscle.errors import DataError
from tfmuscle.propagation import flow, seeds
from tfmuscle.propagation.carriers import Carrier, State
from tfmuscle.propagation.findings import disputed, find, volume_range
from tfmuscle.propagation.frames import Frame, frame_of
from tfmuscle.propagation.methods import METHODS, Method, make_method
from tfmuscle.propagation.running import Job, fill_stretch, labels_of, path_of
from tfmuscle.propagation.storing import CHUNK, Filled, WayStore, load_filled, save_filled
from tfmuscle.propagation.stretches import Anchor, anchors_of, stretches_of, way_of, without
from tfmuscle.volume import Geometry, Volume

SPACING = (1.5, 1.0, 1.0)


def carrier(window=1, starts=1, step=lambda images, masks: masks):
    return Carrier(window, starts, lambda *_: step)


def growing(count=None, seen=None):
    """One pixel of the first structure is added every slice, whatever the images; stops after `count` steps."""

    def step(images, masks):
        if seen is not None:
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(float(images[0, 0, 0]))
        flat = masks[0].reshape(-1, masks.shape[-1]).copy()
        flat[np.flatnonzero(flat[:, 0] == 0)[:1], 0] = 1
        return flat.reshape(masks.shape)

    return carrier(step=step)


def job_of(folder, drawn, method, *, keys=(1, 2), **options):
    images = np.broadcast_to(np.arange(len(drawn), dtype=np.float32)[:, None, None], drawn.shape)
    return Job(method, lambda: images, drawn, keys, "scan", folder, **options)


def drawn_on(count, slices, shape=(4, 5), keys=(1,)):
    """Slices on which the first pixels are of the structures, one each."""
    ids = np.zeros((count, *shape), np.uint8)
    for index in slices:
        ids[index].ravel()[: len(keys)] = keys
    return ids


def test_anchors_and_stretches():
    assert anchors_of([9, 3, 4, 5, 3]) == (Anchor(3, 5), Anchor(9, 9))
    first, middle, last = stretches_of([3, 4, 5, 9], 12)
    assert (first.before, first.after, list(first.slices)) == (None, Anchor(3, 5), [0, 1, 2])
    assert (middle.before, middle.after, list(middle.slices)) == (Anchor(3, 5), Anchor(9, 9), [6, 7, 8])
    assert (last.before, last.after, list(last.slices)) == (Anchor(9, 9), None, [10, 11])
    assert [middle.share(index) for index in (6, 7, 8)] == [0.25, 0.5, 0.75]
    assert (first.share(1), last.share(10)) == (1.0, 0.0)
    assert stretches_of([0, 1, 2], 3) == ()
    whole = without(Anchor(3, 5), [0, 3, 4, 5, 9], 12)
    assert (whole.first, whole.last) == (1, 8)
    assert without(Anchor(9, 9), [0, 9], 12) is None
    for wrong in ([], [-1, 3], [12]):
        with pytest.raises(ValueError, match="of 0 to 11 one is needed at least"):
            stretches_of(wrong, 12)


def test_ways_start_on_the_nearest_drawn_slices_and_go_on_to_the_next():
    stretch = stretches_of([2, 3, 4, 5, 9], 14)[1]
    there = way_of(stretch, carrier(3, 3), 14, forward=True)
    # Starts 3, 4, 5; the stretch 6, 7, 8; arrives at 9; windows of three see 10 and 11.
    assert there.slices == (3, 4, 5, 6, 7, 8, 9, 10, 11) and (there.starts, there.wanted, there.arrives) == (3, 4, True)
    back = way_of(stretch, carrier(3, 3), 14, forward=False)
    assert back.slices == (9, 8, 7, 6, 5, 4, 3) and (back.starts, back.wanted) == (1, 4)
    end = stretches_of([12], 14)[1]
    assert way_of(end, carrier(4), 14, forward=True).slices == (12, 13, 13, 13)  # shorter than a window
    assert way_of(end, carrier(4), 14, forward=False) is None


def disc(centre, radius=9.0, shape=(56, 60)):
    rows, columns = np.indices(shape)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


@pytest.fixture(scope="module")
def moving():
    """A textured disc that moves by (0.5, -0.7) pixels a slice and grows: images and masks `(N, H, W)`."""
    rng = np.random.default_rng(0)
    masks = np.stack([disc((20 + 0.5 * k, 38 - 0.7 * k), 9 + 0.1 * k) for k in range(21)])
    return 30 + 120 * masks + rng.normal(0, 6, masks.shape), masks


def overlap(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_a_disc_that_moves_between_two_drawn_slices(moving, name, tmp_path):
    images, masks = moving
    drawn = np.zeros(masks.shape, np.uint8)
    drawn[[0, 20]] = 5 * masks[[0, 20]]
    method = make_method(name, SPACING)
    prepared = method.prepare(images)
    job = Job(method, lambda: prepared, drawn, (5,), "scan", tmp_path)
    (stretch,) = stretches_of([0, 20], 21)
    found = fill_stretch(job, stretch)
    assert set(np.unique(found.ids)) == {0, 5}
    assert overlap(found.ids == 5, masks[1:20]) > 0.93
    again = fill_stretch(
        Job(make_method(name, SPACING), lambda: prepared, drawn, (5,), "scan", tmp_path / "b"), stretch
    )
    assert np.array_equal(found.ids, again.ids)


def test_registration_goes_beyond_the_last_drawn_slice_and_what_does_not_move_stays(moving, tmp_path):
    images, masks = moving
    drawn = np.zeros(masks.shape, np.uint8)
    drawn[0] = masks[0]
    method = make_method("registration", SPACING)
    found = fill_stretch(
        Job(method, lambda: method.prepare(images), drawn, (1,), "s", tmp_path), *stretches_of([0], 21)
    )
    assert overlap(found.ids == 1, masks[1:]) > 0.9
    still = np.repeat(images[:1], 21, axis=0)
    found = fill_stretch(Job(method, lambda: flow.prepare(still), drawn, (1,), "t", tmp_path), *stretches_of([0], 21))
    assert (found.ids == drawn[0]).all()


def test_scans_become_8_bits_whatever_they_hold():
    scan = np.random.default_rng(0).normal(1000, 300, (5, 20, 22)).astype(np.float32)
    scan[2, 3, 4], scan[1, 0, 0] = np.nan, np.inf
    found = flow.prepare(scan)
    assert found.dtype == np.uint8 and found.shape == scan.shape and np.ptp(found) > 30
    assert not flow.prepare(np.full((3, 8, 8), 7.0)).any()
    assert not flow.prepare(np.full((3, 8, 8), np.nan)).any()
    ramp = np.broadcast_to(np.arange(150.0)[:, None, None], (150, 6, 7))  # slabs join without a seam
    assert np.ptp(np.diff(flow.prepare(ramp)[10:140].astype(int), axis=0)) <= 1


@pytest.mark.parametrize("spread", [seeds.grow, seeds.flood])
def test_seeds_spread_up_to_edges(spread, monkeypatch):
    images = np.zeros((9, 40, 44), np.float32)
    images[:, 10:30, 10:22], images[:, 10:30, 22:36] = 100, 200  # two muscles that touch, on black
    before = np.zeros((40, 44), np.uint8)
    before[14:26, 13:19], before[14:26, 26:33], before[13:27, 20:24] = 3, 7, 0
    truth = np.zeros((40, 44), np.uint8)
    truth[10:30, 10:22], truth[10:30, 22:36] = 3, 7
    full = np.where(truth > 0, truth, 0).astype(np.uint8)
    ids = spread(images, full, full, SPACING)
    assert (ids == full).mean() > 0.99 and ids.shape == (7, 40, 44)
    one_side = spread(images[:8], full, None, SPACING)
    assert (one_side == full).mean() > 0.97
    monkeypatch.setattr(seeds, "MOST_VOXELS", 4000)
    coarse = spread(images, full, full, SPACING)
    assert coarse.shape == ids.shape and (coarse == full).mean() > 0.93
    assert not spread(images, np.zeros_like(full), np.zeros_like(full), SPACING).any()
    with pytest.raises(ValueError, match="no slice is drawn; one is needed to grow from"):
        spread(images, None, None, SPACING)


def test_interpolation_knows_nothing_beyond_the_drawn_slices(tmp_path):
    drawn = drawn_on(6, [2], keys=(1, 2))
    job = job_of(tmp_path, drawn, make_method("interpolate", SPACING))
    assert not any(fill_stretch(job, stretch).ids.any() for stretch in stretches_of([2], 6))


def test_the_largest_probability_has_the_pixel():
    masks = np.array([[100, 120], [128, 130], [255, 255], [0, 0]])
    assert labels_of(masks, (300, 4)).tolist() == [0, 4, 300, 0]
    assert labels_of(np.zeros((2, 0)), ()).tolist() == [0, 0]


def test_both_ways_are_weighed_by_distance(tmp_path):
    """Of a structure on the first anchor only, one way says yes and the other no: it ends in the middle."""
    drawn = drawn_on(8, [0, 7])
    drawn[7] = 0
    job = job_of(tmp_path, drawn, Method("still", carrier=carrier()), keys=(1,))
    filled = fill_stretch(job, *stretches_of([0, 7], 8))
    assert filled.ids.any(axis=(1, 2)).tolist() == [True, True, True, False, False, False]
    assert filled.opinions["forward"].any(axis=(1, 2)).all() and not filled.opinions["backward"].any()
    assert filled.arrived["forward"].sum() == 1 and not filled.arrived["backward"].any()
    even = job_of(tmp_path, np.concatenate([drawn[:7], drawn[7:], drawn[7:]])[1:], Method("still", carrier=carrier()))
    assert even.drawn.shape[0] == 8  # a copy of another scan has a key of its own
    assert path_of(even, stretches_of([0, 7], 8)[0]) != path_of(job, stretches_of([0, 7], 8)[0])


def test_one_direction_alone(tmp_path):
    drawn = drawn_on(9, [4])
    before, after = stretches_of([4], 9)
    job = job_of(tmp_path, drawn, Method("still", carrier=carrier()), keys=(1,), direction="forward")
    assert not fill_stretch(job, before).ids.any() and fill_stretch(job, after).ids.any(axis=(1, 2)).all()
    assert fill_stretch(job, before).opinions == {}
    with pytest.raises(ValueError, match="direction is forward, but interpolate looks at both ends"):
        job_of(tmp_path, drawn, make_method("interpolate", SPACING), direction="forward")
    with pytest.raises(ValueError, match="direction is 'up'; choose one of both, forward, backward"):
        job_of(tmp_path, drawn, Method("still", carrier=carrier()), direction="up")


def test_an_interruption_keeps_what_is_done_and_changes_nothing(tmp_path):
    drawn = drawn_on(CHUNK + 30, [0])
    (stretch,) = stretches_of([0], len(drawn))
    whole = fill_stretch(job_of(tmp_path / "a", drawn, Method("growing", carrier=growing()), keys=(1,)), stretch)
    for stop in (7, CHUNK + 3):
        seen = []
        method = Method("growing", carrier=growing(stop, seen))
        with pytest.raises(KeyboardInterrupt):
            fill_stretch(job_of(tmp_path / "b", drawn, method, keys=(1,)), stretch)
    assert seen[0] == 7.0  # the second call went on at slice 7
    ticks, seen = [], []
    job = job_of(tmp_path / "b", drawn, Method("growing", carrier=growing(None, seen)), keys=(1,))
    found = fill_stretch(job, stretch, ticks.append)
    assert seen[0] == CHUNK + 10 and sum(ticks) == len(stretch.slices)
    assert np.array_equal(found.ids, whole.ids)
    assert [path.suffix for path in (tmp_path / "b").iterdir()] == [".npz"]  # the ways are gone, the stretch is there
    assert fill_stretch(job, stretch).ids.sum() == whole.ids.sum() and len(seen) == len(drawn) - CHUNK - 10


def test_only_stretches_beside_a_changed_slice_are_done_again(tmp_path):
    drawn, seen = drawn_on(20, [3, 9, 15]), []
    method = Method("growing", carrier=growing(None, seen))

    def steps(ids):
        seen.clear()
        job = job_of(tmp_path, ids, method, keys=(1,))
        for stretch in stretches_of([3, 9, 15], 20):
            fill_stretch(job, stretch)
        return len(seen)

    first = steps(drawn)
    assert first > 0 and steps(drawn) == 0
    changed = drawn.copy()
    changed[15, 3, 3] = 1
    # Between 9 and 15 seven steps each way, with either end; beyond 15 slices 15 to 19.
    assert steps(changed) == 7 + 7 + 5
    assert steps(drawn) == 0  # taken back: that is still there


def test_a_stretch_on_disk_is_what_it_was_and_a_damaged_one_is_none(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.zeros((4, 9, 8), np.uint16)
    ids[1:3, 2:6, 3:5] = rng.integers(0, 400, (2, 4, 2))
    filled = Filled(ids, {"forward": ids[::-1], "backward": np.zeros_like(ids)}, {"forward": ids[1]})
    save_filled(tmp_path / "a.npz", filled)
    found = load_filled(tmp_path / "a.npz")
    assert np.array_equal(found.ids, ids) and found.ids.dtype == ids.dtype
    assert np.array_equal(found.opinions["forward"], ids[::-1]) and not found.opinions["backward"].any()
    assert np.array_equal(found.arrived["forward"], ids[1]) and set(found.arrived) == {"forward"}
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    assert load_filled(tmp_path / "b.npz") is None and load_filled(tmp_path / "c.npz") is None


def test_ways_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.random((CHUNK + 12, 5, 6, 2)).astype(np.float32)
    store = WayStore(tmp_path / "way")
    for place, mask in enumerate(masks):
        store.append(mask[None], State(place + 1, masks[place : place + 1]))
    assert len(store) == CHUNK + 12
    store.flush()
    again = WayStore(tmp_path / "way")
    assert len(again) == CHUNK + 12 and again.state.windows == CHUNK + 12 and again.state.sums is None
    assert np.array_equal(again.state.masks[0], masks[-1])
    for place in (0, CHUNK - 1, CHUNK, CHUNK + 11):
        assert np.abs(again[place] / 255 - masks[place]).max() <= 0.5 / 255 + 1e-6
    (tmp_path / "way" / "00000.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"00000\.npz is damaged; remove this folder"):
        again[0]


def test_findings_by_hand(tmp_path):
    """Slices 2 and 6 of eight are drawn with one pixel; every step adds one."""
    drawn = drawn_on(8, [2, 6])
    method = Method("growing", carrier=growing())
    job = job_of(tmp_path, drawn, method, keys=(1,))
    pieces = stretches_of([2, 6], 8)
    found = find(job, [2, 6], pieces)
    # After d slices a way has d + 1 pixels; the nearer way has its say on slices 3 and 5.
    assert found.areas["labels"].tolist() == [[3, 2, 1, 2, 3, 2, 1, 2]]
    assert found.areas["forward"][0, [3, 4, 5, 7]].tolist() == [2, 3, 4, 2]
    assert found.areas["backward"][0, [0, 1, 3, 4, 5]].tolist() == [3, 2, 4, 3, 2]
    assert np.isnan(found.areas["forward"][0, :3]).all()
    assert found.differing[0, 2:7].tolist() == [0, 2, 0, 2, 0] and np.isnan(found.differing[0, [0, 1, 7]]).all()
    assert {(one.index, one.way, one.arrived, one.drawn, one.distance) for one in found.drift} == {
        (6, "forward", 5, 1, 4), (2, "backward", 5, 1, 4)}  # fmt: skip
    # What arrives has 5 pixels, one is drawn: Dice 2 / 6, a loss of 2 / 3 in 4 slices, 1 / 6 a slice.
    assert all(one.dice == pytest.approx(1 / 3) for one in found.drift)
    doubt = disputed(found, [2, 6])[0]
    assert doubt == pytest.approx([3 * 2 / 6, 2 / 6, 0, 2, 0, 2, 0, 2 / 6])
    # 16 in all; an opinion differs from the labels by 2 pixels on slices 3 and 5, the others are foreseen.
    # Where something arrives there are 10 pixels and 2 are drawn: all may be too large by 8 / 10.
    half = 2 + 2 + 1 + 1 / 3 + 1 / 3 + 16 * 0.8
    assert volume_range(found, [2, 6])[0] == pytest.approx([16, max(0, 16 - half), 16 + half])


def max_of_opinions(found):
    return np.nanmax([np.abs(areas - found.areas["labels"]) for areas in found.areas.values()], axis=0)[0].sum()


def test_methods_that_fill_are_judged_with_a_drawn_slice_left_out(tmp_path):
    drawn = np.zeros((13, 20, 20), np.uint8)
    for index, edge in ((0, 4), (4, 8), (8, 4), (12, 8)):
        drawn[index, 3 : 3 + edge, 3 : 3 + edge] = 1
    job = job_of(tmp_path, drawn, make_method("interpolate", SPACING), keys=(1, 2))
    found = find(job, [0, 4, 8, 12], stretches_of([0, 4, 8, 12], 13))
    own = [one for one in found.drift if one.key == 1]
    assert [(one.index, one.way, one.distance, one.drawn) for one in own] == [
        (4, "left out", 4, 64), (8, "left out", 4, 16)]  # fmt: skip
    # Between squares of 4 pixels lies a square of 4: 16 of 64 pixels arrive at slice 4.
    assert own[0].arrived == 16 and own[0].dice == pytest.approx(2 * 16 / 80)
    assert all(np.isnan(one.dice) for one in found.drift if one.key == 2)
    assert set(found.areas) == {"labels", "forward", "backward"} and not np.isnan(found.differing[0]).any()
    # 16 of 64 arrived at slice 4 and 64 of 16 at slice 8: as much as is drawn, so nothing is too large or too small.
    total, low, high = volume_range(found, [0, 4, 8, 12])[0]
    apart = max_of_opinions(found)
    assert (total - low, high - total) == pytest.approx((apart, apart))
    lopsided = dataclasses.replace(found, drift=tuple(one for one in found.drift if one.index == 4))
    # 3 / 4 of the area is lacking 4 slices away; the slices between lie 1, 2 and 1 from a drawn one: 1 / 3 of that.
    assert volume_range(lopsided, [0, 4, 8, 12])[0, 2] == pytest.approx(total * (1 + 0.75 / 3) + apart)


def test_nothing_arrives_when_one_slice_is_drawn(tmp_path):
    drawn = drawn_on(10, [4])
    job = job_of(tmp_path, drawn, Method("still", carrier=carrier()), keys=(1,))
    found = find(job, [4], stretches_of([4], 10))
    assert found.drift == ()
    assert disputed(found, [4])[0] == pytest.approx(np.abs(np.arange(10) - 4) / 10)  # guessed: 1 / N a slice


def test_frames_lead_there_and_back():
    shape = (5, 6, 7)
    array = np.arange(210).reshape(shape)
    for affine in (
        np.diag([1, 1, 2, 1.0]),
        np.diag([-1, 1, -2, 1.0]),
        np.array([[0, 0, 2, 1], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]),
    ):
        volume = Volume(array, Geometry(shape, affine))
        for axis in range(3):
            frame = frame_of(volume.geometry, axis)
            turned = frame.turned(volume)
            assert turned.array.shape[0] == shape[axis]
            for number in range(shape[axis]):
                plane = np.take(array, number, axis)
                assert set(turned.array[frame.index(number)].ravel()) == set(plane.ravel())
            assert np.array_equal(frame.back(turned).array, array)
            assert (
                frame.way("forward") == ("backward" if frame.is_flipped else "forward") and frame.way("both") == "both"
            )
    reversed_axes = Frame(None, volume.geometry, 2)
    assert reversed_axes.index(3) == 3 and np.array_equal(reversed_axes.back(reversed_axes.turned(volume)).array, array)
    with pytest.raises(ValueError, match=r"along axis 0 \(.*\), but the network goes along the last axis"):
        Frame(None, volume.geometry, 0)
    with pytest.raises(ValueError, match="but the network goes along R/L; draw slices across that"):
        Frame("RIP", Geometry(shape, np.eye(4)), 2)


def test_methods_that_are_none():
    with pytest.raises(ValueError, match="method is 'magic'; choose one of registration, interpolate, grow, watershed"):
        make_method("magic", SPACING)
    with pytest.raises(ValueError, match="method odd needs either a carrier or a way to fill"):
        Method("odd")
