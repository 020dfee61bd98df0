"""Narration: the steps of a rule, told by running the rule itself.

A rule is written over a namespace `xp` and operators. Here it is run with a namespace and with arrays that write down
each step: the source text of the expression that is being computed (from the interpreter's own position table), what
went in, what came out, and the name of the variable that the result was bound to. There is no second text that could
say something else than what runs.
"""

import functools
import inspect
import linecache
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import numpy as np

from ...backend import NUMPY
from ...engine import Op
from .letters import axes_after, axes_of

_HERE = __file__


@dataclass(eq=False)
class Told:
    """An array within a narrated rule: an input of the rule, or the result of one of its steps."""

    value: Any
    name: str | None = None
    axes: tuple[str, ...] | None = None  # a letter for each axis, where known
    local: str | None = None  # of an input: the variable that the rule first binds it to


@dataclass(eq=False)
class Step(Told):
    """One step of a rule.

    Attributes
    ----------
    source : the expression as the rule writes it.  file, line : where its statement is.
    function : "multiply", "matmul", "index" ...  operands : what went in: `Told`s, numbers, and tuples of them.
    params : keyword arguments and the like.
    """

    source: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    operands: tuple[Any, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)


class Untold(LookupError):
    """A rule does what cannot be told step by step."""


@dataclass(eq=False)
class Narration:
    """What a rule did: its inputs by name, its steps in order, and its results."""

    inputs: list[Told]
    steps: list[Step]
    results: tuple[Told | None, ...]

    @property
    def files(self) -> list[str]:
        return sorted({step.file for step in self.steps})


def narrate_forward(op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> Narration:
    """Run the plain forward of an operation on arrays, and tell its steps. Raises Untold, as `narrate_backward`."""
    narrator = _Narrator()
    told = narrator.inputs(op, inputs, [_name(op.inputs, i) for i in range(len(inputs))])
    return narrator.run(op.forward, *told, **params)


def narrate_backward(
    op: type[Op],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    params: dict[str, Any],
    needs: Sequence[bool],
    incoming: Sequence[Any],
) -> Narration:
    """Run the plain gradient rule of an operation on arrays, and tell its steps.

    Parameters
    ----------
    inputs, outputs : arrays (None or a number where the operation was given that) of the forward.
    incoming : the gradient of each output, None for one that nobody used.
    """
    narrator = _Narrator()
    sources = {s for s, reader in op.sources if reader is None or needs[reader]}
    given = narrator.inputs(op, inputs, [_name(op.inputs, i) for i in range(len(inputs))], sources)
    made = [
        Told(y, name, axes_of(op.name, name, y))
        for y, name in zip(outputs, _output_names(op, len(outputs)), strict=True)
    ]
    narrator.told += [t for i, t in enumerate(made) if ~i in sources]
    application = op.application(given, [_Array(narrator, t) for t in made], params, needs)
    names = gradient_names(op, len(incoming))
    outputs_axes = [axes_of(op.name, t.name or "", t.value) for t in made]
    told = [
        None if dy is None else Told(dy, name, axes)
        for dy, name, axes in zip(incoming, names, outputs_axes, strict=True)
    ]
    narrator.told += [t for t in told if t is not None]
    return narrator.run(application.backward, *told)


def _name(names: Sequence[str], i: int) -> str:
    return names[i] if i < len(names) - 1 or len(names) == i + 1 else f"{names[-1]}_{i}"


def _output_names(op: type[Op], count: int) -> list[str]:
    return list(op.outputs) if len(op.outputs) == count else [f"{op.outputs[0]}_{i}" for i in range(count)]


def gradient_names(op: type[Op], count: int) -> list[str]:
    """What the rule itself calls the gradients that come in."""
    parameters = list(inspect.signature(op.backward).parameters.values())[2:]
    names = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL]
    return names if len(names) == count else [f"{parameters[-1].name.rstrip('s')}_{i}" for i in range(count)]


class _Narrator:
    """The namespace `xp` of a narrated rule."""

    # Extras that are themselves rules over `xp`: they tell their own steps.
    _OPEN = frozenset({"sigmoid", "log_softmax"})

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.told: list[Told] = []

    def inputs(self, op: type[Op], arrays: Sequence[Any], names: list[str], seen: set[int] | None = None) -> list[Any]:
        """`arrays` as the rule is given them; of those in `seen`, or all, the narration tells."""
        given = [
            _Array(self, Told(x, name, axes_of(op.name, name, x))) if hasattr(x, "dtype") else x
            for x, name in zip(arrays, names, strict=True)
        ]
        self.told += [g._told for i, g in enumerate(given) if isinstance(g, _Array) and (seen is None or i in seen)]
        return given

    def run(self, rule: Callable[..., Any], *arrays: Any, **params: Any) -> Narration:
        """Run `rule(xp, *arrays, **params)`; what it binds to variables gets their names."""
        arguments = [_Array(self, a) if isinstance(a, Told) else a for a in arrays]
        before = sys.gettrace()
        sys.settrace(_name_what_is_bound)
        try:
            results = rule(self, *arguments, **params)
        except Exception as error:  # the rule ran on plain arrays: it is this one's arrays that it could not take
            raise Untold(f"its steps cannot be told one by one ({error})") from error
        finally:
            sys.settrace(before)
        results = results if isinstance(results, tuple) else (results,)
        return Narration(self.told, self.steps, tuple(r._told if isinstance(r, _Array) else None for r in results))

    def __getattr__(self, name: str) -> Any:
        if name in self._OPEN:
            return functools.partial(NUMPY.extras[name], self)
        return _Function(self, name)

    def step(self, function: str, compute: Callable[..., Any], *operands: Any, **params: Any) -> Any:
        """Compute a step on what the operands hold, and write it down."""
        raw = [_bare(x) for x in operands]
        result = compute(*raw, **{k: _bare(v) for k, v in params.items()})
        if isinstance(result, (tuple, list)):
            return type(result)(self._written(r, f"{function}[{i}]", operands, params) for i, r in enumerate(result))
        for x in operands:  # nothing happened: a sum to the shape it has already
            if isinstance(x, _Array) and x._live is result:
                return x
        return self._written(result, function, operands, params)

    def _written(self, result: Any, function: str, operands: Sequence[Any], params: dict[str, Any]) -> Any:
        if not isinstance(result, (np.ndarray, np.generic)):
            return result
        source, file, line = _where()
        told = tuple(_told(x) for x in operands)
        given = {k: _told(v) for k, v in params.items()}
        step = Step(result, source=source, file=file, line=line, function=function, operands=told, params=given)
        step.axes = axes_after(function, told, step.params, np.shape(result))
        self.steps.append(step)
        return _Array(self, step)


