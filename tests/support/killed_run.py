"""Train or resume a run in a process that may die in a chosen way: `python killed_run.py JSON`.

The JSON names the arguments of `tinyvit`, the kernels, and a death. Every call that changes the run folder is an event:
opening a new file, writing, syncing, linking, renaming. A death happens at one event, or after one step.
"""

import builtins
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ERRORS = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "broken": errno.EIO}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Death:
    """The death of this process at event number `event`, counted from 0.

    `how` is "before" or "after" (SIGKILL; "after" a write is in the middle of it), or a key of ERRORS: then that event
    fails, and all further ones that need space, until this process ends.
    """

    def __init__(self, how: str, event: int) -> None:
        self.how, self.left = how, event
        os.fsync = self.guarded(os.fsync)
        os.link = self.guarded(os.link)
        os.replace = self.guarded(os.replace)
        self.open, builtins.open = builtins.open, self.open_new

    def guarded(self, call: Callable[..., Any], middle: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.how in ERRORS and self.left < 0:
                (middle or (lambda *_: None))(*arguments)
                raise OSError(ERRORS[self.how], os.strerror(ERRORS[self.how]))
            if self.how == "before" and self.left < 0:
                die()
            if self.how == "after" and self.left < 0:
                self.last = (middle or call)(*arguments, **options)  # an open file is not closed, nor warned of
                die()
            return call(*arguments, **options)

        return guarded

    def open_new(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "x" not in mode:
            return self.open(file, mode, *arguments, **options)
        opened = self.guarded(self.open)(file, mode, *arguments, **options)
        return File(opened, self)


class File:
    """A file whose writing is guarded."""

    def __init__(self, file: Any, death: Death) -> None:
        self.file, self.death = file, death

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def _half(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()

    def write(self, data: bytes) -> int:
        return self.death.guarded(self.file.write, self._half)(data)


def plan(death: dict[str, Any]) -> None:
    """Prepare a death: at an event, after a step, or by the system's limit for the size of a file."""
    from tinyvit.run.display import Lines

    match death:
        case {"how": "step", "step": step}:
            left = [step]

            def stepped(display: Lines, position: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    die()

            Lines.stepped = stepped  # type: ignore[method-assign]
        case {"how": "limit", "bytes": size}:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        case {"how": str(how), "event": event}:
            Death(how, event)


def main(arguments: list[str], kernels: str, death: dict[str, Any]) -> None:
    """Run the command line on small data sets; the curves are not drawn, which would take as long as the rest."""
    import tinyvit as tv
    import tinyvit.run.loop
    from tinyvit import cli
    from tinyvit.checkpoint import atomic_write
    from tinyvit.data import moving, scenes

    scenes.TRAIN_SCENES, scenes.TEST_SCENES = 40, 12
    moving.COUNTS = {"train": 40, "test": 20}
    tinyvit.run.loop.draw_curves = lambda path, *_: atomic_write(Path(path), b"curves")
    tinyvit.run.results.draw_confusion = lambda path, *_: atomic_write(Path(path), b"confusion")
    plan(death)
    sys.argv = ["tinyvit", *arguments]
    with tv.use_kernels(kernels) if kernels != "auto" else nullcontext():
        cli.main()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
