"""From records to measured segmentations: `fit`, `predict`, `evaluate`.

`predictions.json` beside the predictions carries the label map, which subjects were asked for, which failed and why,
and where the model came from; `evaluate` reads it, so that a subject that failed cannot go missing from the tables.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle import evaluation, inference, models, training
from tfmuscle.augmentation import notes
from tfmuscle.config import DataSpec, Supervised, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import provenance, read_json, sha256, write_json
from tfmuscle.io import VOLUME_SUFFIXES, case_id, volume_files, write_volume
from tfmuscle.labels import LabelMap
from tfmuscle.losses import get_loss
from tfmuscle.presets import get_preset, reduced_training
from tfmuscle.records import load_spec
from tfmuscle.subjects import Subject, read_dataset, read_scans
from tfmuscle.training.callbacks import read_history
from tfmuscle.training.schedule import curves
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.data import plan_spec

WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Formats labels are written in."""
PROGRESS_STEPS = 100
"""Steps of the progress per scan."""


def plan_training(
    settings: Mapping[str, Any], *, recipe: Mapping[str, Any], preset: str | None = None, scale: str = "full"
) -> TrainConfig:
    """Decides how a model is trained: the user's settings, then the preset, then the defaults.

    Args:
        settings: fields of `TrainConfig` the user gave.
        recipe: fields of `Supervised` the user gave.
        preset: name of a recipe.
        scale: "laptop" cuts width and epochs down.
    """
    chosen = get_preset(preset) if preset else None
    plan = dict(chosen.training) if chosen else {}
    if "model" in settings and settings["model"] != plan.get("model"):
        plan = {key: value for key, value in plan.items() if key != "model_options"} | {"model": settings["model"]}
    if scale == "laptop":
        plan = reduced_training(plan)
    options = plan.get("model_options", {})
    plan |= {"preset": preset} | dict(settings)
    plan["model_options"] = options | dict(settings.get("model_options", {}))
    method = dict(chosen.recipe) if chosen else {}
    if recipe.get("loss", method.get("loss")) != method.get("loss"):
        method.pop("loss_options", None)  # they belong to the preset's loss
    method = Supervised(**method | dict(recipe))
    try:
        get_loss(method.loss, **method.loss_options)  # refused now, not after the records are made
    except TypeError as error:
        raise ValueError(f"loss_options {method.loss_options}: {error}") from error
    return TrainConfig(**plan | {"scale": scale, "recipe": method})


