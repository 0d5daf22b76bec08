"""Cascades of many networks on the command line: what `fit` does for such a preset, and `status`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.quiet import quiet_start


def fit_networks(
    source: Path,
    run: Path,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    cascade: Mapping[str, Any],
    only: tuple[str, ...],
    resume: bool,
    **preset: Any,
) -> None:
    """Trains the networks of a cascade and says how far it is; exits with 1 when one failed."""
    with quiet_start():
        from tfmuscle.workflows.cascade import fit_cascade, plan_cascade

    wanted = checked(plan_cascade, settings, recipe=recipe, cascade=cascade, **preset)
    bar = Bar()

    def say(sentence: str) -> None:
        bar.close()
        click.echo(f"Note: {sentence}", err=True)

    try:
        outcome = checked(fit_cascade, source, run, wanted, only=only, resume=resume, progress=bar, say=say)
    finally:
        bar.close()
    reduced = " (reduced)" if wanted.muscles.scale == "laptop" else ""
    click.echo(f"{run}: {summary(outcome.states)}{reduced}")
    finish(outcome.failures)


def summary(states: Any) -> str:
    """Returns how many networks are done, running, interrupted and to do.

    >>> from types import SimpleNamespace
    >>> summary([SimpleNamespace(state="done"), SimpleNamespace(state="to do"), SimpleNamespace(state="done")])
    '3 networks: 2 done, 1 to do'
    """
    counts: dict[str, int] = {}
    for item in states:
        counts[item.state] = counts.get(item.state, 0) + 1
    return f"{len(states)} networks: " + ", ".join(f"{count} {state}" for state, count in counts.items())


@command(name="status")
@click.argument("run", type=FOLDER)
def status_command(run: Path) -> None:
    """Say which networks of the cascade in RUN are trained, in training and to do."""
    with quiet_start():
        from tfmuscle.workflows.cascade import cascade_status

    states = cascade_status(run)
    rows = [
        {
            "network": item.name,
            "stage": item.stage,
            "state": item.state + (f" ({item.by})" if item.by else ""),
            "epochs": "" if item.epochs is None else item.epochs,
            "validation Dice": "" if item.validation_dice is None else f"{item.validation_dice:.3f}",
            "minutes": "" if item.seconds is None else f"{item.seconds / 60:.1f}",
        }
        for item in states
    ]
    print_table(rows, ("network", "stage", "state", "epochs", "validation Dice", "minutes"))
    click.echo(summary(states) + _time_left(states))


def _time_left(states: Any) -> str:
    """Returns what the networks to do will take if they take as long as those of their stage that are done."""
    left = 0.0
    for stage in (1, 2):
        mine = [item for item in states if item.stage == stage]
        known = [item.seconds for item in mine if item.seconds is not None]
        todo = sum(item.state != "done" for item in mine)
        if todo and not known:
            return ""
        left += todo * sum(known) / len(known) if todo else 0.0
    return f"; about {left / 60:.0f} minutes of training left" if left else ""
