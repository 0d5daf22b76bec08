"""What a comparison is about, decided before anything is trained: subjects, folds, and settings of every candidate.

What all candidates share is written into the output folder and may not change between calls; what was decided for a
candidate is written into its folder and read again, so that a later call need not measure the dataset anew and another
version of a preset does not change the folds that are left.

Usually the source is a dataset. It may also be the records of one muscle of a cascade (`DataSpec.patches == "boxes"`),
for ablations of the networks of single muscles: folds and samples are then those of the records, candidates differ in
their training alone, and what is measured is the muscle in its true box.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import TEMPORARY_PREFIX, json_text, read_json, write_json
from tfmuscle.folds import TEST, assign_folds
from tfmuscle.records import INDEX_FILE, load_spec, read_index
from tfmuscle.subjects import Dataset, read_dataset
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.data import plan_spec
from tfmuscle.workflows.fold_jobs import RESULT_FILE, check_models
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.planning import preset_plan
from tfmuscle.workflows.processes import run_apart
from tfmuscle.workflows.variants import Candidate

CHOOSING_FOLDS = 4
"""From so many folds on, the fold after the one left out chooses the epoch that is kept, so that nothing of the network
depends on the subjects it is measured on. With fewer folds too little would be left to train on: the fold left out
chooses, and the page says so."""
FOLDS = 5
"""Folds of a dataset when nobody says how many."""
LEAVE_ONE_OUT = "loocv"
"""As many folds as persons."""
ABOUT_FILE = "about.json"
SETTINGS_FILE = "settings.json"
_COMMANDS = {"comparison": "tfmuscle cross-validate", "study": "tfmuscle study"}


@dataclass(frozen=True)
class Job:
    """What all candidates share.

    Attributes:
        source: folder of the dataset, or of the records.
        title: what the dataset is called.
        dataset: scans and references; None where the source is records.
        out: folder of everything.
        name: of the tables, "comparison" or "study".
        split: subject -> fold, `folds.TEST` for those held out of everything.
        folds: number of folds.
        chosen: folds to be left out, one after the other.
        scale: "full" or "laptop".
        seed: of the split and, unless set otherwise, of the trainings.
        workers: processes that make records.
        test: persons held out of everything, a count or a share.
    """

    source: Path
    title: str
    dataset: Dataset | None
    out: Path
    name: str
    split: Mapping[str, int]
    folds: int
    chosen: tuple[int, ...]
    scale: str
    seed: int
    workers: int
    test: float = 0.0


@dataclass(frozen=True)
class Planned:
    """A candidate with everything decided; `config` is that of fold 0, `plan` nnU-Net's if the preset follows one."""

    candidate: Candidate
    spec: DataSpec
    config: TrainConfig
    folder: Path
    records: Path
    plan: Mapping[str, Any] | None = None

    def fold(self, number: int) -> Path:
        """Returns the folder of a fold."""
        return self.folder / f"fold_{number}"

    def config_of(self, number: int, folds: int, sound: Collection[int]) -> TrainConfig:
        """Returns the training that leaves a fold out; the next of the `sound` ones chooses, see `CHOOSING_FOLDS`."""
        if folds < CHOOSING_FOLDS:
            return dataclasses.replace(self.config, fold=number)
        choosing = min((fold for fold in sound if fold != number), key=lambda fold: (fold - number) % folds)
        return dataclasses.replace(self.config, fold=choosing, left_out=number)

    def is_done(self, number: int) -> bool:
        """Whether a fold is finished."""
        return (self.fold(number) / RESULT_FILE).exists()


