"""The parameters that optimizers, averages and clipping are given: anything that they could never touch is refused."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..engine import Tensor


def tensors_of(caller: str, given: Any, what: str = "params") -> list[Tensor]:
    """Return the tensors in `given`, an iterable of them; `what` is its name in messages.

    Raises
    ------
    TypeError
        If `given` is no such iterable, or something in it is no tensor.
    ValueError
        If there are none, as in a generator that was used up, or if one is the result of an operation.
    """
    place = f"{caller}: {what}"
    if isinstance(given, Tensor):
        raise TypeError(f"{place} is one tensor; give a list of them: [tensor]")
    if hasattr(given, "parameters"):
        raise TypeError(f"{place} is a {type(given).__name__}; give its parameters: model.parameters()")
    if isinstance(given, Mapping):
        raise TypeError(f"{place} is a mapping with the keys {list(given)[:3]}; give a list of tensors, or of groups")
    if isinstance(given, str | bytes | set | frozenset) or hasattr(given, "dtype") or not isinstance(given, Iterable):
        raise TypeError(f"{place} is a {type(given).__name__}; give a list of tensors, such as model.parameters()")
    entries = list(given)
    if not entries:
        way = "; a generator can be used once: call model.parameters() again, or make it a list"
        raise ValueError(f"{caller}: there are no parameters in {what}{way if isinstance(given, Iterator) else ''}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, Tensor):
            raise TypeError(f"{place}[{i}] is {_kind_of(entry)}")
        if entry.node is not None and entry.grad is None:
            raise ValueError(
                f"{place}[{i}] is the result of an operation ({entry.node.op.name}), which gets no gradient; give the "
                "tensors that it was computed from"
            )
    return entries


def _kind_of(entry: Any) -> str:
    """Describe something that is no tensor, and the way out."""
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Tensor):
        return f"the pair ({entry[0]!r}, tensor); give model.parameters(), not model.named_parameters()"
    if isinstance(entry, Mapping):
        return "a group; give either groups or tensors, not both"
    if hasattr(entry, "parameters"):
        return f"a {type(entry).__name__}; give its parameters: model.parameters()"
    if hasattr(entry, "dtype"):
        return "an array; give a tensor with requires_grad=True, such as a tv.nn.Parameter"
    return f"a {type(entry).__name__}; give tensors"


def groups_of(caller: str, params: Any) -> list[dict[str, Any]]:
    """Return the groups in `params`, tensors or groups, each with a tuple of tensors under "params".

    In a group, one tensor may stand for a list of it. Raises what `tensors_of` raises, and ValueError for a tensor that
    can get no gradient, for one that appears twice, and if all are frozen.
    """
    if isinstance(params, Mapping) and "params" in params:
        raise TypeError(f"{caller}: params is one group; give a list of groups: [group]")
    if isinstance(params, Iterator):
        params = list(params) or iter(())  # an empty iterator is told apart from an empty list
    is_groups = isinstance(params, list | tuple) and len(params) > 0 and isinstance(params[0], Mapping)
    groups = [dict(group) for group in _groups(caller, params)] if is_groups else [{"params": params}]
    for i, group in enumerate(groups):
        what = f"params[{i}]['params']" if is_groups else "params"
        if "params" not in group:
            raise ValueError(f"{caller}: params[{i}] is a group without 'params'; it has the keys {sorted(group)}")
        given = [group["params"]] if is_groups and isinstance(group["params"], Tensor) else group["params"]
        group["params"] = tuple(tensors_of(caller, given, what))
        for j, p in enumerate(group["params"]):
            if not p.requires_grad and type(p) is Tensor:  # a tv.nn.Parameter is frozen, and may be thawed
                raise ValueError(
                    f"{caller}: {what}[{j}] requires no gradient, so it would never change; make it a tv.nn.Parameter, "
                    "or set its requires_grad"
                )
    tensors = [p for group in groups for p in group["params"]]
    if len({id(p) for p in tensors}) != len(tensors):
        raise ValueError(f"{caller}: a parameter appears twice")
    if not any(p.requires_grad for p in tensors):
        raise ValueError(f"{caller}: every parameter is frozen, so none would change; thaw some: requires_grad_()")
    return groups


def _groups(caller: str, params: Any) -> Iterator[Mapping[str, Any]]:
    for i, group in enumerate(params):
        if not isinstance(group, Mapping):
            raise TypeError(f"{caller}: params[{i}] is a {type(group).__name__} among groups; give it in a group")
        yield group


def pairs_of(caller: str, named_parameters: Any) -> list[Any]:
    """Return what `model.named_parameters()`, or a mapping, holds, as a list. Raises TypeError for anything else."""
    given = named_parameters.items() if isinstance(named_parameters, Mapping) else named_parameters
    is_one = isinstance(given, Tensor | str | bytes) or hasattr(given, "parameters") or hasattr(given, "dtype")
    if is_one or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise TypeError(f"{caller}: named_parameters is a {kind}; give model.named_parameters()")
    return list(given)


def require_keys(caller: str, state: Any, keys: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless `state` is a mapping with these keys, as `state_dict` returns."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{caller}: state is a {type(state).__name__}; give what state_dict() returned")
    if missing := [key for key in keys if key not in state]:
        raise ValueError(
            f"{caller}: state lacks {', '.join(missing)}; it has the keys {list(state)[:5]}. Give what state_dict() "
            "of an object of the same kind returned"
        )
