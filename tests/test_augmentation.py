"""Random transforms: image and labels move as one, left stays left, unknown stays unknown, angles are true in mm."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tfmuscle import augmentation
from tfmuscle.augmentation import FULL, LIGHT, Magnitudes, augment
from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE, LabelMap

BOTH = LabelMap({1: "femur_left", 2: "femur_right", 3: "bladder"})
ONE_SIDE = LabelMap({1: "femur_left", 2: "bladder"})
NO_SIDE = LabelMap({1: "muscle", 2: "bone"})
KINDS = {
    "slices": {"size": (24, 20)},
    "stacks": {"size": (24, 20), "depth": 3},
    "volumes": {"size": (24, 20), "depth": 16},
    "sequences": {"size": (24, 20), "depth": 3},
}
ALWAYS = Magnitudes(
    spatial=1.0, rotation=30, tilt=30, scale=(0.7, 1.4), shear=0.1, elastic=1.0, elastic_amplitude=0.25,
    morphology=1.0, noise=1.0, noise_variance=0.1, blur=1.0, blur_sigma=(0.5, 1.0),
    brightness=1.0, brightness_factor=(0.75, 1.25), contrast=1.0, contrast_factor=(0.75, 1.25),
    low_resolution=1.0, zoom=(0.5, 1.0), gamma=1.0, gamma_inverted=1.0, exponent=(0.7, 1.5),
)  # fmt: skip
NOTHING = Magnitudes(spatial=1.0, elastic=1.0, noise=1.0, blur=1.0, brightness=1.0, contrast=1.0,
                     low_resolution=1.0, gamma=1.0, gamma_inverted=1.0)  # fmt: skip
MOVE_ONLY = Magnitudes(spatial=1.0, rotation=30, tilt=30, scale=(0.7, 1.4), shear=0.1, elastic=1.0,
                       elastic_amplitude=0.25)  # fmt: skip


def make_spec(kind, label_map=BOTH, **changes):
    return DataSpec(label_map, kind=kind, **KINDS[kind] | changes)


def make_sample(spec, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=spec.input_shape).astype(np.float32)
    return image, rng.integers(IGNORE, spec.num_classes, spec.label_shape).astype(np.int32)


def variants(image, labels, spec, *, count, strength, mirror=True):
    """`count` variants with seeds (0, 7), (1, 7), ... made in a tf.data graph."""

    def one(number):
        return augment(image, labels, seed=tf.stack([number, 7]), strength=strength, spec=spec, mirror=mirror)

    numbers = tf.data.Dataset.range(count, output_type=tf.int32)
    return [(image.numpy(), labels.numpy()) for image, labels in numbers.map(one)]


def single(function, *arrays, **options):
    """Runs an eager transform on NumPy arrays."""
    result = function(*(tf.constant(array) for array in arrays), **options)
    return tuple(part.numpy() for part in result) if isinstance(result, tuple) else result.numpy()


# The whole recipe


@pytest.mark.parametrize(
    ("kind", "strength", "dtype"),
    [
        ("slices", ALWAYS, np.int32),
        ("stacks", ALWAYS, np.int16),
        ("sequences", ALWAYS, np.int32),
        ("volumes", ALWAYS, np.int16),
        ("volumes", "light", np.int32),
        ("volumes", "full", np.int32),
    ],
)
def test_shapes_types_and_classes_are_kept(kind, strength, dtype):
    spec = make_spec(kind, channels=("in", "out"))
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels.astype(dtype), spec, count=4, strength=strength):
        assert new_image.shape == spec.input_shape and new_image.dtype == np.float32
        assert new_labels.shape == spec.label_shape and new_labels.dtype == dtype
        assert np.isfinite(new_image).all()
        assert set(np.unique(new_labels)) <= {IGNORE, 0, 1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_none_returns_the_sample_unchanged(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels, spec, count=2, strength="none"):
        np.testing.assert_array_equal(new_image, image)
        np.testing.assert_array_equal(new_labels, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_amounts_of_zero_change_nothing(kind):
    spec = make_spec(kind, channels=("in", "out"))
    image, labels = make_sample(spec)
    for new_image, new_labels in variants(image, labels, spec, count=2, strength=NOTHING, mirror=False):
        np.testing.assert_allclose(new_image, image, atol=2e-5)  # float32 of the power and back in gamma, twice
        np.testing.assert_array_equal(new_labels, labels)


def test_the_seed_decides_in_a_graph_as_eagerly():
    spec = make_spec("volumes")
    image, labels = make_sample(spec)
    first, again = (variants(image, labels, spec, count=4, strength=ALWAYS) for _ in range(2))
    for number, (one, two) in enumerate(zip(first, again, strict=True)):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        if number > 1:
            continue
        eager = augment(image, labels, seed=tf.constant([number, 7]), strength=ALWAYS, spec=spec)
        np.testing.assert_allclose(eager[0], one[0], atol=1e-4)  # other order of float32 operations
        assert (eager[1].numpy() == one[1]).mean() > 0.999  # a voxel at equal distance may round either way
    for number in range(1, 4):
        assert np.abs(first[0][0] - first[number][0]).mean() > 0.1
        assert (first[0][1] != first[number][1]).mean() > 0.1


def test_wrong_arguments_are_refused():
    spec = make_spec("slices")
    image, labels = make_sample(spec)
    with pytest.raises(ValueError, match="strength is 'strong'; choose one of none, light, full"):
        augment(image, labels, seed=[1, 2], strength="strong", spec=spec)
    with pytest.raises(ValueError, match=r"image have shape \(24, 20\); the spec needs \(24, 20, 1\)"):
        augment(image[..., 0], labels, seed=[1, 2], strength="light", spec=spec)
    with pytest.raises(ValueError, match=r"labels have shape \(24, 20, 1\); the spec needs \(24, 20\)"):
        augment(image, labels[..., None], seed=[1, 2], strength="light", spec=spec)


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_labels_move_together(kind):
    spec = make_spec(kind, NO_SIDE)
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 3, [-(-n // 6) for n in spec.label_shape])  # blocks of 6 voxels
    for axis, n in enumerate(spec.label_shape):
        blocks = np.repeat(blocks, 6, axis=axis).take(range(n), axis=axis)
    image = np.repeat(blocks[..., None], spec.depth, -1) if kind == "stacks" else blocks[..., None]
    middle = spec.depth // 2 if kind == "stacks" else 0
    for new_image, new_labels in variants(image.astype(np.float32), blocks, spec, count=12, strength=MOVE_ONLY):
        known = new_labels != IGNORE
        share = (np.abs(new_image[..., middle] - new_labels) < 0.5)[known].mean()
        # a voxel between unlike blocks is a mean: 2D beside 2 of 6, 3D 3 of 6 voxels may touch another block, and
        # half of those are nearer than 0.5; labels of an unlike place would agree in a third of the voxels
        assert share > 0.8
        assert known.mean() > 0.4
        flat = scipy.ndimage.maximum_filter(new_labels, 3) == scipy.ndimage.minimum_filter(new_labels, 3)
        assert np.abs(new_image[..., middle] - new_labels)[flat & known].max() < 0.5 + 1e-4 or kind == "volumes"


def test_all_slices_of_a_stack_and_of_a_sequence_move_alike():
    plane = np.random.default_rng(0).normal(size=(24, 20, 1)).astype(np.float32)
    for kind, image in (("stacks", np.repeat(plane, 3, -1)), ("sequences", np.repeat(plane[None], 3, 0))):
        spec = make_spec(kind, NO_SIDE)
        slices = -1 if kind == "stacks" else 0
        labels = np.ones(spec.label_shape, np.int32)
        for new_image, new_labels in variants(image, labels, spec, count=4, strength=MOVE_ONLY):
            assert np.ptp(new_image, axis=slices).max() == 0
            assert kind == "stacks" or np.ptp(new_labels, axis=0).max() == 0


def test_unknown_comes_in_from_outside_and_air_with_it():
    spec = make_spec("volumes", NO_SIDE)
    image = np.full(spec.input_shape, 5.0, np.float32)
    image[8, 12, 10] = -2.0
    smaller = Magnitudes(spatial=1.0, scale=(0.5, 0.50001))
    ((new_image, new_labels),) = variants(
        image, np.ones(spec.label_shape, np.int32), spec, count=1, strength=smaller, mirror=False
    )
    assert (new_labels[[0, -1]] == IGNORE).all() and (new_image[[0, -1]] == -2.0).all()
    # half the size: 8 of 16, 12 of 24 and 10 of 20 voxels are known
    assert (new_labels == 1).sum() == 8 * 12 * 10
    np.testing.assert_array_equal(new_labels != IGNORE, ndimage_box(spec.label_shape, (8, 12, 10)))


def ndimage_box(shape, size):
    """A centred box of `size` voxels."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice((n - k) // 2, (n + k) // 2) for n, k in zip(shape, size, strict=True))] = True
    return mask


