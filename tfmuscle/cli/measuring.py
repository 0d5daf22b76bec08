"""Command from labels to numbers of muscles: measure."""

from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import FOLDER, Bar, checked, command, finish, print_table
from tfmuscle.quiet import quiet_start

_COLUMNS = ("volume_ml", "length_mm", "max_area_cm2", "ff_mean", "ff_of_sums")
_FLAGS_SHOWN = 12


@command(name="measure")
@click.option("-i", "--input", "labels", type=FOLDER, required=True, help="label image, or a folder of them")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder of the report")
@click.option(
    "-r",
    "--image",
    "dixon",
    type=FOLDER,
    nargs=2,
    metavar="WATER FAT",
    help="water and fat image of a Dixon scan; with a folder of labels: folders, or paths with {id}",
)
@click.option("--fat-fraction", type=FOLDER, metavar="FF", help="fat fraction instead, in percent or shares of 1")
@click.option("--scan", type=FOLDER, help="any image: its intensities are measured, and it is drawn below the labels")
@click.option("--names", type=FOLDER, help="names of the labels: a table, or a list as for relabel [default: beside]")
@click.option("--other", "others", type=FOLDER, multiple=True, help="another labelling to compare with; repeatable")
@click.option("--population", type=FOLDER, help="cohort.csv that measure made of other people: what is far from them?")
@click.option(
    "--axis",
    type=click.Choice(["slices", "patient", "labels"]),
    default="slices",
    show_default=True,
    help="direction of the limb: across the slices, foot-head, or the long axis of each side's labels",
)
@click.option("--landmark", help="structure whose ends are 0 and 100 % of the limb, e.g. femur [default: all labels]")
@click.option("--split-sides", is_flag=True, help="part structures without a side, of both limbs, into left and right")
def measure_command(labels: Path, out: Path, **settings: Any) -> None:
    """Measure labels: volume, length, area along the limb, fat, left against right, and what looks wrong.

    Writes CSV, JSON and one page that prints; of a folder of labels also a table of the cohort. Run again to go on.
    """
    with quiet_start():
        from tfmuscle.workflows.measuring import MeasureOptions, measure

    result = measure(labels, out, checked(MeasureOptions, **settings), progress=Bar())
    for subject, remarks in result.remarks.items():
        for remark in remarks:
            click.echo(f"{subject}: {remark}")
    subjects = {row["subject"] for row in result.rows}
    if len(subjects) == 1 and not labels.is_dir():
        _print_structures(result.rows)
        for flag in result.flags[:_FLAGS_SHOWN]:
            where = f" ({'ijk'[flag['axis']]} = {', '.join(map(str, flag['slices']))})" if flag["slices"] else ""
            click.echo(f"Look at {flag['structure']}, {flag['kind']}: {flag['what']}{where}")
    kept = f", {len(result.kept)} of them before" if result.kept else ""
    click.echo(f"{len(subjects)} subject(s) measured{kept}, {len(result.flags)} flags: {out / 'report.html'}")
    finish(result.failures)


def _print_structures(rows: Any) -> None:
    columns = [name for name in _COLUMNS if name in rows[0]]
    table = []
    for row in rows:
        shown = {name: "" if row[name] is None else f"{row[name]:.2f}" for name in columns}
        table.append({"structure": row["structure"]} | shown)
    print_table(table, ("structure", *columns))
