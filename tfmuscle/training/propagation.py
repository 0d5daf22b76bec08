"""Training of networks that carry masks from slice to slice: records of whole scans in, a run folder out (IFSS-Net).

The user names records of whole scans (`kind="sequences"`, `patches="random"`) and a network that takes an image and a
mask. One scan after the other is gone through from its first drawn slices to its end, window by window; what the
network says of one window it is fed in the next, as it will be when it carries masks through a new scan. Scans have a
fixed order in which fewer and fewer slices are drawn (`annotation.py`); the loss and the steps are those of
`propagation_steps.py`, the windows those of `propagation_ways.py`.

All structures of a scan go side by side, as samples of one batch, so that a scan counts as one volume with its two
steps, whatever the number of structures; the network knows no classes. `structures` leaves some out: the paper trains
one network a muscle. With a batch size above 1 so many scans go side by side too; published is 1. Nothing is drawn by
chance but dropout, and what `slices`, `reverse` and `mirror` ask for, which follows from (seed, epoch, scan).

An epoch ends with the scans of the validation fold: each structure is carried from the slices on which it is largest,
as many in a row as a window has, to both ends of the scan, and its Dice is taken of all labelled slices but those. No
other slice is looked at. The mean over structures and scans decides which epoch is kept.

The run folder is that of `fit` (`supervised.py`) with `propagation.json`; `history.csv` has α and β of the loss too.
Memory is that of one scan in 16 bits, as its record is read, and of one window; with `parts`, up to 1 GB of scans.

With `parts` an epoch goes through short ways instead that begin with a wrong mask (`propagation_parts.py`).
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from tfmuscle import models
from tfmuscle.config import DataSpec, Propagation, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import atomic_path, write_json
from tfmuscle.inference.propagation import carrier_of
from tfmuscle.inference.runs import PROPAGATION_FILE
from tfmuscle.labels import IGNORE
from tfmuscle.propagation.carriers import Carrier, carry
from tfmuscle.records import Scan, load_spec, read_index, read_scan
from tfmuscle.training import propagation_state
from tfmuscle.training.callbacks import read_history, write_history
from tfmuscle.training.live_page import LivePage
from tfmuscle.training.optimisers import make_optimiser
from tfmuscle.training.propagation_parts import part_of
from tfmuscle.training.propagation_state import Place, load_state, save_state
from tfmuscle.training.propagation_steps import Stepper, chunks_of
from tfmuscle.training.propagation_ways import Way, fed_to, way_of, windows_of
from tfmuscle.training.schedule import best_epoch, learning_rate, should_stop
from tfmuscle.training.supervised import check_folder, check_shards, finish, prepare, split_of
from tfmuscle.training.transfer import TRANSFER_FILE, begin_with_layers

Progress = Callable[[int, int, str], None]
CLASSES = 2
"""Background and the structure that is carried."""
_KEPT_BYTES = 2**30
_SHARE = 1000
"""Steps of the progress per scan."""


def fit_propagation(
    records: str | Path,
    run: str | Path,
    config: TrainConfig,
    settings: Propagation,
    *,
    start: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Trains one network on one fold and returns the run folder.

    Args:
        records: folder made by `build-records`, of whole scans.
        run: folder to make; with `resume`, one that an interrupted run left.
        config: architecture, optimisation, fold and seed.
        settings: which slices are drawn, and how the network learns from them.
        start: run whose weights the network starts with, layer by layer, as far as names and shapes agree; for instance
            a `seg_net_fs`, which has the same encoder.
        resume: go on where the run was interrupted, if need be in the middle of a scan.
        progress: called with (thousandths of scans done, in all, note); what it raises ends the training, and the run
            can be resumed.
        say: called with what was taken from `start`.

    Raises:
        ValueError: the model does not take these records, or a setting that cannot be.
        DataError: the records are incomplete, or the run folder holds another run.
    """
    records, run = Path(records), Path(run)
    spec, index = load_spec(records), read_index(records)
    check_propagation(spec, config, settings)
    split = split_of(index, spec, config)
    check_shards(index, spec, split["train"] + split["validation"])
    check_folder(run, resume=resume)
    _claim(run / PROPAGATION_FILE, settings)
    done = prepare(run, spec, config, split, start=start, resume=resume)
    write_json(run / PROPAGATION_FILE, settings.to_dict())
    if done:
        return run
    paths = {part: [index.folder / index.path_of(subject) for subject in sorted(split[part])] for part in split}
    keras.utils.set_random_seed(config.seed)
    _Training(run, spec, config, settings, paths, progress, say or (lambda note: None)).go()
    return run


