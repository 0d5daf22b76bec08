"""A cascade from a dataset to trained networks: `fit_cascade`, `cascade_status`.

    RUN/cascade.json            which networks there are, where each looks, on which grid (`cascade.plan`)
    RUN/training.json           settings of the trainings of both stages
    RUN/failures.json           subjects that could not be used, and why
    RUN/networks/group_01/ ...  one run folder for each network, as `fit` leaves it
    RUN/networks/group_01.failed.txt    why its training failed the last time
    RUN_records/soleus/ ...     samples of each network; may be removed when all is trained

The run folder is all that prediction needs, and may be moved or copied as a whole.

The user starts one command; started again, with `resume`, it goes on where it was. Several processes, or machines with
a shared folder, may work on it: the plan and the records are made by one, while the others wait; then each takes
networks that nobody has (`processes.claimed`), every one in a process of its own. What a network needs beyond its
records is nothing: stage 2 learns from the labels, not from what stage 1 found. So the order of trainings is free.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle import models
from tfmuscle.cascade import CascadePlan, MuscleNetwork, Observation, make_plan, observe
from tfmuscle.cascade.plan import ORIENTATION, PLAN_FILE
from tfmuscle.config import Cascade, DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, read_json, write_json, write_text
from tfmuscle.folds import TEST, assign_folds
from tfmuscle.inference import NETWORKS_FOLDER, CascadeRun, is_cascade, load_cascade
from tfmuscle.presets import get_preset
from tfmuscle.subjects import Dataset, read_dataset
from tfmuscle.training import model_options as training_options
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.cascade_records import build_cascade_records
from tfmuscle.workflows.fold_jobs import check_models, train_apart
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.processes import claimed, claimed_in_turn, holder_of, run_apart

TRAINING_FILE, FAILURES_FILE, FAILED_SUFFIX = "training.json", "failures.json", ".failed.txt"
LONGEST_REASON = 300
"""Characters of a reason that are shown; the file has all of it."""
STEPS = 1000
"""Steps of the progress per network."""


@dataclass(frozen=True)
class CascadeTraining:
    """What is asked for: the settings of the cascade, and of the trainings of its two stages."""

    cascade: Cascade
    groups: TrainConfig
    muscles: TrainConfig

    def of(self, network: Any) -> TrainConfig:
        """Returns the settings by which a network of the plan is trained."""
        return self.muscles if isinstance(network, MuscleNetwork) else self.groups


@dataclass(frozen=True)
class NetworkState:
    """How far a network is, and what came out.

    Attributes:
        name: of the network.
        stage: 1 for groups, 2 for single muscles.
        state: "done", "running", "failed", "interrupted" or "to do".
        by: who trains it, or why it failed.
        epochs, validation_dice, seconds: of a training that is done.
    """

    name: str
    stage: int
    state: str
    by: str = ""
    epochs: int | None = None
    validation_dice: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class CascadeOutcome:
    """What `fit_cascade` leaves: how far every network is, and what failed (subjects and networks) and why."""

    states: tuple[NetworkState, ...]
    failures: Mapping[str, str]


def plan_cascade(
    settings: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any],
    cascade: Mapping[str, Any],
    preset: str,
    scale: str = "full",
) -> CascadeTraining:
    """Decides how a cascade is trained: the user's settings, then those of the preset, then the defaults.

    Args:
        settings: fields of `TrainConfig`, for both stages; architecture and its options for single muscles only.
        recipe: fields of `Supervised`, for both stages.
        cascade: fields of `Cascade`.
        preset: a recipe of many networks.
        scale: "laptop" cuts grids, width and steps down.

    Raises:
        ValueError: an unknown setting, or one that cannot be.
    """
    chosen = get_preset(preset)
    of_groups, of_muscles = chosen.networks
    shared = {key: value for key, value in settings.items() if key not in ("model", "model_options")}
    reduced = chosen.laptop.get("cascade", {}) if scale == "laptop" else {}
    return CascadeTraining(
        Cascade.from_dict(dict(chosen.cascade) | dict(reduced) | dict(cascade)),
        plan_training(shared, recipe=recipe, preset=of_groups, scale=scale),
        plan_training(settings, recipe=recipe, preset=of_muscles, scale=scale),
    )


def fit_cascade(
    source: str | Path,
    run: str | Path,
    wanted: CascadeTraining,
    *,
    only: Sequence[str] = (),
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> CascadeOutcome:
    """Trains the networks of a cascade that nobody has trained or is training.

    Args:
        source: dataset folder with labelled scans.
        run: folder to make; with `resume`, one to go on with.
        wanted: settings of the cascade and its trainings.
        only: names of networks (groups or muscles) to train; all without any.
        resume: go on with a folder that holds this cascade.
        progress: called with (steps done, steps in all, note): subjects while the records are made, then networks.
        say: called with what the user should know, one sentence each.

    Raises:
        DataError: the dataset or the folder cannot be used, or the settings are others than those it was begun with.
        ValueError: a network that is not in the plan, or that cannot be built.
    """
    run, dataset = Path(run), read_dataset(source)
    check_cascade_folder(run, resume=resume)
    tell = _once(say)
    with claimed_in_turn(run, name="plan", tell=lambda other: tell(f"waiting for the plan, which {other} makes")):
        plan, failures = _plan(dataset, run, wanted, only, progress)
    _tell_of_plan(plan, dataset, tell)
    networks, records = plan.named(only) if only else plan.networks, records_folder(run)
    with claimed_in_turn(records, name="records", tell=lambda other: tell(f"waiting for records, which {other} makes")):
        failures |= build_cascade_records(dataset, records, plan, progress=progress)
    write_json(run / FAILURES_FILE, failures)
    for number, network in enumerate((*networks, *networks)):  # again those that somebody else had and gave up
        if network.name not in failures:
            step = _within(progress, min(number, len(networks) - 1), len(networks), network.name)
            if problem := _train(run, records, network.name, wanted.of(network), step, tell):
                failures[network.name] = problem
    return CascadeOutcome(cascade_status(run), failures)


def _once(say: Callable[[str], None] | None) -> Callable[[str], None]:
    """Says each sentence once."""
    said: set[str] = set()

    def tell(sentence: str) -> None:
        if say is not None and sentence not in said:
            said.add(sentence)
            say(sentence)

    return tell


def _tell_of_plan(plan: CascadePlan, dataset: Dataset, tell: Callable[[str], None]) -> None:
    """Says what the plan does not use."""
    if plan.left_out:
        tell(f"{', '.join(plan.left_out)}: in no group of muscles or never labelled, so that no network learns them")
    new = [s.subject_id for s in dataset.subjects if s.labels is not None and s.subject_id not in plan.folds]
    if new:
        tell(f"{', '.join(new)}: came after the plan was made and train nothing; name another folder to use them")


def _train(
    run: Path, records: Path, name: str, config: TrainConfig, progress: Progress | None, tell: Callable[[str], None]
) -> str:
    """Trains one network unless it is done or somebody else works on it; returns why it failed, or ""."""
    folder = run / NETWORKS_FOLDER / name
    with claimed(folder.parent, name=name) as other:
        if other:
            tell(f"{name}: {other} trains it")
            return ""
        if (folder / "about.json").exists():
            return ""
        if (folder / "train.json").exists() and read_json(folder / "train.json") != config.to_dict():
            tell(f"{name}: was begun with other settings and starts anew")
            shutil.rmtree(folder)
        failed = folder.with_name(f"{name}{FAILED_SUFFIX}")
        failed.unlink(missing_ok=True)
        try:
            train_apart(records / name, folder, config, progress=progress)
        except Exception as error:  # of one network among many: the others go on
            write_text(failed, "\n".join([str(error), *getattr(error, "__notes__", ())]))
            return " ".join(str(error).split())[:LONGEST_REASON]
    return ""


def cascade_status(run: str | Path) -> tuple[NetworkState, ...]:
    """Returns how far every network of a cascade is.

    Raises:
        DataError: no cascade there.
    """
    cascade = load_cascade(run)
    return tuple(_state(cascade, network) for network in cascade.plan.networks)


def _state(cascade: CascadeRun, network: Any) -> NetworkState:
    folder, stage = cascade.folder_of(network.name), 2 if isinstance(network, MuscleNetwork) else 1
    if (folder / "about.json").exists():
        about = read_json(folder / "about.json")
        dice = about.get("best_validation_dice")
        return NetworkState(network.name, stage, "done", "", about.get("epochs"), dice, about.get("seconds"))
    if by := holder_of(folder.parent, name=network.name):
        return NetworkState(network.name, stage, "running", by)
    if (failed := folder.with_name(f"{network.name}{FAILED_SUFFIX}")).exists():
        reason = " ".join(failed.read_text(encoding="utf-8").split())[:LONGEST_REASON]
        return NetworkState(network.name, stage, "failed", reason)
    return NetworkState(network.name, stage, "interrupted" if (folder / "train.json").exists() else "to do")


def records_folder(run: Path) -> Path:
    """Returns where the samples of a cascade's networks are."""
    return run.with_name(run.name + "_records")


