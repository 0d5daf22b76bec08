"""From trained runs to a bundle that other programs run: `export`; and the bundle as a network for `predict`.

The user names a run, or several as an ensemble, and a format. The network is written beside everything it needs
(`export/bundle.py`), then opened again from disk and compared with Keras on real scans: those the user gives, else
validation samples of the records it was trained on. A mismatch is an error, and nothing is kept.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmuscle import inference
from tfmuscle.errors import DataError
from tfmuscle.export import bundle as b
from tfmuscle.export.card import NOT_STATED, Statement, card
from tfmuscle.export.formats import SEGMENT, STARTERS, WRITERS, Wanted, check_libraries
from tfmuscle.export.parity import MEASURED, Parity, compare_scans, compare_windows, tolerance_of, windows_of
from tfmuscle.export.precision import PRECISIONS
from tfmuscle.export.segment import Segmenter, require
from tfmuscle.files import json_text, provenance, read_json, sha256
from tfmuscle.inference.engines import batches_of
from tfmuscle.inference.runs import DONE_FILE, RECORDS_FILE
from tfmuscle.inference.tensorrt import Batches
from tfmuscle.records import read_index, read_shard
from tfmuscle.subjects import read_dataset, read_scans
from tfmuscle.volume import Geometry, Volume
from tfmuscle.workflows.networks import Network, PredictOptions

SCANS, SAMPLES = 2, 4
"""Scans, or stored samples, on which an export is compared with Keras."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What may be left as it is.

    Attributes:
        scans: scan, folder of scans or dataset to compare on; by default samples of the run's records.
        mirror: average over mirrored copies inside `segment`, as `predict` does.
        segment: write the signature that takes raw scans.
        precision: of the format tensorrt: float32, float16, bfloat16 or int8.
        batch: of the format tensorrt: the usual number of samples at once and the largest; by default what `predict`
            sends.
        intended_use: for the model card.
        licence: of the weights, for the model card.
        evaluation: folder of `evaluate` on held-out subjects, for the model card.
    """

    scans: Path | None = None
    mirror: bool = True
    segment: bool = True
    precision: str = "float32"
    batch: tuple[int, int] | None = None
    intended_use: str = NOT_STATED
    licence: str = NOT_STATED
    evaluation: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """The folder of the version, what the comparison found, and megabytes of the format."""

    path: Path
    parity: Parity
    size_mb: float
    notes: tuple[str, ...] = field(default=())


def export(
    runs: Sequence[str | Path], out: str | Path, name: str, *, options: ExportOptions | None = None
) -> ExportResult:
    """Writes a bundle, or adds a format to it, and proves it.

    Args:
        runs: run folders, or folders of cross-validation: one ensemble.
        out: folder of all versions of the bundle.
        name: format, one of `export.bundle.FORMATS`.
        options: scans to compare on, signatures, what the card shall say.

    Raises:
        ValueError: an unknown format.
        DataError: a run that cannot be exported, a setting that the graph cannot express, missing libraries, or an
            exported network that says something else than Keras.
    """
    options, out = options or ExportOptions(), Path(out)
    check_options(name, options)
    check_libraries(name)
    _refuse_what_no_graph_is(runs)
    network = Network.opened(runs, PredictOptions())
    spec, segment = network.runs[0].spec, options.segment and name == "saved_model"
    if segment:
        require(spec, str(network.folder / b.SPEC_FILE))
    scans = _scans(network.runs[0], options.scans)
    graph = Segmenter(network.runs, mirror=options.mirror)
    wanted = _wanted(network.runs[0], scans, options, segment=segment)
    about = _about(network, options)
    version = b.choose_version(out, about["identity"])
    path, found = out / str(version), []

    def fill(folder: Path) -> None:
        before = b.read_about(path)["formats"] if path.exists() else {}
        WRITERS[name](graph, folder, wanted)
        parity = _proven(folder, name, network.runs, scans, options=replace(options, segment=segment))
        found.append(parity)
        made = {"parity": parity.to_dict(), "segment": segment, "precision": options.precision}
        about["formats"] = before | {name: made}
        _describe(folder, out.resolve().name, network, about, options)

    b.write_bundle(path, about, fill)
    size = sum((path / file).stat().st_size for file in b.open_bundle(path).about["files"])
    notes = () if name != "saved_model" or options.segment else (f"without signature {SEGMENT}, as asked",)
    return ExportResult(path, found[0], round(size / 1e6, 1), notes)


def check_options(name: str, options: ExportOptions) -> None:
    """Refuses a format, a precision or a batch that there is not.

    Raises:
        ValueError: naming it.
    """
    if name not in b.FORMATS:
        raise ValueError(f"format is {name!r}; choose one of {', '.join(b.FORMATS)}")
    if options.precision not in PRECISIONS:
        raise ValueError(f"precision is {options.precision!r}; choose one of {', '.join(PRECISIONS)}")
    if name != "tensorrt" and (options.precision != "float32" or options.batch is not None):
        raise ValueError(f"format {name} is float32 and takes any batch; precision and batch are for tensorrt")
    if options.batch is not None:
        Batches(*options.batch)


def _refuse_what_no_graph_is(runs: Sequence[str | Path]) -> None:
    for run in runs:
        if inference.is_cascade(run):
            raise DataError(
                f"{run}: is a cascade, whose boxes come from what earlier networks found, so that no graph holds it;"
                f" label scans where tfmuscle is, with 'tfmuscle predict -m {run}'"
            )


def _wanted(run: inference.Run, scans: list[Volume], options: ExportOptions, *, segment: bool) -> Wanted:
    batches = batches_of(run.spec.window) if options.batch is None else Batches(*options.batch)
    windows = windows_of(run, scans, MEASURED) if options.precision == "int8" else None
    return Wanted(segment, options.precision, batches, windows)


def _about(network: Network, options: ExportOptions) -> dict[str, Any]:
    """Returns what `bundle.json` says besides formats and checksums."""
    runs = network.runs
    known = [read_json(run.path / DONE_FILE) if _is_done(run) else {} for run in runs]
    keys = ("epochs", "best_validation_dice", "seconds", "hardware", "versions")
    return {
        "identity": {
            "weights": [sha256(run.path / inference.WEIGHTS_FILE) for run in runs],
            "spec": sha256(runs[0].path / b.SPEC_FILE),
            "mirror": options.mirror,
        },
        "runs": len(runs),
        "mirror": options.mirror,
        "cleaning": [cleaning.to_dict() for cleaning in network.cleanings],
        "description": network.description(),
        "trained_on": sorted(network.trained_on()),
        "training": [{key: about[key] for key in keys if key in about} for about in known],
        "made_with": provenance(),
    }


def _is_done(run: inference.Run) -> bool:
    return (run.path / DONE_FILE).exists()


def _describe(folder: Path, name: str, network: Network, about: dict[str, Any], options: ExportOptions) -> None:
    """Writes settings, labels and card into a bundle."""
    runs, spec = network.runs, network.runs[0].spec
    spec.save(folder / b.SPEC_FILE)
    for number, run in enumerate(runs):
        run.config.save(folder / f"train_{number}.json")
    label_map = spec.label_map
    colours = {structure: list(label_map.colour(structure)) for structure in label_map.structures}
    labels = {"labels": label_map.to_dict(), "colours": colours}
    (folder / b.LABELS_FILE).write_text(json_text(labels), encoding="utf-8")
    splits = [read_json(run.path / "split.json") if (run.path / "split.json").exists() else {} for run in runs]
    said = _statement(options, runs[0].path)
    text = card(name, spec, [run.config for run in runs], about=about, splits=splits, statement=said)
    (folder / b.CARD_FILE).write_text(text, encoding="utf-8")


def _statement(options: ExportOptions, run: Path) -> Statement:
    if options.evaluation is None:
        return Statement(options.intended_use, options.licence)
    content = read_json(options.evaluation / "summary.json")
    try:
        rows = [row for row in content["summary"] if row["metric"] == "dice"]
        scores = {row["structure"]: float(row["mean"]) for row in rows if row["mean"] is not None}
        subjects = max(int(row["n"]) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{options.evaluation}: holds no summary of 'tfmuscle evaluate'; name its output") from error
    measured = f"{subjects} subject(s) of {options.evaluation.name}"
    return Statement(options.intended_use, options.licence, scores, measured)


def _proven(
    folder: Path, name: str, runs: Sequence[inference.Run], scans: list[Volume], *, options: ExportOptions
) -> Parity:
    """Opens what was written and compares it with Keras.

    Raises:
        DataError: they differ.
    """
    infer = STARTERS[name](folder)
    parity = compare_windows(infer, runs, scans, tolerance_of(name, options.precision))
    if options.segment and not parity.problem:
        segment = infer.keeps.signatures[SEGMENT]  # type: ignore[attr-defined]
        share = compare_scans(segment, runs, scans, mirror=options.mirror)
        parity = replace(parity, equal_scan_labels=share, scans=len(scans))
    if parity.problem:
        hint = "" if options.precision == "float32" else f"; {options.precision} is too coarse for it, use another"
        raise DataError(f"{runs[0].path}: the exported {name} says something else than Keras: {parity.problem}{hint}")
    return parity


def _scans(run: inference.Run, source: Path | None) -> list[Volume]:
    """Returns a few real scans to compare on: those given, or stored samples taken for little scans.

    Raises:
        DataError: there are none.
    """
    if source is not None:
        is_dataset = (source / "dataset.json").exists()
        subjects = read_dataset(source).subjects if is_dataset else read_scans(source, run.spec.channels)
        return [subject.read_image() for subject in subjects[:SCANS]]
    note = run.path / RECORDS_FILE
    records = Path(str(read_json(note).get("records", ""))) if note.exists() else None
    if records is None or not (records / b.SPEC_FILE).exists():
        raise DataError(
            f"{run.path}: the records it was trained on are no longer there; give scans to compare on with -i"
        )
    split = read_json(run.path / "split.json")
    subject = (split.get("validation") or split["train"])[0]
    shard = records / read_index(records).path_of(subject)
    samples = [sample["image"] for sample in itertools.islice(read_shard(shard, run.spec), SAMPLES)]
    return [_little_scan(image, run) for image in samples]


def _little_scan(image: np.ndarray, run: inference.Run) -> Volume:
    """Returns a sample as a scan of its own: the same voxels at the same spacing and orientation."""
    spec = run.spec
    if spec.kind == "stacks":
        image = image.reshape(*spec.size, spec.depth, spec.num_channels).transpose(2, 0, 1, 3)
    array = image if image.ndim == 4 else image[np.newaxis]
    spacing = spec.spacing or (1.0, 1.0, 1.0)
    if spec.orientation is None:
        return Volume(array.transpose(2, 1, 0, 3), Geometry(array.shape[2::-1], np.diag([*spacing[::-1], 1.0])))
    plain = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), np.eye(4))).reoriented(spec.orientation).geometry
    affine = plain.affine.copy()
    affine[:3, :3] *= spacing
    return Volume(array, Geometry(array.shape[:3], affine), str(run.path))
