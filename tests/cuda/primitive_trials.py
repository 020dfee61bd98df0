"""Each primitive of prims.cuh and common.cuh alone, compared with NumPy, on the emulator or on a GPU.

All other tests on the emulator rely on its primitives being correct.
"""

import ctypes
import math
import os
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from emulator import HERE, EmulatedDevice
from fake_cupy import installed
from tinyvit.kernels.cuda.device import Device, Kernel, device_of, pointer

from tinyvit import backend
from tinyvit.functional.random import philox4x32

SOURCE = str(HERE / "primitives.cu")
DTYPES = {"half_t": np.dtype(np.float16), "bfloat_t": np.dtype(ml_dtypes.bfloat16)}
RNG = np.random.default_rng(0)
every_dtype = pytest.mark.parametrize("ctype", DTYPES)


@pytest.fixture
def place() -> Iterator[tuple[Device, Any]]:
    """Yield the device, and the function that copies an array to it."""
    if os.environ.get("TINYVIT_TRIALS") == "gpu":
        yield device_of(backend.to_device(np.zeros(1), "cuda")), lambda x: backend.to_device(x, "cuda")
    else:
        with installed() as cupy:
            yield EmulatedDevice(), cupy.asarray


def launch(place: Any, expression: str, arrays: list[Any], *scalars: Any, threads: int = 32, shared: int = 0) -> None:
    place[0].launch(Kernel(SOURCE, expression), (1,), threads, [*map(pointer, arrays), *scalars], shared)


@every_dtype
def test_mma_is_a_product_of_matrices(place: Any, ctype: str) -> None:
    a, b = (RNG.standard_normal(s).astype(DTYPES[ctype]) for s in ((16, 16), (16, 8)))
    arrays = [place[1](x) for x in (a, b, np.full((16, 8), np.nan, np.float32))]
    launch(place, f"product<{ctype}>", arrays)
    exact = a.astype(float) @ b.astype(float)
    # Products of 16-bit numbers are exact in float32, so the error is that of adding 16 of them.
    bound = 16 * np.finfo(np.float32).eps * (np.abs(a.astype(float)) @ np.abs(b.astype(float)))
    assert (np.abs(arrays[2].get() - exact) <= bound).all()


@every_dtype
def test_small_matrices_have_the_documented_layout_and_missing_rows_are_zero(place: Any, ctype: str) -> None:
    x, rows = RNG.integers(0, 2**16, (32, 8), np.uint16), 29
    arrays = [place[1](x.view(np.int16)), place[1](np.zeros((2, 32, 4), np.int32))]
    launch(place, f"matrices<{ctype}>", arrays, ctypes.c_int(rows), shared=32 * 16)
    x[rows:] = 0
    small = x.reshape(4, 8, 8)
    pairs = np.ascontiguousarray(small).reshape(4, 32, 2), np.ascontiguousarray(small.swapaxes(1, 2)).reshape(4, 32, 2)
    for found, expected in zip(arrays[1].get().view(np.uint16).reshape(2, 32, 4, 2), pairs, strict=True):
        np.testing.assert_array_equal(found.swapaxes(0, 1), expected)


# Of ex2.approx, by the PTX manual: 2 ulp, which are 2**-22 of the smallest number with the same exponent. The result is
# besides rounded to float32.
EXP2_TOLERANCE = 2**-21.5


@every_dtype
def test_conversions_round_to_nearest_even(place: Any, ctype: str) -> None:
    dtype = DTYPES[ctype]
    bits = RNG.integers(0, 2**32, 2000, np.uint32)
    x = np.concatenate([bits.view(np.float32), np.arange(-30, 30, 0.0625, np.float32)])
    x = np.concatenate([x, np.array([np.inf, -np.inf, 0.0, -0.0, 65519, 65520, 1e-8], np.float32)])
    outs = [place[1](np.zeros(x.size, t)) for t in (np.float32, np.int32, np.float32)]
    launch(place, f"convert<{ctype}>", [place[1](x), *outs], ctypes.c_int(x.size), threads=64)
    with np.errstate(all="ignore"):
        rounded = x.astype(dtype)
        np.testing.assert_array_equal(outs[0].get(), rounded.astype(np.float32))
        pairs, real = outs[1].get().view(np.uint16).reshape(-1, 2), ~np.isnan(x)
        np.testing.assert_array_equal(pairs[real, 0], rounded.view(np.uint16)[real])
        np.testing.assert_array_equal(pairs[real, 1], (-x).astype(dtype).view(np.uint16)[real])
        power, exact = outs[2].get(), np.exp2(x.astype(float))
        usual = real & (exact < 2.0**127) & (exact > 2.0**-126)
        np.testing.assert_allclose(power[usual], exact[usual], rtol=EXP2_TOLERANCE)
        assert (power[x == -math.inf] == 0).all()


@pytest.mark.parametrize("threads", [32, 64, 128, 1024])
def test_reductions_give_every_thread_the_same(place: Any, threads: int) -> None:
    x = RNG.standard_normal(threads).astype(np.float32)
    out = place[1](np.full((threads, 4), np.nan, np.float32))
    launch(place, "reduce<float>", [place[1](x), out], threads=threads, shared=128)
    found = out.get()
    expected = np.stack(
        [
            np.repeat(x.reshape(-1, 32).sum(1), 32),
            np.repeat(x.reshape(-1, 4).sum(1), 4),
            np.full(threads, x.sum()),
            np.full(threads, x.max()),
        ],
        axis=1,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for first in range(0, threads, 32):
        assert len({row.tobytes() for row in found[first : first + 32, [0, 2, 3]]}) == 1


def test_a_maximum_does_not_hide_nan(place: Any) -> None:
    x = np.arange(64, dtype=np.float32)
    x[40] = np.nan
    out = place[1](np.zeros((64, 4), np.float32))
    launch(place, "reduce<float>", [place[1](x), out], threads=64, shared=128)
    assert np.isnan(out.get()[:, 3]).all()


@pytest.mark.parametrize(("offset", "seed"), [(0, 0), (1, 2), (2**40 + 5, 2**63 - 1), (2**32, 2**32)])
def test_philox_gives_the_words_of_the_plain_one(place: Any, offset: int, seed: int) -> None:
    out = place[1](np.zeros((64, 4), np.int32))
    launch(place, "random_words<float>", [out], ctypes.c_ulonglong(offset), ctypes.c_ulonglong(seed), threads=64)
    counter = np.zeros((4, 64), np.uint32)
    counter[0], counter[2], counter[3] = np.arange(64), offset & 0xFFFFFFFF, offset >> 32
    expected = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    np.testing.assert_array_equal(out.get().view(np.uint32), expected.T)
