"""Kernels of users: whether they can be called and are right, before anything is timed; and whether they stayed so."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..cases import Case
from ..contenders import Spec
from ..report.records import Row, Run
from .channel import environment
from .measure import Notify, Processes, refer, verify

_TIMEOUT = 300  # seconds; importing a kernel may compile it
_FIND = """
import sys
from benchmarks.contenders.user import UserKernel
from benchmarks.peers import describe_error
try:
    print(UserKernel(sys.argv[1]).has_backward())
except Exception as error:
    sys.exit(describe_error(error))
"""


class OwnKernelError(Exception):
    """A kernel of a user is wrong or fails; the message says in which case, and why."""


def checked(spec: Spec, threads: int) -> Spec:
    """Return a user's kernel, to take part in the cases that it has a function for.

    It is looked for in a process like the one in which it will run. Raises ValueError if there is no such function.
    """
    command = [sys.executable, "-P", "-c", _FIND, spec.option]
    try:
        found = subprocess.run(
            command, env=environment(threads, {}), capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"--kernel {spec.option} was not imported within {_TIMEOUT} seconds") from None
    if found.returncode:
        last = found.stderr.strip().splitlines()[-1:] or [f"the process ended with status {found.returncode}"]
        raise ValueError(f"--kernel {spec.option} cannot be used: {last[0]}")
    if found.stdout.split()[-1] == "True":
        return spec
    return replace(spec, serves=lambda case: case.direction != "backward")


def require_right(cases: Sequence[Case], own: Sequence[Spec], processes: Processes, notify: Notify) -> None:
    """Verify the kernels of a user in one case after another, before anything is timed.

    Raises OwnKernelError in the first case in which some of them are wrong or fail, with the reason of each.
    """
    for case in cases:
        taking_part = [spec for spec in own if spec.serves(case)]
        if not taking_part or refer(case, processes, notify):  # without a reference, the table of the case says so
            continue
        rows = [Row(spec.name) for spec in taking_part]
        for spec, row in zip(taking_part, rows, strict=True):
            verify(case, spec, row, processes, notify)
        reasons = [f"{row.contender}: {row.reason}" for row in rows if row.reason]
        if reasons:
            raise OwnKernelError(
                "\n".join([f"nothing was timed, because a kernel failed the check of {case.label}:", *reasons])
            )


def failed_later(run: Run, names: Sequence[str]) -> str:
    """Return a sentence about the contenders that were right at first and failed as they were timed; else nothing."""
    failed = {name for case in run.cases for name in names if (row := case.row(name)) and row.reason}
    return f"{', '.join(sorted(failed))} failed; the reason is below the table" if failed else ""
