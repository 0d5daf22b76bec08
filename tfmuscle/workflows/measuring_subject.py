"""One label file and its images to numbers, and to tables of them.

Images are measured as they are: no bias correction, and none that lie on another grid, because a structure's edge would
then be made of both. A fat fraction that is read from a float file is taken for "no signal" where it is exactly 0, as
`tfmuscle fat-fraction` writes it; shares of 1 are told from percent by the bright end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tfmuscle
from tfmuscle.errors import DataError
from tfmuscle.files import check_outputs, check_owner, provenance, read_json, sha256, write_json, write_text
from tfmuscle.io import case_id, read_label_image, read_volume
from tfmuscle.io.label_tables import names_of
from tfmuscle.labels import LabelMap, distinct
from tfmuscle.measuring import (
    AXES,
    PERCENT,
    Agreement,
    FatImages,
    Flag,
    Images,
    Structure,
    agreement,
    asymmetry,
    find_flags,
    measure_structures,
    noise_mean,
    read_population,
    split_sides,
)
from tfmuscle.preprocessing.dixon import fat_fraction as fraction_of
from tfmuscle.preprocessing.dixon import identify_water_fat
from tfmuscle.relabelling import tool_names
from tfmuscle.tables import rounded_csv
from tfmuscle.volume import Volume
from tfmuscle.workflows.fat import DOUBTFUL, finite_image
from tfmuscle.workflows.trusting import EXPECTED, Trust, named_rows

Progress = Callable[[int, int, str], None]
MADE_BY = "tfmuscle measure"
RESULT = "measures.json"
_SHARES_END = 1.5
"""A fat fraction whose bright end is below this is a share of 1, not percent."""
_BRIGHT_END = 99.9


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured besides the labels, and how. Images of a folder of subjects are folders, or paths with {id}.

    Attributes:
        names: names of the labels: a table, or a list of `label_lists.py`.
        scan: image of which intensities are taken, and which is drawn below the labels.
        dixon: water and fat image.
        fat_fraction: fat fraction in percent, or as a share of 1.
        others: other labellings to compare with.
        population: `cohort.csv` of other people.
        axis: direction of the limb, see `measuring.limb`.
        landmark: structure whose ends are 0 and 100 % of the limb.
        split_sides: part structures without a side into left and right.
    """

    names: str | Path | None = None
    scan: str | Path | None = None
    dixon: tuple[str | Path, str | Path] | None = None
    fat_fraction: str | Path | None = None
    others: tuple[str | Path, ...] = ()
    population: str | Path | None = None
    axis: str = AXES[0]
    landmark: str | None = None
    split_sides: bool = False

    def __post_init__(self) -> None:
        if self.dixon is not None and self.fat_fraction is not None:
            raise ValueError("water and fat make a fat fraction themselves; give either them or a fat fraction")
        if self.axis not in AXES:
            raise ValueError(f"the limb's axis is {self.axis!r}; choose from {', '.join(AXES)}")
        if self.dixon is not None and Path(self.dixon[0]) == Path(self.dixon[1]) and "{id}" not in str(self.dixon[0]):
            raise ValueError(
                f"{self.dixon[0]} is given as water and as fat, which makes 50 % everywhere; give two images"
            )

    def files(self) -> dict[str, Path]:
        """Returns role -> file of everything that is read besides labels."""
        roles: dict[str, str | Path | None] = {"scan": self.scan, "fat_fraction": self.fat_fraction}
        roles |= dict(zip(("water", "fat"), self.dixon or (), strict=False))
        roles |= {f"other {number}": path for number, path in enumerate(self.others, start=1)}
        roles |= {"population": self.population}
        roles |= {"names": self.names if self.names is not None and Path(self.names).is_file() else None}
        return {role: Path(path) for role, path in roles.items() if path is not None}


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of one subject.

    Attributes:
        subject: its name.
        labels: ids.
        label_map: their names, also made-up ones.
        named: the same before sides were split.
        images: what is measured inside.
        picture: image to be drawn below labels, or None.
        remarks: what the user should know.
        worth: what the labels are worth, row by row, if `predict --uncertainty` made them.
        doubts: file of the map of their errors, or None.
    """

    subject: str
    labels: Volume
    label_map: LabelMap
    named: LabelMap
    images: Images
    picture: Volume | None
    remarks: tuple[str, ...]
    worth: tuple[dict[str, Any], ...] = ()
    doubts: Path | None = None


@dataclass(frozen=True, eq=False)
class Measures:
    """What `measure_one` found.

    Attributes:
        read: what was measured.
        structures: one each.
        rows: their lines of the table, with the subject.
        pairs: left against right.
        flags: what may be wrong.
        others: rows of how far other labellings agree, see `agreement_rows`.
    """

    read: Read
    structures: tuple[Structure, ...]
    rows: tuple[dict[str, Any], ...]
    pairs: tuple[dict[str, Any], ...]
    flags: tuple[Flag, ...]
    others: tuple[dict[str, Any], ...] = ()


def measure_one(
    labels: str | Path, options: MeasureOptions | None = None, *, progress: Progress | None = None
) -> Measures:
    """Measures one label file and writes nothing; `progress` as in `measure_structures`.

    Raises:
        ValueError: options that do not fit.
        DataError: a file is missing, broken, or on another grid; or nothing is labelled.
    """
    options = options or MeasureOptions()
    read = _read(Path(labels), options)
    population = None if options.population is None else read_population(options.population)
    try:
        structures = measure_structures(
            read.labels,
            read.label_map,
            axis=options.axis,
            landmark=options.landmark,
            images=read.images,
            progress=progress,
        )
    except ValueError as error:
        raise DataError(f"{labels}: {error}") from error
    axis = structures[0].axis.slice_axis
    others = [(name, _compared(read, path, options, axis)) for name, path in _called(options.others).items()]
    flags = find_flags(
        structures,
        read.label_map,
        subject=read.subject,
        population=population,
        others=others,
        worth=read.worth,
    )
    expected = {row["structure"]: {key: row[key] for key in EXPECTED} for row in read.worth}
    rows = tuple({"subject": read.subject} | one.row() | expected.get(one.name, {}) for one in structures)
    return Measures(read, structures, rows, tuple(asymmetry(rows)), tuple(flags), tuple(agreement_rows(others)))


def _read(path: Path, options: MeasureOptions) -> Read:
    labels = read_label_image(path)
    ids = [key for key in distinct(labels.array).tolist() if key]
    table = tool_names(options.names)[0] if options.names is not None else names_of(path)
    remarks = []
    known = LabelMap({}) if table is None else table
    nameless = [key for key in ids if key not in known.names and key != known.ignore]
    if table is not None and nameless:
        remarks.append(f"ids {', '.join(map(str, nameless[:12]))} have no name in the table of names")
    label_map = LabelMap(dict(known.names) | {key: f"label_{key}" for key in nameless}, ignore=known.ignore)
    if not set(ids) - {known.ignore}:
        raise DataError(f"{path}: nothing is labelled in it; give labels of at least one structure")
    named, (labels, label_map) = label_map, _parted(labels, label_map, options)
    images, picture = _images(labels, options, remarks)
    trust = Trust.found(path)
    if trust is not None and not trust.is_of(path):
        remarks.append("the labels have changed since predict said what they are worth, which is left out")
        trust = None
    worth = () if trust is None else tuple(named_rows(trust.rows, named, label_map))
    doubts = None if trust is None else trust.map
    return Read(case_id(path), labels, label_map, named, images, picture, tuple(remarks), worth, doubts)


def _parted(labels: Volume, label_map: LabelMap, options: MeasureOptions) -> tuple[Volume, LabelMap]:
    if not options.split_sides:
        return labels, label_map
    try:
        return split_sides(labels, label_map)
    except ValueError as error:
        raise DataError(f"{labels.source}: {error}") from error


def _images(labels: Volume, options: MeasureOptions, remarks: list[str]) -> tuple[Images, Volume | None]:
    named: dict[str, np.ndarray] = {}
    picture, fat = None, None
    if options.dixon is not None:
        water, other = (_on_grid(finite_image(path), labels) for path in options.dixon)
        fraction = fraction_of(water, other).array
        fat = FatImages(fraction, water.array, other.array, noise_mean(other.array, fraction))
        named |= {"water": water.array, "fat": other.array}
        picture, exchanged = water, _exchanged(water, other)
        if exchanged:
            remarks.append(exchanged)
    elif options.fat_fraction is not None:
        picture = _on_grid(read_volume(options.fat_fraction), labels)
        fat = FatImages(_in_percent(picture, remarks))
    if options.scan is not None:
        picture = _on_grid(read_volume(options.scan), labels)
        named = {"image": picture.array} | named
    return Images(named, fat), picture


def _on_grid(image: Volume, labels: Volume) -> Volume:
    if not image.geometry.same_grid(labels.geometry):
        raise DataError(
            f"{image.source}: is not on the labels' grid {labels.geometry.shape}; resample the labels by nearest"
        )
    return image


def _in_percent(image: Volume, remarks: list[str]) -> np.ndarray:
    values = image.array.astype(np.float32)
    finite = values[np.isfinite(values)]
    if not finite.size or finite.min() < -100 or finite.max() > 200:
        raise DataError(f"{image.source}: is no fat fraction; percent from 0 to 100 or shares from 0 to 1 are needed")
    if np.percentile(finite, _BRIGHT_END) < _SHARES_END:
        values *= 100
        remarks.append("the fat fraction was taken as shares of 1, since it has no larger values")
    if image.array.dtype.kind == "f":
        values[values == 0] = np.nan
        remarks.append("voxels whose fat fraction is exactly 0 were taken for voxels without signal")
    return values


def _exchanged(water: Volume, fat: Volume) -> str:
    try:
        told = identify_water_fat(water, fat)
    except ValueError:
        return ""
    exchanged = told.water == 1 and told.confidence >= DOUBTFUL
    what = f"the water image looks like the fat image (confidence {told.confidence:.2f}); are the two exchanged?"
    return what if exchanged else ""


def _called(paths: Sequence[str | Path]) -> dict[str, Path]:
    """Returns what other labellings are called: by their files, and with the folder where files are called alike."""
    names = [Path(path).name for path in paths]
    return {
        name if names.count(name) == 1 else f"{Path(path).parent.name}/{name}": Path(path)
        for name, path in zip(names, paths, strict=True)
    }


def _compared(read: Read, path: Path, options: MeasureOptions, axis: int) -> list[Agreement]:
    other, table = _on_grid(read_label_image(path), read.labels), names_of(path)
    if table is None or (options.names is not None and not set(table.structures) & set(read.named.structures)):
        table = read.named
    other, table = _parted(other, table, options)
    return agreement(read.labels, read.label_map, other, table, axis)


def agreement_rows(others: Sequence[tuple[str, Sequence[Agreement]]]) -> list[dict[str, Any]]:
    """Returns one row a structure: Dice and volume with every other labelling, mean Dice and range of volumes.

    The range is of what was measured here and in all others that have the structure in their names.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, compared in others:
        for line in compared:
            row = rows.setdefault(line.structure, {"structure": line.structure, "volume_ml": line.volume_ml[0]})
            row |= {f"dice {name}": line.dice, f"volume_ml {name}": line.volume_ml[1]}
    for row in rows.values():
        dices = [value for key, value in row.items() if key.startswith("dice ")]
        volumes = [value for key, value in row.items() if key.startswith("volume_ml")]
        row |= {"dice_mean": sum(dices) / len(dices), "volume_ml_least": min(volumes), "volume_ml_most": max(volumes)}
    return list(rows.values())