def fit(
    source: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains on records, or on a dataset whose records are then made in `<run>_records` first.

    Args:
        source: folder of records, or a dataset folder.
        run: run folder to make, or to go on with.
        config: what to train and how.
        resume: go on with an interrupted run.
        progress: of the records first, then of the training.
        cancel: asked after every training step; True stops, and the run can be resumed.
        say: called before training with what the user should know about the augmentation, one sentence each.

    Raises:
        DataError: the records do not fit the model (the field is named), or a file cannot be used.
    """
    source, run = Path(source), Path(run)
    if not source.is_dir():
        raise DataError(f"{source}: there is no such folder; give records made by build-records, or a dataset")
    if (source / "spec.json").exists():
        records, spec = source, load_spec(source)
    else:
        dataset = read_dataset(source)
        spec = plan_spec(dataset, {}, preset=config.preset, scale=config.scale, progress=progress)
        records = run.with_name(run.name + "_records")
    _check_fit(config, spec, records)
    for note in notes(config.recipe.augmentation, spec, mirror=config.recipe.mirror) if say is not None else ():
        say(note)
    if records != source:
        build_records(dataset, records, spec, progress=progress)
    return training.fit(records, run, config, resume=resume, progress=progress, cancel=cancel)


def _check_fit(config: TrainConfig, spec: DataSpec, records: Path) -> None:
    """Refuses a spec and a model that do not go together, before anything is written."""
    try:
        models.check_spec(config.model, spec, **config.model_options)
        model = models.build(config.model, spec.input_shape, spec.num_classes, **config.model_options)
        if len(model.outputs) > 1:
            raise ValueError("model_options: fit trains models with one output; leave deep_supervision out")
    except DataError:
        raise
    except (ValueError, TypeError) as error:
        raise DataError(f"{records / 'spec.json'}: {error}") from error
    if config.fold >= spec.folds:
        last = spec.folds - 1
        raise DataError(
            f"{records / 'spec.json'}: fold {config.fold} does not exist, there are folds 0 to {last}; use --fold"
        )


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did: files written by subject, failures with their reason, and what to know about the run.

    `reduced` says that the recipe was cut down (`--scale laptop`).
    """

    folder: Path
    written: dict[str, Path]
    failures: dict[str, str]
    warnings: tuple[str, ...] = ()
    reduced: bool = False


def predict(
    run: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    part: str | None = None,
    mirror: bool = True,
    resume: bool = False,
    progress: Progress | None = None,
) -> PredictResult:
    """Segments scans; each output is a label image on exactly its scan's grid.

    Args:
        run: run folder made by `fit`.
        source: a scan, a folder of scans, a DICOM series, a folder of series, or a dataset.
        out: folder for `<subject>.nii.gz`, or for one scan a file name.
        part: only the subjects of the dataset that were "train", "validation" or "test" when the run was trained.
        mirror: average over mirrored copies, exchanging left and right.
        resume: keep predictions that are there.
        progress: called with (steps done, steps in all, subject), `PROGRESS_STEPS` a scan.
    """
    loaded = inference.load_run(Path(run))
    subjects = _sources(Path(source), loaded, part)
    out = Path(out)
    single = out.name.lower().endswith(VOLUME_SUFFIXES)
    if single and not out.name.lower().endswith(WRITTEN_SUFFIXES):
        raise DataError(f"{out}: labels are written as {', '.join(WRITTEN_SUFFIXES)}; choose one of them, or a folder")
    if single and len(subjects) > 1:
        raise DataError(f"{out}: one file name for {len(subjects)} scans; name a folder")
    folder = out.parent if single else out
    description = _description(loaded, part, mirror, [subject.subject_id for subject in subjects])
    if not single:
        _claim_predictions(folder / "predictions.json", description, resume=resume)
    written: dict[str, Path] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, subject in enumerate(subjects):
        path = out if single else folder / f"{subject.subject_id}.nii.gz"
        started = time.monotonic()
        try:
            if path.resolve() in {image.resolve() for image in subject.images}:
                raise DataError(f"{path}: is the scan itself, which the labels would overwrite; name another output")
            if not (resume and path.exists()):
                windows = _within(progress, number, len(subjects), subject.subject_id)
                labels = inference.predict_volume(loaded, subject.read_image(), mirror=mirror, progress=windows)
                write_volume(path, labels)
            written[subject.subject_id] = path
        except DataError as error:
            failures[subject.subject_id] = str(error)
        seconds[subject.subject_id] = round(time.monotonic() - started, 2)
        if progress is not None:
            progress((number + 1) * PROGRESS_STEPS, len(subjects) * PROGRESS_STEPS, subject.subject_id)
    if not single:
        write_json(folder / "predictions.json", description | {"seconds": seconds, "failures": failures})
    warnings = (loaded.warning,) if loaded.warning else ()
    return PredictResult(folder, written, failures, warnings, _is_reduced(loaded))


def _is_reduced(run: inference.Run) -> bool:
    return "laptop" in (run.spec.scale, run.config.scale)


def _within(progress: Progress | None, number: int, total: int, note: str) -> Callable[[int, int], None] | None:
    """Turns the windows of one scan into steps of the whole job."""
    if progress is None:
        return None

    def windows(done: int, of: int) -> None:
        progress(number * PROGRESS_STEPS + PROGRESS_STEPS * done // of, total * PROGRESS_STEPS, note)

    return windows


def _sources(source: Path, run: inference.Run, part: str | None) -> tuple[Subject, ...]:
    is_dataset = (source / "dataset.json").exists()
    if part is None:
        return read_dataset(source).subjects if is_dataset else read_scans(source, run.spec.channels)
    if not is_dataset:
        raise DataError(f"{source}: holds no dataset.json, so its {part} subjects are unknown; give the dataset")
    wanted = read_json(run.path / "split.json")[part]
    found = {subject.subject_id: subject for subject in read_dataset(source).subjects}
    missing = [subject_id for subject_id in wanted if subject_id not in found]
    if missing:
        raise DataError(
            f"{source}: lacks {', '.join(missing[:5])} of the run's {part} subjects; give the run's dataset"
        )
    if not wanted:
        raise DataError(
            f"{run.path / 'split.json'}: the run has no {part} subjects; build records with --test to hold some out"
        )
    return tuple(found[subject_id] for subject_id in wanted)


def _claim_predictions(path: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Notes whose predictions these are before the first is made, and refuses to go on with those of another model."""
    if resume and path.exists():
        before = read_json(path)
        for key in ("weights", "mirror"):
            if before.get(key) != description[key]:
                raise DataError(
                    f"{path}: the predictions there have other {key}; name another folder, or leave out --resume"
                )
    write_json(path, description)


def _description(run: inference.Run, part: str | None, mirror: bool, subjects: list[str]) -> dict[str, Any]:
    about_path = run.path / "about.json"
    about = read_json(about_path) if about_path.exists() else {}
    return {
        "labels": run.spec.label_map.to_dict(),
        "run": run.path.resolve().name,
        "dataset": run.spec.name,
        "part": part or "all scans given",
        "mirror": mirror,
        "model": run.config.model,
        "preset": run.config.preset,
        "orientation": run.spec.orientation,
        "history": curves(read_history(run.path / "history.csv")),
        "scale": "laptop" if _is_reduced(run) else "full",
        "seed": run.config.seed,
        "fold": run.config.fold,
        "epochs": about.get("epochs"),
        "trained_on": about.get("hardware"),
        "training_seconds": about.get("seconds"),
        "made_with": provenance(),
        "weights": sha256(run.path / inference.WEIGHTS_FILE),
        "subjects": subjects,
    }


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
    )
    return evaluation.evaluate(found, wanted, label_map, Path(out), options=options, progress=progress)


def _label_map(path: Path, note: Mapping[str, Any]) -> LabelMap:
    try:
        for key, kind in (("subjects", list), ("failures", dict), ("history", dict)):
            if not isinstance(note.get(key, kind()), kind):
                raise ValueError(f"{key!r} is {note[key]!r}")
        return LabelMap.from_dict(note["labels"])
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
    context = {key: note.get(key) for key in ("dataset", "part", "model", "preset", "fold", "seed", "epochs", "mirror")}
    context["trained on"] = note.get("trained_on")
    if note.get("training_seconds"):
        context["training time"] = f"{note['training_seconds'] / 60:.1f} min"
    context["scale"] = "reduced" if note.get("scale") == "laptop" else "full"
    return {key: str(value) for key, value in context.items() if value is not None}
