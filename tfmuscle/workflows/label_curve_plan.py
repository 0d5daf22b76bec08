"""What a label curve is about, decided before anything is trained: subjects, sizes, samples and settings.

Scans become samples as they did for the encoder, unless the user says otherwise; the encoder's architecture is that of
both arms, for another would not take its weights. What was decided is written into the output folder and may not change
between calls, but for more sizes and seeds; another version of a preset does not change the networks that are left.

Who is in test and pool is known twice: from the dataset, which decides who is held out, and from the records, without
the subjects whose files turned out to be unusable. A dataset whose files changed in between (`building.origin`: names,
sizes and times) is refused, since old and new networks would have learned from different scans.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmuscle.config import DataSpec, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.evaluation.label_curve import ARMS
from tfmuscle.files import TEMPORARY_PREFIX, read_json, write_json
from tfmuscle.folds import TEST, assign_folds, person_of, persons_in_order
from tfmuscle.inference.runs import DONE_FILE, PRETRAINING_FILE, SPEC_FILE
from tfmuscle.presets import get_preset
from tfmuscle.records import read_index
from tfmuscle.subjects import Dataset, read_dataset
from tfmuscle.training import identify
from tfmuscle.training.transfer import differences
from tfmuscle.workflows.building import origin
from tfmuscle.workflows.data import plan_spec
from tfmuscle.workflows.fold_jobs import RESULT_FILE, check_models
from tfmuscle.workflows.learning import plan_training
from tfmuscle.workflows.pretraining import PRESET
from tfmuscle.workflows.processes import run_apart
from tfmuscle.workflows.variants import sort_settings

SIZES = (1, 2, 5, 10, 20, 30, 40)
"""Numbers of labelled subjects when nobody says which; those the pool is too small for are left out."""
SEEDS = 3
TEST_SHARE = 0.2
"""Share of the persons held out when nobody says how many."""
ABOUT_FILE = "about.json"
MADE_BY = "tfmuscle label-curve"
_NOT_OF_THE_ENCODER = ("label_map", "name", "channels", "folds", "test", "seed", "preset", "scale")
"""Fields of a `DataSpec` that the encoder's samples do not decide."""
_GIVEN_OTHERWISE = {
    "seed": "--seeds",
    "subjects": "-n (--subjects)",
    "test": "--test",
    "preset": "--preset",
    "scale": "--scale",
}
_NAMES_SHOWN = 5
_FOLDER = re.compile(rf"seed_(\d+)/({'|'.join(ARMS)})_(\d+)")
"""Of a network: seed, arm, and number of labelled persons."""


@dataclass(frozen=True)
class CurveOptions:
    """What is asked for.

    Attributes:
        sizes: numbers of labelled persons; none for those of `SIZES` that the pool allows.
        seeds: number of seeds, 0 and on.
        test: persons held out, a count or a share below 1; None for `TEST_SHARE`.
        preset: a recipe with pre-training.
        scale: "laptop" cuts it down.
        settings: fields of `DataSpec`, `TrainConfig` and `Supervised` that go before encoder and preset.
    """

    sizes: tuple[int, ...] = ()
    seeds: int = SEEDS
    test: float | None = None
    preset: str = PRESET
    scale: str = "full"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveJob:
    """Everything decided; `config` is the training of both arms but for its seed and number of subjects."""

    dataset: Dataset
    encoder: Path
    out: Path
    options: CurveOptions
    spec: DataSpec
    config: TrainConfig
    test: tuple[str, ...]
    pool: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def records(self) -> Path:
        """Returns the folder of the samples."""
        return self.out / "records"

    @property
    def networks(self) -> list["Network"]:
        """Returns all networks, seed by seed, fewest subjects first."""
        seeds = range(self.options.seeds)
        return [Network(self.out, arm, size, seed) for seed in seeds for size in self.sizes for arm in ARMS]


