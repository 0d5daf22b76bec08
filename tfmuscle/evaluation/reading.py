"""From files to labels on one grid; what cannot be compared is refused here."""

from pathlib import Path

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.io import read_volume
from tfmuscle.labels import LabelMap
from tfmuscle.volume import SPACING_TOLERANCE_MM, Geometry, Volume


def read_labels(path: Path, label_map: LabelMap) -> Volume:
    """Reads ids as integers; unlike the labels of a dataset, a prediction may be empty.

    Raises:
        DataError: the file is missing or broken, or holds fractions or ids that the map does not name.
    """
    volume = read_volume(path)
    values = np.unique(np.concatenate([np.unique(slab) for slab in volume.array]))
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise DataError(f"{path}: labels must be whole numbers; write ids, not probabilities or grey values")
    unknown = label_map.unknown_ids(values)
    if unknown:
        known = ", ".join(f"{key} {name}" for key, name in label_map.names.items())
        raise DataError(f"{path}: label ids {list(unknown[:8])} are not among {known}; name or remove them")
    return volume.with_array(volume.array.astype(np.min_scalar_type(int(values.max())), copy=False))


def on_grid(volume: Volume, reference: Volume) -> Volume:
    """Returns `volume` with exactly the grid of `reference`.

    Raises:
        DataError: they lie on different grids; both files and every difference are named.
    """
    if volume.geometry.same_grid(reference.geometry):
        return Volume(volume.array, reference.geometry, volume.source)
    difference = _difference(volume.geometry, reference.geometry)
    raise DataError(
        f"{volume.source}: not on the grid of {reference.source} ({difference}); "
        "predict the scan that the reference was drawn on, or resample one (labels by nearest neighbour)"
    )


def _difference(one: Geometry, other: Geometry) -> str:
    parts = [f"shape {one.shape} against {other.shape}"] if one.shape != other.shape else []
    if np.abs(np.subtract(one.spacing, other.spacing)).max() > SPACING_TOLERANCE_MM:
        text = [" x ".join(f"{step:.4g}" for step in grid.spacing) for grid in (one, other)]
        parts.append(f"spacing {text[0]} mm against {text[1]} mm")
    if one.orientation != other.orientation:
        parts.append(f"orientation {one.orientation} against {other.orientation}")
    shift = float(np.linalg.norm(one.world((0, 0, 0)) - other.world((0, 0, 0))))
    return ", ".join(parts) or f"first voxels {shift:.3g} mm apart, or turned"


def one_line(error: Exception) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split())
