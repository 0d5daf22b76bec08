"""Windows along a way: counts, what is fed and what comes out, by hand; going on after any window."""

import numpy as np
import pytest

from tfmuscle.propagation.carriers import FUSIONS, Carrier, State, carry, starting_masks, window_count


def images(count):
    """Slices of 2x2 pixels that hold their own number."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, 2, 2)).copy()


def drawn(*values, structures=1):
    return np.stack([np.full((2, 2, structures), value, np.float32) for value in values])


def noting(window, starts=1, seen=None):
    """A carrier whose result at position j of window t is (t + j) / 100 + the mask fed there / 1000."""

    def step(windows, masks):
        if seen is not None:
            seen.append((windows[:, 0, 0].tolist(), masks[:, 0, 0, 0].tolist()))
        return windows[..., None] / 100 + masks / 1000

    return Carrier(window, starts, lambda *_: step)


def all_masks(carrier, pictures, masks, **options):
    return np.concatenate([settled for settled, _ in carry(carrier, pictures, masks, **options)])


@pytest.mark.parametrize(("slices", "window", "count"), [(1400, 3, 1398), (3, 3, 1), (5, 1, 5), (10, 10, 1)])
def test_windows_count(slices, window, count):
    assert window_count(slices, window) == count
    seen = []
    found = all_masks(noting(window, seen=seen), images(min(slices, 20)), drawn(1))
    assert len(seen) == min(count, 21 - window) and len(found) == min(slices, 20)


def test_a_way_shorter_than_the_window_is_refused():
    with pytest.raises(ValueError, match="2 slices, but a window needs 3"):
        window_count(2, 3)
    with pytest.raises(ValueError, match="2 slices, but a window needs 3"):
        next(carry(noting(3), images(2), drawn(1)))


def test_the_first_window_is_fed_what_is_drawn_and_later_ones_the_result_before():
    seen = []
    found = all_masks(noting(3, 3, seen), images(5), drawn(1.0, 0.5))
    assert seen[0] == ([0, 1, 2], [1.0, 0.5, 0.5])  # two drawn slices: the last one is repeated
    # Window 0 gives 0.001, 0.0105, 0.0205; slices 0 and 1 are drawn and are fed as drawn.
    assert seen[1][0] == [1, 2, 3] and seen[1][1] == pytest.approx([1.0, 0.5, 0.0205])
    # Window 1 gives 0.011, 0.0205, 0.0300205 for slices 1, 2, 3; slice 1 is drawn.
    assert seen[2][1] == pytest.approx([0.5, 0.0205, 0.0300205])
    # Position 0 of windows 0, 1, 2, then the rest of the last one.
    assert found[:, 0, 0, 0] == pytest.approx([0.001, 0.011, 0.0205, 0.0300205, 0.04003002], abs=1e-6)


def test_the_mean_is_that_of_all_windows_that_saw_a_slice():
    per_window = []

    def step(windows, masks):
        per_window.append((int(windows[0, 0, 0]), np.sqrt(windows[..., None] + 1) * (len(per_window) + 1) / 100))
        return per_window[-1][1]

    found = all_masks(Carrier(3, 1, lambda *_: step), images(7), drawn(1), fuse="mean")
    for z in range(7):
        naive = np.mean([result[z - t, 0, 0, 0] for t, result in per_window if t <= z < t + 3])
        assert found[z, 0, 0, 0] == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("fuse", FUSIONS)
def test_a_way_can_be_left_after_any_window_and_taken_up_again(fuse):
    pictures, start = images(8), drawn(1.0, 0.25, structures=2)
    whole = all_masks(noting(3, 2), pictures, start, fuse=fuse)
    steps = list(carry(noting(3, 2), pictures, start, fuse=fuse))
    for done in range(len(steps)):
        kept, state = steps[: done + 1], steps[done][1]
        rest = [settled for settled, _ in carry(noting(3, 2), pictures, start, fuse=fuse, state=state)]
        assert np.array_equal(np.concatenate([*(settled for settled, _ in kept), *rest]), whole)


def test_a_carrier_begins_with_the_start_of_the_way():
    seen = []

    def begin(pictures, masks):
        seen.append((pictures[:, 0, 0].tolist(), masks[:, 0, 0, 0].tolist()))
        return lambda windows, fed: fed

    carrier = Carrier(2, 1, begin)
    found = all_masks(carrier, images(4), drawn(1.0))
    assert seen == [([0, 1], [1.0, 1.0])] and (found == 1).all()
    all_masks(carrier, images(4), drawn(1.0), state=State(2, starting_masks(carrier, drawn(0.5))))
    assert seen[1] == seen[0]  # going on does not change what it began with


def test_what_cannot_be_used_is_refused():
    for window, starts in ((0, 1), (3, 0), (3, 4)):
        with pytest.raises(ValueError, match=f"a window of {window} slices that starts from {starts}"):
            Carrier(window, starts, noting(1).begin)
    with pytest.raises(ValueError, match="2 drawn slices; 1 to 1 can be started from"):
        next(carry(noting(3), images(5), drawn(1, 1)))
    with pytest.raises(ValueError, match="0 drawn slices"):
        starting_masks(noting(3), np.zeros((0, 2, 2, 1)))
    with pytest.raises(ValueError, match="fuse is 'last'; choose one of first, mean"):
        next(carry(noting(3), images(5), drawn(1), fuse="last"))
    wrong = Carrier(2, 1, lambda *_: lambda windows, masks: masks[:1])
    with pytest.raises(ValueError, match=r"masks of shape \(1, 2, 2, 1\); it was given \(2, 2, 2, 1\)"):
        next(carry(wrong, images(5), drawn(1)))
