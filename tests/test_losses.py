import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfmuscle.labels import IGNORE
from tfmuscle.losses import LOSSES, describe_losses, get_loss
from tfmuscle.losses.voxelwise import inverse_frequencies

EVERY = sorted(LOSSES)
KNOWN_AT_HALF = {
    # Two voxels, truth 0 and 1, everywhere p = (0.5, 0.5), one foreground class.
    "dice": 1 - (2 * 0.5) / (1 + 1),  # Σpg = 0.5, Σp = 1, Σg = 1
    "generalised_dice": 0.5,  # both classes have one voxel: 1 - 2 (0.5 + 0.5) / (2 + 2)
    "tversky": 1 - 1.5 / 2.0,  # TP = FP = FN = 0.5: (0.5 + 1) / (0.5 + 0.7·0.5 + 0.3·0.5 + 1)
    "cross_entropy": math.log(2),
    "weighted_cross_entropy": math.log(2),
    "focal": 0.25 * 0.5**2 * math.log(2) / 2,  # one true class of two: the mean over classes halves it
    "dice_cross_entropy": 0.5 + math.log(2),
    "dice_focal": 0.5 + 0.25 * 0.5**2 * math.log(2) / 2,
    "boundary_band": math.log(2),  # both voxels lie within two of the boundary
    "kervadec": 0.25,  # the class is one voxel away from the first and on the second: (0.5 · 1 + 0.5 · 0) / 2
    "small_object": 0.0,  # a constant has no specks
    "composite": (1 - 2 / 3) + 0.5 * math.log(2) + 0.5 * math.log(2) + 0.5 * 0.25,  # Dice (1 + 1) / (1 + 1 + 1)
}


def one_hot(labels, num_classes=3):
    return np.eye(num_classes, dtype="float32")[labels]


def square_labels(rank=2):
    """Class 1 fills a block, class 2 a smaller one; two samples."""
    labels = np.zeros((2, *(12,) * rank), int)
    labels[(slice(None), *(slice(1, 6),) * rank)] = 1
    labels[(slice(None), *(slice(7, 11),) * rank)] = 2
    return labels


def soft_prediction(shape, num_classes=3, seed=0):
    logits = np.random.default_rng(seed).normal(size=(*shape, num_classes)).astype("float32")
    return np.asarray(ops.softmax(logits))


def value_and_gradient(loss, y_true, y_pred):
    y_pred = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(y_pred)
        value = loss(y_true, y_pred)
    return float(value), tape.gradient(value, y_pred).numpy()


