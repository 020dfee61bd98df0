"""The kernels that serve all parameters at once, `average` and `narrow`, against NumPy.

`test_emulated.py` and `test_gpu.py` run this file. Sizes lie around the edges of blocks and of threads; parameters may
be empty, and lie anywhere in memory.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_trials import DEVICE, SCHEDULES, on_device, on_the_device  # noqa: F401  (a fixture)
from tinyvit.kernels.average import cupy_raw as average
from tinyvit.kernels.narrow import cupy_raw as narrow

from tinyvit import backend

CHUNK, THREADS = 8192, 256
SIZES = [
    (1,),
    (3, 0, 5),
    (CHUNK - 1,),
    (CHUNK,),
    (CHUNK + 1, 2),
    (THREADS, THREADS + 1, CHUNK - 1, 1, CHUNK),  # some that end with a block, and small ones within one
    (5, 3 * CHUNK + 7, 1, 4),  # one that spans several blocks
    tuple(range(1, 40)),
]
GUARD = 7.0  # before and after the flat array

every_size = pytest.mark.parametrize("sizes", SIZES)


def parameters(sizes: tuple[int, ...], rng: Any) -> list[Any]:
    """Return parameters on the device, each within other memory."""
    return [on_device(rng.standard_normal(n + 3).astype(np.float32))[2 : n + 2] for n in sizes]


def table_of(arrays: list[Any], sizes: tuple[int, ...]) -> Any:
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return on_device(np.array([(a.data.ptr, s, n) for a, s, n in zip(arrays, starts, sizes, strict=True)], np.int64))


def guarded(values: np.ndarray) -> tuple[Any, Any]:
    """Return all memory, and the values in the middle of it, which begin at a multiple of 16 bytes."""
    memory = on_device(np.concatenate([np.full(16, GUARD), values, np.full(16, GUARD)]).astype(values.dtype))
    return memory, memory[16 : 16 + values.size]


def within_guards(memory: Any) -> np.ndarray:
    """Return the values, if nothing around them was written."""
    found = backend.to_host(memory)
    edges = np.concatenate([found[:16], found[-16:]]).astype(float)
    np.testing.assert_array_equal(edges, GUARD)
    return found[16:-16]


@every_size
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_copies_are_the_parameters_rounded_to_nearest(sizes: tuple[int, ...], schedule: int) -> None:
    DEVICE.schedule, rng = schedule, np.random.default_rng(0)
    given = parameters(sizes, rng)
    memory, copies = guarded(np.full(sum(sizes), np.nan, ml_dtypes.bfloat16))
    before = [backend.to_host(p).copy() for p in given]
    assert narrow.step(table_of(given, sizes), copies, version=1) == ()
    expected = np.concatenate(before).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(within_guards(memory).view(np.uint16), expected.view(np.uint16))
    for p, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(backend.to_host(p), b)


def test_copies_of_numbers_at_which_rounding_goes_wrong() -> None:
    below, above = np.float32(1 + 2**-8 - 2**-20), np.float32(1 + 2**-8 + 2**-20)
    values = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, below, above, 3.3895e38, 3.4e38, 1e-40, np.inf, -np.inf, np.nan]
    x = np.array(values, np.float32)
    given = [on_device(x)]
    memory, copies = guarded(np.zeros(x.size, ml_dtypes.bfloat16))
    narrow.step(table_of(given, (x.size,)), copies, version=1)
    found, expected = within_guards(memory).astype(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[:2]), [False, True])


@every_size
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_averages_move_towards_the_parameters(sizes: tuple[int, ...], schedule: int) -> None:
    """d = min((1 + t) / (10 + t), decay) for update number t, counted from 1."""
    DEVICE.schedule, rng = schedule, np.random.default_rng(1)
    given = parameters(sizes, rng)
    start, now = rng.standard_normal(sum(sizes)).astype(np.float32), [backend.to_host(p).copy() for p in given]
    memory, averages = guarded(start)
    table, expected = table_of(given, sizes), start.astype(float)
    state = on_device(np.array([2, 0.35, np.nan]))
    for t in (3, 4, 5, 6):
        assert average.step(table, state, averages, version=1) == ()
        d = min((1 + t) / (10 + t), 0.35)
        np.testing.assert_allclose(backend.to_host(state), [t, 0.35, d], rtol=1e-15)
        expected = d * expected + (1 - d) * np.concatenate(now)
        largest = max(np.abs(x).max(initial=0) for x in (start, *now))
        # Each update rounds d, 1 - d, two products and their sum.
        np.testing.assert_allclose(within_guards(memory), expected, rtol=0, atol=5 * (t - 2) * 2**-24 * largest)
    for p, b in zip(given, now, strict=True):
        np.testing.assert_array_equal(backend.to_host(p), b)


def test_a_decay_near_one_keeps_its_digits() -> None:
    """1 - d is computed before it is rounded to float32: 1 - 0.9999 of float32 is wrong in its third digit."""
    given, n = [on_device(np.ones(9, np.float32))], 9
    memory, averages = guarded(np.zeros(n, np.float32))
    state = on_device(np.array([1e9, 0.9999, 0]))
    average.step(table_of(given, (n,)), state, averages, version=1)
    np.testing.assert_allclose(within_guards(memory), 1e-4, rtol=1e-6)


def test_nothing_is_averaged_or_copied_where_there_is_nothing() -> None:
    state, none = on_device(np.array([0, 0.5, 0])), on_device(np.zeros((0, 3), np.int64))
    average.step(none, state, on_device(np.zeros(0, np.float32)), version=1)
    narrow.step(none, on_device(np.zeros(0, ml_dtypes.bfloat16)), version=1)
    assert backend.to_host(state)[0] == 1
