"""Stopping a run from outside, at a place of its own choosing."""

import signal
import threading
from typing import Self


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, by Ctrl-C or SIGTERM, and did so with a checkpoint."""


class Stopped(Exception):
    """Raised where a run can stop, once it was asked to."""


class StopRequest:
    """Within this block the first SIGINT (Ctrl-C) or SIGTERM is noted, for `check`, and a second one acts at once.

    Outside of the main thread, where Python handles no signals, nothing is changed and nothing noted.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if here else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.noted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.noted:
            raise Stopped

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
