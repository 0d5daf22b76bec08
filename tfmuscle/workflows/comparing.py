"""Models compared on scans that none of them was trained on: presets (`cross_validate`), or settings of one (`study`).

    OUT/about.json                      what must not change between calls: folds, seed, scale, who is in which fold
    OUT/records-<hash>/                 samples; shared by all candidates whose samples are made alike
    OUT/<candidate>/settings.json       what was asked for, and what was decided from it
    OUT/<candidate>/fold_0/ ...         run, predictions, report, result.json (`fold_jobs.py`)
    OUT/<candidate>/predictions/        labels of every subject, made by the network that had left it out
    OUT/<candidate>/postprocessing.json cleaning chosen on them, where the preset follows nnU-Net's plan
    OUT/comparison.csv .json .html      of a study: study.csv .json .html; written again as folds end

Folds are of persons and the same for every candidate. Trainings follow one another, each in a process of its own; one
that fails is reported and the others go on. The same call again goes on where the last one was: a finished fold is
never repeated, an interrupted training goes on at its last epoch. Several processes may work on one folder: each takes
folds that nobody has (`processes.claimed`), the last one to end sees all results.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmuscle.errors import DataError
from tfmuscle.evaluation.comparison import Comparison
from tfmuscle.evaluation.published import Published, published_bones
from tfmuscle.folds import TEST
from tfmuscle.records import INDEX_FILE, read_index
from tfmuscle.workflows.building import Progress
from tfmuscle.workflows.deciding import CHOOSING_FOLDS, Job, Planned, claim_folder, decide, make_job
from tfmuscle.workflows.fold_jobs import make_records, read_result, run_fold
from tfmuscle.workflows.planning import keep_plan
from tfmuscle.workflows.processes import claimed, claimed_in_turn, run_apart
from tfmuscle.workflows.staging import stages_of
from tfmuscle.workflows.summarising import PREDICTIONS, collect, summarise
from tfmuscle.workflows.variants import FIRST_STAGE, Candidate, candidates_of_presets, candidates_of_study

PAGE_SECONDS = 15.0
"""Least time between two pages of what is done so far."""


def cross_validate(
    source: str | Path,
    out: str | Path,
    presets: Sequence[str],
    *,
    folds: int | str | None = None,
    scale: str = "full",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    published: Mapping[str, Published] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Trains every preset on every fold, segments the subjects left out and compares the presets.

    Args:
        source: dataset folder, or the records of one muscle of a cascade.
        out: folder to make, or to go on with.
        presets: recipes to compare.
        folds: number of folds by person, 5 by default, or "loocv" for as many as persons.
        scale: "laptop" cuts every recipe down.
        seed: of the split and of the trainings.
        settings: fields of `DataSpec`, `TrainConfig` and `Supervised` that go before those of every preset, as in
            `variants.sort_settings`; `test` holds subjects out of everything.
        workers: processes that make records.
        published: preset -> figures to show beside ours; those of the bone pipeline by default.
        progress: called with (steps done, steps in all, note) over all trainings of this call.

    Raises:
        ValueError: an unknown preset or setting, or one that cannot be; nothing has been trained then.
        DataError: the dataset cannot be read, or `out` holds something else.
    """
    candidates = candidates_of_presets(presets, _without_test(settings))
    job = make_job(source, out, "comparison", folds, settings, scale=scale, seed=seed, workers=workers)
    return _run(job, candidates, published_bones() if published is None else published, progress)


