"""The settings of the current thread (recording, precision, kernels, device, recorder) in one frozen value.

Every `with` of the library (`no_grad`, `autocast`, `use_kernels`, `study.trace`) replaces fields of this value on entry
and puts them back on exit. A new thread starts from the defaults, which `set_default` changes.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Self, TypeVar

import ml_dtypes
import numpy as np

PRECISIONS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
Function = TypeVar("Function", bound=Callable[..., Any])


class Context(NamedTuple):
    """The settings of one thread.

    Attributes
    ----------
    recording : whether operations are put on the tape (see `no_grad`).
    precision : the dtype of `autocast`, None where it changes nothing.
    kernels : the name that was last given to `use_kernels`.
    device : the device of tensors that are created without one.
    recorder : runs operations and gradient rules in their place, to record them (see `study.trace`); None without one.
    drawing : whether new parameters get random values (see `no_draws`).
    """

    recording: bool = True
    precision: np.dtype | None = None
    kernels: str = "auto"
    device: str = "cpu"
    recorder: Any = None
    drawing: bool = True


_defaults = Context()


class _Thread(threading.local):
    def __init__(self) -> None:
        self.now = _defaults
        self.replaced: dict[int, list[dict[str, Any]]] = {}  # by context manager: the fields that its entries replaced


_thread = _Thread()


def now() -> Context:
    """The settings of this thread."""
    return _thread.now


def set_here(**fields: Any) -> None:
    """Change settings of this thread for good."""
    _thread.now = _thread.now._replace(**fields)


def set_default(**fields: Any) -> None:
    """Change settings of this thread for good, and those that later threads start from."""
    global _defaults
    _defaults = _defaults._replace(**fields)
    set_here(**fields)


class changed:
    """Replace fields of this thread's settings within a `with` block, or while a decorated function runs.

    Making one changes nothing (except `use_kernels`, which is also a call). One instance can be entered any number of
    times, nested and by several threads. On exit only the fields that it replaced are put back, so that blocks which
    end in another order than they began (those of generators) do not undo one another. The body of a decorated
    generator runs with the change; its caller does not.
    """

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __enter__(self) -> Self:
        before = _thread.now
        replaced = {name: getattr(before, name) for name in self._fields}
        _thread.replaced.setdefault(id(self), []).append(replaced)
        _thread.now = before._replace(**self._fields)
        return self

    def __exit__(self, *_: object) -> None:
        entries = _thread.replaced[id(self)]
        _thread.now = _thread.now._replace(**entries.pop())
        if not entries:
            del _thread.replaced[id(self)]

    def __call__(self, function: Function) -> Function:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{type(self).__name__} cannot decorate the asynchronous {function.__qualname__}")
        body = self._resumed if inspect.isgeneratorfunction(function) else self._called

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return body(function, args, kwargs)

        return wrapped  # type: ignore[return-value]

    def _called(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self:
            return function(*args, **kwargs)

    def _resumed(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Generator[Any, Any, Any]:
        """The generator that `function` returns, with the change while its body runs and without it between."""
        body = function(*args, **kwargs)
        resume, argument = body.send, None
        try:
            while True:
                with self:
                    try:
                        value = resume(argument)
                    except StopIteration as end:
                        return end.value
                try:
                    argument = yield value
                    resume = body.send
                except GeneratorExit:  # `finally` closes the body, inside the change as well
                    raise
                except BaseException as error:
                    resume, argument = body.throw, error
        finally:
            with self:
                body.close()


class no_grad(changed):
    """Record nothing on the tape within this block (`with no_grad():`) or function (`@no_grad()`)."""

    def __init__(self) -> None:
        super().__init__(recording=False)


class no_draws(changed):
    """Leave new parameters at zero within this block instead of drawing them: their values are about to be loaded."""

    def __init__(self) -> None:
        super().__init__(drawing=False)


class autocast(changed):
    """Within this block or function, matrix products, attention and GELU compute in `dtype`; gradients are float32.

    How an operation is treated stands in its class (`Op.autocast`). float64 is left alone. (Micikevicius et al., Mixed
    precision training, 2018.)

    Parameters
    ----------
    dtype : {"bfloat16", "float16", "float32"}; "float32" changes nothing.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in PRECISIONS:
            raise ValueError(f"autocast: dtype is {dtype!r}; it must be one of {', '.join(PRECISIONS)}")
        super().__init__(precision=None if dtype == "float32" else PRECISIONS[dtype])
