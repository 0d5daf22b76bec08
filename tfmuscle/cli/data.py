"""Commands from scans to records: phantom, inspect, build-records, verify-records."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tfmuscle.cli.base import (
    FOLDER,
    Bar,
    beam_flags,
    checked,
    command,
    finish,
    given,
    print_table,
    runner_options,
    setting,
)
from tfmuscle.config import KINDS, DataSpec
from tfmuscle.presets import PRESETS
from tfmuscle.quiet import quiet_start

SERIES_COLUMNS = ("name", "modality", "contrast", "shape", "spacing", "orientation", "files", "fitness")
PHANTOM_KINDS = ("bones", "thigh", "lower-limb", "ultrasound", "child-bones")
PHANTOM_CONTRASTS = ("t1", "water", "ultrasound")


@command(name="phantom")
@click.argument("out", type=FOLDER)
@click.option("--subjects", type=click.IntRange(1), default=8, show_default=True, help="number of limbs")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="the same seed makes the same voxels"
)
@click.option("--kind", type=click.Choice(PHANTOM_KINDS), default="bones", show_default=True, help="what is in them")
@click.option("--contrast", type=click.Choice(PHANTOM_CONTRASTS), help="how tissues look [default: the kind's own]")
@click.option("--spacing", type=float, nargs=3, metavar="X Y Z", help="voxel size in mm [default: the kind's own]")
def phantom_command(
    out: Path, subjects: int, seed: int, kind: str, contrast: str | None, spacing: tuple[float, float, float] | None
) -> None:
    """Make a dataset of synthetic limbs with known volumes in OUT (nnU-Net layout)."""
    with quiet_start():
        from tfmuscle.workflows.data import phantom

    settings = {"subjects": subjects, "seed": seed, "kind": kind, "contrast": contrast, "spacing": spacing}
    checked(phantom, out, **settings, progress=Bar())
    click.echo(f"{subjects} {kind} phantoms in {out}; closed-form volumes in {out / 'volumes.json'}")


@command(name="inspect")
@click.argument("dataset", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="print the whole fingerprint, or the series, as JSON")
def inspect_command(dataset: Path, as_json: bool) -> None:
    """Check every scan of DATASET and print its fingerprint; exit 1 when something is wrong.

    Of DICOM without a dataset.json (a folder, DICOMDIR or zip) list every series and what it is fit for; exit 1 when a
    file is damaged or nothing can be used.
    """
    with quiet_start():
        from tfmuscle.files import json_text
        from tfmuscle.planning import fingerprint_table
        from tfmuscle.workflows.data import inspect

    found = inspect(dataset, progress=None if as_json else Bar())
    if as_json:
        click.echo(json_text(found))
    elif "series" in found:
        print_table([_series_row(item) for item in found["series"]], SERIES_COLUMNS)
    else:
        click.echo(fingerprint_table(found))
    if found["problems"]:
        sys.exit(1)


def _series_row(item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the table shows of a series; its notes follow its fitness."""
    numbers = {key: "x".join(f"{value:g}" for value in item[key] or ()) for key in ("shape", "spacing")}
    fitness = "; ".join([item["fitness"], *item["notes"]])
    return {**item, **numbers, "fitness": fitness, "files": str(item["num_files"])}