@dataclass(frozen=True)
class Network:
    """One network: its arm of `ARMS`, number of labelled persons, and seed."""

    out: Path
    arm: str
    size: int
    seed: int

    @property
    def folder(self) -> Path:
        """Returns the folder of run, predictions, report and result."""
        return self.out / f"seed_{self.seed}" / f"{self.arm}_{self.size:03d}"

    @property
    def name(self) -> str:
        """Returns what messages call it."""
        return f"{self.arm}, {self.size} labelled, seed {self.seed}"

    @property
    def is_done(self) -> bool:
        """Whether it is trained, and tested on everybody; a damaged result is, for it is reported and kept."""
        path = self.folder / RESULT_FILE
        try:
            return path.exists() and not read_json(path).get("failures")
        except DataError:
            return True


def decide(source: Path, out: Path, encoder: Path, options: CurveOptions) -> CurveJob:
    """Checks what is asked for, and notes it in the folder, or reads what an earlier call decided."""
    weights = _check_encoder(encoder)
    dataset = read_dataset(source)
    labelled = tuple(subject for subject in dataset.subjects if subject.labels is not None and subject.labels.exists())
    if not labelled:
        raise DataError(f"{dataset.root}: no subject has labels; networks are trained and tested on labelled scans")
    dataset = dataclasses.replace(dataset, subjects=labelled)  # a layout may give every scan a path of labels
    spec, config = _plan(dataset, encoder, options)
    _check_architecture(encoder, config)
    test, pool = _parts(dataset, spec)
    job = CurveJob(dataset, encoder, out, options, spec, config, test, pool, _sizes(options, pool, test))
    seen = _seen_of_the_test(job)
    if seen and _name_of_scans(encoder) == dataset.name:
        leave_out = " ".join(f"--leave-out {key}" for key in seen)
        raise DataError(
            f"{encoder}: learned from {', '.join(seen)}, whom the test needs; pre-train again with {leave_out}"
        )
    return _claim(job, weights)


