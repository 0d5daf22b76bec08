"""Seconds per window of the networks for sweeps, at the published size, and the total time of the full recipe.

    python benchmarks/propagation_time.py [--size 512] [--slices 1400] [--models ifss_net ...] [--rounds 2]

For every network, at full width, with windows of 3 slices and a batch of one: weights, seconds to label a window, and
seconds of a training step (Dice and cross-entropy for all, gradient and Adam included), each the smallest of
`--rounds` after one that is not counted (with 0 that one, compiling included); and the most memory the process has
held, which only grows from row to row. On a machine that others use as well, `--processor` takes seconds of the
processor (of all threads) instead of those of the clock. From these follow, by arithmetic: one sweep of `--slices`
slices, and the recipe of IFSS-Net: 29 sweeps of slices - 2 windows, 10 epochs, one network for each of three muscles.
"""

import argparse
import resource
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfmuscle import models

NETWORKS = ("ifss_net", "seg_net_fs", "unet3d", "vnet", "daf3d", "pg_net")
SWEEPS, EPOCHS, MUSCLES, WINDOW = 29, 10, 3, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=1400)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="seconds of the processor instead of the clock")
    chosen = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, {len(tf.config.list_physical_devices('GPU'))} GPU, window 3x{chosen.size}²")
    print(
        "| network | weights | s to label a window | s of a training step | most memory, GB | one sweep | full recipe |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in chosen.models:
        print(row(name, chosen), flush=True)


def row(name: str, chosen: argparse.Namespace) -> str:
    """Returns a line of the table."""
    keras.backend.clear_session()
    classes = 2 if models.carries_masks(name) else MUSCLES + 1
    window = () if name == "pg_net" else (WINDOW,)  # it sees one slice at a time, and the first
    model = models.build(name, (*window, chosen.size, chosen.size, 1), classes)
    random = np.random.default_rng(0)
    given = {
        tensor.name: tf.constant(random.random((1, *tensor.shape[1:]), dtype=np.float32)) for tensor in model.inputs
    }
    forward, step = _functions(model, classes, (*window, chosen.size, chosen.size))
    clock = time.process_time if chosen.processor else time.perf_counter
    label = fastest(lambda: forward(given), chosen.rounds, clock)
    train = fastest(lambda: step(given), chosen.rounds, clock)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # Linux: KiB
    windows = chosen.slices - len(window) * (WINDOW - 1)
    networks = MUSCLES if classes == 2 else 1
    sweep, recipe = windows * label * networks, windows * train * SWEEPS * EPOCHS * networks
    figures = f"{label:.2f} | {train:.2f} | {memory:.1f} | {sweep / 60:.0f} min | {recipe / 86400:.1f} days"
    return f"| {name} | {model.count_params():,} | {figures} |"


def _functions(model: keras.Model, classes: int, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
    optimiser = keras.optimizers.Adam(1e-4)
    optimiser.build(model.trainable_variables)
    truth = tf.one_hot(tf.random.stateless_uniform((1, *shape), (0, 1), 0, classes, tf.int32), classes)
    axes = list(range(1, len(shape) + 1))

    def probabilities(given: dict[str, tf.Tensor], training: bool) -> tf.Tensor:
        found = model(given if len(given) > 1 else next(iter(given.values())), training=training)
        return found["probabilities"] if isinstance(found, dict) else found

    @tf.function(autograph=False)
    def forward(given: dict[str, tf.Tensor]) -> tf.Tensor:
        return probabilities(given, False)

    @tf.function(autograph=False)
    def step(given: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            found = tf.cast(probabilities(given, True), tf.float32)
            both, all_ = tf.reduce_sum(found * truth, axes), tf.reduce_sum(found + truth, axes)
            entropy = -tf.reduce_mean(tf.reduce_sum(truth * tf.math.log(found + 1e-7), -1))
            loss = entropy + 1 - tf.reduce_mean(2 * both / all_)
        optimiser.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return forward, step


def fastest(work: Callable[[], tf.Tensor], rounds: int, clock: Callable[[], float]) -> float:
    """Returns the seconds of the fastest of several rounds after the first, which compiles; without any, of that."""
    seconds = []
    for _ in range(rounds + 1):
        started = clock()
        np.asarray(work())
        seconds.append(clock() - started)
    return min(seconds[1:] or seconds)


if __name__ == "__main__":
    main()