def make_job(
    source: str | Path,
    out: str | Path,
    name: str,
    folds: int | str | None,
    settings: Mapping[str, Any] | None,
    **shared: Any,
) -> Job:
    """Reads the dataset and assigns its labelled subjects to folds.

    Args:
        source: dataset folder, or records of one muscle.
        out: folder of everything.
        name: "comparison" or "study".
        folds: number, or "loocv"; None for 5, and for those that records were made with.
        settings: those of the caller; `test` holds subjects out.
        **shared: `scale`, `seed` and `workers` of the job.

    Raises:
        ValueError: less than two folds.
        DataError: no such dataset, nothing labelled, or fewer persons than folds.
    """
    if (Path(source) / INDEX_FILE).exists():
        if folds is not None:
            raise ValueError(f"folds is {folds!r}; the records say who is in which fold: leave it out")
        return _job_of_records(Path(source), Path(out), name, settings, **shared)
    dataset = read_dataset(source)
    labelled = [subject.subject_id for subject in dataset.subjects if subject.labels is not None]
    if not labelled:
        raise DataError(f"{dataset.root}: no subject has labels; models are compared on labelled scans")
    test, seed = (settings or {}).get("test", 0), shared["seed"]
    if type(test) not in (int, float) or not 0 <= test < math.inf:
        raise ValueError(f"test is {test!r}; a number of persons, or a share below 1, is needed")
    folds = FOLDS if folds is None else folds
    if folds == LEAVE_ONE_OUT:
        everybody = assign_folds(labelled, folds=1, test=test, seed=seed)
        folds = len({person_of(key) for key, fold in everybody.items() if fold != TEST})
    if not isinstance(folds, int) or folds < 2:
        raise ValueError(f"folds is {folds!r}; 2 or more are needed, or {LEAVE_ONE_OUT!r} with 2 persons or more")
    split = assign_folds(labelled, folds=folds, test=test, seed=seed)
    about = (dataset.root, dataset.name, dataset, Path(out), name)
    return Job(*about, split, folds, tuple(range(folds)), test=float(test), **shared)


def _job_of_records(source: Path, out: Path, name: str, settings: Mapping[str, Any] | None, **shared: Any) -> Job:
    spec, index = load_spec(source), read_index(source)
    if spec.patches != "boxes":
        raise DataError(
            f"{source}: holds records of whole scans, and models are compared on scans; give the dataset they were"
            " made of"
        )
    if "test" in (settings or {}):
        raise ValueError("test: the records say who is held out; leave it out, or give a dataset")
    split = dict(sorted(index.folds.items()))
    folds = sorted({fold for fold in split.values() if fold != TEST})
    if len(folds) < 2 or folds[-1] >= len(folds):
        raise DataError(f"{source}: its subjects are in folds {folds}; two or more, from 0 on, are needed")
    shared |= {"scale": spec.scale} if spec.scale == "laptop" else {}
    title = f"{spec.name}, {spec.label_map.structures[0]} in its true box"
    return Job(source, title, None, out, name, split, len(folds), tuple(folds), **shared)


def person_of(subject_id: str) -> str:
    """Returns whose leg it is, as `folds.assign_folds` sees it."""
    return subject_id.removesuffix("_left").removesuffix("_right")


def claim_folder(job: Job) -> None:
    """Notes what the folder is for, and refuses one that was for something else.

    Raises:
        DataError: it holds other files, or was begun with other subjects, folds, seed or scale.
    """
    about = {"made_by": _COMMANDS[job.name], "dataset": job.title, "scale": job.scale, "seed": job.seed}
    about |= {"folds": job.folds, "split": dict(job.split)}
    path = job.out / ABOUT_FILE
    if job.out.exists() and not job.out.is_dir():
        raise DataError(f"{job.out}: is a file; name a folder")
    names = [item.name for item in job.out.iterdir()] if job.out.is_dir() else []
    others = [name for name in names if name != ABOUT_FILE and not name.startswith(TEMPORARY_PREFIX)]
    if not path.exists() and others:
        raise DataError(f"{job.out}: is not empty and holds no comparison; name another folder")
    if not path.exists() or (not others and read_json(path).get("made_by") in _COMMANDS.values()):
        write_json(path, about)  # the latter: what was asked for could not be, and nothing was begun
    before = read_json(path)
    for key, value in about.items():
        if before.get(key) != value and key != "split":
            raise DataError(f"{path}: {key} was {before.get(key)!r} and is {value!r} now; name another folder")
    if before.get("split") != about["split"]:
        raise DataError(
            f"{path}: other subjects or folds than now; the dataset or the setting test has changed, name another"
            " folder"
        )


