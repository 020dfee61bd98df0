"""A child process that answers: it reads commands as JSON lines from stdin, and alone writes to the pipe of answers."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..machine import ROOT
from ..peers import describe_error


class LostError(Exception):
    """A child died, gave no answer in time, or answered that it failed; the message says which."""


# In the child ---------------------------------------------------------------------------------------------------------


def serve(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Answer commands until stdin ends. Whatever libraries print meanwhile, in Python or in C, goes to stderr."""
    commands, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for line in commands:
        command = json.loads(line)
        try:
            answer = handlers[command.pop("do")](**command)
        except Exception as error:
            answer = {"failed": describe_error(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def limit_processors(threads: int) -> None:
    """Keep this process on as many processors as it has threads, for the libraries that ignore the variables."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


# In the parent --------------------------------------------------------------------------------------------------------


def environment(threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child, in which every library finds the same number of threads."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    pools = {f"{name}_NUM_THREADS": str(threads) for name in names} | {"TINYVIT_THREADS": str(threads)}
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return {**os.environ, **pools, "PYTHONPATH": path, **extra}


class Process:
    """A child: `python -m module *arguments`, where the module calls `serve`."""

    def __init__(
        self, module: str, arguments: Sequence[str], folder: Path, threads: int, extra: Mapping[str, str] | None = None
    ) -> None:
        count = len(list(folder.glob("*.stderr")))
        self._stderr = folder / f"{count}.stderr"
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],  # finds modules in ROOT, not in the current folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(threads, extra or {}),
                start_new_session=True,
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)  # the child has ended

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; `LostError` if none comes within `timeout` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise LostError(f"hangs: no answer within {timeout:.0f} s") from None
        except BrokenPipeError:
            line = None
        if line is None:
            raise LostError(self._cause_of_death())
        answer = json.loads(line)
        if "failed" in answer:
            raise LostError(answer["failed"])
        return answer

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        printed = self._stderr.read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(printed) if line.strip()), "it printed nothing")
        return f"died ({cause}): {last[:200]}"

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """Kill the child and the processes that it started."""
        if not self.has_ended:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._listener.join(timeout=5)
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