def fold_of(dataset: Dataset, wanted: CascadeTraining) -> dict[str, int]:
    """Returns subject -> fold of the labelled subjects."""
    labelled = [subject.subject_id for subject in dataset.subjects if subject.labels is not None]
    if not labelled:
        raise DataError(f"{dataset.root}: no subject has labels; a cascade is trained on labelled scans")
    settings = wanted.cascade
    return assign_folds(labelled, folds=settings.folds, test=settings.test, seed=wanted.muscles.seed)


def check_cascade_folder(run: Path, *, resume: bool) -> None:
    """Refuses a folder that no cascade may be written to.

    Raises:
        DataError: it holds a cascade and this is no resuming, or it holds something else.
    """
    if is_cascade(run):
        if not resume:
            raise DataError(f"{run}: holds a cascade already; add --resume to go on with it, or name another folder")
        return
    ours = (TEMPORARY_PREFIX, "plan-", TRAINING_FILE)
    if run.exists() and not (run.is_dir() and all(path.name.startswith(ours) for path in run.iterdir())):
        raise DataError(f"{run}: is not empty and holds no cascade; name another folder")


def _plan(
    dataset: Dataset, run: Path, wanted: CascadeTraining, only: Sequence[str], progress: Progress | None
) -> tuple[CascadePlan, dict[str, str]]:
    """Makes the plan, or reads the one that is there and checks that it is this one; and who could not be observed.

    Trainings of single networks (`only`) may have settings of their own, the cascade's as a whole may not change.
    """
    path = run / PLAN_FILE
    training = {"groups": wanted.groups.to_dict(), "muscles": wanted.muscles.to_dict()}
    if path.exists():
        plan, before = CascadePlan.load(path), read_json(run / TRAINING_FILE)
        _same(path, plan.settings.to_dict(), wanted.cascade.to_dict())
        for stage, settings in training.items() if not only else ():
            _same(run / TRAINING_FILE, before.get(stage, {}), settings)
        _check(plan, wanted)
        return plan, {}
    folds = fold_of(dataset, wanted)
    observations, failures = _observe(dataset, folds, progress)
    split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for subject in observations:
        fold = folds[subject]
        validates = fold == wanted.muscles.fold and wanted.cascade.folds > 1
        split["test" if fold == TEST else "validation" if validates else "train"].append(subject)
    try:
        plan = make_plan(wanted.cascade, _base(dataset, wanted), observations, split, folds)
    except (DataError, ValueError) as error:
        raise DataError(f"{dataset.root}: {error}") from error
    _check(plan, wanted)
    if only:
        plan.named(only)
    write_json(run / TRAINING_FILE, training)
    plan.save(path)
    return plan, failures


