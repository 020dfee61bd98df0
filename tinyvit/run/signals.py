"""Stop a run on a signal, at the next safe point."""

import signal
import threading
from typing import Any, Self

from ..backend import Group, Stopped


class Interrupted(KeyboardInterrupt):
    """Raised when a run that was asked to stop, by Ctrl-C, SIGTERM or SIGHUP, has stopped and written a checkpoint."""


class StopRequest:
    """A block in which the first signal to stop is only noted, for `check`; a second Ctrl-C or SIGTERM acts at once.

    The signals are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed), unless SIGHUP is ignored, as it is
    under `nohup`. A terminal that closes may send SIGHUP twice, so a second one changes nothing. Python handles signals
    in the main thread only; in any other thread this block does nothing.

    A signal to one process of `group` stops all of them.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.noted, self._group = False, group or Group()

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = _signals_to_stop() if in_main_thread else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: object) -> None:
        if self.noted and number in _AT_ONCE:
            signal.signal(number, _AT_ONCE[number])
            signal.raise_signal(number)
        self.noted = True

    def check(self) -> None:
        """Raise `Stopped` in all processes of the group if a signal to stop has come to one."""
        if self._group.any(self.noted):
            raise Stopped

    def check_here(self) -> None:
        """Raise `Stopped` if a signal to stop has come to this process."""
        if self.noted:
            raise Stopped

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


_AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def _signals_to_stop() -> list[int]:
    numbers = list(_AT_ONCE)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has no SIGHUP
        numbers.append(signal.SIGHUP)
    return numbers
