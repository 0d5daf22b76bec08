"""Networks that learn to carry masks from slice to slice: what is drawn, what is learned from, and when they move."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from propagation_samples import SPEC, scan_of, tiny

from tfmuscle.config import Propagation
from tfmuscle.errors import DataError
from tfmuscle.inference.propagation import (
    carrier_of,
)
from tfmuscle.labels import IGNORE
from tfmuscle.propagation.carriers import carry
from tfmuscle.training.annotation import drawn_slices, gaps, scaled
from tfmuscle.training.propagation_steps import Stepper, Windows, chunks_of
from tfmuscle.training.propagation_ways import fed_to, way_of, windows_of

PUBLISHED = (  # Al Chanti et al. 2021, of 1400 slices each
    "233 116 58 56 53 51 50 48 46 45 43 42 41 40 38 37 36 35 35 34 33 32 31 31 30 29 29 28 28"
)


def stepper_of(**settings):
    keras.utils.set_random_seed(1)
    model = tiny(SPEC)
    optimiser = keras.optimizers.SGD(1.0)
    optimiser.build(model.trainable_variables)
    return Stepper(model, optimiser, SPEC, Propagation(**settings))


def some_windows(count, structures=1, drawn=(False, False, False), seed=0):
    rng = np.random.default_rng(seed)
    images = np.repeat(rng.normal(size=(count, 1, 3, 4, 4, 1)), structures, 1).astype(np.float32)
    truth = (rng.random((count, structures, 3, 4, 4, 1)) > 0.5).astype(np.float32)
    known = np.broadcast_to(np.array(drawn), (count, structures, 3)).copy()
    fed = rng.random((structures, 3, 4, 4, 1)).astype(np.float32)
    return Windows(images, truth, known, known, images[0], fed), tf.constant(fed)


class TestDrawnSlices:
    def test_the_published_list(self):
        counts = [int(drawn_slices(1400, number, Propagation()).sum()) for number in range(29)]
        assert " ".join(map(str, counts)) == PUBLISHED
        assert sum(counts) == 1408
        assert gaps(4) == [6, 12, 24, 25]
        assert gaps(1) == [6]

    def test_they_are_even_and_in_range(self):
        for number in range(29):
            gap = gaps(number + 1)[-1]
            found = np.flatnonzero(drawn_slices(1400, number, Propagation()))
            assert np.array_equal(found, gap * np.arange(1400 // gap) + gap // 2)
            assert found[-1] < 1400

    @pytest.mark.parametrize(("every", "count"), [(100, 42), (200, 21), (300, 15)])
    def test_the_fixed_regime(self, every, count):
        found = np.flatnonzero(drawn_slices(1400, 7, Propagation(supervision="fixed", every=every)))
        assert len(found) == count  # 42 of 1400 is the published 3 %, 21 are 1.5 %, 15 1.1 %
        assert found[:4].tolist() == [0, 1, 2, every]

    def test_gaps_of_a_sweep_of_another_length(self):
        assert scaled(24, 700, Propagation(sweep=1400)) == 12
        assert scaled(6, 80, Propagation(sweep=1400)) == 1
        assert drawn_slices(700, 2, Propagation(sweep=1400)).sum() == 58  # as many as of 1400 slices
        assert drawn_slices(80, 2, Propagation()).sum() == 3
        assert drawn_slices(9, 0, Propagation(supervision="full")).all()


class TestWays:
    def test_the_number_of_windows(self):
        labels = np.zeros((9, 4, 4))
        labels[:, 1, 1] = 1
        way = way_of(scan_of(labels), SPEC, Propagation(), [1, 2], subject=0)
        assert way.windows == 9 - 3 + 1
        assert way.classes == (1,)  # the other is nowhere
        with pytest.raises(DataError, match="a: 2 slices, but a window has 3; leave the scan out"):
            way_of(scan_of(labels[:2]), SPEC, Propagation(), [1], subject=0)
        assert way_of(scan_of(np.zeros((9, 4, 4))), SPEC, Propagation(), [1, 2], subject=0) is None

    def test_a_structure_begins_where_it_is_large_enough(self):
        labels = np.zeros((12, 4, 4))
        labels[2:, 0, 0] = 2
        labels[4:, 2, 2] = 1
        labels[6:, 3, :2] = 1
        way = way_of(scan_of(labels), SPEC, Propagation(supervision="fixed", every=50), [1, 2], subject=0)
        assert (way.classes, way.starts, way.references) == ((2, 1), (2, 4), (3, 3))
        assert [way.active(chunk) for chunk in chunks_of(way.windows, Propagation())] == [1, 1] + [2] * 6
        later = way_of(scan_of(labels), SPEC, Propagation(smallest=1), [1, 2], subject=0)
        assert (later.classes, later.starts) == ((1,), (6,))

    def test_what_a_window_is_learned_from(self):
        labels = np.zeros((12, 4, 4))
        labels[1:, 0, 0], labels[3:, 2, 2] = 2, 1
        images = np.arange(12.0)[:, None, None] + np.zeros((12, 4, 4))
        settings = Propagation(supervision="fixed", every=9)  # slices 0, 1, 2, 9, 10, 11
        way = way_of(scan_of(labels, images), SPEC, settings, [1, 2], subject=0)
        chunks = chunks_of(way.windows, settings)
        windows = windows_of([way], chunks[2], SPEC, settings)  # slices 3, 4, 5
        assert windows.images[0, 1, :, 0, 0, 0].tolist() == [3, 4, 5]
        assert windows.truth.shape == (1, 2, 3, 4, 4, 1)
        assert windows.truth[0, 0, :, 0, 0, 0].tolist() == [1, 1, 1]
        assert windows.truth[0, 1, :, 0, 0, 0].tolist() == [0, 0, 0]
        assert windows.drawn[0].tolist() == [[True, False, False], [True, True, True]]  # of 2 slices 1-3, of 1 3-5
        last = windows_of([way], chunks[-1], SPEC, settings)
        assert last.drawn[0].tolist() == [[True] * 3] * 2
        alone = windows_of([way], chunks[-1], SPEC, dataclasses.replace(settings, feedback="predicted"))
        assert alone.drawn.all() and not alone.kept.any()
        rarely = dataclasses.replace(settings, refresh=3)  # the last of nine windows is a third one
        assert [windows_of([way], chunk, SPEC, rarely).kept.all() for chunk in chunks[-2:]] == [False, True]

    def test_masks_to_begin_with(self):
        labels = np.full((8, 4, 4), IGNORE)
        labels[[1, 5]] = 0
        labels[1, 1, 1], labels[5, 2, 2] = 1, 1
        way = way_of(scan_of(labels), SPEC, Propagation(supervision="full"), [1], subject=0)
        assert (way.starts, way.references) == ((1,), (1,))
        first, second = chunks_of(way.windows, Propagation())[:2]
        fed = fed_to([way], first, None, SPEC, None)
        assert fed.shape == (1, 3, 4, 4, 1)
        assert fed[0, :, 1, 1, 0].numpy().tolist() == [1, 1, 1]  # the one drawn slice stands for all three
        assert np.flatnonzero(way.drawn).tolist() == [1, 5]  # "full": all that are labelled
        np.testing.assert_array_equal(fed_to([way], second, first, SPEC, fed / 2), fed / 2)

    def test_scans_side_by_side(self):
        labels = np.zeros((9, 4, 4))
        labels[:, 0, 0], labels[2:, 1, 1] = 1, 2
        long, short = (way_of(scan_of(part), SPEC, Propagation(), [1, 2], subject=0) for part in (labels, labels[:6]))
        assert (long.windows, short.windows) == (7, 4)
        fed, before, counts = None, None, []
        for chunk in chunks_of(7, Propagation()):
            fed = fed_to([short, long], chunk, before, SPEC, fed)
            windows = windows_of([short, long], chunk, SPEC, Propagation())
            counts.append(len(fed))
            assert windows.truth.shape[1] == windows.images.shape[1] == windows.drawn.shape[1] == len(fed)
            assert len(windows.first_masks) == len(windows.first_images) == len(fed)
            # what is fed stays with its structure
            pixels = [(0, 0) if mask[0, 0, 0, 0] else (1, 1) for mask in windows.truth[0]]
            assert all(mask[0, row, column, 0] for mask, (row, column) in zip(fed.numpy(), pixels, strict=True))
            before = chunk
        assert counts == [2, 2, 4, 4, 2, 2, 2]

    def test_backwards_and_mirrored_the_same_slices_are_drawn(self):
        labels = np.zeros((10, 4, 4))
        labels[:, 1, 0] = 1
        images = np.arange(160.0).reshape(10, 4, 4)
        plain = way_of(scan_of(labels, images), SPEC, Propagation(), [1], subject=0)
        both = Propagation(reverse=0.5, mirror=0.5)
        turned = way_of(scan_of(labels, images), SPEC, both, [1], subject=0, draws=(0.4, 0.4, 0.0))
        assert np.array_equal(turned.images, plain.images[::-1, :, ::-1])
        assert np.array_equal(turned.drawn, plain.drawn[::-1])
        assert turned.labels[0, 1].tolist() == [0, 0, 0, 1]
        part = dataclasses.replace(both, slices=4)
        for draw, first in ((0.0, 0), (0.99, 6)):  # one of the seven starts of 4 slices
            ahead = way_of(scan_of(labels, images), SPEC, part, [1], subject=0, draws=(0.6, 0.6, draw))
            back = way_of(scan_of(labels, images), SPEC, part, [1], subject=0, draws=(0.4, 0.6, draw))
            assert np.array_equal(ahead.images, images[first : first + 4])
            assert np.array_equal(back.images, images[first : first + 4][::-1])
            assert np.array_equal(ahead.drawn, plain.drawn[first : first + 4])
            assert np.array_equal(back.drawn, ahead.drawn[::-1])


class TestSteps:
    def test_two_steps_a_volume(self):
        chunks = chunks_of(1398, Propagation())
        assert sum(chunk.steps for chunk in chunks) == 2
        assert [chunk.first for chunk in chunks if chunk.steps] == [698, 1397]
        odd = chunks_of(5, Propagation())
        assert [chunk.divisor for chunk in odd] == [3, 3, 3, 2, 2]  # the first half has one more
        assert [chunk.steps for chunk in chunks_of(1, Propagation())] == [True]

    def test_other_modes(self):
        assert all(chunk.steps and chunk.divisor == 1 for chunk in chunks_of(5, Propagation(mode="per_window")))
        chunks = chunks_of(7, Propagation(mode="tbptt", through=3))
        assert [(chunk.first, chunk.count, chunk.divisor) for chunk in chunks] == [(0, 3, 3), (3, 3, 3), (6, 1, 1)]

    def test_gradients_added_up_are_that_of_the_mean(self):
        stepper = stepper_of(l2=0.0)
        parts = [some_windows(1, seed=seed) for seed in range(3)]
        weights = [weight.value for weight in stepper.model.trainable_variables]
        with tf.GradientTape() as tape:
            losses = [
                stepper.window((w.images[0], fed, w.first_images, w.first_masks), w.truth[0], w.drawn[0], w.kept[0])[0]
                for w, fed in parts
            ]
            mean = sum(losses) / 3
        expected = tape.gradient(mean, weights)
        total = sum(float(stepper.add(windows, fed, 3)[0]) for windows, fed in parts)
        assert total == pytest.approx(3 * float(mean), abs=1e-6)
        for summed, wanted in zip(stepper.gradients, expected, strict=True):
            np.testing.assert_allclose(summed, wanted, atol=1e-6)

    def test_a_step_follows_the_gradient_and_forgets_it(self):
        stepper = stepper_of(l2=0.5)  # and the rate is 1, so that w becomes w - g - 2 * 0.5 * w = -g
        windows, fed = some_windows(1)
        stepper.add(windows, fed, 1)
        summed = [part.numpy() for part in stepper.gradients]
        theta = stepper.tversky.theta.numpy()
        stepper.step()
        for weight, part in zip(stepper.model.trainable_variables, summed, strict=True):
            wanted = theta - part if weight is stepper.tversky.theta else -part  # no decay of the loss weights
            np.testing.assert_allclose(weight.value, wanted, atol=1e-6)
        assert all(not part.numpy().any() for part in stepper.gradients)

    @pytest.mark.parametrize("alignment", ["window", "slice"])
    def test_no_gradient_goes_into_what_is_learned(self, alignment):
        stepper = stepper_of(alignment=alignment)
        windows, fed = some_windows(1)
        with tf.GradientTape() as tape:
            tape.watch(fed)
            target, _ = stepper._target(tf.constant(windows.truth[0]), tf.constant(windows.drawn[0]), fed)
        assert tape.gradient(target, fed) is None

    def test_drawn_slices_go_before_pseudo_labels(self):
        stepper = stepper_of()
        windows, fed = some_windows(1, drawn=(False, True, False))
        target, known = stepper._target(tf.constant(windows.truth[0]), tf.constant(windows.drawn[0]), fed)
        np.testing.assert_array_equal(target[:, 1], windows.truth[0][:, 1])
        np.testing.assert_array_equal(target.numpy()[:, [0, 2]], fed.numpy()[:, [0, 2]])
        assert known.numpy().all()

    def test_alignment_by_slice(self):
        stepper = stepper_of(alignment="slice")
        windows, fed = some_windows(1, drawn=(False, False, False))
        target, known = stepper._target(tf.constant(windows.truth[0]), tf.constant(windows.drawn[0]), fed)
        np.testing.assert_array_equal(target[:, :2], fed[:, 1:])  # the same slices, one position on
        assert known.numpy()[:, :2].all() and not known.numpy()[:, 2].any()  # of the newest nothing is known

    @pytest.mark.parametrize("feedback", ["corrected", "predicted", "expert"])
    def test_what_is_fed_to_the_next_window(self, feedback):
        stepper = stepper_of(feedback=feedback)
        windows, fed = some_windows(1, structures=2, drawn=(True, False, False))
        if feedback == "predicted":
            windows = dataclasses.replace(windows, kept=np.zeros_like(windows.kept))
        seen = tf.constant(windows.images[0])
        said = stepper.model({"image": seen, "mask": fed}).numpy()[..., 1:]
        _, after = stepper.add(windows, fed, 1)
        rest = fed if feedback == "expert" else said
        first = said if feedback == "predicted" else windows.truth[0]
        np.testing.assert_allclose(after[:, 0], first[:, 0], atol=1e-6)
        np.testing.assert_allclose(after[:, 1:], rest[:, 1:], atol=1e-6)

    def test_tbptt_goes_back_through_what_is_fed(self):
        windows, fed = some_windows(2)
        one, other = stepper_of(mode="tbptt", through=2), stepper_of(mode="per_window")
        one.add(windows, fed, 2)
        for number in range(2):
            names = ("images", "truth", "drawn", "kept")
            part = {name: getattr(windows, name)[number : number + 1] for name in names}
            _, fed = other.add(dataclasses.replace(windows, **part), fed, 2)
        gap = [float(tf.reduce_max(abs(a - b))) for a, b in zip(one.gradients, other.gradients, strict=True)]
        assert max(gap) > 1e-5

    def test_alpha_and_beta_are_told(self):
        assert stepper_of().weighting == pytest.approx({"alpha": 0.5, "beta": 0.5})

    def test_a_network_without_loss_weights(self):
        image, mask = (keras.Input((3, 4, 4, 1), name=name) for name in ("image", "mask"))
        x = keras.layers.Softmax()(keras.layers.Conv3D(2, 1)(keras.layers.Concatenate()([image, mask])))
        model = keras.Model([image, mask], x)
        optimiser = keras.optimizers.SGD(1.0)
        optimiser.build(model.trainable_variables)
        stepper = Stepper(model, optimiser, SPEC, Propagation())
        windows, fed = some_windows(1, drawn=(True, True, True))
        loss, _ = stepper.add(windows, fed, 1)
        p = model({"image": tf.constant(windows.images[0]), "mask": fed}).numpy()[..., 1]
        g = windows.truth[0, ..., 0]
        overlap = (p * g).sum()
        assert float(loss) == pytest.approx(1 - (overlap + 1) / (p.sum() / 2 + g.sum() / 2 + 1), abs=1e-6)
        assert stepper.weighting == {}


class TestSingleFrames:
    SPEC = dataclasses.replace(SPEC, kind="slices", depth=1)

    def network(self):
        """Foreground is sigmoid(mask + 2 reference_image + 4 reference_mask)."""
        names = ("image", "mask", "reference_image", "reference_mask")
        inputs = [keras.Input((4, 4, 1), name=name) for name in names]
        both = keras.layers.Concatenate()(inputs)
        head = keras.layers.Conv2D(2, 1, use_bias=False)
        model = keras.Model(inputs, keras.layers.Softmax()(head(both)))
        head.set_weights([np.array([[0, 0], [0, 1], [0, 2], [0, 4]], np.float32)[None, None]])
        return model

    def test_a_carrier_with_a_reference(self):
        carrier = carrier_of(self.network(), self.SPEC, Propagation())
        images, drawn = np.array([3.0, 5, 7])[:, None, None] + np.zeros((3, 4, 4)), np.ones((1, 4, 4, 1), np.float32)
        found = np.concatenate([masks for masks, _ in carry(carrier, images, drawn)])
        assert found.shape == (3, 4, 4, 1)
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        second = sigmoid(1 + 2 * 3 + 4)  # fed the drawn mask
        np.testing.assert_allclose(found[1], second, atol=1e-6)
        np.testing.assert_allclose(found[2], sigmoid(second + 2 * 3 + 4), atol=1e-6)

    def test_learning(self):
        labels = np.zeros((6, 4, 4))
        labels[2:, 0, 0], labels[3:, 1, 1] = 1, 2
        images = np.arange(6.0)[:, None, None] + np.zeros((6, 4, 4))
        settings = Propagation(mode="per_window")
        way = way_of(scan_of(labels, images), self.SPEC, settings, [1, 2], subject=0)
        assert way.windows == 4
        windows = windows_of([way], chunks_of(4, settings)[2], self.SPEC, settings)  # slice 4
        assert windows.images[0, 0, 0, 0, 0, 0] == 4
        assert windows.first_images[:, 0, 0, 0, 0].tolist() == [2, 3]
        assert windows.first_masks[0, 0, 0, 0, 0] == windows.first_masks[1, 0, 1, 1, 0] == 1
        assert windows.first_masks.sum() == 2
        model = self.network()
        optimiser = keras.optimizers.SGD(1.0)
        optimiser.build(model.trainable_variables)
        stepper = Stepper(model, optimiser, self.SPEC, settings)
        _, fed = stepper.add(windows, tf.constant(windows.truth[0]), 1)
        assert fed.shape == (2, 1, 4, 4, 1)
        assert stepper.gradients[0].numpy()[..., 3, :].any()
