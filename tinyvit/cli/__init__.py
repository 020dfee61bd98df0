"""The `tinyvit` command: it reads arguments, calls the functions that do the work, and prints their results.

Exit status: 0 done, 1 the run failed, 2 wrong usage or bad input, 130 stopped by Ctrl-C.

Order: group, train, use, study, export, features, machine, dense.
"""

import io
import os
import sys
from traceback import format_exception
from typing import NoReturn

import click

from ..backend import current_group
from ..backend.terminal import note
from ..errors import TinyvitError, TrainingFailed, show_warnings
from . import dense, export, features, machine, study, train, use  # each adds its commands to the group
from .group import commands

__all__ = ["commands", "dense", "export", "features", "machine", "main", "study", "train", "use"]


def main() -> NoReturn:
    """Run the command and end the process with its exit status; an error is one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may contain bytes that are not valid text
    show_warnings(lambda message: note(f"tinyvit: warning: {message}"))
    try:
        status = commands(prog_name="tinyvit", standalone_mode=False)
    except Exception as error:
        if os.environ.get("TINYVIT_TRACEBACK") == "1" and current_group().size == 1:
            sys.excepthook = lambda *raised: note("".join(format_exception(*raised)))
            raise
        status, message = _status_and_message(error)
        if os.environ.get("TINYVIT_TRACEBACK") == "1":
            message = "".join(format_exception(error))
        current_group().failed(status, f"tinyvit: {message}")
        _discard_failing_output()
    sys.exit(status or 0)


def _discard_failing_output() -> None:
    """Discard what standard output cannot write (its disk is full): Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_and_message(error: Exception) -> tuple[int, str]:
    """Return the exit status for an error, and the message to print."""
    if isinstance(error, click.Abort):  # click turns KeyboardInterrupt into Abort
        return 130, str(error.__cause__) or "stopped"
    if isinstance(error, click.UsageError):
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return 2, f"error: {error.format_message().rstrip('.')}{where}"
    wrong_environment = isinstance(error, ValueError) and str(error).startswith(("TINYVIT_", "NUMBA_"))
    if wrong_environment or isinstance(error, click.ClickException | TinyvitError):
        return 2, f"error: {error}"
    if isinstance(error, TrainingFailed):
        return 1, f"error: {error}"
    if isinstance(error, OSError):
        return 1, f"error: reading or writing failed: {error}"
    if isinstance(error, MemoryError):
        return 1, f"error: out of memory; a smaller model or data.batch_size needs less ({str(error) or 'no details'})"
    return 1, f"error: {type(error).__name__}: {error} (a bug; TINYVIT_TRACEBACK=1 shows where)"