def check_propagation(spec: DataSpec, config: TrainConfig, settings: Propagation) -> None:
    """Refuses records, networks and settings that do not go together.

    Raises:
        ValueError: naming what does not fit, and what would.
    """
    models.check_spec(config.model, spec, **config.model_options)
    if not models.carries_masks(config.model):
        raise ValueError(f"model is {config.model!r}, which takes no masks; choose one that carries them: ifss_net")
    if spec.kind not in ("sequences", "slices") or spec.patches != "random":  # check_spec has looked at the kind
        wanted = "sequences" if spec.is_volumetric else "slices"
        raise ValueError(
            f"kind is {spec.kind!r} and patches {spec.patches!r}; build records of whole scans, with --kind {wanted}"
            " --patches random"
        )
    if spec.num_channels != 1:
        raise ValueError(f"{spec.num_channels} channels; masks are carried over scans of one channel")
    if config.precision == "mixed_float16":
        raise ValueError("precision is 'mixed_float16'; masks are carried in float32 or mixed_bfloat16")
    if unknown := sorted(set(settings.structures) - set(spec.label_map.structures)):
        known = ", ".join(spec.label_map.structures)
        raise ValueError(f"structures: {', '.join(unknown)} are not among those of the records, {known}")


def _claim(path: Path, settings: Propagation) -> None:
    if path.exists() and (before := Propagation.load(path)) != settings:
        old, new = before.to_dict(), settings.to_dict()
        key = next(key for key in new if old[key] != new[key])
        raise DataError(
            f"{path}: {key} was {old[key]!r} when the run began and is {new[key]!r} now; resume with the same settings,"
            " or name another folder"
        )


@dataclass(eq=False)
class _Training:
    """One run while it lasts."""

    run: Path
    spec: DataSpec
    config: TrainConfig
    settings: Propagation
    paths: dict[str, list[Path]]
    progress: Progress | None
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.model = _built(self.spec, self.config)
        optimiser = make_optimiser(self.config)
        optimiser.build(self.model.trainable_variables)
        self.stepper = Stepper(self.model, optimiser, self.spec, self.settings)
        self.carrier = carrier_of(self.model, self.spec, self.settings)
        names = self.settings.structures or self.spec.label_map.structures
        self.classes = [1 + self.spec.label_map.structures.index(name) for name in names]
        if not (self.run / "state").exists() and (self.run / TRANSFER_FILE).exists():
            self.say(begin_with_layers(self.model, self.run))
        self.place, self.fed = load_state(self.run / "state", self.stepper)
        self.history = read_history(self.run / "history.csv")[: self.place.epoch]
        self.page = LivePage(self.run, self.config, self.history, None)
        self._saved = self._noted = time.monotonic()
        self._kept: dict[int, Scan] = {}

    def go(self) -> None:
        """Trains the epochs that are left and completes the run folder."""
        started, recipe = time.monotonic(), self.config.recipe
        while self.place.epoch < self.config.epochs:
            if should_stop(self.history, recipe.patience, recipe.patience_of):
                break
            self._train_epoch()
            self._end_epoch()
        steps = self._ways_of_an_epoch
        seconds = time.monotonic() - started
        finish(self.run, self.model, self.config, self.history, seconds=seconds, steps=steps)

    def _train_epoch(self) -> None:
        self.stepper.optimiser.learning_rate = learning_rate(self.config, self.history)
        self._noted = time.monotonic()
        count, together = self._ways_of_an_epoch, self.config.batch_size
        for first in range(self.place.scan, count, together):
            numbers = range(first, min(first + together, count))
            if ways := [way for number in numbers if (way := self._way(number)) is not None]:
                self._follow(ways, len(numbers))
            self.place.scan, self.place.chunk, self.fed = numbers.stop, 0, None

    @property
    def _ways_of_an_epoch(self) -> int:
        return len(self.paths["train"]) * max(1, self.settings.parts)

    def _way(self, number: int) -> Way | None:
        rng = np.random.default_rng([self.config.seed, self.place.epoch, number])
        subject = number % len(self.paths["train"])
        known = self._scan(subject), self.spec, self.settings, self.classes
        if self.settings.parts:
            return part_of(*known, subject=subject, rng=rng)
        return way_of(*known, subject=subject, draws=rng.random(3).tolist())

    def _scan(self, subject: int) -> Scan:
        """Reads a scan of the training; with parts, which are many of each scan, it is kept while there is room."""
        if subject in self._kept:
            return self._kept[subject]
        scan = read_scan(self.paths["train"][subject], self.spec)
        held = sum(other.image.nbytes for other in self._kept.values())
        if self.settings.parts and held + scan.image.nbytes <= _KEPT_BYTES:
            self._kept[subject] = scan
        return scan

    def _follow(self, ways: list[Way], scans: int) -> None:
        """Learns from scans side by side, from the chunk that is next."""
        place, chunks = self.place, chunks_of(max(way.windows for way in ways), self.settings)
        for number in range(place.chunk, len(chunks)):
            chunk, before = chunks[number], chunks[number - 1] if number else None
            self.fed = fed_to(ways, chunk, before, self.spec, self.fed)
            windows = windows_of(ways, chunk, self.spec, self.settings)
            loss, self.fed = self.stepper.add(windows, self.fed, chunk.divisor)
            if chunk.steps:
                self.stepper.step()
            place.loss, place.windows, place.chunk = place.loss + float(loss), place.windows + chunk.count, number + 1
            if not math.isfinite(place.loss):
                raise DataError(
                    f"{self.run}: the loss is no longer a number in epoch {place.epoch + 1}; train anew with a lower"
                    " --learning-rate"
                )
            self._save_now_and_then()
            self._tell(place.scan + scans * (number + 1) / len(chunks), f"loss {place.loss / place.windows:.3f}")

    def _save_now_and_then(self) -> None:
        now = time.monotonic()
        self.place.seconds, self._noted = self.place.seconds + now - self._noted, now
        if now - self._saved >= propagation_state.SAVE_SECONDS:
            save_state(self.run / "state", self.stepper, self.place, self.fed)
            self._saved = time.monotonic()

    def _tell(self, scans: float, note: str) -> None:
        if self.progress is not None:
            of = self._ways_of_an_epoch
            done = round(_SHARE * (self.place.epoch * of + scans))
            self.progress(done, _SHARE * self.config.epochs * of, f"epoch {self.place.epoch + 1} {note}")

    def _end_epoch(self) -> None:
        """Validates, adds a row to the history, keeps the network if it is the best, and saves the state."""
        place = self.place
        if not place.windows:
            raise DataError(
                f"{self.run}: none of the structures is drawn on a scan with room for a window after it; name others"
                " with --propagation structures=..., or lower smallest"
            )
        row = {"epoch": place.epoch + 1, "seconds": 0.0, "loss": place.loss / place.windows}
        row |= self._validated() | self.stepper.weighting
        row["learning_rate"] = float(learning_rate(self.config, self.history))
        row["seconds"] = round(place.seconds + time.monotonic() - self._noted, 2)
        self.history.append(row)
        if best_epoch(self.history, self.config.recipe.selection) == len(self.history) - 1:
            with atomic_path(self.run / "best.keras") as temporary:
                self.model.save(temporary)
        write_history(self.run / "history.csv", self.history)
        self.page.on_epoch_end(place.epoch)
        self.place, self.fed = Place(epoch=place.epoch + 1), None
        save_state(self.run / "state", self.stepper, self.place, None)
        self._saved = time.monotonic()

    def _validated(self) -> dict[str, float]:
        found = []
        for path in self.paths["validation"]:
            self._tell(self._ways_of_an_epoch, f"validating {path.stem}")
            scan = read_scan(path, self.spec)
            found += carried_dice(self.carrier, scan, self.classes)
        return {"val_dice": float(np.mean(found)) if found else math.nan} if self.paths["validation"] else {}


