"""Short ways that begin with a wrong mask: what is seen of a scan, how masks are spoilt, what a window then teaches."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from propagation_samples import SPEC, scan_of, tiny

from tfmuscle.config import Propagation
from tfmuscle.labels import IGNORE
from tfmuscle.training import propagation_steps
from tfmuscle.training.propagation_parts import part_of, spoilt
from tfmuscle.training.propagation_steps import Stepper, Windows, chunks_of
from tfmuscle.training.propagation_ways import fed_to, windows_of

PARTS = Propagation(parts=3, slices=4, alignment="drawn", feedback="predicted", supervision="fixed", every=6)
"""Of twelve slices 0, 1, 2 and 6, 7, 8 are drawn; a way has two windows."""


def disc(size=48, radius=9):
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - size / 2, columns - size / 2) < radius


class TestSpoiling:
    def test_nothing_and_more(self):
        masks = np.stack([disc()] * 3).astype(np.float32)
        assert spoilt(masks, 0.0, np.random.default_rng(0)) is masks
        empty = np.zeros_like(masks)
        assert not spoilt(empty, 1.0, np.random.default_rng(0)).any()

        def agreement(strength):
            found = [spoilt(masks, strength, np.random.default_rng(seed)) for seed in range(20)]
            return np.mean([2 * (masks * one).sum() / (masks.sum() + one.sum()) for one in found])

        weak, strong = agreement(0.2), agreement(1.0)
        assert strong < weak < 1
        assert strong > 0.4  # it still says which structure is meant

    def test_all_slices_alike_and_by_the_generator_alone(self):
        masks = np.stack([disc()] * 3).astype(np.float32)
        found = spoilt(masks, 1.0, np.random.default_rng(5))
        assert found.dtype == np.float32 and 0 <= found.min() <= found.max() <= 1
        assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
        assert np.array_equal(found, spoilt(masks, 1.0, np.random.default_rng(5)))
        oblong = np.zeros((1, 20, 35), np.float32)
        oblong[0, 5:12, 8:20] = 1
        assert spoilt(oblong, 1.0, np.random.default_rng(1)).shape == oblong.shape


class TestParts:
    def ways(self, labels, settings=PARTS, classes=(1, 2), count=40, images=None):
        scan = scan_of(labels, images)
        draws = (np.random.default_rng([number]) for number in range(count))
        return [part_of(scan, SPEC, settings, list(classes), subject=0, rng=rng) for rng in draws]

    def test_no_slice_is_looked_at_that_nobody_drew(self):
        labels = np.zeros((12, 4, 4))
        labels[:, 1, 1] = 2  # on the slices that are not drawn
        drawn = [0, 1, 2, 6, 7, 8]
        labels[drawn] = 0
        labels[drawn, 3, 3] = 1
        images = np.arange(12.0)[:, None, None] + np.zeros((12, 4, 4))
        for way in self.ways(labels, dataclasses.replace(PARTS, away=5), images=images):
            assert way.classes == (1,) and way.windows == 2 and len(way.images) == 4
            assert way.begun[0, :, 3, 3, 0].tolist() == [1, 1, 1]
            slices = way.images[:, 0, 0].astype(int).tolist()
            assert slices == list(range(slices[0], slices[0] + 4))
            assert way.drawn.tolist() == [number in drawn for number in slices]
            assert way.drawn.any()
            for chunk in chunks_of(way.windows, dataclasses.replace(PARTS, mode="per_window")):
                windows = windows_of([way], chunk, SPEC, PARTS)
                assert windows.drawn[0, 0].tolist() == way.drawn[chunk.first : chunk.first + 3].tolist()
                assert not windows.kept.any()
            np.testing.assert_array_equal(fed_to([way], chunks_of(2, PARTS)[0], None, SPEC, None), way.begun)

    def test_masks_of_other_slices(self):
        labels = np.zeros((12, 4, 4))
        for number in range(12):
            labels[number, number // 4, number % 4] = 1  # each slice is known by its pixel
        images = np.arange(12.0)[:, None, None] + np.zeros((12, 4, 4))

        def sources(away):
            found = []
            for way in self.ways(labels, dataclasses.replace(PARTS, away=away, reverse=0.5), images=images):
                pixels = way.begun[0, ..., 0].reshape(3, 16).argmax(axis=1)
                found.append((way.images[:3, 0, 0].astype(int), pixels))
            return found

        drawn = np.array([0, 1, 2, 6, 7, 8])
        for slices, pixels in sources(0):  # the nearest drawn one, of two the first
            assert pixels.tolist() == [drawn[np.abs(drawn - number).argmin()] for number in slices]
        apart = [np.abs(slices - pixels).max() for slices, pixels in sources(6)]
        assert max(apart) > 3
        steps = {tuple(np.diff(slices).tolist()) for slices, _ in sources(0)}
        assert steps == {(1, 1), (-1, -1)}

    def test_what_is_too_small_and_what_is_nowhere(self):
        labels = np.zeros((12, 4, 4))
        labels[:, 0, 0], labels[:, 2:, 2:] = 1, 2
        assert {way.classes for way in self.ways(labels, count=5)} == {(1, 2)}
        assert {way.classes for way in self.ways(labels, dataclasses.replace(PARTS, smallest=1), count=5)} == {(2,)}
        assert self.ways(np.zeros((12, 4, 4)), count=3) == [None] * 3
        assert self.ways(np.full((12, 4, 4), IGNORE), count=3) == [None] * 3
        assert {way.windows for way in self.ways(labels[:3], count=3)} == {1}  # a scan shorter than a part

    def test_mirrored_all_alike(self):
        labels = np.zeros((12, 4, 4))
        labels[:, 1, 0] = 1
        images = np.arange(4.0) + np.zeros((12, 4, 4))
        turned = 0
        for way in self.ways(labels, dataclasses.replace(PARTS, mirror=0.5), images=images):
            column = 3 if way.images[0, 0, 0] == 3 else 0
            turned += column == 3
            assert way.labels[0, 1, column] == 1 and way.begun[0, 0, 1, column, 0] == 1
        assert 5 < turned < 35


class TestLearning:
    def test_slices_that_nobody_drew_teach_nothing(self):
        keras.utils.set_random_seed(1)
        model = tiny(SPEC)
        optimiser = keras.optimizers.SGD(1.0)
        optimiser.build(model.trainable_variables)
        stepper = Stepper(model, optimiser, SPEC, PARTS)
        rng = np.random.default_rng(0)
        images = rng.normal(size=(1, 1, 3, 4, 4, 1)).astype(np.float32)
        truth = (rng.random((1, 1, 3, 4, 4, 1)) > 0.5).astype(np.float32)
        fed = tf.constant(rng.random((1, 3, 4, 4, 1)).astype(np.float32))

        def loss(truth, drawn):
            known = np.array(drawn).reshape(1, 1, 3)
            windows = Windows(images, truth, known, np.zeros_like(known), images[0], fed.numpy())
            return float(stepper.add(windows, fed, 1)[0])

        other = truth.copy()
        other[:, :, [0, 2]] = 1 - other[:, :, [0, 2]]
        middle = (False, True, False)
        assert loss(truth, middle) == loss(other, middle) > 0
        assert loss(truth, (True, True, True)) != loss(other, (True, True, True))
        before = [gradient.numpy() for gradient in stepper.gradients]
        assert loss(truth, (False, False, False)) == pytest.approx(0, abs=1e-6)
        for gradient, was in zip(stepper.gradients, before, strict=True):
            np.testing.assert_allclose(gradient, was, atol=1e-6)

    def test_what_cannot_be(self):
        with pytest.raises(
            ValueError, match="parts is 2 and slices is 0; say how many slices a part has, e.g. slices=4"
        ):
            Propagation(parts=2)
        with pytest.raises(ValueError, match="spoil is 0.5 and away 0, but parts is 0; give the number of parts"):
            Propagation(spoil=0.5)
        with pytest.raises(ValueError, match="spoil is 1.5; a share from 0 to 1 is needed"):
            Propagation(parts=1, slices=4, spoil=1.5)
        with pytest.raises(ValueError, match="parts, away and l2 must be finite and not negative"):
            Propagation(parts=-1)

    @pytest.mark.parametrize(("pooled", "least", "most"), [(False, 0.0, 0.02), (True, 0.999, 1.001)])
    def test_what_is_painted_past_an_end_counts_if_windows_are_pooled(self, monkeypatch, pooled, least, most):
        """Of two structures one has ended: the slope of the loss at its voxels, as a share of that beside the other."""
        truth = np.zeros((2, 3, 32, 32, 1), np.float32)
        truth[0, :, :16] = 1
        said = tf.Variable(np.full_like(truth, 0.5))
        settings = dataclasses.replace(PARTS, pooled=pooled)
        stepper = SimpleNamespace(settings=settings, tversky=None, spec=SPEC, model=None)
        stepper._target = lambda *given: (tf.constant(truth), tf.ones_like(said))
        monkeypatch.setattr(propagation_steps, "answer", lambda *given, **how: tf.concat([1 - said, said], -1))
        none = tf.zeros((2, 3), bool)
        with tf.GradientTape() as tape:
            loss, _ = Stepper.window(stepper, [said, said], truth, none, none)
        slope = np.abs(tape.gradient(loss, said).numpy())
        assert least <= slope[1].mean() / slope[0, :, 16:].mean() < most
