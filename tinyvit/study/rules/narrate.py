"""Narration: a rule's steps, found by running the rule itself.

A rule is written over a namespace `xp` and operators. Here it runs with a namespace and with arrays that record each
step: the source text of the expression that is being computed (from the interpreter's own position table), its
operands, its result, and the name of the variable that the result was bound to. No second text exists that could
differ from what runs.
"""

import functools
import inspect
import linecache
import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import numpy as np

from ...backend import NUMPY
from ...engine import Op
from .axes import axes_of
from .functions import function_of
from .steps import Narration, NarrationError, Operand, Step
from .written import name_steps

_HERE = __file__
_RULES = ("forward", "backward")  # the functions whose results have names of their own


def narrate_forward(op: type[Op], inputs: Sequence[Any], params: dict[str, Any], is_usual: bool = True) -> Narration:
    """Run the plain forward of an operation on arrays, and record its steps. Raises NarrationError.

    `is_usual` says whether axes have the usual letters, see `axes_of`.
    """
    narrator = _Narrator(is_usual)
    given = narrator.inputs(op, inputs, [_name(op.inputs, i) for i in range(len(inputs))])
    narration = narrator.run(op.forward, *given, **params)
    name_steps(narration, output_names(op, len(narration.results)), narrator.returned)
    return narration


def narrate_backward(
    op: type[Op],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    params: dict[str, Any],
    needs: Sequence[bool],
    incoming: Sequence[Any],
    is_usual: bool = True,
) -> Narration:
    """Run the plain gradient rule of an operation on arrays, and record its steps.

    Parameters
    ----------
    inputs, outputs : the forward's arrays; an input may also be a number or None.
    needs : for each input, whether its gradient is wanted.
    incoming : the gradient of each output, None for an output that nobody used.
    is_usual : whether axes have the usual letters, see `axes_of`.

    Raises
    ------
    NarrationError
    """
    narrator = _Narrator(is_usual)
    sources = {s for s, reader in op.sources if reader is None or needs[reader]}
    given = narrator.inputs(op, inputs, [_name(op.inputs, i) for i in range(len(inputs))], sources)
    names = zip(output_names(op, len(outputs)), _declared_names(op, len(outputs)), strict=True)
    made = [
        Operand(y, name, axes_of(op, declared, y, is_usual)) for y, (name, declared) in zip(outputs, names, strict=True)
    ]
    narrator.given += [y for i, y in enumerate(made) if ~i in sources]
    application = op.application(given, [narrator.narrated(y) for y in made], params, needs)
    gradients = [
        None if dy is None else Operand(dy, name, y.axes)
        for dy, name, y in zip(incoming, gradient_names(op, len(incoming)), made, strict=True)
    ]
    narrator.given += [dy for dy in gradients if dy is not None]
    narration = narrator.run(application.backward, *[None if dy is None else narrator.narrated(dy) for dy in gradients])
    results = [f"d{_name(op.inputs, i)}" for i in range(len(narration.results))]
    name_steps(narration, results, narrator.returned)
    return narration


def _name(names: Sequence[str], i: int) -> str:
    return names[i] if i < len(names) - 1 or len(names) == i + 1 else f"{names[-1]}_{i}"


def output_names(op: type[Op], count: int) -> list[str]:
    """The names of the outputs: those of their gradients in the rule without the d, if the docstring has them too.

    So the formula, the forward pass and the gradient rule give one name to one array, where the class only says "out".
    """
    names = []
    for gradient, declared in zip(gradient_names(op, count), _declared_names(op, count), strict=True):
        own, word = gradient[1:], re.sub(r"_\d+$", "", gradient[1:])
        is_known = gradient[:1] == "d" and word and re.search(rf"(?<![A-Za-z]){word}(?![A-Za-z])", op.__doc__ or "")
        names.append(own if is_known else declared)
    return names


def _declared_names(op: type[Op], count: int) -> list[str]:
    return list(op.outputs) if len(op.outputs) == count else [f"{op.outputs[0]}_{i}" for i in range(count)]


def gradient_names(op: type[Op], count: int) -> list[str]:
    """The names that the gradient rule itself gives to the gradients of the outputs."""
    parameters = list(inspect.signature(op.backward).parameters.values())[2:]
    names = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL]
    return names if len(names) == count else [f"{parameters[-1].name.rstrip('s')}_{i}" for i in range(count)]


