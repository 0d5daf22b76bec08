"""Whole-volume prediction: windows through the network, stitched, resampled onto the scan and only then decided.

The scan is preprocessed as in training, cut into the windows training saw (`sampling.cut`: every slice for slices and
stacks, overlapping windows otherwise), and the network's probabilities are blended by `sampling.stitch` into slabs that
are final. Each slab goes straight to `resampling.labels_on_grid`, so memory holds one window depth of probabilities,
never a volume of them.

Test-time augmentation is the mean over all combinations of mirrored axes, mirrored back. Which axes may be mirrored is
the rule of training (`augmentation.mirrored_axes`), and a network is never asked for a mirror that its recipe left out:
it has not seen such images. Along the left/right axis the classes change sides with the image
(`LabelMap.flip_permutation`).

Several runs are one ensemble: the mean over runs of the mean over mirrored copies, window by window, so that five
networks need no more memory for the scan than one.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmuscle.augmentation import channel_order, mirrored_axes, recipe_axes, side_axis
from tfmuscle.errors import DataError
from tfmuscle.inference.engines import WINDOW_BUDGET_VOXELS
from tfmuscle.inference.resampling import labels_on_grid
from tfmuscle.inference.runs import Run
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import air_of, cut, sample_at, stitch, window_origins
from tfmuscle.volume import Volume

PROOF_WINDOWS = 2
"""Windows on which a converted network is compared with Keras."""

Progress = Callable[[int, int], None]
Hear = Callable[[Sequence[tuple[int, int, int]], np.ndarray, list[np.ndarray]], None]
"""Is told of each batch: starts of the windows, their samples, and what each member finds likeliest."""


def predict_volume(
    run: Run | Sequence[Run],
    image: Volume,
    *,
    prior: Volume | None = None,
    mirror: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Labels a scan: the most probable id for each voxel, on exactly the scan's own grid.

    Args:
        run: from `load_run`, or those of `load_ensemble`, whose probabilities are averaged.
        image: `(I, J, K, C)` with the channels of `run.spec`, or `(I, J, K)` when there is one.
        prior: `(I, J, K)` ids that an earlier network gave, on the grid of the image; for a spec with `prior`.
        mirror: average over mirrored images too, if the network was trained with mirroring.
        batch_size: windows per step; None chooses it from the window size. It does not change the result.
        progress: called as `progress(done, total)` with numbers of windows.

    Returns:
        Ids in the smallest unsigned type; background where preprocessing cropped the scan.

    Raises:
        DataError: the scan has the wrong number of channels, or the network returns something that is not a number.
        ValueError: `batch_size` is not positive, or `prior` lies on another grid.
    """
    runs = members_of(run)
    prepared, _ = preprocess(image, None, runs[0].spec, prior)
    blocks = stream(runs, prepared.array, mirror=mirror, batch_size=batch_size, progress=progress)
    labels = labels_on_grid(blocks, prepared.geometry, image.geometry, runs[0].spec.label_map)
    return Volume(labels, image.geometry, image.source)