def description(measures: Measures, labels: Path, options: MeasureOptions) -> dict[str, Any]:
    """Returns everything as JSON holds it."""
    grid, read = measures.read.labels.geometry, measures.read
    profiles = {
        one.name: {
            "position_mm": one.profile.position_mm.round(4).tolist(),
            "area_cm2": one.profile.area_cm2.round(6).tolist(),
            "slice": one.profile.slices.tolist(),
        }
        for one in measures.structures
    }
    return {
        "made_by": MADE_BY,
        "subject": read.subject,
        "fingerprint": fingerprint(labels, options),
        "grid": {"shape": grid.shape, "spacing": grid.spacing, "orientation": grid.orientation},
        "limb_axis": {one.side or "none": one.axis.direction.tolist() for one in measures.structures},
        "slice_axis": measures.structures[0].axis.slice_axis,
        "label_map": read.label_map.to_dict(),
        "remarks": list(read.remarks),
        "structures": list(measures.rows),
        "asymmetry": list(measures.pairs),
        "agreement": list(measures.others),
        "flags": [asdict(flag) for flag in measures.flags],
        "areas": profiles,
        "made_with": provenance(),
    }


def fingerprint(labels: Path, options: MeasureOptions) -> dict[str, Any]:
    """Returns what decides the result: version, settings, and names and checksums of files."""
    files = {"labels": labels} | options.files()
    if (trust := Trust.found(labels)) is not None:
        files |= {"uncertainty": trust.rows}
    read = {role: {"file": path.name, "sha256": sha256(path)} for role, path in files.items() if path.is_file()}
    settings = {"axis": options.axis, "landmark": options.landmark, "split_sides": options.split_sides}
    settings |= {"names": Path(options.names or "").name}
    return {"version": tfmuscle.__version__, "settings": settings, "files": read}


