"""How far members agree about a structure: the mean Dice of all pairs of them, counted window by window.

No member's labels of the whole scan are held: each window that the network sees is counted as it comes, its voxels with
the weights by which windows are blended, so that the borders of windows, where networks know least, count little. A
voxel of several windows counts several times. Where one window covers the scan it is the Dice of the labels.
"""

import itertools
from collections.abc import Sequence

import numpy as np


class PairwiseDice:
    """Sums over windows; a class, because they come one after the other."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._sizes: np.ndarray | None = None
        self._shared: np.ndarray | None = None

    def add(self, opinions: Sequence[np.ndarray], weights: np.ndarray | None = None) -> None:
        """Adds a window.

        Args:
            opinions: class indices of each member, of one shape.
            weights: of the voxels, in that shape; 1 by default.

        Raises:
            ValueError: less than two members, another number than before, or shapes that differ.
        """
        pairs = list(itertools.combinations(range(len(opinions)), 2))
        if not pairs or (self._sizes is not None and len(self._sizes) != len(opinions)):
            before = 2 if self._sizes is None else len(self._sizes)
            raise ValueError(f"{len(opinions)} members answered; {before} are needed")
        if len({one.shape for one in opinions}) > 1 or (weights is not None and weights.shape != opinions[0].shape):
            raise ValueError(f"members' windows have shapes {[one.shape for one in opinions]}; one shape is needed")
        if self._sizes is None or self._shared is None:
            self._sizes = np.zeros((len(opinions), self._num_classes))
            self._shared = np.zeros((len(pairs), self._num_classes))
        open_voxels = np.any(opinions, axis=0)  # what all call background is of no structure
        said = [one[open_voxels] for one in opinions]
        weight = np.ones(len(said[0])) if weights is None else weights[open_voxels]
        for member, one in enumerate(said):
            self._sizes[member] += np.bincount(one, weight, self._num_classes)
        for number, (first, second) in enumerate(pairs):
            same = said[first] == said[second]
            self._shared[number] += np.bincount(said[first][same], weight[same], self._num_classes)

    def mean(self) -> np.ndarray:
        """Returns the mean Dice of the pairs, `(num_classes,)`; NaN for the background and where no member found it.

        Pairs of which neither found it are left out.
        """
        found = np.full(self._num_classes, np.nan)
        if self._sizes is None or self._shared is None:
            return found
        pairs = itertools.combinations(range(len(self._sizes)), 2)
        both = np.array([self._sizes[first] + self._sizes[second] for first, second in pairs])
        for key in range(1, self._num_classes):
            there = both[:, key] > 0
            if there.any():
                found[key] = float(np.mean(2 * self._shared[there, key] / both[there, key]))
        return found
