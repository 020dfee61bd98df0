"""Say which process of a group was killed: a small process beside each one waits for its end.

This file, run by itself, reads lines from a pipe whose other end only its own training process holds: the file of
claims, and the message to print. The pipe ends with that process, however it dies. If its last line was not "ended",
the process was killed, and the watcher prints the message, unless another one was first: as soon as one process dies,
mpiexec kills all others, and only the first is the reason. Whoever creates the file of claims is first.

This file imports the standard library only, since it runs on its own.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ENDED = "ended"


class Watcher:
    """The watcher of this process. It must be started before MPI is."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-I", "-S", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def tell(self, claims: Path, message: str) -> None:
        """Tell the watcher what to print, in one line, if this process is killed."""
        self._write(f"{claims}\n{message}\n")

    def ended(self) -> None:
        """Tell the watcher that this process ends by itself, and wait for its end."""
        self._write(f"{ENDED}\n")
        with self._process:  # closes the pipe
            pass

    def _write(self, text: str) -> None:
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            with suppress(OSError):  # somebody has ended the watcher
                pipe.write(text.encode(errors="surrogateescape"))
                pipe.flush()


def claim(path: Path) -> bool:
    """Return whether this process is the first that claims to be the reason for the end of the job."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:  # the disk is full or the folder is gone: rather two messages than none
        return True
    return True


def main() -> None:
    """Wait for the end of the process whose pipe is standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lines = sys.stdin.buffer.read().decode(errors="surrogateescape").splitlines()
    if len(lines) >= 2 and lines[-1] != ENDED:
        claims, message = lines[-2:]
        if claim(Path(claims)):
            print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
