"""Contrastive pre-training: slices of unlabelled scans in, an encoder for `fit --from` out.

The user names scans; nobody has labelled them. Every slice comes in two random views, a U-Net's encoder and a small
head turn each into a vector, and the loss pulls vectors together that show the same place (`losses.contrastive`). The
run folder looks like that of `fit`, so that resuming, curves and `--from` work alike, with two differences:
`pretraining.json` holds method, threshold and temperature, and `best.keras` the encoder with its head, which segments
nothing. Layers of the encoder are called as in `unet`, which is how `fit --from` finds them; the head is left behind.

Every slice is seen once an epoch; what does not fill a batch is left out of that epoch. Order and views follow from
(seed, epoch, number), so that a resumed run sees what an uninterrupted one would. Slices stay in memory as float16,
twice: 72 scans of 100 slices of 256 x 256 are 1.9 GB.

Unlike in the published program the learning rate falls by epoch, momentum is Nesterov's, and the deepest convolutions
are normalised as the others are, so that every U-Net of ours can start from them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfmuscle import models
from tfmuscle.augmentation import augment
from tfmuscle.config import DataSpec, Pretraining, TrainConfig
from tfmuscle.errors import DataError
from tfmuscle.files import read_json, write_json
from tfmuscle.inference.runs import PRETRAINING_FILE
from tfmuscle.losses.contrastive import Contrastive
from tfmuscle.training.callbacks import Recorder
from tfmuscle.training.optimisers import make_optimiser
from tfmuscle.training.patches import seed_of
from tfmuscle.training.supervised import check_folder, prepare, restore, train_epochs

__all__ = ["check_folder", "encoder_with_head", "pretrain", "view_batches"]

EMBEDDING = 512
"""Numbers of the vector that the head makes of a slice."""
BATCHES_AHEAD = 4
_ORDER = -1
"""Number of a draw that is no view: the order of the slices."""


def pretrain(
    slices: np.ndarray,
    about: np.ndarray,
    run: str | Path,
    spec: DataSpec,
    config: TrainConfig,
    settings: Pretraining,
    *,
    subjects: Sequence[str],
    resume: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Trains an encoder and returns the run folder.

    Args:
        slices: `(M, *spec.input_shape)` float16, all slices of all scans.
        about: `(M, 3)` number, position and quarter of each slice, see `losses.contrastive`.
        run: folder to make; with `resume`, one that an interrupted run left.
        spec: how scans became slices.
        config: a `unet` and how it is trained.
        settings: method, threshold and temperature.
        subjects: whose slices these are.
        resume: go on at the epoch that was interrupted; a run that is complete is left as it is.
        progress: called with (batches done, batches in all, note).

    Raises:
        ValueError: another architecture than `unet`, or slices that do not fit.
        DataError: too few slices, or the folder holds another run.
    """
    run = Path(run)
    if config.model != "unet" or config.model_options.get("block", "plain") == "dense":
        raise ValueError(f"model is {config.model!r}; pre-training is for unet with plain or residual blocks")
    if len(slices) < 2:
        raise DataError(f"{run}: {len(slices)} slice(s) to learn from; at least 2 are needed, so give more scans")
    if config.precision != "float32":
        raise ValueError(f"precision is {config.precision!r}; pre-training is in float32")
    encoder_with_head(spec, config)  # refuses a size or options before anything is written
    split = {"train": list(subjects), "validation": [], "left_out": [], "test": []}
    before = run / PRETRAINING_FILE
    if before.exists() and read_json(before) != settings.to_dict():
        raise DataError(f"{before}: was begun with {read_json(before)}; resume with the same, or name another folder")
    done = prepare(run, spec, config, split, start=None, resume=resume)
    write_json(before, settings.to_dict())
    if done:
        return run
    keras.utils.set_random_seed(config.seed)
    model = _compiled(spec, config, settings)
    history = restore(model, run)
    batch = min(config.batch_size, len(slices))
    train_epochs(
        model,
        view_batches(slices, about, spec, config, batch=batch, first_epoch=len(history)),
        Recorder(run, config, history, steps=len(slices) // batch, progress=progress),
    )
    return run


def encoder_with_head(spec: DataSpec, config: TrainConfig) -> keras.Model:
    """Returns the encoder of the U-Net of `config` with a projection head: `(H, W, C)` to `(512,)`."""
    network = models.build("unet", spec.input_shape, 2, **config.model_options)
    deepest = max(int(layer.name[len("encoder") : -len("_act1")]) for layer in network.layers if _ends_a_level(layer))
    features = network.get_layer(f"encoder{deepest}_act1").output
    x = layers.GlobalAveragePooling2D(name="projection_mean")(features)
    x = layers.Dense(features.shape[-1], activation="relu", name="projection_hidden")(x)
    return keras.Model(network.input, layers.Dense(EMBEDDING, name="projection")(x), name="contrastive")


def _ends_a_level(layer: keras.layers.Layer) -> bool:
    return layer.name.startswith("encoder") and layer.name.endswith("_act1")


def _compiled(spec: DataSpec, config: TrainConfig, settings: Pretraining) -> keras.Model:
    model = encoder_with_head(spec, config)
    loss = Contrastive(method=settings.method, threshold=settings.threshold, temperature=settings.temperature)
    model.compile(optimizer=make_optimiser(config), loss=loss)
    model.optimizer.build(model.trainable_variables)
    return model


def view_batches(
    slices: np.ndarray, about: np.ndarray, spec: DataSpec, config: TrainConfig, *, batch: int, first_epoch: int = 0
) -> tf.data.Dataset:
    """Returns the batches of all epochs from `first_epoch` on.

    Yields:
        images `(2 batch, *spec.input_shape)` float32, the first views and then the second, and `about` `(2 batch, 3)`.
    """
    images, facts = tf.constant(slices), tf.constant(about, tf.float32)
    count = len(slices) // batch * batch
    nothing = tf.zeros(spec.label_shape, tf.int32)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(slices)), seed_of(config, epoch, _ORDER))
        numbers = tf.data.Dataset.from_tensor_slices(order[:count]).enumerate()

        def two_views(number: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.cast(images[index], tf.float32)
            seeds = [seed_of(config, epoch, 2 * number + view) for view in range(2)]
            recipe, mirrored = config.recipe.augmentation, config.recipe.mirror
            views = [augment(image, nothing, seed=s, recipe=recipe, spec=spec, mirrored=mirrored)[0] for s in seeds]
            return tf.stack(views), facts[index]

        return numbers.map(two_views, num_parallel_calls=tf.data.AUTOTUNE)

    def together(views: tf.Tensor, known: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        both = tf.transpose(views, (1, 0, *range(2, len(views.shape))))
        return tf.reshape(both, (2 * batch, *spec.input_shape)), tf.concat([known, known], axis=0)

    epochs = tf.data.Dataset.range(first_epoch, config.epochs + 1)  # one more than is drawn: Keras warns of an end
    batches = epochs.flat_map(one_epoch).batch(batch, drop_remainder=True)
    return batches.map(together).prefetch(BATCHES_AHEAD)