def _parts(dataset: Dataset, spec: DataSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the subjects of test and pool."""
    labelled = [subject.subject_id for subject in dataset.subjects]
    try:
        split = assign_folds(labelled, folds=1, test=spec.test, seed=spec.seed)
    except DataError:
        raise ValueError(
            f"test is {spec.test:g}; there are {len(persons_in_order(labelled))} labelled persons, of whom one at least"
            " must be left to train on; hold out fewer (--test), or label more"
        ) from None
    test = tuple(key for key, fold in sorted(split.items()) if fold == TEST)
    return test, tuple(key for key, fold in sorted(split.items()) if fold != TEST)


def _check_encoder(encoder: Path) -> str:
    """Returns the checksum of an encoder that is complete."""
    weights = identify(encoder)["weights"]
    if not (encoder / PRETRAINING_FILE).exists():
        raise DataError(f"{encoder}: holds no encoder; give a run folder that 'tfmuscle pretrain' made")
    if not (encoder / DONE_FILE).exists():
        raise DataError(f"{encoder}: pre-training has not finished; end it with 'tfmuscle pretrain ... --resume'")
    return weights


def _learned_from(encoder: Path) -> list[str]:
    """Returns the subjects whose scans an encoder has seen."""
    split = read_json(encoder / "split.json")
    return sorted(key for part in ("train", "validation") for key in split.get(part, []))


def _name_of_scans(encoder: Path) -> str:
    """Returns the dataset that an encoder learned from."""
    return DataSpec.load(encoder / SPEC_FILE).name


def _seen_of_the_test(job: CurveJob) -> list[str]:
    """Returns the subjects the encoder learned from that are called like persons of the test."""
    tested = set(map(person_of, job.test))
    return [key for key in _learned_from(job.encoder) if person_of(key) in tested]


def _check_architecture(encoder: Path, config: TrainConfig) -> None:
    """Refuses a network that is not built like the encoder's: it would take few of its weights or none."""
    known, wanted = (_architecture(item) for item in (TrainConfig.load(encoder / "train.json"), config))
    for name in [*known, *wanted]:
        if known.get(name) != wanted.get(name):
            raise ValueError(
                f"{name} is {wanted.get(name, 'not set')!r}, and {known.get(name, 'not set')!r} in the encoder; leave"
                " it out, or pre-train an encoder with it"
            )


def _architecture(config: TrainConfig) -> dict[str, Any]:
    """Returns model and options as JSON has them."""
    options = json.loads(json.dumps(dict(config.model_options)))
    return {"model": config.model} | {f"model_options.{name}": value for name, value in options.items()}


def _plan(dataset: Dataset, encoder: Path, options: CurveOptions) -> tuple[DataSpec, TrainConfig]:
    """Returns how scans become samples and how networks are trained: the user, then the encoder, then the preset."""
    test = TEST_SHARE if options.test is None else options.test
    if not 0 < test < math.inf or (test > 1 and test != int(test)):
        raise ValueError(f"test is {test!r}; a number of persons, or a share below 1, is needed")
    if options.seeds < 1:
        raise ValueError(f"seeds is {options.seeds}; at least one is needed")
    if not get_preset(options.preset).pretraining:
        raise ValueError(f"preset {options.preset} has no pre-training; {PRESET} has")
    for name in sorted(set(_GIVEN_OTHERWISE) & set(options.settings)):
        raise ValueError(f"{name} is no setting here; {_GIVEN_OTHERWISE[name]} decides it")
    data, training, recipe = sort_settings(options.settings)
    known = DataSpec.load(encoder / SPEC_FILE)
    if len(known.channels) != len(dataset.channels):
        raise DataError(
            f"{encoder}: learned from scans with {len(known.channels)} channel(s), {dataset.root} has"
            f" {len(dataset.channels)}; pre-train on scans like those"
        )
    like = {item.name: getattr(known, item.name) for item in dataclasses.fields(DataSpec)}
    like = {name: value for name, value in like.items() if name not in _NOT_OF_THE_ENCODER}
    settings = like | data | {"folds": 1, "test": float(test), "seed": 0}
    preset, scale = options.preset, options.scale
    spec = plan_spec(dataset, settings, preset=preset, scale=scale)
    return spec, plan_training(training, recipe=recipe, preset=preset, scale=scale, start=encoder)


def _sizes(options: CurveOptions, pool: Sequence[str], test: Sequence[str]) -> tuple[int, ...]:
    persons = len(persons_in_order(pool))
    for size in options.sizes:
        if not 1 <= size <= persons:
            held_out = len(persons_in_order(test))
            raise ValueError(
                f"subjects is {size}; the pool has {persons} persons, and {held_out} are held out; give 1 to {persons}"
                " (-n)"
            )
    return tuple(sorted(set(options.sizes or [size for size in SIZES if size <= persons])))


def _claim(job: CurveJob, weights: str) -> CurveJob:
    """Notes what the folder is for, or checks that it is for this and takes what was decided then."""
    asked = json.loads(json.dumps(dict(job.options.settings)))
    about: dict[str, Any] = {"made_by": MADE_BY, "dataset": job.dataset.name, "encoder": weights}
    about |= {"preset": job.options.preset, "scale": job.options.scale, "settings": asked}
    about |= {"test": list(job.test), "pool": list(job.pool), "files": _files(job.dataset)}
    path = job.out / ABOUT_FILE
    if job.out.exists() and not job.out.is_dir():
        raise DataError(f"{job.out}: is a file; name a folder")
    names = [item.name for item in job.out.iterdir()] if job.out.is_dir() else []
    if not path.exists() and any(not name.startswith(TEMPORARY_PREFIX) for name in names):
        raise DataError(f"{job.out}: is not empty and holds no label curve; name another folder")
    before = read_json(path) if path.exists() else {}
    if not before:
        run_apart(check_models, [(job.options.preset, job.spec, job.config)])
    else:
        _check_unchanged(path, before, about)
    decided = {"spec": job.spec.to_dict(), "config": job.config.to_dict()}
    content = decided | before | about
    if content != before:
        write_json(path, content)
    try:
        spec, config = DataSpec.from_dict(content["spec"]), TrainConfig.from_dict(content["config"])
        test, pool = (content.get(f"usable_{part}") or content[part] for part in ("test", "pool"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}; restore it, or name another folder") from error
    return _narrowed(dataclasses.replace(job, spec=spec, config=config), test, pool)


def _files(dataset: Dataset) -> dict[str, Any]:
    """Returns subject -> name, size and time of its files."""
    return {subject.subject_id: origin(subject)["made_from"] for subject in dataset.subjects}


def _check_unchanged(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with other settings or other subjects than those the folder was begun with."""
    for key, value in now.items():
        if key == "files":
            known = before[key] if isinstance(before.get(key), dict) else value  # an earlier version does not say
            changed = [subject for subject, files in value.items() if known.get(subject) != files]
            if changed:
                raise DataError(
                    f"{path}: files of {len(changed)} subjects have changed since the curve was begun, e.g. those of"
                    f" {changed[0]}; name another folder, and all networks learn from the same scans"
                )
        elif before.get(key) != value and key in ("test", "pool"):
            raise DataError(
                f"{path}: the {key} had other subjects than now; restore the dataset, or name another folder"
            )
        elif before.get(key) != value:
            raise DataError(f"{path}: {key} was {before.get(key)!r} and is {value!r} now; name another folder")


def _narrowed(job: CurveJob, test: Sequence[str], pool: Sequence[str]) -> CurveJob:
    sizes = _sizes(job.options, pool, test)
    return dataclasses.replace(job, test=tuple(test), pool=tuple(pool), sizes=sizes)


def settle(job: CurveJob) -> CurveJob:
    """Takes test and pool from the records, where subjects that could not be used are in neither, and notes them.

    Raises:
        ValueError: more labelled subjects are asked for than the pool has.
        DataError: nobody is left in the test or in the pool.
    """
    index, path = read_index(job.records), job.out / ABOUT_FILE
    test = sorted(key for key, fold in index.folds.items() if fold == TEST)
    pool = sorted(key for key, fold in index.folds.items() if fold != TEST and index.samples_of(key))
    for part, subjects in (("test", test), ("pool", pool)):
        if not subjects:
            raise DataError(
                f"{job.records}: no subject of the {part} could be used; the first failure:"
                f" {next(iter(index.failures.values()), 'no labelled sample')}; mend the dataset, name another folder"
            )
    job = _narrowed(job, test, pool)
    about = read_json(path)
    orders = {str(seed): persons_in_order(pool, seed=seed) for seed in range(job.options.seeds)}
    content = about | {"usable_test": test, "usable_pool": pool, "order": about.get("order", {}) | orders}
    if content != about:
        write_json(path, content)
    return job


def tested_networks(out: Path) -> list[Network]:
    """Returns every network of a folder that has a result, whichever call asked for it, seed by seed."""
    folders = {path.parent for path in out.glob(f"seed_*/*/{RESULT_FILE}")}
    matches = [_FOLDER.fullmatch(folder.relative_to(out).as_posix()) for folder in folders]
    networks = [Network(out, found[2], int(found[3]), int(found[1])) for found in matches if found]
    ours = [network for network in networks if network.folder in folders]
    return sorted(ours, key=lambda network: (network.seed, network.size, ARMS.index(network.arm)))


def note_of_shared_names(job: CurveJob) -> str:
    """Returns what must be known of an encoder that saw scans called like those of the test, or ""."""
    seen = _seen_of_the_test(job)
    if not seen:
        return ""
    names = ", ".join(seen[:_NAMES_SHOWN]) + (f" and {len(seen) - _NAMES_SHOWN} more" * (len(seen) > _NAMES_SHOWN))
    return (
        f"the encoder learned from scans of these names in {_name_of_scans(job.encoder)}: {names}; if they are the same"
        " scans, the test is not unseen"
    )


def notes_of(job: CurveJob) -> list[str]:
    """Returns what the user should know before training."""
    pool, notes = persons_in_order(job.pool), []
    if note := note_of_shared_names(job):
        notes.append(note)
    known = set(pool) & set(map(person_of, _learned_from(job.encoder)))
    if known and _name_of_scans(job.encoder) == job.dataset.name:
        notes.append(
            f"the encoder has seen scans of {len(known)} of the {len(pool)} persons of the pool, without their labels"
        )
    before = DataSpec.load(job.encoder / SPEC_FILE)
    before = dataclasses.replace(before, label_map=job.spec.label_map, channels=job.spec.channels)
    if unlike := differences(before, job.spec):
        notes.append(f"{job.encoder} was trained on other samples: {'; '.join(unlike)}")
    return notes
