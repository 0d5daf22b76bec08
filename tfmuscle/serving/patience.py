"""What is tried again, how often, and when to give up.

A server that restarts, is overloaded, or lies behind a network that drops a connection answers later; a request that
it refuses is refused for ever. The wires tell the two apart: they raise `ConnectionError` or `TimeoutError` for what
may pass, and `DataError` for what does not. Repeating is safe, because a prediction changes nothing on the server.

Pauses double up to `LONGEST_PAUSE`, each shortened at random by up to a half, so that clients which a restart threw out
together do not come back together.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tfmuscle.errors import DataError

FIRST_PAUSE, LONGEST_PAUSE, SHORTEST = 0.2, 15.0, 0.05
"""Seconds: pauses, and the shortest attempt, for a pause may last longer than was asked for."""
LONGEST_SAYING = 300
"""Characters of a server's words that a message repeats."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long a server may take.

    Attributes:
        deadline: seconds for one attempt.
        limit: seconds for all attempts of a request.
        attempts: at most so many; None for as many as the limit allows.
    """

    deadline: float = 60.0
    limit: float = 600.0
    attempts: int | None = None

    def __post_init__(self) -> None:
        for name in ("deadline", "limit"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; a positive number of seconds is needed")


def keep_trying(
    ask: Callable[[float], _T],
    patience: Patience,
    where: str,
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """Asks until there is an answer, a refusal, or no patience left.

    Args:
        ask: given the seconds it may take; raises `ConnectionError` or `TimeoutError` for what may pass.
        patience: how long.
        where: server and model, for messages.
        sleep: pauses.
        clock: tells seconds.

    Raises:
        DataError: refused, or no answer within the limit.
    """
    started, tries = clock(), 0
    while True:
        left = patience.limit - (clock() - started)
        try:
            return ask(max(SHORTEST, min(patience.deadline, left)))
        except (ConnectionError, TimeoutError) as fault:
            tries += 1
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 30))
            pause = longest * random.uniform(0.5, 1.0)
            passed = clock() - started
            if tries == patience.attempts or passed + pause >= patience.limit:
                raise DataError(
                    f"{where}: no answer in {passed:.3g} s and {tries} attempt(s), at last: {said(fault)}; see that the"
                    " server runs and is not overloaded, and run again with --resume, or allow more by --deadline and"
                    " --patience"
                ) from fault
        sleep(pause)


def said(words: object) -> str:
    r"""Returns what a server said as one line that a terminal can show.

    >>> said("no\x1b[31m such   model\n")
    'no[31m such model'
    """
    line = "".join(sign for sign in " ".join(str(words).split()) if sign.isprintable())
    return line if len(line) <= LONGEST_SAYING else line[:LONGEST_SAYING] + "..."