def test_ignore_is_never_averaged_with_labels():
    spec = make_spec("volumes", LabelMap({5: "muscle", 9: "bone"}))
    labels = np.full(spec.label_shape, IGNORE, np.int32)
    labels[:, :, 10:] = 2  # the mean of -1 and 2 would be 0 or 1, neither of which is there
    for _, new_labels in variants(np.zeros(spec.input_shape, np.float32), labels, spec, count=20, strength=MOVE_ONLY):
        assert set(np.unique(new_labels)) == {IGNORE, 2}


@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_negative_and_large_intensities_survive(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    image = image * 400 - 1000
    for new_image, _ in variants(image, labels, spec, count=6, strength="full"):
        assert new_image.min() < -1000 and new_image.mean() < -500


# Left and right


def side_slices(spec, n):
    """(left, right) halves of the left/right axis, as index ranges; the letter is the side the index grows to."""
    letter = next(letter for letter in spec.orientation if letter in "LR")
    low, high = range(0, n // 2), range(n - n // 2, n)
    return (high, low) if letter == "L" else (low, high)


def two_femurs(spec):
    """A block well inside either half, in the middle of the other axes, brighter on the left."""
    axis = next(axis for axis, letter in enumerate(spec.orientation) if letter in "LR")
    n = spec.window[axis]
    labels = np.zeros(spec.window, np.int32)
    for label, half in zip((1, 2), side_slices(spec, n), strict=True):
        offset = [int(round(m * 7 / 16)) for m in spec.window]
        box = [slice(o, m - o) for o, m in zip(offset, spec.window, strict=True)]
        box[axis] = slice(half.start + n // 8, half.stop - n // 8)
        labels[tuple(box)] = label
    return labels, axis


@pytest.mark.parametrize(
    ("orientation", "strength"),
    [("SPL", "light"), ("IAR", "full"), ("SPR", ALWAYS)]
    + [(orientation, MOVE_ONLY) for orientation in ("SPL", "IAR", "SPR", "SLP", "IRA", "LPS", "RAI")],
)
def test_left_never_becomes_right_in_a_volume(orientation, strength):
    spec = DataSpec(BOTH, kind="volumes", size=(24, 24), depth=24, orientation=orientation)
    labels, axis = two_femurs(spec)
    left, right = side_slices(spec, 24)
    image = (labels == 1).astype(np.float32)[..., None]
    for _, new_labels in variants(image, labels, spec, count=40, strength=strength):
        assert set(np.where(new_labels == 1)[axis]) <= set(left) and (new_labels == 1).any()
        assert set(np.where(new_labels == 2)[axis]) <= set(right) and (new_labels == 2).any()


@pytest.mark.parametrize("orientation", ["SPL", "IAR", "SRP"])
@pytest.mark.parametrize("kind", ["slices", "stacks", "sequences"])
def test_left_never_becomes_right_in_a_slice(kind, orientation):
    spec = DataSpec(BOTH, kind=kind, size=(32, 32), depth=1 if kind == "slices" else 3, orientation=orientation)
    plane_spec = DataSpec(BOTH, kind="sequences", size=(32, 32), depth=3, orientation=orientation)
    planes, axis = two_femurs(plane_spec)
    left, right = side_slices(spec, 32)
    labels = planes if kind == "sequences" else planes[1]
    here = axis if kind == "sequences" else axis - 1
    swapped = 0
    image = np.zeros(spec.input_shape, np.float32)
    marked = planes == 1
    image[...] = np.moveaxis(marked, 0, -1) if kind == "stacks" else labels[..., None] == 1
    for new_image, new_labels in variants(image, labels, spec, count=40, strength=MOVE_ONLY):
        assert set(np.where(new_labels == 1)[here]) <= set(left) and (new_labels == 1).any()
        assert set(np.where(new_labels == 2)[here]) <= set(right) and (new_labels == 2).any()
        swapped += np.isin(np.where(new_image > 0.9)[here], right).all()  # the bright femur, drawn on the left
    assert 8 <= swapped <= 32  # half of 40 on average; outside with probability 1e-4, and the seeds are fixed


@pytest.mark.parametrize("kind", KINDS)
def test_one_side_is_never_mirrored(kind):
    spec = make_spec(kind, ONE_SIDE, orientation="SPL")
    columns = np.arange(20, dtype=np.float32)  # grows to the left, and must always do so
    image = np.broadcast_to(columns[:, None], (*spec.window, 1)).astype(np.float32)
    image = np.broadcast_to(columns[:, None], spec.input_shape) if not spec.is_volumetric else image
    labels = np.ones(spec.label_shape, np.int32)
    for new_image, new_labels in variants(image, labels, spec, count=24, strength=Magnitudes()):
        np.testing.assert_array_equal(new_image, image)
        np.testing.assert_array_equal(new_labels, labels)
    assert augmentation.mirrored_axes(spec) == ()


@pytest.mark.parametrize(
    ("kind", "label_map", "orientation", "axes"),
    [
        ("slices", BOTH, "SPL", (1, 2)),
        ("volumes", BOTH, "SPL", (0, 1, 2)),
        ("volumes", ONE_SIDE, "SPL", ()),  # a left leg upside down in a mirror is a right leg
        ("slices", ONE_SIDE, "LPS", ()),
        ("sequences", NO_SIDE, None, (1, 2)),
        ("volumes", NO_SIDE, None, (0, 1, 2)),
        ("sequences", BOTH, None, ()),
        ("volumes", ONE_SIDE, None, ()),
    ],
)
def test_which_axes_may_be_mirrored(kind, label_map, orientation, axes):
    assert augmentation.mirrored_axes(make_spec(kind, label_map, orientation=orientation)) == axes


def test_a_mirror_by_hand():
    spec = DataSpec(BOTH, size=(2, 3))
    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    labels = np.array([[1, 0, 2], [3, IGNORE, 1]])
    new_image, new_labels = single(augmentation.mirror_axes, image, labels, flips=(False, True), spec=spec)
    assert new_image[..., 0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert new_labels.tolist() == [[1, 0, 2], [2, IGNORE, 3]]  # left and right exchanged, bladder and unknown kept
    new_image, new_labels = single(augmentation.mirror_axes, image, labels, flips=(True, False), spec=spec)
    assert new_image[..., 0].tolist() == [[3, 4, 5], [0, 1, 2]]
    assert new_labels.tolist() == [[3, IGNORE, 1], [1, 0, 2]]  # front and back are no sides


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirror_twice_is_nothing(kind):
    spec = make_spec(kind)
    image, labels = make_sample(spec)
    flips = [True] * len(augmentation.mirrored_axes(spec))
    once = single(augmentation.mirror_axes, image, labels, flips=flips, spec=spec)
    assert (once[1] != labels).any()
    twice = single(augmentation.mirror_axes, *once, flips=flips, spec=spec)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_array_equal(twice[1], labels)


def test_mirror_can_be_switched_off():
    spec = make_spec("volumes")
    image, labels = make_sample(spec)
    for new_image, _ in variants(image, labels, spec, count=8, strength=Magnitudes(), mirror=False):
        np.testing.assert_array_equal(new_image, image)
    mirrored = variants(image, labels, spec, count=64, strength=Magnitudes())
    kinds = {new_image.tobytes() for new_image, _ in mirrored}
    assert len(kinds) == 8  # all combinations of three axes, missing one of them has probability 8 · (7/8)^64 = 0.002


# Moving voxels


def test_a_rotation_is_rigid_in_mm():
    spacing = np.array([3.0, 1.0, 0.5])
    matrix = augmentation.affine_matrix((20.0, 25.0, -30.0), spacing=spacing).numpy()
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(in_mm) == pytest.approx(1.0, abs=1e-6)


def test_a_quarter_turn_by_hand():
    # 90 degrees in-plane: output (row, column) offset (1, 0) comes from R (1, 0) = (0, 1); 2 mm rows, 1 mm columns:
    # one row is 2 mm, which are two columns
    matrix = augmentation.affine_matrix((90.0,), spacing=(2.0, 1.0)).numpy()
    np.testing.assert_allclose(matrix, [[0, -0.5], [2, 0]], atol=1e-6)
    matrix = augmentation.affine_matrix((0.0,), scale=2.0, shear=0.1).numpy()
    np.testing.assert_allclose(matrix, [[0.5, 0.05], [0, 0.5]], atol=1e-6)


def test_a_sphere_in_mm_stays_a_sphere():
    shape, spacing = (21, 45, 45), (3.0, 1.0, 1.0)
    offset = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    radius = np.sqrt(sum(np.meshgrid(*[o**2 for o in offset], indexing="ij")))
    ball = (radius <= 18).astype(np.int32)

    def turned(assumed):
        matrix = augmentation.affine_matrix((10.0, 25.0, -30.0), spacing=assumed)
        coordinates = augmentation.affine_coordinates(matrix, shape)
        return single(
            augmentation.spatial_transform, ball[..., None].astype(np.float32), ball, coordinates=coordinates
        )[1]

    def dice(labels):
        return 2 * ((labels == 1) & (ball == 1)).sum() / ((labels == 1).sum() + ball.sum())

    assert dice(turned(spacing)) > 0.95  # slices of 3 mm leave steps at the surface
    assert dice(turned(None)) < 0.85  # turning voxels instead of mm squeezes it

    def worst(spacing):
        spec = DataSpec(NO_SIDE, kind="volumes", size=shape[1:], depth=shape[0], spacing=spacing)
        turn = Magnitudes(spatial=1.0, rotation=30, tilt=30)
        image = np.zeros(spec.input_shape, np.float32)
        return min(dice(labels) for _, labels in variants(image, ball, spec, count=8, strength=turn))

    assert worst(spacing) > 0.93  # the recipe takes the spacing of the spec
    assert worst(None) < 0.85


def test_thick_slices_are_only_turned_in_plane():
    image = np.zeros((16, 24, 20, 1), np.float32)
    image += np.arange(16)[:, None, None, None]
    for thickness, tilted in ((5.0, False), (2.0, True)):
        spec = make_spec("volumes", NO_SIDE, spacing=(thickness, 1.0, 1.0))
        labels = np.ones(spec.label_shape, np.int32)
        turn = Magnitudes(spatial=1.0, rotation=30, tilt=30)
        ((new_image, new_labels),) = variants(image, labels, spec, count=1, strength=turn, mirror=False)
        slopes = [np.ptp(plane[mask == 1]) for plane, mask in zip(new_image[..., 0], new_labels, strict=True)]
        assert (max(slopes) > 1) == tilted


@pytest.mark.parametrize("shape", [(16, 20, 18), (30, 25)])
def test_affine_agrees_with_scipy(shape):
    rng = np.random.default_rng(0)
    image, labels = rng.normal(size=shape).astype(np.float32), rng.integers(0, 9, shape).astype(np.int32)
    angles = (12.0, -8.0, 5.0) if len(shape) == 3 else (12.0,)
    matrix = augmentation.affine_matrix(angles, scale=1.1, shear=0.07)
    coordinates = augmentation.affine_coordinates(matrix, shape)
    new_image, new_labels = single(augmentation.spatial_transform, image[..., None], labels, coordinates=coordinates)
    centre = (np.array(shape) - 1) / 2
    matrix = matrix.numpy().astype(float)
    options = {"matrix": matrix, "offset": centre - matrix @ centre, "mode": "nearest"}
    inside = new_labels != IGNORE
    assert inside.mean() > 0.9
    expected = scipy.ndimage.affine_transform(image, order=1, **options)
    np.testing.assert_allclose(new_image[inside, 0], expected[inside], atol=2e-4)  # float32 coordinates: 1e-5 voxels
    judged = scipy.ndimage.affine_transform(labels, order=0, **options)
    assert (new_labels == judged)[inside].mean() > 0.999


def test_interpolation_by_hand():
    image = np.array([[0.0, 10.0], [20.0, 50.0]], np.float32)[..., None]
    labels = np.array([[1, 2], [3, 4]])
    rows, columns = np.array([[0.5, 0.25], [1.4, 1.6]], np.float32), np.array([[0.5, 0.0], [0.0, 1.0]], np.float32)
    coordinates = [tf.constant(rows), tf.constant(columns)]
    new_image, new_labels = single(augmentation.spatial_transform, image, labels, coordinates=coordinates)
    # (0.5, 0.5): mean of four = 20; (0.25, 0): 5; (1.4, 0): within half a voxel, the edge value 20; (1.6, 1): outside
    assert new_image[..., 0].tolist() == [[20.0, 5.0], [20.0, 0.0]]
    assert new_labels.tolist() == [[4, 1], [3, IGNORE]]  # a voxel at equal distance takes the later one


@pytest.mark.parametrize("shape", [(20, 24, 16), (40, 32)])
def test_elastic_never_folds_and_is_smooth(shape):
    for number in range(10):
        field = augmentation.elastic_displacement(shape, seed=tf.constant([number, 3]), amplitude=0.25)
        displacement = np.stack([part.numpy() for part in field])
        assert displacement.shape == (len(shape), *shape)
        for part, n in zip(displacement, shape, strict=True):
            assert 0.1 < np.abs(part).max() <= 0.25 * (n - 1) / 4
        gradient = np.stack([np.stack(np.gradient(part)) for part in displacement])  # (to, along, ...)
        jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(len(shape))
        assert np.linalg.det(jacobian).min() > 0


def test_elastic_of_amplitude_zero_or_a_single_voxel():
    field = augmentation.elastic_displacement((6, 1), seed=tf.constant([1, 2]), amplitude=0.0)
    assert all((part.numpy() == 0).all() for part in field)
    field = augmentation.elastic_displacement((6, 1), seed=tf.constant([1, 2]), amplitude=0.25)
    assert (field[1].numpy() == 0).all() and np.abs(field[0].numpy()).max() > 0


# Intensities


def test_blur_agrees_with_scipy_and_keeps_a_constant():
    image = np.random.default_rng(0).normal(size=(20, 22, 24, 2)).astype(np.float32)
    blurred = single(augmentation.gaussian_blur, image, sigma=0.9, axes=(0, 1, 2))
    expected = scipy.ndimage.gaussian_filter(image, (0.9, 0.9, 0.9, 0), truncate=6)
    inner = (slice(6, -6),) * 3
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=1e-5)
    constant = np.full((5, 4, 1), -3.0, np.float32)
    np.testing.assert_allclose(single(augmentation.gaussian_blur, constant, sigma=1.0, axes=(0, 1)), -3.0, atol=1e-5)


def test_noise_has_the_asked_deviation():
    image = np.full((40, 50, 20, 1), 7.0, np.float32)
    noise = single(augmentation.add_noise, image, seed=tf.constant([3, 4]), sd=0.5) - image
    # 40,000 draws: the mean is known to 0.5 / 200 = 0.0025, the deviation to 0.5 / sqrt(80000) = 0.0018
    assert abs(noise.mean()) < 0.0125 and abs(noise.std() - 0.5) < 0.009


def test_brightness_and_contrast_by_hand():
    image = np.array([-2.0, 0.0, 1.0, 5.0], np.float32)[:, None]  # mean 1
    assert single(augmentation.adjust_brightness, image, factor=1.5)[:, 0].tolist() == [-3.0, 0.0, 1.5, 7.5]
    assert single(augmentation.adjust_contrast, image, factor=0.5)[:, 0].tolist() == [-0.5, 0.5, 1.0, 3.0]
    # 2x: -5, -1, 1, 9, kept within -2..5
    assert single(augmentation.adjust_contrast, image, factor=2.0)[:, 0].tolist() == [-2.0, -1.0, 1.0, 5.0]


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_mean_deviation_and_order(invert):
    image = np.random.default_rng(0).normal(-3, 2, (30, 30, 2)).astype(np.float32)
    new = single(augmentation.adjust_gamma, image, gamma=1.5, invert=invert)
    np.testing.assert_allclose(new.mean((0, 1)), image.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(new.std((0, 1)), image.std((0, 1)), rtol=1e-4)
    order = np.argsort(image[..., 0].ravel())
    assert (np.diff(new[..., 0].ravel()[order]) >= -1e-5).all()
    skewed = ((new - new.mean()) ** 3).mean() - ((image - image.mean()) ** 3).mean()
    assert skewed < 0 if invert else skewed > 0  # above 1 stretches the bright end, on the negative the dark end


def test_gamma_by_hand_and_of_a_constant():
    image = np.array([0.0, 1.0, 2.0], np.float32)[:, None]
    new = single(augmentation.adjust_gamma, image, gamma=2.0)[:, 0]
    # (0, 1/4, 1): mean 5/12, variance 13/72; times sqrt((2/3) / (13/72)) = 1.9215, around 1
    np.testing.assert_allclose(new, 1 + (np.array([0, 0.25, 1]) - 5 / 12) * np.sqrt(48 / 13), atol=1e-5)
    constant = np.full((4, 4, 1), -2.5, np.float32)
    np.testing.assert_array_equal(single(augmentation.adjust_gamma, constant, gamma=1.4), constant)


def test_low_resolution_by_hand():
    image = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], np.float32)[:, None]
    # zoom 1/3: two coarse voxels at fine 1 and 4; fine centres lie at (i + 0.5) / 3 - 0.5 = -.33, 0, .33, .67, 1, 1.33
    new = single(augmentation.simulate_low_resolution, image, zoom=1 / 3, axes=(0,))[:, 0]
    np.testing.assert_allclose(new, [1, 1, 2, 3, 4, 4], atol=1e-5)
    np.testing.assert_array_equal(single(augmentation.simulate_low_resolution, image, zoom=1.0, axes=(0,)), image)
    one = single(augmentation.simulate_low_resolution, image, zoom=0.01, axes=(0,))
    assert (one == 3.0).all()  # at least one voxel is left


# Masks


def test_dilation_and_erosion_by_hand():
    labels = np.array([
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 2, 0],
        [0, 1, 1, 1, 2, IGNORE],
        [0, 1, 1, 1, 2, 2],
        [0, 0, 0, 0, IGNORE, 0],
    ])  # fmt: skip
    dilated = np.array([
        [0, 1, 1, 1, 2, 0],
        [1, 1, 1, 1, 2, 2],
        [1, 1, 1, 1, 2, IGNORE],
        [1, 1, 1, 1, 2, 2],
        [0, 1, 1, 1, IGNORE, 2],
    ])  # fmt: skip
    eroded = np.array([
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 2, IGNORE],
        [0, 0, 0, 0, 2, 0],
        [0, 0, 0, 0, IGNORE, 0],
    ])  # fmt: skip
    change = augmentation.dilate_or_erode_labels
    np.testing.assert_array_equal(single(change, labels, dilate=True), dilated)
    np.testing.assert_array_equal(single(change, labels, dilate=False), eroded)


