"""Who is in which fold: folds are of persons, never of slices, and never of one leg alone.

The order comes from a hash of the id: it depends neither on the order of files, nor on the machine, nor on NumPy's
version, so that a fold means the same subjects everywhere.
"""

import hashlib
from collections.abc import Iterable

from tfmuscle.errors import DataError

TEST = -1
"""Fold number of subjects held out of every fold."""
PARTS = ("train", "validation", "left_out", "unused", "test")
"""What subjects are for one training: `left_out` is the fold that only this training never sees, `unused` are those a
training on few persons does without."""


def person_of(subject_id: str) -> str:
    """Returns whose leg it is.

    >>> person_of("a_left"), person_of("a")
    ('a', 'a')
    """
    return subject_id.removesuffix("_left").removesuffix("_right")


def persons_in_order(subject_ids: Iterable[str], *, seed: int = 0) -> list[str]:
    """Returns the persons of these subjects in an order of chance that is the same everywhere.

    Nobody's place before another depends on who else is there.

    Args:
        subject_ids: in any order.
        seed: another seed is another order.

    >>> persons_in_order(["b", "a_left", "a_right"]) == persons_in_order(["a_left", "b"])
    True
    """
    persons = {person_of(key) for key in subject_ids}
    return sorted(persons, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())


def assign_folds(subject_ids: Iterable[str], *, folds: int, test: float = 0.0, seed: int = 0) -> dict[str, int]:
    """Assigns every subject to a fold 0..`folds` - 1, or to `TEST`; sizes differ by one person at most.

    Both legs of a person (`<id>_left` and `<id>_right`, as `tfmuscle prepare` names them) always go together: they are
    not independent.

    Args:
        subject_ids: in any order; the result does not depend on it.
        folds: number of folds.
        test: persons held out: a share below 1 (rounded, at least one when above 0) or a count.
        seed: another seed is another assignment.

    >>> assign_folds(["b", "a", "c"], folds=2, test=1) == assign_folds(["c", "b", "a"], folds=2, test=1)
    True
    >>> len(set(assign_folds(["a_left", "a_right"], folds=1).values()))
    1
    """
    ids = sorted(set(subject_ids))
    order = persons_in_order(ids, seed=seed)
    if folds < 1 or test < 0 or (test > 1 and test != int(test)):
        raise ValueError(f"folds is {folds} and test {test}; give a fold at least, and test as a share or a count")
    held_out = int(test) if test >= 1 else max(round(test * len(order)), int(test > 0))
    if len(order) - held_out < folds:
        raise DataError(f"{len(order)} subjects, {held_out} held out, do not fill {folds} folds; use fewer folds")
    fold_of = {key: TEST if rank < held_out else (rank - held_out) % folds for rank, key in enumerate(order)}
    return {key: fold_of[person_of(key)] for key in ids}
