"""Bodies of known size on grids of any kind, for the tests of what `measure` measures."""

import numpy as np

from tfmuscle.volume import Geometry, Volume


def rotation(about_x=0.0, about_y=0.0, about_z=0.0):
    """Turns by degrees about x, then y, then z."""
    x, y, z = np.deg2rad([about_x, about_y, about_z])
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return turn_z @ turn_y @ turn_x


def grid(size_mm, spacing, matrix=None, centre=(0.0, 0.0, 0.0)):
    """A grid around `centre`; the columns of `matrix` are the directions of the array's axes."""
    shape = tuple(int(round(size / step)) for size, step in zip(size_mm, spacing, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if matrix is None else np.asarray(matrix)) * spacing
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


def local(geometry, direction=(0.0, 0.0, 1.0), centre=(0.0, 0.0, 0.0)):
    """Way along `direction` and distance from its line through `centre` of every voxel."""
    world = geometry.world(np.moveaxis(np.indices(geometry.shape), 0, -1)) - np.asarray(centre)
    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    along = world @ unit
    return along, np.sqrt(np.maximum((world**2).sum(axis=-1) - along**2, 0))


def cylinder(geometry, radius, length, **place):
    along, off = local(geometry, **place)
    return (np.abs(along) <= length / 2) & (off <= radius)


def cone(geometry, radius, length, **place):
    """Its base below, its tip above."""
    along, off = local(geometry, **place)
    height = along + length / 2
    return (height >= 0) & (off <= radius * (1 - height / length))


def spheroid(geometry, radius, length, **place):
    along, off = local(geometry, **place)
    return (along / (length / 2)) ** 2 + (off / radius) ** 2 <= 1


def labels(*masks):
    """Ids 1, 2, ... of masks."""
    array = np.zeros(masks[0].shape, np.uint8)
    for key, mask in enumerate(masks, start=1):
        array[mask] = key
    return array


def volume(array, geometry):
    return Volume(array, geometry)


GRIDS = {
    "straight": ((1.0, 1.0, 1.0), np.eye(3)),
    "flipped": ((1.0, 1.0, 1.0), np.diag([-1.0, -1.0, -1.0])),
    "left-handed": ((1.0, 1.0, 1.5), np.diag([-1.0, 1.0, 1.0])),
    "anisotropic": ((0.8, 0.9, 2.0), np.eye(3)),
    "oblique": ((0.9, 0.9, 1.0), rotation(9, -14, 20)),
    "oblique thick": ((0.8, 0.8, 2.0), rotation(-18, 8, 5)),
    "axes exchanged": ((1.5, 0.9, 0.9), rotation(6, 10, 0)[:, [2, 0, 1]] * (-1, 1, 1)),
}
"""Name -> spacing, directions of the axes; slices are those nearest to foot-head."""
