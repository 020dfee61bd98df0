"""Gradients that are returned, instead of added to `.grad`."""

from collections.abc import Sequence
from typing import Any

from ..backend.checks import check_flags, shown
from .tape import walk_back
from .tensor import Tensor, as_tensor, start_of


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradient of `outputs` with respect to each of `inputs`, without touching the `.grad` of any leaf.

    Parameters
    ----------
    outputs, inputs : tensor or sequence of tensors; inputs may be leaves or lie within the graph.
    grad_outputs : one gradient for each output, as in `Tensor.backward`.  create_graph, retain_graph : as there.
    allow_unused : return None for an input that no output depends on, instead of raising RuntimeError.
    """
    check_flags("grad", create_graph=create_graph, allow_unused=allow_unused, retain_graph=retain_graph)
    outputs, inputs = as_list("grad: outputs", outputs), as_list("grad: inputs", inputs)
    given = [None] * len(outputs) if grad_outputs is None else listed(grad_outputs)
    if len(given) != len(outputs):
        raise ValueError(f"grad_outputs has {len(given)} entries for {len(outputs)} outputs")
    if not inputs:
        raise ValueError("grad: inputs is empty; a generator can be used only once")
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            raise RuntimeError(f"inputs[{i}] does not require a gradient; create it with requires_grad=True")
    starts = [start_of(f"grad_outputs[{i}]", y, given[i], create_graph) for i, y in enumerate(outputs)]
    found = walk_back(starts, {x.edge for x in inputs}, retain_graph, create_graph).sums
    gradients = [found.get(x.edge) for x in inputs]
    unused = [i for i, gradient in enumerate(gradients) if gradient is None]
    if unused and not allow_unused:
        raise RuntimeError(f"no output depends on inputs[{unused[0]}]; pass allow_unused=True to get None for it")
    return tuple([None if gradient is None else as_tensor(gradient) for gradient in gradients])


def as_list(what: str, given: Any) -> list[Tensor]:
    """Return one tensor, or a sequence of tensors, as a list. `what` names it in the error about anything else."""
    found = listed(given)
    for x in found:
        if not isinstance(x, Tensor):
            raise TypeError(f"{what} is or holds {shown(x)}; give a tensor or a sequence of tensors")
    return found


def listed(given: Any) -> list[Any]:
    """Return one thing, or several in a sequence, as a list."""
    is_one = hasattr(given, "dtype") or not hasattr(given, "__iter__") or isinstance(given, str | bytes | dict)
    return [given] if is_one else list(given)
