"""Functions of `xp` as the study page shows them: a row in the table `FUNCTIONS`, or the one of NumPy's ufuncs.

A row answers three questions about a step that called the function: which letters the axes of its result have, which
elements of the operands each element of the result was computed from, and how the call is written as mathematics.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from .axes import (
    Axes,
    direct_arrays,
    permuted_axes,
    product_axes,
    reduced_axes,
    reshaped_axes,
    same_axes,
    swapped_axes,
    trailing_axes,
    unknown_axes,
)
from .links import (
    Link,
    elementwise,
    hand_on,
    move,
    move_padded,
    move_split,
    move_to_shape,
    move_windows,
    no_link,
    pick,
    product,
    put,
    reduction,
    scatter_index,
    scatter_windows,
    sum_of_repeated,
)
from .steps import Step

# Calls as mathematics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call in a rule's source, for the function's row to write.

    `write(argument, binding)` gives the MathML of an argument, in parentheses if it binds less strongly than `binding`.
    `letters` names the axes that the call reduces over, where known.
    """

    name: str
    arguments: Sequence[Any]
    write: Callable[[Any, int], str]
    letters: str = ""

    def argument(self, i: int, binding: int = 0) -> str:
        return self.write(self.arguments[i], binding) if i < len(self.arguments) else ""


def applied(name: str, arguments: str) -> str:
    """MathML of a function's name and its arguments in parentheses."""
    return f"<mrow><mi>{escape(name.replace('_', ' '))}</mi><mo>(</mo>{arguments}<mo>)</mo></mrow>"


def in_row(parts: Any) -> str:
    """MathML of expressions with commas between them."""
    return '<mo>,</mo><mspace width="0.5em"/>'.join(parts)


def by_name(call: Call) -> str:
    """f(first argument); further arguments are axes, shapes and the like."""
    return applied(call.name, call.argument(0))


def with_all_arguments(call: Call) -> str:
    return applied(call.name, in_row(call.argument(i) for i in range(len(call.arguments))))


def side_by_side(call: Call) -> str:
    return f'{call.argument(0, 2)}<mspace width="0.25em"/>{call.argument(1, 2)}'


def transposed(call: Call) -> str:
    return f"<msup><mrow>{call.argument(0, 4)}</mrow><mo>⊤</mo></msup>"


def sigma(call: Call) -> str:
    return f"<mrow>{_over_axes('<mo>∑</mo>', call.letters)}{call.argument(0, 2)}</mrow>"


def over_axes(call: Call) -> str:
    head = _over_axes(f"<mi>{call.name}</mi>", call.letters)
    return f"<mrow>{head}<mo>(</mo>{call.argument(0)}<mo>)</mo></mrow>"


def _over_axes(sign: str, letters: str) -> str:
    return f"<msub>{sign}<mtext>{escape(letters)}</mtext></msub>" if letters else sign


def root(call: Call) -> str:
    return f"<msqrt><mrow>{call.argument(0)}</mrow></msqrt>"


def bars(call: Call) -> str:
    return f"<mrow><mo>|</mo>{call.argument(0)}<mo>|</mo></mrow>"


def fraction(call: Call) -> str:
    return f"<mfrac><mrow>{call.argument(0)}</mrow><mrow>{call.argument(1)}</mrow></mfrac>"


def cases(call: Call) -> str:
    rows = (call.argument(1), f"<mtext>where&#160;</mtext>{call.argument(0)}"), (call.argument(2), _ELSEWHERE)
    cells = "".join(f"<mtr><mtd>{a}</mtd><mtd>{b}</mtd></mtr>" for a, b in rows)
    return f'<mrow><mo>{{</mo><mtable columnalign="left">{cells}</mtable></mrow>'


_ELSEWHERE = "<mtext>elsewhere</mtext>"


def only_argument(call: Call) -> str:
    """For a function that changes no number, which is not worth showing."""
    return call.argument(0)


def constant(call: Call, digits: str) -> str:
    return f"<mn>{digits}</mn>"


# The rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """One row: a function of `xp`, or an operator or method of arrays.

    `is_opened` : the function is itself a rule over `xp`, and its own steps are narrated in its place.
    `is_word` : docstrings write it without parentheses, as in "exp x".
    `sign` : the operator that programs write for it, between two operands or before one.
    `says` : what it computes, in one sentence, if NumPy has no function of this name or calls it otherwise.
    """

    link: Callable[[Step], Link] = no_link
    axes: Callable[[Step], Axes] = same_axes
    mathml: Callable[[Call], str] = by_name
    is_opened: bool = False
    is_word: bool = False
    sign: str = ""
    says: str = ""

    def axes_of(self, step: Step) -> Axes:
        """The letters of a step's result; None unless there is one for each axis."""
        axes = self.axes(step) if direct_arrays(step) else None
        return axes if axes is not None and len(axes) == np.ndim(step.value) else None


