"""Training on all devices of a machine, or on several machines, by `tf.distribute`.

The user says `fit --devices all` on a machine with several graphics processors, or starts the same `fit --devices
machines` on every machine, with the environment variable TF_CONFIG that TensorFlow asks for: who takes part, and who of
them this one is. All machines see the records and the run under the same paths.

`batch_size` stays the batch of one step. Each device gets an equal part of it, and one step goes by the mean of their
gradients; so a loss that is a mean over voxels learns what one device would have learned, to rounding, and one that
pools a batch (Dice) pools the part of each device. Batch normalisation, too, sees the part of one device. Samples and
transforms are those of one device: a machine makes only its own part of every batch (`batches.py`).

The first machine, the *chief*, keeps the run folder; the others write the same to a folder that they throw away, so
that all decide alike when the rate falls and when to stop. A lost machine ends the training on all of them; the same
commands with --resume go on at the last whole epoch.

Keras 3.15 does not run on several machines as it is (its issue 20585): `ready` builds what Keras would build from a
shared batch, which it cannot read, and gives the results of a step the axis over which Keras takes their mean.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfmuscle.config import TrainConfig
from tfmuscle.errors import DataError

LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
"""What TensorFlow mostly raises on the machines that are left."""
LOST_WORDS = "Restart your program to reset"
"""In the message of all other errors, of several classes, by which TensorFlow says that machines no longer share."""


@functools.cache
def strategy_of(devices: str) -> tf.distribute.Strategy:
    """Returns how steps are shared out; of `machines` it waits until all are there.

    For `machines` it must be called before TensorFlow has computed anything.

    Args:
        devices: one of `config.DEVICES`.

    Raises:
        DataError: TF_CONFIG is missing or cannot be.
    """
    if devices == "one":
        return tf.distribute.get_strategy()
    if devices == "all":
        return tf.distribute.MirroredStrategy()
    _check_cluster(os.environ.get("TF_CONFIG", ""))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise DataError(f"TF_CONFIG: the machines cannot be joined ({_first_line(error)})") from error


def _check_cluster(text: str) -> None:
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        content = json.loads(text)
        workers, task = content["cluster"]["worker"], content["task"]
        known = task["type"] == "worker" and isinstance(workers, list) and 0 <= int(task["index"]) < len(workers)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        got = f"is {text[:120]!r}" if text else "is not set"
        raise DataError(f"TF_CONFIG: {got}; every machine needs one like {example}, with its own index")


def machine(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns the number of this machine and how many there are, `(0, 1)` where there is one."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    return int(resolver.task_id), len(resolver.cluster_spec().as_dict()["worker"])


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this machine keeps the run folder."""
    return machine(strategy)[0] == 0


def check_shares(config: TrainConfig, strategy: tf.distribute.Strategy) -> None:
    """Refuses a batch that cannot be shared out equally.

    Raises:
        ValueError: naming the batch and the number of devices.
    """
    devices = strategy.num_replicas_in_sync
    if config.batch_size % devices:
        raise ValueError(f"batch_size is {config.batch_size}, shared by {devices} devices; give a multiple of that")


@keras.saving.register_keras_serializable(package="tfmuscle")
class SharedLoss(keras.losses.Loss):
    """A loss of the part of one device, scaled so that the sum over devices is their mean.

    Keras scales losses that leave it the mean over samples; those of `tfmuscle.losses` are one number already.
    """

    def __init__(self, inner: Any, *, name: str = "shared") -> None:
        super().__init__(name=name, dtype="float32")
        self.inner = inner

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of a batch `(1,)`, of which Keras takes the mean, and its share."""
        return keras.ops.reshape(self.inner(y_true, y_pred), (1,))

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name, "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharedLoss":
        """Rebuilds the loss."""
        return cls(keras.saving.deserialize_keras_object(config["inner"]), name=config["name"])


def ready(model: keras.Model, batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> None:
    """Makes a compiled model fit for `model.fit` on several machines with such batches."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    with strategy.scope():
        model._symbolic_build(data_batch=tf.nest.map_structure(_one_sample, batches.element_spec))
    model._maybe_symbolic_build = _nothing
    model.train_step = functools.partial(_with_axis, model.train_step)
    model.test_step = functools.partial(_with_axis, model.test_step)


def _one_sample(part: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros((1, *part.shape[1:]), part.dtype)


def _nothing(*_: Any, **__: Any) -> None:
    """Has been done."""


def _with_axis(step: Any, data: Any) -> Mapping[str, tf.Tensor]:
    return tf.nest.map_structure(lambda value: tf.convert_to_tensor(value)[tf.newaxis], step(data))


@contextlib.contextmanager
def naming_lost_machines(devices: str) -> Iterator[None]:
    """Says in words that another machine has gone, wherever in the shared work that is noticed.

    Raises:
        DataError: another machine has gone, or cannot be reached.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if devices != "machines" or not (isinstance(error, LOST) or LOST_WORDS in str(error)):
            raise
        raise DataError(
            f"TF_CONFIG: another machine has gone, or cannot be reached ({_first_line(error)}); whole epochs are kept:"
            " run the same command on all of them again, with --resume if it had begun"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
