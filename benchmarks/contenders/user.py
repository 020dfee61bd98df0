"""A user's own kernel: `--kernel module:function` or `--kernel file.py:function`.

Its backward pass, if it has one, is a function in the same module whose name ends in `_backward`.
"""

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..cases import Case, meant
from ..inputs import LAYER_NORM_EPS, Arrays
from ..verify import WrongOutputError
from .base import Contender, Task
from .own_code import definition, own_error

SIGNATURES = """\
attention    function(q, k, v) -> out
             function_backward(dout, q, k, v, out) -> dq, dk, dv
             all (B, H, N, D) float32; q, k, v are views of a packed (B, N, 3, H, D); the scale is 1 / sqrt(D)
layer_norm   function(x, weight, bias, eps) -> y
             function_backward(dy, x, weight, eps) -> dx, dweight, dbias
             x, y, dy, dx are (R, C) float32; weight, bias, dweight, dbias (C,)
The backward function is optional. A function must return new arrays and leave its arguments as they are."""


class UserKernel(Contender):
    """The option is "module:function" or "file.py:function"."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        place, colon, self.name = option.rpartition(":")
        if not colon or not place or not self.name:
            raise ValueError(f"{option!r} is not of the form module:function or file.py:function{_choices(option)}")
        try:
            self.module = _load(place)
        except Exception as error:
            raise own_error(error) from error
        self._function(self.name)

    def has_backward(self) -> bool:
        """Return whether the module also has a backward function."""
        return hasattr(self.module, f"{self.name}_backward")

    def _function(self, name: str) -> Callable[..., Any]:
        try:
            function = getattr(self.module, name)
        except AttributeError:
            raise AttributeError(f"{self.module.__name__} has no function {name!r}{self._others(name)}") from None
        if not callable(function):
            raise TypeError(f"{self.module.__name__}.{name} is {type(function).__name__}, not a function")
        return function

    def _others(self, name: str) -> str:
        """Say which functions the module has, and which of them may be meant by `name`."""
        own = [
            other
            for other, value in vars(self.module).items()
            if callable(value) and getattr(value, "__module__", "") == self.module.__name__
        ]
        return f"{meant(name, own)}; available: {', '.join(own)}" if own else ", nor any other"

    def forward(self, case: Case, inputs: Arrays) -> Task:
        arguments: dict[str, Any] = {name: array for name, array in inputs.items() if name != "dout"}
        if case.operation == "layer_norm":
            arguments["eps"] = LAYER_NORM_EPS
        first = next(iter(arguments))
        return _task(self._function(self.name), arguments, {"out": inputs[first]})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        arguments: dict[str, Any]
        if case.operation == "layer_norm":
            arguments = {"dy": inputs["dout"], "x": inputs["x"], "weight": inputs["weight"], "eps": LAYER_NORM_EPS}
            like = ("x", "weight", "bias")
        else:
            forward = self.forward(case, inputs)
            arguments = {"dout": inputs["dout"]} | {name: inputs[name] for name in ("q", "k", "v")}
            arguments |= forward.outputs(forward.run())
            like = ("q", "k", "v")
        return _task(self._function(f"{self.name}_backward"), arguments, {f"d{name}": inputs[name] for name in like})


# Calls, and what they return ------------------------------------------------------------------------------------------


def _task(function: Callable[..., Any], arguments: dict[str, Any], like: Arrays) -> Task:
    """Make the task of a call. Its results must have the names and shapes of `like`, and leave the arguments alone."""
    given = list(arguments.values())
    copies = {name: value.copy() for name, value in arguments.items() if isinstance(value, np.ndarray)}

    def run() -> Any:
        try:
            return function(*given)
        except Exception as error:
            raise own_error(error, f", in {definition(function)}, called with ({', '.join(arguments)})") from error

    def outputs(result: Any) -> Arrays:
        for name, copy in copies.items():
            if not np.array_equal(arguments[name], copy, equal_nan=True):
                raise WrongOutputError(
                    f"it changed its argument {name} in place, which others still need: write the results into new "
                    f"arrays, such as `{name} = {name} * 2` in place of `{name} *= 2` ({definition(function)})"
                )
        return _named(result, like, definition(function))

    return Task(run, outputs)


def _named(result: Any, like: Arrays, place: str) -> Arrays:
    """Give the results of a call their names; WrongOutputError if number, dtype or shape are not those of `like`."""
    wanted = ", ".join(like)
    if result is None:
        raise WrongOutputError(f"it returned None, not {wanted}: is there a `return` at its end? ({place})")
    several = isinstance(result, (tuple, list))
    results = list(result) if several else [result]
    if len(results) != len(like) or (several and len(like) == 1):
        came = f"a {type(result).__name__} of {len(results)}" if several else f"a single {type(result).__name__}"
        raise WrongOutputError(f"it returned {came}, and must return {wanted} ({place})")
    named = dict(zip(like, (np.asarray(array) for array in results), strict=True))
    for name, array in named.items():
        _check(name, array, like[name], place)
    return named


def _check(name: str, array: np.ndarray, like: np.ndarray, place: str) -> None:
    if array.dtype != np.float32:
        hint = f"return `{name}.astype(np.float32)`"
        if array.dtype == np.float64:
            hint = "NumPy's float64 numbers, such as np.sqrt(64), make results float64; take np.float32(...) of them"
        raise WrongOutputError(f"{name} has dtype {array.dtype}, not float32: {hint} ({place})")
    if array.shape != like.shape:
        hint = ": its axes are in another order" if sorted(array.shape) == sorted(like.shape) else ""
        raise WrongOutputError(f"{name} has shape {array.shape}, not {like.shape}{hint} ({place})")


def _choices(option: str) -> str:
    """Say which functions a file has, if `option` is the path of one, without running it."""
    file = Path(option.rstrip(":"))
    if not file.is_file():
        return ""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    names = [part.name for part in tree.body if isinstance(part, ast.FunctionDef)]
    names = [name for name in names if not name.startswith("_") and not name.endswith("_backward")]
    return f"; functions in the file: {', '.join(names)}" if names else ""


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not Path(place).is_file():
        from tinyvit.backend.files import missing  # as for `meant`: other contenders do without tinyvit

        raise FileNotFoundError(missing(place))
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
