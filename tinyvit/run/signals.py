"""Stopping a run from outside, at a place of its own choosing."""

import signal
import threading
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, by Ctrl-C, SIGTERM or SIGHUP, and did so with a checkpoint."""


class Stopped(Exception):
    """Raised where a run can stop, once it was asked to."""


class StopRequest:
    """Within this block the first signal to stop is noted, for `check`; a second Ctrl-C or SIGTERM acts at once.

    Signals to stop are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed) unless it is ignored, as
    `nohup` has it. A closing terminal may send SIGHUP twice, so a second one changes nothing. Outside of the main
    thread, where Python handles no signals, nothing is changed and nothing noted.
    """

    def __init__(self) -> None:
        self.noted = False

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        numbers = _signals_to_stop() if here else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.noted and number in _AT_ONCE:
            signal.signal(number, _AT_ONCE[number])
            signal.raise_signal(number)
        self.noted = True

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.noted:
            raise Stopped

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def _signals_to_stop() -> list[int]:
    numbers = list(_AT_ONCE)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    return numbers
