"""Corners of shape and value of every function: plain rule, kernel and NumPy agree, or all of them refuse.

Values are compared with NumPy's at float64; gradients, and gradients of gradients, with differences of NumPy's values.
With an infinity or NaN among the inputs, an element of a gradient counts if every output that it can change is finite.
If the function is elementwise, a finite element beside an infinity has the limit of its derivative.
A kernel gives NaN and infinity at the places where the plain rule gives them.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from corners import CORNERS, REFUSED, Corner, functions_of, of_samples
from in_numpy import IN_NUMPY

import tinyvit as tv
import tinyvit.functional as F
from tinyvit.engine import Tensor

Arrays = list[np.ndarray]
SPECIALS = [np.nan, np.inf, -np.inf, 0.0]
PAIRS = list(itertools.product([*SPECIALS, -0.0], repeat=2))
FIRST, SECOND = 1e-6, 1e-3  # steps of differences
CLOSE = 1e-2  # two differences that are as close have reached their limit
ROUNDING = 1e-12  # a difference by a step of 1e-2 or more is 0 if it is smaller
FEW_OR_ALL = pytest.mark.parametrize(
    "count", [pytest.param(3, id="few"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
# A query that sees one key gives it the weight 1 whatever the score: what spoils it cannot be seen in ordinary numbers.
# So it is with a row of one element, which is normalized to 0.
WHOLE = ("scaled_dot_product_attention", "layer_norm", "add_layer_norm")
# Functions that are another one with other arguments, which is the one that an error names.
NAMED = {"take": "index"}


def table(of: dict[str, list[Corner]]) -> list[Any]:
    return [
        pytest.param(name, call, shapes, id=f"{name}-{i}") for name in of for i, (call, shapes) in enumerate(of[name])
    ]


def inputs_of(shapes: list[tuple[int, ...]], positive: bool = False) -> Arrays:
    """Return numbers that keep away from 0 and from each other."""
    rng = np.random.default_rng(7)
    numbers = [rng.uniform(0.4, 1.6, s) for s in shapes]
    return [np.array(x if positive else x * rng.choice([-1, 1], x.shape)) for x in map(np.asarray, numbers)]


def weights_of(arrays: Arrays, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    return [np.array(rng.uniform(0.5, 1.5, x.shape)) for x in arrays]


def as_list(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


KNOWN: dict[Any, Arrays] = {}  # what was computed in this test: the same is asked for many times


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    KNOWN.clear()


def content(arrays: Arrays) -> tuple[Any, ...]:
    return tuple((x.shape, x.tobytes()) for x in arrays)


def in_numpy(call: Callable[..., Any], arrays: Arrays) -> Arrays:
    key = "values", call, content(arrays)
    if key not in KNOWN:
        with np.errstate(all="ignore"):
            KNOWN[key] = [np.asarray(y, np.float64) for y in as_list(call(IN_NUMPY, *arrays))]
    return KNOWN[key]


def in_tinyvit(call: Callable[..., Any], arrays: Arrays, choice: str, dtype: Any) -> dict[str, Arrays]:
    """Return values, gradients, and gradients of the gradients' weighted sum."""
    with tv.use_kernels(choice), np.errstate(all="ignore"):
        leaves = [Tensor(x.astype(dtype), requires_grad=True) for x in arrays]
        outputs = as_list(call(F, *leaves))
        found = {"value": [y.numpy() for y in outputs], "gradient": [], "second gradient": []}
        weights = [w.astype(dtype) for w in weights_of(found["value"])]
        used = [(y, Tensor(w)) for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
        if not used or not leaves:
            return found
        used_outputs, used_weights = ([pair[i] for pair in used] for i in (0, 1))
        found["gradient"] = filled(tv.grad(used_outputs, leaves, used_weights, allow_unused=True), leaves)
        outputs = as_list(call(F, *leaves))
        grads = tv.grad(
            [y for y in outputs if y.requires_grad], leaves, used_weights, create_graph=True, allow_unused=True
        )
        parts = [(g, Tensor(v.astype(dtype))) for g, v in zip(grads, weights_of(arrays, 2), strict=True)
                 if g is not None and g.requires_grad]  # fmt: skip
        if parts:
            second = tv.grad([g for g, _ in parts], leaves, [v for _, v in parts], allow_unused=True)
            found["second gradient"] = filled(second, leaves)
        else:
            found["second gradient"] = [np.zeros(x.shape, dtype) for x in arrays]
        return found


def filled(grads: Any, leaves: list[Tensor]) -> Arrays:
    return [np.zeros(x.shape, x.dtype) if g is None else g.numpy() for g, x in zip(grads, leaves, strict=True)]


# Differences of NumPy's values ----------------------------------------------------------------------------------------


def moved(arrays: Arrays, place: tuple[int, tuple[int, ...]], step: float) -> Arrays:
    copies = [x.copy() for x in arrays]
    copies[place[0]][place[1]] += step
    return copies


def places_of(arrays: Arrays) -> Iterator[tuple[int, tuple[int, ...]]]:
    for i, x in enumerate(arrays):
        for place in np.ndindex(x.shape):
            yield i, place


def changes(call: Callable[..., Any], arrays: Arrays, place: Any, step: float) -> Arrays:
    """Return how much each output changes with one element, as a difference."""
    up, down = (in_numpy(call, moved(arrays, place, s)) for s in (step, -step))
    with np.errstate(all="ignore"):
        return [(u - d) / (2 * step) for u, d in zip(up, down, strict=True)]


def slope(call: Callable[..., Any], arrays: Arrays, place: Any, weights: Arrays, step: float) -> float:
    return sum(float((c * w).sum()) for c, w in zip(changes(call, arrays, place, step), weights, strict=True))


def reach(call: Callable[..., Any], ordinary: Arrays, place: Any, others: Arrays) -> list[np.ndarray]:
    """Return which elements of the outputs one element can change, with ordinary numbers and with those of `others`."""
    key = "reach", call, place, *map(content, (ordinary, *others))
    if key not in KNOWN:
        steps = ((arrays, step) for arrays in (ordinary, *others) for step in (1e-2, 6.0))
        found = [[~(np.abs(c) <= ROUNDING) for c in changes(call, arrays, place, step)] for arrays, step in steps]
        KNOWN[key] = [np.logical_or.reduce(masks) for masks in zip(*found, strict=True)]
    return KNOWN[key]


def limit(call: Callable[..., Any], arrays: Arrays, place: Any, weights: Arrays) -> float | None:
    """Return a derivative in the limit where the infinite elements grow; None where NumPy's values do not tell it.

    The error of a limit that is reached as 1 / sqrt(x), like the slope of a square root, is 0.005 at 10^4.
    """
    slopes = []
    for far in (1e4, 1e6):
        near = [np.where(np.isinf(x), np.copysign(far, x), x) for x in arrays]
        step = 1e-4 * max(1.0, abs(near[place[0]][place[1]]))
        slopes.append(slope(call, near, place, weights, step))
    before, last = slopes
    if not np.isfinite(slopes).all():
        return None
    if abs(last) > 1e3 and abs(last) >= 10 * abs(before):
        return float(np.copysign(np.inf, last))
    return last if abs(last - before) <= CLOSE * max(1, abs(last)) else None


@functools.cache
def is_elementwise(name: str) -> bool:
    """Whether each element of the result depends only on the elements that are broadcast to its place."""
    corners = [largest_corner(name), *CORNERS[name]]  # the largest whose result is not empty
    found = ((call, inputs_of(shapes, positive=True)) for call, shapes in corners if len(shapes) == len(corners[0][1]))
    call, ordinary = next(((c, xs) for c, xs in found if in_numpy(c, xs)[0].size > 1), (None, []))
    if call is None:
        return False
    value, *others = in_numpy(call, ordinary)
    try:
        own = [np.broadcast_to(np.arange(x.size).reshape(x.shape), value.shape) for x in ordinary]
    except ValueError:
        return False
    if others:
        return False
    reached = (reach(call, ordinary, (i, place), [])[0] for i, place in places_of(ordinary))
    mine = (own[i] == np.ravel_multi_index(place, ordinary[i].shape) for i, place in places_of(ordinary))
    return not any((r & ~m).any() for r, m in zip(reached, mine, strict=True))


def check_limits(call: Callable[..., Any], arrays: Arrays, gradient: Arrays) -> None:
    """Check the gradient of an elementwise function at each finite element, which may stand beside an infinite one."""
    weights = weights_of(in_numpy(call, arrays))
    for i, place in places_of(arrays):
        expected = limit(call, arrays, (i, place), weights) if np.isfinite(arrays[i][place]) else None
        found = gradient[i][place]
        if expected is not None and found != expected:
            error = abs(found - expected)
            assert error <= 2 * CLOSE * max(1, abs(expected)), (
                f"gradient {i} at {place} is {found}, its limit {expected}"
            )


def check_first(name: str, call: Callable[..., Any], arrays: Arrays, ordinary: Arrays, gradient: Arrays) -> None:
    """Check each element of a gradient with differences.

    An infinity or NaN among the inputs may spoil the gradients of what meets it in an output, and of nothing else.
    """
    values = in_numpy(call, arrays)
    weights = weights_of(values)
    special = [p for p in places_of(arrays) if arrays[p[0]][p[1]] != ordinary[p[0]][p[1]]]
    others = [moved(ordinary, p, step) for p in special for step in (-4.0, 4.0)]
    spoiled = [reach(call, ordinary, p, others) for p in special]
    for i, place in places_of(arrays):
        if (i, place) in special:
            if arrays[i][place] == 0 and all(np.isfinite(y).all() for y in values):
                assert not np.isnan(gradient[i][place]), f"gradient {i} at {place}, where the argument is 0, is NaN"
            continue
        reached = reach(call, ordinary, (i, place), others)
        if not all(np.isfinite(y[r]).all() for y, r in zip(values, reached, strict=True)):
            continue
        meets = [[(r & t).any() for r, t in zip(reached, touched, strict=True)] for touched in spoiled]
        may_be_nan = np.any(meets) or (special and (name in WHOLE or not any(r.any() for r in reached)))
        if may_be_nan and not np.isfinite(gradient[i][place]):
            continue
        parts = changes(call, arrays, (i, place), FIRST)
        expected = sum(float((np.where(r, c, 0) * w).sum()) for c, r, w in zip(parts, reached, weights, strict=True))
        if np.isfinite(expected) or not may_be_nan:
            assert gradient[i][place] == pytest.approx(expected, rel=1e-5, abs=1e-6), f"gradient {i} at {place}"


def check_second(call: Callable[..., Any], arrays: Arrays, found: Arrays) -> None:
    weights, directions = weights_of(in_numpy(call, arrays)), weights_of(arrays, 2)
    for i, place in places_of(arrays):
        along = [[np.array(x + s * SECOND * v) for x, v in zip(arrays, directions, strict=True)] for s in (1, -1)]
        up, down = (slope(call, near, (i, place), weights, SECOND) for near in along)
        expected = (up - down) / (2 * SECOND)
        if np.isfinite(expected):
            assert found[i][place] == pytest.approx(expected, rel=2e-3, abs=2e-4), f"second gradient {i} at {place}"


# The tests ------------------------------------------------------------------------------------------------------------


def assert_alike(found: dict[str, Arrays], expected: dict[str, Arrays], dtype: Any) -> None:
    """Compare a kernel's results with those of the plain rule in the same dtype."""
    tolerance = 1e3 * float(np.finfo(dtype).eps)
    for what, arrays in expected.items():
        for i, (f, e) in enumerate(zip(found[what], arrays, strict=True)):
            assert (f.shape, f.dtype) == (e.shape, e.dtype), f"{what} {i}"
            regular = np.isfinite(e)
            np.testing.assert_array_equal(np.isfinite(f), regular, f"{what} {i}: what is finite")
            if what == "value":
                np.testing.assert_array_equal(f[~regular], e[~regular], f"{what} {i}")
            np.testing.assert_allclose(f[regular], e[regular], tolerance, tolerance, err_msg=f"{what} {i}")


def check(name: str, call: Callable[..., Any], arrays: Arrays, ordinary: Arrays, dtypes: list[Any]) -> None:
    """Compare the plain rule with NumPy, and kernels with the plain rule in each of these dtypes."""
    plain, expected = in_tinyvit(call, arrays, "numpy", np.float64), in_numpy(call, arrays)
    for y, e in zip(plain["value"], expected, strict=True):
        np.testing.assert_allclose(y, e, 1e-10, 1e-12)
        assert y.shape == e.shape
    if plain["gradient"]:
        check_first(name, call, arrays, ordinary, plain["gradient"])
        if np.isinf(sum(np.abs(x).sum() for x in arrays)) and is_elementwise(name):
            check_limits(call, arrays, plain["gradient"])
        if arrays is ordinary:
            check_second(call, arrays, plain["second gradient"])
    for dtype in dtypes:
        same = plain if dtype == np.float64 else in_tinyvit(call, arrays, "numpy", dtype)
        assert_alike(in_tinyvit(call, arrays, "auto", dtype), same, dtype)


def dtypes_for(count: int | None) -> list[Any]:
    """Return what kernels compute in: with few corners float32 only, because the kernels for each must be compiled."""
    return [np.float32, np.float64] if count is None else [np.float32]


def some(corners: list[Any], count: int | None) -> list[Any]:
    """Return that many of the corners, spread over all of them; all if None."""
    return corners if count is None else corners[:: max(1, -(-len(corners) // count))]


@FEW_OR_ALL
@pytest.mark.parametrize("name", CORNERS)
def test_corners_of_shape(name: str, count: int | None) -> None:
    for number, (call, shapes) in some(list(enumerate(CORNERS[name])), count):
        for positive in (True, False):
            arrays = inputs_of(shapes, positive)
            try:
                check(name, call, arrays, arrays, dtypes_for(count))
            except Exception as error:
                error.add_note(f"corner {number} of F.{name}: shapes {shapes}{', positive' * positive}")
                raise


@pytest.mark.parametrize("name", ["bias_gelu", "linear", "logsumexp", "sum_to_shape", "unbind", "var"])
def test_corners_of_samples(name: str) -> None:
    """A function without a row in CORNERS has those of its samples; these have a row, and show that both are right."""
    assert len(of_samples(name)) > 4
    for call, shapes in some(of_samples(name), 3):
        arrays = inputs_of(shapes, positive=True)
        check(name, call, arrays, arrays, [np.float32])


def with_specials(arrays: Arrays) -> list[tuple[Arrays, str]]:
    """Return the arrays with one special number, at the first or last place of one of them."""
    found = []
    for i, x in enumerate(arrays):
        for special in SPECIALS:
            for place in sorted({0, x.size - 1} if x.size else {}):
                copies = [a.copy() for a in arrays]
                copies[i].reshape(-1)[place] = special
                found.append((copies, f"{special} at {place} of argument {i}"))
    return found


@FEW_OR_ALL
@pytest.mark.parametrize("name", CORNERS)
def test_corners_of_value(name: str, count: int | None) -> None:
    for number, (call, shapes) in some(list(enumerate(CORNERS[name])), count):
        ordinary = inputs_of(shapes)
        for arrays, what in some(with_specials(ordinary), count):
            try:
                check(name, call, arrays, ordinary, dtypes_for(count))
            except Exception as error:
                error.add_note(f"corner {number} of F.{name}: shapes {shapes}, {what}")
                raise


def with_pairs(arrays: Arrays) -> list[tuple[Arrays, str]]:
    """Return the arrays with a special number at the first place of each of two of them."""
    found = []
    for i, j in itertools.combinations([i for i, x in enumerate(arrays) if x.size], 2):
        for pair in PAIRS:
            copies = [a.copy() for a in arrays]
            for k, special in zip((i, j), pair, strict=True):
                copies[k].reshape(-1)[0] = special
            found.append((copies, f"{pair[0]} in argument {i} and {pair[1]} in argument {j}"))
    return found


SEVERAL = [name for name in CORNERS if max(len(shapes) for _, shapes in CORNERS[name]) > 1]


def largest_corner(name: str) -> Corner:
    """Return the corner of the most arrays, and among these of the most elements."""
    return max(CORNERS[name], key=lambda corner: (len(corner[1]), sum(map(np.prod, corner[1]))))


@FEW_OR_ALL
@pytest.mark.parametrize("name", SEVERAL)
def test_corners_of_two_values(name: str, count: int | None) -> None:
    """Functions of two arrays have all pairs in the quick tests too."""
    call, shapes = largest_corner(name)
    ordinary = inputs_of(shapes)
    for arrays, what in some(with_pairs(ordinary), None if name in functions_of(2) else count):
        try:
            check(name, call, arrays, ordinary, dtypes_for(count))
        except Exception as error:
            error.add_note(f"F.{name}: shapes {shapes}, {what}")
            raise


@FEW_OR_ALL
@pytest.mark.parametrize("number", [2, 0.5])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_number_of_python_stands_for_an_array_or_is_refused(name: str, number: float, count: int | None) -> None:
    """A rule that saves the number must not take it for float64, also where its gradient is recorded in float32.

    The quick tests compute the plain rule in float64 too, but kernels in float32 only.
    """
    call, shapes = largest_corner(name)
    for i in range(len(shapes)):
        with_number = lambda f, *xs, i=i: call(f, *xs[:i], number, *xs[i:])  # noqa: E731
        ordinary = inputs_of(shapes[:i] + shapes[i + 1 :])
        try:
            with tv.no_grad(), np.errstate(all="ignore"):
                with_number(F, *map(Tensor, ordinary))
        except (TypeError, ValueError) as error:
            assert re.match(r"\w+: ", str(error)), error  # noqa: PT017 - only some functions refuse it
            continue
        check(name, with_number, ordinary, ordinary, dtypes_for(count))


@pytest.mark.parametrize("choice", ["numpy", "auto"])
@pytest.mark.parametrize(("name", "call", "shapes"), table(REFUSED))
def test_what_has_no_answer_is_refused_by_all(name: str, call: Any, shapes: Any, choice: str) -> None:
    arrays = inputs_of(shapes)
    with (
        tv.use_kernels(choice),
        pytest.raises((ValueError, IndexError, TypeError), match=rf"^\w*{NAMED.get(name, name)}: "),
    ):
        call(F, *map(Tensor, arrays))
    with pytest.raises((ValueError, IndexError, TypeError)):
        call(IN_NUMPY, *arrays)