def is_done(labels: Path, out: Path, options: MeasureOptions) -> bool:
    """Whether `out` holds the report of just these files and settings."""
    path = out / RESULT
    return path.exists() and read_json(path).get("fingerprint") == fingerprint(labels, options)


def write_tables(measures: Measures, out: Path, about: Mapping[str, Any]) -> None:
    """Writes tables and JSON, the JSON last: a report that has it is complete."""
    write_text(out / "structures.csv", rounded_csv(measures.rows))
    write_text(out / "areas.csv", rounded_csv(_area_rows(measures.structures)))
    write_text(out / "areas_by_limb_percent.csv", rounded_csv(_percent_rows(measures.structures)))
    write_text(out / "asymmetry.csv", rounded_csv(measures.pairs))
    if measures.others:
        write_text(out / "agreement.csv", rounded_csv(measures.others))
    write_text(out / "flags.csv", rounded_csv(flag_rows(measures.flags)))
    write_json(out / RESULT, dict(about))


def flag_rows(flags: Sequence[Flag]) -> list[dict[str, Any]]:
    """Returns flags as rows of a table."""
    return [
        {
            "structure": flag.structure,
            "kind": flag.kind,
            "what": flag.what,
            "slices": f"{'ijk'[flag.axis]} = {', '.join(map(str, flag.slices))}" if flag.slices else "",
        }
        for flag in flags
    ]


