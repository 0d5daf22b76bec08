"""Whole-volume prediction: windows through the network, stitched, resampled onto the scan and only then decided.

The scan is preprocessed as in training, cut into the windows training saw (`sampling.cut`: every slice for slices and
stacks, overlapping windows otherwise), and the network's probabilities are blended by `sampling.stitch` into slabs that
are final. Each slab goes straight to `resampling.labels_on_grid`, so memory holds one window depth of probabilities,
never a volume of them.

Test-time augmentation is the mean over all combinations of mirrored axes, mirrored back. Which axes may be mirrored is
the rule of training (`augmentation.mirrored_axes`), and a network is never asked for a mirror that its recipe left out:
it has not seen such images. Along the left/right axis the classes change sides with the image
(`LabelMap.flip_permutation`).
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfmuscle.augmentation import mirrored_axes, recipe_axes, side_axis
from tfmuscle.errors import DataError
from tfmuscle.inference.resampling import labels_on_grid
from tfmuscle.inference.runs import Run
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import cut, stitch, window_origins
from tfmuscle.volume import Volume

WINDOW_BUDGET_VOXELS = 2**19
"""Voxels sent through the network at once when no batch size is given: 8 slices of 256 x 256, one patch of 80³."""

Progress = Callable[[int, int], None]


def predict_volume(
    run: Run, image: Volume, *, mirror: bool = True, batch_size: int | None = None, progress: Progress | None = None
) -> Volume:
    """Labels a scan: the most probable id for each voxel, on exactly the scan's own grid.

    Args:
        run: from `load_run`.
        image: `(I, J, K, C)` with the channels of `run.spec`, or `(I, J, K)` when there is one.
        mirror: average over mirrored images too, if the network was trained with mirroring.
        batch_size: windows per step; None chooses it from the window size. It does not change the result.
        progress: called as `progress(done, total)` with numbers of windows.

    Returns:
        Ids in the smallest unsigned type; background where preprocessing cropped the scan.

    Raises:
        DataError: the scan has the wrong number of channels, or the network returns something that is not a number.
        ValueError: `batch_size` is not positive.
    """
    prepared, _ = preprocess(image, None, run.spec)
    blocks = _stream(run, prepared.array, mirror=mirror, batch_size=batch_size, progress=progress)
    labels = labels_on_grid(blocks, prepared.geometry, image.geometry, run.spec.label_map)
    return Volume(labels, image.geometry, image.source)


def predict_probabilities(
    run: Run, image: Volume, *, mirror: bool = True, batch_size: int | None = None, progress: Progress | None = None
) -> Volume:
    """Returns class probabilities `(D, H, W, num_classes)` on the preprocessed grid; for small volumes.

    The arguments are those of `predict_volume`. All classes are held at once: 512 x 512 x 400 voxels of 70 classes
    would be 29 GB.
    """
    prepared, _ = preprocess(image, None, run.spec)
    probabilities = np.zeros((*prepared.geometry.shape, run.spec.num_classes), dtype=np.float32)
    for first, block in _stream(run, prepared.array, mirror=mirror, batch_size=batch_size, progress=progress):
        probabilities[first : first + len(block)] = block
    return prepared.with_array(probabilities)


def _stream(
    run: Run, array: np.ndarray, *, mirror: bool, batch_size: int | None, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields finished slabs: first slice and probabilities `(d, H, W, num_classes)`, in order."""
    spec = run.spec
    if batch_size is None:
        batch_size = max(1, WINDOW_BUDGET_VOXELS // int(np.prod(spec.window)))
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least one window is needed")
    flips = _flips(run, mirror)
    stitcher = stitch(array.shape[:3], spec, spec.num_classes)
    samples, done, total = cut(array, None, spec), 0, len(window_origins(array.shape[:3], spec))
    while batch := list(itertools.islice(samples, batch_size)):
        probabilities = _predict(run, np.stack([sample["image"] for sample in batch]), flips)
        for sample, window in zip(batch, probabilities, strict=True):
            yield from stitcher.until(sample["start"])
            stitcher.add(sample["start"], window)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    yield from stitcher.close()


def _flips(run: Run, mirror: bool) -> list[tuple[int, ...]]:
    """Returns every combination of volume axes to mirror, the empty one first."""
    recipe = run.config.recipe
    trained = recipe_axes(recipe.augmentation, run.spec) if mirror and recipe.mirror else ()
    axes = tuple(axis for axis in mirrored_axes(run.spec) if axis in trained)
    return [combination for count in range(len(axes) + 1) for combination in itertools.combinations(axes, count)]


def _predict(run: Run, images: np.ndarray, flips: list[tuple[int, ...]]) -> np.ndarray:
    """Returns mean probabilities `(B, *label_shape, num_classes)` over mirrored copies, which are made one by one."""
    batch = tf.constant(images, tf.float32)
    total = _predict_mirrored(run, batch, flips[0])
    for flip in flips[1:]:
        total += _predict_mirrored(run, batch, flip)
    mean = (total / len(flips)).numpy()
    if not np.isfinite(mean.sum()):
        raise DataError(
            f"{run.path}: the network returns values that are not numbers; train again with a lower learning rate, or"
            " in float32"
        )
    return mean


def _predict_mirrored(run: Run, batch: tf.Tensor, flip: tuple[int, ...]) -> tf.Tensor:
    """Returns what the network says of mirrored images, mirrored back; `flip` holds axes of the volume."""
    if not flip:
        return run.forward(batch)
    shift = 1 if run.spec.is_volumetric else 0  # axis 1 of the volume is axis 2 of a 3D batch, but axis 1 of a 2D one
    axes = [axis + shift for axis in flip]
    probabilities = tf.reverse(run.forward(tf.reverse(batch, axes)), axes)
    if side_axis(run.spec) in flip:
        probabilities = tf.gather(probabilities, run.spec.label_map.flip_permutation(), axis=-1)
    return probabilities