def study(
    source: str | Path,
    out: str | Path,
    *,
    preset: str | None,
    vary: Mapping[str, Sequence[Any]],
    folds: int | str | None = None,
    fold: int | None = None,
    scale: str = "full",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Trains a preset with every combination of the varied settings and compares them.

    Args:
        source: dataset folder, or the records of one muscle of a cascade.
        out: folder to make, or to go on with.
        preset: recipe that is varied; None for the defaults.
        vary: field -> values.
        folds: number of folds by person, 5 by default, or "loocv".
        fold: the only fold to leave out; None takes all of them in turn.
        scale: "laptop" cuts the recipe down.
        seed: of the split and of the trainings.
        settings: as in `cross_validate`.
        workers: processes that make records.
        progress: called with (steps done, steps in all, note) over all trainings of this call.

    Raises:
        ValueError: an unknown field or one that cannot be; nothing has been trained then.
        DataError: the dataset cannot be read, or `out` holds something else.
    """
    candidates = candidates_of_study(preset, vary, _without_test(settings))
    job = make_job(source, out, "study", folds, settings, scale=scale, seed=seed, workers=workers)
    if fold is not None and not 0 <= fold < job.folds:
        raise ValueError(f"fold is {fold}; there are folds 0 to {job.folds - 1}")
    job = job if fold is None else dataclasses.replace(job, chosen=(fold,))
    return _run(job, candidates, {}, progress)


def _without_test(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key != "test"}


def _run(
    job: Job, candidates: Sequence[Candidate], published: Mapping[str, Published], progress: Progress | None
) -> Comparison:
    claim_folder(job)
    planned = decide(job, candidates, progress)
    failures: dict[str, str] = {}
    waiting: dict[str, str] = {}
    prior, shown = None, time.monotonic()

    def so_far(to_do: Sequence[str]) -> None:
        """Shows what is done while the rest is being trained."""
        nonlocal shown
        if time.monotonic() - shown < PAGE_SECONDS:
            return
        shown = time.monotonic()
        with claimed_in_turn(job.out):
            left = waiting | dict.fromkeys(to_do, "to do")
            summarise(job, planned, failures=failures, waiting=left, published=published)

    for group in ([item for item in planned if not item.spec.prior], [item for item in planned if item.spec.prior]):
        if group and group[0].spec.prior:
            prior = _first_stage(job, planned)
            if prior is None:
                failures |= {item.candidate.name: "its first stage has folds that are not done" for item in group}
                continue
        _make_records(job, group, prior, failures, progress)
        waiting |= _train_all(job, group, prior, failures, progress, so_far)
    with claimed_in_turn(job.out):  # two processes that end together write one after the other
        return summarise(job, planned, failures=failures, waiting=waiting, published=published, progress=progress)


def _first_stage(job: Job, planned: Sequence[Planned]) -> Path | None:
    """Returns the labels that a cascade looks at: those its first stage gave of subjects it had not seen."""
    item = next(item for item in planned if item.candidate.plan == FIRST_STAGE)
    found = {number: read_result(item.fold(number)) for number in range(job.folds)}
    results = {number: result for number, result in found.items() if result is not None}
    if len(results) < job.folds:
        return None
    collect(item, results)
    return item.folder / PREDICTIONS


def _make_records(
    job: Job, planned: Sequence[Planned], prior: Path | None, failures: dict[str, str], progress: Progress | None
) -> None:
    """Builds what samples are missing. A candidate without records fails when it is trained."""
    if job.dataset is None:
        return
    for folder, item in {item.records: item for item in planned}.items():
        users = [other for other in planned if other.records == folder]
        if all(user.is_done(number) for user in users for number in job.chosen) and not folder.exists():
            continue  # records of finished folds may be thrown away
        names = ", ".join(user.candidate.name for user in users)
        tell = None if progress is None else functools.partial(_tell, progress)
        try:
            with claimed_in_turn(job.out, name=f"claim-{folder.name}", tell=tell):
                if not (folder / INDEX_FILE).exists():
                    arguments = (job.source, folder, item.spec, job.workers, prior)
                    run_apart(make_records, *arguments, progress=progress)
                keep_plan(item.plan, folder)
            failures |= {f"{key}, records of {names}": reason for key, reason in read_index(folder).failures.items()}
        except DataError as error:
            failures[f"records of {names}"] = " ".join(str(error).split())


def _tell(progress: Progress, other: str) -> None:
    progress(0, 1, f"waiting for the records of {other}")


def _train_all(
    job: Job,
    planned: Sequence[Planned],
    prior: Path | None,
    failures: dict[str, str],
    progress: Progress | None,
    so_far: Callable[[Sequence[str]], None],
) -> dict[str, str]:
    """Does every fold that is not finished; adds to `failures`, returns those another process is at."""
    to_do = [(item, number) for item in planned for number in job.chosen if not item.is_done(number)]
    steps = [_steps(item) for item, _ in to_do]
    waiting: dict[str, str] = {}
    for place, (item, number) in enumerate(to_do):
        name = f"{item.candidate.name}, fold {number}"
        with claimed(item.fold(number)) as other:
            if item.is_done(number):
                continue
            if other:
                waiting[name] = f"in work: {other}"
                continue
            sound = _sound_folds(job, item)
            if reason := _without_records(job, number, sound):
                failures[name] = reason
                continue
            config = item.config_of(number, job.folds, sound)
            told = _summed(progress, sum(steps[:place]), steps[place], sum(steps), name)
            place_of = (item.fold(number), item.records, job.source)
            problem = run_fold(*place_of, config, prior=prior, progress=told)
        if problem:
            failures[name] = problem
        if progress is not None:
            progress(sum(steps[: place + 1]), sum(steps), name)
        if left := [f"{other.candidate.name}, fold {fold}" for other, fold in to_do[place + 1 :]]:
            so_far(left)
    return {name: who for name, who in waiting.items() if not _done_by_now(planned, name)}


def _sound_folds(job: Job, item: Planned) -> set[int]:
    """Returns the folds with a subject that has records; all where there are no records, which training will tell."""
    try:
        usable = read_index(item.records).usable
    except DataError:
        return set(range(job.folds))
    return {fold for key, fold in job.split.items() if key in usable and fold != TEST}


def _without_records(job: Job, number: int, sound: Collection[int]) -> str:
    """Says why a fold cannot be left out: nobody in it could be read, or in too few others."""
    if number not in sound:
        persons = ", ".join(key for key, fold in job.split.items() if fold == number)
        return f"no record of {persons}, whom it leaves out: nothing to measure"
    parts = ("to train", "to choose", "to measure") if job.folds >= CHOOSING_FOLDS else ("to train", "to measure")
    if len(sound) < len(parts):
        return f"only {len(sound)} folds have records; {len(parts)} are needed: {', '.join(parts)}"
    return ""


def _done_by_now(planned: Sequence[Planned], name: str) -> bool:
    candidate, _, number = name.rpartition(", fold ")
    return any(item.candidate.name == candidate and item.is_done(int(number)) for item in planned)


def _steps(item: Planned) -> int:
    """Returns about how many steps the training of a fold takes."""
    try:
        index = read_index(item.records)
        samples = sum(index.samples_of(key) for key in index.usable) * (item.spec.folds - 1) / item.spec.folds
    except DataError:
        samples = 1.0
    return sum(
        stage.epochs * (stage.steps or max(1, math.ceil(samples / stage.batch_size)))
        for stage in stages_of(item.config)
    )


def _summed(progress: Progress | None, before: int, own: int, total: int, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, of, note: progress(before + min(own, own * done // max(1, of)), total, f"{name}: {note}")
