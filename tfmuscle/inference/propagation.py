"""Networks that carry masks from slice to slice, as carriers (`propagation.Carrier`).

`fit` leaves a run folder as for every network, and `propagation.json` beside it: how it learned. Such a network takes
two windows, images and masks, and knows nothing of classes: each structure is a sample of its own, so that any
structure can be carried, also one it never saw.

Images have the scan's own grid, as in training. `prepare` scales the intensities of the whole scan, before it is taken
apart; every window is then brought to the size the network was trained with: cut in the middle where the scan is
larger, filled up with the window's lowest intensity (and masks with 0) where it is smaller. Masks are 0 outside of what
was cut.

Networks that learned one structure each (the paper's way) carry theirs side by side: `carrier_of_several`.

A network trained with `feedback="expert"` is fed the drawn slices a way began with, at every window.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfmuscle import models
from tfmuscle.config import DataSpec, Propagation, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.inference.runs import CONFIG_FILE, DONE_FILE, PROPAGATION_FILE, SPEC_FILE, WEIGHTS_FILE
from tfmuscle.preprocessing import preprocess
from tfmuscle.propagation.carriers import Carrier, Step, carry
from tfmuscle.volume import Volume

Forward = Callable[..., np.ndarray]
"""From images and masks, and those a way begins with, `(S, w, H, W, 1)` each, to foreground `(S, w, H, W, 1)`."""
WINDOW_BUDGET_VOXELS = 2**20
"""Voxels sent through a network at once: one structure in a window of 3 x 512 x 512, more in smaller ones."""


@dataclass(frozen=True, eq=False)
class PropagationRun:
    """A trained network that carries masks, with the settings it was trained under.

    Attributes:
        model: network with the inputs `image` and `mask`, and the output `probabilities` of two classes.
        spec: how scans were prepared.
        config: how the network was trained.
        settings: what it learned from.
        path: the run folder, for messages.
        warning: what the user should know before trusting the result; empty when all is well.
    """

    model: keras.Model
    spec: DataSpec
    config: TrainConfig
    settings: Propagation
    path: Path
    warning: str = ""


def load_propagation(run: str | Path) -> PropagationRun:
    """Opens the run folder of a network that carries masks.

    Raises:
        DataError: no such folder, a run of another kind, or no weights yet.
    """
    path = Path(run)
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder; give the run folder that 'tfmuscle fit -o' wrote")
    if not (path / PROPAGATION_FILE).is_file():
        raise DataError(
            f"{path}: holds no network that carries masks ({PROPAGATION_FILE} is missing); train one with 'tfmuscle fit"
            " --preset ifss_net', or label whole scans with 'tfmuscle predict'"
        )
    if not (path / WEIGHTS_FILE).is_file():
        raise DataError(
            f"{path}: {WEIGHTS_FILE} is missing, no epoch has ended yet; continue with 'tfmuscle fit --resume'"
        )
    unfinished = f"{path}: training has not finished; the best weights so far are used, 'tfmuscle fit --resume' goes on"
    return PropagationRun(
        models.load(path / WEIGHTS_FILE),
        DataSpec.load(path / SPEC_FILE),
        TrainConfig.load(path / CONFIG_FILE),
        Propagation.load(path / PROPAGATION_FILE),
        path,
        "" if (path / DONE_FILE).is_file() else unfinished,
    )


def network_carrier(run: PropagationRun) -> Carrier:
    """Returns the carrier of a trained network; images are to come from `prepare`."""
    return carrier_of(run.model, run.spec, run.settings)


def carrier_of_several(runs: Sequence[PropagationRun], names: Sequence[str]) -> Carrier:
    """Returns a carrier in which each structure has the first network that learned it; a single one carries all.

    Args:
        runs: trained on records of one kind.
        names: of the structures, in the order of their masks.

    Raises:
        DataError: none of several networks learned a structure, or their records differ.
    """
    if len(runs) == 1:
        return network_carrier(runs[0])
    specs = [dataclasses.replace(run.spec, label_map=runs[0].spec.label_map) for run in runs]
    if other := next((run for run, spec in zip(runs, specs, strict=True) if spec != specs[0]), None):
        raise DataError(f"{other.path}: trained on other records than {runs[0].path}; train all on the same ones")
    learned = [set(run.settings.structures or run.spec.label_map.structures) for run in runs]
    owners = [next((number for number, known in enumerate(learned) if name in known), None) for name in names]
    if None in owners:
        known = ", ".join(sorted(set().union(*learned)))
        raise DataError(
            f"none of the networks learned {names[owners.index(None)]}, only {known};"
            " give one that did, or a single network, which carries anything"
        )
    parts = [(network_carrier(run), np.flatnonzero(np.array(owners) == number)) for number, run in enumerate(runs)]
    parts = [(carrier, own) for carrier, own in parts if len(own)]

    def begin(images: np.ndarray, masks: np.ndarray) -> Step:
        steps = [(carrier.begin(images, masks[..., own]), own) for carrier, own in parts]

        def step(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
            found = np.empty_like(masks)
            for one, own in steps:
                found[..., own] = one(images, masks[..., own])
            return found

        return step

    return Carrier(window=specs[0].depth, starts=specs[0].depth, begin=begin)


def carrier_of(model: keras.Model, spec: DataSpec, settings: Propagation) -> Carrier:
    """Returns the carrier of a network that may still be in training."""
    forward = _forward(model, spec)

    def begin(images: np.ndarray, masks: np.ndarray) -> Step:
        fixed = settings.feedback == "expert"
        return functools.partial(_step, forward, spec.size, _inputs(images, masks, spec.size), fixed)

    return Carrier(window=spec.depth, starts=spec.depth, begin=begin)


def answer(model: keras.Model, windows: Sequence[tf.Tensor], *, training: bool) -> tf.Tensor:
    """Returns what a network says, `(S, w, H, W, 2)` float32.

    Args:
        model: takes `image` and `mask`, and maybe the images and masks that a way begins with; in windows, or as single
            slices.
        windows: images, masks, and images and masks that the way begins with, `(S, w, H, W, 1)` each.
        training: whether features are dropped.
    """
    names, known = ("image", "mask", "reference_image", "reference_mask"), {x.name for x in model.inputs}
    given = {name: tf.convert_to_tensor(window) for name, window in zip(names, windows, strict=True) if name in known}
    if single := len(model.output_shape) == 4:
        given = {name: window[:, 0] for name, window in given.items()}
    found = tf.cast(model(given, training=training), tf.float32)
    return found[:, tf.newaxis] if single else found


def _forward(model: keras.Model, spec: DataSpec) -> Forward:
    shape = tf.TensorSpec((None, spec.depth, *spec.size, 1), tf.float32)

    @tf.function(input_signature=[shape] * 4, autograph=False)
    def forward(*windows: tf.Tensor) -> tf.Tensor:
        return answer(model, windows, training=False)[..., 1:]

    at_once = max(1, WINDOW_BUDGET_VOXELS // (spec.depth * spec.size[0] * spec.size[1]))

    def few_at_once(*windows: np.ndarray) -> np.ndarray:
        parts = range(0, len(windows[0]), at_once)
        return np.concatenate([forward(*(tf.constant(w[n : n + at_once]) for w in windows)).numpy() for n in parts])

    return few_at_once


def _inputs(images: np.ndarray, masks: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Brings images `(w, H, W)` and masks `(w, H, W, S)` to size and in the order of samples."""
    fed = framed(np.moveaxis(masks, 3, 0), size, 0.0)[..., np.newaxis]
    seen = framed(images, size, images.min())[..., np.newaxis]
    return np.broadcast_to(seen, fed.shape), fed


