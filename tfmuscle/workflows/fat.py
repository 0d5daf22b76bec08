"""Fat fractions of a Dixon scan, and of the structures labelled in it.

The images are read as they are: no bias correction, for the fraction is a ratio in which the coil's field cancels. The
file holds percent, with 0 where there is no signal, because other programs refuse NaN, as this one does; the means
leave such voxels out and say how many were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle.errors import DataError
from tfmuscle.files import check_outputs, write_text
from tfmuscle.io import case_id, check_suffix, read_label_image, read_volume, write_volume
from tfmuscle.io.label_tables import names_of, read_label_table
from tfmuscle.preprocessing.dixon import fat_fraction as fraction_of
from tfmuscle.preprocessing.dixon import identify_water_fat
from tfmuscle.tables import csv_text
from tfmuscle.volume import Volume

DOUBTFUL = 0.1
"""Water and fat told apart with less confidence than this are not called exchanged."""


@dataclass(frozen=True)
class FatFractionResult:
    """What `fat_fraction` measured.

    Attributes:
        rows: one a structure, or one for all voxels with signal: structure, volume, measured share, mean, median.
        warning: that the images seem exchanged; empty otherwise.
    """

    rows: list[dict[str, Any]]
    warning: str


def fat_fraction(
    water: str | Path,
    fat: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    names: str | Path | None = None,
) -> FatFractionResult:
    """Writes the fat fraction in percent (0 where there is no signal), and with labels a CSV beside it.

    Args:
        water: water image.
        fat: fat image on the same grid.
        out: `.nii.gz`, `.nii`, `.nrrd` or `.mha`.
        labels: label image on the same grid.
        names: table of the labels' names; without it the labels' own, see `io.label_tables.names_of`.

    Raises:
        ValueError: `out` has another ending.
        DataError: a file is missing or broken, `out` is one of them, both are the same, or the grids differ.
    """
    check_suffix(out)
    beside = Path(out).with_name(f"{case_id(out)}.csv")
    check_outputs([out, beside], [water, fat, labels, names])
    if Path(water).resolve() == Path(fat).resolve():
        raise DataError(f"{fat}: is given as water and as fat, which makes 50 % everywhere; give two images")
    one, other = finite_image(water), finite_image(fat)
    try:
        fraction = fraction_of(one, other)
    except ValueError as error:
        raise DataError(f"{fat}: {error}") from error
    ids = None if labels is None else _labels_on(Path(labels), fraction)
    rows = _fat_rows(fraction, ids, _names(labels, names, ids))
    write_volume(out, fraction.with_array(np.nan_to_num(fraction.array)))
    if labels is not None:
        write_text(beside, csv_text(rows, None if rows else ["structure"]))
    try:
        told = identify_water_fat(one, other)
    except ValueError:
        return FatFractionResult(rows, "")
    exchanged = told.water == 1 and told.confidence >= DOUBTFUL
    warning = f"{water} looks like the fat image (confidence {told.confidence:.2f}); are the two exchanged?"
    return FatFractionResult(rows, warning if exchanged else "")


def finite_image(path: str | Path) -> Volume:
    """Reads an image of one channel that holds numbers only.

    Raises:
        DataError: it is missing or broken, or holds NaN or infinite values.
    """
    volume = read_volume(path)
    if not np.isfinite(volume.array).all():
        raise DataError(f"{path}: holds NaN or infinite values; replace them by numbers and save again")
    return volume


def _labels_on(path: Path, image: Volume) -> np.ndarray:
    labels = read_label_image(path)
    if not labels.geometry.same_grid(image.geometry):
        raise DataError(f"{path}: labels are on another grid than the water image; resample them by nearest")
    return labels.array


def _names(labels: str | Path | None, names: str | Path | None, ids: np.ndarray | None) -> dict[int, str]:
    if labels is None or ids is None:
        return {}
    table = read_label_table(names) if names else names_of(labels)
    known = table.names if table else {}
    return {key: known.get(key, f"label {key}") for key in map(int, np.unique(ids)) if key}


def _fat_rows(fraction: Volume, ids: np.ndarray | None, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows of all voxels with signal, and of every label; a mean is over the voxels with signal."""
    signal = np.isfinite(fraction.array)
    chosen: dict[str, np.ndarray] = {"all with signal": signal} if ids is None else {}
    rows = []
    for name, mask in (*chosen.items(), *((name, ids == key) for key, name in names.items())):
        values = fraction.array[mask & signal]
        count = int(np.count_nonzero(mask))
        rows.append(
            {
                "structure": name,
                "volume_ml": round(count * fraction.geometry.voxel_volume_ml, 3),
                "with_signal_percent": round(100 * len(values) / count, 2) if count else 0.0,
                "fat_fraction_mean": round(float(values.mean(dtype=np.float64)), 3) if len(values) else None,
                "fat_fraction_median": round(float(np.median(values)), 3) if len(values) else None,
            }
        )
    return rows
