"""Errors that a user can cause and correct, and warnings; the command line prints them without a traceback.

Mistakes in calling the library (a wrong shape, dtype or argument) raise Python's own ValueError, TypeError and
RuntimeError. The classes here are for bad input from outside the program (files, downloads, recipes), and for a run
that fails. Warnings go to the logger "tinyvit", which without a handler prints them on standard error.
"""

import logging
from collections.abc import Callable

log = logging.getLogger("tinyvit")


class TinyvitError(Exception):
    """Bad input from outside the program; the message is one sentence that says what to do about it."""


class DataError(TinyvitError):
    """A data set, an image or a download that is missing, corrupt or of the wrong kind."""


class CheckpointError(TinyvitError):
    """A checkpoint or weights file that cannot be read or written."""


class RecipeError(TinyvitError):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class StudyError(TinyvitError):
    """A run, an image or an operation that cannot be studied in the requested way."""


class TrainingFailed(Exception):
    """A run that had to stop: its numbers are no longer finite, or its files cannot be written."""


class _Printer(logging.Handler):
    """Pass the text of each warning to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.getMessage())


def show_warnings(write: Callable[[str], None]) -> None:
    """Pass the text of every warning of this package to `write`, from now on and to no other such function."""
    for handler in [handler for handler in log.handlers if isinstance(handler, _Printer)]:
        log.removeHandler(handler)
    log.addHandler(_Printer(write))
