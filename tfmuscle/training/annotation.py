"""Which slices of a training sweep count as drawn, when only a few are to be (weak supervision of IFSS-Net).

Subjects stand in a fixed order, and every one has a *gap*, the slices from one drawn slice to the next: 6 for the
first, 12, then 24, 25, 26, ... With sweeps of 1400 slices that is the published list, 233, 116, 58, 56, 53, ... for 29
subjects, 1408 slices in all (the paper says 1420; 3.5 % of all slices would be 1421). Of a sweep of T slices with gap s
these are drawn: `s k + s // 2`, k = 0 ... T // s - 1.

The gaps are in slices, so a sweep of 100 slices has as large a share of them drawn as one of 1400, and fewer. Where a
slice is thicker, and a structure changes more from one to the next, `sweep` says for how many slices a gap is meant: it
becomes `gap * T / sweep`, rounded, one at least; the number of drawn slices then stays.

The three slices a way begins with are drawn too, whatever the schedule; they are not in these counts.
"""

import numpy as np

from tfmuscle.config import Propagation

FIRST_GAPS, STEADY_GAP = (6, 12), 24
"""Gaps of the first two subjects, and of the third, from which on they grow by one."""
RUN = 3
"""Slices in a row that the fixed regime has drawn."""


def gaps(subjects: int) -> list[int]:
    """Returns the gap of each subject.

    >>> gaps(5)
    [6, 12, 24, 25, 26]
    >>> sum(1400 // gap for gap in gaps(29))
    1408
    """
    return [*FIRST_GAPS, *range(STEADY_GAP, STEADY_GAP + max(0, subjects - len(FIRST_GAPS)))][:subjects]


def drawn_slices(count: int, subject: int, settings: Propagation) -> np.ndarray:
    """Returns which of `count` slices of the sweep of the `subject`-th subject are drawn, `(count,)` bool.

    >>> drawn_slices(14, 0, Propagation()).nonzero()[0].tolist()  # gap 6
    [3, 9]
    >>> drawn_slices(12, 5, Propagation(supervision="fixed", every=8)).nonzero()[0].tolist()
    [0, 1, 2, 8, 9, 10]
    """
    drawn = np.zeros(count, bool)
    if settings.supervision == "full":
        drawn[:] = True
    elif settings.supervision == "fixed":
        step = max(RUN, scaled(settings.every, count, settings))
        for offset in range(RUN):
            drawn[offset::step] = True
    else:
        gap = scaled(gaps(subject + 1)[-1], count, settings)
        drawn[gap * np.arange(count // gap) + gap // 2] = True
    return drawn


def scaled(gap: int, count: int, settings: Propagation) -> int:
    """Returns a gap for a sweep of `count` slices.

    >>> scaled(100, 80, Propagation()), scaled(100, 80, Propagation(sweep=400))
    (100, 20)
    """
    return gap if not settings.sweep else max(1, round(gap * count / settings.sweep))