@pytest.mark.parametrize("name", EVERY)
class TestEveryLoss:
    def test_perfect_is_zero_or_less(self, name):
        for rank in (2, 3):
            labels = square_labels(rank)
            value = float(get_loss(name)(labels, one_hot(labels)))
            # Σpg and the like are exact here; logarithms are of 1. Kervadec's loss is negative inside.
            assert value < 0 if name == "kervadec" else value == pytest.approx(0, abs=1e-6)

    def test_known_at_half(self, name):
        half = np.full((1, 1, 2, 2), 0.5, "float32")
        assert float(get_loss(name)(np.array([[[0, 1]]]), half)) == pytest.approx(KNOWN_AT_HALF[name], abs=2e-5)

    def test_falls_as_overlap_grows(self, name):
        labels = square_labels()
        wrong = np.zeros_like(labels)
        wrong[:, 1:3, 9:11] = 1  # a speck of class 1 in the background, everything else missed
        values = [
            float(get_loss(name)(labels, (share * one_hot(labels) + (1 - share) * one_hot(wrong)).astype("float32")))
            for share in (0.05, 0.3, 0.6, 0.95)
        ]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.7 * values[0]

    def test_gradient_is_finite(self, name):
        labels = square_labels()
        labels[labels == 2] = 0  # class 2 is absent
        for prediction in (soft_prediction(labels.shape), one_hot(labels), one_hot((labels + 1) % 3)):
            value, gradient = value_and_gradient(get_loss(name), labels, prediction)
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()

    def test_all_absent_is_finite(self, name):
        labels = np.zeros((2, 12, 12), int)
        value, gradient = value_and_gradient(get_loss(name), labels, soft_prediction(labels.shape))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()

    def test_unlabelled_voxels_count_nothing(self, name):
        labels = square_labels()
        labels[:, 3:8, 5:9] = IGNORE
        prediction = soft_prediction(labels.shape)
        changed = np.where((labels == IGNORE)[..., None], soft_prediction(labels.shape, seed=1), prediction)
        broken = np.where((labels == IGNORE)[..., None], np.float32(np.nan), prediction)
        value, gradient = value_and_gradient(get_loss(name), labels, prediction)
        assert value > 0
        assert float(get_loss(name)(labels, changed)) == value
        assert float(get_loss(name)(labels, broken)) == value
        assert not gradient[labels == IGNORE].any()
        assert gradient[labels != IGNORE].any()

    def test_nothing_labelled_is_zero(self, name):
        labels = np.full((2, 12, 12), IGNORE)
        value, gradient = value_and_gradient(get_loss(name), labels, soft_prediction(labels.shape))
        assert value == pytest.approx(0, abs=1e-6)
        assert not gradient.any()

    def test_indices_equal_one_hot(self, name):
        labels = square_labels()
        labels[0, :3] = IGNORE
        hot = one_hot(labels) * (labels != IGNORE)[..., None]
        prediction = soft_prediction(labels.shape)
        values = [float(get_loss(name)(truth, prediction)) for truth in (labels, labels[..., None], hot)]
        assert values[0] == values[1] == values[2]

    def test_sigmoid_equals_two_classes(self, name):
        labels = (square_labels() > 0).astype(int)
        labels[0, :3] = IGNORE
        pair = soft_prediction(labels.shape, num_classes=2)
        expected = float(get_loss(name)(labels, pair))
        # 1 - p rounds in the last digit
        assert float(get_loss(name)(labels, pair[..., 1:])) == pytest.approx(expected, rel=1e-5)
        assert float(get_loss(name)(labels[..., None], pair[..., 1:])) == pytest.approx(expected, rel=1e-5)

    def test_config_round_trip(self, name):
        labels, loss = square_labels(), get_loss(name)
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert type(again) is type(loss)
        assert again.get_config() == loss.get_config()
        prediction = soft_prediction(labels.shape)
        assert float(again(labels, prediction)) == float(loss(labels, prediction))

    def test_half_precision_predictions(self, name):
        # 32 x 64 x 64 voxels of background overflow float16 (65504) when summed in it.
        labels = np.zeros((1, 32, 64, 64), "int32")
        labels[:, 4:20, 4:30, 4:30] = 1
        half = soft_prediction(labels.shape, num_classes=2).astype("float16")
        value = get_loss(name)(labels, half)
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(float(get_loss(name)(labels, half.astype("float32"))), rel=1e-6)

    def test_in_a_graph_with_unknown_sizes(self, name):
        loss, labels = get_loss(name), square_labels()
        prediction = soft_prediction(labels.shape)
        signature = [tf.TensorSpec((None, None, None, 1), tf.int32), tf.TensorSpec((None, None, None, 3), tf.float32)]
        traced = tf.function(lambda y_true, y_pred: loss(y_true, y_pred), input_signature=signature)
        expected = float(loss(labels, prediction))
        assert float(traced(labels[..., None].astype("int32"), prediction)) == pytest.approx(expected, rel=1e-5)

    def test_describes_itself(self, name):
        about = next(item for item in describe_losses() if item["name"] == name)
        assert about["source"]
        assert about["formula"]
        assert LOSSES[name].__doc__


