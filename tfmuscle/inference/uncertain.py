"""Labels of a scan, with the probability that each is wrong and how far members agree: `predict_uncertain`.

One pass over the scan gives all three, in the memory that the labels alone need, one float32 volume, and a byte or two
for each voxel of a batch and member. The labels are exactly those of `predict_volume`; the temperature comes after the
interpolation, voxel by voxel, so that it cannot change them.

Members are the runs. Of a single run they are the mirrors that it was trained with; of one that has none, the sample as
it is and with `CHANGES` of contrast and brightness. Those copies are asked for their opinion only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfmuscle.inference.resampling import Placing
from tfmuscle.inference.runs import Run
from tfmuscle.inference.volumes import Progress, members_of, mirrors, stream
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import label_window, overlap_of, window_weights
from tfmuscle.uncertainty import PairwiseDice, with_temperature
from tfmuscle.volume import Volume

CHANGES = ((0.9, 0.0), (1.1, 0.0), (1.0, -0.1), (1.0, 0.1))
"""Contrast and brightness (in standard deviations) of the copies of a sample for a network without mirrors."""
SURE = 1e-7
"""Probabilities nearer to 1 than float32 can tell are 1, and cost no power of numbers."""


@dataclass(frozen=True, eq=False)
class Uncertain:
    """What members said of a scan.

    Attributes:
        labels: ids of the most probable classes, on the scan's grid.
        error: probability that they are wrong, float32, on the same grid; 0 where preprocessing cropped the scan.
        agreement: `(num_classes,)`, mean Dice of pairs of members; NaN for what none found.
        slice_axis: of the scan's array, along which the network's slices follow each other.
        probabilities: `(N, num_classes)` without temperature, in the voxels asked for.
        classes: `(N,)`, what was asked for there.
    """

    labels: Volume
    error: Volume
    agreement: np.ndarray
    slice_axis: int
    probabilities: np.ndarray
    classes: np.ndarray


def predict_uncertain(
    run: Run | Sequence[Run],
    image: Volume,
    *,
    prior: Volume | None = None,
    mirror: bool = True,
    temperature: float = 1.0,
    asked: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Uncertain:
    """Labels a scan as `predict_volume` does, and says how sure the members are.

    Args:
        run: as for `predict_volume`.
        image: as there.
        prior: as there.
        mirror: as there.
        temperature: of the mean probabilities.
        asked: `(I, J, K)`, true classes of voxels whose probabilities are wanted, and -1 in all others.
        progress: as there.

    Raises:
        DataError: as `predict_volume`.
        ValueError: as `predict_volume`, or a temperature that is not positive.
    """
    runs = members_of(run)
    spec = runs[0].spec
    prepared, _ = preprocess(image, None, spec, prior)
    committee = _Committee(runs, prepared.array.shape[:3], mirror=mirror)
    blocks = stream(runs, prepared.array, mirror=mirror, batch_size=None, progress=progress, hear=committee.hear)
    placing = Placing(prepared.geometry, image.geometry)
    labels = np.zeros(image.geometry.shape, spec.label_map.decode(np.zeros(1, np.intp)).dtype)
    error = np.zeros(image.geometry.shape, np.float32)
    seen, doubts = placing.view(labels), placing.view(error)
    wanted = None if asked is None else placing.view(asked)
    kept = [np.zeros((0, spec.num_classes), np.float32)]
    classes = [np.zeros(0, np.intp)]
    for index, probabilities in placing.slices(blocks):
        values = placing.plane.values(probabilities)
        seen[index] = spec.label_map.decode(values.argmax(axis=-1))
        doubts[index] = _error(values, temperature)
        if wanted is not None:
            here = wanted[index] >= 0
            kept.append(values[here])
            classes.append(wanted[index][here].astype(np.intp))
    found = (image.with_array(labels), image.with_array(error), committee.pairs.mean(), placing.axes[0])
    return Uncertain(*found, np.concatenate(kept), np.concatenate(classes))


def _error(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns 1 less the largest probability `(h, w)` after the temperature, of probabilities `(h, w, C)`."""
    error = 1 - probabilities.max(axis=-1)
    open_pixels = error > SURE
    calibrated = with_temperature(probabilities[open_pixels], temperature)
    error[...] = 0
    error[open_pixels] = 1 - calibrated.max(axis=-1)
    return np.clip(error, 0, 1)


class _Committee:
    """Counts how far members agree while windows go by."""

    def __init__(self, runs: tuple[Run, ...], shape: tuple[int, ...], *, mirror: bool) -> None:
        self._spec, self._shape = runs[0].spec, shape
        self._weights = window_weights(shape, self._spec)
        self._alone = runs[0] if len(runs) == 1 and len(mirrors(runs[0], mirror)) == 1 else None
        self.pairs = PairwiseDice(self._spec.num_classes)

    def hear(self, starts: Sequence[tuple[int, int, int]], images: np.ndarray, opinions: list[np.ndarray]) -> None:
        """Counts a batch."""
        if self._alone is not None:
            opinions = opinions + [self._alone.probabilities(copy).argmax(axis=-1) for copy in self._changed(images)]
        window = label_window(self._spec)
        for number, start in enumerate(starts):
            inside = overlap_of(start, window, self._shape)[1]
            said = [opinion[number].reshape(window)[inside] for opinion in opinions]
            self.pairs.add(said, self._weights[inside])

    def _changed(self, images: np.ndarray) -> list[np.ndarray]:
        """Returns copies of a batch with another contrast and brightness; labels of an earlier network stay."""
        seen = np.arange(images.shape[-1]) % self._spec.num_channels < len(self._spec.channels)
        axes = tuple(range(1, images.ndim - 1))
        mean, spread = images.mean(axis=axes, keepdims=True), images.std(axis=axes, keepdims=True)
        copies = (mean + contrast * (images - mean) + brightness * spread for contrast, brightness in CHANGES)
        return [np.where(seen, copy, images).astype(np.float32) for copy in copies]
