"""Trainings one after the other, each going on with the weights of the one before (H-DenseUNet).

The last training is the run itself, so that a staged run predicts, resumes and moves like any other; those before it
stand in `RUN/stages/1`, `RUN/stages/2`, whole run folders that can be looked at or thrown away. What one stage hands to
the next are its best weights, by layer name and shape (`training.transfer`). A stage is there only when all before it
are complete, so the newest folder says where an interrupted job goes on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmuscle import training
from tfmuscle.config import TrainConfig
from tfmuscle.presets import PRESETS
from tfmuscle.training.supervised import STAGES_FOLDER, check_folder
from tfmuscle.workflows.building import Progress


def stages_of(config: TrainConfig) -> list[TrainConfig]:
    """Returns the settings of every training that makes this run, in order; most runs are a single one.

    A preset's stages hold for its own architecture. Whoever gives an option that the stages decide
    (`--option stage=both`, or a start from a staged run) wants that one training only.
    """
    preset = PRESETS.get(config.preset or "")
    stages = preset.stages if preset is not None and config.model == preset.training.get("model") else ()
    decided = {name for stage in stages for name in stage.get("model_options", {})}
    if not stages or decided & set(config.model_options):
        return [config]
    return [_staged(config, stage) for stage in stages]


def _staged(config: TrainConfig, stage: Mapping[str, Any]) -> TrainConfig:
    options = dict(config.model_options) | dict(stage.get("model_options", {}))
    return dataclasses.replace(config, **dict(stage) | {"model_options": options})


def fit_stages(
    records: Path,
    run: Path,
    stages: Sequence[TrainConfig],
    *,
    start: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains all stages and returns the run folder, which is that of the last.

    Args:
        records: folder made by `build-records`.
        run: run folder to make, or with `resume` to go on with.
        stages: settings of every training.
        start: run whose weights the first stage starts with.
        resume: go on at the stage and epoch that were interrupted.
        progress: called with (batches done, batches in all, note); every stage is an equal part of the whole.
        say: called with what the user should know about starts and stages, one sentence each.
    """
    folders = [run / STAGES_FOLDER / str(number) for number in range(1, len(stages))] + [run]
    if len(stages) > 1:
        for folder in folders:
            check_folder(folder, resume=resume)  # now, not when the stages before it are done
    first = max((n for n, folder in enumerate(folders) if (folder / "train.json").exists()), default=0)
    for number in range(first, len(stages)):
        if say is not None and len(stages) > 1:
            say(f"stage {number + 1} of {len(stages)} -> {folders[number]}")
        before = folders[number - 1] if number else start
        begun = (folders[number] / "train.json").exists()
        training.fit(
            records,
            folders[number],
            stages[number],
            start=None if begun and number else before,  # what a begun stage starts from is written in it
            resume=resume,
            progress=_part(progress, number, len(stages)),
            say=say,
        )
    return run


def _part(progress: Progress | None, number: int, of: int) -> Progress | None:
    if progress is None or of == 1:
        return progress
    return lambda done, total, note: progress(number * total + done, of * total, f"stage {number + 1} of {of}, {note}")