def test_dice_by_hand():
    # Sample 1: truth 1 1 0 0, p 1 0 0 0: 2·1 / (1 + 2) = 2/3. Sample 2: truth 0 0 0 1, p 0 0 ½ ½: 2·½ / (1 + 1) = ½.
    labels = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 1]]])
    foreground = np.array([[[1, 0, 0, 0]], [[0, 0, 0.5, 0.5]]], "float32")
    prediction = np.stack([1 - foreground, foreground], axis=-1)
    each, pooled = get_loss("dice", batch_dice=False), get_loss("dice", batch_dice=True)
    assert float(each(labels, prediction)) == pytest.approx(1 - (2 / 3 + 1 / 2) / 2, abs=1e-5)
    # Pooled: 2·(1 + 0.5) / (2 + 3) = 0.6
    assert float(pooled(labels, prediction)) == pytest.approx(0.4, abs=1e-5)
    # 2D pools by itself (nnU-Net), 3D does not
    assert float(get_loss("dice")(labels, prediction)) == float(pooled(labels, prediction))
    in_3d = get_loss("dice")(labels[:, None], prediction[:, None])
    assert float(in_3d) == pytest.approx(float(each(labels, prediction)))


def test_dice_of_a_missed_small_class_is_felt():
    # Keras' own Dice says 0.02 here: it sums over background and classes.
    labels = np.zeros((1, 10, 10), int)
    labels[0, 0, :2] = 1
    assert float(get_loss("dice")(labels, one_hot(np.zeros_like(labels), 2))) == pytest.approx(1, abs=1e-4)


def test_absent_class_has_a_bounded_slope():
    # d/dlogit of ε/(Σp + ε) is at most 1/4 for any Σp, here swept around ε = 1e-5.
    labels = np.zeros((1, 4, 4), int)
    for logit in (-16.0, -14.0, -12.0, -10.0, 0.0):
        logits = tf.Variable(np.stack([np.zeros((1, 4, 4)), np.full((1, 4, 4), logit)], axis=-1).astype("float32"))
        with tf.GradientTape() as tape:
            loss = get_loss("dice")(labels, tf.nn.softmax(logits))
        assert np.abs(tape.gradient(loss, logits)[..., 1].numpy().sum()) <= 0.25 + 1e-3


def test_tversky_weighs_both_errors():
    # Truth 1 0, p 1 1: TP 1, FP 1, FN 0: 1 - 2 / (1 + α + 1). Truth 1 1, p 1 0: FN 1: 1 - 2 / (1 + β + 1).
    false_positive = (np.array([[[1, 0]]]), one_hot(np.array([[[1, 1]]]), 2))
    false_negative = (np.array([[[1, 1]]]), one_hot(np.array([[[1, 0]]]), 2))
    loss = get_loss("tversky", alpha=0.7, beta=0.3)
    assert float(loss(*false_positive)) == pytest.approx(1 - 2 / 2.7, abs=1e-6)
    assert float(loss(*false_negative)) == pytest.approx(1 - 2 / 2.3, abs=1e-6)


def test_tversky_of_halves_is_dice():
    labels = square_labels()
    prediction = soft_prediction(labels.shape)
    # (TP + s) / (TP + FP/2 + FN/2 + s) = (2 TP + 2 s) / (Σp + Σg + 2 s)
    tversky = get_loss("tversky", alpha=0.5, beta=0.5, smooth=0.5)(labels, prediction)
    dice = get_loss("dice", batch_dice=False, smooth=1.0)(labels, prediction)
    assert float(tversky) == pytest.approx(float(dice), abs=1e-6)


def test_generalised_dice_by_hand():
    # Truth 0 0 0 1; p of class 1: 0 0 0.5 0.5. w = 1/9 and 1.
    # 2 (2.5/9 + 0.5) / ((3 + 3)/9 + (1 + 1)) = (14/9) / (24/9) = 7/12
    foreground = np.array([[[0, 0, 0.5, 0.5]]], "float32")
    prediction = np.stack([1 - foreground, foreground], axis=-1)
    loss = get_loss("generalised_dice")
    assert float(loss(np.array([[[0, 0, 0, 1]]]), prediction)) == pytest.approx(5 / 12, abs=1e-6)