def _step(
    forward: Forward,
    size: tuple[int, int],
    reference: tuple[np.ndarray, np.ndarray],
    fixed: bool,
    images: np.ndarray,
    masks: np.ndarray,
) -> np.ndarray:
    """Carries `(w, H, W, S)` masks over images `(w, H, W)`."""
    seen, fed = _inputs(images, masks, size)
    found = forward(seen, reference[1] if fixed else fed, *reference)[..., 0]
    return np.moveaxis(framed(found, images.shape[1:], 0.0), 0, 3)


def prepare(run: PropagationRun, scan: Volume) -> Volume:
    """Returns a scan `(N, H, W)` float32 as the network is to see it: slices first, intensities scaled, own grid.

    Args:
        run: says orientation and normalisation.
        scan: `(I, J, K)` or `(I, J, K, 1)`.

    Raises:
        DataError: a scan of several channels.
    """
    prepared, _ = preprocess(scan, None, run.spec)
    return prepared.with_array(prepared.array[..., 0])


def framed(array: np.ndarray, size: tuple[int, ...], fill: float) -> np.ndarray:
    """Cuts or fills the last two axes to `size`, about the middle; undoes itself where nothing was cut.

    >>> framed(np.array([[1, 2, 3]]), (1, 1), 0), framed(np.array([[1]]), (1, 4), 0)
    (array([[2]]), array([[0, 1, 0, 0]]))
    """
    for axis, wanted in zip((-2, -1), size, strict=True):
        length = array.shape[axis]
        if length > wanted:
            first = (length - wanted) // 2
            array = array.take(range(first, first + wanted), axis=axis)
        elif length < wanted:
            before = (wanted - length) // 2
            margin = [(0, 0)] * array.ndim
            margin[axis] = (before, wanted - length - before)
            array = np.pad(array, margin, constant_values=fill)
    return array


def carry_refreshed(
    carrier: Carrier, images: np.ndarray, truth: np.ndarray, *, refresh_every: int | None = None
) -> Iterator[np.ndarray]:
    """Carries the first slices of a scan to its end; yields `(k, H, W, S)` masks, slice after slice.

    With `refresh_every` the true masks of a whole window are put in every so many windows, as the authors' evaluation
    does. That is no propagation from three drawn slices, and its figures say so only if the number stands beside them.

    Args:
        carrier: what carries.
        images: `(N, H, W)`.
        truth: `(N, H, W, S)` masks; without `refresh_every` only the first `carrier.starts` slices are read.
        refresh_every: windows after which the truth is put in; None never does so.

    Raises:
        ValueError: a refresh at every window, which would be the truth itself.
    """
    if refresh_every is not None and refresh_every < 2:
        raise ValueError(
            f"refresh_every is {refresh_every}: every window would be given the truth; use 2 or more, or none"
        )
    count, window = len(images), carrier.window
    every = count if refresh_every is None else refresh_every
    for first in range(0, count, every):
        place = max(0, min(first, count - window))  # a short end is carried from a little before
        drawn = truth[place : place + carrier.starts].astype(np.float32)
        for masks, _ in carry(carrier, images[place : first + every + window - 1], drawn):
            wanted = masks[max(0, first - place) : max(0, first + every - place)]
            place += len(masks)
            if len(wanted):
                yield wanted
