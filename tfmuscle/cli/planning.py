"""The command of planning: plan."""

from pathlib import Path

import click

from tfmuscle.cli.base import FOLDER, Bar, command, finish, print_table
from tfmuscle.config import SCALES
from tfmuscle.quiet import quiet_start

MODES = ("nnunet_v2", "seed002")


@command(name="plan")
@click.option("-i", "--input", "dataset", type=FOLDER, required=True, help="dataset folder")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="plan.json to write; it may be edited")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="nnunet_v2",
    show_default=True,
    help="nnU-Net v2's rules, or nnU-Net as Cheena describes it (max-pooling)",
)
@click.option(
    "--scale",
    type=click.Choice(SCALES),
    default="full",
    show_default=True,
    help="full size, or patches and widths for a laptop",
)
def plan_command(dataset: Path, out: Path, mode: str, scale: str) -> None:
    """Plan samples and networks for DATASET by nnU-Net's rules; give the plan to build-records --plan.

    Subjects with problems are left out of the plan and listed at the end; the exit code is then 1.
    """
    with quiet_start():
        from tfmuscle.planning import plan_rows
        from tfmuscle.workflows.planning import check_plan_file, make_plan, save_plan

    check_plan_file(out)
    bar = Bar()
    try:
        plan = make_plan(dataset, mode=mode, scale=scale, progress=bar)
    finally:
        bar.close()
    save_plan(out, plan)
    rows = plan_rows(plan)
    print_table(rows, tuple(rows[0]))
    for remark in plan["remarks"]:
        click.echo(f"Note: {remark}", err=True)
    click.echo(f"{out}: planned from {plan['fingerprint']['subjects']} subjects" + " (reduced)" * (scale == "laptop"))
    finish(plan["fingerprint"]["left_out"])
