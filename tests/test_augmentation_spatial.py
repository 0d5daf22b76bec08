"""Moving voxels: angles are true in mm, interpolation agrees with SciPy, elastic maps do not fold."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from augmentation_samples import (
    NO_SIDE,
    make_spec,
    single,
    variants,
)

from tfmuscle import augmentation
from tfmuscle.augmentation import Magnitudes
from tfmuscle.config import DataSpec
from tfmuscle.labels import IGNORE


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
        return min(dice(labels) for _, labels in variants(image, ball, spec, count=8, recipe=turn))

    assert worst(spacing) > 0.93  # the recipe takes the spacing of the spec
    assert worst(None) < 0.85


def test_thick_slices_are_only_turned_in_plane():
    image = np.zeros((16, 24, 20, 1), np.float32)
    image += np.arange(16)[:, None, None, None]
    for thickness, tilted in ((5.0, False), (2.0, True)):
        spec = make_spec("volumes", NO_SIDE, spacing=(thickness, 1.0, 1.0))
        labels = np.ones(spec.label_shape, np.int32)
        turn = Magnitudes(spatial=1.0, rotation=30, tilt=30)
        ((new_image, new_labels),) = variants(image, labels, spec, count=1, recipe=turn, mirror=False)
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
