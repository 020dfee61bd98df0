"""A limit on the time of the benchmarks of a GPU, because time on a GPU is short."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MINUTES = 5.0  # by default; together with `python -m pytest -m gpu`, which ends after four, less than ten
LEFT_OUT = "left out: no time"


class OutOfTime(BaseException):
    """The time is over. This is not an Exception, so that no contender that is being measured catches it."""


class Budget:
    """A number of minutes, from now on."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def share(self, count: int) -> float:
        """The remaining seconds, divided by `count`."""
        return max(0.0, self._end - time.monotonic()) / count

    @contextmanager
    def enforced(self, part: float) -> Iterator[None]:
        """Raise OutOfTime in this block when it has taken this part of the remaining time; in the main thread only."""
        seconds = part * self.share(1)
        if seconds < 1e-3:
            raise OutOfTime
        before = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _raise(*_: Any) -> None:
    raise OutOfTime