def carried_dice(carrier: Carrier, scan: Scan, classes: Sequence[int]) -> list[float]:
    """Returns the Dice of each structure of a scan, carried to both ends from the slices on which it is largest.

    As many slices in a row are given as the carrier starts from, or one where no so many are labelled. Only labelled
    slices count, and none of those given. A structure without labelled pixels has no Dice.
    """
    found = []
    labelled = np.array([(plane != IGNORE).all() for plane in scan.labels])
    for number in classes:
        areas = labelled * [np.count_nonzero(plane == number) for plane in scan.labels]
        if areas.any():
            first, given = _largest(areas, labelled, carrier.starts)
            found.append(_dice(carrier, scan, number, slice(first, first + given)))
    return [dice for dice in found if not math.isnan(dice)]


def _largest(areas: np.ndarray, labelled: np.ndarray, starts: int) -> tuple[int, int]:
    """Returns the first of the slices a structure is carried from, and how many they are."""
    runs = np.lib.stride_tricks.sliding_window_view
    if len(areas) >= starts and (whole := runs(labelled, starts).all(axis=1)).any():
        return int((whole * runs(areas, starts).sum(axis=1)).argmax()), starts
    return int(areas.argmax()), 1


def _dice(carrier: Carrier, scan: Scan, number: int, given: slice) -> float:
    overlap = total = 0
    for part in (slice(given.start, None), slice(given.stop - 1, None, -1)):
        images, labels, skip = scan.image[part][..., 0], scan.labels[part], given.stop - given.start
        if len(labels) < carrier.window:
            continue
        drawn = (labels[:skip] == number)[..., np.newaxis].astype(np.float32)
        masks = itertools.chain.from_iterable(masks for masks, _ in carry(carrier, images, drawn))
        for mask, truth in itertools.islice(zip(masks, labels, strict=True), skip, None):
            known, said = truth != IGNORE, mask[..., 0] > 0.5
            overlap += 2 * np.count_nonzero(said & (truth == number))
            total += np.count_nonzero(said & known) + np.count_nonzero(truth == number)
    return overlap / total if total else math.nan


def _built(spec: DataSpec, config: TrainConfig) -> keras.Model:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
    try:
        return models.build(config.model, spec.input_shape, CLASSES, **config.model_options)
    finally:
        keras.config.set_dtype_policy(before)
