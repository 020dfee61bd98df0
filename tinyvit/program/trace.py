"""Run a forward pass once, and record the applications of operations in it and the functions of NumPy on arrays."""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import context
from ..backend import default_generator, is_on_gpu
from ..engine import Op, Tensor
from ..nn import Module
from .graph import ArrayFunction, Ref, Step, mapped
from .stand_in import StandIn, TraceError


class Trace:
    """The record of one forward pass.

    Attributes
    ----------
    arrays : the values by number: of constants the arrays, of all others an example, or one without memory of its own
        that has its shape and dtype, once no function can be called on it any more.
    names : of inputs and parameters, by number.
    steps : what was done, in order.
    depends : whether a value depends on the inputs, by number.
    inputs : numbers of the inputs.  result : what was returned, with a `Ref` in the place of each array.
    """

    def __init__(self, parameters: Mapping[str, Any], scopes: Mapping[int, str]) -> None:
        self.arrays: list[np.ndarray] = []
        self.names: dict[int, str] = {}
        self.depends: list[bool] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []
        self.result: Any = None
        self._numbers: dict[int, int] = {}  # of constants, by the id of the array, which `arrays` keeps alive
        self._scopes = scopes
        for name, parameter in parameters.items():
            self.names.setdefault(self._constant(parameter.data), name)

    # The engine's record ----------------------------------------------------------------------------------------------

    def apply(self, op: type[Op], inputs: Sequence[Any], params: dict[str, Any]) -> Any:
        """Apply an operation in the place of `Op.apply`, and record it."""
        if op.draws and params.get(op.draws):
            raise TraceError(
                f"freeze: the model draws random numbers ({op.name} with {op.draws}={params[op.draws]}), so that it "
                "gives something else each time; call model.eval() first, which switches dropout off"
            )
        with context.changed(recorder=None):
            returned = op.apply(*self._real(tuple(inputs)), **self._real(params))
        outputs = returned if isinstance(returned, tuple) else (returned,)
        made = self._record(op, tuple(inputs), params, [y.data for y in outputs])
        tensors = tuple(Tensor(y) for y in made)
        return tensors if isinstance(returned, tuple) else tensors[0]

    def call(self, function: ArrayFunction, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a function of NumPy on arrays among which are stand-ins, and record it."""
        if function.function is operator.getitem:
            _check_index(args[1])
        with context.changed(recorder=None):
            returned = function.function(*self._real(tuple(args)), **self._real(dict(kwargs)))
        outputs = () if returned is None else returned if isinstance(returned, tuple | list) else (returned,)
        made = self._record(function, tuple(args), dict(kwargs), [np.asarray(y) for y in outputs])
        return None if returned is None else type(returned)(made) if isinstance(returned, tuple | list) else made[0]

    def _record(self, call: Any, inputs: tuple[Any, ...], params: dict[str, Any], outputs: list[Any]) -> list[Any]:
        _check_index(params.get("index", ()))
        refs: tuple[Any, Any] = mapped((inputs, params), self.ref)
        depends = any(isinstance(leaf, Ref) and self.depends[leaf.number] for leaf in _flat(refs))
        numbers = tuple(self._new(y, depends) for y in outputs)
        self.steps.append(Step(call, refs[0], refs[1], numbers, self._scope()))
        if not depends:
            self._numbers.update((id(y), n) for y, n in zip(outputs, numbers, strict=True))
            return outputs
        return [StandIn(self, n, y.shape, y.dtype) for n, y in zip(numbers, outputs, strict=True)]

    def _scope(self) -> str:
        """Return the name of the innermost module that is running."""
        frame = sys._getframe(3)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Module) and id(owner) in self._scopes:
                return self._scopes[id(owner)]
            frame = frame.f_back  # type: ignore[assignment]
        return ""

    # Values -----------------------------------------------------------------------------------------------------------

    def input(self, name: str, array: np.ndarray) -> StandIn:
        """Return what stands for an input in the forward pass."""
        number = self._new(array, True)
        self.inputs.append(number)
        self.names[number] = name
        return StandIn(self, number, array.shape, array.dtype)

    def _new(self, array: Any, depends: bool) -> int:
        if is_on_gpu(array):
            raise TraceError("freeze: the model computes on a GPU; programs run on the CPU: model.to('cpu') moves it")
        self.arrays.append(array)
        self.depends.append(depends)
        return len(self.arrays) - 1

    def release(self, number: int) -> None:
        """Free the memory of a value whose stand-in is gone."""
        array = self.arrays[number]
        self.arrays[number] = np.broadcast_to(np.zeros((), array.dtype), array.shape)

    def _constant(self, array: Any) -> int:
        number = self._numbers.get(id(array))
        if number is None:
            number = self._numbers[id(array)] = self._new(array, False)
        return number

    def ref(self, x: Any) -> Any:
        """Return a `Ref` for a tensor or an array, and anything else as it is."""
        x = x.data if isinstance(x, Tensor) else x
        if isinstance(x, StandIn):
            return Ref(x.number)
        return Ref(self._constant(x)) if isinstance(x, np.ndarray) or is_on_gpu(x) else x

    def _real(self, tree: Any) -> Any:
        """Return nested arguments with arrays in the place of stand-ins."""

        def real(x: Any) -> Any:
            if isinstance(x, Tensor):
                return Tensor(self.arrays[x.data.number]) if isinstance(x.data, StandIn) else x
            return self.arrays[x.number] if isinstance(x, StandIn) else x

        return mapped(tree, real)


def _flat(refs: Any) -> list[Any]:
    found: list[Any] = []
    mapped(refs, found.append)
    return found


def _check_index(index: Any) -> None:
    """Raise TraceError if a boolean array that depends on the inputs picks elements: how many, its values decide."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, StandIn) and part.dtype == bool:
            raise TraceError(
                "freeze: the model picks elements by a mask that depends on its inputs, so the shape of the result "
                "depends on their values; multiply with the mask, or use where, instead"
            )


def record(function: Callable[..., Any], model: Any, example: Mapping[str, Any]) -> Trace:
    """Run `function` on an example, and return the record.

    Parameters
    ----------
    function : called with the example's values in order.
    model : the Module whose parameters and modules give the names, or None.
    example : arguments by name. Tensors and arrays are inputs; numbers and None are part of the program.
    """
    modules = dict(model.named_modules()) if isinstance(model, Module) else {}
    parameters = dict(model.named_parameters()) if isinstance(model, Module) else {}
    trace = Trace(parameters, {id(module): name for name, module in modules.items()})
    versions = {name: p.memory.version for name, p in parameters.items()}
    drawn = default_generator.seed, default_generator.offset
    arguments: list[Any] = []
    for name, x in example.items():
        if isinstance(x, Tensor):
            arguments.append(Tensor(trace.input(name, x.data)))
        else:
            arguments.append(trace.input(name, x) if isinstance(x, np.ndarray) else x)
    try:
        with context.changed(recording=False, recorder=trace):
            result = function(*arguments)
        if (default_generator.seed, default_generator.offset) != drawn:
            raise TraceError(
                "freeze: the model draws random numbers, so that it gives something else each time; call model.eval() "
                "first, which switches dropout off"
            )
    finally:
        if (default_generator.seed, default_generator.offset) != drawn:
            default_generator.seed, default_generator.offset = drawn
    changed = [name for name, p in parameters.items() if p.memory.version != versions[name]]
    if changed:
        raise TraceError(f"freeze: the forward pass changes the parameter {changed[0]} in place; a program cannot")
    trace.result = mapped(result, trace.ref)
    strange = [x for x in _flat(trace.result) if not (x is None or isinstance(x, Ref | bool | int | float | str))]
    if strange:
        raise TraceError(f"freeze: the model returns a {type(strange[0]).__name__}; it may return tensors and arrays")
    return trace
