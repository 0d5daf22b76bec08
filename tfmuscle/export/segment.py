"""A network with all that surrounds it as one TensorFlow graph: the signatures of an exported SavedModel.

    serving_default   image `(B, *input_shape)` float32, normalised samples  ->  probabilities `(B, ..., classes)`
    segment           volume `(I, J, K, C)` float32 as in the file, affine `(4, 4)` float64  ->  labels `(I, J, K)` ids

`segment` does what `inference.predict_volume` does: reorient, crop, resample, scale intensities, cut windows, average
mirrored copies, runs and overlapping windows, bring probabilities back onto the scan's grid and take the largest. The
spacing is not asked for, because the affine says it, and two facts can disagree. Labels are those of the network:
pieces are not removed (`postprocessing` needs connected components, which TensorFlow has not); the client does that.

Memory: the preprocessed scan a few times, and its probabilities once, `(D, H, W, C)` float32. A scan whose
probabilities would take more than `LARGEST_BYTES` is refused in words, before anything is computed; `tfmuscle predict
--server` sends such a scan as normalised windows to `serving_default`.

What a graph cannot say is refused by name (`why_not`): N4, hole filling, nnU-Net's cubic resampling, labels of an
earlier network, and the regions and boxes of a cascade.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.trackable.data_structures import NoDependency

from tfmuscle.config import DataSpec
from tfmuscle.errors import DataError
from tfmuscle.export import geometry as g
from tfmuscle.export.intensities import normalise
from tfmuscle.export.windows import probabilities_of
from tfmuscle.inference import Run
from tfmuscle.inference.conversion import plain
from tfmuscle.inference.runs import main_output
from tfmuscle.inference.volumes import mirrors

LARGEST_BYTES = 8 << 30
"""Probabilities of one scan may take so much memory."""
IMAGE, PROBABILITIES, VOLUME, AFFINE, LABELS = "image", "probabilities", "volume", "affine", "labels"
"""Names of the inputs and outputs of the signatures."""
_REFUSED = {
    "bias_field": (True, "N4 correction"),
    "resampling": ("nnunet", "cubic resampling"),
    "normalisation": ("zscore_masked", "filling the holes of the body"),
    "prior": (True, "the labels of an earlier network"),
    "patches": (("whole", "boxes"), "the regions and boxes of a cascade"),
}
"""Field of `DataSpec` -> values that a graph cannot express, and what they need."""


def why_not(spec: DataSpec) -> str:
    """Says which setting keeps a raw scan from being segmented inside the graph; empty when none does.

    >>> from tfmuscle.labels import LabelMap
    >>> why_not(DataSpec(LabelMap({1: "femur"}), bias_field=True))
    'bias_field=True needs N4 correction, which a graph cannot express'
    """
    for name, (values, what) in _REFUSED.items():
        value = getattr(spec, name)
        if value in (values if isinstance(values, tuple) else (values,)):
            return f"{name}={value} needs {what}, which a graph cannot express"
    return ""


class Segmenter(tf.Module):
    """Networks of one ensemble as TensorFlow functions; a class, because a SavedModel is made of a `tf.Module`.

    Attributes:
        serve: function of `serving_default`.
        segment: function of `segment`.
    """

    def __init__(self, runs: Sequence[Run], *, mirror: bool) -> None:
        super().__init__(name="segmenter")
        self._spec = runs[0].spec
        models = [plain(run.model) for run in runs]
        self._models = NoDependency(models)  # of a Keras variable a copy is stored that C++ loaders do not look at
        self._weights = [variable.value for model in models for variable in model.variables]
        self._mirrors = [mirrors(run, mirror) for run in runs]
        label_map = self._spec.label_map
        ids = label_map.decode(np.arange(self._spec.num_classes))
        self._ids = tf.constant(ids.astype(np.int32 if ids.dtype.itemsize > 1 else np.uint8))
        samples = tf.TensorSpec((None, *self._spec.input_shape), tf.float32, name=IMAGE)
        volume = tf.TensorSpec((None, None, None, len(self._spec.channels)), tf.float32, name=VOLUME)
        affine = tf.TensorSpec((4, 4), tf.float64, name=AFFINE)
        self.serve = tf.function(self._serve, input_signature=[samples], autograph=False)
        self.segment = tf.function(self._segment, input_signature=[volume, affine], autograph=False)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample without the batch axis."""
        return self._spec.input_shape

    def _serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        said = [_probabilities(model, image) for model in self._models]
        return {PROBABILITIES: tf.add_n(said) / len(said)}

    def _network(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the mean over runs of the mean over mirrored copies, as `inference.volumes` takes it."""
        means = []
        for model, copies in zip(self._models, self._mirrors, strict=True):
            said = []
            for copy in copies:
                mirrored = tf.reverse(images, copy.axes) if copy.axes else images
                back = _probabilities(model, mirrored)
                back = tf.reverse(back, copy.axes) if copy.axes else back
                said.append(back if copy.classes is None else tf.gather(back, copy.classes, axis=-1))
            means.append(tf.add_n(said) / len(said))
        return tf.add_n(means) / len(means)

    def _segment(self, volume: tf.Tensor, affine: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(g.check_affine(affine)):
            affine = tf.identity(affine)
        scan, spec = tf.shape(volume)[:3], self._spec
        axes, flips = g.reorientation(affine, spec.orientation)
        volume, cropped = g.reoriented(volume, axes, flips), tf.zeros(3, tf.int32)
        if spec.crop_nonzero:
            volume, cropped = g.crop_to_nonzero(volume)
        grid = g.grid_axes(tf.shape(volume)[:3], tf.gather(g.spacing_of(affine), axes), spec)
        with tf.control_dependencies(_check_memory(grid, spec)):
            volume = normalise(g.resample(volume, grid), spec)
        slices = probabilities_of(volume, self._network, spec)
        sizes = tf.gather(scan, axes)
        back = [g.back_onto_scan(axis, sizes[n], flips[n], cropped[n]) for n, axis in enumerate(grid)]
        labels = _labels(slices, back, self._ids)
        return {LABELS: tf.transpose(labels, tf.math.invert_permutation(axes))}


def _probabilities(model: keras.Model, images: tf.Tensor) -> tf.Tensor:
    return tf.cast(main_output(model, model(images, training=False)), tf.float32)


def _check_memory(grid: list[g.Axis], spec: DataSpec) -> list[tf.Operation]:
    wanted = 4 * spec.num_classes
    for axis in grid:
        wanted = tf.cast(wanted, tf.int64) * tf.cast(axis.size, tf.int64)
    say = (
        f"volume: its probabilities would take more than {LARGEST_BYTES >> 30} GB at the model's voxel size; send"
        " windows to serving_default (tfmuscle predict --server does), or a part of the scan"
    )
    return [tf.debugging.Assert(wanted <= LARGEST_BYTES, [say, wanted])]


def _labels(slices: tf.TensorArray, back: list[g.Sampling], ids: tf.Tensor) -> tf.Tensor:
    """Returns ids `(n0, n1, n2)` along the scan's axes in the order of the grid's: largest interpolated probability."""
    along, rows, columns = back
    plane = tf.logical_and(rows.inside[:, tf.newaxis], columns.inside)

    def one(number: tf.Tensor) -> tf.Tensor:
        share = along.weight[number]
        lower, upper = slices.read(along.lower[number]), slices.read(along.upper[number])
        mixed = tf.cond(share > 0, lambda: lower * (1 - share) + upper * share, lambda: lower)
        mixed = _between(_between(mixed, rows, 0), columns, 1)
        found = tf.gather(ids, tf.argmax(mixed, axis=-1))
        return tf.where(tf.logical_and(plane, along.inside[number]), found, tf.zeros_like(found))

    signature = tf.TensorSpec((None, None), ids.dtype)
    return tf.map_fn(one, tf.range(tf.size(along.lower)), fn_output_signature=signature)


def _between(values: tf.Tensor, axis: g.Sampling, number: int) -> tf.Tensor:
    """Interpolates linearly along one axis; exact where every voxel falls on one of the grid."""
    share = tf.reshape(axis.weight, (-1, 1, 1) if number == 0 else (1, -1, 1))
    lower = tf.gather(values, axis.lower, axis=number)
    exact = tf.logical_not(tf.reduce_any(axis.weight > 0))
    return tf.cond(
        exact, lambda: lower, lambda: lower * (1 - share) + tf.gather(values, axis.upper, axis=number) * share
    )


def require(spec: DataSpec, path: str) -> None:
    """Refuses a spec that a graph cannot express.

    Raises:
        DataError: naming the setting.
    """
    if problem := why_not(spec):
        raise DataError(
            f"{path}: {problem}; add --no-segment for a bundle without it, whose clients (tfmuscle predict --server)"
            " prepare scans themselves"
        )
