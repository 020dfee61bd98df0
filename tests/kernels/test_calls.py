"""Calls of compiled functions that are made again without Python, and the sums among them."""

import gc
import weakref

import numpy as np
import pytest
from numba.core import config
from tinyvit.kernels.cpu.compiler import entries, entry, watched
from tinyvit.kernels.program.calls import Calls, overload, words_of
from tinyvit.kernels.program.moves import add, copy, sum_first
from tinyvit.kernels.sums import TOGETHER, total

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="calls are made again only where they are compiled")


@entry
def note(out, at, options, flag, whole, single, double, matrix):
    """Write to a row of `out` what arrived."""
    row = out[at]
    row[0], row[1], row[2], row[3] = options[0], options[1][0], options[1][1], flag
    row[4], row[5], row[6] = whole, single, double
    row[7], row[8], row[9] = matrix.shape[0], matrix.shape[1], matrix[-1, 0]
    row[10], row[11], row[12] = matrix[0, -1], matrix.size, matrix.itemsize


MATRIX = np.arange(24, dtype=np.int64).reshape(4, 6)


def arguments(out, at, flag=True, matrix=MATRIX):
    return (out, at, (-3, (2.5, flag)), flag, np.uint64(2**40 + at), np.float32(-0.1), -1e300, matrix)


def expected(at, flag=True, matrix=MATRIX):
    sizes = [*matrix.shape, matrix[-1, 0], matrix[0, -1], matrix.size, matrix.itemsize]
    return [-3, 2.5, flag, flag, 2**40 + at, np.float32(-0.1), -1e300, *sizes]


def test_every_kind_of_argument_arrives():
    views = [MATRIX, MATRIX[::-2, 1::3], MATRIX.T, MATRIX[1:3].astype(np.float32), MATRIX[:, :2] > 5]
    out = np.zeros((2 * len(views), 13))
    given = [arguments(out, i, i % 2 == 0, views[i // 2]) for i in range(len(out))]
    Calls([(note.compiled, x) for x in given]).run(0, len(given))
    assert out.tolist() == [expected(i, i % 2 == 0, views[i // 2]) for i in range(len(out))]


def test_only_the_calls_of_a_range_are_made():
    out = np.zeros((5, 13))
    calls = Calls([(note.compiled, arguments(out, i)) for i in range(5)])
    assert len(calls) == 5
    calls.run(1, 3)
    assert [row.any() for row in out] == [False, True, True, False, False]
    calls.run(3, 3)
    assert not out[3:].any()


def test_calls_read_what_their_arrays_hold_when_they_are_made():
    x, y, z = np.ones(50, np.float32), np.ones(50, np.float32), np.zeros(50, np.float32)
    calls = Calls([add(x, y, z), copy(z, x)])
    for _ in range(3):
        calls.run(0, 2)
    assert (z == 4).all()


@pytest.mark.usefixtures("few_objects")
def test_arrays_live_as_long_as_the_calls_that_read_them():
    x = np.ones(10, np.float32)
    lives = weakref.ref(x)
    calls = Calls([(scale[x.dtype].compiled, (x, 2.0))])
    del x
    gc.collect()
    assert lives() is not None
    calls.run(0, 1)
    del calls
    gc.collect()
    assert lives() is None


@entry
def refuse(x):
    if x[0] > 0:
        raise ValueError("positive")
    x[0] -= 1


def test_a_call_that_raises_an_error_ends_the_others():
    x, y = np.zeros(1), np.ones(1)
    calls = Calls([(refuse.compiled, (x,)), (refuse.compiled, (y,)), (refuse.compiled, (x,))])
    calls.run(0, 1)
    with pytest.raises(MemoryError, match="raised an error"):
        calls.run(0, 3)
    assert x == -2
    assert y == 1


@entry
def first_positive(x, found):
    """Return the place of the first positive number, or None."""
    for i in range(x.size):
        if x[i] > 0:
            found[0] += 1
            return i
    return None


def test_a_call_may_return_nothing():
    negative, positive, found = -np.ones(3), np.ones(3), np.zeros(1)
    Calls([(first_positive.compiled, (x, found)) for x in (negative, positive, negative, positive)]).run(0, 4)
    assert found == 2


@entries("void({0}[:], float64)")
def scale(x, factor):
    for i in range(x.size):
        x[i] *= factor


def test_a_function_of_one_signature_takes_what_can_be_converted():
    one, other = np.ones(4, np.float32), np.ones(8, np.float32)[::2]
    function = scale[one.dtype].compiled
    assert overload(function, (one, 2.0)) is overload(function, (other, 3))
    Calls([(function, (one, 3)), (function, (other, 2.0))]).run(0, 2)
    assert one.tolist() == [3] * 4
    assert other.tolist() == [2] * 4


def test_a_call_with_something_else_is_refused():
    with pytest.raises(TypeError, match="cannot be made again"):
        words_of("nothing", None)


def test_the_calls_of_this_thread_are_watched_while_asked_for():
    met = []
    x = np.zeros(1)
    with watched(lambda function, given: met.append((function, given))):
        refuse(x)
        with watched(lambda *_: None):
            refuse(x)
        refuse(x)
    refuse(x)
    assert len(met) == 2
    assert all(function is refuse.compiled and given[0] is x for function, given in met)


# Sums ---------------------------------------------------------------------------------------------------------------

LENGTHS = [2, 3, TOGETHER - 1, TOGETHER, TOGETHER + 1, 2 * TOGETHER - 1, 2 * TOGETHER, 5 * TOGETHER + 7, TOGETHER**2]


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize("shape", [(5,), (17, 3), (1, 33)])
def test_a_sum_over_the_first_axis_has_the_bits_of_numpy(rows, shape):
    random = np.random.default_rng(rows)
    x = (random.standard_normal((rows, *shape)) * 10.0 ** random.integers(-42, 30, (rows, *shape))).astype(np.float32)
    x[random.random(x.shape) < 0.1] *= np.float32(-0.0)
    between = np.empty((rows, 2, *shape), np.float32)
    between[:, 1] = x
    for source in (x, between[:, 1]):
        for y in (np.full(shape, np.nan, np.float32), np.full((1, *shape), np.nan, np.float32)):
            function, given = sum_first(source, y)
            function(*given)
            assert y.tobytes() == total(source, 0).tobytes()


def test_sums_of_other_forms_are_left_to_numpy():
    x = np.ones((6, 4, 3), np.float32)
    out = np.zeros((4, 3), np.float32)
    for other in (x[:1], x[:, ::-1], x.transpose(0, 2, 1), np.broadcast_to(x[0], x.shape), x.astype(np.float64)):
        assert sum_first(other, out.reshape(other.shape[1:])) is None
    assert sum_first(np.ones((TOGETHER**2 + 1, 4, 3), np.float32), out) is None
    assert sum_first(x, np.zeros((4, 6), np.float32)[:, ::2]) is None
    assert sum_first(x, np.zeros((4, 1), np.float32)) is None