def test_cross_entropy_equals_keras():
    labels = square_labels()
    prediction = soft_prediction(labels.shape)
    judge = keras.losses.SparseCategoricalCrossentropy()(labels, prediction)
    assert float(get_loss("cross_entropy")(labels, prediction)) == pytest.approx(float(judge), rel=1e-5)


def test_cross_entropy_is_the_mean_over_labelled_voxels():
    # p of the truth 0.5 and 0.25, two voxels unlabelled: (ln 2 + ln 4) / 2
    prediction = np.array([[[[0.5, 0.5], [0.75, 0.25], [0.1, 0.9], [0.9, 0.1]]]], "float32")
    value = get_loss("cross_entropy")(np.array([[[0, 1, IGNORE, IGNORE]]]), prediction)
    assert float(value) == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_weighted_cross_entropy_by_hand():
    # -log p of the truth: class 0 three times ln 2, class 1 once ln 4.
    prediction = np.array([[[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]]], "float32")
    labels = np.array([[[0, 0, 0, 1]]])
    # alike: (ln 2 + ln 4) / 2
    assert float(get_loss("weighted_cross_entropy")(labels, prediction)) == pytest.approx(1.5 * math.log(2), rel=1e-6)
    # 1 and 3: (3 ln 2 + 3 ln 4) / (3 + 3), the same; 1 and 0: ln 2
    weighted = get_loss("weighted_cross_entropy", class_weights=(1, 3))
    assert float(weighted(labels, prediction)) == pytest.approx(1.5 * math.log(2), rel=1e-6)
    first_only = get_loss("weighted_cross_entropy", class_weights=(1, 0))
    assert float(first_only(labels, prediction)) == pytest.approx(math.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="3 class weights for 2 classes; give one per class"):
        get_loss("weighted_cross_entropy", class_weights=(1, 1, 1))(labels, prediction)
    with pytest.raises(ValueError, match="class weights 'dataset' are filled in by training; give a number per class"):
        get_loss("weighted_cross_entropy", class_weights="dataset")(labels, prediction)


def test_inverse_frequencies_by_hand():
    # 1/600, 1/300, 1/100 are as 1 : 2 : 6, their mean 3; the absent class has no say
    assert inverse_frequencies([600, 300, 0, 100]) == pytest.approx([1 / 3, 2 / 3, 0, 2])
    assert inverse_frequencies([0, 0]) == [0, 0]


def test_focal_without_focus_is_cross_entropy():
    labels = square_labels()
    prediction = soft_prediction(labels.shape)
    # the mean over 3 classes divides by 3
    plain = get_loss("focal", gamma=0.0, alpha=1.0)(labels, prediction)
    assert 3 * float(plain) == pytest.approx(float(get_loss("cross_entropy")(labels, prediction)), rel=1e-5)


def test_boundary_band_looks_at_the_band_only():
    labels = np.zeros((1, 20, 20), int)
    labels[0, :, :10] = 1
    prediction = one_hot(labels, 2)
    loss = get_loss("boundary_band")
    far = prediction.copy()
    far[0, :, :8] = far[0, :, 12:] = 0.5  # the band of k = 5 reaches two voxels to either side: columns 8 to 11
    assert float(loss(labels, far)) == pytest.approx(0, abs=1e-6)
    near = prediction.copy()
    near[0, :, 8] = 0.5  # one column in four
    assert float(loss(labels, near)) == pytest.approx(math.log(2) / 4, rel=1e-5)


def test_boundary_to_the_unknown_is_no_boundary():
    labels = np.zeros((1, 20, 20), int)
    labels[0, :, :10] = 1
    labels[0, :, 10:] = IGNORE
    assert float(get_loss("boundary_band")(labels, np.full((1, 20, 20, 2), 0.5, "float32"))) == 0


