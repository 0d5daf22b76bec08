"""From predictions and references to tables, figures and a page: `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmuscle import evaluation
from tfmuscle.errors import DataError
from tfmuscle.files import read_json
from tfmuscle.io import case_id, volume_files
from tfmuscle.labels import LabelMap
from tfmuscle.subjects import read_dataset, read_scans
from tfmuscle.workflows.building import Progress


def evaluate(
    predictions: str | Path,
    references: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    observer2: str | Path | None = None,
    progress: Progress | None = None,
) -> evaluation.Evaluation:
    """Compares predictions with references and writes tables, figures and `report.html`.

    Args:
        predictions: folder made by `predict`, or any folder of label images.
        references: folder of label images named alike, or a dataset.
        out: folder of the report.
        images: folder of scans, or a dataset, for the overlays; a dataset given as `references` serves as well.
        observer2: folder of a second annotator's labels.
        progress: called with (subjects done, subjects in all, note).
    """
    predictions, references = Path(predictions), Path(references)
    note_path = predictions / "predictions.json"
    note = read_json(note_path) if note_path.exists() else {}
    found = _label_files(predictions)
    truth, label_map, scans = _references(references)
    if "labels" in note:
        predicted = _label_map(note_path, note)
        if label_map is not None and label_map.names != predicted.names:
            raise DataError(
                f"{references}: its label map is {label_map.to_dict()}, the predictions' {predicted.to_dict()};"
                " relabel one of them"
            )
        label_map = predicted
    if label_map is None:
        raise DataError(f"{references}: nothing says what the labels mean; give a dataset, or put a dataset.json there")
    expected = note.get("subjects", list(found))
    wanted = {subject_id: truth[subject_id] for subject_id in expected if subject_id in truth}
    if not wanted:
        shown = ", ".join(expected[:3])
        raise DataError(f"{references}: holds no reference named like the predictions {shown}; check the names")
    options = evaluation.EvaluationOptions(
        images=_scans(Path(images)) if images else scans,
        observer2=_label_files(Path(observer2)) if observer2 else None,
        failures=note.get("failures", {}),
        context=_context(note) | _left_out(note, truth, found),
        history=note.get("history") or None,
        letters=note.get("orientation", True) is not None,
        structures=tuple(note.get("roi") or ()),
    )
    return evaluation.evaluate(found, wanted, label_map, Path(out), options=options, progress=progress)


def _label_map(path: Path, note: Mapping[str, Any]) -> LabelMap:
    try:
        for key, kind in (("subjects", list), ("failures", dict), ("history", dict), ("roi", list)):
            if not isinstance(note.get(key, kind()), kind):
                raise ValueError(f"{key!r} is {note[key]!r}")
        label_map = LabelMap.from_dict(note["labels"])
        for name in note.get("roi", []):
            label_map.id_of(name)
        return label_map
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {error}; predict again, or remove the file") from error


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path")
    files = {case_id(path): path for path in volume_files(folder)}
    if not files:
        raise DataError(f"{folder}: holds no image; NIfTI, NRRD or MHA files are needed")
    return files


def _references(folder: Path) -> tuple[dict[str, Path], LabelMap | None, dict[str, Path]]:
    """Returns label files, label map and first-channel scans of a dataset or of a folder of label images."""
    for root in (folder, folder.parent):
        if (root / "dataset.json").exists():
            dataset = read_dataset(root)
            labels = {s.subject_id: s.labels for s in dataset.subjects if s.labels is not None}
            scans = {s.subject_id: s.images[0] for s in dataset.subjects}
            return (labels if root == folder else _label_files(folder)), dataset.label_map, scans
    return _label_files(folder), None, {}


def _scans(folder: Path) -> dict[str, Path]:
    """Returns the first channel of every scan in a dataset or a folder of images."""
    if (folder / "dataset.json").exists():
        return {subject.subject_id: subject.images[0] for subject in read_dataset(folder).subjects}
    return {subject.subject_id: subject.images[0] for subject in read_scans(folder, ("image",))}


def _left_out(note: Mapping[str, Any], truth: Mapping[str, Path], found: Mapping[str, Path]) -> dict[str, str]:
    """Counts the references that nobody predicted, where no `predictions.json` says who was asked for."""
    missing = len(set(truth) - set(found))
    return {"references without a prediction": str(missing)} if missing and not note else {}


def _context(note: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a table must say about where its numbers come from."""
    if not note:
        return {}
    shown = ("dataset", "part", "model", "networks", "preset", "fold", "seed", "epochs", "mirror")
    context = {key: note.get(key) for key in shown}
    if note.get("roi"):
        context["only"] = ", ".join(note["roi"])
    context["trained on"] = note.get("trained_on")
    if note.get("training_seconds"):
        context["training time"] = f"{note['training_seconds'] / 60:.1f} min"
    context["scale"] = "reduced" if note.get("scale") == "laptop" else "full"
    return {key: str(value) for key, value in context.items() if value is not None}
