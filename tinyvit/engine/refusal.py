"""Errors of NumPy inside an operation, raised again with the operation's name and its inputs."""

from collections.abc import Sequence
from typing import Any, NoReturn

from numpy.exceptions import AxisError

_KINDS = (AxisError, IndexError, ValueError, TypeError)


def refuse(op: Any, arrays: Sequence[Any], params: dict[str, Any], error: Exception) -> NoReturn:
    """Raise `error` again, of the same kind, with the name of the operation and its arguments.

    An error that names the operation already is raised as it is.
    """
    text = str(error)
    is_ours = isinstance(error, AttributeError) and all(x is not None for x in arrays)  # a mistake in a rule
    if is_ours or text.startswith(f"{op.name}:"):
        raise error
    given = [f"{op.input_name(i)} {_shown(x)}" for i, x in enumerate(arrays)]
    given += [f"{name} {_shown(value)}" for name, value in params.items()]
    kind = next((kind for kind in _KINDS if isinstance(error, kind)), ValueError)
    raise kind(f"{op.name}: {text.rstrip('.')}; given {', '.join(given)}") from error


def _shown(value: Any) -> str:
    """Return an argument as messages show it: arrays by shape and dtype."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple) and any(hasattr(part, "dtype") for part in value):
        return f"({', '.join(_shown(part) for part in value)})"
    return repr(value)