@command(name="build-records")
@click.option("-i", "--input", "dataset", type=FOLDER, required=True, help="dataset folder")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="folder for the records")
@setting(DataSpec, "kind", type=click.Choice(KINDS))
@setting(DataSpec, "spacing", nargs=3, type=float, metavar="S R C")
@setting(DataSpec, "size", nargs=2, type=int, metavar="H W")
@click.option("--stack", type=int, help="slices in a stack (kind stacks) [default: 5]")
@click.option("--patch", type=int, nargs=3, metavar="D H W", help="sub-volume (kind volumes)")
@click.option("--window", type=int, help="slices in a sequence (kind sequences) [default: 3]")
@setting(
    DataSpec, "orientation", help="axis codes after preprocessing, slice axis first; 'none' for sweeps [default: SPL]"
)
@setting(DataSpec, "normalisation")
@setting(DataSpec, "resampling")
@setting(DataSpec, "resize")
@setting(DataSpec, "patches")
@setting(DataSpec, "blend")
@setting(DataSpec, "bias_field")
@setting(DataSpec, "crop_nonzero")
@setting(DataSpec, "overlap")
@setting(DataSpec, "folds")
@setting(DataSpec, "test")
@setting(DataSpec, "seed")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="recipe to follow")
@click.option(
    "--plan", "plan_path", type=FOLDER, help="plan.json to follow, for presets of nnU-Net [default: made on the way]"
)
@click.option("--prior", type=FOLDER, help="labels of an earlier network, <subject>.nii.gz, as further channels")
@setting(DataSpec, "scale", default="full")
@runner_options("processes")
def build_records_command(
    dataset: Path, out: Path, preset: str | None, scale: str, workers: int, **options: Any
) -> None:
    """Turn a dataset into TFRecords; run again to complete an interrupted build.

    Presets of nnU-Net leave the plan they followed beside the records, as plan.json, where fit reads it.
    """
    with quiet_start():
        from tfmuscle.subjects import read_dataset
        from tfmuscle.workflows.beam import pipeline_flags
        from tfmuscle.workflows.building import build_records
        from tfmuscle.workflows.data import plan_spec
        from tfmuscle.workflows.planning import keep_plan, preset_plan

    plan_path, prior = options.pop("plan_path"), options.pop("prior")
    if prior is not None:
        options["prior"] = True
    beam = beam_flags(pipeline_flags, options, workers=workers)

    index = read_dataset(dataset)
    settings = checked(sample_settings, options, preset)
    plan = checked(preset_plan, index, preset, scale=scale, path=plan_path, records=out, progress=Bar())
    spec = checked(plan_spec, index, settings, preset=preset, scale=scale, plan=plan, progress=Bar())
    window = " x ".join(map(str, spec.window))
    click.echo(f"{spec.kind} of {window} voxels at {spec.spacing or 'native'} mm, {spec.orientation}")
    result = build_records(index, out, spec, prior=prior, workers=workers, beam=beam, progress=Bar())
    keep_plan(plan, out)
    click.echo(f"{result.samples} samples in {out}" + (" (reduced)" if scale == "laptop" else ""))
    finish(result.failures)


@command(name="verify-records")
@click.option("-i", "--input", "folder", type=FOLDER, required=True, help="folder of records")
def verify_records_command(folder: Path) -> None:
    """Compare every file of a records folder with its checksum; exit 1 when a bit has changed."""
    with quiet_start():
        from tfmuscle.records import verify

    found = verify(folder, progress=Bar())
    for problem in found.problems:
        click.echo(f"Damaged: {' '.join(problem.split())}", err=True)
    click.echo(f"{found.shards} shards with {found.samples} samples ({found.bytes:,} bytes) are sound in {folder}")
    if found.problems:
        sys.exit(1)


def sample_settings(options: Mapping[str, Any], preset: str | None) -> dict[str, Any]:
    """Returns `DataSpec` fields from the options, where --stack, --patch and --window imply the kind."""
    settings = given(options)
    implied = {"stack": "stacks", "patch": "volumes", "window": "sequences"}
    used = [name for name in implied if name in settings]
    if len(used) > 1:
        raise ValueError(f"--{used[0]} and --{used[1]} exclude each other")
    for name in used:
        value = settings.pop(name)
        if settings.setdefault("kind", implied[name]) != implied[name]:
            raise ValueError(f"--{name} goes with --kind {implied[name]}, not {settings['kind']}")
        if name == "patch":
            if "size" in settings:
                raise ValueError("--patch already gives height and width; leave --size out")
            settings |= {"depth": value[0], "size": tuple(value[1:])}
        else:
            settings["depth"] = value
    kind = settings.get("kind", PRESETS[preset].data.get("kind") if preset else None)
    if not used and kind in ("stacks", "sequences") and not (preset and "depth" in PRESETS[preset].data):
        settings["depth"] = 5 if kind == "stacks" else 3
    if str(settings.get("orientation", "")).lower() == "none":
        settings["orientation"] = None
    return settings