class _Narrator:
    """The namespace `xp` of a narrated rule; it collects the rule's inputs in `given` and its steps in `steps`.

    `returned` has the results of functions that the rule calls, with the names of these functions. `scopes` has the
    code that each name belongs to: a function that the rule calls may use the same name for another array.
    """

    def __init__(self, is_usual: bool) -> None:
        self._is_usual = is_usual
        self.steps: list[Step] = []
        self.given: list[Operand] = []
        self.returned: list[tuple[Operand, str]] = []
        self.scopes: dict[str, CodeType] = {}

    def narrated(self, operand: Operand) -> "_Array":
        return _Array(self, operand)

    def inputs(self, op: type[Op], arrays: Sequence[Any], names: list[str], seen: set[int] | None = None) -> list[Any]:
        """The rule's arguments for `arrays`. The narration lists those whose number is in `seen`; by default all."""
        arguments = [
            self.narrated(Operand(x, name, axes_of(op, name, x, self._is_usual))) if hasattr(x, "dtype") else x
            for x, name in zip(arrays, names, strict=True)
        ]
        self.given += [
            x.operand for i, x in enumerate(arguments) if isinstance(x, _Array) and (seen is None or i in seen)
        ]
        return arguments

    def run(self, rule: Callable[..., Any], *arguments: Any, **params: Any) -> Narration:
        """Run `rule(xp, *arguments, **params)`; the results get the names of the variables they are bound to."""
        code = getattr(rule, "__func__", rule).__code__
        self.scopes = dict.fromkeys([*code.co_varnames, *(x.name for x in self.given if x.name)], code)
        before = sys.gettrace()
        sys.settrace(_name_bound_results)
        try:
            results = rule(self, *arguments, **params)
        except Exception as error:  # the rule runs on plain arrays, so it is these arrays that it cannot work with
            raise NarrationError(f"the steps of this rule cannot be narrated ({error})") from error
        finally:
            sys.settrace(before)
        results = results if isinstance(results, tuple) else (results,)
        operands = tuple(r.operand if isinstance(r, _Array) else None for r in results)
        return Narration(self.given, self.steps, operands)

    def __getattr__(self, name: str) -> Any:
        if function_of(name).is_opened:
            return functools.partial(NUMPY.extras[name], self)
        return _Function(self, name)

    def step(self, function: str, compute: Callable[..., Any], *operands: Any, **params: Any) -> Any:
        """Compute a step on the arrays that the operands hold, and record it."""
        plain = [_plain(x) for x in operands]
        result = compute(*plain, **{k: _plain(v) for k, v in params.items()})
        if isinstance(result, (tuple, list)):
            return type(result)(self.add_step(r, f"{function}[{i}]", operands, params) for i, r in enumerate(result))
        for x in operands:  # not a step: for example a sum to the shape that the array already has
            if isinstance(x, _Array) and x.live is result:
                return x
        return self.add_step(result, function, operands, params)

    def add_step(self, result: Any, function: str, operands: Sequence[Any], params: dict[str, Any]) -> Any:
        """Add a step with this result, and return the result for the rule to work with."""
        if not isinstance(result, (np.ndarray, np.generic)):
            return result
        source, file, line = _place_in_rule()
        step = Step(result, source=source, file=file, line=line, function=function)
        step.operands = tuple(_operand(x) for x in operands)
        step.params = {k: _operand(v) for k, v in params.items()}
        step.axes = function_of(function).axes_of(step)
        self.steps.append(step)
        return self.narrated(step)


class _Function:
    """A function of `xp`; for a ufunc also `at`."""

    def __init__(self, narrator: _Narrator, name: str) -> None:
        self._narrator, self._name = narrator, name

    def __call__(self, *arguments: Any, **params: Any) -> Any:
        return self._narrator.step(self._name, getattr(NUMPY, self._name), *arguments, **params)

    def at(self, target: "_Array", index: Any, x: Any) -> None:
        getattr(NUMPY, self._name).at(target.live, _plain(index), _plain(x))
        target.changed_by(f"{self._name}.at", (x,), {"index": index})