def predict_probabilities(
    run: Run | Sequence[Run],
    image: Volume,
    *,
    prior: Volume | None = None,
    mirror: bool = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Returns class probabilities `(D, H, W, num_classes)` on the preprocessed grid; for small volumes.

    The arguments are those of `predict_volume`. All classes are held at once: 512 x 512 x 400 voxels of 70 classes
    would be 29 GB.
    """
    runs = members_of(run)
    prepared, _ = preprocess(image, None, runs[0].spec, prior)
    probabilities = np.zeros((*prepared.geometry.shape, runs[0].spec.num_classes), dtype=np.float32)
    for first, block in stream(runs, prepared.array, mirror=mirror, batch_size=batch_size, progress=progress):
        probabilities[first : first + len(block)] = block
    return prepared.with_array(probabilities)


def mean_probabilities(run: Run, images: np.ndarray, *, mirror: bool) -> np.ndarray:
    """Returns probabilities `(B, *label_shape, num_classes)` of samples, averaged over the mirrors of the recipe.

    As many samples go through the network at once as `WINDOW_BUDGET_VOXELS` allows, one at least.

    Raises:
        DataError: the network returns something that is not a number.
    """
    at_once, copies = max(1, WINDOW_BUDGET_VOXELS // int(np.prod(run.spec.window))), mirrors(run, mirror)
    parts = (images[first : first + at_once] for first in range(0, len(images), at_once))
    return np.concatenate([_predict((run,), [copies], part) for part in parts])


def members_of(run: Run | Sequence[Run]) -> tuple[Run, ...]:
    """Returns the runs of an ensemble, or the one that was given."""
    return (run,) if isinstance(run, Run) else tuple(run)


def stream(
    runs: tuple[Run, ...],
    array: np.ndarray,
    *,
    mirror: bool,
    batch_size: int | None,
    progress: Progress | None,
    hear: Hear | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields finished slabs: first slice and probabilities `(d, H, W, num_classes)`, in order.

    `hear` is told of each batch: starts of the windows, samples, and the likeliest classes by each member.
    """
    spec = runs[0].spec
    if batch_size is None:
        batch_size = max(1, WINDOW_BUDGET_VOXELS // int(np.prod(spec.window)))
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least one window is needed")
    origins = window_origins(array.shape[:3], spec)
    _prove(runs, array, origins)
    copies = [mirrors(run, mirror) for run in runs]
    stitcher = stitch(array.shape[:3], spec, spec.num_classes)
    samples, done = cut(array, None, spec), 0
    while batch := list(itertools.islice(samples, batch_size)):
        images = np.stack([sample["image"] for sample in batch])
        opinions: list[np.ndarray] | None = None if hear is None else []
        probabilities = _predict(runs, copies, images, opinions)
        if hear is not None and opinions is not None:
            hear([sample["start"] for sample in batch], images, opinions)
        for sample, window in zip(batch, probabilities, strict=True):
            yield from stitcher.until(sample["start"])
            stitcher.add(sample["start"], window)
        done += len(batch)
        if progress is not None:
            progress(done, len(origins))
    yield from stitcher.close()


def _prove(runs: tuple[Run, ...], array: np.ndarray, origins: list[tuple[int, int, int]]) -> None:
    """Lets converted networks that are new show on windows from the middle of this scan that they agree with Keras."""
    new = [run.engine for run in runs if run.engine is not None and not run.engine.proven]
    if not new:
        return
    spec = runs[0].spec
    starts = origins[len(origins) // 2 :][:PROOF_WINDOWS]
    air = air_of(array, spec)
    images = np.stack([sample_at(array, None, start, spec, air)["image"] for start in starts])
    for engine in new:
        engine.prove(images)


@dataclass(frozen=True)
class Mirror:
    """One mirrored copy of a batch of samples, and the way back.

    Attributes:
        axes: of the batch, to reverse; none for the samples as they are.
        channels: where each channel of the copy comes from; None when nowhere else.
        classes: where each class of the answer comes from; None when nowhere else.
    """

    axes: tuple[int, ...] = ()
    channels: tuple[int, ...] | None = None
    classes: tuple[int, ...] | None = None


def mirrors(run: Run, mirror: bool) -> list[Mirror]:
    """Returns every combination of mirrored axes that the run was trained with; the samples as they are come first."""
    recipe, spec = run.config.recipe, run.spec
    trained = recipe_axes(recipe.augmentation, spec) if mirror and recipe.mirror else ()
    axes = tuple(axis for axis in mirrored_axes(spec) if axis in trained)
    shift = 1 if spec.is_volumetric else 0  # axis 1 of the volume is axis 2 of a 3D batch, but axis 1 of a 2D one
    copies = []
    for count in range(len(axes) + 1):
        for some in itertools.combinations(axes, count):
            exchanged = side_axis(spec) in some
            classes = spec.label_map.flip_permutation() if exchanged else None
            copies.append(
                Mirror(tuple(axis + shift for axis in some), channel_order(spec) if exchanged else None, classes)
            )
    return copies


def _predict(
    runs: tuple[Run, ...], mirrored: list[list[Mirror]], images: np.ndarray, opinions: list[np.ndarray] | None = None
) -> np.ndarray:
    """Returns probabilities `(B, *label_shape, num_classes)`: the mean over runs of the mean over mirrored copies.

    The classes that each member finds likeliest are added to `opinions`, if given: each run or, of one, each copy.
    """
    total: Any = 0
    for run, copies in zip(runs, mirrored, strict=True):
        mean: Any = 0
        for copy in copies:
            said = _predict_mirrored(run, images, copy)
            if opinions is not None and len(runs) == 1:
                opinions.append(said.argmax(axis=-1))
            mean = mean + said
        if not np.isfinite(mean.sum()):
            raise DataError(
                f"{run.path}: the network returns values that are not numbers; train again with a lower learning rate,"
                " or in float32"
            )
        mean = mean / len(copies)
        if opinions is not None and len(runs) > 1:
            opinions.append(mean.argmax(axis=-1))
        total = total + mean
    return total / len(runs)


def _predict_mirrored(run: Run, images: np.ndarray, copy: Mirror) -> np.ndarray:
    """Returns what the network says of a mirrored copy, mirrored back."""
    if not copy.axes:
        return run.probabilities(images)
    images = np.flip(images, copy.axes)
    if copy.channels is not None:
        images = images[..., copy.channels]
    probabilities = np.flip(run.probabilities(np.ascontiguousarray(images)), copy.axes)
    return probabilities if copy.classes is None else probabilities[..., copy.classes]