def _check(plan: CascadePlan, wanted: CascadeTraining) -> None:
    """Refuses settings by which a network cannot be built, before anything is written.

    Raises:
        ValueError: naming the network and what it needs.
    """
    if wanted.muscles.fold >= wanted.cascade.folds:
        raise ValueError(f"fold {wanted.muscles.fold} does not exist: there are {wanted.cascade.folds} folds")
    for network in plan.networks:
        config, spec = wanted.of(network), network.spec
        try:
            models.check_spec(config.model, spec, **training_options(config))
        except ValueError as error:
            stage = "fine" if isinstance(network, MuscleNetwork) else "coarse"
            raise ValueError(f"{network.name}: {error} (--cascade {stage}_multiple and {stage}_voxels)") from error
    first: list[Any] = [*plan.groups[:1], *plan.muscles[:1]]
    # in a process of its own: TensorFlow keeps the memory of a GPU that it has looked at
    run_apart(check_models, [(network.name, network.spec, wanted.of(network)) for network in first])


def _observe(
    dataset: Dataset, folds: Mapping[str, int], progress: Progress | None
) -> tuple[dict[str, Observation], dict[str, str]]:
    found: dict[str, Observation] = {}
    failures: dict[str, str] = {}
    subjects = [subject for subject in dataset.subjects if subject.subject_id in folds]
    for number, subject in enumerate(subjects, start=1):
        try:
            found[subject.subject_id] = observe(subject.read_labels(dataset.label_map), dataset.label_map)
        except DataError as error:
            failures[subject.subject_id] = str(error)
        if progress is not None:
            progress(number, len(subjects), f"labels of {subject.subject_id}")
    return found, failures


def _base(dataset: Dataset, wanted: CascadeTraining) -> DataSpec:
    """Returns how scans are prepared: their own voxels, axes turned, intensities scaled."""
    settings = wanted.cascade
    return DataSpec(
        dataset.label_map,
        name=dataset.name,
        channels=dataset.channels,
        kind="volumes",
        patches="whole",
        orientation=ORIENTATION,
        normalisation=settings.normalisation,
        bias_field=settings.bias_field,
        folds=settings.folds,
        test=settings.test,
        seed=wanted.muscles.seed,
        preset=wanted.muscles.preset,
        scale=wanted.muscles.scale,
    )


def _same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise DataError(
                f"{path}: {key} was {before.get(key)!r} when the cascade was begun and is {value!r} now; resume with"
                " the same settings, or name another folder"
            )


def _within(progress: Progress | None, number: int, total: int, name: str) -> Progress | None:
    """Turns the steps of one network into steps of all."""
    if progress is None:
        return None
    scale = 1000
    return lambda done, of, note: progress(
        scale * number + scale * done // max(1, of), scale * total, f"{name}: {note}"
    )