def _area_rows(structures: Sequence[Structure]) -> list[dict[str, Any]]:
    rows = []
    for one in structures:
        for at, area, index in zip(one.profile.position_mm, one.profile.area_cm2, one.profile.slices, strict=True):
            row = {"structure": one.name, "side": one.side, "slice": int(index), "position_mm": float(at)}
            row["length_percent"] = one.percent(float(at), one.shape.ends_mm)
            rows.append(row | {"limb_percent": one.percent(float(at), one.limb_mm), "area_cm2": float(area)})
    return rows


def _percent_rows(structures: Sequence[Structure]) -> list[dict[str, Any]]:
    placed = {one.name: one.profile.normalised(*one.limb_mm) for one in structures if one.limb_mm}
    return [
        {"limb_percent": int(percent)} | {name: float(areas[number]) for name, areas in placed.items()}
        for number, percent in enumerate(PERCENT)
    ]


def check_out(labels: Path, out: Path, options: MeasureOptions, result: str) -> None:
    """Refuses, before any work, a folder that holds something else, by a DataError."""
    check_outputs([out], [labels, *options.files().values()])
    if out.is_file():
        raise DataError(f"{out}: is a file; give the name of a folder for the report")
    check_owner(out / result, MADE_BY)
    if (out / "report.html").exists() and not (out / result).exists():
        raise DataError(f"{out}: holds the report of something else; choose a new folder")
