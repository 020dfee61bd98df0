"""How tests of kernels draw examples: tests that run on drawn data, sizes around edges, and arrays of any layout."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

Array = np.ndarray
Shape = tuple[int, ...]


def on_drawn(examples: int | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on examples drawn from its argument `data`.

    After ten examples hypothesis mostly varies those it has, and shapes hardly change any more. So it draws ten, then
    ten with another seed, and so on.

    Parameters
    ----------
    examples : how many examples are drawn; if None, the parameter `drawn` of the test says so.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def on_each(*args: Any, drawn: int | None = examples, **kwargs: Any) -> None:
            assert drawn is not None
            for start in range(0, drawn, 10):
                ten = settings(max_examples=min(10, drawn - start))(given(data=st.data())(test))
                seed(f"{kwargs} {start}")(ten)(*args, **kwargs)

        signature = inspect.signature(test)
        parameters = [p for name, p in signature.parameters.items() if name != "data"]
        if examples is None:
            parameters.append(inspect.Parameter("drawn", inspect.Parameter.KEYWORD_ONLY))
        on_each.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return on_each

    return decorate


def few_or_all(few: int, all_of_them: int) -> pytest.MarkDecorator:
    """Give a test the parameter `drawn` of `on_drawn`: a quick test draws few examples, and a slow one all of them."""
    return pytest.mark.parametrize("drawn", [few, pytest.param(all_of_them, marks=pytest.mark.slow)])


def around(*edges: int) -> list[int]:
    """Return the edges, and the numbers beside them."""
    return sorted({n + step for n in edges for step in (-1, 0, 1)})


def size(draw: Any, edges: Sequence[int], at_most: float) -> int:
    """Draw one of the edges that is at most `at_most`; the first of them is always possible."""
    return draw(st.sampled_from([n for n in edges if n <= max(at_most, edges[0])]))


# Arrays --------------------------------------------------------------------------------------------------------------


def _spaced(x: Array) -> Array:
    """Return a view of every other element of memory that is NaN in between."""
    wide = np.full((*x.shape, 2), np.nan, x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def _part(x: Array) -> Array:
    """Return the middle of a larger array that is NaN elsewhere."""
    large = np.full([n + 2 for n in x.shape], np.nan, x.dtype)
    middle = large[(slice(1, -1),) * x.ndim]
    middle[...] = x
    return middle


def _unaligned(x: Array) -> Array:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _rounded(x: Array) -> Array:
    """Return numbers with few digits, whose sums have no rounding errors that would add up; infinite only if x is."""
    return (np.round(8 * x.astype(np.float64)) / 8).astype(x.dtype)


def _read_only(x: Array) -> Array:
    x.flags.writeable = False
    return x


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "dense": lambda x: x,
    "spaced": _spaced,
    "part": _part,
    "transposed": lambda x: np.array(x.T, order="C").T,
    "reversed": lambda x: np.flip(np.array(np.flip(x))),
    "broadcast": lambda x: np.broadcast_to(_rounded(x[:1]), x.shape),
    "read-only": _read_only,
    "unaligned": _unaligned,
}
VALUES = {"large": (1e4, -1e4), "hidden": (-math.inf,), "nan": (math.nan,), "inf": (math.inf, -math.inf)}
FINITE = ("none", "none", "none", "none", "wide", "large")
SPECIALS = (*FINITE, "hidden", "nan", "inf")


@st.composite
def arrays(draw: Any, shape: Shape, dtype: Any, layout: str | None = None, specials: Sequence[str] = SPECIALS) -> Array:
    """Draw normal numbers in some layout, perhaps with larger ones, or a few that are extreme, infinite or NaN."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.asarray(rng.standard_normal(shape), dtype)
    special = draw(st.sampled_from(specials))
    if special == "wide":
        x *= 4
    elif special != "none" and x.size:
        places = rng.integers(x.size, size=3)
        x.reshape(-1)[places] = rng.choice(VALUES[special], 3)
    return LAYOUTS[layout or draw(st.sampled_from(list(LAYOUTS)))](x) if x.ndim else x


@st.composite
def leading(draw: Any, rows: int) -> Shape:
    """Draw leading axes that hold `rows` rows together."""
    divisor = draw(st.sampled_from([d for d in (1, 2, 3) if rows % d == 0]))
    return draw(st.sampled_from([(rows,), (divisor, rows // divisor), (divisor, 1, rows // divisor)]))
