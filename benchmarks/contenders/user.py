"""A user's own kernel: `--kernel module:function` or `--kernel file.py:function`.

Its backward pass, if it has one, is a function in the same module whose name ends in `_backward`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..cases import Case
from ..inputs import LAYER_NORM_EPS, Arrays
from .base import Contender, Task

SIGNATURES = """\
attention    function(q, k, v) -> out
             function_backward(dout, q, k, v, out) -> dq, dk, dv
             all (B, H, N, D) float32; q, k, v are views of a packed (B, N, 3, H, D); the scale is 1 / sqrt(D)
layer_norm   function(x, weight, bias, eps) -> y
             function_backward(dy, x, weight, eps) -> dx, dweight, dbias
             x, y, dy, dx are (R, C) float32; weight, bias, dweight, dbias (C,)
The backward function is optional."""


class UserKernel(Contender):
    """The option is "module:function" or "file.py:function"."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        place, colon, self.name = option.rpartition(":")
        if not colon or not place or not self.name:
            raise ValueError(f"{option!r} is not of the form module:function or file.py:function")
        self.module = _load(place)
        self._function(self.name)

    def has_backward(self) -> bool:
        """Return whether the module also has a backward function."""
        return hasattr(self.module, f"{self.name}_backward")

    def _function(self, name: str) -> Callable[..., Any]:
        try:
            return getattr(self.module, name)
        except AttributeError:
            raise AttributeError(f"{self.module.__name__} has no function {name}") from None

    def forward(self, case: Case, inputs: Arrays) -> Task:
        function = self._function(self.name)
        arguments: list[Any] = [array for name, array in inputs.items() if name != "dout"]
        if case.operation == "layer_norm":
            arguments.append(LAYER_NORM_EPS)
        return Task(lambda: function(*arguments), lambda out: {"out": out})

    def backward(self, case: Case, inputs: Arrays) -> Task:
        function, dout = self._function(f"{self.name}_backward"), inputs["dout"]
        arguments: list[Any]
        if case.operation == "layer_norm":
            names, arguments = ("dx", "dweight", "dbias"), [inputs["x"], inputs["weight"], LAYER_NORM_EPS]
        else:
            out = self.forward(case, inputs).run()
            names, arguments = ("dq", "dk", "dv"), [inputs["q"], inputs["k"], inputs["v"], out]
        return Task(lambda: function(dout, *arguments), lambda grads: dict(zip(names, grads, strict=True)))


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
