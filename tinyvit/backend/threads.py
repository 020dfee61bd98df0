"""Threads, where Python can start them. Where it cannot, as in a browser, the calling thread does their work.

Every other file asks here; none tests which system it runs on.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def can_start_threads() -> bool:
    """Return whether this process can start a thread, by starting one that does nothing.

    Python in a browser has the module `threading`, and refuses to start a thread with a RuntimeError.
    """
    thread = threading.Thread(target=int)
    try:
        thread.start()
    except RuntimeError:
        return False
    thread.join()
    return True


def pool_of_threads(count: int | None = None, name: str = "") -> Executor:
    """Return an executor with `count` threads, or one that computes in the calling thread where none can be started.

    `count` and `name` are those of `ThreadPoolExecutor`. What is submitted gives the same results and raises the same
    errors either way.
    """
    return ThreadPoolExecutor(count, name) if can_start_threads() else _CallingThread()


class _CallingThread(Executor):
    """An executor that computes what is submitted at once, before `submit` returns."""

    def submit(
        self, fn: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> "Future[Result]":
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # KeyboardInterrupt is raised here, in the thread that called `submit`
            future.set_exception(error)
        return future
