"""Contrastive losses: which slices of which scans show the same place.

Terms. An *embedding* is the vector `(d,)` that a network makes of a slice. A batch has two random views of each of N
slices, 2N embeddings. Two embeddings are *positives* when they should be alike: views of one slice always, and by
method slices of other scans too. With `s_ab` the cosine of a and b over the temperature and P(a) the positives of a,

    L = mean over a of  -1/|P(a)| sum over b in P(a) of [ s_ab - log sum over c != a of exp s_ac ]

(Khosla et al. 2020; with views of one slice alone it is NT-Xent, Chen et al. 2020). P(a) is never empty.

| method | positives besides the other view |
|---|---|
| `pcl` | slices whose positions differ by less than the threshold (Zeng et al. 2021, positional contrastive learning) |
| `gcl` | slices in the same quarter of their scans (Chaitanya et al. 2020) |
| `simclr` | none |

The position of slice i of D is (i + 1) / D: it means the same in every scan only if all scans span the same anatomy.
The published program of positional learning multiplies by a factor that it never sets; it is left out.
"""

from typing import Any

import keras
from keras import ops

METHODS = ("pcl", "gcl", "simclr")
QUARTERS = 4
_SMALLEST_SQUARE = 1e-24
_NEVER = -1e9
"""Added to a logit that must not count."""


def position(index: int, count: int) -> float:
    """Returns the position of slice `index` of `count`.

    >>> position(0, 4), position(3, 4)
    (0.25, 1.0)
    """
    return (index + 1) / count


def quarter(index: int, count: int) -> int:
    """Returns the quarter of the scan a slice is in, 0 to 3; quarters have round-half-up(count / 4) slices.

    >>> [quarter(index, 10) for index in range(10)]
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    """
    return min(index // max(1, int(count / QUARTERS + 0.5)), QUARTERS - 1)


def positives(about: Any, *, method: str, threshold: float) -> Any:
    """Returns which pairs are positives, `(B, B)` float32 of 0 and 1, 0 on the diagonal.

    Args:
        about: `(B, 3)` number of the slice, its position, its quarter.
        method: one of `METHODS`.
        threshold: of `pcl`.
    """
    about = ops.cast(about, "float32")
    slices, places, quarters = about[:, 0], about[:, 1], about[:, 2]
    found = ops.equal(slices[:, None], slices[None])
    if method == "pcl":
        found = ops.logical_or(found, ops.abs(places[:, None] - places[None]) < threshold)
    if method == "gcl":
        found = ops.logical_or(found, ops.equal(quarters[:, None], quarters[None]))
    return ops.cast(found, "float32") * (1 - ops.eye(ops.shape(about)[0], dtype="float32"))


def contrastive_loss(embeddings: Any, positive: Any, *, temperature: float) -> Any:
    """Returns the loss of `(B, d)` embeddings whose positives are `(B, B)`, a scalar."""
    z = ops.cast(embeddings, "float32")
    # not x / |x|: the slope of a norm is not defined at zero, where a head of ReLUs may start
    z = z * ops.rsqrt(ops.maximum(ops.sum(z * z, axis=1, keepdims=True), _SMALLEST_SQUARE))
    similarity = ops.matmul(z, ops.transpose(z)) / temperature
    others = similarity + _NEVER * ops.eye(ops.shape(z)[0], dtype="float32")
    log_probability = similarity - ops.logsumexp(others, axis=1, keepdims=True)
    count = ops.maximum(ops.sum(positive, axis=1), 1.0)
    return ops.mean(-ops.sum(positive * log_probability, axis=1) / count)


@keras.saving.register_keras_serializable(package="tfmuscle")
class Contrastive(keras.losses.Loss):
    """The loss of a batch of two views each; `y_true` is `about` of `positives`, `y_pred` the embeddings."""

    def __init__(
        self, *, method: str = "pcl", threshold: float = 0.1, temperature: float = 0.1, name: str = "contrastive"
    ) -> None:
        super().__init__(name=name, dtype="float32")
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
        if not 0 < threshold <= 1 or not temperature > 0:
            raise ValueError(
                f"threshold is {threshold} and temperature {temperature}; a threshold from above 0 to 1 and a positive"
                " temperature are needed"
            )
        self.options = {"method": method, "threshold": float(threshold), "temperature": float(temperature)}

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of a batch."""
        pairs = positives(y_true, method=self.options["method"], threshold=self.options["threshold"])
        return contrastive_loss(y_pred, pairs, temperature=self.options["temperature"])

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the loss."""
        return {"name": self.name} | self.options
