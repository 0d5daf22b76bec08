"""Whether an exported network says what Keras says, on real scans.

Sums run in another order in another library, so that probabilities differ in their last digits; a label may differ only
where two classes are equally likely to within the tolerance. Two comparisons, both of which must hold:

* windows of preprocessed scans: no probability differs by more than `TOLERANCE` of the format, and no label where Keras
  prefers it by more than that;
* whole scans, for `segment`: labels equal in at least `SHARE` of the voxels with those of `predict`. There the margin
  of a voxel is unknown, because neither side keeps the probabilities.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmuscle.export.segment import AFFINE, LABELS, VOLUME
from tfmuscle.inference import Run, predict_volume
from tfmuscle.inference.engines import Infer
from tfmuscle.preprocessing import preprocess
from tfmuscle.sampling import air_of, sample_at, window_origins
from tfmuscle.volume import Volume

TOLERANCE = {"saved_model": 1e-5, "onnx": 5e-3, "openvino": 5e-3, "litert": 5e-3, "tensorrt": 5e-3}
"""Largest difference of a probability from Keras; see `inference.engines.TOLERANCE` for the converted formats."""
TOLERANCE_OF_PRECISION = {"float32": 0.0, "float16": 2e-2, "bfloat16": 1e-1, "int8": 2e-1}
"""The same for a network in fewer bits, where it is more than the format's: products of 11, 8 and 7 bits."""
SHARE = 0.9999
"""Of all voxels have the same label."""
WINDOWS = 8
"""Windows of each scan that are compared, evenly spread."""
MEASURED = 32
"""Windows of each scan on which int8 is measured, evenly spread."""


@dataclass(frozen=True)
class Parity:
    """What a comparison found.

    Attributes:
        largest_difference: of a probability.
        tolerance: that is allowed.
        equal_labels: share of the voxels of all windows with the same label.
        clear_differences: voxels with another label although Keras prefers its own by more than the tolerance.
        windows: compared.
        equal_scan_labels: smallest share over whole scans, None where none was compared.
        scans: compared as a whole.
    """

    largest_difference: float
    tolerance: float
    equal_labels: float
    clear_differences: int
    windows: int
    equal_scan_labels: float | None = None
    scans: int = 0

    @property
    def problem(self) -> str:
        """What is wrong, empty when the export may be called a success."""
        if not self.largest_difference <= self.tolerance:
            return f"a probability differs by {self.largest_difference:.2g}, {self.tolerance:.2g} is allowed"
        if self.clear_differences or self.equal_labels < SHARE:
            return (
                f"{self.clear_differences} clear labels differ, and {self.equal_labels:.4%} are equal, {SHARE:.2%} are"
                " needed"
            )
        if self.equal_scan_labels is not None and self.equal_scan_labels < SHARE:
            return f"labels of whole scans are equal in {self.equal_scan_labels:.4%}, {SHARE:.2%} are needed"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON content."""
        return asdict(self)


def tolerance_of(name: str, precision: str = "float32") -> float:
    """Returns the largest difference of a probability that a format in a precision may have.

    >>> tolerance_of("onnx"), tolerance_of("tensorrt", "float16")
    (0.005, 0.02)
    """
    return max(TOLERANCE[name], TOLERANCE_OF_PRECISION[precision])


def compare_windows(infer: Infer, runs: Sequence[Run], scans: Sequence[Volume], tolerance: float) -> Parity:
    """Compares probabilities of windows of real scans with the mean of the Keras networks.

    Args:
        infer: the exported network.
        runs: what it was made from.
        scans: with the channels of the spec.
        tolerance: of a probability.
    """
    windows = windows_of(runs[0], scans, WINDOWS)
    largest, equal, clear = 0.0, [], 0
    for image in windows:
        expected = np.mean([run.probabilities(image[np.newaxis]) for run in runs], axis=0)
        found = infer(image[np.newaxis])
        difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
        if not np.isfinite(difference):
            return Parity(np.inf, tolerance, 0.0, expected[..., 0].size, len(windows))
        best = np.partition(expected, -2, axis=-1)
        same = found.argmax(-1) == expected.argmax(-1)
        sure = best[..., -1] - best[..., -2] > tolerance
        largest, clear = max(largest, difference), clear + int((~same & sure).sum())
        equal.append(same.mean())
    return Parity(largest, tolerance, float(np.mean(equal)), clear, len(windows))


def compare_scans(segment: Any, runs: Sequence[Run], scans: Sequence[Volume], *, mirror: bool) -> float:
    """Returns the smallest share of equal labels over whole scans, between a `segment` signature and `predict`."""
    shares = []
    for scan in scans:
        array = scan.array if scan.array.ndim == 4 else scan.array[..., np.newaxis]
        asked = {VOLUME: tf.constant(array, tf.float32), AFFINE: tf.constant(scan.geometry.affine)}
        found = segment(**asked)[LABELS].numpy()
        shares.append(float((found == predict_volume(runs, scan, mirror=mirror).array).mean()))
    return min(shares)


def windows_of(run: Run, scans: Sequence[Volume], number: int) -> np.ndarray:
    """Returns up to `number` windows of each scan, evenly spread, `(n, *input_shape)`, prepared as in training."""
    spec, found = run.spec, []
    for scan in scans:
        prepared, _ = preprocess(scan, None, spec)
        origins = window_origins(prepared.array.shape[:3], spec)
        chosen = sorted({int(place) for place in np.linspace(0, len(origins) - 1, number).round()})
        air = air_of(prepared.array, spec)
        found += [sample_at(prepared.array, None, origins[place], spec, air)["image"] for place in chosen]
    return np.stack(found)