class _Function:
    """A function of `xp`; of a ufunc also `at`."""

    def __init__(self, narrator: _Narrator, name: str) -> None:
        self._narrator, self._name = narrator, name

    def __call__(self, *arguments: Any, **params: Any) -> Any:
        return self._narrator.step(self._name, getattr(NUMPY, self._name), *arguments, **params)

    def at(self, target: "_Array", index: Any, x: Any) -> None:
        getattr(NUMPY, self._name).at(target._live, _bare(index), _bare(x))
        target._became(f"{self._name}.at", (x,), {"index": index})


def _operator(function: str, compute: Callable[[Any, Any], Any], swapped: bool = False) -> Callable[..., Any]:
    def apply(self: "_Array", other: Any) -> Any:
        first, second = (other, self) if swapped else (self, other)
        return self._narrator.step(function, compute, first, second)

    return apply


def _unary(function: str, compute: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda self: self._narrator.step(function, compute, self)


class _Array:
    """An array in the hands of a narrated rule: everything that is done to it is a step."""

    __array_ufunc__ = None  # array + told is left to __radd__
    __hash__ = object.__hash__

    def __init__(self, narrator: _Narrator, told: Told) -> None:
        self._narrator, self._told = narrator, told
        self._live = told.value  # what is computed with; `told` keeps what it was if the rule changes it in place
        self._part_of: tuple[_Array, Any] | None = None  # of a view: of which array, at which index
        if isinstance(told, Step) and told.function in ("zeros", "empty", "copy", "index"):
            told.value = np.array(told.value)

    shape = property(lambda self: np.shape(self._told.value))
    ndim = property(lambda self: np.ndim(self._told.value))
    size = property(lambda self: np.size(self._told.value))
    T = property(lambda self: self._narrator.step("transpose", np.transpose, self))
    dtype = property(lambda self: self._told.value.dtype)
    flags = property(lambda self: self._told.value.flags)
    base = None

    def __len__(self) -> int:
        return len(self._told.value)

    def __bool__(self) -> bool:
        return bool(self._live)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        result = self._narrator.step("index", lambda x, index: x[index], self, index=index)
        if isinstance(result, _Array) and result is not self and np.may_share_memory(result._live, self._live):
            result._part_of = self, index
        return result

    def __setitem__(self, index: Any, x: Any) -> None:
        self._live[_bare(index)] = _bare(x)
        self._became("put", (x,), {"index": index})

    def __iadd__(self, x: Any) -> "_Array":  # type: ignore[misc]  # __add__ is made below, by a function
        self._live += _bare(x)
        self._became("add", (x,), {})
        return self

    def _became(self, function: str, operands: Sequence[Any], params: dict[str, Any]) -> None:
        """Write down that the array was changed in place, which rules do to arrays of their own."""
        self._told = self._narrator._written(np.array(self._live), function, [self, *operands], params)._told
        if self._part_of is not None:
            whole, index = self._part_of
            whole._became("put", (self,), {"index": index})

    def astype(self, dtype: Any) -> Any:
        return self._narrator.step("astype", lambda x, dtype: x.astype(dtype), self, dtype=dtype)

    def reshape(self, *shape: Any) -> Any:
        return self._narrator.step("reshape", lambda x, shape: x.reshape(shape), self, shape=shape)

    def copy(self) -> Any:
        return self._narrator.step("copy", np.array, self)

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


def _bare(x: Any) -> Any:
    """What NumPy is given for an operand: arrays for narrated arrays, within tuples and lists too."""
    if isinstance(x, _Array):
        return x._live
    if type(x) in (tuple, list):
        return type(x)(_bare(v) for v in x)
    return x


def _told(x: Any) -> Any:
    if isinstance(x, _Array):
        return x._told
    if type(x) in (tuple, list):
        return tuple(_told(v) for v in x)
    return x


# Where in the rule ---------------------------------------------------------------------------------------------------


@functools.cache
def _positions(code: CodeType) -> list[tuple[int | None, ...]]:
    return list(code.co_positions())


def _where() -> tuple[str, str, int]:
    """The text of the expression that the rule is computing, its file, and the first line of it."""
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


def _name_what_is_bound(frame: FrameType, event: str, argument: Any) -> Any:
    """A trace function: results get the name of the first variable of the rule that they are bound to."""
    if frame.f_code.co_filename == _HERE or frame.f_globals.get("__name__", "").partition(".")[0] == "numpy":
        return None
    for name, value in frame.f_locals.items():
        if isinstance(value, _Array) and name != "_" and not name.startswith("."):
            told = value._told
            if told.name is None:
                told.name = name
            elif told.local is None and not isinstance(told, Step):
                told.local = name
    return _name_what_is_bound
