"""The ablations of IFSS-Net, trained one after the other on one muscle, for `propagation.py --carry`.

    python benchmarks/propagation_ablations.py DATASET -o OUT [--only temporal_bi ...] [--muscle soleus]
        [--scale laptop] [--epochs N] [--size 96 96] [--test 4] [--folds 4] [--seed 0] [--propagation NAME=VALUE ...]
        [--from RUN] [--learning-rate R]

builds the records, trains what is not trained yet (Ctrl-C, and run again, to go on), and prints the words that
`propagation.py` takes to measure all runs that have weights. Names are those of the published figures, which
`sweep-tables` puts beside ours: `temporal_bi` is the recipe as it is, and every other run differs from it in one thing.
At laptop scale the recipe itself has α = β = 1/2, which is the Dice loss of the paper's ablation: there `dice_loss`
would be `temporal_bi` once more and is left out, and `tversky` is what differs.
"""

import argparse
from pathlib import Path

from propagation import call  # the script beside this one

from tfmuscle.errors import DataError

ABLATIONS: dict[str, tuple[str, ...]] = {
    "temporal_bi": (),
    "temporal_uni": ("--option", "temporal=uni"),
    "temporal_none": ("--option", "temporal=none"),
    "no_recurrence": ("--propagation", "feedback=expert"),
    "window_10": (),  # other records
    "dice_loss": ("--option", "tversky=fixed"),  # α = β = ½: Dice with linear denominators
    "tversky": ("--option", "tversky=learned"),
    "fixed_3.5": ("--propagation", "supervision=fixed", "--propagation", "every=100"),
    "fixed_2": ("--propagation", "supervision=fixed", "--propagation", "every=200"),
    "fixed_1": ("--propagation", "supervision=fixed", "--propagation", "every=300"),
}
"""Name -> what differs from the recipe. The fixed regimes have three slices drawn in every 100, 200 and 300."""
WINDOWS = {"window_10": 10}
WINDOW = 3


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--muscle", default="soleus")
    parser.add_argument("--scale", choices=("full", "laptop"), default="laptop")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 96), metavar=("H", "W"))
    parser.add_argument("--test", type=int, default=4, help="subjects held out [4]")
    parser.add_argument("--folds", type=int, default=4, help="the others, of which one fold validates [4]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--propagation", nargs="*", default=[], metavar="NAME=VALUE", help="settings of all runs")
    parser.add_argument("--from", dest="start", type=Path, help="run that all start from, e.g. a seg_net_fs")
    parser.add_argument("--learning-rate", type=float)
    options = parser.parse_args(arguments)
    same = "dice_loss" if options.scale == "laptop" else "tversky"
    try:
        for name in options.only:
            if name != same:
                train(name, options)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    runs = [f"{name}={options.output / name}" for name in ABLATIONS if (options.output / name / "best.keras").exists()]
    print(f"--structures {options.muscle} --methods --carry {' '.join(runs)}")


def train(name: str, options: argparse.Namespace) -> None:
    """Trains one variation, or goes on with it."""
    window = WINDOWS.get(name, WINDOW)
    records, run = options.output / f"records_{window}", options.output / name
    if not (records / "index.json").exists():
        build = ["--kind", "sequences", "--patches", "random", "--orientation", "none", "--window", str(window)]
        split = ["--test", str(options.test), "--folds", str(options.folds), "--seed", str(options.seed)]
        size = ["--size", *map(str, options.size)]
        call(["build-records", "-i", str(options.dataset), "-o", str(records), *build, *size, *split])
    if (run / "about.json").exists():
        return
    words = ["fit", "-i", str(records), "-o", str(run), "--preset", "ifss_net", "--scale", options.scale]
    words += ["--seed", str(options.seed), "--propagation", f'structures=["{options.muscle}"]', *ABLATIONS[name]]
    words += [word for setting in options.propagation for word in ("--propagation", setting)]
    words += ["--epochs", str(options.epochs)] if options.epochs else []
    words += ["--learning-rate", str(options.learning_rate)] if options.learning_rate else []
    words += ["--model", "ifss_net", "--from", str(options.start)] if options.start else []
    if window > WINDOW and options.scale == "laptop":  # as many windows a part
        words += ["--propagation", f"slices={window + 1}"]
    call([*words, *(["--resume"] if (run / "train.json").exists() else [])])


if __name__ == "__main__":
    main()
