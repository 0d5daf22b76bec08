"""The whole job on phantoms, for people who want to see it before they believe it.

Phantom limbs -> records -> a small 2D U-Net -> predictions of two limbs it never saw -> tables, pictures,
`report.html`. Deterministic and small on purpose: it shows that everything is in place, and nothing about patients.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from tfmuscle.errors import DataError
from tfmuscle.files import write_json
from tfmuscle.subjects import read_dataset
from tfmuscle.workflows.building import Progress, build_records
from tfmuscle.workflows.data import phantom, plan_spec
from tfmuscle.workflows.evaluating import evaluate
from tfmuscle.workflows.learning import fit, plan_training
from tfmuscle.workflows.predicting import predict

SUBJECTS = 12
SEED = 7


def demo(
    out: str | Path,
    *,
    subjects: int = SUBJECTS,
    epochs: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """Runs the whole job in `out` and returns the path of `report.html`.

    Args:
        out: folder to make; one left by an earlier demo is made anew.
        subjects: how many legs; two of them are the test.
        epochs: passes over the training slices; the preset's by default.
        say: called with a sentence before each step.
        progress: called with (done, total, note) within each step.
    """
    out = Path(out)
    _clear(out)
    dataset, records, run = out / "dataset", out / "records", out / "run"
    say(f"1/5 phantom: {subjects} synthetic legs with five bones each -> {dataset}")
    phantom(dataset, subjects=subjects, seed=SEED, kind="bones", progress=progress)
    say(f"2/5 build-records: checked, preprocessed, cut into slices -> {records}")
    spec = plan_spec(read_dataset(dataset), {}, preset="demo", progress=progress)
    build_records(dataset, records, spec, progress=progress)
    say(f"3/5 fit: a small 2D U-Net; two legs are kept aside for the test -> {run}")
    settings = {"seed": SEED} | ({} if epochs is None else {"epochs": epochs})
    fit(records, run, plan_training(settings, recipe={}, preset="demo"), progress=progress)
    say(f"4/5 predict: the two legs nobody trained on -> {out / 'predictions'}")
    predict(run, dataset, out / "predictions", part="test", progress=progress)
    say(f"5/5 evaluate: Dice, surface distances, volumes, pictures -> {out / 'report'}")
    evaluate(out / "predictions", dataset, out / "report", progress=progress)
    return out / "report" / "report.html"


def _clear(out: Path) -> None:
    """Makes `out` empty, but only if it is an earlier demo or not there."""
    taken = out.exists() and not (out / "demo.json").exists() and (not out.is_dir() or any(out.iterdir()))
    if taken:
        raise DataError(f"{out}: is no earlier demo, and would be overwritten; name another folder")
    for part in ("dataset", "records", "run", "predictions", "report"):
        shutil.rmtree(out / part, ignore_errors=True)
    write_json(out / "demo.json", {"made_by": "tfmuscle demo", "note": "this folder is made anew by every demo"})