def _operator(function: str, compute: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[..., Any]:
    def apply(self: "_Array", other: Any) -> Any:
        first, second = (other, self) if swapped else (self, other)
        return self.narrator.step(function, compute, first, second)

    return apply


def _unary(function: str, compute: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda self: self.narrator.step(function, compute, self)


class _Array:
    """The array that a narrated rule works with: every operation on it becomes a step.

    `live` is the array that computes; `operand.value` stays as it was if the rule changes the array in place.
    """

    __array_ufunc__ = None  # leaves `array + narrated` to __radd__
    __hash__ = object.__hash__

    def __init__(self, narrator: _Narrator, operand: Operand) -> None:
        self.narrator, self.operand = narrator, operand
        self.live = operand.value
        self.view_of: tuple[_Array, Any] | None = None  # the array that this is a view of, and the index
        if isinstance(operand, Step) and operand.function in ("zeros", "empty", "copy", "index"):
            operand.value = np.array(operand.value)  # rules fill these in place

    shape = property(lambda self: np.shape(self.operand.value))
    ndim = property(lambda self: np.ndim(self.operand.value))
    size = property(lambda self: np.size(self.operand.value))
    T = property(lambda self: self.narrator.step("transpose", np.transpose, self))
    dtype = property(lambda self: self.operand.value.dtype)
    flags = property(lambda self: self.operand.value.flags)
    base = None

    def __len__(self) -> int:
        return len(self.operand.value)

    def __bool__(self) -> bool:
        return bool(self.live)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        result = self.narrator.step("index", lambda x, index: x[index], self, index=index)
        if isinstance(result, _Array) and result is not self and np.may_share_memory(result.live, self.live):
            result.view_of = self, index
        return result

    def __setitem__(self, index: Any, x: Any) -> None:
        self.live[_plain(index)] = _plain(x)
        self.changed_by("put", (x,), {"index": index})

    def __iadd__(self, x: Any) -> "_Array":  # type: ignore[misc]  # __add__ comes from a function, below
        self.live += _plain(x)
        self.changed_by("add", (x,), {})
        return self

    def changed_by(self, function: str, operands: Sequence[Any], params: dict[str, Any]) -> None:
        """Record a change in place as a step; rules make them to their own arrays only."""
        self.operand = self.narrator.add_step(np.array(self.live), function, [self, *operands], params).operand
        if self.view_of is not None:
            base, index = self.view_of
            base.changed_by("put", (self,), {"index": index})

    def astype(self, dtype: Any) -> Any:
        return self.narrator.step("astype", lambda x, dtype: x.astype(dtype), self, dtype=dtype)

    def reshape(self, *shape: Any) -> Any:
        return self.narrator.step("reshape", lambda x, shape: x.reshape(shape), self, shape=shape)

    def copy(self) -> Any:
        return self.narrator.step("copy", np.array, self)

    __add__, __radd__ = _operator("add", operator.add), _operator("add", operator.add, True)
    __sub__, __rsub__ = _operator("subtract", operator.sub), _operator("subtract", operator.sub, True)
    __mul__, __rmul__ = _operator("multiply", operator.mul), _operator("multiply", operator.mul, True)
    __truediv__, __rtruediv__ = _operator("divide", operator.truediv), _operator("divide", operator.truediv, True)
    __pow__, __rpow__ = _operator("power", operator.pow), _operator("power", operator.pow, True)
    __matmul__, __rmatmul__ = _operator("matmul", operator.matmul), _operator("matmul", operator.matmul, True)
    __and__, __or__ = _operator("and", operator.and_), _operator("or", operator.or_)
    __lt__, __le__ = _operator("less", operator.lt), _operator("less_equal", operator.le)
    __gt__, __ge__ = _operator("greater", operator.gt), _operator("greater_equal", operator.ge)
    __eq__, __ne__ = _operator("equal", operator.eq), _operator("not_equal", operator.ne)
    __neg__, __abs__ = _unary("negative", operator.neg), _unary("abs", operator.abs)
    __invert__ = _unary("not", operator.invert)


def _plain(x: Any) -> Any:
    """NumPy arrays in place of narrated ones, within tuples and lists too."""
    if isinstance(x, _Array):
        return x.live
    if type(x) in (tuple, list):
        return type(x)(_plain(v) for v in x)
    return x


def _operand(x: Any) -> Any:
    """Operands in place of narrated arrays, within tuples and lists too."""
    if isinstance(x, _Array):
        return x.operand
    if type(x) in (tuple, list):
        return tuple(_operand(v) for v in x)
    return x


# The place in the rule's source --------------------------------------------------------------------------------------


@functools.cache
def _positions(code: CodeType) -> list[tuple[int | None, ...]]:
    return list(code.co_positions())


def _place_in_rule() -> tuple[str, str, int]:
    """The source text of the expression that the rule is computing, its file, and its first line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in (_HERE, functools.__file__):
        frame = frame.f_back
    assert frame is not None
    first, last, start, end = _positions(frame.f_code)[frame.f_lasti // 2]
    file, line = frame.f_code.co_filename, frame.f_lineno
    if first is None or last is None:
        return "", file, line
    lines = [linecache.getline(file, n).encode() for n in range(first, last + 1)]  # columns count bytes
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    text = " ".join(part.decode().split("  # ")[0].strip() for part in lines)
    return text.replace("( ", "(").replace(" )", ")"), file, first


def _name_bound_results(frame: FrameType, event: str, argument: Any) -> Any:
    """A trace function that gives each result the name of the first variable of the rule that it is bound to."""
    if frame.f_code.co_filename == _HERE or frame.f_globals.get("__name__", "").partition(".")[0] == "numpy":
        return None
    for name, value in frame.f_locals.items():
        if isinstance(value, _Array) and name != "_" and not name.startswith("."):
            operand = value.operand
            if operand.name is None:
                if value.narrator.scopes.setdefault(name, frame.f_code) is frame.f_code:
                    operand.name = name
            elif operand.local is None and not isinstance(operand, Step):
                operand.local = name
    function = frame.f_code.co_name
    if event == "return" and isinstance(argument, _Array) and function.isidentifier() and function not in _RULES:
        argument.narrator.returned.append((argument.operand, function))
    return _name_bound_results