@pytest.mark.parametrize("radius", [1, 2])
@pytest.mark.parametrize("dilate", [True, False])
def test_masks_change_at_borders_only_and_agree_with_scipy(dilate, radius):
    mask = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 40)), 4) > 0.02
    labels = mask.astype(np.int32)
    labels[:, 30:] = IGNORE
    new = single(augmentation.dilate_or_erode_labels, labels, dilate=dilate, radius=radius)
    np.testing.assert_array_equal(new == IGNORE, labels == IGNORE)
    known = mask[:, :30]
    if dilate:
        expected = scipy.ndimage.binary_dilation(known, iterations=radius)
    else:
        expected = scipy.ndimage.binary_erosion(known, iterations=radius, border_value=1)
    np.testing.assert_array_equal(new[:, :30] == 1, expected)
    assert (new != labels).any()


def test_both_strengths_leave_outlines_alone():
    assert LIGHT.morphology == FULL.morphology == 0
    spec = make_spec("volumes")
    labels = np.zeros(spec.label_shape, np.int32)
    labels[4:12, 6:18, 5:15] = 3
    thicker = Magnitudes(morphology=1.0)
    image = np.zeros(spec.input_shape, np.float32)
    counts = {
        int((new == 3).sum()) for _, new in variants(image, labels, spec, count=12, strength=thicker, mirror=False)
    }
    # 8 slices of 12 x 10 = 120 pixels; dilated by one pixel in-plane 120 + 2 · 22, eroded 10 x 8
    assert counts == {8 * 164, 8 * 80}
