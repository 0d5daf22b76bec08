"""What every loss starts from: truth, probabilities and the mask of labelled voxels in one form.

`g` is the truth and `p` the prediction, `(B, ..., C)` float32 with background in channel 0, both zero on voxels that
nobody labelled, so that plain sums skip them.
"""

from keras import ops

SMALLEST_PROBABILITY = 1e-7
"""Probabilities below are raised to it before a logarithm; also keeps a division by zero voxels finite."""


def prepare(y_true, y_pred):
    """Returns truth `g`, probabilities `p` and the mask of labelled voxels, float32, `g` and `p` zero where unlabelled.

    Args:
        y_true: class indices `(B, ...)` or `(B, ..., 1)`, or one-hot `(B, ..., C)`.
        y_pred: probabilities `(B, ..., C)`, or `(B, ..., 1)` for one foreground class.

    Returns:
        `(B, ..., C)`, `(B, ..., C)` and `(B, ..., 1)` with at least two channels, background first.

    Raises:
        ValueError: the two shapes do not belong together.
    """
    p = ops.cast(y_pred, "float32")
    if p.shape[-1] == 1:
        p = ops.concatenate([1 - p, p], axis=-1)
    num_classes = p.shape[-1]
    if len(y_true.shape) == len(p.shape) and y_true.shape[-1] == num_classes:
        g = ops.cast(y_true, "float32")
    else:
        if len(y_true.shape) == len(p.shape) and y_true.shape[-1] == 1:
            y_true = ops.squeeze(y_true, axis=-1)
        if len(y_true.shape) != len(p.shape) - 1:
            raise ValueError(
                f"y_true has shape {tuple(y_true.shape)} for predictions of shape {tuple(y_pred.shape)};"
                " give class indices (B, ...) or (B, ..., 1), or one-hot (B, ..., C)"
            )
        indices = ops.cast(y_true, "int32")[..., None]
        g = ops.cast(ops.equal(indices, ops.arange(num_classes, dtype="int32")), "float32")
    labelled = ops.sum(g, axis=-1, keepdims=True) > 0
    # `where`, not a product: a NaN predicted on an unlabelled voxel must not survive.
    return g, ops.where(labelled, p, 0.0), ops.cast(labelled, "float32")


def sum_axes(p, *, batch: bool) -> list[int]:
    """Returns the axes a class is summed over: the spatial ones, and the batch if asked for."""
    return list(range(0 if batch else 1, len(p.shape) - 1))


def log_of(p):
    """Returns log max(p, 1e-7)."""
    return ops.log(ops.maximum(p, SMALLEST_PROBABILITY))


def checked(name: str, value: float, *, positive: bool = False) -> float:
    """Returns an option of a loss, or raises a ValueError that names it."""
    if not (value > 0 if positive else value >= 0):
        raise ValueError(f"{name} is {value!r}; a {'positive' if positive else 'non-negative'} number is needed")
    return value