def test_small_object_sees_specks_and_nothing_else():
    labels = np.zeros((1, 20, 20), int)
    labels[0, 2:12, 2:12] = 1
    loss = get_loss("small_object")
    speck = labels.copy()
    speck[0, 15:18, 15:18] = 1
    # nine voxels of 400, one foreground class
    assert float(loss(labels, one_hot(speck, 2))) == pytest.approx(9 / 400, rel=1e-6)
    large = labels.copy()
    large[0, 12:20, 12:20] = 1  # 8 x 8 survives an opening with 7 x 7
    assert float(loss(labels, one_hot(large, 2))) == 0


def test_an_object_may_go_on_where_nobody_labelled():
    labels = np.zeros((1, 20, 20), int)
    strip = np.zeros_like(labels)
    strip[:, :, 6:10] = 1  # four columns wide, narrower than the window of seven
    assert float(get_loss("small_object")(labels, one_hot(strip, 2))) == pytest.approx(4 / 20, rel=1e-6)
    labels[:, :, 10:] = IGNORE
    assert float(get_loss("small_object")(labels, one_hot(strip, 2))) == 0


def test_composite_is_the_sum_of_its_parts():
    labels = square_labels()
    prediction = soft_prediction(labels.shape)
    parts = {
        1.0: get_loss("dice", batch_dice=False, smooth=1.0),
        0.5: get_loss("cross_entropy"),
        0.25: get_loss("boundary_band"),
        0.125: get_loss("tversky"),
        2.0: get_loss("small_object"),
    }
    expected = sum(weight * float(loss(labels, prediction)) for weight, loss in parts.items())
    assert float(get_loss("composite", weights=tuple(parts))(labels, prediction)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dise", {}, "no loss is called 'dise'; did you mean 'dice'"),
        ("zzz", {}, "no loss is called 'zzz'; there are dice, "),
        ("tversky", {"alfa": 1}, "the loss 'tversky' has no option 'alfa'; did you mean 'alpha'"),
        ("cross_entropy", {"alpha": 1}, "the loss 'cross_entropy' has no option 'alpha'; there are none"),
        ("tversky", {"alpha": -1}, "alpha is -1; a non-negative number is needed"),
        ("dice", {"smooth": 0}, "smooth is 0; a positive number is needed"),
        ("focal", {"gamma": math.nan}, "gamma is nan; a non-negative number is needed"),
        ("boundary_band", {"size": 4}, "size is 4; an odd number of voxels from 3 on is needed"),
        ("weighted_cross_entropy", {"class_weights": (1, -1)}, "class weight is -1; a non-negative number is needed"),
        ("weighted_cross_entropy", {"class_weights": "data"}, "class_weights is 'data'; give a number per class, or"),
        ("composite", {"weights": (1, 1)}, "2 weights; five are needed: 1.0 dice"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        get_loss(name, **options)


def test_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"y_true has shape \(2, 8, 8, 4\) for predictions of shape \(2, 8, 8, 3\)"):
        get_loss("dice")(np.zeros((2, 8, 8, 4)), np.zeros((2, 8, 8, 3)))


def test_a_compiled_model_trains_and_keeps_its_loss(tmp_path):
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Conv2D(3, 3, padding="same", activation="softmax")(image))
    model.compile("sgd", get_loss("dice_cross_entropy", batch_dice=False))
    images, labels = np.random.default_rng(0).normal(size=(4, 8, 8, 1)), square_labels()[:1, :8, :8].repeat(4, axis=0)
    first = model.train_on_batch(images, labels[..., None])
    for _ in range(5):
        last = model.train_on_batch(images, labels[..., None])
    assert last < first
    assert keras.losses.deserialize(keras.losses.serialize(model.loss)).options == {"batch_dice": False}
