"""Kernels of users: whether they can be called, before anything is timed, and whether they were right, afterwards."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..contenders import Spec
from ..report.records import Run
from .channel import environment

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


def failures(run: Run, names: Sequence[str]) -> list[str]:
    """Return a line for each of these contenders that was wrong or failed in a case."""
    lines = []
    for name in names:
        rows = [(case.label, row) for case in run.cases if (row := case.row(name))]
        failed = [(label, row.reason) for label, row in rows if row.reason]
        if failed:
            lines.append(f"{name} failed in {len(failed)} of {len(rows)} cases; {failed[0][0]}: {failed[0][1]}")
    return lines
