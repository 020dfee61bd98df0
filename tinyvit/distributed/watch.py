"""Say which process of a group was killed: a small process beside each one waits for its end.

This file, run by itself, reads lines from a pipe whose other end only its own training process holds: the file of
claims, and the message to print. The pipe ends with that process, however it dies. If its last line was not "ended",
the process was killed, and the watcher prints the message, unless another one was first: as soon as one process dies,
mpiexec kills all others, and only the first is the reason. Whoever creates the file of claims is first; its watcher
removes the file when all others have ended.

This file imports the standard library only, since it runs on its own.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ENDED = "ended"
ALL_ENDED = 10.0  # seconds after which all processes of a job have ended, if one has


class Watcher:
    """The watcher of this process. It must be started before MPI is."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-I", "-S", __file__, str(os.getpid()), str(ALL_ENDED)]
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


def claims_without_folder() -> Path:
    """Return the file of claims until there is a run folder: all processes of a job have one parent on a machine."""
    return Path(tempfile.gettempdir(), f"tinyvit-{os.getppid()}.ended")


def claim(path: Path, process: int) -> bool:
    """Return whether `process`, this one by its number, is the first that is the reason for the end of the job."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except OSError:  # the disk is full or the folder is gone: rather two messages than none
        return True
    with suppress(OSError):  # a full disk takes the file, but nothing into it
        os.write(file, str(process).encode())
    os.close(file)
    return True


def main() -> None:
    """Wait for the end of the process whose pipe is standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    process, seconds = int(sys.argv[1]), float(sys.argv[2])
    lines = sys.stdin.buffer.read().decode(errors="surrogateescape").splitlines()
    if len(lines) < 2:
        return
    is_killed = lines[-1] != ENDED
    claims, message = lines[-2:] if is_killed else lines[-3:-1]
    if is_killed and claim(Path(claims), process):
        with suppress(OSError):  # mpiexec, which would show it, was killed too
            print(message, file=sys.stderr, flush=True)
    _remove_claim(Path(claims), process, seconds)


def _remove_claim(path: Path, process: int, seconds: float) -> None:
    """Remove the file of claims after some seconds, if it is of this process; nobody waits for that."""
    own = str(process), ""  # nothing could be written into it if the disk is full
    with suppress(OSError):
        if path.read_text() in own and os.fork() == 0:
            os.closerange(0, 3)  # mpiexec waits for the end of what its processes print
            time.sleep(seconds)
            if path.read_text() in own:
                path.unlink()


if __name__ == "__main__":
    main()