def decide(job: Job, candidates: Sequence[Candidate], progress: Progress | None) -> list[Planned]:
    """Decides samples and training of every candidate, or reads what an earlier call decided.

    Raises:
        ValueError: a setting that cannot be.
        DataError: a candidate was begun with other settings.
    """
    specs: dict[str, DataSpec] = {}
    planned, new = [], {}
    for candidate in candidates:
        folder = job.out / candidate.folder
        path = folder / SETTINGS_FILE
        plan = _plan(job, candidate, progress)
        if path.exists():
            spec, config = _read_settings(path, candidate)
        else:
            key = json_text([candidate.preset, candidate.data])
            if key not in specs:
                specs[key] = _spec(job, candidate, plan, progress)
            spec = specs[key]
            config = _training(job, candidate, plan)
            new[path] = {"asked": candidate.asked(), "spec": spec.to_dict(), "config": config.to_dict()}
        identity = [spec.to_dict(), plan["mode"] if plan else None]  # the plan lies beside the records
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        records = job.out / f"records-{digest}" if job.dataset else job.source
        planned.append(Planned(candidate, spec, config, folder, records, plan))
    unchecked = [item for item in planned if item.folder / SETTINGS_FILE in new]
    if unchecked:
        run_apart(check_models, [(item.candidate.name, item.spec, item.config) for item in unchecked])
    for path, content in new.items():
        write_json(path, content)
    return planned


def _plan(job: Job, candidate: Candidate, progress: Progress | None) -> dict[str, Any] | None:
    """Returns nnU-Net's plan for a preset that follows it: made once for all presets of a mode, and kept."""
    if not candidate.plan:
        return None
    if job.dataset is None:
        raise ValueError(f"{candidate.name}: follows a plan of whole scans, which {job.source} does not hold")
    path = job.out / ("plan_seed002.json" if str(candidate.preset).endswith("_seed002") else "plan.json")
    known = path if path.exists() else None
    plan = preset_plan(job.dataset, candidate.preset, scale=job.scale, path=known, progress=progress)
    if known is None:
        write_json(path, plan)
    return plan


def _spec(job: Job, candidate: Candidate, plan: Mapping[str, Any] | None, progress: Progress | None) -> DataSpec:
    if job.dataset is None:
        if candidate.data:
            raise ValueError(
                f"{', '.join(candidate.data)}: {job.source} has made its samples; vary settings of training"
            )
        return load_spec(job.source)
    settings = dict(candidate.data) | {"folds": job.folds, "seed": job.seed, "test": job.test}
    about: dict[str, Any] = {"preset": candidate.preset, "scale": job.scale, "plan": plan, "progress": progress}
    return dataclasses.replace(plan_spec(job.dataset, settings, **about), preset=None)  # same samples, same records


def _training(job: Job, candidate: Candidate, plan: Mapping[str, Any] | None) -> TrainConfig:
    settings = {"seed": job.seed} | dict(candidate.training)
    part = None
    if plan is not None:
        configuration = plan["configurations"][candidate.plan]
        part = {"training": configuration["training"], "recipe": configuration.get("recipe", {})}
    return plan_training(settings, recipe=candidate.recipe, preset=candidate.preset, scale=job.scale, plan=part)


def _read_settings(path: Path, candidate: Candidate) -> tuple[DataSpec, TrainConfig]:
    content = read_json(path)
    if content.get("asked") != candidate.asked():
        raise DataError(
            f"{path}: was begun with {json.dumps(content.get('asked'))}, now {json.dumps(candidate.asked())} is asked"
            f" for; remove {path.parent}, or name another output"
        )
    try:
        return DataSpec.from_dict(content["spec"]), TrainConfig.from_dict(content["config"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: {error}; remove {path.parent}, and its folds are trained anew") from error
