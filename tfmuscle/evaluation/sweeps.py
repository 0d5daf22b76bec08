"""Several ways to label sweeps on the same subjects: one table beside the published figures, and where they fail.

The user has evaluated each way (a network, interpolation, ...) and asks which to use, for which muscle, and where along
the sweep it goes wrong. Nothing is measured anew for the tables: rows are those of `evaluate`.

Names. A way is called `METHOD` or `METHOD/PROTOCOL`; the protocol says which slices were drawn for it, and ways are
compared within one protocol. A method named as in `published_sweeps` stands beside the published figures, where the
protocol is theirs.

Means are taken of the muscles within each subject first; mean and sd (n - 1) are over subjects. Test and validation
never mix: what was measured on one part of the data has lines of its own.

No leak. Slices that somebody drew are known, and a method that returns them is not right, it is told. They must carry
the ignore id in the references, so that `evaluate` leaves them out; profiles leave them out as well.

Surface error. Vertices of the predicted surface and their distances to the true one: `surfaces.surface` makes both, so
that equal masks have 0 everywhere. Distances are to the vertices and the middles of the faces of the true surface,
which lie closer together than voxels: a distance is too large by less than a third of a voxel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from tfmuscle.evaluation.comparison import per_subject, sd
from tfmuscle.evaluation.muscles import Measured
from tfmuscle.evaluation.published import published_sweeps, shown_under
from tfmuscle.evaluation.results import ALL_STRUCTURES, mean
from tfmuscle.labels import LabelMap
from tfmuscle.metrics import dice, mean_surface_distance, surface_distances
from tfmuscle.surfaces import surface
from tfmuscle.volume import Geometry, Mesh, Volume

SHOWN = {
    "dice": "Dice",
    "iou": "mIoU",
    "hausdorff": "HD mm",
    "mean_surface_distance": "ASD mm",
    "precision": "P",
    "recall": "R",
    "volume_error_percent": "VolErr %",
}
"""Metric -> its heading: the columns of IFSS-Net's tables."""
_SHARES = ("dice", "iou", "precision", "recall")


@dataclass(frozen=True)
class Way:
    """One way to label sweeps, and what it reached.

    Attributes:
        name: `METHOD` or `METHOD/PROTOCOL`.
        measured: its evaluation.
    """

    name: str
    measured: Measured

    @property
    def method(self) -> str:
        """The name up to the first `/`."""
        return self.name.partition("/")[0]

    @property
    def protocol(self) -> str:
        """The name after it; empty without one."""
        return self.name.partition("/")[2]

    @property
    def part(self) -> str:
        """Which part of the data was measured, as `predict` noted it."""
        return self.measured.context.get("part", "all")


def sweep_table(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Returns one row per structure, part, protocol and method, the mean of all structures first.

    Columns: `structure`, `part`, `protocol`, `method`, for every metric in `SHOWN` its `<metric>_mean`, `<metric>_sd`
    and, in rows of the mean of all structures, `<metric>_published` (NaN where nothing was), `n` subjects,
    `n_undefined` of them without a surface distance, and `n_failed`.
    """
    structures = list(dict.fromkeys(row["structure"] for way in ways for row in way.measured.rows))
    groups = list(dict.fromkeys((way.part, way.protocol) for way in ways))
    rows = []
    for structure in (ALL_STRUCTURES, *structures):
        for group in groups:
            rows += [_row(way, structure) for way in ways if (way.part, way.protocol) == group]
    return rows


def _row(way: Way, structure: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "structure": structure, "part": way.part, "protocol": way.protocol, "method": way.method
    }  # fmt: skip
    theirs = published_sweeps("validation" if way.part == "validation" else "test").get(way.method, {})
    is_shown = structure == ALL_STRUCTURES and shown_under(way.method, way.protocol)
    for metric in SHOWN:
        values = [value for value in per_subject(way.measured.rows, metric, structure).values() if math.isfinite(value)]
        row |= {f"{metric}_mean": mean(values), f"{metric}_sd": sd(values)}
        row[f"{metric}_published"] = theirs.get(metric, math.nan) if is_shown else math.nan
    surfaces = per_subject(way.measured.rows, "mean_surface_distance", structure)
    row |= {"n": len(surfaces), "n_undefined": sum(not math.isfinite(value) for value in surfaces.values())}
    return row | {"n_failed": len(way.measured.failures)}


def readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of `sweep_table` as text, "mean ± sd"."""
    shown = {key: row[key] or "–" for key in ("part", "protocol", "method")}
    for metric, heading in SHOWN.items():
        digits = 3 if metric in _SHARES else 2
        shown[heading] = _plus_minus(row[f"{metric}_mean"], row[f"{metric}_sd"], digits)
    return shown | {"n": str(row["n"]), "no surface": str(row["n_undefined"]), "failed": str(row["n_failed"])}


def published_row(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the published figures of a row's method in the form of `readable`, or None without any."""
    figures = {metric: row[f"{metric}_published"] for metric in SHOWN}
    if not any(map(math.isfinite, figures.values())):
        return None
    shown = {"part": "published", "protocol": "", "method": row["method"]}
    shown |= {SHOWN[metric]: f"{value:g}" if math.isfinite(value) else "–" for metric, value in figures.items()}
    return shown | dict.fromkeys(("n", "no surface", "failed"), "")


def _plus_minus(value: float, spread: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if math.isfinite(spread) else "")


def profile(prediction: Volume, reference: Volume, label_map: LabelMap, axis: int) -> list[dict[str, Any]]:
    """Returns Dice and ASD of every structure on every slice that is known and on which it is or was found.

    Args:
        prediction: ids.
        reference: ids on the same grid; slices with the ignore id are left out.
        label_map: names them.
        axis: along which slices follow each other.

    Returns:
        Rows of `structure`, `slice`, `dice`, `mean_surface_distance` (mm within the slice, from the prediction's
        outline to the reference's; NaN where one is empty).
    """
    found, true = (np.moveaxis(volume.array, axis, 0) for volume in (prediction, reference))
    step = tuple(size for other, size in enumerate(reference.spacing) if other != axis)
    rows = []
    for index in range(len(true)):
        if label_map.ignore is not None and (true[index] == label_map.ignore).any():
            continue
        for name in label_map.structures:
            one, other = (plane[index] == label_map.id_of(name) for plane in (found, true))
            if one.any() or other.any():
                asd = mean_surface_distance(surface_distances(one, other, spacing=step))
                row = {"structure": name, "slice": index, "dice": dice(one, other), "mean_surface_distance": asd}
                rows.append(row)
    return rows


def surface_error(prediction: np.ndarray, reference: np.ndarray, geometry: Geometry) -> tuple[Mesh, np.ndarray]:
    """Returns the surface of a predicted structure and the distance of each vertex to the true surface, mm `(V,)`.

    Args:
        prediction: bool `(I, J, K)`.
        reference: bool, the same shape.
        geometry: their grid.

    Raises:
        ValueError: one of them is empty.
    """
    predicted, true = surface(prediction, geometry), surface(reference, geometry)
    middles = true.vertices[true.faces].mean(axis=1)
    distances, _ = KDTree(np.concatenate([true.vertices, middles])).query(predicted.vertices)
    return predicted, distances
