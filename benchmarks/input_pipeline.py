"""Does a training step wait for data? Measures the input pipeline, the network, and both together, as Markdown.

    python benchmarks/input_pipeline.py [--data HIPPOCAMPUS] [--seconds 2] [--scale laptop]

Three subjects of synthetic bones (and the real ones of `--data`) become records as `build-records --preset` makes them;
batches come from `training_batches`, as in `fit`, and are read from the disk's cache. Every figure is measured in a
process of its own that may use a given number of cores. The network repeats one batch (*alone*), then steps through the
pipeline (*together*); *waiting* is the share of the time together that passes in `next`. On a CPU both share the cores,
so that together is slower than alone even when nothing waits: that is the *slow-down*. The CPU time of an example
hardly depends on what else runs; 1000 x cores / CPU ms is what a machine can feed to a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CORES = len(os.sched_getaffinity(0))
PRESETS = ("demo", "slices", "stacks", "volumes", "hippocampus")
RECIPES = ("none", "light", "full", "nnunet", "mehrabi", "ni", "cheena", "positional")
LARGE = "slices of 256 x 256"
COMPARED = (LARGE, "volumes")
"""Records whose pipeline is measured with every recipe, and on one core."""
STEPS_AT_LEAST = 2
"""Steps together, however long they take: a step of a 3D network takes many seconds without a GPU."""


def main() -> None:
    """Builds the records, measures in child processes, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="dataset for the preset hippocampus; the phantoms without")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--scale", default="laptop", choices=("laptop", "full"), help="of samples and networks")
    parser.add_argument("--work", type=Path, help="folder of the records; kept, and used again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        print(f"measuring on {CORES} core(s), load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        ask(task="records", work=str(work), data=str(options.data or ""), scale=options.scale, cores=CORES)
        report(work, options)


def ask(*, cores: int, **task) -> dict:
    """Runs one measurement in a process that sees `cores` cores."""
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )  # fmt: skip
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def report(work: Path, options: argparse.Namespace) -> None:
    """Prints the two tables."""
    common = {"work": str(work), "seconds": options.seconds, "scale": options.scale}
    training = [ask(task="training", preset=preset, cores=CORES, **common) for preset in PRESETS]
    rates = {cores: ask(task="recipes", names=COMPARED, recipes=RECIPES, cores=cores, **common) for cores in {1, CORES}}
    print(
        f"Scale {options.scale}, {CORES} cores, load at the end {os.getloadavg()[0]:.1f}, {options.seconds:g} s each.\n"
    )
    heads = ["preset", "sample", "batch", "augmentation", "pipeline alone, examples/s", "CPU ms an example"]
    heads += ["network alone, examples/s", "pipeline / network", "together, examples/s", "slow-down", "waiting"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in training:
        pipeline, alone, together = row["pipeline"], row["network"], row["together"]
        told = f"| {row['preset']} | {row['shape']} | {row['batch']} | {row['recipe']} | {pipeline:.0f}"
        told += (
            f" | {row['used']:.1f} | {alone:.1f} | {pipeline / alone:.0f} x | {together:.1f} | {alone / together:.2f} x"
        )
        print(f"{told} | {row['waiting']:.1%} |")
    print("\nReading and augmentation alone, by recipe: examples/s (CPU ms an example):\n")
    columns = [(name, cores) for name in COMPARED for cores in sorted(rates)]
    print("| recipe | " + " | ".join(f"{name}, {cores} core(s)" for name, cores in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for recipe in RECIPES:
        cells = [rates[cores][name][recipe] for name, cores in columns]
        print(f"| {recipe} | " + " | ".join(f"{rate:.0f} ({used:.1f})" for rate, used in cells) + " |")


def measure(*, task: str, **options) -> dict:
    """Does one task, inside a child process."""
    tasks: dict[str, Callable[..., dict]] = {"records": build, "training": train, "recipes": compare}
    return tasks[task](**options)


def build(*, work: str, data: str, scale: str) -> dict:
    """Makes the records of every preset, and of large slices."""
    from tfmuscle.subjects import read_dataset
    from tfmuscle.workflows.building import build_records
    from tfmuscle.workflows.data import phantom, plan_spec

    made = phantom(Path(work) / "scans", subjects=3, seed=1)
    for preset in PRESETS:
        source = Path(data) if data and preset == "hippocampus" else made
        settings = {} if source != made else {"folds": 3, "test": 0}
        spec = plan_spec(read_dataset(source), settings, preset=preset, scale=scale)
        build_records(source, Path(work) / preset, spec, workers=CORES)
    spec = plan_spec(read_dataset(made), {"folds": 3, "test": 0, "size": (256, 256)}, preset="slices", scale=scale)
    build_records(made, Path(work) / LARGE, spec, workers=CORES)
    return {}


def batches_of(work: str, name: str, recipe: str | None, scale: str):
    """Returns the settings, the spec and the batches of some records, as `fit` makes them."""
    from tfmuscle.records import load_spec, read_index
    from tfmuscle.training.batches import epoch_steps, training_batches
    from tfmuscle.workflows.learning import plan_training

    folder, chosen = Path(work) / name, {"augmentation": recipe} if recipe else {}
    index, spec = read_index(folder), load_spec(folder)
    config = plan_training({"epochs": 10_000}, recipe=chosen, preset=spec.preset, scale=scale)
    folds = range(1, spec.folds)
    num_samples = sum(entry["samples"] for entry in index.usable.values() if entry["fold"] in folds)
    return config, spec, training_batches(index.paths(folds), spec, config, steps=epoch_steps(num_samples, config))


def rate_of(batches, seconds: float) -> tuple[float, float]:
    """Returns examples/s of the pipeline alone, after what was ready at the start is used up, and CPU ms an example."""
    iterator = iter(batches)
    for _ in range(8):
        next(iterator)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        count += len(next(iterator)[0])
    return count / (time.perf_counter() - start), 1000 * (time.process_time() - used) / count


def train(*, work: str, preset: str, seconds: float, scale: str) -> dict:
    """Measures the pipeline, the network, and both together."""
    import keras

    from tfmuscle import models
    from tfmuscle.losses import get_loss
    from tfmuscle.training.batches import BATCHES_AHEAD

    config, spec, batches = batches_of(work, preset, None, scale)
    pipeline, used = rate_of(batches, seconds)
    model = models.build(config.model, spec.input_shape, spec.num_classes, **config.model_options)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=get_loss(config.recipe.loss))
    iterator = iter(batches)
    batch = next(iterator)
    model.train_on_batch(*batch)  # traces
    steps, start = 0, time.perf_counter()
    while not steps or time.perf_counter() - start < 2 * seconds:
        model.train_on_batch(*batch)
        steps += 1
    alone = (time.perf_counter() - start) / steps
    for _ in range(BATCHES_AHEAD):  # made while the network was alone
        next(iterator)
    waited, steps, start = 0.0, 0, time.perf_counter()
    while steps < STEPS_AT_LEAST or time.perf_counter() - start < 2 * seconds:
        asked = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - asked
        model.train_on_batch(*batch)
        steps += 1
    together = time.perf_counter() - start
    return {
        "preset": preset, "shape": " x ".join(map(str, spec.input_shape)), "batch": config.batch_size,
        "recipe": config.recipe.augmentation, "pipeline": pipeline, "used": used, "network": config.batch_size / alone,
        "together": steps * config.batch_size / together, "waiting": waited / together,
    }  # fmt: skip


def compare(*, work: str, names: list[str], recipes: list[str], seconds: float, scale: str) -> dict:
    """Measures the pipeline alone with each recipe."""
    return {
        name: {recipe: rate_of(batches_of(work, name, recipe, scale)[2], seconds) for recipe in recipes}
        for name in names
    }


if __name__ == "__main__":
    main()