def _signed(sign: str) -> Function:
    return Function(functools.partial(elementwise, sign=sign))


FUNCTIONS: dict[str, Function] = {
    "add": _signed("+"),
    "subtract": _signed("-"),
    "multiply": _signed("*"),
    "divide": _signed("/"),
    "negative": _signed("neg"),
    "true_divide": Function(functools.partial(elementwise, sign="/"), mathml=fraction),
    **dict.fromkeys(("power", "and", "or", "not", "clip", "equal", "not_equal"), Function(elementwise)),
    **dict.fromkeys(("less", "less_equal", "greater", "greater_equal"), Function(elementwise)),
    **dict.fromkeys(("exp", "log", "log1p", "tanh", "erf", "sign"), Function(elementwise, is_word=True)),
    "sqrt": Function(elementwise, mathml=root),
    "abs": Function(elementwise, mathml=bars),
    "where": Function(elementwise, mathml=cases),
    **dict.fromkeys(("sigmoid", "log_softmax"), Function(is_opened=True)),
    "matmul": Function(product, product_axes, side_by_side),
    "sum": Function(reduction, reduced_axes, sigma),
    "sum_to_shape": Function(sum_of_repeated, trailing_axes, sigma),
    "mean": Function(reduction, reduced_axes, over_axes, is_word=True),
    **dict.fromkeys(("max", "min"), Function(reduction, reduced_axes, over_axes)),
    "var": Function(axes=reduced_axes, mathml=over_axes, is_word=True),
    "cumsum": Function(mathml=over_axes),
    "reshape": Function(move_to_shape, reshaped_axes),
    "transpose": Function(move, permuted_axes),
    "swapaxes": Function(move, swapped_axes, transposed),
    **dict.fromkeys(("broadcast_to", "flip", "join_heads"), Function(move)),
    **dict.fromkeys(("concatenate", "stack"), Function(move, unknown_axes)),
    "pad": Function(move_padded, unknown_axes),
    "split": Function(move_split),
    "index": Function(pick, unknown_axes),
    "put": Function(put, unknown_axes),
    "im2col": Function(move_windows, unknown_axes),
    "col2im": Function(scatter_windows, unknown_axes),
    "depthwise_conv": Function(axes=unknown_axes),
    "index_add": Function(scatter_index, unknown_axes),
    "add_rows": Function(axes=unknown_axes),
    **dict.fromkeys(("astype", "cast", "copy", "stop_gradient", "asarray"), Function(hand_on, mathml=only_argument)),
    "zeros_like": Function(mathml=functools.partial(constant, digits="0")),
    "ones_like": Function(mathml=functools.partial(constant, digits="1")),
}
_DEFAULT = Function()

_SIGNS = {
    **{
        "add": "+",
        "subtract": "-",
        "multiply": "*",
        "divide": "/",
        "power": "**",
        "matmul": "@",
        "and": "&",
        "or": "|",
    },
    **{"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="},
    **{"negative": "-", "not": "~"},
}
FUNCTIONS |= {name: replace(FUNCTIONS[name], sign=sign) for name, sign in _SIGNS.items()}

# What steps call and NumPy does not have, or has under another name.
_SAYS = {
    "sum_to_shape": "(x, shape): the sum over the axes along which an array of this shape was repeated",
    "im2col": "(x, kernel, stride, padding, fill): the windows of the images, each as a column",
    "col2im": "(columns, shape, kernel, stride, padding): adds each window to where im2col took it from",
    "index_add": "(x, index, shape): zeros of this shape, to which each element of x is added at its place in index",
    "index_put": "(x, value, index): a copy of x with value at index",
    "take_rows": "(x, rows): for each matrix of x, the rows with these numbers",
    "add_rows": "(x, rows, count): count rows of zeros for each matrix, with the rows of x added at these numbers",
    "join_heads": "(x): the heads side by side, so that each token has one row of all channels",
    "depthwise_conv": "(x, weight, bias): a convolution of each channel by a filter of its own; None is no bias",
    "dropout_mask": "(shape, p, seed, offset, dtype): random factors, 0 with probability p and else 1 / (1 - p)",
    "cast": "(x, dtype): x rounded to this dtype",
    "astype": "(x, dtype): x rounded to this dtype",
    "erf": "(x): the error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x",
}
FUNCTIONS |= {name: replace(FUNCTIONS.get(name, _DEFAULT), says=f"{name}{words}") for name, words in _SAYS.items()}


def function_of(name: str) -> Function:
    """The row of a function, where "split[1]" is the second result of "split"; the defaults if it has none.

    Functions of each element that NumPy has, such as hypot, need no row.
    """
    name = name.partition("[")[0]
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    ufunc = getattr(np, name, None)
    if not isinstance(ufunc, np.ufunc) or ufunc.signature:
        return _DEFAULT
    return Function(elementwise) if ufunc.nin == 1 else Function(elementwise, mathml=with_all_arguments)
